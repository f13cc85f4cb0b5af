//! One trial in flight: a state machine, pure.
//!
//! ```text
//!  Preparing --Ready x2--> Running --Result x2--> Recording --Stored--> Ending --TornDown x2--> Over
//!      |                      |                       ^
//!      +- Failed, host lost, -+-- outcome failed -----+
//!         deadline, cancel    |    or lost            |
//!                             +-- Failed --> Failing -+ the other end's word, or half a second
//! ```
//! When an end dies its peer sees the connection break, and either may be heard first: both are told.
//! The record comes before the teardown, so that a result is durable before anything of it is thrown away; a
//! host that doesn't say `TornDown` in time is dirty and gets no more trials.

use std::collections::BTreeMap;
use std::time::Duration;

use toll_protocol::message::ToAgent;
use toll_protocol::report::{EndReport, Failure};
use toll_protocol::result::Outcome;
use toll_protocol::trial::{EndReady, TrialId};

use super::{Command, Now};
use crate::plan::Cell;

/// Longer than the agent's own limit (10 s), so that the agent's reason comes first.
const PREPARE: Duration = Duration::from_secs(15);
/// Beyond the job's own deadline, which the agent keeps.
const RUN_GRACE: Duration = Duration::from_secs(5);
/// How long the other end's word is waited for when one has failed.
const SECOND_WORD: Duration = Duration::from_millis(500);
const TEARDOWN: Duration = Duration::from_secs(10);

/// What can happen to a trial.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Ready { host: String, ready: EndReady },
    Sample,
    Result { host: String, report: Box<EndReport> },
    Failed { host: String, failure: Failure },
    TornDown { host: String, leftovers: Vec<String> },
    HostLost { host: String },
    Stored,
    Cancel,
    Tick,
}

#[derive(Debug)]
enum State {
    Preparing {
        a: Option<EndReady>,
        b: Option<EndReady>,
    },
    Running {
        a: Option<Box<EndReport>>,
        b: Option<Box<EndReport>>,
    },
    /// An end that ran has failed; the other has not yet said anything.
    Failing {
        host: String,
        failure: Failure,
    },
    Recording,
    Ending,
    Over,
}

/// A trial from `Prepare` to `TornDown`.
#[derive(Debug)]
pub(super) struct Flight {
    /// Index in the plan.
    pub index: usize,
    /// When it began.
    pub started_unix_ms: u64,
    trial: TrialId,
    a: String,
    b: String,
    /// The job's own limit.
    run: Duration,
    state: State,
    deadline: Duration,
    /// Hosts that have yet to say `TornDown`.
    up: Vec<String>,
    /// Hosts on which something may be left, and what.
    dirty: BTreeMap<String, String>,
}

impl Flight {
    /// Begins a trial: both ends are told to prepare.
    pub fn begin(index: usize, trial: TrialId, cell: &Cell, now: Now, out: &mut Vec<Command>) -> Self {
        let pair = &cell.key.pair;
        for (host, end) in [(&pair.a, &cell.a), (&pair.b, &cell.b)] {
            let message = ToAgent::Prepare { trial, end: Box::new(end.clone()) };
            out.push(Command::Send { host: host.clone(), message });
        }
        Self {
            index,
            started_unix_ms: now.unix_ms,
            trial,
            a: pair.a.clone(),
            b: pair.b.clone(),
            run: cell.a.deadline.duration(),
            state: State::Preparing { a: None, b: None },
            deadline: now.elapsed + PREPARE,
            up: vec![pair.a.clone(), pair.b.clone()],
            dirty: BTreeMap::new(),
        }
    }

    /// Whether both hosts are free of it.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Hosts that must get no more trials, and why.
    pub fn dirty_hosts(&self) -> impl Iterator<Item = (&String, &str)> {
        self.dirty.iter().map(|(host, why)| (host, why.as_str()))
    }

    /// Takes one step; returns the outcome when it is known, once.
    pub fn step(&mut self, step: Step, now: Now, out: &mut Vec<Command>) -> Option<Outcome> {
        if let Step::HostLost { host } = &step {
            // What is left on it is removed by its agent's next start.
            self.up.retain(|up| up != host);
        }
        match &mut self.state {
            State::Preparing { .. } | State::Running { .. } => self.before_the_outcome(step, now, out),
            State::Failing { .. } => self.failing(step, now),
            State::Recording => {
                if step == Step::Stored {
                    self.end(now, out);
                }
                None
            }
            State::Ending => {
                self.ending(step, now);
                None
            }
            State::Over => None,
        }
    }

    fn before_the_outcome(&mut self, step: Step, now: Now, out: &mut Vec<Command>) -> Option<Outcome> {
        let outcome = match (&mut self.state, step) {
            (State::Preparing { a, b }, Step::Ready { host, ready }) => {
                *(if host == self.a { &mut *a } else { &mut *b }) = Some(ready);
                let (Some(a), Some(b)) = (*a, *b) else { return None };
                // The listener first: it must expect the connection.
                for (host, peer) in [(&self.b, a.address), (&self.a, b.address)] {
                    let message = ToAgent::Start { trial: self.trial, peer };
                    out.push(Command::Send { host: host.clone(), message });
                }
                self.state = State::Running { a: None, b: None };
                self.deadline = now.elapsed + self.run + RUN_GRACE;
                return None;
            }
            (State::Running { a, b }, Step::Result { host, report }) => {
                *(if host == self.a { &mut *a } else { &mut *b }) = Some(report);
                match (a.take(), b.take()) {
                    (Some(a), Some(b)) => Outcome::Measured { a, b },
                    (first, second) => {
                        (*a, *b) = (first, second);
                        return None;
                    }
                }
            }
            (State::Running { a: None, b: None }, Step::Failed { host, failure }) => {
                self.state = State::Failing { host, failure };
                self.deadline = now.elapsed + SECOND_WORD;
                return None;
            }
            (_, Step::Failed { host, failure }) => Outcome::Failed { host, failure },
            (_, Step::HostLost { host }) => {
                let failure = Failure::new(format!("the connection to the agent of {host} was lost"));
                Outcome::Failed { host, failure }
            }
            (_, Step::Cancel) => Outcome::Lost { reason: "the campaign was interrupted while it ran".into() },
            (state, Step::Tick) if now.elapsed >= self.deadline => {
                let (what, waiting) = match state {
                    State::Preparing { a, b } => ("did not get ready", (a.is_none(), b.is_none())),
                    State::Running { a, b } => ("did not end", (a.is_none(), b.is_none())),
                    State::Failing { .. } | State::Recording | State::Ending | State::Over => return None,
                };
                let host = if waiting.0 { self.a.clone() } else { self.b.clone() };
                let failure =
                    Failure::new(format!("the end on {host} {what} in time, and its agent said nothing"));
                Outcome::Failed { host, failure }
            }
            _ => return None,
        };
        self.state = State::Recording;
        Some(outcome)
    }

    /// Adds what is heard of the other end to the last words of the one that failed first.
    fn failing(&mut self, step: Step, now: Now) -> Option<Outcome> {
        let State::Failing { host, failure } = &mut self.state else { return None };
        match step {
            Step::Failed { host: other, failure: second } if other != *host => {
                failure.last_words.push(format!("{other} failed too: {}", second.reason));
                failure
                    .last_words
                    .extend(second.last_words.into_iter().map(|words| format!("{other}: {words}")));
            }
            Step::HostLost { host: other } if other != *host => {
                failure.last_words.push(format!("the connection to the agent of {other} was lost"));
            }
            Step::Result { host: other, .. } if other != *host => {}
            Step::Cancel => {}
            Step::Tick if now.elapsed >= self.deadline => {}
            _ => return None,
        }
        let outcome = Outcome::Failed { host: std::mem::take(host), failure: failure.clone() };
        self.state = State::Recording;
        Some(outcome)
    }

    fn end(&mut self, now: Now, out: &mut Vec<Command>) {
        for host in &self.up {
            for message in
                [ToAgent::Acknowledged { trial: self.trial }, ToAgent::Teardown { trial: self.trial }]
            {
                out.push(Command::Send { host: host.clone(), message });
            }
        }
        self.deadline = now.elapsed + TEARDOWN;
        self.state = if self.up.is_empty() { State::Over } else { State::Ending };
    }

    fn ending(&mut self, step: Step, now: Now) {
        match step {
            Step::TornDown { host, leftovers } => {
                if !leftovers.is_empty() {
                    let why = format!(
                        "something of trial {} is left on {host}: {}",
                        self.trial,
                        leftovers.join("; ")
                    );
                    self.dirty.insert(host.clone(), why);
                }
                self.up.retain(|up| *up != host);
            }
            Step::Tick if now.elapsed >= self.deadline => {
                for host in self.up.drain(..) {
                    let why =
                        format!("the agent of {host} did not confirm the clean-up of trial {}", self.trial);
                    self.dirty.insert(host, why);
                }
            }
            _ => {}
        }
        if self.up.is_empty() {
            self.state = State::Over;
        }
    }
}
