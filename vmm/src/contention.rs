//! What the kernel says of the competition for this host's CPUs. Read at both ends of the measured interval and never
//! inside it; the rules that judge it are in [`toll_protocol::validity`].

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use toll_protocol::validity::{CpuTimes, run_delay};

/// Room for the text of a `schedstat` (three numbers of 64 bits), and for the first line of `/proc/stat` (ten).
const LINE: usize = 256;

/// The run delay of one thread.
#[derive(Debug)]
pub struct RunDelay(File);

impl RunDelay {
    /// The calling thread's; `None` on a kernel without CONFIG_SCHED_INFO.
    pub fn of_this_thread() -> Option<Self> {
        File::open("/proc/thread-self/schedstat").ok().map(Self)
    }

    /// How long the thread has been runnable without a CPU. A system call of about a microsecond.
    pub fn now(&self) -> Option<Duration> {
        let mut text = [0; LINE];
        let length = self.0.read_at(&mut text, 0).ok()?;
        run_delay(std::str::from_utf8(&text[..length]).ok()?)
    }
}

/// CPU times of the host so far. The kernel writes the whole file for it, a line for each CPU and a number for each
/// interrupt: nothing for the thread that runs the program.
pub fn cpu_times() -> Option<CpuTimes> {
    let mut text = [0; LINE];
    let length = File::open("/proc/stat").ok()?.read(&mut text).ok()?;
    CpuTimes::parse(std::str::from_utf8(&text[..length]).ok()?)
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
}
