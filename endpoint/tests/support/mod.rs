//! A `toll-endpoint` process as an agent runs it: its control socket, its events, its end.
#![allow(dead_code, reason = "each test uses a part")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::Serialize;
use toll_protocol::child::{ChildCommand, ChildEvent, EndpointConfig};
use toll_protocol::frame::{Decoder, encode};
use toll_protocol::report::{EndReport, Failure, Sample};
use toll_protocol::traffic::stream::Stream;
use toll_protocol::traffic::{Job, Timing, Traffic};
use toll_protocol::trial::{Direction, NativeProgram, Open, TrialId};
use toll_protocol::units::{Bytes, InterfaceAddress, Span};

pub const WARM_UP: Span = Span::from_millis(100);
pub const DURATION: Span = Span::from_millis(500);

/// The program: cargo names it to a test, and an example finds it beside its own folder.
fn program() -> PathBuf {
    let beside = || std::env::current_exe().expect("a path").with_file_name("../toll-endpoint");
    option_env!("CARGO_BIN_EXE_toll-endpoint").map_or_else(beside, PathBuf::from)
}

/// A running `toll-endpoint`, with the agent's end of its control socket; killed when dropped.
pub struct End {
    pub process: Child,
    pub socket: UnixStream,
    decoder: Decoder,
    pub samples: Vec<Sample>,
}

impl End {
    pub fn spawn() -> Self {
        Self::spawn_with(Stdio::inherit())
    }

    pub fn spawn_with(stderr: Stdio) -> Self {
        let (socket, theirs) = UnixStream::pair().expect("a socket pair");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
        let mut command = Command::new(program());
        command.arg("--control-fd").arg(theirs.as_raw_fd().to_string()).stdin(Stdio::null()).stderr(stderr);
        // Only the child's own copy loses its close-on-exec flag: ends that other tests start at the same time
        // must not inherit it, as it would keep the socket open.
        let inherit = move || {
            fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes one system call, which neither allocates nor locks.
        unsafe { command.pre_exec(inherit) };
        let process = command.spawn().expect("toll-endpoint starts");
        // It holds the child's end of the socket, which must be open in the child alone.
        drop(command);
        Self { process, socket, decoder: Decoder::default(), samples: Vec::new() }
    }

    pub fn configured(config: EndpointConfig) -> Self {
        let mut end = Self::spawn();
        end.send(&ChildCommand::Configure(config));
        end
    }

    pub fn send<T: Serialize>(&mut self, command: &T) {
        self.socket.write_all(&encode(command).expect("encodes")).expect("the end reads");
    }

    pub fn start(&mut self, peer: SocketAddrV4) {
        self.send(&ChildCommand::<EndpointConfig>::Start { peer });
    }

    /// The next event, or `None` at the end of the socket.
    pub fn event(&mut self) -> Option<ChildEvent> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(event) = self.decoder.next_message().expect("a well-formed event") {
                return Some(event);
            }
            match self.socket.read(&mut buffer).expect("an event within the time limit") {
                0 => return None,
                length => self.decoder.push(&buffer[..length]),
            }
        }
    }

    pub fn ready(&mut self) -> SocketAddrV4 {
        match self.event() {
            Some(ChildEvent::Ready(ready)) => ready.address,
            other => fail(&format!("ready was due, and {other:?} came")),
        }
    }

    /// Its last message, after which it must close the socket and exit with the code for it.
    pub fn result(mut self) -> (Result<EndReport, Failure>, Vec<Sample>) {
        let result = loop {
            match self.event() {
                Some(ChildEvent::Sample(sample)) => self.samples.push(sample),
                Some(ChildEvent::Done(report)) => break Ok(*report),
                Some(ChildEvent::Failed(failure)) => break Err(failure),
                other => fail(&format!("a last message was due, and {other:?} came")),
            }
        };
        assert_eq!(self.event(), None, "nothing comes after the last message");
        let code = self.process.wait().expect("it exits").code();
        assert_eq!(code, Some(i32::from(result.is_err())), "exit code");
        (result, std::mem::take(&mut self.samples))
    }

    pub fn report(self) -> EndReport {
        let (result, samples) = self.result();
        let report = result.unwrap_or_else(|failure| fail(&format!("{failure:?}")));
        assert!(samples.is_empty() || samples == report.samples, "streamed and reported samples differ");
        report
    }

    pub fn failure(self) -> Failure {
        match self.result().0 {
            Err(failure) => failure,
            Ok(report) => fail(&format!("a failure was due: {report:?}")),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[expect(clippy::panic, reason = "a test fails by a panic; clippy takes only #[test] functions for tests")]
pub fn fail(why: &str) -> ! {
    panic!("{why}")
}

pub fn config(direction: Direction, open: Open, write_size: u64) -> EndpointConfig {
    EndpointConfig {
        trial: TrialId::new(7),
        program: NativeProgram::Endpoint,
        address: InterfaceAddress { address: Ipv4Addr::LOCALHOST, prefix: 8 },
        interface: "lo".to_owned(),
        segment: None,
        job: Job {
            open,
            direction,
            timing: Timing { warm_up: WARM_UP, duration: DURATION },
            traffic: Traffic::Stream(Stream { write_size: Bytes(write_size), ..Stream::default() }),
        },
        cpu: None,
        deadline: Span::from_millis(8_000),
    }
}

/// Runs two ends against each other: the listener's report, then the connector's.
pub fn pair(listener: EndpointConfig, connector: EndpointConfig) -> (EndReport, EndReport) {
    let (mut listener, mut connector) = (End::configured(listener), End::configured(connector));
    let (address, nowhere) = (listener.ready(), connector.ready());
    assert_eq!(nowhere.port(), 0, "a connecting end listens nowhere");
    listener.start(nowhere);
    connector.start(address);
    (listener.report(), connector.report())
}
