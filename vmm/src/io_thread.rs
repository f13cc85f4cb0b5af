//! An adapter that a thread of its own looks after, so that a guest computes while its frames move: the `ioThread` of a
//! virtio-net device.
//!
//! ```text
//!  program's thread                                I/O thread
//!  ----------------                                ----------
//!  QueueNotify --- ioeventfd, answered in KVM ---> looking: transmit, receive, again and again
//!  WAIT: looks at `signalled`, sleeps on `done` <--- `signalled`, `done`: frames for the guest, or an interrupt
//!                                                     |  nothing moved for SPIN
//!                                                  asleep: asks to be notified, polls `kick` and the port
//! ```
//! Each side says so before it sleeps and looks once more afterwards, so no word is lost between look and sleep.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, mem};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use toll_child::contention::ThreadFiles;
use toll_protocol::cpu::ThreadTimes;
use toll_protocol::report::FrameCounters;
use toll_vnic::adapter::{Adapter, AdapterError, Window};
use toll_vnic::port::PortError;
use toll_vnic::stages::Stages;

use crate::clock::{CpuClock, Timebase, ticks};
use crate::thread::{ThreadError, pin};

/// How long the thread looks on when nothing moves: as long as going to sleep and being woken takes.
const SPIN: Duration = Duration::from_micros(20);
/// Name of the thread in reports.
pub const NAME: &str = "io0";

/// What the I/O thread did with its time, in ticks. Written by it alone.
#[derive(Debug)]
pub struct Times {
    /// When what it does now began.
    since: AtomicU64,
    moved: AtomicU64,
    looked: AtomicU64,
    asleep: AtomicU64,
}

/// A reading of [`Times`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoTicks {
    /// When it was read: whoever reads waits for a look to end.
    pub at: Instant,
    /// Looks that moved frames.
    pub moved: u64,
    /// Looks that moved none.
    pub looked: u64,
    /// Asleep.
    pub asleep: u64,
}

impl Times {
    fn new() -> Self {
        let [moved, looked, asleep] = [const { AtomicU64::new(0) }; 3];
        Self { since: AtomicU64::new(ticks()), moved, looked, asleep }
    }

    /// What was done until now was `what`.
    fn was(&self, what: &AtomicU64) {
        let now = ticks();
        what.fetch_add(now.saturating_sub(self.since.swap(now, Ordering::Relaxed)), Ordering::Relaxed);
    }

    /// The ticks until now; what goes on counts as sleep if the thread is `asleep`, and as a look otherwise.
    fn read(&self, asleep: bool) -> IoTicks {
        let load = |ticks: &AtomicU64| ticks.load(Ordering::Relaxed);
        let at = Timebase::now();
        let now = at.ticks().saturating_sub(load(&self.since));
        let mut read = IoTicks {
            at: at.instant(),
            moved: load(&self.moved),
            looked: load(&self.looked),
            asleep: load(&self.asleep),
        };
        *(if asleep { &mut read.asleep } else { &mut read.looked }) += now;
        read
    }
}

/// What both threads hold.
struct Shared {
    adapter: Mutex<Box<dyn Adapter>>,
    /// Wakes the I/O thread.
    kick: EventFd,
    /// Wakes the program's thread.
    done: EventFd,
    /// There is something for the guest that its thread has not heard of.
    signalled: AtomicBool,
    /// The I/O thread sleeps, or is about to.
    asleep: AtomicBool,
    stop: AtomicBool,
    times: Times,
    /// Why the I/O thread has ended.
    failed: Mutex<Option<AdapterError>>,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of the I/O thread is in `failed`, and one of the program's thread ends both: nobody reads what it left half
    // done but for counters.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn kick(&self) {
        // Only a counter at its limit refuses, which is as good as a kick.
        let _ = self.kick.write(1);
    }

    fn signal(&self) {
        if !self.signalled.swap(true, Ordering::AcqRel) {
            let _ = self.done.write(1);
        }
    }
}

/// Why an adapter can't have a thread of its own.
#[derive(Debug, thiserror::Error)]
pub enum IoThreadError {
    /// The process has no descriptor left.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The thread can't be created, or can't run where it should.
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

/// The adapter as the program's thread sees it.
pub struct Remote {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    window: Window,
    notify_register: Option<u64>,
    cpu: Option<CpuClock>,
    files: Option<Arc<ThreadFiles>>,
}

/// What the engine needs to know of an I/O thread.
pub struct Io {
    /// Its CPU clock and its ticks.
    pub clocks: IoClocks,
    /// Whose writes wake it, as an offset of the adapter's window, and the eventfd that does.
    pub notify: Option<(u64, OwnedFd)>,
}

/// Clocks of an I/O thread, for another to read.
#[derive(Clone)]
pub struct IoClocks {
    cpu: Option<CpuClock>,
    files: Option<Arc<ThreadFiles>>,
    shared: Arc<Shared>,
}

impl IoClocks {
    /// CPU time; `None` if the system gives none.
    pub fn cpu(&self) -> Option<Duration> {
        self.cpu.and_then(CpuClock::read)
    }

    /// User and system time.
    pub fn times(&self) -> Option<ThreadTimes> {
        self.files.as_ref().and_then(|files| files.times())
    }

    /// What it did with its time.
    pub fn ticks(&self) -> IoTicks {
        let _between_looks = lock(&self.shared.adapter);
        self.shared.times.read(self.shared.asleep.load(Ordering::Relaxed))
    }
}

fn system(call: &'static str) -> impl Fn(Errno) -> AdapterError {
    move |errno| PortError::Io { call, port: NAME.to_owned(), source: errno.into() }.into()
}

/// What the thread's own words are to the rest of the process: the hook has printed why.
fn panicked() -> AdapterError {
    PortError::Io { call: "serving", port: NAME.to_owned(), source: io::Error::other("the thread panicked") }
        .into()
}

impl Remote {
    /// Gives `adapter` to a new thread, on `cpu` if there is a wish.
    ///
    /// # Errors
    /// [`IoThreadError`].
    pub fn start(adapter: Box<dyn Adapter>, cpu: Option<usize>) -> Result<Self, IoThreadError> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let eventfd = || EventFd::from_value_and_flags(0, flags).map_err(system("eventfd"));
        let (window, notify_register) = (adapter.window(), adapter.notify_register());
        let no_descriptor = |source: io::Error| {
            AdapterError::from(PortError::Io { call: "dup", port: NAME.to_owned(), source })
        };
        let port = adapter.port_fd().map(|fd| fd.try_clone_to_owned()).transpose().map_err(no_descriptor)?;
        let shared = Arc::new(Shared {
            adapter: Mutex::new(adapter),
            kick: eventfd()?,
            done: eventfd()?,
            signalled: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            times: Times::new(),
            failed: Mutex::new(None),
        });
        let (sender, receiver) = sync_channel(1);
        let body = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(NAME.into())
            .spawn(move || {
                let pinned = cpu.map_or(Ok(()), |cpu| pin(NAME, cpu));
                let refused = pinned.is_err();
                // Whoever waits for it has gone only if this thread is to end.
                let _ =
                    sender.send(pinned.map(|()| (CpuClock::of_this_thread(), ThreadFiles::of_this_thread())));
                if refused {
                    return;
                }
                let port = port;
                let end = catch_unwind(AssertUnwindSafe(|| run(&body, port.as_ref().map(AsFd::as_fd))));
                // A guest whose adapter nobody looks after would wait until somebody's patience ends.
                if let Err(error) = end.unwrap_or_else(|_| Err(panicked())) {
                    *lock(&body.failed) = Some(error);
                    body.signal();
                }
            })
            .map_err(ThreadError::creating)?;
        let (cpu, files) = receiver.recv().ok().transpose()?.unzip();
        let (cpu, files) = (cpu.flatten(), files.map(Arc::new));
        Ok(Self { shared, thread: Some(thread), window, notify_register, cpu, files })
    }

    /// What the engine needs to know of it.
    ///
    /// # Errors
    /// [`AdapterError::Port`] if the process has no descriptor left.
    pub fn io(&self) -> Result<Io, AdapterError> {
        let kick = self.shared.kick.as_fd().try_clone_to_owned();
        let kick = kick.map_err(|source| PortError::Io { call: "dup", port: NAME.to_owned(), source })?;
        let clocks = IoClocks { cpu: self.cpu, files: self.files.clone(), shared: Arc::clone(&self.shared) };
        Ok(Io { clocks, notify: self.notify_register.map(|register| (register, kick)) })
    }

    /// Why the I/O thread ended, if it did.
    fn check(&self) -> Result<(), AdapterError> {
        match mem::take(&mut *lock(&self.shared.failed)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.kick();
        if let Some(thread) = self.thread.take() {
            // What it had to say, a panic included, is in `failed`.
            let _ = thread.join();
        }
    }
}

/// The body of the I/O thread.
fn run(shared: &Shared, port: Option<BorrowedFd<'_>>) -> Result<(), AdapterError> {
    let mut idle_since = None;
    lock(&shared.adapter).watch(true)?;
    while !shared.stop.load(Ordering::Acquire) {
        let (moved, news) = look(shared)?;
        if news {
            shared.signal();
        }
        if moved {
            idle_since = None;
            continue;
        }
        let now = Instant::now();
        if now.duration_since(*idle_since.get_or_insert(now)) >= SPIN {
            sleep(shared, port)?;
            idle_since = None;
        }
        std::hint::spin_loop();
    }
    Ok(())
}

/// One look at the rings and the port: whether any frame moved, and whether there is something for the guest.
fn look(shared: &Shared) -> Result<(bool, bool), AdapterError> {
    let mut adapter = lock(&shared.adapter);
    let before = adapter.counters();
    adapter.with_stages(&mut |stages| stages.turn_began(ticks()));
    adapter.service()?;
    adapter.with_stages(&mut |stages| stages.turn_ended(ticks()));
    let FrameCounters { transmit_frames, transmit_drops, receive_frames, receive_drops, interrupts, .. } =
        adapter.counters().since(&before);
    let news = receive_frames + interrupts > 0;
    let moved = news || transmit_frames + transmit_drops + receive_drops > 0;
    let Times { moved: moving, looked, .. } = &shared.times;
    // Before the lock is given up: who holds it reads of whole looks.
    shared.times.was(if moved { moving } else { looked });
    drop(adapter);
    Ok((moved, news))
}

/// Until the guest notifies, the port has a frame that the guest has room for, or the end.
fn sleep(shared: &Shared, port: Option<BorrowedFd<'_>>) -> Result<(), AdapterError> {
    shared.asleep.store(true, Ordering::SeqCst);
    let (more, port) = {
        let mut adapter = lock(&shared.adapter);
        (adapter.watch(false)?, port.filter(|_| adapter.can_receive()))
    };
    shared.times.was(&shared.times.looked);
    if !more {
        let kick = shared.kick.as_fd();
        let mut fds = [kick, port.unwrap_or(kick)].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match ppoll(&mut fds, None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(system("ppoll")(errno)),
        }
    }
    shared.times.was(&shared.times.asleep);
    // Nobody reads it but this thread: what is forgotten here is looked at next.
    let _ = shared.kick.read();
    shared.asleep.store(false, Ordering::SeqCst);
    lock(&shared.adapter).watch(true).map(drop)
}

impl Adapter for Remote {
    fn window(&self) -> Window {
        self.window
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AdapterError> {
        self.check()?;
        lock(&self.shared.adapter).read(offset, data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AdapterError> {
        self.check()?;
        if self.notify_register != Some(offset) {
            lock(&self.shared.adapter).write(offset, data)?;
        }
        // What was written may be what it waits for.
        self.shared.kick();
        Ok(())
    }

    /// Wakes the I/O thread, since buffers may have come that it was not told of. Whether the guest has something to look
    /// at.
    fn service(&mut self) -> Result<bool, AdapterError> {
        if self.shared.asleep.load(Ordering::SeqCst) {
            self.shared.kick();
        }
        if !self.shared.signalled.swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        let _ = self.shared.done.read();
        self.check()?;
        Ok(true)
    }

    fn can_receive(&self) -> bool {
        true
    }

    /// The guest's wait is all that is interrupted, and [`service`](Adapter::service) says that.
    fn interrupt(&self) -> bool {
        false
    }

    fn counters(&self) -> FrameCounters {
        lock(&self.shared.adapter).counters()
    }

    fn register_name(&self, offset: u64) -> &'static str {
        lock(&self.shared.adapter).register_name(offset)
    }

    fn port_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.done.as_fd())
    }

    /// Between two looks: of one moment.
    fn reading(&mut self, act: &mut dyn FnMut(&mut Stages)) -> FrameCounters {
        let mut adapter = lock(&self.shared.adapter);
        adapter.with_stages(act);
        adapter.counters()
    }

    fn with_stages(&mut self, act: &mut dyn FnMut(&mut Stages)) {
        lock(&self.shared.adapter).with_stages(act);
    }
}

#[cfg(test)]
mod tests;
