//! Rules for gates; limits and words are those of `protocol/src/campaign/validate/gates.rs`. That a quantity is one at all, and
//! which arms and workloads a gate may name, is in `table`.

use super::Rule;

pub(in super::super) const RULES: &[Rule] = &[
    Rule {
        at: &["spec.gates[]"],
        rule: "[has(self.toll), has(self.goodput), has(self.ratio), has(self.exitsPerMegabyte), has(self.firstFrame), \
               has(self.memory)].filter(is, is).size() == 1",
        message: "must be exactly one condition: `toll: {atMost: 10%}`, `goodput: {atLeast: 1Gbit}`, `ratio: {to: ARM, \
                  atLeast: 95%}`, `ratio: {to: ARM, within: 2%}`, `exitsPerMegabyte: {atMost: 1}`, `firstFrame: {atMost: \
                  5ms}` or `memory: {atMost: 2MiB}`",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.gates[].ratio"],
        rule: "has(self.atLeast) != has(self.within)",
        message: "must say exactly one of `atLeast: 95%` and `within: 2%`",
        expression: None,
        field: None,
    },
    Rule {
        at: &["spec.gates[].ratio.within"],
        rule: concat!(
            "!self.matches(",
            percent!(),
            ") || [double(self.replace('+', '').replace('%', '').trim())].all(n, n > 0.0 && n <= 50.0)"
        ),
        message: "is out of range: write more than 0% and at most 50%",
        expression: Some("self + ' is out of range: write more than 0% and at most 50%'"),
        field: None,
    },
    Rule {
        at: &["spec.gates[].exitsPerMegabyte.atMost"],
        rule: "self >= 0.0",
        message: "is out of range: write 0 or more",
        expression: None,
        field: None,
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
