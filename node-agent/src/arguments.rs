//! The agent's command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Runs the ends of trials on this host.
#[derive(Debug, Parser)]
#[command(name = "toll-agent", version)]
pub struct Arguments {
    #[command(subcommand)]
    /// What to do.
    pub command: Command,
}

/// What the agent does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Dial the orchestrator and run trials until SIGTERM or SIGINT.
    Run(Run),
    /// Write what the agent knows of this host to standard output, as JSON.
    Facts {
        /// The test NIC.
        #[arg(long, value_name = "IFACE")]
        nic: Option<String>,
    },
}

/// Where to dial, and who the agent is.
#[derive(Debug, Args)]
pub struct Run {
    /// Where the orchestrator listens.
    #[arg(long, value_name = "IP:PORT")]
    pub orchestrator: SocketAddr,
    /// The name in the orchestrator's certificate.
    #[arg(long, value_name = "NAME")]
    pub server_name: String,
    /// This agent's name, which is that of its certificate.
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// The test NIC: the agent's own while trials run.
    #[arg(long, value_name = "IFACE")]
    pub nic: String,
    /// Certificate of the authority that the orchestrator's certificate is checked against, PEM.
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,
    /// This agent's certificate, PEM. Each file is read once, at the start.
    #[arg(long, value_name = "FILE")]
    pub certificate: PathBuf,
    /// This agent's private key, PEM.
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
}
