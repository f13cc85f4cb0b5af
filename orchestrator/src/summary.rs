//! From the ledger to `result.json`: (header, records, gates) -> [`CampaignResult`]. Pure: the same ledger gives
//! the same document, intervals included, as each cell's bootstrap is seeded from the campaign's seed and the
//! cell's own key.
//!
//! ```text
//! planned trials + records -> runs -> cells -> ratios (against the baseline's cell) -> gates
//! ```
//! Every planned trial is a run of exactly one cell, whatever became of it.

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use toll_protocol::document::{ApiVersion, ResultKind};
use toll_protocol::figure::{Compare, Figure, FigureId};
use toll_protocol::latencies::Latencies;
use toll_protocol::report::{EndReport, Flag};
use toll_protocol::result::{
    ArmSummary, CampaignResult, CauseSummary, CellKey, CellResult, FigureEstimate, Gate, Outcome, Pair, Peer,
    Provenance, Run, RunCounts, RunStatus, TrialRecord,
};
use toll_protocol::traffic::TrafficReport;
use toll_protocol::trial::{Direction, TrialId};

use crate::ledger::{LedgerHeader, PlannedTrial, status};
use crate::statistics::{PairedBlock, median_estimate, paired_difference, paired_ratio};

mod gates;
#[cfg(test)]
mod tests;

/// Reason of a planned trial that has no record.
pub const NOT_REACHED: &str = "not reached";

/// Bytes of Ethernet around an IP packet on the wire: preamble and SFD 8, header 14, FCS 4, interpacket gap 12
/// (IEEE 802.3, 3.1.1 and 4.4.2).
const ETHERNET_OVERHEAD: f64 = 38.0;
/// IPv4 header (RFC 791, 3.1) and TCP header without options (RFC 9293, 3.1).
const TCP_IP_HEADERS: f64 = 40.0;
/// From this share of what the link allows on, the link set the figure.
const LINK_BOUND_SHARE: f64 = 0.95;

/// Why header and records don't belong together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SummaryError {
    /// Two planned trials have one id.
    #[error("trial {0} is planned twice")]
    PlannedTwice(TrialId),
    /// Two records have one id.
    #[error("trial {0} is recorded twice")]
    RecordedTwice(TrialId),
    /// A record is of no planned trial, or of another cell, block or position than the plan's.
    #[error("the record of trial {0} is not of the campaign's plan")]
    NotOfThePlan(TrialId),
    /// More than one arm is the baseline.
    #[error("both `{0}` and `{1}` are the native baseline; at most one arm can be")]
    TwoBaselines(String, String),
    /// A cell's arm is not among the campaign's.
    #[error("a cell is of the arm `{0}`, which the campaign doesn't have")]
    UnknownArm(String),
}

/// The result of a campaign. Trials without a record are skipped runs with the reason [`NOT_REACHED`].
///
/// # Errors
/// [`SummaryError`], if `records` are not of `header`'s plan, or the plan contradicts itself.
pub fn summarise(
    header: &LedgerHeader,
    records: &[TrialRecord],
    gates: &[Gate],
) -> Result<CampaignResult, SummaryError> {
    let mut baselines = header.arms.iter().filter(|arm| arm.baseline);
    if let (Some(first), Some(second)) = (baselines.next(), baselines.next()) {
        return Err(SummaryError::TwoBaselines(first.name.clone(), second.name.clone()));
    }
    let mut cells = cells_of(header, records)?;
    let compared: Vec<_> = cells.iter().map(|cell| compare(header, &cells, cell)).collect();
    for (cell, figures) in cells.iter_mut().zip(compared) {
        cell.figures = figures;
    }
    let of = gates::Whole { seed: header.seed, arms: &header.arms, cells: &cells };
    let gates = gates.iter().flat_map(|gate| gates::apply(gate, &of)).collect();
    Ok(CampaignResult {
        api_version: ApiVersion,
        kind: ResultKind,
        campaign: header.campaign.clone(),
        seed: header.seed,
        manifest: header.manifest.clone(),
        provenance: header.provenance.clone(),
        arms: header.arms.clone(),
        cells,
        gates,
    })
}

/// The figures of `cell`, set beside those of the baseline's cell.
fn compare(
    header: &LedgerHeader,
    cells: &[CellResult],
    cell: &CellResult,
) -> BTreeMap<FigureId, FigureEstimate> {
    let mut figures = cell.figures.clone();
    let Some(baseline) = baseline_cell(&header.arms, cells, &cell.key) else { return figures };
    for (id, estimate) in &mut figures {
        let blocks = || blocks(id.figure(), cell, baseline);
        let generator = |what| generator(header.seed, &cell.key, &format!("{id} {what} native"));
        match id.figure().compare {
            Compare::Ratio => estimate.to_native = paired_ratio(&blocks(), &mut generator("to")),
            Compare::Difference => {
                estimate.over_native = paired_difference(&blocks(), &mut generator("over"));
            }
            Compare::None => {}
        }
    }
    figures
}

/// The cell that the ratio of `key` is taken against: the baseline arm between the same hosts, with the same
/// workload and direction. `None` for the baseline itself.
pub fn baseline_cell<'a>(
    arms: &[ArmSummary],
    cells: &'a [CellResult],
    key: &CellKey,
) -> Option<&'a CellResult> {
    let baseline = arms.iter().find(|arm| arm.baseline)?;
    // Native to native is one cell, whichever of the two names the plan gave to its peer.
    cell_of_arm(&baseline.name, [Peer::Native, Peer::SameArm], cells, key)
}

/// The cell of another arm that `key`'s is compared with: the same but for the arm, and for the peer the first of `peers` that
/// it has. `None` for the arm itself.
fn cell_of_arm<'a>(
    arm: &str,
    peers: impl IntoIterator<Item = Peer>,
    cells: &'a [CellResult],
    key: &CellKey,
) -> Option<&'a CellResult> {
    if key.arm == arm {
        return None;
    }
    peers.into_iter().find_map(|peer| {
        cells.iter().find(|cell| {
            let other = &cell.key;
            (other.arm.as_str(), &other.pair, &other.workload) == (arm, &key.pair, &key.workload)
                && (other.direction, other.peer) == (key.direction, peer)
        })
    })
}

/// A figure of the measured runs of `cell` and of `baseline`, by block.
pub fn blocks(figure: &Figure, cell: &CellResult, baseline: &CellResult) -> Vec<PairedBlock> {
    let mut blocks: BTreeMap<u32, PairedBlock> = BTreeMap::new();
    let figures = |cell: &CellResult| -> Vec<(u32, f64)> {
        let of_run = |run: &Run| Some((run.block, (figure.of_run)(cell.key.direction, run)?));
        cell.runs.iter().filter_map(of_run).collect()
    };
    for (block, value) in figures(cell) {
        blocks.entry(block).or_default().arm.push(value);
    }
    for (block, value) in figures(baseline) {
        blocks.entry(block).or_default().native.push(value);
    }
    blocks.into_values().collect()
}

/// The cells, by pair in the plan's order, workload, direction, arm in the campaign's order, and peer.
fn cells_of(header: &LedgerHeader, records: &[TrialRecord]) -> Result<Vec<CellResult>, SummaryError> {
    let mut by_trial: BTreeMap<TrialId, &TrialRecord> = BTreeMap::new();
    for record in records {
        if by_trial.insert(record.trial, record).is_some() {
            return Err(SummaryError::RecordedTwice(record.trial));
        }
    }
    let mut seen = BTreeSet::new();
    let mut runs: BTreeMap<&CellKey, Vec<Run>> = BTreeMap::new();
    for planned in &header.planned {
        if !seen.insert(planned.trial) {
            return Err(SummaryError::PlannedTwice(planned.trial));
        }
        let record = by_trial.remove(&planned.trial);
        let of_the_plan = |record: &TrialRecord| {
            (&record.cell, record.block, record.position) == (&planned.cell, planned.block, planned.position)
        };
        if !record.is_none_or(of_the_plan) {
            return Err(SummaryError::NotOfThePlan(planned.trial));
        }
        runs.entry(&planned.cell).or_default().push(run_of(planned, record, &header.provenance));
    }
    if let Some(trial) = by_trial.keys().next() {
        return Err(SummaryError::NotOfThePlan(*trial));
    }
    // As planned and not by name: host-2 comes before host-10.
    let mut pairs: BTreeMap<&Pair, usize> = BTreeMap::new();
    let mut planned: Vec<&PlannedTrial> = header.planned.iter().collect();
    planned.sort_by_key(|planned| planned.position);
    for planned in planned {
        let next = pairs.len();
        pairs.entry(&planned.cell.pair).or_insert(next);
    }
    let place = |key: &CellKey| header.arms.iter().position(|arm| arm.name == key.arm);
    let mut cells = Vec::with_capacity(runs.len());
    for (key, mut runs) in runs {
        let place = place(key).ok_or_else(|| SummaryError::UnknownArm(key.arm.clone()))?;
        runs.sort_by_key(|run| (run.block, run.position));
        cells.push((place, cell_of(key, runs, header.seed)));
    }
    cells.sort_by(|(place, cell), (other_place, other)| {
        let (a, b) = (&cell.key, &other.key);
        let by_matrix = (pairs.get(&a.pair), &a.workload, a.direction).cmp(&(
            pairs.get(&b.pair),
            &b.workload,
            b.direction,
        ));
        by_matrix.then(place.cmp(other_place)).then(a.peer.cmp(&b.peer))
    });
    Ok(cells.into_iter().map(|(_, cell)| cell).collect())
}

fn run_of(planned: &PlannedTrial, record: Option<&TrialRecord>, provenance: &Provenance) -> Run {
    let mut run = Run {
        trial: planned.trial,
        block: planned.block,
        position: planned.position,
        started_unix_ms: record.and_then(|record| record.started_unix_ms),
        status: record.map_or(RunStatus::Skipped, |record| status(&record.outcome)),
        reason: None,
        last_words: Vec::new(),
        goodput_bytes_per_second: None,
        flags: BTreeSet::new(),
        a: None,
        b: None,
    };
    match record.map(|record| &record.outcome) {
        None => run.reason = Some(NOT_REACHED.to_owned()),
        Some(Outcome::Skipped { reason } | Outcome::Lost { reason }) => run.reason = Some(reason.clone()),
        Some(Outcome::Failed { host, failure }) => {
            run.reason = Some(format!("{host}: {}", failure.reason));
            run.last_words.clone_from(&failure.last_words);
        }
        Some(Outcome::Measured { a, b }) => {
            run.goodput_bytes_per_second = received(planned.cell.direction, a, b).sum();
            run.flags = flags(planned, a, b, provenance);
            run.a = Some(EndReport::clone(a));
            run.b = Some(EndReport::clone(b));
        }
    }
    run
}

/// What each receiving end got a second by its own clock; `None` of one whose interval has no length.
fn received<'e>(
    direction: Direction,
    a: &'e EndReport,
    b: &'e EndReport,
) -> impl Iterator<Item = Option<f64>> + use<'e> {
    let rate =
        |end: &EndReport| (end.interval.0 > 0).then(|| end.received_bytes as f64 / end.interval.seconds());
    let receivers = [(direction.receives(), a), (direction.sends(), b)];
    receivers.into_iter().filter(|(receives, _)| *receives).map(move |(_, end)| rate(end))
}

/// Flags of both ends, and those that no end can see for itself: what the link allows, and what its agent's build
/// was.
fn flags(planned: &PlannedTrial, a: &EndReport, b: &EndReport, provenance: &Provenance) -> BTreeSet<Flag> {
    let mut flags: BTreeSet<Flag> = a.flags.iter().chain(&b.flags).copied().collect();
    if let (Some(rate), Some(mtu)) = (provenance.link_rate, provenance.mtu) {
        let mtu = f64::from(mtu);
        let allowed = rate.0 as f64 / 8.0 * (mtu - TCP_IP_HEADERS) / (mtu + ETHERNET_OVERHEAD);
        // A link carries as much each way.
        let mut ways = received(planned.cell.direction, a, b).flatten();
        if ways.any(|goodput| goodput >= LINK_BOUND_SHARE * allowed) {
            flags.insert(Flag::LinkBound);
        }
    }
    let pair = &planned.cell.pair;
    let debug = |host: &str| {
        provenance.hosts.iter().any(|known| known.name == host && known.facts.build_profile == "debug")
    };
    if debug(&pair.a) || debug(&pair.b) {
        flags.insert(Flag::DebugBuild);
    }
    flags
}

fn cell_of(key: &CellKey, runs: Vec<Run>, seed: u64) -> CellResult {
    let mut flags = BTreeMap::new();
    for flag in runs.iter().flat_map(|run| &run.flags) {
        *flags.entry(*flag).or_insert(0) += 1;
    }
    let estimate = |id: FigureId| {
        let of_run = |run: &Run| (id.figure().of_run)(key.direction, run).filter(|number| number.is_finite());
        let numbers: Vec<f64> = runs.iter().filter_map(of_run).collect();
        let median = median_estimate(&numbers, &mut generator(seed, key, id.figure().id))?;
        Some((id, FigureEstimate { unit: id.figure().unit, median, to_native: None, over_native: None }))
    };
    CellResult {
        key: key.clone(),
        counts: counts(&runs),
        figures: FigureId::all().filter_map(estimate).collect(),
        latencies: latencies(&runs),
        exits_by_cause: causes(runs.iter().filter_map(|run| run.a.as_ref()), key.direction),
        flags,
        runs,
    }
}

/// Latencies of all runs together; nothing where no run has any, or where hostile ones are too many together.
fn latencies(runs: &[Run]) -> Option<Latencies> {
    fn of_run(run: &Run) -> Option<&Latencies> {
        match &run.a.as_ref()?.traffic {
            TrafficReport::RequestResponse(report) => Some(&report.asked.as_ref()?.latencies),
            TrafficReport::Stream(_) | TrafficReport::Datagram(_) => None,
        }
    }
    Latencies::merged(runs.iter().filter_map(of_run)).ok().flatten()
}

fn counts(runs: &[Run]) -> RunCounts {
    let mut counts = RunCounts::default();
    for run in runs {
        counts.planned += 1;
        match run.status {
            RunStatus::Measured => counts.measured += 1,
            RunStatus::Failed => counts.failed += 1,
            RunStatus::Skipped => counts.skipped += 1,
            RunStatus::Lost => counts.lost += 1,
        }
    }
    counts
}

/// Exits by cause over all runs; `None` if no run has any. A cause that a run doesn't name did not occur in it.
fn causes<'a>(
    ends: impl Iterator<Item = &'a EndReport> + Clone,
    direction: Direction,
) -> Option<BTreeMap<String, CauseSummary>> {
    let mut totals: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let reports = ends.clone().filter_map(|end| end.exits.as_ref());
    let mut any = false;
    for report in reports {
        any = true;
        for (cause, stat) in &report.by_cause {
            let (count, handling) = totals.entry(cause).or_default();
            *count = count.saturating_add(stat.count);
            *handling = handling.saturating_add(stat.handling.0);
        }
    }
    // Per frame only if every run with exits has frames too, so that both are of the same runs.
    let frames: Option<u64> = ends
        .filter(|end| end.exits.is_some())
        .map(|end| end.payload_frames(direction))
        .try_fold(0_u64, |sum, frames| sum.checked_add(frames?));
    let frames = frames.filter(|frames| *frames > 0).map(|frames| frames as f64);
    any.then(|| {
        let summary = |(count, handling): (u64, u64)| CauseSummary {
            count,
            per_frame: frames.map(|frames| count as f64 / frames),
            mean_handling_seconds: (count > 0).then(|| handling as f64 / 1e9 / count as f64),
        };
        totals.into_iter().map(|(cause, total)| (cause.to_owned(), summary(total))).collect()
    })
}

/// The generator of one figure's bootstrap. Its seed is the FNV-1a hash (64 bits) of the campaign's seed, the
/// figure's name and the cell's key, so that a figure does not depend on which other cells there are.
fn generator(seed: u64, key: &CellKey, figure: &str) -> Xoshiro256PlusPlus {
    let direction = key.direction.to_string();
    let peer = key.peer.to_string();
    let seed = seed.to_le_bytes();
    let parts = [figure, &key.pair.a, &key.pair.b, &key.workload, &direction, &key.arm, &peer];
    // 0xff is in no UTF-8 text: it keeps the parts apart.
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0xff]));
    let hash = seed.into_iter().chain(bytes).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    Xoshiro256PlusPlus::seed_from_u64(hash)
}
