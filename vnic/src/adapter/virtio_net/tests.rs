//! Negotiation, rings and attacks; names carry the clause of virtio 1.2 that they check.

mod attacks;
mod combining;
mod conformance;
mod control;
mod offloads;

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::piece::{Piece, PieceMut};
use crate::port::memory::{MemoryPort, pair, pair_with_headers};

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const MEMORY: usize = 0x40000;
const BUFFERS: u64 = 0x20000;
const SIZE: u16 = 8;

/// A device, the guest memory it sees, the far end of its wire, and the rings of a driver.
struct Bench {
    device: VirtioNet,
    memory: GuestMemory,
    /// Of the first pair.
    wire: MemoryPort,
    /// Of the others.
    wires: Vec<MemoryPort>,
    /// Next available index of each queue.
    available: [u16; QUEUES],
    /// Where frames that left are taken to.
    room: Vec<u8>,
}

/// Queues of a driver at most: three pairs and the control queue.
const QUEUES: usize = 7;

/// Table, driver area and device area of a queue.
fn areas(queue: usize) -> [u64; 3] {
    let base = 0x1000 + 0x4000 * queue as u64;
    [base, base + 0x1000, base + 0x2000]
}

impl Bench {
    fn reset() -> Self {
        Self::with(VirtioNetSwitches::default())
    }

    fn with(switches: VirtioNetSwitches) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let mut ports: Vec<Box<dyn Port>> = Vec::new();
        let mut wires = Vec::new();
        for _ in 0..switches.queue_pairs.count() {
            let (port, wire) = if switches.offloads() { pair_with_headers(64) } else { pair(64) }.unwrap();
            ports.push(Box::new(port));
            wires.push(wire);
        }
        let device = VirtioNet::new(memory.clone(), ports, MAC, 1500, switches).unwrap();
        let wire = wires.remove(0);
        Self { device, memory, wire, wires, available: [0; QUEUES], room: vec![0; 70_000] }
    }

    /// 3.1.1: a driver that does everything right.
    fn live() -> Self {
        Self::live_with(VirtioNetSwitches::default(), 0)
    }

    /// As [`live`](Self::live), with these features beside VIRTIO_F_VERSION_1.
    fn live_with(switches: VirtioNetSwitches, features: u32) -> Self {
        let mut bench = Self::with(switches);
        bench.negotiate(features);
        for queue in 0..bench.queues() {
            bench.set_up(queue);
        }
        bench.write(0x70, 15);
        assert_eq!(bench.read(0x70), 15);
        bench
    }

    /// Queues that the device has.
    fn queues(&mut self) -> usize {
        let exists = |queue: usize| {
            self.write(0x30, queue as u32);
            self.read(0x34) > 0
        };
        (0..QUEUES).map(exists).take_while(|exists| *exists).count()
    }

    fn negotiate(&mut self, features: u32) {
        self.write(0x70, 1);
        self.write(0x70, 3);
        self.write(0x20, features);
        self.write(0x24, 1);
        self.write(0x20, 1);
        self.write(0x70, 11);
    }

    fn set_up(&mut self, queue: usize) {
        self.set_up_of(queue, SIZE);
    }

    fn set_up_of(&mut self, queue: usize, size: u16) {
        self.write(0x30, queue as u32);
        self.write(0x38, size.into());
        for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(areas(queue)) {
            self.write(register, address as u32);
            self.write(register + 4, 0);
        }
        self.write(0x44, 1);
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes()).unwrap();
    }

    fn errors(&self) -> u64 {
        self.device.counters().guest_errors
    }

    fn describe(&self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = areas(queue)[0] + 16 * u64::from(index);
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    fn give(&mut self, queue: usize, head: u16) {
        let at = areas(queue)[1];
        let slot = u64::from(self.available[queue] % SIZE);
        self.memory.write_obj(head, GuestAddress(at + 4 + 2 * slot)).unwrap();
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.memory.write_obj(self.available[queue], GuestAddress(at + 2)).unwrap();
    }

    fn used(&self, queue: usize) -> u16 {
        self.memory.read_obj(GuestAddress(areas(queue)[2] + 2)).unwrap()
    }

    fn used_element(&self, queue: usize, index: u16) -> (u32, u32) {
        let at = areas(queue)[2] + 4 + 8 * u64::from(index % SIZE);
        let word = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
        (word(at), word(at + 4))
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn arrives(&mut self, frame: &[u8]) {
        self.wire.send(&[Piece::new(frame)]).unwrap();
    }

    fn departed(&mut self) -> Option<Vec<u8>> {
        let length = self.wire.receive(&mut [PieceMut::new(&mut self.room)]).unwrap()?;
        Some(self.room[..length].to_vec())
    }

    /// The guest fails, with a text that has `expected` in it, and the device then wants a reset.
    fn fails(&mut self, expected: &str) {
        let error = self.device.service().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, AdapterError::Guest { adapter: "virtio-net", .. }), "{text}");
        assert!(text.contains(expected), "{text}");
        assert_eq!(self.errors(), 1);
        assert_ne!(self.read(0x70) & 0x40, 0);
        assert!(!self.device.service().unwrap());
    }
}

fn frame(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn virtio_1_2_s4_2_2_identity_and_config_space() {
    let mut bench = Bench::reset();
    assert_eq!((bench.read(0), bench.read(4), bench.read(8)), (0x7472_6976, 2, 1));
    let mut mac = [0; 6];
    bench.device.read(0x100, &mut mac).unwrap();
    assert_eq!(mac, MAC.0);
    let mut mtu = [0; 2];
    bench.device.read(0x10a, &mut mtu).unwrap();
    assert_eq!(mtu, 1500_u16.to_le_bytes());
    assert_eq!(bench.read(0x34), u32::from(MAX_QUEUE_SIZE));
    bench.write(0x30, 2);
    assert_eq!(bench.read(0x34), 0, "a queue that there is not has size 0");
    assert_eq!(bench.errors(), 0);
    bench.device.read(0x10b, &mut mtu).unwrap();
    bench.device.read(0x0, &mut mtu).unwrap();
    bench.device.write(0x0, &[0; 4]).unwrap();
    bench.device.write(0x70, &[0; 2]).unwrap();
    assert_eq!(bench.errors(), 4, "past the config space, 16 bits wide, read-only, 16 bits wide");
}

#[test]
fn virtio_1_2_s2_2_2_features_ok_only_for_offered_features_with_version_1() {
    let accepts = |low: u32, high: u32| {
        let mut bench = Bench::reset();
        bench.write(0x70, 3);
        for (half, features) in [(0, low), (1, high)] {
            bench.write(0x24, half);
            bench.write(0x20, features);
        }
        bench.write(0x70, 11);
        bench.read(0x70) & 8 != 0
    };
    let mut bench = Bench::reset();
    let low = bench.read(0x10);
    bench.write(0x14, 1);
    assert_eq!((low, bench.read(0x10)), (1 << 3 | 1 << 5, 1));
    assert!(accepts(0, 1));
    assert!(accepts(low, 1));
    assert!(!accepts(low, 0), "a legacy driver");
    assert!(!accepts(low | 1, 1), "VIRTIO_NET_F_CSUM was not offered");
    assert!(!accepts(low, 3));
}

#[test]
fn virtio_1_2_s3_1_1_queues_are_set_up_between_features_ok_and_driver_ok() {
    let mut bench = Bench::reset();
    bench.set_up(0);
    assert_eq!(bench.read(0x44), 0);
    bench.negotiate(0);
    bench.set_up(0);
    assert_eq!(bench.read(0x44), 1);
    let errors = bench.errors();
    bench.write(0x38, 3);
    bench.write(0x80, 0x3000);
    assert_eq!(bench.errors(), errors + 2, "a ready queue is not changed");
    // The transmit queue is not ready.
    assert!(matches!(bench.device.write(0x70, &15_u32.to_le_bytes()), Err(AdapterError::Guest { .. })));
}

#[test]
fn virtio_1_2_s2_1_2_writing_0_resets() {
    let mut bench = Bench::live();
    bench.describe(0, 0, BUFFERS, 2048, WRITE, 0);
    bench.give(0, 0);
    bench.arrives(&frame(60));
    assert!(bench.device.service().unwrap());
    assert!(bench.device.interrupt());
    bench.write(0x70, 0);
    assert_eq!((bench.read(0x70), bench.read(0x60), bench.read(0x44)), (0, 0, 0));
    assert!(!bench.device.interrupt() && !bench.device.can_receive());
    bench.negotiate(0);
    bench.set_up(0);
    bench.set_up(1);
    bench.write(0x70, 15);
    assert_eq!(bench.read(0x70), 15);
}

#[test]
fn virtio_1_2_s5_1_6_2_transmit_gathers_the_frame_behind_the_header() {
    let mut bench = Bench::live();
    let sent = frame(1514);
    // Header and frame cut in three: 8 bytes, 4 + 100 bytes, the rest.
    bench.put(BUFFERS, &[0; 12]);
    bench.put(BUFFERS + 0x100 + 4, &sent[..100]);
    bench.put(BUFFERS + 0x1000, &sent[100..]);
    bench.describe(1, 0, BUFFERS, 8, NEXT, 5);
    bench.describe(1, 5, BUFFERS + 0x100, 104, NEXT, 3);
    bench.describe(1, 3, BUFFERS + 0x1000, 1414, 0, 0);
    bench.give(1, 0);
    bench.write(0x50, 1);
    assert_eq!(bench.departed(), Some(sent));
    assert_eq!(bench.used(1), 1);
    assert_eq!(bench.used_element(1, 0), (0, 0));
    assert_eq!(bench.device.counters().transmit_bytes, 1514);
}

#[test]
fn virtio_1_2_s5_1_6_4_receive_scatters_behind_a_header_with_num_buffers_1() {
    let mut bench = Bench::live();
    bench.describe(0, 2, BUFFERS, 12, NEXT | WRITE, 4);
    bench.describe(0, 4, BUFFERS + 0x100, 50, NEXT | WRITE, 6);
    bench.describe(0, 6, BUFFERS + 0x1000, 2000, WRITE, 0);
    bench.put(BUFFERS, &[0xaa; 12]);
    bench.give(0, 2);
    assert!(bench.device.can_receive());
    let arrived = frame(300);
    bench.arrives(&arrived);
    assert!(bench.device.service().unwrap());
    assert!(!bench.device.can_receive());
    assert_eq!(bench.get(BUFFERS, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bench.get(BUFFERS + 0x100, 50), &arrived[..50]);
    assert_eq!(bench.get(BUFFERS + 0x1000, 250), &arrived[50..]);
    assert_eq!(bench.used_element(0, 0), (2, 312), "2.7.8.2: what was written");
}

#[test]
fn virtio_1_2_s2_7_7_no_interrupt_is_honoured() {
    let mut bench = Bench::live();
    bench.memory.write_obj(1_u16, GuestAddress(areas(0)[1])).unwrap();
    for round in 0..2 {
        bench.describe(0, 0, BUFFERS, 2048, WRITE, 0);
        bench.give(0, 0);
        bench.arrives(&frame(60));
        assert!(bench.device.service().unwrap());
        assert_eq!(bench.device.interrupt(), round == 1);
        bench.memory.write_obj(0_u16, GuestAddress(areas(0)[1])).unwrap();
    }
    assert_eq!(bench.read(0x60), 1);
    bench.write(0x64, 1);
    assert!(!bench.device.interrupt());
    assert_eq!(bench.device.counters().interrupts, 1);
}

#[test]
fn rings_wrap() {
    let mut bench = Bench::live();
    for round in 0..70_000_u32 {
        let id = (round % 3) as u16;
        bench.describe(1, id, BUFFERS, 12 + 60, 0, 0);
        bench.give(1, id);
        bench.device.service().unwrap();
        assert!(bench.departed().is_some());
    }
    assert_eq!(bench.used(1), (70_000_u32 & 0xffff) as u16);
}

#[test]
fn frames_wait_in_the_port_while_there_is_no_buffer_and_one_too_long_is_dropped() {
    let mut bench = Bench::live();
    bench.arrives(&[&MAC.0[..], &frame(94)].concat());
    // Another station's.
    bench.arrives(&frame(100));
    bench.arrives(&frame(60));
    assert!(!bench.device.service().unwrap());
    bench.describe(0, 0, BUFFERS, 12 + 60, WRITE, 0);
    bench.give(0, 0);
    assert!(bench.device.service().unwrap());
    assert_eq!(bench.get(BUFFERS + 12, 60), frame(60));
    let counters = bench.device.counters();
    assert_eq!((counters.receive_frames, counters.receive_drops, counters.receive_filtered), (1, 1, 1));
    assert_eq!(counters.guest_errors, 0);
}

#[test]
fn a_malformed_chain_fails_the_guest() {
    let transmit = |expected: &str, prepare: &dyn Fn(&mut Bench)| {
        let mut bench = Bench::live();
        prepare(&mut bench);
        bench.give(1, 0);
        bench.fails(expected);
    };
    let end = MEMORY as u64;
    transmit("outside of guest memory", &|b| b.describe(1, 0, end - 10, 100, 0, 0));
    transmit("outside of guest memory", &|b| b.describe(1, 0, u64::MAX - 5, 100, 0, 0));
    transmit("other direction", &|b| b.describe(1, 0, BUFFERS, 100, WRITE, 0));
    transmit("no end", &|b| b.describe(1, 0, BUFFERS, 100, NEXT, 0));
    transmit("no end", &|b| b.describe(1, 0, BUFFERS, 100, NEXT, SIZE));
    transmit("no room for the header", &|b| b.describe(1, 0, BUFFERS, 11, 0, 0));
    transmit("a frame of 13 bytes", &|b| b.describe(1, 0, BUFFERS, 25, 0, 0));
    transmit("a frame of 1519 bytes", &|b| b.describe(1, 0, BUFFERS, 1531, 0, 0));
    transmit("not negotiated", &|b| {
        b.put(BUFFERS, &[1]);
        b.describe(1, 0, BUFFERS, 100, 0, 0);
    });
    let mut bench = Bench::live();
    bench.describe(0, 0, BUFFERS, 2048, 0, 0);
    bench.give(0, 0);
    bench.arrives(&frame(60));
    bench.fails("other direction");
    let mut bench = Bench::live();
    bench.describe(0, 0, BUFFERS, 200, NEXT | WRITE, 1);
    bench.describe(0, 1, BUFFERS + 100, 200, WRITE, 0);
    bench.give(0, 0);
    bench.arrives(&frame(60));
    bench.fails("in the chain already");
    // 2.7.13.3: the index is further ahead than the queue is long.
    let mut bench = Bench::live();
    bench.memory.write_obj(SIZE + 1, GuestAddress(areas(1)[1] + 2)).unwrap();
    bench.fails("9 entries are available in a queue of 8");
}

#[test]
fn empty_buffers_do_not_make_a_chain_of_any_length() {
    for queue in [0, 1] {
        let mut bench = Bench::reset();
        bench.negotiate(0);
        (0..2).for_each(|queue| bench.set_up_of(queue, 128));
        bench.write(0x70, 15);
        let flags = if queue == 0 { WRITE | NEXT } else { NEXT };
        for index in 0..100 {
            bench.describe(queue, index, BUFFERS, 0, flags, index + 1);
        }
        bench.describe(queue, 100, BUFFERS, 2000, flags & !NEXT, 0);
        bench.give(queue, 0);
        bench.arrives(&frame(60));
        bench.fails("over 64 descriptors");
    }
}
