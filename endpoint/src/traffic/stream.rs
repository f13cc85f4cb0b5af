//! Bulk TCP over kernel sockets: so many connections each way, each with a thread that sends or receives.
//!
//! ```text
//! Configured --listen--> Ready --Start--> Connecting --> Connected --first byte of each flow--> Running (see `measure`)
//!     interval over:  receiving flow: half-close, drain to the sender's FIN --> over
//!                     sending flow:   wait for the receiver's FIN, stop, half-close, wait for its ACK --> over
//! ```
//! A flow carries payload one way. Where it goes both ways there are flows for each; the listening end tells them apart by the
//! port: those whose payload it receives come to the one that it tells, the others to the next.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv};
use toll_child::confinement::Confinement;
use toll_protocol::child::ChildEvent;
use toll_protocol::report::EndReport;
use toll_protocol::traffic::TrafficReport;
use toll_protocol::traffic::stream::{Flow as FlowReport, Report, Stream, ZeroCopy};
use toll_protocol::trial::{EndReady, Open};

use super::TrafficError;
use crate::clock::Clock;
use crate::config::EndConfig;
use crate::control::{Control, ControlError};
use crate::measure::{self, Application};
use crate::socket::{self, SocketError, WindowWait};
use crate::worker::{News, Traffic, Worker, WorkerError, pattern};
use crate::zero_copy::{Counts, Sender};

/// How often the kernel is asked whether the peer has acknowledged all.
const CLOSED_POLL: Duration = Duration::from_millis(1);
/// How often a socket is looked at that can't be polled for its peer's FIN.
const FIN_POLL: Duration = Duration::from_millis(5);
/// Times that two ports in a row are looked for.
const PORT_TRIES: u32 = 64;

/// Runs the job, from readiness to the report, in `confinement` once there are sockets.
///
/// # Errors
/// [`TrafficError`].
pub fn run(
    control: &mut Control,
    config: &EndConfig,
    stream: &Stream,
    confinement: Confinement,
) -> Result<EndReport, TrafficError> {
    let direction = config.job.direction;
    let (connections, deadline) = match config.job.open {
        Open::Listen => {
            let (first, mut listeners) =
                listen_in_a_row(config, || socket::listen(config, 0), ways(config).len() - 1)?;
            listeners.insert(0, first);
            confinement.enter(0)?;
            let (peer, deadline) = ready(control, config, listeners[0].1)?;
            (accept(control, config, stream, &listeners, *peer.ip(), deadline)?, deadline)
        }
        Open::Connect => {
            let sockets = open(config, stream)?;
            confinement.enter(0)?;
            let (peer, deadline) = ready(control, config, config.bind)?;
            (connect(control, sockets, peer, deadline)?, deadline)
        }
    };
    let flows = Flows::start(connections, stream, "traffic", config.cpu, control.clock())?;
    measure::run(control, flows, direction, config.job.timing, deadline)
}

/// Whether this end sends on the connections of each port, in their order: the first port is that of what the listening end
/// receives.
pub(super) fn ways(config: &EndConfig) -> Vec<bool> {
    let direction = config.job.direction;
    let (send, receive) = ((true, direction.sends()), (false, direction.receives()));
    let ways = match config.job.open {
        Open::Listen => [receive, send],
        Open::Connect => [send, receive],
    };
    ways.into_iter().filter(|(_, used)| *used).map(|(sends, _)| sends).collect()
}

/// A socket that listens, and its address.
pub(super) type Listening<T> = (T, SocketAddrV4);

/// What `first` gives, and `more` listeners on the ports after its port.
///
/// # Errors
/// [`SocketError`].
pub(super) fn listen_in_a_row<T>(
    config: &EndConfig,
    first: impl Fn() -> Result<Listening<T>, SocketError>,
    more: usize,
) -> Result<(Listening<T>, Vec<Listening<TcpListener>>), SocketError> {
    let mut tries = 0;
    loop {
        let first = first()?;
        tries += 1;
        let ports = (1..).take(more).map_while(|after| first.1.port().checked_add(after));
        let others: Result<Vec<_>, SocketError> = ports.map(|port| socket::listen(config, port)).collect();
        match others {
            Ok(others) if others.len() == more => return Ok((first, others)),
            // One is another socket's, or there is none.
            Ok(_) => {}
            Err(_) if tries < PORT_TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

/// Accepts the connections of a stream by the listeners of its ports: each, and whether this end sends on it.
///
/// # Errors
/// [`SocketError`].
pub(super) fn accept(
    control: &mut Control,
    config: &EndConfig,
    stream: &Stream,
    listeners: &[Listening<TcpListener>],
    peer: Ipv4Addr,
    deadline: Duration,
) -> Result<Vec<(TcpStream, bool)>, SocketError> {
    let mut connections = Vec::new();
    for (sends, (listener, address)) in ways(config).into_iter().zip(listeners) {
        for _ in 0..stream.flows {
            connections.push((socket::accept(control, listener, *address, peer, deadline)?, sends));
        }
    }
    Ok(connections)
}

/// Sockets that are not connected yet: whether this end sends on each, and its port, counted from the first.
pub(super) type Unconnected = Vec<(OwnedFd, bool, u16)>;

/// Sockets for the connections of a stream.
///
/// # Errors
/// [`SocketError`].
pub(super) fn open(config: &EndConfig, stream: &Stream) -> Result<Unconnected, SocketError> {
    let flows = ways(config).into_iter().zip(0..);
    let flows = flows.flat_map(|(sends, port)| (0..stream.flows).map(move |_| (sends, port)));
    flows.map(|(sends, port)| Ok((socket::open(config, 0)?, sends, port))).collect()
}

/// Connects them to the ports from that of `peer` on.
///
/// # Errors
/// [`SocketError`].
pub(super) fn connect(
    control: &mut Control,
    sockets: Unconnected,
    peer: SocketAddrV4,
    deadline: Duration,
) -> Result<Vec<(TcpStream, bool)>, SocketError> {
    let mut connections = Vec::with_capacity(sockets.len());
    for (socket, sends, port) in sockets {
        let peer = SocketAddrV4::new(*peer.ip(), peer.port().wrapping_add(port));
        connections.push((socket::connect(control, socket, peer, deadline)?, sends));
    }
    Ok(connections)
}

/// Says that the end is up and waits for `Start`; the peer and the moment of the deadline.
pub(crate) fn ready(
    control: &mut Control,
    config: &EndConfig,
    address: SocketAddrV4,
) -> Result<(SocketAddrV4, Duration), ControlError> {
    control.send(&ChildEvent::Ready(EndReady { address }))?;
    let peer = control.start()?;
    Ok((peer, control.clock().now() + config.deadline))
}

/// A connection whose payload goes one way.
struct Flow {
    stream: Arc<TcpStream>,
    worker: Worker,
    sends: bool,
    /// Whether the socket of a sender is looked at for its peer's FIN.
    watch: bool,
    /// Whether a sender's peer has half-closed it, which this end has yet to answer.
    fin: bool,
    /// Whether this end has half-closed it.
    closing: bool,
    /// Payload bytes when the interval began and when it ended.
    bytes: [u64; 2],
    /// What became of sends without a copy.
    zero_copy: Option<Arc<Counts>>,
}

impl Flow {
    fn bytes(&self) -> u64 {
        if self.sends { self.worker.sent_bytes() } else { self.worker.received_bytes() }
    }

    /// Whether poll(2) tells of its peer's FIN. Where sends are made without a copy, it tells of each that is done (POLLERR), and
    /// the socket is looked at every so often instead.
    fn is_polled(&self) -> bool {
        self.watch && self.zero_copy.is_none()
    }

    /// The receiver has what it measures: a sender stops.
    fn closes(&mut self) {
        self.fin = false;
        self.worker.stop();
        self.half_close();
    }

    /// Sends a FIN after what the kernel holds. At a sender that also ends the send that waits for room.
    fn half_close(&mut self) {
        self.closing = true;
        // It fails only on a connection that is gone, which the traffic thread says itself.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Whether it is a sender that has stopped and whose peer has not acknowledged all, FIN included.
    fn is_unacknowledged(&self) -> bool {
        self.sends && self.closing && self.worker.is_finished() && !socket::is_closed(&self.stream)
    }
}

/// The connections of a stream.
pub(super) struct Flows {
    flows: Vec<Flow>,
    news: News,
    /// Whether the peer's first FIN has been told of.
    told: bool,
    /// Whether this end answers a FIN at once, as nothing is left to be read of its threads.
    ending: bool,
}

impl Flows {
    /// Starts a thread of this name for each connection: the stream, and whether this end sends on it.
    pub(super) fn start(
        connections: Vec<(TcpStream, bool)>,
        parameters: &Stream,
        name: &str,
        cpu: Option<usize>,
        clock: Clock,
    ) -> Result<Self, TrafficError> {
        let news = News::new()?;
        let write_size = usize::try_from(parameters.write_size.0).unwrap_or(usize::MAX);
        let one = connections.len() == 1;
        let mut flows = Vec::with_capacity(connections.len());
        for (number, (stream, sends)) in connections.into_iter().enumerate() {
            let name = if one { name.to_owned() } else { format!("{name}-{number}") };
            let stream = Arc::new(stream);
            let socket = Arc::clone(&stream);
            let zero_copy = (sends && parameters.zero_copy).then(Arc::<Counts>::default);
            let counts = zero_copy.clone();
            let body = move |traffic: &Traffic| match counts {
                Some(counts) => {
                    let mut sender = Sender::new(counts);
                    // The kernel may read it for as long as the process lives, which ends with the trial.
                    let buffer: &'static [u8] = pattern(write_size).leak();
                    send(traffic, buffer, |bytes| sender.send(&socket, bytes))
                }
                None if sends => send(traffic, &pattern(write_size), |bytes| (&*socket).write(bytes)),
                None => receive(traffic, &socket, &mut vec![0; write_size]),
            };
            let worker = Worker::start(name, cpu, &news, clock, body)?;
            flows.push(Flow {
                stream,
                worker,
                sends,
                watch: sends,
                fin: false,
                closing: false,
                bytes: [0; 2],
                zero_copy,
            });
        }
        Ok(Self { flows, news, told: false, ending: false })
    }

    /// The measured interval is over.
    pub(super) fn mark(&mut self) {
        for flow in &mut self.flows {
            flow.bytes[1] = flow.bytes();
        }
    }

    /// Closes what is this end's to close: the connections that it receives on. Whether there are any.
    pub(super) fn close(&mut self) -> bool {
        let receiving = self.flows.iter_mut().filter(|flow| !flow.sends);
        receiving.map(Flow::half_close).count() > 0
    }

    /// Whether one of them has come to its end before it was closed.
    pub(super) fn has_broken_off(&self) -> bool {
        self.flows.iter().any(|flow| flow.worker.is_finished() && !flow.closing)
    }

    /// What crossed each in the measured interval.
    pub(super) fn counted(&self) -> Vec<FlowReport> {
        let counted = |flow: &Flow| {
            let bytes = flow.bytes[1].saturating_sub(flow.bytes[0]);
            let (sent_bytes, received_bytes) = if flow.sends { (bytes, 0) } else { (0, bytes) };
            FlowReport { sent_bytes, received_bytes }
        };
        self.flows.iter().map(counted).collect()
    }
}

impl Application for Flows {
    fn workers(&self) -> Vec<&Worker> {
        self.flows.iter().map(|flow| &flow.worker).collect()
    }

    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let watched = self.flows.iter().filter(|flow| flow.is_polled());
        let sockets = watched.map(|flow| (flow.stream.as_fd(), PollFlags::POLLIN));
        [(self.news.as_fd(), PollFlags::POLLIN)].into_iter().chain(sockets).collect()
    }

    fn look(&mut self, events: &[PollFlags]) -> Result<bool, TrafficError> {
        let (news, sockets) = events.split_first().map_or((PollFlags::empty(), events), |(n, s)| (*n, s));
        if !news.is_empty() {
            self.news.take();
        }
        let mut ended = false;
        for flow in self.flows.iter_mut().filter(|flow| flow.watch && !flow.is_polled()) {
            if is_fin(&flow.stream)? {
                (flow.watch, flow.fin, ended) = (false, true, true);
            }
        }
        for (flow, events) in self.flows.iter_mut().filter(|flow| flow.is_polled()).zip(sockets) {
            if events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
                // A reset: the traffic thread's next send says so, with its own words.
                flow.watch = false;
            } else if events.contains(PollFlags::POLLIN) && is_fin(&flow.stream)? {
                (flow.watch, flow.fin, ended) = (false, true, true);
            }
        }
        if ended && !std::mem::replace(&mut self.told, true) {
            // What the threads have used is read before they end.
            return Ok(true);
        }
        if self.ending {
            self.end();
        }
        Ok(false)
    }

    fn look_again(&self, now: Duration) -> Option<Duration> {
        // After a half-close poll(2) shows POLLHUP at once, and nothing else for the acknowledgement.
        let closing = self.flows.iter().any(Flow::is_unacknowledged).then_some(now + CLOSED_POLL);
        let looks = self.flows.iter().any(|flow| flow.watch && !flow.is_polled());
        closing.or(looks.then_some(now + FIN_POLL))
    }

    fn retransmits(&self) -> Option<u64> {
        self.flows.iter().map(|flow| socket::retransmits(&flow.stream).map(u64::from)).sum()
    }

    fn window_waits(&self) -> Vec<Option<WindowWait>> {
        self.flows.iter().filter(|flow| flow.sends).map(|flow| socket::window_wait(&flow.stream)).collect()
    }

    fn measures(&mut self) {
        for flow in &mut self.flows {
            flow.bytes[0] = flow.bytes();
        }
    }

    fn measured(&mut self) -> bool {
        self.mark();
        self.close()
    }

    fn end(&mut self) {
        self.ending = true;
        self.flows.iter_mut().filter(|flow| flow.fin).for_each(Flow::closes);
    }

    fn is_over(&self) -> bool {
        self.flows.iter().all(|flow| flow.worker.is_finished() && !flow.is_unacknowledged())
            || self.has_broken_off()
    }

    fn abandon(&mut self) {
        for flow in &self.flows {
            socket::reset_on_close(&flow.stream);
        }
    }

    fn finish(self, closing: bool) -> Result<TrafficReport, TrafficError> {
        let report = self.figures()?;
        for flow in self.flows {
            if !flow.worker.is_finished() {
                continue;
            }
            match flow.worker.join() {
                // The peer has what it measures too, and may end as it likes.
                Err(WorkerError::Io { .. }) if closing => {}
                joined => joined?,
            }
        }
        Ok(report)
    }

    fn figures(&self) -> Result<TrafficReport, TrafficError> {
        let zero_copies = self.flows.iter().filter_map(|flow| flow.zero_copy.as_ref());
        let zero_copy = zero_copies.map(|counts| counts.done()).reduce(|sum, more| ZeroCopy {
            sends: sum.sends.saturating_add(more.sends),
            copied: sum.copied.saturating_add(more.copied),
        });
        Ok(TrafficReport::Stream(Report { flows: self.counted(), zero_copy }))
    }
}

/// Whether what a sender's socket can read is the receiver's FIN; a reset is left to the traffic thread.
fn is_fin(stream: &TcpStream) -> Result<bool, TrafficError> {
    match recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(0) => Ok(true),
        Ok(_) => Err(TrafficError::UnexpectedPayload),
        Err(_) => Ok(false),
    }
}

/// Blocking sends of `buffer`, by `send_some`, until the thread is told to stop.
fn send<'b>(
    traffic: &Traffic,
    buffer: &'b [u8],
    mut send_some: impl FnMut(&'b [u8]) -> std::io::Result<usize>,
) -> Result<(), WorkerError> {
    // Before the send and not after it: a send returns when the kernel has taken all of it, which for a
    // large write is long after the first byte has left.
    traffic.begin();
    let (mut offset, mut bytes) = (0, 0);
    while !traffic.stops() {
        match send_some(&buffer[offset..]) {
            Ok(0) => return Err(traffic.failed("send", ErrorKind::WriteZero.into())),
            Ok(taken) => {
                offset += taken;
                if offset >= buffer.len() {
                    offset = 0;
                }
                bytes += taken as u64;
                traffic.sent(bytes);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) if traffic.stops() => {}
            Err(source) => return Err(traffic.failed("send", source)),
        }
    }
    Ok(())
}

/// Blocking receives to the sender's FIN.
fn receive(traffic: &Traffic, mut stream: &TcpStream, buffer: &mut [u8]) -> Result<(), WorkerError> {
    let mut bytes = 0;
    loop {
        match stream.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(taken) => {
                if bytes == 0 {
                    traffic.begin();
                }
                bytes += taken as u64;
                traffic.received(bytes);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(source) => return Err(traffic.failed("recv", source)),
        }
    }
}
