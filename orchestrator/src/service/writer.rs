//! The thread that writes the ledgers: a sync to disk must not hold up messages. What waits together is kept
//! together, in one transaction a ledger.
//!
//! ```text
//! service --Job--> thread: jobs that wait -> one write a ledger -> Wrote --> service
//!                    ^         |
//!                    +- again -+  a disk that is full, a file that is held: all jobs of that campaign, and of no other,
//!                                 are set aside for a second
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc as thread_channel;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use toll_protocol::result::{Provenance, TrialRecord};
use toll_protocol::trial::TrialId;

use super::store::{Store, StoreError};
use crate::ledger::{Entry, Ledger, LedgerError, LedgerHeader, PlannedTrial};
use crate::plan;

/// Jobs that are done together.
const BATCH: usize = 256;
/// How long after a failed attempt the next one comes.
const AGAIN: Duration = Duration::from_secs(1);
/// How long one campaign's ledger that somebody holds keeps the others waiting.
const PATIENCE: Duration = Duration::from_millis(200);

/// Something to be kept, of one campaign.
#[derive(Debug)]
pub enum Job {
    /// Make its ledger.
    Create(Box<LedgerHeader>),
    /// Take over the ledger of a campaign that a former process left.
    Open(Box<Ledger>),
    /// Keep its plan.
    Plan {
        /// The hosts that it is for.
        hosts: Vec<plan::PlannedHost>,
        /// The trials.
        planned: Vec<PlannedTrial>,
        /// With the hosts' facts.
        provenance: Box<Provenance>,
    },
    /// Keep that a trial began or ended.
    Entry(Entry),
    /// Keep the wish to end it.
    Cancel(String),
    /// Keep its end, and close it. A ledger that takes nothing more is closed already.
    Close(Box<Provenance>),
}

/// What has become of a job.
#[derive(Debug)]
pub enum Wrote {
    /// The ledger is there, or can't be made.
    Created(Result<(), StoreError>),
    /// The plan is durable.
    Planned,
    /// A record is durable.
    Recorded {
        /// The trial.
        trial: TrialId,
        /// From the job to there.
        took: Duration,
    },
    /// The wish is durable.
    Cancelled,
    /// The ledger is closed.
    Closed,
    /// Something can't be kept, and is tried again if [`Wrote::Failed::again`].
    Failed {
        /// Why.
        error: LedgerError,
        /// Whether it may work later.
        again: bool,
    },
    /// Outcomes that a ledger which takes nothing more did not get.
    Unkept(Vec<TrialRecord>),
}

/// The thread, from outside.
pub struct Writer {
    jobs: thread_channel::Sender<(String, Instant, Job)>,
    thread: JoinHandle<()>,
}

/// What the thread has done, with the campaign's id.
pub type Done = mpsc::UnboundedReceiver<(String, Wrote)>;

impl Writer {
    /// Starts the thread. With `again`, what can't be kept for now is tried until it can.
    ///
    /// # Errors
    /// The system's word.
    pub fn start(store: Store, again: bool) -> std::io::Result<(Self, Done)> {
        let (jobs, queue) = thread_channel::channel();
        // Bounded by the jobs: each has one answer at most, but for failures, which come once a second.
        let (done, receiver) = mpsc::unbounded_channel();
        let mut work = Work {
            store,
            again,
            ledgers: BTreeMap::new(),
            waiting: VecDeque::new(),
            aside: BTreeMap::new(),
            done,
        };
        let run = move || work.run(&queue);
        let thread = std::thread::Builder::new().name("ledger".into()).spawn(run)?;
        Ok((Self { jobs, thread }, receiver))
    }

    /// Gives the thread a job of `campaign`. Returns whether it is there.
    pub fn give(&self, campaign: &str, job: Job) -> bool {
        self.jobs.send((campaign.to_owned(), Instant::now(), job)).is_ok()
    }

    /// Waits until every job is done. Blocks.
    pub fn finish(self) {
        drop(self.jobs);
        if self.thread.join().is_err() {
            tracing::error!("the ledger's thread panicked");
        }
    }
}

/// A job, its campaign, and since when it waits.
type Waiting = (String, Instant, Job);

/// Jobs of a campaign whose ledger takes nothing for now, in their order.
struct Aside {
    until: Instant,
    jobs: VecDeque<Waiting>,
}

struct Work {
    store: Store,
    again: bool,
    ledgers: BTreeMap<String, Ledger>,
    waiting: VecDeque<Waiting>,
    aside: BTreeMap<String, Aside>,
    done: mpsc::UnboundedSender<(String, Wrote)>,
}

impl Work {
    fn run(&mut self, queue: &thread_channel::Receiver<(String, Instant, Job)>) {
        let mut open = true;
        while open {
            let next = match self.aside.values().map(|aside| aside.until).min() {
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => queue.recv_timeout(until.saturating_duration_since(Instant::now())),
            };
            match next {
                Ok(job) => self.takes(job),
                Err(RecvTimeoutError::Timeout) => {}
                // One last attempt at what waits.
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            let mut taken = 0;
            while taken < BATCH
                && let Ok(job) = queue.try_recv()
            {
                self.takes(job);
                taken += 1;
            }
            let now = Instant::now();
            for (_, aside) in self.aside.extract_if(.., |_, aside| !open || aside.until <= now) {
                self.waiting.extend(aside.jobs);
            }
            self.work();
        }
        let left: usize = self.aside.values().map(|aside| aside.jobs.len()).sum();
        if left > 0 {
            tracing::error!(jobs = left, "the last results could not be kept");
        }
    }

    fn takes(&mut self, job: Waiting) {
        match self.aside.get_mut(&job.0) {
            Some(aside) => aside.jobs.push_back(job),
            None => self.waiting.push_back(job),
        }
    }

    /// Leaves `jobs`, and whatever of their campaign waits behind them, for later.
    fn set_aside(&mut self, campaign: &str, mut jobs: VecDeque<Waiting>) {
        let (of_it, others) =
            std::mem::take(&mut self.waiting).into_iter().partition(|job| job.0 == campaign);
        self.waiting = others;
        let of_it: VecDeque<Waiting> = of_it;
        jobs.extend(of_it);
        self.aside.insert(campaign.to_owned(), Aside { until: Instant::now() + AGAIN, jobs });
    }

    /// Does what waits.
    fn work(&mut self) {
        while let Some((campaign, since, job)) = self.waiting.pop_front() {
            let Job::Entry(first) = job else {
                match self.single(&campaign, job) {
                    None => continue,
                    Some(job) => {
                        self.set_aside(&campaign.clone(), VecDeque::from([(campaign, since, job)]));
                        continue;
                    }
                }
            };
            let mut entries = vec![first];
            let mut times = vec![since];
            while let Some((next, _, Job::Entry(_))) = self.waiting.front()
                && *next == campaign
                && let Some((_, since, Job::Entry(entry))) = self.waiting.pop_front()
            {
                entries.push(entry);
                times.push(since);
            }
            let Some(ledger) = self.ledgers.get_mut(&campaign) else {
                self.give_back(&campaign, entries);
                continue;
            };
            match ledger.write(&entries) {
                Ok(_) => {
                    for (entry, since) in entries.iter().zip(times) {
                        if let Entry::Record(record) = entry {
                            let wrote = Wrote::Recorded { trial: record.trial, took: since.elapsed() };
                            self.tell(&campaign, wrote);
                        }
                    }
                }
                Err(error) => {
                    let again = self.again && error.may_pass();
                    self.tell(&campaign, Wrote::Failed { error, again });
                    if again {
                        let jobs = entries.into_iter().zip(times);
                        let jobs = jobs.map(|(entry, since)| (campaign.clone(), since, Job::Entry(entry)));
                        self.set_aside(&campaign, jobs.collect());
                    } else {
                        self.ledgers.remove(&campaign);
                        self.give_back(&campaign, entries);
                    }
                }
            }
        }
    }

    /// Tells of entries that can't be kept.
    fn give_back(&self, campaign: &str, entries: Vec<Entry>) {
        let records = entries.into_iter().filter_map(|entry| match entry {
            Entry::Record(record) => Some(*record),
            Entry::Begun { .. } => None,
        });
        let records: Vec<TrialRecord> = records.collect();
        if !records.is_empty() {
            self.tell(campaign, Wrote::Unkept(records));
        }
    }

    /// Does a job that is not an entry; gives it back if it has to be done again later.
    fn single(&mut self, campaign: &str, job: Job) -> Option<Job> {
        let ledger = self.ledgers.get_mut(campaign);
        let (done, wrote, job) = match job {
            Job::Create(header) => {
                let created = self.store.create(campaign, &header).map(|ledger| self.keep(campaign, ledger));
                self.tell(campaign, Wrote::Created(created));
                return None;
            }
            Job::Open(ledger) => {
                self.keep(campaign, *ledger);
                return None;
            }
            Job::Plan { hosts, planned, provenance } => {
                let done = ledger?.set_plan(hosts.clone(), planned.clone(), &provenance);
                (done, Wrote::Planned, Job::Plan { hosts, planned, provenance })
            }
            Job::Cancel(reason) => (ledger?.cancel(&reason), Wrote::Cancelled, Job::Cancel(reason)),
            Job::Close(provenance) => {
                let closed = ledger.map_or(Ok(()), |ledger| ledger.set_provenance(&provenance));
                (closed, Wrote::Closed, Job::Close(provenance))
            }
            Job::Entry(_) => return None,
        };
        match done {
            Ok(()) => {
                if matches!(wrote, Wrote::Closed) {
                    self.ledgers.remove(campaign);
                }
                self.tell(campaign, wrote);
                None
            }
            Err(error) => {
                let again = self.again && error.may_pass();
                if !again {
                    self.ledgers.remove(campaign);
                }
                self.tell(campaign, Wrote::Failed { error, again });
                again.then_some(job)
            }
        }
    }

    fn keep(&mut self, campaign: &str, ledger: Ledger) {
        if self.again
            && let Err(error) = ledger.wait_for_others(PATIENCE)
        {
            tracing::warn!(campaign, %error, "others that hold the ledger are waited for as long as ever");
        }
        self.ledgers.insert(campaign.to_owned(), ledger);
    }

    fn tell(&self, campaign: &str, wrote: Wrote) {
        // A service that has gone asks no more.
        let _ = self.done.send((campaign.to_owned(), wrote));
    }
}

#[cfg(test)]
mod tests;
