//! What virtio 1.2 requires of a driver; names carry the clause. The table of all is docs/virtio-conformance.md.

use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use toll_guest_abi::virtio_net as switches;
use toll_protocol::trial::{QueuePairs, VirtioNetSwitches};
use toll_vnic::port::Port;
use toll_vnic::port::memory::pair_with_headers;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::platform::DmaRegion;
use crate::support::{Access, End, HostPlatform, VIRTIO_NET};

const ALL: u64 = switches::CHECKSUM_OFFLOAD
    | switches::TSO
    | switches::MERGEABLE_BUFFERS
    | switches::EVENT_INDEX
    | switches::CONTROL_QUEUE;
const STATUS: u64 = 0x70;
const QUEUE_NOTIFY: u64 = 0x50;

/// A machine some of whose registers read otherwise.
struct Machine {
    inner: HostPlatform,
    others: BTreeMap<u64, u32>,
}

impl Machine {
    /// One whose device has everything, with two queue pairs.
    fn new() -> Self {
        let switches = VirtioNetSwitches {
            checksum_offload: true,
            tso: true,
            mergeable_buffers: true,
            event_index: true,
            control_queue: true,
            queue_pairs: QueuePairs::new(2).unwrap(),
            ..VirtioNetSwitches::OFF
        };
        let end = End { switches, arena: 16 << 20, ..End::sender(VIRTIO_NET) };
        let port = || -> Box<dyn Port> { Box::new(pair_with_headers(16).unwrap().0) };
        let mut inner = HostPlatform::behind(&end, [port(), port()].into(), |adapter| adapter);
        inner.transcript = Some(Vec::new());
        Self { inner, others: BTreeMap::new() }
    }

    fn with(register: u64, value: u32) -> Self {
        let mut machine = Self::new();
        machine.others.insert(register, value);
        machine
    }

    fn accesses(&self) -> &[(Access, u64, u32)] {
        self.inner.transcript.as_deref().unwrap()
    }

    /// What was written to a register.
    fn written(&self, register: u64) -> Vec<u32> {
        let of = |&&(access, offset, _): &&(Access, u64, u32)| (access, offset) == (Access::Write, register);
        self.accesses().iter().filter(of).map(|(_, _, value)| *value).collect()
    }

    fn word(&self, address: u64) -> u16 {
        self.inner.memory.read_obj(GuestAddress(address)).unwrap()
    }
}

impl Registers for Machine {
    fn read_register(&mut self, offset: u64, width: u8) -> u32 {
        let value = self.inner.read_register(offset, width);
        self.others.get(&offset).copied().unwrap_or(value)
    }

    fn write_register(&mut self, offset: u64, width: u8, value: u32) {
        self.inner.write_register(offset, width, value);
    }
}

impl Platform for Machine {
    fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }

    fn wait(&mut self, timeout_us: u32) {
        self.inner.wait(timeout_us);
    }

    fn phase(&mut self, phase: u32) {
        self.inner.phase(phase);
    }

    fn allocate(&mut self, length: usize, align: usize) -> DmaRegion {
        self.inner.allocate(length, align)
    }

    fn take_interrupt(&mut self) -> u32 {
        self.inner.take_interrupt()
    }
}

const NOTHING: Setup = Setup { mtu: 1500, mac: [0x52, 0x54, 0, 0, 0, 1], switches: 0, sends: true, pairs: 1 };
const EVERYTHING: Setup = Setup { switches: ALL, pairs: 2, ..NOTHING };

#[test]
fn virtio_1_2_s2_1_1_status_bits_are_set_one_after_the_other_and_none_is_cleared() {
    for setup in [NOTHING, EVERYTHING] {
        let mut machine = Machine::new();
        VirtioNetDriver::open(&mut machine, setup).unwrap();
        assert_eq!(machine.written(STATUS), [0, 1, 3, 11, 15]);
    }
}

#[test]
fn virtio_1_2_s2_2_1_a_driver_that_lacks_a_feature_says_failed_and_ceases() {
    // What either half of the features says: VERSION_1 in the upper one, and no control queue in the lower one.
    let mut machine = Machine::with(0x10, 1 | 1 << 3 | 1 << 5);
    let refused = VirtioNetDriver::open(&mut machine, EVERYTHING).map(drop);
    assert!(matches!(refused, Err(DriverError::Unsupported { .. })), "{refused:?}");
    assert_eq!(machine.written(STATUS), [0, 1, 3, 3 | 128]);
    assert_eq!(machine.accesses().last(), Some(&(Access::Write, STATUS, 3 | 128)));
    // 3.1.1: the same if the device doesn't take them together.
    let mut machine = Machine::with(STATUS, 3);
    assert!(VirtioNetDriver::open(&mut machine, EVERYTHING).is_err());
    assert_eq!(machine.written(STATUS), [0, 1, 3, 11, 11 | 128]);
}

#[test]
fn virtio_1_2_s2_2_1_nothing_is_accepted_that_is_not_offered() {
    // The upper half, VERSION_1, and then the lower one.
    for (offered, accepted) in [(1, [1, 0]), (1 | 1 << 5, [1, 1 << 5]), (u32::MAX, [1, 1 << 3 | 1 << 5])] {
        let mut machine = Machine::with(0x10, offered);
        // The device itself offers less than the last one, and then refuses nothing that it offers.
        VirtioNetDriver::open(&mut machine, NOTHING).unwrap();
        assert_eq!(machine.written(0x20), accepted, "{offered:#x}");
    }
}

#[test]
fn virtio_1_2_s3_1_1_no_notification_is_sent_before_driver_ok() {
    let mut machine = Machine::new();
    VirtioNetDriver::open(&mut machine, EVERYTHING).unwrap();
    let place = |wanted: (Access, u64, u32)| machine.accesses().iter().position(|access| *access == wanted);
    let live = place((Access::Write, STATUS, 15)).unwrap();
    let of_notify =
        |(access, offset, _): &(Access, u64, u32)| (*access, *offset) == (Access::Write, QUEUE_NOTIFY);
    let first = machine.accesses().iter().position(of_notify).unwrap();
    assert!(live < first, "the control queue is notified once the device is live");
}

#[test]
fn virtio_1_2_s4_2_3_1_1_what_is_no_network_device_is_left_alone() {
    for (register, value, looks, expected) in [
        (0x0, 1, 1, DriverError::Unexpected { register: "MagicValue", found: 1 }),
        (0x4, 1, 2, DriverError::Unexpected { register: "Version", found: 1 }),
        (0x8, 0, 3, DriverError::Absent),
        (0x8, 2, 3, DriverError::Unexpected { register: "DeviceID", found: 2 }),
    ] {
        let mut machine = Machine::with(register, value);
        assert_eq!(VirtioNetDriver::open(&mut machine, NOTHING).map(drop), Err(expected));
        let offsets: Vec<_> =
            machine.accesses().iter().map(|(access, offset, _)| (*access, *offset)).collect();
        let all = [0x0, 0x4, 0x8].map(|offset| (Access::Read, offset));
        assert_eq!(offsets, &all[..looks], "magic, version and kind, and nothing after");
    }
}

#[test]
fn virtio_1_2_s4_2_2_2_registers_are_accessed_as_they_are_to_be() {
    let mut machine = Machine::new();
    VirtioNetDriver::open(&mut machine, EVERYTHING).unwrap();
    // Another width, a register that is not there, or is not to be read or written, is counted.
    assert_eq!(machine.inner.adapter.counters().guest_errors, 0);
    let (mut device_half, mut driver_half, mut size) = (None, None, 0);
    for &(access, offset, value) in machine.accesses() {
        match (access, offset) {
            (Access::Write, 0x14) => device_half = Some(value),
            (Access::Read, 0x10) => assert!(device_half.take().is_some(), "DeviceFeaturesSel comes first"),
            (Access::Write, 0x24) => driver_half = Some(value),
            (Access::Write, 0x20) => assert!(driver_half.take().is_some(), "DriverFeaturesSel comes first"),
            (Access::Read, 0x34) => size = value,
            (Access::Write, 0x38) => assert!(value <= size, "QueueNum is at most QueueNumMax"),
            _ => {}
        }
    }
}

#[test]
fn virtio_1_2_s5_1_4_2_the_address_is_the_devices_and_the_mtu_is_kept() {
    let refused = |register, value| {
        let mut machine = Machine::with(register, value);
        VirtioNetDriver::open(&mut machine, NOTHING).map(drop).unwrap_err()
    };
    assert_eq!(refused(0x105, 9), DriverError::Unexpected { register: "mac", found: 9 });
    assert_eq!(refused(0x10a, 1499), DriverError::Unexpected { register: "mtu", found: 1499 });
    let mut machine = Machine::with(0x10a, 1501);
    assert!(VirtioNetDriver::open(&mut machine, NOTHING).is_ok());
}

#[test]
fn virtio_1_2_s5_1_6_5_6_pairs_are_configured_before_they_are_enabled_and_as_many_as_there_are() {
    let mut machine = Machine::with(0x108, 1);
    let refused = VirtioNetDriver::open(&mut machine, EVERYTHING).map(drop);
    assert_eq!(refused, Err(DriverError::Unexpected { register: "max_virtqueue_pairs", found: 1 }));
    let mut machine = Machine::new();
    VirtioNetDriver::open(&mut machine, EVERYTHING).unwrap();
    assert_eq!(machine.written(0x44), [1; 5], "each queue is made ready once");
    assert_eq!(machine.written(QUEUE_NOTIFY), [4; 3], "receive mode, addresses, pairs");
}

#[test]
fn virtio_1_2_s2_7_queues_are_aligned_and_begin_as_they_are_to() {
    for setup in [NOTHING, EVERYTHING] {
        let mut machine = Machine::new();
        // It writes nothing to the flags that it was given.
        machine.inner.adapter.watch(false).unwrap();
        VirtioNetDriver::open(&mut machine, setup).unwrap();
        let [tables, available, used] = [0x80, 0x90, 0xa0].map(|register| machine.written(register));
        let sizes = machine.written(0x38);
        for (index, size) in sizes.into_iter().enumerate() {
            let (table, available, used) = (tables[index], available[index], used[index]);
            assert_eq!((table % 16, available % 2, used % 4), (0, 0, 0));
            assert!(size.is_power_of_two());
            let events = setup.has(switches::EVENT_INDEX);
            assert_eq!(machine.word(available.into()), u16::from(!events), "2.7.7.1: flags");
            assert_eq!(machine.word(used.into()), 0, "2.7.10.1: flags");
            for descriptor in 0..size {
                let flags = machine.word(u64::from(table + 16 * descriptor + 12));
                assert!(matches!(flags, 0..=2), "2.7.5.3.1: no descriptor is indirect");
            }
        }
    }
}
