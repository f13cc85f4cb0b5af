//! What the kernel says of CPU time: of the whole host, and of one thread. From the text of its files to numbers; reading is
//! the ends' part, nothing here does I/O. What can't be read is no statement.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Span;
use crate::units::numbers::{self, Seconds};

/// Steal is told of from this share of the host's CPU time on.
const STEAL: f64 = 0.01;
/// A tick of USER_HZ, which is 100 a second on every machine that KVM's payload program runs on (include/asm-generic/param.h).
const TICK: Span = Span::from_millis(10);

/// A number of ticks.
const fn span(ticks: u64) -> Span {
    Span(ticks.saturating_mul(TICK.0))
}

/// CPU time of a host, all its CPUs together, in steps of 10 ms: since its start as it is read, over the measured interval
/// as it is reported. Of a lab, whose hosts share one machine, it is that of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct HostCpu {
    /// Programs, those with a low priority and guests of KVM included.
    #[serde(rename = "user_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub user: Span,
    /// The kernel, for programs and of its own accord.
    #[serde(rename = "system_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub system: Span,
    /// Interrupts.
    #[serde(rename = "irq_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub irq: Span,
    /// Soft interrupts: most of what the kernel does with received frames.
    #[serde(rename = "softirq_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub softirq: Span,
    /// What the hypervisor below gave to others while a CPU here had work.
    #[serde(rename = "steal_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub steal: Span,
    /// Nothing to do, waits for disks included.
    #[serde(rename = "idle_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub idle: Span,
}

impl HostCpu {
    /// The first line of `/proc/stat`: `cpu user nice system idle iowait irq softirq steal guest guest_nice`, of which
    /// user and nice include the last two (proc_stat(5)). `None` if `stat` is not that file's text.
    pub fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?;
        let times = fields.split_ascii_whitespace().take(8).map(str::parse);
        let times: Vec<u64> = times.collect::<Result<_, _>>().ok()?;
        let [user, nice, system, idle, iowait, irq, softirq, steal] = times.try_into().ok()?;
        Some(Self {
            user: span(user.saturating_add(nice)),
            system: span(system),
            irq: span(irq),
            softirq: span(softirq),
            steal: span(steal),
            idle: span(idle.saturating_add(iowait)),
        })
    }

    /// What passed since `earlier`; `None` if nothing did. The kernel's own count of idle time may run backwards a
    /// little: that is none.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let passed = |now: Span, before: Span| Span(now.0.saturating_sub(before.0));
        let passed = Self {
            user: passed(self.user, earlier.user),
            system: passed(self.system, earlier.system),
            irq: passed(self.irq, earlier.irq),
            softirq: passed(self.softirq, earlier.softirq),
            steal: passed(self.steal, earlier.steal),
            idle: passed(self.idle, earlier.idle),
        };
        (passed.total() > 0).then_some(passed)
    }

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

    fn total(&self) -> u64 {
        self.parts().iter().map(|(_, part)| part.0).fold(0, u64::saturating_add)
    }

    /// Whether over 1 % of this time was stolen for certain: between two readings in whole ticks, one tick may be from
    /// before.
    pub fn is_stolen(&self) -> bool {
        self.steal.0.saturating_sub(TICK.0) as f64 > STEAL * self.total() as f64
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
        (span(self.user.saturating_sub(earlier.user)), span(self.system.saturating_sub(earlier.system)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_are_the_first_line_without_what_it_counts_twice() {
        let stat = "cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let times = HostCpu::parse(stat).expect("is one");
        assert_eq!(times.parts().map(|(_, part)| part), [30, 30, 60, 70, 80, 90].map(span));
        for other in ["", "cpu0 1 2 3 4 5 6 7 8 9 10", "cpu  1 2 3 4", "cpu  1 2 x 4 5 6 7 8", "intr 1 2 3"] {
            assert_eq!(HostCpu::parse(other), None, "{other}");
        }
    }

    #[test]
    fn over_a_hundredth_of_the_cpu_time_is_steal() {
        let stolen = |total: u64, steal: u64| {
            let (user, steal) = (span(total - steal), span(steal));
            HostCpu { user, steal, ..HostCpu::default() }.is_stolen()
        };
        assert!(!stolen(400, 0) && !stolen(400, 5) && stolen(400, 6));
        assert!(!stolen(20, 1), "one tick may be from before the interval");
    }

    #[test]
    fn the_hosts_time_is_in_parts_that_add_up() {
        let at = |times: &str| HostCpu::parse(&format!("cpu  {times}")).expect("is one");
        let (earlier, now) = (at("1 0 2 6 0 3 4 5"), at("101 0 22 5 0 3 14 6"));
        let host = now.since(&earlier).expect("time passed");
        assert_eq!((host.user, host.softirq), (Span::from_millis(1000), Span::from_millis(100)));
        assert_eq!((host.irq, host.idle), (Span(0), Span(0)), "none, and one that ran backwards");
        assert_eq!(Span(host.total()), Span::from_millis(1310));
        assert_eq!(earlier.since(&earlier), None);
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
