//! What the scheduler is told and what it wants done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use toll_protocol::facts::HostFacts;
use toll_protocol::message::{FromAgent, ToAgent};
use toll_protocol::result::{RunCounts, TrialRecord};
use toll_protocol::service::CampaignState;
use toll_protocol::trial::TrialId;
use toll_protocol::units::Span;

use super::{NewCampaign, ResumedCampaign};
use crate::plan::{self, Plan};
use crate::service::handle::Node;
use crate::transport::Session;

/// What a scheduler holds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Most trials at once: 1 in a lab, whose hosts share one machine.
    pub limit: usize,
    /// How long an agent that is away, or a node that is cordoned, is waited for.
    pub grace: Duration,
    /// How long an agent that has not come yet is waited for: it asks its host for facts first, which takes a while where
    /// guests stand still.
    pub arrival: Duration,
    /// How long no new agent must have come before a campaign is planned on those that are there.
    pub settle: Duration,
    /// Whether hosts are nodes of a cluster: none gets a trial before [`Event::Nodes`] has told of them.
    pub cluster: bool,
}

/// A moment, by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since the scheduler began.
    pub elapsed: Duration,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

/// What the core is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A campaign is durable and waits for its plan.
    Submit(Box<NewCampaign>),
    /// A campaign of a former process goes on.
    Resume(Box<ResumedCampaign>),
    /// The plan of a campaign is durable.
    PlanStored {
        /// Its id.
        campaign: String,
    },
    /// An agent said Hello under its certificate's name.
    AgentConnected {
        /// Its name.
        host: String,
        /// Which of its connections it is.
        session: Session,
        /// Its host.
        facts: Box<HostFacts>,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// Trials that it holds.
        held: Vec<TrialId>,
    },
    /// A connection of an agent ended. It means nothing if the agent has a newer one.
    AgentLost {
        /// Its name.
        host: String,
        /// Number of the connection.
        session: u64,
    },
    /// An agent said something.
    Agent {
        /// Its name.
        host: String,
        /// What it said.
        message: FromAgent,
    },
    /// A host is gone for good: a lab's agent process has ended.
    HostDied {
        /// Its name.
        host: String,
        /// How it ended.
        reason: String,
    },
    /// What the cluster says of its nodes.
    Nodes(BTreeMap<String, Node>),
    /// The ledger has the record of a trial durably.
    Stored {
        /// The trial.
        trial: TrialId,
        /// Its campaign.
        campaign: String,
    },
    /// A campaign's results can't be kept any more: it ends without a word, and its hosts are free.
    Abandon {
        /// Its id.
        campaign: String,
    },
    /// The user wants no more of a campaign.
    Cancel {
        /// Its id.
        campaign: String,
        /// Why: `the campaign was interrupted`.
        reason: String,
    },
    /// Time has passed.
    Tick,
}

/// What the core wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Send a message to an agent.
    Send {
        /// Its name.
        host: String,
        /// What to say.
        message: ToAgent,
    },
    /// Keep a plan and answer with [`Event::PlanStored`].
    StorePlan {
        /// The campaign.
        campaign: String,
        /// The plan.
        plan: Arc<Plan>,
        /// The hosts that it is made for.
        hosts: Vec<plan::PlannedHost>,
    },
    /// A trial has begun.
    Begun {
        /// Its campaign.
        campaign: String,
        /// The trial.
        trial: TrialId,
        /// When, milliseconds since the Unix epoch.
        unix_ms: u64,
        /// Since when it could have begun: both hosts free, its plan durable.
        since: Duration,
    },
    /// A trial has ended a phase.
    Phase {
        /// Which.
        phase: Phase,
        /// How long it took.
        took: Duration,
    },
    /// Write a record and answer with [`Event::Stored`].
    Record {
        /// The campaign.
        campaign: String,
        /// The record.
        record: Box<TrialRecord>,
    },
    /// All trials of a campaign are over and recorded, or there never will be any; comes once.
    Finished {
        /// The campaign.
        campaign: String,
        /// How it ends.
        ending: Ending,
    },
}

/// How a campaign ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With its last trial.
    Finished,
    /// Because somebody wanted it to end, and why.
    Cancelled(String),
    /// Before it had a plan: its hosts can't do what it asks for, and why.
    Refused(String),
}

impl Ending {
    /// Of a campaign that was cancelled for a reason, or of one that was not.
    pub fn of(cancelled: Option<String>) -> Self {
        cancelled.map_or(Self::Finished, Self::Cancelled)
    }

    /// The state that it leaves the campaign in.
    pub const fn state(&self) -> CampaignState {
        match self {
            Self::Finished => CampaignState::Finished,
            Self::Cancelled(_) => CampaignState::Cancelled,
            Self::Refused(_) => CampaignState::Refused,
        }
    }

    /// Why it ends, but with its last trial.
    pub fn reason(self) -> Option<String> {
        match self {
            Self::Finished => None,
            Self::Cancelled(why) | Self::Refused(why) => Some(why),
        }
    }
}

/// A part of a trial's life whose length is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From Prepare to both ends being up.
    Setup,
    /// From Start to the outcome.
    Run,
    /// From Teardown to both hosts being free.
    Teardown,
}

/// How far a campaign is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Trials by how they ended.
    pub counts: RunCounts,
    /// What runs now: `virtio send to native, host-1 and host-2, block 2`.
    pub running: Vec<String>,
    /// Estimate of the time left.
    pub left: Span,
    /// Why it was cancelled, if it was.
    pub cancelled: Option<String>,
}
