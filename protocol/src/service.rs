//! What the orchestrator's service says of its campaigns and agents: the documents of its HTTP API, and what the
//! Kubernetes controller writes into a campaign's status. Absent is `null`, never 0.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::facts::HostFacts;
use crate::result::{RatioEstimate, RunCounts, Verdict};
use crate::trial::TrialId;
use crate::units::Span;
use crate::units::numbers::{self, Seconds, moments};

/// Where a campaign is.
///
/// ```text
/// Pending --enough hosts--> Running --every trial recorded--> Finished
///    |  |                      |
///    |  +---- cancelled -------+--every trial recorded-----> Cancelled
///    +--its hosts can't do it----------------------------> Refused
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CampaignState {
    /// It waits for hosts.
    Pending,
    /// It is planned, and trials run or wait for their hosts.
    Running,
    /// Every trial is recorded.
    Finished,
    /// It was cancelled, and every trial is recorded.
    Cancelled,
    /// It was not begun: the hosts that it selects can't do what it asks for. It has no result.
    Refused,
}

impl CampaignState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Running, Self::Finished, Self::Cancelled, Self::Refused];

    /// Whether nothing more will happen to it.
    pub const fn is_over(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Finished | Self::Cancelled | Self::Refused => true,
        }
    }
}

impl fmt::Display for CampaignState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
        })
    }
}

/// A campaign as the service sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CampaignStatus {
    /// Its id, unique in the service: `quickstart-20261124-190406`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub state: CampaignState,
    /// Why it waits, why it was cancelled or why it was refused: one sentence.
    pub reason: Option<String>,
    /// Trials by how they ended; `planned` is `None` before there is a plan.
    pub counts: Option<RunCounts>,
    /// What runs now, a line for each trial: `virtio send to native, node1 and node2, block 2`.
    pub running: Vec<String>,
    /// Estimate of the time left.
    #[serde(rename = "left_seconds", with = "numbers")]
    #[schemars(with = "Option<Seconds>")]
    pub left: Option<Span>,
    /// Hosts of the plan.
    pub hosts: Vec<String>,
    /// When it was submitted, since the Unix epoch: kept as milliseconds, written as seconds.
    #[serde(rename = "submitted_unix_seconds", with = "moments")]
    #[schemars(with = "Seconds")]
    pub submitted_unix_ms: u64,
    /// When its first trial began.
    #[serde(rename = "started_unix_seconds", with = "moments")]
    #[schemars(with = "Option<Seconds>")]
    pub started_unix_ms: Option<u64>,
    /// When its last trial was recorded, or it was refused.
    #[serde(rename = "ended_unix_seconds", with = "moments")]
    #[schemars(with = "Option<Seconds>")]
    pub ended_unix_ms: Option<u64>,
    /// The worst verdict of its gates, once it is over; `None` without gates.
    pub verdict: Option<Verdict>,
    /// What keeps its results from being whole or written, now or for good: one sentence. A ledger that takes nothing
    /// more, a disk that is full, a file that can't be read.
    pub fault: Option<String>,
    /// Its cells, in the order of `result.json`; their figures as far as they are known. Empty in a list of campaigns:
    /// ask for the campaign itself.
    pub cells: Vec<CellStatus>,
}

impl CampaignStatus {
    /// A campaign of which no more is known.
    pub fn new(id: &str, name: &str, state: CampaignState, submitted_unix_ms: u64) -> Self {
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            state,
            reason: None,
            counts: None,
            running: Vec::new(),
            left: None,
            hosts: Vec::new(),
            submitted_unix_ms,
            started_unix_ms: None,
            ended_unix_ms: None,
            verdict: None,
            fault: None,
            cells: Vec::new(),
        }
    }
}

/// Some of the campaigns of a service, the latest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CampaignPage {
    /// The campaigns, without their cells.
    pub items: Vec<CampaignStatus>,
    /// What to ask with, as `continue`, for those that are older; `None` if there are none.
    #[serde(rename = "continue")]
    pub next: Option<String>,
    /// Entries of the data directory that are left out of the list: `/api/v1/left-out` names them.
    pub left_out: usize,
}

/// What lies in the service's data directory and is no campaign that it can serve.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct LeftOut {
    /// How many entries there are.
    pub count: usize,
    /// The first of them, by name.
    pub entries: Vec<LeftOutEntry>,
}

/// One entry of the data directory that is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftOutEntry {
    /// Its name, which is the campaign's id if it is one.
    pub name: String,
    /// Why it is left out, and what to do: one sentence.
    pub reason: String,
    /// Whether it is looked at again from time to time, because what is wrong may pass. Agents that hold results which
    /// nobody knows are kept waiting meanwhile.
    pub tried_again: bool,
}

/// A cell in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CellStatus {
    /// `node1 → node2 · bulk · send · virtio · native`, unique in the campaign.
    pub name: String,
    /// Trials by how they ended.
    pub counts: RunCounts,
    /// Median goodput at the receiver.
    pub goodput_bytes_per_second: Option<f64>,
    /// Goodput relative to native.
    pub ratio_to_native: Option<RatioEstimate>,
}

/// What an agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// Connected, and in no trial.
    Idle,
    /// Connected, and in a trial.
    Busy,
    /// Not connected.
    Away,
    /// Connected, and gets no trials: its node is cordoned, or something is left on it.
    Barred,
}

impl fmt::Display for AgentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Away => "away",
            Self::Barred => "barred",
        })
    }
}

/// An agent as the service sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentStatus {
    /// Its name, which is that of its host.
    pub name: String,
    /// What it does.
    pub state: AgentState,
    /// Why it is barred, since when it is away, whether another agent of its name is refused: one sentence.
    pub reason: Option<String>,
    /// The trial that it is in.
    pub trial: Option<TrialId>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its host.
    pub facts: HostFacts,
}

/// The answer to a submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Submitted {
    /// The campaign's id.
    pub id: String,
    /// Whether it is new, or the service had this very campaign under this id already.
    pub new: bool,
}

/// A refusal: the body of every HTTP answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// What was wrong, where, and what to do.
    pub message: String,
    /// What is wrong in the campaign, a line each with line and column.
    #[serde(default)]
    pub problems: Vec<String>,
}
