//! Between the two threads of a virtual end: the one that runs the program, and the one that controls it.
//!
//! ```text
//! control                     program's thread
//!   | kick (eventfd) ---------> |   look at Command, or at `stop`
//!   | <--------- Event + news   |   phases, and how it ended
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use toll_protocol::report::Failure;

use crate::kvm::Kicker;
use crate::recording::Recording;

/// What the program's thread says.
#[derive(Debug)]
pub enum Event {
    /// A phase of `toll_guest_abi::phase` has begun.
    Phase(u32, Instant),
    /// The program has ended; nothing follows.
    Ended(Result<Box<Recording>, Failure>),
}

/// What both threads hold.
#[derive(Debug)]
pub struct Signals {
    kick: EventFd,
    news: EventFd,
    stop: AtomicBool,
    vcpu: OnceLock<Kicker>,
}

/// The program's side: where its events go.
#[derive(Debug, Clone)]
pub struct EventSender {
    signals: Arc<Signals>,
    events: Sender<Event>,
}

/// A new channel: what both threads hold, and its two ends.
///
/// # Errors
/// `eventfd` failed.
pub fn channel() -> Result<(Arc<Signals>, EventSender, Receiver<Event>), Errno> {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let eventfd = || EventFd::from_value_and_flags(0, flags);
    let signals = Arc::new(Signals {
        kick: eventfd()?,
        news: eventfd()?,
        stop: AtomicBool::new(false),
        vcpu: OnceLock::new(),
    });
    let (sender, receiver) = mpsc::channel();
    Ok((Arc::clone(&signals), EventSender { signals, events: sender }, receiver))
}

impl Signals {
    /// Wakes the program's thread if it waits, or as soon as it waits.
    pub fn kick(&self) {
        // Only a counter at its limit refuses, which is as good as a kick.
        let _ = self.kick.write(1);
    }

    /// Asks the program's thread to end. It does so when it next waits, accesses a register or exits.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(vcpu) = self.vcpu.get() {
            vcpu.stop();
        }
        self.kick();
    }

    /// Whether it was asked to.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Tells how to make the vCPU return. Called once.
    pub fn set_vcpu(&self, kicker: Kicker) {
        let kicker = self.vcpu.get_or_init(|| kicker);
        // A stop may have come before there was anything to stop.
        if self.stopped() {
            kicker.stop();
        }
    }

    /// Readable after a kick.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// Forgets kicks so far.
    pub fn drain_kicks(&self) {
        let _ = self.kick.read();
    }

    /// Readable when there is an event.
    pub fn news_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Forgets news so far; called before the events are taken.
    pub fn drain_news(&self) {
        let _ = self.news.read();
    }
}

impl EventSender {
    /// What both threads hold.
    pub fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Sends an event. A control thread that is gone needs none.
    pub fn send(&self, event: Event) {
        let _ = self.events.send(event);
        let _ = self.signals.news.write(1);
    }
}
