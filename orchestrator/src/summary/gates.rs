//! Gates: each cell that one selects, judged by the interval of its figure.

use toll_protocol::report::EndReport;
use toll_protocol::result::{
    ArmSummary, CellKey, CellResult, Gate, GateCondition, GateQuantity, GateResult, Peer, Verdict,
};
use toll_protocol::trial::EndKind;
use toll_protocol::units::Span;

use super::{blocks, cell_of_arm, exits_per_megabyte, generator};
use crate::format;
use crate::statistics::{at_least, at_most, equivalent, median_estimate, paired_ratio};

/// What gates are applied to.
pub(super) struct Whole<'a> {
    pub seed: u64,
    pub arms: &'a [ArmSummary],
    pub cells: &'a [CellResult],
}

/// A figure, and its interval.
type Figure = (Option<f64>, Option<[f64; 2]>);

/// The gate on each cell that it selects. A toll is of virtual arms, and a ratio of arms to another: a gate on either passes
/// over the cells that it can't be of, unless its selector names them.
pub(super) fn apply(gate: &Gate, of: &Whole<'_>) -> Vec<GateResult> {
    let is_native = |key: &CellKey| {
        of.arms.iter().any(|arm| arm.name == key.arm && matches!(arm.kind, EndKind::Native { .. }))
    };
    let passes_over = |key: &CellKey| match &gate.condition {
        GateCondition::RatioAtLeast { to, .. } | GateCondition::EquivalentTo { to, .. } => key.arm == *to,
        GateCondition::GoodputAtLeast(_) => false,
        // Of native ends there is no such figure.
        _ => is_native(key),
    };
    let results: Vec<GateResult> = of
        .cells
        .iter()
        .filter(|cell| gate.cells.selects(&cell.key))
        .filter(|cell| gate.cells.arm.is_some() || !passes_over(&cell.key))
        .map(|cell| judge(&gate.condition, cell, of))
        .collect();
    if results.is_empty() {
        let condition = describe(&gate.condition);
        let quantity = quantity(&gate.condition);
        let verdict = Verdict::Inconclusive;
        return vec![GateResult { cell: None, condition, quantity, figure: None, ci95: None, verdict }];
    }
    results
}

fn judge(condition: &GateCondition, cell: &CellResult, of: &Whole<'_>) -> GateResult {
    let ((figure, ci95), verdict) = match condition {
        GateCondition::TollAtMost(limit) => {
            let ratio = cell.ratio_to_native;
            let ci95 = ratio.and_then(|ratio| ratio.ci95).map(|[lower, upper]| [1.0 - upper, 1.0 - lower]);
            ((ratio.map(|ratio| 1.0 - ratio.estimate), ci95), at_most(ci95, limit.fraction()))
        }
        GateCondition::GoodputAtLeast(limit) => {
            let goodput = cell.goodput_bytes_per_second;
            let ci95 = goodput.and_then(|goodput| goodput.ci95).map(|ci95| ci95.map(|limit| limit * 8.0));
            ((goodput.map(|goodput| goodput.median * 8.0), ci95), at_least(ci95, limit.0 as f64))
        }
        GateCondition::RatioAtLeast { to, limit } => {
            let ratio = ratio(cell, to, of);
            (ratio, at_least(ratio.1, limit.fraction()))
        }
        GateCondition::EquivalentTo { to, within } => {
            let ratio = ratio(cell, to, of);
            (ratio, equivalent(ratio.1, within.fraction()))
        }
        GateCondition::ExitsPerMegabyteAtMost(limit) => {
            let exits = median(cell, "exits", of, exits_per_megabyte);
            (exits, at_most(exits.1, *limit))
        }
        GateCondition::FirstFrameAtMost(limit) => {
            let first = median(cell, "first-frame", of, |end| end.start_to_first_frame.map(Span::seconds));
            (first, at_most(first.1, limit.seconds()))
        }
        GateCondition::MemoryAtMost(limit) => {
            let memory = median(cell, "memory", of, |end| Some(end.overhead?.0 as f64));
            (memory, at_most(memory.1, limit.0 as f64))
        }
    };
    let quantity = quantity(condition);
    let condition = describe(condition);
    GateResult { cell: Some(cell.key.clone()), condition, quantity, figure, ci95, verdict }
}

/// Goodput of `cell` relative to that of the arm `to`: with the same peer, or a native one, as only native arms have no other.
fn ratio(cell: &CellResult, to: &str, of: &Whole<'_>) -> Figure {
    let peers = [cell.key.peer, Peer::Native, Peer::SameArm];
    let Some(other) = cell_of_arm(to, peers, of.cells, &cell.key) else { return (None, None) };
    let estimate =
        paired_ratio(&blocks(cell, other), &mut generator(of.seed, &cell.key, &format!("ratio to {to}")));
    (estimate.map(|ratio| ratio.estimate), estimate.and_then(|ratio| ratio.ci95))
}

/// Median of a figure of the arm's ends.
fn median(
    cell: &CellResult,
    name: &str,
    of: &Whole<'_>,
    figure: impl Fn(&EndReport) -> Option<f64>,
) -> Figure {
    let figures: Vec<f64> = cell.runs.iter().filter_map(|run| figure(run.a.as_ref()?)).collect();
    let estimate = median_estimate(&figures, &mut generator(of.seed, &cell.key, name));
    (estimate.map(|estimate| estimate.median), estimate.and_then(|estimate| estimate.ci95))
}

const fn quantity(condition: &GateCondition) -> GateQuantity {
    match condition {
        GateCondition::TollAtMost(_) => GateQuantity::Toll,
        GateCondition::GoodputAtLeast(_) => GateQuantity::Goodput,
        GateCondition::RatioAtLeast { .. } | GateCondition::EquivalentTo { .. } => GateQuantity::Ratio,
        GateCondition::ExitsPerMegabyteAtMost(_) => GateQuantity::ExitsPerMegabyte,
        GateCondition::FirstFrameAtMost(_) => GateQuantity::FirstFrame,
        GateCondition::MemoryAtMost(_) => GateQuantity::Memory,
    }
}

fn describe(condition: &GateCondition) -> String {
    match condition {
        GateCondition::TollAtMost(limit) => format!("toll at most {limit}"),
        GateCondition::GoodputAtLeast(limit) => {
            format!("goodput at least {}", format::bit_rate(limit.0 as f64))
        }
        GateCondition::RatioAtLeast { to, limit } => format!("at least {limit} of {to}"),
        GateCondition::EquivalentTo { to, within } => format!("equal to {to} within {within}"),
        GateCondition::ExitsPerMegabyteAtMost(limit) => format!("exits/MB at most {limit}"),
        GateCondition::FirstFrameAtMost(limit) => format!("first frame after {limit} at most"),
        GateCondition::MemoryAtMost(limit) => format!("memory beside the guest's at most {limit}"),
    }
}
