//! A virtual end and the kernel's TCP, joined by a bridge and a veth whose rate either the end's port keeps or tc does.
//!
//! ```text
//!  toll-vmm -- (impairments) -- TAP -- bridge -- veth (tc) ===== (tc) veth -- kernel's TCP
//!                                                  the caller's namespace | one of its own
//! ```

use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use toll_protocol::decorators::Impairments;
use toll_protocol::engine::Engine;
use toll_protocol::report::Flag;
use toll_protocol::trial::{Adapter, Direction, VirtioNetSwitches};
use toll_protocol::units::{BitRate, Span};

use crate::support::{Far, Transfer, transfer};

/// What is asked for.
pub const RATES: [BitRate; 6] = [
    BitRate(1_000_000),
    BitRate(10_000_000),
    BitRate(100_000_000),
    BitRate(950_000_000),
    BitRate(2_500_000_000),
    BitRate(10_000_000_000),
];
/// Bytes of a full frame, and of TCP payload in it: no timestamps.
const FRAME: [f64; 2] = [1514.0, 1460.0];
const MTU: u64 = 1500;

/// Who keeps the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shaper {
    /// sch_tbf at both ends of the veth, as in a lab.
    Tc,
    /// The end's port.
    Impairments,
}

/// One wire and what is sent over it.
pub struct Wire {
    /// Distinguishes wires of one process.
    pub number: u8,
    pub rate: BitRate,
    pub shaper: Shaper,
    /// Of the virtual end.
    pub direction: Direction,
    pub duration: Duration,
}

/// What it carried.
#[derive(Debug)]
pub struct Carried {
    /// Of Ethernet frames that arrived.
    pub bits_per_second: f64,
    /// Of the rate.
    pub ratio: f64,
    pub vmm_seconds_per_gigabyte: Option<f64>,
    pub host_seconds_per_gigabyte: Option<f64>,
    pub flags: Vec<Flag>,
}

impl Wire {
    /// Sends over it; a same-stack end, so that nothing is measured of virtualisation.
    pub fn carry(&self, program: &str) -> Result<Carried, String> {
        let far = Arc::new(self.lay()?);
        let impairments = Impairments { rate: Some(self.rate), ..Impairments::default() };
        let case = Transfer {
            engine: Engine::SameStack,
            adapter: Adapter::VirtioNet(VirtioNetSwitches::OFF),
            direction: self.direction,
            warm_up: Duration::from_millis(500),
            duration: self.duration,
            memory: 64 << 20,
            impairments: (self.shaper == Shaper::Impairments).then_some(impairments),
            far: Some(far),
            ..Transfer::number(self.number)
        };
        let done = transfer(program, &case)?;
        let report = &done.report;
        let goodput = if self.direction.receives() {
            report.received_bytes as f64 * 8.0 / report.interval.seconds()
        } else {
            done.kernel_goodput.ok_or("the kernel's end received nothing to measure")?
        };
        let bits_per_second = goodput * FRAME[0] / FRAME[1];
        let gigabytes = goodput / 8e9 * report.interval.seconds();
        let cost = |spent: Option<Span>| spent.map(|spent| spent.seconds() / gigabytes);
        Ok(Carried {
            bits_per_second,
            ratio: bits_per_second / self.rate.0 as f64,
            vmm_seconds_per_gigabyte: cost(report.cpu.vmm),
            host_seconds_per_gigabyte: cost(report.cpu.host),
            flags: report.flags.to_vec(),
        })
    }

    /// Makes interfaces that end with what is returned; the kernel's end has the address that the virtual end talks to.
    fn lay(&self) -> Result<Far, String> {
        let Self { number, .. } = *self;
        let (near, far, bridge) =
            (format!("near{number}"), format!("far{number}"), format!("bridge{number}"));
        let process = std::process::id();
        let shaping = (self.shaper == Shaper::Tc).then(|| tbf(self.rate));
        let shape = move |device: &str| match &shaping {
            Some(words) => run(&format!("tc qdisc add dev {device} root {words}")),
            None => Ok(()),
        };
        let there = {
            let (shape, far, near) = (shape.clone(), far.clone(), near.clone());
            move || -> Result<File, String> {
                unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("unshare: {errno}"))?;
                run(&format!("ip link add {far} type veth peer name {near} netns {process}"))?;
                run(&format!("ip address add 10.77.{number}.1/24 dev {far}"))?;
                run(&format!("ip link set {far} up"))?;
                shape(&far)?;
                File::open("/proc/thread-self/ns/net").map_err(|error| format!("a namespace: {error}"))
            }
        };
        let namespace = thread::spawn(there).join().map_err(|_| "a thread panicked")??;
        run(&format!("ip link add {bridge} type bridge"))?;
        run(&format!("ip link set {near} master {bridge} up"))?;
        run(&format!("ip link set {bridge} up"))?;
        shape(&near)?;
        Ok(Far { namespace, bridge })
    }
}

/// As a lab's link: see `orchestrator/src/lab/shaping.rs`.
fn tbf(rate: BitRate) -> String {
    let bytes = rate.0 / 8;
    let burst = (bytes / 1000).max(65_550.min(bytes / 100)).max(2 * (MTU + 14));
    format!("tbf rate {}bit burst {burst} limit {}", rate.0, (1000 * MTU).max(burst))
}

fn run(line: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    let output = command.args(words).output().map_err(|error| format!("{line}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{line}: {said}")) }
}
