//! Parallel flows between two payload programs over the adapter models and an in-memory wire: send, receive, both.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "each test uses a part")]
mod support;

use std::thread;
use std::time::Duration;

use support::{Carried, End, Outcome, PCNET, VIRTIO_NET};
use toll_guest::program::ProgramError;
use toll_guest_abi::direction::{BOTH, RECEIVE, SEND};
use toll_guest_abi::phase;
use toll_protocol::trial::VirtioNetSwitches;
use toll_vnic::port::memory::{pair, pair_with_headers};

/// `flows` flows between two ends of `adapter`; the one that connects is the first.
fn transfer(adapter: u32, flows: u32, direction: u32, offloads: bool) -> (Outcome, Outcome) {
    let opposite = match direction {
        SEND => RECEIVE,
        RECEIVE => SEND,
        other => other,
    };
    let switches = VirtioNetSwitches { checksum_offload: offloads, tso: offloads, ..Default::default() };
    let end = End {
        flows,
        switches,
        arena: 64 << 20,
        warm_up: Duration::from_millis(20),
        duration: Duration::from_millis(200),
        ..End::sender(adapter)
    };
    let connecting = End { direction, ..end };
    let listening = End { direction: opposite, listens: true, host: 2, peer: 1, ..end };
    let (one, other) = if offloads { pair_with_headers(1000).unwrap() } else { pair(1000).unwrap() };
    thread::scope(|scope| {
        let peer = scope.spawn(|| listening.run(Box::new(other)));
        let (result, near) = connecting.run(Box::new(one));
        result.unwrap();
        let (result, far) = peer.join().unwrap();
        result.unwrap();
        (near, far)
    })
}

/// Jain's fairness index of shares: 1 if all are alike, 1/n if one flow has everything.
fn fairness(shares: &[u64]) -> f64 {
    let shares: Vec<f64> = shares.iter().map(|share| *share as f64).collect();
    shares.iter().sum::<f64>().powi(2)
        / (shares.len() as f64 * shares.iter().map(|share| share * share).sum::<f64>())
}

fn check(what: &str, (near, far): &(Outcome, Outcome), flows: u32, direction: u32) {
    let phases = [phase::READY, phase::WARM_UP, phase::MEASURE, phase::MEASURED, phase::CLOSED];
    for (this, that) in [(near, far), (far, near)] {
        assert_eq!(this.phases, phases, "{what}");
        assert_eq!(this.carried.received, that.carried.sent, "{what}: every byte sent arrived");
        assert_eq!(this.verified, this.carried.received, "{what}: each was the one that was sent there");
        let Carried { sent, received } = this.measured_both_ways;
        assert_eq!(
            this.flows.iter().sum::<u64>(),
            sent + received,
            "{what}: the flows' shares are the whole"
        );
    }
    let ways = [(SEND, near, far), (RECEIVE, far, near)];
    for (way, sender, receiver) in ways.into_iter().filter(|(way, ..)| [*way, BOTH].contains(&direction)) {
        // What the listening end receives comes to its first port.
        let first = if direction == BOTH && way == RECEIVE { flows as usize } else { 0 };
        let shares = &receiver.flows[first..first + flows as usize];
        assert!(shares.iter().all(|share| *share > 0), "{what}: each flow moved: {shares:?}");
        // Of many flows some are still in slow start when a debug build has carried so little.
        let least = if flows <= 8 { 0.8 } else { 0.2 };
        assert!(fairness(shares) > least, "{what}: {} {shares:?}", fairness(shares));
        println!(
            "{what}: {:.2} Gb/s, fairness {:.3}, {} retransmissions",
            receiver.measured_both_ways.received as f64 * 8e-9 / receiver.interval.as_secs_f64(),
            fairness(shares),
            sender.retransmits,
        );
    }
}

#[test]
fn flows_of_every_number_and_direction_carry_each_byte() {
    for (name, adapter, offloads) in
        [("pcnet", PCNET, false), ("virtio-net", VIRTIO_NET, false), ("tso", VIRTIO_NET, true)]
    {
        for flows in [1, 8, 128] {
            for (way, direction) in [("send", SEND), ("receive", RECEIVE), ("both", BOTH)] {
                let outcomes = transfer(adapter, flows, direction, offloads);
                check(&format!("{name}, {flows} flows, {way}"), &outcomes, flows, direction);
            }
        }
    }
}

#[test]
fn memory_for_too_few_flows_is_told_with_what_they_need() {
    let error = |flows, direction, arena| {
        let (one, _other) = pair(1).unwrap();
        End { flows, direction, arena, ..End::sender(VIRTIO_NET) }.run(Box::new(one)).0.unwrap_err()
    };
    let ProgramError::Arena { needed, found } = error(128, BOTH, 4 << 20) else {
        panic!("no room for 128 flows")
    };
    assert_eq!(found, 4 << 20);
    assert!(needed > 2 * 128 * (64 << 10), "two buffers a flow: {needed}");
    // That much is enough: the program gets as far as an order to connect.
    let (one, other) = pair(1000).unwrap();
    let end = End { flows: 128, direction: BOTH, arena: needed, ..End::sender(VIRTIO_NET) };
    thread::scope(|scope| {
        scope.spawn(|| End { listens: true, host: 2, peer: 1, ..end }.run(Box::new(other)).0.unwrap());
        end.run(Box::new(one)).0.unwrap();
    });
    assert_eq!(error(0, SEND, 4 << 20), ProgramError::BootInfo { field: "flows" });
    assert_eq!(error(129, SEND, 1 << 30), ProgramError::BootInfo { field: "flows" });
    assert_eq!(error(1, 4, 4 << 20), ProgramError::BootInfo { field: "direction" });
}

#[test]
fn a_listening_end_takes_as_many_connections_as_it_has_flows() {
    let (one, other) = pair(1000).unwrap();
    let end = End { duration: Duration::from_millis(300), arena: 8 << 20, ..End::sender(VIRTIO_NET) };
    let listening = End { flows: 2, direction: RECEIVE, listens: true, host: 2, peer: 1, ..end };
    // It hears nothing more once the other end is gone: it ends with the test's process.
    thread::spawn(move || listening.run(Box::new(other)));
    // The third connection is refused, and with it the trial of the end that asked for it.
    assert_eq!(End { flows: 3, ..end }.run(Box::new(one)).0, Err(ProgramError::Reset));
}
