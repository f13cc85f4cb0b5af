//! Gates: which cells, and what must hold of them.

use super::Step::{self, Field, Index};
use super::{Findings, below, count, peer, schema};
use crate::relation::Relation;
use crate::result::{Gate, GateCondition, GateSelector, Limit, Subject};
use crate::units::Percent;
use schema::gate::{Condition, FORMS, Limited};

const MAX_GATES: usize = 64;

pub(super) fn gates(spec: &schema::Spec, out: &mut Findings) -> Vec<Gate> {
    if !spec.gates.is_empty()
        && !count(spec.gates.len(), MAX_GATES, "gate", &[Field("spec"), Field("gates")], out)
    {
        return Vec::new();
    }
    let mut gates = Vec::new();
    for (index, written) in spec.gates.iter().enumerate() {
        let path = [Field("spec"), Field("gates"), Index(index)];
        let cells = &written.cells;
        known_arm(spec, cells.arm.as_ref(), &below(&path, &[Field("cells"), Field("arm")]), out);
        let known = |name: &String| spec.workloads.iter().any(|other| other.name == *name);
        let unclear = out.has_unclear_names("workloads", spec.workloads.len());
        if let Some(workload) = cells.workload.as_ref().filter(|name| !unclear && !known(name)) {
            out.add(
                &below(&path, &[Field("cells"), Field("workload")]),
                format!("there is no workload `{workload}`"),
            );
        }
        let Some(condition) = condition(spec, written, &path, out) else { continue };
        let cells = GateSelector {
            arm: cells.arm.clone(),
            workload: cells.workload.clone(),
            direction: cells.direction,
            peer: cells.peer.map(peer),
        };
        gates.push(Gate { cells, condition });
    }
    tolls(spec, out);
    gates
}

/// A toll is relative to the first native arm.
fn tolls(spec: &schema::Spec, out: &mut Findings) {
    let arms = [Field("spec"), Field("arms")];
    let unclear = (0..spec.arms.len()).find(|arm| out.is_unclear(&below(&arms, &[Index(*arm)])));
    let baseline = spec.arms.iter().position(|arm| arm.native.is_some());
    // An arm before it that can't be read may be the baseline.
    let known = unclear.is_none_or(|unclear| baseline.is_some_and(|baseline| baseline < unclear));
    if !known {
        return;
    }
    let baseline = baseline.and_then(|baseline| spec.arms.get(baseline));
    for (index, gate) in spec.gates.iter().enumerate() {
        if !gate.conditions.iter().any(|condition| condition.form.of == Limited::Toll) {
            continue;
        }
        let path = [Field("spec"), Field("gates"), Index(index), Field("cells"), Field("arm")];
        match baseline {
            Some(baseline) if gate.cells.arm.as_ref() == Some(&baseline.name) => {
                let message = format!(
                    "`{}` is the baseline that tolls are relative to: name another arm",
                    baseline.name
                );
                out.add(&path, message);
            }
            Some(_) => {}
            None => {
                let message = "a toll is relative to native: add an arm `native: {}`";
                out.add(&[Field("spec"), Field("gates")], message);
                break;
            }
        }
    }
}

fn known_arm(spec: &schema::Spec, name: Option<&String>, path: &[Step], out: &mut Findings) {
    let unclear = out.has_unclear_names("arms", spec.arms.len());
    if let Some(arm) = name.filter(|arm| !unclear && !spec.arms.iter().any(|other| other.name == **arm)) {
        out.add(path, format!("there is no arm `{arm}`"));
    }
}

fn condition(
    spec: &schema::Spec,
    written: &schema::Gate,
    path: &[Step],
    out: &mut Findings,
) -> Option<GateCondition> {
    if written.conditions.len() != 1 {
        out.add_missing(path, conditions_wanted());
    }
    let conditions: Vec<_> =
        written.conditions.iter().map(|condition| one(spec, written, condition, path, out)).collect();
    conditions.into_iter().next()?
}

/// What must be written in a gate, for who wrote something else.
pub fn conditions_wanted() -> String {
    let examples: Vec<String> = FORMS.iter().map(|form| format!("`{}`", form.example)).collect();
    format!("must be exactly one condition: {}", examples.join(", "))
}

fn one(
    spec: &schema::Spec,
    gate: &schema::Gate,
    condition: &'_ Condition,
    path: &[Step],
    out: &mut Findings,
) -> Option<GateCondition> {
    let Condition { form, figure, to, limits } = condition;
    let path = below(path, &[Field(&form.field)]);
    if let Some(to) = to {
        known_arm(spec, Some(to), &below(&path, &[Field("to")]), out);
        if gate.cells.arm.as_ref() == Some(to) {
            let message = format!("`{to}` relative to itself is 100%: name another arm");
            out.add(&below(&path, &[Field("to")]), message);
        }
    }
    for (relation, limit) in limits {
        if let Some(why) = out_of_range(form.quantity.is_none(), relation, limit) {
            out.add(&below(&path, &[Field(relation.id)]), format!("{} is out of range: {why}", limit.text));
        }
    }
    let [(relation, limit)] = &limits[..] else {
        out.add_missing(&path, form.relations_wanted());
        return None;
    };
    let subject = match form.of {
        Limited::Toll => Subject::Toll,
        Limited::Ratio => Subject::RatioTo(to.clone()?),
        Limited::Median(_) => Subject::Median,
    };
    Some(GateCondition { figure, subject, relation, limit: limit.clone() })
}

/// What a limit must be that is none of such a relation.
fn out_of_range(is_bare: bool, relation: &Relation, limit: &Limit) -> Option<String> {
    match relation.widest {
        Some(widest) if !(limit.number > 0.0 && limit.number <= widest) => {
            Some(format!("write more than 0% and at most {}", Percent::from_fraction(widest)))
        }
        None if is_bare && limit.number < 0.0 => Some("write 0 or more".into()),
        Some(_) | None => None,
    }
}
