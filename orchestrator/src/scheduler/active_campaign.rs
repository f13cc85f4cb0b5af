//! One campaign on its way: its plan, what of it has not begun, and how many trials have ended how. Pure.
//!
//! ```text
//!  Waiting --enough hosts--> Storing --plan durable--> Running --every record durable--> Over
//!     |                         |                         ^
//!     +---- cancelled: Over     +--- cancelled: skipped --+      (from any: Abandoned, if its ledger fails for good)
//!     +---- its hosts can't do it, refused: Over
//! ```

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use toll_protocol::campaign::{Campaign, Select};
use toll_protocol::result::{Outcome, RunCounts};
use toll_protocol::units::Span;

use super::Progress;
use super::fleet::{Fleet, HostIndex};
use crate::plan::{self, Plan};

/// Where a campaign's hosts come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Hosts {
    /// The fleet's, by label, once there are enough.
    Select(Select),
    /// These: a lab's.
    Given(Vec<plan::PlannedHost>),
}

/// A campaign to be planned.
#[derive(Debug, Clone, PartialEq)]
pub struct NewCampaign {
    /// Its id.
    pub id: String,
    /// What to measure.
    pub campaign: Campaign,
    /// Where.
    pub hosts: Hosts,
    /// Seed of the order.
    pub seed: u64,
}

/// A campaign that a former process of the orchestrator planned.
#[derive(Debug, Clone, PartialEq)]
pub struct ResumedCampaign {
    /// Its id.
    pub id: String,
    /// The plan, made again.
    pub plan: Arc<Plan>,
    /// The hosts that it was made for.
    pub hosts: Vec<plan::PlannedHost>,
    /// Trials that were begun and are not recorded, by index in the plan, and when.
    pub begun: Vec<(usize, u64)>,
    /// Trials that are recorded, by index in the plan.
    pub recorded: Vec<usize>,
    /// How these ended.
    pub counts: RunCounts,
    /// Why it was cancelled, if it was.
    pub cancelled: Option<String>,
}

#[derive(Debug)]
pub(super) enum CampaignStage {
    Waiting(Box<NewCampaign>),
    Storing,
    Running,
    /// Its results can't be kept: it only waits until its hosts are free.
    Abandoned,
    Over,
}

/// Trials of two hosts that have not begun, in the plan's order.
#[derive(Debug)]
pub(super) struct PairQueue {
    pub a: HostIndex,
    pub b: HostIndex,
    pub trials: VecDeque<usize>,
}

impl PairQueue {
    fn hosts(&self) -> [HostIndex; 2] {
        [self.a, self.b]
    }
}

#[derive(Debug)]
pub(super) struct ActiveCampaign {
    pub id: String,
    pub stage: CampaignStage,
    pub plan: Option<Arc<Plan>>,
    /// Those with trials. Changed by [`planned`](Self::planned), [`put_back`](Self::put_back) and [`drain`](Self::drain) alone.
    pub queues: Vec<PairQueue>,
    /// How many of these each host is in: it is asked for every host that is away, and there are many pairs.
    queued: HashMap<HostIndex, usize>,
    pub counts: RunCounts,
    /// Records asked for and not yet stored.
    pub unstored: usize,
    pub flying: usize,
    /// When it was planned or resumed, and what had ended by then: its own pace is counted from there.
    since: (Duration, u32),
    /// Since when its trials could begin.
    pub ready_since: Duration,
    /// Why it was cancelled.
    pub cancelled: Option<String>,
}

impl ActiveCampaign {
    pub fn new(id: String, stage: CampaignStage, now: Duration) -> Self {
        Self {
            id,
            stage,
            plan: None,
            queues: Vec::new(),
            queued: HashMap::new(),
            counts: RunCounts::default(),
            unstored: 0,
            flying: 0,
            since: (now, 0),
            ready_since: now,
            cancelled: None,
        }
    }

    /// A campaign with a plan, of which `over` trials (by index in the plan) are not to be begun.
    pub fn planned(&mut self, plan: Arc<Plan>, fleet: &mut Fleet, over: &[usize], now: Duration) {
        let mut left = vec![true; plan.trials.len()];
        for index in over {
            if let Some(left) = left.get_mut(*index) {
                *left = false;
            }
        }
        let mut queues: Vec<PairQueue> = Vec::new();
        // A fleet of a thousand hosts has half a million pairs: none is looked for among all others.
        let mut by_pair = HashMap::new();
        let mut by_cell: Vec<Option<usize>> = vec![None; plan.cells.len()];
        for (index, trial) in plan.trials.iter().enumerate().filter(|(index, _)| left[*index]) {
            let queue = *by_cell[trial.cell].get_or_insert_with(|| {
                let pair = &plan.cells[trial.cell].key.pair;
                let (a, b) = (fleet.expect(&pair.a, now), fleet.expect(&pair.b, now));
                *by_pair.entry((a, b)).or_insert_with(|| {
                    queues.push(PairQueue { a, b, trials: VecDeque::new() });
                    queues.len() - 1
                })
            });
            queues[queue].trials.push_back(index);
        }
        self.counts.planned = u32::try_from(plan.trials.len()).unwrap_or(u32::MAX);
        self.queued.clear();
        for host in queues.iter().flat_map(PairQueue::hosts) {
            *self.queued.entry(host).or_default() += 1;
        }
        self.queues = queues;
        self.plan = Some(plan);
        self.since = (now, self.counts.over());
    }

    /// Puts the queues back that were taken to begin trials of them, but for those that are empty now.
    pub fn put_back(&mut self, mut queues: Vec<PairQueue>) {
        let queued = &mut self.queued;
        queues.retain(|queue| {
            let empty = queue.trials.is_empty();
            for host in queue.hosts().into_iter().filter(|_| empty) {
                if let Entry::Occupied(mut count) = queued.entry(host) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
            }
            !empty
        });
        self.queues = queues;
    }

    /// Takes what has not begun away.
    pub fn drain(&mut self) -> Vec<usize> {
        self.queued.clear();
        let mut left: Vec<usize> = self.queues.drain(..).flat_map(|queue| queue.trials).collect();
        left.sort_unstable();
        left
    }

    pub fn count(&mut self, outcome: &Outcome) {
        let count = match outcome {
            Outcome::Measured { .. } => &mut self.counts.measured,
            Outcome::Failed { .. } => &mut self.counts.failed,
            Outcome::Skipped { .. } => &mut self.counts.skipped,
            Outcome::Lost { .. } => &mut self.counts.lost,
        };
        *count += 1;
        self.unstored += 1;
    }

    /// Whether it may still need the host.
    pub fn wants(&self, host: HostIndex) -> bool {
        self.queued.contains_key(&host)
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        let idle = self.queues.iter().all(|queue| queue.trials.is_empty());
        matches!(self.stage, CampaignStage::Running) && idle && self.flying == 0 && self.unstored == 0
    }

    pub fn progress(&self, running: Vec<String>, now: Duration) -> Progress {
        let planned = u64::from(self.counts.planned);
        let over = u64::from(self.counts.over());
        let (since, before) = self.since;
        let here = over.saturating_sub(u64::from(before));
        // Once a few trials are over, their own pace is the better guide.
        let pace = match here {
            0..3 => self.plan.as_ref().map_or(0, |plan| plan.estimate().0) / planned.max(1),
            here => Span::from(now.saturating_sub(since)).0 / here,
        };
        Progress {
            counts: self.counts,
            running,
            left: Span(pace.saturating_mul(planned.saturating_sub(over))),
            cancelled: self.cancelled.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const CAMPAIGN: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: c}
spec:
  hosts: {select: {}}
  pairs: all
  arms: [{name: native, native: {}}]
  workloads: [{name: bulk, stream: {directions: [send]}}]
  blocks: 1
";

    fn active_on(hosts: usize) -> ActiveCampaign {
        let campaign = toll_protocol::campaign::parse(CAMPAIGN).expect("is valid");
        let host = |n: usize| plan::PlannedHost {
            name: format!("host-{n}"),
            virtual_address: None,
            mtu: 1500,
            rate: None,
        };
        let hosts: Vec<plan::PlannedHost> = (0..hosts).map(host).collect();
        let mut ids = rand::rng();
        let plan = Arc::new(Plan::new(&campaign, &hosts, 1, || plan::draw(&mut ids)));
        let mut active = ActiveCampaign::new("c".to_owned(), CampaignStage::Storing, Duration::ZERO);
        active.planned(plan, &mut Fleet::new(false), &[], Duration::ZERO);
        active
    }

    /// Trials begin in any order.
    #[test]
    fn hosts_are_wanted_as_long_as_they_are_queued() {
        let mut active = active_on(6);
        for turn in 0.. {
            let mut queues = std::mem::take(&mut active.queues);
            if queues.is_empty() {
                break;
            }
            let begins = turn * 7 % queues.len();
            queues[begins].trials.pop_front();
            active.put_back(queues);
            for host in 0..8 {
                let queued = active.queues.iter().any(|queue| queue.hosts().contains(&host));
                assert_eq!(active.wants(host), queued, "host {host} after {turn}");
            }
        }
        let mut drained = active_on(3);
        assert!(drained.wants(0));
        drained.drain();
        assert!(!drained.wants(0) && drained.queued.is_empty());
    }

    /// The service's task makes the queues, and agents wait for it: one look at all pairs for each pair would be minutes.
    #[test]
    fn the_largest_campaign_is_queued_at_once() {
        let campaign = toll_protocol::campaign::parse(CAMPAIGN).expect("is valid");
        let host = |n: usize| plan::PlannedHost {
            name: format!("host-{n}"),
            virtual_address: None,
            mtu: 1500,
            rate: None,
        };
        let hosts: Vec<plan::PlannedHost> = (0..447).map(host).collect();
        let mut ids = rand::rng();
        let plan = Arc::new(Plan::new(&campaign, &hosts, 1, || plan::draw(&mut ids)));
        let (mut fleet, zero) = (Fleet::new(false), Duration::ZERO);
        let mut active = ActiveCampaign::new("c".to_owned(), CampaignStage::Storing, zero);
        let began = Instant::now();
        active.planned(plan.clone(), &mut fleet, &[], zero);
        let took = began.elapsed();
        assert!(active.queues.len() == 447 * 446 / 2 && plan.trials.len() == active.queues.len());
        assert!(took < Duration::from_secs(10), "{took:?}");

        // So is whoever is waited for: it is asked of each host that is away.
        let began = Instant::now();
        assert!((0..447).all(|host| active.wants(host)) && !(447..20_000).any(|host| active.wants(host)));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        let mut queues = std::mem::take(&mut active.queues);
        for queue in queues.iter_mut().filter(|queue| queue.a == 5 || queue.b == 5) {
            queue.trials.clear();
        }
        active.put_back(queues);
        assert!(!active.wants(5) && active.wants(4) && active.queues.len() == 446 * 445 / 2);
        assert_eq!(active.drain().len(), 446 * 445 / 2);
        assert!(!active.wants(4));
    }
}
