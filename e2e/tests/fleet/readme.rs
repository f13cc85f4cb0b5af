//! The fleet of README.md, by its own commands.

use std::fs::DirBuilder;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::fleet::{Fleet, LIMIT, no_fleet};
use toll_e2e::machine::{no_kvm, no_tun, wait_for};
use toll_e2e::{programs, readme};

use crate::measuring::on;
use toll_e2e::suite::test;

pub fn tests() -> Vec<Trial> {
    let lacks = [no_fleet(), no_kvm(), no_tun()];
    vec![test("the_commands_of_the_readme", &lacks, commands)]
}

/// A line of README.md, with what a user would put in: the addresses of their network, where data may be. The
/// quickstart is shortened.
fn filled_in(fleet: &Fleet, line: &str) -> String {
    line.replace("HOST:", "10.91.0.254:")
        .replace("10.0.0.", "10.91.0.")
        .replace("/var/lib/toll", &fleet.path("data").display().to_string())
        .replace("manifests/campaigns/quickstart.yaml", "quickstart.yaml")
}

fn shell(fleet: &Fleet, line: &str) -> Result<Command> {
    // The shell becomes a lone command, so that a signal reaches that.
    let line = if line.contains("&&") { line.to_owned() } else { format!("exec {line}") };
    // A /run of the fleet's own: a service of this machine may have its socket in /run/toll.
    let run = fleet.path("run");
    let own = format!(
        "mount -t tmpfs -o mode=755 tmpfs /run; mkdir /run/toll; mount --bind '{}' /run/toll; {line}",
        run.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &own]).current_dir(fleet.directory.path());
    command.env("PATH", readme::path_with(&programs::directory()?));
    Ok(command)
}

fn commands() -> Result<()> {
    let quickstart = include_str!("../../../manifests/campaigns/quickstart.yaml");
    on(Fleet::without_certificates(2)?, |fleet| {
        let short = quickstart.replace("duration: 1s", "duration: 200ms").replace("blocks: 5", "blocks: 1");
        ensure!(short != quickstart, "the quickstart's words have changed");
        std::fs::write(fleet.path("quickstart.yaml"), short)?;
        DirBuilder::new().mode(0o700).create(fleet.path("run"))?;
        let lines = readme::commands("A fleet")?;
        let wire = fleet.wire.as_fd().as_raw_fd();
        for line in &lines {
            let line = filled_in(fleet, line);
            if line.starts_with("toll serve ") {
                let serve = fleet.start(shell(fleet, &line)?, "orchestrator", wire)?;
                fleet.orchestrator = Some(serve);
                wait_for("the orchestrator", LIMIT, || Ok(fleet.agents().ok().map(drop)))?;
            } else if line.starts_with("toll-agent ") {
                for index in 0..2 {
                    let name = fleet.hosts[index].name.clone();
                    let line = line.replace("host-1", &name);
                    let namespace = fleet.hosts[index].namespace.as_fd().as_raw_fd();
                    let agent = fleet.start(shell(fleet, &line)?, &name, namespace)?;
                    fleet.hosts[index].agent = Some(agent);
                }
                fleet.wait_for_agents(2)?;
            } else {
                let id = fleet.campaigns().unwrap_or_default().pop().map_or(String::new(), |last| last.id);
                let mut line = line.replace(" ID", &format!(" {id}"));
                if line.contains("TRIAL") {
                    let (result, _) = fleet.result(&id, Duration::from_secs(10))?;
                    let run = result.cells.first().and_then(|cell| cell.runs.first()).context("a run")?;
                    line = line.replace("TRIAL", &run.trial.to_string());
                }
                let mut command = shell(fleet, &line)?;
                let output = toll_e2e::fleet::enter(&mut command, wire).output()?;
                programs::expect(&output, 0).with_context(|| line.clone())?;
            }
        }
        let id = fleet.campaigns()?.pop().context("a campaign")?.id;
        let (result, status) = fleet.result(&id, Duration::from_secs(10))?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.measured == 10 && result.cells.len() == 10, "{counts:?}");
        ensure!(fleet.path("results/report.html").exists(), "there is no report");
        fleet.nothing_left()
    })
}
