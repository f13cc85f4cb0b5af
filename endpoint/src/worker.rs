//! Traffic threads: each makes the system calls of its traffic and counts, and nothing else. What it counts the control
//! thread reads at any time.
//!
//! ```text
//!  begin --pinned, its files opened--> body --returns, whatever it says--> finished, `news` readable
//!                                       '-- first payload byte: `news` readable
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;
use toll_child::contention::ThreadFiles;
use toll_protocol::cpu::ThreadTimes;
use toll_protocol::units::BitRate;

use crate::clock::{Clock, CpuClock};

/// Why a thread stopped.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It could not be started.
    #[error("the traffic thread could not be started")]
    Start(#[source] std::io::Error),
    /// It could not be pinned.
    #[error("the traffic thread could not be pinned to CPU {cpu}")]
    Pin {
        /// The CPU.
        cpu: usize,
        /// The system's word.
        source: nix::Error,
    },
    /// A system call failed.
    #[error("{call} failed after {bytes} payload bytes")]
    Io {
        /// The call.
        call: &'static str,
        /// How many had crossed.
        bytes: u64,
        /// The system's word.
        source: std::io::Error,
    },
    /// A search found no rate.
    #[error("no rate loses as little as is allowed: at {rate}, the lowest that was tried, more was lost")]
    NoRate {
        /// UDP payload.
        rate: BitRate,
    },
    /// The thread panicked.
    #[error("the traffic thread panicked")]
    Panicked,
}

/// What both threads see. The traffic thread alone writes all but `stop`.
#[derive(Debug, Default)]
struct Shared {
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    /// Moment of the first payload byte in nanoseconds, and one more: 0 while there was none.
    began: AtomicU64,
    stop: AtomicBool,
    finished: AtomicBool,
    /// Set by the thread before its first call.
    files: OnceLock<ThreadFiles>,
}

/// A descriptor that is readable when a traffic thread has news: its first payload byte, or its end.
#[derive(Debug, Clone)]
pub struct News(Arc<EventFd>);

impl News {
    /// One for all threads of a process.
    ///
    /// # Errors
    /// [`WorkerError::Start`].
    pub fn new() -> Result<Self, WorkerError> {
        let news = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self(Arc::new(news.map_err(|errno| WorkerError::Start(errno.into()))?)))
    }

    /// Makes it unreadable.
    pub fn take(&self) {
        // EAGAIN is no news, which is what is wanted.
        let _ = self.0.read();
    }

    fn tell(&self) {
        let _ = self.0.write(1);
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A running traffic thread.
#[derive(Debug)]
pub struct Worker {
    name: String,
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), WorkerError>>,
    cpu: Option<CpuClock>,
}

impl Worker {
    /// Starts a thread of this name, at most 15 bytes, that does `body` on this CPU.
    ///
    /// # Errors
    /// [`WorkerError::Start`].
    pub fn start(
        name: String,
        cpu: Option<usize>,
        news: &News,
        clock: Clock,
        body: impl FnOnce(&Traffic) -> Result<(), WorkerError> + Send + 'static,
    ) -> Result<Self, WorkerError> {
        let shared = Arc::new(Shared::default());
        let traffic = Traffic { shared: Arc::clone(&shared), news: news.clone(), clock };
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                if let Some(cpu) = cpu {
                    pin(cpu).map_err(|source| WorkerError::Pin { cpu, source })?;
                }
                traffic.shared.files.get_or_init(ThreadFiles::of_this_thread);
                body(&traffic)
            })
            .map_err(WorkerError::Start)?;
        let cpu = CpuClock::of(&thread);
        Ok(Self { name, shared, thread, cpu })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Payload bytes that it has sent so far: those that the kernel has taken.
    pub fn sent_bytes(&self) -> u64 {
        self.shared.sent_bytes.load(Ordering::Relaxed)
    }

    /// Payload bytes that it has received so far.
    pub fn received_bytes(&self) -> u64 {
        self.shared.received_bytes.load(Ordering::Relaxed)
    }

    /// CPU time of the thread so far.
    pub fn cpu(&self) -> Option<Duration> {
        self.cpu.and_then(CpuClock::now)
    }

    /// How long the thread has been runnable without a CPU so far.
    pub fn run_delay(&self) -> Option<Duration> {
        self.shared.files.get().and_then(ThreadFiles::run_delay)
    }

    /// User and system time of the thread so far.
    pub fn times(&self) -> Option<ThreadTimes> {
        self.shared.files.get().and_then(ThreadFiles::times)
    }

    /// Moment of its first payload byte, once there was one.
    pub fn began(&self) -> Option<Duration> {
        let at = self.shared.began.load(Ordering::Acquire);
        at.checked_sub(1).map(Duration::from_nanos)
    }

    /// Tells it to stop after the call that it is in, whether or not that succeeds.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
    }

    /// Whether the thread is at its end: [`join`](Self::join) doesn't block.
    pub fn is_finished(&self) -> bool {
        self.shared.finished.load(Ordering::Acquire)
    }

    /// Its result.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn join(self) -> Result<(), WorkerError> {
        self.thread.join().map_err(|_| WorkerError::Panicked)?
    }
}

/// A traffic thread's side of it.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    news: News,
    clock: Clock,
}

impl Drop for Traffic {
    /// However the thread ends, the control thread is told.
    fn drop(&mut self) {
        self.shared.finished.store(true, Ordering::Release);
        self.news.tell();
    }
}

impl Traffic {
    /// The clock of the trial.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Whether it shall stop.
    pub fn stops(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// The first payload byte crosses now.
    pub fn begin(&self) {
        let nanoseconds = u64::try_from(self.clock.now().as_nanos()).unwrap_or(u64::MAX - 1);
        self.shared.began.store(nanoseconds + 1, Ordering::Release);
        self.news.tell();
    }

    /// There is something that the control thread shall look at.
    pub fn tell(&self) {
        self.news.tell();
    }

    /// Payload bytes sent since the begin.
    pub fn sent(&self, bytes: u64) {
        self.shared.sent_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Payload bytes received since the begin.
    pub fn received(&self, bytes: u64) {
        self.shared.received_bytes.store(bytes, Ordering::Relaxed);
    }

    /// An error of `call`.
    pub fn failed(&self, call: &'static str, source: std::io::Error) -> WorkerError {
        let bytes = self.shared.sent_bytes.load(Ordering::Relaxed);
        let bytes = bytes + self.shared.received_bytes.load(Ordering::Relaxed);
        WorkerError::Io { call, bytes, source }
    }
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    // 0 is the calling thread.
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// The payload: the byte at offset `k` of each write is `k mod 251`. A prime period below 256 makes a byte that
/// is lost, doubled or moved show, and no page or segment of it is like the next.
pub fn pattern(length: usize) -> Vec<u8> {
    (0_u8..251).cycle().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_has_a_prime_period() {
        let buffer = pattern(600);
        assert_eq!((buffer[0], buffer[250], buffer[251], buffer[599]), (0, 250, 0, 97));
    }

    #[test]
    fn what_a_thread_counts_is_read_and_its_end_is_told() {
        let news = News::new().expect("an eventfd");
        let body = |traffic: &Traffic| {
            traffic.begin();
            traffic.sent(3);
            traffic.received(4);
            Err(traffic.failed("send", std::io::ErrorKind::BrokenPipe.into()))
        };
        let worker = Worker::start("traffic".into(), None, &news, Clock::start(), body).expect("starts");
        while !worker.is_finished() {
            std::thread::yield_now();
        }
        assert_eq!((worker.sent_bytes(), worker.received_bytes()), (3, 4));
        assert!(worker.began().is_some());
        let error = worker.join().expect_err("failed");
        assert_eq!(error.to_string(), "send failed after 7 payload bytes");
    }
}
