//! The two clocks of a trial: one for time, one for the CPU time of a thread.

use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use toll_protocol::units::Span;

/// Time since the process began its trial. `Instant` is CLOCK_MONOTONIC on Linux; counting from an origin makes
/// it a plain number that an atomic can hold and a test can invent.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that reads 0 now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// How long was waited from `begin` to `end`, as [`rounded`] has it.
pub fn waited(begin: Duration, end: Duration) -> Span {
    rounded(end.saturating_sub(begin))
}

/// A length of time in whole milliseconds, as a person reads it.
pub fn rounded(length: Duration) -> Span {
    let milliseconds = (length.as_nanos() + 500_000) / 1_000_000;
    Span::from_millis(u64::try_from(milliseconds).unwrap_or(u64::MAX / 1_000_000))
}

/// The CPU-time clock of one thread (CLOCK_THREAD_CPUTIME_ID), which other threads may read too.
#[derive(Debug, Clone, Copy)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// The calling thread's.
    pub fn own() -> Self {
        Self(ClockId::CLOCK_THREAD_CPUTIME_ID)
    }

    /// That of a thread that has not been joined; `None` if the system has none for it.
    pub fn of<T>(thread: &JoinHandle<T>) -> Option<Self> {
        let mut id: libc::clockid_t = 0;
        // SAFETY: the handle is borrowed, so the thread has been neither joined nor detached and its pthread_t
        // is valid; `id` outlives the call.
        let error = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut id) };
        (error == 0).then(|| Self(ClockId::from_raw(id)))
    }

    /// User and system time used so far, or `None` once the thread has ended.
    pub fn now(self) -> Option<Duration> {
        clock_gettime(self.0).ok().map(Duration::from)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_cpu_clock_of_another_thread_counts_only_its_work() {
        let (go, gone) = mpsc::channel::<()>();
        let idle = std::thread::spawn(move || gone.recv().is_ok());
        let cpu = CpuClock::of(&idle).expect("a running thread has a clock");
        let own = CpuClock::own();
        let (idle_before, own_before) = (cpu.now().expect("runs"), own.now().expect("runs"));
        while own.now().expect("runs") - own_before < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        assert!(cpu.now().expect("runs") - idle_before < Duration::from_millis(10));
        go.send(()).expect("the thread waits");
        assert!(idle.join().expect("ends"));
    }
}
