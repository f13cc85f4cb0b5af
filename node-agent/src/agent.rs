//! The agent's event loop: the link to the orchestrator on one side, a task for each trial on the other.
//!
//! ```text
//!   orchestrator <--link--> agent --Event--> Runner (one task a trial) --> child, bridge
//!                             ^------------- outgoing messages -----------------'
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinError, JoinHandle};
use toll_protocol::PROTOCOL_VERSION;
use toll_protocol::facts::NicFacts;
use toll_protocol::lack::lack;
use toll_protocol::message::{FromAgent, Instance, ToAgent};
use toll_protocol::report::Failure;
use toll_protocol::trial::{EndSpec, TrialId};

use crate::address::HostPort;
use crate::captures::Captures;
use crate::child::Spawner;
use crate::facts;
use crate::health::Health;
use crate::http::{Http, HttpError};
use crate::hubs::Hubs;
use crate::identity::Identity;
use crate::link::{Link, LinkError, LinkEvent};
use crate::metrics::Metrics;
use crate::network::{self, Changes, Network, NetworkConfig, NetworkError};
use crate::outbox::Outbox;
use crate::runner::{Host, Runner};
use crate::trial::Event;
use crate::users::Users;

mod farewell;
mod leftovers;
mod nic;
mod tasks;

use farewell::say_the_last;
use leftovers::Leftovers;
use nic::Nic;
use tasks::{Ended, Tasks};

/// Trials that are known at a time; refused ones count until they are torn down.
const MOST_TRIALS: usize = 64;
/// How long all trials may take to end when the agent is told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an orchestrator that keeps the connection and reads nothing is waited for when the agent stops.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(3);

/// The loop turns at least so often, for whoever watches over it.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What an agent is started with.
#[derive(Debug)]
pub struct AgentConfig {
    /// Where the orchestrator listens.
    pub orchestrator: HostPort,
    /// The name in the orchestrator's certificate.
    pub server_name: String,
    /// The agent's name, which is that of its certificate.
    pub name: String,
    /// What campaigns select the host by.
    pub labels: BTreeMap<String, String>,
    /// The test NIC and how virtual ends reach its wire.
    pub network: NetworkConfig,
    /// The agent's certificates.
    pub identity: Identity,
    /// Users of the processes that run them.
    pub users: Users,
    /// Folder of the programs that run the ends of trials.
    pub programs: PathBuf,
    /// Where captures go, if anywhere.
    pub captures: Option<Captures>,
    /// Where to answer probes and Prometheus, if anywhere.
    pub http: Option<SocketAddr>,
    /// What is told to Prometheus.
    pub metrics: Metrics,
}

/// Why an agent can't run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The network can't be used.
    #[error("the host's network can't be used")]
    Network(#[from] NetworkError),
    /// The link can't be made.
    #[error("the orchestrator can't be dialled")]
    Link(#[from] LinkError),
    /// Probes can't be answered.
    #[error("probes can't be answered")]
    Http(#[from] HttpError),
    /// The thread that starts processes.
    #[error("the thread that starts processes can't be started")]
    Spawner(#[source] std::io::Error),
    /// The task of the link has ended by itself.
    #[error("the connection's task ended")]
    LinkEnded(#[source] Option<JoinError>),
}

/// Cleans the host of what a killed agent left, then serves the orchestrator until `stop` is done; then ends all
/// trials and cleans the host.
///
/// # Errors
/// [`AgentError`]; the host is clean then too.
pub async fn run(config: AgentConfig, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
    let network = Network::open(config.network).await?;
    let (nic, wire) = (network.nic().to_owned(), network.wire());
    tracing::info!(name = config.name, nic, %wire, "this host's virtual ends reach the wire by {wire} on {nic}");
    let (found, left) = network.sweep().await?;
    if !found.is_empty() {
        tracing::warn!(?found, ?left, "a former agent left this behind");
    }
    let mut leftovers = Leftovers::default();
    // Names of links, and after them what the kernel said.
    for trial in left.iter().filter_map(|name| network::trial_named(name)) {
        leftovers.found(trial, &left);
    }
    let health = Arc::new(Health::new(Instant::now()));
    let _http = listen(config.http, &health, config.metrics.registry().into()).await?;
    let spawner = Spawner::new(tokio::runtime::Handle::current()).map_err(AgentError::Spawner)?;
    let endpoint = config.programs.join("toll-endpoint");
    let (users, left) = config.users.sweep(&spawner, &endpoint).await;
    if !users.is_empty() {
        tracing::warn!(?users, ?left, "processes of a former agent were running");
    }
    // Before they are collected: what changes from then on is told.
    let changes = Changes::listen(&nic)?;
    let mut facts = facts::collect(Some(&nic), &config.programs, &spawner, &config.users).await;
    facts.wire = Some(wire);
    facts.guest_addresses = network.guest_addresses();
    let link = Link::new(config.orchestrator, config.server_name, &config.identity)?;
    let (users, programs, captures, metrics) =
        (config.users, config.programs, config.captures, config.metrics);
    let host =
        Arc::new(Host { network, spawner, users, facts, programs, captures, metrics, hubs: Hubs::default() });
    let releasing = Arc::clone(&host);
    let (to_link, outgoing) = mpsc::channel(16);
    let (events, from_link) = mpsc::channel(16);
    let (stop_link, stopped) = oneshot::channel();
    let link = tokio::spawn(link.run(outgoing, events, stopped));
    let (to_agent, from_trials) = mpsc::channel(256);
    let told = host.facts.nic.clone();
    let mut agent = Agent {
        told,
        nic: Nic::default(),
        hello_wanted: None,
        name: config.name,
        instance: Instance(rand::random()),
        labels: config.labels,
        host,
        health,
        trials: HashMap::new(),
        tasks: Tasks::new(move |trial| {
            let host = Arc::clone(&releasing);
            async move { host.release(trial).await }
        }),
        outbox: Outbox::default(),
        leftovers,
        to_link,
        to_agent,
    };
    agent.serve(link, stop_link, (from_link, from_trials, changes), stop).await
}

/// A task that ends with its owner.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answers probes and Prometheus as long as what is returned lives.
async fn listen(
    address: Option<SocketAddr>,
    health: &Arc<Health>,
    registry: Arc<prometheus::Registry>,
) -> Result<Option<Task>, HttpError> {
    let Some(address) = address else { return Ok(None) };
    let http = Http::bind(address).await?;
    tracing::info!(address = %http.address().unwrap_or(address), "answering /metrics, /livez and /readyz");
    let health = Arc::clone(health);
    let task = tokio::spawn(async { http.serve(health, registry).await });
    Ok(Some(Task(task.abort_handle())))
}

/// A trial that has not been torn down.
struct Trial {
    events: mpsc::Sender<Event>,
    /// Whether it holds nothing of the host (any more).
    released: Arc<AtomicBool>,
}

struct Agent {
    /// What the orchestrator was told of the test NIC.
    told: Option<NicFacts>,
    /// What it is.
    nic: Nic,
    /// Where to send the first message of a connection, once it is known what the NIC is.
    hello_wanted: Option<oneshot::Sender<FromAgent>>,
    name: String,
    instance: Instance,
    labels: BTreeMap<String, String>,
    health: Arc<Health>,
    host: Arc<Host>,
    trials: HashMap<TrialId, Trial>,
    tasks: Tasks,
    outbox: Outbox,
    leftovers: Leftovers,
    to_link: mpsc::Sender<FromAgent>,
    to_agent: mpsc::Sender<FromAgent>,
}

impl Agent {
    async fn serve(
        &mut self,
        mut link: JoinHandle<()>,
        stop_link: oneshot::Sender<()>,
        (mut from_link, mut from_trials, mut changes): (
            mpsc::Receiver<LinkEvent>,
            mpsc::Receiver<FromAgent>,
            Changes,
        ),
        stop: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        tokio::pin!(stop);
        // Set once: from then on no new trial is taken and the loop ends with the last trial.
        let mut stopping: Option<tokio::time::Instant> = None;
        let mut link_ended = None;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            self.health.turned(Instant::now());
            if stopping.is_some() && self.tasks.len() == 0 {
                break;
            }
            let to_link = self.to_link.clone();
            tokio::select! {
                () = &mut stop, if stopping.is_none() => {
                    tracing::info!(trials = self.trials.len(), "told to stop");
                    stopping = Some(self.stop_trials());
                }
                ended = &mut link, if link_ended.is_none() => {
                    tracing::error!("the connection's task ended");
                    link_ended = Some(ended.err());
                    stopping = Some(self.stop_trials());
                }
                () = until(stopping) => {
                    tracing::error!(trials = self.tasks.len(), "trials did not end in time");
                    break;
                }
                _ = heartbeat.tick() => {}
                () = changes.next() => self.look_at_nic(),
                read = self.nic.next(&self.host) => self.seen(read),
                Some(event) = from_link.recv() => match event {
                    LinkEvent::HelloWanted(answer) => {
                        self.hello_wanted = Some(answer);
                        self.nic.look(&self.host);
                    }
                    LinkEvent::Connected(orchestrator) => {
                        self.host.network.dialled(orchestrator);
                        self.connected();
                    }
                    LinkEvent::Lost(reason) => {
                        self.health.unconnected(reason);
                        self.outbox.lost();
                        self.host.metrics.lost();
                    }
                    LinkEvent::NotConnected(reason) => self.health.unconnected(reason),
                    LinkEvent::Message(message) => self.obey(message, stopping.is_some()),
                },
                Some(message) = from_trials.recv() => self.outbox.push(message),
                Ok(permit) = to_link.reserve(), if self.outbox.is_ready() => {
                    if let Some(message) = self.outbox.pop() {
                        permit.send(message);
                    }
                }
                Some((trial, ended)) = self.tasks.next() => self.trial_ended(trial, ended),
            }
        }
        // Dropped tasks drop their children, which kills them; then the sweep takes their links.
        self.tasks.shutdown().await;
        let running = self.host.users.release_all(&self.host.spawner, &self.host.endpoint()).await;
        if !running.is_empty() {
            tracing::error!(?running, "processes of trials did not end");
        }
        let swept = self.host.network.sweep().await;
        match &swept {
            Ok((found, left)) if !found.is_empty() => tracing::warn!(?found, ?left, "removed at the end"),
            Ok(_) => {}
            // Returned below: the orchestrator is owed its farewell all the same.
            Err(error) => tracing::error!("the host could not be looked over: {}", crate::chain(error)),
        }
        while let Ok(message) = from_trials.try_recv() {
            self.outbox.push(message);
        }
        if let Some(error) = link_ended {
            return Err(AgentError::LinkEnded(error));
        }
        let last = say_the_last(&mut self.outbox, &self.to_link, &mut from_link);
        let said = tokio::time::timeout(FAREWELL_TIMEOUT, last).await;
        // The receiver is gone only if the task has ended, which the next lines see.
        let _ = stop_link.send(());
        drop(from_link);
        match tokio::time::timeout(FAREWELL_TIMEOUT, &mut link).await {
            Ok(ended) => ended.map_err(|error| AgentError::LinkEnded(Some(error)))?,
            Err(_) => link.abort(),
        }
        if said.is_err() {
            tracing::warn!("the orchestrator takes no messages: the last ones are not said");
        }
        if self.outbox.unacknowledged() > 0 {
            tracing::warn!(outcomes = self.outbox.unacknowledged(), "not acknowledged at the end");
        }
        Ok(swept.map(drop)?)
    }

    fn stop_trials(&self) -> tokio::time::Instant {
        self.health.stopping();
        for id in self.trials.keys() {
            self.tell(*id, Event::Shutdown);
        }
        tokio::time::Instant::now() + STOP_TIMEOUT
    }

    /// The first message of a connection: the host as it is now, the trials that the orchestrator can still count on,
    /// and those that it must know have left something.
    fn hello(&self) -> FromAgent {
        let mut facts = self.host.facts.clone();
        // Of all facts, those that somebody may have changed meanwhile and that trials depend on.
        facts.nic.clone_from(&self.told);
        let known = self.trials.keys().copied().chain(self.outbox.trials());
        let held: BTreeSet<TrialId> = known.chain(self.leftovers.trials()).collect();
        FromAgent::Hello {
            version: PROTOCOL_VERSION,
            name: self.name.clone(),
            instance: self.instance,
            facts: Box::new(facts),
            labels: self.labels.clone(),
            held: held.into_iter().collect(),
        }
    }

    /// Asks what the test NIC is now.
    fn look_at_nic(&mut self) {
        // Else it is told by the next Hello, or once the connection that it was said on is there.
        if self.outbox.is_connected() {
            self.nic.look(&self.host);
        }
    }

    /// Tells what the test NIC is now, if it is not what was told: campaigns are planned by it.
    fn seen(&mut self, read: nic::Read) {
        let nic = read.unwrap_or_else(|error| {
            tracing::error!("what the test NIC is now can't be read: {}", crate::chain(&error));
            self.told.clone()
        });
        if let Some(answer) = self.hello_wanted.take() {
            self.told = nic;
            // The link no longer wants it if it has lost the connection meanwhile.
            drop(answer.send(self.hello()));
            return;
        }
        if self.outbox.is_connected() && nic != self.told {
            tracing::info!(?nic, "the test NIC has changed");
            self.told.clone_from(&nic);
            self.outbox.push(FromAgent::Nic { nic: nic.map(Box::new) });
        }
    }

    fn connected(&mut self) {
        self.health.connected();
        self.outbox.connected();
        self.host.metrics.connected();
        // What has changed since Hello.
        self.look_at_nic();
        for id in self.trials.keys() {
            self.tell(*id, Event::Reconnected);
        }
    }

    fn obey(&mut self, message: ToAgent, stopping: bool) {
        match message {
            ToAgent::Welcome { .. } => tracing::warn!("Welcome was said twice"),
            ToAgent::Prepare { trial, end } => self.prepare(trial, *end, stopping),
            ToAgent::Start { trial, peer } => {
                if self.trials.contains_key(&trial) {
                    self.tell(trial, Event::Start { peer });
                } else if !self.outbox.repeat(trial) {
                    tracing::warn!(%trial, "Start of an unknown trial");
                    let failure =
                        Failure::new("this agent does not know the trial: it may have been restarted");
                    self.outbox.push(FromAgent::Failed { trial, failure });
                }
            }
            ToAgent::Acknowledged { trial } => {
                if !self.outbox.acknowledged(trial) {
                    tracing::info!(%trial, "an outcome that is not kept was acknowledged");
                }
            }
            ToAgent::Teardown { trial } => {
                if self.trials.contains_key(&trial) {
                    self.tell(trial, Event::Teardown);
                } else if self.leftovers.contains(trial) {
                    self.remove_again(trial);
                } else {
                    tracing::info!(%trial, "Teardown of an unknown trial: there is nothing of it");
                    self.outbox.push(FromAgent::TornDown { trial, leftovers: Vec::new() });
                }
            }
        }
    }

    /// Takes a trial, or refuses it: a host is never in two trials.
    fn prepare(&mut self, trial: TrialId, end: EndSpec, stopping: bool) {
        let run = end.deadline.duration();
        if self.trials.contains_key(&trial) {
            self.tell(trial, Event::Prepare { run });
            return;
        }
        // It has run, and the orchestrator has not heard how it ended: a second run would be another trial.
        if self.outbox.repeat(trial) {
            return;
        }
        let holds = |trial: &Trial| !trial.released.load(Ordering::Acquire);
        // Both ends of one trial may stand here.
        let mut others = self.trials.iter().filter(|(id, _)| id.near() != trial.near());
        let running = others.find(|(_, other)| holds(other)).map(|(id, _)| *id);
        let failure = match running {
            _ if stopping => Some(Failure::new("the agent was told to stop")),
            Some(other) => Some(Failure::new(format!("this host is busy with trial {other}"))),
            None => lack(&end, &self.host.facts)
                .map(|lack| Failure::new(format!("this host can't run the end: {lack}"))),
        };
        if self.trials.len() >= MOST_TRIALS {
            tracing::error!(%trial, "refused: too many trials that were never torn down");
            let failure = failure.unwrap_or_else(|| Failure::new("this host has too many trials"));
            self.outbox.push(FromAgent::Failed { trial, failure });
            // The orchestrator that began them has forgotten them.
            for (id, _) in self.trials.iter().filter(|(_, trial)| !holds(trial)) {
                self.tell(*id, Event::Teardown);
            }
            return;
        }
        let released = Arc::new(AtomicBool::new(failure.is_some()));
        let first = failure.map_or(Event::Prepare { run }, Event::Refuse);
        let (events, receiver) = mpsc::channel(64);
        let runner = Runner {
            host: Arc::clone(&self.host),
            trial,
            end,
            events: receiver,
            outgoing: self.to_agent.clone(),
            released: Arc::clone(&released),
        };
        self.tasks.spawn(trial, runner.run(first));
        self.trials.insert(trial, Trial { events, released });
    }

    /// Tries to remove what is left of a trial that is over, and says what is left then.
    fn remove_again(&mut self, trial: TrialId) {
        if !self.leftovers.begin(trial) {
            // The answer to the first question is on its way.
            return;
        }
        self.tasks.release(trial);
    }

    /// Gives a trial an event. One whose queue is full does not keep the others waiting.
    fn tell(&self, trial: TrialId, event: Event) {
        if let Some(known) = self.trials.get(&trial)
            && let Err(error) = known.events.try_send(event)
        {
            tracing::warn!(%trial, %error, "event lost");
        }
    }

    fn trial_ended(&mut self, trial: TrialId, ended: Ended) {
        match ended {
            Ended::Over { left, after_panic } => {
                self.trials.remove(&trial);
                let wanted = self.leftovers.found(trial, &left);
                if wanted {
                    tracing::info!(%trial, ?left, "tried again to remove what was left");
                }
                if wanted || after_panic {
                    self.outbox.push(FromAgent::TornDown { trial, leftovers: left });
                }
            }
            // The trial stays known, and its host busy, until it is over.
            Ended::Panicked => {
                let failure = Failure::new("the agent failed while it ran the trial");
                self.outbox.push(FromAgent::Failed { trial, failure });
            }
        }
    }
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
