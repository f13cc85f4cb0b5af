//! Something dies, stands still or is cut off at every state of a trial. After each: no result lost, nothing left, the
//! campaign ends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use toll_e2e::campaigns::{NATIVE, VIRTIO, fleet_campaign};
use toll_e2e::fleet::{Fleet, LIMIT, no_fleet, shell};
use toll_e2e::machine::{descendants, is_end, no_kvm, no_tun, wait_for};
use toll_e2e::programs;
use toll_protocol::service::CampaignStatus;

use crate::measuring::on;
use crate::test;

/// Moments of a trial of 0.1 s + 0.2 s, counted from when it began: while it is being set up, while it is warming up,
/// while it is measured, while it ends.
const MOMENTS: [u64; 8] = [0, 3, 8, 20, 60, 200, 300, 330];

pub fn tests() -> Vec<Trial> {
    let lacks = [no_fleet(), no_kvm(), no_tun()];
    vec![
        test("kill_9_of_an_agent_at_every_state", &lacks, kill_agent),
        test("kill_9_of_a_vmm_at_every_state", &lacks, || kill_end(VIRTIO, 6, "toll-vmm")),
        test("kill_9_of_an_endpoint_at_every_state", &lacks[..1], || kill_end(NATIVE, 12, "toll-endpoint")),
        test("a_link_that_goes_down_and_up_at_every_state", &lacks, link),
        test("an_agent_that_stands_still_beyond_the_timeouts", &lacks, stop_agent),
        test("an_agent_that_stays_away_costs_its_trials_alone", &lacks[..1], agent_away),
    ]
}

/// Waits until `id` has begun another trial than those before, and then for `moment` milliseconds.
fn at(fleet: &Fleet, id: &str, moment: u64) -> Result<()> {
    let begun = |status: &CampaignStatus| status.counts.map_or(0, |counts| counts.over());
    let before = begun(&fleet.status(id)?);
    wait_for("another trial", LIMIT, || {
        let status = fleet.status(id)?;
        let begun = begun(&status) > before && !status.running.is_empty();
        Ok((begun || status.state.is_over()).then_some(()))
    })?;
    // A moment is time by its nature: there is nothing to wait for.
    std::thread::park_timeout(Duration::from_millis(moment));
    Ok(())
}

/// The end of a campaign that was disturbed: it adds up, most of it was measured, nothing is left.
fn ends(fleet: &Fleet, id: &str, disturbed: u32) -> Result<()> {
    let (_, status) = fleet.result(id, Duration::from_secs(180))?;
    let counts = status.counts.context("counts")?;
    ensure!(counts.measured + 2 * disturbed >= counts.planned, "{disturbed} faults cost {counts:?}");
    fleet.nothing_left()
}

fn disturbed(arms: &[&str], blocks: u32) -> String {
    fleet_campaign(arms, blocks, "200ms", "pairs: all")
}

fn kill_agent() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&disturbed(&[NATIVE, VIRTIO], 4))?;
        for (round, moment) in MOMENTS.into_iter().enumerate() {
            at(fleet, &id, moment)?;
            let index = round % 2;
            fleet.hosts[index].agent.take().context("it runs")?.kill()?;
            fleet.start_agent(index, &[])?;
            fleet.wait_for_agents(2)?;
        }
        ends(fleet, &id, 8)
    })
}

fn kill_end(arm: &str, blocks: u32, name: &str) -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&disturbed(&[arm], blocks))?;
        let programs = programs::directory()?;
        let mut killed = 0;
        for (round, moment) in MOMENTS.into_iter().enumerate() {
            at(fleet, &id, moment)?;
            let agent = fleet.hosts[round % 2].agent.as_ref().context("it runs")?.id();
            let family = descendants(&programs, agent.as_raw())?;
            let end = family.iter().find(|(pid, found)| found == name && is_end(*pid));
            // At some moments there is none yet, or none any more.
            if let Some((pid, _)) = end
                && kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()
            {
                killed += 1;
            }
        }
        ensure!(killed >= 3, "only {killed} were there to be killed");
        ends(fleet, &id, 8)
    })
}

fn link() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&disturbed(&[NATIVE, VIRTIO], 4))?;
        for (round, moment) in MOMENTS.into_iter().enumerate() {
            at(fleet, &id, moment)?;
            let port = round % 2 + 1;
            shell(&fleet.wire, &format!("ip link set port{port} down"))?;
            std::thread::park_timeout(Duration::from_millis(300));
            shell(&fleet.wire, &format!("ip link set port{port} up"))?;
        }
        ends(fleet, &id, 8)
    })
}

/// An agent that is stopped for longer than the connection may be silent (10 s) and shorter than it is waited for: the
/// orchestrator loses it and gets it back, with the result.
fn stop_agent() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&disturbed(&[NATIVE, VIRTIO], 2))?;
        for moment in [5, 250] {
            at(fleet, &id, moment)?;
            let agent = fleet.hosts[1].agent.as_ref().context("it runs")?;
            agent.signal(Signal::SIGSTOP)?;
            wait_for("the loss", LIMIT, || {
                let away = |agent: &toll_protocol::service::AgentStatus| {
                    agent.name == "host-2" && agent.state == toll_protocol::service::AgentState::Away
                };
                Ok(fleet.agents()?.iter().any(away).then_some(()))
            })?;
            agent.signal(Signal::SIGCONT)?;
            fleet.wait_for_agents(2)?;
        }
        ends(fleet, &id, 2)
    })
}

fn agent_away() -> Result<()> {
    let mut fleet = Fleet::new(3)?;
    fleet.start_orchestrator("3s")?;
    for index in 0..3 {
        fleet.start_agent(index, &[])?;
    }
    fleet.wait_for_agents(3)?;
    on(fleet, |fleet| {
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 3, "300ms", "pairs: ring"))?;
        at(fleet, &id, 100)?;
        fleet.hosts[2].agent.take().context("it runs")?.kill()?;
        let (result, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured >= 6 && counts.lost <= 1 && counts.skipped > 0, "{counts:?}");
        for cell in &result.cells {
            let on_it = cell.key.pair.a == "host-3" || cell.key.pair.b == "host-3";
            ensure!(on_it || cell.counts.measured == cell.counts.planned, "{:?}", cell.key);
        }
        // When it is back the next campaign has it.
        fleet.start_agent(2, &[])?;
        fleet.wait_for_agents(3)?;
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all"))?;
        let (_, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured == 6, "{counts:?}");
        fleet.nothing_left()
    })
}
