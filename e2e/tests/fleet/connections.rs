//! Who may speak, and connections that break: the orchestrator killed, certificates of others, another version.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use toll_e2e::campaigns::{NATIVE, VIRTIO, fleet_campaign};
use toll_e2e::fleet::{Fleet, LIMIT, no_fleet, shell};
use toll_e2e::machine::{no_kvm, no_tun, wait_for};

use crate::measuring::on;
use toll_e2e::suite::test;

pub fn tests() -> Vec<Trial> {
    let lacks = [no_fleet(), no_kvm(), no_tun()];
    vec![
        test("an_orchestrator_that_stands_still_beyond_the_timeouts", &lacks, orchestrator_stands_still),
        test("a_stopped_orchestrator_goes_on_where_it_was", &lacks[..1], stop_orchestrator),
        test("a_certificate_of_another_authority_is_refused_both_ways", &lacks[..1], wrong_certificate),
        test("an_agent_under_another_name_than_its_certificates_is_refused", &lacks[..1], wrong_name),
        test("a_copy_of_a_host_is_refused_while_the_host_answers", &lacks[..1], copied_host),
        test("a_fleet_certificate_speaks_for_any_host", &lacks[..1], fleet_certificate),
    ]
}

/// An orchestrator that is stopped until its agents have lost it.
fn orchestrator_stands_still() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&fleet_campaign(&[NATIVE, VIRTIO], 1, "300ms", "pairs: all"))?;
        wait_for("a trial", LIMIT, || Ok((!fleet.status(&id)?.running.is_empty()).then_some(())))?;
        let orchestrator = fleet.orchestrator.as_ref().context("it runs")?;
        orchestrator.signal(Signal::SIGSTOP)?;
        wait_for("the loss", LIMIT, || {
            let lost = |index| Ok::<_, anyhow::Error>(fleet.agent_log(index)?.contains("timed out"));
            Ok((lost(0)? && lost(1)?).then_some(()))
        })?;
        orchestrator.signal(Signal::SIGCONT)?;
        let (_, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured == counts.planned, "{counts:?}");
        fleet.nothing_left()
    })
}

fn stop_orchestrator() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 8, "300ms", "pairs: all"))?;
        wait_for("a result", LIMIT, || {
            Ok(fleet.status(&id)?.counts.is_some_and(|counts| counts.measured > 0).then_some(()))
        })?;
        let mut orchestrator = fleet.orchestrator.take().context("it runs")?;
        orchestrator.signal(Signal::SIGTERM)?;
        ensure!(orchestrator.end()? == Some(0), "SIGTERM is no fault");
        fleet.start_orchestrator(&[])?;
        let (_, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured == counts.planned, "{counts:?}");
        // One that is over is still known to the next process.
        fleet.orchestrator.take().context("it runs")?.kill()?;
        fleet.start_orchestrator(&[])?;
        ensure!(fleet.status(&id)?.counts == status.counts);
        Ok(())
    })
}

fn wrong_certificate() -> Result<()> {
    let mut fleet = Fleet::new(2)?;
    let other = fleet.path("other");
    let other = other.to_str().context("UTF-8")?.to_owned();
    fleet.toll(["pki", "init", "--dir", &other])?;
    fleet.toll(["pki", "issue", "host-1", "--dir", &other])?;
    fleet.start_orchestrator(&[])?;
    fleet.start_agent_with(0, &fleet.path("other/host-1"), &[])?;
    fleet.start_agent(1, &[])?;
    fleet.wait_for_agents(1)?;
    on(fleet, |fleet| {
        let log = fleet.hosts[0].agent.as_ref().context("an agent")?.log.clone();
        wait_for("the refusal in the agent's log", LIMIT, || {
            let text = std::fs::read_to_string(&log)?;
            Ok(text.contains("certificate").then_some(()))
        })?;
        let agents = fleet.agents()?;
        ensure!(agents.len() == 1 && agents[0].name == "host-2", "{agents:?}");
        Ok(())
    })
}

fn wrong_name() -> Result<()> {
    let mut fleet = Fleet::new(2)?;
    fleet.start_orchestrator(&[])?;
    let certificate = fleet.path("pki/host-2");
    fleet.start_agent_with(0, &certificate, &[])?;
    on(fleet, |fleet| {
        let log = fleet.hosts[0].agent.as_ref().context("an agent")?.log.clone();
        wait_for("the refusal in the agent's log", LIMIT, || {
            let text = std::fs::read_to_string(&log)?;
            Ok(text.contains("says that it is `host-1`, and its certificate says otherwise").then_some(()))
        })?;
        ensure!(fleet.agents()?.is_empty());
        Ok(())
    })
}

/// A virtual machine and its copy: one name, one certificate, two addresses.
fn copied_host() -> Result<()> {
    let mut fleet = Fleet::new(3)?;
    fleet.start_orchestrator(&[])?;
    for index in 0..2 {
        fleet.start_agent(index, &[])?;
    }
    fleet.wait_for_agents(2)?;
    on(fleet, |fleet| {
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 4, "300ms", "pairs: all"))?;
        wait_for("a trial", LIMIT, || Ok((!fleet.status(&id)?.running.is_empty()).then_some(())))?;
        fleet.hosts[2].name = "host-1".to_owned();
        fleet.start_agent(2, &[])?;
        let both = |text: &str| text.contains("10.91.0.1") && text.contains("10.91.0.3");
        wait_for("the refusal in the copy's log", LIMIT, || {
            let log = fleet.agent_log(2)?;
            Ok(log
                .lines()
                .any(|line| line.contains("another agent of that name") && both(line))
                .then_some(()))
        })?;
        wait_for("the conflict among the agents", LIMIT, || {
            let shown = fleet.toll(["agents"])?;
            Ok((shown.contains("is refused") && both(&shown)).then_some(()))
        })?;
        // The host goes on as if nothing was.
        let (_, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured == counts.planned, "{counts:?}");
        let log = std::fs::read_to_string(&fleet.orchestrator.as_ref().context("it runs")?.log)?;
        let told = log.lines().filter(|line| line.contains("another agent of this name is refused"));
        ensure!(told.clone().count() == 1 && told.clone().all(both), "{:?}", told.collect::<Vec<_>>());
        // What answers no more has no name.
        fleet.hosts[0].agent.as_mut().context("it runs")?.kill()?;
        wait_for("the copy in its place", LIMIT, || {
            let agents = fleet.agents()?;
            let host = agents.iter().find(|agent| agent.name == "host-1").context("it is known")?;
            let address = host.facts.nic.as_ref().and_then(|nic| nic.address).map(|at| at.address);
            Ok((address == Some([10, 91, 0, 3].into())).then_some(()))
        })
    })
}

fn fleet_certificate() -> Result<()> {
    let mut fleet = Fleet::new(2)?;
    let pki = fleet.path("pki");
    fleet.toll(["pki", "issue", "--fleet", "--dir", pki.to_str().context("UTF-8")?])?;
    let certificate = pki.join("fleet");
    fleet.start_orchestrator(&[])?;
    for index in 0..2 {
        fleet.start_agent_with(index, &certificate, &[])?;
    }
    fleet.wait_for_agents(2)?;
    on(fleet, |fleet| {
        let names: Vec<String> = fleet.agents()?.into_iter().map(|agent| agent.name).collect();
        ensure!(names == ["host-1", "host-2"], "{names:?}");
        shell(&fleet.wire, "true").map(drop)
    })
}
