//! `toll-agent`: one per host. Runs the ends of trials for an orchestrator, or says what it knows of its host.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use toll_node_agent::agent::{self, AgentConfig};
use toll_node_agent::link::Identity;
use toll_node_agent::{Exit, facts};

/// Runs the ends of trials on this host.
#[derive(Debug, Parser)]
#[command(name = "toll-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Dial the orchestrator and run trials until SIGTERM or SIGINT.
    Run(Run),
    /// Write what the agent knows of this host to standard output, as JSON.
    Facts {
        /// The test NIC.
        #[arg(long, value_name = "IFACE")]
        nic: Option<String>,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// Where the orchestrator listens.
    #[arg(long, value_name = "IP:PORT")]
    orchestrator: SocketAddr,
    /// The name in the orchestrator's certificate.
    #[arg(long, value_name = "NAME")]
    server_name: String,
    /// This agent's name, which is that of its certificate.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// The test NIC: the agent's own while trials run.
    #[arg(long, value_name = "IFACE")]
    nic: String,
    /// Certificate of the authority that the orchestrator's certificate is checked against, PEM.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// This agent's certificate, PEM. Each file is read once, at the start.
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// This agent's private key, PEM.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

fn main() -> ExitCode {
    // Logs on stderr: TOLL_LOG=debug asks for more. An empty value is none.
    let wanted = std::env::var("TOLL_LOG").ok().filter(|wanted| !wanted.is_empty());
    let (filter, refused) = match tracing_subscriber::EnvFilter::try_new(wanted.as_deref().unwrap_or("info"))
    {
        Ok(filter) => (filter, None),
        Err(error) => ("info".into(), Some(error)),
    };
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    if let Some(error) = refused {
        tracing::warn!("TOLL_LOG can't be used, and is taken as `info`: {error}");
    }
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
    let own = std::env::current_exe().context("the agent's own path can't be found")?;
    let config = AgentConfig {
        orchestrator: arguments.orchestrator,
        server_name: arguments.server_name,
        name: arguments.name,
        facts: facts::collect(Some(&arguments.nic)),
        nic: arguments.nic,
        identity,
        programs: own.parent().context("the agent's path has no folder")?.to_owned(),
    };
    Ok(agent::run(config, stop).await?)
}

fn show_facts(nic: Option<&str>) -> anyhow::Result<()> {
    let facts = facts::collect(nic);
    if let (Some(name), None) = (nic, &facts.nic) {
        anyhow::bail!("there is no network interface {name}");
    }
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &facts)?;
    Ok(writeln!(out)?)
}
