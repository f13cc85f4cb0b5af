//! The scheduler: which trial runs when, and what becomes of it. A pure function of events and time:
//! it sends nothing and writes nothing, it says what is to be sent and written.
//!
//! ```text
//! events                                            commands
//!   AgentConnected, AgentLost ---+
//!   Agent(message) --------------+--> Scheduler --> Send(host, message)
//!   Stored(trial) ---------------+              --> Record(trial record)
//!   Cancel, Tick ----------------+              --> Finished
//! ```
//! Each planned trial ends with exactly one `Record`. A host is in one trial at a time, and gets the next only
//! when the last one's record is stored and its host says that nothing is left of it.

mod flight;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flight::{Flight, Step};
use toll_protocol::facts::{HostFacts, KvmFact};
use toll_protocol::message::{FromAgent, ToAgent};
use toll_protocol::result::{Outcome, TrialRecord};
use toll_protocol::trial::{EndKind, EndSpec, NativeProgram, TrialId};
use toll_protocol::units::Span;

use crate::plan::Plan;

/// How long an agent may stay away before trials that need it are given up.
const AGENT_GRACE: Duration = Duration::from_secs(10);

/// A moment, by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since the campaign began.
    pub elapsed: Duration,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

/// What the core is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An agent said Hello under its certificate's name.
    AgentConnected {
        /// Its name.
        host: String,
        /// Its host.
        facts: Box<HostFacts>,
    },
    /// An agent's connection ended.
    AgentLost {
        /// Its name.
        host: String,
    },
    /// An agent said something.
    Agent {
        /// Its name.
        host: String,
        /// What it said.
        message: FromAgent,
    },
    /// A host is gone for good: a lab's agent process has ended.
    HostDied {
        /// Its name.
        host: String,
        /// How it ended.
        reason: String,
    },
    /// The ledger has the record of a trial durably.
    Stored {
        /// The trial.
        trial: TrialId,
    },
    /// The user wants no more.
    Cancel,
    /// Time has passed.
    Tick,
}

/// What the core wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Send a message to an agent.
    Send {
        /// Its name.
        host: String,
        /// What to say.
        message: ToAgent,
    },
    /// Write a record and answer with [`Event::Stored`].
    Record(Box<TrialRecord>),
    /// All trials are over and recorded; comes once.
    Finished,
}

/// How far a campaign is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Trials of the plan.
    pub planned: usize,
    /// Trials that are over.
    pub over: usize,
    /// Of these, without figures.
    pub without_figures: usize,
    /// What runs now: `virtio send, host-1 and host-2, block 2`.
    pub running: Vec<String>,
    /// Estimate of the time left.
    pub left: Span,
}

#[derive(Debug)]
struct Host {
    facts: Option<Box<HostFacts>>,
    busy: Option<TrialId>,
    /// Since when it has not been connected.
    away_since: Option<Duration>,
    /// Why it gets no more trials.
    given_up: Option<String>,
}

/// A campaign under way.
#[derive(Debug)]
pub struct Scheduler {
    plan: Plan,
    hosts: BTreeMap<String, Host>,
    /// Indices of trials not yet begun.
    queue: VecDeque<usize>,
    flights: BTreeMap<TrialId, Flight>,
    /// Records asked for and not yet stored.
    unstored: usize,
    /// Most trials at once.
    limit: usize,
    over: usize,
    without_figures: usize,
    finished: bool,
}

impl Scheduler {
    /// A campaign that has not begun; it begins as its hosts' agents connect. At most `limit` trials are in
    /// flight at once: 1 in a lab, whose hosts share one machine.
    pub fn new(plan: Plan, limit: usize) -> Self {
        let mut hosts = BTreeMap::new();
        for cell in &plan.cells {
            for name in [&cell.key.pair.a, &cell.key.pair.b] {
                let host = Host { facts: None, busy: None, away_since: Some(Duration::ZERO), given_up: None };
                hosts.insert(name.clone(), host);
            }
        }
        let queue = (0..plan.trials.len()).collect();
        Self {
            plan,
            hosts,
            queue,
            flights: BTreeMap::new(),
            unstored: 0,
            limit,
            over: 0,
            without_figures: 0,
            finished: false,
        }
    }

    /// Takes one event and returns what is to be done, in order.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Command> {
        let mut out = Vec::new();
        match event {
            Event::AgentConnected { host, facts } => {
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.facts = Some(facts);
                    host.away_since = None;
                }
            }
            Event::AgentLost { host } => self.agent_lost(&host, now, &mut out),
            Event::Agent { host, message } => self.agent_said(&host, message, now, &mut out),
            Event::HostDied { host, reason } => {
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.given_up = Some(reason);
                }
                self.agent_lost(&host, now, &mut out);
            }
            Event::Stored { trial } => {
                self.unstored = self.unstored.saturating_sub(1);
                self.fly(trial, Step::Stored, now, &mut out);
            }
            Event::Cancel => self.cancel(now, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        self.dispatch(now, &mut out);
        let idle = self.queue.is_empty() && self.flights.is_empty() && self.unstored == 0;
        if idle && !self.finished {
            self.finished = true;
            out.push(Command::Finished);
        }
        out
    }

    /// Whether [`Command::Finished`] was given.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Facts of the hosts, as their agents last told them.
    pub fn facts(&self) -> impl Iterator<Item = (&str, &HostFacts)> {
        self.hosts.iter().filter_map(|(name, host)| Some((name.as_str(), host.facts.as_deref()?)))
    }

    /// How far the campaign is.
    pub fn progress(&self, now: Now) -> Progress {
        let running = |flight: &Flight| {
            let trial = &self.plan.trials[flight.index];
            let key = &self.plan.cells[trial.cell].key;
            let pair = &key.pair;
            format!(
                "{} {} to {}, {} and {}, block {}",
                key.arm,
                key.direction,
                key.peer,
                pair.a,
                pair.b,
                trial.block + 1
            )
        };
        let planned = self.plan.trials.len();
        let estimate = self.plan.estimate().0;
        // Once a few trials are over, their own pace is the better guide.
        let pace = match self.over {
            0..3 => estimate / planned.max(1) as u64,
            over => Span::from(now.elapsed).0 / over as u64,
        };
        Progress {
            planned,
            over: self.over,
            without_figures: self.without_figures,
            running: self.flights.values().map(running).collect(),
            left: Span(pace.saturating_mul((planned - self.over) as u64)),
        }
    }

    fn agent_lost(&mut self, name: &str, now: Now, out: &mut Vec<Command>) {
        let Some(host) = self.hosts.get_mut(name) else { return };
        host.away_since = Some(now.elapsed);
        if let Some(trial) = host.busy {
            self.fly(trial, Step::HostLost { host: name.to_owned() }, now, out);
        }
    }

    fn agent_said(&mut self, host: &str, message: FromAgent, now: Now, out: &mut Vec<Command>) {
        let (trial, step) = match message {
            FromAgent::Hello { .. } => return,
            FromAgent::Ready { trial, ready } => (trial, Step::Ready { host: host.to_owned(), ready }),
            FromAgent::Sample { trial, .. } => (trial, Step::Sample),
            FromAgent::Result { trial, report } => (trial, Step::Result { host: host.to_owned(), report }),
            FromAgent::Failed { trial, failure } => (trial, Step::Failed { host: host.to_owned(), failure }),
            FromAgent::TornDown { trial, leftovers } => {
                (trial, Step::TornDown { host: host.to_owned(), leftovers })
            }
        };
        // An agent is believed only about the trial that it is in.
        if self.hosts.get(host).and_then(|host| host.busy) == Some(trial) {
            self.fly(trial, step, now, out);
        }
    }

    fn cancel(&mut self, now: Now, out: &mut Vec<Command>) {
        for index in std::mem::take(&mut self.queue) {
            self.skip(index, "the campaign was interrupted".into(), out);
        }
        let flying: Vec<TrialId> = self.flights.keys().copied().collect();
        for trial in flying {
            self.fly(trial, Step::Cancel, now, out);
        }
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Command>) {
        let flying: Vec<TrialId> = self.flights.keys().copied().collect();
        for trial in flying {
            self.fly(trial, Step::Tick, now, out);
        }
        for (name, host) in &mut self.hosts {
            let away = host.away_since.is_some_and(|since| now.elapsed.saturating_sub(since) > AGENT_GRACE);
            if away && host.given_up.is_none() {
                host.given_up = Some(format!("the agent of {name} has been away for over {AGENT_GRACE:?}"));
            }
        }
    }

    /// Gives a step to a trial in flight and carries its hosts' state along.
    fn fly(&mut self, trial: TrialId, step: Step, now: Now, out: &mut Vec<Command>) {
        let Some(flight) = self.flights.get_mut(&trial) else { return };
        let record = flight.step(step, now, out);
        if let Some(outcome) = record {
            let planned = &self.plan.trials[flight.index];
            let record = TrialRecord {
                trial,
                cell: self.plan.cells[planned.cell].key.clone(),
                block: planned.block,
                position: place(flight.index),
                started_unix_ms: Some(flight.started_unix_ms),
                outcome,
            };
            self.record(record, out);
        }
        let Some(flight) = self.flights.get(&trial) else { return };
        if flight.is_over() {
            for (name, dirt) in flight.dirty_hosts() {
                if let Some(host) = self.hosts.get_mut(name) {
                    host.given_up.get_or_insert_with(|| dirt.to_owned());
                }
            }
            for host in self.hosts.values_mut().filter(|host| host.busy == Some(trial)) {
                host.busy = None;
            }
            self.flights.remove(&trial);
        }
    }

    fn record(&mut self, record: TrialRecord, out: &mut Vec<Command>) {
        self.over += 1;
        self.without_figures += usize::from(!matches!(record.outcome, Outcome::Measured { .. }));
        self.unstored += 1;
        out.push(Command::Record(Box::new(record)));
    }

    fn skip(&mut self, index: usize, reason: String, out: &mut Vec<Command>) {
        let planned = &self.plan.trials[index];
        let record = TrialRecord {
            trial: planned.id,
            cell: self.plan.cells[planned.cell].key.clone(),
            block: planned.block,
            position: place(index),
            started_unix_ms: None,
            outcome: Outcome::Skipped { reason },
        };
        self.record(record, out);
    }

    /// Begins every trial that can begin now, in the plan's order, and skips those that never can.
    fn dispatch(&mut self, now: Now, out: &mut Vec<Command>) {
        let mut waiting = VecDeque::new();
        // With every slot taken the queue is left alone: messages come many times a second while a trial is
        // measured, and a campaign may have a hundred thousand trials.
        while self.flights.len() < self.limit
            && let Some(index) = self.queue.pop_front()
        {
            match self.readiness(index) {
                Readiness::Never(reason) => self.skip(index, reason, out),
                Readiness::Now => self.begin(index, now, out),
                Readiness::Later => waiting.push_back(index),
            }
        }
        waiting.append(&mut self.queue);
        self.queue = waiting;
    }

    fn readiness(&self, index: usize) -> Readiness {
        let cell = &self.plan.cells[self.plan.trials[index].cell];
        let mut now = true;
        for (name, end) in [(&cell.key.pair.a, &cell.a), (&cell.key.pair.b, &cell.b)] {
            let Some(host) = self.hosts.get(name) else {
                return Readiness::Never(format!("there is no host {name}"));
            };
            if let Some(why) = &host.given_up {
                return Readiness::Never(why.clone());
            }
            if let Some(why) = host.facts.as_ref().and_then(|facts| obstacle(end, facts)) {
                return Readiness::Never(format!("{name}: {why}"));
            }
            now &= host.away_since.is_none() && host.busy.is_none();
        }
        if now { Readiness::Now } else { Readiness::Later }
    }

    fn begin(&mut self, index: usize, now: Now, out: &mut Vec<Command>) {
        let planned = &self.plan.trials[index];
        let (trial, cell) = (planned.id, &self.plan.cells[planned.cell]);
        let mut cell = cell.clone();
        let pair = &cell.key.pair;
        for (host, end) in [(&pair.a, &mut cell.a), (&pair.b, &mut cell.b)] {
            if let Some(host) = self.hosts.get_mut(host) {
                host.busy = Some(trial);
                let facts = host.facts.as_deref();
                end.cpu = end.cpu.and_then(|cpu| own_cpu(facts?, cpu));
            }
        }
        let flight = Flight::begin(index, trial, &cell, now, out);
        self.flights.insert(trial, flight);
    }
}

/// A trial's place in the plan's order.
fn place(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

enum Readiness {
    Now,
    Later,
    Never(String),
}

/// The machine's number of the host's `n`th CPU. A lab gives each host some of the machine's, a container too;
/// pinning by the machine's numbers would work for root and take the CPU of another host.
fn own_cpu(facts: &HostFacts, n: u32) -> Option<u32> {
    facts.cpus.get(usize::try_from(n).ok()?).copied()
}

/// Why a host can't be this end, if it can't.
fn obstacle(end: &EndSpec, facts: &HostFacts) -> Option<String> {
    if let Some(cpu) = end.cpu.filter(|cpu| own_cpu(facts, *cpu).is_none()) {
        let count = facts.cpus.len();
        return Some(format!(
            "the arm is pinned to CPU {cpu} of the host, which has {count} (the first is 0)"
        ));
    }
    let tun = || facts.tun.as_ref().err().map(|why| format!("no TAP device: {why}"));
    match &end.kind {
        EndKind::Guest { .. } => match &facts.kvm {
            KvmFact::Unusable { reason } => Some(format!("no guest can run: {reason}")),
            KvmFact::Usable(_) => tun(),
        },
        EndKind::SameStack { .. } => tun(),
        EndKind::Native { program: NativeProgram::Iperf3 } if facts.iperf3.is_none() => {
            Some("iperf3 is not installed (Debian: apt-get install iperf3)".into())
        }
        EndKind::Native { .. } => None,
    }
}
