//! Handshakes with the orchestrator that never go on: it goes on, and does not grow.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::campaigns::{NATIVE, fleet_campaign};
use toll_e2e::fleet::{Fleet, LIMIT, ORCHESTRATOR, Process, no_fleet};
use toll_e2e::machine::wait_for;
use toll_e2e::priority::{self, no_priority};
use toll_e2e::programs;
use toll_e2e::suite::test;

use crate::health::Health;

pub fn tests() -> Vec<Trial> {
    let lacks = [no_fleet(), no_priority()];
    vec![
        test("handshakes_that_never_go_on_cost_next_to_nothing", &lacks, || {
            flood(&["--rate", "4500", "--prepared", "12000"])
        }),
        test("so_do_those_from_an_address_that_answers", &lacks, || flood(&["--rate", "500", "--answering"])),
        // QUIC remembers each of them for seconds.
        test("handshakes_that_end_as_they_begin_keep_nobody_out", &lacks, || {
            flood(&["--rate", "4500", "--prepared", "3000", "--closing"])
        }),
        test("nor_do_those_from_an_address_that_answers", &lacks, || {
            flood(&["--rate", "500", "--answering", "--closing"])
        }),
    ]
}

/// The host that has no agent: the stranger's.
const STRANGER: usize = 2;

/// How long a flood flows at least.
const ENOUGH: Duration = Duration::from_secs(8);

/// How soon an agent is let in, at most: its attempts take 5 s each, and the flood lasts for longer.
const PROMPT: Duration = Duration::from_secs(20);

/// Starts a flood and returns once it flows.
fn start(fleet: &mut Fleet, options: &[&str]) -> Result<Process> {
    let mut command = programs::program("rogue-initials")?;
    command.arg(ORCHESTRATOR).args(["--seconds", "60"]).args(options);
    let namespace = fleet.hosts[STRANGER].namespace.as_fd().as_raw_fd();
    let flood = fleet.start(command, "rogue-initials", namespace)?;
    wait_for("the flood", LIMIT, || {
        Ok(std::fs::read_to_string(&flood.log)?.contains("begins").then_some(()))
    })?;
    Ok(flood)
}

/// The numbers of `N begun, M Retry answered`.
fn counted(line: &str) -> Option<[u64; 2]> {
    let (begun, answered) = line.split_once(" begun, ")?;
    Some([begun.parse().ok()?, answered.strip_suffix(" Retry answered")?.parse().ok()?])
}

/// While the flood flows an agent that comes is welcomed and a campaign is measured; all the time the orchestrator is as
/// small and as quick as it must be.
fn flood(options: &[&str]) -> Result<()> {
    let mut fleet = Fleet::new(3)?;
    fleet.start_orchestrator(&[])?;
    fleet.start_agent(0, &[])?;
    fleet.wait_for_agents(1)?;
    let (result, logs) = (under(&mut fleet, options), fleet.logs());
    result.context(logs)
}

fn under(fleet: &mut Fleet, options: &[&str]) -> Result<()> {
    let mut health = Health::watch(fleet)?;
    let mut flood = start(fleet, options)?;
    priority::last(flood.child.id())?;
    let began = Instant::now();
    fleet.start_agent(1, &[])?;
    fleet.wait_for_agents(2)?;
    let welcomed = began.elapsed();
    ensure!(welcomed < PROMPT, "an agent was welcomed after {welcomed:?}");
    let id = fleet.submit(&fleet_campaign(&[NATIVE], 1, "300ms", "pairs: all"))?;
    let (_, status) = fleet.result(&id, LIMIT)?;
    let counts = status.counts.context("counts")?;
    ensure!(counts.measured == counts.planned && counts.planned > 0, "{counts:?}");
    wait_for("enough of the flood", LIMIT, || Ok((began.elapsed() > ENOUGH).then_some(())))?;
    let said = std::fs::read_to_string(&flood.log)?;
    ensure!(flood.child.try_wait()?.is_none(), "the flood ended before the campaign: {said}");
    flood.kill()?;
    let flow = said.lines().last().unwrap_or_default();
    let good = health.is_good(fleet);
    eprintln!("{flow}; an agent was welcomed after {welcomed:?}; {health}");
    let [begun, answered] = counted(flow).with_context(|| format!("nothing flowed: {said}"))?;
    ensure!(begun > 0 && (answered > 0 || !options.contains(&"--answering")), "{flow}");
    good
}
