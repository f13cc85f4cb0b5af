//! Something dies in the middle: results that were measured are kept, the rest is named, nothing is left.

use std::os::unix::process::CommandExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use toll_e2e::campaigns::{NATIVE, VIRTIO, campaign};
use toll_e2e::machine::{alive, descendants, interfaces, is_end, no_kvm, no_tun, processes, wait_for};
use toll_e2e::programs::{self, Run, expect};
use toll_e2e::suite::test;
use toll_protocol::result::{CampaignResult, RunStatus};

const LIMIT: Duration = Duration::from_secs(60);

pub fn tests() -> Vec<Trial> {
    let lacks = [no_kvm(), no_tun()];
    vec![
        test("kill_9_of_toll_leaves_nothing", &lacks, kill_toll),
        test("kill_9_of_an_agent_ends_the_campaign_with_its_reason", &lacks, kill_agent),
        test("kill_9_of_a_vmm_fails_its_trial_alone", &lacks, kill_vmm),
        test("kill_9_of_an_endpoint_fails_its_trial_alone", &[], kill_endpoint),
        test("interrupt_keeps_what_was_measured", &[], interrupt),
        test("ctrl_c_at_a_terminal_is_an_interruption_not_a_fault", &[], ctrl_c),
        test("a_second_interrupt_ends_at_once_and_leaves_nothing", &[], interrupt_twice),
    ]
}

/// A campaign that runs for seconds, once a trial's end named `name` is up.
fn running(arms: &[&str], blocks: u32, directory: &std::path::Path, name: &str) -> Result<(Run, i32)> {
    let run = programs::start(&campaign(arms, blocks, "500ms", ""), directory, |_| {})?;
    let programs = programs::directory()?;
    let toll = run.id().as_raw();
    let pid = wait_for(name, LIMIT, || {
        let mut family = descendants(&programs, toll)?.into_iter();
        Ok(family.find(|(pid, found)| found == name && is_end(*pid)).map(|(pid, _)| pid))
    })?;
    Ok((run, pid))
}

fn nothing_left(family: &[(i32, String)]) -> Result<()> {
    wait_for("the end of every process", Duration::from_secs(5), || {
        Ok(family.iter().all(|(pid, _)| !alive(*pid)).then_some(()))
    })?;
    let left = processes(&programs::directory()?)?;
    ensure!(left.is_empty(), "processes are left: {left:?}");
    Ok(())
}

fn kill_toll() -> Result<()> {
    let before = interfaces()?;
    let directory = tempfile::tempdir()?;
    let (run, _) = running(&[VIRTIO], 1, directory.path(), "toll-vmm")?;
    let family = descendants(&programs::directory()?, run.id().as_raw())?;
    ensure!(family.len() >= 3, "two agents and an end at least: {family:?}");
    run.signal(Signal::SIGKILL)?;
    run.end(LIMIT)?;
    nothing_left(&family)?;
    ensure!(interfaces()? == before);
    Ok(())
}

/// Runs of a result by status.
fn count(result: &CampaignResult, status: RunStatus) -> usize {
    result.cells.iter().flat_map(|cell| &cell.runs).filter(|run| run.status == status).count()
}

fn planned(result: &CampaignResult) -> usize {
    result.cells.iter().map(|cell| cell.counts.planned as usize).sum()
}

fn kill_agent() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (run, _) = running(&[NATIVE, VIRTIO], 2, directory.path(), "toll-vmm")?;
    let family = descendants(&programs::directory()?, run.id().as_raw())?;
    let agent = family.iter().find(|(_, name)| name == "toll-agent").context("an agent")?.0;
    kill(Pid::from_raw(agent), Signal::SIGKILL)?;
    let (output, out) = run.end(LIMIT)?;
    expect(&output, 4)?;
    let result = programs::result(&out)?;
    let (failed, skipped) = (count(&result, RunStatus::Failed), count(&result, RunStatus::Skipped));
    ensure!(failed == 1 && skipped > 0, "{failed} failed, {skipped} skipped");
    ensure!(failed + skipped + count(&result, RunStatus::Measured) == planned(&result));
    let reason = result
        .cells
        .iter()
        .flat_map(|cell| &cell.runs)
        .find_map(|run| run.reason.as_ref().filter(|_| run.status == RunStatus::Skipped));
    ensure!(reason.is_some_and(|reason| reason.contains("signal: 9")), "{reason:?}");
    nothing_left(&family)
}

fn kill_one(arms: &[&str], name: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (run, pid) = running(arms, 1, directory.path(), name)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    let (output, out) = run.end(LIMIT)?;
    expect(&output, 4)?;
    let result = programs::result(&out)?;
    ensure!(count(&result, RunStatus::Failed) == 1, "{} failed", count(&result, RunStatus::Failed));
    ensure!(count(&result, RunStatus::Measured) == planned(&result) - 1, "others failed too");
    let run = result.cells.iter().flat_map(|cell| &cell.runs).find(|run| run.status == RunStatus::Failed);
    let run = run.context("the failed run")?;
    ensure!(run.goodput_bytes_per_second.is_none(), "a failed run has a figure");
    // Its peer may have been heard first; the dead end is told all the same.
    let told = run.reason.iter().chain(&run.last_words).any(|words| words.contains("SIGKILL"));
    ensure!(told, "{:?} {:?}", run.reason, run.last_words);
    nothing_left(&[])
}

fn kill_vmm() -> Result<()> {
    kill_one(&[VIRTIO], "toll-vmm")
}

fn kill_endpoint() -> Result<()> {
    kill_one(&[NATIVE], "toll-endpoint")
}

fn interrupt() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let run = programs::start(&campaign(&[NATIVE], 20, "300ms", ""), directory.path(), |_| {})?;
    let ledger = run.out.join("ledger.sqlite");
    // Three trials take over a second: when a fourth has begun there is something to keep.
    wait_for("the ledger", LIMIT, || Ok(ledger.exists().then_some(())))?;
    let programs = programs::directory()?;
    let mut ends = std::collections::BTreeSet::new();
    wait_for("the fourth trial", LIMIT, || {
        ends.extend(
            descendants(&programs, run.id().as_raw())?
                .into_iter()
                .filter(|(pid, name)| name == "toll-endpoint" && is_end(*pid)),
        );
        Ok((ends.len() > 6).then_some(()))
    })?;
    run.signal(Signal::SIGINT)?;
    let (output, out) = run.end(Duration::from_secs(20))?;
    expect(&output, 130)?;
    let result = programs::result(&out)?;
    ensure!(result.provenance.interrupted);
    ensure!(count(&result, RunStatus::Measured) >= 3, "{} kept", count(&result, RunStatus::Measured));
    ensure!(count(&result, RunStatus::Skipped) > 10);
    nothing_left(&[])
}

/// A terminal sends SIGINT to the whole foreground process group, not to `toll` alone.
fn ctrl_c() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let run = programs::start(&campaign(&[NATIVE], 20, "300ms", ""), directory.path(), |command| {
        command.process_group(0);
    })?;
    let programs = programs::directory()?;
    wait_for("a trial", LIMIT, || {
        let family = descendants(&programs, run.id().as_raw())?;
        Ok(family.iter().any(|(_, name)| name == "toll-endpoint").then_some(()))
    })?;
    nix::sys::signal::killpg(run.id(), Signal::SIGINT)?;
    let (output, out) = run.end(Duration::from_secs(20))?;
    expect(&output, 130)?;
    let result = programs::result(&out)?;
    ensure!(count(&result, RunStatus::Failed) == 0, "the interruption is told as a failure of a host");
    ensure!(count(&result, RunStatus::Skipped) + count(&result, RunStatus::Lost) > 10);
    nothing_left(&[])
}

fn interrupt_twice() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (run, _) = running(&[NATIVE], 2, directory.path(), "toll-endpoint")?;
    let family = descendants(&programs::directory()?, run.id().as_raw())?;
    run.signal(Signal::SIGINT)?;
    // The first may have ended the run already.
    let _ = run.signal(Signal::SIGINT);
    run.end(Duration::from_secs(20))?;
    nothing_left(&family)
}
