//! Giving up rights. A child is started with those of its agent, opens what needs one (KVM, a TAP, a capture file, a
//! socket with its congestion control), and goes on without any:
//!
//! ```text
//!  agent's user, all capabilities --open--> Confinement::enter --> a user of its own, no capability, limits --> threads
//! ```
//! The call comes before there is a second thread: capabilities are a thread's, and none may keep them.

use std::io;

use nix::sys::signal::kill;
use nix::unistd::{Gid, Uid, getresuid, setgroups, setresgid, setresuid};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, getppid, parent_process_death_signal, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs,
};

/// Descriptors of a child: those of a trial are some tens.
pub const DESCRIPTORS: u64 = 256;
/// Processes and threads of a child's user: a VMM has three, an endpoint with its iperf3 about five.
pub const PROCESSES: u64 = 64;
/// Bytes of locked memory of a child's user: the rings of `irqNotification` count as such, and are some pages.
pub const LOCKED_BYTES: u64 = 1 << 20;
/// Bytes of a file that a child writes beside a capture: iperf3 keeps its buffer, of 1 MiB at most, in one.
pub const FILE_BYTES: u64 = 1 << 20;

/// Why a process could not give up its rights. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// A step was refused.
    #[error("{step} failed{}", advice(source))]
    Refused {
        /// Which.
        step: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// There are threads, each with capabilities of its own.
    #[error("the process has {0} threads by now, and rights must be given up by the first alone")]
    Threads(usize),
    /// It has another user, or rights.
    #[error("the process is not user {0} without rights: it sends no signal")]
    Another(u32),
    /// The agent has ended meanwhile: nobody would end this process.
    #[error("the agent has ended")]
    Orphaned,
}

/// What a child may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Confinement {
    /// The user and group that it becomes; `None` keeps those that it has, as in a user namespace that maps no others.
    pub user: Option<u32>,
}

/// What to do about it, where that is known.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => ": the agent needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP",
        _ => "",
    }
}

fn refused<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ConfinementError {
    move |error| ConfinementError::Refused { step, source: error.into() }
}

impl Confinement {
    /// Gives up, for good: the user and all groups (if there is another user), every capability of all five sets, getting
    /// new ones by an exec, core dumps, being read by others of the same user, and more than a trial takes of
    /// descriptors, processes, locked memory and message queues. Files grow to `capture` bytes beyond [`FILE_BYTES`].
    /// The process still ends with its parent, if it was to.
    ///
    /// A bounding set is left alone by who never had CAP_SETPCAP and keeps its user: no exec can use it.
    ///
    /// # Errors
    /// [`ConfinementError`]: some rights may be given up and others not.
    pub fn enter(self, capture: u64) -> Result<(), ConfinementError> {
        let threads =
            std::fs::read_dir("/proc/self/task").map_err(refused("reading /proc/self/task"))?.count();
        if threads != 1 {
            return Err(ConfinementError::Threads(threads));
        }
        // A change of user or capabilities makes the kernel forget the signal (prctl(2)).
        let (parent, signal) = (getppid(), parent_process_death_signal());
        let signal = signal.map_err(refused("PR_GET_PDEATHSIG"))?;
        clear_ambient_capability_set().map_err(refused("PR_CAP_AMBIENT_CLEAR_ALL"))?;
        let held = capabilities(None).map_err(refused("capget"))?;
        limit_dumps().map_err(refused("setrlimit"))?;
        if self.user.is_some() || held.effective.contains(CapabilitySet::SETPCAP) {
            clear_bounding_set().map_err(refused("PR_CAPBSET_DROP"))?;
        }
        // Before the user changes: a process of that user can never get a right, which tells it from a person's.
        set_no_new_privs(true).map_err(refused("PR_SET_NO_NEW_PRIVS"))?;
        if let Some(user) = self.user {
            let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
            setgroups(&[]).map_err(refused("setgroups"))?;
            setresgid(gid, gid, gid).map_err(refused("setresgid"))?;
            setresuid(uid, uid, uid).map_err(refused("setresuid"))?;
        }
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, none).map_err(refused("capset"))?;
        limit(self.user.is_some(), FILE_BYTES.saturating_add(capture)).map_err(refused("setrlimit"))?;
        // After the change of user, which sets it to what fs.suid_dumpable says. A program that is run later is dumpable again.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("PR_SET_DUMPABLE"))?;
        if signal.is_some() {
            set_parent_process_death_signal(signal).map_err(refused("PR_SET_PDEATHSIG"))?;
            still_there(parent)?;
        }
        Ok(())
    }
}

/// Becomes `user`, without a right, and sends SIGKILL to all processes of that user that this one sees: at one moment, so
/// that none gets away by a fork (kill(2), -1). Nobody else's can be meant: who has no capability reaches those alone whose
/// real or saved user it is. Whether there were any is not told, nor whether they have ended: Linux answers with
/// success as long as any other process is there, whoever's it is.
///
/// # Errors
/// [`ConfinementError`]; nothing has been sent then.
pub fn end_processes_of(user: u32) -> Result<(), ConfinementError> {
    Confinement { user: Some(user) }.enter(0)?;
    let now = getresuid().map_err(refused("getresuid"))?;
    let held = capabilities(None).map_err(refused("capget"))?;
    let is_user = [now.real, now.effective, now.saved].iter().all(|id| id.as_raw() == user);
    if !is_user || user == 0 || !held.effective.is_empty() || !held.permitted.is_empty() {
        return Err(ConfinementError::Another(user));
    }
    match kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL) {
        // There is no other process at all, as in a pod whose agent is its first.
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(refused("kill")(error)),
    }
}

/// A parent that ended while there was no signal can't send it any more.
fn still_there(parent: Option<Pid>) -> Result<(), ConfinementError> {
    if getppid() == parent { Ok(()) } else { Err(ConfinementError::Orphaned) }
}

/// Every capability that the kernel knows, those of years to come too.
fn clear_bounding_set() -> io::Result<()> {
    for capability in 0.. {
        // SAFETY: takes and returns numbers.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability as libc::c_ulong, 0, 0, 0) } {
            0 => {}
            1 => {
                // SAFETY: as above.
                if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            // EINVAL: there is no such capability, so this was the last.
            _ => break,
        }
    }
    Ok(())
}

/// No core dump, neither as a file nor to a program, of this process and of those that it runs. A limit of 0 does not bind a
/// kernel that pipes dumps to a program (core(5)), as systemd-coredump and apport have it. A limit of 1 does: the kernel
/// keeps it for the programs that take dumps and refuses (fs/coredump.c, `coredump_pipe`); for a file it is less than a
/// page, the least that one takes. Who may raise no limit and has 0 keeps 0.
fn limit_dumps() -> rustix::io::Result<()> {
    let set = |limit| setrlimit(Resource::Core, Rlimit { current: Some(limit), maximum: Some(limit) });
    match (set(1), rustix::process::getrlimit(Resource::Core).maximum) {
        (Err(Errno::PERM), Some(0)) => set(0),
        (done, _) => done,
    }
}

/// `own_user`: processes and locked memory are counted by user, and who keeps theirs has others.
fn limit(own_user: bool, file: u64) -> rustix::io::Result<()> {
    let of_user = [(Resource::Nproc, PROCESSES), (Resource::Memlock, LOCKED_BYTES)];
    let of_user = of_user.into_iter().filter(|_| own_user);
    let limits = [
        (Resource::Fsize, file),
        (Resource::Msgqueue, 0),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Nice, 0),
        (Resource::Rtprio, 0),
    ];
    for (resource, limit) in limits.into_iter().chain(of_user) {
        // Not above what there is: that would take a right.
        let most = rustix::process::getrlimit(resource).maximum.map_or(limit, |most| most.min(limit));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}
