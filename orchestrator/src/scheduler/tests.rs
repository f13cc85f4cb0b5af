//! A fleet of simulated agents under a virtual clock: they prepare, run, fail, vanish and lie, as a seed says.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use toll_protocol::facts::{KvmKind, NicFacts, Wire};
use toll_protocol::report::{CpuSplit, EndReport, Failure};
use toll_protocol::trial::EndReady;
use toll_protocol::units::InterfaceAddress;

use super::*;
use crate::plan;

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

fn facts(kvm: KvmFact) -> Box<HostFacts> {
    Box::new(HostFacts {
        kernel: "6.1".into(),
        cpu: None,
        microcode: None,
        cpus: vec![0],
        memory: None,
        kvm,
        tun: Ok(()),
        nic: None::<NicFacts>,
        wire: Some(Wire::Exclusive),
        guest_addresses: None,
        clock_source: None,
        governor: None,
        congestion_control: None,
        toll_version: "0".into(),
        build_profile: "debug".into(),
        iperf3: None,
    })
}

fn report() -> Box<EndReport> {
    Box::new(EndReport {
        bytes: 1,
        interval: Span(1),
        samples: Vec::new(),
        threads: Vec::new(),
        cpu: CpuSplit::default(),
        exits: None,
        frames: None,
        start_to_first_frame: None,
        flags: Vec::new(),
    })
}

fn host_plans(count: u8) -> Vec<plan::Host> {
    let address = |n| InterfaceAddress { address: [10, 77, 0, 100 + n].into(), prefix: 24 };
    (0..count)
        .map(|n| plan::Host { name: format!("host-{n}"), virtual_address: address(n), mtu: 1500, rate: None })
        .collect()
}

fn plan_for(hosts: u8) -> Plan {
    let campaign = toll_protocol::campaign::parse(CAMPAIGN).expect("is good");
    Plan::new(&campaign, &host_plans(hosts), 1, &mut ChaCha8Rng::seed_from_u64(9))
}

/// How often an agent misbehaves at each chance, out of 1000.
#[derive(Debug, Clone, Copy)]
struct Faults {
    fails: u32,
    silent: u32,
    vanishes: u32,
    dirty: u32,
}

/// The fleet: what it will say, by time.
struct Fleet {
    scheduler: Scheduler,
    rng: ChaCha8Rng,
    faults: Faults,
    /// Events to come: time in microseconds (negated: the heap gives the largest first), then order.
    agenda: BinaryHeap<(i64, i64, usize)>,
    events: Vec<Option<Event>>,
    clock: i64,
    /// Trials that each host believes itself to be in.
    inside: HashMap<String, BTreeSet<TrialId>>,
    records: BTreeMap<TrialId, TrialRecord>,
    sent: Vec<(String, ToAgent)>,
}

impl Fleet {
    fn new(plan: Plan, limit: usize, seed: u64, faults: Faults) -> Self {
        Self {
            scheduler: Scheduler::new(plan, limit),
            rng: ChaCha8Rng::seed_from_u64(seed),
            faults,
            agenda: BinaryHeap::new(),
            events: Vec::new(),
            clock: 0,
            inside: HashMap::new(),
            records: BTreeMap::new(),
            sent: Vec::new(),
        }
    }

    fn at(&mut self, delay_ms: u64, event: Event) {
        let time = self.clock + i64::try_from(delay_ms).expect("short") * 1000;
        self.agenda.push((-time, -i64::try_from(self.events.len()).expect("few"), self.events.len()));
        self.events.push(Some(event));
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        self.rng.random_range(0..1000) < per_mille
    }

    fn now(&self) -> Now {
        let elapsed = Duration::from_micros(u64::try_from(self.clock).expect("positive"));
        Now { elapsed, unix_ms: 1_000_000 }
    }

    /// Runs until the campaign is finished; every wait is in virtual time.
    fn run(&mut self) {
        for tick in 1..100_000 {
            self.at(tick * 1000, Event::Tick);
        }
        while let Some((time, _, index)) = self.agenda.pop() {
            self.clock = -time;
            let event = self.events[index].take().expect("is taken once");
            let now = self.now();
            let commands = self.scheduler.step(event, now);
            for command in commands {
                self.obey(command);
            }
            if self.scheduler.is_finished() {
                return;
            }
        }
        panic!("the campaign did not end");
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Record(record) => {
                let trial = record.trial;
                assert!(self.records.insert(trial, *record).is_none(), "trial {trial} was recorded twice");
                self.at(2, Event::Stored { trial });
            }
            Command::Send { host, message } => {
                self.sent.push((host.clone(), message.clone()));
                self.agent(&host, &message);
            }
            Command::Finished => {}
        }
    }

    /// What an agent does with a message.
    fn agent(&mut self, host: &str, message: &ToAgent) {
        if self.chance(self.faults.vanishes) {
            self.at(1, Event::AgentLost { host: host.into() });
            self.inside.remove(host);
            if self.chance(500) {
                let delay = self.rng.random_range(10..30_000);
                let facts = facts(KvmFact::Usable(KvmKind::Vmx));
                self.at(delay, Event::AgentConnected { host: host.into(), facts });
            }
            return;
        }
        if self.chance(self.faults.silent) {
            return;
        }
        let say = |message| Event::Agent { host: host.into(), message };
        match message {
            ToAgent::Prepare { trial, end } => {
                let inside = self.inside.entry(host.into()).or_default();
                inside.insert(*trial);
                assert_eq!(inside.len(), 1, "{host} is in two trials");
                let (trial, address) = (*trial, std::net::SocketAddrV4::new(end.address.address, 5201));
                if self.chance(self.faults.fails) {
                    self.at(5, say(FromAgent::Failed { trial, failure: Failure::new("simulated") }));
                } else {
                    self.at(5, say(FromAgent::Ready { trial, ready: EndReady { address } }));
                }
            }
            ToAgent::Start { trial, .. } => {
                let message = FromAgent::Result { trial: *trial, report: report() };
                let delay = self.rng.random_range(2500..2600);
                self.at(delay, say(message.clone()));
                // Resent, as after a lost connection.
                self.at(delay + 1, say(message));
            }
            ToAgent::Teardown { trial } => {
                if let Some(inside) = self.inside.get_mut(host) {
                    inside.remove(trial);
                }
                let leftovers =
                    if self.chance(self.faults.dirty) { vec!["bridge".to_owned()] } else { Vec::new() };
                self.at(3, say(FromAgent::TornDown { trial: *trial, leftovers }));
            }
            ToAgent::Welcome { .. } | ToAgent::Acknowledged { .. } => {}
        }
    }
}

const NO_FAULTS: Faults = Faults { fails: 0, silent: 0, vanishes: 0, dirty: 0 };

fn fleet(hosts: u8, limit: usize, seed: u64, faults: Faults) -> Fleet {
    let mut fleet = Fleet::new(plan_for(hosts), limit, seed, faults);
    for host in host_plans(hosts) {
        let facts = facts(KvmFact::Usable(KvmKind::Vmx));
        fleet.at(10, Event::AgentConnected { host: host.name, facts });
    }
    fleet
}

#[test]
fn without_faults_every_trial_is_measured_in_the_plans_order() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    fleet.run();
    let plan = plan_for(2);
    assert_eq!(fleet.records.len(), plan.trials.len());
    for (position, trial) in plan.trials.iter().enumerate() {
        let record = &fleet.records[&trial.id];
        assert!(matches!(record.outcome, Outcome::Measured { .. }), "{record:?}");
        assert_eq!(record.position as usize, position);
    }
}

#[test]
fn the_next_trial_waits_for_the_record_of_the_last() {
    let mut fleet = fleet(2, 8, 1, NO_FAULTS);
    fleet.run();
    let mut open = BTreeSet::new();
    for (_, message) in &fleet.sent {
        match message {
            ToAgent::Prepare { trial, .. } => {
                open.insert(*trial);
                assert_eq!(open.len(), 1, "a host was given a trial before the last was over");
            }
            ToAgent::Teardown { trial } => {
                assert!(fleet.records.contains_key(trial));
                open.remove(trial);
            }
            _ => {}
        }
    }
}

#[test]
fn disjoint_pairs_run_at_the_same_time_up_to_the_limit() {
    let elapsed = |limit| {
        let mut fleet = fleet(8, limit, 1, NO_FAULTS);
        fleet.run();
        fleet.clock
    };
    let (alone, packed) = (elapsed(1), elapsed(4));
    assert!(packed * 3 < alone, "{alone} us one by one, {packed} us four at once");
}

#[test]
fn without_kvm_native_runs_and_guests_are_skipped_with_the_reason() {
    let mut fleet = Fleet::new(plan_for(2), 1, 1, NO_FAULTS);
    for host in host_plans(2) {
        let facts = facts(KvmFact::Unusable { reason: "there is no /dev/kvm".into() });
        fleet.at(10, Event::AgentConnected { host: host.name, facts });
    }
    fleet.run();
    for record in fleet.records.values() {
        match &record.outcome {
            Outcome::Measured { .. } => assert_eq!(record.cell.arm, "native"),
            Outcome::Skipped { reason } => {
                assert_eq!(record.cell.arm, "virtio");
                assert!(reason.contains("there is no /dev/kvm"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_arm_pinned_to_a_cpu_that_the_host_does_not_have_is_skipped_with_the_reason() {
    let mut plan = plan_for(2);
    for cell in plan.cells.iter_mut().filter(|cell| cell.key.arm == "virtio") {
        cell.b.cpu = Some(3);
    }
    let mut fleet = Fleet::new(plan, 1, 1, NO_FAULTS);
    for host in host_plans(2) {
        let facts = facts(KvmFact::Usable(KvmKind::Vmx));
        fleet.at(10, Event::AgentConnected { host: host.name, facts });
    }
    fleet.run();
    for record in fleet.records.values() {
        match &record.outcome {
            Outcome::Measured { .. } => assert_eq!(record.cell.arm, "native"),
            Outcome::Skipped { reason } => {
                assert_eq!(
                    reason,
                    "host-1: the arm is pinned to CPU 3 of the host, which has 1 (the first is 0)"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_arm_is_pinned_to_a_cpu_of_its_own_host() {
    let mut plan = plan_for(2);
    for cell in &mut plan.cells {
        (cell.a.cpu, cell.b.cpu) = (Some(0), Some(1));
    }
    let mut fleet = Fleet::new(plan, 1, 1, NO_FAULTS);
    for (host, cpus) in host_plans(2).into_iter().zip([vec![0, 1], vec![6, 7]]) {
        let facts = Box::new(HostFacts { cpus, ..*facts(KvmFact::Usable(KvmKind::Vmx)) });
        fleet.at(10, Event::AgentConnected { host: host.name, facts });
    }
    fleet.run();
    let mut prepared = 0;
    for (host, message) in &fleet.sent {
        if let ToAgent::Prepare { end, .. } = message {
            assert_eq!(end.cpu, Some(if host == "host-0" { 0 } else { 7 }));
            prepared += 1;
        }
    }
    assert_eq!(prepared, 2 * plan_for(2).trials.len());
}

#[test]
fn a_host_that_never_comes_costs_its_grace_and_no_more() {
    let mut fleet = Fleet::new(plan_for(2), 1, 1, NO_FAULTS);
    fleet
        .at(10, Event::AgentConnected { host: "host-0".into(), facts: facts(KvmFact::Usable(KvmKind::Svm)) });
    fleet.run();
    assert!(fleet.records.values().all(|record| matches!(record.outcome, Outcome::Skipped { .. })));
    assert!(fleet.clock < 15_000_000, "{} us", fleet.clock);
}

#[test]
fn cancel_ends_the_campaign_and_keeps_what_was_measured() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    fleet.at(9_000, Event::Cancel);
    fleet.run();
    let measured = fleet.records.values().filter(|r| matches!(r.outcome, Outcome::Measured { .. })).count();
    let lost = fleet.records.values().filter(|r| matches!(r.outcome, Outcome::Lost { .. })).count();
    assert!(measured >= 2 && lost == 1, "{measured} measured, {lost} lost");
    assert_eq!(fleet.records.len(), plan_for(2).trials.len());
    assert!(fleet.clock < 11_000_000);
}

#[test]
fn both_ends_of_a_broken_connection_are_heard() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    let first = plan_for(2).trials[0].id;
    // The first trial runs from 15 ms on; the survivor is heard before the agent of the dead end.
    for (at, host, reason) in
        [(1_000, "host-0", "the connection was reset"), (1_040, "host-1", "killed by a signal")]
    {
        let message = FromAgent::Failed { trial: first, failure: Failure::new(reason) };
        fleet.at(at, Event::Agent { host: host.into(), message });
    }
    fleet.run();
    let Outcome::Failed { host, failure } = &fleet.records[&first].outcome else { panic!("it failed") };
    assert_eq!((host.as_str(), failure.reason.as_str()), ("host-0", "the connection was reset"));
    assert_eq!(failure.last_words, ["host-1 failed too: killed by a signal"]);
}

#[test]
fn an_end_that_fails_alone_is_recorded_without_the_other() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    let first = plan_for(2).trials[0].id;
    let message = FromAgent::Failed { trial: first, failure: Failure::new("the guest faulted") };
    fleet.at(1_000, Event::Agent { host: "host-0".into(), message });
    fleet.run();
    let Outcome::Failed { failure, .. } = &fleet.records[&first].outcome else { panic!("it failed") };
    assert!(failure.last_words.is_empty(), "{failure:?}");
}

#[test]
fn a_message_about_another_hosts_trial_is_not_believed() {
    let mut fleet = fleet(4, 1, 1, NO_FAULTS);
    // host-3 claims results of the trial that host-0 and host-1 run.
    let first = plan_for(4).trials[0].id;
    let message = FromAgent::Failed { trial: first, failure: Failure::new("forged") };
    fleet.at(100, Event::Agent { host: "host-3".into(), message });
    fleet.run();
    assert!(matches!(fleet.records[&first].outcome, Outcome::Measured { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn whatever_agents_do_every_trial_is_recorded_once_and_the_campaign_ends(
        seed: u64, hosts in 2_u8..6, limit in 1_usize..4,
        fails in 0_u32..300, silent in 0_u32..60, vanishes in 0_u32..60, dirty in 0_u32..40,
    ) {
        let mut fleet = fleet(hosts, limit, seed, Faults { fails, silent, vanishes, dirty });
        fleet.run();
        let planned: BTreeSet<TrialId> = plan_for(hosts).trials.iter().map(|trial| trial.id).collect();
        let recorded: BTreeSet<TrialId> = fleet.records.keys().copied().collect();
        prop_assert_eq!(planned, recorded);
        let positions: BTreeSet<u32> = fleet.records.values().map(|record| record.position).collect();
        prop_assert_eq!(positions.len(), fleet.records.len());
    }
}
