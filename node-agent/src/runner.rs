//! The task of one trial: gives events to [`transition`](crate::trial::transition) and does what it commands.
//! Nothing is decided here.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use toll_protocol::child::{ChildCommand, ChildEvent, EndpointConfig, Outside, VmmConfig, VmmPort};
use toll_protocol::facts::{HostFacts, NicFacts};
use toll_protocol::message::FromAgent;
use toll_protocol::report::{EndReport, Failure};
use toll_protocol::trial::{EndKind, EndReady, EndSpec, Engine, NetworkMode, Nic, TrialId};
use toll_protocol::units::Bytes;
use toll_protocol::validity;

use crate::captures::{Captures, Reservation, reserve};
use crate::child::{Child, ChildReport, Environment, Spawner, Start};
use crate::hubs::Hubs;
use crate::metrics::Metrics;
use crate::network::{NativeSite, Network, NetworkError, Station};
use crate::trial::{Command, Event, State, transition};
use crate::users::Users;

/// Memory of a guest that runs the payload program.
const GUEST_MEMORY: Bytes = Bytes(64 << 20);

/// What all trials of a host share.
pub(crate) struct Host {
    pub(crate) network: Network,
    pub(crate) spawner: Spawner,
    /// Whom children become.
    pub(crate) users: Users,
    pub(crate) facts: HostFacts,
    /// Folder of `toll-vmm` and `toll-endpoint`.
    pub(crate) programs: PathBuf,
    /// Where captures go.
    pub(crate) captures: Option<Captures>,
    pub(crate) metrics: Metrics,
    /// Private Ethernets of which one end has yet to be taken.
    pub(crate) hubs: Hubs,
}

impl Host {
    /// Lets go of everything that `trial` holds of the host. Returns what is left of it, and why.
    pub(crate) async fn release(&self, trial: TrialId) -> Vec<String> {
        self.hubs.forget(trial);
        // What still runs may hold the trial's port.
        let running = self.users.release(trial, &self.spawner, &self.endpoint()).await;
        let mut left = self.network.tear_down(trial).await;
        left.extend(running);
        left
    }

    /// The program of native ends, which ends those of a user too.
    pub(crate) fn endpoint(&self) -> PathBuf {
        self.programs.join("toll-endpoint")
    }
}

/// One trial on this host.
pub(crate) struct Runner {
    pub(crate) host: Arc<Host>,
    pub(crate) trial: TrialId,
    pub(crate) end: EndSpec,
    /// From the orchestrator and the agent.
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) outgoing: mpsc::Sender<FromAgent>,
    /// Set once the trial holds nothing of the host any more.
    pub(crate) released: Arc<AtomicBool>,
}

/// What a trial holds while it runs.
#[derive(Default)]
struct Held {
    child: Option<Child>,
    reports: Option<mpsc::Receiver<ChildReport>>,
    /// The test NIC as it was when the end was prepared, if the end is on its wire.
    nic: Option<NicFacts>,
    /// Where the host's own TCP stands, once that has been looked at: a native end is there.
    native: Option<NativeSite>,
    /// Who takes what a virtual end sends to its peer, if that is on another network.
    gateway: Option<Ipv4Addr>,
    /// Port of a virtual end, once the network has been made ready for it.
    port: Option<VmmPort>,
    /// Room for a capture, and its file.
    capture: Option<Reservation>,
    /// What of it the child inherits.
    socket: Option<OwnedFd>,
    deadline: Option<Instant>,
    /// Events that commands have led to.
    answers: VecDeque<Event>,
    /// Whether the agent has gone, which is said once.
    orphaned: bool,
}

impl Held {
    /// Whether it has a port that is an interface of the host.
    fn is_on_the_wire(&self) -> bool {
        self.port.as_ref().is_some_and(|port| port.interface().is_some())
    }
}

impl Runner {
    /// Lives the trial from `first` to its end, which is `TornDown`. If the agent has dropped the other end of
    /// `events`, the trial shuts down. Returns what is left of it on the host, as `TornDown` says.
    pub(crate) async fn run(mut self, first: Event) -> Vec<String> {
        let (mut state, mut held) = (State::New, Held::default());
        let mut left = Vec::new();
        let first = self.admit(first, &mut held).await;
        held.answers.push_back(first);
        let mut watch = self.host.metrics.trial(&self.end.kind, self.end.job.direction);
        while state != State::TornDown {
            let event = self.next_event(&mut held).await;
            let from = state.name();
            tracing::debug!(trial = %self.trial, ?state, ?event);
            let (next, commands) = transition(state, event);
            state = next;
            if state.name() != from {
                tracing::debug!(trial = %self.trial, enters = state.name());
            }
            watch.enters(&state);
            if matches!(state, State::Released { .. } | State::TornDown) {
                // Before the orchestrator hears of it, and so may send the next trial.
                self.released.store(true, Ordering::Release);
            }
            for command in commands {
                watch.sees(&command);
                if let Command::SendTornDown { leftovers } = &command {
                    left.clone_from(leftovers);
                }
                self.obey(command, &mut held).await;
            }
        }
        left
    }

    /// Refuses what `first` would begin if there is no room for its capture.
    async fn admit(&self, first: Event, held: &mut Held) -> Event {
        if !matches!(first, Event::Prepare { .. }) {
            return first;
        }
        match reserve(self.host.captures.as_ref(), self.trial, &self.end).await {
            Ok(reservation) => {
                held.capture = reservation;
                first
            }
            Err(error) => Event::Refuse(Failure::new(crate::chain(&error))),
        }
    }

    async fn next_event(&mut self, held: &mut Held) -> Event {
        if let Some(event) = held.answers.pop_front() {
            return event;
        }
        let reports = held.reports.as_mut();
        let report = async {
            match reports {
                Some(reports) => reports.recv().await,
                None => std::future::pending().await,
            }
        };
        let deadline = held.deadline;
        let overdue = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.events.recv(), if !held.orphaned => match event {
                Some(Event::Start { peer }) => met(&self.end, peer),
                Some(event) => event,
                None => {
                    held.orphaned = true;
                    Event::Shutdown
                }
            },
            report = report => match report {
                Some(ChildReport::Said(ChildEvent::PortOpened)) => Event::PortOpened,
                Some(ChildReport::Said(ChildEvent::Ready(ready))) => Event::ChildReady(seen_from_outside(ready, held)),
                Some(ChildReport::Said(ChildEvent::Sample(sample))) => Event::Sample(sample),
                Some(ChildReport::Said(ChildEvent::Done(report))) => measured(&self.end, report, held),
                Some(ChildReport::Said(ChildEvent::Failed(failure))) => Event::ChildFailed(failure),
                Some(ChildReport::Ended(failure)) => Self::ended(held, failure).await,
                None => Self::ended(held, Failure::new("the agent lost sight of the end's process")).await,
            },
            () = overdue => {
                held.deadline = None;
                Event::DeadlinePassed
            }
        }
    }

    async fn ended(held: &mut Held, failure: Failure) -> Event {
        held.reports = None;
        if let Some(child) = held.child.take() {
            child.reaped().await;
        }
        Event::ChildEnded(failure)
    }

    async fn obey(&self, command: Command, held: &mut Held) {
        let trial = self.trial;
        match command {
            Command::SetDeadline(after) => {
                held.deadline = after.map(|after: Duration| Instant::now() + after);
            }
            Command::SetUpNetwork => {
                let answer = self.set_up_network(held).await;
                held.answers
                    .push_back(answer.map_or_else(failed(Event::NetworkFailed), |()| Event::NetworkUp));
            }
            Command::SpawnChild => {
                if let Err(failure) = self.spawn(held).await {
                    held.reports = None;
                    held.answers.push_back(Event::ChildEnded(failure));
                }
            }
            Command::AttachPort => {
                let answer = if held.is_on_the_wire() {
                    self.host.network.attach(trial, &self.station()).await
                } else {
                    Ok(())
                };
                held.answers
                    .push_back(answer.map_or_else(failed(Event::PortFailed), |()| Event::PortAttached));
            }
            Command::TellPortAttached => self.tell(held, &ChildCommand::<()>::PortAttached),
            Command::TellStart { peer } => self.tell(held, &ChildCommand::<()>::Start { peer }),
            Command::KillChild => {
                if let Some(child) = &mut held.child {
                    child.kill();
                }
            }
            Command::RemoveNetwork => {
                let leftovers = self.host.release(trial).await;
                if !leftovers.is_empty() {
                    tracing::error!(%trial, ?leftovers, "not everything could be removed");
                }
                held.answers.push_back(Event::NetworkRemoved { leftovers });
            }
            Command::SendReady(ready) => self.send(FromAgent::Ready { trial, ready }).await,
            Command::SendSample(sample) => self.send(FromAgent::Sample { trial, sample }).await,
            Command::Conclude(Ok(report)) => {
                tracing::info!(%trial, bytes = report.bytes(), interval = %report.interval, "measured");
                self.send(FromAgent::Result { trial, report }).await;
            }
            Command::Conclude(Err(failure)) => {
                tracing::warn!(%trial, reason = failure.reason, "failed");
                if held.is_on_the_wire() {
                    self.host.network.doubt(self.end.address.address);
                }
                self.send(FromAgent::Failed { trial, failure }).await;
            }
            Command::SendTornDown { leftovers } => {
                self.send(FromAgent::TornDown { trial, leftovers }).await;
            }
            Command::Ignore(why) => tracing::warn!(%trial, why, "event ignored"),
        }
    }

    async fn set_up_network(&self, held: &mut Held) -> Result<(), NetworkError> {
        let network = &self.host.network;
        let on = self.end.kind.network_mode();
        if on != Some(NetworkMode::HostOnly) {
            held.nic = network.nic_facts().await?;
            network.check_peer(self.end.peer).await?;
        }
        // Checked above; the ends of a hub reach nobody but each other.
        let peer = self.end.peer.unwrap_or(Ipv4Addr::UNSPECIFIED);
        match on {
            None => held.native = Some(network.native(self.end.mtu).await?),
            Some(NetworkMode::Nat) => {
                let site = network.native(self.end.mtu).await?;
                held.native = Some(site);
                let (address, interface) = (site.address.address, network.nic().to_owned());
                let outside = Outside { address, interface, peer, segment: site.segment };
                held.port = Some(VmmPort::Nat { outside });
            }
            Some(NetworkMode::HostOnly) => {
                let what = "the socket pair of a hub could not be made";
                let socket = self.host.hubs.take(self.trial);
                let socket = socket.map_err(|source| NetworkError::Socket { what, source })?;
                held.port = Some(VmmPort::Hub { descriptor: socket.as_raw_fd() });
                held.socket = Some(socket);
            }
            Some(NetworkMode::Bridged) => {
                held.gateway = network.gateway(self.end.address, peer).await?;
                held.port = Some(network.set_up(self.trial, &self.station()).await?);
            }
        }
        Ok(())
    }

    async fn spawn(&self, held: &mut Held) -> Result<(), Failure> {
        let end = &self.end;
        let (program, environment, configure) = match &end.kind {
            EndKind::Native { program } => {
                let site = held.native.ok_or_else(|| Failure::new("the test NIC's address is not known"))?;
                let config = EndpointConfig {
                    trial: self.trial,
                    program: *program,
                    address: site.address,
                    interface: self.host.network.nic().to_owned(),
                    segment: site.segment,
                    job: end.job.clone(),
                    cpu: end.cpu,
                    deadline: end.deadline,
                };
                // It looks for iperf3.
                ("toll-endpoint", Environment::Path, Configure::Endpoint(config))
            }
            EndKind::Virtual { engine, nic } => {
                let config = self.vmm_config(*engine, nic, held)?;
                ("toll-vmm", Environment::Empty, Configure::Vmm(config))
            }
        };
        let (reports, receiver) = mpsc::channel(64);
        let program: &Path = &self.host.programs.join(program);
        let user = self.host.users.take(self.trial).await;
        let user = user.map_err(|error| Failure::new(crate::chain(&error)))?;
        let start = Start { program, environment, user, socket: held.socket.take() };
        let child = Child::spawn(&self.host.spawner, start, reports).await;
        let child = held.child.insert(child.map_err(|error| Failure::new(crate::chain(&error)))?);
        held.reports = Some(receiver);
        tracing::info!(trial = %self.trial, program = %program.display(), process = child.id(), "started");
        let told = match configure {
            Configure::Endpoint(config) => child.tell(&ChildCommand::Configure(config)),
            Configure::Vmm(config) => child.tell(&ChildCommand::Configure(config)),
        };
        if let Err(error) = told {
            tracing::error!(trial = %self.trial, "{}", crate::chain(&error));
            child.kill();
        }
        Ok(())
    }

    /// What a virtual end is on the wire.
    fn station(&self) -> Station {
        let EndSpec { mac, address, mtu, .. } = self.end;
        Station { mac, address: address.address, mtu }
    }

    fn vmm_config(&self, engine: Engine, nic: &Nic, held: &Held) -> Result<VmmConfig, Failure> {
        let port = held.port.clone();
        let capture = held.capture.as_ref();
        Ok(VmmConfig {
            trial: self.trial,
            engine,
            adapter: nic.adapter.clone(),
            port: port.ok_or_else(|| Failure::new("the virtual end's port is not known"))?,
            impairments: nic.decorators.impairments,
            capture: capture.map(|reserved| (reserved.capture(), reserved.file().to_owned())),
            mac: self.end.mac,
            address: self.end.address,
            gateway: self.end.gateway.or(held.gateway),
            mtu: self.end.mtu,
            memory: GUEST_MEMORY,
            job: self.end.job.clone(),
            cpu: self.end.cpu,
            io_cpu: self.end.io_cpu,
            deadline: self.end.deadline,
        })
    }

    /// A child that can't be told is about to end, or hangs: its end or the deadline says so.
    fn tell(&self, held: &Held, command: &ChildCommand<()>) {
        if let Some(Err(error)) = held.child.as_ref().map(|child| child.tell(command)) {
            tracing::warn!(trial = %self.trial, "{}", crate::chain(&error));
        }
    }

    async fn send(&self, message: FromAgent) {
        // The agent has gone and the host is still being released.
        if self.outgoing.send(message).await.is_err() {
            tracing::warn!(trial = %self.trial, "nobody is left to tell");
        }
    }
}

/// Where the other end finds this one: behind address translation at the host's own address.
fn seen_from_outside(ready: EndReady, held: &Held) -> EndReady {
    match &held.port {
        Some(VmmPort::Nat { outside }) => {
            EndReady { address: SocketAddrV4::new(outside.address, ready.address.port()) }
        }
        _ => ready,
    }
}

/// What `Start` is to an end: it may say where in its peer's host the peer is, and no other host.
fn met(end: &EndSpec, peer: SocketAddrV4) -> Event {
    match end.peer {
        Some(told) if told == *peer.ip() => Event::Start { peer },
        told => {
            let told = told.map_or_else(|| "nobody".to_owned(), |told| told.to_string());
            Event::Stranger(Failure::new(format!(
                "the end was to talk to {peer}, and its peer is {told}: it talks to nobody else"
            )))
        }
    }
}

/// What the end's process has measured is a figure, or its failure.
fn measured(end: &EndSpec, mut report: Box<EndReport>, held: &Held) -> Event {
    report.nic.clone_from(&held.nic);
    validity::no_figure(end.job.direction, &report).map_or(Event::Done(report), Event::ChildFailed)
}

/// The first message to a child.
enum Configure {
    Endpoint(EndpointConfig),
    Vmm(VmmConfig),
}

/// Makes the event of a step that failed.
fn failed(event: impl FnOnce(Failure) -> Event) -> impl FnOnce(NetworkError) -> Event {
    |error| event(Failure::new(crate::chain(&error)))
}
