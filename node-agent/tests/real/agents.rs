//! `toll-agent` processes, each in a network namespace.

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{NetlinkAddr, getsockname};
use nix::unistd::Pid;
use rustix::process::{
    PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open, set_parent_process_death_signal,
};

use crate::namespace::Namespace;
use crate::orchestrator::{Authority, SERVER_NAME};

const KVM: &str = "/dev/kvm";

/// The program under test.
pub const AGENT: &str = env!("CARGO_BIN_EXE_toll-agent");

/// Path of another program of the workspace, which lies beside the agent.
pub fn beside(program: &str) -> PathBuf {
    PathBuf::from(AGENT).with_file_name(program)
}

/// Builds the program of native ends, if it is not there.
pub fn build_endpoint() {
    static BUILD: Once = Once::new();
    BUILD.call_once(|| {
        if beside("toll-endpoint").exists() {
            return;
        }
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--package", "toll-endpoint"])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "toll-endpoint can't be built");
    });
}

/// A running agent, killed if the test forgets it.
pub struct Agent(pub Child);

impl Agent {
    /// Starts one in `namespace` with `options` beside those that say who it is; without `kvm`, it may not open
    /// `/dev/kvm`, by a mount namespace of its own.
    pub fn start(
        namespace: &Namespace,
        authority: &Authority,
        name: &str,
        orchestrator: &dyn Display,
        kvm: bool,
        options: &[String],
    ) -> Self {
        Self::start_program(Path::new(AGENT), namespace, authority, name, orchestrator, kvm, options)
    }

    /// The same, of the agent at `program`, which runs the programs beside that.
    pub fn start_program(
        program: &Path,
        namespace: &Namespace,
        authority: &Authority,
        name: &str,
        orchestrator: &dyn Display,
        kvm: bool,
        options: &[String],
    ) -> Self {
        let descriptor = namespace.0.try_clone().expect("the namespace's file");
        let mut command = Command::new(program);
        command
            .args(["--server-name", SERVER_NAME, "--name", name])
            .arg("--orchestrator")
            .arg(orchestrator.to_string())
            .arg("--pki")
            .arg(authority.files(name))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if std::env::var_os("TOLL_LOG").is_none() {
            command.stderr(Stdio::null());
        }
        let forbid = !kvm && std::path::Path::new(KVM).exists();
        // SAFETY: the closure makes system calls and nothing else; the descriptor lives in it.
        unsafe {
            command.pre_exec(move || {
                // With the thread of its test, also if that is killed.
                set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                setns(&descriptor, CloneFlags::CLONE_NEWNET)?;
                if forbid {
                    unshare(CloneFlags::CLONE_NEWNS)?;
                    let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
                    mount(none, "/", none, private, none)?;
                    mount(Some(KVM), KVM, none, MsFlags::MS_BIND, none)?;
                    // A device on such a mount can't be opened by anybody.
                    let nodev = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NODEV;
                    mount(none, KVM, none, nodev, none)?;
                }
                Ok(())
            });
        }
        Self(command.spawn().expect("the agent starts"))
    }

    /// Tells it to stop, and returns how it ended.
    pub async fn terminate(self) -> ExitStatus {
        self.end_by(Signal::SIGTERM).await
    }

    /// Sends it a signal that it is to end by, and returns how it ended.
    pub async fn end_by(mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("the agent is there");
        let mut look = tokio::time::interval(Duration::from_millis(10));
        let ended = tokio::time::timeout(Duration::from_secs(15), async {
            loop {
                if let Some(status) = self.0.try_wait().expect("it can be waited for") {
                    break status;
                }
                look.tick().await;
            }
        });
        ended.await.expect("the agent ends in time")
    }

    /// Keeps every answer of the kernel from its netlink socket, as one that hangs would, until it is dropped.
    pub fn mute_netlink(&self) -> Muted {
        let pid = rustix::process::Pid::from_raw(self.0.id().cast_signed()).expect("not 0");
        let process = pidfd_open(pid, PidfdFlags::empty()).expect("the agent is there");
        let numbers = std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).expect("the agent is there");
        let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        let sockets: Vec<OwnedFd> = numbers
            .flatten()
            .filter_map(number)
            .filter_map(|number: i32| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok())
            .filter(|descriptor| getsockname::<NetlinkAddr>(descriptor.as_raw_fd()).is_ok())
            .collect();
        assert!(!sockets.is_empty(), "an agent has a netlink socket");
        // Classic BPF that takes no byte of anything: return 0.
        let mut nothing = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
        let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
        for socket in &sockets {
            set(socket, libc::SO_ATTACH_FILTER, &program);
        }
        Muted(sockets)
    }

    /// Ids of its children whose program has this name.
    pub fn children(&self, program: &str) -> Vec<i32> {
        let id = self.0.id();
        let threads = std::fs::read_dir(format!("/proc/{id}/task")).expect("the agent is there");
        let lists = threads.flatten().map(|task| task.path().join("children"));
        let children =
            lists.filter_map(|path| std::fs::read_to_string(path).ok()).collect::<Vec<_>>().join(" ");
        let named = |child: &i32| {
            let name = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            // The kernel keeps 15 bytes of a name.
            name.trim_end() == &program[..program.len().min(15)]
        };
        children.split_whitespace().filter_map(|id| id.parse().ok()).filter(named).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only if it has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Netlink sockets of an agent that hears nothing.
pub struct Muted(Vec<OwnedFd>);

impl Drop for Muted {
    fn drop(&mut self) {
        for socket in &self.0 {
            set(socket, libc::SO_DETACH_FILTER, &0);
        }
    }
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("a few bytes");
    let (descriptor, value) = (socket.as_raw_fd(), (&raw const *value).cast());
    // SAFETY: setsockopt(2) reads `length` bytes of `value`, and what a filter's program leads to, which lives too.
    let status = unsafe { libc::setsockopt(descriptor, libc::SOL_SOCKET, option, value, length) };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
}

/// Where agents find the orchestrator.
pub fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    (address, port).into()
}
