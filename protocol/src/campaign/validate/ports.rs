//! Ports, and what an arm can't be because of its port.

use super::{Findings, below, schema};
use crate::decorators::Decorators;
use crate::findings::Step::{self, Field};
use crate::port::{NetworkMode, Port, Traits};
use crate::result::Peer;
use crate::trial::{EndKind, Nic, QueuePairs};

pub(super) fn port(written: Option<&schema::Port>, path: &[Step], out: &mut Findings) -> Option<Port> {
    let Some(schema::Port { tap, macvtap, hub, nat }) = written else { return Some(Port::Host) };
    let all = [
        (tap.is_some(), Port::Tap),
        (macvtap.is_some(), Port::Macvtap),
        (hub.is_some(), Port::Hub),
        (nat.is_some(), Port::Nat),
    ];
    let mut named = all.into_iter().filter_map(|(named, port)| named.then_some(port));
    if let (Some(port), None) = (named.next(), named.next()) {
        return Some(port);
    }
    let message = "must be exactly one port: `{tap: {}}`, `{macvtap: {}}`, `{hub: {}}` or `{nat: {}}`; \
                   leave it out for what the host's agent offers";
    out.add(&below(path, &[Field("port")]), message);
    None
}

/// What a virtual end has that is of one queue.
fn of_one_queue(nic: &Nic) -> Option<&'static str> {
    if !nic.port.traits().multi_queue {
        return Some("a hub and address translation have one queue: write `queuePairs: 1`, or another port");
    }
    let Decorators { impairments, capture } = nic.decorators;
    (impairments.is_some() || capture.is_some()).then_some(
        "impairments and a capture are of one queue, in whose order frames go: write `queuePairs: 1`, or leave them out",
    )
}

/// What a port is that no wire of a host is: for `peers` of an arm, its adapter's offloads and queue pairs.
pub(super) fn check(kind: &EndKind, peers: &[Peer], path: &[Step], out: &mut Findings) {
    let EndKind::Virtual { engine, nic } = kind else { return };
    let Traits { name, mode, offloads, .. } = nic.port.traits();
    match mode {
        NetworkMode::HostOnly if peers.contains(&Peer::Native) => {
            let message =
                "a hub joins two ends of the arm and no native one: write `peers: [same-arm]` in the arm";
            out.add(path, message);
        }
        NetworkMode::Nat if peers.contains(&Peer::SameArm) => {
            let message =
                "nobody can connect to an end behind address translation: write `peers: [native]` in the arm";
            out.add(path, message);
        }
        NetworkMode::HostOnly | NetworkMode::Nat | NetworkMode::Bridged => {}
    }
    let field = Field(engine.traits().field);
    if nic.adapter.offloads() && !offloads {
        let message = "address translation carries whole frames with their checksums: leave `checksumOffload`, `tso` and \
                       `segmentCombining` off";
        out.add(&below(path, &[field, Field("port"), Field(name)]), message);
    }
    if nic.adapter.queue_pairs() > QueuePairs::ONE
        && let Some(fault) = of_one_queue(nic)
    {
        let adapter = Field(nic.adapter.field());
        out.add(&below(path, &[field, Field("adapter"), adapter, Field("queuePairs")]), fault);
    }
}
