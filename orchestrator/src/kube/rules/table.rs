//! The bounds and rules themselves, from the whole object inwards. Limits and words are those of the validator
//! (`protocol/src/campaign/validate.rs`).

use super::{Bound, Rule};

/// How often an arm of a gate is a baseline.
macro_rules! baseline_toll {
    () => {
        "has(g.toll) && has(g.cells) && has(g.cells.arm) && self.arms.exists(a, has(a.native)) && \
         g.cells.arm == self.arms.filter(a, has(a.native))[0].name"
    };
}
/// What no multiple of 100 ms is, for all that CEL can't see in a duration, which it cuts to whole milliseconds: a
/// figure below the third decimal of a second or minute, below the fifth of an hour, or any below a millisecond.
macro_rules! crumbs {
    () => {
        concat!(
            r"r'(\.[0-9]*[1-9][0-9]* *(ns|us|ms)|[1-9][0-9]{0,5}(\.[0-9]*)? *ns|[1-9][0-9]{0,2}(\.[0-9]*)? *us",
            r"|\.[0-9]{3}[0-9]*[1-9][0-9]* *[sm]|\.[0-9]{5}[0-9]*[1-9][0-9]* *h) *$'"
        )
    };
}
/// Whether an interval of a workload is one that iperf3 can't report.
macro_rules! odd {
    ($field:literal) => {
        concat!(
            "(has(w.stream) && has(w.stream.",
            $field,
            ") && w.stream.",
            $field,
            ".matches(",
            span!(),
            ") && (duration(w.stream.",
            $field,
            ".replace(' ', '')).getMilliseconds() % 100 != 0 || w.stream.",
            $field,
            ".matches(",
            crumbs!(),
            ")))"
        )
    };
}

const ADAPTERS: &[&str] = &["spec.arms[].guest.adapter", "spec.arms[].sameStack.adapter"];
const VIRTIO_NETS: &[&str] =
    &["spec.arms[].guest.adapter.virtioNet", "spec.arms[].sameStack.adapter.virtioNet"];
const COMBININGS: &[&str] =
    &["spec.arms[].guest.adapter.pcnet.sendCombining", "spec.arms[].sameStack.adapter.pcnet.sendCombining"];
const PORTS: &[&str] = &["spec.arms[].guest.port", "spec.arms[].sameStack.port"];
const PEERS: &[&str] = &["spec.peers", "spec.arms[].peers"];

pub(in super::super) const BOUNDS: &[Bound] = &[
    Bound { at: &["spec.arms", "spec.workloads", "spec.gates"], keyword: "maxItems", limit: 64 },
    Bound { at: PEERS, keyword: "maxItems", limit: 2 },
    Bound { at: &["spec.workloads[].stream.directions"], keyword: "maxItems", limit: 3 },
    Bound {
        at: &[
            "spec.arms[].name",
            "spec.workloads[].name",
            "spec.gates[].cells.arm",
            "spec.gates[].ratio.to",
            "spec.gates[].cells.workload",
        ],
        keyword: "maxLength",
        limit: 63,
    },
    Bound {
        at: &[
            "spec.hosts.lab.link.rate",
            "spec.workloads[].stream.writeSize",
            "spec.workloads[].stream.warmUp",
            "spec.workloads[].stream.duration",
            "spec.gates[].toll.atMost",
            "spec.arms[].guest.adapter.pcnet.sendCombining.tick",
            "spec.arms[].sameStack.adapter.pcnet.sendCombining.tick",
            "spec.gates[].goodput.atLeast",
            "spec.gates[].ratio.atLeast",
            "spec.gates[].ratio.within",
            "spec.gates[].firstFrame.atMost",
            "spec.gates[].memory.atMost",
            "spec.arms[].guest.impairments.rate",
            "spec.arms[].guest.impairments.delay",
            "spec.arms[].guest.impairments.loss",
            "spec.arms[].guest.impairments.duplicate",
            "spec.arms[].guest.impairments.reorder",
            "spec.arms[].guest.capture.limit",
            "spec.arms[].sameStack.impairments.rate",
            "spec.arms[].sameStack.impairments.delay",
            "spec.arms[].sameStack.impairments.loss",
            "spec.arms[].sameStack.impairments.duplicate",
            "spec.arms[].sameStack.impairments.reorder",
            "spec.arms[].sameStack.capture.limit",
        ],
        keyword: "maxLength",
        limit: 32,
    },
    Bound { at: &["spec.hosts.select.matchLabels"], keyword: "maxProperties", limit: 64 },
    // What a label's value may be in Kubernetes.
    Bound { at: &["spec.hosts.select.matchLabels{}"], keyword: "maxLength", limit: 63 },
    Bound { at: &["status.hosts"], keyword: "maxItems", limit: 64 },
    Bound { at: &["status.cells"], keyword: "maxItems", limit: 256 },
    Bound { at: &["status.conditions"], keyword: "maxItems", limit: 16 },
];

pub(in super::super) const RULES: &[Rule] = &[
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
        at: &["spec.hosts.select.atLeast"],
        rule: "self >= 2 && self <= 1000",
        message: "is out of range: write 2 to 1000",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.hosts.lab.count"],
        rule: "self >= 2 && self <= 16",
        message: "a lab has 2 to 16 hosts",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.hosts.lab.link.mtu", "spec.hosts.mtu"],
        rule: "self >= 576 && self <= 9000",
        message: "is out of range: write 576 to 9000",
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
        at: &[
            "spec.hosts.lab.link.rate",
            "spec.gates[].goodput.atLeast",
            "spec.arms[].guest.impairments.rate",
            "spec.arms[].sameStack.impairments.rate",
        ],
        rule: concat!("self.matches(", rate!(), ")"),
        message: "is no link rate in bits per second: write a number and its unit, such as `100Mbit` or `10Gbit`",
        expression: Some(
            "'`' + self + '` is no link rate in bits per second: write a number and its unit, such as `100Mbit` or \
             `10Gbit`'",
        ),
        field: None,
    },
    Rule {
        at: &["spec.hosts.lab.link.rate"],
        rule: concat!("!self.matches(", rate!(), ") || ", bits_per_second!(), " >= 1e6"),
        message: "is below 1Mbit, the slowest link a lab makes",
        expression: Some("self + ' is below 1Mbit, the slowest link a lab makes'"),
        field: None,
    },
    Rule {
        at: &["spec.arms"],
        rule: "size(self) > 0",
        message: "is empty: a campaign needs at least one arm",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.arms"],
        rule: "self.all(a, self.exists_one(b, b.name == a.name))",
        message: "two arms have one name: give each a name of its own",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.workloads"],
        rule: "size(self) > 0",
        message: "is empty: a campaign needs at least one workload",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.workloads"],
        rule: "self.all(a, self.exists_one(b, b.name == a.name))",
        message: "two workloads have one name: give each a name of its own",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.arms[].name", "spec.workloads[].name"],
        rule: "self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",
        message: "is no name: write 1 to 63 of a-z, 0-9 and -, not - at an end",
        expression: Some("'`' + self + '` is no name: write 1 to 63 of a-z, 0-9 and -, not - at an end'"),
        field: None,
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
        at: ADAPTERS,
        rule: "has(self.pcnet) != has(self.virtioNet)",
        message: "must be exactly one adapter: `{pcnet: {}}` or `{virtioNet: {}}`",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.arms[].sameStack.adapter.pcnet"],
        rule: "!(has(self.ioInKernel) && self.ioInKernel)",
        message: "a same-stack end has no exits that the kernel could spare: leave it out",
        expression: None,
        field: Some(".ioInKernel"),
    },
    Rule {
        at: COMBININGS,
        rule: "!has(self.threshold) || (self.threshold >= 1 && self.threshold <= 512)",
        message: "is out of range: write 1 to 512",
        expression: None,
        field: Some(".threshold"),
    },
    Rule {
        at: COMBININGS,
        rule: "!has(self.rate) || (self.rate >= 0 && self.rate <= 1000000)",
        message: "is out of range: write 0 to 1000000",
        expression: None,
        field: Some(".rate"),
    },
    Rule {
        at: COMBININGS,
        rule: concat!(
            "!has(self.tick) || !self.tick.matches(",
            span!(),
            ") || (duration(self.tick.replace(' ', '')) >= duration('100us') && \
             duration(self.tick.replace(' ', '')) <= duration('1s'))"
        ),
        message: "is out of range: write 100us to 1s",
        expression: None,
        field: Some(".tick"),
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
        rule: "!has(self.queuePairs) || (self.queuePairs >= 1 && self.queuePairs <= 8)",
        message: "is out of range: write 1 to 8",
        // A number as text has no bound that the cost of a rule could be estimated from.
        expression: None,
        field: Some(".queuePairs"),
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
        at: PORTS,
        rule: "[has(self.tap), has(self.macvtap), has(self.hub), has(self.nat)].filter(is, is).size() == 1",
        message: "must be exactly one port: `{tap: {}}`, `{macvtap: {}}`, `{hub: {}}` or `{nat: {}}`; leave it out for \
                  what the host's agent offers",
        expression: None,
        field: None,
    },
    Rule {
        at: PEERS,
        rule: "size(self) > 0",
        message: "is empty: write `[native]`, `[same-arm]` or both",
        expression: None,
        field: None,
    },
    Rule {
        at: PEERS,
        rule: "self.all(a, self.exists_one(b, b == a))",
        message: "a peer is listed twice",
        expression: Some("'`' + self[0] + '` is listed twice'"),
        field: None,
    },
    Rule {
        at: &["spec.workloads[]"],
        rule: "has(self.stream) || has(self.datagram)",
        message: "a workload is nothing yet: write `stream: {}`, `datagram: {size: 512B}`",
        expression: Some(
            "'workload `' + self.name + '` is nothing yet: write `stream: {}`, `datagram: {size: 512B}`'",
        ),
        field: None,
    },
    Rule {
        at: &["spec.workloads[]"],
        rule: "[has(self.stream), has(self.datagram)].filter(is, is).size() <= 1",
        message: "a workload is several things: keep one of stream, datagram",
        expression: Some("'workload `' + self.name + '` is several things: keep one of stream, datagram'"),
        field: None,
    },
    Rule {
        at: &["spec.workloads[].stream.directions"],
        rule: "size(self) > 0",
        message: "is empty: write `[send, receive]` or one of them",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.workloads[].stream.directions"],
        rule: "self.all(a, self.exists_one(b, b == a))",
        message: "a direction is listed twice",
        expression: Some("'`' + self[0] + '` is listed twice'"),
        field: None,
    },
    Rule {
        at: &[
            "spec.workloads[].stream.writeSize",
            "spec.gates[].memory.atMost",
            "spec.arms[].guest.capture.limit",
            "spec.arms[].sameStack.capture.limit",
        ],
        rule: concat!("self.matches(", bytes!(), ")"),
        message: "is no size: write a number and its unit, such as `64KiB` or `1500B`",
        expression: Some(
            "'`' + self + '` is no size: write a number and its unit, such as `64KiB` or `1500B`'",
        ),
        field: None,
    },
    Rule {
        at: &["spec.workloads[].stream.writeSize"],
        rule: concat!(
            "!self.matches(",
            bytes!(),
            ") || [",
            byte_count!(),
            "].all(n, n >= 1.0 && n <= 1048576.0)"
        ),
        message: "is out of range: write 1B to 1MiB",
        expression: Some("self + ' is out of range: write 1B to 1MiB'"),
        field: None,
    },
    Rule {
        at: &[
            "spec.workloads[].stream.warmUp",
            "spec.workloads[].stream.duration",
            "spec.gates[].firstFrame.atMost",
            "spec.arms[].guest.impairments.delay",
            "spec.arms[].sameStack.impairments.delay",
        ],
        rule: concat!("self.matches(", span!(), ")"),
        message: "is no duration: write a number and its unit, such as `500ms` or `2s`",
        expression: Some(
            "'`' + self + '` is no duration: write a number and its unit, such as `500ms` or `2s`'",
        ),
        field: None,
    },
    Rule {
        at: &["spec.workloads[].stream.warmUp"],
        rule: concat!("!self.matches(", span!(), ") || duration(self.replace(' ', '')) <= duration('10m')"),
        message: "is over 10m",
        expression: Some("self + ' is over 10m'"),
        field: None,
    },
    Rule {
        at: &["spec.workloads[].stream.duration"],
        rule: concat!(
            "!self.matches(",
            span!(),
            ") || (duration(self.replace(' ', '')) >= duration('100ms') && \
             duration(self.replace(' ', '')) <= duration('1h'))"
        ),
        message: "is out of range: write 100ms to 1h",
        expression: Some("self + ' is out of range: write 100ms to 1h'"),
        field: None,
    },
    Rule {
        at: &["spec.blocks"],
        rule: "self >= 1 && self <= 1000",
        message: "is out of range: write 1 to 1000",
        expression: None,
        field: None,
    },
    Rule {
        at: &[
            "spec.gates[].toll.atMost",
            "spec.gates[].ratio.atLeast",
            "spec.gates[].ratio.within",
            "spec.arms[].guest.impairments.loss",
            "spec.arms[].guest.impairments.duplicate",
            "spec.arms[].guest.impairments.reorder",
            "spec.arms[].sameStack.impairments.loss",
            "spec.arms[].sameStack.impairments.duplicate",
            "spec.arms[].sameStack.impairments.reorder",
        ],
        // An exponent beyond two digits is beyond what a figure can be, or as good as.
        rule: concat!("self.matches(", percent!(), ")"),
        message: "is no percentage: write a number and its unit, such as `10%`",
        expression: Some("'`' + self + '` is no percentage: write a number and its unit, such as `10%`'"),
        field: None,
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
        rule: concat!(
            "!self.arms.exists(a, has(a.native) && has(a.native.program) && a.native.program == 'iperf3') || \
             !self.workloads.exists(w, ",
            odd!("warmUp"),
            " || ",
            odd!("duration"),
            ")"
        ),
        message: "warmUp and duration must be multiples of 100ms, as an arm with iperf3 needs",
        expression: None,
        field: Some(".workloads"),
    },
    Rule {
        at: &["spec"],
        rule: "!has(self.hosts.lab) || self.hosts.lab.count > 16 || self.hosts.lab.count * \
               (has(self.pairs) && self.pairs == 'ring' && self.hosts.lab.count > 2 ? 2 : self.hosts.lab.count - 1) / 2 * \
               self.arms.map(a, has(a.native) ? 1 : has(a.peers) ? size(a.peers) : has(self.peers) ? \
               size(self.peers) : 1).sum() * \
               self.workloads.map(w, has(w.stream) && has(w.stream.directions) ? size(w.stream.directions) : \
               has(w.datagram) && has(w.datagram.directions) ? size(w.datagram.directions) : 2).sum() * \
               (has(self.blocks) ? self.blocks : 5) <= 100000",
        message: "has more than 100000 trials: fewer blocks, arms or hosts",
        expression: None,
        field: None,
    },
];
