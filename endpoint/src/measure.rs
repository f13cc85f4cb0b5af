//! The measuring of any traffic, as the control thread does it: when to read the clock, the counters and the CPU time,
//! and how long to wait for what. What traffic it is only its [`Application`] knows.
//!
//! ```text
//! open --began: first payload byte of every flow--> Running (see `meter`) --interval over: `measured`--> Closing --`is_over`--> report
//!   | in 10 s                                         | until the deadline                                 | PATIENCE: `abandon`, report
//!   '--> timed out                                    '--> timed out                                       '
//! ```
//! What the sender's kernel holds at the end of the interval (megabytes) may take long over a slow link and is part of no
//! figure: after [`PATIENCE`] the traffic is broken off, so that nothing of it meets the next trial, and the end is done.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::PollFlags;
use toll_child::contention::host_cpu;
use toll_protocol::child::ChildEvent;
use toll_protocol::cpu::{HostCpu, ThreadTimes};
use toll_protocol::report::{CpuSplit, EndReport, Flag, ThreadCpu};
use toll_protocol::traffic::{Timing, TrafficReport};
use toll_protocol::trial::Direction;
use toll_protocol::units::Span;
use toll_protocol::validity;

use crate::clock::{CpuClock, waited};
use crate::control::Control;
use crate::meter::{Meter, PeersEnd, Reading, Step};
use crate::socket::WindowWait;
use crate::traffic::TrafficError;
use crate::worker::Worker;

/// How long the first payload byte may take after the connection.
pub const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(10);
/// How long the closing may take after both ends have what they measure: a guest's patience too.
const PATIENCE: Duration = Duration::from_secs(3);
/// A reading whose parts lie further apart than this is taken again.
const READING_SPREAD: Duration = Duration::from_micros(50);
const READING_TRIES: u32 = 4;
/// Share of the interval, in percent, over which a thread was busy that set the figure.
const CPU_BOUND: u32 = 95;

/// Traffic of one kind, running.
pub trait Application {
    /// Its threads.
    fn workers(&self) -> Vec<&Worker>;

    /// Those whose payload is the end's figure.
    fn counted(&self) -> Vec<&Worker> {
        self.workers()
    }

    /// What it means that the peer ends the traffic.
    fn peers_end(&self, direction: Direction) -> PeersEnd {
        direction.into()
    }

    /// Whether payload that stands still for a while is a fault.
    fn is_steady(&self) -> bool {
        true
    }

    /// What wakes the control thread beside the clock.
    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)>;

    /// Looks at what has happened; `events` are those of [`descriptors`](Self::descriptors), in their order, or nothing if
    /// it was time. Whether the peer has ended the traffic, told once.
    ///
    /// # Errors
    /// [`TrafficError`] if that is none of its part.
    fn look(&mut self, events: &[PollFlags]) -> Result<bool, TrafficError>;

    /// A moment at which to look again even if no descriptor says so.
    fn look_again(&self, _now: Duration) -> Option<Duration> {
        None
    }

    /// When the first payload byte of its last flow crossed, once it has.
    fn began(&self) -> Option<Duration> {
        let moments = self.workers().into_iter().map(Worker::began);
        moments.reduce(|latest, moment| Some(latest?.max(moment?))).flatten()
    }

    /// How long the first payload byte may take after the connection.
    fn first_byte_limit(&self) -> Duration {
        FIRST_BYTE_LIMIT
    }

    /// Segments retransmitted so far, where the kernel says so.
    fn retransmits(&self) -> Option<u64>;

    /// What each flow that sends has waited for a window of TCP so far, where the kernel says so.
    fn window_waits(&self) -> Vec<Option<WindowWait>> {
        Vec::new()
    }

    /// The measured interval begins now.
    fn measures(&mut self) {}

    /// The measured interval is over: this end closes what is its own to close. Whether it has begun to close.
    fn measured(&mut self) -> bool;

    /// The peer has ended it: this end does too.
    fn end(&mut self);

    /// Whether nothing of the traffic is left.
    fn is_over(&self) -> bool;

    /// Breaks off what is left.
    fn abandon(&mut self);

    /// Its threads' results and its own figures. `closing` says whether the peer may end as it likes.
    ///
    /// # Errors
    /// [`TrafficError`].
    fn finish(self, closing: bool) -> Result<TrafficReport, TrafficError>;

    /// Its figures, where it was broken off after the interval.
    ///
    /// # Errors
    /// [`TrafficError`] if they are not to be had.
    fn figures(&self) -> Result<TrafficReport, TrafficError>;
}

/// What a thread had used up to a moment.
#[derive(Debug, Clone, Default)]
struct ThreadCosts {
    name: String,
    cpu: Option<Duration>,
    times: Option<ThreadTimes>,
    run_delay: Option<Duration>,
}

/// CPU time that threads had used up to a moment.
struct Cpus {
    threads: Vec<Option<Duration>>,
    control: Option<Duration>,
}

/// What the end had cost up to a moment.
#[derive(Debug, Clone, Default)]
struct Costs {
    threads: Vec<ThreadCosts>,
    control: Option<Duration>,
    retransmits: Option<u64>,
    window_waits: Vec<Option<WindowWait>>,
    host: Option<HostCpu>,
}

/// Measures `application`, which is connected, until the moment `deadline`.
///
/// # Errors
/// [`TrafficError`].
pub fn run<A: Application>(
    control: &mut Control,
    application: A,
    direction: Direction,
    timing: Timing,
    deadline: Duration,
) -> Result<EndReport, TrafficError> {
    let connected = control.clock().now();
    let meter =
        Meter::new(application.peers_end(direction), timing.warm_up.duration(), timing.duration.duration());
    let costs = [Costs::default(), Costs::default()];
    Run { application, meter, costs, direction, connected, deadline, closing: None }.drive(control)
}

struct Run<A> {
    application: A,
    meter: Meter,
    /// At both ends of the measured interval.
    costs: [Costs; 2],
    direction: Direction,
    connected: Duration,
    deadline: Duration,
    /// When this end began to close, having all that it measures.
    closing: Option<Duration>,
}

impl<A: Application> Run<A> {
    fn drive(mut self, control: &mut Control) -> Result<EndReport, TrafficError> {
        loop {
            let mut until = self.limit().min(self.meter.due().unwrap_or(Duration::MAX));
            if let Some(again) = self.application.look_again(control.clock().now()) {
                until = until.min(again);
            }
            let events = control.wait(&self.application.descriptors(), Some(until))?.unwrap_or_default();
            let ended = self.application.look(&events)?;
            if let Some(at) = self.application.began() {
                self.meter.first_byte(at);
            }
            let now = control.clock().now();
            if self.meter.due().is_some_and(|due| due <= now) {
                let (reading, costs) = self.reading(control);
                let step = self.meter.read(reading);
                self.takes(control, step, costs)?;
            }
            if ended {
                if self.application.peers_end(self.direction) != PeersEnd::IsPart {
                    let (reading, costs) = self.reading(control);
                    let step = self.meter.ended_by_peer(reading)?;
                    self.takes(control, step, costs)?;
                    self.closing.get_or_insert(now);
                }
                self.application.end();
            }
            if self.application.is_over() {
                return self.finish(control);
            }
            if now >= self.limit() {
                if self.closing.is_none() {
                    return Err(self.timed_out(now));
                }
                self.application.abandon();
                let traffic = self.application.figures()?;
                let steady = self.receives_steadily();
                return report(self.meter, self.costs, steady, traffic);
            }
        }
    }

    /// The clock, the counters and the CPU time as close together as the scheduler lets them be.
    fn reading(&self, control: &Control) -> (Reading, Costs) {
        let clock = control.clock();
        let retransmits = self.application.retransmits();
        let window_waits = self.application.window_waits();
        let (workers, counted) = (self.application.workers(), self.application.counted());
        let mut best: Option<(Duration, Reading, Cpus)> = None;
        for _ in 0..READING_TRIES {
            let at = clock.now();
            let sent_bytes = counted.iter().map(|worker| worker.sent_bytes()).sum();
            let received_bytes = counted.iter().map(|worker| worker.received_bytes()).sum();
            let threads = workers.iter().map(|worker| worker.cpu()).collect();
            let cpus = Cpus { threads, control: CpuClock::own().now() };
            let spread = clock.now().saturating_sub(at);
            if best.as_ref().is_none_or(|(least, ..)| spread < *least) {
                best = Some((spread, Reading { at, sent_bytes, received_bytes }, cpus));
            }
            if spread <= READING_SPREAD {
                break;
            }
        }
        let Some((_, reading, Cpus { threads, control })) = best else { return Default::default() };
        let threads = workers.iter().zip(threads);
        let threads = threads.map(|(worker, cpu)| ThreadCosts {
            name: worker.name().to_owned(),
            cpu,
            ..ThreadCosts::default()
        });
        let costs = Costs { threads: threads.collect(), control, retransmits, window_waits, host: None };
        (reading, costs)
    }

    /// What takes long to read, and would spread a reading.
    fn contention(&self, mut costs: Costs) -> Costs {
        for (thread, worker) in costs.threads.iter_mut().zip(self.application.workers()) {
            (thread.times, thread.run_delay) = (worker.times(), worker.run_delay());
        }
        Costs { host: host_cpu(), ..costs }
    }

    fn takes(&mut self, control: &mut Control, step: Step, costs: Costs) -> Result<(), TrafficError> {
        match step {
            Step::Nothing => {}
            Step::Began => {
                self.application.measures();
                self.costs[0] = self.contention(costs);
            }
            Step::Sampled(sample) => control.send(&ChildEvent::Sample(sample))?,
            Step::Ended(sample) => {
                // First, as close to the reading as can be: what costs took takes long to read.
                if self.application.measured() {
                    self.closing.get_or_insert(control.clock().now());
                }
                self.costs[1] = self.contention(costs);
                control.send(&ChildEvent::Sample(sample))?;
            }
        }
        Ok(())
    }

    /// Whether it is told that what this end receives stands still.
    fn receives_steadily(&self) -> bool {
        self.direction.receives() && self.application.is_steady()
    }

    /// The moment at which what is now waited for is overdue.
    fn limit(&self) -> Duration {
        let limit = match self.closing {
            Some(at) => at + PATIENCE,
            None if self.meter.has_begun() => self.deadline,
            None => self.connected + self.application.first_byte_limit(),
        };
        limit.min(self.deadline)
    }

    fn timed_out(&self, now: Duration) -> TrafficError {
        let what = match (self.meter.has_begun(), self.meter.is_over()) {
            (false, _) => "the first payload byte on the open connection",
            (true, false) => "the end of the measured interval",
            (true, true) => "the receiver to close the stream",
        };
        TrafficError::TimedOut { waited: waited(self.connected, now), what }
    }

    /// All threads have ended: the report, if they may have ended by then.
    fn finish(self, control: &Control) -> Result<EndReport, TrafficError> {
        let (reading, _) = self.reading(control);
        let steady = self.receives_steadily();
        let Self { application, mut meter, costs, closing, .. } = self;
        let traffic = application.finish(closing.is_some())?;
        meter.ended_by_peer(reading)?;
        report(meter, costs, steady, traffic)
    }
}

/// The report of an end over kernel sockets: its whole cost is its traffic threads, in the host.
fn report(
    meter: Meter,
    [before, after]: [Costs; 2],
    steady: bool,
    traffic: TrafficReport,
) -> Result<EndReport, TrafficError> {
    let measured = meter.into_measured().ok_or(crate::meter::MeterError::NoPayload)?;
    let (begin, end) = (measured.begin, measured.end);
    let interval = end.at - begin.at;
    let between = |begin: Option<Duration>, end: Option<Duration>| Some(end?.saturating_sub(begin?));
    let (mut threads, mut flags) = (Vec::new(), Vec::new());
    if cfg!(debug_assertions) {
        flags.push(Flag::DebugBuild);
    }
    let (mut host, mut bound, mut waits) = (Some(Duration::ZERO), false, false);
    for (begin, end) in before.threads.iter().zip(&after.threads) {
        let total = between(begin.cpu, end.cpu);
        host = host.zip(total).map(|(sum, cpu)| sum + cpu);
        bound |= total.is_some_and(|cpu| cpu > interval / 100 * CPU_BOUND);
        let delays = begin.run_delay.zip(end.run_delay);
        waits |= delays.is_some_and(|(begin, end)| validity::waits_for_cpu(begin, end, interval));
        let (user, system) = begin.times.zip(end.times).map(|(begin, end)| end.since(&begin)).unzip();
        let name = end.name.clone();
        threads.extend(total.map(|total| ThreadCpu { name, total: total.into(), user, system }));
    }
    let control = between(before.control, after.control).map(Span::from);
    let name = "control".to_owned();
    threads.extend(control.map(|total| ThreadCpu { name, total, user: None, system: None }));
    if bound {
        flags.push(Flag::CpuBound);
    }
    if before.retransmits.zip(after.retransmits).is_some_and(|(begin, end)| end > begin) {
        flags.push(Flag::Retransmits);
    }
    let dropped = traffic.datagram().and_then(|report| report.delivery?.buffer_drops);
    if dropped.is_some_and(|dropped| dropped > 0) {
        flags.push(Flag::Drops);
    }
    if is_window_bound(&before.window_waits, &after.window_waits, interval) {
        flags.push(Flag::WindowBound);
    }
    if waits {
        flags.push(Flag::CpuWait);
    }
    let host_cpu = before.host.zip(after.host).and_then(|(begin, end)| end.since(&begin));
    if host_cpu.is_some_and(|host| host.is_stolen()) {
        flags.push(Flag::Steal);
    }
    let received_bytes = end.received_bytes.saturating_sub(begin.received_bytes);
    if steady && validity::stands_still(&measured.samples, interval.into(), received_bytes) {
        flags.push(Flag::Stalled);
    }
    Ok(EndReport {
        sent_bytes: end.sent_bytes.saturating_sub(begin.sent_bytes),
        received_bytes,
        samples: measured.samples,
        threads,
        host_cpu,
        cpu: CpuSplit { guest: None, vmm: None, host: host.map(Into::into) },
        flags,
        ..EndReport::new(traffic, interval.into())
    })
}

/// Whether flows that send waited for a window for most of `interval`, by readings at both ends of it.
fn is_window_bound(before: &[Option<WindowWait>], after: &[Option<WindowWait>], interval: Duration) -> bool {
    let waited = before.iter().zip(after).filter_map(|(before, after)| before.zip(*after));
    let bound = waited.filter(|(_, after)| after.without_queue);
    let waited: Duration = bound.map(|(before, after)| after.waited.saturating_sub(before.waited)).sum();
    validity::window_bound(waited.into(), interval.saturating_mul(after.len() as u32).into())
}

#[cfg(test)]
mod tests;
