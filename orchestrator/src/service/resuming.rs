//! Campaigns that a former process of the orchestrator began: their plans are made again, and what their ledgers
//! don't have goes on as the agents come back.

use std::collections::BTreeMap;

use toll_protocol::campaign;
use toll_protocol::result::RunCounts;

use super::ending::Made;
use super::kept::{self, Kept, Phase};
use super::store::{Found, Live, Look};
use super::writer::Job;
use super::{Observer, Service, ServiceError};
use crate::scheduler::{Ending, Event, ResumedCampaign};

/// Campaigns that are over and whose figures are shown again: the latest of each name are among them.
const SHOWN: usize = 20;

impl<O: Observer> Service<O> {
    /// Takes up what former processes left. What can't be served is named, and left as it is.
    ///
    /// # Errors
    /// [`ServiceError`], if there is no list of campaigns.
    pub(super) fn load(&mut self) -> Result<(), ServiceError> {
        let mut live = Vec::new();
        for (name, look) in self.options.store.load()? {
            match look {
                Look::Found(Found::Over(over)) => self.take_over(&name, &over),
                Look::Found(Found::Live(found)) => {
                    live.push((found.ledger.header().submitted_unix_ms, name, found));
                }
                Look::LeftOut { reason, again } => self.leave_out(&name, reason, again),
                Look::Gone => {}
            }
        }
        // Served in the order of their submission.
        live.sort_by(|(a, first, _), (b, second, _)| (a, first).cmp(&(b, second)));
        for (_, id, found) in live {
            self.resume(&id, *found)?;
        }
        self.begin_removing();
        self.show_again(self.past.latest(SHOWN));
        Ok(())
    }

    /// Tells the observer of figures that a former process told of, the oldest first.
    fn show_again(&self, ids: Vec<String>) {
        if ids.is_empty() {
            return;
        }
        let (store, made) = (self.options.store.clone(), self.made.0.clone());
        tokio::task::spawn_blocking(move || {
            for id in ids {
                match store.result(&id) {
                    Ok(result) => drop(made.blocking_send(Made::Shown { id, result })),
                    Err(why) => tracing::warn!(campaign = id, "its figures can't be shown: {why}"),
                }
            }
        });
    }

    /// Takes a campaign of a former process up again.
    pub(super) fn resume(&mut self, id: &str, found: Live) -> Result<(), ServiceError> {
        let Live { ledger, outcomes, begun, started } = found;
        let header = ledger.header().clone();
        let campaign = match campaign::parse(&header.manifest) {
            Ok(campaign) => campaign,
            Err(problems) => {
                self.leave_out(id, kept::refused(&problems), false);
                return Ok(());
            }
        };
        self.left_out.know(header.planned.iter().map(|planned| planned.trial));
        let mut kept = Kept::new(id, &header, campaign.gates.clone(), Phase::Live);
        let Some(hosts) = header.hosts.clone() else {
            self.kept.insert(id.to_owned(), kept);
            self.give(id, Job::Open(Box::new(ledger)))?;
            if let Some(reason) = header.cancelled {
                return self.finished(id, Ending::Cancelled(reason));
            }
            let new = self.new_campaign(id, campaign, header.seed);
            return self.step(Event::Submit(Box::new(new)));
        };
        kept.status.hosts = hosts.iter().map(|host| host.name.clone()).collect();
        kept.status.started_unix_ms = started;
        self.kept.insert(id.to_owned(), kept);
        self.give(id, Job::Open(Box::new(ledger)))?;
        let Some(plan) = kept::plan_again(&campaign, &header) else {
            let why = "this version of Toll plans it otherwise than the one that began it";
            tracing::error!(campaign = id, why, "can't go on");
            if let Some(kept) = self.kept.get_mut(id) {
                // Nobody wanted it to end.
                kept.status.fault = Some(why.to_owned());
            }
            return self.finished(id, Ending::Cancelled(why.to_owned()));
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
