//! Campaigns that a former process of the orchestrator began: their plans are made again, and what their ledgers
//! don't have goes on as the agents come back.

use std::collections::BTreeMap;

use toll_protocol::campaign;
use toll_protocol::result::RunCounts;

use super::ending::Made;
use super::kept::{self, Kept, Phase};
use super::store::{Found, Loaded};
use super::writer::Job;
use super::{Observer, Service, ServiceError};
use crate::ledger::{Ledger, LedgerError};
use crate::scheduler::{Event, ResumedCampaign};

/// Campaigns that are over and whose figures are shown again: the latest of each name are among them.
const SHOWN: usize = 20;

impl<O: Observer> Service<O> {
    /// Takes up what former processes left.
    ///
    /// # Errors
    /// [`ServiceError`]. A campaign that can't be read now and may be later is one: agents that hold its results would
    /// be told that nobody waits for them. One that never can is left alone.
    pub(super) fn load(&mut self) -> Result<(), ServiceError> {
        let Loaded { found, unreadable } = self.options.store.load()?;
        for error in unreadable {
            if error.may_pass() {
                return Err(error.into());
            }
            tracing::error!("a campaign is left alone: {}", kept::chain(&error));
        }
        let mut live = Vec::new();
        let mut over = Vec::new();
        for (id, found) in found {
            match found {
                Found::Over(status) => {
                    over.push((status.status.ended_unix_ms, id.clone()));
                    self.kept.insert(id, Kept::over(*status));
                }
                Found::Live(ledger) => live.push((ledger.header().submitted_unix_ms, id, ledger)),
            }
        }
        // Served in the order of their submission.
        live.sort_by(|(a, first, _), (b, second, _)| (a, first).cmp(&(b, second)));
        for (_, id, ledger) in live {
            self.resume(&id, *ledger)?;
        }
        over.sort();
        let latest: Vec<String> = over.into_iter().rev().take(SHOWN).rev().map(|(_, id)| id).collect();
        self.show_again(latest);
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
                match store.read_result(&id) {
                    Ok(result) => drop(made.blocking_send(Made::Shown { id, result })),
                    Err(error) => {
                        tracing::warn!(campaign = id, "its figures can't be shown: {}", kept::chain(&error));
                    }
                }
            }
        });
    }

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
        let read = || Ok::<_, LedgerError>((ledger.outcomes()?, ledger.begun()?, ledger.first_begun()?));
        let (outcomes, begun, started) = match read() {
            Ok(read) => read,
            Err(error) if error.may_pass() => return Err(error.into()),
            Err(error) => {
                tracing::error!(campaign = id, "left alone: {}", kept::chain(&error));
                return Ok(());
            }
        };
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
        kept.status.started_unix_ms = started;
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
