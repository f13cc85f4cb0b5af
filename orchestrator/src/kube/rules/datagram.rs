//! What datagrams must be, as `protocol/src/traffic/datagram/manifest.rs` has it. Sizes against the MTU, rates against the link and
//! shares that add up are left to the service.

use super::{Bound, Rule};

const SPANS: &[&str] = &[
    "spec.workloads[].datagram.warmUp",
    "spec.workloads[].datagram.duration",
    "spec.workloads[].datagram.lossSearch.trial",
];
const SIZES: &[&str] = &[
    "spec.workloads[].datagram.size",
    "spec.workloads[].datagram.frameSize",
    "spec.workloads[].datagram.sizes[].size",
];
const SHARES: &[&str] = &[
    "spec.workloads[].datagram.lossSearch.atMost",
    "spec.workloads[].datagram.lossSearch.precision",
    "spec.workloads[].datagram.sizes[].share",
];
const DIRECTIONS: &[&str] = &["spec.workloads[].datagram.directions"];
const RATES: &[&str] = &["spec.workloads[].datagram.rate"];

pub(super) const BOUNDS: &[Bound] = &[
    Bound { at: DIRECTIONS, keyword: "maxItems", limit: 3 },
    Bound { at: &["spec.workloads[].datagram.sizes"], keyword: "maxItems", limit: 100 },
    Bound { at: &["spec.workloads[].datagram.imix"], keyword: "maxLength", limit: 100 },
    Bound { at: SPANS, keyword: "maxLength", limit: 32 },
    Bound { at: SIZES, keyword: "maxLength", limit: 32 },
    Bound { at: SHARES, keyword: "maxLength", limit: 32 },
    Bound { at: RATES, keyword: "maxLength", limit: 32 },
];

pub(super) const RULES: &[Rule] = &[
    Rule {
        at: &["spec"],
        rule: "!self.workloads.exists(w, has(w.datagram)) || !self.arms.exists(a, has(a.guest) || has(a.sameStack))",
        message: "datagrams are sent by native ends only: leave the other arms out, or write this workload in a campaign of \
                  its own",
        expression: None,
        field: Some(".workloads"),
    },
    Rule {
        at: &["spec"],
        rule: "!self.workloads.exists(w, has(w.datagram)) || \
               !self.arms.exists(a, has(a.native) && has(a.native.program) && a.native.program == 'iperf3')",
        message: "iperf3 tells no loss of an interval within its run: leave the arm with iperf3 out",
        expression: None,
        field: Some(".workloads"),
    },
    Rule {
        at: &["spec.workloads[].datagram"],
        rule: "has(self.size) || has(self.frameSize) || has(self.imix) || has(self.sizes)",
        message: "has no size: write `size: 512B` (UDP payload) or `frameSize: 64B` (Ethernet frame)",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.workloads[].datagram"],
        rule: "[has(self.size), has(self.frameSize), has(self.imix), has(self.sizes)].filter(is, is).size() <= 1",
        message: "has several sizes: keep one of size, frameSize, imix, sizes",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.workloads[].datagram"],
        rule: "!has(self.batch) || (self.batch >= 1 && self.batch <= 1024)",
        message: "is out of range: write 1 to 1024",
        expression: None,
        field: Some(".batch"),
    },
    Rule {
        at: &["spec.workloads[].datagram"],
        rule: "!has(self.lossSearch) || !has(self.directions) || !self.directions.exists(d, d == 'both')",
        message: "searches of both ways at once would find each other's load: write `[send, receive]`",
        expression: None,
        field: Some(".directions"),
    },
    Rule {
        at: DIRECTIONS,
        rule: "size(self) > 0",
        message: "is empty: write `[send, receive]` or one of them",
        expression: None,
        field: None,
    },
    Rule {
        at: DIRECTIONS,
        rule: "self.all(a, self.exists_one(b, b == a))",
        message: "a direction is listed twice",
        expression: Some("'`' + self[0] + '` is listed twice'"),
        field: None,
    },
    Rule {
        at: SIZES,
        rule: concat!("self.matches(", bytes!(), ")"),
        message: "is no size: write a number and its unit, such as `64KiB` or `1500B`",
        expression: Some(
            "'`' + self + '` is no size: write a number and its unit, such as `64KiB` or `1500B`'",
        ),
        field: None,
    },
    Rule {
        at: SPANS,
        rule: concat!("self.matches(", span!(), ")"),
        message: "is no duration: write a number and its unit, such as `500ms` or `2s`",
        expression: Some(
            "'`' + self + '` is no duration: write a number and its unit, such as `500ms` or `2s`'",
        ),
        field: None,
    },
    Rule {
        at: SHARES,
        rule: concat!("self.matches(", percent!(), ")"),
        message: "is no percentage: write a number and its unit, such as `10%`",
        expression: Some("'`' + self + '` is no percentage: write a number and its unit, such as `10%`'"),
        field: None,
    },
    Rule {
        at: RATES,
        rule: concat!("self.matches(", rate!(), ")"),
        message: "is no link rate in bits per second: write a number and its unit, such as `100Mbit` or `10Gbit`",
        expression: Some(
            "'`' + self + '` is no link rate in bits per second: write a number and its unit, such as `100Mbit` or \
             `10Gbit`'",
        ),
        field: None,
    },
];
