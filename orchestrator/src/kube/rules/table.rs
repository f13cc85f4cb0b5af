//! Bounds and rules that are written by hand, from the whole object inwards: those that look at several values at once. Words are
//! those of the validator (`protocol/src/campaign/validate.rs`).

use toll_protocol::adapters::ETHERNET_MTU;
use toll_protocol::campaign::limits::{LAB_MTU, LONGEST_NAME, MTU};

use super::{Bound, Rule};

// Limits that stand in rules below as they do in protocol.
const _: () = assert!(*MTU.end() == 9000 && LAB_MTU == 1500 && ETHERNET_MTU == 1500);

/// How often an arm of a gate is a baseline.
macro_rules! baseline_toll {
    () => {
        "has(g.toll) && has(g.cells) && has(g.cells.arm) && self.arms.exists(a, has(a.native)) && \
         g.cells.arm == self.arms.filter(a, has(a.native))[0].name"
    };
}
const VIRTIO_NETS: &[&str] =
    &["spec.arms[].guest.adapter.virtioNet", "spec.arms[].sameStack.adapter.virtioNet"];

pub(super) const BOUNDS: &[Bound] = &[
    Bound {
        at: &["spec.gates[].cells.arm", "spec.gates[].ratio.to", "spec.gates[].cells.workload"],
        keyword: "maxLength",
        limit: LONGEST_NAME as u64,
    },
    Bound { at: &["spec.hosts.select.matchLabels"], keyword: "maxProperties", limit: 64 },
    // What a label's value may be in Kubernetes.
    Bound { at: &["spec.hosts.select.matchLabels{}"], keyword: "maxLength", limit: 63 },
    Bound { at: &["status.hosts"], keyword: "maxItems", limit: 64 },
    Bound { at: &["status.cells"], keyword: "maxItems", limit: 256 },
    Bound { at: &["status.conditions"], keyword: "maxItems", limit: 16 },
];

pub(super) const RULES: &[Rule] = &[
    Rule {
        at: &[""],
        rule: "self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$')",
        message: "metadata.name: write 1 to 63 of a-z, 0-9 and -, not - at an end",
        expression: Some(
            "'metadata.name: `' + self.metadata.name + '` is no name: write 1 to 63 of a-z, 0-9 and -, not - at an end'",
        ),
        field: None,
    },
    Rule {
        at: &["spec"],
        rule: "self == oldSelf",
        message: "a campaign is planned once and can't be changed: delete it and create another",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.hosts"],
        rule: "has(self.select)",
        message: "names no hosts of a fleet: write `select: {}` there",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.hosts"],
        rule: "!has(self.mtu) || !has(self.lab) || self.mtu > 9000 || \
               self.mtu <= (has(self.lab.link) && has(self.lab.link.mtu) ? self.lab.link.mtu : 1500)",
        message: "is over the MTU of the lab's links: write less, or a larger `lab.link.mtu`",
        expression: None,
        field: Some(".mtu"),
    },
    Rule {
        at: &["spec.arms[]"],
        rule: "has(self.native) || has(self.sameStack) || has(self.guest)",
        message: "an arm is nothing yet: write `native: {}`, `sameStack: {adapter: {virtioNet: {}}}` or \
                  `guest: {os: payload, adapter: {virtioNet: {}}}`",
        expression: Some(
            "'arm `' + self.name + '` is nothing yet: write `native: {}`, `sameStack: {adapter: {virtioNet: {}}}` or \
             `guest: {os: payload, adapter: {virtioNet: {}}}`'",
        ),
        field: None,
    },
    Rule {
        at: &["spec.arms[]"],
        rule: "[has(self.native), has(self.sameStack), has(self.guest)].filter(is, is).size() <= 1",
        message: "an arm is several things: keep one of native, sameStack, guest",
        expression: Some("'arm `' + self.name + '` is several things: keep one of native, sameStack, guest'"),
        field: None,
    },
    Rule {
        at: &["spec.arms[]"],
        rule: "!has(self.native) || !has(self.peers)",
        message: "a native arm has native peers only: leave `peers` out",
        expression: None,
        field: Some(".peers"),
    },
    Rule {
        at: &["spec.arms[].sameStack.adapter.pcnet"],
        rule: "!(has(self.ioInKernel) && self.ioInKernel)",
        message: "a same-stack end has no exits that the kernel could spare: leave it out",
        expression: None,
        field: Some(".ioInKernel"),
    },
    Rule {
        at: VIRTIO_NETS,
        rule: "!(has(self.tso) && self.tso) || (has(self.checksumOffload) && self.checksumOffload)",
        message: "needs the checksum offload (virtio 1.2, 5.1.3.1): write `checksumOffload: true, tso: true`",
        expression: None,
        field: Some(".tso"),
    },
    Rule {
        at: VIRTIO_NETS,
        rule: "!has(self.queuePairs) || self.queuePairs < 2 || (has(self.controlQueue) && self.controlQueue)",
        message: "more than one need the control queue (virtio 1.2, 5.1.3.1): write `controlQueue: true` too",
        expression: None,
        field: Some(".queuePairs"),
    },
    Rule {
        at: &["spec.arms[].guest", "spec.arms[].sameStack"],
        rule: "!has(self.pin) || !has(self.pin.io) || (has(self.adapter.virtioNet) && \
               has(self.adapter.virtioNet.ioThread) && self.adapter.virtioNet.ioThread)",
        message: "the adapter has no thread of its own: write `ioThread: true` in it, or leave `io` out",
        expression: None,
        field: Some(".pin"),
    },
    Rule {
        at: &["spec"],
        rule: "!has(self.gates) || self.gates.all(g, !has(g.cells) || !has(g.cells.arm) || \
               self.arms.exists(a, a.name == g.cells.arm))",
        message: "there is no arm that a gate names: `cells.arm` is one of the names of spec.arms",
        expression: None,
        field: Some(".gates"),
    },
    Rule {
        at: &["spec"],
        rule: "!has(self.gates) || self.gates.all(g, !has(g.cells) || !has(g.cells.workload) || \
               self.workloads.exists(w, w.name == g.cells.workload))",
        message: "there is no workload that a gate names: `cells.workload` is one of the names of spec.workloads",
        expression: None,
        field: Some(".gates"),
    },
    Rule {
        at: &["spec"],
        rule: concat!("!has(self.gates) || !self.gates.exists(g, ", baseline_toll!(), ")"),
        message: "the first native arm is the baseline that tolls are relative to: name another arm",
        expression: None,
        field: Some(".gates"),
    },
    Rule {
        at: &["spec"],
        rule: "!has(self.gates) || !self.gates.exists(g, has(g.toll)) || self.arms.exists(a, has(a.native))",
        message: "a toll is relative to native: add an arm `native: {}`",
        expression: None,
        field: Some(".gates"),
    },
    Rule {
        at: &["spec"],
        rule: "(has(self.hosts.mtu) ? self.hosts.mtu : has(self.hosts.lab) && has(self.hosts.lab.link) && \
               has(self.hosts.lab.link.mtu) ? self.hosts.lab.link.mtu : 1500) <= 1500 || !self.arms.exists(a, \
               (has(a.guest) && has(a.guest.adapter.pcnet)) || (has(a.sameStack) && has(a.sameStack.adapter.pcnet)))",
        message: "pcnet carries frames of at most 1500 bytes; the trials' MTU is larger",
        expression: None,
        field: Some(".hosts"),
    },
    Rule {
        at: &["spec"],
        rule: "!has(self.gates) || self.gates.all(g, !has(g.ratio) || self.arms.exists(a, a.name == g.ratio.to))",
        message: "there is no arm that a ratio is to: `to` is one of the names of spec.arms",
        expression: None,
        field: Some(".gates"),
    },
    Rule {
        at: &["spec.gates[]"],
        rule: "!has(self.ratio) || !has(self.cells) || !has(self.cells.arm) || self.cells.arm != self.ratio.to",
        message: "relative to itself is 100%: name another arm",
        expression: None,
        field: Some(".ratio.to"),
    },
];
