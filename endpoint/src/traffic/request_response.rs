//! Requests and responses over kernel sockets: the connecting end asks, the listening end answers, each with one thread.
//!
//! ```text
//! asking end:    background flows as they begin --all have begun--> asking --interval over--> waiting for open transactions,
//!                a `timeout` at most --> FIN, or an end datagram until it is answered --> over
//! answering end: answering --the asking end's end--> closes what it receives of the background --> over
//! ```
//! A background is a [`stream`](super::stream) of its own, on the ports after that of the transactions. It runs from before the
//! first request to after the last. Its threads are not pinned where that of the transactions is: they would take its CPU.

mod ask;
mod open;
mod per_request;
mod tally;
mod tcp;
mod udp;

use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::poll::PollFlags;
use toll_child::confinement::Confinement;
use toll_protocol::report::EndReport;
use toll_protocol::traffic::TrafficReport;
use toll_protocol::traffic::request_response::{Asked, Background, Load, Protocol, Report, RequestResponse};
use toll_protocol::trial::{Direction, Open};
use toll_protocol::units::Span;

use self::open::Opened;
use self::tally::{Marks, Tally};
use super::TrafficError;
use super::stream::Flows;
use crate::clock::Clock;
use crate::config::EndConfig;
use crate::control::Control;
use crate::measure::{self, Application};
use crate::meter::PeersEnd;
use crate::socket;
use crate::worker::{News, Traffic, Worker, WorkerError};

/// How long after the last transaction is lost the asking thread may take to say so.
const GRACE: Duration = Duration::from_millis(200);
/// How long it may take once its socket is shut.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What the threads need to know.
#[derive(Debug, Clone, Copy)]
struct Parameters {
    /// Bytes of a request.
    request: usize,
    /// Bytes of a response.
    response: usize,
    load: Load,
    timeout: Duration,
    /// Whether a response may never come, though the connection is good.
    may_lose: bool,
}

impl From<&RequestResponse> for Parameters {
    fn from(parameters: &RequestResponse) -> Self {
        let size = |size: toll_protocol::units::Bytes| usize::try_from(size.0).unwrap_or(usize::MAX);
        Self {
            request: size(parameters.request),
            response: size(parameters.response),
            load: parameters.load,
            timeout: parameters.timeout.duration(),
            may_lose: parameters.protocol == Protocol::Udp,
        }
    }
}

/// What carries the transactions.
#[derive(Debug, Clone)]
enum Carrier {
    /// One connection for all.
    Stream(Arc<TcpStream>),
    /// Datagrams.
    Datagrams(Arc<UdpSocket>),
    /// A connection for each: its listener.
    Listener(Arc<TcpListener>),
    /// The same: where the asking end finds it.
    PerRequest(SocketAddrV4),
}

/// Runs the job, from readiness to the report, in `confinement` once there are sockets.
///
/// # Errors
/// [`TrafficError`].
pub fn run(
    control: &mut Control,
    config: &EndConfig,
    parameters: &RequestResponse,
    confinement: Confinement,
) -> Result<EndReport, TrafficError> {
    let background =
        parameters.background.as_ref().map(|background| (config.of_background(background), background));
    let opened = match config.job.open {
        Open::Listen => open::listening(control, config, parameters, background, confinement)?,
        Open::Connect => open::connecting(control, config, parameters, background, confinement)?,
    };
    let deadline = opened.deadline;
    let exchange = Exchange::new(opened, config, parameters, control.clock())?;
    measure::run(control, exchange, Direction::Both, config.job.timing, deadline)
}

type Body = Box<dyn FnOnce(&Traffic) -> Result<(), WorkerError> + Send>;

/// The thread of an end that asks, and where its tally comes.
fn asking(
    carrier: Carrier,
    config: EndConfig,
    parameters: Parameters,
    marks: Arc<Marks>,
) -> Result<(Body, Receiver<Tally>), TrafficError> {
    let (send, tallies) = channel();
    let mut tally = Tally::new()?;
    let single = matches!(parameters.load, Load::ClosedLoop { depth: 1 });
    let body = move |traffic: &Traffic| {
        let opened = |source| traffic.failed("fcntl", source);
        let (marks, parameters) = (&*marks, &parameters);
        let done = match &carrier {
            Carrier::Stream(stream) if single => {
                tcp::ping_pong(traffic, stream, parameters, marks, &mut tally)
            }
            Carrier::Stream(stream) => tcp::Connection::new(stream, parameters)
                .map_err(opened)
                .and_then(|mut wire| ask::ask(traffic, &mut wire, parameters, marks, &mut tally))
                .and_then(|()| stream.set_nonblocking(false).map_err(opened))
                .and_then(|()| tcp::close(traffic, stream)),
            Carrier::Datagrams(socket) if single => {
                udp::ping_pong(traffic, socket, parameters, marks, &mut tally)
            }
            Carrier::Datagrams(socket) => udp::Socket::new(socket, parameters)
                .map_err(opened)
                .and_then(|mut wire| ask::ask(traffic, &mut wire, parameters, marks, &mut tally))
                .and_then(|()| udp::end(traffic, socket)),
            Carrier::PerRequest(peer) => {
                per_request::ask(traffic, &config, *peer, parameters, marks, &mut tally)
            }
            // An end that listens does not ask.
            Carrier::Listener(_) => Ok(()),
        };
        // Nobody takes it from an end that is on its way out.
        let _ = send.send(tally);
        done
    };
    Ok((Box::new(body), tallies))
}

/// The thread of an end that answers, and what keeps it until its costs have been read, which only a running thread has.
fn answering(
    carrier: Carrier,
    peer: Ipv4Addr,
    parameters: Parameters,
    marks: Arc<Marks>,
) -> (Body, Sender<()>) {
    let (kept, until) = channel();
    let body = move |traffic: &Traffic| {
        match &carrier {
            Carrier::Stream(stream) => tcp::answer(traffic, stream, &parameters),
            Carrier::Datagrams(socket) => udp::answer(traffic, socket, peer, &parameters),
            Carrier::Listener(listener) => per_request::answer(traffic, listener, peer, &parameters),
            // An end that connects does not answer.
            Carrier::PerRequest(_) => Ok(()),
        }?;
        marks.set_over();
        traffic.tell();
        // Nothing is ever sent: it ends when the other side is dropped.
        let _ = until.recv();
        Ok(())
    };
    (Box::new(body), kept)
}

/// Transactions, and the stream beside them.
struct Exchange {
    carrier: Carrier,
    parameters: Parameters,
    /// What the thread of the transactions will do, until that has begun.
    body: Option<Body>,
    worker: Option<Worker>,
    cpu: Option<usize>,
    news: News,
    clock: Clock,
    marks: Arc<Marks>,
    /// Of an end that asks.
    tallies: Option<Receiver<Tally>>,
    /// Keeps the thread of an end that answers.
    kept: Option<Sender<()>>,
    background: Option<Flows>,
    /// Whether the end of the answering end's peer has been told of.
    told: bool,
    /// Whether the connection was shut under a transaction that took too long after the interval.
    shut: bool,
}

impl Exchange {
    fn new(
        opened: Opened<'_>,
        config: &EndConfig,
        parameters: &RequestResponse,
        clock: Clock,
    ) -> Result<Self, TrafficError> {
        let Opened { carrier, peer, background, deadline: _ } = opened;
        let parameters = Parameters::from(parameters);
        let marks = Arc::<Marks>::default();
        let of_thread = (carrier.clone(), Arc::clone(&marks));
        let (body, tallies, kept) = match (config.job.open, of_thread) {
            (Open::Connect, (carrier, marks)) => {
                let (body, tallies) = asking(carrier, config.clone(), parameters, marks)?;
                (body, Some(tallies), None)
            }
            (Open::Listen, (carrier, marks)) => {
                let (body, kept) = answering(carrier, peer, parameters, marks);
                (body, None, Some(kept))
            }
        };
        let flows =
            |(flows, of): (_, &Background)| Flows::start(flows, &of.stream, "background", None, clock);
        let mut exchange = Self {
            carrier,
            parameters,
            body: Some(body),
            worker: None,
            cpu: config.cpu,
            news: News::new()?,
            clock,
            marks,
            tallies,
            kept,
            background: background.map(flows).transpose()?,
            told: false,
            shut: false,
        };
        exchange.begin()?;
        Ok(exchange)
    }

    const fn asks(&self) -> bool {
        self.tallies.is_some()
    }

    /// Starts the thread of the transactions, unless it asks and the background has not begun.
    fn begin(&mut self) -> Result<(), WorkerError> {
        let mut flows = self.background.iter().flat_map(Application::workers);
        if self.asks() && flows.any(|flow| flow.began().is_none()) {
            return Ok(());
        }
        if let Some(body) = self.body.take() {
            self.worker = Some(Worker::start("traffic".to_owned(), self.cpu, &self.news, self.clock, body)?);
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.worker.as_ref().is_some_and(Worker::is_finished)
    }

    /// When an asking thread that blocks is kept from waiting any longer.
    fn shuts_at(&self) -> Option<Duration> {
        let waits = self.asks() && !self.shut && !self.is_finished();
        self.marks.end().filter(|_| waits).map(|end| end + self.parameters.timeout + GRACE)
    }

    fn shut(&mut self) {
        self.shut = true;
        if let Carrier::Stream(stream) = &self.carrier {
            // It fails only on a connection that is gone.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn report(&self, tally: Option<Tally>) -> Result<TrafficReport, TrafficError> {
        let asked = match tally {
            Some(tally) => Some(Asked {
                response: toll_protocol::units::Bytes(self.parameters.response as u64),
                latencies: tally.latencies.finish()?,
                lost: tally.lost,
                late: tally.late,
                latest_send: Span::from(tally.latest_send),
                busy_wait: matches!(self.parameters.load, Load::OpenLoop { busy_wait: true, .. }),
            }),
            None => None,
        };
        let background = self.background.as_ref().map(Flows::counted).unwrap_or_default();
        Ok(TrafficReport::RequestResponse(Report { asked, background }))
    }
}

impl Application for Exchange {
    fn workers(&self) -> Vec<&Worker> {
        self.worker.iter().chain(self.background.iter().flat_map(Application::workers)).collect()
    }

    fn counted(&self) -> Vec<&Worker> {
        self.worker.iter().collect()
    }

    fn peers_end(&self, _: Direction) -> PeersEnd {
        if self.asks() { PeersEnd::Follows } else { PeersEnd::Decides }
    }

    fn is_steady(&self) -> bool {
        // A standstill is a long latency, and told as one; a low rate is none.
        false
    }

    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let background = self.background.iter().flat_map(Application::descriptors);
        [(self.news.as_fd(), PollFlags::POLLIN)].into_iter().chain(background).collect()
    }

    fn look(&mut self, events: &[PollFlags]) -> Result<bool, TrafficError> {
        let (news, others) = events.split_first().map_or((PollFlags::empty(), events), |(n, o)| (*n, o));
        if !news.is_empty() {
            self.news.take();
        }
        // What the threads of the end that answers have used is read once the other end is over.
        let asks = self.asks();
        if let Some(background) = &mut self.background
            && background.look(others)?
            && asks
        {
            background.end();
        }
        self.begin()?;
        if self.shuts_at().is_some_and(|at| self.clock.now() >= at) {
            self.shut();
        }
        Ok(!self.asks() && self.marks.is_over() && !std::mem::replace(&mut self.told, true))
    }

    fn look_again(&self, now: Duration) -> Option<Duration> {
        let background = self.background.as_ref().and_then(|background| background.look_again(now));
        [background, self.shuts_at()].into_iter().flatten().min()
    }

    fn began(&self) -> Option<Duration> {
        self.worker.as_ref().and_then(Worker::began)
    }

    fn retransmits(&self) -> Option<u64> {
        match &self.carrier {
            Carrier::Stream(stream) => socket::retransmits(stream).map(u64::from),
            Carrier::Datagrams(_) | Carrier::Listener(_) | Carrier::PerRequest(_) => None,
        }
    }

    fn measures(&mut self) {
        self.marks.begins(self.clock.now());
        if let Some(background) = &mut self.background {
            background.measures();
        }
    }

    fn measured(&mut self) -> bool {
        if let Some(background) = &mut self.background {
            background.mark();
        }
        if !self.asks() {
            return false;
        }
        self.marks.ends(self.clock.now());
        if let Some(worker) = &self.worker {
            worker.stop();
        }
        if let Some(background) = &mut self.background {
            background.close();
        }
        true
    }

    fn end(&mut self) {
        self.kept = None;
        if let Some(background) = &mut self.background {
            background.close();
            background.end();
        }
    }

    fn is_over(&self) -> bool {
        if self.background.as_ref().is_some_and(Flows::has_broken_off) {
            return true;
        }
        let as_it_should = if self.asks() { self.marks.end().is_some() } else { self.marks.is_over() };
        self.is_finished() && (!as_it_should || self.background.as_ref().is_none_or(Application::is_over))
    }

    fn abandon(&mut self) {
        self.shut();
        if let Some(background) = &mut self.background {
            background.abandon();
        }
    }

    fn finish(mut self, closing: bool) -> Result<TrafficReport, TrafficError> {
        if let Some(worker) = self.worker.take_if(|worker| worker.is_finished()) {
            match worker.join() {
                // The peer has what it measures too, and may end as it likes.
                Err(WorkerError::Io { .. }) if closing => {}
                joined => joined?,
            }
        }
        let tally = self.tallies.as_ref().and_then(|tallies| tallies.try_recv().ok());
        let report = self.report(tally)?;
        if let Some(background) = self.background {
            background.finish(closing)?;
        }
        Ok(report)
    }

    fn figures(&self) -> Result<TrafficReport, TrafficError> {
        let tally = match &self.tallies {
            Some(tallies) => {
                let waited = Span::from(LAST_WORD);
                let what = "the asking thread to end";
                Some(tallies.recv_timeout(LAST_WORD).map_err(|_| TrafficError::TimedOut { waited, what })?)
            }
            None => None,
        };
        self.report(tally)
    }
}
