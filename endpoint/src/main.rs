//! `toll-endpoint`: the native end of one trial, started by the agent.

use std::os::fd::RawFd;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use toll_child::confinement::Confinement;
use toll_endpoint::end::{self, Exit};
use toll_endpoint::iperf3;
use toll_protocol::printable::printable;

/// The native end of one trial. Started by toll-agent, which configures it over the control socket.
#[derive(Debug, Parser)]
#[command(version, subcommand_negates_reqs = true)]
struct Arguments {
    /// Number of an inherited Unix stream socket, over which the agent configures this end and hears of it.
    #[arg(long, value_name = "N", required = true)]
    control_fd: Option<RawFd>,
    /// User and group to become once what needs a right is open [default: those that it was started with].
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)))]
    user: Option<u32>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says which iperf3 an end would run, and the congestion control that it would get.
    Iperf3,
}

fn main() -> ExitCode {
    let Arguments { control_fd, user, command } = Arguments::parse();
    let confinement = Confinement { user };
    match (command, control_fd) {
        (None, Some(control_fd)) => end::run(control_fd, confinement).into(),
        (None, None) => {
            eprintln!("toll-endpoint: --control-fd is needed");
            Exit::Failed.into()
        }
        (Some(Command::Iperf3), _) => match iperf3::found(confinement) {
            Ok([version, congestion]) => {
                println!("{}\n{}", printable(&version), printable(&congestion));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("toll-endpoint: {}", printable(&end::chain(&error)));
                Exit::Failed.into()
            }
        },
    }
}
