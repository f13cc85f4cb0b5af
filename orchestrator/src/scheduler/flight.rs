//! One trial in flight: a state machine, pure.
//!
//! ```text
//!  Preparing --Ready x2--> Running --Result x2--> Recording --Stored--> Ending --TornDown x2--> Over
//!      |                   ^  |                       ^
//!      |  resumed ---------+  |                       |
//!      +- Failed, host gone --+-- outcome failed -----+
//!         deadline, cancel    |    or lost            |
//!                             +-- Failed --> Failing -+ the other end's word, or half a second
//! ```
//! When an end dies its peer sees the connection break, and either may be heard first: both are told.
//! The record comes before the teardown, so that a result is durable before anything of it is thrown away; a
//! host that doesn't say `TornDown` in time is dirty and gets no more trials.
//!
//! A lost connection ends nothing: the agent keeps the trial and hands its result in later. When it is back it says
//! which trials it holds, and what it may have missed is said again; every message to it may be said twice.

use std::collections::BTreeMap;
use std::time::Duration;

use toll_protocol::message::ToAgent;
use toll_protocol::report::{EndReport, Failure};
use toll_protocol::result::Outcome;
use toll_protocol::trial::{EndReady, EndSpec, TrialId};
use toll_protocol::validity;

use super::process::Process;
use super::{Command, Now, Phase};
use crate::plan::Cell;

/// Longer than the agent's own limit (10 s), so that the agent's reason comes first.
const PREPARE: Duration = Duration::from_secs(15);
/// Beyond the job's own deadline, which the agent keeps.
const RUN_GRACE: Duration = Duration::from_secs(5);
/// How long the other end's word is waited for when one has failed.
const SECOND_WORD: Duration = Duration::from_millis(500);
/// How often an agent may be away for the whole grace while it holds a trial.
const ABSENCES: u32 = 4;
pub(super) const TEARDOWN: Duration = Duration::from_secs(10);

/// Which end of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndId {
    pub host: String,
    /// What the agent there calls it: the trial's id, but for the far end of a trial with both on one host.
    pub trial: TrialId,
}

/// What can happen to a trial.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Ready {
        end: EndId,
        ready: EndReady,
    },
    Result {
        end: EndId,
        report: Box<EndReport>,
    },
    Failed {
        end: EndId,
        failure: Failure,
    },
    TornDown {
        end: EndId,
        leftovers: Vec<String>,
    },
    /// The connection of an agent is lost. It may come back.
    HostLost {
        host: String,
    },
    /// An agent is back, or one that took its place, and holds these trials: this one, or it has not got it.
    HostBack {
        host: String,
        process: Process,
        held: Vec<TrialId>,
    },
    /// An agent has been away for too long, or its process is known to have died.
    HostGone {
        host: String,
        reason: String,
        died: bool,
    },
    Stored,
    /// Its result can't be kept.
    Abandon,
    Cancel {
        reason: String,
    },
    Tick,
}

#[derive(Debug, PartialEq)]
enum State {
    Preparing,
    Running,
    /// An end that ran has failed; the other has not yet said anything.
    Failing {
        end: EndId,
        failure: Failure,
    },
    Recording,
    Ending,
    Over,
}

/// One end of the trial, as far as its agent has told.
#[derive(Debug)]
struct End {
    id: EndId,
    spec: EndSpec,
    ready: Option<EndReady>,
    report: Option<Box<EndReport>>,
    connected: bool,
    /// Whether it may hold something of the trial.
    up: bool,
}

/// A trial from `Prepare` to `TornDown`.
#[derive(Debug)]
pub(super) struct Flight {
    /// Index in the plan.
    pub index: usize,
    /// When it began.
    pub started_unix_ms: u64,
    trial: TrialId,
    ends: [End; 2],
    state: State,
    deadline: Duration,
    /// When it is given up even if an end is away: agents that come and go may not keep it for ever.
    limit: Duration,
    /// When its phase began.
    phase_since: Duration,
    /// Whether it was begun by a former process of the orchestrator.
    resumed: bool,
    /// Hosts on which something is left, and what.
    dirty: BTreeMap<String, String>,
    /// Ends whose hosts were away when it ended: they have yet to be told.
    untold: Vec<EndId>,
}

impl Flight {
    /// Begins a trial: both ends are told to prepare.
    pub fn begin(
        index: usize,
        trial: TrialId,
        cell: &Cell,
        grace: Duration,
        now: Now,
        out: &mut Vec<Command>,
    ) -> Self {
        let mut flight = Self::new(index, trial, cell, now.unix_ms, State::Preparing, now.elapsed);
        flight.deadline = now.elapsed + PREPARE;
        flight.limit = flight.deadline + flight.run_time() + grace * ABSENCES;
        flight.ends.iter().for_each(|end| flight.say_again(end, out));
        flight
    }

    /// A trial that a former process of the orchestrator began, and whose agents have yet to come back: they hand
    /// its result in, or say that they have forgotten it.
    pub fn resumed(
        index: usize,
        trial: TrialId,
        cell: &Cell,
        started_unix_ms: u64,
        grace: Duration,
        now: Now,
    ) -> Self {
        let mut flight = Self::new(index, trial, cell, started_unix_ms, State::Running, now.elapsed);
        flight.deadline = now.elapsed + flight.run_time();
        flight.limit = flight.deadline + grace * ABSENCES;
        flight.resumed = true;
        flight.ends.iter_mut().for_each(|end| end.connected = false);
        flight
    }

    fn new(
        index: usize,
        trial: TrialId,
        cell: &Cell,
        started_unix_ms: u64,
        state: State,
        now: Duration,
    ) -> Self {
        let [a, b] = cell.hosts();
        let end = |trial: TrialId, host: &str, spec: &EndSpec| End {
            id: EndId { host: host.to_owned(), trial },
            spec: spec.clone(),
            ready: None,
            report: None,
            connected: true,
            up: true,
        };
        let far = if a == b { trial.far() } else { trial };
        Self {
            index,
            started_unix_ms,
            trial,
            ends: [end(trial, a, &cell.a), end(far, b, &cell.b)],
            state,
            deadline: now,
            limit: now,
            phase_since: now,
            resumed: false,
            dirty: BTreeMap::new(),
            untold: Vec::new(),
        }
    }

    /// From Start to the last word of an end, at most.
    fn run_time(&self) -> Duration {
        self.ends[0].spec.deadline.duration() + RUN_GRACE
    }

    /// Whether both hosts are free of it.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether its outcome is still open.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Preparing | State::Running | State::Failing { .. })
    }

    /// Hosts that must get no more trials, and why.
    pub fn dirty_hosts(&self) -> impl Iterator<Item = (&String, &str)> {
        self.dirty.iter().map(|(host, why)| (host, why.as_str()))
    }

    /// Hosts that were away when the trial ended, and what they may hold something of.
    pub fn untold(&self) -> &[EndId] {
        &self.untold
    }

    /// What `end` was asked to be.
    pub fn spec(&self, end: &EndId) -> Option<&EndSpec> {
        self.ends.iter().find(|known| known.id == *end).map(|known| &known.spec)
    }

    /// Both hosts.
    #[cfg(test)]
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.ends.iter().map(|end| end.id.host.as_str())
    }

    /// Takes one step; returns the outcome when it is known, once.
    pub fn step(&mut self, step: Step, now: Now, out: &mut Vec<Command>) -> Option<Outcome> {
        match &step {
            Step::HostLost { host } => self.set_connected(host, false),
            Step::HostBack { host, .. } => self.set_connected(host, true),
            _ => {}
        }
        if step == Step::Abandon && !matches!(self.state, State::Ending | State::Over) {
            self.end(now, out);
            return None;
        }
        let ran = self.state == State::Running;
        match &mut self.state {
            State::Preparing | State::Running => {
                let outcome = self.before_the_outcome(step, now, out);
                if ran && outcome.is_some() {
                    self.ends_phase(Phase::Run, now, out);
                }
                outcome
            }
            State::Failing { .. } => self.failing(step, now),
            State::Recording => {
                if step == Step::Stored {
                    self.end(now, out);
                }
                None
            }
            State::Ending => {
                self.ending(step, now, out);
                None
            }
            State::Over => None,
        }
    }

    fn set_connected(&mut self, host: &str, connected: bool) {
        self.ends.iter_mut().filter(|end| end.id.host == host).for_each(|end| end.connected = connected);
    }

    fn find(&mut self, id: &EndId) -> Option<&mut End> {
        self.ends.iter_mut().find(|end| end.id == *id)
    }

    /// What `end` is to do in this state. An agent that has done it already passes over it.
    fn say_again(&self, end: &End, out: &mut Vec<Command>) {
        let EndId { host, trial } = end.id.clone();
        let mut say = |message| out.push(Command::Send { host: host.clone(), message });
        match &self.state {
            State::Preparing => say(ToAgent::Prepare { trial, end: Box::new(end.spec.clone()) }),
            State::Running => {
                let other = self.ends.iter().find(|other| other.id != end.id);
                if let (Some(peer), Some(_)) = (other.and_then(|other| other.ready), end.ready) {
                    say(ToAgent::Start { trial, peer: peer.address });
                }
            }
            State::Ending => {
                say(ToAgent::Acknowledged { trial });
                say(ToAgent::Teardown { trial });
            }
            State::Failing { .. } | State::Recording | State::Over => {}
        }
    }

    fn before_the_outcome(&mut self, step: Step, now: Now, out: &mut Vec<Command>) -> Option<Outcome> {
        let outcome = match step {
            Step::Ready { end, ready } => {
                self.ready(&end, ready, now, out);
                return None;
            }
            Step::Result { end, report } if self.state == State::Running => {
                // Agents hold to it too; an older or another program may not.
                let direction = self.find(&end)?.spec.job.direction;
                if let Some(failure) = validity::no_figure(direction, &report) {
                    self.state = State::Recording;
                    return Some(Outcome::Failed { host: end.host, failure });
                }
                self.find(&end)?.report = Some(report);
                if self.ends.iter().any(|end| end.report.is_none()) {
                    return None;
                }
                let [a, b] = &mut self.ends;
                Outcome::Measured { a: a.report.take()?, b: b.report.take()? }
            }
            Step::Failed { end, failure } => {
                let alone = self.ends.iter().all(|end| end.report.is_none());
                if self.state == State::Running && alone {
                    self.state = State::Failing { end, failure };
                    self.deadline = now.elapsed + SECOND_WORD;
                    return None;
                }
                Outcome::Failed { host: end.host, failure }
            }
            Step::HostBack { host, process, held } => {
                return self.host_back(&host, process, &held, now, out);
            }
            Step::HostGone { host, reason, died: true } => {
                Outcome::Failed { host, failure: Failure::new(reason) }
            }
            Step::HostGone { reason, died: false, .. } => Outcome::Lost { reason },
            Step::Cancel { reason } => Outcome::Lost { reason: format!("{reason} while it ran") },
            Step::Tick if now.elapsed >= self.deadline => return self.overdue(now),
            _ => return None,
        };
        self.state = State::Recording;
        Some(outcome)
    }

    /// Starts both ends once both are ready, the listener first: it must expect the connection. Said again of an end
    /// that should run, `Ready` means that it has not heard `Start`.
    fn ready(&mut self, id: &EndId, ready: EndReady, now: Now, out: &mut Vec<Command>) {
        let Some(end) = self.find(id) else { return };
        let known = end.ready.replace(ready).is_some();
        if self.ends.iter().any(|end| end.ready.is_none()) {
            return;
        }
        match self.state {
            State::Preparing => {
                self.state = State::Running;
                self.ends_phase(Phase::Setup, now, out);
                self.deadline = now.elapsed + self.run_time();
                self.ends.iter().rev().for_each(|end| self.say_again(end, out));
            }
            State::Running if known => {
                self.ends.iter().filter(|end| end.id == *id).for_each(|end| self.say_again(end, out));
            }
            // A resumed trial that had not been started.
            State::Running => {
                self.deadline = (now.elapsed + self.run_time()).min(self.limit);
                self.ends.iter().rev().for_each(|end| self.say_again(end, out));
            }
            _ => {}
        }
    }

    fn host_back(
        &mut self,
        host: &str,
        process: Process,
        held: &[TrialId],
        now: Now,
        out: &mut Vec<Command>,
    ) -> Option<Outcome> {
        let preparing = self.state == State::Preparing;
        let there = |end: &&mut End| end.id.host == host;
        for end in self.ends.iter_mut().filter(there).filter(|end| !held.contains(&end.id.trial)) {
            if !preparing && end.report.is_none() {
                let reason = process.forgot(host);
                self.state = State::Recording;
                return Some(Outcome::Lost { reason });
            }
            // A new agent, which begins anew.
            end.ready = None;
        }
        // It may only now hear what it is told, and has the whole time for it.
        let time = if preparing { PREPARE } else { self.run_time() };
        self.deadline = self.deadline.max(now.elapsed + time).min(self.limit);
        self.ends.iter().filter(|end| end.id.host == host).for_each(|end| self.say_again(end, out));
        None
    }

    /// The deadline has passed. It waits for those that are away: how long is not this trial's business.
    fn overdue(&mut self, now: Now) -> Option<Outcome> {
        let preparing = self.state == State::Preparing;
        let late = |end: &&End| if preparing { end.ready.is_none() } else { end.report.is_none() };
        if let Some(away) = self.ends.iter().find(|end| !end.connected) {
            if now.elapsed < self.limit {
                self.deadline = now.elapsed + RUN_GRACE;
                return None;
            }
            let host = &away.id.host;
            let reason = format!("the agent of {host} came and went until nobody waited any more");
            self.state = State::Recording;
            return Some(Outcome::Lost { reason });
        }
        let host = self.ends.iter().find(late).map(|end| end.id.host.clone()).unwrap_or_default();
        let what = if preparing { "did not get ready" } else { "did not end" };
        self.state = State::Recording;
        if self.resumed {
            let reason =
                format!("the orchestrator was started again while it ran, and the end on {host} {what}");
            return Some(Outcome::Lost { reason });
        }
        let failure = Failure::new(format!("the end on {host} {what} in time, and its agent said nothing"));
        Some(Outcome::Failed { host, failure })
    }

    /// Adds what is heard of the other end to the last words of the one that failed first.
    fn failing(&mut self, step: Step, now: Now) -> Option<Outcome> {
        let State::Failing { end, failure } = &mut self.state else { return None };
        match step {
            Step::Failed { end: other, failure: second } if other != *end => {
                let host = other.host;
                failure.last_words.push(format!("{host} failed too: {}", second.reason));
                failure
                    .last_words
                    .extend(second.last_words.into_iter().map(|words| format!("{host}: {words}")));
            }
            Step::HostGone { host, reason, .. } if host != end.host => failure.last_words.push(reason),
            Step::HostLost { host } if host != end.host => {
                failure.last_words.push(format!("the connection to the agent of {host} was lost"));
            }
            Step::Result { end: other, .. } if other != *end => {}
            Step::Cancel { .. } => {}
            Step::Tick if now.elapsed >= self.deadline => {}
            _ => return None,
        }
        let outcome = Outcome::Failed { host: std::mem::take(&mut end.host), failure: failure.clone() };
        self.state = State::Recording;
        Some(outcome)
    }

    fn end(&mut self, now: Now, out: &mut Vec<Command>) {
        self.state = State::Ending;
        self.phase_since = now.elapsed;
        self.deadline = now.elapsed + TEARDOWN;
        self.ends.iter().filter(|end| end.connected).for_each(|end| self.say_again(end, out));
    }

    fn ending(&mut self, step: Step, now: Now, out: &mut Vec<Command>) {
        match step {
            Step::TornDown { end, leftovers } => {
                let host = &end.host;
                if !leftovers.is_empty() {
                    let why = format!(
                        "something of trial {} is left on {host}: {}",
                        self.trial,
                        leftovers.join("; ")
                    );
                    self.dirty.insert(host.clone(), why);
                }
                self.set_down(|id| *id == end);
            }
            // What a new agent found of it, its start has removed.
            Step::HostGone { host, died: true, .. } => self.set_down(|id| id.host == host),
            Step::HostBack { host, held, .. } => {
                self.set_down(|id| id.host == host && !held.contains(&id.trial));
                let there = |end: &&End| end.id.host == host && end.up;
                self.ends.iter().filter(there).for_each(|end| self.say_again(end, out));
            }
            Step::Tick if now.elapsed >= self.deadline => {
                for end in self.ends.iter_mut().filter(|end| end.up) {
                    end.up = false;
                    if end.connected {
                        let host = &end.id.host;
                        let why = format!(
                            "the agent of {host} did not confirm the clean-up of trial {}",
                            self.trial
                        );
                        self.dirty.insert(host.clone(), why);
                    } else {
                        self.untold.push(end.id.clone());
                    }
                }
            }
            _ => {}
        }
        if self.ends.iter().all(|end| !end.up) {
            self.state = State::Over;
            self.ends_phase(Phase::Teardown, now, out);
        }
    }

    fn ends_phase(&mut self, phase: Phase, now: Now, out: &mut Vec<Command>) {
        let took = now.elapsed.saturating_sub(std::mem::replace(&mut self.phase_since, now.elapsed));
        out.push(Command::Phase { phase, took });
    }

    fn set_down(&mut self, which: impl Fn(&EndId) -> bool) {
        self.ends.iter_mut().filter(|end| which(&end.id)).for_each(|end| end.up = false);
    }
}
