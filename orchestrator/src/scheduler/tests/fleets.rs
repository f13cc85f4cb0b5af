//! Fleets: agents that come back, an orchestrator that is killed, several campaigns, cordoned nodes.

use toll_protocol::campaign::Select;

use super::*;

/// A lost connection ends nothing: the agent hands its result in when it is back.
#[test]
fn a_trial_outlives_a_lost_connection() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    fleet.first_trial();
    fleet.run_until(fleet.clock + 500_000);
    fleet.agents.get_mut("host-1").expect("an agent").connected = false;
    fleet.happens(1, Happening::Lost("host-1".into()));
    fleet.happens(8_000, Happening::Reconnect("host-1".into()));
    fleet.run();
    assert_eq!(fleet.outcomes(is_measured), fleet.plan().trials.len());
}

#[test]
fn an_agent_that_has_forgotten_its_trial_loses_it_at_once() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    let first = fleet.first_trial();
    fleet.run_until(fleet.clock + 500_000);
    let agent = fleet.agents.get_mut("host-1").expect("an agent");
    agent.held.clear();
    agent.instance += 1;
    fleet.happens(1, Happening::Reconnect("host-1".into()));
    fleet.run();
    let Outcome::Lost { reason } = &fleet.records[&first].outcome else { panic!("it is lost") };
    assert!(reason.contains("host-1 has forgotten it: the agent had to be started again"), "{reason}");
    assert_eq!(fleet.outcomes(is_measured), fleet.plan().trials.len() - 1);
}

#[test]
fn an_agent_that_stays_away_loses_its_trial_and_gets_no_other() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    let first = fleet.first_trial();
    fleet.run_until(fleet.clock + 500_000);
    fleet.agents.get_mut("host-1").expect("an agent").connected = false;
    fleet.happens(1, Happening::Lost("host-1".into()));
    fleet.run();
    let Outcome::Lost { reason } = &fleet.records[&first].outcome else { panic!("it is lost") };
    assert!(reason.contains("host-1 was lost for over 10 s"), "{reason}");
    assert!(fleet.clock < 25_000_000, "{} us", fleet.clock);
}

/// What it holds of a trial that was given up is torn down before it gets another.
#[test]
fn a_late_result_changes_nothing_and_is_acknowledged() {
    let mut fleet = fleet(3, 1, 1, NO_FAULTS);
    let first = fleet.first_trial();
    fleet.run_until(fleet.clock + 500_000);
    fleet.agents.get_mut("host-1").expect("an agent").connected = false;
    fleet.happens(1, Happening::Lost("host-1".into()));
    fleet.happens(20_000, Happening::Reconnect("host-1".into()));
    fleet.run();
    assert!(is_lost(&fleet.records[&first].outcome));
    let said: Vec<&ToAgent> = fleet
        .sent
        .iter()
        .filter(|(host, _)| host == "host-1")
        .map(|(_, message)| message)
        .filter(|message| match message {
            ToAgent::Acknowledged { trial } | ToAgent::Teardown { trial } => *trial == first,
            _ => false,
        })
        .collect();
    assert!(said.contains(&&ToAgent::Acknowledged { trial: first }), "{said:?}");
    assert!(said.contains(&&ToAgent::Teardown { trial: first }), "{said:?}");
    assert_eq!(fleet.outcomes(is_measured), fleet.plan().trials.len() - 1);
}

#[test]
fn a_killed_orchestrator_takes_the_running_trials_up_again() {
    for at in [200_000, 1_000_000, 2_550_000, 2_700_000, 4_000_000] {
        let mut fleet = fleet(4, 2, 1, NO_FAULTS);
        fleet.first_trial();
        fleet.run_until(fleet.clock + at);
        fleet.restarts(Policy { limit: 2, ..POLICY });
        fleet.run();
        let planned = fleet.plan().trials.len();
        assert_eq!(fleet.records.len(), planned);
        assert_eq!(fleet.outcomes(is_measured), planned, "killed after {at} us");
    }
}

/// `kill -9` between Start for one end and Start for the other.
#[test]
fn a_trial_of_which_one_end_was_started_is_started_whole() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    let first = fleet.first_trial();
    let ready = |fleet: &Simulation| {
        fleet.agents.values().filter(|agent| matches!(agent.held.get(&first), Some(Held::Ready(_)))).count()
    };
    while ready(&fleet) < 2 {
        fleet.run_until(fleet.clock + 500);
    }
    // The listener alone has heard it.
    let address = std::net::SocketAddrV4::new([10, 77, 0, 100].into(), 5201);
    fleet.agent("host-1", &ToAgent::Start { trial: first, peer: address });
    fleet.restarts(POLICY);
    // They are back before the listener gives up.
    for happening in fleet.events.iter_mut().flatten() {
        if matches!(happening, Happening::Reconnect(_)) {
            *happening = Happening::Event(Event::Tick);
        }
    }
    for (host, delay) in [("host-0", 100), ("host-1", 200)] {
        fleet.happens(delay, Happening::Reconnect(host.into()));
    }
    fleet.run();
    assert_eq!(fleet.outcomes(is_measured), fleet.plan().trials.len());
}

#[test]
fn two_campaigns_share_the_fleet_and_no_host() {
    let mut fleet = fleet(4, 8, 1, NO_FAULTS);
    fleet.submit(NewCampaign { id: "d".into(), ..new_campaign("c", 4) });
    fleet.run();
    let planned = fleet.plan().trials.len();
    assert_eq!(fleet.outcomes(is_measured), 2 * planned);
    assert_eq!(fleet.finished.len(), 2);
}

pub(super) fn selecting(at_least: u32) -> NewCampaign {
    let labels = BTreeMap::new();
    NewCampaign { hosts: Hosts::Select(Select { labels, at_least }), ..new_campaign("c", 2) }
}

pub(super) fn with_nic(last: u8, guests: &str) -> Box<HostFacts> {
    let nic = NicFacts {
        address: Some(InterfaceAddress { address: [10, 1, 0, last].into(), prefix: 24 }),
        ..NicFacts::new("eth0", 1500)
    };
    let guest_addresses = guests.parse().ok();
    Box::new(HostFacts { nic: Some(nic), wire: Some(Wire::Macvtap), guest_addresses, ..*usable() })
}

#[test]
fn a_campaign_waits_for_its_hosts_and_each_guest_has_an_address_of_its_own() {
    let mut fleet =
        Simulation::new(Policy { limit: 9, settle: Duration::from_secs(2), ..POLICY }, 1, NO_FAULTS);
    fleet.submit(selecting(3));
    for (n, delay) in [(1, 10), (2, 20), (3, 4_000), (4, 5_000)] {
        fleet.agent_comes(delay, &format!("node-{n}"), with_nic(n, "10.1.0.2-10.1.0.8"));
    }
    for tick in 1..60 {
        fleet.at(tick * 100, Event::Tick);
    }
    fleet.run_until(3_500_000);
    assert!(fleet.plans.is_empty());
    let why = fleet.scheduler.waits_for("c").expect("it waits");
    assert_eq!(why, "it waits for hosts: 2 of at least 3 that it selects are there");
    fleet.run();
    let (plan, hosts) = &fleet.plans["c"];
    assert_eq!(hosts.len(), 4, "the fourth came before the fleet had settled");
    let addresses: BTreeSet<_> = hosts
        .iter()
        .filter_map(|host| host.virtual_address)
        .collect::<Vec<_>>()
        .into_iter()
        .map(|address| address.address)
        .collect();
    assert_eq!(addresses.len(), 4, "{hosts:?}");
    assert!(
        addresses.iter().all(|address| address.octets()[3] > 4),
        "a guest has a host's address: {hosts:?}"
    );
    assert_eq!(fleet.outcomes(is_measured), plan.trials.len());
}

#[test]
fn without_guest_addresses_native_runs_and_guests_are_skipped_with_the_reason() {
    let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
    fleet.submit(selecting(2));
    for n in 1..=2 {
        fleet.agent_comes(10, &format!("node-{n}"), with_nic(n, ""));
    }
    fleet.run();
    for record in fleet.records.values() {
        match &record.outcome {
            Outcome::Measured { .. } => assert_eq!(record.cell.arm, "native"),
            Outcome::Skipped { reason } => assert!(reason.contains("--guest-addresses"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_port_that_the_host_does_not_offer_is_not_replaced() {
    let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
    let text = CAMPAIGN.replace("adapter: {virtioNet: {}}", "adapter: {virtioNet: {}}, port: {tap: {}}");
    fleet.submit(NewCampaign { campaign: campaign(&text), ..selecting(2) });
    for n in 1..=2 {
        fleet.agent_comes(10, &format!("node-{n}"), with_nic(n, "10.1.0.100-10.1.0.120"));
    }
    fleet.run();
    let skipped = fleet.records.values().filter(|record| record.cell.arm == "virtio");
    for record in skipped {
        let Outcome::Skipped { reason } = &record.outcome else { panic!("{record:?}") };
        assert!(reason.contains("port tap") && reason.contains("wire is macvtap"), "{reason}");
    }
}

fn cordoned(name: &str) -> BTreeMap<String, crate::service::handle::Node> {
    let barred = Some("the node is cordoned".to_owned());
    BTreeMap::from([(name.to_owned(), crate::service::handle::Node { barred, ..Default::default() })])
}

#[test]
fn a_cordoned_node_gets_no_trials_and_the_others_go_on() {
    let mut fleet = fleet(3, 8, 1, NO_FAULTS);
    fleet.first_trial();
    fleet.at(100, Event::Nodes(cordoned("host-2")));
    fleet.run();
    for record in fleet.records.values() {
        let on_it = record.cell.pair.a == "host-2" || record.cell.pair.b == "host-2";
        match &record.outcome {
            // The one that was under way when the node was cordoned.
            Outcome::Measured { .. } => {}
            Outcome::Skipped { reason } => {
                assert!(on_it && reason.contains("host-2: the node is cordoned"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(fleet.outcomes(|outcome| matches!(outcome, Outcome::Skipped { .. })) > 0);
}

#[test]
fn nothing_begins_before_a_cluster_has_told_of_its_nodes() {
    let mut fleet = Simulation::new(Policy { cluster: true, ..POLICY }, 1, NO_FAULTS);
    for host in ["host-0", "host-1"] {
        fleet.agent_comes(0, host, with_nic(1 + host.as_bytes()[5] - b'0', "10.1.0.100-10.1.0.120"));
    }
    fleet.submit(selecting(2));
    fleet.run_until(5_000_000);
    assert!(fleet.plans.is_empty(), "planned on nodes that may be cordoned");
    let barred = fleet.scheduler.agents(fleet.now()).into_iter().map(|agent| agent.reason);
    assert!(barred.flatten().all(|why| why.contains("has not told of its nodes")));
    fleet.at(1, Event::Nodes(BTreeMap::new()));
    fleet.run();
    assert_eq!(fleet.outcomes(is_measured), fleet.plan().trials.len());
}

#[test]
fn a_campaign_too_large_for_the_fleet_that_is_there_ends_with_the_reason() {
    let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
    for host in 0..40 {
        fleet.agent_comes(0, &format!("host-{host}"), with_nic(host, "10.0.0.100-10.0.0.200"));
    }
    let mut large = selecting(2);
    large.campaign.blocks = 1000;
    fleet.submit(large);
    fleet.run();
    let reason = fleet.refusal();
    assert!(reason.contains("trials on 40 hosts; at most 100000"), "{reason}");
    assert!(fleet.plans.is_empty() && fleet.records.is_empty());
}

#[test]
fn a_host_that_is_gone_for_an_hour_is_forgotten() {
    let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
    fleet.waiting = 1;
    fleet.agent_comes(0, "host-0", usable());
    fleet.happens(1_000, Happening::Lost("host-0".into()));
    fleet.at(3_590_000, Event::Tick);
    fleet.run_until(3_591_000_000);
    assert_eq!(fleet.scheduler.agents(fleet.now()).len(), 1, "it may come back");
    fleet.at(20_000, Event::Tick);
    fleet.run_until(3_620_000_000);
    assert!(fleet.scheduler.agents(fleet.now()).is_empty());
}

#[test]
fn a_campaign_whose_ledger_fails_frees_its_hosts() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    let first = fleet.first_trial();
    fleet.run_until(fleet.clock + 500_000);
    fleet.at(1, Event::Abandon { campaign: "c".into() });
    let next = NewCampaign { id: "d".into(), ..new_campaign("d", 2) };
    fleet.happens(10, Happening::Event(Event::Submit(Box::new(next))));
    fleet.run();
    assert!(!fleet.records.contains_key(&first), "nobody keeps it");
    assert!(!fleet.finished.contains_key("c"));
    assert_eq!(fleet.finished.get("d"), Some(&Ending::Finished), "the hosts were not freed");
}

/// An agent that comes and goes keeps its trial, but not for ever.
#[test]
fn an_agent_that_comes_and_goes_does_not_hold_its_peer_for_ever() {
    let mut fleet = fleet(2, 1, 1, Faults { silent: 1000, ..NO_FAULTS });
    let first = fleet.first_trial();
    for second in (1..600).step_by(8) {
        fleet.happens(second * 1000, Happening::Lost("host-1".into()));
        fleet.happens(second * 1000 + 7_000, Happening::Reconnect("host-1".into()));
    }
    for second in 1..400 {
        fleet.at(second * 1000, Event::Tick);
    }
    fleet.run_until(fleet.clock + 300_000_000);
    assert!(fleet.records.contains_key(&first), "it holds host-0 after five minutes");
}

#[test]
fn an_uncordoned_node_goes_on() {
    let mut fleet = fleet(2, 8, 1, NO_FAULTS);
    fleet.first_trial();
    fleet.at(100, Event::Nodes(cordoned("host-1")));
    fleet.at(9_000, Event::Nodes(BTreeMap::new()));
    fleet.run();
    assert_eq!(fleet.outcomes(is_measured), fleet.plan().trials.len());
}

#[test]
fn a_trial_prepares_anew_with_an_agent_that_was_started_again() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    fleet.first_trial();
    fleet.run_until(fleet.clock + 4_000);
    fleet.agents.get_mut("host-0").expect("an agent").held.clear();
    fleet.happens(0, Happening::Reconnect("host-0".into()));
    fleet.run();
    assert_eq!(fleet.outcomes(is_measured), fleet.plan().trials.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn whatever_agents_do_every_trial_is_recorded_once_and_the_campaign_ends(
        seed: u64, hosts in 2_u8..6, limit in 1_usize..4,
        fails in 0_u32..300, silent in 0_u32..60, vanishes in 0_u32..60, dirty in 0_u32..40,
        kills in proptest::collection::vec(0_i64..40_000_000, 0..4), cancel in proptest::option::of(0_u64..60_000),
        hub: bool,
    ) {
        let policy = Policy { limit, ..POLICY };
        let mut fleet = fleet(hosts, limit, seed, Faults { fails, silent, vanishes, dirty });
        fleet.submit(if hub { with_a_hub("d", hosts) } else { new_campaign("d", hosts) });
        if let Some(at) = cancel {
            fleet.at(at, Event::Cancel { campaign: "d".into(), reason: "no more".into() });
        }
        for tick in 1..400 {
            fleet.at(tick * 1000, Event::Tick);
        }
        let mut kills = kills;
        kills.sort_unstable();
        // Campaigns whose plan is not durable are not the scheduler's to resume.
        fleet.run_until(20_000);
        for kill in kills {
            if fleet.run_until(kill.max(20_000)) {
                break;
            }
            fleet.restarts(policy);
        }
        fleet.run();
        let planned: BTreeSet<TrialId> = fleet
            .plans
            .values()
            .flat_map(|(plan, _)| plan.trials.iter().map(|trial| trial.id))
            .collect();
        let recorded: BTreeSet<TrialId> = fleet.records.keys().copied().collect();
        prop_assert_eq!(planned, recorded);
        prop_assert!(fleet.scheduler.flights.is_empty());
    }
}
