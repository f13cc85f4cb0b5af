//! What the switches add: checksum and segmentation offload, mergeable receive buffers, event indices.

use super::*;

const CSUM: u32 = 1 << 0;
const GUEST_CSUM: u32 = 1 << 1;
const GUEST_TSO4: u32 = 1 << 7;
const HOST_TSO4: u32 = 1 << 11;
const MRG_RXBUF: u32 = 1 << 15;
const EVENT_IDX: u32 = 1 << 29;

const CHECKSUM: VirtioNetSwitches = VirtioNetSwitches { checksum_offload: true, ..VirtioNetSwitches::OFF };
const TSO: VirtioNetSwitches = VirtioNetSwitches { tso: true, ..CHECKSUM };
const MERGEABLE: VirtioNetSwitches =
    VirtioNetSwitches { checksum_offload: false, mergeable_buffers: true, ..CHECKSUM };
const EVENTS: VirtioNetSwitches =
    VirtioNetSwitches { mergeable_buffers: false, event_index: true, ..MERGEABLE };
pub(super) const ALL: VirtioNetSwitches =
    VirtioNetSwitches { mergeable_buffers: true, event_index: true, ..TSO };

/// A header: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
pub(super) fn header(flags: u8, gso_type: u8, gso_size: u16) -> Vec<u8> {
    let fields = [54, gso_size, 34, 16, 0].map(u16::to_le_bytes).concat();
    [vec![flags, gso_type], fields].concat()
}

/// Makes a frame and its header available in one descriptor of the transmit queue.
fn transmit(bench: &mut Bench, header: &[u8], frame: &[u8]) -> Result<(), AdapterError> {
    bench.put(BUFFERS, &[header, frame].concat());
    bench.describe(1, 0, BUFFERS, (header.len() + frame.len()) as u32, 0, 0);
    bench.give(1, 0);
    bench.device.write(0x50, &1_u32.to_le_bytes())
}

/// Gives `count` receive buffers of `length` bytes each, one descriptor a chain.
fn give_buffers(bench: &mut Bench, ids: std::ops::Range<u16>, length: u32) {
    for id in ids {
        bench.describe(0, id, BUFFERS + 0x2000 * u64::from(id), length, WRITE, 0);
        bench.give(0, id);
    }
}

#[test]
fn virtio_1_2_s5_1_3_switches_offer_their_features() {
    let offered = |switches| Bench::with(switches).read(0x10) & !(1 << 3 | 1 << 5);
    assert_eq!(offered(VirtioNetSwitches::default()), 0);
    assert_eq!(offered(CHECKSUM), CSUM | GUEST_CSUM);
    assert_eq!(offered(TSO), CSUM | GUEST_CSUM | GUEST_TSO4 | 1 << 8 | HOST_TSO4 | 1 << 12);
    assert_eq!(offered(MERGEABLE), MRG_RXBUF);
    assert_eq!(offered(EVENTS), EVENT_IDX);
    let alone = VirtioNetSwitches { checksum_offload: false, ..TSO };
    assert_eq!(offered(alone), 0, "2.2.2: nothing that needs what is not offered");
}

#[test]
fn virtio_1_2_s5_1_3_1_segmentation_is_not_taken_without_checksums() {
    let accepts = |features: u32| {
        let mut bench = Bench::with(TSO);
        bench.negotiate(features);
        bench.read(0x70) & 8 != 0
    };
    assert!(accepts(0) && accepts(CSUM) && accepts(CSUM | HOST_TSO4) && accepts(GUEST_CSUM | GUEST_TSO4));
    assert!(!accepts(HOST_TSO4) && !accepts(GUEST_TSO4));
    assert!(!accepts(HOST_TSO4 | GUEST_CSUM) && !accepts(GUEST_TSO4 | CSUM));
}

#[test]
fn offloads_need_a_port_with_headers() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let (port, _wire) = pair(1).unwrap();
    let refused = VirtioNet::new(memory, vec![Box::new(port)], MAC, 1500, CHECKSUM);
    assert!(matches!(refused, Err(AdapterError::Port(PortError::NoHeaders))));
}

#[test]
fn virtio_1_2_s5_1_6_2_headers_that_were_negotiated_reach_the_port() {
    let mut bench = Bench::live_with(TSO, CSUM | HOST_TSO4);
    for (header, length) in [(header(1, 0, 0), 1514), (header(1, 1, 1460), 54 + 44 * 1460)] {
        let frame = frame(length);
        transmit(&mut bench, &header, &frame).unwrap();
        assert_eq!(bench.departed(), Some([header, frame].concat()));
    }
    // Nothing is asked for: what else stands in the header is not for the port.
    let plain = frame(100);
    transmit(&mut bench, &header(0, 0, 1460), &plain).unwrap();
    assert_eq!(bench.departed(), Some([vec![0; 12], plain].concat()));
    let counters = bench.device.counters();
    assert_eq!((counters.transmit_frames, counters.transmit_bytes), (3, 1514 + 54 + 44 * 1460 + 100));
}

#[test]
fn virtio_1_2_s5_1_6_2_1_headers_that_were_not_negotiated_fail_the_guest() {
    let fails = |features, header: &[u8], length, expected: &str| {
        let mut bench = Bench::live_with(TSO, features);
        let text = transmit(&mut bench, header, &frame(length)).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
        assert_eq!(bench.errors(), 1);
        assert_eq!(bench.departed(), None);
    };
    let all = CSUM | HOST_TSO4;
    fails(0, &header(1, 0, 0), 100, "not negotiated");
    fails(CSUM, &header(1, 1, 1460), 3000, "not negotiated");
    fails(all, &header(1, 4, 1440), 3000, "not negotiated");
    fails(all, &header(1, 3, 1440), 3000, "not negotiated");
    fails(all, &header(1, 0x81, 1460), 3000, "not negotiated");
    fails(all, &header(0, 1, 1460), 3000, "without checksums");
    fails(all, &header(1, 1, 0), 3000, "of no size");
    fails(all, &header(1, 0, 0), 1519, "a frame of 1519 bytes");
    fails(all, &header(1, 1, 1460), 65_536, "a frame of 65536 bytes");
}

#[test]
fn virtio_1_2_s5_1_6_4_1_a_received_header_is_the_ports_with_num_buffers() {
    let mut bench = Bench::live_with(TSO, GUEST_CSUM | GUEST_TSO4);
    let arrived = [header(1, 1, 1460), frame(65_000)].concat();
    bench.describe(0, 0, BUFFERS, 65_562, WRITE, 0);
    bench.give(0, 0);
    bench.arrives(&arrived);
    assert!(bench.device.service().unwrap());
    assert_eq!(bench.get(BUFFERS, 10), &arrived[..10]);
    assert_eq!(bench.get(BUFFERS + 10, 2), [1, 0]);
    assert_eq!(bench.get(BUFFERS + 12, 65_000), &arrived[12..]);
    assert_eq!(bench.used_element(0, 0), (0, 65_012));
}

#[test]
fn virtio_1_2_s5_1_6_4_1_without_guest_csum_flags_are_zero() {
    let mut bench = Bench::live_with(TSO, CSUM);
    bench.put(BUFFERS, &[0xaa; 12]);
    bench.describe(0, 0, BUFFERS, 7, WRITE | NEXT, 1);
    bench.describe(0, 1, BUFFERS + 7, 2000, WRITE, 0);
    bench.give(0, 0);
    // VIRTIO_NET_HDR_F_DATA_VALID, which a TAP says of its own accord.
    bench.arrives(&[header(2, 0, 0), frame(60)].concat());
    assert!(bench.device.service().unwrap());
    assert_eq!(bench.get(BUFFERS, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bench.get(BUFFERS + 12, 60), frame(60));
}

#[test]
fn virtio_1_2_s5_1_6_3_1_a_frame_lies_in_as_many_mergeable_buffers_as_it_needs() {
    for switches in [MERGEABLE, ALL] {
        let mut bench = Bench::live_with(switches, MRG_RXBUF);
        let before = if switches.offloads() { vec![0; 12] } else { Vec::new() };
        give_buffers(&mut bench, 0..6, 200);
        let arrived = frame(500);
        bench.arrives(&[&before[..], &arrived].concat());
        bench.arrives(&[&before[..], &frame(60)].concat());
        assert!(bench.device.service().unwrap());
        assert_eq!(bench.get(BUFFERS, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
        let parts = [
            bench.get(BUFFERS + 12, 188),
            bench.get(BUFFERS + 0x2000, 200),
            bench.get(BUFFERS + 0x4000, 112),
        ];
        assert_eq!(parts.concat(), arrived);
        let used: Vec<_> = (0..4).map(|index| bench.used_element(0, index)).collect();
        assert_eq!(used, [(0, 200), (1, 200), (2, 112), (3, 72)], "2.7.8.2: what was written to each");
        assert_eq!(bench.used(0), 4, "the others are for the next frame");
        assert!(bench.device.can_receive());
    }
}

#[test]
fn a_frame_longer_than_the_mergeable_buffers_there_are_waits_for_more() {
    let mut bench = Bench::live_with(MERGEABLE, MRG_RXBUF);
    give_buffers(&mut bench, 0..2, 200);
    let arrived = frame(900);
    bench.arrives(&arrived);
    bench.arrives(&frame(60));
    assert!(!bench.device.service().unwrap());
    assert_eq!(bench.used(0), 0);
    give_buffers(&mut bench, 2..4, 200);
    assert!(!bench.device.service().unwrap(), "788 bytes of room");
    give_buffers(&mut bench, 4..6, 200);
    assert!(bench.device.service().unwrap());
    assert_eq!(bench.used(0), 6, "and the frame behind it");
    assert_eq!(bench.get(BUFFERS + 10, 2), [5, 0]);
    let mut whole = bench.get(BUFFERS + 12, 188);
    for id in 1..5 {
        whole.extend(bench.get(BUFFERS + 0x2000 * id, 200));
    }
    assert_eq!(whole[..900], arrived);
    assert_eq!(bench.device.counters().receive_drops, 0);
    // All that there can be is not enough: no driver could ever take it.
    give_buffers(&mut bench, 0..SIZE, 100);
    bench.arrives(&[&MAC.0[..], &frame(994)].concat());
    // Another station's.
    bench.arrives(&frame(1000));
    bench.arrives(&frame(61));
    assert!(bench.device.service().unwrap());
    let counters = bench.device.counters();
    assert_eq!((counters.receive_drops, counters.receive_filtered), (1, 1));
    assert_eq!(bench.used_element(0, 6), (0, 73));
}

#[test]
fn mergeable_buffers_that_overlap_fail_the_guest() {
    let mut bench = Bench::live_with(MERGEABLE, MRG_RXBUF);
    give_buffers(&mut bench, 0..1, 100);
    bench.describe(0, 1, BUFFERS + 0x2000, 100, WRITE, 0);
    bench.describe(0, 2, BUFFERS + 0x2010, 100, WRITE, 0);
    bench.give(0, 1);
    bench.give(0, 2);
    bench.arrives(&frame(80));
    bench.fails("in the chain already");
}

#[test]
fn virtio_1_2_s2_7_7_2_an_interrupt_comes_when_used_event_is_crossed() {
    let mut bench = Bench::live_with(EVENTS, EVENT_IDX);
    // 2.7.7.1: the flag means nothing now.
    bench.memory.write_obj(1_u16, GuestAddress(areas(0)[1])).unwrap();
    let used_event = GuestAddress(areas(0)[1] + 4 + 2 * u64::from(SIZE));
    bench.memory.write_obj(2_u16, used_event).unwrap();
    for (round, interrupt) in [(0, false), (1, false), (2, true), (3, false)] {
        give_buffers(&mut bench, round..round + 1, 2000);
        bench.arrives(&frame(60));
        assert!(bench.device.service().unwrap());
        assert_eq!(bench.device.interrupt(), interrupt, "{round}");
        bench.write(0x64, 1);
    }
    // Several at once, the one asked for among them.
    bench.memory.write_obj(5_u16, used_event).unwrap();
    give_buffers(&mut bench, 0..4, 2000);
    (0..4).for_each(|_| bench.arrives(&frame(60)));
    assert!(bench.device.service().unwrap());
    assert!(bench.device.interrupt());
    assert_eq!(bench.device.counters().interrupts, 2);
}

#[test]
fn virtio_1_2_s2_7_10_the_device_asks_for_a_notification_only_of_what_it_lacks() {
    let mut bench = Bench::live_with(EVENTS, EVENT_IDX);
    let avail_event = |bench: &Bench, queue: usize| -> u16 {
        let at = areas(queue)[2] + 4 + 8 * u64::from(SIZE);
        bench.memory.read_obj(GuestAddress(at)).unwrap()
    };
    // Of a frame to be sent it wants to hear whenever it has sent all that there were.
    for round in 1..4_u16 {
        transmit(&mut bench, &[0; 12], &frame(60)).unwrap();
        assert_eq!(avail_event(&bench, 1), round);
    }
    // Of receive buffers only when it has none: with some left it does not ask.
    give_buffers(&mut bench, 0..3, 2000);
    (0..2).for_each(|_| bench.arrives(&frame(60)));
    assert!(bench.device.service().unwrap());
    assert_eq!(avail_event(&bench, 0), 0);
    bench.arrives(&frame(60));
    assert!(bench.device.service().unwrap());
    assert_eq!(avail_event(&bench, 0), 3);
    let flags: u16 = bench.memory.read_obj(GuestAddress(areas(1)[2])).unwrap();
    assert_eq!(flags, 0, "2.7.10.1: the device's flags are zero");
}

#[test]
fn virtio_1_2_s2_7_8_rings_of_mergeable_buffers_wrap() {
    let mut bench = Bench::live_with(ALL, GUEST_CSUM | GUEST_TSO4 | MRG_RXBUF | EVENT_IDX);
    let arrived = [header(1, 1, 1460), frame(500)].concat();
    give_buffers(&mut bench, 0..SIZE, 200);
    let mut taken = 0_u16;
    for _ in 0..22_000 {
        bench.arrives(&arrived);
        bench.device.service().unwrap();
        assert_eq!(bench.used(0), taken.wrapping_add(3));
        for _ in 0..3 {
            let id = bench.used_element(0, taken).0 as u16;
            bench.give(0, id);
            taken = taken.wrapping_add(1);
        }
    }
    assert_eq!(bench.device.counters().receive_frames, 22_000);
}
