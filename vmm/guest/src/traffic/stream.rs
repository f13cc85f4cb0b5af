//! Bulk TCP: flows in parallel, each of which carries payload one way, in calls of one size.
//!
//! An end that has measured ends what it receives: it sends its FIN and drains what still comes. What it sends goes on until
//! it sees the peer's, so that the peer's interval is full to its end. Where payload goes both ways there are flows for each,
//! so that neither end's interval ends what the other still measures.

use smoltcp::iface::{SocketHandle, SocketStorage};
use smoltcp::socket::tcp;
use smoltcp::time::Duration;
use smoltcp::wire::IpEndpoint;
use toll_guest_abi::{BootInfo, MAX_FLOWS, congestion, direction, open};

use super::{Application, Counters, Progress, Stack, Statistics, buffer, pattern};
use crate::error::{Budget, ProgramError};
use crate::platform::Platform;

/// TCP buffers of all flows together on a side that carries the payload, to begin with. At an MTU of 1500 the receive window
/// is about 360 frames: the TAP's queue holds 1000, so it never drops. Twice as much made no figure better over TAP, bridge
/// and veth, and half of it doubled the number of waits.
const BULK_BUFFER: usize = 512 << 10;
/// The same of a sender where segments of 64 KiB cross the adapter: 16 of them. With four times as much it waits less often,
/// and overruns the queue of a link of 10 Gb/s.
const LARGE_SEND_BUFFER: usize = 1 << 20;
/// The same of a receiver, whose acknowledgements leave when it waits: with a window of 1 MiB its peer waits for them, and a
/// guest receives half of what the host process does. What its peer may send at once is its peer's own to find out.
const LARGE_RECEIVE_BUFFER: usize = 4 << 20;
/// What a flow's buffer may grow to: twice what a path of 1 Gb/s and 60 ms holds, or one of 100 Mb/s and 600 ms.
const MAX_BULK_BUFFER: usize = 16 << 20;
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
/// Connections of a stream that goes both ways.
const MAX_CONNECTIONS: usize = 2 * MAX_FLOWS;
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
    sends: bool,
    /// Payload bytes.
    carried: u64,
    /// How much of the application's buffer the stack has taken in the current send call.
    taken: usize,
    /// The peer's FIN has been seen.
    peer_closed: bool,
    /// This end's has been ordered.
    closed: bool,
    /// Since when, in nanoseconds, and from how many bytes on its pace is measured.
    paced: (u64, u64),
    /// Since when it has waited for a window.
    bound: Option<u64>,
}

/// Bulk TCP.
pub(crate) struct Stream<'s> {
    flows: [Flow; MAX_CONNECTIONS],
    count: usize,
    /// Flows to the listening end's first port; the others go to the next.
    to_first_port: usize,
    /// Bytes of the buffer that carries a flow's payload, to begin with.
    send_buffer: usize,
    receive_buffer: usize,
    /// What it may grow to.
    most_buffer: usize,
    /// Time that flows waited for a window, all together, in nanoseconds.
    window_bound_ns: u64,
    write_size: usize,
    congestion: tcp::CongestionControl,
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
        let toll_guest_abi::Traffic { direction, flows, write_size, congestion_control, .. } = boot.traffic;
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
        let congestion = match congestion_control {
            congestion::CUBIC => tcp::CongestionControl::Cubic,
            congestion::RENO => tcp::CongestionControl::Reno,
            _ => return Err(ProgramError::BootInfo { field: "congestion_control" }),
        };
        let (most_sent, most_received) =
            if segments { (LARGE_SEND_BUFFER, LARGE_RECEIVE_BUFFER) } else { (BULK_BUFFER, BULK_BUFFER) };
        // The first port is that of the payload which the listening end receives.
        let first_sends = sends && (!receives || boot.open == open::CONNECT);
        let ways = if sends && receives { 2 } else { 1 };
        let flow = |sends| Flow { sends, ..Flow::default() };
        let mut flows = [flow(!first_sends); MAX_CONNECTIONS];
        flows[..count].fill(flow(first_sends));
        let socket = size_of::<SocketStorage<'_>>() + QUIET_BUFFER + 2 * ALIGNMENT_LOSS;
        let fixed = ways * (count * socket + write_size + ALIGNMENT_LOSS) + ALIGNMENT_LOSS;
        let share = budget.left.saturating_sub(fixed) / (ways * count);
        if share < MIN_BULK_BUFFER {
            return Err(budget.too_small(fixed + ways * count * MIN_BULK_BUFFER));
        }
        let bulk = |most: usize| share.min((most / count).max(MIN_BULK_BUFFER));
        Ok(Self {
            flows,
            count: ways * count,
            to_first_port: count,
            send_buffer: bulk(most_sent),
            receive_buffer: bulk(most_received),
            most_buffer: share.min(MAX_BULK_BUFFER),
            window_bound_ns: 0,
            write_size,
            congestion,
            outgoing: &[],
            incoming: &mut [],
            patience: None,
            random_seed: boot.random_seed,
        })
    }

    /// Sends a FIN after what is in the buffer.
    fn close(socket: &mut tcp::Socket<'_>, flow: &mut Flow) {
        socket.close();
        flow.closed = true;
    }

    /// Gives the buffer room for two round trips at the pace of the last one: what the path holds, and as much again for
    /// the pace to grow. The shortest round trip counts, so that a queue on the path does not feed itself.
    fn grow(socket: &mut tcp::Socket<'_>, flow: &mut Flow, now_ns: u64) {
        let Some(round_trip) = socket.statistics().min_rtt.map(|rtt| rtt.total_micros() * 1000) else {
            return;
        };
        let (since, before) = flow.paced;
        let elapsed = now_ns.saturating_sub(since);
        if elapsed < round_trip {
            return;
        }
        // Of what is sent, what has been acknowledged.
        let moved = flow.carried.saturating_sub(if flow.sends { socket.send_queue() as u64 } else { 0 });
        let in_one =
            u128::from(moved.saturating_sub(before)) * u128::from(round_trip) / u128::from(elapsed.max(1));
        let capacity = usize::try_from(2 * in_one).unwrap_or(usize::MAX);
        if flow.sends {
            socket.grow_send_buffer(capacity);
        } else {
            socket.grow_receive_buffer(capacity);
        }
        flow.paced = (now_ns, moved);
    }

    /// Whether a sender that has sent what it may waits for a window, the peer's or its own buffer, and for nothing else. Where
    /// a queue on the path, or a slow receiver, makes the round trip long, another window would only make it longer.
    fn is_window_bound(socket: &tcp::Socket<'_>) -> bool {
        let statistics = socket.statistics();
        let (Some(rtt), Some(shortest)) = (statistics.smoothed_rtt, statistics.min_rtt) else { return false };
        let window = statistics.remote_window.min(socket.send_capacity());
        // The rule of native ends too (protocol/src/validity.rs).
        rtt * 4 < shortest * 5
            && socket.may_send()
            && statistics.in_flight > 0
            && window.saturating_sub(statistics.in_flight) < statistics.mss
            && statistics.congestion_window.saturating_add(statistics.mss) >= window
    }

    /// Send calls of `write_size` bytes until the stack takes no more, unless the peer has closed its end.
    fn send(socket: &mut tcp::Socket<'_>, flow: &mut Flow, outgoing: &[u8]) {
        if !socket.may_send() {
            return;
        }
        if !socket.may_recv() {
            flow.peer_closed = true;
            return;
        }
        while let Ok(count @ 1..) = socket.send_slice(&outgoing[flow.taken..]) {
            flow.carried += count as u64;
            flow.taken += count;
            if flow.taken == outgoing.len() {
                flow.taken = 0;
            }
        }
    }

    /// Receive calls of up to `write_size` bytes until there are no more. `look` is shown what came.
    fn receive(
        socket: &mut tcp::Socket<'_>,
        flow: &mut Flow,
        incoming: &mut [u8],
        mut look: impl FnMut(&[u8]),
    ) {
        loop {
            match socket.recv_slice(incoming) {
                Ok(count @ 1..) => {
                    look(&incoming[..count]);
                    flow.carried += count as u64;
                }
                // Or not open yet.
                Ok(0) | Err(tcp::RecvError::InvalidState) => return,
                Err(tcp::RecvError::Finished) => {
                    flow.peer_closed = true;
                    return;
                }
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
        let flows = &mut self.flows[..self.count];
        if flows.iter().any(|flow| flow.sends) {
            let outgoing = buffer(platform, self.write_size);
            for (offset, byte) in outgoing.iter_mut().enumerate() {
                *byte = pattern(offset);
            }
            self.outgoing = outgoing;
        }
        if flows.iter().any(|flow| !flow.sends) {
            self.incoming = buffer(platform, self.write_size);
        }
        for (index, flow) in flows.iter_mut().enumerate() {
            let quiet = tcp::SocketBuffer::new(buffer(platform, QUIET_BUFFER));
            let bulk = tcp::SocketBuffer::new(buffer(platform, self.most_buffer));
            let mut socket = if flow.sends {
                tcp::Socket::new(quiet, bulk.limited_to(self.send_buffer))
            } else {
                tcp::Socket::new(bulk.limited_to(self.receive_buffer), quiet)
            };
            socket.set_congestion_control(self.congestion);
            socket.set_tsval_generator(Some(timestamp));
            if boot.open == open::LISTEN {
                let port = boot.listen_port.wrapping_add((index >= self.to_first_port).into());
                let listening = socket.listen(port);
                listening.map_err(|_| ProgramError::Stack { order: "listen" })?;
            }
            flow.handle = stack.sockets.add(socket);
        }
        Ok(())
    }

    fn connect(&mut self, stack: &mut Stack<'_, 's>, peer: IpEndpoint) -> Result<(), ProgramError> {
        let ports = u16::MAX - FIRST_DYNAMIC_PORT;
        let first = (self.random_seed % u64::from(ports)) as u16;
        for ((index, flow), offset) in self.flows[..self.count].iter().enumerate().zip(0..) {
            let port = peer.port.wrapping_add((index >= self.to_first_port).into());
            let local = FIRST_DYNAMIC_PORT + (first + offset) % ports;
            stack
                .sockets
                .get_mut::<tcp::Socket>(flow.handle)
                .connect(stack.interface.context(), (peer.addr, port), local)
                .map_err(|_| ProgramError::Stack { order: "connect" })?;
        }
        Ok(())
    }

    fn turn<P: Platform>(
        &mut self,
        stack: &mut Stack<'_, 's>,
        platform: &mut P,
    ) -> Result<Progress, ProgramError> {
        let (mut flowing, mut peer_measured) = (true, false);
        let now_ns = platform.now_ns();
        for (index, flow) in self.flows[..self.count].iter_mut().enumerate() {
            let socket = stack.sockets.get_mut::<tcp::Socket>(flow.handle);
            // A socket that listened and was reset before it was open listens again.
            if socket.state() == tcp::State::Closed {
                // What is measured is measured. A receiver that ended badly says so itself, and one that closed
                // and was gone before its FIN was seen here is no fault of the sender's. A sender's part is done once it has
                // closed.
                if self.patience.is_some() || flow.closed {
                    continue;
                }
                return Err(ProgramError::Reset);
            }
            if let Some(since) = flow.bound.take() {
                self.window_bound_ns += now_ns.saturating_sub(since);
            }
            Self::grow(socket, flow, now_ns);
            if flow.sends {
                Self::send(socket, flow, self.outgoing);
                if flow.peer_closed && !flow.closed {
                    Self::close(socket, flow);
                }
                peer_measured |= flow.peer_closed;
            } else if !flow.peer_closed {
                Self::receive(socket, flow, self.incoming, |bytes| platform.received(index, bytes));
                if flow.peer_closed && self.patience.is_none() {
                    return Err(ProgramError::PeerClosed);
                }
            }
            if let Some(patience) = self.patience
                && flow.closed
            {
                socket.set_timeout(Some(patience));
            }
            flowing &= flow.carried > 0;
        }
        Ok(match (peer_measured, flowing) {
            (true, _) => Progress::PeerMeasured,
            (false, true) => Progress::Flowing,
            (false, false) => Progress::Opening,
        })
    }

    fn rests(&mut self, stack: &Stack<'_, 's>, now_ns: u64) {
        for flow in self.flows[..self.count].iter_mut().filter(|flow| flow.sends) {
            let socket = stack.sockets.get::<tcp::Socket>(flow.handle);
            flow.bound = Self::is_window_bound(socket).then_some(now_ns);
        }
    }

    fn measured(&mut self, stack: &mut Stack<'_, 's>, patience: Duration) {
        self.patience = Some(patience);
        for flow in self.flows[..self.count].iter_mut().filter(|flow| !flow.sends || flow.closed) {
            let socket = stack.sockets.get_mut::<tcp::Socket>(flow.handle);
            Self::close(socket, flow);
            socket.set_timeout(Some(patience));
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

    fn counters(&self) -> Counters {
        let sum = |sends| {
            let flows = self.flows[..self.count].iter().filter(|flow| flow.sends == sends);
            flows.map(|flow| flow.carried).sum()
        };
        Counters { sent: sum(true), received: sum(false) }
    }

    fn statistics(&self, stack: &Stack<'_, 's>) -> Statistics {
        let sockets =
            self.flows[..self.count].iter().map(|flow| stack.sockets.get::<tcp::Socket>(flow.handle));
        Statistics {
            retransmits: sockets.map(|socket| socket.statistics().retransmits).sum(),
            window_bound_ns: self.window_bound_ns,
        }
    }

    fn flows(&self) -> impl Iterator<Item = u64> {
        self.flows[..self.count].iter().map(|flow| flow.carried)
    }
}
