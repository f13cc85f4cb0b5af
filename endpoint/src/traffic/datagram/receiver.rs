//! The receiving thread: counts what comes, and answers what the sender asks.
//!
//! ```text
//!  payload --marked--> what comes after says how many were marked
//!     GRACE after the first of these, and this end's own interval over: delivery known --> "done", until the sender says bye or is silent
//! ```
//! It asks the clock once for what one call brought: these datagrams came at one moment.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::Duration;

use toll_protocol::traffic::datagram::Datagram;

use super::exchange::{Exchange, Phase};
use super::header::{Header, Kind};
use super::messages::Incoming;
use super::sequence::{Jitter, Sequence};
use super::socket::{self, LOOK_EVERY};
use crate::worker::{Traffic, WorkerError};

/// How long reordered datagrams may come after the first that was sent after the interval.
const GRACE: Duration = Duration::from_millis(100);
/// A sender from which nothing came for so long has stopped.
const QUIET: Duration = Duration::from_millis(100);

/// Receives until this end has what it measures and the sender has stopped, or until the thread shall stop. `sends` says
/// whether this end sends too: then it reads what the peer says of that for as long.
///
/// # Errors
/// [`WorkerError`].
pub fn run(
    traffic: &Traffic,
    exchange: &Exchange,
    parameters: &Datagram,
    sends: bool,
) -> Result<(), WorkerError> {
    let longest = parameters.sizes.iter().map(|run| usize::from(run.size)).max().unwrap_or_default();
    let mut incoming = Incoming::new(parameters.batch.into(), longest, parameters.segmentation_offload);
    let mut receiver = Receiver::default();
    let clock = traffic.clock();
    let (mut came_at, mut said_at) = (clock.now(), Duration::ZERO);
    while !traffic.stops() {
        let came = match incoming.receive(exchange.as_fd()) {
            Ok(()) => true,
            Err(error) if socket::is_passing(&error) => {
                if error.kind() == ErrorKind::ConnectionRefused && exchange.phase() == Phase::After {
                    exchange.nobody_listens();
                }
                false
            }
            Err(source) => return Err(traffic.failed("recvmmsg", source)),
        };
        let now = clock.now();
        if came {
            came_at = now;
            let moment = now.as_nanos() as u64;
            for datagram in incoming.datagrams() {
                if let Some(header) = Header::of(datagram)
                    && let Some(answer) = receiver.take(header, datagram.len(), moment)
                {
                    let taken = match answer {
                        Said::Answer(answer) => socket::say(exchange.socket(), answer),
                        Said::Other(header) => exchange.take(header),
                    };
                    taken.map_err(|source| traffic.failed("send", source))?;
                }
            }
            if receiver.datagrams > 0 && !std::mem::replace(&mut receiver.begun, true) {
                traffic.begin();
            }
            traffic.received(receiver.bytes);
            exchange.received(receiver.datagrams);
        }
        let Some((marked, told_at)) = receiver.told else { continue };
        if exchange.phase() != Phase::After || now.saturating_sub(told_at) < GRACE {
            continue;
        }
        exchange.delivery.get_or_init(|| receiver.sequence.delivery(marked, receiver.jitter.now()));
        if now >= said_at {
            // It is said again while the sender goes on.
            let said = socket::say(exchange.socket(), Header::new(Kind::Done));
            said.map_err(|source| traffic.failed("send", source))?;
            said_at = now + LOOK_EVERY;
        }
        let stopped = receiver.bye || now.saturating_sub(came_at) >= QUIET;
        if stopped && (!sends || exchange.peer_has_all()) {
            break;
        }
    }
    Ok(())
}

/// What a datagram asks for.
enum Said {
    /// This answer.
    Answer(Header),
    /// It is no payload.
    Other(Header),
}

/// Datagrams of a search's trial.
struct Probes {
    came: Sequence,
    /// When the first and the last came, nanoseconds.
    first: u64,
    last: u64,
}

/// What came.
#[derive(Default)]
struct Receiver {
    begun: bool,
    datagrams: u64,
    bytes: u64,
    sequence: Sequence,
    jitter: Jitter,
    /// How many were marked, and when that was first told.
    told: Option<(u64, Duration)>,
    /// The trial of a search that is under way.
    step: u8,
    probes: Option<Probes>,
    bye: bool,
}

impl Receiver {
    /// A datagram of `length` bytes came at `moment`, nanoseconds.
    fn take(&mut self, header: Header, length: usize, moment: u64) -> Option<Said> {
        match header.kind {
            Kind::Marked | Kind::Payload | Kind::After => {
                self.datagrams += 1;
                self.bytes += length as u64;
                if header.kind == Kind::Marked {
                    self.sequence.take(header.number);
                    self.jitter.take(header.value, moment);
                } else if header.kind == Kind::After {
                    self.told.get_or_insert((header.number, Duration::from_nanos(moment)));
                }
                None
            }
            Kind::Probe => {
                if header.step > self.step {
                    (self.step, self.probes) = (
                        header.step,
                        Some(Probes { came: Sequence::default(), first: moment, last: moment }),
                    );
                }
                // One of a trial that is over comes too late to count.
                if let (Some(probes), true) = (&mut self.probes, header.step == self.step) {
                    probes.came.take(header.number);
                    probes.last = moment;
                }
                None
            }
            Kind::Question => {
                let of_step = self.probes.as_ref().filter(|_| header.step == self.step);
                let (number, value) =
                    of_step.map_or((0, 0), |probes| (probes.came.received(), probes.last - probes.first));
                Some(Said::Answer(Header { kind: Kind::Answer, step: header.step, number, value }))
            }
            Kind::Bye => {
                self.bye = true;
                None
            }
            Kind::Hello | Kind::Welcome | Kind::Done | Kind::Answer => Some(Said::Other(header)),
        }
    }
}
