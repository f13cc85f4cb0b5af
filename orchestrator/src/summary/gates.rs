//! Gates: each cell that one selects, judged by the interval of its figure.

use toll_protocol::figure::{Ends, Figure, Unit};
use toll_protocol::result::{
    ArmSummary, CellKey, CellResult, Compared, Gate, GateCondition, GateResult, Peer, Subject, Verdict,
};

use super::{blocks, cell_of_arm, generator};
use crate::statistics::paired_ratio;

/// What gates are applied to.
pub(super) struct Whole<'a> {
    pub seed: u64,
    pub arms: &'a [ArmSummary],
    pub cells: &'a [CellResult],
}

/// A number, and its interval.
type Estimate = (Option<f64>, Option<[f64; 2]>);

/// The gate on each cell that it selects. A toll is of virtual arms, a ratio of arms to another, and some figures virtual arms
/// alone have: a gate passes over the cells that it can't be of, unless its selector names their arm.
pub(super) fn apply(gate: &Gate, of: &Whole<'_>) -> Vec<GateResult> {
    let GateCondition { figure, subject, .. } = &gate.condition;
    let is_native = |key: &CellKey| of.arms.iter().any(|arm| arm.name == key.arm && arm.kind.is_native());
    let passes_over = |key: &CellKey| match subject {
        Subject::RatioTo(arm) => key.arm == *arm,
        Subject::Toll => is_native(key),
        Subject::Median => figure.ends == Ends::Virtual && is_native(key),
    };
    let results: Vec<GateResult> = of
        .cells
        .iter()
        .filter(|cell| gate.cells.selects(&cell.key))
        .filter(|cell| gate.cells.arm.is_some() || !passes_over(&cell.key))
        .map(|cell| judge(&gate.condition, cell, of))
        .collect();
    if results.is_empty() {
        let nothing = result(&gate.condition, None, (None, None), Verdict::Inconclusive);
        return vec![nothing];
    }
    results
}

fn judge(condition: &GateCondition, cell: &CellResult, of: &Whole<'_>) -> GateResult {
    let GateCondition { figure, subject, relation, limit } = condition;
    let estimate = match subject {
        Subject::Median => {
            let estimate = cell.estimate(figure);
            (estimate.map(|estimate| estimate.median), estimate.and_then(|estimate| estimate.ci95))
        }
        Subject::Toll => {
            let ratio = cell.to_native(figure);
            let ci95 = ratio.and_then(|ratio| ratio.ci95).map(|[lower, upper]| [1.0 - upper, 1.0 - lower]);
            (ratio.map(|ratio| 1.0 - ratio.estimate), ci95)
        }
        Subject::RatioTo(arm) => ratio(figure, cell, arm, of),
    };
    let verdict = relation.verdict(estimate.1, limit.number);
    result(condition, Some(cell.key.clone()), estimate, verdict)
}

fn result(
    condition: &GateCondition,
    cell: Option<CellKey>,
    (value, ci95): Estimate,
    verdict: Verdict,
) -> GateResult {
    let compared = match condition.subject {
        Subject::Median => Compared::Median,
        Subject::Toll => Compared::Toll,
        Subject::RatioTo(_) => Compared::Ratio,
    };
    let unit = match compared {
        Compared::Median => condition.figure.unit,
        Compared::Toll | Compared::Ratio => Unit::Fraction,
    };
    let figure = condition.figure.into();
    GateResult { cell, condition: condition.to_string(), figure, compared, value, unit, ci95, verdict }
}

/// A figure of `cell` relative to that of the arm `to`: with the same peer, or a native one, as only native arms have no other.
fn ratio(figure: &Figure, cell: &CellResult, to: &str, of: &Whole<'_>) -> Estimate {
    let peers = [cell.key.peer, Peer::Native, Peer::SameArm];
    let Some(other) = cell_of_arm(to, peers, of.cells, &cell.key) else { return (None, None) };
    let generator = &mut generator(of.seed, &cell.key, &format!("{} to {to}", figure.id));
    let estimate = paired_ratio(&blocks(figure, cell, other), generator);
    (estimate.map(|ratio| ratio.estimate), estimate.and_then(|ratio| ratio.ci95))
}
