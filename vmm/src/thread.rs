//! What the threads of an end have in common: where they run, and the signal that makes their system calls return.

use std::io;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

/// Makes `KVM_RUN` and `ppoll` return; its handler does nothing.
pub(crate) const STOP_SIGNAL: Signal = Signal::SIGUSR1;

/// Why a thread can't run.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// It can't run on the CPU that was asked for.
    #[error(
        "the thread {thread} could not be pinned to CPU {cpu}: choose one that is online and allowed to this process"
    )]
    Pin {
        /// Its name in reports.
        thread: &'static str,
        /// The CPU's number.
        cpu: usize,
        /// The system's word.
        source: io::Error,
    },
    /// It can't be created, or can't be told anything.
    #[error("{call} failed")]
    System {
        /// Which system call.
        call: &'static str,
        /// The system's word.
        source: io::Error,
    },
}

impl ThreadError {
    /// The error of the system call `call`.
    pub(crate) fn of(call: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::System { call, source: errno.into() }
    }

    /// The error of creating a thread.
    pub(crate) fn creating(source: io::Error) -> Self {
        Self::System { call: "creating a thread", source }
    }
}

/// Pins the calling thread, whose name is `thread`.
pub(crate) fn pin(thread: &'static str, cpu: usize) -> Result<(), ThreadError> {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.map_err(|errno| ThreadError::Pin { thread, cpu, source: errno.into() })
}

/// Gives [`STOP_SIGNAL`] its handler.
pub(crate) fn handle_stop_signal() -> Result<(), ThreadError> {
    extern "C" fn nothing(_: nix::libc::c_int) {}
    // Without SA_RESTART: a system call that waits shall return.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, which is safe at any point.
    unsafe { sigaction(STOP_SIGNAL, &action) }.map(drop).map_err(ThreadError::of("sigaction"))
}
