//! The process of one end: `toll-vmm` or `toll-endpoint`, watched from its start until it is reaped.
//!
//! ```text
//!   spawn --> watch: control socket -> events, standard error -> last words, commands -> control socket
//!               |
//!               | kill, or its exit, or a message that can't be understood (which kills it)
//!               v
//!             exited --> kill its process group --> reap --> drain socket and standard error --> Ended
//! ```
//! What has left the process group is ended with the child's user ([`Users::release`](crate::users::Users::release)).
//! A child is never dropped alive: dropping a [`Child`] kills and reaps it too.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Serialize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::ChildStderr;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use toll_protocol::child::{ChildCommand, ChildEvent};
use toll_protocol::error::chain;
use toll_protocol::frame::{Decoder, FrameError, encode};
use toll_protocol::report::Failure;

mod last_words;
mod spawner;

use last_words::LastWords;
pub use spawner::{Environment, Spawner};

/// How long a command may wait for the child to take it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long what a dead child has written may take to be read: only something that it left behind in another
/// process group can keep its descriptors open.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Why there is no child, or it can't be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started.
    #[error("{} could not be started", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A command could not be written as a message.
    #[error("a command for the end's process could not be encoded")]
    Encode(#[from] FrameError),
    /// It does not take commands any more.
    #[error("the end's process takes no more commands")]
    Gone,
}

/// What a child says, and its end.
#[derive(Debug)]
pub enum ChildReport {
    /// A message of its own, or [`ChildEvent::Failed`] for one that can't be understood.
    Said(ChildEvent),
    /// It is dead and reaped, and its process group killed; the last report. Why it ended, with its last words.
    Ended(Failure),
}

/// What to start.
#[derive(Debug)]
pub struct Start<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its environment.
    pub environment: Environment,
    /// Whom it becomes. `None`: it keeps the agent's user.
    pub user: Option<u32>,
    /// What it inherits beside the control socket.
    pub socket: Option<OwnedFd>,
}

impl<'a> Start<'a> {
    /// `program` with an empty environment, the agent's user and no other socket.
    pub const fn of(program: &'a Path) -> Self {
        Self { program, environment: Environment::Empty, user: None, socket: None }
    }
}

/// A running child.
#[derive(Debug)]
pub struct Child {
    process: u32,
    commands: mpsc::Sender<Vec<u8>>,
    kill: Option<oneshot::Sender<()>>,
    watcher: JoinHandle<()>,
}

impl Child {
    /// Starts what `start` says, and watches it; what it says goes to `reports`, [`ChildReport::Ended`] last.
    ///
    /// # Errors
    /// [`ChildError::Spawn`].
    pub async fn spawn(
        spawner: &Spawner,
        start: Start<'_>,
        reports: mpsc::Sender<ChildReport>,
    ) -> Result<Self, ChildError> {
        let Start { program, environment, user, socket } = start;
        let error = |source| ChildError::Spawn { program: program.to_owned(), source };
        let (mut process, socket) = spawner.spawn(program, environment, user, socket).await.map_err(error)?;
        let id = process.id().unwrap_or_default();
        let exited = process_descriptor(id).map_err(error)?;
        let socket = UnixStream::from_std(socket).map_err(error)?;
        let stderr = process.stderr.take();
        let (commands, to_write) = mpsc::channel(8);
        let (kill, killed) = oneshot::channel();
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let watch = Watch { name, id, process, exited, socket: Some(socket), stderr, reports };
        let watcher = tokio::spawn(watch.run(to_write, killed));
        Ok(Self { process: id, commands, kill: Some(kill), watcher })
    }

    /// Its process id.
    pub const fn id(&self) -> u32 {
        self.process
    }

    /// Queues a command.
    ///
    /// # Errors
    /// [`ChildError::Encode`], or [`ChildError::Gone`] if the child has ended or reads nothing.
    pub fn tell<C: Serialize>(&self, command: &ChildCommand<C>) -> Result<(), ChildError> {
        self.commands.try_send(encode(command)?).map_err(|_| ChildError::Gone)
    }

    /// Kills it and its process group. [`ChildReport::Ended`] follows.
    pub fn kill(&mut self) {
        // The receiver is gone only if the child has ended: then there is nothing to kill.
        if let Some(kill) = self.kill.take() {
            let _ = kill.send(());
        }
    }

    /// Waits until it has been reaped, which [`ChildReport::Ended`] says too.
    pub async fn reaped(self) {
        if self.watcher.await.is_err() {
            tracing::error!(process = self.process, "the task that watches a child panicked");
        }
    }
}

/// A descriptor that becomes readable when the process exits (pidfd_open(2)). The number of a child that has not been reaped
/// is its own; of any other process it may be another's by now.
pub(crate) fn process_descriptor(id: u32) -> std::io::Result<AsyncFd<OwnedFd>> {
    let pid = process_id(id).ok_or_else(|| std::io::Error::other("the process ended at once"))?;
    let descriptor = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    // SAFETY: the `AsyncFd` owns the descriptor, and nothing here takes it out, closes or replaces it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

fn process_id(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

/// Everything that the watching task owns.
struct Watch {
    name: String,
    id: u32,
    process: tokio::process::Child,
    exited: AsyncFd<OwnedFd>,
    /// `None` once nothing more can come from it.
    socket: Option<UnixStream>,
    stderr: Option<ChildStderr>,
    reports: mpsc::Sender<ChildReport>,
}

impl Watch {
    async fn run(mut self, mut commands: mpsc::Receiver<Vec<u8>>, mut killed: oneshot::Receiver<()>) {
        let (mut decoder, mut words) = (Decoder::default(), LastWords::default());
        let (mut from_socket, mut from_stderr) = (vec![0; 16 << 10], vec![0; 4 << 10]);
        let mut alive = true;
        loop {
            tokio::select! {
                // Also if the `Child` is dropped.
                _ = &mut killed, if alive => {
                    alive = false;
                    self.kill_group();
                }
                _ = self.exited.readable() => break,
                length = read(self.socket.as_mut(), &mut from_socket) => {
                    let understood = self.take(&mut decoder, &from_socket[..length], &mut words).await;
                    if length == 0 || !understood {
                        self.socket = None;
                    }
                    if !understood {
                        alive = false;
                        self.kill_group();
                    }
                }
                length = read(self.stderr.as_mut(), &mut from_stderr) => {
                    words.push(&from_stderr[..length]);
                    if length == 0 {
                        self.stderr = None;
                    }
                }
                Some(command) = commands.recv() => self.write(&command).await,
            }
        }
        // Its own children, if it has any: the group's number can't be another's before the leader is reaped.
        self.kill_group();
        let status = self.process.wait().await;
        let drain = async {
            while self.socket.is_some() {
                let length = read(self.socket.as_mut(), &mut from_socket).await;
                if length == 0 || !self.take(&mut decoder, &from_socket[..length], &mut words).await {
                    self.socket = None;
                }
            }
            while self.stderr.is_some() {
                match read(self.stderr.as_mut(), &mut from_stderr).await {
                    0 => self.stderr = None,
                    length => words.push(&from_stderr[..length]),
                }
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, drain).await.is_err() {
            tracing::warn!(process = self.id, "{} left its descriptors to another process", self.name);
        }
        let reason = match status {
            Ok(status) => format!("{} ended before it was done ({status})", self.name),
            Err(error) => format!("{} could not be waited for: {error}", self.name),
        };
        self.report(ChildReport::Ended(Failure { reason, last_words: words.lines() })).await;
    }

    /// Passes on what the bytes say. Returns false if they can't be understood.
    async fn take(&self, decoder: &mut Decoder, bytes: &[u8], words: &mut LastWords) -> bool {
        decoder.push(bytes);
        loop {
            match decoder.next_message::<ChildEvent>() {
                Ok(Some(event)) => self.report(ChildReport::Said(event)).await,
                Ok(None) => return true,
                Err(error) => {
                    let reason = format!("{} said what can't be understood: {}", self.name, chain(&error));
                    let failure = Failure { reason, last_words: words.lines() };
                    self.report(ChildReport::Said(ChildEvent::Failed(failure))).await;
                    return false;
                }
            }
        }
    }

    async fn write(&mut self, command: &[u8]) {
        let Some(socket) = self.socket.as_mut() else { return };
        match tokio::time::timeout(WRITE_TIMEOUT, socket.write_all(command)).await {
            Ok(Ok(())) => {}
            // Its exit, which follows, says why.
            Ok(Err(error)) => tracing::warn!(process = self.id, %error, "{} took no command", self.name),
            Err(_) => {
                tracing::warn!(process = self.id, "{} takes no commands: killed", self.name);
                self.kill_group();
            }
        }
    }

    async fn report(&self, report: ChildReport) {
        // Whoever wanted to know has gone; the child is killed because its `Child` went with it.
        drop(self.reports.send(report).await);
    }

    /// Called before the child is reaped only: its number is its own until then.
    fn kill_group(&self) {
        let Some(group) = process_id(self.id) else { return };
        if let Err(error) = kill_process_group(group, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::error!(process = self.id, %error, "{} could not be killed", self.name);
        }
    }
}

/// Reads once; 0 at the end or at an error, both of which mean that nothing more will come. Never ends if there is
/// no stream.
async fn read<R: AsyncRead + Unpin>(stream: Option<&mut R>, buffer: &mut [u8]) -> usize {
    match stream {
        Some(stream) => stream.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}
