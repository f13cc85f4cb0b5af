//! Decodes the guest's port and memory accesses: which region, and which offset in it.

use toll_guest_abi::doorbell;
use toll_vnic::adapter::{Adapter, Window};

use crate::layout::{FAULT_PORTS, FAULT_VECTORS, MMIO, PIO};

/// One of the two address spaces of an x86 machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Pio,
    /// Physical addresses without memory.
    Mmio,
}

/// What lives in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The adapter's registers.
    Adapter,
    /// The WAIT doorbell.
    Wait,
    /// The PHASE doorbell.
    Phase,
    /// The END doorbell.
    End,
    /// What tells of faults: the offset is the vector.
    Faults,
}

/// A range of addresses that a device decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    space: Space,
    start: u64,
    length: u64,
    device: Device,
}

/// The regions of a machine.
#[derive(Debug, Clone)]
pub struct Bus {
    regions: Vec<Region>,
}

impl Bus {
    /// The doorbells, and an adapter with `window`.
    pub fn new(window: Window) -> Self {
        let doorbell =
            |port: u16, device| Region { space: Space::Pio, start: u64::from(port), length: 4, device };
        let adapter = match window {
            Window::Pio(length) => Region {
                space: Space::Pio,
                start: u64::from(PIO),
                length: u64::from(length),
                device: Device::Adapter,
            },
            Window::Mmio(length) => {
                Region { space: Space::Mmio, start: MMIO, length, device: Device::Adapter }
            }
        };
        // The adapter first: nearly all accesses are its.
        let regions = vec![
            adapter,
            doorbell(doorbell::WAIT, Device::Wait),
            doorbell(doorbell::PHASE, Device::Phase),
            doorbell(doorbell::END, Device::End),
            Region {
                space: Space::Pio,
                start: u64::from(FAULT_PORTS),
                length: u64::from(FAULT_VECTORS),
                device: Device::Faults,
            },
        ];
        Self { regions }
    }

    /// The device that decodes all `length` bytes at `address`, and the offset in its region.
    pub fn decode(&self, space: Space, address: u64, length: usize) -> Option<(Device, u64)> {
        self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.start)?;
            let end = offset.checked_add(length as u64)?;
            (region.space == space && end <= region.length).then_some((region.device, offset))
        })
    }

    /// Ports of `adapter` whose writes may be done later, and the width of such writes in bytes.
    pub fn posted(&self, adapter: &dyn Adapter) -> Vec<(u16, u32)> {
        let region = self.regions.iter().find(|region| region.device == Device::Adapter);
        let Some(region) = region.filter(|region| region.space == Space::Pio) else { return Vec::new() };
        let offsets = (0..region.length).flat_map(|offset| [1, 2, 4].map(|width| (offset, width)));
        offsets
            .filter(|(offset, width)| adapter.posts(*offset, *width))
            .filter_map(|(offset, width)| {
                Some((u16::try_from(region.start + offset).ok()?, u32::try_from(width).ok()?))
            })
            .collect()
    }

    /// Where the adapter's registers begin.
    pub fn adapter_base(&self) -> u64 {
        self.regions.iter().find(|region| region.device == Device::Adapter).map_or(0, |region| region.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_belongs_to_the_region_that_holds_all_of_it() {
        let bus = Bus::new(Window::Pio(0x20));
        assert_eq!(bus.decode(Space::Pio, 0xc010, 2), Some((Device::Adapter, 0x10)));
        assert_eq!(bus.decode(Space::Pio, 0xc01f, 2), None, "half of it lies outside");
        assert_eq!(bus.decode(Space::Mmio, 0xc010, 2), None);
        assert_eq!(bus.decode(Space::Pio, u64::from(doorbell::END), 4), Some((Device::End, 0)));
        assert_eq!(bus.decode(Space::Pio, u64::MAX, 4), None);
    }

    #[test]
    fn a_memory_mapped_adapter_leaves_the_doorbells_where_they_are() {
        let bus = Bus::new(Window::Mmio(0x200));
        assert_eq!(bus.adapter_base(), MMIO);
        assert_eq!(bus.decode(Space::Mmio, MMIO + 0x50, 4), Some((Device::Adapter, 0x50)));
        assert_eq!(bus.decode(Space::Pio, u64::from(doorbell::WAIT), 4), Some((Device::Wait, 0)));
    }
}
