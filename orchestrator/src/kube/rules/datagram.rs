//! What datagrams must be that looks at several values at once (`protocol/src/traffic/datagram/manifest.rs`). Sizes against the MTU, rates
//! against the link and shares that add up are left to the service.

use super::{Bound, Rule};

pub(super) const BOUNDS: &[Bound] =
    &[Bound { at: &["spec.workloads[].datagram.sizes"], keyword: "maxItems", limit: 100 }];

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
        rule: "!has(self.lossSearch) || !has(self.directions) || !self.directions.exists(d, d == 'both')",
        message: "searches of both ways at once would find each other's load: write `[send, receive]`",
        expression: None,
        field: Some(".directions"),
    },
];
