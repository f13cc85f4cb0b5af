//! The course of a trial's end: an interface, sockets, phases and the measured interval. What it carries is an
//! [`Application`], and no business of this file.
//!
//! ```text
//!  SET_UP -> READY -> WARM_UP -> MEASURE -> MEASURED -> CLOSED
//!    |         |         |          |          |
//!    |         |         |          |          '- the application ends its traffic, until all is over
//!    |         |         |          '- `duration` later
//!    |         |         '- `warm_up` after every flow has carried payload
//!    |         '- listens, or connects once `Command::start` is 1
//!    '- adapter, stack and buffers; the address is announced (RFC 5227, 3)
//! ```
//! Both ends measure by their own clock; goodput is what the receiver counts.

use core::sync::atomic::Ordering;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketSet};
use smoltcp::phy::{Device as _, TxToken as _};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpCidr,
    Ipv4Address,
};
use toll_guest_abi::{
    BootInfo, Command, MAGIC, MAX_FLOWS, Status, VERSION, adapter, direction, open, phase, virtio_net,
};

use crate::device::Device;
use crate::driver::pcnet::{self, PcnetDriver};
use crate::driver::virtio_net::{MAX_PAIRS, Setup, VirtioNetDriver};
use crate::driver::{Driver, ETHERNET_HEADER};
use crate::error::Budget;
pub use crate::error::ProgramError;
use crate::platform::Platform;
use crate::traffic::{Application, Counters, Progress, Stack, Statistics, Traffic, places};

/// Limits of the MTU: RFC 791's minimum host, and jumbo frames.
const MTUS: core::ops::RangeInclusive<u32> = 576..=9000;
/// Frames sent before the program looks at its clock and its peer again.
const TURN: usize = 4;
/// Share of the interval, in hundredths, that a sender must have measured when the receiver ends the traffic.
/// The receiver ends it by its own clock; a sender that was kept from running began later, and what it has
/// measured by then, over the time that it really took, is as good a figure of its cost. Goodput is the
/// receiver's.
const ENOUGH: u64 = 50;

/// Runs the program to its end: CLOSED, or an error.
///
/// # Errors
/// [`ProgramError`].
pub fn run<P: Platform>(
    platform: &mut P,
    boot: &BootInfo,
    command: &Command,
    status: &Status,
) -> Result<(), ProgramError> {
    let check = |holds, field| if holds { Ok(()) } else { Err(ProgramError::BootInfo { field }) };
    check(boot.magic == MAGIC, "magic")?;
    check(boot.version == VERSION, "version")?;
    check(MTUS.contains(&boot.mtu), "mtu")?;
    check(matches!(boot.open, open::LISTEN | open::CONNECT), "open")?;
    check((1..=30).contains(&boot.prefix), "prefix")?;
    check(boot.duration_ns > 0, "duration_ns")?;
    check(boot.patience_ns >= 1_000_000, "patience_ns")?;
    let mtu = boot.mtu as usize;
    let longest = mtu + ETHERNET_HEADER;
    match boot.adapter {
        adapter::PCNET => {
            check(longest <= pcnet::LONGEST, "mtu")?;
            check(boot.switches == 0, "switches")?;
            let traffic = Traffic::of(boot, false, Budget::beside(PcnetDriver::memory(), boot))?;
            let driver = PcnetDriver::open(platform, boot.mac)?;
            carry(Device { platform, driver, mtu }, boot, command, status, traffic)
        }
        adapter::VIRTIO_NET => {
            let tso = boot.switches & virtio_net::TSO != 0;
            check(!tso || boot.switches & virtio_net::CHECKSUM_OFFLOAD != 0, "switches")?;
            let pairs = boot.queue_pairs as usize;
            check((1..=MAX_PAIRS).contains(&pairs), "queue_pairs")?;
            check(pairs == 1 || boot.switches & virtio_net::CONTROL_QUEUE != 0, "queue_pairs")?;
            let sends = sends(boot);
            let setup = Setup { mtu, mac: boot.mac, switches: boot.switches, sends, pairs };
            let traffic = Traffic::of(boot, tso, Budget::beside(setup.memory(), boot))?;
            let driver = VirtioNetDriver::open(platform, setup)?;
            carry(Device { platform, driver, mtu }, boot, command, status, traffic)
        }
        _ => check(false, "adapter"),
    }
}

/// Whether this end sends payload.
const fn sends(boot: &BootInfo) -> bool {
    boot.traffic.direction != direction::RECEIVE
}

/// Whether it receives payload.
const fn receives(boot: &BootInfo) -> bool {
    boot.traffic.direction != direction::SEND
}

fn carry<P: Platform, D: Driver>(
    device: Device<'_, P, D>,
    boot: &BootInfo,
    command: &Command,
    status: &Status,
    traffic: Traffic<'_>,
) -> Result<(), ProgramError> {
    match traffic {
        Traffic::Stream(stream) => Program::new(device, boot, command, status, stream).run(),
    }
}

/// Where the program is in its interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// CONNECT, and the order to do so has not come.
    AwaitingStart,
    /// Some flow has carried nothing yet.
    Opening,
    WarmUp {
        until: u64,
    },
    Measure {
        since: u64,
        until: u64,
    },
    Measured,
}

struct Program<'p, 's, P, D, A> {
    device: Device<'p, P, D>,
    interface: Interface,
    sockets: SocketSet<'s>,
    application: A,
    boot: &'s BootInfo,
    command: &'s Command,
    status: &'s Status,
    state: State,
    /// What each flow had carried when the interval began.
    before: [u64; 2 * MAX_FLOWS],
}

/// microseconds of the platform's clock, the stack's resolution.
fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

fn publish(to: &toll_guest_abi::Counters, counters: Counters) {
    to.sent.store(counters.sent, Ordering::Relaxed);
    to.received.store(counters.received, Ordering::Relaxed);
}

impl<'p, 's, P: Platform, D: Driver, A: Application<'s>> Program<'p, 's, P, D, A> {
    fn new(
        mut device: Device<'p, P, D>,
        boot: &'s BootInfo,
        command: &'s Command,
        status: &'s Status,
        application: A,
    ) -> Self {
        let now = instant(device.platform.now_ns());
        let mut config = Config::new(EthernetAddress(boot.mac).into());
        config.random_seed = boot.random_seed;
        let interface = Interface::new(config, &mut device, now);
        let sockets = SocketSet::new(places(device.platform, application.sockets()));
        let state = if boot.open == open::LISTEN { State::Opening } else { State::AwaitingStart };
        let before = [0; 2 * MAX_FLOWS];
        Self { device, interface, sockets, application, boot, command, status, state, before }
    }

    /// The interface's address, and the application's sockets.
    fn open(&mut self) -> Result<(), ProgramError> {
        let address = IpCidr::new(IpAddress::Ipv4(self.boot.address.into()), self.boot.prefix as u8);
        let mut full = false;
        self.interface.update_ip_addrs(|addresses| full = addresses.push(address).is_err());
        if full {
            return Err(ProgramError::Stack { order: "take the address" });
        }
        let gateway = Ipv4Address::from(self.boot.gateway);
        if !gateway.is_unspecified() {
            let routed = self.interface.routes_mut().add_default_ipv4_route(gateway);
            routed.map_err(|_| ProgramError::Stack { order: "take the gateway" })?;
        }
        let mut stack = Stack { interface: &mut self.interface, sockets: &mut self.sockets };
        self.application.open(&mut stack, self.device.platform, self.boot)
    }

    /// ARP announcement (RFC 5227, 3): bridges learn the port and neighbours the address before the first segment.
    fn announce(&mut self) {
        let mac = EthernetAddress(self.boot.mac);
        let address = Ipv4Address::from(self.boot.address);
        let announcement = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: mac,
            source_protocol_addr: address,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: address,
        };
        let Some(room) = self.device.transmit(Instant::ZERO) else { return };
        room.consume(ETHERNET_HEADER + announcement.buffer_len(), |bytes| {
            let mut frame = EthernetFrame::new_unchecked(bytes);
            frame.set_src_addr(mac);
            frame.set_dst_addr(EthernetAddress::BROADCAST);
            frame.set_ethertype(EthernetProtocol::Arp);
            announcement.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        });
    }

    fn run(mut self) -> Result<(), ProgramError> {
        self.open()?;
        self.announce();
        self.device.platform.phase(phase::READY);
        loop {
            let causes = self.device.platform.take_interrupt();
            self.device.driver.interrupted(causes);
            let now = instant(self.device.platform.now_ns());
            // What has come is taken as a whole, then the application reads, then one acknowledgement goes out
            // with the window that this leaves.
            while self.interface.poll_ingress_single(now, &mut self.device, &mut self.sockets)
                != PollIngressSingleResult::None
            {}
            self.step()?;
            // A turn is short: where a frame costs a dozen exits, a window's worth of them would keep the program
            // from its clock, and from what has come, for a quarter of a second.
            if (0..TURN).all(|_| {
                self.interface.poll_egress(now, &mut self.device, &mut self.sockets) != PollResult::None
            }) {
                continue;
            }

            let now_ns = self.device.platform.now_ns();
            let left = self.interface.poll_delay(instant(now_ns), &self.sockets);
            let stack = Stack { interface: &mut self.interface, sockets: &mut self.sockets };
            if self.state == State::Measured && self.application.is_over(&stack, left) {
                // The last acknowledgement may be in the ring.
                self.device.platform.wait(0);
                self.device.platform.phase(phase::CLOSED);
                return Ok(());
            }
            self.application.rests(&stack, now_ns);
            let timeout = self.timeout(now_ns, left);
            self.device.platform.wait(timeout);
        }
    }

    /// Microseconds until the stack or the state needs a turn.
    fn timeout(&self, now_ns: u64, stack: Option<Duration>) -> u32 {
        let stack = stack.map_or(u64::MAX, |left| left.total_micros());
        let state = match self.state {
            State::WarmUp { until } | State::Measure { until, .. } => {
                until.saturating_sub(now_ns).div_ceil(1000)
            }
            _ => u64::MAX,
        };
        u32::try_from(stack.min(state)).unwrap_or(u32::MAX)
    }

    /// The application's turn.
    fn step(&mut self) -> Result<(), ProgramError> {
        let mut stack = Stack { interface: &mut self.interface, sockets: &mut self.sockets };
        if self.state == State::AwaitingStart {
            if self.command.start.load(Ordering::Acquire) == 1 {
                let address =
                    Ipv4Address::from(self.command.peer_address.load(Ordering::Relaxed).to_ne_bytes());
                let port = self.command.peer_port.load(Ordering::Relaxed) as u16;
                self.application.connect(&mut stack, (IpAddress::Ipv4(address), port).into())?;
                self.state = State::Opening;
            }
            return Ok(());
        }
        let progress = self.application.turn(&mut stack, self.device.platform)?;
        publish(&self.status.now, self.application.counters());
        self.advance(progress)
    }

    /// Moves through the interval; see the diagram of the module.
    fn advance(&mut self, progress: Progress) -> Result<(), ProgramError> {
        if self.state == State::Opening && progress == Progress::Flowing {
            let now = self.device.platform.now_ns();
            self.state = State::WarmUp { until: now.saturating_add(self.boot.warm_up_ns) };
            self.device.platform.phase(phase::WARM_UP);
        }
        if let State::WarmUp { until } = self.state {
            let now = self.device.platform.now_ns();
            if now >= until {
                self.state = State::Measure { since: now, until: now.saturating_add(self.boot.duration_ns) };
                for (before, flow) in self.before.iter_mut().zip(self.application.flows()) {
                    *before = flow;
                }
                publish(&self.status.start, self.application.counters());
                self.status.start_ns.store(now, Ordering::Relaxed);
                self.publish_statistics();
                self.device.platform.phase(phase::MEASURE);
            }
        }
        if let State::Measure { since, until } = self.state {
            let now = self.device.platform.now_ns();
            let peer_measured = progress == Progress::PeerMeasured;
            if peer_measured && (now - since) / 100 < (until - since) / 10_000 * ENOUGH {
                return Err(ProgramError::PeerClosed);
            }
            // An end that receives too goes on with that.
            if now >= until || (peer_measured && !receives(self.boot)) {
                self.state = State::Measured;
                self.end(now);
                let mut stack = Stack { interface: &mut self.interface, sockets: &mut self.sockets };
                let patience = Duration::from_micros(self.boot.patience_ns / 1000);
                self.application.measured(&mut stack, patience);
            }
        }
        match self.state {
            State::Opening | State::WarmUp { .. } if progress == Progress::PeerMeasured => {
                Err(ProgramError::PeerClosed)
            }
            _ => Ok(()),
        }
    }

    fn publish_statistics(&mut self) {
        let stack = Stack { interface: &mut self.interface, sockets: &mut self.sockets };
        let Statistics { retransmits, window_bound_ns } = self.application.statistics(&stack);
        self.status.retransmits.store(retransmits, Ordering::Relaxed);
        self.status.window_bound_ns.store(window_bound_ns, Ordering::Relaxed);
    }

    /// What the interval has brought.
    fn end(&mut self, now: u64) {
        for ((to, before), flow) in self.status.flows.iter().zip(self.before).zip(self.application.flows()) {
            to.store(flow - before, Ordering::Relaxed);
        }
        publish(&self.status.end, self.application.counters());
        self.status.end_ns.store(now, Ordering::Relaxed);
        self.publish_statistics();
        self.device.platform.phase(phase::MEASURED);
    }
}
