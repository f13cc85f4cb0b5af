//! What the kernel says of the competition for this host's CPUs. Read at both ends of the measured interval and never
//! inside it; the rules that judge it are in [`toll_protocol::validity`].

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use toll_protocol::cpu::{HostCpu, ThreadTimes};
use toll_protocol::validity::run_delay;

/// Room for the text of a thread's `stat` (52 numbers and a name) or `schedstat` (three), and for the first line of
/// `/proc/stat` (ten).
const LINE: usize = 1024;

/// What the kernel says of one thread, readable from any other.
#[derive(Debug)]
pub struct ThreadFiles {
    schedstat: Option<File>,
    stat: Option<File>,
}

impl ThreadFiles {
    /// The calling thread's.
    pub fn of_this_thread() -> Self {
        // A kernel without CONFIG_SCHED_INFO has no `schedstat`.
        let [schedstat, stat] =
            ["schedstat", "stat"].map(|name| File::open(format!("/proc/thread-self/{name}")).ok());
        Self { schedstat, stat }
    }

    /// How long the thread has been runnable without a CPU; `None` where nobody counts it, or once it has ended.
    pub fn run_delay(&self) -> Option<Duration> {
        text(self.schedstat.as_ref()?, run_delay)
    }

    /// Its user and system time; `None` once it has ended.
    pub fn times(&self) -> Option<ThreadTimes> {
        text(self.stat.as_ref()?, ThreadTimes::parse)
    }
}

/// What `parse` makes of a file's text, which is short.
fn text<T>(file: &File, parse: fn(&str) -> Option<T>) -> Option<T> {
    let mut text = [0; LINE];
    let length = file.read_at(&mut text, 0).ok()?;
    parse(std::str::from_utf8(&text[..length]).ok()?)
}

/// CPU times of the host so far.
pub fn host_cpu() -> Option<HostCpu> {
    let mut text = [0; LINE];
    let length = File::open("/proc/stat").ok()?.read(&mut text).ok()?;
    HostCpu::parse(std::str::from_utf8(&text[..length]).ok()?)
}

/// Both at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contention {
    /// Run delay of the thread that carries the traffic.
    pub run_delay: Option<Duration>,
    /// User and system time of that thread.
    pub thread: Option<ThreadTimes>,
    /// CPU times of the host.
    pub host: Option<HostCpu>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_understood() {
        let files = ThreadFiles::of_this_thread();
        assert!(files.run_delay().expect("CONFIG_SCHED_INFO") <= files.run_delay().expect("runs"));
        let began = files.times().expect("runs");
        let (user, system) = files.times().expect("runs").since(&began);
        assert!(user.0 + system.0 < 1_000_000_000);
        assert!(host_cpu().expect("a line of CPU times").idle.0 > 0);
    }

    #[test]
    fn nothing_is_said_of_a_thread_that_has_ended() {
        let files = std::thread::spawn(ThreadFiles::of_this_thread).join().expect("ends");
        assert_eq!((files.run_delay(), files.times()), (None, None));
    }
}
