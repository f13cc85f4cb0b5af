//! A native end whose traffic is produced by iperf3, run as a child of this process.
//!
//! ```text
//! listening end:   rights given up -> reserve a port -> iperf3 -s -1 -> it listens -> Ready -> Start --.
//! connecting end:  rights given up -> iperf3 is there -> Ready -> Start -> iperf3 -c ------------------+-> its end -> JSON -> Done
//!                                                        deadline, any error: kill <'
//! ```
//! iperf3's `-O` takes whole seconds and its sums cover the whole run. So it reports every 100 ms, and the
//! measured interval is cut from those reports: exact, for any warm-up. The CPU time of an interval can't be had
//! from it and is absent. iperf3 makes its sockets itself, without rights: it gets the first congestion control that the
//! host allows to anybody.

pub mod process;
pub mod report;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, getsockname, setsockopt, socket,
    sockopt,
};
use toll_child::confinement::{Confinement, ConfinementError};
use toll_protocol::report::EndReport;
use toll_protocol::traffic::Traffic;
use toll_protocol::trial::{CONGESTION_CONTROLS, Direction, Open};
use toll_protocol::units::Span;

use crate::clock::waited;
use crate::config::EndConfig;
use crate::control::{Control, ControlError};
use crate::iperf3::process::{Output, ProcessError, Running};
use crate::iperf3::report::ReportError;
use crate::socket::CONNECT_LIMIT;
use crate::traffic::stream::ready;

/// How long iperf3 may take from its start until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(5);
/// How often the kernel's table is looked at for the listening socket.
const LISTEN_POLL: Duration = Duration::from_millis(2);
/// How much longer than the job a run is at least: its two ends begin at different moments, and the client alone
/// ends it.
const SLACK: Duration = Duration::from_millis(200);
/// Lines of iperf3's own words that a failure carries at most.
const LAST_WORDS: usize = 20;

/// Why an iperf3 end gave no figure.
#[derive(Debug, thiserror::Error)]
pub enum Iperf3Error {
    /// The agent ended it, or can't be understood.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The process has rights that it was to give up.
    #[error("the end's process could not give up its rights")]
    Confinement(#[from] ConfinementError),
    /// The process could not be run.
    #[error("iperf3 could not be run")]
    Process(#[source] ProcessError),
    /// No port could be had for it.
    #[error("no port could be reserved for iperf3 on {address}")]
    Port {
        /// The end's address.
        address: SocketAddrV4,
        /// The system's word.
        source: nix::Error,
    },
    /// The kernel allows no congestion control that trials use to who has no right.
    #[error("iperf3 may use neither cubic nor reno: see net.ipv4.tcp_allowed_congestion_control")]
    Congestion,
    /// It is run for streams alone.
    #[error("iperf3 can't be run for `{0}`")]
    Traffic(&'static str),
    /// It ended with an error.
    #[error("iperf3 failed ({status}){}", said.as_deref().map(|said| format!(": {said}")).unwrap_or_default())]
    Failed {
        /// Its exit status.
        status: String,
        /// The error in its report.
        said: Option<String>,
        /// Its last lines.
        last_words: Vec<String>,
    },
    /// Somebody else took the place of the other end.
    #[error("iperf3 talked to {stranger:?}, and its peer is {peer}")]
    Stranger {
        /// Who, as iperf3 says.
        stranger: String,
        /// The other end.
        peer: Ipv4Addr,
    },
    /// Its report can't be used.
    #[error("iperf3's report can't be used")]
    Report(#[from] ReportError),
    /// Something did not happen in time; it was killed.
    #[error("waited {waited} for {what}; iperf3 was killed")]
    TimedOut {
        /// Since its start, or since `Start`.
        waited: Span,
        /// For what.
        what: &'static str,
    },
}

impl From<ProcessError> for Iperf3Error {
    fn from(error: ProcessError) -> Self {
        match error {
            ProcessError::Control(error) => Self::Control(error),
            error => Self::Process(error),
        }
    }
}

impl Iperf3Error {
    /// What iperf3 said, oldest first.
    pub fn last_words(&self) -> &[String] {
        match self {
            Self::Failed { last_words, .. } => last_words,
            _ => &[],
        }
    }
}

/// Runs the job, from readiness to the report, in `confinement`.
///
/// # Errors
/// [`Iperf3Error`].
pub fn run(
    control: &mut Control,
    config: &EndConfig,
    confinement: Confinement,
) -> Result<EndReport, Iperf3Error> {
    confinement.enter(0)?;
    let (running, peer, deadline, _reserved) = match config.job.open {
        Open::Listen => {
            let (reserved, address) = reserve(config)?;
            let mut running = Running::start(&server(config, address))?;
            until_listening(control, &mut running, address)?;
            let (peer, deadline) = ready(control, config, address)?;
            (running, peer, deadline, Some(reserved))
        }
        Open::Connect => {
            process::version()?;
            let (peer, deadline) = ready(control, config, config.bind)?;
            (Running::start(&client(config, peer)?)?, peer, deadline, None)
        }
    };
    let begin = control.clock().now();
    let Some(output) = running.output(control, deadline)? else {
        let waited = waited(begin, control.clock().now());
        return Err(Iperf3Error::TimedOut { waited, what: "iperf3 to finish" });
    };
    finish(&output, config, *peer.ip())
}

/// The iperf3 that an end would run, in `confinement` as in a trial: its version, and the congestion control of its sockets.
///
/// # Errors
/// [`Iperf3Error`] if none could be run.
pub fn found(confinement: Confinement) -> Result<[String; 2], Iperf3Error> {
    confinement.enter(0)?;
    Ok([process::version()?, congestion()?.to_owned()])
}

fn finish(output: &Output, config: &EndConfig, peer: Ipv4Addr) -> Result<EndReport, Iperf3Error> {
    let said = report::error(&output.stdout);
    if !output.status.success() || said.is_some() {
        let status = output.status.to_string();
        return Err(Iperf3Error::Failed { status, said, last_words: last_words(output) });
    }
    if let Some(stranger) = report::stranger(&output.stdout, peer) {
        return Err(Iperf3Error::Stranger { stranger, peer });
    }
    let timing = config.job.timing;
    Ok(report::parse(
        &output.stdout,
        config.job.direction,
        timing.warm_up.duration(),
        timing.duration.duration(),
    )?)
}

fn last_words(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].iter().map(|line| report::shortened(line)).collect()
}

/// Binds a port that the kernel chooses and keeps it: SO_REUSEADDR lets iperf3, which sets it too, listen
/// there, as this socket never does; nobody else is given the port meanwhile.
fn reserve(config: &EndConfig) -> Result<(OwnedFd, SocketAddrV4), Iperf3Error> {
    let address = config.bind;
    let failed = |source| Iperf3Error::Port { address, source };
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)
        .map_err(failed)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(failed)?;
    setsockopt(&fd, sockopt::BindToDevice, &config.interface).map_err(failed)?;
    let raw = fd.as_raw_fd();
    bind(raw, &SockaddrIn::from(address)).map_err(failed)?;
    let bound: SockaddrIn = getsockname(raw).map_err(failed)?;
    Ok((fd, SocketAddrV4::new(bound.ip(), bound.port())))
}

/// Arguments that both sides have in common.
fn common(config: &EndConfig, address: SocketAddrV4) -> Vec<String> {
    let mut arguments: Vec<String> = ["--json", "--interval", "0.1"].map(str::to_owned).into();
    arguments.extend(["--bind".to_owned(), config.bind.ip().to_string()]);
    // By an option of iperf3 3.10: no host with an older one is asked to run it.
    arguments.extend(["--bind-dev".to_owned(), config.interface.to_string_lossy().into_owned()]);
    arguments.extend(["--port".to_owned(), address.port().to_string()]);
    if let Some(cpu) = config.cpu {
        arguments.extend(["--affinity".to_owned(), cpu.to_string()]);
    }
    arguments
}

fn server(config: &EndConfig, address: SocketAddrV4) -> Vec<String> {
    let mut arguments = common(config, address);
    arguments.extend(["--server", "--one-off"].map(str::to_owned));
    arguments
}

fn client(config: &EndConfig, peer: SocketAddrV4) -> Result<Vec<String>, Iperf3Error> {
    let seconds = (config.job.timing.total().duration() + SLACK).as_millis().div_ceil(1_000);
    let mut arguments = common(config, peer);
    arguments.extend(["--client".to_owned(), peer.ip().to_string()]);
    arguments.extend(["--time".to_owned(), seconds.to_string()]);
    match &config.job.traffic {
        Traffic::Stream(stream) => {
            arguments.extend(["--length".to_owned(), stream.write_size.0.to_string()]);
            arguments.extend(["--parallel".to_owned(), stream.flows.to_string()]);
        }
        // No plan has them: see `config`.
        traffic @ (Traffic::Datagram(_) | Traffic::RequestResponse(_)) => {
            return Err(Iperf3Error::Traffic(traffic.field()));
        }
    }
    let congestion_control = match &config.sockets.congestion_control {
        Some(name) => name.clone(),
        None => congestion()?.to_owned(),
    };
    arguments.extend(["--congestion".to_owned(), congestion_control]);
    if let Some(dscp) = config.sockets.dscp {
        arguments.extend(["--tos".to_owned(), dscp.traffic_class().to_string()]);
    }
    if let Some(buffer) = config.sockets.buffer {
        arguments.extend(["--window".to_owned(), buffer.to_string()]);
    }
    arguments.extend(["--connect-timeout".to_owned(), CONNECT_LIMIT.as_millis().to_string()]);
    if let Some(segment) = config.sockets.segment {
        // Of the client alone: what it says in its SYN binds the server too.
        arguments.extend(["--set-mss".to_owned(), segment.to_string()]);
    }
    if config.job.direction == Direction::Receive {
        arguments.push("--reverse".to_owned());
    }
    Ok(arguments)
}

/// The first of [`CONGESTION_CONTROLS`] that a socket of this process may have.
fn congestion() -> Result<&'static str, Iperf3Error> {
    let probe = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)
        .map_err(|_| Iperf3Error::Congestion)?;
    let usable = |name: &&str| setsockopt(&probe, sockopt::TcpCongestion, &(*name).into()).is_ok();
    CONGESTION_CONTROLS.into_iter().find(usable).ok_or(Iperf3Error::Congestion)
}

/// Waits until the kernel's table of sockets has iperf3's as listening: a connection made to find out would be
/// the one that it serves.
fn until_listening(
    control: &mut Control,
    running: &mut Running,
    address: SocketAddrV4,
) -> Result<(), Iperf3Error> {
    let begin = control.clock().now();
    loop {
        if process::listens(address)? {
            return Ok(());
        }
        if let Some(output) = running.ended()? {
            let said = report::error(&output.stdout);
            let last_words = last_words(&output);
            return Err(Iperf3Error::Failed { status: output.status.to_string(), said, last_words });
        }
        let now = control.clock().now();
        if now.saturating_sub(begin) >= LISTEN_LIMIT {
            let waited = waited(begin, now);
            return Err(Iperf3Error::TimedOut { waited, what: "iperf3 to listen" });
        }
        // No descriptor tells of another process's socket, so the condition is looked at again and again.
        control.wait(&[], Some(now + LISTEN_POLL))?;
    }
}
