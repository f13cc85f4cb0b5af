//! Ports, and what an arm can't be because of its port.

use super::{Findings, below, schema};
use crate::decorators::Decorators;
use crate::findings::Step::{self, Field};
use crate::port::{NetworkMode, Port, Traits};
use crate::result::Peer;
use crate::trial::{Adapter, QueuePairs};

/// The port that is written; that it is exactly one is told by the schema.
pub(super) fn port(written: Option<&schema::Port>) -> Option<Port> {
    let Some(schema::Port { tap, macvtap, hub, nat }) = written else { return Some(Port::Host) };
    let all = [
        (tap.is_some(), Port::Tap),
        (macvtap.is_some(), Port::Macvtap),
        (hub.is_some(), Port::Hub),
        (nat.is_some(), Port::Nat),
    ];
    let mut named = all.into_iter().filter_map(|(named, port)| named.then_some(port));
    named.next().filter(|_| named.next().is_none())
}

/// What a virtual end has that is of one queue.
fn of_one_queue(port: Port, decorators: &Decorators) -> Option<&'static str> {
    if !port.traits().multi_queue {
        return Some("a hub and address translation have one queue: write `queuePairs: 1`, or another port");
    }
    let Decorators { impairments, capture } = decorators;
    (impairments.is_some() || capture.is_some()).then_some(
        "impairments and a capture are of one queue, in whose order frames go: write `queuePairs: 1`, or leave them out",
    )
}

/// What a port is that no wire of a host is: for the peers of an arm, which are said at `peers_path`, and for the offloads and queue
/// pairs of the adapter of its end, which is at `path`. What is wrong with the adapter or the port itself is told.
pub(super) fn check(
    adapter: Option<&Adapter>,
    port: Option<Port>,
    decorators: &Decorators,
    (peers, peers_path): (&[Peer], &[Step]),
    path: &[Step],
    out: &mut Findings,
) {
    let Some(port) = port else { return };
    let Traits { name, mode, offloads, .. } = port.traits();
    let arm = path.split_last().map_or(path, |(_, arm)| arm);
    let are_known = !out.is_wrong(peers_path);
    match mode {
        NetworkMode::HostOnly if are_known && peers.contains(&Peer::Native) => {
            let message =
                "a hub joins two ends of the arm and no native one: write `peers: [same-arm]` in the arm";
            out.add(arm, message);
        }
        NetworkMode::Nat if are_known && peers.contains(&Peer::SameArm) => {
            let message =
                "nobody can connect to an end behind address translation: write `peers: [native]` in the arm";
            out.add(arm, message);
        }
        NetworkMode::HostOnly | NetworkMode::Nat | NetworkMode::Bridged => {}
    }
    let Some(adapter) = adapter else { return };
    if adapter.offloads() && !offloads {
        let message = "address translation carries whole frames with their checksums: leave `checksumOffload`, `tso` and \
                       `segmentCombining` off";
        out.add(&below(path, &[Field("port"), Field(name)]), message);
    }
    if adapter.queue_pairs() > QueuePairs::ONE
        && let Some(fault) = of_one_queue(port, decorators)
    {
        let path = below(path, &[Field("adapter"), Field(adapter.field()), Field("queuePairs")]);
        out.add(&path, fault);
    }
}
