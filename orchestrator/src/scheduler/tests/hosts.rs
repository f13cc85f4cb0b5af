//! Who is there: connections heard of in any order, agents that take each other's place, hosts that are forgotten.

use toll_protocol::units::AddressRange;

use super::fleets::{selecting, with_nic};
use super::*;
use crate::scheduler::fleet::{Availability, Fleet};

const FLEET: Policy = Policy { limit: usize::MAX, ..POLICY };

/// A scheduler without campaigns.
struct Hosts {
    scheduler: Scheduler,
    seconds: u64,
}

impl Hosts {
    fn new() -> Self {
        Self { scheduler: Scheduler::new(FLEET, 1), seconds: 0 }
    }

    fn now(&self) -> Now {
        Now { elapsed: Duration::from_secs(self.seconds), unix_ms: 0 }
    }

    fn step(&mut self, event: Event) {
        self.scheduler.step(event, self.now());
    }

    fn connects(&mut self, host: &str, number: u64, facts: Box<HostFacts>) {
        let session = Session { number, instance: Instance(number), address: LOCAL };
        self.step(Event::AgentConnected {
            host: host.into(),
            session,
            facts,
            labels: BTreeMap::new(),
            held: Vec::new(),
        });
    }

    fn loses(&mut self, host: &str, session: u64) {
        self.step(Event::AgentLost { host: host.into(), session });
    }

    fn agent(&self, host: &str) -> AgentStatus {
        let agents = self.scheduler.agents(self.now());
        agents.into_iter().find(|agent| agent.name == host).expect("it is known")
    }
}

/// Each connection's task tells of it by itself: a former one may be heard of, or end, after the newer one has begun.
#[test]
fn an_older_connection_changes_nothing() {
    for events in [["1", "2", "lost 1"], ["2", "1", "lost 1"], ["2", "lost 1", "1"]] {
        let mut hosts = Hosts::new();
        for event in events {
            match event.strip_prefix("lost ") {
                Some(number) => hosts.loses("host", number.parse().expect("a number")),
                None => hosts.connects("host", event.parse().expect("a number"), usable()),
            }
        }
        assert!(hosts.scheduler.hears("host", 2), "{events:?}");
        assert_eq!(hosts.agent("host").state, toll_protocol::service::AgentState::Idle, "{events:?}");
        hosts.loses("host", 2);
        assert_eq!(hosts.agent("host").state, toll_protocol::service::AgentState::Away, "{events:?}");
    }
}

/// What an agent's return without its trial means, by what is known of it.
#[test]
fn a_trial_that_is_not_there_any_more_has_its_true_reason() {
    let elsewhere = IpAddr::from([10, 0, 0, 9]);
    for (instance, address, reason) in [
        (0, LOCAL, "is still the same process"),
        (1, LOCAL, "the agent had to be started again"),
        (1, elsewhere, "at 127.0.0.1 no longer answered, and another agent of that name, at 10.0.0.9,"),
    ] {
        let mut fleet = fleet(2, 1, 1, NO_FAULTS);
        let first = fleet.first_trial();
        fleet.run_until(fleet.clock + 500_000);
        fleet.agents.get_mut("host-1").expect("an agent").held.clear();
        let session = Session { number: 1000, instance: Instance(instance), address };
        let (host, facts) = ("host-1".to_owned(), fleet.facts["host-1"].clone());
        let labels = BTreeMap::new();
        fleet.at(1, Event::AgentConnected { host, session, facts, labels, held: Vec::new() });
        fleet.run();
        let Outcome::Lost { reason: said } = &fleet.records[&first].outcome else { panic!("it is lost") };
        assert!(said.contains(reason), "{said}");
    }
}

/// Names of hosts come and go for ever; what is kept of them does not grow.
#[test]
fn forgotten_hosts_give_their_place_back() {
    const MOST: usize = 16;
    let mut hosts = Hosts::new();
    hosts.connects("stays", 1, usable());
    for number in 2..200 {
        let name = format!("host-{number}");
        assert!(hosts.scheduler.has_room_for(&name, MOST), "{name}");
        hosts.connects(&name, number, usable());
        hosts.loses(&name, number);
        hosts.seconds += 1000;
        hosts.step(Event::Tick);
        assert!(hosts.scheduler.fleet.hosts.len() <= 6, "{} at {name}", hosts.scheduler.fleet.hosts.len());
    }
    assert!(hosts.scheduler.hears("stays", 1));
}

/// Nobody has to wait an hour: of a full fleet the host that is away longest gives way to one that comes.
#[test]
fn a_host_that_comes_takes_the_place_of_one_that_is_away() {
    const MOST: usize = 3;
    let mut hosts = Hosts::new();
    for (number, name) in (1..).zip(["there", "first", "second"]) {
        hosts.connects(name, number, usable());
    }
    assert!(!hosts.scheduler.has_room_for("new", MOST), "all are there");
    for (number, name) in [(2, "first"), (3, "second")] {
        hosts.seconds += 1;
        hosts.loses(name, number);
    }
    assert!(hosts.scheduler.has_room_for("new", MOST));
    hosts.connects("new", 4, usable());
    let names: Vec<String> =
        hosts.scheduler.agents(hosts.now()).into_iter().map(|agent| agent.name).collect();
    assert_eq!(names, ["new", "second", "there"]);
    assert!(hosts.scheduler.has_room_for("there", MOST), "it is known");
}

/// A host whose trials wait is not forgotten, however long it is away and whoever comes.
#[test]
fn a_host_that_a_campaign_waits_for_keeps_its_place() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    fleet.first_trial();
    fleet.run_until(fleet.clock + 500_000);
    let lost = fleet.loss("host-1");
    let now = fleet.now();
    fleet.scheduler.step(lost, now);
    assert!(!fleet.scheduler.has_room_for("host-9", 2));
    assert!(fleet.scheduler.fleet.find("host-1").is_some());
}

#[test]
fn a_conflict_of_names_is_shown_while_it_lasts() {
    let mut hosts = Hosts::new();
    hosts.connects("host", 1, usable());
    let [holder, newcomer] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
    assert!(hosts.scheduler.refused("host", holder, newcomer, hosts.now()), "it is news");
    for _ in 0..100 {
        hosts.seconds += 5;
        assert!(!hosts.scheduler.refused("host", holder, newcomer, hosts.now()), "it is told once");
    }
    // Of several newcomers each is told of a while, and none is news.
    for last in [3, 4, 2].repeat(10) {
        hosts.seconds += 1;
        let newcomer = IpAddr::from([10, 0, 0, last]);
        assert!(!hosts.scheduler.refused("host", holder, newcomer, hosts.now()), "10.0.0.{last}");
    }
    let reason = hosts.agent("host").reason.expect("a reason");
    assert!(reason.contains("10.0.0.2") && reason.contains("10.0.0.1"), "{reason}");
    assert_eq!(hosts.agent("host").state, toll_protocol::service::AgentState::Idle);
    hosts.seconds += 61;
    assert_eq!(hosts.agent("host").reason, None);
    assert!(hosts.scheduler.refused("host", holder, newcomer, hosts.now()), "it is news again");
    assert!(!hosts.scheduler.refused("nobody", holder, newcomer, hosts.now()));
}

/// An agent may tell of its NIC as often as it likes: what it tells is looked at with the next tick.
#[test]
fn a_nic_that_changes_plans_nothing_by_itself() {
    let mut hosts = Hosts::new();
    hosts.connects("node-1", 1, with_nic(1, "10.1.0.100-10.1.0.120"));
    hosts.connects("node-2", 2, Box::new(HostFacts { nic: None, ..*with_nic(2, "") }));
    hosts.step(Event::Submit(Box::new(selecting(2))));
    let message = FromAgent::Nic { nic: with_nic(2, "").nic.map(Box::new) };
    let now = hosts.now();
    let commands = hosts.scheduler.step(Event::Agent { host: "node-2".into(), message }, now);
    assert!(commands.is_empty(), "{commands:?}");
    let commands = hosts.scheduler.step(Event::Tick, now);
    assert!(matches!(commands[..], [Command::StorePlan { .. }]), "{commands:?}");
}

/// Nor does the end of a trial that was over, of which an agent may say that it held thousands.
#[test]
fn a_trial_that_was_over_begins_nothing_by_its_end() {
    let mut hosts = Hosts::new();
    hosts.step(Event::Submit(Box::new(new_campaign("c", 2))));
    hosts.step(Event::PlanStored { campaign: "c".into() });
    hosts.connects("host-0", 1, usable());
    let (host, stale) = ("host-1".to_owned(), TrialId::new(9));
    let session = Session { number: 2, instance: Instance(2), address: LOCAL };
    let (facts, labels, held) = (usable(), BTreeMap::new(), vec![stale]);
    hosts.step(Event::AgentConnected { host: host.clone(), session, facts, labels, held });
    let message = FromAgent::TornDown { trial: stale, leftovers: Vec::new() };
    let now = hosts.now();
    let commands = hosts.scheduler.step(Event::Agent { host, message }, now);
    assert!(commands.is_empty(), "{commands:?}");
    let commands = hosts.scheduler.step(Event::Tick, now);
    assert!(commands.iter().any(|command| matches!(command, Command::Begun { .. })), "{commands:?}");
}

/// Ten times a second every host is looked at, and whenever a new one comes to a full fleet.
#[test]
fn hosts_that_are_away_cost_a_tick_no_look_at_all_pairs() {
    let mut hosts = Hosts::new();
    let campaign = new_campaign("c", 100);
    hosts.step(Event::Submit(Box::new(campaign)));
    hosts.step(Event::PlanStored { campaign: "c".into() });
    for number in 0..4000 {
        hosts.scheduler.fleet.expect(&format!("away-{number}"), Duration::ZERO);
    }
    let pairs = hosts.scheduler.courses[0].queues.len();
    assert_eq!(pairs, 100 * 99 / 2);
    let began = std::time::Instant::now();
    for _ in 0..10 {
        let courses = &hosts.scheduler.courses;
        let wanted = |host| courses.iter().any(|course| course.wants(host));
        assert!(!hosts.scheduler.fleet.tick(wanted, Duration::from_secs(60)));
    }
    for number in 0..10 {
        assert!(hosts.scheduler.has_room_for(&format!("new-{number}"), 4000));
    }
    let took = began.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
}

/// What a plan costs the service's task grows with the number of hosts, and not with its square.
#[test]
fn thousands_of_hosts_get_addresses_in_no_time() {
    const COUNT: u32 = 4096;
    let mut hosts = Hosts::new();
    let range: AddressRange = "10.1.0.0-10.1.255.255".parse().expect("a range");
    for n in 0..COUNT {
        let mut facts = usable();
        let address = InterfaceAddress { address: (0x0a00_0000 + n).to_be_bytes().into(), prefix: 8 };
        facts.nic = Some(NicFacts { address: Some(address), ..NicFacts::new("eth0", 1500) });
        facts.guest_addresses = Some(range);
        // Past the scheduler: a step of it looks at all hosts.
        let session = Session { number: u64::from(n) + 1, instance: Instance(0), address: LOCAL };
        let told = fleet::Told { facts, labels: BTreeMap::new() };
        hosts.scheduler.fleet.connected(&n.to_string(), session, told, &[], |_| false, Duration::ZERO);
    }
    let all: Vec<usize> = (0..COUNT as usize).collect();
    let began = std::time::Instant::now();
    let plans = hosts.scheduler.fleet.for_a_plan(&all);
    let took = began.elapsed();
    let given: BTreeSet<_> =
        plans.iter().filter_map(|host| host.virtual_address).map(|at| at.address).collect();
    assert_eq!(given.len(), COUNT as usize, "some have the same, or none");
    assert!(given.iter().all(|address| range.contains(*address)));
    assert_eq!(hosts.scheduler.fleet.for_a_plan(&all), plans, "each keeps its own");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// It may still be asking its host for facts, which takes a while where guests stand still.
#[test]
fn an_agent_that_has_not_come_yet_is_waited_for_as_long_as_that_may_take() {
    let policy = Policy { arrival: Duration::from_secs(75), ..POLICY };
    let mut fleet = Fleet::new(false);
    let host = fleet.expect("host-1", Duration::ZERO);
    let at = |seconds| fleet.availability(host, policy, Duration::from_secs(seconds));
    assert!(matches!(at(75), Availability::Later));
    assert!(matches!(at(76), Availability::Overdue(_)));
}
