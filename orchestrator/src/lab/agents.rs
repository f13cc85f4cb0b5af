//! The lab's agents: real `toll-agent` processes, each in its host's namespace and on its host's CPUs. They die
//! with this process, however it ends.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, CpuSet};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::network::TEST_NIC;
use super::{LabError, LabHost};
use crate::pki::Identity;

/// An agent's process.
#[derive(Debug)]
pub struct AgentProcess {
    host: String,
    child: Child,
    /// How it ended, once that is known.
    status: Option<ExitStatus>,
}

impl AgentProcess {
    /// Starts the agent of `host`, which dials `orchestrator` as `identity`. Captures go to
    /// `captures`, its log to `log`.
    ///
    /// Must be called on a thread that lives as long as the lab: the kernel kills the child when the thread
    /// that forked it ends (PR_SET_PDEATHSIG).
    ///
    /// # Errors
    /// [`LabError::Io`].
    pub fn start(
        program: &Path,
        host: &LabHost,
        orchestrator: SocketAddr,
        identity: &Identity,
        captures: Option<&Path>,
        log: File,
    ) -> Result<Self, LabError> {
        let failed = |what: &str| {
            let what = format!("{what} for the agent of {}", host.name);
            move |source| LabError::Io { what, source }
        };
        // In memory only: a file would be left behind by kill -9.
        let files = [&identity.authority_pem, &identity.certificate_pem, &identity.key_pem]
            .map(|pem| memory_file(pem).map_err(failed("keeping certificates")));
        let [authority, certificate, key] = files;
        let (authority, certificate, key) = (authority?, certificate?, key?);
        let path = |file: &OwnedFd| format!("/proc/self/fd/{}", file.as_raw_fd());
        let inherited = [authority.as_raw_fd(), certificate.as_raw_fd(), key.as_raw_fd()];
        let mut command = Command::new(program);
        command
            .args(["--name", &host.name, "--nic", TEST_NIC, "--wire", "exclusive"])
            .args(["--server-name", crate::pki::SERVER_NAME])
            .args(["--orchestrator", &orchestrator.to_string()])
            .args(["--ca", &path(&authority), "--certificate", &path(&certificate), "--key", &path(&key)])
            .args(captures.into_iter().flat_map(|folder| [OsStr::new("--captures"), folder.as_os_str()]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C at a terminal goes to its whole foreground group; the agents are told by this process.
            .process_group(0);
        let namespace = host.namespace.as_fd().as_raw_fd();
        let cpus = cpu_set(&host.cpus).map_err(failed("choosing CPUs"))?;
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe system calls are made, on values prepared before.
        unsafe {
            command.pre_exec(move || enter_host(namespace, &cpus, inherited, parent));
        }
        let child = command.spawn().map_err(failed(&format!("starting {}", program.display())))?;
        Ok(Self { host: host.name.clone(), child, status: None })
    }

    /// The host's name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Asks it to clean its host and end.
    pub fn ask_to_end(&self) {
        // A process that has not been waited for keeps its id; one that has been, `ended` has told of.
        if self.status.is_none() {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        }
    }

    /// Waits until it has ended, and kills it if it has not by `deadline`.
    pub async fn ended_by(mut self, deadline: Instant) {
        let mut look = tokio::time::interval(Duration::from_millis(5));
        while self.ended().is_none() {
            if Instant::now() > deadline {
                tracing::warn!(host = self.host, "the agent did not end when asked to; it is killed");
                return;
            }
            look.tick().await;
        }
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn memory_file(text: &str) -> io::Result<OwnedFd> {
    let file = memfd_create("toll-identity", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(file);
    // A file in memory is everybody's at first (0777), and agents refuse a key that others can read.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    Ok(file.into())
}

fn cpu_set(cpus: &[usize]) -> io::Result<CpuSet> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    Ok(set)
}

/// The child's way from fork to exec.
fn enter_host(namespace: RawFd, cpus: &CpuSet, inherited: [RawFd; 3], parent: u32) -> io::Result<()> {
    // SAFETY: prctl with these arguments touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have died before the call above.
    if std::os::unix::process::parent_id() != parent {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    // SAFETY: the descriptor is open in the parent, which has not been able to close it since the fork.
    if unsafe { libc::setns(namespace, CloneFlags::CLONE_NEWNET.bits()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if !cpus_is_empty(cpus) {
        nix::sched::sched_setaffinity(Pid::from_raw(0), cpus)?;
    }
    for fd in inherited {
        // SAFETY: fcntl on a descriptor that is open touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn cpus_is_empty(cpus: &CpuSet) -> bool {
    (0..CpuSet::count()).all(|cpu| !cpus.is_set(cpu).unwrap_or(false))
}
