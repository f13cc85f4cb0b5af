//! The asking end with several transactions open: one thread that sends what is due, takes what has come, and waits for
//! either. What carries them is a [`Wire`] that never blocks.
//!
//! A wait ends at the moment of the next request, as exactly as the kernel's timers are (its slack is a thousandth of the wait
//! at least, so that a long one is waited for in steps), or, with `busyWait`, is spent on the CPU for its last part.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;
use toll_protocol::traffic::request_response::Load;

use super::Parameters;
use super::tally::{Marks, Schedule, Tally, Window};
use crate::worker::{Traffic, WorkerError};

/// Transactions that are open at most, whatever the rate: what is due beyond them is sent later, and counts from its moment.
const MOST_OPEN: u64 = 1 << 20;
/// The longest wait: how late the thread sees that it shall stop.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// The last part of a wait that is spent on the CPU where that is asked for: longer than a timer is late.
const BUSY_WAIT: Duration = Duration::from_micros(200);
/// Waits from this on are waited for in steps.
const SLACK_MATTERS: Duration = Duration::from_micros(500);

/// What carries requests and responses, and never blocks.
pub trait Wire {
    /// Sends up to `count` requests, of which the first has the number `first`. How many are on their way, if only a part of
    /// the last.
    ///
    /// # Errors
    /// What the system says.
    fn send(&mut self, first: u64, count: u64) -> io::Result<u64>;

    /// Takes the responses that are there: the number of each, or nothing for the oldest that is open. Whether anything was.
    ///
    /// # Errors
    /// What the system says.
    fn receive(&mut self, each: &mut dyn FnMut(Option<u64>)) -> io::Result<bool>;

    /// Whether a part of a request waits for room.
    fn is_blocked(&self) -> bool;

    /// What is polled.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// Asks until the thread is told to stop, and then for as long as transactions of the interval are open and not lost.
pub fn ask<W: Wire>(
    traffic: &Traffic,
    wire: &mut W,
    parameters: &Parameters,
    marks: &Marks,
    tally: &mut Tally,
) -> Result<(), WorkerError> {
    // 1 ns, the least there is. Without it waits are 50 µs longer, which the result would show.
    let _ = set_timerslack(1);
    traffic.begin();
    let begin = traffic.clock().now();
    let (mut window, mut sent, mut received) = (Window::default(), 0, 0);
    let schedule = match parameters.load {
        Load::ClosedLoop { .. } => None,
        Load::OpenLoop { rate, .. } => Some(Schedule { begin, rate }),
    };
    // Requests that are sent at most, once the interval is over.
    let mut last = None;
    loop {
        let now = traffic.clock().now();
        let end = marks.end().filter(|_| traffic.stops());
        if let Some(end) = end {
            last.get_or_insert_with(|| schedule.map_or(window.asked(), |schedule| schedule.due(end)));
        }
        if parameters.may_lose {
            let before = now.checked_sub(parameters.timeout);
            while let Some(open) = before.and_then(|before| window.expire(before)) {
                tally.lose(marks, open.intended);
            }
        }
        if let (Some(end), Some(last)) = (end, last) {
            if window.open() == 0 && window.asked() >= last {
                return Ok(());
            }
            if now >= end + parameters.timeout {
                while let Some(open) = window.answer(None) {
                    tally.lose(marks, open.intended);
                }
                // Those that never found room.
                let unsent = window.asked()..last;
                let moments =
                    schedule.into_iter().flat_map(|schedule| unsent.clone().map(move |n| schedule.moment(n)));
                moments.for_each(|moment| tally.lose(marks, moment));
                return Ok(());
            }
        }
        let due = match (parameters.load, schedule) {
            (Load::OpenLoop { .. }, Some(schedule)) => {
                schedule.due(now).min(last.unwrap_or(u64::MAX)).saturating_sub(window.asked())
            }
            (Load::ClosedLoop { depth }, _) if last.is_none() => {
                u64::from(depth).saturating_sub(window.open())
            }
            _ => 0,
        };
        let due = due.min(MOST_OPEN.saturating_sub(window.open()));
        let mut blocked = wire.is_blocked();
        if due > 0 || blocked {
            let begun = wire.send(window.asked(), due).map_err(|source| traffic.failed("send", source))?;
            for _ in 0..begun {
                let intended = schedule.map_or(now, |schedule| schedule.moment(window.asked()));
                window.ask(intended, now);
                tally.sent(marks, intended, now);
            }
            sent += begun * parameters.request as u64;
            traffic.sent(sent);
            blocked = wire.is_blocked() || begun < due;
        }
        let mut answered = 0;
        let mut late = 0;
        let mut arrived = None;
        let any = wire
            .receive(&mut |number| {
                let arrived = *arrived.get_or_insert_with(|| traffic.clock().now());
                match window.answer(number) {
                    Some(open) => {
                        answered += 1;
                        tally.complete(marks, open.intended, arrived);
                    }
                    None => late += 1,
                }
            })
            .map_err(|source| traffic.failed("recv", source))?;
        tally.late += if marks.measures(now) { late } else { 0 };
        received += answered * parameters.response as u64;
        traffic.received(received);
        if any {
            continue;
        }
        let next =
            schedule.filter(|_| last.is_none() && !blocked).map(|schedule| schedule.moment(window.asked()));
        let lost = window.oldest().filter(|_| parameters.may_lose).map(|open| open.sent + parameters.timeout);
        let until = [next, lost].into_iter().flatten().min();
        wait(traffic, wire, parameters, blocked, until).map_err(|source| traffic.failed("ppoll", source))?;
    }
}

/// Waits until something has come, there is room if that is wanted, or the moment `until` is near or there.
fn wait<W: Wire>(
    traffic: &Traffic,
    wire: &W,
    parameters: &Parameters,
    blocked: bool,
    until: Option<Duration>,
) -> io::Result<()> {
    let left = until.map(|until| until.saturating_sub(traffic.clock().now()));
    let busy = matches!(parameters.load, Load::OpenLoop { busy_wait: true, .. });
    let length = match left {
        Some(left) if busy => left.saturating_sub(BUSY_WAIT),
        Some(left) if left > SLACK_MATTERS => left - left / 50,
        Some(left) => left,
        None => LONGEST_WAIT,
    };
    if length.is_zero() {
        if busy {
            std::hint::spin_loop();
        }
        return Ok(());
    }
    let room = if blocked { PollFlags::POLLOUT } else { PollFlags::empty() };
    let mut descriptors = [PollFd::new(wire.descriptor(), PollFlags::POLLIN | room)];
    match ppoll(&mut descriptors, Some(TimeSpec::from(length.min(LONGEST_WAIT))), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
