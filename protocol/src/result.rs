//! The result of a campaign: `result.json`, the same document wherever the campaign ran (docs/adr/0030). Absent is `null`,
//! never 0. `manifests/schema/result.schema.json` describes it.
//!
//! One style of names: fields are in snake case, and end in the base unit of a number that has one (`_seconds`, `_bytes`,
//! `_bytes_per_second`, `_bits_per_second`; moments are `_unix_seconds`). What names a thing of Toll, as a value or as a
//! key, is in kebab case (`cpu-bound`, `exits-per-frame`). `apiVersion` is Kubernetes' own.

mod estimate;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use estimate::{CauseSummary, DifferenceEstimate, FigureEstimate, MedianEstimate, RatioEstimate};

use estimate::limits;

use crate::document::{self, ApiVersion, ResultKind};
use crate::facts::HostFacts;
use crate::figure::{Figure, FigureId, Unit};
use crate::latencies::Latencies;
use crate::printable;
pub use crate::relation::Verdict;
use crate::relation::{AT_MOST, Relation};
use crate::report::{EndReport, Failure, Flag};
use crate::trial::{Direction, EndKind, TrialId};
use crate::units::numbers::{self, Seconds, moments};
use crate::units::{BitRate, Percent};

/// What stands at the far end of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// Kernel TCP on the other host.
    Native,
    /// The same arm on the other host: guest to guest.
    SameArm,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::SameArm => "same-arm",
        })
    }
}

/// Two hosts. The arm stands on `a`; `direction` is seen from `a`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Pair {
    /// The host of the arm.
    pub a: String,
    /// The host of the peer.
    pub b: String,
}

/// One point of the matrix.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct CellKey {
    /// The hosts.
    pub pair: Pair,
    /// Name of the workload.
    pub workload: String,
    /// Seen from `pair.a`.
    pub direction: Direction,
    /// Name of the arm.
    pub arm: String,
    /// What stands on `pair.b`.
    pub peer: Peer,
}

/// How a trial ended. Every planned trial ends as exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Both ends reported.
    Measured {
        /// The end on `pair.a`.
        a: Box<EndReport>,
        /// The end on `pair.b`.
        b: Box<EndReport>,
    },
    /// An end failed.
    Failed {
        /// The host whose end failed first.
        host: String,
        /// Why.
        failure: Failure,
    },
    /// The trial was never tried: the arm can't run on the host, or the campaign was interrupted.
    Skipped {
        /// Why.
        reason: String,
    },
    /// The trial was begun and its result will never be known.
    Lost {
        /// Why.
        reason: String,
    },
}

/// One trial as the ledger keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrialRecord {
    /// Its id.
    pub trial: TrialId,
    /// The cell that it repeats.
    pub cell: CellKey,
    /// Number of its block, from 0.
    pub block: u32,
    /// Its place in the plan's order, from 0.
    pub position: u32,
    /// When it began, since the Unix epoch: kept as milliseconds, written as seconds. `None` if it never did.
    #[serde(rename = "started_unix_seconds", with = "moments")]
    #[schemars(with = "Option<Seconds>")]
    pub started_unix_ms: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
}

/// Status of one run in `result.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunStatus {
    /// It has figures.
    Measured,
    /// It failed.
    Failed,
    /// It was not tried.
    Skipped,
    /// Its result is lost.
    Lost,
}

/// One run of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// The trial.
    pub trial: TrialId,
    /// Its block.
    pub block: u32,
    /// Its place in the order of the campaign.
    pub position: u32,
    /// When it began, since the Unix epoch: kept as milliseconds, written as seconds.
    #[serde(rename = "started_unix_seconds", with = "moments")]
    #[schemars(with = "Option<Seconds>")]
    pub started_unix_ms: Option<u64>,
    /// How it ended.
    pub status: RunStatus,
    /// Why it has no figures.
    pub reason: Option<String>,
    /// The guest's or the program's last words.
    pub last_words: Vec<String>,
    /// Goodput at the receiver.
    pub goodput_bytes_per_second: Option<f64>,
    /// Reasons for care of either end, and those that only both together show.
    pub flags: BTreeSet<Flag>,
    /// What the end on `pair.a` measured.
    pub a: Option<EndReport>,
    /// What the end on `pair.b` measured.
    pub b: Option<EndReport>,
}

/// Runs of a cell by how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RunCounts {
    /// Trials that the plan names.
    pub planned: u32,
    /// With figures.
    pub measured: u32,
    /// Failed.
    pub failed: u32,
    /// Not tried.
    pub skipped: u32,
    /// Lost.
    pub lost: u32,
}

impl RunCounts {
    /// Counts a run that ended so; `planned` is another question.
    pub const fn add(&mut self, status: RunStatus) {
        match status {
            RunStatus::Measured => self.measured += 1,
            RunStatus::Failed => self.failed += 1,
            RunStatus::Skipped => self.skipped += 1,
            RunStatus::Lost => self.lost += 1,
        }
    }

    /// Runs that are over.
    pub const fn over(&self) -> u32 {
        self.measured + self.failed + self.skipped + self.lost
    }
}

/// A cell with its figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CellResult {
    /// Which cell.
    #[serde(flatten)]
    pub key: CellKey,
    /// How its runs ended.
    pub counts: RunCounts,
    /// Its figures; one that no run has is not there.
    pub figures: BTreeMap<FigureId, FigureEstimate>,
    /// Latencies of all its measured runs together, for pictures; `None` for traffic without any.
    #[serde(default)]
    pub latencies: Option<Latencies>,
    /// Exits by cause; `None` for an end that has no KVM.
    pub exits_by_cause: Option<BTreeMap<String, CauseSummary>>,
    /// Flags of any measured run, with the number of runs that carry each.
    pub flags: BTreeMap<Flag, u32>,
    /// Every run, in block order.
    pub runs: Vec<Run>,
}

impl CellResult {
    /// A figure of it.
    pub fn figure(&self, figure: &'static Figure) -> Option<&FigureEstimate> {
        self.figures.get(&figure.into())
    }

    /// Median of a figure of it, with its interval.
    pub fn estimate(&self, figure: &'static Figure) -> Option<MedianEstimate> {
        self.figure(figure).map(|estimate| estimate.median)
    }

    /// Median of a figure of it.
    pub fn median(&self, figure: &'static Figure) -> Option<f64> {
        self.estimate(figure).map(|estimate| estimate.median)
    }

    /// What a figure of it is more than native's.
    pub fn over_native(&self, figure: &'static Figure) -> Option<DifferenceEstimate> {
        self.figure(figure).and_then(|estimate| estimate.over_native)
    }

    /// A figure of it relative to native's.
    pub fn to_native(&self, figure: &'static Figure) -> Option<RatioEstimate> {
        self.figure(figure).and_then(|estimate| estimate.to_native)
    }
}

/// What of a figure a gate compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compared {
    /// Its median, in the figure's unit.
    Median,
    /// Its ratio to another arm's, a fraction.
    Ratio,
    /// 1 - its ratio to native's, a fraction.
    Toll,
}

/// A gate applied to one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GateResult {
    /// The cell; `None` for a gate that selects no cell of the campaign, which shows nothing.
    pub cell: Option<CellKey>,
    /// What was asked, in words: `toll at most 10%`.
    pub condition: String,
    /// The figure.
    pub figure: FigureId,
    /// What of it is compared.
    pub compared: Compared,
    /// That.
    pub value: Option<f64>,
    /// Unit of the value and its interval.
    pub unit: Unit,
    /// Its interval.
    #[serde(flatten, with = "limits")]
    #[schemars(with = "limits::Limits")]
    pub ci95: Option<[f64; 2]>,
    /// Pass, fail or inconclusive.
    pub verdict: Verdict,
}

/// One host of the campaign and what its agent said of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostProvenance {
    /// The agent's name.
    pub name: String,
    /// What it found.
    pub facts: HostFacts,
}

/// Where the figures come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Provenance {
    /// Version of Toll.
    pub toll_version: String,
    /// `release` or `debug`.
    pub build_profile: String,
    /// Where it ran: `lab`, `fleet` or `kubernetes`.
    pub environment: String,
    /// A lab's link rate.
    #[serde(rename = "link_rate_bits_per_second", with = "numbers")]
    #[schemars(with = "Option<u64>")]
    pub link_rate: Option<BitRate>,
    /// MTU of the path in bytes of IP packet.
    pub mtu: Option<u16>,
    /// Start, since the Unix epoch: kept as milliseconds, written as seconds.
    #[serde(rename = "started_unix_seconds", with = "moments")]
    #[schemars(with = "Seconds")]
    pub started_unix_ms: u64,
    /// End, likewise; `None` while it runs.
    #[serde(rename = "ended_unix_seconds", with = "moments")]
    #[schemars(with = "Option<Seconds>")]
    pub ended_unix_ms: Option<u64>,
    /// The hosts.
    pub hosts: Vec<HostProvenance>,
    /// Whether the campaign was interrupted before its end.
    pub interrupted: bool,
}

impl Provenance {
    /// Of this Toll, for a campaign that begins now and whose hosts are not known yet.
    pub fn new(environment: &str, started_unix_ms: u64) -> Self {
        Self {
            toll_version: env!("CARGO_PKG_VERSION").to_owned(),
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            environment: environment.to_owned(),
            link_rate: None,
            mtu: None,
            started_unix_ms,
            ended_unix_ms: None,
            hosts: Vec::new(),
            interrupted: false,
        }
    }
}

/// An arm of the campaign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArmSummary {
    /// Its name, as cells carry it.
    pub name: String,
    /// What stands at the arm's end.
    #[serde(rename = "end")]
    pub kind: EndKind,
    /// Whether it is the native arm that ratios are taken against. At most one arm is.
    pub baseline: bool,
    /// Which arm of the paper of 2001 it stands for.
    pub paper: Option<PaperArm>,
}

/// An arm of the paper of 2001 (Sugerman, Venkitachalam, Lim, USENIX 2001, Table 3 and section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PaperArm {
    /// The host's own kernel.
    Native,
    /// With all three optimisations.
    Optimised,
    /// Without IRQ notification.
    WithoutIrqNotification,
    /// Without send combining and IRQ notification.
    WithoutSendCombining,
    /// Without any.
    Unoptimised,
}

/// `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CampaignResult {
    /// [`API_VERSION`](crate::document::API_VERSION).
    #[serde(rename = "apiVersion")]
    pub api_version: ApiVersion,
    /// `Result`.
    pub kind: ResultKind,
    /// The campaign's name.
    pub campaign: String,
    /// The seed that its order was drawn from.
    pub seed: u64,
    /// The campaign as it was written, in UTF-8.
    pub manifest: String,
    /// Where the figures come from.
    pub provenance: Provenance,
    /// The arms, in the campaign's order.
    pub arms: Vec<ArmSummary>,
    /// The matrix: by pair, workload, direction, arm in the campaign's order, and peer.
    pub cells: Vec<CellResult>,
    /// The gates, if the campaign has any.
    pub gates: Vec<GateResult>,
}

impl CampaignResult {
    /// Reads a result that somebody else may have written: all that it says is printable, but for the campaign, whose
    /// lines stay lines.
    ///
    /// # Errors
    /// Why it is none.
    pub fn read(json: &[u8]) -> serde_json::Result<Self> {
        let manifest = document::manifest(json, ResultKind::NAME)?;
        Ok(Self { manifest, ..serde_json::from_slice(&printable::json(json))? })
    }
}

/// What a figure is compared with by a gate.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    /// Nothing: its median is.
    Median,
    /// Native's, as a toll.
    Toll,
    /// That of this arm, paired within blocks.
    RatioTo(String),
}

/// A limit as it was written, and as a number in the unit of what is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// The number.
    pub number: f64,
    /// `1Gbit`.
    pub text: String,
}

/// What a gate asks.
#[derive(Debug, Clone, PartialEq)]
pub struct GateCondition {
    /// Of which figure.
    pub figure: &'static Figure,
    /// What of it.
    pub subject: Subject,
    /// On which side.
    pub relation: &'static Relation,
    /// Of what.
    pub limit: Limit,
}

impl GateCondition {
    /// A limit on the median of a figure: `number` in its unit, `text` as it was written.
    pub fn on_median(
        figure: &'static Figure,
        relation: &'static Relation,
        number: f64,
        text: &dyn fmt::Display,
    ) -> Self {
        Self { figure, subject: Subject::Median, relation, limit: Limit { number, text: text.to_string() } }
    }

    /// The toll of a figure is at most so much.
    pub fn toll_at_most(figure: &'static Figure, limit: Percent) -> Self {
        let limit = Limit { number: limit.fraction(), text: limit.to_string() };
        Self { figure, subject: Subject::Toll, relation: &AT_MOST, limit }
    }

    /// A limit on the ratio of a figure to that of the arm `to`.
    pub fn on_ratio(
        figure: &'static Figure,
        to: String,
        relation: &'static Relation,
        limit: Percent,
    ) -> Self {
        let limit = Limit { number: limit.fraction(), text: limit.to_string() };
        Self { figure, subject: Subject::RatioTo(to), relation, limit }
    }
}

impl fmt::Display for GateCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { figure: Figure { title, .. }, subject, relation, limit: Limit { text, .. } } = self;
        let relation = relation.words;
        match subject {
            Subject::Median => write!(f, "{title} {relation} {text}"),
            Subject::Toll => write!(f, "toll {relation} {text}"),
            Subject::RatioTo(arm) => write!(f, "{title} {relation} {text} of {arm}'s"),
        }
    }
}

/// A gate that is to be applied to every cell it selects.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GateSelector {
    /// Only this arm.
    pub arm: Option<String>,
    /// Only this workload.
    pub workload: Option<String>,
    /// Only this direction.
    pub direction: Option<Direction>,
    /// Only this peer.
    pub peer: Option<Peer>,
}

impl GateSelector {
    /// Whether the gate applies to `cell`.
    pub fn selects(&self, cell: &CellKey) -> bool {
        self.arm.as_ref().is_none_or(|arm| *arm == cell.arm)
            && self.workload.as_ref().is_none_or(|workload| *workload == cell.workload)
            && self.direction.is_none_or(|direction| direction == cell.direction)
            && self.peer.is_none_or(|peer| peer == cell.peer)
    }
}

/// A gate of the plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Which cells.
    pub cells: GateSelector,
    /// What must hold.
    pub condition: GateCondition,
}
