//! `toll-agent`: one per host. Runs the ends of trials for an orchestrator, or says what it knows of its host.

mod arguments;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use arguments::{Arguments, Command, Run};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use toll_node_agent::agent::{self, AgentConfig};
use toll_node_agent::captures::Captures;
use toll_node_agent::child::Spawner;
use toll_node_agent::identity::Identity;
use toll_node_agent::metrics::Metrics;
use toll_node_agent::network::NetworkConfig;
use toll_node_agent::users::Users;
use toll_node_agent::{Exit, facts, labels, stop};
use toll_protocol::printable;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::debug_fn;

fn main() -> ExitCode {
    // Logs on stderr: TOLL_LOG=debug asks for more. An empty value is none.
    let wanted = std::env::var("TOLL_LOG").ok().filter(|wanted| !wanted.is_empty());
    let filter = match EnvFilter::try_new(wanted.as_deref().unwrap_or("info")) {
        Ok(filter) => filter,
        Err(error) => {
            let why = printable::printable(&error.to_string()).into_owned();
            eprintln!(
                "toll-agent: TOLL_LOG can't be used ({why}): write a level such as debug, or target=level"
            );
            return Exit::Usage.into();
        }
    };
    let colours = std::io::stderr().is_terminal();
    // What is told may quote anybody.
    let fields = debug_fn(|writer, field, value| write!(writer, "{}", printable::field(field.name(), value)));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .fmt_fields(fields.delimited(" "))
        .init();
    let arguments = Arguments::parse();
    let done = match (arguments.command, arguments.run) {
        (Some(Command::Facts { nic }), _) => show_facts(nic.as_deref()),
        (None, Some(arguments)) => match labels::by_key(arguments.labels.clone()) {
            Ok(labels) => run(arguments, labels),
            Err(error) => Arguments::command().error(ErrorKind::ValueValidation, error).exit(),
        },
        // Clap asks for --orchestrator by itself only where some other option of the group is there.
        (None, None) => Arguments::command()
            .error(ErrorKind::MissingRequiredArgument, "--orchestrator HOST:PORT is needed")
            .exit(),
    };
    if let Err(error) = done {
        tracing::error!("{error:#}");
        return Exit::Infrastructure.into();
    }
    Exit::Ok.into()
}

fn run(arguments: Run, labels: BTreeMap<String, String>) -> anyhow::Result<()> {
    let [ca, certificate, key] = arguments.identity();
    let identity = Identity::read(&ca, &certificate, &key)?;
    let name = match arguments.name {
        Some(name) => name,
        None => host_name()?,
    };
    let config = AgentConfig {
        orchestrator: arguments.orchestrator,
        server_name: arguments.server_name,
        labels,
        network: NetworkConfig {
            nic: arguments.nic,
            wire: arguments.wire.map(Into::into),
            guest_addresses: arguments.guest_addresses,
            http: arguments.http.map(|http| http.ip()),
            nic_is_spare: arguments.nic_is_spare,
        },
        identity,
        users: Users::open(arguments.child_uids, &name)?,
        name,
        programs: programs()?,
        captures: match &arguments.captures {
            Some(folder) => Some(Captures::new(folder, arguments.captures_space)?),
            None => None,
        },
        http: arguments.http,
        metrics: Metrics::new()?,
    };
    let runtime = runtime()?;
    let done = runtime.block_on(serve(config));
    // A look-up of a name that hangs does not keep the agent.
    runtime.shutdown_background();
    done
}

/// One thread is enough, and disturbs what is measured least.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("the runtime can't be started")
}

async fn serve(config: AgentConfig) -> anyhow::Result<()> {
    // First of all, so that no signal finds the agent unprepared.
    let stop = stop::requested().context("signals can't be waited for")?;
    Ok(agent::run(config, stop).await?)
}

fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("the host's name can't be found")?;
    let name = name
        .into_string()
        .map_err(|name| anyhow::anyhow!("the host's name {name:?} is no text: give one with --name"))?;
    // As certificates name hosts, and Kubernetes its nodes.
    Ok(name.to_ascii_lowercase())
}

/// The folder of this program, where Toll's others stand too.
fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("the agent's own path can't be found")?;
    Ok(own.parent().context("the agent's path has no folder")?.to_owned())
}

fn show_facts(nic: Option<&str>) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let spawner = Spawner::new(runtime.handle().clone()).context("processes can't be started")?;
    let users = Users::open(None, "facts")?;
    let facts = runtime.block_on(facts::collect(nic, &programs()?, &spawner, &users));
    if let (Some(name), None) = (nic, &facts.nic) {
        anyhow::bail!("there is no network interface {name}");
    }
    // A guest's last words may be among them.
    let json = serde_json::to_string_pretty(&facts)?;
    Ok(writeln!(std::io::stdout().lock(), "{}", printable::as_json(&json))?)
}
