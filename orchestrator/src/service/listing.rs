//! Lists of campaigns, page by page, and campaigns that are over, read when somebody asks; the removal of those that
//! are not to be kept.

use std::cmp::Reverse;

use tokio::sync::oneshot;
use toll_protocol::error::chain;
use toll_protocol::service::{CampaignPage, CampaignStatus, LeftOutEntry};

use super::ending::Made;
use super::handle::{ListError, LookupError};
use super::kept::Phase;
use super::past::Past;
use super::{Observer, Service, unix_ms};

/// Campaigns of a page, if it is not said how many.
pub const PAGE: usize = 100;
/// Most campaigns of a page.
pub const LONGEST_PAGE: usize = 500;
/// Those who read files of campaigns that are over at the same time: each has one whole status in memory.
pub(super) const READERS: usize = 4;

/// Which campaigns are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageQuery {
    /// How many at most; [`PAGE`] if it is not said, and never more than [`LONGEST_PAGE`].
    pub limit: Option<usize>,
    /// What a page gave to go on with.
    pub after: Option<String>,
}

/// A place in the list, the latest first: when a campaign was submitted, and its id.
type Place = Reverse<(u64, String)>;

/// The place that a page says to go on at: `1764300000000.quickstart-20261124-190406`.
fn place(text: &str) -> Result<Place, ListError> {
    let parts = text.split_once('.').and_then(|(time, id)| Some((time.parse().ok()?, id.to_owned())));
    parts.map(Reverse).ok_or_else(|| ListError::Continue { given: text.to_owned() })
}

/// A campaign of a page.
enum Item {
    Now(Box<CampaignStatus>),
    Past(Past),
}

impl<O: Observer> Service<O> {
    /// Answers with a page; what is over is read beside the task.
    pub(super) fn list(&self, query: &PageQuery, answer: oneshot::Sender<Result<CampaignPage, ListError>>) {
        let after = match query.after.as_deref().map(place).transpose() {
            Ok(after) => after,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let limit = query.limit.unwrap_or(PAGE).clamp(1, LONGEST_PAGE);
        let live = self.kept.iter().filter(|(_, kept)| kept.phase != Phase::Creating);
        let live = live.map(|(id, kept)| Reverse((kept.status.submitted_unix_ms, id.clone())));
        let past = self.past.iter().map(|past| Reverse((past.submitted_unix_ms, past.id.clone())));
        let mut places: Vec<Place> =
            live.chain(past).filter(|place| after.as_ref().is_none_or(|after| place > after)).collect();
        places.sort_unstable();
        let more = places.len() > limit;
        places.truncate(limit);
        let next = places.last().filter(|_| more).map(|Reverse((time, id))| format!("{time}.{id}"));
        let items: Vec<Item> = places.iter().filter_map(|Reverse((_, id))| self.item(id)).collect();
        let left_out = self.left_out.count();
        let (store, reading) = (self.options.store.clone(), self.reading.clone());
        tokio::spawn(async move {
            let Ok(_turn) = reading.acquire_owned().await else { return };
            let page = tokio::task::spawn_blocking(move || {
                let status = |item| match item {
                    Item::Now(status) => Some(*status),
                    // One that is gone was removed meanwhile.
                    Item::Past(past) => past.status(&store),
                };
                let brief = |status: CampaignStatus| CampaignStatus { cells: Vec::new(), ..status };
                let items = items.into_iter().filter_map(status).map(brief).collect();
                CampaignPage { items, next, left_out }
            });
            // Whoever asked may have gone.
            let _ = answer.send(page.await.map_err(|_| ListError::Ending));
        });
    }

    fn item(&self, id: &str) -> Option<Item> {
        match self.kept.get(id) {
            Some(kept) => Some(Item::Now(Box::new(self.status(id, kept)))),
            None => self.past.get(id).cloned().map(Item::Past),
        }
    }

    /// Answers with how a campaign is.
    pub(super) fn campaign(&self, id: String, answer: oneshot::Sender<Result<CampaignStatus, LookupError>>) {
        match self.item(&id) {
            Some(Item::Now(status)) => drop(answer.send(Ok(*status))),
            None => drop(answer.send(Err(self.unknown(id)))),
            Some(Item::Past(past)) => {
                let (store, reading) = (self.options.store.clone(), self.reading.clone());
                tokio::spawn(async move {
                    let Ok(_turn) = reading.acquire_owned().await else { return };
                    let read = tokio::task::spawn_blocking(move || past.status(&store)).await;
                    let status = read.map_err(|_| LookupError::Ending);
                    drop(answer.send(status.and_then(|status| status.ok_or(LookupError::Unknown { id }))));
                });
            }
        }
    }

    /// Why there is no campaign `id`.
    pub(super) fn unknown(&self, id: String) -> LookupError {
        match self.left_out.get(&id) {
            Some(entry) => LookupError::LeftOut { id, why: entry.reason.clone(), again: entry.tried_again },
            None => LookupError::Unknown { id },
        }
    }

    /// Removes campaigns that are over and not to be kept, beside the task.
    pub(super) fn begin_removing(&mut self) {
        let (Some(keep), least) = (self.options.keep, self.options.keep_for) else { return };
        if self.began.elapsed() < least {
            return;
        }
        let until = unix_ms().saturating_sub(u64::try_from(least.as_millis()).unwrap_or(u64::MAX));
        let ids = self.past.beyond(keep, until);
        if ids.is_empty() {
            return;
        }
        for id in &ids {
            tracing::info!(campaign = id, keep, "is removed: later ones have ended");
            self.past.remove(id);
            self.observer.removed(id);
        }
        let (store, made) = (self.options.store.clone(), self.made.0.clone());
        tokio::task::spawn_blocking(move || {
            let failed = ids.into_iter().filter_map(|name| {
                let error = store.remove(&name).err()?;
                Some(LeftOutEntry { name, reason: chain(&error), tried_again: false })
            });
            // The service may have ended: the next process removes them.
            let _ = made.blocking_send(Made::Removed(failed.collect()));
        });
    }

    /// Campaigns were removed, but for those that could not be.
    pub(super) fn removed(&mut self, failed: Vec<LeftOutEntry>) {
        for entry in failed {
            self.leave_out(&entry.name, entry.reason, entry.tried_again);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_service_s_own_word() {
        let Reverse((time, id)) = place("17.c-1").expect("a place");
        assert_eq!((time, id.as_str()), (17, "c-1"));
        for wrong in ["", "17", "x.c", "-1.c", "99999999999999999999.c"] {
            let error = place(wrong).expect_err(wrong);
            assert!(error.to_string().contains("`continue`"), "{error}");
        }
        assert!(place("18.a").expect("a place") < place("17.b").expect("a place"), "the latest first");
    }
}
