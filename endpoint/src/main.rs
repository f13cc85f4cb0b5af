//! `toll-endpoint`: the native end of one trial, started by the agent.

use std::os::fd::RawFd;
use std::process::ExitCode;

use clap::Parser;

/// The native end of one trial. Started by toll-agent, which configures it over the control socket.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Number of an inherited Unix stream socket, over which the agent configures this end and hears of it.
    #[arg(long, value_name = "N")]
    control_fd: RawFd,
}

fn main() -> ExitCode {
    toll_endpoint::end::run(Arguments::parse().control_fd).into()
}
