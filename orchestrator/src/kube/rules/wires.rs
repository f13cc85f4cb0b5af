//! Rules for ports, and for what stands between an adapter and its port; words are those of
//! `protocol/src/campaign/validate/decorators.rs` and `ports.rs`.

use super::Rule;

const IMPAIRMENTS: &[&str] = &["spec.arms[].guest.impairments", "spec.arms[].sameStack.impairments"];
/// Whether an arm `a` has a port.
macro_rules! has_port {
    ($port:literal) => {
        concat!(
            "((has(a.guest) && has(a.guest.port) && has(a.guest.port.",
            $port,
            ")) || (has(a.sameStack) && has(a.sameStack.port) && has(a.sameStack.port.",
            $port,
            ")))"
        )
    };
}

/// Whether an end has one queue pair.
macro_rules! one_pair {
    () => {
        "!has(self.adapter.virtioNet) || !has(self.adapter.virtioNet.queuePairs) || self.adapter.virtioNet.queuePairs < 2"
    };
}

pub(super) const RULES: &[Rule] = &[
    Rule {
        at: &["spec"],
        rule: concat!(
            "self.arms.all(a, !",
            has_port!("hub"),
            " || (has(a.peers) ? a.peers.all(p, p == 'same-arm') : has(self.peers) && \
             self.peers.all(p, p == 'same-arm')))"
        ),
        message: "a hub joins two ends of the arm and no native one: write `peers: [same-arm]` in the arm",
        expression: None,
        field: Some(".arms"),
    },
    Rule {
        at: &["spec"],
        rule: concat!(
            "self.arms.all(a, !",
            has_port!("nat"),
            " || (has(a.peers) ? a.peers.all(p, p == 'native') : !has(self.peers) || \
             self.peers.all(p, p == 'native')))"
        ),
        message: "nobody can connect to an end behind address translation: write `peers: [native]` in the arm",
        expression: None,
        field: Some(".arms"),
    },
    Rule {
        at: &["spec.arms[].guest", "spec.arms[].sameStack"],
        rule: "!has(self.port) || !has(self.port.nat) || !has(self.adapter.virtioNet) || \
               [has(self.adapter.virtioNet.checksumOffload) && self.adapter.virtioNet.checksumOffload, \
               has(self.adapter.virtioNet.tso) && self.adapter.virtioNet.tso, \
               has(self.adapter.virtioNet.segmentCombining) && self.adapter.virtioNet.segmentCombining].all(on, !on)",
        message: "address translation carries whole frames with their checksums: leave `checksumOffload`, `tso` and \
                  `segmentCombining` off",
        expression: None,
        field: Some(".port"),
    },
    Rule {
        at: &["spec.arms[].guest", "spec.arms[].sameStack"],
        rule: concat!(one_pair!(), " || !has(self.port) || (!has(self.port.hub) && !has(self.port.nat))"),
        message: "a hub and address translation have one queue: write `queuePairs: 1`, or another port",
        expression: None,
        field: Some(".adapter"),
    },
    Rule {
        at: &["spec.arms[].guest", "spec.arms[].sameStack"],
        rule: concat!(one_pair!(), " || (!has(self.impairments) && !has(self.capture))"),
        message: "impairments and a capture are of one queue, in whose order frames go: write `queuePairs: 1`, or leave \
                  them out",
        expression: None,
        field: Some(".adapter"),
    },
    Rule {
        at: IMPAIRMENTS,
        rule: "has(self.rate) || has(self.delay) || has(self.loss) || has(self.duplicate) || has(self.reorder)",
        message: "changes nothing: write `rate`, `delay`, `loss`, `duplicate` or `reorder`, or leave it out",
        expression: None,
        field: None,
    },
    Rule {
        at: IMPAIRMENTS,
        rule: "!has(self.reorder) || has(self.delay)",
        message: "needs a delay: a frame overtakes others by not being delayed",
        expression: None,
        field: Some(".reorder"),
    },
];
