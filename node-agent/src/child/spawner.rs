//! The one thread that starts processes. `PR_SET_PDEATHSIG` (prctl(2)) fires when the *thread* that forked ends,
//! not its process, and threads of a runtime come and go: so all children are forked by a thread that lives as
//! long as the [`Spawner`], and die with it however the agent ends.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getpid, getppid, kill_process_group, set_parent_process_death_signal};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::oneshot;

/// Bytes that are kept of each of a program's outputs: what one that is asked something answers is a few lines.
const LONGEST_ANSWER: u64 = 64 << 10;

/// What a child gets of the agent's environment, which may hold secrets and is none of its business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// Nothing.
    Empty,
    /// `PATH` alone, for one that looks for another program.
    Path,
}

/// A process to start, and where to answer.
struct Request {
    command: Command,
    answer: oneshot::Sender<io::Result<tokio::process::Child>>,
}

/// Starts child processes that die with the agent.
pub struct Spawner {
    /// `None` only while it is dropped.
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Spawner {
    /// Starts the thread. Children are watched by `runtime`.
    ///
    /// # Errors
    /// The system's, if there can be no thread.
    pub fn new(runtime: tokio::runtime::Handle) -> io::Result<Self> {
        let (requests, incoming) = mpsc::channel::<Request>();
        let thread = std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            let _runtime = runtime.enter();
            for Request { command, answer } in incoming {
                let child = tokio::process::Command::from(command).kill_on_drop(true).spawn();
                // Nobody waits for it any more: the answer is dropped here, and kills the child.
                drop(answer.send(child));
            }
        })?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Starts `program --control-fd N [--user UID]` in a process group of its own, with standard input and output at
    /// /dev/null and standard error piped; it inherits `socket` too, under the same number. The other end of the control
    /// socket is returned beside it.
    ///
    /// # Errors
    /// The system's, also those of the steps between fork and exec.
    pub(super) async fn spawn(
        &self,
        program: &Path,
        environment: Environment,
        user: Option<u32>,
        socket: Option<OwnedFd>,
    ) -> io::Result<(tokio::process::Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new(program);
        command
            .arg("--control-fd")
            .arg(theirs.as_raw_fd().to_string())
            .args(user.into_iter().flat_map(|user| ["--user".to_owned(), user.to_string()]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Ok((self.start(command, environment, [Some(theirs), socket]).await?, ours))
    }

    /// Runs a program that is to answer at once, and returns what it said first. One that takes longer than `limit` is killed
    /// with its process group.
    ///
    /// # Errors
    /// The system's, and [`io::ErrorKind::TimedOut`].
    pub async fn output(&self, program: &Path, arguments: &[&str], limit: Duration) -> io::Result<Output> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.start(command, Environment::Path, [None, None]).await?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // Its end and that of its pipes, which whatever it has started may hold.
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ended = async { tokio::try_join!(child.wait(), beginning(stdout), beginning(stderr)) };
        match tokio::time::timeout(limit, ended).await {
            Ok(ended) => ended.map(|(status, stdout, stderr)| Output { status, stdout, stderr }),
            Err(_) => {
                // Its number is its own: the leader has not been reaped, or others of the group are still there.
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let seconds = limit.as_secs();
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {seconds} s")))
            }
        }
    }

    /// Starts a process in a group of its own, which dies with the agent and gets `keep` of all its descriptors, and
    /// `environment` of all its variables.
    async fn start(
        &self,
        mut command: Command,
        environment: Environment,
        keep: [Option<OwnedFd>; 2],
    ) -> io::Result<tokio::process::Child> {
        command.process_group(0).env_clear();
        if environment == Environment::Path {
            command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        }
        let agent = getpid();
        // SAFETY: between fork and exec the closure makes system calls only, which are async-signal-safe
        // (signal-safety(7)): it neither allocates nor takes a lock. `keep` lives in the closure.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // The agent may have ended between fork and prctl: then the signal will never come.
                if getppid() != Some(agent) {
                    return Err(Errno::SRCH.into());
                }
                close_all_on_exec()?;
                for keep in keep.iter().flatten() {
                    fcntl_setfd(keep, FdFlags::empty())?;
                }
                Ok(())
            });
        }
        let (answer, child) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts processes has ended");
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(Request { command, answer }).map_err(|_| gone())?;
        child.await.map_err(|_| gone())?
    }
}

/// The beginning of what comes by a pipe. The rest is read too, so that its writer does not wait for ever.
async fn beginning(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(LONGEST_ANSWER).read_to_end(&mut text).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(text)
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that starts processes panicked");
        }
    }
}

/// Marks every descriptor beyond standard error close-on-exec: what the agent inherited (its private key among
/// it) is not for its children.
fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC takes no pointers and closes nothing that this process
    // uses: it is about to exec, and the descriptors stay open until it does.
    let status =
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
