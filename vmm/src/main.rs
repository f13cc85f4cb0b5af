//! `toll-vmm`: one virtual end, run on behalf of an agent.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use toll_child::confinement::Confinement;
use toll_protocol::printable::printable;
use toll_vmm::probe;
use toll_vmm::session::{Outcome, serve};

/// Runs one virtual end: a KVM guest, or a host process on the same adapter model.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    /// Descriptor of the Unix stream socket to the agent, inherited from it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    control_fd: Option<RawFd>,
    /// User and group to become once what needs a right is open [default: those that it was started with].
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)))]
    user: Option<u32>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says whether guests run here: runs some for a moment.
    Probe,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let confinement = Confinement { user: arguments.user };
    let result = match (arguments.command, arguments.control_fd) {
        (Some(Command::Probe), _) => probe(confinement),
        (None, Some(fd)) => run(fd, confinement),
        (None, None) => Err(anyhow::anyhow!("--control-fd is needed")),
    };
    result.unwrap_or_else(|error| {
        eprintln!("toll-vmm: {}", printable(&format!("{error:#}")));
        ExitCode::FAILURE
    })
}

/// The last line says it all; of a guest that failed its last words come before.
fn probe(confinement: Confinement) -> anyhow::Result<ExitCode> {
    probe::probe(confinement).inspect_err(|error| {
        for line in error.last_words() {
            eprintln!("{}", printable(line));
        }
    })?;
    println!("guests run");
    Ok(ExitCode::SUCCESS)
}

fn run(fd: RawFd, confinement: Confinement) -> anyhow::Result<ExitCode> {
    nix::fcntl::fcntl(
        // SAFETY: only borrowed for this call, which fails on a descriptor that is not open.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) },
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )
    .with_context(|| format!("descriptor {fd} is not open"))?;
    // SAFETY: open, as was just seen, and left to us by the process that started this one.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    match serve(socket, confinement)? {
        Outcome::Done => Ok(ExitCode::SUCCESS),
        Outcome::Failed(failure) => {
            eprintln!("toll-vmm: {}", printable(&failure.reason));
            Ok(ExitCode::FAILURE)
        }
    }
}
