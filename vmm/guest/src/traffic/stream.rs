//! Bulk TCP: flows in parallel, each of which sends, receives, or does both, in calls of one size.
//!
//! An end that has measured and receives sends its FIN, and drains what still comes. One that only sends goes on until it
//! sees the peer's, so that the peer's interval is full to its end, and sends its own then.

use smoltcp::iface::{SocketHandle, SocketStorage};
use smoltcp::socket::tcp;
use smoltcp::time::Duration;
use smoltcp::wire::IpEndpoint;
use toll_guest_abi::{BootInfo, MAX_FLOWS, direction, open};

use super::{Application, Counters, Progress, Stack, buffer, pattern};
use crate::platform::Platform;
use crate::program::{Budget, ProgramError};

/// TCP buffers of all flows together on a side that carries the payload. At an MTU of 1500 the receive window is about
/// 360 frames: the TAP's queue holds 1000, so it never drops. Twice as much made no figure better over TAP, bridge and
/// veth, and half of it doubled the number of waits.
const BULK_BUFFER: usize = 512 << 10;
/// The same of a sender where segments of 64 KiB cross the adapter: 16 of them. With four times as much it waits less often,
/// and overruns the queue of a link of 10 Gb/s: what is lost there costs it seconds.
const LARGE_SEND_BUFFER: usize = 1 << 20;
/// The same of a receiver, whose acknowledgements leave when it waits: with a window of 1 MiB its peer waits for them, and a
/// guest receives half of what the host process does. What its peer may send at once is its peer's own to find out.
const LARGE_RECEIVE_BUFFER: usize = 4 << 20;
/// The least of one flow.
const MIN_BULK_BUFFER: usize = 64 << 10;
/// TCP buffer on a side that carries none.
const QUIET_BUFFER: usize = 16 << 10;
/// Longest send or receive call.
const MAX_WRITE_SIZE: usize = 16 << 20;
/// What is left to do in TIME-WAIT within this time is still ours; the rest is waiting for old duplicates.
const TIME_WAIT_WORK: Duration = Duration::from_millis(50);
/// Dynamic ports (RFC 6335, 6).
const FIRST_DYNAMIC_PORT: u16 = 49152;
/// Each allocation may lose up to a page to its alignment.
const ALIGNMENT_LOSS: usize = 4096;

/// TSval of the TCP timestamps option (RFC 7323, 3): a tick of 2^22 cycles, which is one or two milliseconds (5.4). With the
/// option, which every kernel's TCP uses, a segment carries as many bytes as the kernel's, and a full link the same goodput.
fn timestamp() -> u32 {
    // SAFETY: RDTSC reads a counter; the program's clock is it, or the system lets every process read it.
    let cycles = unsafe { core::arch::x86_64::_rdtsc() };
    (cycles >> 22) as u32
}

/// One connection.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    handle: SocketHandle,
    carried: Counters,
    /// How much of the application's buffer the stack has taken in the current send call.
    taken: usize,
    /// The peer's FIN has been seen.
    peer_closed: bool,
    /// This end's has been ordered.
    closed: bool,
}

/// Bulk TCP.
pub(crate) struct Stream<'s> {
    flows: [Flow; MAX_FLOWS],
    count: usize,
    sends: bool,
    receives: bool,
    /// Bytes of a flow's buffers.
    receive_buffer: usize,
    send_buffer: usize,
    write_size: usize,
    /// What is sent, or where what is received goes.
    outgoing: &'s [u8],
    incoming: &'s mut [u8],
    /// The interval is over, and so is patience after that long.
    patience: Option<Duration>,
    random_seed: u64,
}

impl Stream<'_> {
    /// Checks what is asked for, and divides `budget` among the flows. `segments`: whether segments of 64 KiB cross the
    /// adapter.
    ///
    /// # Errors
    /// [`ProgramError::BootInfo`], or [`ProgramError::Arena`] if a flow would get too little.
    pub(crate) fn new(boot: &BootInfo, segments: bool, budget: Budget) -> Result<Self, ProgramError> {
        let toll_guest_abi::Traffic { direction, flows, write_size, .. } = boot.traffic;
        let check = |holds, field| if holds { Ok(()) } else { Err(ProgramError::BootInfo { field }) };
        let (count, write_size) = (flows as usize, write_size as usize);
        check((1..=MAX_WRITE_SIZE).contains(&write_size), "write_size")?;
        check((1..=MAX_FLOWS).contains(&count), "flows")?;
        let (sends, receives) = match direction {
            direction::SEND => (true, false),
            direction::RECEIVE => (false, true),
            direction::BOTH => (true, true),
            _ => return Err(ProgramError::BootInfo { field: "direction" }),
        };
        let (most_sent, most_received) =
            if segments { (LARGE_SEND_BUFFER, LARGE_RECEIVE_BUFFER) } else { (BULK_BUFFER, BULK_BUFFER) };
        let sides = usize::from(sends) + usize::from(receives);
        let socket = size_of::<SocketStorage<'_>>() + (2 - sides) * QUIET_BUFFER + 2 * ALIGNMENT_LOSS;
        let fixed = sides * (write_size + ALIGNMENT_LOSS) + ALIGNMENT_LOSS + count * socket;
        let share = budget.left.saturating_sub(fixed) / (count * sides);
        if share < MIN_BULK_BUFFER {
            return Err(budget.too_small(fixed + count * sides * MIN_BULK_BUFFER));
        }
        let bulk = |carries: bool, most: usize| {
            if carries { share.min((most / count).max(MIN_BULK_BUFFER)) } else { QUIET_BUFFER }
        };
        Ok(Self {
            flows: [Flow::default(); MAX_FLOWS],
            count,
            sends,
            receives,
            receive_buffer: bulk(receives, most_received),
            send_buffer: bulk(sends, most_sent),
            write_size,
            outgoing: &[],
            incoming: &mut [],
            patience: None,
            random_seed: boot.random_seed,
        })
    }

    /// Sends a FIN after what is in the buffer. What is still missing when the patience ends is part of the closing
    /// only.
    fn close(socket: &mut tcp::Socket<'_>, flow: &mut Flow, patience: Duration) {
        socket.close();
        socket.set_timeout(Some(patience));
        flow.closed = true;
    }

    /// Send calls of `write_size` bytes until the stack takes no more.
    fn send(socket: &mut tcp::Socket<'_>, flow: &mut Flow, outgoing: &[u8]) {
        while let Ok(count @ 1..) = socket.send_slice(&outgoing[flow.taken..]) {
            flow.carried.sent += count as u64;
            flow.taken += count;
            if flow.taken == outgoing.len() {
                flow.taken = 0;
            }
        }
    }
}

impl<'s> Application<'s> for Stream<'s> {
    fn sockets(&self) -> usize {
        self.count
    }

    fn open<P: Platform>(
        &mut self,
        stack: &mut Stack<'_, 's>,
        platform: &mut P,
        boot: &BootInfo,
    ) -> Result<(), ProgramError> {
        if self.sends {
            let outgoing = buffer(platform, self.write_size);
            for (offset, byte) in outgoing.iter_mut().enumerate() {
                *byte = pattern(offset);
            }
            self.outgoing = outgoing;
        }
        if self.receives {
            self.incoming = buffer(platform, self.write_size);
        }
        for flow in &mut self.flows[..self.count] {
            let receive = buffer(platform, self.receive_buffer);
            let send = buffer(platform, self.send_buffer);
            let mut socket = tcp::Socket::new(tcp::SocketBuffer::new(receive), tcp::SocketBuffer::new(send));
            socket.set_congestion_control(tcp::CongestionControl::Reno);
            socket.set_tsval_generator(Some(timestamp));
            if boot.open == open::LISTEN {
                let listening = socket.listen(boot.listen_port);
                listening.map_err(|_| ProgramError::Stack { order: "listen" })?;
            }
            flow.handle = stack.sockets.add(socket);
        }
        Ok(())
    }

    fn connect(&mut self, stack: &mut Stack<'_, 's>, peer: IpEndpoint) -> Result<(), ProgramError> {
        let ports = u16::MAX - FIRST_DYNAMIC_PORT;
        let first = (self.random_seed % u64::from(ports)) as u16;
        for (flow, offset) in self.flows[..self.count].iter().zip(0..) {
            let local = FIRST_DYNAMIC_PORT + (first + offset) % ports;
            stack
                .sockets
                .get_mut::<tcp::Socket>(flow.handle)
                .connect(stack.interface.context(), peer, local)
                .map_err(|_| ProgramError::Stack { order: "connect" })?;
        }
        Ok(())
    }

    fn turn<P: Platform>(
        &mut self,
        stack: &mut Stack<'_, 's>,
        platform: &mut P,
    ) -> Result<Progress, ProgramError> {
        let Self { flows, count, sends, receives, outgoing, incoming, patience, .. } = self;
        let (mut flowing, mut peer_closed) = (true, false);
        for (index, flow) in flows[..*count].iter_mut().enumerate() {
            let socket = stack.sockets.get_mut::<tcp::Socket>(flow.handle);
            // A socket that listened and was reset before it was open listens again.
            if socket.state() == tcp::State::Closed {
                // What is measured is measured. A receiver that ended badly says so itself, and one that closed
                // and was gone before its FIN was seen here is no fault of the sender's.
                if patience.is_some() {
                    continue;
                }
                return Err(ProgramError::Reset);
            }
            // Receive calls of up to `write_size` bytes until there are no more.
            while *receives && !flow.peer_closed {
                match socket.recv_slice(incoming) {
                    Ok(count @ 1..) => {
                        platform.received(index, &incoming[..count]);
                        flow.carried.received += count as u64;
                    }
                    // Or not open yet.
                    Ok(0) | Err(tcp::RecvError::InvalidState) => break,
                    Err(tcp::RecvError::Finished) => flow.peer_closed = true,
                }
            }
            if *sends && socket.may_send() {
                // An end that only sends reads nothing but the end.
                flow.peer_closed |= !*receives && !socket.may_recv();
                if !flow.peer_closed {
                    Self::send(socket, flow, outgoing);
                }
            }
            if let Some(patience) = *patience
                && flow.peer_closed
                && !flow.closed
            {
                Self::close(socket, flow, patience);
            }
            peer_closed |= flow.peer_closed;
            flowing &= (!*sends || flow.carried.sent > 0) && (!*receives || flow.carried.received > 0);
        }
        Ok(match (peer_closed, flowing) {
            (true, _) => Progress::PeerClosed,
            (false, true) => Progress::Flowing,
            (false, false) => Progress::Opening,
        })
    }

    fn measured(&mut self, stack: &mut Stack<'_, 's>, patience: Duration) {
        self.patience = Some(patience);
        for flow in &mut self.flows[..self.count] {
            if self.receives || flow.peer_closed {
                Self::close(stack.sockets.get_mut(flow.handle), flow, patience);
            }
        }
    }

    fn is_over(&self, stack: &Stack<'_, 's>, left: Option<Duration>) -> bool {
        self.flows[..self.count].iter().all(|flow| {
            match stack.sockets.get::<tcp::Socket>(flow.handle).state() {
                tcp::State::TimeWait => left.is_none_or(|left| left > TIME_WAIT_WORK),
                tcp::State::Closed => true,
                _ => false,
            }
        })
    }

    fn flows(&self) -> impl Iterator<Item = Counters> {
        self.flows[..self.count].iter().map(|flow| flow.carried)
    }
}
