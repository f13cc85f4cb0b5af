//! What an agent tells Prometheus. One [`Metrics`] a process, handed to whoever counts; nothing is global.
//!
//! ```text
//!  agent  -- connected, lost -----------------------------+
//!  runner -- Watch: state, samples, outcome of a trial ---+--> registry --> GET /metrics
//! ```
//! Counters of traffic, exits and CPU cover the measured intervals of trials that were measured, and nothing else:
//! they grow when a trial ends. Divide by `toll_agent_measured_seconds_total` for rates while measuring, and CPU seconds
//! by `toll_agent_cpu_measured_seconds_total`: not every end can tell its CPU time.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Error, Gauge, GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};
use toll_protocol::metrics::{BUILD_INFO, Family};
use toll_protocol::report::{EndReport, Sample};
use toll_protocol::trial::{Adapter, Direction, EndKind, Engine};

use crate::trial::{Command, State};

pub mod families;
#[cfg(test)]
mod tests;

/// Causes of exits that are counted under their own names: `toll-vmm` knows under 40. Further ones are
/// [`OTHER_CAUSE`], whatever a child says.
const MOST_CAUSES: usize = 64;
/// Longest name of a cause, in bytes; a longer one is [`OTHER_CAUSE`].
const LONGEST_CAUSE: usize = 64;
/// The cause of exits beyond those bounds.
pub const OTHER_CAUSE: &str = "other";
/// Samples behind the goodput of a running trial: with one every 100 ms, the last second.
const WINDOW: usize = 10;

/// The agent's metrics. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    families: Arc<Vec<&'static Family>>,
    trials: IntGaugeVec,
    ended: IntCounterVec,
    goodput: GaugeVec,
    measured: CounterVec,
    payload: IntCounterVec,
    frames: IntCounterVec,
    frame_bytes: IntCounterVec,
    dropped: IntCounterVec,
    exits: IntCounterVec,
    handling: CounterVec,
    spared: IntCounterVec,
    transmissions: IntCounterVec,
    filtered: IntCounterVec,
    thread_time: CounterVec,
    cpu: CounterVec,
    cpu_measured: CounterVec,
    connected: Gauge,
    reconnects: IntCounter,
    causes: Arc<Mutex<BTreeSet<String>>>,
    /// Whether there has been a connection.
    met: Arc<Mutex<bool>>,
}

/// A registry under construction, and what is in it.
struct Builder {
    registry: Registry,
    families: Vec<&'static Family>,
}

impl Builder {
    fn add<C: Collector + Clone + 'static>(
        &mut self,
        family: &'static Family,
        make: impl FnOnce(Opts, &[&str]) -> Result<C, Error>,
    ) -> Result<C, Error> {
        let collector = make(Opts::new(family.name, family.help), &family.label_names())?;
        self.registry.register(Box::new(collector.clone()))?;
        self.families.push(family);
        Ok(collector)
    }
}

impl Metrics {
    /// Metrics with a registry of their own. Counters whose labels are known beforehand begin with 0, so that no
    /// rate misses the first trial; those of CPU time don't, since 0 would be a figure for what may never be measured.
    ///
    /// # Errors
    /// When two families have one name, or a name is none: a test registers them all.
    pub fn new() -> Result<Self, Error> {
        use families as f;
        let mut build = Builder { registry: Registry::new(), families: Vec::new() };
        let info = build.add(&BUILD_INFO, GaugeVec::new)?;
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), profile]).set(1.0);
        let metrics = Self {
            trials: build.add(&f::TRIALS, IntGaugeVec::new)?,
            ended: build.add(&f::TRIALS_ENDED, IntCounterVec::new)?,
            goodput: build.add(&f::GOODPUT, GaugeVec::new)?,
            measured: build.add(&f::MEASURED_SECONDS, CounterVec::new)?,
            payload: build.add(&f::PAYLOAD_BYTES, IntCounterVec::new)?,
            frames: build.add(&f::FRAMES, IntCounterVec::new)?,
            frame_bytes: build.add(&f::FRAME_BYTES, IntCounterVec::new)?,
            dropped: build.add(&f::DROPPED_FRAMES, IntCounterVec::new)?,
            exits: build.add(&f::EXITS, IntCounterVec::new)?,
            handling: build.add(&f::EXIT_HANDLING_SECONDS, CounterVec::new)?,
            spared: build.add(&f::SPARED, IntCounterVec::new)?,
            transmissions: build.add(&f::TRANSMISSIONS, IntCounterVec::new)?,
            filtered: build.add(&f::FILTERED_FRAMES, IntCounterVec::new)?,
            thread_time: build.add(&f::THREAD_TIME_SECONDS, CounterVec::new)?,
            cpu: build.add(&f::CPU_SECONDS, CounterVec::new)?,
            cpu_measured: build.add(&f::CPU_MEASURED_SECONDS, CounterVec::new)?,
            connected: build.add(&f::CONNECTED, |opts, _| Gauge::with_opts(opts))?,
            reconnects: build.add(&f::RECONNECTS, |opts, _| IntCounter::with_opts(opts))?,
            registry: build.registry,
            families: Arc::new(build.families),
            causes: Arc::default(),
            met: Arc::default(),
        };
        metrics.begin_with_zero();
        Ok(metrics)
    }

    fn begin_with_zero(&self) {
        for state in families::STATES {
            self.trials.with_label_values(&[state]);
        }
        for outcome in families::OUTCOMES {
            self.ended.with_label_values(&[outcome]);
        }
        let virtual_ends = Engine::ENDS.into_iter().flat_map(|end| {
            [Adapter::Pcnet(Default::default()), Adapter::VirtioNet(Default::default())]
                .map(|adapter| (end, adapter.to_string()))
        });
        let ends = virtual_ends.chain([("native", EndKind::HOST_NIC.to_owned())]);
        for (end, adapter) in ends {
            if end != "native" {
                self.filtered.with_label_values(&[end, adapter.as_str()]);
                for what in ["exits", "looks"] {
                    self.spared.with_label_values(&[end, adapter.as_str(), what]);
                }
                for frames in families::TOGETHER {
                    self.transmissions.with_label_values(&[end, adapter.as_str(), frames]);
                }
            }
            for direction in ["transmit", "receive"] {
                let labels = [end, &adapter, direction];
                self.measured.with_label_values(&labels);
                self.payload.with_label_values(&labels);
                if end != "native" {
                    for counter in [&self.frames, &self.frame_bytes, &self.dropped] {
                        counter.with_label_values(&labels);
                    }
                }
            }
        }
        for (adapter, causes) in families::CAUSES {
            let adapter = adapter.to_string();
            let named = causes.iter().map(|cause| self.bounded(cause));
            for cause in named.chain([OTHER_CAUSE]) {
                self.exits.with_label_values(&[adapter.as_str(), cause]);
                self.handling.with_label_values(&[adapter.as_str(), cause]);
            }
        }
    }

    /// What `/metrics` is made from.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Every family that is registered, whether or not it has a series yet.
    pub fn families(&self) -> &[&'static Family] {
        &self.families
    }

    /// The orchestrator has taken this agent.
    pub fn connected(&self) {
        self.connected.set(1.0);
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *met, true) {
            self.reconnects.inc();
        }
    }

    /// The connection to the orchestrator is lost.
    pub fn lost(&self) {
        self.connected.set(0.0);
    }

    /// Watches a new trial, whose end is `kind` and whose payload goes in `direction`.
    pub fn trial(&self, kind: &EndKind, direction: Direction) -> Watch {
        let labels = Labels::new(kind, direction);
        Watch { metrics: self.clone(), labels, state: None, samples: VecDeque::new(), outcome: false }
    }

    /// Adds what an end measured.
    fn add(&self, labels: &Labels, report: &EndReport) {
        let Labels { end, adapter, direction } = labels;
        for (way, bytes) in ways(*direction, report.sent_bytes, report.received_bytes) {
            let of_payload = [*end, adapter.as_str(), way];
            self.measured.with_label_values(&of_payload).inc_by(report.interval.seconds());
            self.payload.with_label_values(&of_payload).inc_by(bytes);
        }
        if let Some(frames) = report.frames {
            self.filtered.with_label_values(&[*end, adapter.as_str()]).inc_by(frames.receive_filtered);
            let counts = [
                ("transmit", frames.transmit_frames, frames.transmit_bytes, frames.transmit_drops),
                ("receive", frames.receive_frames, frames.receive_bytes, frames.receive_drops),
            ];
            for (direction, count, bytes, drops) in counts {
                let labels = [*end, adapter.as_str(), direction];
                self.frames.with_label_values(&labels).inc_by(count);
                self.frame_bytes.with_label_values(&labels).inc_by(bytes);
                self.dropped.with_label_values(&labels).inc_by(drops);
            }
        }
        if let Some(spared) = report.spared {
            for (what, count) in [("exits", spared.exits), ("looks", spared.looks)] {
                self.spared.with_label_values(&[*end, adapter.as_str(), what]).inc_by(count);
            }
            for (frames, count) in families::TOGETHER.into_iter().zip(spared.combined) {
                self.transmissions.with_label_values(&[*end, adapter.as_str(), frames]).inc_by(count);
            }
        }
        // Names of threads and parts are ours, and few.
        for thread in &report.times {
            for (part, time) in &thread.parts {
                let labels = [*end, adapter.as_str(), thread.name.as_str(), part.name()];
                self.thread_time.with_label_values(&labels).inc_by(time.seconds());
            }
        }
        for (cause, stat) in report.exits.iter().flat_map(|exits| &exits.by_cause) {
            let labels = [adapter.as_str(), self.bounded(cause)];
            self.exits.with_label_values(&labels).inc_by(stat.count);
            self.handling.with_label_values(&labels).inc_by(stat.handling.seconds());
        }
        let cpu = report.cpu;
        for (part, time) in [("guest", cpu.guest), ("vmm", cpu.vmm), ("host", cpu.host)] {
            if let Some(time) = time {
                let labels = [*end, adapter.as_str(), part];
                self.cpu.with_label_values(&labels).inc_by(time.seconds());
                self.cpu_measured.with_label_values(&labels).inc_by(report.interval.seconds());
            }
        }
    }

    /// `cause`, if it is among those that get a name of their own.
    fn bounded<'a>(&self, cause: &'a str) -> &'a str {
        let mut known = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(cause) {
            return cause;
        }
        if known.len() >= MOST_CAUSES || cause.len() > LONGEST_CAUSE {
            return OTHER_CAUSE;
        }
        known.insert(cause.to_owned());
        cause
    }
}

/// Which end is meant. `direction` is that of the payload, as the end sees it.
#[derive(Debug)]
struct Labels {
    end: &'static str,
    adapter: String,
    direction: Direction,
}

/// The ways that payload takes, as metrics name them, each with its number.
fn ways<T>(direction: Direction, sent: T, received: T) -> impl Iterator<Item = (&'static str, T)> {
    let transmit = direction.sends().then_some(("transmit", sent));
    transmit.into_iter().chain(direction.receives().then_some(("receive", received)))
}

impl Labels {
    fn new(kind: &EndKind, direction: Direction) -> Self {
        let (end, adapter) = (kind.label(), kind.adapter_label());
        Self { end, adapter, direction }
    }
}

/// One trial as metrics see it. Dropped with the trial's task, however that ends, and with it what is only true
/// while the trial exists.
#[derive(Debug)]
pub struct Watch {
    metrics: Metrics,
    labels: Labels,
    state: Option<&'static str>,
    /// The last [`WINDOW`] samples and the one before.
    samples: VecDeque<Sample>,
    /// Whether an outcome has been counted.
    outcome: bool,
}

impl Watch {
    /// The trial is in `state`.
    pub fn enters(&mut self, state: &State) {
        let now = name(state);
        if now == self.state {
            return;
        }
        for (state, step) in [(self.state, -1), (now, 1)] {
            if let Some(state) = state {
                self.metrics.trials.with_label_values(&[state]).add(step);
            }
        }
        self.state = now;
        if !matches!(state, State::Running { .. }) {
            self.forget_goodput();
        }
    }

    /// The trial's task is about to do `command`: samples and outcomes are counted from it.
    pub fn sees(&mut self, command: &Command) {
        match command {
            Command::SendSample(sample) => self.sample(*sample),
            Command::Conclude(Ok(report)) => {
                self.metrics.add(&self.labels, report);
                self.ended("measured");
            }
            Command::Conclude(Err(_)) => self.ended("failed"),
            _ => {}
        }
    }

    /// The end says how far it is.
    fn sample(&mut self, sample: Sample) {
        let first = self.samples.front().copied();
        // The interval's own beginning counts as a sample; one that goes backwards says nothing.
        let (at, sent, received) =
            first.map_or((0, 0, 0), |first| (first.at.0, first.sent_bytes, first.received_bytes));
        let (Some(nanoseconds @ 1..), Some(sent), Some(received)) = (
            sample.at.0.checked_sub(at),
            sample.sent_bytes.checked_sub(sent),
            sample.received_bytes.checked_sub(received),
        ) else {
            return;
        };
        let Labels { end, adapter, direction } = &self.labels;
        for (way, bytes) in ways(*direction, sent, received) {
            let rate = bytes as f64 / (nanoseconds as f64 / 1e9);
            self.metrics.goodput.with_label_values(&[*end, adapter.as_str(), way]).set(rate);
        }
        self.samples.push_back(sample);
        if self.samples.len() > WINDOW {
            self.samples.pop_front();
        }
    }

    fn ended(&mut self, outcome: &str) {
        self.outcome = true;
        self.metrics.ended.with_label_values(&[outcome]).inc();
    }

    fn forget_goodput(&mut self) {
        if !self.samples.is_empty() {
            self.samples.clear();
            let Labels { end, adapter, direction } = &self.labels;
            // There is one: it was set with the first sample.
            for (way, ()) in ways(*direction, (), ()) {
                let _ = self.metrics.goodput.remove_label_values(&[*end, adapter.as_str(), way]);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.outcome {
            self.ended("abandoned");
        }
        self.forget_goodput();
        if let Some(state) = self.state {
            self.metrics.trials.with_label_values(&[state]).dec();
        }
    }
}

/// The state as the label says it; `None` for a trial that has not begun or is over.
const fn name(state: &State) -> Option<&'static str> {
    match state {
        State::New | State::TornDown => None,
        State::SettingUp { .. } => Some("setting-up"),
        State::Starting { .. } | State::Attaching { .. } => Some("starting"),
        State::Ready { .. } => Some("ready"),
        State::Running { .. } => Some("running"),
        State::Releasing { .. } => Some("releasing"),
        State::Released { .. } => Some("released"),
    }
}
