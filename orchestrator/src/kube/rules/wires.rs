//! Rules for ports, and for what stands between an adapter and its port; limits and words are those of
//! `protocol/src/campaign/validate/decorators.rs` and `ports.rs`. That a quantity is one at all is in `table`.

use super::Rule;

const IMPAIRMENTS: &[&str] = &["spec.arms[].guest.impairments", "spec.arms[].sameStack.impairments"];
const SHARES: &[&str] = &[
    "spec.arms[].guest.impairments.loss",
    "spec.arms[].guest.impairments.duplicate",
    "spec.arms[].guest.impairments.reorder",
    "spec.arms[].sameStack.impairments.loss",
    "spec.arms[].sameStack.impairments.duplicate",
    "spec.arms[].sameStack.impairments.reorder",
];
const RATES: &[&str] = &["spec.arms[].guest.impairments.rate", "spec.arms[].sameStack.impairments.rate"];
const DELAYS: &[&str] = &["spec.arms[].guest.impairments.delay", "spec.arms[].sameStack.impairments.delay"];
const LIMITS: &[&str] = &["spec.arms[].guest.capture.limit", "spec.arms[].sameStack.capture.limit"];

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

pub(in super::super) const RULES: &[Rule] = &[
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
    Rule {
        at: SHARES,
        rule: concat!(
            "!self.matches(",
            percent!(),
            ") || [double(self.replace('+', '').replace('%', '').trim())].all(n, n >= 0.0 && n <= 100.0)"
        ),
        message: "is out of range: write 0% to 100%",
        expression: Some("self + ' is out of range: write 0% to 100%'"),
        field: None,
    },
    Rule {
        at: RATES,
        rule: concat!(
            "!self.matches(",
            rate!(),
            ") || [",
            bits_per_second!(),
            "].all(n, n >= 64000.0 && n <= 1e12)"
        ),
        message: "is out of range: write 64kbit to 1000Gbit",
        expression: Some("self + ' is out of range: write 64kbit to 1000Gbit'"),
        field: None,
    },
    Rule {
        at: DELAYS,
        rule: concat!("!self.matches(", span!(), ") || duration(self.replace(' ', '')) <= duration('1s')"),
        message: "is out of range: write 0s to 1s",
        expression: Some("self + ' is out of range: write 0s to 1s'"),
        field: None,
    },
    Rule {
        at: LIMITS,
        rule: concat!(
            "!self.matches(",
            bytes!(),
            ") || [",
            byte_count!(),
            "].all(n, n >= 65536.0 && n <= 1073741824.0)"
        ),
        message: "is out of range: write 64KiB to 1GiB",
        expression: Some("self + ' is out of range: write 64KiB to 1GiB'"),
        field: None,
    },
];
