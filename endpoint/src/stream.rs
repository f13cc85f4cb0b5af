//! One bulk TCP stream over a kernel socket, as the control thread runs it.
//!
//! ```text
//! Configured --listen--> Ready --Start--> Connecting --> Connected --first byte--> Running (see `meter`)
//!     interval over:  receiver: half-close, drain to the sender's FIN --> Done
//!                     sender:   wait for the receiver's FIN, stop, half-close, wait for its ACK --> Done
//! ```
//! Each wait has a limit, and a failure names what was waited for. What the sender's kernel holds at the end of the
//! interval (megabytes) may take long over a slow link and is part of no figure: after [`PATIENCE`] either end
//! resets the connection, so that nothing of it meets the next trial, and is done.

use std::net::{Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::PollFlags;
use toll_child::confinement::{Confinement, ConfinementError};
use toll_child::contention::{Contention, host_cpu};
use toll_protocol::child::ChildEvent;
use toll_protocol::report::{CpuSplit, EndReport, Flag, Sample, ThreadCpu};
use toll_protocol::traffic::{self, Timing, TrafficReport};
use toll_protocol::trial::{Direction, EndReady, Open};
use toll_protocol::units::Span;
use toll_protocol::validity;

use crate::clock::{CpuClock, waited};
use crate::config::Plan;
use crate::control::{Control, ControlError};
use crate::meter::{Measured, Meter, MeterError, Reading, Step};
use crate::socket::{self, SocketError};
use crate::traffic::{Traffic, TrafficError};

/// How long the first payload byte may take after the connection.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(10);

/// How long the closing of a connection may take after both ends have what they measure: a guest's patience too.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the kernel is asked whether the peer has acknowledged all.
const CLOSED_POLL: Duration = Duration::from_millis(1);

/// A reading whose parts lie further apart than this is taken again.
const READING_SPREAD: Duration = Duration::from_micros(50);
const READING_TRIES: u32 = 4;

/// Why a stream gave no figure.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The agent ended it, or can't be understood.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The process has rights that it was to give up.
    #[error("the end's process could not give up its rights")]
    Confinement(#[from] ConfinementError),
    /// There was no connection.
    #[error("the connection did not come about")]
    Socket(#[source] SocketError),
    /// The traffic stopped by an error.
    #[error("the stream broke off")]
    Traffic(#[from] TrafficError),
    /// The interval could not be measured.
    #[error("the stream gave no figure")]
    Meter(#[from] MeterError),
    /// A receiver sent payload.
    #[error("the receiver sent payload: it is to send nothing but its FIN")]
    UnexpectedPayload,
    /// Something did not happen in time.
    #[error("waited {waited} for {what}")]
    TimedOut {
        /// Since `Start`, or since the connection.
        waited: Span,
        /// For what.
        what: &'static str,
    },
}

impl From<SocketError> for StreamError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Control(error) => Self::Control(error),
            error => Self::Socket(error),
        }
    }
}

/// Runs the job, from readiness to the report, in `confinement` once there is a socket.
///
/// # Errors
/// [`StreamError`].
pub fn run(control: &mut Control, plan: &Plan, confinement: Confinement) -> Result<EndReport, StreamError> {
    let stream = match plan.job.open {
        Open::Listen => {
            let (listener, address) = socket::listen(plan)?;
            confinement.enter(0)?;
            let (peer, deadline) = ready(control, plan, address)?;
            let stream = socket::accept(control, &listener, address, *peer.ip(), deadline)?;
            (stream, deadline)
        }
        Open::Connect => {
            let socket = socket::open(plan)?;
            confinement.enter(0)?;
            let (peer, deadline) = ready(control, plan, plan.bind)?;
            (socket::connect(control, socket, peer, deadline)?, deadline)
        }
    };
    let (stream, deadline) = stream;
    Run::start(stream, plan, control, deadline)?.drive(control)
}

/// Says that the end is up and waits for `Start`; the peer and the moment of the deadline.
pub(crate) fn ready(
    control: &mut Control,
    plan: &Plan,
    address: SocketAddrV4,
) -> Result<(SocketAddrV4, Duration), ControlError> {
    control.send(&ChildEvent::Ready(EndReady { address }))?;
    let peer = control.start()?;
    Ok((peer, control.clock().now() + plan.deadline))
}

struct Run<'a> {
    plan: &'a Plan,
    traffic: Traffic,
    stream: Arc<TcpStream>,
    meter: Meter,
    /// At both ends of the measured interval.
    contention: [Contention; 2],
    connected: Duration,
    deadline: Duration,
    /// Whether the socket is polled for the peer's FIN.
    watch: bool,
    /// When this end half-closed the connection, having all that it measures.
    closing: Option<Duration>,
}

impl<'a> Run<'a> {
    fn start(
        stream: TcpStream,
        plan: &'a Plan,
        control: &Control,
        deadline: Duration,
    ) -> Result<Self, StreamError> {
        let stream = Arc::new(stream);
        let clock = control.clock();
        let connected = clock.now();
        let traffic::Traffic::Stream(parameters) = &plan.job.traffic;
        let write_size = usize::try_from(parameters.write_size.0).unwrap_or(usize::MAX);
        let traffic = Traffic::start(Arc::clone(&stream), plan.job.direction, write_size, plan.cpu, clock)?;
        let Timing { warm_up, duration } = plan.job.timing;
        let meter = Meter::new(plan.job.direction, warm_up.duration(), duration.duration());
        let watch = plan.job.direction == Direction::Send;
        let contention = [Contention::default(); 2];
        Ok(Self { plan, traffic, stream, meter, contention, connected, deadline, watch, closing: None })
    }

    fn drive(mut self, control: &mut Control) -> Result<EndReport, StreamError> {
        loop {
            let mut until = self.limit().min(self.meter.due().unwrap_or(Duration::MAX));
            if self.is_unacknowledged() {
                // After a half-close poll(2) shows POLLHUP at once, and nothing else for the acknowledgement.
                until = until.min(control.clock().now() + CLOSED_POLL);
            }
            let fin = self.wait(control, until)?;
            if let Some(at) = self.traffic.first_byte() {
                self.meter.first_byte(at);
            }
            let now = control.clock().now();
            if self.meter.due().is_some_and(|due| due <= now) {
                let reading = self.reading(control);
                let step = self.meter.read(reading);
                self.report(control, step)?;
            }
            if fin {
                let reading = self.reading(control);
                let step = self.meter.ended_by_peer(reading)?;
                self.report(control, step)?;
                self.watch = false;
                self.traffic.stop();
                self.half_close(control);
            }
            if self.traffic.is_finished() && !self.is_unacknowledged() {
                return self.finish(control);
            }
            if now >= self.limit() {
                if self.closing.is_none() {
                    return Err(self.timed_out(now));
                }
                socket::reset_on_close(&self.stream);
                return figures(self.meter, self.plan.job.direction, self.contention);
            }
        }
    }

    /// Whether this is a sender that has stopped and whose peer has not acknowledged all, FIN included.
    fn is_unacknowledged(&self) -> bool {
        self.plan.job.direction == Direction::Send
            && self.closing.is_some()
            && self.traffic.is_finished()
            && !socket::is_closed(&self.stream)
    }

    /// Waits for news of the traffic, the peer's FIN (then true) or the moment `until`.
    fn wait(&mut self, control: &mut Control, until: Duration) -> Result<bool, StreamError> {
        let mut fds = vec![(self.traffic.news(), PollFlags::POLLIN)];
        if self.watch {
            fds.push((self.stream.as_fd(), PollFlags::POLLIN));
        }
        let events = control.wait(&fds, Some(until))?.unwrap_or_default();
        if events.first().is_some_and(|events| !events.is_empty()) {
            self.traffic.take_news();
        }
        let socket = events.get(1).copied().unwrap_or(PollFlags::empty());
        if socket.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            // A reset: the traffic thread's next send says so, with its own words.
            self.watch = false;
            return Ok(false);
        }
        if socket.contains(PollFlags::POLLIN) { is_fin(&self.stream) } else { Ok(false) }
    }

    /// The clock, the counter and the CPU time as close together as the scheduler lets them be.
    fn reading(&self, control: &Control) -> Reading {
        let clock = control.clock();
        let retransmits = socket::retransmits(&self.stream);
        let mut best: Option<(Duration, Reading)> = None;
        for _ in 0..READING_TRIES {
            let at = clock.now();
            let (sent_bytes, received_bytes) = ways(self.plan.job.direction, self.traffic.bytes());
            let traffic_cpu = self.traffic.cpu();
            let control_cpu = CpuClock::own().now();
            let spread = clock.now().saturating_sub(at);
            let reading = Reading { at, sent_bytes, received_bytes, traffic_cpu, control_cpu, retransmits };
            if best.is_none_or(|(least, _)| spread < least) {
                best = Some((spread, reading));
            }
            if spread <= READING_SPREAD {
                break;
            }
        }
        best.map_or_else(Reading::default, |(_, reading)| reading)
    }

    /// After the reading that it belongs to, which it would spread.
    fn contend(&self) -> Contention {
        Contention { run_delay: self.traffic.run_delay(), thread: self.traffic.times(), host: host_cpu() }
    }

    fn report(&mut self, control: &mut Control, step: Step) -> Result<(), StreamError> {
        match step {
            Step::Nothing => {}
            Step::Began => self.contention[0] = self.contend(),
            Step::Sampled(sample) => control.send(&ChildEvent::Sample(sample))?,
            Step::Ended(sample) => {
                self.contention[1] = self.contend();
                if self.plan.job.direction == Direction::Receive {
                    self.half_close(control);
                }
                control.send(&ChildEvent::Sample(sample))?;
            }
        }
        Ok(())
    }

    /// Sends a FIN after what the kernel holds. At a sender that also ends the send that waits for room.
    fn half_close(&mut self, control: &Control) {
        self.closing = Some(control.clock().now());
        // It fails only on a connection that is gone, which the traffic thread says itself.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The moment at which what is now waited for is overdue.
    fn limit(&self) -> Duration {
        let limit = match self.closing {
            Some(at) => at + PATIENCE,
            None if self.meter.has_begun() => self.deadline,
            None => self.connected + FIRST_BYTE_LIMIT,
        };
        limit.min(self.deadline)
    }

    fn timed_out(&self, now: Duration) -> StreamError {
        let what = match (self.meter.has_begun(), self.meter.is_over()) {
            (false, _) => "the first payload byte on the open connection",
            (true, false) => "the end of the measured interval",
            (true, true) => "the receiver to close the stream",
        };
        StreamError::TimedOut { waited: waited(self.connected, now), what }
    }

    /// The traffic thread has ended: the report, if it may have ended by then.
    fn finish(self, control: &Control) -> Result<EndReport, StreamError> {
        let reading = self.reading(control);
        let Self { plan, traffic, mut meter, contention, closing, .. } = self;
        match traffic.join() {
            // The peer has what it measures too, and may end as it likes.
            Err(TrafficError::Io { .. }) if closing.is_some() => {}
            joined => joined?,
        }
        meter.ended_by_peer(reading)?;
        figures(meter, plan.job.direction, contention)
    }
}

fn figures(
    meter: Meter,
    direction: Direction,
    contention: [Contention; 2],
) -> Result<EndReport, StreamError> {
    let measured = meter.into_measured().ok_or(MeterError::NoPayload)?;
    Ok(end_report(measured, direction, contention))
}

/// Whether what a sender's socket can read is the receiver's FIN; a reset is left to the traffic thread.
fn is_fin(stream: &TcpStream) -> Result<bool, StreamError> {
    match stream.peek(&mut [0]) {
        Ok(0) => Ok(true),
        Ok(_) => Err(StreamError::UnexpectedPayload),
        Err(_) => Ok(false),
    }
}

/// Bytes that were sent, and received, by an end whose payload goes one way.
const fn ways(direction: Direction, bytes: u64) -> (u64, u64) {
    if direction.sends() { (bytes, 0) } else { (0, bytes) }
}

/// The report of a kernel socket's end: its whole cost is the traffic thread, in the host.
fn end_report(measured: Measured, direction: Direction, contention: [Contention; 2]) -> EndReport {
    let Measured { begin, end, samples } = measured;
    let interval = end.at - begin.at;
    let between = |begin: Option<Duration>, end: Option<Duration>| Some(end?.saturating_sub(begin?));
    let traffic = between(begin.traffic_cpu, end.traffic_cpu);
    let control = between(begin.control_cpu, end.control_cpu);
    let [before, after] = contention;
    let split = before.thread.zip(after.thread).map(|(begin, end)| end.since(&begin));
    let threads = [("traffic", traffic, split), ("control", control, None)]
        .into_iter()
        .filter_map(|(name, total, split)| {
            let (user, system) = split.unzip();
            Some(ThreadCpu { name: name.to_owned(), total: total?.into(), user, system })
        })
        .collect();
    let mut flags = Vec::new();
    if cfg!(debug_assertions) {
        flags.push(Flag::DebugBuild);
    }
    if traffic.is_some_and(|cpu| cpu > interval / 100 * 95) {
        flags.push(Flag::CpuBound);
    }
    if begin.retransmits.zip(end.retransmits).is_some_and(|(begin, end)| end > begin) {
        flags.push(Flag::Retransmits);
    }
    let delays = before.run_delay.zip(after.run_delay);
    if delays.is_some_and(|(begin, end)| validity::waits_for_cpu(begin, end, interval)) {
        flags.push(Flag::CpuWait);
    }
    let host_cpu = before.host.zip(after.host).and_then(|(begin, end)| end.since(&begin));
    if host_cpu.is_some_and(|host| host.is_stolen()) {
        flags.push(Flag::Steal);
    }
    let last = samples.last();
    let (sent_bytes, received_bytes) =
        last.map_or((0, 0), |sample: &Sample| (sample.sent_bytes, sample.received_bytes));
    if direction.receives() && validity::stands_still(&samples, interval.into(), received_bytes) {
        flags.push(Flag::Stalled);
    }
    EndReport {
        sent_bytes,
        received_bytes,
        traffic: TrafficReport::Stream(traffic::stream::Report::default()),
        interval: interval.into(),
        samples,
        threads,
        times: Vec::new(),
        transmit_stages: None,
        receive_stages: None,
        host_cpu,
        cpu: CpuSplit { guest: None, vmm: None, host: traffic.map(Into::into) },
        exits: None,
        frames: None,
        spared: None,
        start_to_first_frame: None,
        overhead: None,
        nic: None,
        flags,
    }
}

#[cfg(test)]
mod tests {
    use toll_protocol::cpu::HostCpu;

    use super::*;

    fn report(cpu: u64, retransmits: u32) -> EndReport {
        let ms = Duration::from_millis;
        let begin = Reading {
            at: ms(10),
            sent_bytes: 0,
            received_bytes: 100,
            traffic_cpu: Some(ms(5)),
            control_cpu: None,
            retransmits: Some(3),
        };
        let end = Reading {
            at: ms(1_010),
            sent_bytes: 0,
            received_bytes: 1_100,
            traffic_cpu: Some(ms(5 + cpu)),
            control_cpu: Some(ms(1)),
            retransmits: Some(retransmits),
        };
        let samples = steady(1_000);
        end_report(Measured { begin, end, samples }, Direction::Receive, [Contention::default(); 2])
    }

    /// A byte a millisecond, sampled every 100 ms, until the path stands still.
    fn steady(until: u64) -> Vec<Sample> {
        let sample =
            |at: u64| Sample { at: Span::from_millis(at), sent_bytes: 0, received_bytes: at.min(until) };
        (1..=10).map(|step| sample(step * 100)).collect()
    }

    fn flags(direction: Direction, until: u64, contention: [Contention; 2]) -> Vec<Flag> {
        let reading = |at| Reading { at: Duration::from_millis(at), ..Reading::default() };
        let measured = Measured { begin: reading(0), end: reading(1_000), samples: steady(until) };
        let mut flags = end_report(measured, direction, contention).flags;
        flags.retain(|flag| *flag != Flag::DebugBuild);
        flags
    }

    #[test]
    fn figures_cover_the_interval_only_and_what_is_unknown_is_absent() {
        let report = report(400, 3);
        assert_eq!(report.received_bytes, 1_000);
        assert_eq!(report.interval.duration(), Duration::from_secs(1));
        assert_eq!(report.cpu.host.map(|cpu| cpu.duration()), Some(Duration::from_millis(400)));
        assert_eq!(report.threads.len(), 1, "the control thread's time at the begin is unknown");
        assert!(!report.flags.contains(&Flag::CpuBound) && !report.flags.contains(&Flag::Retransmits));
    }

    #[test]
    fn competition_for_the_cpu_is_flagged_and_what_is_unknown_is_no_statement() {
        let at = |delay, steal| Contention {
            run_delay: Some(Duration::from_millis(delay)),
            thread: None,
            host: HostCpu::parse(&format!("cpu  {} 0 0 0 0 0 0 {steal}", 1_000 + steal * 9)),
        };
        let flags = |contention| flags(Direction::Receive, 1_000, contention);
        assert_eq!(flags([at(900, 7), at(950, 7)]), []);
        assert_eq!(flags([at(900, 7), at(951, 7)]), [Flag::CpuWait]);
        assert_eq!(flags([at(900, 7), at(950, 9)]), [Flag::Steal]);
        assert_eq!(flags([Contention::default(), at(951, 90)]), []);
    }

    #[test]
    fn a_standstill_is_the_receivers_to_tell() {
        let unknown = [Contention::default(); 2];
        assert_eq!(flags(Direction::Receive, 750, unknown), [Flag::Stalled]);
        assert_eq!(flags(Direction::Receive, 850, unknown), []);
        assert_eq!(flags(Direction::Send, 750, unknown), []);
    }

    #[test]
    fn flags_say_what_set_the_figure() {
        assert!(report(951, 3).flags.contains(&Flag::CpuBound));
        assert!(report(10, 4).flags.contains(&Flag::Retransmits));
    }
}
