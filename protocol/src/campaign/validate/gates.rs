//! Gates: which cells, and what must hold of them.

use std::fmt::Display;

use super::{Findings, below, count, peer, schema};
use crate::figure::{EXITS_PER_MEGABYTE, FIRST_FRAME, Figure, GOODPUT, MEMORY};
use crate::findings::Step::{self, Field, Index};
use crate::result::{Gate, GateCondition, GateSelector, Relation, Subject};
use crate::units::Percent;

const MAX_GATES: usize = 64;
/// Further apart than this nothing is equal.
const WIDEST: Percent = Percent::from_fraction(0.5);

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
        if let Some(workload) = cells.workload.as_ref().filter(|name| !known(name)) {
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
    if let Some(baseline) = spec.arms.iter().find(|arm| arm.native.is_some()) {
        for (index, gate) in spec.gates.iter().enumerate() {
            if gate.toll.is_some() && gate.cells.arm.as_ref() == Some(&baseline.name) {
                let path = [Field("spec"), Field("gates"), Index(index), Field("cells"), Field("arm")];
                let message = format!(
                    "`{}` is the baseline that tolls are relative to: name another arm",
                    baseline.name
                );
                out.add(&path, message);
            }
        }
    }
    let tolls = gates.iter().any(|gate| gate.condition.subject == Subject::Toll);
    if tolls && !spec.arms.iter().any(|arm| arm.native.is_some()) {
        out.add(&[Field("spec"), Field("gates")], "a toll is relative to native: add an arm `native: {}`");
    }
    gates
}

fn known_arm(spec: &schema::Spec, name: Option<&String>, path: &[Step], out: &mut Findings) {
    if let Some(arm) = name.filter(|arm| !spec.arms.iter().any(|other| other.name == **arm)) {
        out.add(path, format!("there is no arm `{arm}`"));
    }
}

fn condition(
    spec: &schema::Spec,
    written: &schema::Gate,
    path: &[Step],
    out: &mut Findings,
) -> Option<GateCondition> {
    let schema::Gate { cells, toll, goodput, ratio, exits_per_megabyte, first_frame, memory } = written;
    let at_most = |figure: &'static Figure, number, text: &dyn Display| {
        Some(GateCondition::on_median(figure, Relation::AtMost, number, text))
    };
    let conditions = [
        toll.as_ref().map(|limit| Some(GateCondition::toll_at_most(&GOODPUT, limit.at_most))),
        goodput.as_ref().map(|limit| {
            let limit = limit.at_least;
            Some(GateCondition::on_median(&GOODPUT, Relation::AtLeast, limit.0 as f64 / 8.0, &limit))
        }),
        ratio.as_ref().map(|limit| self::ratio(spec, cells, limit, &below(path, &[Field("ratio")]), out)),
        exits_per_megabyte.as_ref().map(|limit| {
            let limit = exits(limit.at_most, path, out);
            at_most(&EXITS_PER_MEGABYTE, limit, &limit)
        }),
        first_frame.as_ref().map(|limit| at_most(&FIRST_FRAME, limit.at_most.seconds(), &limit.at_most)),
        memory.as_ref().map(|limit| at_most(&MEMORY, limit.at_most.0 as f64, &limit.at_most)),
    ];
    let mut written = conditions.into_iter().flatten();
    if let (Some(condition), None) = (written.next(), written.next()) {
        return condition;
    }
    out.add(
        path,
        "must be exactly one condition: `toll: {atMost: 10%}`, `goodput: {atLeast: 1Gbit}`, `ratio: {to: ARM, atLeast: \
         95%}`, `ratio: {to: ARM, within: 2%}`, `exitsPerMegabyte: {atMost: 1}`, `firstFrame: {atMost: 5ms}` or `memory: \
         {atMost: 2MiB}`",
    );
    None
}

fn ratio(
    spec: &schema::Spec,
    cells: &schema::Cells,
    limit: &schema::RatioLimit,
    path: &[Step],
    out: &mut Findings,
) -> Option<GateCondition> {
    let schema::RatioLimit { to, at_least, within } = limit;
    known_arm(spec, Some(to), &below(path, &[Field("to")]), out);
    if cells.arm.as_ref() == Some(to) {
        out.add(&below(path, &[Field("to")]), format!("`{to}` relative to itself is 100%: name another arm"));
    }
    let to = to.clone();
    match (*at_least, *within) {
        (Some(limit), None) => Some(GateCondition::on_ratio(&GOODPUT, to, Relation::AtLeast, limit)),
        (None, Some(within)) => {
            if !(within.fraction() > 0.0 && within.fraction() <= WIDEST.fraction()) {
                let message = format!("{within} is out of range: write more than 0% and at most {WIDEST}");
                out.add(&below(path, &[Field("within")]), message);
            }
            Some(GateCondition::on_ratio(&GOODPUT, to, Relation::Within, within))
        }
        _ => {
            out.add(path, "must say exactly one of `atLeast: 95%` and `within: 2%`");
            None
        }
    }
}

/// The limit; what is wrong with it is told.
fn exits(limit: f64, path: &[Step], out: &mut Findings) -> f64 {
    if !(limit.is_finite() && limit >= 0.0) {
        let path = below(path, &[Field("exitsPerMegabyte"), Field("atMost")]);
        out.add(&path, format!("{limit} is out of range: write 0 or more"));
    }
    limit
}
