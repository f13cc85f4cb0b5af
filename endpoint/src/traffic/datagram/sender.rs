//! The sending thread.
//!
//! ```text
//!  [search for the rate] --> payload --interval begins--> marked --it ends--> payload that says how many were marked
//!                                            until the receiver says that it has all, or the control thread gives up --> bye
//! ```
//! It asks the clock twice a burst (see `pace`): when it wakes, and to find that no more is due; without a rate once a batch.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::Duration;

use toll_protocol::traffic::datagram::Datagram;

use super::exchange::{Exchange, Phase};
use super::header::{Header, Kind};
use super::messages::Outgoing;
use super::pace::{BURST, Mix, Pace};
use super::search::{Next, Outcome, Search};
use super::socket::{self, LOOK_EVERY, UNCONFIRMED};
use crate::worker::{Traffic, WorkerError};

/// What the kernel may add to a sleep of this thread: far less than a burst is long. Its default is half of one.
const TIMER_SLACK: libc::c_ulong = 1_000;
/// After the last datagram of a search's trial, those that are under way have so long before the receiver is asked.
const SETTLE: Duration = Duration::from_millis(50);
/// How long is waited for its answer; it is asked again and again.
const ANSWER: Duration = Duration::from_millis(500);
/// Datagrams a second of the lowest rate that is worth a search's trial.
const LEAST: u64 = 10;
/// Datagrams a second after the interval at least: the receiver waits for one.
const AFTERS: u64 = 200;

/// Sends until the peer has all, or until the thread shall stop.
///
/// # Errors
/// [`WorkerError`].
pub fn run(traffic: &Traffic, exchange: &Exchange, parameters: &Datagram) -> Result<(), WorkerError> {
    // It fails on no thread.
    let _ = nix::sys::prctl::set_timerslack(TIMER_SLACK);
    let longest = parameters.sizes.iter().map(|run| usize::from(run.size)).max().unwrap_or_default();
    let batch = usize::from(parameters.batch);
    let outgoing = Outgoing::new(batch, longest, parameters.segmentation_offload);
    let call = if parameters.segmentation_offload { "sendmmsg with UDP_SEGMENT" } else { "sendmmsg" };
    let mut sender = Sender { traffic, exchange, parameters, outgoing, call };
    let mut rate = parameters.rate.map(|rate| rate.0);
    if let Some(search) = parameters.search {
        let least = LEAST * 8 * parameters.period_bytes() / parameters.period().max(1);
        let Some(found) = sender.search(Search::new(search, rate, least), search.trial.duration())? else {
            return Ok(());
        };
        rate = Some(found);
        exchange.enter(Phase::Before);
    }
    sender.payload(rate)?;
    for _ in 0..UNCONFIRMED {
        // Whoever does not hear it hears nothing more at all, and ends then.
        let _ = socket::say(exchange.socket(), Header::new(Kind::Bye));
    }
    Ok(())
}

/// Waits until what is to come is due.
#[expect(
    clippy::disallowed_methods,
    reason = "a datagram at a rate waits for its moment and for nothing else"
)]
fn pause(length: Duration) {
    std::thread::sleep(length);
}

struct Sender<'t> {
    traffic: &'t Traffic,
    exchange: &'t Exchange,
    parameters: &'t Datagram,
    outgoing: Outgoing,
    /// What is told of an error of the call.
    call: &'static str,
}

impl Sender<'_> {
    fn failed(&self, source: io::Error) -> WorkerError {
        self.traffic.failed(self.call, source)
    }

    /// One burst of what is `due`, with headers by `header`: datagrams and bytes. Whether all went is the last.
    fn burst(
        &mut self,
        mix: &mut Mix,
        mut due: u64,
        mut header: impl FnMut() -> Header,
    ) -> io::Result<(u64, u64, bool)> {
        let (mut datagrams, mut bytes) = (0, 0);
        while due > 0 && self.outgoing.room() > 0 {
            let (size, count) = mix.take(self.outgoing.room(), due);
            self.outgoing.add(size, count, &mut header);
            let together = (size * count) as u64;
            due = due.saturating_sub(together);
            bytes += together;
            datagrams += count as u64;
        }
        let all = self.outgoing.send(self.exchange.as_fd(), || !self.traffic.stops())?;
        Ok((datagrams, bytes, all))
    }

    /// The measured traffic at `rate`, bits a second.
    fn payload(&mut self, rate: Option<u64>) -> Result<(), WorkerError> {
        let (traffic, exchange) = (self.traffic, self.exchange);
        let clock = traffic.clock();
        traffic.begin();
        let mut mix = Mix::new(self.parameters.sizes.clone());
        let mut pace = rate.map(|rate| Pace::new(rate, clock.now()));
        let (mut datagrams, mut bytes, mut marked, mut woke) = (0, 0, 0, Duration::ZERO);
        let mut phase = Phase::Before;
        while !traffic.stops() && !exchange.peer_has_all() {
            let now = clock.now();
            let due = pace.as_mut().map_or(u64::MAX, |pace| pace.due(now));
            let before = std::mem::replace(&mut phase, exchange.phase());
            if before != phase && phase == Phase::After {
                let least = AFTERS * 8 * self.parameters.period_bytes() / self.parameters.period().max(1);
                pace = rate.map(|rate| Pace::new(rate.max(least), now));
            }
            if let (0, Some(pace)) = (due, &pace) {
                woke = pace.next().max(woke + BURST);
                pause(woke.saturating_sub(now));
                continue;
            }
            // The low 48 bits count: three days.
            let value = now.as_nanos() as u64;
            let header = || match phase {
                Phase::Inside => {
                    marked += 1;
                    Header { kind: Kind::Marked, step: 0, number: marked - 1, value }
                }
                Phase::After => Header { kind: Kind::After, step: 0, number: marked, value },
                Phase::Search | Phase::Before => Header { kind: Kind::Payload, step: 0, number: 0, value },
            };
            match self.burst(&mut mix, due, header) {
                Ok((sent, length, true)) => {
                    datagrams += sent;
                    bytes += length;
                    traffic.sent(bytes);
                    exchange.sent(datagrams);
                    if let Some(pace) = &mut pace {
                        pace.sent(length);
                    }
                }
                Ok((.., false)) => break,
                // The receiver has gone, and all of its goodbyes were lost.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused && phase == Phase::After => break,
                Err(source) => return Err(self.failed(source)),
            }
        }
        Ok(())
    }

    /// The rate that the search finds; nothing if the thread shall stop.
    fn search(&mut self, mut search: Search, length: Duration) -> Result<Option<u64>, WorkerError> {
        let (mut next, mut step) = (search.first(), 0);
        loop {
            match next {
                Next::Found(found) => {
                    // Only this thread sets it, and once.
                    let _ = self.exchange.found.set(found);
                    return Ok(Some(found.rate.0));
                }
                Next::Nothing(rate) => return Err(WorkerError::NoRate { rate }),
                Next::Try(rate) => {
                    step += 1;
                    let Some(outcome) = self.trial(rate, length, step)? else { return Ok(None) };
                    next = search.take(outcome);
                }
            }
        }
    }

    /// Sends at `rate` for `length`, and asks how many came.
    fn trial(
        &mut self,
        rate: Option<u64>,
        length: Duration,
        step: u8,
    ) -> Result<Option<Outcome>, WorkerError> {
        let clock = self.traffic.clock();
        let begin = clock.now();
        let (end, mut woke) = (begin + length, Duration::ZERO);
        let mut mix = Mix::new(self.parameters.sizes.clone());
        let mut pace = rate.map(|rate| Pace::new(rate, begin));
        let (mut sent, mut bytes, mut number) = (0, 0, 0);
        let over = loop {
            let now = clock.now();
            if now >= end {
                break now;
            }
            if self.traffic.stops() {
                return Ok(None);
            }
            let due = pace.as_mut().map_or(u64::MAX, |pace| pace.due(now));
            if let (0, Some(pace)) = (due, &pace) {
                woke = pace.next().max(woke + BURST).min(end);
                pause(woke.saturating_sub(now));
                continue;
            }
            let header = || {
                number += 1;
                Header { kind: Kind::Probe, step, number: number - 1, value: 0 }
            };
            let (count, length, all) =
                self.burst(&mut mix, due, header).map_err(|error| self.failed(error))?;
            if !all {
                return Ok(None);
            }
            sent += count;
            bytes += length;
            if let Some(pace) = &mut pace {
                pace.sent(length);
            }
        };
        let nanoseconds = (over - begin).as_nanos().max(1);
        let offered = u64::try_from(u128::from(bytes) * 8_000_000_000 / nanoseconds).unwrap_or(u64::MAX);
        Ok(self.received(step)?.map(|(received, span)| {
            let carried = (u128::from(bytes) * 8_000_000_000).checked_div(span.into());
            // One datagram alone has no rate.
            let carried = carried.map_or(offered, |carried| u64::try_from(carried).unwrap_or(u64::MAX));
            Outcome { sent, received, offered, carried }
        }))
    }

    /// How many of the trial `step` came, and within how many nanoseconds, by the receiver's answer; none if it did not answer: the
    /// path carries nothing then. Nothing if the thread shall stop.
    fn received(&self, step: u8) -> Result<Option<(u64, u64)>, WorkerError> {
        let clock = self.traffic.clock();
        pause(SETTLE);
        let until = clock.now() + ANSWER;
        let question = Header { step, ..Header::new(Kind::Question) };
        let mut asked = Duration::ZERO;
        while clock.now() < until {
            if self.traffic.stops() {
                return Ok(None);
            }
            if clock.now() >= asked {
                let said = socket::say(self.exchange.socket(), question);
                said.map_err(|error| self.traffic.failed("send", error))?;
                asked = clock.now() + 2 * LOOK_EVERY;
            }
            match socket::read(self.exchange.socket()) {
                Ok((Some(Header { kind: Kind::Answer, step: answered, number, value }), _))
                    if answered == step =>
                {
                    return Ok(Some((number, value)));
                }
                Ok((header, _)) => {
                    let taken = header.map_or(Ok(()), |header| self.exchange.take(header));
                    taken.map_err(|error| self.traffic.failed("send", error))?;
                }
                Err(error) if socket::is_passing(&error) => {}
                Err(source) => return Err(self.traffic.failed("recv", source)),
            }
        }
        Ok(Some((0, 0)))
    }
}
