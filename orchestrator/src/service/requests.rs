//! What is asked of the service, and its answers.

use tokio::sync::oneshot;
use toll_protocol::campaign::Campaign;
use toll_protocol::error::chain;
use toll_protocol::result::CampaignResult;
use toll_protocol::service::{CampaignState, CampaignStatus, Submitted};

use super::handle::{LookupError, Request, SubmitError};
use super::ids::{self, is_id};
use super::kept::{self, Kept, Phase};
use super::past::Past;
use super::store::{LEDGER, Store, StoreError};
use super::writer::Job;
use super::{Observer, Service, ServiceError, Waiting, unix_ms};
use crate::scheduler::Event;

impl<O: Observer> Service<O> {
    pub(super) fn asked(&mut self, request: Request) -> Result<(), ServiceError> {
        match request {
            Request::Submit { id, manifest, campaign, answer } => {
                self.submit(id, &manifest, *campaign, answer)?;
            }
            Request::Cancel { id, reason, answer } => self.cancel(&id, reason, answer)?,
            // Whoever asked may have gone meanwhile: that is no fault, here and below.
            Request::Campaigns { query, answer } => self.list(&query, answer),
            Request::LeftOut(answer) => drop(answer.send(self.left_out.told())),
            Request::Campaign { id, answer } => self.campaign(id, answer),
            Request::Result { id, answer } => self.result(id, answer),
            Request::Agents(answer) => drop(answer.send(self.agents())),
            Request::Nodes(nodes) => {
                self.changed = true;
                self.step(Event::Nodes(nodes))?;
            }
        }
        Ok(())
    }

    pub(super) fn status(&self, id: &str, kept: &Kept) -> CampaignStatus {
        kept.status(self.scheduler.progress(id, self.now()), self.scheduler.waits_for(id))
    }

    fn submit(
        &mut self,
        id: Option<String>,
        manifest: &str,
        campaign: Campaign,
        answer: oneshot::Sender<Result<Submitted, SubmitError>>,
    ) -> Result<(), ServiceError> {
        match self.take(id, manifest, campaign) {
            Ok(Taken::Known(id)) => drop(answer.send(Ok(Submitted { id, new: false }))),
            Ok(Taken::New { id, campaign, header }) => {
                let kept = Kept::new(&id, &header, campaign.gates.clone(), Phase::Creating);
                let new = self.new_campaign(&id, *campaign, header.seed);
                self.kept.insert(id.clone(), kept);
                self.waiting.push((id.clone(), Waiting::Submitted(answer, Box::new(new))));
                self.give(&id, Job::Create(header))?;
            }
            Err(error) => drop(answer.send(Err(error))),
        }
        Ok(())
    }

    fn take(&self, id: Option<String>, manifest: &str, campaign: Campaign) -> Result<Taken, SubmitError> {
        if campaign.select.is_none() && self.options.lab.is_none() {
            return Err(SubmitError::NoSelect);
        }
        let id = match id {
            Some(id) if !is_id(&id) => return Err(SubmitError::Id { id }),
            Some(id) => match self.kept.get(&id) {
                Some(kept) if kept.phase == Phase::Creating => return Err(SubmitError::Taken { id }),
                Some(kept) if kept.manifest == manifest => return Ok(Taken::Known(id)),
                Some(_) => return Err(SubmitError::Taken { id }),
                None => match self.past.get(&id) {
                    Some(past) if past.is_of(manifest) => return Ok(Taken::Known(id)),
                    Some(_) => return Err(SubmitError::Taken { id }),
                    None => self.not_left_out(id)?,
                },
            },
            None => self.free_id(&campaign.name)?,
        };
        // A seed that was not asked for is short enough to be typed again.
        let seed = campaign.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
        let header = kept::header(&campaign, manifest, seed, self.provenance(&[]), unix_ms());
        Ok(Taken::New { id, campaign: Box::new(campaign), header: Box::new(header) })
    }

    fn not_left_out(&self, id: String) -> Result<String, SubmitError> {
        match self.left_out.get(&id) {
            Some(entry) => {
                Err(SubmitError::LeftOut { id, why: entry.reason.clone(), again: entry.tried_again })
            }
            None => Ok(id),
        }
    }

    /// An id that no campaign has, and nothing in the data directory: of its name and the second, in UTC.
    fn free_id(&self, name: &str) -> Result<String, SubmitError> {
        let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        let one = matches!(self.options.store, super::Store::One(_));
        let is_taken = |id: &str| {
            self.kept.contains_key(id)
                || self.past.get(id).is_some()
                // What can't be looked at is there.
                || !one && self.options.store.directory(id).symlink_metadata().is_ok()
        };
        ids::free(name, &time, is_taken).ok_or_else(|| SubmitError::Taken { id: format!("{name}-{time}") })
    }

    pub(super) fn created(&mut self, id: &str, created: Result<(), StoreError>) -> Result<(), ServiceError> {
        let Some(at) = self
            .waiting
            .iter()
            .position(|(waiting, what)| waiting == id && matches!(what, Waiting::Submitted(..)))
        else {
            return Ok(());
        };
        let (_, Waiting::Submitted(answer, new)) = self.waiting.remove(at) else { return Ok(()) };
        match created {
            Ok(()) => {
                tracing::info!(campaign = id, "submitted");
                if let Some(kept) = self.kept.get_mut(id) {
                    kept.phase = Phase::Live;
                }
                drop(answer.send(Ok(Submitted { id: id.to_owned(), new: true })));
                self.step(Event::Submit(new))
            }
            Err(error) => {
                self.kept.remove(id);
                let why = chain(&error);
                if let StoreError::There { .. } = error {
                    // It goes on by itself once it can be opened; until then nobody else gets its name.
                    self.leave_out(id, why.clone(), true);
                    drop(answer.send(Err(SubmitError::Later { id: id.to_owned(), why })));
                } else {
                    tracing::error!(campaign = id, why, "can't be kept");
                    drop(answer.send(Err(SubmitError::Store(why))));
                }
                Ok(())
            }
        }
    }

    fn cancel(
        &mut self,
        id: &str,
        reason: String,
        answer: oneshot::Sender<Result<(), LookupError>>,
    ) -> Result<(), ServiceError> {
        match self.kept.get(id).map(|kept| kept.phase) {
            None if self.past.get(id).is_some() => {
                drop(answer.send(Ok(())));
                Ok(())
            }
            None | Some(Phase::Creating) => {
                drop(answer.send(Err(self.unknown(id.to_owned()))));
                Ok(())
            }
            Some(Phase::Ending | Phase::Over) => {
                drop(answer.send(Ok(())));
                Ok(())
            }
            Some(Phase::Live) => {
                self.waiting.push((id.to_owned(), Waiting::Cancelled(answer, reason.clone())));
                self.give(id, Job::Cancel(reason))
            }
        }
    }

    /// Answers those who wait for the end of a campaign that has come without them.
    pub(super) fn cancelled_already(&mut self, id: &str) {
        while self.answer_cancel(id).is_some() {}
    }

    fn answer_cancel(&mut self, id: &str) -> Option<String> {
        let wanted =
            |(waiting, what): &(String, Waiting)| waiting == id && matches!(what, Waiting::Cancelled(..));
        let at = self.waiting.iter().position(wanted)?;
        let (_, Waiting::Cancelled(answer, reason)) = self.waiting.remove(at) else { return None };
        drop(answer.send(Ok(())));
        Some(reason)
    }

    /// The wish to end a campaign is durable.
    pub(super) fn cancelled(&mut self, id: &str) -> Result<(), ServiceError> {
        let Some(reason) = self.answer_cancel(id) else { return Ok(()) };
        self.step(Event::Cancel { campaign: id.to_owned(), reason })
    }

    fn result(&self, id: String, answer: oneshot::Sender<Result<Box<CampaignResult>, LookupError>>) {
        let store = self.options.store.clone();
        let unreadable = |id, why| LookupError::Ledger { id, why };
        match self.kept.get(&id) {
            None => {
                let Some(past) = self.past.get(&id).cloned() else {
                    return drop(answer.send(Err(self.unknown(id))));
                };
                drop(tokio::task::spawn_blocking(move || {
                    let result = match refusal(&past, &store) {
                        Some(why) => Err(LookupError::Refused { id, why }),
                        None => store.result(&id).map_err(|why| unreadable(id, why)),
                    };
                    drop(answer.send(result));
                }));
            }
            Some(Kept { status, .. }) if status.state == CampaignState::Refused => {
                let why = status.reason.clone().unwrap_or_default();
                drop(answer.send(Err(LookupError::Refused { id, why })));
            }
            Some(Kept { phase: Phase::Over, result, status, .. }) => {
                let why = || status.fault.clone().unwrap_or_default();
                drop(answer.send(result.clone().ok_or_else(|| unreadable(id, why()))));
            }
            Some(kept) if kept.status.hosts.is_empty() => drop(answer.send(Err(LookupError::Pending { id }))),
            Some(kept) => {
                let gates = kept.gates.clone();
                drop(tokio::task::spawn_blocking(move || {
                    let result = kept::summarise(&store.directory(&id).join(LEDGER), &gates, &[]);
                    drop(answer.send(result.map_err(|error| unreadable(id, chain(&error)))));
                }));
            }
        }
    }
}

/// Why a campaign that is over was refused, if it was. Reads: for a thread that may block.
fn refusal(past: &Past, store: &Store) -> Option<String> {
    let status = (past.state == CampaignState::Refused).then(|| past.status(store))?;
    Some(status.and_then(|status| status.reason.or(status.fault)).unwrap_or_default())
}

/// What becomes of a submission.
enum Taken {
    Known(String),
    New { id: String, campaign: Box<Campaign>, header: Box<crate::ledger::LedgerHeader> },
}
