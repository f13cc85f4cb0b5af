//! Something dies, stands still or is cut off at every state of a trial. After each: no result lost, nothing left, the
//! campaign ends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use toll_e2e::campaigns::{NATIVE, VIRTIO, fleet_campaign};
use toll_e2e::fleet::{Fleet, LIMIT, no_fleet};
use toll_e2e::machine::{no_kvm, no_tun, pass, wait_for};
use toll_e2e::moments::{Ending, Fault, at_every_state};
use toll_protocol::service::{AgentState, AgentStatus};

use crate::measuring::on;
use toll_e2e::suite::test;

/// Another native arm.
const SECOND: &str = "{name: second, native: {}}";
/// States of a trial on a host, in their order (`node-agent/src/trial.rs`).
const STATES: [&str; 7] = ["SettingUp", "Starting", "Attaching", "Ready", "Running", "Releasing", "Released"];
/// Those in which its end is a process that has something to do.
const WITH_VMM: [&str; 4] = ["Starting", "Attaching", "Ready", "Running"];
const WITH_ENDPOINT: [&str; 3] = ["Starting", "Ready", "Running"];
/// Those in which it has been measured.
const MEASURED: [&str; 2] = ["Releasing", "Released"];

pub fn tests() -> Vec<Trial> {
    let lacks = [no_fleet(), no_kvm(), no_tun()];
    vec![
        test("a_vmm_that_stands_still_at_every_state", &lacks, || {
            end_gets(Signal::SIGSTOP, VIRTIO, &WITH_VMM)
        }),
        test("an_agent_that_stands_still_beyond_the_timeouts_at_every_state", &lacks, stop_agent),
        test("an_agent_that_stays_away_costs_its_trials_alone", &lacks[..1], agent_away),
        test("an_endpoint_that_stands_still_at_every_state", &lacks[..1], || {
            end_gets(Signal::SIGSTOP, SECOND, &WITH_ENDPOINT)
        }),
        test("a_link_that_goes_down_and_up_at_every_state", &lacks, link),
        test("kill_9_of_an_agent_at_every_state", &lacks, kill_agent),
        test("kill_9_of_the_orchestrator_at_every_state_loses_nothing", &lacks, kill_orchestrator),
        test("kill_9_of_a_vmm_at_every_state", &lacks, || end_gets(Signal::SIGKILL, VIRTIO, &WITH_VMM)),
        test("kill_9_of_an_endpoint_at_every_state", &lacks[..1], || {
            end_gets(Signal::SIGKILL, SECOND, &WITH_ENDPOINT)
        }),
    ]
}

/// Strikes trials on a fleet of four hosts at every state, whose own traffic must not notice and whose networks must be
/// the same in the end.
fn disturb(campaign: &str, mut fault: Fault<'_>) -> Result<()> {
    on(Fleet::up(4)?, |fleet| {
        let before: Vec<String> = (0..4).map(|index| fleet.network(index)).collect::<Result<_>>()?;
        let bystanders = fleet.bystanders()?;
        at_every_state(fleet, campaign, &mut fault)?;
        for (bystander, index) in bystanders.into_iter().zip(0..) {
            let noticed = bystander.stop()?;
            ensure!(noticed.answers > 100, "a bystander stood still: {noticed:?}");
            ensure!(fleet.network(index)? == before[index], "the network of a host has changed");
        }
        Ok(())
    })
}

/// What a blow may cost.
#[derive(Clone, Copy)]
enum Cost {
    /// Nothing: the trial is measured all the same.
    Nothing,
    /// The trial, if it was not measured yet: it has failed.
    Failure,
    /// The trial: it has failed, or what became of it is not known.
    Loss,
}

/// The end of a campaign that was struck: it adds up, a blow costs no more than it may, nothing is left.
fn ends(fleet: &Fleet, id: &str, met: &[String], cost: Cost) -> Result<Ending> {
    let (result, status) = fleet.result(id, Duration::from_secs(180))?;
    let counts = status.counts.context("counts")?;
    let reasons: Vec<String> = result
        .cells
        .iter()
        .flat_map(|cell| cell.runs.iter().map(move |run| (cell, run)))
        .filter_map(|(cell, run)| Some(format!("{:?} {:?}: {}", cell.key, run.status, run.reason.as_ref()?)))
        .collect();
    let early = met.iter().filter(|state| !MEASURED.contains(&state.as_str())).count();
    let (unmeasured, lost) = match cost {
        Cost::Nothing => (0, 0),
        Cost::Failure => (early, 0),
        Cost::Loss => (met.len(), met.len()),
    };
    let missing = (counts.planned - counts.measured) as usize;
    let told = format!("blows at {met:?} cost {counts:?}: {reasons:#?}");
    ensure!(counts.lost as usize <= lost && counts.skipped == 0, "{told}");
    fleet.nothing_left()?;
    Ok(if missing <= unmeasured { Ending::AsItMust } else { Ending::TooDear(told) })
}

/// So many trials that each state can be met.
fn trials(arms: &[&str], blocks: u32) -> String {
    fleet_campaign(arms, blocks, "300ms", "pairs: ring")
}

fn kill_agent() -> Result<()> {
    let fault = Fault {
        states: &STATES,
        of_an_end: false,
        strike: &mut |fleet, index, _| fleet.hosts[index].agent.as_mut().context("it runs")?.kill(),
        mend: &mut |fleet, index| {
            fleet.start_agent(index, &[])?;
            fleet.wait_for_agents(4)
        },
        check: &mut |fleet, id, met| ends(fleet, id, met, Cost::Loss),
    };
    disturb(&trials(&[NATIVE, VIRTIO], 1), fault)
}

/// Whoever was measured hands its result in to the next process; whoever runs goes on.
fn kill_orchestrator() -> Result<()> {
    let fault = Fault {
        states: &STATES,
        of_an_end: false,
        strike: &mut |fleet, _, _| fleet.orchestrator.as_mut().context("it runs")?.kill(),
        mend: &mut |fleet, _| {
            fleet.start_orchestrator(&[])?;
            fleet.wait_for_agents(4)
        },
        check: &mut |fleet, id, met| {
            let ending = ends(fleet, id, met, Cost::Nothing)?;
            for index in 0..4 {
                // The next process told them so (RFC 9000, 10.3): they did not wait until the old one was silent for
                // long.
                let log = fleet.agent_log(index)?;
                ensure!(met.is_empty() || log.contains("reset by peer"), "an agent was not told of the loss");
            }
            Ok(ending)
        },
    };
    disturb(&trials(&[NATIVE, VIRTIO], 1), fault)
}

/// Sends `signal` to the ends of trials at every state that has one.
fn end_gets(signal: Signal, arm: &str, states: &[&str]) -> Result<()> {
    let fault = Fault {
        states,
        of_an_end: true,
        strike: &mut |_, _, end| match kill(end.context("it has an end")?, signal) {
            // It has ended meanwhile: the state says so.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        },
        mend: &mut |_, _| Ok(()),
        check: &mut |fleet, id, met| ends(fleet, id, met, Cost::Failure),
    };
    disturb(&trials(&[NATIVE, arm], 1), fault)
}

fn link() -> Result<()> {
    let fault = Fault {
        states: &STATES,
        of_an_end: false,
        strike: &mut |fleet, index, _| fleet.set_link(index, false),
        mend: &mut |fleet, index| {
            pass(Duration::from_millis(300));
            fleet.set_link(index, true)
        },
        check: &mut |fleet, id, met| ends(fleet, id, met, Cost::Failure),
    };
    disturb(&trials(&[NATIVE, VIRTIO], 1), fault)
}

/// An agent that is stopped for longer than its connection may be silent and shorter than it is waited for: the
/// orchestrator loses it and gets it back, with the result.
fn stop_agent() -> Result<()> {
    let fault = Fault {
        states: &STATES,
        of_an_end: false,
        strike: &mut |fleet, index, _| {
            let host = &fleet.hosts[index];
            wait_for("the loss", LIMIT, || {
                let away = |agent: &AgentStatus| agent.name == host.name && agent.state == AgentState::Away;
                Ok(fleet.agents()?.iter().any(away).then_some(()))
            })
        },
        mend: &mut |fleet, _| fleet.wait_for_agents(4),
        check: &mut |fleet, id, met| ends(fleet, id, met, Cost::Failure),
    };
    disturb(&trials(&[NATIVE, VIRTIO], 1), fault)
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
