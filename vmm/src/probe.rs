//! `toll-vmm probe`: whether guests run here. That /dev/kvm opens, and that KVM makes a machine, says little of whether a
//! guest lives in it: so guests are run, two at a time, which talk to each other for a moment.
//!
//! ```text
//!  Probe::open: KVM and wires of all guests --> Confinement::enter --> Probe::run: the guests
//! ```
//! A guest of the probe runs with the rights of one in a trial: none.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use toll_child::confinement::{Confinement, ConfinementError};
use toll_guest_abi::phase;
use toll_protocol::child::{VmmConfig, VmmPort};
use toll_protocol::engine::Engine;
use toll_protocol::report::Failure;
use toll_protocol::traffic::stream::Stream;
use toll_protocol::traffic::{Job, Timing, Traffic};
use toll_protocol::trial::{
    Adapter, Direction, Open, PcnetSwitches, SendCombining, TrialId, VirtioNetSwitches,
};
use toll_protocol::units::{Bytes, InterfaceAddress, MacAddress, Span};
use toll_vnic::port::{PortError, memory};

use crate::boot::Program;
use crate::channel::Event;
use crate::config::{ConfigError, EndConfig, LISTEN_PORT};
use crate::kvm::{self, KvmError};
use crate::runner::{Devices, Runner, StartError, start};

/// What two guests may take together. It is some 20 ms, and a second where the CPU itself is emulated.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long one of them is listened to before the other has its turn.
const TURN: Duration = Duration::from_millis(1);
/// How long they send.
const MOMENT: Duration = Duration::from_millis(5);
/// Frames that wait between them.
const WIRE: usize = 256;

/// Why guests don't run here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// KVM makes no machine.
    #[error("no guest can be created")]
    Kvm(#[from] KvmError),
    /// The wire between the guests.
    #[error("no guest can be started")]
    Port(#[from] PortError),
    /// The process keeps rights, so no guest is run.
    #[error("the probe could not give up its rights")]
    Confinement(#[from] ConfinementError),
    /// A guest that can't be.
    #[error("no guest can be started")]
    Config(#[from] ConfigError),
    /// Memory, threads or descriptors.
    #[error("no guest can be started")]
    Start(#[from] StartError),
    /// A guest failed.
    #[error("a guest with {adapter} does not run: {}", failure.reason)]
    Guest {
        /// Its adapter.
        adapter: Adapter,
        /// Why, with its last words.
        failure: Failure,
    },
}

impl ProbeError {
    /// The last words of a guest that ran, and nothing of one that didn't.
    pub fn last_words(&self) -> &[String] {
        match self {
            Self::Guest { failure, .. } => &failure.last_words,
            _ => &[],
        }
    }
}

/// A guest that is not yet started.
struct End {
    adapter: Adapter,
    config: EndConfig,
    devices: Devices,
}

/// Guests with each adapter, for which all is open that takes a right.
pub struct Probe {
    /// Those of a pair run together.
    pairs: Vec<[End; 2]>,
}

/// Runs guests with each adapter: the plain ones, and those with every switch that asks KVM for something of its own
/// (writes kept in the kernel, notifications by KVM, signals to the vCPU). The process is in `confinement` before the first
/// of them is created; it has no other thread.
///
/// # Errors
/// [`ProbeError`] of the first that fails.
pub fn probe(confinement: Confinement) -> Result<(), ProbeError> {
    let probe = Probe::open()?;
    // It writes no file.
    confinement.enter(0)?;
    probe.run([Program::Traffic; 2])
}

impl Probe {
    /// Opens what the guests need.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn open() -> Result<Self, ProbeError> {
        kvm::probe()?;
        let optimised = PcnetSwitches {
            io_in_kernel: true,
            send_combining: Some(SendCombining::default()),
            irq_notification: false,
        };
        let pairs = [
            [Adapter::Pcnet(PcnetSwitches::OFF), Adapter::VirtioNet(VirtioNetSwitches::OFF)],
            [
                Adapter::Pcnet(optimised),
                Adapter::VirtioNet(VirtioNetSwitches { io_thread: true, ..VirtioNetSwitches::OFF }),
            ],
        ];
        Ok(Self { pairs: pairs.into_iter().map(pair).collect::<Result<_, _>>()? })
    }

    /// Runs them, the two of a pair with these programs: others than [`Program::Traffic`] in tests.
    ///
    /// # Errors
    /// [`ProbeError`] of the first that fails.
    pub fn run(self, programs: [Program; 2]) -> Result<(), ProbeError> {
        self.pairs.into_iter().try_for_each(|pair| talk(pair, programs))
    }
}

/// Two guests with these adapters: the first connects to the second and sends.
fn pair([first, second]: [Adapter; 2]) -> Result<[End; 2], ProbeError> {
    let (near, far) = memory::pair(WIRE)?;
    let end = |adapter: Adapter, direction, open, port, number| -> Result<End, ProbeError> {
        let config = config(adapter.clone(), direction, open, number)?;
        let devices = Devices::open(&config, vec![Box::new(port)])?;
        Ok(End { adapter, config, devices })
    };
    Ok([
        end(first, Direction::Send, Open::Connect, near, 1)?,
        end(second, Direction::Receive, Open::Listen, far, 2)?,
    ])
}

fn talk(ends: [End; 2], programs: [Program; 2]) -> Result<(), ProbeError> {
    let deadline = Instant::now() + PATIENCE;
    let mut runners = Vec::new();
    for (End { adapter, config, devices }, program) in ends.into_iter().zip(programs) {
        runners.push((adapter, start(&config, program, devices)?));
    }
    reach(phase::READY, &runners, deadline)?;
    for (number, (_, runner)) in (1..).zip(&runners) {
        // Each other's.
        runner.start_traffic(SocketAddrV4::new(address(3 - number), LISTEN_PORT));
    }
    // What is on its way still is of no use, and takes pcnet thousands of exits.
    reach(phase::MEASURED, &runners, deadline)?;
    for (_, runner) in &runners {
        runner.stop(PATIENCE);
    }
    Ok(())
}

/// Waits until all have announced `phase`; one that is late is stopped. All are listened to: one that fails makes the other
/// stand still, and is the one to be told of.
fn reach(phase: u32, runners: &[(Adapter, Runner)], deadline: Instant) -> Result<(), ProbeError> {
    let failed = |adapter: &Adapter, failure| ProbeError::Guest { adapter: adapter.clone(), failure };
    let mut late: Vec<&(Adapter, Runner)> = runners.iter().collect();
    while !late.is_empty() && Instant::now() < deadline {
        let mut still = Vec::new();
        for end @ (adapter, runner) in late {
            match runner.next_event(deadline.min(Instant::now() + TURN)) {
                Some(Event::Phase(announced, _)) if announced == phase => {}
                Some(Event::Phase(..)) | None => still.push(end),
                Some(Event::Ended(Err(failure))) => return Err(failed(adapter, failure)),
                Some(Event::Ended(Ok(_))) => return Err(failed(adapter, Failure::new("it ended too early"))),
            }
        }
        late = still;
    }
    let Some((adapter, runner)) = late.first() else { return Ok(()) };
    let last_words = match runner.stop(PATIENCE) {
        Some(Err(failure)) => failure.last_words,
        Some(Ok(_)) | None => Vec::new(),
    };
    let reason = format!("it stood still for {} s", PATIENCE.as_secs());
    Err(failed(adapter, Failure { reason, last_words }))
}

fn address(number: u8) -> Ipv4Addr {
    // TEST-NET-1 (RFC 5737): these frames never leave this process.
    Ipv4Addr::new(192, 0, 2, number)
}

fn config(adapter: Adapter, direction: Direction, open: Open, number: u8) -> Result<EndConfig, ConfigError> {
    EndConfig::try_from(VmmConfig {
        trial: TrialId::new(0),
        engine: Engine::Payload,
        adapter,
        // It has a port already.
        port: VmmPort::Tap { name: "none".into() },
        impairments: None,
        capture: None,
        mac: MacAddress([0x52, 0x54, 0, 0, 0, number]),
        address: InterfaceAddress { address: address(number), prefix: 24 },
        gateway: None,
        mtu: 1500,
        memory: Bytes(8 << 20),
        job: Job {
            direction,
            open,
            timing: Timing { warm_up: Span(0), duration: MOMENT.into() },
            traffic: Traffic::Stream(Stream { write_size: Bytes(4096), ..Stream::default() }),
        },
        cpu: None,
        io_cpu: None,
        deadline: PATIENCE.into(),
    })
}
