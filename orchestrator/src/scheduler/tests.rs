//! A fleet of simulated agents under a virtual clock: they prepare, run, fail, vanish and lie, as a seed says.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use toll_protocol::facts::{KvmFact, KvmKind, NicFacts, Wire};
use toll_protocol::message::Instance;
use toll_protocol::report::{EndReport, Failure};
use toll_protocol::result::RunCounts;
use toll_protocol::trial::{EndReady, NetworkMode};
use toll_protocol::units::{InterfaceAddress, Span};

use super::*;
use crate::plan;

/// Where all simulated agents are.
const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

const CAMPAIGN: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: c}
spec:
  hosts: {lab: {count: 2}}
  blocks: 3
  arms:
    - {name: native, native: {}}
    - {name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}, peers: [native, same-arm]}
  workloads: [{name: bulk, stream: {}}]
";
/// An arm whose ends stand on one host, more.
const HUB: &str = "    - {name: hub, guest: {os: payload, adapter: {virtioNet: {}}, port: {hub: {}}}, peers: [same-arm]}\n  workloads:";

fn facts(kvm: KvmFact) -> Box<HostFacts> {
    Box::new(HostFacts {
        kernel: "6.1".into(),
        cpus: vec![0],
        kvm,
        tun: Ok(()),
        wire: Some(Wire::Exclusive),
        ..HostFacts::default()
    })
}

fn report() -> Box<EndReport> {
    Box::new(EndReport {
        sent_bytes: 1,
        received_bytes: 1,
        ..EndReport::new(toll_protocol::traffic::TrafficReport::Stream(Default::default()), Span(1))
    })
}

fn host_plans(count: u8) -> Vec<plan::Host> {
    let address = |n| Some(InterfaceAddress { address: [10, 77, 0, 100 + n].into(), prefix: 24 });
    (0..count)
        .map(|n| plan::Host { name: format!("host-{n}"), virtual_address: address(n), mtu: 1500, rate: None })
        .collect()
}

fn campaign(text: &str) -> toll_protocol::campaign::Campaign {
    toll_protocol::campaign::parse(text).expect("is good")
}

fn new_campaign(id: &str, hosts: u8) -> NewCampaign {
    let hosts = Hosts::Given(host_plans(hosts));
    NewCampaign { id: id.into(), campaign: campaign(CAMPAIGN), hosts, seed: 1 }
}

fn with_a_hub(id: &str, hosts: u8) -> NewCampaign {
    let campaign = campaign(&CAMPAIGN.replace("  workloads:", HUB));
    NewCampaign { campaign, ..new_campaign(id, hosts) }
}

/// The NIC of a host whose name ends with a number.
fn nic(name: &str) -> NicFacts {
    let number: u8 = name.rsplit('-').next().and_then(|number| number.parse().ok()).expect("a number");
    NicFacts {
        address: Some(InterfaceAddress { address: [10, 77, 0, 1 + number].into(), prefix: 24 }),
        ..NicFacts::new("eth0", 1500)
    }
}

fn usable() -> Box<HostFacts> {
    facts(KvmFact::Usable(KvmKind::Vmx))
}

/// How often an agent misbehaves at each chance, out of 1000.
#[derive(Debug, Clone, Copy)]
struct Faults {
    fails: u32,
    silent: u32,
    vanishes: u32,
    dirty: u32,
}

/// What a simulated agent holds of a trial.
#[derive(Debug, Clone)]
enum Held {
    Ready(FromAgent),
    /// With what it said when it was ready, which it says again.
    Running(FromAgent),
    Over(FromAgent),
}

/// A simulated agent: it survives a lost connection with all that it holds, and loses it all when it is killed.
#[derive(Debug, Default)]
struct Agent {
    connected: bool,
    /// How many connections it has had, and its process.
    session: u64,
    instance: u64,
    held: BTreeMap<TrialId, Held>,
}

const GRACE: Duration = Duration::from_secs(10);
const POLICY: Policy =
    Policy { limit: 1, grace: GRACE, arrival: GRACE, settle: Duration::ZERO, cluster: false };

/// The fleet: what it will say, by time.
struct Simulation {
    scheduler: Scheduler,
    rng: ChaCha8Rng,
    faults: Faults,
    /// Where agents say that all ends are, if not where they are.
    stray: Option<Ipv4Addr>,
    /// What ends measure.
    bytes: u64,
    /// Events to come: time in microseconds (negated: the heap gives the largest first), then order.
    agenda: BinaryHeap<(i64, i64, usize)>,
    events: Vec<Option<Happening>>,
    clock: i64,
    agents: BTreeMap<String, Agent>,
    /// Connections so far.
    sessions: u64,
    facts: BTreeMap<String, Box<HostFacts>>,
    plans: BTreeMap<String, (Arc<Plan>, Vec<plan::Host>)>,
    begun: BTreeMap<TrialId, u64>,
    records: BTreeMap<TrialId, TrialRecord>,
    sent: Vec<(String, ToAgent)>,
    finished: BTreeMap<String, Ending>,
    waiting: usize,
}

/// What happens in a simulation.
#[derive(Debug)]
enum Happening {
    Event(Event),
    /// An agent comes back with what it holds.
    Reconnect(String),
    /// The connection that an agent has then ends.
    Lost(String),
    /// An end has run to its end.
    Done(String, TrialId, FromAgent),
}

impl Simulation {
    fn new(policy: Policy, seed: u64, faults: Faults) -> Self {
        Self {
            scheduler: Scheduler::new(policy, seed),
            rng: ChaCha8Rng::seed_from_u64(seed),
            faults,
            stray: None,
            bytes: 1,
            agenda: BinaryHeap::new(),
            events: Vec::new(),
            clock: 0,
            agents: BTreeMap::new(),
            sessions: 0,
            facts: BTreeMap::new(),
            plans: BTreeMap::new(),
            begun: BTreeMap::new(),
            records: BTreeMap::new(),
            sent: Vec::new(),
            finished: BTreeMap::new(),
            waiting: 0,
        }
    }

    fn happens(&mut self, delay_ms: u64, happening: Happening) {
        let time = self.clock + i64::try_from(delay_ms).expect("short") * 1000;
        self.agenda.push((-time, -i64::try_from(self.events.len()).expect("few"), self.events.len()));
        self.events.push(Some(happening));
    }

    fn at(&mut self, delay_ms: u64, event: Event) {
        self.happens(delay_ms, Happening::Event(event));
    }

    fn submit(&mut self, campaign: NewCampaign) {
        self.waiting += 1;
        self.at(0, Event::Submit(Box::new(campaign)));
    }

    /// An agent of `name` that will connect.
    fn agent_comes(&mut self, delay_ms: u64, name: &str, facts: Box<HostFacts>) {
        let facts =
            if facts.nic.is_some() { facts } else { Box::new(HostFacts { nic: Some(nic(name)), ..*facts }) };
        self.facts.insert(name.into(), facts);
        self.agents.insert(name.into(), Agent::default());
        self.happens(delay_ms, Happening::Reconnect(name.into()));
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        self.rng.random_range(0..1000) < per_mille
    }

    fn now(&self) -> Now {
        let elapsed = Duration::from_micros(u64::try_from(self.clock).expect("positive"));
        Now { elapsed, unix_ms: 1_000_000 }
    }

    /// Runs until every campaign is over; every wait is in virtual time.
    fn run(&mut self) {
        for tick in 1..5_000 {
            self.at(tick * 1000, Event::Tick);
        }
        assert!(self.run_until(i64::MAX), "the campaigns did not end");
    }

    /// Runs until every campaign is over, or until so many microseconds have passed. Whether they are over.
    fn run_until(&mut self, end: i64) -> bool {
        while self.finished.len() < self.waiting {
            let Some((time, _, index)) = self.agenda.pop() else { return false };
            if -time > end {
                self.agenda.push((time, -i64::try_from(index).expect("few"), index));
                self.clock = end;
                return false;
            }
            self.clock = -time;
            let event = match self.events[index].take().expect("is taken once") {
                Happening::Event(event) => event,
                Happening::Reconnect(name) => self.reconnects(&name),
                Happening::Lost(name) => self.loss(&name),
                Happening::Done(name, trial, result) => {
                    let agent = self.agents.get_mut(&name).expect("an agent");
                    if !matches!(agent.held.get(&trial), Some(Held::Running(_))) {
                        continue;
                    }
                    agent.held.insert(trial, Held::Over(result.clone()));
                    if !agent.connected {
                        continue;
                    }
                    // Resent, as after a lost connection.
                    self.at(1, Event::Agent { host: name.clone(), message: result.clone() });
                    Event::Agent { host: name, message: result }
                }
            };
            let now = self.now();
            let commands = self.scheduler.step(event, now);
            self.check();
            for command in commands {
                self.obey(command);
            }
        }
        true
    }

    fn reconnects(&mut self, name: &str) -> Event {
        self.sessions += 1;
        let agent = self.agents.get_mut(name).expect("an agent");
        (agent.connected, agent.session) = (true, self.sessions);
        let session = Session { number: agent.session, instance: Instance(agent.instance), address: LOCAL };
        let held = agent.held.keys().copied().collect();
        let said: Vec<FromAgent> = agent
            .held
            .values()
            .map(|held| match held {
                Held::Ready(message) | Held::Running(message) | Held::Over(message) => message.clone(),
            })
            .collect();
        for message in said {
            self.at(1, Event::Agent { host: name.into(), message });
        }
        let labels = BTreeMap::new();
        Event::AgentConnected { host: name.into(), session, facts: self.facts[name].clone(), labels, held }
    }

    /// The end of the last connection of an agent.
    fn loss(&self, name: &str) -> Event {
        Event::AgentLost { host: name.into(), session: self.agents[name].session }
    }

    /// A host is in one trial at most.
    fn check(&self) {
        let mut busy = BTreeSet::new();
        for (_, flight) in self.scheduler.flights.values() {
            for host in flight.hosts().collect::<BTreeSet<_>>() {
                assert!(busy.insert(host), "{host} is in two trials");
            }
        }
    }

    /// The orchestrator is killed: nothing but what it had made durable is left. The next one goes on from there.
    fn restarts(&mut self, policy: Policy) {
        let seed = self.rng.random();
        self.scheduler = Scheduler::new(policy, seed);
        for happening in self.events.iter_mut().flatten() {
            let is_heard = match happening {
                Happening::Event(event) => !matches!(event, Event::Tick | Event::Cancel { .. }),
                Happening::Lost(_) => true,
                Happening::Reconnect(_) | Happening::Done(..) => false,
            };
            if is_heard {
                *happening = Happening::Event(Event::Tick);
            }
        }
        let now = self.now();
        let mut commands = Vec::new();
        for (id, (plan, hosts)) in &self.plans {
            if self.finished.contains_key(id) {
                continue;
            }
            let indices = plan.trials.iter().enumerate();
            let recorded: Vec<usize> = indices
                .clone()
                .filter(|(_, trial)| self.records.contains_key(&trial.id))
                .map(|(index, _)| index)
                .collect();
            let begun = indices
                .filter(|(index, _)| !recorded.contains(index))
                .filter_map(|(index, trial)| Some((index, *self.begun.get(&trial.id)?)))
                .collect();
            let mut counts = RunCounts::default();
            for index in &recorded {
                counts.add(crate::ledger::status(&self.records[&plan.trials[*index].id].outcome));
            }
            let (id, plan, hosts) = (id.clone(), plan.clone(), hosts.clone());
            let resumed = ResumedCampaign { id, plan, hosts, begun, recorded, counts, cancelled: None };
            commands.extend(self.scheduler.step(Event::Resume(Box::new(resumed)), now));
        }
        for command in commands {
            self.obey(command);
        }
        let names: Vec<String> = self.agents.keys().cloned().collect();
        for name in names {
            self.agents.get_mut(&name).expect("an agent").connected = false;
            let delay = self.rng.random_range(10..5_000);
            self.happens(delay, Happening::Reconnect(name));
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Record { campaign, record } => {
                let trial = record.trial;
                assert!(self.records.insert(trial, *record).is_none(), "trial {trial} was recorded twice");
                self.at(2, Event::Stored { trial, campaign });
            }
            Command::StorePlan { campaign, plan, hosts } => {
                self.plans.insert(campaign.clone(), (plan, hosts));
                self.at(3, Event::PlanStored { campaign });
            }
            Command::Begun { trial, unix_ms, .. } => {
                self.begun.insert(trial, unix_ms);
            }
            Command::Send { host, message } => {
                self.sent.push((host.clone(), message.clone()));
                self.agent(&host, &message);
            }
            Command::Phase { .. } => {}
            Command::Finished { campaign, ending } => {
                let before = self.finished.insert(campaign, ending);
                assert!(before.is_none(), "a campaign finished twice");
            }
        }
    }

    /// What an agent does with a message.
    fn agent(&mut self, host: &str, message: &ToAgent) {
        if !self.agents.get(host).is_some_and(|agent| agent.connected) {
            return;
        }
        if self.chance(self.faults.vanishes) {
            self.at(1, self.loss(host));
            let killed = self.chance(500);
            let agent = self.agents.get_mut(host).expect("an agent");
            agent.connected = false;
            if killed {
                agent.held.clear();
                agent.instance += 1;
            }
            if self.chance(700) {
                let delay = self.rng.random_range(10..30_000);
                self.happens(delay, Happening::Reconnect(host.into()));
            }
            return;
        }
        if self.chance(self.faults.silent) {
            return;
        }
        let fails = self.chance(self.faults.fails);
        let delay = self.rng.random_range(2500..2600);
        let dirty = self.chance(self.faults.dirty);
        let agent = self.agents.get_mut(host).expect("an agent");
        let say = |message| Event::Agent { host: host.into(), message };
        match message {
            ToAgent::Prepare { trial, end } => {
                let trial = *trial;
                let other = |(id, held): (&TrialId, &Held)| {
                    id.near() != trial.near() && !matches!(held, Held::Over(_))
                };
                let known = agent.held.get(&trial).cloned();
                assert!(known.is_some() || !agent.held.iter().any(other), "{host} is in two trials");
                let nic = self.facts[host].nic.as_ref().and_then(|nic| nic.address).expect("it has a NIC");
                let address = match end.kind.network_mode() {
                    None | Some(NetworkMode::Nat) => nic.address,
                    Some(_) => end.address.address,
                };
                let address = SocketAddrV4::new(self.stray.unwrap_or(address), 5201);
                let ready = FromAgent::Ready { trial, ready: EndReady { address } };
                let failed = FromAgent::Failed { trial, failure: Failure::new("simulated") };
                match known {
                    Some(Held::Ready(message)) => self.at(1, say(message)),
                    Some(_) => {}
                    None if fails => {
                        agent.held.insert(trial, Held::Over(failed.clone()));
                        self.at(5, say(failed));
                    }
                    None => {
                        agent.held.insert(trial, Held::Ready(ready.clone()));
                        self.at(5, say(ready));
                    }
                }
            }
            ToAgent::Start { trial, .. } => match agent.held.get(trial) {
                Some(Held::Ready(message)) => {
                    let running = Held::Running(message.clone());
                    agent.held.insert(*trial, running);
                    let result = FromAgent::Result {
                        trial: *trial,
                        report: Box::new(EndReport { received_bytes: self.bytes, ..*report() }),
                    };
                    self.happens(delay, Happening::Done(host.into(), *trial, result));
                }
                Some(_) => {}
                None => {
                    let failure = Failure::new("this agent does not know the trial");
                    self.at(1, say(FromAgent::Failed { trial: *trial, failure }));
                }
            },
            ToAgent::Teardown { trial } => {
                agent.held.remove(trial);
                let leftovers = if dirty { vec!["bridge".to_owned()] } else { Vec::new() };
                self.at(3, say(FromAgent::TornDown { trial: *trial, leftovers }));
            }
            ToAgent::Welcome { .. } | ToAgent::Acknowledged { .. } => {}
        }
    }

    /// The plan of the only campaign.
    fn plan(&self) -> &Plan {
        &self.plans["c"].0
    }

    fn first_trial(&mut self) -> TrialId {
        while self.plans.is_empty() {
            assert!(!self.run_until(self.clock + 1000), "it is over");
        }
        self.plan().trials[0].id
    }

    fn outcomes(&self, what: fn(&Outcome) -> bool) -> usize {
        self.records.values().filter(|record| what(&record.outcome)).count()
    }
}

fn is_measured(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Measured { .. })
}

fn is_lost(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Lost { .. })
}

const NO_FAULTS: Faults = Faults { fails: 0, silent: 0, vanishes: 0, dirty: 0 };

fn fleet(hosts: u8, limit: usize, seed: u64, faults: Faults) -> Simulation {
    let mut fleet = Simulation::new(Policy { limit, ..POLICY }, seed, faults);
    fleet.submit(new_campaign("c", hosts));
    for host in host_plans(hosts) {
        fleet.agent_comes(10, &host.name, usable());
    }
    fleet
}

mod ends;
mod fleets;
mod hosts;
mod trials;
