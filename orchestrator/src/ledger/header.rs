//! What a ledger knows of its campaign before the first trial begins.

use serde::{Deserialize, Serialize};
use toll_protocol::result::{ArmSummary, CellKey, Provenance};
use toll_protocol::trial::TrialId;

use crate::plan;

/// A trial of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTrial {
    /// Its id.
    pub trial: TrialId,
    /// The cell that it repeats.
    pub cell: CellKey,
    /// Number of its block, from 0.
    pub block: u32,
    /// Its place in the order of the campaign, from 0; no two trials share one.
    pub position: u32,
}

/// What a ledger knows before the first trial begins.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerHeader {
    /// The campaign's name.
    pub campaign: String,
    /// The campaign as it was written, in UTF-8.
    pub manifest: String,
    /// The seed that the order was drawn from.
    pub seed: u64,
    /// The arms, in the campaign's order; at most one is the baseline.
    pub arms: Vec<ArmSummary>,
    /// Every trial of the campaign.
    pub planned: Vec<PlannedTrial>,
    /// Where the figures come from, as far as it is known.
    pub provenance: Provenance,
    /// When the campaign was submitted, milliseconds since the Unix epoch.
    pub submitted_unix_ms: u64,
    /// The hosts that the plan was made for; `None` before there is a plan.
    pub hosts: Option<Vec<plan::Host>>,
    /// Why the campaign was cancelled, if it was.
    pub cancelled: Option<String>,
}

impl LedgerHeader {
    /// A campaign without a plan and without arms, submitted when it began.
    pub fn new(campaign: &str, manifest: &str, seed: u64, provenance: Provenance) -> Self {
        Self {
            campaign: campaign.to_owned(),
            manifest: manifest.to_owned(),
            seed,
            arms: Vec::new(),
            planned: Vec::new(),
            submitted_unix_ms: provenance.started_unix_ms,
            provenance,
            hosts: None,
            cancelled: None,
        }
    }
}
