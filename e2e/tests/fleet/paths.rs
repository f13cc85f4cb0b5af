//! What lies between two hosts: a path that carries control messages and no data, NICs of different MTUs, a router.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::campaigns::{NATIVE, VIRTIO, fleet_campaign};
use toll_e2e::fleet::{Fleet, LIMIT, no_fleet, shell};
use toll_e2e::machine::{no_iperf3, no_kvm, no_tun, wait_for};
use toll_e2e::programs::expect;
use toll_e2e::prometheus::get;
use toll_e2e::suite::test;
use toll_protocol::result::{CampaignResult, Run};
use toll_protocol::service::CampaignState;

use crate::measuring::on;

const IPERF3: &str = "{name: native, native: {program: iperf3}}";

pub fn tests() -> Vec<Trial> {
    let lacks = [no_fleet(), no_kvm(), no_tun()];
    vec![
        test("a_path_that_carries_no_data_is_a_failure_and_no_zero", &[no_fleet(), no_iperf3()], dead_path),
        test("nics_of_different_mtus_are_told_once_and_measured_at_one_that_is_asked_for", &lacks, mtus),
        test("a_nics_facts_are_those_of_the_trial", &lacks[..1], facts),
        test("hosts_of_different_networks_measure_each_other", &lacks, || {
            routed("ip route add default via 10.92.0.254")
        }),
        test("hosts_that_route_by_source_measure_each_other", &lacks, || {
            routed(
                "ip route add 10.91.0.254 via 10.92.0.254; ip route add default via 10.92.0.254 table 100; \
                 ip rule add from 10.92.0.0/24 table 100",
            )
        }),
    ]
}

fn runs(result: &CampaignResult) -> impl Iterator<Item = &Run> {
    result.cells.iter().flat_map(|cell| &cell.runs)
}

/// Small segments pass the bridge, whole ones don't: `gso_max_segs 1` makes a host send frames of its own MTU, which a
/// port with a smaller one drops (net/core/dev.c, `__is_skb_forwardable`).
fn dead_path() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        for host in &fleet.hosts {
            shell(&host.namespace, "ip link set eth0 gso_max_segs 1")?;
        }
        shell(&fleet.wire, "ip link set port1 mtu 1300; ip link set port2 mtu 1300")?;
        let file = fleet.path("dead.yaml");
        std::fs::write(&file, fleet_campaign(&[IPERF3], 1, "1s", "pairs: all"))?;
        let watched = fleet.run(["submit".as_ref(), "--watch".as_ref(), file.as_os_str()])?;
        ensure!(watched.status.code() == Some(4), "{watched:?}");
        let id = fleet.campaigns()?.pop().context("a campaign")?.id;
        let (result, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.failed == 2 && counts.planned == 2, "{counts:?}");
        for run in runs(&result) {
            let reason = run.reason.as_deref().context("a reason")?;
            ensure!(reason.contains("no payload arrived in the measured interval of"), "{reason}");
        }
        let metrics = get(&fleet.wire_path(), "http://127.0.0.1:8080/metrics", &[])?;
        let failed = metrics
            .lines()
            .any(|line| line.starts_with("toll_trials_ended_total") && line.contains("failed"));
        ensure!(failed, "{metrics}");
        let figure = metrics.lines().find(|line| line.starts_with("toll_cell_goodput"));
        ensure!(figure.is_none(), "{figure:?}");
        fleet.nothing_left()
    })
}

fn set_mtu(fleet: &Fleet, index: usize, mtu: u32) -> Result<()> {
    shell(&fleet.hosts[index].namespace, &format!("ip link set eth0 mtu {mtu}")).map(drop)
}

/// Campaigns on NICs of 1400 and 1500 bytes: without a word on it none is begun, and the reason says what to write; with
/// that, every arm is measured, in packets of that size.
fn mtus() -> Result<()> {
    let mut fleet = Fleet::new(2)?;
    set_mtu(&fleet, 0, 1400)?;
    fleet.start_orchestrator(&[])?;
    for index in 0..2 {
        fleet.start_agent(index, &[])?;
    }
    fleet.wait_for_agents(2)?;
    on(fleet, |fleet| {
        let campaign = fleet_campaign(&[NATIVE, VIRTIO], 1, "300ms", "pairs: all");
        let id = fleet.submit(&campaign)?;
        let status = wait_for("the end of the campaign", LIMIT, || {
            Ok(Some(fleet.status(&id)?).filter(|status| status.state.is_over()))
        })?;
        ensure!(status.state == CampaignState::Refused, "{status:?}");
        let reason = status.reason.context("a reason")?;
        ensure!(reason.contains("host-1 1400") && reason.contains("host-2 1500"), "{reason}");
        ensure!(reason.contains("mtu: 1400"), "{reason}");
        for question in ["watch", "results", "status"] {
            let said = fleet.run([question, &id])?;
            expect(&said, if question == "status" { 0 } else { 5 })?;
            let text = format!("{}{}", String::from_utf8(said.stdout)?, String::from_utf8(said.stderr)?);
            ensure!(text.contains("refused") && text.contains("mtu: 1400"), "{question}: {text}");
        }
        // Metrics are taken anew once a second.
        wait_for("the metrics", LIMIT, || {
            let metrics = get(&fleet.wire_path(), "http://127.0.0.1:8080/metrics", &[])?;
            let is_told = |line: &str| metrics.lines().any(|told| told == line);
            let told = is_told(r#"toll_campaigns{state="refused"} 1"#)
                && is_told(r#"toll_campaigns{state="cancelled"} 0"#);
            Ok(told.then_some(()))
        })?;

        let asked = |mtu: u32| campaign.replace("{select: {}}", &format!("{{select: {{}}, mtu: {mtu}}}"));
        let id = fleet.submit(&asked(1400))?;
        let (result, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(
            counts.measured == counts.planned && counts.planned == 6,
            "{counts:?} {:?}",
            reasons(&result)
        );
        ensure!(result.provenance.mtu == Some(1400), "{:?}", result.provenance.mtu);

        let id = fleet.submit(&asked(1500))?;
        let status = wait_for("the end of the campaign", LIMIT, || {
            Ok(Some(fleet.status(&id)?).filter(|status| status.state.is_over()))
        })?;
        let reason = status.reason.context("a reason")?;
        ensure!(
            reason.contains("host-1") && reason.contains("1400") && !reason.contains("host-2"),
            "{reason}"
        );
        fleet.nothing_left()
    })
}

fn reasons(result: &CampaignResult) -> BTreeSet<&str> {
    runs(result).filter_map(|run| run.reason.as_deref()).collect()
}

/// An MTU that is changed while agents are connected: the next campaign is planned with it, and says so.
fn facts() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        for index in 0..2 {
            set_mtu(fleet, index, 1400)?;
        }
        wait_for("the agents' word on their NICs", LIMIT, || {
            let mtus: Vec<_> =
                fleet.agents()?.into_iter().filter_map(|agent| Some(agent.facts.nic?.mtu)).collect();
            Ok((mtus == [1400, 1400]).then_some(()))
        })?;
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 1, "300ms", "pairs: all"))?;
        let (result, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured == counts.planned, "{counts:?} {:?}", reasons(&result));
        ensure!(result.provenance.mtu == Some(1400), "{:?}", result.provenance.mtu);
        for host in &result.provenance.hosts {
            let mtu = host.facts.nic.as_ref().map(|nic| nic.mtu);
            ensure!(mtu == Some(1400), "{}: {mtu:?}", host.name);
        }
        Ok(())
    })
}

/// Two hosts with a router between them, each in a network of its own; `way` is how the second one finds the first.
fn routed(way: &str) -> Result<()> {
    let mut fleet = Fleet::new(2)?;
    let router = "ip addr flush dev wire0; ip addr add 10.91.0.254/24 dev wire0; sysctl -qw net.ipv4.ip_forward=1; \
                  ip link set port2 nomaster; ip addr add 10.92.0.254/24 dev port2";
    shell(&fleet.wire, router)?;
    let there = format!("ip addr flush dev eth0; ip addr add 10.92.0.2/24 dev eth0; {way}");
    shell(&fleet.hosts[1].namespace, &there)?;
    fleet.start_orchestrator(&[])?;
    fleet.start_agent(0, &[])?;
    fleet.start_agent_in(1, "10.92.0.101-10.92.0.150")?;
    fleet.wait_for_agents(2)?;
    on(fleet, |fleet| {
        let id = fleet.submit(&fleet_campaign(&[NATIVE, VIRTIO], 1, "300ms", "pairs: all"))?;
        let (result, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(
            counts.measured == counts.planned && counts.planned == 6,
            "{counts:?} {:?}",
            reasons(&result)
        );
        fleet.nothing_left()
    })
}
