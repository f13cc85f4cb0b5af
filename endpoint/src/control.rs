//! The agent's end of the control socket: commands in, events out, and the one place where the process waits.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use toll_protocol::child::{ChildCommand, ChildEvent, EndpointConfig};
use toll_protocol::frame::{Decoder, FrameError, encode};

use crate::clock::Clock;

type Command = ChildCommand<EndpointConfig>;

/// How long the agent may leave a full socket unread.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Why the control socket is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The agent closed it: an order to exit at once.
    #[error("the agent closed the control socket")]
    Closed,
    /// The descriptor is none, or no Unix stream socket.
    #[error("descriptor {descriptor} is no Unix stream socket of the agent's")]
    Descriptor {
        /// Its number.
        descriptor: RawFd,
        /// The system's word.
        source: std::io::Error,
    },
    /// A message is malformed.
    #[error("the agent's message is malformed")]
    Frame(#[from] FrameError),
    /// A command came out of order.
    #[error("the agent sent `{command}` where {expected} was expected")]
    Unexpected {
        /// What came.
        command: &'static str,
        /// What was due.
        expected: &'static str,
    },
    /// A system call failed.
    #[error("{call} failed on the control socket")]
    Io {
        /// The call.
        call: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
}

/// The control socket.
#[derive(Debug)]
pub struct Control {
    socket: UnixStream,
    decoder: Decoder,
    clock: Clock,
}

impl Control {
    /// Takes over an inherited descriptor, and keeps children of this process from inheriting it too: an end of
    /// the socket held by one of them would hide the agent's order to exit.
    ///
    /// # Errors
    /// [`ControlError::Descriptor`].
    pub fn from_descriptor(descriptor: RawFd, clock: Clock) -> Result<Self, ControlError> {
        let error = |source: std::io::Error| ControlError::Descriptor { descriptor, source };
        if descriptor <= libc::STDERR_FILENO {
            return Err(error(ErrorKind::InvalidInput.into()));
        }
        // SAFETY: descriptors above 2 that are open this early were handed over by the agent; nothing else in
        // this process owns them. fcntl refuses one that is not open, before anything can reuse its number.
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        if let Err(errno) = fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
            // Closing what is not open would be the fault of an owner that it does not have.
            std::mem::forget(owned);
            return Err(error(errno.into()));
        }
        let socket = UnixStream::from(owned);
        socket.local_addr().map_err(error)?;
        Self::new(socket, clock).map_err(error)
    }

    fn new(socket: UnixStream, clock: Clock) -> std::io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(WRITE_LIMIT))?;
        Ok(Self { socket, decoder: Decoder::default(), clock })
    }

    /// The clock that moments of [`wait`](Self::wait) are on.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Tells the agent.
    ///
    /// # Errors
    /// [`ControlError`] if it can't be told.
    pub fn send(&mut self, event: &ChildEvent) -> Result<(), ControlError> {
        let bytes = encode(event)?;
        self.socket.write_all(&bytes).map_err(|source| match source.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => ControlError::Closed,
            _ => ControlError::Io { call: "send", source },
        })
    }

    /// Waits for the configuration.
    ///
    /// # Errors
    /// [`ControlError`], [`ControlError::Unexpected`] for another command.
    pub fn configuration(&mut self) -> Result<EndpointConfig, ControlError> {
        match self.command()? {
            ChildCommand::Configure(config) => Ok(config),
            other => Err(unexpected(&other, "`configure`")),
        }
    }

    /// Waits for the order to start; the peer it names.
    ///
    /// # Errors
    /// [`ControlError`], [`ControlError::Unexpected`] for another command.
    pub fn start(&mut self) -> Result<SocketAddrV4, ControlError> {
        match self.command()? {
            ChildCommand::Start { peer } => Ok(peer),
            other => Err(unexpected(&other, "`start`")),
        }
    }

    fn command(&mut self) -> Result<Command, ControlError> {
        loop {
            if let Some(command) = self.decoder.next_message()? {
                return Ok(command);
            }
            self.receive()?;
        }
    }

    /// Waits until a descriptor of `others` has one of its events or `until` has come. The events of each, in
    /// their order, or `None` when it is time. The agent's order to exit ends the wait, and so does any command:
    /// none is due while an end works.
    ///
    /// # Errors
    /// [`ControlError::Closed`], [`ControlError::Unexpected`], or what the socket says.
    pub fn wait(
        &mut self,
        others: &[(BorrowedFd<'_>, PollFlags)],
        until: Option<Duration>,
    ) -> Result<Option<Vec<PollFlags>>, ControlError> {
        loop {
            if let Some(command) = self.decoder.next_message::<Command>()? {
                return Err(unexpected(&command, "nothing"));
            }
            let timeout = until.map(|until| TimeSpec::from(until.saturating_sub(self.clock.now())));
            let mut fds = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            fds.extend(others.iter().map(|(fd, events)| PollFd::new(*fd, *events)));
            match ppoll(&mut fds, timeout, None) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(ControlError::Io { call: "ppoll", source: errno.into() }),
                Ok(0) => return Ok(None),
                Ok(_) => {}
            }
            let mut events: Vec<_> =
                fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
            if !events.remove(0).is_empty() {
                self.receive()?;
            } else {
                return Ok(Some(events));
            }
        }
    }

    /// Reads once; blocks until there is something.
    fn receive(&mut self) -> Result<(), ControlError> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(ControlError::Closed),
                Ok(length) => {
                    self.decoder.push(&buffer[..length]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(ControlError::Closed),
                Err(source) => return Err(ControlError::Io { call: "recv", source }),
            }
        }
    }
}

fn unexpected(command: &Command, expected: &'static str) -> ControlError {
    let command = match command {
        ChildCommand::Configure(_) => "configure",
        ChildCommand::PortAttached => "port-attached",
        ChildCommand::Start { .. } => "start",
    };
    ControlError::Unexpected { command, expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, Control) {
        let (agent, child) = UnixStream::pair().expect("a socket pair");
        (agent, Control::new(child, Clock::start()).expect("a control socket"))
    }

    #[test]
    fn the_end_of_the_socket_ends_every_wait() {
        let (agent, mut control) = pair();
        drop(agent);
        assert!(matches!(control.configuration(), Err(ControlError::Closed)));
        assert!(matches!(control.wait(&[], None), Err(ControlError::Closed)));
    }

    #[test]
    fn a_command_out_of_order_is_named() {
        let (mut agent, mut control) = pair();
        agent.write_all(&encode(&Command::PortAttached).expect("encodes")).expect("written");
        let error = control.configuration().expect_err("no configuration");
        assert_eq!(error.to_string(), "the agent sent `port-attached` where `configure` was expected");
        agent.write_all(&encode(&Command::PortAttached).expect("encodes")).expect("written");
        assert!(matches!(control.wait(&[], None), Err(ControlError::Unexpected { .. })));
    }

    #[test]
    fn a_wait_ends_at_its_moment_and_by_its_descriptor() {
        let (_agent, mut control) = pair();
        assert_eq!(control.wait(&[], Some(Duration::ZERO)).expect("waits"), None);
        let (mut near, far) = UnixStream::pair().expect("a socket pair");
        near.write_all(b"x").expect("written");
        let events = control.wait(&[(far.as_fd(), PollFlags::POLLIN)], None).expect("waits");
        assert_eq!(events, Some(vec![PollFlags::POLLIN]));
    }

    #[test]
    fn descriptors_that_are_no_socket_are_refused() {
        for descriptor in [-1, 0, 2, 1_000_000] {
            let error = Control::from_descriptor(descriptor, Clock::start()).expect_err("refused");
            assert!(matches!(error, ControlError::Descriptor { .. }), "{error}");
        }
    }
}
