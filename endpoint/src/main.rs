//! `toll-endpoint`: the native end of one trial, started by the agent.

use std::os::fd::RawFd;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use toll_child::confinement::{Confinement, end_processes_of};
use toll_endpoint::end::{self, Exit};
use toll_endpoint::iperf3;
use toll_protocol::error::chain;
use toll_protocol::printable::printable;

/// The native end of one trial. Started by toll-agent, which configures it over the control socket.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    /// Number of an inherited Unix stream socket, over which the agent configures this end and hears of it.
    #[arg(long, value_name = "N")]
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
    /// Ends all processes of the user, as one of them. It must be of nobody but a trial that is over.
    EndUser,
}

fn main() -> ExitCode {
    let Arguments { control_fd, user, command } = Arguments::parse();
    let confinement = Confinement { user };
    match (command, control_fd, user) {
        (None, Some(control_fd), _) => end::run(control_fd, confinement).into(),
        (None, None, _) => failed("--control-fd is needed"),
        (Some(Command::Iperf3), ..) => match iperf3::found(confinement) {
            Ok([version, congestion]) => {
                println!("{}\n{}", printable(&version), printable(&congestion));
                ExitCode::SUCCESS
            }
            Err(error) => failed(&chain(&error)),
        },
        (Some(Command::EndUser), _, Some(user)) => match end_processes_of(user) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&chain(&error)),
        },
        (Some(Command::EndUser), _, None) => failed("end-user needs --user"),
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("toll-endpoint: {}", printable(why));
    Exit::Failed.into()
}
