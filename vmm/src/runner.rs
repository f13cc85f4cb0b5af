//! A running end, seen from the thread that controls it: the same for a guest and a same-stack process.

use std::net::SocketAddrV4;
use std::os::fd::BorrowedFd;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::pthread::pthread_kill;
use toll_protocol::report::Failure;
use toll_vnic::adapter::{self, AdapterError};
use toll_vnic::port::Port;

use crate::boot::Program;
use crate::channel::{Event, Signals, channel};
use crate::clock::CpuClock;
use crate::config::EndConfig;
use crate::dialogue::Dialogue;
use crate::engine::{self, OpenEngine};
use crate::io_thread::{IoThreadError, Remote};
use crate::kvm::KvmError;
use crate::machine::Components;
use crate::memory::{MemoryError, SharedPages, allocate};
use crate::recording::Recording;
use crate::thread::{STOP_SIGNAL, ThreadError, handle_stop_signal, pin};

/// How often a thread that was asked to stop is asked again. One signal may come between the thread's look at
/// `stop` and its system call.
const STOP_AGAIN: Duration = Duration::from_millis(10);

/// Why an end can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its memory.
    #[error("memory for the end could not be had")]
    Memory(#[from] MemoryError),
    /// Its adapter.
    #[error("the end's adapter could not be made")]
    Adapter(#[from] AdapterError),
    /// A thread of it.
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

impl From<IoThreadError> for StartError {
    fn from(error: IoThreadError) -> Self {
        match error {
            IoThreadError::Adapter(error) => Self::Adapter(error),
            IoThreadError::Thread(error) => Self::Thread(error),
        }
    }
}

/// A running end.
pub struct Runner {
    signals: Arc<Signals>,
    events: Receiver<Event>,
    dialogue: Arc<dyn Dialogue>,
    pages: SharedPages,
    thread: JoinHandle<()>,
}

/// What an end takes a right to open. Its threads have none.
pub struct Devices {
    /// Ports, one for each of its adapter's queue pairs.
    ports: Vec<Box<dyn Port>>,
    engine: Box<dyn OpenEngine>,
}

impl Devices {
    /// What the end that `config` describes needs beside its `ports`.
    ///
    /// # Errors
    /// [`KvmError`], of a guest.
    pub fn open(config: &EndConfig, ports: Vec<Box<dyn Port>>) -> Result<Self, KvmError> {
        Ok(Self { ports, engine: engine::open(config.engine)? })
    }
}

/// Starts the end that `config` describes behind `devices`, on a thread of its own.
///
/// # Errors
/// [`StartError`]. What goes wrong later comes as [`Event::Ended`].
pub fn start(config: &EndConfig, program: Program, devices: Devices) -> Result<Runner, StartError> {
    let Devices { ports, engine } = devices;
    handle_stop_signal()?;
    let memory = allocate(config.memory)?;
    let pages = SharedPages::new(&memory)?;
    let mut adapter = adapter::build(&config.adapter, memory, ports, config.mac, config.mtu)?;
    let io = if config.adapter.has_thread() {
        let remote = Remote::start(adapter, config.io_cpu)?;
        let io = remote.io()?;
        adapter = Box::new(remote);
        Some(io)
    } else {
        // The WAIT doorbell is a look at all rings, and no program sleeps or ends without it.
        adapter.watch(true)?;
        None
    };
    let dialogue = engine.dialogue(config, &pages);
    let (signals, sender, events) = channel().map_err(ThreadError::of("eventfd"))?;
    let components = Components {
        adapter,
        pages: pages.clone(),
        dialogue: Arc::clone(&dialogue),
        events: sender,
        control_cpu: CpuClock::of_this_thread(),
        io,
    };
    let config = config.clone();
    let thread = std::thread::Builder::new()
        .name(engine.thread_name().into())
        .spawn(move || run(&config, program, &*engine, components))
        .map_err(ThreadError::creating)?;
    Ok(Runner { signals, events, dialogue, pages, thread })
}

/// The body of the program's thread. Its last event is sent when all else has been dropped, the TAP included.
fn run(config: &EndConfig, program: Program, engine: &dyn OpenEngine, components: Components) {
    let events = components.events.clone();
    let result = match config.cpu.map(|cpu| pin(engine.thread_name(), cpu)).transpose() {
        Err(error) => Err(crate::failure(&error, Vec::new())),
        Ok(_) => engine.run(config, &program, components),
    };
    events.send(Event::Ended(result));
}

impl Runner {
    /// Readable when there is an event.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.signals.news_fd()
    }

    /// The next event, if one has come.
    pub fn take_event(&self) -> Option<Event> {
        // In this order: an event that comes in between is taken now or makes the descriptor readable again.
        self.signals.drain_news();
        self.events.try_recv().ok()
    }

    /// The next event, if one comes before `deadline`.
    pub fn next_event(&self, deadline: Instant) -> Option<Event> {
        self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    /// What the program says.
    pub fn dialogue(&self) -> &dyn Dialogue {
        &*self.dialogue
    }

    /// The shared pages.
    #[doc(hidden)]
    pub fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// Tells the program its peer, and to connect if that is its part.
    pub fn start_traffic(&self, peer: SocketAddrV4) {
        self.dialogue.start(peer);
        self.signals.kick();
    }

    /// Ends the program, whatever it does; returns its last event, or `None` if the thread does not end within
    /// `patience`. The thread ends at once unless it hangs in the kernel (or, in a same-stack process, in a loop
    /// of the program that neither waits nor accesses a register).
    pub fn stop(&self, patience: Duration) -> Option<Result<Box<Recording>, Failure>> {
        let deadline = Instant::now() + patience;
        self.signals.stop();
        while Instant::now() < deadline {
            // The thread has not been joined, so its id is valid. One that has ended needs no signal.
            let _ = pthread_kill(self.thread.as_pthread_t(), STOP_SIGNAL);
            match self.events.recv_timeout(STOP_AGAIN) {
                Ok(Event::Ended(result)) => return Some(result),
                Ok(Event::Phase(..)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }
}
