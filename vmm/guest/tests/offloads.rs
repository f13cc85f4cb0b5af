//! Whole TCP transfers of virtio-net with every combination of its switches: every byte is looked at.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "each test uses a part")]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use support::finishing::Finishing;
use support::{End, LONG_PATIENCE, Lossy, Outcome, VIRTIO_NET};
use toll_protocol::trial::VirtioNetSwitches;
use toll_vnic::port::Port;
use toll_vnic::port::memory::{MemoryPort, pair, pair_with_headers};

/// Runs `case` for every combination, a few at once: an end that gets no CPU for half of its short interval measures nothing.
fn for_every_combination(case: impl Fn(VirtioNetSwitches) + Sync) {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let mut combinations: Vec<_> = combinations().collect();
    while !combinations.is_empty() {
        let some = combinations.split_off(combinations.len().saturating_sub(cpus));
        thread::scope(|scope| {
            for switches in some {
                let case = &case;
                scope.spawn(move || case(switches));
            }
        });
    }
}

/// All that virtio 1.2, 5.1.3.1 allows.
fn combinations() -> impl Iterator<Item = VirtioNetSwitches> {
    (0..32)
        .map(|bits| VirtioNetSwitches {
            checksum_offload: bits & 1 != 0,
            tso: bits & 2 != 0,
            mergeable_buffers: bits & 4 != 0,
            event_index: bits & 8 != 0,
            segment_combining: bits & 16 != 0,
            ..VirtioNetSwitches::OFF
        })
        .filter(|switches| switches.checksum_offload || !switches.tso)
}

fn sender(switches: VirtioNetSwitches) -> End {
    let (write_size, arena, duration) = (100_000, 8 << 20, Duration::from_millis(80));
    End { switches, write_size, arena, duration, patience: LONG_PATIENCE, ..End::sender(VIRTIO_NET) }
}

fn receiver(switches: VirtioNetSwitches) -> End {
    let End { host, peer, direction, listens, .. } = End::receiver(VIRTIO_NET);
    End { host, peer, direction, listens, ..sender(switches) }
}

/// Runs both ends to their end; every byte that was sent must arrive at its place.
fn transfer(
    (sender, port): (End, Box<dyn Port>),
    (receiver, other): (End, Box<dyn Port>),
) -> (Outcome, Outcome) {
    let (sent, received) = thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.run(other));
        let (result, sent) = sender.run(port);
        assert_eq!(result, Ok(()), "{:?}", sender.switches);
        let (result, received) = receiving.join().unwrap();
        assert_eq!(result, Ok(()), "{:?}", receiver.switches);
        (sent, received)
    });
    assert!(received.bytes > 10_000, "{received:?}");
    assert_eq!((received.bytes, received.verified), (sent.bytes, sent.bytes), "{:?}", sender.switches);
    for counters in [sent.counters, received.counters] {
        assert_eq!((counters.guest_errors, counters.interrupts), (0, 0), "{:?}", sender.switches);
    }
    (sent, received)
}

fn lossy(port: MemoryPort, one_in: u64) -> Lossy<MemoryPort> {
    Lossy { port, one_in, state: 0x5eed, lost: Arc::default() }
}

fn wire(switches: VirtioNetSwitches) -> (MemoryPort, MemoryPort) {
    if switches.offloads() { pair_with_headers(1000) } else { pair(1000) }.unwrap()
}

/// A port to a wire of bare frames.
fn finished(switches: VirtioNetSwitches, port: impl Port + 'static) -> Box<dyn Port> {
    if switches.offloads() { Box::new(Finishing { port }) } else { Box::new(port) }
}

#[test]
fn every_combination_between_two_of_a_kind() {
    for_every_combination(|switches| {
        let (one, other) = wire(switches);
        let (sent, _) = transfer((sender(switches), Box::new(one)), (receiver(switches), Box::new(other)));
        assert_eq!(sent.retransmits, 0);
        let frame = sent.counters.transmit_bytes / sent.counters.transmit_frames;
        assert_eq!(frame > 1514, switches.tso, "{switches:?}: {frame} bytes a frame");
    });
}

#[test]
fn every_combination_with_loss() {
    let lost = [Arc::<AtomicU64>::default(), Arc::default()];
    for_every_combination(|switches| {
        let (one, other) = wire(switches);
        // Of a lost segment of 64 KiB the stack sends 1460 bytes again at once, and the rest a second later.
        let long = switches.tso || switches.segment_combining;
        let end = |end: End| End { duration: Duration::from_millis(if long { 300 } else { 80 }), ..end };
        let port =
            Lossy { lost: Arc::clone(&lost[usize::from(long)]), ..lossy(one, if long { 50 } else { 100 }) };
        transfer((end(sender(switches)), Box::new(port)), (end(receiver(switches)), Box::new(other)));
    });
    assert!(lost.iter().all(|frames| frames.load(Ordering::Relaxed) > 0), "{lost:?}");
}

/// The other end has nothing, so it looks at every checksum, and each segment has to be one.
#[test]
fn every_combination_sends_to_one_without() {
    for_every_combination(|switches| {
        let (one, other) = pair(1000).unwrap();
        let plain = VirtioNetSwitches::default();
        let (_, received) =
            transfer((sender(switches), finished(switches, one)), (receiver(plain), Box::new(other)));
        assert_eq!(received.counters.receive_drops, 0);
        let (one, other) = pair(1000).unwrap();
        transfer((sender(switches), finished(switches, lossy(one, 200))), (receiver(plain), Box::new(other)));
    });
}

#[test]
fn every_combination_receives_from_one_without() {
    for_every_combination(|switches| {
        let (one, other) = pair(1000).unwrap();
        let plain = VirtioNetSwitches::default();
        transfer((sender(plain), Box::new(lossy(one, 200))), (receiver(switches), finished(switches, other)));
    });
}

/// RFC 9293, 3.1: with the offload on, the driver looks at checksums that nobody vouches for.
#[test]
fn a_segment_that_was_damaged_on_the_wire_is_not_taken() {
    for_every_combination(|switches| {
        if !switches.offloads() {
            return;
        }
        let damaged = Arc::new(AtomicU64::new(0));
        // On a busy machine a transfer may be too short to have a frame that is damaged.
        for state in (0x5eed..).take_while(|_| damaged.load(Ordering::Relaxed) == 0) {
            let (one, other) = pair(1000).unwrap();
            let damaging = support::Damaging { port: one, one_in: 100, state, damaged: Arc::clone(&damaged) };
            let plain = VirtioNetSwitches::default();
            transfer((sender(plain), Box::new(damaging)), (receiver(switches), finished(switches, other)));
        }
    });
}

#[test]
fn jumbo_frames_with_segmentation() {
    let all = VirtioNetSwitches {
        checksum_offload: true,
        tso: true,
        mergeable_buffers: true,
        event_index: true,
        ..VirtioNetSwitches::OFF
    };
    for switches in
        [all, VirtioNetSwitches { tso: false, ..all }, VirtioNetSwitches { mergeable_buffers: false, ..all }]
    {
        let (one, other) = wire(switches);
        let jumbo = |end: End| End { mtu: 9000, write_size: 17_001, ..end };
        transfer((jumbo(sender(switches)), Box::new(one)), (jumbo(receiver(switches)), Box::new(other)));
    }
}
