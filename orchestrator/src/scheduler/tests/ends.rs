//! Where ends are, and what lies between them: agents that lie about it, NICs that differ or change.

use super::fleets::{selecting, with_nic};
use super::*;

fn failed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed { .. })
}

#[test]
fn an_end_that_is_not_where_its_host_is_fails_and_nobody_is_sent_there() {
    for stray in ["127.0.0.1", "10.77.0.200", "169.254.169.254"] {
        let mut fleet = fleet(2, 1, 1, NO_FAULTS);
        fleet.stray = Some(stray.parse().expect("an address"));
        fleet.run();
        assert_eq!(fleet.outcomes(failed), fleet.plan().trials.len());
        for record in fleet.records.values() {
            let Outcome::Failed { failure, .. } = &record.outcome else { panic!("{record:?}") };
            assert!(
                failure.reason.contains(stray) && failure.reason.contains("nobody is sent there"),
                "{failure:?}"
            );
        }
        assert!(!fleet.sent.iter().any(|(_, message)| matches!(message, ToAgent::Start { .. })));
    }
}

#[test]
fn each_end_is_told_where_the_other_is_before_it_is_up() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    fleet.run();
    let mut peers = BTreeSet::new();
    for (_, message) in &fleet.sent {
        if let ToAgent::Prepare { end, .. } = message {
            peers.insert(end.peer.expect("a peer").octets()[3]);
        }
    }
    // Two NICs and two guests.
    assert_eq!(peers, BTreeSet::from([1, 2, 100, 101]));
}

#[test]
fn a_host_that_tells_an_address_that_is_none_gets_no_peer() {
    for address in ["127.0.0.1/8", "169.254.1.1/16", "224.0.0.1/24", "10.77.0.1/24", "10.77.0.255/16"] {
        let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
        fleet.submit(new_campaign("c", 2));
        fleet.agent_comes(10, "host-0", usable());
        let nic = NicFacts { address: address.parse().ok(), ..nic("host-1") };
        fleet.agent_comes(10, "host-1", Box::new(HostFacts { nic: Some(nic), ..*usable() }));
        fleet.run();
        let native = fleet.records.values().filter(|record| record.cell.arm == "native");
        for record in native {
            let Outcome::Skipped { reason } = &record.outcome else { panic!("{address}: {record:?}") };
            let place = address.split('/').next().expect("an address");
            assert!(reason.contains(place) && reason.contains("host-1"), "{reason}");
        }
    }
}

#[test]
fn a_receiver_without_a_byte_has_failed_whatever_its_agent_calls_it() {
    let mut fleet = fleet(2, 1, 1, NO_FAULTS);
    fleet.bytes = 0;
    fleet.run();
    assert_eq!(fleet.outcomes(failed), fleet.plan().trials.len());
}

impl Simulation {
    /// Why the only campaign was refused.
    pub(super) fn refusal(&self) -> &str {
        let Some(Ending::Refused(why)) = self.finished.get("c") else { panic!("{:?}", self.finished) };
        why
    }
}

fn on_mtus(mtus: [u32; 2], asked: Option<u16>) -> Simulation {
    let mut fleet = Simulation::new(POLICY, 1, NO_FAULTS);
    for (n, mtu) in (1..).zip(mtus) {
        let mut facts = with_nic(n, "10.1.0.100-10.1.0.120");
        facts.nic.as_mut().expect("a NIC").mtu = mtu;
        fleet.agent_comes(0, &format!("node-{n}"), facts);
    }
    let mut campaign = selecting(2);
    campaign.campaign.mtu = asked;
    fleet.submit(campaign);
    fleet
}

#[test]
fn nics_of_different_mtus_are_told_once_with_what_to_write() {
    let mut fleet = on_mtus([1400, 1500], None);
    fleet.run();
    let why = fleet.refusal();
    assert!(why.contains("node-1 1400, node-2 1500") && why.contains("`mtu: 1400`"), "{why}");
    assert!(fleet.records.is_empty());

    let mut fleet = on_mtus([1400, 1500], Some(1500));
    fleet.run();
    let why = fleet.refusal();
    assert!(why.contains("(node-1 1400)"), "{why}");

    let mut fleet = on_mtus([1400, 9000], Some(1400));
    fleet.run();
    assert_eq!(fleet.outcomes(is_measured), fleet.plan().trials.len());
    assert!(fleet.plan().cells.iter().all(|cell| cell.a.mtu == 1400 && cell.b.mtu == 1400));
}

#[test]
fn a_nic_that_has_changed_is_planned_with_as_it_is() {
    let mut fleet = on_mtus([1500, 1500], None);
    fleet.run_until(100_000);
    for n in [1, 2] {
        let mut nic = with_nic(n, "").nic.expect("a NIC");
        nic.mtu = 1400;
        let message = FromAgent::Nic { nic: Some(Box::new(nic)) };
        fleet.at(1, Event::Agent { host: format!("node-{n}"), message });
    }
    fleet.at(5, Event::Submit(Box::new(NewCampaign { id: "d".into(), ..selecting(2) })));
    fleet.waiting += 1;
    fleet.run();
    let (plan, _) = &fleet.plans["d"];
    assert!(plan.cells.iter().all(|cell| cell.a.mtu == 1400));
    // What no kernel says of an interface is not kept.
    let mut nic = with_nic(1, "").nic.expect("a NIC");
    nic.offloads = vec!["tx".into(); 100_000];
    let message = FromAgent::Nic { nic: Some(Box::new(nic)) };
    fleet.scheduler.step(Event::Agent { host: "node-1".into(), message }, fleet.now());
    assert_eq!(fleet.scheduler.facts("node-1").expect("facts").nic, None);
}
