//! The scheduler: which trial of which campaign runs when, and what becomes of it. A pure function of events and
//! time: it sends nothing and writes nothing, it says what is to be sent and written.
//!
//! ```text
//! events                                            commands
//!   Submit, Resume, PlanStored --+
//!   AgentConnected, AgentLost ---+                  --> StorePlan(campaign, plan)
//!   Agent(message) --------------+--> Scheduler     --> Begun(trial), Record(trial record)
//!   Stored(trial), Nodes --------+                  --> Send(host, message)
//!   Cancel, Tick ----------------+                  --> Finished(campaign)
//! ```
//! Each planned trial ends with exactly one `Record`. A host is in one trial at a time, whatever campaigns there are,
//! and gets the next only when the last one's record is stored and its host says that nothing is left of it.

mod active_campaign;
mod connections;
mod ends;
mod events;
mod feasibility;
mod fleet;
mod flight;
mod process;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use active_campaign::{ActiveCampaign, CampaignStage};
pub use active_campaign::{Hosts, NewCampaign, ResumedCampaign};
use ends::{begin, stray};
use fleet::{Availability, Fleet, Told};
use flight::{EndId, Flight, Step};
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use toll_protocol::facts::HostFacts;
use toll_protocol::message::{FromAgent, ToAgent};
use toll_protocol::result::{Outcome, TrialRecord};
use toll_protocol::service::AgentStatus;
use toll_protocol::trial::{EndReady, TrialId};

pub use events::{Command, Ending, Event, Now, Phase, Policy, Progress};

use crate::plan::{self, Plan};
use crate::transport::Session;

/// Campaigns under way on a fleet.
#[derive(Debug)]
pub struct Scheduler {
    policy: Policy,
    /// Trial ids are drawn from it.
    ids: ChaCha12Rng,
    fleet: Fleet,
    /// In the order of their submission.
    campaigns: Vec<ActiveCampaign>,
    flights: BTreeMap<TrialId, (String, Flight)>,
    /// Whether a trial may be able to begin that could not before. Messages come many times a second while trials are
    /// measured, and a campaign may have a hundred thousand of them.
    changed: bool,
}

impl Scheduler {
    /// A scheduler without campaigns. Trial ids are drawn from `ids`: two processes never may have the same.
    pub fn new(policy: Policy, ids: u64) -> Self {
        Self {
            policy,
            ids: ChaCha12Rng::seed_from_u64(ids),
            fleet: Fleet::new(policy.cluster),
            campaigns: Vec::new(),
            flights: BTreeMap::new(),
            changed: false,
        }
    }

    /// Takes one event and returns what is to be done, in order.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Command> {
        let mut out = Vec::new();
        match event {
            Event::Submit(campaign) => {
                let (id, stage) = (campaign.id.clone(), CampaignStage::Waiting(campaign));
                self.campaigns.push(ActiveCampaign::new(id, stage, now.elapsed));
                self.changed = true;
            }
            Event::Resume(campaign) => self.resume(*campaign, now, &mut out),
            Event::PlanStored { campaign } => {
                if let Some(active) = self.campaign(&campaign) {
                    (active.stage, active.ready_since) = (CampaignStage::Running, now.elapsed);
                    if let Some(reason) = active.cancelled.clone() {
                        self.skip_all(&campaign, &reason, &mut out);
                    }
                    self.changed = true;
                }
            }
            // Two connections of one agent may be heard of in the wrong order.
            Event::AgentConnected { host, session, .. } if !self.fleet.is_newer(&host, session.number) => {}
            Event::AgentConnected { host, session, facts, labels, held } => {
                self.connected(&host, session, Told { facts, labels }, &held, now, &mut out);
            }
            Event::AgentLost { host, session } if !self.hears(&host, session) => {}
            Event::AgentLost { host, .. } => {
                if let Some(trial) = self.fleet.lost(&host, now.elapsed) {
                    self.fly(trial, Step::HostLost { host }, now, &mut out);
                }
            }
            Event::Agent { host, message } => self.agent_said(&host, message, now, &mut out),
            Event::HostDied { host, reason } => {
                self.fleet.expect(&host, now.elapsed);
                let trial = self.fleet.lost(&host, now.elapsed);
                if let Some(host) = self.fleet.get_mut(&host) {
                    host.given_up = Some(reason.clone());
                }
                if let Some(trial) = trial {
                    self.fly(trial, Step::HostGone { host, reason, died: true }, now, &mut out);
                }
                self.changed = true;
            }
            Event::Nodes(nodes) => {
                self.fleet.nodes(nodes, now.elapsed);
                self.changed = true;
            }
            Event::Stored { trial, campaign } => {
                if let Some(active) = self.campaign(&campaign) {
                    active.unstored = active.unstored.saturating_sub(1);
                }
                self.fly(trial, Step::Stored, now, &mut out);
                self.changed = true;
            }
            Event::Abandon { campaign } => self.abandon(&campaign, now, &mut out),
            Event::Cancel { campaign, reason } => self.cancel(&campaign, reason, now, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        if std::mem::take(&mut self.changed) {
            self.plan(now, &mut out);
            self.dispatch(now, &mut out);
            self.finish(&mut out);
        }
        out
    }

    /// Facts of a host, as its agent last told them.
    pub fn facts(&self, host: &str) -> Option<&HostFacts> {
        self.fleet.hosts[self.fleet.find(host)?].facts.as_deref()
    }

    /// Every agent that has been connected.
    pub fn agents(&self, now: Now) -> Vec<AgentStatus> {
        self.fleet.statuses(now.elapsed)
    }

    /// Whether `trial`, as an agent names it, is in flight.
    pub fn flies(&self, trial: TrialId) -> bool {
        self.flights.contains_key(&trial.near())
    }

    /// Trials in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Trials that wait for their hosts.
    pub fn waiting(&self) -> usize {
        self.campaigns.iter().flat_map(|active| &active.queues).map(|queue| queue.trials.len()).sum()
    }

    /// How far a campaign with a plan is; `None` for one that has none, or is not known (any more).
    pub fn progress(&self, campaign: &str, now: Now) -> Option<Progress> {
        let active = self.campaigns.iter().find(|active| active.id == campaign)?;
        let plan = active.plan.as_ref()?;
        let running = |flight: &Flight| {
            let trial = &plan.trials[flight.index];
            let key = &plan.cells[trial.cell].key;
            let (pair, block) = (&key.pair, trial.block + 1);
            format!("{} {} to {}, {} and {}, block {block}", key.arm, key.direction, key.peer, pair.a, pair.b)
        };
        let flights = self.flights.values().filter(|(id, flight)| id == campaign && flight.is_open());
        Some(active.progress(flights.map(|(_, flight)| running(flight)).collect(), now.elapsed))
    }

    /// Why a campaign has no plan yet, if it hasn't.
    pub fn waits_for(&self, campaign: &str) -> Option<String> {
        let active = self.campaigns.iter().find(|active| active.id == campaign)?;
        let CampaignStage::Waiting(waiting) = &active.stage else { return None };
        let Hosts::Select(select) = &waiting.hosts else { return Some("its hosts have not come yet".into()) };
        let there = self.fleet.candidates(|labels| select.selects(labels)).len();
        Some(if there < select.at_least as usize {
            format!("it waits for hosts: {there} of at least {} that it selects are there", select.at_least)
        } else {
            "its hosts are coming in".into()
        })
    }

    fn campaign(&mut self, id: &str) -> Option<&mut ActiveCampaign> {
        self.campaigns.iter_mut().find(|active| active.id == id)
    }

    fn resume(&mut self, resumed: ResumedCampaign, now: Now, out: &mut Vec<Command>) {
        self.fleet.restore(&resumed.hosts, now.elapsed);
        let over: Vec<usize> =
            resumed.recorded.iter().copied().chain(resumed.begun.iter().map(|(index, _)| *index)).collect();
        let mut active = ActiveCampaign::new(resumed.id.clone(), CampaignStage::Running, now.elapsed);
        (active.counts, active.flying) = (resumed.counts, resumed.begun.len());
        active.cancelled.clone_from(&resumed.cancelled);
        active.planned(resumed.plan.clone(), &mut self.fleet, &over, now.elapsed);
        self.campaigns.push(active);
        for (index, started) in resumed.begun {
            let trial = &resumed.plan.trials[index];
            let cell = &resumed.plan.cells[trial.cell];
            for host in cell.hosts() {
                if let Some(host) = self.fleet.get_mut(host) {
                    host.busy = Some(trial.id);
                }
            }
            let flight = Flight::resumed(index, trial.id, cell, started, self.policy.grace, now);
            self.flights.insert(trial.id, (resumed.id.clone(), flight));
        }
        if let Some(reason) = resumed.cancelled {
            self.cancel(&resumed.id, reason, now, out);
        }
        self.changed = true;
    }

    fn connected(
        &mut self,
        name: &str,
        session: Session,
        told: Told,
        held: &[TrialId],
        now: Now,
        out: &mut Vec<Command>,
    ) {
        let busy = self.fleet.get_mut(name).and_then(|host| host.busy);
        let live = |trial: TrialId| busy == Some(trial.near());
        let (process, over) = self.fleet.connected(name, session, told, held, live, now.elapsed);
        for trial in over {
            forget(name, trial, out);
        }
        if let Some(trial) = busy {
            let step = Step::HostBack { host: name.to_owned(), process, held: held.to_vec() };
            self.fly(trial, step, now, out);
        }
        self.changed = true;
    }

    fn agent_said(&mut self, host: &str, message: FromAgent, now: Now, out: &mut Vec<Command>) {
        let end = |trial| EndId { host: host.to_owned(), trial };
        let (trial, step) = match message {
            FromAgent::Hello { .. } | FromAgent::Sample { .. } => return,
            FromAgent::Nic { nic } => {
                // Nothing begins for it before the next tick: an agent may tell of another NIC as often as it likes.
                self.fleet.tells_nic(host, nic);
                return;
            }
            FromAgent::Ready { trial, ready } => (trial, self.answered(end(trial), ready)),
            FromAgent::Result { trial, report } => (trial, Step::Result { end: end(trial), report }),
            FromAgent::Failed { trial, failure } => (trial, Step::Failed { end: end(trial), failure }),
            FromAgent::TornDown { trial, leftovers } => {
                // The same: it may have come with any number of such trials.
                if self.fleet.torn_down(host, trial, &leftovers, now.elapsed) {
                    return;
                }
                (trial, Step::TornDown { end: end(trial), leftovers })
            }
        };
        // An agent is believed only about the trial that it is in.
        if self.fleet.get_mut(host).and_then(|host| host.busy) == Some(trial.near()) {
            self.fly(trial.near(), step, now, out);
        } else if matches!(step, Step::Result { .. } | Step::Failed { .. }) {
            // The trial is over for everybody else: the agent need not keep its outcome.
            forget(host, trial, out);
        }
    }

    /// What the answer of an end is to its trial: one that says that the end is where it can't be is its failure.
    fn answered(&self, end: EndId, ready: EndReady) -> Step {
        let flight = self.flights.get(&end.trial.near());
        let spec = flight.and_then(|(_, flight)| flight.spec(&end));
        match spec.and_then(|spec| stray(spec, self.facts(&end.host), ready)) {
            Some(failure) => Step::Failed { end, failure },
            None => Step::Ready { end, ready },
        }
    }

    fn cancel(&mut self, campaign: &str, reason: String, now: Now, out: &mut Vec<Command>) {
        let Some(active) = self.campaign(campaign) else { return };
        active.cancelled.get_or_insert_with(|| reason.clone());
        match active.stage {
            CampaignStage::Waiting(_) => {
                active.stage = CampaignStage::Over;
                out.push(Command::Finished {
                    campaign: campaign.to_owned(),
                    ending: Ending::Cancelled(reason),
                });
            }
            // Its trials are skipped once there is a plan to say so of.
            CampaignStage::Storing | CampaignStage::Abandoned | CampaignStage::Over => {}
            CampaignStage::Running => {
                self.skip_all(campaign, &reason, out);
                let of_it =
                    |(trial, (id, _)): (&TrialId, &(String, Flight))| (id == campaign).then_some(*trial);
                let flying: Vec<TrialId> = self.flights.iter().filter_map(of_it).collect();
                for trial in flying {
                    self.fly(trial, Step::Cancel { reason: reason.clone() }, now, out);
                }
            }
        }
        self.changed = true;
    }

    fn abandon(&mut self, campaign: &str, now: Now, out: &mut Vec<Command>) {
        let Some(active) = self.campaign(campaign) else { return };
        active.drain();
        active.stage = CampaignStage::Abandoned;
        let of_it = self.flights.iter().filter(|(_, (id, _))| id == campaign);
        let flying: Vec<TrialId> = of_it.map(|(trial, _)| *trial).collect();
        for trial in flying {
            self.fly(trial, Step::Abandon, now, out);
        }
        self.changed = true;
    }

    fn skip_all(&mut self, campaign: &str, reason: &str, out: &mut Vec<Command>) {
        if let Some(active) = self.campaign(campaign) {
            for index in active.drain() {
                skip(active, index, reason.to_owned(), out);
            }
        }
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Command>) {
        let flying: Vec<TrialId> = self.flights.keys().copied().collect();
        for trial in flying {
            self.fly(trial, Step::Tick, now, out);
        }
        let grace = self.policy.grace;
        let gone: Vec<(String, TrialId)> = self
            .fleet
            .hosts
            .iter()
            .filter(|host| host.away_since.is_some_and(|since| now.elapsed.saturating_sub(since) > grace))
            .filter_map(|host| Some((host.name.clone(), host.busy?)))
            .collect();
        for (host, trial) in gone {
            let reason =
                format!("the connection to the agent of {host} was lost for over {} s", grace.as_secs());
            self.fly(trial, Step::HostGone { host, reason, died: false }, now, out);
        }
        let campaigns = &self.campaigns;
        self.fleet.tick(|host| campaigns.iter().any(|active| active.wants(host)), now.elapsed);
        self.changed = true;
    }

    /// Gives a step to a trial in flight and carries its hosts' state along.
    fn fly(&mut self, trial: TrialId, step: Step, now: Now, out: &mut Vec<Command>) {
        let Some((campaign, flight)) = self.flights.get_mut(&trial) else { return };
        let outcome = flight.step(step, now, out);
        let over = flight.is_over();
        let (index, started) = (flight.index, flight.started_unix_ms);
        let Some(active) = self.campaigns.iter_mut().find(|active| active.id == *campaign) else { return };
        if let Some(outcome) = outcome {
            record(active, index, Some(started), outcome, out);
        }
        if !over {
            return;
        }
        active.flying -= 1;
        for (name, dirt) in flight.dirty_hosts() {
            if let Some(host) = self.fleet.get_mut(name) {
                host.given_up.get_or_insert_with(|| dirt.to_owned());
            }
        }
        for end in flight.untold() {
            self.fleet.untold(&end.host, end.trial, now.elapsed);
        }
        for host in self.fleet.hosts.iter_mut().filter(|host| host.busy == Some(trial)) {
            (host.busy, host.free_since) = (None, now.elapsed);
        }
        self.flights.remove(&trial);
        self.changed = true;
    }

    /// Plans campaigns whose hosts are there.
    fn plan(&mut self, now: Now, out: &mut Vec<Command>) {
        let settled =
            self.fleet.last_joined.is_some_and(|at| now.elapsed.saturating_sub(at) >= self.policy.settle);
        for active in &mut self.campaigns {
            let CampaignStage::Waiting(waiting) = &active.stage else { continue };
            let hosts = match &waiting.hosts {
                Hosts::Given(hosts) => hosts.clone(),
                Hosts::Select(_) if !settled => continue,
                Hosts::Select(select) => {
                    let hosts = self.fleet.candidates(|labels| select.selects(labels));
                    if hosts.len() < select.at_least as usize {
                        continue;
                    }
                    self.fleet.for_a_plan(&hosts)
                }
            };
            // Not known before: how many hosts a campaign has, and what they carry, is the fleet's to say.
            let count = u32::try_from(hosts.len()).unwrap_or(u32::MAX);
            let too_large = waiting.campaign.too_large(count);
            if let Some(why) = too_large.or_else(|| plan::carried(&waiting.campaign, &hosts)) {
                active.stage = CampaignStage::Over;
                out.push(Command::Finished { campaign: active.id.clone(), ending: Ending::Refused(why) });
                continue;
            }
            self.fleet.restore(&hosts, now.elapsed);
            let ids = &mut self.ids;
            let plan = Plan::new(&waiting.campaign, &hosts, waiting.seed, || plan::draw(ids));
            let plan = Arc::new(plan);
            active.planned(plan.clone(), &mut self.fleet, &[], now.elapsed);
            active.stage = CampaignStage::Storing;
            out.push(Command::StorePlan { campaign: active.id.clone(), plan, hosts });
        }
    }

    /// Begins every trial that can begin now, in the order of the campaigns and of their plans, and skips those that
    /// never can. Trials of a host that has been away for too long are skipped when nothing else of their campaign is
    /// left to do: until then it may come back.
    fn dispatch(&mut self, now: Now, out: &mut Vec<Command>) {
        for active in &mut self.campaigns {
            let (CampaignStage::Running, Some(plan)) = (&active.stage, active.plan.clone()) else { continue };
            let mut queues = std::mem::take(&mut active.queues);
            let mut waits = false;
            let mut overdue: Vec<(usize, String)> = Vec::new();
            for (number, queue) in queues.iter_mut().enumerate() {
                while let Some(index) = queue.trials.front().copied() {
                    let cell = &plan.cells[plan.trials[index].cell];
                    let hosts = [queue.a, if cell.is_local() { queue.a } else { queue.b }];
                    match self.fleet.both(hosts, self.policy, now.elapsed) {
                        Availability::Free if self.flights.len() < self.policy.limit => {}
                        Availability::Free | Availability::Later => {
                            waits = true;
                            break;
                        }
                        Availability::Overdue(why) => {
                            overdue.push((number, why));
                            break;
                        }
                        Availability::Never(why) => {
                            queue.trials.pop_front();
                            skip(active, index, why, out);
                            continue;
                        }
                    }
                    queue.trials.pop_front();
                    if let Some(why) = self.fleet.lacks(hosts, cell) {
                        skip(active, index, why, out);
                        continue;
                    }
                    let grace = self.policy.grace;
                    let flight = begin(&mut self.fleet, active, &plan, index, (grace, now), out);
                    self.flights.insert(plan.trials[index].id, (active.id.clone(), flight));
                    waits = true;
                    break;
                }
            }
            if !waits && active.flying == 0 {
                for (number, why) in overdue {
                    for index in queues[number].trials.drain(..) {
                        skip(active, index, why.clone(), out);
                    }
                }
            }
            active.put_back(queues);
        }
    }

    fn finish(&mut self, out: &mut Vec<Command>) {
        for active in &mut self.campaigns {
            if matches!(active.stage, CampaignStage::Abandoned) && active.flying == 0 {
                active.stage = CampaignStage::Over;
            }
        }
        for active in self.campaigns.iter_mut().filter(|active| active.is_done()) {
            active.stage = CampaignStage::Over;
            let (campaign, ending) = (active.id.clone(), Ending::of(active.cancelled.clone()));
            out.push(Command::Finished { campaign, ending });
        }
        self.campaigns.retain(|active| !matches!(active.stage, CampaignStage::Over));
    }
}

/// Tells an agent that a trial is over, whatever became of it.
fn forget(host: &str, trial: TrialId, out: &mut Vec<Command>) {
    for message in [ToAgent::Acknowledged { trial }, ToAgent::Teardown { trial }] {
        out.push(Command::Send { host: host.to_owned(), message });
    }
}

fn skip(active: &mut ActiveCampaign, index: usize, reason: String, out: &mut Vec<Command>) {
    record(active, index, None, Outcome::Skipped { reason }, out);
}

fn record(
    active: &mut ActiveCampaign,
    index: usize,
    started_unix_ms: Option<u64>,
    outcome: Outcome,
    out: &mut Vec<Command>,
) {
    let Some(plan) = active.plan.clone() else { return };
    let planned = &plan.trials[index];
    active.count(&outcome);
    let record = TrialRecord {
        trial: planned.id,
        cell: plan.cells[planned.cell].key.clone(),
        block: planned.block,
        position: u32::try_from(index).unwrap_or(u32::MAX),
        started_unix_ms,
        outcome,
    };
    out.push(Command::Record { campaign: active.id.clone(), record: Box::new(record) });
}
