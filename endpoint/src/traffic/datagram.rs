//! UDP over kernel sockets: one socket at each end, for both ways, with a thread that sends, one that receives, or both.
//!
//! ```text
//! Configured --bind--> Ready --Start--> hello, welcome --> Running (see `measure`, `sender`, `receiver`)
//! ```
//! An end that only sends has the control thread read what the receiver says; nothing of it comes while it measures.

mod exchange;
mod header;
mod messages;
mod pace;
mod receiver;
mod search;
mod sender;
mod sequence;
mod socket;

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::PollFlags;
use toll_child::confinement::Confinement;
use toll_protocol::report::EndReport;
use toll_protocol::traffic::TrafficReport;
use toll_protocol::traffic::datagram::{Datagram, IP_UDP_HEADERS, Report};
use toll_protocol::trial::Open;

use super::TrafficError;
use super::stream::ready;
use crate::clock::Clock;
use crate::config::EndConfig;
use crate::control::Control;
use crate::measure::{self, Application, FIRST_BYTE_LIMIT};
use crate::worker::{News, Traffic, Worker, WorkerError};
use exchange::{Exchange, Phase};

/// Runs the job, from readiness to the report, in `confinement` once there is a socket.
///
/// # Errors
/// [`TrafficError`].
pub fn run(
    control: &mut Control,
    config: &EndConfig,
    datagram: &Datagram,
    confinement: Confinement,
) -> Result<EndReport, TrafficError> {
    let socket = socket::open(config, datagram)?;
    confinement.enter(0)?;
    let deadline = match config.job.open {
        Open::Listen => {
            let (peer, deadline) = ready(control, config, socket::address(&socket, config)?)?;
            socket::accept(control, &socket, config, peer, deadline)?;
            deadline
        }
        Open::Connect => {
            let (peer, deadline) = ready(control, config, config.bind)?;
            socket::connect(control, &socket, config, peer, deadline)?;
            deadline
        }
    };
    let longest = datagram.sizes.iter().map(|run| run.size).max().unwrap_or_default();
    if let Some(mtu) = socket::mtu(&socket).filter(|mtu| u32::from(longest + IP_UDP_HEADERS) > *mtu) {
        return Err(TrafficError::Mtu { size: longest, mtu });
    }
    let ends = Ends::start(socket, config, datagram, control.clock())?;
    measure::run(control, ends, config.job.direction, config.job.timing, deadline)
}

/// A moment of the measured interval.
#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    /// Datagrams sent and received by then.
    datagrams: [u64; 2],
    /// And dropped by the kernel.
    drops: Option<u32>,
}

/// The traffic of this end.
struct Ends {
    exchange: Arc<Exchange>,
    workers: Vec<Worker>,
    news: News,
    receives: bool,
    /// How long the first payload byte may take.
    patience: Duration,
    /// Begin and end of the interval.
    moments: [Moment; 2],
}

impl Ends {
    fn start(
        socket: UdpSocket,
        config: &EndConfig,
        datagram: &Datagram,
        clock: Clock,
    ) -> Result<Self, TrafficError> {
        let (sends, receives) = (config.job.direction.sends(), config.job.direction.receives());
        let phase = if sends && datagram.search.is_some() { Phase::Search } else { Phase::Before };
        let exchange = Arc::new(Exchange::new(socket, config.trial, phase));
        let news = News::new()?;
        let mut workers = Vec::new();
        // The receiver first: what the peer sends from now on has a reader.
        for (sending, name) in [(false, "traffic-receive"), (true, "traffic-send")] {
            if !(if sending { sends } else { receives }) {
                continue;
            }
            let name = if sends && receives { name } else { "traffic" };
            let (parameters, exchange) = (datagram.clone(), Arc::clone(&exchange));
            let body = move |traffic: &Traffic| {
                if sending {
                    sender::run(traffic, &exchange, &parameters)
                } else {
                    receiver::run(traffic, &exchange, &parameters, sends)
                }
            };
            workers.push(Worker::start(name.to_owned(), config.cpu, &news, clock, body)?);
        }
        let patience = FIRST_BYTE_LIMIT + datagram.preparation().duration();
        Ok(Self { exchange, workers, news, receives, patience, moments: [Moment::default(); 2] })
    }

    fn moment(&self) -> Moment {
        let drops = self.receives.then(|| socket::drops(self.exchange.socket())).flatten();
        Moment { datagrams: self.exchange.datagrams(), drops }
    }
}

impl Application for Ends {
    fn workers(&self) -> Vec<&Worker> {
        self.workers.iter().collect()
    }

    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let reads = !self.receives && self.exchange.phase() != Phase::Search;
        let socket = reads.then(|| (self.exchange.as_fd(), PollFlags::POLLIN));
        [(self.news.as_fd(), PollFlags::POLLIN)].into_iter().chain(socket).collect()
    }

    fn look(&mut self, events: &[PollFlags]) -> Result<bool, TrafficError> {
        let Some((news, socket)) = events.split_first() else { return Ok(false) };
        if !news.is_empty() {
            self.news.take();
        }
        if socket.first().is_some_and(|events| !events.is_empty()) {
            let taken = match socket::read(self.exchange.socket()) {
                Ok((Some(header), _)) if header.kind.is_payload() => {
                    return Err(TrafficError::UnexpectedPayload);
                }
                Ok((header, _)) => header.map_or(Ok(()), |header| self.exchange.take(header)),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    if self.exchange.phase() == Phase::After {
                        self.exchange.nobody_listens();
                    }
                    Ok(())
                }
                Err(error) if socket::is_passing(&error) => Ok(()),
                Err(error) => Err(error),
            };
            taken.map_err(|source| WorkerError::Io { call: "recv", bytes: 0, source })?;
        }
        Ok(false)
    }

    fn first_byte_limit(&self) -> Duration {
        self.patience
    }

    fn retransmits(&self) -> Option<u64> {
        None
    }

    fn measures(&mut self) {
        self.exchange.enter(Phase::Inside);
        self.moments[0] = self.moment();
    }

    fn measured(&mut self) -> bool {
        self.exchange.enter(Phase::After);
        self.moments[1] = self.moment();
        true
    }

    fn end(&mut self) {}

    fn is_over(&self) -> bool {
        let closing = self.exchange.phase() == Phase::After;
        let mut finished = self.workers.iter().map(Worker::is_finished);
        if closing { finished.all(|finished| finished) } else { finished.any(|finished| finished) }
    }

    fn abandon(&mut self) {
        self.workers.iter().for_each(Worker::stop);
    }

    fn finish(self, closing: bool) -> Result<TrafficReport, TrafficError> {
        let report = self.figures()?;
        for worker in self.workers.into_iter().filter(Worker::is_finished) {
            match worker.join() {
                // The peer has what it measures too, and may end as it likes.
                Err(WorkerError::Io { .. }) if closing => {}
                joined => joined?,
            }
        }
        Ok(report)
    }

    fn figures(&self) -> Result<TrafficReport, TrafficError> {
        let [begin, end] = self.moments;
        let between = |way: usize| end.datagrams[way].saturating_sub(begin.datagrams[way]);
        let drops = begin.drops.zip(end.drops).map(|(begin, end)| u64::from(end.wrapping_sub(begin)));
        let mut delivery = self.exchange.delivery.get().copied();
        if let Some(delivery) = &mut delivery {
            delivery.buffer_drops = drops;
        }
        let found = self.exchange.found.get().copied();
        Ok(TrafficReport::Datagram(Report { sent: between(0), received: between(1), delivery, found }))
    }
}
