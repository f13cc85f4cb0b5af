//! Summaries of campaigns, made beside the service's task, and the end of a campaign.
//!
//! ```text
//! Finished --Close--> ledger closed --> last summary --> result.json, report.html --> status.json: over
//! ```

use std::time::{Duration, Instant};

use toll_protocol::result::CampaignResult;
use toll_protocol::service::CampaignState;

use super::kept::{self, Phase};
use super::store::{LEDGER, Over, Store};
use super::writer::Job;
use super::{Observer, Service, ServiceError, unix_ms};
use crate::ledger::LedgerError;
use crate::scheduler::Event;

/// Something that was made beside the task.
pub(super) enum Made {
    Summary {
        id: String,
        result: Result<Box<CampaignResult>, String>,
        took: Duration,
    },
    Ended {
        id: String,
        result: Result<Box<CampaignResult>, String>,
    },
    /// The result of a campaign of a former process, for whoever shows figures.
    Shown {
        id: String,
        result: Box<CampaignResult>,
    },
}

impl<O: Observer> Service<O> {
    /// Every trial of a campaign is recorded: its ledger is closed, then its files are written.
    pub(super) fn finished(&mut self, id: &str, cancelled: Option<String>) -> Result<(), ServiceError> {
        let Some(kept) = self.kept.get(id) else { return Ok(()) };
        let mut provenance = kept.provenance.clone().unwrap_or_else(|| self.provenance(&[]));
        provenance.ended_unix_ms = Some(unix_ms());
        provenance.interrupted |= cancelled.is_some();
        let facts = self.facts_of(kept.status.hosts.iter().map(String::as_str));
        // Those that were not there when it was planned; one that is away now keeps what it said then.
        for host in facts {
            match provenance.hosts.iter_mut().find(|known| known.name == host.name) {
                Some(known) => *known = host,
                None => provenance.hosts.push(host),
            }
        }
        if let Some(kept) = self.kept.get_mut(id) {
            kept.phase = Phase::Ending;
            kept.status.reason = cancelled;
            kept.status.ended_unix_ms = provenance.ended_unix_ms;
        }
        self.give(id, Job::Close(Box::new(provenance)))
    }

    /// Summarises a running campaign beside the task.
    pub(super) fn begin_summary(&mut self, id: &str) {
        let Some(kept) = self.kept.get_mut(id) else { return };
        (kept.stale, kept.summarising) = (false, true);
        let (gates, path) = (kept.gates.clone(), self.options.store.directory(id).join(LEDGER));
        let (made, id) = (self.made.0.clone(), id.to_owned());
        tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let result = kept::summarise(&path, &gates);
            // The service may have ended.
            let _ = made.blocking_send(Made::Summary { id, result, took: began.elapsed() });
        });
    }

    /// Makes the last summary of a campaign and writes its files beside the task.
    pub(super) fn begin_end(&mut self, id: &str) {
        let Some(kept) = self.kept.get(id) else { return };
        let (store, gates) = (self.options.store.clone(), kept.gates.clone());
        let (made, id) = (self.made.0.clone(), id.to_owned());
        tokio::task::spawn_blocking(move || {
            let path = store.directory(&id).join(LEDGER);
            let result = kept::summarise(&path, &gates).and_then(|result| {
                store.write_result(&id, &result).map_err(|error| kept::chain(&error))?;
                Ok(result)
            });
            // The service may have ended: the next process writes them.
            let _ = made.blocking_send(Made::Ended { id, result });
        });
    }

    pub(super) fn was_made(&mut self, made: Made) -> Result<(), ServiceError> {
        match made {
            Made::Summary { id, result, took } => {
                let Some(kept) = self.kept.get_mut(&id) else { return Ok(()) };
                match result {
                    Ok(result) => {
                        kept.summarised(&result, took);
                        self.observer.summarised(&id, &result);
                        self.changed = true;
                    }
                    Err(why) => {
                        kept.summarising = false;
                        tracing::warn!(campaign = id, why, "can't be summarised");
                    }
                }
                Ok(())
            }
            Made::Ended { id, result } => {
                self.ended(&id, result.as_deref());
                Ok(())
            }
            Made::Shown { id, result } => {
                self.observer.summarised(&id, &result);
                Ok(())
            }
        }
    }

    /// The ledger of a campaign takes nothing more, now or later: what it has stays, its hosts are for others.
    pub(super) fn abandon(&mut self, id: &str, error: &LedgerError) -> Result<(), ServiceError> {
        let why = format!("its ledger can't be used any more: {}", kept::chain(error));
        tracing::error!(campaign = id, why, "ended");
        if let Some(kept) = self.kept.get_mut(id) {
            kept.phase = Phase::Over;
            kept.status.state = CampaignState::Cancelled;
            (kept.status.reason, kept.status.ended_unix_ms) = (Some(why), Some(unix_ms()));
        }
        self.changed = true;
        self.cancelled_already(id);
        self.step(Event::Abandon { campaign: id.to_owned() })
    }

    fn ended(&mut self, id: &str, result: Result<&CampaignResult, &String>) {
        let Some(kept) = self.kept.get_mut(id) else { return };
        match result {
            Ok(result) => {
                kept.summarised(result, Duration::ZERO);
                self.observer.summarised(id, result);
            }
            // The records are in the ledger, whatever became of the files beside it. A disk that is full may have room
            // later, and until then the campaign is not over.
            Err(why) if matches!(self.options.store, Store::Fleet(_)) => {
                tracing::error!(campaign = id, why, "its files can't be written: tried again in a second");
                kept.end_again();
                return;
            }
            Err(why) => tracing::error!(campaign = id, why, "its files can't be written"),
        }
        let cancelled = kept.status.reason.is_some();
        kept.status.state = if cancelled { CampaignState::Cancelled } else { CampaignState::Finished };
        kept.phase = Phase::Over;
        let over = Over { status: kept.status.clone(), manifest: kept.manifest.clone() };
        if result.is_ok()
            && let Err(error) = self.options.store.write_status(&over)
        {
            tracing::error!(campaign = id, "{}", kept::chain(&error));
        }
        tracing::info!(campaign = id, state = %kept.status.state, "over");
        self.changed = true;
    }
}
