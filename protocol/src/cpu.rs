//! What the kernel says of CPU time: of the whole host, and of one thread. From the text of its files to numbers; reading is
//! the ends' part, nothing here does I/O. What can't be read is no statement.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Span;

/// Steal is told of from this share of the host's CPU time on.
const STEAL: f64 = 0.01;
/// A tick of USER_HZ, which is 100 a second on every machine that KVM's payload program runs on (include/asm-generic/param.h).
const TICK: Span = Span::from_millis(10);

/// CPU time of a host since its start, all CPUs together, in ticks of USER_HZ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuTimes {
    /// Programs, those with a low priority and guests of KVM included.
    pub user: u64,
    /// The kernel, for programs and of its own accord.
    pub system: u64,
    /// Interrupts.
    pub irq: u64,
    /// Soft interrupts: most of what the kernel does with received frames.
    pub softirq: u64,
    /// What the hypervisor below gave to others while a CPU here had work.
    pub steal: u64,
    /// Nothing to do, waits for disks included.
    pub idle: u64,
}

impl CpuTimes {
    /// The first line of `/proc/stat`: `cpu user nice system idle iowait irq softirq steal guest guest_nice`, of which
    /// user and nice include the last two (proc_stat(5)). `None` if `stat` is not that file's text.
    pub fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?;
        let times = fields.split_ascii_whitespace().take(8).map(str::parse);
        let times: Vec<u64> = times.collect::<Result<_, _>>().ok()?;
        let [user, nice, system, idle, iowait, irq, softirq, steal] = times.try_into().ok()?;
        let (user, idle) = (user.saturating_add(nice), idle.saturating_add(iowait));
        Some(Self { user, system, irq, softirq, steal, idle })
    }

    /// What passed since `earlier`. The kernel's own count of idle time may run backwards a little: that is none.
    fn since(&self, earlier: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            irq: self.irq.saturating_sub(earlier.irq),
            softirq: self.softirq.saturating_sub(earlier.softirq),
            steal: self.steal.saturating_sub(earlier.steal),
            idle: self.idle.saturating_sub(earlier.idle),
        }
    }

    fn total(&self) -> u64 {
        let Self { user, system, irq, softirq, steal, idle } = *self;
        [user, system, irq, softirq, steal, idle].into_iter().fold(0, u64::saturating_add)
    }

    /// Whether over 1 % of the time since `earlier` was stolen for certain: between two readings in whole ticks, one
    /// tick may be from before.
    pub fn stolen_since(&self, earlier: &Self) -> bool {
        let passed = self.since(earlier);
        passed.steal.saturating_sub(1) as f64 > STEAL * passed.total() as f64
    }

    /// The host's CPU time since `earlier`; `None` if none passed.
    pub fn host_since(&self, earlier: &Self) -> Option<HostCpu> {
        let passed = self.since(earlier);
        let span = |ticks: u64| Span(ticks.saturating_mul(TICK.0));
        let Self { user, system, irq, softirq, steal, idle } = passed;
        (passed.total() > 0).then(|| HostCpu {
            user: span(user),
            system: span(system),
            irq: span(irq),
            softirq: span(softirq),
            steal: span(steal),
            idle: span(idle),
        })
    }
}

/// CPU time of a whole host over the measured interval, all its CPUs together, in steps of 10 ms: of a lab, whose hosts share
/// one machine, that of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostCpu {
    /// Programs and guests.
    pub user: Span,
    /// The kernel.
    pub system: Span,
    /// Interrupts.
    pub irq: Span,
    /// Soft interrupts: most of what the kernel does with received frames.
    pub softirq: Span,
    /// Taken by the hypervisor below.
    pub steal: Span,
    /// Nothing to do.
    pub idle: Span,
}

impl HostCpu {
    /// Its parts with their names, which add up to the whole.
    pub const fn parts(&self) -> [(&'static str, Span); 6] {
        let Self { user, system, irq, softirq, steal, idle } = *self;
        [
            ("user", user),
            ("system", system),
            ("irq", irq),
            ("softirq", softirq),
            ("steal", steal),
            ("idle", idle),
        ]
    }
}

/// CPU time of a thread since its start, in ticks of USER_HZ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadTimes {
    user: u64,
    system: u64,
}

impl ThreadTimes {
    /// `/proc/PID/task/TID/stat`: fields 14 and 15, behind a name in parentheses that may have any character in it
    /// (proc_pid_stat(5)). `None` if `stat` is not such a file's text.
    pub fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut times = fields.split_ascii_whitespace().skip(11).map(str::parse);
        let mut next = || times.next()?.ok();
        Some(Self { user: next()?, system: next()? })
    }

    /// User and system time since `earlier`.
    pub fn since(&self, earlier: &Self) -> (Span, Span) {
        let span = |now: u64, before: u64| Span(now.saturating_sub(before).saturating_mul(TICK.0));
        (span(self.user, earlier.user), span(self.system, earlier.system))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_are_the_first_line_without_what_it_counts_twice() {
        let stat = "cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let expected = CpuTimes { user: 30, system: 30, irq: 60, softirq: 70, steal: 80, idle: 90 };
        assert_eq!(CpuTimes::parse(stat), Some(expected));
        for other in ["", "cpu0 1 2 3 4 5 6 7 8 9 10", "cpu  1 2 3 4", "cpu  1 2 x 4 5 6 7 8", "intr 1 2 3"] {
            assert_eq!(CpuTimes::parse(other), None, "{other}");
        }
    }

    #[test]
    fn over_a_hundredth_of_the_cpu_time_is_steal() {
        let stolen = |total: u64, steal: u64| {
            let earlier = CpuTimes { user: 5_000, steal: 10, ..CpuTimes::default() };
            let now = CpuTimes { user: 5_000 + total - steal, steal: 10 + steal, ..CpuTimes::default() };
            now.stolen_since(&earlier)
        };
        assert!(!stolen(400, 0) && !stolen(400, 5) && stolen(400, 6));
        assert!(!stolen(20, 1), "one tick may be from before the interval");
    }

    #[test]
    fn the_hosts_time_is_in_parts_that_add_up() {
        let earlier = CpuTimes { user: 1, system: 2, irq: 3, softirq: 4, steal: 5, idle: 6 };
        let now = CpuTimes { user: 101, system: 22, irq: 3, softirq: 14, steal: 6, idle: 5 };
        let host = now.host_since(&earlier).expect("time passed");
        assert_eq!((host.user, host.softirq), (Span::from_millis(1000), Span::from_millis(100)));
        assert_eq!((host.irq, host.idle), (Span(0), Span(0)));
        let sum: u64 = host.parts().iter().map(|(_, span)| span.0).sum();
        assert_eq!(Span(sum), Span::from_millis(1310));
        assert_eq!(earlier.host_since(&earlier), None);
    }

    #[test]
    fn a_threads_times_are_behind_its_name() {
        let stat = "77 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 1234 56 0 0 20 0";
        let times = ThreadTimes::parse(stat).expect("is one");
        assert_eq!(times, ThreadTimes { user: 1234, system: 56 });
        let later = ThreadTimes { user: 1244, system: 57 };
        assert_eq!(later.since(&times), (Span::from_millis(100), Span::from_millis(10)));
        for other in ["", "77 (a)", "77 (a) S 1 2 3 4 5 6 7 8 9 10 12", "77 (a) S 1 2 3 4 5 6 7 8 9 10 x y"] {
            assert_eq!(ThreadTimes::parse(other), None, "{other}");
        }
    }
}
