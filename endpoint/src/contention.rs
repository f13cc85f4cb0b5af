//! What the kernel says of the competition for this host's CPUs. Read at both ends of the measured interval and never
//! inside it; the rules that judge it are in [`toll_protocol::validity`].

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use toll_protocol::validity::{CpuTimes, run_delay};

/// Room for the text of a `schedstat` (three numbers of 64 bits), and for the first line of `/proc/stat` (ten).
const LINE: usize = 256;

/// The run delay of one thread, readable from any other.
#[derive(Debug)]
pub struct RunDelay(File);

impl RunDelay {
    /// The calling thread's; `None` on a kernel without CONFIG_SCHED_INFO.
    pub fn of_this_thread() -> Option<Self> {
        File::open("/proc/thread-self/schedstat").ok().map(Self)
    }

    /// How long the thread has been runnable without a CPU, or `None` once it has ended.
    pub fn now(&self) -> Option<Duration> {
        let mut text = [0; LINE];
        let length = self.0.read_at(&mut text, 0).ok()?;
        run_delay(std::str::from_utf8(&text[..length]).ok()?)
    }
}

/// CPU times of the host so far.
pub fn cpu_times() -> Option<CpuTimes> {
    let mut text = [0; LINE];
    let length = File::open("/proc/stat").ok()?.read(&mut text).ok()?;
    CpuTimes::parse(std::str::from_utf8(&text[..length]).ok()?)
}

/// Both at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contention {
    /// Run delay of the thread that carries the traffic.
    pub run_delay: Option<Duration>,
    /// CPU times of the host.
    pub cpu_times: Option<CpuTimes>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_understood() {
        let delay = RunDelay::of_this_thread().expect("CONFIG_SCHED_INFO");
        assert!(delay.now().expect("runs") <= delay.now().expect("runs"));
        assert!(cpu_times().expect("a line of CPU times").total > 0);
    }

    #[test]
    fn a_thread_that_has_ended_has_no_run_delay() {
        let delay = std::thread::spawn(RunDelay::of_this_thread).join().expect("ends").expect("a file");
        assert_eq!(delay.now(), None);
    }
}
