//! The node agent: one process per host. It dials the orchestrator, prepares the host's network, runs the ends of
//! trials as child processes, reports what they measured and leaves the host as it was.

pub mod address;
pub mod agent;
pub mod captures;
pub mod child;
pub mod facts;
pub mod file;
pub mod health;
pub mod http;
mod hubs;
pub mod identity;
pub mod labels;
pub mod metrics;
pub mod network;
mod outbox;
mod runner;
pub mod stop;
pub mod transport;
pub mod trial;
pub mod users;

/// How `toll-agent` ends. Clap ends it with 2 if its arguments are of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was told to stop and left a clean host, or has shown what it was asked for.
    Ok = 0,
    /// The command line or an environment variable is wrong (clap exits with the same).
    Usage = 2,
    /// The host, the network or the certificates did not let it work.
    Infrastructure = 4,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
