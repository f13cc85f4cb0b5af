//! Address translation by the VMM itself: the guest is on a private Ethernet with one neighbour, its gateway, which takes
//! each TCP connection that the guest opens and opens one of the host's for it. Nothing of the host is changed, and no right is
//! needed that a program which opens a connection has not.
//!
//! ```text
//!  adapter --frames--> wire --> TCP of the gateway (smoltcp) <--bytes--> connection <--> socket of the host --> fleet
//!                                                                            |
//!                          descriptor: sockets of the host that are ready, and a timer for the gateway's TCP
//! ```
//! TCP over IPv4 alone, opened by the guest: what else it sends is lost. It reaches the peer of its trial by the test NIC, and
//! nobody else of all that the host reaches.

mod connection;
#[cfg(test)]
mod tests;
mod wire;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketSet};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{
    ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, IpCidr, IpProtocol, Ipv4Address, Ipv4Cidr,
    Ipv4Packet, TcpPacket,
};
use toll_protocol::child::Outside;
use toll_protocol::peer;
use toll_protocol::units::InterfaceAddress;

use super::{Port, PortError, Sent};
use crate::piece::{Piece, PieceMut, write_at};
use connection::{Connection, Ends};
use wire::Wire;

const NAME: &str = "nat";
/// Connections at a time: each holds two buffers.
const CONNECTIONS: usize = 16;
/// Frames of the guest that wait for the others of its turn at most.
const TURN: usize = 64;
/// What is ready at a time at most: every connection.
const EVENTS: usize = CONNECTIONS;
/// How often the gateway's TCP is looked at while a connection opens, at most.
const WHILE_OPENING: Duration = Duration::from_millis(1);
/// The gateway's MAC address, locally administered (IEEE 802).
const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x02, 0x54, 0x4e, 0x41, 0x54, 0x01]);

/// See the module.
pub struct Nat {
    gateway: Ipv4Addr,
    outside: Outside,
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    ready: Epoll,
    timer: TimerFd,
    began: Instant,
    /// When the timer fires, unless it has.
    alarm: Option<Duration>,
}

/// What a frame of the guest is to the translator.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// A question for the gateway's MAC address.
    Arp,
    /// The first segment of a connection.
    Syn(Ends),
    /// Another segment.
    Segment,
    /// Nothing that is translated.
    Foreign,
}

fn look(frame: &[u8], gateway: Ipv4Addr) -> Seen {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return Seen::Foreign };
    match frame.ethertype() {
        EthernetProtocol::Arp => {
            let arp = ArpPacket::new_checked(frame.payload());
            let ours = arp.is_ok_and(|arp| arp.target_protocol_addr() == gateway.octets());
            if ours { Seen::Arp } else { Seen::Foreign }
        }
        EthernetProtocol::Ipv4 => {
            let Ok(packet) = Ipv4Packet::new_checked(frame.payload()) else { return Seen::Foreign };
            if packet.next_header() != IpProtocol::Tcp {
                return Seen::Foreign;
            }
            let Ok(segment) = TcpPacket::new_checked(packet.payload()) else { return Seen::Foreign };
            if !segment.syn() || segment.ack() {
                return Seen::Segment;
            }
            let end = |address: Ipv4Address, port| SocketAddrV4::new(address, port);
            Seen::Syn(Ends {
                guest: end(packet.src_addr(), segment.src_port()),
                far: end(packet.dst_addr(), segment.dst_port()),
            })
        }
        _ => Seen::Foreign,
    }
}

fn failed(call: &'static str) -> impl Fn(Errno) -> PortError {
    move |error| PortError::Io { call, port: NAME.to_owned(), source: error.into() }
}

impl Nat {
    /// A translator with the address `gateway` in the guest's network, for packets of `mtu` bytes at most, whose
    /// connections come from, and go to, what `outside` says.
    ///
    /// # Errors
    /// [`PortError::Io`] if the process has no descriptor left.
    pub fn new(gateway: InterfaceAddress, outside: Outside, mtu: u16) -> Result<Self, PortError> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(failed("timerfd_create"))?;
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("epoll_create1"))?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, TIMER);
        ready.add(timer.as_fd(), event).map_err(failed("epoll_ctl"))?;
        let mut wire = Wire::new(mtu);
        let mut config = Config::new(GATEWAY_MAC.into());
        config.random_seed = rand::random();
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        // The stack has room for one address and one route.
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(gateway.address, gateway.prefix)));
        });
        interface.set_any_ip(true);
        Ok(Self {
            gateway: gateway.address,
            outside,
            interface,
            wire,
            sockets: SocketSet::new(Vec::new()),
            connections: Vec::new(),
            ready,
            timer,
            began: Instant::now(),
            alarm: None,
        })
    }

    /// A connection for the SYN of `ends`, which goes to the gateway's TCP then. Without one its TCP answers with RST.
    fn begin(&mut self, ends: Ends) -> Result<(), PortError> {
        let known = self.connections.iter().any(|connection| connection.ends == ends);
        let far = *ends.far.ip();
        let stranger = far != self.outside.peer || far == self.gateway || peer::check(far).is_err();
        if known || stranger || self.connections.len() >= CONNECTIONS {
            return Ok(());
        }
        // No socket, or no way there: what a guest on a wire would be told too.
        let Ok(socket) = connection::outer() else { return Ok(()) };
        connection::set_congestion(&socket)
            .map_err(failed("setsockopt of TCP_CONGESTION (see net.ipv4.tcp_allowed_congestion_control)"))?;
        let Ok(connection) = Connection::begin(socket, ends, &self.outside, &mut self.sockets) else {
            return Ok(());
        };
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let event = EpollEvent::new(both, key(ends));
        self.ready.add(connection.outside(), event).map_err(failed("epoll_ctl"))?;
        self.connections.push(connection);
        Ok(())
    }

    fn now(&self) -> StackInstant {
        // Below 2^63 microseconds.
        StackInstant::from_micros(self.began.elapsed().as_micros() as i64)
    }

    /// Hears what is ready.
    fn hear(&mut self) -> Result<(), PortError> {
        let mut events = [EpollEvent::empty(); EVENTS + 1];
        let count = match self.ready.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(failed("epoll_wait")(errno)),
        };
        for event in &events[..count] {
            if event.data() == TIMER {
                self.alarm = None;
            }
            let ours = |connection: &&mut Connection| key(connection.ends) == event.data();
            self.connections.iter_mut().filter(ours).for_each(Connection::ready);
        }
        Ok(())
    }

    /// Moves frames and bytes until nothing moves, and sets the timer to when something will.
    fn turn(&mut self) -> Result<(), PortError> {
        loop {
            let now = self.now();
            while self.interface.poll_ingress_single(now, &mut self.wire, &mut self.sockets)
                != PollIngressSingleResult::None
            {}
            let sockets = &mut self.sockets;
            let moved =
                self.connections.iter_mut().fold(false, |moved, connection| connection.turn(sockets) | moved);
            while self.interface.poll_egress(now, &mut self.wire, &mut self.sockets) != PollResult::None {}
            if !moved {
                break;
            }
        }
        let Self { connections, sockets, .. } = self;
        connections.retain(|connection| {
            let over = connection.is_over(sockets);
            if over {
                sockets.remove(connection.handle());
            }
            !over
        });
        self.set_timer()
    }

    fn set_timer(&mut self) -> Result<(), PortError> {
        let now = self.began.elapsed();
        let delay = self.interface.poll_delay(self.now(), &self.sockets).map(Duration::from);
        // A SYN that waits for the host's connection is always due.
        let opening = self.connections.iter().any(|connection| !connection.is_open());
        let least = if opening { WHILE_OPENING } else { Duration::ZERO };
        let wanted = delay.map(|delay| now + delay.max(least));
        // One that fires early costs a look, and setting it anew for each segment a system call.
        let Some(due) = wanted.filter(|due| self.alarm.is_none_or(|alarm| *due < alarm)) else {
            return Ok(());
        };
        // 0 would disarm it.
        let after = due.saturating_sub(now).max(Duration::from_nanos(1));
        let expiration = Expiration::OneShot(TimeSpec::from_duration(after));
        self.timer.set(expiration, TimerSetTimeFlags::empty()).map_err(failed("timerfd_settime"))?;
        self.alarm = Some(due);
        Ok(())
    }
}

/// What the timer is to the descriptor that says what is ready: no connection comes from port 0.
const TIMER: u64 = 0;

/// What a connection is there: a guest has one address, so its port and the far end name it.
fn key(ends: Ends) -> u64 {
    u64::from(ends.far.ip().to_bits()) << 32 | u64::from(ends.far.port()) << 16 | u64::from(ends.guest.port())
}

impl Port for Nat {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        let mut frame = self.wire.buffer();
        parts.iter().for_each(|part| part.append_to(&mut frame));
        match look(&frame, self.gateway) {
            Seen::Syn(ends) => self.begin(ends)?,
            Seen::Arp | Seen::Segment => {}
            Seen::Foreign => {
                self.wire.spare(frame);
                return Ok(Sent::Taken);
            }
        }
        let taken = self.wire.take(frame);
        if !taken || self.wire.waiting() >= TURN {
            self.turn()?;
        }
        Ok(if taken { Sent::Taken } else { Sent::Dropped })
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        let next = match self.wire.for_guest() {
            Some(frame) => Some(frame),
            None => {
                self.hear()?;
                self.turn()?;
                self.wire.for_guest()
            }
        };
        let Some(frame) = next else { return Ok(None) };
        let room: usize = parts.iter().map(|part| part.len()).sum();
        write_at(parts, 0, &frame);
        let length = frame.len().min(room);
        self.wire.spare(frame);
        Ok(Some(length))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.0.as_fd())
    }
}
