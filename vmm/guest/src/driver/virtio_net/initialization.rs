//! Finding the device and coming to terms with it (virtio 1.2, 3.1.1): its status, its kind, and the features.

use super::{MAC, MTU, Setup, VERSION_1, register};
use crate::driver::DriverError;
use crate::platform::Registers;

/// The device status, of which no bit is ever cleared (2.1.1).
pub(super) struct Progress(pub(super) u32);

impl Progress {
    pub(super) fn reach(&mut self, registers: &mut impl Registers, bit: u32) {
        self.0 |= bit;
        registers.write_register(register::STATUS, 4, self.0);
    }
}

/// Looks whether there is a network device (4.2.3.1.1).
pub(super) fn find(registers: &mut impl Registers) -> Result<(), DriverError> {
    for (register, name, wanted) in [
        (register::MAGIC_VALUE, "MagicValue", u32::from_le_bytes(*b"virt")),
        (register::VERSION, "Version", 2),
        (register::DEVICE_ID, "DeviceID", 1),
    ] {
        let found = registers.read_register(register, 4);
        if (register, found) == (register::DEVICE_ID, 0) {
            // A place without a device, which is no device's error (4.2.2.2).
            return Err(DriverError::Absent);
        }
        if found != wanted {
            return Err(DriverError::Unexpected { register: name, found });
        }
    }
    Ok(())
}

/// Takes what is needed of the features that are offered, MTU and address with them (2.2.1).
pub(super) fn negotiate(registers: &mut impl Registers, setup: Setup) -> Result<(), DriverError> {
    let needed = setup.features();
    let mut taken = 0;
    for (half, wanted, needed) in [(1, VERSION_1, VERSION_1), (0, MTU | MAC | needed, needed)] {
        registers.write_register(register::DEVICE_FEATURES_SEL, 4, half);
        let offered = registers.read_register(register::DEVICE_FEATURES, 4);
        if offered & needed != needed {
            return Err(DriverError::Unsupported { what: "a feature that the switches ask for" });
        }
        taken = offered & wanted;
        registers.write_register(register::DRIVER_FEATURES_SEL, 4, half);
        registers.write_register(register::DRIVER_FEATURES, 4, taken);
    }
    // The address is the device's, and no frame is longer than it says (5.1.4.2).
    for (index, byte) in setup.mac.into_iter().enumerate().filter(|_| taken & MAC != 0) {
        let found = registers.read_register(register::MAC + index as u64, 1);
        if found != u32::from(byte) {
            return Err(DriverError::Unexpected { register: "mac", found });
        }
    }
    let mtu = if taken & MTU != 0 { registers.read_register(register::MTU, 2) } else { u32::MAX };
    if (mtu as usize) < setup.mtu {
        return Err(DriverError::Unexpected { register: "mtu", found: mtu });
    }
    Ok(())
}
