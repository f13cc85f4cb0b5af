//! Clocks: the time stamp counter for what happens tens of thousands of times a second, CPU clocks of threads.

use std::time::{Duration, Instant};

pub use toll_vnic::stages::ticks;

/// Ticks that the two clocks are read within: a few microseconds on any host.
const CLOSE: u64 = 10_000;
/// How often they are read at most; the closest counts.
const READINGS: u32 = 16;

/// Relates ticks to time: two moments at which both were read.
#[derive(Debug, Clone, Copy)]
pub struct Timebase {
    instant: Instant,
    ticks: u64,
}

impl Timebase {
    /// Reads both clocks. A thread that lost its CPU between the two reads again: they would be of two moments.
    pub fn now() -> Self {
        let mut closest = (u64::MAX, Self { instant: Instant::now(), ticks: ticks() });
        for _ in 0..READINGS {
            let before = ticks();
            let instant = Instant::now();
            let apart = ticks().saturating_sub(before);
            if apart < closest.0 {
                closest = (apart, Self { instant, ticks: before + apart / 2 });
            }
            if apart <= CLOSE {
                break;
            }
        }
        closest.1
    }

    /// The time stamp counter then.
    pub fn ticks(&self) -> u64 {
        self.ticks
    }

    /// When it was read.
    pub fn instant(&self) -> Instant {
        self.instant
    }

    /// Nanoseconds of a tick between `earlier` and this moment; 0 if none passed.
    pub fn nanoseconds_per_tick_since(&self, earlier: &Self) -> f64 {
        let ticks = self.ticks.saturating_sub(earlier.ticks);
        if ticks == 0 {
            return 0.0;
        }
        self.instant.saturating_duration_since(earlier.instant).as_nanos() as f64 / ticks as f64
    }
}

/// The CPU clock of a thread, readable from any other thread of the process.
#[derive(Debug, Clone, Copy)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// The calling thread's clock; `None` if the system gives none.
    pub fn of_this_thread() -> Option<Self> {
        let mut clock = 0;
        // SAFETY: the calling thread's own id is valid, and the result goes into a local.
        let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        (error == 0).then_some(Self(clock))
    }

    /// CPU time that the thread has used, user and system together; `None` once it has ended.
    pub fn read(self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the result goes into a local.
        let error = unsafe { libc::clock_gettime(self.0, &raw mut time) };
        (error == 0).then_some(())?;
        Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_uses_cpu_time_and_ticks() {
        let (clock, from) = (CpuClock::of_this_thread().expect("Linux has CPU clocks"), Timebase::now());
        let before = clock.read().expect("runs");
        while clock.read().expect("runs") - before < Duration::from_millis(2) {}
        let ns = Timebase::now().nanoseconds_per_tick_since(&from);
        assert!((0.05..5.0).contains(&ns), "a tick of {ns} ns");
    }

    #[test]
    fn no_ticks_are_no_time() {
        let now = Timebase::now();
        assert_eq!(now.nanoseconds_per_tick_since(&now), 0.0);
    }
}
