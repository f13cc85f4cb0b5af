//! The iperf3 process: started so that it can't outlive this one, its output taken within bounds.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};

use crate::control::{Control, ControlError};

/// The longest report taken: an hour at 10 lines a second is under 30 MB.
const MAX_OUTPUT: usize = 64 << 20;
/// Bytes that are read of what it says of its version: three short lines.
const LONGEST_VERSION: u64 = 4 << 10;

/// Why iperf3 could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It is not there.
    #[error("it is not installed, or not in PATH (Debian: apt-get install iperf3)")]
    NotInstalled,
    /// It could not be started, or waited for.
    #[error("{call} failed")]
    Io {
        /// The call.
        call: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
    /// Something of that name answers otherwise.
    #[error("`iperf3 --version` says nothing of iperf 3 ({0})")]
    Foreign(ExitStatus),
    /// It writes without end.
    #[error("it wrote over {MAX_OUTPUT} bytes")]
    TooMuch,
    /// The control socket ended the wait.
    #[error(transparent)]
    Control(ControlError),
}

/// What iperf3 left behind.
#[derive(Debug)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its report.
    pub stdout: Vec<u8>,
    /// Its complaints.
    pub stderr: Vec<u8>,
}

/// A running iperf3, killed when it is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Pipe<ChildStdout>,
    stderr: Pipe<ChildStderr>,
}

fn io(call: &'static str) -> impl Fn(std::io::Error) -> ProcessError {
    move |source| match source.kind() {
        ErrorKind::NotFound if call == "execve" => ProcessError::NotInstalled,
        _ => ProcessError::Io { call, source },
    }
}

/// iperf3, which inherits nothing of the environment but the PATH that it is looked for in.
fn command() -> Command {
    let mut command = Command::new("iperf3");
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path))).stdin(Stdio::null());
    command
}

/// What `iperf3 --version` says first: `iperf 3.12 (cJSON 1.7.15)`.
///
/// # Errors
/// [`ProcessError`], [`ProcessError::NotInstalled`] if it is not there.
pub fn version() -> Result<String, ProcessError> {
    let mut command = command();
    command.arg("--version").stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(io("execve"))?;
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // One that says more than that finds its pipe closed.
        stdout.take(LONGEST_VERSION).read_to_end(&mut text).map_err(io("read"))?;
    }
    let status = child.wait().map_err(io("wait"))?;
    let text = String::from_utf8_lossy(&text);
    let first = text.lines().next().filter(|line| status.success() && line.starts_with("iperf 3"));
    first.map(str::to_owned).ok_or(ProcessError::Foreign(status))
}

/// Whether somebody in this network namespace listens on `address`, by /proc/net/tcp (proc(5)).
///
/// # Errors
/// [`ProcessError::Io`] if the table can't be read.
pub fn listens(address: SocketAddrV4) -> Result<bool, ProcessError> {
    let failed = io("read of /proc/self/net/tcp");
    let table = File::open("/proc/self/net/tcp").map_err(&failed)?;
    // Line by line: a host may have a million sockets. The kernel's lines are short.
    for line in BufReader::new(table).lines() {
        if line_listens(&line.map_err(&failed)?, address) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn line_listens(line: &str, address: SocketAddrV4) -> bool {
    /// TCP_LISTEN of the kernel's net/tcp_states.h.
    const LISTEN: &str = "0A";
    // The table prints the address as a number in the machine's byte order.
    let number = u32::from_ne_bytes(address.ip().octets());
    let local = format!("{number:08X}:{:04X}", address.port());
    let mut fields = line.split_whitespace().skip(1);
    fields.next() == Some(local.as_str()) && fields.nth(1) == Some(LISTEN)
}

impl Running {
    /// Starts it. Must be called by the main thread: the kernel's order to die with the parent is bound to the
    /// thread that started the child (prctl(2), PR_SET_PDEATHSIG).
    ///
    /// # Errors
    /// [`ProcessError::NotInstalled`] or [`ProcessError::Io`].
    pub fn start(arguments: &[String]) -> Result<Self, ProcessError> {
        let mut command = command();
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let parent = getpid();
        let die_with_parent = move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // A parent that was gone before the line above can't send the signal.
            if getppid() == parent { Ok(()) } else { Err(ErrorKind::BrokenPipe.into()) }
        };
        // SAFETY: between fork and exec the closure makes two system calls (prctl, getppid) and neither allocates
        // nor locks.
        unsafe { command.pre_exec(die_with_parent) };
        let mut child = command.spawn().map_err(io("execve"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Ok(Self { child, stdout: Pipe::new(stdout)?, stderr: Pipe::new(stderr)? })
    }

    /// Its output if it has ended, else `None`.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn ended(&mut self) -> Result<Option<Output>, ProcessError> {
        let Some(status) = self.child.try_wait().map_err(io("waitpid"))? else { return Ok(None) };
        self.stdout.take()?;
        self.stderr.take()?;
        let (stdout, stderr) =
            (std::mem::take(&mut self.stdout.bytes), std::mem::take(&mut self.stderr.bytes));
        Ok(Some(Output { status, stdout, stderr }))
    }

    /// Waits for its end and gives its output; `None` if the deadline came first. Killed in that case, and
    /// whenever the wait fails.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn output(
        mut self,
        control: &mut Control,
        deadline: Duration,
    ) -> Result<Option<Output>, ProcessError> {
        // Both pipes end when the process does: it has no children of its own.
        while self.stdout.pipe.is_some() || self.stderr.pipe.is_some() {
            let out = self.stdout.pipe.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLIN));
            let err = self.stderr.pipe.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLIN));
            let fds: Vec<_> = out.into_iter().chain(err).collect();
            if control.wait(&fds, Some(deadline)).map_err(ProcessError::Control)?.is_none() {
                return Ok(None);
            }
            self.stdout.take()?;
            self.stderr.take()?;
        }
        let status = self.child.wait().map_err(io("waitpid"))?;
        let (stdout, stderr) =
            (std::mem::take(&mut self.stdout.bytes), std::mem::take(&mut self.stderr.bytes));
        Ok(Some(Output { status, stdout, stderr }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pipe read without blocking, and what came of it.
#[derive(Debug)]
struct Pipe<T> {
    /// `None` after its end.
    pipe: Option<T>,
    bytes: Vec<u8>,
}

impl<T: Read + AsFd> Pipe<T> {
    fn new(pipe: Option<T>) -> Result<Self, ProcessError> {
        if let Some(pipe) = &pipe {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| io("fcntl")(errno.into()))?;
        }
        Ok(Self { pipe, bytes: Vec::new() })
    }

    /// Takes what is there.
    fn take(&mut self) -> Result<(), ProcessError> {
        let mut buffer = [0; 16 << 10];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(length) if self.bytes.len() + length > MAX_OUTPUT => return Err(ProcessError::TooMuch),
                Ok(length) => self.bytes.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io("read")(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:176F 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21077 1 0000000000000000 100 0 0 10 0
   1: 0100007F:A2C4 0100007F:176F 01 00000000:00000000 00:00000000 00000000     0        0 20085 1 0000000000000000 20 4 30 10 -1
";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_table_tells_listening_from_connected() {
        let listens =
            |text: &str| TABLE.lines().any(|line| line_listens(line, text.parse().expect("an address")));
        assert!(listens("127.0.0.1:5999"));
        assert!(!listens("127.0.0.1:41668"), "connected");
        assert!(!listens("127.0.0.2:5999") && !listens("127.0.0.1:5998"));
        assert!(!line_listens("", "127.0.0.1:5999".parse().expect("an address")));
    }
}
