//! The traffic thread: one loop of blocking sends or receives, and a counter.
//!
//! ```text
//!  sender:   send* --flag `stop` (peer's FIN seen by the control thread)--> end
//!  receiver: recv* --recv gives 0 (the sender's FIN)--> end
//! ```
//! Both half-close from the control thread (shutdown). A receiver's thread goes on receiving; a sender's send that
//! waits for room ends by it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
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
use toll_protocol::trial::Direction;

use crate::clock::{Clock, CpuClock};

/// Why the thread stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// The thread could not be started.
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
    /// A send or receive failed.
    #[error("{call} failed after {bytes} payload bytes")]
    Io {
        /// The call.
        call: &'static str,
        /// How many had crossed.
        bytes: u64,
        /// The system's word.
        source: std::io::Error,
    },
    /// The thread panicked.
    #[error("the traffic thread panicked")]
    Panicked,
}

/// What both threads see. The traffic thread alone writes all but `stop`.
#[derive(Debug)]
struct Shared {
    bytes: AtomicU64,
    /// Moment of the first payload byte in nanoseconds, or [`NOT_YET`].
    first_byte: AtomicU64,
    stop: AtomicBool,
    finished: AtomicBool,
    /// Set by the thread before its first call.
    files: OnceLock<ThreadFiles>,
    /// Becomes readable at the first byte and at the end.
    news: EventFd,
}

const NOT_YET: u64 = u64::MAX;

/// A running traffic thread.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), TrafficError>>,
    cpu: Option<CpuClock>,
}

impl Traffic {
    /// Starts it. `stream` is shared with the control thread.
    ///
    /// # Errors
    /// [`TrafficError::Start`].
    pub fn start(
        stream: Arc<TcpStream>,
        direction: Direction,
        write_size: usize,
        cpu: Option<usize>,
        clock: Clock,
    ) -> Result<Self, TrafficError> {
        let news = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let shared = Arc::new(Shared {
            bytes: AtomicU64::new(0),
            first_byte: AtomicU64::new(NOT_YET),
            stop: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            files: OnceLock::new(),
            news: news.map_err(|errno| TrafficError::Start(errno.into()))?,
        });
        let worker = Worker { shared: Arc::clone(&shared), stream, clock };
        let thread = std::thread::Builder::new()
            .name("traffic".to_owned())
            .spawn(move || worker.run(direction, write_size, cpu))
            .map_err(TrafficError::Start)?;
        let cpu = CpuClock::of(&thread);
        Ok(Self { shared, thread, cpu })
    }

    /// Payload bytes so far: taken by the kernel at the sender, by this process at the receiver.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
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

    /// Moment of the first payload byte, once there was one.
    pub fn first_byte(&self) -> Option<Duration> {
        let at = self.shared.first_byte.load(Ordering::Acquire);
        (at != NOT_YET).then(|| Duration::from_nanos(at))
    }

    /// Tells a sender to stop after the send it is in, whether or not that succeeds.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
    }

    /// Readable after the first byte and at the end, until [`take_news`](Self::take_news).
    pub fn news(&self) -> BorrowedFd<'_> {
        self.shared.news.as_fd()
    }

    /// Makes [`news`](Self::news) unreadable.
    pub fn take_news(&self) {
        // EAGAIN is no news, which is what is wanted.
        let _ = self.shared.news.read();
    }

    /// Whether the thread is at its end: [`join`](Self::join) doesn't block.
    pub fn is_finished(&self) -> bool {
        self.shared.finished.load(Ordering::Acquire)
    }

    /// Its result.
    ///
    /// # Errors
    /// [`TrafficError`].
    pub fn join(self) -> Result<(), TrafficError> {
        self.thread.join().map_err(|_| TrafficError::Panicked)?
    }
}

struct Worker {
    shared: Arc<Shared>,
    stream: Arc<TcpStream>,
    clock: Clock,
}

impl Drop for Worker {
    /// However the thread ends, the control thread is told.
    fn drop(&mut self) {
        self.shared.finished.store(true, Ordering::Release);
        let _ = self.shared.news.write(1);
    }
}

impl Worker {
    fn run(self, direction: Direction, write_size: usize, cpu: Option<usize>) -> Result<(), TrafficError> {
        if let Some(cpu) = cpu {
            pin(cpu).map_err(|source| TrafficError::Pin { cpu, source })?;
        }
        self.shared.files.get_or_init(ThreadFiles::of_this_thread);
        match direction {
            Direction::Send => self.send(&pattern(write_size)),
            Direction::Receive => self.receive(&mut vec![0; write_size]),
            Direction::Both => Err(self.failed("send and recv")(ErrorKind::Unsupported.into())),
        }
    }

    fn failed(&self, call: &'static str) -> impl FnOnce(std::io::Error) -> TrafficError {
        let bytes = self.shared.bytes.load(Ordering::Relaxed);
        move |source| TrafficError::Io { call, bytes, source }
    }

    fn mark_first_byte(&self) {
        let nanoseconds = u64::try_from(self.clock.now().as_nanos()).unwrap_or(NOT_YET - 1);
        self.shared.first_byte.store(nanoseconds, Ordering::Release);
        let _ = self.shared.news.write(1);
    }

    fn send(&self, buffer: &[u8]) -> Result<(), TrafficError> {
        let mut stream: &TcpStream = &self.stream;
        // Before the send and not after it: a send returns when the kernel has taken all of it, which for a
        // large write is long after the first byte has left.
        self.mark_first_byte();
        let (mut offset, mut bytes) = (0, 0);
        while !self.shared.stop.load(Ordering::Acquire) {
            match stream.write(&buffer[offset..]) {
                Ok(0) => return Err(self.failed("send")(ErrorKind::WriteZero.into())),
                Ok(taken) => {
                    offset += taken;
                    if offset >= buffer.len() {
                        offset = 0;
                    }
                    bytes += taken as u64;
                    self.shared.bytes.store(bytes, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) if self.shared.stop.load(Ordering::Acquire) => {}
                Err(source) => return Err(self.failed("send")(source)),
            }
        }
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<(), TrafficError> {
        let mut stream: &TcpStream = &self.stream;
        let mut bytes = 0;
        loop {
            match stream.read(buffer) {
                Ok(0) => return Ok(()),
                Ok(taken) => {
                    if bytes == 0 {
                        self.mark_first_byte();
                    }
                    bytes += taken as u64;
                    self.shared.bytes.store(bytes, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed("recv")(source)),
            }
        }
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
}
