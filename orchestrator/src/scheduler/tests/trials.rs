//! Trials of one campaign: their order, what hosts lack, what fails.

use super::*;

#[test]
fn without_faults_every_trial_is_measured_in_the_plans_order() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    fleet.run();
    let plan = fleet.plan();
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
    let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
    fleet.submit(new_campaign("c", 2));
    for host in host_plans(2) {
        fleet.agent_comes(
            10,
            &host.name,
            facts(KvmFact::Unusable { reason: "there is no /dev/kvm".into(), last_words: Vec::new() }),
        );
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

/// The campaign with its guest arm pinned.
fn pinned(cpu: u32) -> NewCampaign {
    let guest = "guest: {os: payload, adapter: {virtioNet: {}}";
    let text = CAMPAIGN.replace(guest, &format!("{guest}, pin: {{vcpu: {cpu}}}"));
    NewCampaign { campaign: campaign(&text), ..new_campaign("c", 2) }
}

#[test]
fn an_arm_pinned_to_a_cpu_that_the_host_does_not_have_is_skipped_with_the_reason() {
    let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
    fleet.submit(pinned(3));
    for host in host_plans(2) {
        fleet.agent_comes(10, &host.name, usable());
    }
    fleet.run();
    for record in fleet.records.values() {
        match &record.outcome {
            Outcome::Measured { .. } => assert_eq!(record.cell.arm, "native"),
            Outcome::Skipped { reason } => {
                assert_eq!(
                    reason,
                    "host-0: the arm is pinned to CPU 3 of the host, which has 1 (the first is 0)"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_arm_is_pinned_to_a_cpu_of_its_own_host() {
    let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
    fleet.submit(pinned(1));
    for (host, cpus) in host_plans(2).into_iter().zip([vec![0, 1], vec![6, 7]]) {
        fleet.agent_comes(10, &host.name, Box::new(HostFacts { cpus, ..*usable() }));
    }
    fleet.run();
    let mut pinned = 0;
    for (host, message) in &fleet.sent {
        if let ToAgent::Prepare { end, .. } = message
            && let Some(cpu) = end.cpu
        {
            assert_eq!(cpu, if host == "host-0" { 1 } else { 7 });
            pinned += 1;
        }
    }
    assert!(pinned > 0);
    assert_eq!(fleet.outcomes(is_measured), fleet.plan().trials.len());
}

#[test]
fn a_host_that_never_comes_costs_its_grace_and_no_more() {
    let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
    fleet.submit(new_campaign("c", 2));
    fleet.agent_comes(10, "host-0", usable());
    fleet.run();
    assert!(fleet.records.values().all(|record| matches!(record.outcome, Outcome::Skipped { .. })));
    assert!(fleet.clock < 15_000_000, "{} us", fleet.clock);
}

#[test]
fn cancel_ends_the_campaign_and_keeps_what_was_measured() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    fleet.at(9_000, Event::Cancel { campaign: "c".into(), reason: "the campaign was interrupted".into() });
    fleet.run();
    assert!(fleet.outcomes(is_measured) >= 2 && fleet.outcomes(is_lost) == 1);
    assert_eq!(fleet.records.len(), fleet.plan().trials.len());
    assert!(fleet.clock < 11_000_000);
    assert_eq!(fleet.finished["c"], Ending::Cancelled("the campaign was interrupted".into()));
}

#[test]
fn both_ends_of_a_broken_connection_are_heard() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    let first = fleet.first_trial();
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
    let first = fleet.first_trial();
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
    let first = fleet.first_trial();
    let message = FromAgent::Failed { trial: first, failure: Failure::new("forged") };
    fleet.at(100, Event::Agent { host: "host-3".into(), message });
    fleet.run();
    assert!(matches!(fleet.records[&first].outcome, Outcome::Measured { .. }));
}

/// Both ends on the first host of the pair, each under an id of its own, and nothing on the second.
#[test]
fn a_trial_with_both_ends_on_one_host_asks_nothing_of_the_other() {
    let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
    fleet.submit(with_a_hub("c", 2));
    for host in host_plans(2) {
        fleet.agent_comes(10, &host.name, usable());
    }
    fleet.run();
    assert_eq!(fleet.outcomes(is_measured), fleet.plan().trials.len());
    let hubs: BTreeSet<TrialId> =
        fleet.records.values().filter(|record| record.cell.arm == "hub").map(|record| record.trial).collect();
    assert_eq!(hubs.len(), 2 * 3, "two directions, three blocks");
    let mut prepared: BTreeMap<TrialId, Vec<(TrialId, std::net::Ipv4Addr)>> = BTreeMap::new();
    for (host, message) in &fleet.sent {
        if let ToAgent::Prepare { trial, end } = message
            && hubs.contains(&trial.near())
        {
            assert_eq!(host, "host-0");
            prepared.entry(trial.near()).or_default().push((*trial, end.address.address));
        }
    }
    for (trial, ends) in &prepared {
        assert_eq!(ends.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [*trial, trial.far()]);
        assert_ne!(ends[0].1, ends[1].1);
    }
    assert_eq!(prepared.len(), hubs.len());
}
