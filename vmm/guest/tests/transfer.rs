//! Whole TCP transfers between two payload programs over the adapter models and an in-memory wire.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "each test uses a part")]
mod support;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use support::{End, LONG_PATIENCE, Lossy, Outcome, PCNET, VIRTIO_NET};
use toll_guest::program::ProgramError;
use toll_guest_abi::phase;
use toll_vnic::port::Port;
use toll_vnic::port::memory::pair;

/// Runs both ends to their end.
fn transfer(sender: End, receiver: End, lose: Option<u64>) -> (Outcome, Outcome) {
    let (one, other) = pair(1000).unwrap();
    let port: Box<dyn Port> = match lose {
        Some(one_in) => Box::new(Lossy { port: one, one_in, state: 0x5eed, lost: Arc::default() }),
        None => Box::new(one),
    };
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.run(Box::new(other)));
        let (result, sent) = sender.run(port);
        result.unwrap();
        let (result, received) = receiving.join().unwrap();
        result.unwrap();
        (sent, received)
    })
}

fn assert_whole(sender: End, receiver: End, lose: Option<u64>) -> (Outcome, Outcome) {
    let (sent, received) = transfer(sender, receiver, lose);
    let phases = [phase::READY, phase::WARM_UP, phase::MEASURE, phase::MEASURED, phase::CLOSED];
    assert_eq!((&sent.phases[..], &received.phases[..]), (&phases[..], &phases[..]));
    assert!(received.bytes > 10_000, "{received:?}");
    assert_eq!(received.bytes, sent.bytes, "every byte that the sender's stack took arrived");
    assert_eq!(received.verified, received.bytes, "each was the one that was sent there");
    assert!(received.measured > 0 && received.measured < received.bytes);
    assert!(received.interval >= receiver.duration, "{received:?}");
    assert!(lose.is_some() || sent.retransmits == 0, "nothing is lost on this wire: {sent:?}");
    for counters in [sent.counters, received.counters] {
        assert_eq!(counters.guest_errors, 0);
    }
    (sent, received)
}

#[test]
fn pcnet_to_pcnet() {
    assert_whole(End::sender(PCNET), End::receiver(PCNET), None);
}

#[test]
fn virtio_to_virtio() {
    assert_whole(End::sender(VIRTIO_NET), End::receiver(VIRTIO_NET), None);
}

#[test]
fn pcnet_to_virtio() {
    assert_whole(End::sender(PCNET), End::receiver(VIRTIO_NET), None);
}

#[test]
fn virtio_to_pcnet() {
    assert_whole(End::sender(VIRTIO_NET), End::receiver(PCNET), None);
}

#[test]
fn the_sender_may_listen() {
    let sender = End { listens: true, ..End::sender(VIRTIO_NET) };
    let receiver = End { listens: false, ..End::receiver(VIRTIO_NET) };
    assert_whole(sender, receiver, None);
}

#[test]
fn lost_frames_are_sent_again() {
    for adapter in [PCNET, VIRTIO_NET] {
        let duration = Duration::from_millis(500);
        let sender = End { duration, patience: LONG_PATIENCE, ..End::sender(adapter) };
        let receiver = End { duration, patience: LONG_PATIENCE, ..End::receiver(adapter) };
        let (sent, received) = assert_whole(sender, receiver, Some(100));
        assert!(sent.counters.transmit_frames > received.counters.receive_frames);
        assert!(sent.retransmits > 0 && received.retransmits == 0, "{sent:?}");
    }
}

#[test]
fn jumbo_frames_and_small_writes() {
    let end = |end: End| End { mtu: 9000, write_size: 17, arena: 8 << 20, ..end };
    assert_whole(end(End::sender(VIRTIO_NET)), end(End::receiver(VIRTIO_NET)), None);
}

#[test]
fn a_peer_that_closes_early_is_an_error_of_the_sender() {
    let sender = End { duration: Duration::from_secs(10), ..End::sender(VIRTIO_NET) };
    let (one, other) = pair(1000).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| End::receiver(VIRTIO_NET).run(Box::new(other)));
        assert_eq!(sender.run(Box::new(one)).0, Err(ProgramError::PeerClosed));
    });
}

#[test]
fn what_the_boot_information_can_not_have_is_refused() {
    let refused = |end: End| {
        let (one, _other) = pair(1).unwrap();
        end.run(Box::new(one)).0.unwrap_err()
    };
    let pcnet = End::sender(PCNET);
    assert_eq!(refused(End { mtu: 1501, ..pcnet }), ProgramError::BootInfo { field: "mtu" });
    assert_eq!(refused(End { mtu: 9001, ..pcnet }), ProgramError::BootInfo { field: "mtu" });
    assert_eq!(refused(End { write_size: 0, ..pcnet }), ProgramError::BootInfo { field: "write_size" });
    let duration = Duration::ZERO;
    assert_eq!(refused(End { duration, ..pcnet }), ProgramError::BootInfo { field: "duration_ns" });
    let patience = Duration::ZERO;
    assert_eq!(refused(End { patience, ..pcnet }), ProgramError::BootInfo { field: "patience_ns" });
    assert!(matches!(refused(End { arena: 100_000, ..pcnet }), ProgramError::Arena { .. }));
}
