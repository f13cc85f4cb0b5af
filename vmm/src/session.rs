//! The session of one trial with the agent: runs one end from its configuration to its report, on the control thread.
//!
//! ```text
//! CONFIGURE --Configure: port and KVM opened, rights given up, PortOpened--> ATTACH --PortAttached: program started--> BOOT
//!   BOOT --phase READY: Ready--> START --Start: Command written--> RUN
//!   RUN --phase MEASURE--> samples every 100 ms --phase MEASURED--> RUN --program ended--> Done
//! ```
//! Anything else (a message out of turn, a program that ends early, a deadline that passes) ends in `Failed`. The
//! end of the socket ends the process at once, from any state; so does a control thread that hangs, by SIGALRM.

use std::io::{self, Read, Write};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::alarm;
use toll_child::confinement::{Confinement, ConfinementError};
use toll_child::contention::host_cpu;
use toll_guest_abi::phase;
use toll_protocol::child::{ChildCommand, ChildEvent, VmmConfig};
use toll_protocol::cpu::HostCpu;
use toll_protocol::frame::{Decoder, FrameError, encode};
use toll_protocol::report::{EndReport, Failure, Flag, Sample};
use toll_protocol::units::Span;
use toll_protocol::validity;
use toll_vnic::port::PortError;
use toll_vnic::port::capture::HEADER_BYTES;

use crate::boot::Program;
use crate::channel::Event;
use crate::claim::ClaimError;
use crate::config::{ConfigError, EndConfig};
use crate::footprint;
use crate::kvm::KvmError;
use crate::ports;
use crate::recording::Recording;
use crate::runner::{self, Devices, Runner, StartError};

/// Time between two samples.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// How long a stopped program may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// The control thread looks around at least this often...
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// ...and the kernel ends the process if it hasn't for so many seconds, stuck in a write to an agent that doesn't
/// read or anywhere else.
const WATCHDOG_SECONDS: u32 = 10;

/// Why the end failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The agent's end of the socket is closed: there is nobody to tell.
    #[error("the agent has closed the control socket")]
    Closed,
    /// The socket.
    #[error("the control socket failed")]
    Socket(#[from] io::Error),
    /// A message that is none.
    #[error("the agent sent what is no message")]
    Frame(#[from] FrameError),
    /// A message out of turn.
    #[error("the agent sent {got} where {expected} was due")]
    OutOfTurn {
        /// What came.
        got: &'static str,
        /// What was due.
        expected: &'static str,
    },
    /// The configuration.
    #[error("the configuration is not possible")]
    Config(#[from] ConfigError),
    /// The port.
    #[error("the end has no port")]
    Port(#[from] PortError),
    /// KVM.
    #[error("the guest could not be run")]
    Kvm(#[from] KvmError),
    /// Its rights.
    #[error("the end's process could not give up its rights")]
    Confinement(#[from] ConfinementError),
    /// Starting.
    #[error("the end could not be started")]
    Start(#[from] StartError),
    /// The program, or the machine below it, failed.
    #[error("{}", .0.reason)]
    Program(Failure),
    /// The program did not get where it should in time.
    #[error("the end was not {state} {after:?} after {since}{}", .stopped.as_ref().map_or(String::new(), |f| format!(" ({})", f.reason)))]
    Deadline {
        /// What it should have been.
        state: &'static str,
        /// The limit.
        after: Duration,
        /// From when on.
        since: &'static str,
        /// What its thread said when it was stopped.
        stopped: Option<Failure>,
    },
    /// The program's figures.
    #[error("the end's figures are not believed")]
    Claim(#[from] ClaimError),
}

/// How an end came out.
#[derive(Debug)]
pub enum Outcome {
    /// `Done` was sent.
    Done,
    /// `Failed` was sent.
    Failed(Failure),
}

/// What the control thread has seen of the measured interval.
#[derive(Debug, Default)]
struct Observed {
    /// Every 100 ms.
    samples: Vec<Sample>,
    /// CPU times of the host when it began and when it ended, where they could be read.
    host: (Option<HostCpu>, Option<HostCpu>),
}

impl Observed {
    fn host_cpu(&self) -> Option<HostCpu> {
        let (begin, end) = self.host;
        end?.since(&begin?)
    }
}

/// What the control thread waits for.
enum Happening {
    Command(Box<ChildCommand<VmmConfig>>),
    Event(Event),
    Time,
}

/// Runs one end on behalf of the agent at the other end of `socket`, in `confinement` once all that needs a right is open.
/// The process has no other thread.
///
/// # Errors
/// [`SessionError::Closed`], or another one if the agent can't be told.
pub fn serve(socket: UnixStream, confinement: Confinement) -> Result<Outcome, SessionError> {
    let mut session = Session { socket, decoder: Decoder::default(), confinement };
    let result = session.run_end();
    let outcome = match result {
        Ok(report) => session.send(&ChildEvent::Done(Box::new(report))).map(|()| Outcome::Done),
        Err(SessionError::Closed) => Err(SessionError::Closed),
        Err(error) => {
            let failure = describe(error);
            session.send(&ChildEvent::Failed(failure.clone())).map(|()| Outcome::Failed(failure))
        }
    };
    alarm::cancel();
    outcome
}

fn describe(error: SessionError) -> Failure {
    match error {
        SessionError::Program(failure) => failure,
        SessionError::Deadline { stopped: Some(ref failure), .. } => {
            Failure { reason: error.to_string(), last_words: failure.last_words.clone() }
        }
        error => crate::failure(&error, Vec::new()),
    }
}

struct Session {
    socket: UnixStream,
    decoder: Decoder,
    confinement: Confinement,
}

impl Session {
    fn run_end(&mut self) -> Result<EndReport, SessionError> {
        let config = match self.command("Configure")? {
            ChildCommand::Configure(config) => EndConfig::try_from(config)?,
            other => return Err(out_of_turn(&other, "Configure")),
        };
        let devices = Devices::open(&config, ports::open(&config)?)?;
        // All its threads come later.
        let capture = config.capture.as_ref().map_or(0, |(capture, _)| capture.limit.0.max(HEADER_BYTES));
        self.confinement.enter(capture)?;
        self.send(&ChildEvent::PortOpened)?;
        match self.command("PortAttached")? {
            ChildCommand::PortAttached => {}
            other => return Err(out_of_turn(&other, "PortAttached")),
        }
        let runner = runner::start(&config, Program::Traffic, devices)?;
        self.boot(&runner, config.deadline)?;
        self.send(&ChildEvent::Ready(runner.dialogue().ready()))?;
        // Nobody waits for it now: the guest is idle until its peer is ready too.
        let overhead = footprint::beside(runner.pages().memory());
        let peer = self.await_start(&runner)?;
        runner.start_traffic(peer);
        let (recording, observed) = self.measure(&runner, config.deadline)?;
        let host_cpu = observed.host_cpu();
        let mut report = recording.report(&config.job, observed.samples)?;
        report.overhead = overhead;
        report.host_cpu = host_cpu;
        report.flags.extend(host_cpu.filter(HostCpu::is_stolen).map(|_| Flag::Steal));
        report.flags.extend(config.capture.as_ref().map(|_| Flag::Captured));
        report.flags.extend(config.impairments.map(|_| Flag::Impaired));
        if config.job.direction.receives()
            && validity::stands_still(&report.samples, report.interval, report.received_bytes)
        {
            report.flags.push(Flag::Stalled);
        }
        Ok(report)
    }

    fn boot(&mut self, runner: &Runner, limit: Duration) -> Result<(), SessionError> {
        let deadline = Instant::now() + limit;
        loop {
            match self.next(Some(runner), Some(deadline))? {
                Happening::Event(Event::Phase(phase::READY, _)) => return Ok(()),
                Happening::Event(event) => ended_early(event)?,
                Happening::Command(command) => return Err(out_of_turn(&command, "nothing")),
                Happening::Time => return Err(stop(runner, "ready", limit, "its start")),
            }
        }
    }

    fn await_start(&mut self, runner: &Runner) -> Result<SocketAddrV4, SessionError> {
        loop {
            match self.next(Some(runner), None)? {
                Happening::Command(command) => match *command {
                    ChildCommand::Start { peer } => return Ok(peer),
                    command => return Err(out_of_turn(&command, "Start")),
                },
                // A listening program's peer may be quicker than our agent.
                Happening::Event(event) => ended_early(event)?,
                Happening::Time => {}
            }
        }
    }

    fn measure(
        &mut self,
        runner: &Runner,
        limit: Duration,
    ) -> Result<(Box<Recording>, Observed), SessionError> {
        let deadline = Instant::now() + limit;
        let mut observed = Observed::default();
        // While the interval is measured: when it began.
        let mut measuring: Option<Instant> = None;
        loop {
            let due = measuring.map(|start| start + SAMPLE_EVERY * (observed.samples.len() as u32 + 1));
            match self.next(Some(runner), Some(due.map_or(deadline, |due| due.min(deadline))))? {
                Happening::Event(Event::Phase(phase::MEASURE, at)) => {
                    measuring = Some(at);
                    observed.host.0 = host_cpu();
                }
                Happening::Event(Event::Phase(phase::MEASURED, _)) => {
                    measuring = None;
                    observed.host.1 = host_cpu();
                }
                Happening::Event(Event::Phase(..)) => {}
                Happening::Event(Event::Ended(Ok(recording))) => return Ok((recording, observed)),
                Happening::Event(Event::Ended(Err(failure))) => return Err(SessionError::Program(failure)),
                Happening::Command(command) => return Err(out_of_turn(&command, "nothing")),
                Happening::Time => {
                    let now = Instant::now();
                    if now >= deadline {
                        return Err(stop(runner, "done", limit, "Start"));
                    }
                    if let Some(start) = measuring.filter(|_| due.is_some_and(|due| now >= due)) {
                        let at = Span::from(now.saturating_duration_since(start));
                        let (sent_bytes, received_bytes) = runner.dialogue().progress();
                        let sample = Sample { at, sent_bytes, received_bytes };
                        observed.samples.push(sample);
                        self.send(&ChildEvent::Sample(sample))?;
                    }
                }
            }
        }
    }

    /// Waits for a message of the agent, an event of the program, or `until`.
    fn next(&mut self, runner: Option<&Runner>, until: Option<Instant>) -> Result<Happening, SessionError> {
        loop {
            alarm::set(WATCHDOG_SECONDS);
            if let Some(command) = self.decoder.next_message()? {
                return Ok(Happening::Command(Box::new(command)));
            }
            if let Some(event) = runner.and_then(Runner::take_event) {
                return Ok(Happening::Event(event));
            }
            let now = Instant::now();
            let wait = match until.map(|until| until.saturating_duration_since(now)) {
                Some(Duration::ZERO) => return Ok(Happening::Time),
                Some(left) => left.min(LOOK_EVERY),
                None => LOOK_EVERY,
            };
            // Whole milliseconds, rounded up: a timeout of 0 would make this loop spin to the end of the wait.
            let timeout =
                PollTimeout::try_from(wait + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            let socket = PollFd::new(self.socket.as_fd(), PollFlags::POLLIN);
            let news = PollFd::new(runner.map_or(self.socket.as_fd(), Runner::events_fd), PollFlags::POLLIN);
            let mut fds = [socket, news];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(SessionError::Socket(errno.into())),
            }
            if fds[0].revents().is_some_and(|events| !events.is_empty()) {
                self.receive()?;
            }
        }
    }

    fn command(&mut self, expected: &'static str) -> Result<ChildCommand<VmmConfig>, SessionError> {
        loop {
            match self.next(None, None)? {
                Happening::Command(command) => return Ok(*command),
                Happening::Event(_) => return Err(SessionError::OutOfTurn { got: "an event", expected }),
                Happening::Time => {}
            }
        }
    }

    fn receive(&mut self) -> Result<(), SessionError> {
        let mut bytes = [0; 4096];
        match self.socket.read(&mut bytes) {
            Ok(0) => Err(SessionError::Closed),
            Ok(length) => {
                self.decoder.push(&bytes[..length]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(SessionError::Closed),
            Err(error) => Err(SessionError::Socket(error)),
        }
    }

    fn send(&mut self, event: &ChildEvent) -> Result<(), SessionError> {
        match self.socket.write_all(&encode(event)?) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(SessionError::Closed),
            sent => Ok(sent?),
        }
    }
}

/// Stops a program that is late.
fn stop(runner: &Runner, state: &'static str, after: Duration, since: &'static str) -> SessionError {
    let stopped = runner.stop(STOP_PATIENCE).and_then(Result::err);
    SessionError::Deadline { state, after, since, stopped }
}

/// A program that ends before it was started has failed, even if it says otherwise.
fn ended_early(event: Event) -> Result<(), SessionError> {
    match event {
        Event::Phase(..) => Ok(()),
        Event::Ended(Err(failure)) => Err(SessionError::Program(failure)),
        Event::Ended(Ok(_)) => {
            Err(SessionError::Program(Failure::new("the program ended before it was started")))
        }
    }
}

fn out_of_turn(command: &ChildCommand<VmmConfig>, expected: &'static str) -> SessionError {
    let got = match command {
        ChildCommand::Configure(_) => "Configure",
        ChildCommand::PortAttached => "PortAttached",
        ChildCommand::Start { .. } => "Start",
    };
    SessionError::OutOfTurn { got, expected }
}
