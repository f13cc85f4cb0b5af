//! Rules for workloads, made of the kinds of traffic that the schema has: a new kind has them too.

use serde_json::Value;
use toll_protocol::campaign::MAX_TRIALS;
use toll_protocol::campaign::limits::HOSTS;
use toll_protocol::traffic::{EXAMPLES, IPERF3_STEP};
use toll_protocol::units::Quantity;

use super::made::{Rule, matches_of};

// What `CRUMBS` is of.
const _: () = assert!(IPERF3_STEP.0 == 100_000_000);
/// What no multiple of 100 ms is, for all that CEL can't see in a duration, which it cuts to whole milliseconds: a
/// figure below the third decimal of a second or minute, below the fifth of an hour, or any below a millisecond.
const CRUMBS: &str = concat!(
    r"(\.[0-9]*[1-9][0-9]* *(ns|us|ms)|[1-9][0-9]{0,5}(\.[0-9]*)? *ns|[1-9][0-9]{0,2}(\.[0-9]*)? *us",
    r"|\.[0-9]{3}[0-9]*[1-9][0-9]* *[sm]|\.[0-9]{5}[0-9]*[1-9][0-9]* *h) *$"
);

/// The rules for the workloads of a spec with this schema.
pub(super) fn rules(spec: &Value) -> Vec<Rule> {
    let workload = &spec["properties"]["workloads"]["items"]["properties"];
    let kinds: Vec<Kind<'_>> = workload
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| *name != "name")
        .map(|(name, schema)| Kind { name, fields: &schema["properties"] })
        .collect();
    let mut rules = vec![nothing(&kinds), iperf3(&kinds), trials(&kinds)];
    if kinds.len() > 1 {
        rules.push(several(&kinds));
    }
    rules
}

struct Kind<'s> {
    name: &'s str,
    fields: &'s Value,
}

/// `has(self.stream)` of each kind.
fn has(kinds: &[Kind<'_>]) -> Vec<String> {
    kinds.iter().map(|kind| format!("has(self.{})", kind.name)).collect()
}

fn nothing(kinds: &[Kind<'_>]) -> Rule {
    let examples = EXAMPLES.join("`, `");
    Rule {
        at: "spec.workloads[]".into(),
        rule: has(kinds).join(" || "),
        message: format!("a workload is nothing yet: write `{examples}`"),
        expression: Some(format!("'workload `' + self.name + '` is nothing yet: write `{examples}`'")),
        field: None,
    }
}

fn several(kinds: &[Kind<'_>]) -> Rule {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
    Rule {
        at: "spec.workloads[]".into(),
        rule: format!("[{}].filter(is, is).size() <= 1", has(kinds).join(", ")),
        message: format!("a workload is several things: keep one of {}", names.join(", ")),
        expression: Some("'workload `' + self.name + '` is several things: keep one'".into()),
        field: None,
    }
}

fn iperf3(kinds: &[Kind<'_>]) -> Rule {
    let odd = |kind: &Kind<'_>, field: &str| {
        let (kind, value) = (kind.name, format!("w.{}.{field}", kind.name));
        let is_span = matches_of(Quantity::Span, &value);
        format!(
            "(has(w.{kind}) && has({value}) && {is_span} && (duration({value}.replace(' ', '')).getMilliseconds() % 100 \
             != 0 || {value}.matches(r'{CRUMBS}')))"
        )
    };
    let timed = kinds.iter().filter(|kind| kind.fields["warmUp"].is_object());
    let odd: Vec<String> = timed.flat_map(|kind| [odd(kind, "warmUp"), odd(kind, "duration")]).collect();
    Rule {
        at: "spec".into(),
        rule: format!(
            "!self.arms.exists(a, has(a.native) && has(a.native.program) && a.native.program == 'iperf3') || \
             !self.workloads.exists(w, {})",
            odd.join(" || ")
        ),
        message: format!(
            "warmUp and duration must be multiples of {IPERF3_STEP}, as an arm with iperf3 needs"
        ),
        expression: None,
        field: Some(".workloads"),
    }
}

fn trials(kinds: &[Kind<'_>]) -> Rule {
    let directed = kinds.iter().filter(|kind| kind.fields["directions"].is_object());
    let directions: String = directed
        .map(|kind| format!("has(w.{0}) && has(w.{0}.directions) ? size(w.{0}.directions) : ", kind.name))
        .collect();
    let hosts = HOSTS.end();
    Rule {
        at: "spec".into(),
        rule: format!(
            "!has(self.hosts.lab) || self.hosts.lab.count > {hosts} || self.hosts.lab.count * \
             (has(self.pairs) && self.pairs == 'ring' && self.hosts.lab.count > 2 ? 2 : self.hosts.lab.count - 1) / 2 * \
             self.arms.map(a, has(a.native) ? 1 : has(a.peers) ? size(a.peers) : has(self.peers) ? \
             size(self.peers) : 1).sum() * self.workloads.map(w, {directions}2).sum() * \
             (has(self.blocks) ? self.blocks : 5) <= {MAX_TRIALS}"
        ),
        message: format!("has more than {MAX_TRIALS} trials: fewer blocks, arms or hosts"),
        expression: None,
        field: None,
    }
}
