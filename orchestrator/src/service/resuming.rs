//! Campaigns that a former process of the orchestrator began: their plans are made again, and what their ledgers
//! don't have goes on as the agents come back.

use std::collections::BTreeMap;

use toll_protocol::campaign;
use toll_protocol::result::RunCounts;

use super::kept::{self, Kept, Phase};
use super::writer::Job;
use super::{Observer, Service, ServiceError};
use crate::ledger::Ledger;
use crate::scheduler::{Event, ResumedCampaign};

impl<O: Observer> Service<O> {
    /// Takes a campaign of a former process up again.
    pub(super) fn resume(&mut self, id: &str, ledger: Ledger) -> Result<(), ServiceError> {
        let header = ledger.header().clone();
        let parsed = campaign::parse(&header.manifest)
            .map_err(|problems| problems.first().map_or_else(String::new, ToString::to_string));
        let campaign = match parsed {
            Ok(campaign) => campaign,
            Err(why) => {
                tracing::error!(campaign = id, why, "left alone: this version of Toll refuses it");
                return Ok(());
            }
        };
        let mut kept = Kept::new(id, &header, campaign.gates.clone(), Phase::Live);
        let outcomes = ledger.outcomes()?;
        let begun = ledger.begun()?;
        let Some(hosts) = header.hosts.clone() else {
            self.kept.insert(id.to_owned(), kept);
            self.give(id, Job::Open(Box::new(ledger)))?;
            if let Some(reason) = header.cancelled {
                return self.finished(id, Some(reason));
            }
            let new = self.new_campaign(id, campaign, header.seed);
            return self.step(Event::Submit(Box::new(new)));
        };
        kept.status.hosts = hosts.iter().map(|host| host.name.clone()).collect();
        kept.status.started_unix_ms = Some(header.provenance.started_unix_ms);
        self.kept.insert(id.to_owned(), kept);
        self.give(id, Job::Open(Box::new(ledger)))?;
        let Some(plan) = kept::plan_again(&campaign, &header) else {
            let why = "this version of Toll plans it otherwise than the one that began it";
            tracing::error!(campaign = id, why, "can't go on");
            return self.finished(id, Some(why.to_owned()));
        };
        let place: BTreeMap<_, usize> =
            plan.trials.iter().enumerate().map(|(index, trial)| (trial.id, index)).collect();
        let mut counts = RunCounts::default();
        for (_, status) in &outcomes {
            counts.add(*status);
        }
        let resumed = ResumedCampaign {
            id: id.to_owned(),
            recorded: outcomes.iter().filter_map(|(trial, _)| place.get(trial).copied()).collect(),
            begun: begun.iter().filter_map(|(trial, at)| Some((*place.get(trial)?, *at))).collect(),
            plan,
            hosts,
            counts,
            cancelled: header.cancelled,
        };
        tracing::info!(
            campaign = id,
            recorded = resumed.recorded.len(),
            begun = resumed.begun.len(),
            planned = resumed.plan.trials.len(),
            "goes on"
        );
        self.step(Event::Resume(Box::new(resumed)))
    }
}
