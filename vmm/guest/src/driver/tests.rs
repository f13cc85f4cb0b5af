//! The drivers on the adapter models.

use std::boxed::Box;

use toll_guest_abi::virtio_net as switches;
use toll_protocol::trial::VirtioNetSwitches;
use toll_vnic::piece::{Piece, PieceMut};
use toll_vnic::port::Port;
use toll_vnic::port::memory::{MemoryPort, pair};

use super::Driver;
use super::pcnet::{PcnetDriver, handle_interrupt};
use super::virtio_net::{MAX_QUEUE_SIZE, Setup, VirtioNetDriver};
use crate::platform::Platform;
use crate::support::{Access, End, HostPlatform, PCNET, VIRTIO_NET};

/// Everything off.
const SETUP: Setup = Setup { mtu: 1500, mac: [0x52, 0x54, 0, 0, 0, 1], switches: 0, sends: true, pairs: 1 };

fn bench(adapter: u32) -> (HostPlatform, MemoryPort) {
    bench_of(&End::sender(adapter))
}

fn bench_of(end: &End) -> (HostPlatform, MemoryPort) {
    let (port, wire) = pair(1024).unwrap();
    (HostPlatform::new(end, Box::new(port)), wire)
}

fn departed(wire: &mut MemoryPort) -> Option<Vec<u8>> {
    let mut frame = vec![0; 2048];
    let length = wire.receive(&mut [PieceMut::new(&mut frame)]).unwrap()?;
    frame.truncate(length);
    Some(frame)
}

fn send(driver: &mut impl Driver, platform: &mut HostPlatform, length: usize, byte: u8) {
    assert!(driver.can_transmit(platform));
    driver.transmit(platform, length, |frame| frame.fill(byte));
}

fn receive(driver: &mut impl Driver, platform: &mut HostPlatform) -> Option<Vec<u8>> {
    let frame = driver.receive(platform)?;
    // SAFETY: neither the driver nor the adapter runs before the bytes are copied.
    Some(unsafe { frame.as_ref() }.to_vec())
}

#[test]
fn pcnet_takes_12_accesses_a_frame_sent_7_of_rap_and_5_of_rdp() {
    let (mut platform, mut wire) = bench(PCNET);
    let mut driver = PcnetDriver::open(&mut platform, [0x52, 0x54, 0, 0, 0, 1]).unwrap();
    platform.accesses.clear();
    let interrupts = platform.adapter.counters().interrupts;
    // Past the end of the ring, three times.
    for round in 0..50 {
        send(&mut driver, &mut platform, 1000, round);
        assert_eq!(departed(&mut wire), Some(vec![round; 1000]));
    }
    let count = |offset| {
        let of = |access| platform.accesses.get(&(access, offset)).copied().unwrap_or(0);
        of(Access::Read) + of(Access::Write)
    };
    assert_eq!(platform.adapter.counters().interrupts - interrupts, 50, "one interrupt a frame");
    assert_eq!((count(0x12), count(0x10)), (7 * 50, 5 * 50));
    assert_eq!(platform.accesses.values().sum::<u64>(), 12 * 50);
    assert_eq!(platform.take_interrupt() & 0x0200, 0x0200, "the handler says TINT");
}

#[test]
fn pcnet_accesses_of_a_frame_are_those_of_the_2001_driver_in_its_order() {
    use Access::{Read, Write};
    const RDP: u64 = 0x10;
    const RAP: u64 = 0x12;
    let (mut platform, _wire) = bench(PCNET);
    let mut driver = PcnetDriver::open(&mut platform, [0x52, 0x54, 0, 0, 0, 1]).unwrap();
    platform.transcript = Some(Vec::new());
    send(&mut driver, &mut platform, 1000, 1);
    let running = 0x0033;
    let (interrupt, tint, enabled) = (0x0080, 0x0200, 0x0040);
    assert_eq!(
        platform.transcript.unwrap(),
        [
            // pcnet32_start_xmit: TDMD, IENA.
            (Write, RAP, 0),
            (Write, RDP, 0x0048),
            // pcnet32_interrupt: which register was selected, causes, acknowledgement without IENA.
            (Read, RAP, 0),
            (Write, RAP, 0),
            (Read, RDP, running | enabled | interrupt | tint),
            (Write, RAP, 0),
            (Write, RDP, (running | enabled | interrupt | tint) & !0x004f),
            // Again, until there is none.
            (Write, RAP, 0),
            (Read, RDP, running),
            // The other causes, and IENA.
            (Write, RAP, 0),
            (Write, RDP, 0x7940),
            (Write, RAP, 0),
        ]
    );
}

#[test]
fn pcnet_opens_as_the_2001_driver_does() {
    let (mut platform, _wire) = bench(PCNET);
    platform.transcript = Some(Vec::new());
    PcnetDriver::open(&mut platform, [0x52, 0x54, 0, 0, 0, 1]).unwrap();
    let transcript = platform.transcript.take().unwrap();
    // What is written to which CSR or BCR, and when it is reset.
    let (mut selected, mut done) = (0, Vec::new());
    for (access, offset, value) in transcript {
        match (access, offset) {
            (Access::Write, 0x12) => selected = value,
            (Access::Write, 0x10) => done.push(("csr", selected, value)),
            (Access::Write, 0x16) => done.push(("bcr", selected, value)),
            (Access::Read, 0x14) => done.push(("reset", 0, 0)),
            _ => {}
        }
    }
    let block = done.iter().find(|(what, index, _)| (*what, *index) == ("csr", 1)).unwrap().2;
    let high = done.iter().find(|(what, index, _)| (*what, *index) == ("csr", 2)).unwrap().2;
    let expected = [
        ("reset", 0, 0),
        ("reset", 0, 0),
        ("bcr", 20, 2),
        ("bcr", 2, 2),
        ("bcr", 9, 0),
        ("csr", 124, 0),
        ("csr", 1, block),
        ("csr", 2, high),
        ("csr", 4, 0x0915),
        ("csr", 0, 1),
        ("csr", 0, 0x0042),
    ];
    // IDON is the first interrupt, and it comes right after IENA.
    assert_eq!(done[..expected.len()], expected);
    assert_eq!(done[expected.len()..].last(), Some(&("csr", 0, 0x7940)));
}

#[test]
fn pcnet_an_interrupt_without_cause_takes_6_accesses_and_restores_rap() {
    let (mut platform, _wire) = bench(PCNET);
    let _driver = PcnetDriver::open(&mut platform, [0x52, 0x54, 0, 0, 0, 1]).unwrap();
    platform.adapter.write(0x12, &88_u16.to_le_bytes()).unwrap();
    platform.accesses.clear();
    assert_eq!(handle_interrupt(&mut platform), 0);
    assert_eq!(platform.accesses.values().sum::<u64>(), 6);
    let mut rap = [0; 2];
    platform.adapter.read(0x12, &mut rap).unwrap();
    assert_eq!(rap, 88_u16.to_le_bytes());
}

#[test]
fn pcnet_receives_only_after_rint_and_gives_every_buffer_back() {
    let (mut platform, mut wire) = bench(PCNET);
    let mut driver = PcnetDriver::open(&mut platform, [0x52, 0x54, 0, 0, 0, 1]).unwrap();
    for round in 0..100_u8 {
        let mut frame = vec![round; 100];
        frame[..6].copy_from_slice(&[0xff; 6]);
        wire.send(&[Piece::new(&frame)]).unwrap();
        assert_eq!(receive(&mut driver, &mut platform), None, "no interrupt has come");
        platform.wait(0);
        let causes = platform.take_interrupt();
        driver.interrupted(causes);
        assert_eq!(receive(&mut driver, &mut platform), Some(frame));
        assert_eq!(receive(&mut driver, &mut platform), None);
    }
    assert_eq!(platform.adapter.counters().receive_frames, 100);
}

#[test]
fn pcnet_refuses_another_address_than_the_aprom_has() {
    let (mut platform, _wire) = bench(PCNET);
    let error = PcnetDriver::open(&mut platform, [0x52, 0x54, 0, 0, 0, 9]).unwrap_err();
    assert_eq!(error.to_string(), "CSR12-14 holds 0x100");
}

#[test]
fn virtio_net_sends_without_an_access_until_the_ring_is_full() {
    let (mut platform, mut wire) = bench(VIRTIO_NET);
    let mut driver = VirtioNetDriver::open(&mut platform, SETUP).unwrap();
    platform.accesses.clear();
    for round in 0..MAX_QUEUE_SIZE {
        send(&mut driver, &mut platform, 1514, round as u8);
    }
    assert_eq!(platform.accesses.len(), 0);
    assert_eq!(departed(&mut wire), None);
    send(&mut driver, &mut platform, 60, 7);
    assert_eq!(platform.accesses.get(&(Access::Write, 0x50)), Some(&1), "one QueueNotify");
    platform.wait(0);
    for round in 0..MAX_QUEUE_SIZE {
        assert_eq!(departed(&mut wire), Some(vec![round as u8; 1514]));
    }
    assert_eq!(departed(&mut wire), Some(vec![7; 60]));
    assert_eq!(platform.accesses.values().sum::<u64>(), 1);
    assert_eq!(platform.adapter.counters().interrupts, 0);
}

#[test]
fn virtio_net_receives_and_gives_every_buffer_back() {
    let (mut platform, mut wire) = bench(VIRTIO_NET);
    let mut driver = VirtioNetDriver::open(&mut platform, SETUP).unwrap();
    for round in 0..1000_u32 {
        let frame = vec![round as u8; 60 + round as usize];
        wire.send(&[Piece::new(&frame)]).unwrap();
        platform.wait(0);
        assert_eq!(receive(&mut driver, &mut platform), Some(frame));
        assert_eq!(receive(&mut driver, &mut platform), None);
    }
}

#[test]
fn virtio_1_2_s2_7_10_event_indices_suppress_interrupts_and_leave_the_one_notification() {
    let on = VirtioNetSwitches { event_index: true, ..VirtioNetSwitches::default() };
    let (mut platform, mut wire) = bench_of(&End { switches: on, ..End::sender(VIRTIO_NET) });
    let setup = Setup { switches: switches::EVENT_INDEX, ..SETUP };
    let mut driver = VirtioNetDriver::open(&mut platform, setup).unwrap();
    platform.accesses.clear();
    // Past the end of a ring, and of its indices.
    for round in 0..70_000_u32 {
        send(&mut driver, &mut platform, 60, round as u8);
        if round % 100 == 0 {
            wire.send(&[Piece::new(&[round as u8; 60])]).unwrap();
            platform.wait(0);
            assert_eq!(receive(&mut driver, &mut platform), Some(vec![round as u8; 60]));
            while departed(&mut wire).is_some() {}
        }
    }
    let notified = |platform: &HostPlatform| platform.accesses.values().sum::<u64>();
    assert_eq!(notified(&platform), 1, "the ring was never full, and its indices wrapped once");
    for round in 0..MAX_QUEUE_SIZE {
        send(&mut driver, &mut platform, 60, round as u8);
    }
    assert_eq!(platform.accesses.get(&(Access::Write, 0x50)), Some(&2), "one more, of a full ring");
    assert_eq!(platform.adapter.counters().interrupts, 0);
}

/// A device that nobody serves unless it is notified gets every frame at once, and each buffer back.
#[test]
fn virtio_1_2_s2_7_10_1_a_device_that_wants_notifications_gets_them() {
    for on in [false, true] {
        let end = VirtioNetSwitches { event_index: on, ..VirtioNetSwitches::default() };
        let (mut platform, mut wire) = bench_of(&End { switches: end, ..End::sender(VIRTIO_NET) });
        platform.adapter.watch(false).unwrap();
        let setup = Setup { switches: if on { switches::EVENT_INDEX } else { 0 }, ..SETUP };
        let mut driver = VirtioNetDriver::open(&mut platform, setup).unwrap();
        platform.accesses.clear();
        for round in 0..10 {
            send(&mut driver, &mut platform, 60, round);
            assert_eq!(departed(&mut wire), Some(vec![round; 60]), "without a look by anybody else");
        }
        assert_eq!(platform.accesses.get(&(Access::Write, 0x50)), Some(&10));
        // Twice as many as the receive queue has buffers: the device looks once by itself, and then where it is notified.
        let frames = 2 * MAX_QUEUE_SIZE;
        for round in 0..frames {
            wire.send(&[Piece::new(&[round as u8; 60])]).unwrap();
        }
        platform.adapter.service().unwrap();
        assert_eq!(platform.adapter.counters().receive_frames, MAX_QUEUE_SIZE as u64);
        for round in 0..frames {
            assert_eq!(receive(&mut driver, &mut platform), Some(vec![round as u8; 60]));
        }
    }
}

#[test]
fn virtio_1_2_s5_1_6_4_merged_frames_are_whole_where_the_ring_wraps_too() {
    let on = VirtioNetSwitches { mergeable_buffers: true, ..VirtioNetSwitches::default() };
    let end = End { switches: on, mtu: 9000, ..End::sender(VIRTIO_NET) };
    let (mut platform, mut wire) = bench_of(&end);
    let setup = Setup { mtu: 9000, switches: switches::MERGEABLE_BUFFERS, ..SETUP };
    let mut driver = VirtioNetDriver::open(&mut platform, setup).unwrap();
    for round in 0..1000_usize {
        let length = 60 + (round * 97) % 8950;
        let frame: Vec<u8> = (0..length).map(|at| (at * 7 + at / 256 + round) as u8).collect();
        wire.send(&[Piece::new(&frame)]).unwrap();
        platform.wait(0);
        assert_eq!(receive(&mut driver, &mut platform), Some(frame), "{round}");
        assert_eq!(receive(&mut driver, &mut platform), None);
    }
}

#[test]
fn virtio_net_without_a_feature_that_a_switch_asks_for_is_refused() {
    for switch in [
        switches::CHECKSUM_OFFLOAD,
        switches::CHECKSUM_OFFLOAD | switches::TSO,
        switches::MERGEABLE_BUFFERS,
        switches::EVENT_INDEX,
    ] {
        let (mut platform, _wire) = bench(VIRTIO_NET);
        let refused = VirtioNetDriver::open(&mut platform, Setup { switches: switch, ..SETUP });
        let text = refused.unwrap_err().to_string();
        assert_eq!(text, "the adapter lacks a feature that the switches ask for");
    }
}
