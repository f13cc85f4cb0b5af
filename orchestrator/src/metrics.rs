//! What the orchestrator tells Prometheus. One [`Metrics`] a process, handed to whoever counts; nothing is global.
//!
//! ```text
//!  service -- agents, campaigns, trials ---------+
//!  driver  -- recorded, dispatched, phases ------+--> registry --> GET /metrics
//!  ledger  -- written ---------------------------+
//!  result after each record --> cells (copied) --+
//! ```
//! What is not known has no series: no figure is ever 0 because it is missing.

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Error, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use toll_protocol::metrics::{BUILD_INFO, Family};
use toll_protocol::result::{CampaignResult, Outcome};
use toll_protocol::service::{AgentState, CampaignState};

pub mod cells;
pub mod families;
#[cfg(test)]
mod tests;

use cells::Cells;
use families as f;

use crate::scheduler::Phase;

/// The orchestrator's metrics. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    families: Arc<Vec<&'static Family>>,
    agents: GaugeVec,
    campaigns: GaugeVec,
    trials: GaugeVec,
    left_out: GaugeVec,
    ended: IntCounterVec,
    dispatch: Histogram,
    phases: HistogramVec,
    ledger: Histogram,
    cells: Cells,
}

const PHASES: [Phase; 3] = [Phase::Setup, Phase::Run, Phase::Teardown];

const fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Setup => "setup",
        Phase::Run => "run",
        Phase::Teardown => "teardown",
    }
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
    /// Metrics with a registry of their own.
    ///
    /// # Errors
    /// When two families have one name, or a name is none: a test registers them all.
    pub fn new() -> Result<Self, Error> {
        let mut build = Builder { registry: Registry::new(), families: Vec::new() };
        let info = build.add(&BUILD_INFO, GaugeVec::new)?;
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), profile]).set(1.0);
        let latency = |opts: Opts, _: &[&str]| {
            let opts = HistogramOpts { common_opts: opts, buckets: f::LATENCY_BUCKETS.to_vec() };
            Histogram::with_opts(opts)
        };
        let phases = |opts: Opts, labels: &[&str]| {
            let opts = HistogramOpts { common_opts: opts, buckets: f::PHASE_BUCKETS.to_vec() };
            HistogramVec::new(opts, labels)
        };
        let (agents, campaigns) =
            (build.add(&f::AGENTS, GaugeVec::new)?, build.add(&f::CAMPAIGNS, GaugeVec::new)?);
        let (trials, left_out) =
            (build.add(&f::TRIALS, GaugeVec::new)?, build.add(&f::LEFT_OUT, GaugeVec::new)?);
        let ended = build.add(&f::TRIALS_ENDED, IntCounterVec::new)?;
        let (dispatch, phases) = (build.add(&f::DISPATCH, latency)?, build.add(&f::PHASES, phases)?);
        let ledger = build.add(&f::LEDGER_WRITE, latency)?;
        let cells = Cells::new()?;
        build.registry.register(Box::new(cells.clone()))?;
        build.families.extend(cells::families());
        for outcome in ["measured", "failed", "skipped", "lost"] {
            ended.with_label_values(&[outcome]);
        }
        for phase in PHASES {
            phases.with_label_values(&[phase_name(phase)]);
        }
        let (registry, families) = (build.registry, Arc::new(build.families));
        Ok(Self {
            registry,
            families,
            agents,
            campaigns,
            trials,
            left_out,
            ended,
            dispatch,
            phases,
            ledger,
            cells,
        })
    }

    /// What `/metrics` is made from.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Every family that is registered, whether or not it has a series yet.
    pub fn families(&self) -> &[&'static Family] {
        &self.families
    }

    /// How many agents there are by state, those that are away too; counts of one state are added. States that are
    /// not named have none.
    pub fn agents(&self, counts: impl IntoIterator<Item = (AgentState, usize)>) {
        let all = [AgentState::Idle, AgentState::Busy, AgentState::Away, AgentState::Barred];
        set_counts(&self.agents, all, counts);
    }

    /// How many campaigns there are by state; as [`agents`](Self::agents).
    pub fn campaigns(&self, counts: impl IntoIterator<Item = (CampaignState, usize)>) {
        set_counts(&self.campaigns, CampaignState::ALL, counts);
    }

    /// How many trials of all campaigns wait for their hosts, and how many are in flight.
    pub fn trials(&self, waiting: usize, in_flight: usize) {
        set_counts(&self.trials, ["waiting", "in-flight"], [("waiting", waiting), ("in-flight", in_flight)]);
    }

    /// How many entries of the data directory are left out: those that are looked at again, and the others.
    pub fn left_out(&self, [again, for_good]: [usize; 2]) {
        set_counts(&self.left_out, ["yes", "no"], [("yes", again), ("no", for_good)]);
    }

    /// A trial is over and recorded: to be called once for each record, not for those read back from a ledger.
    pub fn recorded(&self, outcome: &Outcome) {
        let name = match outcome {
            Outcome::Measured { .. } => "measured",
            Outcome::Failed { .. } => "failed",
            Outcome::Skipped { .. } => "skipped",
            Outcome::Lost { .. } => "lost",
        };
        self.ended.with_label_values(&[name]).inc();
    }

    /// A trial's Prepare was sent so long after both its hosts were free. Time in which the trial had to wait for
    /// something else than the orchestrator does not belong into it.
    pub fn dispatched(&self, after: Duration) {
        self.dispatch.observe(after.as_secs_f64());
    }

    /// A trial has ended a phase that took so long.
    pub fn phase(&self, phase: Phase, took: Duration) {
        self.phases.with_label_values(&[phase_name(phase)]).observe(took.as_secs_f64());
    }

    /// A record was made durable, which took so long.
    pub fn ledger_written(&self, took: Duration) {
        self.ledger.observe(took.as_secs_f64());
    }

    /// Shows the cells and gates of a campaign as they are in `result`, in place of what was shown of it before.
    /// The latest [`cells::MOST_CAMPAIGNS`] names are shown, by the start of their campaigns; of two campaigns of
    /// one name the later one. Summarising a result costs more than this call: once a record, or at a bounded
    /// rate.
    pub fn observe_campaign(&self, id: &str, result: &CampaignResult) {
        self.cells.observe(id, result);
    }

    /// Shows a campaign no more.
    pub fn forget_campaign(&self, id: &str) {
        self.cells.forget(id);
    }
}

/// Sets the series of each of `all`.
fn set_counts<T: PartialEq + ToString>(
    gauge: &GaugeVec,
    all: impl IntoIterator<Item = T>,
    counts: impl IntoIterator<Item = (T, usize)>,
) {
    let counts: Vec<(T, usize)> = counts.into_iter().collect();
    for state in all {
        let count: usize = counts.iter().filter(|(known, _)| *known == state).map(|(_, count)| count).sum();
        gauge.with_label_values(&[state.to_string()]).set(count as f64);
    }
}
