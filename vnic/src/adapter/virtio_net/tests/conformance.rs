//! Requirements of virtio 1.2 that no other test beside this one shows: each carries its clause. The table of all is
//! docs/virtio-conformance.md.

use super::offloads::{ALL, header};
use super::*;

const INDIRECT: u16 = 4;
const CSUM: u32 = 1 << 0;
const GUEST_CSUM: u32 = 1 << 1;
const GUEST_TSO4: u32 = 1 << 7;
const HOST_TSO4: u32 = 1 << 11;
const CTRL_VQ: u32 = 1 << 17;
const CTRL_MAC_ADDR: u32 = 1 << 23;
const COMMANDED: VirtioNetSwitches = VirtioNetSwitches { control_queue: true, ..VirtioNetSwitches::OFF };

/// Makes a frame and its header available in one descriptor of the transmit queue, and notifies.
fn transmit(bench: &mut Bench, header: &[u8], frame: &[u8]) -> Result<(), AdapterError> {
    bench.put(BUFFERS, &[header, frame].concat());
    bench.describe(1, 0, BUFFERS, (header.len() + frame.len()) as u32, 0, 0);
    bench.give(1, 0);
    bench.device.write(0x50, &1_u32.to_le_bytes())
}

/// A device whose guest has made a mistake.
fn failed() -> Bench {
    let mut bench = Bench::live();
    bench.describe(1, 0, BUFFERS, 100, WRITE, 0);
    bench.give(1, 0);
    bench.fails("other direction");
    bench
}

#[test]
fn virtio_1_2_s2_1_2_needs_reset_is_told_by_a_configuration_change_notification() {
    let mut bench = failed();
    assert!(bench.device.interrupt());
    assert_eq!(bench.read(0x60), 2, "4.2.2.1: bit 1, and no other");
    assert_eq!(bench.device.counters().interrupts, 1);
    bench.write(0x64, 2);
    assert!(!bench.device.interrupt());
    // 2.4.1: nothing of it is left.
    let mut bench = failed();
    bench.write(0x70, 0);
    assert_eq!((bench.read(0x60), bench.read(0x70)), (0, 0));
    assert!(!bench.device.interrupt());
}

#[test]
fn virtio_1_2_s2_1_2_needs_reset_stays_until_the_reset() {
    let mut bench = failed();
    bench.write(0x70, 15);
    assert_eq!(bench.read(0x70), 15 | 0x40);
    // Nothing is sent and nothing is given.
    bench.put(BUFFERS, &[0; 80]);
    bench.describe(1, 1, BUFFERS, 80, 0, 0);
    bench.give(1, 1);
    bench.write(0x50, 1);
    assert!(!bench.device.service().unwrap() && !bench.device.can_receive());
    assert_eq!((bench.departed(), bench.used(1)), (None, 0));
}

#[test]
fn virtio_1_2_s2_1_2_no_buffer_is_used_before_driver_ok() {
    let mut bench = Bench::reset();
    bench.negotiate(0);
    (0..2).for_each(|queue| bench.set_up(queue));
    bench.put(BUFFERS, &[0; 80]);
    bench.describe(1, 0, BUFFERS, 80, 0, 0);
    bench.give(1, 0);
    bench.describe(0, 0, BUFFERS + 0x1000, 2048, WRITE, 0);
    bench.give(0, 0);
    bench.arrives(&frame(60));
    bench.write(0x50, 1);
    bench.write(0x50, 0);
    assert!(!bench.device.service().unwrap() && !bench.device.can_receive());
    assert_eq!((bench.used(0), bench.used(1), bench.departed()), (0, 0, None));
    assert!(!bench.device.interrupt());
    bench.write(0x70, 15);
    assert!(bench.device.service().unwrap());
    assert_eq!((bench.used(0), bench.used(1)), (1, 1));
}

#[test]
fn virtio_1_2_s2_4_1_after_a_reset_queues_are_left_alone() {
    let mut bench = Bench::live();
    bench.describe(0, 0, BUFFERS, 2048, WRITE, 0);
    bench.give(0, 0);
    bench.write(0x70, 0);
    bench.arrives(&frame(60));
    bench.write(0x50, 0);
    assert!(!bench.device.service().unwrap() && !bench.device.interrupt());
    assert_eq!(bench.used(0), 0);
}

#[test]
fn virtio_1_2_s2_5_2_the_configuration_can_be_read_before_features_ok() {
    let mut bench = Bench::with(VirtioNetSwitches { tso: true, checksum_offload: true, ..COMMANDED });
    let mut byte = [0];
    for (index, expected) in MAC.0.into_iter().enumerate() {
        bench.device.read(0x100 + index as u64, &mut byte).unwrap();
        assert_eq!(byte, [expected]);
    }
    for offset in [0x106, 0x108, 0x10a] {
        bench.device.read(offset, &mut [0; 2]).unwrap();
    }
    assert_eq!(bench.errors(), 0);
}

#[test]
fn virtio_1_2_s2_7_5_3_1_an_indirect_descriptor_that_was_not_negotiated_fails_the_guest() {
    let mut bench = Bench::live();
    bench.put(BUFFERS, &[0; 80]);
    bench.describe(1, 0, BUFFERS, 80, INDIRECT, 0);
    bench.give(1, 0);
    bench.fails("VIRTIO_F_INDIRECT_DESC was not negotiated");
    let mut bench = Bench::live();
    bench.describe(0, 0, BUFFERS, 2048, WRITE | INDIRECT, 0);
    bench.give(0, 0);
    bench.arrives(&frame(60));
    bench.fails("VIRTIO_F_INDIRECT_DESC was not negotiated");
    let mut bench = Bench::live_with(COMMANDED, CTRL_VQ);
    bench.describe(2, 0, BUFFERS, 80, INDIRECT, 0);
    bench.give(2, 0);
    bench.fails("VIRTIO_F_INDIRECT_DESC was not negotiated");
}

#[test]
fn virtio_1_2_s2_7_7_2_what_was_used_before_a_fault_is_notified() {
    let mut bench = Bench::live();
    bench.put(BUFFERS, &[0; 80]);
    bench.describe(1, 0, BUFFERS, 80, 0, 0);
    bench.describe(1, 1, BUFFERS, 80, WRITE, 0);
    bench.give(1, 0);
    bench.give(1, 1);
    bench.fails("other direction");
    assert_eq!(bench.used(1), 1);
    assert_eq!(bench.read(0x60), 3, "a buffer was used, and the device needs a reset");
}

#[test]
fn virtio_1_2_s2_7_10_2_notifications_of_nothing_are_taken() {
    let mut bench = Bench::live_with(COMMANDED, CTRL_VQ);
    for queue in 0..3 {
        bench.write(0x50, queue);
    }
    assert_eq!((bench.errors(), bench.read(0x60)), (0, 0));
}

#[test]
fn virtio_1_2_s4_2_2_1_each_event_stays_until_it_is_acknowledged() {
    let mut bench = Bench::live();
    bench.put(BUFFERS, &[0; 80]);
    bench.describe(1, 0, BUFFERS, 80, 0, 0);
    bench.give(1, 0);
    bench.write(0x50, 1);
    assert_eq!(bench.read(0x60), 1);
    bench.describe(1, 1, BUFFERS, 80, WRITE, 0);
    bench.give(1, 1);
    bench.fails("other direction");
    bench.write(0x64, 1);
    assert_eq!(bench.read(0x60), 2);
    assert!(bench.device.interrupt());
    bench.write(0x64, 2);
    assert_eq!(bench.read(0x60), 0);
    assert!(!bench.device.interrupt());
}

#[test]
fn virtio_1_2_s4_2_2_1_another_address_is_another_generation_of_the_configuration() {
    let mut bench = Bench::live_with(COMMANDED, CTRL_VQ | CTRL_MAC_ADDR);
    let before = bench.read(0xfc);
    control::put(&mut bench, 2, &[1, 1, 0x52, 0x54, 0, 0, 0, 0x77]);
    bench.write(0x50, 2);
    let changed = bench.read(0xfc);
    assert_ne!(changed, before);
    assert_eq!(bench.read(0xfc), changed);
    bench.write(0x70, 0);
    assert_ne!(bench.read(0xfc), changed, "a reset gives it its own again");
}

#[test]
fn virtio_1_2_s4_2_2_1_a_queue_that_is_not_ready_is_left_alone() {
    let mut bench = Bench::live();
    bench.write(0x30, 0);
    bench.write(0x44, 0);
    assert_eq!((bench.read(0x44), bench.errors()), (0, 0), "4.2.2.2: a driver may stop a queue");
    bench.describe(0, 0, BUFFERS, 2048, WRITE, 0);
    bench.give(0, 0);
    bench.arrives(&frame(60));
    bench.write(0x50, 0);
    assert!(!bench.device.service().unwrap() && !bench.device.can_receive());
    assert_eq!(bench.used(0), 0);
    // The other one goes on.
    transmit(&mut bench, &[0; 12], &frame(60)).unwrap();
    assert_eq!(bench.departed(), Some(frame(60)));
}

#[test]
fn virtio_1_2_s4_2_2_registers_of_shared_memory_say_that_there_is_none() {
    let mut bench = Bench::reset();
    bench.write(0xac, 3);
    let values = [0xb0, 0xb4, 0xb8, 0xbc].map(|offset| bench.read(offset));
    assert_eq!((values, bench.errors()), ([u32::MAX; 4], 0));
}

#[test]
fn virtio_1_2_s5_1_2_queues_of_pairs_that_were_not_taken_are_not_there() {
    let mut bench = Bench::live_with(control::several(VirtioNetSwitches::OFF), CTRL_VQ);
    assert_eq!(bench.queues(), 3);
    let mut bench = Bench::live_with(control::several(VirtioNetSwitches::OFF), 0);
    assert_eq!(bench.queues(), 2);
}

#[test]
fn virtio_1_2_s5_1_4_1_the_mtu_is_68_or_more() {
    let device = |mtu| {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let (port, _wire) = pair(1).unwrap();
        VirtioNet::new(memory, vec![Box::new(port)], MAC, mtu, VirtioNetSwitches::OFF)
    };
    assert!(device(68).is_ok());
    assert!(matches!(device(67), Err(AdapterError::Mtu { mtu: 67, least: 68 })));
}

#[test]
fn virtio_1_2_s5_1_4_1_frames_over_the_mtu_are_not_passed_to_the_driver() {
    let to = |destination: [u8; 6], length| [&destination[..], &frame(length)[6..]].concat();
    let own = |length| to(MAC.0, length);
    let mut tagged = own(1518);
    tagged[12..14].copy_from_slice(&[0x81, 0]);
    let longer = [tagged.clone(), vec![0]].concat();
    // Frames that the driver gets, that it loses, and that are none of its own.
    let (got, lost, foreign) = ((1, 0, 0), (0, 1, 0), (0, 0, 1));
    let cases = [
        (own(1514), got),
        (own(1515), lost),
        (tagged, got),
        (longer, lost),
        (to([0xff; 6], 1515), lost),
        (to([0x52, 0x54, 0, 0, 0, 9], 1515), foreign),
    ];
    for (switches, features) in [(VirtioNetSwitches::OFF, 0), (ALL, GUEST_CSUM | GUEST_TSO4)] {
        let before = if switches.offloads() { vec![0; 12] } else { Vec::new() };
        for (arrived, expected) in &cases {
            let mut bench = Bench::live_with(switches, features | 1 << 3);
            bench.describe(0, 0, BUFFERS, 2048, WRITE, 0);
            bench.give(0, 0);
            bench.arrives(&[&before[..], arrived].concat());
            bench.device.service().unwrap();
            let now = bench.device.counters();
            let counted = (now.receive_frames, now.receive_drops, now.receive_filtered);
            assert_eq!(counted, *expected, "{} {:x?}", arrived.len(), &arrived[..6]);
        }
    }
}

#[test]
fn virtio_1_2_s5_1_4_1_frames_up_to_the_mtu_are_forwarded_whole() {
    let mut bench = Bench::live_with(VirtioNetSwitches::OFF, 1 << 3);
    for length in [14, 60, 1514] {
        transmit(&mut bench, &[0; 12], &frame(length)).unwrap();
        assert_eq!(bench.departed(), Some(frame(length)));
    }
}

#[test]
fn virtio_1_2_s5_1_6_2_2_flags_that_are_not_known_are_ignored() {
    for flags in [2, 4, 0x80, 0xfe] {
        let mut bench = Bench::live_with(ALL, 0);
        transmit(&mut bench, &header(flags, 0, 0), &frame(100)).unwrap();
        assert_eq!(bench.departed(), Some([vec![0; 12], frame(100)].concat()), "{flags:#x}");
        let mut bench = Bench::live_with(ALL, CSUM | HOST_TSO4);
        transmit(&mut bench, &header(flags | 1, 1, 1460), &frame(3000)).unwrap();
        let expected = [header(1, 1, 1460), frame(3000)].concat();
        assert_eq!(bench.departed(), Some(expected), "{flags:#x}: none of them reaches the port");
    }
}

#[test]
fn virtio_1_2_s5_1_6_2_2_hdr_len_is_not_relied_on() {
    for (told, passed_on) in [(0_u16, 0_u16), (54, 54), (99, 99), (101, 100), (u16::MAX, 100)] {
        let mut bench = Bench::live_with(ALL, CSUM);
        let mut head = header(1, 0, 0);
        head[2..4].copy_from_slice(&told.to_le_bytes());
        transmit(&mut bench, &head, &frame(100)).unwrap();
        head[2..4].copy_from_slice(&passed_on.to_le_bytes());
        assert_eq!(bench.departed(), Some([head, frame(100)].concat()), "{told}");
    }
}

#[test]
fn virtio_1_2_s5_1_6_2_2_offsets_of_a_checksum_that_is_not_asked_for_are_not_used() {
    let mut bench = Bench::live_with(ALL, CSUM | HOST_TSO4);
    let head = [0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    transmit(&mut bench, &head, &frame(100)).unwrap();
    assert_eq!(bench.departed(), Some([vec![0; 12], frame(100)].concat()));
}

#[test]
fn virtio_1_2_s5_1_6_4_1_segments_that_were_not_negotiated_are_not_passed_to_the_driver() {
    // gso_type: TCP over IPv4, UDP, TCP over IPv6, TCP over IPv4 with ECN.
    for (features, passing) in [
        (GUEST_CSUM, &[][..]),
        (GUEST_CSUM | GUEST_TSO4, &[1]),
        (GUEST_CSUM | GUEST_TSO4 | 1 << 8, &[1, 4]),
        (0, &[]),
    ] {
        for gso_type in [1, 3, 4, 0x81] {
            let mut bench = Bench::live_with(ALL, features);
            bench.describe(0, 0, BUFFERS, 4096, WRITE, 0);
            bench.give(0, 0);
            bench.arrives(&[&header(1, gso_type, 1460)[..], &MAC.0, &frame(1494)].concat());
            bench.device.service().unwrap();
            let counters = bench.device.counters();
            let passed = u64::from(passing.contains(&gso_type));
            let expected = (passed, 1 - passed);
            assert_eq!((counters.receive_frames, counters.receive_drops), expected, "{gso_type:#x}");
        }
    }
}

#[test]
fn virtio_1_2_s6_2_version_1_is_offered() {
    let all = control::several(VirtioNetSwitches { segment_combining: true, ..ALL });
    for switches in [VirtioNetSwitches::OFF, ALL, COMMANDED, all] {
        let mut bench = Bench::with(switches);
        bench.write(0x14, 1);
        assert_eq!(bench.read(0x10), 1, "and no other of the upper half");
    }
}
