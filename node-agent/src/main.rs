//! `toll-agent`: one per host. Runs the ends of trials for an orchestrator, or says what it knows of its host.

mod arguments;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use arguments::{Arguments, Command, Run};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use toll_node_agent::agent::{self, AgentConfig};
use toll_node_agent::link::Identity;
use toll_node_agent::metrics::Metrics;
use toll_node_agent::{Exit, facts};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Logs on stderr: TOLL_LOG=debug asks for more. An empty value is none.
    let wanted = std::env::var("TOLL_LOG").ok().filter(|wanted| !wanted.is_empty());
    let filter = match EnvFilter::try_new(wanted.as_deref().unwrap_or("info")) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!(
                "toll-agent: TOLL_LOG can't be used ({error}): write a level such as debug, or target=level"
            );
            return Exit::Usage.into();
        }
    };
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    let done = match Arguments::parse().command {
        Command::Run(arguments) => run(arguments),
        Command::Facts { nic } => show_facts(nic.as_deref()),
    };
    if let Err(error) = done {
        tracing::error!("{error:#}");
        return Exit::Infrastructure.into();
    }
    Exit::Ok.into()
}

// One thread is enough, and disturbs what is measured least.
#[tokio::main(flavor = "current_thread")]
async fn run(arguments: Run) -> anyhow::Result<()> {
    // First of all, so that no signal finds the agent unprepared.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be waited for")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be waited for")?;
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    let identity = Identity::read(&arguments.ca, &arguments.certificate, &arguments.key)?;
    let programs = programs()?;
    let config = AgentConfig {
        orchestrator: arguments.orchestrator,
        server_name: arguments.server_name,
        name: arguments.name,
        facts: facts::collect(Some(&arguments.nic), &programs),
        nic: arguments.nic,
        identity,
        programs,
        metrics: Metrics::new()?,
    };
    Ok(agent::run(config, stop).await?)
}

/// The folder of this program, where Toll's others stand too.
fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("the agent's own path can't be found")?;
    Ok(own.parent().context("the agent's path has no folder")?.to_owned())
}

fn show_facts(nic: Option<&str>) -> anyhow::Result<()> {
    let facts = facts::collect(nic, &programs()?);
    if let (Some(name), None) = (nic, &facts.nic) {
        anyhow::bail!("there is no network interface {name}");
    }
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &facts)?;
    Ok(writeln!(out)?)
}
