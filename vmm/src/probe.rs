//! `toll-vmm probe`: whether guests run here. That /dev/kvm opens, and that KVM makes a machine, says little of whether a
//! guest lives in it: so two guests are run, which talk to each other for a moment.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use toll_guest_abi::phase;
use toll_protocol::child::{Engine, VmmConfig, VmmPort};
use toll_protocol::report::Failure;
use toll_protocol::trial::{
    Adapter, Direction, Open, PcnetSwitches, SendCombining, StreamJob, TrialId, VirtioNetSwitches,
};
use toll_protocol::units::{Bytes, InterfaceAddress, MacAddress, Span};
use toll_vnic::port::{PortError, memory};

use crate::boot::Program;
use crate::config::{ConfigError, EndConfig, LISTEN_PORT};
use crate::kvm::{self, KvmError};
use crate::link::Event;
use crate::runner::{Runner, StartError, start};

/// What two guests may take together. It is some 20 ms, and a second where the CPU itself is emulated.
const PATIENCE: Duration = Duration::from_secs(15);
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

/// Runs guests with each adapter: the plain ones, and those with every switch that asks KVM for something of its own
/// (writes kept in the kernel, notifications by KVM, signals to the vCPU).
///
/// # Errors
/// [`ProbeError`] of the first that fails.
pub fn probe() -> Result<(), ProbeError> {
    probe_with(Program::Traffic)
}

/// The same with another program in the guests: one that fails, in tests.
///
/// # Errors
/// As for [`probe`].
#[doc(hidden)]
pub fn probe_with(program: Program) -> Result<(), ProbeError> {
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
    pairs.into_iter().try_for_each(|pair| talk(pair, program))
}

/// Two guests with these adapters: the first connects to the second and sends.
fn talk([first, second]: [Adapter; 2], program: Program) -> Result<(), ProbeError> {
    let deadline = Instant::now() + PATIENCE;
    let (near, far) = memory::pair(WIRE)?;
    let ends =
        [(first, Direction::Send, Open::Connect, near), (second, Direction::Receive, Open::Listen, far)];
    let mut runners = Vec::new();
    for (number, (adapter, direction, open, port)) in (1..).zip(ends) {
        let config = config(adapter.clone(), direction, open, number)?;
        runners.push((adapter, start(&config, program, vec![Box::new(port)])?));
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

/// Waits until all have announced `phase`; one that is late is stopped.
fn reach(phase: u32, runners: &[(Adapter, Runner)], deadline: Instant) -> Result<(), ProbeError> {
    for (adapter, runner) in runners {
        let failed = |failure| ProbeError::Guest { adapter: adapter.clone(), failure };
        loop {
            match runner.next_event(deadline) {
                Some(Event::Phase(announced, _)) if announced == phase => break,
                Some(Event::Phase(..)) => {}
                Some(Event::Ended(Err(failure))) => return Err(failed(failure)),
                Some(Event::Ended(Ok(_))) => return Err(failed(Failure::new("it ended too early"))),
                None => {
                    let last_words = match runner.stop(PATIENCE) {
                        Some(Err(failure)) => failure.last_words,
                        Some(Ok(_)) | None => Vec::new(),
                    };
                    let reason = format!("it stood still for {} s", PATIENCE.as_secs());
                    return Err(failed(Failure { reason, last_words }));
                }
            }
        }
    }
    Ok(())
}

fn address(number: u8) -> Ipv4Addr {
    // TEST-NET-1 (RFC 5737): these frames never leave this process.
    Ipv4Addr::new(192, 0, 2, number)
}

fn config(adapter: Adapter, direction: Direction, open: Open, number: u8) -> Result<EndConfig, ConfigError> {
    EndConfig::try_from(VmmConfig {
        trial: TrialId::new(0),
        engine: Engine::Kvm,
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
        job: StreamJob {
            direction,
            open,
            write_size: Bytes(4096),
            warm_up: Span(0),
            duration: MOMENT.into(),
        },
        cpu: None,
        io_cpu: None,
        deadline: PATIENCE.into(),
    })
}
