//! A running end, seen from the thread that controls it: the same for a guest and a same-stack process.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::BorrowedFd;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;
use toll_protocol::child::Engine;
use toll_protocol::report::Failure;
use toll_protocol::trial::{self, PcnetSwitches};
use toll_vnic::adapter::pcnet::Pcnet;
use toll_vnic::adapter::virtio_net::VirtioNet;
use toll_vnic::adapter::{Adapter, AdapterError};
use toll_vnic::port::{Port, PortError};

use crate::boot::Program;
use crate::clock::CpuClock;
use crate::config::EndConfig;
use crate::io_thread::{Io, Remote};
use crate::kvm::{self, Kvm, KvmError};
use crate::link::{Event, Link, Reporter, link};
use crate::memory::{MemoryError, SharedPages, allocate};
use crate::recording::Recording;
use crate::{guest, same_stack};

/// Makes `KVM_RUN` and `ppoll` return; its handler does nothing.
pub(crate) const STOP_SIGNAL: Signal = Signal::SIGUSR1;
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
    /// A thread can't run on the CPU that was asked for.
    #[error(
        "the thread {thread} could not be pinned to CPU {cpu}: choose one that is online and allowed to this process"
    )]
    Pin {
        /// Its name in reports.
        thread: &'static str,
        /// The CPU's number.
        cpu: usize,
        /// The system's word.
        source: io::Error,
    },
    /// A system call.
    #[error("{call} failed")]
    System {
        /// Which.
        call: &'static str,
        /// The system's word.
        source: io::Error,
    },
}

/// What the program's thread gets, whatever runs the program.
pub struct Stage {
    /// The chip.
    pub adapter: Box<dyn Adapter>,
    /// Whether it looks at its port after each access.
    pub looks_at_port: bool,
    /// Optimisations of a pcnet; off for others.
    pub switches: PcnetSwitches,
    /// Shared pages and, through them, memory.
    pub pages: SharedPages,
    /// Where events go.
    pub reporter: Reporter,
    /// CPU clock of the control thread.
    pub control_cpu: Option<CpuClock>,
    /// The adapter's thread, if it has one.
    pub io: Option<Io>,
}

/// A running end.
pub struct Runner {
    link: Arc<Link>,
    events: Receiver<Event>,
    pages: SharedPages,
    thread: JoinHandle<()>,
}

/// An engine with what it takes a right to open.
enum OpenEngine {
    /// Of guests.
    Kvm(Kvm),
    /// The program is a thread of this process.
    HostProcess,
}

impl OpenEngine {
    /// Name of the program's thread in reports.
    const fn thread_name(&self) -> &'static str {
        match self {
            Self::Kvm(_) => "vcpu0",
            Self::HostProcess => "payload",
        }
    }
}

/// What an end takes a right to open. Its threads have none.
pub struct Devices {
    /// Ports, one for each of its adapter's queue pairs.
    ports: Vec<Box<dyn Port>>,
    engine: OpenEngine,
}

impl Devices {
    /// What the end that `config` describes needs beside its `ports`.
    ///
    /// # Errors
    /// [`KvmError`], of a guest.
    pub fn open(config: &EndConfig, ports: Vec<Box<dyn Port>>) -> Result<Self, KvmError> {
        let engine = match config.engine {
            Engine::Kvm => OpenEngine::Kvm(kvm::open()?),
            Engine::HostProcess => OpenEngine::HostProcess,
        };
        Ok(Self { ports, engine })
    }
}

/// Starts the end that `config` describes behind `devices`, on a thread of its own.
///
/// # Errors
/// [`StartError`]. What goes wrong later comes as [`Event::Ended`].
pub fn start(config: &EndConfig, program: Program, devices: Devices) -> Result<Runner, StartError> {
    let Devices { mut ports, engine } = devices;
    let failed = |call| move |errno: Errno| StartError::System { call, source: errno.into() };
    install_signal_handler().map_err(failed("sigaction"))?;
    let memory = allocate(config.memory)?;
    let pages = SharedPages::new(&memory)?;
    let mut io = None;
    let (adapter, switches): (Box<dyn Adapter>, Option<PcnetSwitches>) = match config.adapter {
        trial::Adapter::Pcnet(switches) => {
            let port = ports.pop().filter(|_| ports.is_empty());
            let port = port.ok_or(AdapterError::Port(PortError::Queues { pairs: 1, ports: ports.len() }))?;
            let chip = Pcnet::new(memory, port, config.mac);
            let chip = if switches.send_combining.is_some() { chip.holding_back() } else { chip };
            (Box::new(chip), Some(switches))
        }
        trial::Adapter::VirtioNet(switches) => {
            let mut device = Box::new(VirtioNet::new(memory, ports, config.mac, config.mtu, switches)?);
            if switches.io_thread {
                let remote = Remote::start(device, config.io_cpu)?;
                io = Some(remote.io()?);
                (Box::new(remote), None)
            } else {
                // The WAIT doorbell is a look at all rings, and no program sleeps or ends without it.
                device.watch(true)?;
                (device, None)
            }
        }
    };
    let (looks_at_port, switches) = (switches.is_some(), switches.unwrap_or_default());
    let (link, reporter, events) = link().map_err(failed("eventfd"))?;
    let stage = Stage {
        adapter,
        looks_at_port,
        switches,
        pages: pages.clone(),
        reporter,
        control_cpu: CpuClock::of_this_thread(),
        io,
    };
    let (config, reporting) = (config.clone(), Arc::clone(&link));
    let thread = std::thread::Builder::new()
        .name(engine.thread_name().into())
        .spawn(move || run(&config, program, &engine, stage))
        .map_err(|source| StartError::System { call: "creating a thread", source })?;
    Ok(Runner { link: reporting, events, pages, thread })
}

/// The body of the program's thread. Its last event is sent when all else has been dropped, the TAP included.
fn run(config: &EndConfig, program: Program, engine: &OpenEngine, stage: Stage) {
    let reporter = stage.reporter.clone();
    let result = match config.cpu.map(|cpu| pin(engine.thread_name(), cpu)).transpose() {
        Err(error) => Err(crate::failure(&error, Vec::new())),
        Ok(_) => match engine {
            OpenEngine::Kvm(kvm) => guest::run(kvm, config, &program, stage),
            OpenEngine::HostProcess => same_stack::run(config, &program, stage),
        },
    };
    reporter.send(Event::Ended(result));
}

/// Pins the calling thread, whose name is `thread`.
pub(crate) fn pin(thread: &'static str, cpu: usize) -> Result<(), StartError> {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.map_err(|errno| StartError::Pin { thread, cpu, source: errno.into() })
}

fn install_signal_handler() -> Result<(), Errno> {
    extern "C" fn nothing(_: nix::libc::c_int) {}
    // Without SA_RESTART: a system call that waits shall return.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, which is safe at any point.
    unsafe { sigaction(STOP_SIGNAL, &action) }.map(drop)
}

impl Runner {
    /// Readable when there is an event.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.link.news_fd()
    }

    /// The next event, if one has come.
    pub fn take_event(&self) -> Option<Event> {
        // In this order: an event that comes in between is taken now or makes the descriptor readable again.
        self.link.drain_news();
        self.events.try_recv().ok()
    }

    /// The next event, if one comes before `deadline`.
    pub fn next_event(&self, deadline: Instant) -> Option<Event> {
        self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    /// Payload bytes sent and received in the measured interval so far: read without an exit.
    pub fn measured_bytes(&self) -> (u64, u64) {
        self.pages.measured_bytes()
    }

    /// The shared pages.
    #[doc(hidden)]
    pub fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// Tells the program its peer, and to connect if that is its part.
    pub fn start_traffic(&self, peer: SocketAddrV4) {
        let command = self.pages.command();
        // Network order in memory.
        command.peer_address.store(u32::from_ne_bytes(peer.ip().octets()), Ordering::Relaxed);
        command.peer_port.store(u32::from(peer.port()), Ordering::Relaxed);
        command.start.store(1, Ordering::Release);
        self.link.kick();
    }

    /// Ends the program, whatever it does; returns its last event, or `None` if the thread does not end within
    /// `patience`. The thread ends at once unless it hangs in the kernel (or, in a same-stack process, in a loop
    /// of the program that neither waits nor accesses a register).
    pub fn stop(&self, patience: Duration) -> Option<Result<Box<Recording>, Failure>> {
        let deadline = Instant::now() + patience;
        self.link.stop();
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
