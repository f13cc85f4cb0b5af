//! The traffic of a trial's end: one bulk TCP connection, measured over an interval.
//!
//! ```text
//!  SET_UP -> READY -> WARM_UP -> MEASURE -> MEASURED -> CLOSED
//!    |         |         |          |          |
//!    |         |         |          |          '- receiver: FIN, drains; sender: sends on until it sees the FIN,
//!    |         |         |          |             then FIN; the connection ends
//!    |         |         |          '- `duration` later
//!    |         |         '- `warm_up` after the first payload byte
//!    |         '- listens, or connects once `Command::start` is 1; WARM_UP begins with the first payload byte
//!    '- adapter, TCP and buffers; the address is announced (RFC 5227, 3)
//! ```
//! Both ends measure by their own clock; goodput is what the receiver counts.

use core::fmt;
use core::sync::atomic::Ordering;

use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet, SocketStorage,
};
use smoltcp::phy::{Device as _, TxToken as _};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpCidr,
    Ipv4Address,
};
use toll_guest_abi::{
    BootInfo, Command, MAGIC, Status, VERSION, adapter, direction, open, phase, virtio_net,
};

use crate::device::Device;
use crate::dma::Dma;
use crate::driver::pcnet::{self, PcnetDriver};
use crate::driver::virtio_net::{MAX_PAIRS, Setup, VirtioNetDriver};
use crate::driver::{Driver, DriverError, ETHERNET_HEADER};
use crate::platform::Platform;
use crate::retransmits::Retransmits;

/// TCP buffer on the side that carries the payload. At an MTU of 1500 the receive window is about 360 frames:
/// the TAP's queue holds 1000, so it never drops. Twice as much made no figure better over TAP, bridge and veth, and
/// half of it doubled the number of waits.
const BULK_BUFFER: usize = 512 << 10;
/// The same of a sender where segments of 64 KiB cross the adapter: 16 of them. With four times as much it waits less often,
/// and overruns the queue of a link of 10 Gb/s: what is lost there costs it seconds.
const LARGE_SEND_BUFFER: usize = 1 << 20;
/// The same of a receiver, whose acknowledgements leave when it waits: with a window of 1 MiB its peer waits for them, and a
/// guest receives half of what the host process does. What its peer may send at once is its peer's own to find out.
const LARGE_RECEIVE_BUFFER: usize = 4 << 20;
/// The least that it may shrink to in a small arena.
const MIN_BULK_BUFFER: usize = 64 << 10;
/// TCP buffer on the other side.
const QUIET_BUFFER: usize = 16 << 10;
/// Longest send or receive call.
const MAX_WRITE_SIZE: usize = 16 << 20;
/// Limits of the MTU: RFC 791's minimum host, and jumbo frames.
const MTUS: core::ops::RangeInclusive<u32> = 576..=9000;
/// What is left to do in TIME-WAIT within this time is still ours; the rest is waiting for old duplicates.
const TIME_WAIT_WORK: Duration = Duration::from_millis(50);
/// Frames sent before the program looks at its clock and its peer again.
const TURN: usize = 4;
/// Share of the interval, in hundredths, that a sender must have measured when the receiver ends the connection.
/// The receiver ends it by its own clock; a sender that was kept from running began later, and what it has
/// measured by then, over the time that it really took, is as good a figure of its cost. Goodput is the
/// receiver's.
const ENOUGH: u64 = 50;

/// Why the program ended before its connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramError {
    /// A field of the boot information is out of range.
    BootInfo {
        /// Its name.
        field: &'static str,
    },
    /// The arena is too small.
    Arena {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// The adapter does not come up.
    Driver(DriverError),
    /// The connection was refused, or reset before the interval was over.
    Reset,
    /// The peer closed its end before enough of the interval was measured.
    PeerClosed,
    /// The TCP stack refused an order.
    Stack {
        /// Which.
        order: &'static str,
    },
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BootInfo { field } => write!(f, "the boot information's {field} is out of range"),
            Self::Arena { needed, found } => write!(f, "the arena has {found} bytes and {needed} are needed"),
            Self::Driver(error) => write!(f, "the adapter does not come up: {error}"),
            Self::Reset => f.write_str("the connection was refused or reset"),
            Self::PeerClosed => {
                f.write_str("the peer closed its end before half of the interval was measured")
            }
            Self::Stack { order } => write!(f, "the TCP stack refused to {order}"),
        }
    }
}

impl core::error::Error for ProgramError {}

impl From<DriverError> for ProgramError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

/// The byte at `offset` of the buffer that is sent again and again: position-dependent over more than a frame, so
/// that a test sees bytes that are lost, doubled or moved.
pub const fn pattern(offset: usize) -> u8 {
    ((offset as u32).wrapping_mul(0x9e37_79b1) >> 24) as u8
}

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
    check((1..=MAX_WRITE_SIZE).contains(&(boot.write_size as usize)), "write_size")?;
    check(matches!(boot.direction, direction::SEND | direction::RECEIVE), "direction")?;
    check(matches!(boot.open, open::LISTEN | open::CONNECT), "open")?;
    check((1..=30).contains(&boot.prefix), "prefix")?;
    check(boot.duration_ns > 0, "duration_ns")?;
    check(boot.patience_ns >= 1_000_000, "patience_ns")?;
    let mtu = boot.mtu as usize;
    let longest = mtu + ETHERNET_HEADER;
    let mut storage = [SocketStorage::EMPTY];
    let retransmits = Retransmits::default();
    match boot.adapter {
        adapter::PCNET => {
            check(longest <= pcnet::LONGEST, "mtu")?;
            check(boot.switches == 0, "switches")?;
            let buffers = Buffers::fit(boot, PcnetDriver::memory(), BULK_BUFFER)?;
            let driver = PcnetDriver::open(platform, boot.mac)?;
            let device = Device { platform, driver, mtu, retransmits };
            Program::new(device, boot, command, status, buffers).run(&mut storage)
        }
        adapter::VIRTIO_NET => {
            let tso = boot.switches & virtio_net::TSO != 0;
            check(!tso || boot.switches & virtio_net::CHECKSUM_OFFLOAD != 0, "switches")?;
            let pairs = boot.queue_pairs as usize;
            check((1..=MAX_PAIRS).contains(&pairs), "queue_pairs")?;
            check(pairs == 1 || boot.switches & virtio_net::CONTROL_QUEUE != 0, "queue_pairs")?;
            let sends = boot.direction == direction::SEND;
            let setup = Setup { mtu, mac: boot.mac, switches: boot.switches, sends, pairs };
            let bulk = match (tso, sends) {
                (true, true) => LARGE_SEND_BUFFER,
                (true, false) => LARGE_RECEIVE_BUFFER,
                (false, _) => BULK_BUFFER,
            };
            let buffers = Buffers::fit(boot, setup.memory(), bulk)?;
            let driver = VirtioNetDriver::open(platform, setup)?;
            let device = Device { platform, driver, mtu, retransmits };
            Program::new(device, boot, command, status, buffers).run(&mut storage)
        }
        _ => check(false, "adapter"),
    }
}

/// Sizes of the program's buffers, in bytes.
#[derive(Debug, Clone, Copy)]
struct Buffers {
    receive: usize,
    send: usize,
    application: usize,
}

impl Buffers {
    /// What fits in the arena beside `driver` bytes of rings and frames, `most` bytes on the side of the payload.
    fn fit(boot: &BootInfo, driver: usize, most: usize) -> Result<Self, ProgramError> {
        // Each of the five allocations may lose up to a page to its alignment.
        let fixed = driver + boot.write_size as usize + QUIET_BUFFER + 5 * 4096;
        let found = usize::try_from(boot.arena_length).unwrap_or(usize::MAX);
        let bulk = found.saturating_sub(fixed).min(most);
        if bulk < MIN_BULK_BUFFER {
            let needed = (fixed + MIN_BULK_BUFFER) as u64;
            return Err(ProgramError::Arena { needed, found: boot.arena_length });
        }
        let (receive, send) =
            if boot.direction == direction::SEND { (QUIET_BUFFER, bulk) } else { (bulk, QUIET_BUFFER) };
        Ok(Self { receive, send, application: boot.write_size as usize })
    }
}

/// TSval of the TCP timestamps option (RFC 7323, 3): a tick of 2^22 cycles, which is one or two milliseconds (5.4). With the
/// option, which every kernel's TCP uses, a segment carries as many bytes as the kernel's, and a full link the same goodput.
fn timestamp() -> u32 {
    // SAFETY: RDTSC reads a counter; the program's clock is it, or the system lets every process read it.
    let cycles = unsafe { core::arch::x86_64::_rdtsc() };
    (cycles >> 22) as u32
}

/// Memory for as long as the program runs.
fn buffer<'b>(platform: &mut impl Platform, length: usize) -> &'b mut [u8] {
    let mut bytes = Dma::allocate(platform, length, 64).bytes(0, length);
    // SAFETY: the platform hands memory out once, zeroed, and keeps it while the program runs; nothing else,
    // the adapter included, knows of it.
    unsafe { bytes.as_mut() }
}

/// Where the program is in its interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// CONNECT, and the order to do so has not come.
    AwaitingStart,
    /// No payload byte has been seen.
    Opening,
    WarmUp {
        until: u64,
    },
    Measure {
        since: u64,
        until: u64,
    },
    Measured,
    /// The sender has seen the peer's FIN and sends its own.
    Closing,
    Closed,
}

struct Program<'p, 's, P, D> {
    device: Device<'p, P, D>,
    interface: Interface,
    buffers: Buffers,
    application: &'s mut [u8],
    boot: &'s BootInfo,
    command: &'s Command,
    status: &'s Status,
    bytes: u64,
    /// How much of the application's buffer the stack has taken in the current send call.
    taken: usize,
    state: State,
}

/// microseconds of the platform's clock, the stack's resolution.
fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

impl<'p, 's, P: Platform, D: Driver> Program<'p, 's, P, D> {
    fn new(
        mut device: Device<'p, P, D>,
        boot: &'s BootInfo,
        command: &'s Command,
        status: &'s Status,
        buffers: Buffers,
    ) -> Self {
        let now = instant(device.platform.now_ns());
        let mut config = Config::new(EthernetAddress(boot.mac).into());
        config.random_seed = boot.random_seed;
        let interface = Interface::new(config, &mut device, now);
        let application = buffer(device.platform, buffers.application);
        if boot.direction == direction::SEND {
            for (offset, byte) in application.iter_mut().enumerate() {
                *byte = pattern(offset);
            }
        }
        let (bytes, taken) = (0, 0);
        let state = if boot.open == open::LISTEN { State::Opening } else { State::AwaitingStart };
        Self { device, interface, buffers, application, boot, command, status, bytes, taken, state }
    }

    /// The interface's address, and a socket that listens if it is to.
    fn open(&mut self, sockets: &mut SocketSet<'s>) -> Result<SocketHandle, ProgramError> {
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
        let receive = buffer(self.device.platform, self.buffers.receive);
        let send = buffer(self.device.platform, self.buffers.send);
        let mut socket = tcp::Socket::new(tcp::SocketBuffer::new(receive), tcp::SocketBuffer::new(send));
        socket.set_congestion_control(tcp::CongestionControl::Reno);
        socket.set_tsval_generator(Some(timestamp));
        if self.boot.open == open::LISTEN {
            let listening = socket.listen(self.boot.listen_port);
            listening.map_err(|_| ProgramError::Stack { order: "listen" })?;
        }
        Ok(sockets.add(socket))
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

    fn run(mut self, storage: &'s mut [SocketStorage<'s>]) -> Result<(), ProgramError> {
        let mut sockets = SocketSet::new(storage);
        let handle = self.open(&mut sockets)?;
        self.announce();
        self.device.platform.phase(phase::READY);
        loop {
            let causes = self.device.platform.take_interrupt();
            self.device.driver.interrupted(causes);
            let now = instant(self.device.platform.now_ns());
            // What has come is taken as a whole, then the application reads, then one acknowledgement goes out
            // with the window that this leaves.
            while self.interface.poll_ingress_single(now, &mut self.device, &mut sockets)
                != PollIngressSingleResult::None
            {}
            self.step(&mut sockets, handle)?;
            // A turn is short: where a frame costs a dozen exits, a window's worth of them would keep the program
            // from its clock, and from what has come, for a quarter of a second.
            if (0..TURN)
                .all(|_| self.interface.poll_egress(now, &mut self.device, &mut sockets) != PollResult::None)
            {
                continue;
            }

            let now_ns = self.device.platform.now_ns();
            let left = self.interface.poll_delay(instant(now_ns), &sockets);
            let finished = match sockets.get_mut::<tcp::Socket>(handle).state() {
                tcp::State::TimeWait => left.is_none_or(|left| left > TIME_WAIT_WORK),
                tcp::State::Closed => self.state == State::Closed,
                _ => false,
            };
            if finished {
                // The last acknowledgement may be in the ring.
                self.device.platform.wait(0);
                self.device.platform.phase(phase::CLOSED);
                return Ok(());
            }
            // A connection that ended in the stack's turn is the application's to learn of.
            let ended = sockets.get::<tcp::Socket>(handle).state() == tcp::State::Closed
                && matches!(self.state, State::Measured | State::Closing);
            let timeout = if ended { 0 } else { self.timeout(now_ns, left) };
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
    fn step(&mut self, sockets: &mut SocketSet<'s>, handle: SocketHandle) -> Result<(), ProgramError> {
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        if self.state == State::AwaitingStart {
            if self.command.start.load(Ordering::Acquire) == 1 {
                self.connect(socket)?;
                self.state = State::Opening;
            }
            return Ok(());
        }
        // A socket that listened and was reset before it was open listens again.
        if socket.state() == tcp::State::Closed {
            return match self.state {
                State::Closing | State::Closed => {
                    self.state = State::Closed;
                    Ok(())
                }
                // What is measured is measured. A receiver that ended badly says so itself, and one that closed
                // and was gone before its FIN was seen here is no fault of the sender's.
                State::Measured => {
                    self.state = State::Closed;
                    Ok(())
                }
                _ => Err(ProgramError::Reset),
            };
        }
        let peer_closed =
            if self.boot.direction == direction::SEND { self.send(socket) } else { self.receive(socket) };
        self.status.bytes.store(self.bytes, Ordering::Relaxed);
        self.advance(socket, peer_closed)
    }

    fn connect(&mut self, socket: &mut tcp::Socket<'s>) -> Result<(), ProgramError> {
        let address = Ipv4Address::from(self.command.peer_address.load(Ordering::Relaxed).to_ne_bytes());
        let port = self.command.peer_port.load(Ordering::Relaxed) as u16;
        // Dynamic ports (RFC 6335, 6).
        let local = 49152 + (self.boot.random_seed % 16384) as u16;
        socket
            .connect(self.interface.context(), (IpAddress::Ipv4(address), port), local)
            .map_err(|_| ProgramError::Stack { order: "connect" })
    }

    /// Send calls of `write_size` bytes until the stack takes no more. Whether the peer has closed its end.
    fn send(&mut self, socket: &mut tcp::Socket<'s>) -> bool {
        if !socket.may_send() {
            return false;
        }
        if !socket.may_recv() {
            return true;
        }
        while let Ok(count @ 1..) = socket.send_slice(&self.application[self.taken..]) {
            self.bytes += count as u64;
            self.taken += count;
            if self.taken == self.application.len() {
                self.taken = 0;
            }
        }
        false
    }

    /// Receive calls of up to `write_size` bytes until there are no more. Whether the peer has closed its end.
    fn receive(&mut self, socket: &mut tcp::Socket<'s>) -> bool {
        loop {
            match socket.recv_slice(self.application) {
                Ok(0) => return false,
                Ok(count) => {
                    self.device.platform.received(&self.application[..count]);
                    self.bytes += count as u64;
                }
                Err(tcp::RecvError::Finished) => return true,
                // Not open yet.
                Err(tcp::RecvError::InvalidState) => return false,
            }
        }
    }

    /// Sends a FIN after what is in the buffer. What is still missing when the patience ends is part of the closing
    /// only.
    fn close(&self, socket: &mut tcp::Socket<'s>) {
        socket.close();
        socket.set_timeout(Some(Duration::from_micros(self.boot.patience_ns / 1000)));
    }

    /// Moves through the interval; see the diagram of the module.
    fn advance(&mut self, socket: &mut tcp::Socket<'s>, peer_closed: bool) -> Result<(), ProgramError> {
        let sends = self.boot.direction == direction::SEND;
        if self.state == State::Opening && self.bytes > 0 {
            let now = self.device.platform.now_ns();
            self.state = State::WarmUp { until: now.saturating_add(self.boot.warm_up_ns) };
            self.device.platform.phase(phase::WARM_UP);
        }
        if let State::WarmUp { until } = self.state {
            let now = self.device.platform.now_ns();
            if now >= until {
                self.state = State::Measure { since: now, until: now.saturating_add(self.boot.duration_ns) };
                self.status.measure_start_bytes.store(self.bytes, Ordering::Relaxed);
                self.status.measure_start_ns.store(now, Ordering::Relaxed);
                self.status.retransmits.store(self.device.retransmits.count(), Ordering::Relaxed);
                self.device.platform.phase(phase::MEASURE);
            }
        }
        if let State::Measure { since, until } = self.state {
            let now = self.device.platform.now_ns();
            let enough = (now - since) / 100 >= (until - since) / 10_000 * ENOUGH;
            if now >= until || (sends && peer_closed && enough) {
                self.state = State::Measured;
                self.status.measure_end_bytes.store(self.bytes, Ordering::Relaxed);
                self.status.measure_end_ns.store(now, Ordering::Relaxed);
                self.status.retransmits.store(self.device.retransmits.count(), Ordering::Relaxed);
                self.device.platform.phase(phase::MEASURED);
                if !sends {
                    self.close(socket);
                }
            }
        }
        if !peer_closed {
            return Ok(());
        }
        match self.state {
            State::Measured if sends => {
                self.close(socket);
                self.state = State::Closing;
                Ok(())
            }
            State::Measured | State::Closing | State::Closed => Ok(()),
            _ => Err(ProgramError::PeerClosed),
        }
    }
}
