//! A clock tick for the thread that runs the program: a signal that makes `KVM_RUN` return, so that what waits does not
//! wait for the guest's next exit. It ticks while something waits and stops when nothing did for a whole tick.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;

/// The tick of one thread.
#[derive(Debug)]
pub struct Alarm {
    timer: Timer,
    period: Duration,
    ticking: bool,
}

impl Alarm {
    /// A tick of `period` for the calling thread, by `signal`, which must have a handler. It is quiet at first.
    ///
    /// # Errors
    /// The system's word.
    pub fn of_this_thread(signal: Signal, period: Duration) -> Result<Self, Errno> {
        let thread_id = gettid().as_raw();
        let notify = SigevNotify::SigevThreadId { signal, thread_id, si_value: 0 };
        let timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify))?;
        Ok(Self { timer, period, ticking: false })
    }

    /// Lets it tick while something waits; a system call when that changes.
    ///
    /// # Errors
    /// The system's word.
    pub fn tick(&mut self, waits: bool) -> Result<(), Errno> {
        if waits == self.ticking {
            return Ok(());
        }
        self.ticking = waits;
        let period = TimeSpec::from_duration(if waits { self.period } else { Duration::ZERO });
        self.timer.set(Expiration::Interval(period), TimerSetTimeFlags::empty())
    }
}
