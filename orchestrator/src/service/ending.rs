//! Summaries of campaigns, made beside the service's task, and the end of a campaign.
//!
//! ```text
//! Finished --Close--> ledger closed --> last summary --> result.json, report.html --> status.json: over
//!                          ^                               (a fleet's are written again until they can be)
//! ledger fails for good ---+
//! ```

use std::time::{Duration, Instant};

use toll_protocol::result::{CampaignResult, Gate, TrialRecord};
use toll_protocol::service::{CampaignState, LeftOutEntry};

use super::kept::{self, Phase};
use super::past::Past;
use super::store::{LEDGER, Over, Seen, Store};
use super::writer::Job;
use super::{Observer, Service, ServiceError, unix_ms};
use crate::ledger::LedgerError;
use crate::scheduler::{Ending, Event};

/// Something that was made beside the task.
pub(super) enum Made {
    Summary {
        id: String,
        result: Result<Box<CampaignResult>, String>,
        took: Duration,
    },
    Ended {
        id: String,
        ended: Box<Ended>,
    },
    /// The result of a campaign of a former process, for whoever shows figures.
    Shown {
        id: String,
        result: Box<CampaignResult>,
    },
    /// Entries that were left out, looked at again.
    Looked(Vec<Seen>),
    /// Campaigns that are over and were asked to be removed, with what could not be.
    Removed(Vec<LeftOutEntry>),
}

/// The end of a campaign.
pub(super) struct Ended {
    over: Over,
    /// Its result, if there is one.
    result: Option<Box<CampaignResult>>,
    /// Why its files are not all written.
    unwritten: Option<String>,
}

impl<O: Observer> Service<O> {
    /// Every trial of a campaign is recorded, or there will be none: its ledger is closed, then its files are written.
    pub(super) fn finished(&mut self, id: &str, ending: Ending) -> Result<(), ServiceError> {
        let Some(kept) = self.kept.get(id) else { return Ok(()) };
        let mut provenance = kept.provenance.clone().unwrap_or_else(|| self.provenance(&[]));
        provenance.ended_unix_ms = Some(unix_ms());
        provenance.interrupted |= matches!(ending, Ending::Cancelled(_));
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
            kept.status.state = ending.state();
            kept.status.reason = ending.reason();
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
            let result = kept::summarise(&path, &gates, &[]).map_err(|error| kept::chain(&error));
            // The service may have ended.
            let _ = made.blocking_send(Made::Summary { id, result, took: began.elapsed() });
        });
    }

    /// Makes the last summary of a campaign and writes its files beside the task.
    pub(super) fn begin_end(&mut self, id: &str) {
        let Some(kept) = self.kept.get(id) else { return };
        let (store, gates, unkept) = (self.options.store.clone(), kept.gates.clone(), kept.unkept.clone());
        let over = Over::new(kept.status.clone(), kept.manifest.clone());
        let (made, id) = (self.made.0.clone(), id.to_owned());
        tokio::task::spawn_blocking(move || {
            let ended = Box::new(end(&store, &gates, &unkept, over));
            // The service may have ended: the next process writes them.
            let _ = made.blocking_send(Made::Ended { id, ended });
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
            }
            Made::Ended { id, ended } => self.ended(&id, *ended),
            Made::Shown { id, result } => self.observer.summarised(&id, &result),
            Made::Looked(seen) => self.looked(seen)?,
            Made::Removed(failed) => self.removed(failed),
        }
        Ok(())
    }

    /// The ledger of a campaign takes nothing more, now or later: what it has stays, its hosts are for others.
    pub(super) fn abandon(&mut self, id: &str, error: &LedgerError) -> Result<(), ServiceError> {
        let why = format!("its ledger can't be used any more: {}", kept::chain(error));
        // `toll run` tells it at the end of its own output.
        if matches!(self.options.store, Store::Fleet(_)) {
            tracing::error!(campaign = id, why, "ended");
        }
        let counts = self.scheduler.progress(id, self.now()).map(|progress| progress.counts);
        self.changed = true;
        let Some(kept) = self.kept.get_mut(id) else { return Ok(()) };
        let first = kept.status.fault.is_none();
        kept.status.fault.get_or_insert_with(|| why.clone());
        if first {
            // As far as the scheduler knows: the ledger may have nothing to say.
            kept.status.counts = counts;
            self.cancelled_already(id);
            self.step(Event::Abandon { campaign: id.to_owned() })?;
        }
        // What was given to the ledger before comes back until then.
        self.finished(id, Ending::Cancelled(why))
    }

    fn ended(&mut self, id: &str, Ended { over, result, unwritten }: Ended) {
        let Some(kept) = self.kept.get_mut(id) else { return };
        self.changed = true;
        if let Some(result) = &result {
            kept.summarised(result, Duration::ZERO);
            self.observer.summarised(id, result);
        }
        match (&self.options.store, unwritten) {
            // The records are in the ledger, whatever became of the files beside it. A disk that is full may have room
            // later, and until then the campaign is not over.
            (Store::Fleet(_), Some(why)) => {
                tracing::error!(campaign = id, why, "its end can't be written: tried again in a second");
                kept.trouble = Some(format!("its end can't be written, and is tried again: {why}"));
                kept.end_again();
            }
            (Store::Fleet(_), None) => {
                tracing::info!(campaign = id, state = %over.status.state, "over");
                self.kept.remove(id);
                self.past.insert(Past::new(&over));
                self.begin_removing();
            }
            (Store::One(_), unwritten) => {
                kept.status = over.status;
                kept.status.fault = kept.status.fault.take().or(unwritten);
                (kept.phase, kept.result) = (Phase::Over, result);
            }
        }
    }
}

/// Makes the last summary of a campaign and writes its files. Blocks.
fn end(store: &Store, gates: &[Gate], unkept: &[TrialRecord], mut over: Over) -> Ended {
    let (id, status) = (over.status.id.clone(), &mut over.status);
    if status.state == CampaignState::Refused {
        // It has no plan, and so no result.
        let unwritten = store.write_status(&over).err().map(|error| kept::chain(&error));
        return Ended { over, result: None, unwritten };
    }
    let mut made = None;
    match kept::summarise(&store.directory(&id).join(LEDGER), gates, unkept) {
        Ok(mut result) => {
            if status.fault.is_some() {
                // The ledger could not be told.
                result.provenance.interrupted = true;
                result.provenance.ended_unix_ms = status.ended_unix_ms;
            }
            kept::conclude(status, &result);
            made = Some(result);
        }
        Err(error) if error.may_pass() => {
            let unwritten = Some(kept::chain(&error));
            return Ended { over, result: None, unwritten };
        }
        Err(error) => {
            let why = format!("its ledger can't be read: {}", kept::chain(&error));
            tracing::error!(campaign = id, why, "has no result");
            status.fault.get_or_insert(why);
        }
    }
    let written = made.as_ref().map_or(Ok(()), |result| store.write_result(&id, result).map(drop));
    let written = written.and_then(|()| store.write_status(&over));
    Ended { over, result: made, unwritten: written.err().map(|error| kept::chain(&error)) }
}
