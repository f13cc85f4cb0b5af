//! The service as the HTTP API, the Kubernetes controller and `toll run` see it: questions over a channel to the one
//! task that owns everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use toll_protocol::campaign::{self, Campaign, Problem};
use toll_protocol::result::CampaignResult;
use toll_protocol::service::{AgentStatus, CampaignPage, CampaignStatus, LeftOut, Submitted};

pub use super::listing::{LONGEST_PAGE, PAGE, PageQuery};

/// Questions that may wait; past that those who ask wait.
const WAITING: usize = 64;
/// Documents that are read at the same time. Each is bounded (`campaign::MAX_NODES`), whether its submitter waits or not.
const READERS: usize = 2;
/// How long a document waits to be read.
const TURN: Duration = Duration::from_secs(10);

/// Why a campaign is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It is no valid campaign.
    #[error("the campaign is not valid")]
    Invalid(Vec<Problem>),
    /// It names no hosts of a fleet.
    #[error("spec.hosts names no hosts of a fleet: write `select: {{}}` there")]
    NoSelect,
    /// The id can't be one.
    #[error("`{id}` is no campaign id: write 1 to 80 of a-z, 0-9 and -, not - at an end")]
    Id {
        /// What was asked for.
        id: String,
    },
    /// There is another campaign of that id.
    #[error("there is another campaign with the id {id}: choose another id, or leave it out")]
    Taken {
        /// The id.
        id: String,
    },
    /// There is something of that name in the data directory that is no campaign.
    #[error("{id} is in the data directory and left out ({why}): choose another id, or leave it out")]
    LeftOut {
        /// The id.
        id: String,
        /// What is wrong with it.
        why: String,
        /// Whether that may pass.
        again: bool,
    },
    /// It can't be kept.
    #[error("the campaign can't be kept: {0}")]
    Store(String),
    /// Something of its id is in the data directory, maybe itself, and can't be opened now.
    #[error(
        "campaign {id} can't be begun yet ({why}): it is looked at again every few seconds; submit it again under this id to learn of it"
    )]
    Later {
        /// The id.
        id: String,
        /// Why.
        why: String,
    },
    /// Others submit faster than documents are read.
    #[error("other documents are being read and this one had no turn: submit it again later")]
    Busy,
    /// The service is about to end.
    #[error("the service is ending")]
    Ending,
}

/// Why a campaign can't be cancelled or shown.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// There is none of that id.
    #[error("there is no campaign {id}")]
    Unknown {
        /// The id.
        id: String,
    },
    /// It can't be served.
    #[error("campaign {id} is left out: {why}")]
    LeftOut {
        /// The id.
        id: String,
        /// Why.
        why: String,
        /// Whether that may pass.
        again: bool,
    },
    /// It has no plan yet, and so no result.
    #[error("campaign {id} has no result yet: it waits for hosts")]
    Pending {
        /// The id.
        id: String,
    },
    /// It was never planned, and so has no result.
    #[error("campaign {id} has no result, as it was refused: {why}")]
    Refused {
        /// The id.
        id: String,
        /// Why its hosts can't do it.
        why: String,
    },
    /// Its ledger can't be read.
    #[error("the results of campaign {id} can't be read: {why}")]
    Ledger {
        /// The id.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// The service is about to end.
    #[error("the service is ending")]
    Ending,
}

/// Why campaigns can't be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// What was given to go on with is not what a page gave.
    #[error("`{given}` is no place in the list: give as `continue` what the page before gave")]
    Continue {
        /// What was given.
        given: String,
    },
    /// The service is about to end.
    #[error("the service is ending")]
    Ending,
}

/// What a cluster says of the host of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Labels, beside those that the agent gives itself, which win.
    pub labels: BTreeMap<String, String>,
    /// Why its host gets no trials: `the node is cordoned`. A trial under way goes on.
    pub barred: Option<String>,
}

type Answer<T> = oneshot::Sender<T>;

/// A question to the service.
#[derive(Debug)]
pub enum Request {
    /// Take a campaign.
    Submit {
        /// The id that it shall have; the same campaign may be submitted under one id again and again.
        id: Option<String>,
        /// The document.
        manifest: String,
        /// What it says.
        campaign: Box<Campaign>,
        /// The answer, once the campaign is durable.
        answer: Answer<Result<Submitted, SubmitError>>,
    },
    /// End a campaign: trials under way are lost, the others skipped. One that is over stays as it is.
    Cancel {
        /// Its id.
        id: String,
        /// Why, one sentence.
        reason: String,
        /// The answer, once the wish is durable.
        answer: Answer<Result<(), LookupError>>,
    },
    /// Campaigns that the service knows, the latest first.
    Campaigns {
        /// Which.
        query: PageQuery,
        /// The answer.
        answer: Answer<Result<CampaignPage, ListError>>,
    },
    /// What is left out of them.
    LeftOut(Answer<LeftOut>),
    /// One campaign.
    Campaign {
        /// Its id.
        id: String,
        /// The answer.
        answer: Answer<Result<CampaignStatus, LookupError>>,
    },
    /// The result of a campaign, as far as it has come.
    Result {
        /// Its id.
        id: String,
        /// The answer.
        answer: Answer<Result<Box<CampaignResult>, LookupError>>,
    },
    /// Every agent that has been connected.
    Agents(Answer<Vec<AgentStatus>>),
    /// What the cluster says of every node, by name: it replaces what it said before. A node that is not named has
    /// no labels and is not barred.
    Nodes(BTreeMap<String, Node>),
}

/// Asks the service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    changes: watch::Receiver<u64>,
    readers: Arc<Semaphore>,
}

/// The service's own side of all its handles.
#[derive(Debug)]
pub struct Questions {
    /// What is asked.
    pub requests: mpsc::Receiver<Request>,
    /// Counted up with every change that a status would show.
    pub changes: watch::Sender<u64>,
}

/// A handle and what it asks.
pub fn channel() -> (Handle, Questions) {
    let (sender, requests) = mpsc::channel(WAITING);
    let (changes, receiver) = watch::channel(0);
    let readers = Arc::new(Semaphore::new(READERS));
    (Handle { requests: sender, changes: receiver, readers }, Questions { requests, changes })
}

impl Handle {
    /// Submits a campaign; durable on return.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub async fn submit(&self, id: Option<String>, manifest: String) -> Result<Submitted, SubmitError> {
        let turn = tokio::time::timeout(TURN, self.readers.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| SubmitError::Busy)?.map_err(|_| SubmitError::Ending)?;
        // A document of a megabyte takes a while: that is whoever submits it's, not the service's. One whose submitter has
        // gone is read to its end: it keeps its turn until then.
        let parsed = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            (campaign::parse(&manifest), manifest)
        });
        let parsed = parsed.await;
        let (parsed, manifest) = parsed.map_err(|_| SubmitError::Ending)?;
        let campaign = Box::new(parsed.map_err(SubmitError::Invalid)?);
        let asked = self.ask(|answer| Request::Submit { id, manifest, campaign, answer }).await;
        asked.unwrap_or(Err(SubmitError::Ending))
    }

    /// Cancels a campaign; the wish is durable on return. Idempotent.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn cancel(&self, id: &str, reason: &str) -> Result<(), LookupError> {
        let (id, reason) = (id.to_owned(), reason.to_owned());
        let asked = self.ask(|answer| Request::Cancel { id, reason, answer }).await;
        asked.unwrap_or(Err(LookupError::Ending))
    }

    /// A page of the campaigns, the latest first.
    ///
    /// # Errors
    /// [`ListError`].
    pub async fn campaigns(&self, query: PageQuery) -> Result<CampaignPage, ListError> {
        let asked = self.ask(|answer| Request::Campaigns { query, answer }).await;
        asked.unwrap_or(Err(ListError::Ending))
    }

    /// What lies in the data directory and can't be served; nothing from a service that ends.
    pub async fn left_out(&self) -> LeftOut {
        self.ask(Request::LeftOut).await.unwrap_or_default()
    }

    /// One campaign.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn campaign(&self, id: &str) -> Result<CampaignStatus, LookupError> {
        let id = id.to_owned();
        self.ask(|answer| Request::Campaign { id, answer }).await.unwrap_or(Err(LookupError::Ending))
    }

    /// The result of a campaign, as far as it has come.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn result(&self, id: &str) -> Result<Box<CampaignResult>, LookupError> {
        let id = id.to_owned();
        self.ask(|answer| Request::Result { id, answer }).await.unwrap_or(Err(LookupError::Ending))
    }

    /// Every agent that has been connected, by name.
    pub async fn agents(&self) -> Vec<AgentStatus> {
        self.ask(Request::Agents).await.unwrap_or_default()
    }

    /// Tells what the cluster says of its nodes.
    pub async fn nodes(&self, nodes: BTreeMap<String, Node>) {
        // A service that ends needs no nodes.
        let _ = self.requests.send(Request::Nodes(nodes)).await;
    }

    /// Tells of changes: the number grows with every change that a status would show.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Option<T> {
        let (answer, receiver) = oneshot::channel();
        self.requests.send(request(answer)).await.ok()?;
        receiver.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn documents_are_read_in_turn() {
        let (handle, questions) = channel();
        drop(questions);
        let all = handle.readers.clone().acquire_many_owned(READERS as u32).await.expect("open");
        let waits = tokio::spawn({
            let handle = handle.clone();
            async move { handle.submit(None, "[".repeat(campaign::MAX_DOCUMENT)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        // Who asks something else does not wait.
        assert!(handle.agents().await.is_empty());
        drop(all);
        let refused = waits.await.expect("no panic").expect_err("is no campaign");
        assert!(matches!(&refused, SubmitError::Invalid(problems) if problems.len() == 1), "{refused}");
    }

    #[test]
    fn a_document_whose_submitter_has_gone_keeps_its_turn_until_it_is_read() {
        let (handle, _questions) = channel();
        // The one thread that could read it is busy until it is told.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build();
        runtime.expect("a runtime").block_on(async {
            let (release, told) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || told.recv());
            let submitted = handle.submit(None, String::new());
            assert!(tokio::time::timeout(Duration::ZERO, submitted).await.is_err());
            assert!(handle.readers.try_acquire_many(READERS as u32).is_err(), "its turn is given back");
            release.send(()).expect("is waited for");
            busy.await.expect("no panic").expect("is told");
            assert!(handle.readers.acquire_many(READERS as u32).await.is_ok());
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_document_that_has_no_turn_is_refused() {
        let (handle, _questions) = channel();
        let _all = handle.readers.clone().acquire_many_owned(READERS as u32).await.expect("open");
        let refused = handle.submit(None, String::new()).await.expect_err("has no turn");
        assert!(matches!(refused, SubmitError::Busy), "{refused}");
    }
}
