//! Something dies, stands still or is cut off at every state of a trial. After each: no result lost, nothing left, the
//! campaign ends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use toll_e2e::campaigns::{NATIVE, VIRTIO, fleet_campaign};
use toll_e2e::fleet::{Fleet, LIMIT, no_fleet, shell};
use toll_e2e::machine::{descendants, is_end, no_kvm, no_tun, pass, wait_for};
use toll_e2e::moments::at_every_state;
use toll_e2e::programs;
use toll_protocol::service::{AgentState, AgentStatus};

use crate::measuring::on;
use toll_e2e::suite::test;

/// Another native arm.
const SECOND: &str = "{name: second, native: {}}";
/// States of a trial on a host, in their order (`node-agent/src/trial.rs`).
const STATES: [&str; 7] = ["SettingUp", "Starting", "Attaching", "Ready", "Running", "Releasing", "Released"];
/// Those in which its end is a process.
const WITH_VMM: [&str; 4] = ["Starting", "Attaching", "Ready", "Running"];
const WITH_ENDPOINT: [&str; 3] = ["Starting", "Ready", "Running"];
/// Those that are over within some milliseconds, maybe before a fault that was meant for them.
const BRIEF: [&str; 5] = ["SettingUp", "Starting", "Attaching", "Ready", "Released"];

pub fn tests() -> Vec<Trial> {
    let lacks = [no_fleet(), no_kvm(), no_tun()];
    vec![
        test("a_vmm_that_stands_still_at_every_state", &lacks, || {
            end_gets(Signal::SIGSTOP, VIRTIO, &WITH_VMM, "toll-vmm")
        }),
        test("an_agent_that_stands_still_beyond_the_timeouts_at_every_state", &lacks, stop_agent),
        test("an_agent_that_stays_away_costs_its_trials_alone", &lacks[..1], agent_away),
        test("an_endpoint_that_stands_still_at_every_state", &lacks[..1], || {
            end_gets(Signal::SIGSTOP, SECOND, &WITH_ENDPOINT, "toll-endpoint")
        }),
        test("a_link_that_goes_down_and_up_at_every_state", &lacks, link),
        test("kill_9_of_an_agent_at_every_state", &lacks, kill_agent),
        test("kill_9_of_a_vmm_at_every_state", &lacks, || {
            end_gets(Signal::SIGKILL, VIRTIO, &WITH_VMM, "toll-vmm")
        }),
        test("kill_9_of_an_endpoint_at_every_state", &lacks[..1], || {
            end_gets(Signal::SIGKILL, SECOND, &WITH_ENDPOINT, "toll-endpoint")
        }),
    ]
}

/// The end of a campaign that was disturbed: it adds up, most of it was measured, nothing is left.
fn ends(fleet: &Fleet, id: &str, disturbed: u32) -> Result<()> {
    let (_, status) = fleet.result(id, Duration::from_secs(180))?;
    let counts = status.counts.context("counts")?;
    ensure!(counts.measured + 2 * disturbed >= counts.planned, "{disturbed} faults cost {counts:?}");
    fleet.nothing_left()
}

/// More trials than faults can take.
fn disturbed(arms: &[&str], blocks: u32) -> String {
    fleet_campaign(arms, blocks, "100ms", "pairs: all")
}

fn kill_agent() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&disturbed(&[NATIVE, VIRTIO], 4))?;
        let strike = |fleet: &mut Fleet, index: usize| {
            fleet.hosts[index].agent.as_mut().context("it runs")?.kill()?;
            Ok(true)
        };
        let mend = |fleet: &mut Fleet, index| {
            fleet.start_agent(index, &[])?;
            fleet.wait_for_agents(2)
        };
        let blows = at_every_state(fleet, &id, &STATES, &BRIEF, strike, mend)?;
        ends(fleet, &id, blows)
    })
}

/// The end of a trial on a host, if there is one now.
fn end(fleet: &Fleet, index: usize, name: &str) -> Result<Option<Pid>> {
    let agent = fleet.hosts[index].agent.as_ref().context("it runs")?.id();
    let family = descendants(&programs::directory()?, agent.as_raw())?;
    let end = family.into_iter().find(|(pid, found)| found == name && is_end(*pid));
    Ok(end.map(|(pid, _)| Pid::from_raw(pid)))
}

/// Sends `signal` to the ends of trials at every state that has one.
fn end_gets(signal: Signal, arm: &str, states: &[&str], name: &str) -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&disturbed(&[NATIVE, arm], 5))?;
        let strike = |fleet: &mut Fleet, index: usize| {
            let Some(end) = end(fleet, index, name)? else { return Ok(false) };
            Ok(kill(end, signal).is_ok())
        };
        let blows = at_every_state(fleet, &id, states, &BRIEF, strike, |_, _| Ok(()))?;
        ends(fleet, &id, blows)
    })
}

fn link() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&disturbed(&[NATIVE, VIRTIO], 4))?;
        let set = |fleet: &Fleet, index: usize, to: &str| {
            shell(&fleet.wire, &format!("ip link set port{} {to}", index + 1))
        };
        let strike = |fleet: &mut Fleet, index| set(fleet, index, "down").map(|_| true);
        let mend = |fleet: &mut Fleet, index| {
            pass(Duration::from_millis(300));
            set(fleet, index, "up").map(drop)
        };
        let blows = at_every_state(fleet, &id, &STATES, &BRIEF, strike, mend)?;
        ends(fleet, &id, blows)
    })
}

/// An agent that is stopped for longer than its connection may be silent and shorter than it is waited for: the
/// orchestrator loses it and gets it back, with the result.
fn stop_agent() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let id = fleet.submit(&disturbed(&[NATIVE, VIRTIO], 4))?;
        let strike = |fleet: &mut Fleet, index: usize| {
            fleet.hosts[index].agent.as_ref().context("it runs")?.signal(Signal::SIGSTOP)?;
            Ok(true)
        };
        let mend = |fleet: &mut Fleet, index: usize| {
            let host = &fleet.hosts[index];
            wait_for("the loss", LIMIT, || {
                let away = |agent: &AgentStatus| agent.name == host.name && agent.state == AgentState::Away;
                Ok(fleet.agents()?.iter().any(away).then_some(()))
            })?;
            host.agent.as_ref().context("it runs")?.signal(Signal::SIGCONT)?;
            fleet.wait_for_agents(2)
        };
        let blows = at_every_state(fleet, &id, &STATES, &BRIEF, strike, mend)?;
        ends(fleet, &id, blows)
    })
}

fn agent_away() -> Result<()> {
    let mut fleet = Fleet::new(3)?;
    fleet.start_orchestrator(&["--agent-grace", "3s"])?;
    for index in 0..3 {
        fleet.start_agent(index, &[])?;
    }
    fleet.wait_for_agents(3)?;
    on(fleet, |fleet| {
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 3, "300ms", "pairs: ring"))?;
        wait_for("a trial", LIMIT, || Ok((!fleet.status(&id)?.running.is_empty()).then_some(())))?;
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
