//! The orchestrator as a service: one task that owns the scheduler and carries events from agents, ledgers, clock and
//! those who ask to it, and its commands back. `toll serve` runs it on a fleet, `toll run` on a lab.
//!
//! ```text
//!            Link <--- Send ----+              +--- StorePlan, Begun, Record ---> writer thread (durable)
//!              |                |              |                                     |
//!              +--> Event --> Scheduler --> Command                     Wrote -------+
//!   clock, Handle, dead hosts --^              +--- Finished --> summary, files, status
//! ```

mod ending;
pub mod handle;
mod ids;
pub mod kept;
mod left_out;
mod listing;
mod past;
mod requests;
mod resuming;
pub mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ending::Made;
use handle::{Questions, SubmitError};
use kept::{Kept, Phase};
use left_out::Entries;
use past::Archive;
use store::{Store, StoreError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use toll_protocol::campaign::Campaign;
use toll_protocol::result::{CampaignResult, HostProvenance, Provenance, TrialRecord};
use toll_protocol::service::{AgentStatus, CampaignState, Submitted};
use toll_protocol::units::BitRate;
use writer::{Done, Job, Writer, Wrote};

use crate::ledger::Entry;
use crate::link::{Link, LinkEvent};
use crate::scheduler::{Command, Event, Hosts, NewCampaign, Now, Policy, Progress, Scheduler};
use crate::{plan, scheduler};

const TICK: Duration = Duration::from_millis(100);
/// Hosts that are taken: what an authority's certificates can make the service hold has a bound.
const MOST_HOSTS: usize = 4096;

/// Why the service ended.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Campaigns can't be kept.
    #[error("campaigns can't be kept")]
    Store(#[from] StoreError),
    /// The ledger's thread can't be started or has died.
    #[error("the ledger's thread failed")]
    Thread(#[source] Option<std::io::Error>),
    /// The listener for agents has ended.
    #[error("agents can no longer be heard")]
    Link,
}

/// What a service is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where campaigns are kept.
    pub store: Store,
    /// What the scheduler holds to.
    pub policy: Policy,
    /// Where campaigns run: `lab`, `fleet` or `kubernetes`.
    pub environment: &'static str,
    /// The hosts of a lab; without them campaigns select theirs.
    pub lab: Option<LabHosts>,
    /// Whether campaigns are summarised while they run, for those who watch their figures. It takes CPU time, which is
    /// not to be spent on a machine that is measured.
    pub interim: bool,
    /// Campaigns that are over and are kept, the latest to end; `None` for all. The others are removed.
    pub keep: Option<usize>,
    /// How long one that is over is kept at least, from its end and from the start of the service: whoever made it learns of
    /// its end meanwhile.
    pub keep_for: Duration,
}

impl Options {
    /// Campaigns select their hosts, are summarised while they run, and are all kept.
    pub const fn new(store: Store, environment: &'static str, policy: Policy) -> Self {
        Self { store, policy, environment, lab: None, interim: true, keep: None, keep_for: Duration::ZERO }
    }
}

/// A lab, as campaigns on it need to know it.
#[derive(Debug, Clone)]
pub struct LabHosts {
    /// The hosts.
    pub hosts: Vec<plan::Host>,
    /// Rate of their links.
    pub rate: Option<BitRate>,
    /// MTU of their links.
    pub mtu: u16,
}

/// Who watches the service from inside its task.
pub trait Observer: Send {
    /// The campaign `id` is so far; at most every tick.
    fn progress(&mut self, _id: &str, _progress: &Progress) {}

    /// A trial is over.
    fn recorded(&mut self, _record: &TrialRecord) {}

    /// A trial has begun, so long after it was heard that its hosts are free.
    fn begun(&mut self, _waited: Duration) {}

    /// A trial has ended a phase.
    fn phase(&mut self, _phase: scheduler::Phase, _took: Duration) {}

    /// A record is durable, so long after it was known.
    fn durable(&mut self, _took: Duration) {}

    /// A campaign's figures are known anew.
    fn summarised(&mut self, _id: &str, _result: &CampaignResult) {}

    /// A campaign that was over has been removed.
    fn removed(&mut self, _id: &str) {}

    /// Something has changed that a status shows.
    fn changed(&mut self, _view: &View) {}

    /// Names of hosts that are known to have died since the last call, and why.
    fn dead_hosts(&mut self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// The service in numbers, for metrics.
#[derive(Debug, Default)]
pub struct View {
    /// Agents by state.
    pub agents: BTreeMap<toll_protocol::service::AgentState, usize>,
    /// Campaigns by state.
    pub campaigns: BTreeMap<CampaignState, usize>,
    /// Trials that wait for their hosts.
    pub waiting: usize,
    /// Trials under way.
    pub in_flight: usize,
    /// Entries of the data directory that are left out: those that are looked at again, and the others.
    pub left_out: [usize; 2],
}

/// Where the answer to a submission or a cancellation goes, once it is durable.
enum Waiting {
    Submitted(oneshot::Sender<Result<Submitted, SubmitError>>, Box<NewCampaign>),
    Cancelled(oneshot::Sender<Result<(), handle::LookupError>>, String),
}

/// The service.
pub struct Service<O> {
    options: Options,
    scheduler: Scheduler,
    link: Link,
    events: mpsc::Receiver<LinkEvent>,
    questions: Questions,
    writer: Writer,
    done: Done,
    /// Campaigns that are not over.
    kept: BTreeMap<String, Kept>,
    past: Archive,
    left_out: Entries,
    reading: Arc<Semaphore>,
    waiting: Vec<(String, Waiting)>,
    made: (mpsc::Sender<Made>, mpsc::Receiver<Made>),
    observer: O,
    began: Instant,
    changed: bool,
    /// Counted up with every tick: whoever watches the service sees that it turns.
    heartbeat: Arc<AtomicU64>,
}

impl<O: Observer> Service<O> {
    /// A service with the campaigns that former processes left, which go on as their agents come back.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub fn new(
        options: Options,
        link: Link,
        events: mpsc::Receiver<LinkEvent>,
        questions: Questions,
        observer: O,
    ) -> Result<Self, ServiceError> {
        let again = matches!(options.store, Store::Fleet(_));
        let (writer, done) =
            Writer::start(options.store.clone(), again).map_err(|error| ServiceError::Thread(Some(error)))?;
        let mut service = Self {
            scheduler: Scheduler::new(options.policy, rand::random()),
            link,
            events,
            questions,
            writer,
            done,
            kept: BTreeMap::new(),
            past: Archive::default(),
            left_out: Entries::default(),
            reading: Arc::new(Semaphore::new(listing::READERS)),
            waiting: Vec::new(),
            made: mpsc::channel(64),
            observer,
            began: Instant::now(),
            changed: true,
            heartbeat: Arc::default(),
            options,
        };
        service.load()?;
        Ok(service)
    }

    /// What counts up while the service turns, ten times a second.
    pub fn heartbeat(&self) -> Arc<AtomicU64> {
        self.heartbeat.clone()
    }

    /// Serves until `stop` is done; trials under way go on without it, and their agents hand the results in to the
    /// next process. Gives back the observer.
    ///
    /// # Errors
    /// [`ServiceError`]; what was recorded before is in the ledgers.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<O, ServiceError> {
        tokio::pin!(stop);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = loop {
            let stepped = tokio::select! {
                () = &mut stop => break Ok(()),
                event = self.events.recv() => match event {
                    Some(event) => self.heard(event),
                    None => Err(ServiceError::Link),
                },
                done = self.done.recv() => match done {
                    Some((id, wrote)) => self.wrote(&id, wrote),
                    None => Err(ServiceError::Thread(None)),
                },
                Some(request) = self.questions.requests.recv() => self.asked(request),
                Some(made) = self.made.1.recv() => self.was_made(made),
                _ = tick.tick() => self.tick(),
            };
            if let Err(error) = stepped {
                break Err(error);
            }
        };
        let Self { link, writer, observer, .. } = self;
        link.close().await;
        // Blocks for as long as the last results take to be kept.
        tokio::task::block_in_place(|| writer.finish());
        ended.map(|()| observer)
    }

    fn heard(&mut self, event: LinkEvent) -> Result<(), ServiceError> {
        let Some(event) = self.heard_now(event) else { return Ok(()) };
        let event = match event {
            LinkEvent::Connected { host, session, facts, labels, held } => {
                if !self.scheduler.has_room_for(&host, MOST_HOSTS) {
                    tracing::warn!(host, "refused: there are {MOST_HOSTS} hosts, the most that are taken");
                    self.link.dismiss(
                        &host,
                        session.number,
                        "the orchestrator has as many hosts as it takes",
                    );
                    return Ok(());
                }
                tracing::info!(host, address = %session.address, "agent connected");
                self.changed = true;
                Event::AgentConnected { host, session, facts, labels, held }
            }
            LinkEvent::Lost { host, session } => {
                if self.scheduler.hears(&host, session) {
                    tracing::info!(host, "agent lost");
                }
                self.changed = true;
                Event::AgentLost { host, session }
            }
            LinkEvent::Refused { host, holder, newcomer } => {
                let [at, other] = [holder, newcomer].map(|address| address.ip().to_canonical());
                if self.scheduler.refused(&host, at, other, self.now()) {
                    tracing::warn!(
                        host, %holder, %newcomer,
                        "another agent of this name is refused while the first one answers: stop one of them, or give it a \
                         name and a certificate of its own (toll pki issue)"
                    );
                }
                self.changed = true;
                return Ok(());
            }
            // Of a connection that another one has replaced: another process may speak on that.
            LinkEvent::Message { host, session, .. } if !self.scheduler.hears(&host, session) => {
                return Ok(());
            }
            // Its time is that at which it was heard: what it waited for this task is the service's own.
            LinkEvent::Message { host, message, at, .. } => {
                let elapsed = at.saturating_duration_since(self.began);
                let now = Now { elapsed, unix_ms: unix_ms() };
                return self.step_at(Event::Agent { host, message }, now);
            }
        };
        self.step(event)
    }

    fn tick(&mut self) -> Result<(), ServiceError> {
        self.heartbeat.fetch_add(1, Ordering::Relaxed);
        for (host, reason) in self.observer.dead_hosts() {
            self.step(Event::HostDied { host, reason })?;
        }
        self.step(Event::Tick)?;
        let now = self.now();
        let interim = self.options.interim;
        let due = self.kept.iter().filter(|(_, kept)| interim && kept.is_due()).map(|(id, _)| id.clone());
        for id in due.collect::<Vec<String>>() {
            self.begin_summary(&id);
        }
        let again = self.kept.iter_mut().filter_map(|(id, kept)| kept.ends_again().then(|| id.clone()));
        for id in again.collect::<Vec<String>>() {
            self.begin_end(&id);
        }
        self.look_again();
        self.begin_removing();
        let live = self.kept.iter().filter(|(_, kept)| kept.phase == Phase::Live);
        for (id, _) in live {
            if let Some(progress) = self.scheduler.progress(id, now) {
                self.observer.progress(id, &progress);
            }
        }
        if std::mem::take(&mut self.changed) {
            let view = self.view();
            self.observer.changed(&view);
            self.questions.changes.send_modify(|number| *number += 1);
        }
        Ok(())
    }

    fn view(&self) -> View {
        let (waiting, in_flight) = (self.scheduler.waiting(), self.scheduler.in_flight());
        let left_out = self.left_out.counts();
        let campaigns = self.past.counts().clone();
        let mut view = View { waiting, in_flight, left_out, campaigns, ..View::default() };
        for agent in self.agents() {
            *view.agents.entry(agent.state).or_default() += 1;
        }
        for kept in self.kept.values() {
            let state = match kept.phase {
                Phase::Over => kept.status.state,
                _ if kept.status.hosts.is_empty() => CampaignState::Pending,
                _ => CampaignState::Running,
            };
            *view.campaigns.entry(state).or_default() += 1;
        }
        view
    }

    /// Every agent that has been connected, by name.
    fn agents(&self) -> Vec<AgentStatus> {
        let mut agents = self.scheduler.agents(self.now());
        agents.extend(self.left_out.waiting_agents());
        agents
    }

    fn now(&self) -> Now {
        Now { elapsed: self.began.elapsed(), unix_ms: unix_ms() }
    }

    fn step(&mut self, event: Event) -> Result<(), ServiceError> {
        let now = self.now();
        self.step_at(event, now)
    }

    fn step_at(&mut self, event: Event, now: Now) -> Result<(), ServiceError> {
        for command in self.scheduler.step(event, now) {
            match command {
                Command::Send { host, message } => self.link.send(&host, message),
                Command::StorePlan { campaign, plan, hosts } => self.store_plan(&campaign, &plan, hosts)?,
                Command::Begun { campaign, trial, unix_ms, since } => {
                    self.observer.begun(self.began.elapsed().saturating_sub(since));
                    if let Some(kept) = self.kept.get_mut(&campaign) {
                        kept.status.started_unix_ms.get_or_insert(unix_ms);
                    }
                    self.give(&campaign, Job::Entry(Entry::Begun { trial, unix_ms }))?;
                }
                Command::Record { campaign, record } => {
                    self.observer.recorded(&record);
                    self.left_out.know([record.trial]);
                    if let Some(kept) = self.kept.get_mut(&campaign) {
                        kept.stale = true;
                    }
                    self.give(&campaign, Job::Entry(Entry::Record(record)))?;
                }
                Command::Phase { phase, took } => self.observer.phase(phase, took),
                Command::Finished { campaign, ending } => self.finished(&campaign, ending)?,
            }
            self.changed = true;
        }
        Ok(())
    }

    fn give(&self, id: &str, job: Job) -> Result<(), ServiceError> {
        if self.writer.give(id, job) { Ok(()) } else { Err(ServiceError::Thread(None)) }
    }

    fn store_plan(
        &mut self,
        id: &str,
        plan: &plan::Plan,
        hosts: Vec<plan::Host>,
    ) -> Result<(), ServiceError> {
        let mut provenance = self.provenance(&hosts);
        provenance.mtu = plan.cells.first().map(|cell| cell.a.mtu);
        if let Some(kept) = self.kept.get_mut(id) {
            kept.status.hosts = hosts.iter().map(|host| host.name.clone()).collect();
            kept.provenance = Some(provenance.clone());
        }
        tracing::info!(campaign = id, hosts = hosts.len(), trials = plan.trials.len(), "planned");
        let planned = kept::planned(plan);
        self.give(id, Job::Plan { hosts, planned, provenance: Box::new(provenance) })
    }

    /// Provenance of a campaign on `hosts`, as far as it is known.
    fn provenance(&self, hosts: &[plan::Host]) -> Provenance {
        let lab = self.options.lab.as_ref();
        let mtu = hosts.iter().map(|host| host.mtu).min();
        Provenance {
            link_rate: lab.and_then(|lab| lab.rate),
            mtu: lab.map(|lab| lab.mtu).or(mtu),
            hosts: self.facts_of(hosts.iter().map(|host| host.name.as_str())),
            ..Provenance::new(self.options.environment, unix_ms())
        }
    }

    fn facts_of<'a>(&self, hosts: impl Iterator<Item = &'a str>) -> Vec<HostProvenance> {
        hosts
            .filter_map(|name| {
                Some(HostProvenance { name: name.to_owned(), facts: self.scheduler.facts(name)?.clone() })
            })
            .collect()
    }

    fn wrote(&mut self, id: &str, wrote: Wrote) -> Result<(), ServiceError> {
        self.changed = true;
        if let Some(kept) = self.kept.get_mut(id) {
            kept.trouble = match &wrote {
                Wrote::Failed { error, again: true } => {
                    Some(format!("its ledger takes nothing for now: {}", kept::chain(error)))
                }
                _ => None,
            };
        }
        match wrote {
            Wrote::Created(created) => self.created(id, created),
            Wrote::Planned => self.step(Event::PlanStored { campaign: id.to_owned() }),
            Wrote::Recorded { trial, took } => {
                self.observer.durable(took);
                self.step(Event::Stored { trial, campaign: id.to_owned() })
            }
            Wrote::Cancelled => self.cancelled(id),
            Wrote::Closed => {
                self.begin_end(id);
                Ok(())
            }
            Wrote::Failed { error, again: true } => {
                tracing::error!(campaign = id, "tried again in a second: {}", kept::chain(&error));
                Ok(())
            }
            Wrote::Failed { error, again: false } => self.abandon(id, &error),
            Wrote::Unkept(records) => {
                if let Some(kept) = self.kept.get_mut(id) {
                    kept.unkept.extend(records);
                }
                Ok(())
            }
        }
    }

    fn new_campaign(&self, id: &str, campaign: Campaign, seed: u64) -> NewCampaign {
        let hosts = match (&self.options.lab, &campaign.select) {
            (Some(lab), _) => Hosts::Given(lab.hosts.clone()),
            (None, Some(select)) => Hosts::Select(select.clone()),
            (None, None) => Hosts::Given(Vec::new()),
        };
        NewCampaign { id: id.to_owned(), campaign, hosts, seed }
    }
}

/// Milliseconds since the Unix epoch; 0 on a machine whose clock is before it.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
