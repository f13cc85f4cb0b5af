//! Rules for what stands between an adapter and its port; limits and words are those of
//! `protocol/src/campaign/validate/decorators.rs`.

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

pub(in super::super) const RULES: &[Rule] = &[
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
        rule: concat!("self.matches(", percent!(), ")"),
        message: "is no percentage: write a number and its unit, such as `10%`",
        expression: Some("'`' + self + '` is no percentage: write a number and its unit, such as `10%`'"),
        field: None,
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
        rule: concat!("self.matches(", rate!(), ")"),
        message: "is no link rate in bits per second: write a number and its unit, such as `100Mbit` or `10Gbit`",
        expression: Some(
            "'`' + self + '` is no link rate in bits per second: write a number and its unit, such as `100Mbit` or \
             `10Gbit`'",
        ),
        field: None,
    },
    Rule {
        at: RATES,
        rule: concat!(
            "!self.matches(",
            rate!(),
            ") || [",
            number!(),
            " * (self.contains('Gbit') ? 1e9 : self.contains('Mbit') ? 1e6 : self.contains('kbit') ? 1e3 : 1.0)]\
             .all(n, n >= 64000.0 && n <= 1e12)"
        ),
        message: "is out of range: write 64kbit to 1000Gbit",
        expression: Some("self + ' is out of range: write 64kbit to 1000Gbit'"),
        field: None,
    },
    Rule {
        at: DELAYS,
        rule: concat!("self.matches(", span!(), ")"),
        message: "is no duration: write a number and its unit, such as `500ms` or `2s`",
        expression: Some(
            "'`' + self + '` is no duration: write a number and its unit, such as `500ms` or `2s`'",
        ),
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
        rule: concat!("self.matches(", bytes!(), ")"),
        message: "is no size: write a number and its unit, such as `64KiB` or `1500B`",
        expression: Some(
            "'`' + self + '` is no size: write a number and its unit, such as `64KiB` or `1500B`'",
        ),
        field: None,
    },
    Rule {
        at: LIMITS,
        rule: concat!(
            "!self.matches(",
            bytes!(),
            ") || [",
            number!(),
            " * (self.contains('GiB') ? 1073741824.0 : self.contains('GB') ? 1e9 : self.contains('MiB') ? 1048576.0 : \
             self.contains('MB') ? 1e6 : self.contains('KiB') ? 1024.0 : self.contains('kB') ? 1e3 : 1.0)]\
             .all(n, n >= 65536.0 && n <= 1073741824.0)"
        ),
        message: "is out of range: write 64KiB to 1GiB",
        expression: Some("self + ' is out of range: write 64KiB to 1GiB'"),
        field: None,
    },
];
