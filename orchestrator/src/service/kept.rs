//! What the service knows of one campaign beside the scheduler: who it is, what its figures are so far, what it says
//! of itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use toll_protocol::campaign::{self, Campaign, Problem};
use toll_protocol::figure::GOODPUT;
use toll_protocol::result::{ArmSummary, CampaignResult, Gate, Provenance, RunCounts, TrialRecord, Verdict};
use toll_protocol::service::{CampaignState, CampaignStatus, CellStatus};

use crate::ledger::{Ledger, LedgerError, LedgerHeader, PlannedTrial};
use crate::plan::Plan;
use crate::scheduler::Progress;
use crate::summary::{self, SummaryError};

/// Least time between two summaries of a running campaign.
const PACE: Duration = Duration::from_secs(1);
/// A summary takes at most this part of the time: a large campaign is summarised less often.
const SHARE: u32 = 20;

/// How far the service's own work on a campaign is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its ledger is being made.
    Creating,
    /// The scheduler has it.
    Live,
    /// Every trial is over; the ledger is being closed, the last summary and the files are being written.
    Ending,
    /// It is over.
    Over,
}

/// One campaign.
pub(super) struct Kept {
    pub phase: Phase,
    /// What does not change while it runs, and the figures as of the last summary.
    pub status: CampaignStatus,
    pub gates: Vec<Gate>,
    pub provenance: Option<Provenance>,
    /// Changes since the last summary.
    pub stale: bool,
    /// Whether a summary is being made.
    pub summarising: bool,
    next_summary: Instant,
    /// When its files are to be written again, which could not be.
    end_again: Option<Instant>,
    /// What can't be kept or written for now.
    pub trouble: Option<String>,
    /// Outcomes that its ledger did not take before it failed for good: they are in the result all the same.
    pub unkept: Vec<TrialRecord>,
    /// The result of the one campaign of `toll run`, once it is over.
    pub result: Option<Box<CampaignResult>>,
    /// The document, as it was submitted.
    pub manifest: String,
}

impl Kept {
    pub fn new(id: &str, header: &LedgerHeader, gates: Vec<Gate>, phase: Phase) -> Self {
        let status = CampaignStatus {
            reason: header.cancelled.clone(),
            ..CampaignStatus::new(id, &header.campaign, CampaignState::Pending, header.submitted_unix_ms)
        };
        Self {
            phase,
            status,
            gates,
            provenance: Some(header.provenance.clone()),
            stale: true,
            summarising: false,
            next_summary: Instant::now(),
            end_again: None,
            trouble: None,
            unkept: Vec::new(),
            result: None,
            manifest: header.manifest.clone(),
        }
    }

    /// Its status, with what the scheduler knows.
    pub fn status(&self, progress: Option<Progress>, waits_for: Option<String>) -> CampaignStatus {
        let mut status = self.status.clone();
        if self.phase == Phase::Over {
            return status;
        }
        status.fault = status.fault.or_else(|| self.trouble.clone());
        match progress {
            Some(progress) => {
                status.state = CampaignState::Running;
                status.counts = Some(progress.counts);
                status.running = progress.running;
                status.left = Some(progress.left);
                status.reason = progress.cancelled.or(status.reason);
            }
            // Its last summary is being made.
            None if self.phase == Phase::Ending && !status.hosts.is_empty() => {
                status.state = CampaignState::Running;
            }
            None if self.phase == Phase::Ending => status.state = CampaignState::Pending,
            None => status.reason = status.reason.or(waits_for),
        }
        status
    }

    /// Whether a summary is to be made now.
    pub fn is_due(&self) -> bool {
        self.phase == Phase::Live
            && self.stale
            && !self.summarising
            && !self.status.hosts.is_empty()
            && Instant::now() >= self.next_summary
    }

    /// Its files could not be written: they are written again a little later.
    pub fn end_again(&mut self) {
        self.end_again = Some(Instant::now() + PACE);
    }

    /// Whether its files are to be written again now. Says so once.
    pub fn ends_again(&mut self) -> bool {
        self.end_again.take_if(|at| *at <= Instant::now()).is_some()
    }

    /// Takes a summary that took so long to make.
    pub fn summarised(&mut self, result: &CampaignResult, took: Duration) {
        self.summarising = false;
        self.next_summary = Instant::now() + PACE.max(took * SHARE);
        self.status.cells = result.cells.iter().map(cell_status).collect();
    }
}

/// Says in a status what the last result of a campaign says.
pub(super) fn conclude(status: &mut CampaignStatus, result: &CampaignResult) {
    status.cells = result.cells.iter().map(cell_status).collect();
    status.counts = Some(total(result));
    status.verdict = worst(result);
}

fn cell_status(cell: &toll_protocol::result::CellResult) -> CellStatus {
    let key = &cell.key;
    CellStatus {
        name: format!(
            "{} → {} · {} · {} · {} · {}",
            key.pair.a, key.pair.b, key.workload, key.direction, key.arm, key.peer
        ),
        counts: cell.counts,
        goodput_bytes_per_second: cell.median(&GOODPUT),
        ratio_to_native: cell.to_native(&GOODPUT),
    }
}

/// Trials of all cells by how they ended.
pub fn total(result: &CampaignResult) -> RunCounts {
    let mut total = RunCounts::default();
    for counts in result.cells.iter().map(|cell| cell.counts) {
        total.planned += counts.planned;
        total.measured += counts.measured;
        total.failed += counts.failed;
        total.skipped += counts.skipped;
        total.lost += counts.lost;
    }
    total
}

/// The worst verdict of a result's gates.
pub fn worst(result: &CampaignResult) -> Option<Verdict> {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Pass => 0,
        Verdict::Inconclusive => 1,
        Verdict::Fail => 2,
    };
    result.gates.iter().map(|gate| gate.verdict).max_by_key(rank)
}

/// What a ledger is to say of a campaign that has no plan yet.
pub(super) fn header(
    campaign: &Campaign,
    manifest: &str,
    seed: u64,
    provenance: Provenance,
    now_ms: u64,
) -> LedgerHeader {
    let native = campaign.native_arm().map(|arm| arm.name.as_str());
    let arm = |arm: &campaign::Arm| ArmSummary {
        name: arm.name.clone(),
        kind: arm.kind.clone(),
        baseline: native == Some(arm.name.as_str()),
        paper: arm.paper,
    };
    LedgerHeader {
        arms: campaign.arms.iter().map(arm).collect(),
        submitted_unix_ms: now_ms,
        ..LedgerHeader::new(&campaign.name, manifest, seed, provenance)
    }
}

/// A plan as the ledger keeps it.
pub(super) fn planned(plan: &Plan) -> Vec<PlannedTrial> {
    let planned = |(position, trial): (usize, &crate::plan::Trial)| PlannedTrial {
        trial: trial.id,
        cell: plan.cells[trial.cell].key.clone(),
        block: trial.block,
        position: u32::try_from(position).unwrap_or(u32::MAX),
    };
    plan.trials.iter().enumerate().map(planned).collect()
}

/// The plan that a former process made, made again; `None` if this version makes another one.
pub(super) fn plan_again(campaign: &Campaign, header: &LedgerHeader) -> Option<Arc<Plan>> {
    let mut ids = header.planned.iter().map(|planned| planned.trial);
    let none = toll_protocol::trial::TrialId::new(0);
    let plan = Plan::new(campaign, header.hosts.as_ref()?, header.seed, || ids.next().unwrap_or(none));
    (planned(&plan) == header.planned).then(|| Arc::new(plan))
}

/// Why a ledger gives no result.
#[derive(Debug, thiserror::Error)]
pub enum NoResult {
    /// It can't be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// It contradicts itself.
    #[error("what the ledger has does not belong together")]
    Summary(#[from] SummaryError),
}

impl NoResult {
    /// Whether an attempt may fare better later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Ledger(error) if error.may_pass())
    }
}

/// The result of a campaign as the ledger at `path` has it. Reads and computes: for a thread that may block.
///
/// # Errors
/// [`NoResult`].
pub fn summarise(
    path: &std::path::Path,
    gates: &[Gate],
    unkept: &[TrialRecord],
) -> Result<Box<CampaignResult>, NoResult> {
    of_ledger(&Ledger::open(path)?, gates, unkept)
}

/// The result of a campaign as a ledger has it, with outcomes that it did not take.
///
/// # Errors
/// [`NoResult`].
pub fn of_ledger(
    ledger: &Ledger,
    gates: &[Gate],
    unkept: &[TrialRecord],
) -> Result<Box<CampaignResult>, NoResult> {
    let mut records = ledger.records()?;
    let known: BTreeSet<_> = records.iter().map(|record| record.trial).collect();
    records.extend(unkept.iter().filter(|record| !known.contains(&record.trial)).cloned());
    Ok(Box::new(summary::summarise(ledger.header(), &records, gates)?))
}

/// The gates of the campaign in a ledger.
///
/// # Errors
/// Why this version does not take its document, in one sentence.
pub fn gates(ledger: &Ledger) -> Result<Vec<Gate>, String> {
    let parsed = campaign::parse(&ledger.header().manifest);
    parsed.map(|campaign| campaign.gates).map_err(|problems| refused(&problems))
}

/// Why this version does not take a document that is in a ledger.
pub(super) fn refused(problems: &[Problem]) -> String {
    let why = problems.first().map_or_else(String::new, ToString::to_string);
    format!("this version of Toll refuses the campaign's document: {why}")
}

/// An error and all its sources on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
