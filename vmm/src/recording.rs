//! What is read at both ends of the measured interval, and the report made of the difference.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use toll_protocol::cpu::ThreadTimes;
use toll_protocol::report::{
    CpuSplit, EndReport, ExitReport, Flag, FrameStages, FrameWay, Part, Sample, Stage, ThreadCpu, ThreadTime,
};
use toll_protocol::traffic::{Job, TrafficReport, stream};
use toll_protocol::units::Span;
use toll_protocol::validity;
use toll_vnic::stages::{Noted, Way};

use crate::claim::{Claim, ClaimError};
use crate::io_thread;
use crate::snapshot::Snapshot;

/// A thread is said to have been the limit from this share of the interval on.
const CPU_BOUND: f64 = 0.95;
/// How far the program's interval may differ from the one the VMM saw: scheduling delays lie in between.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(250);

/// All that is known of a program that ended well.
#[derive(Debug, Clone)]
pub struct Recording {
    /// When the measured interval began.
    pub start: Snapshot,
    /// When it ended.
    pub end: Snapshot,
    /// What the program says.
    pub claim: Claim,
    /// When the guest (or the host process' engine) was created.
    pub created: Instant,
    /// When its driver had sent the first frame.
    pub first_frame: Option<Instant>,
    /// Bytes of memory: bounds what the program can have buffered.
    pub memory: u64,
}

impl Recording {
    /// The report of the measured interval, of a program that did `job`.
    ///
    /// # Errors
    /// [`ClaimError`] if the program's own figures are impossible.
    pub fn report(&self, job: &Job, samples: Vec<Sample>) -> Result<EndReport, ClaimError> {
        let Self { start, end, claim, .. } = self;
        let (carried, interval) = claim.interval()?;
        let seen = end.at.instant().saturating_duration_since(start.at.instant());
        let program = Duration::from_nanos(interval);
        if program.abs_diff(seen) > CLOCK_TOLERANCE.max(seen / 50) || interval == 0 {
            return Err(ClaimError::Clock { program, vmm: seen });
        }
        let frames = end.frames.since(&start.frames);
        let crossed = frames.receive_bytes.saturating_add(frames.transmit_bytes);
        let bytes = carried.sent.saturating_add(carried.received);
        if bytes > crossed.saturating_add(self.memory) {
            return Err(ClaimError::Bytes { claimed: bytes, crossed });
        }
        let flows = claim.of_flows(job, carried)?;

        let ns_per_tick = end.at.nanoseconds_per_tick_since(&start.at);
        let exits = self.exits(ns_per_tick);
        let cpu = difference(start.cpu, end.cpu);
        let name = if exits.is_some() { "vcpu0" } else { "payload" };
        let io_cpu = |snapshot: &Snapshot| snapshot.io.and_then(|(cpu, _)| cpu);
        let io = difference(io_cpu(start), io_cpu(end));
        let control = difference(start.control_cpu, end.control_cpu);
        let split = |of: fn(&Snapshot) -> Option<ThreadTimes>| Some(of(end)?.since(&of(start)?));
        let threads = [
            (name, cpu, split(|snapshot| snapshot.thread)),
            (io_thread::NAME, io, split(|snapshot| snapshot.io_thread)),
            ("control", control, None),
        ];
        let mut flags = Vec::new();
        if cfg!(debug_assertions) {
            flags.push(Flag::DebugBuild);
        }
        let busy = |cpu: Duration| cpu.as_secs_f64() >= CPU_BOUND * seen.as_secs_f64();
        if cpu.is_some_and(busy) || io.is_some_and(busy) {
            flags.push(Flag::CpuBound);
        }
        let delays = start.run_delay.zip(end.run_delay);
        if delays.is_some_and(|(begin, end)| validity::waits_for_cpu(begin, end, seen)) {
            flags.push(Flag::CpuWait);
        }
        if end.retransmits > start.retransmits {
            flags.push(Flag::Retransmits);
        }
        let sending = flows.iter().filter(|flow| flow.sent_bytes > 0).count() as u64;
        let bound = end.window_bound_ns.saturating_sub(start.window_bound_ns);
        if validity::window_bound(Span(bound), Span(interval.saturating_mul(sending))) {
            flags.push(Flag::WindowBound);
        }
        if frames.transmit_drops > 0 || frames.receive_drops > 0 {
            flags.push(Flag::Drops);
        }
        if exits.as_ref().is_some_and(|exits| exits.kvm_userspace.is_some_and(|kvm| kvm != exits.total())) {
            flags.push(Flag::ExitCountMismatch);
        }
        Ok(EndReport {
            sent_bytes: carried.sent,
            received_bytes: carried.received,
            samples,
            threads: threads
                .into_iter()
                .filter_map(|(name, cpu, split)| {
                    let (user, system) = split.unzip();
                    Some(ThreadCpu { name: name.into(), total: cpu?.into(), user, system })
                })
                .collect(),
            times: self.times(name, seen, ns_per_tick),
            transmit_stages: stages(&end.noted[0], ns_per_tick),
            receive_stages: stages(&end.noted[1], ns_per_tick),
            cpu: cpu.map(|cpu| self.split(cpu, io, ns_per_tick)).unwrap_or_default(),
            exits,
            frames: Some(frames),
            spared: end.spared.zip(start.spared).map(|(end, start)| end.since(&start)),
            start_to_first_frame: self
                .first_frame
                .map(|first| first.saturating_duration_since(self.created).into()),
            flags,
            ..EndReport::new(TrafficReport::Stream(stream::Report { flows, zero_copy: None }), Span(interval))
        })
    }

    fn exits(&self, ns_per_tick: f64) -> Option<ExitReport> {
        let ((before, kvm_before), (after, kvm_after)) =
            (self.start.exits.as_ref()?, self.end.exits.as_ref()?);
        let counted = |before: Option<u64>, after: Option<u64>| after?.checked_sub(before?);
        Some(ExitReport {
            by_cause: after.since(before, ns_per_tick),
            kvm_userspace: counted(kvm_before.fpu_reload, kvm_after.fpu_reload),
            kvm_all: counted(kvm_before.exits, kvm_after.exits),
        })
    }

    /// What each thread did with the interval, `seen` by the clock.
    fn times(&self, name: &str, seen: Duration, ns_per_tick: f64) -> Vec<ThreadTime> {
        let Self { start, end, .. } = self;
        let span = |before: u64, after: u64| Span((after.saturating_sub(before) as f64 * ns_per_tick) as u64);
        let port = span(start.port_ticks, end.port_ticks);
        let without = |whole: Span, part: Span| Span(whole.0.saturating_sub(part.0));
        let (model, io) = (span(start.model_ticks, end.model_ticks), start.io.zip(end.io));
        let of_program = if end.exits.is_some() { Part::Guest } else { Part::Program };
        let mut parts = BTreeMap::from([
            (of_program, span(start.program_ticks, end.program_ticks)),
            (Part::Wait, span(start.asleep_ticks, end.asleep_ticks)),
        ]);
        if end.exits.is_some() {
            parts.insert(Part::Loop, span(start.loop_ticks, end.loop_ticks));
        }
        let interval = Span::from(seen);
        let Some(((_, before), (_, after))) = io else {
            parts.extend([(Part::Adapter, without(model, port)), (Part::Port, port)]);
            return vec![ThreadTime { name: name.to_owned(), interval, parts }];
        };
        parts.insert(Part::Adapter, model);
        let own_interval = Span::from(after.at.saturating_duration_since(before.at));
        let own = BTreeMap::from([
            (Part::Adapter, without(span(before.moved, after.moved), port)),
            (Part::Port, port),
            (Part::Look, span(before.looked, after.looked)),
            (Part::Wait, span(before.asleep, after.asleep)),
        ]);
        vec![
            ThreadTime { name: name.to_owned(), interval, parts },
            ThreadTime { name: io_thread::NAME.to_owned(), interval: own_interval, parts: own },
        ]
    }

    /// Splits the thread's CPU time in proportion to where it was seen. Being preempted lengthens what was seen,
    /// in the program and in the model alike; scaling takes it out again. A port that the adapter's own thread `io` looks
    /// after is called there, and what else that thread does is the VMM's.
    fn split(&self, cpu: Duration, io: Option<Duration>, ns_per_tick: f64) -> CpuSplit {
        let ticks = |before: u64, after: u64| after.saturating_sub(before) as f64 * ns_per_tick;
        let program = ticks(self.start.program_ticks, self.end.program_ticks);
        let model = ticks(self.start.model_ticks, self.end.model_ticks);
        let port = ticks(self.start.port_ticks, self.end.port_ticks);
        if let Some(io) = io {
            let ours =
                Duration::from_nanos((cpu.as_nanos() as f64 * model / (program + model).max(1.0)) as u64);
            let host = Duration::from_nanos(port as u64).min(io);
            let (guest, vmm) = (cpu.saturating_sub(ours), ours + io - host);
            return CpuSplit { guest: Some(guest.into()), vmm: Some(vmm.into()), host: Some(host.into()) };
        }
        let port = port.min(model);
        let seen = program + model;
        if seen <= 0.0 {
            return CpuSplit::default();
        }
        let share = |part: f64| Span((cpu.as_nanos() as f64 * part / seen) as u64);
        let (vmm, host) = (share(model - port), share(port));
        // The rest, so that rounding loses nothing.
        let guest = Span(Span::from(cpu).0.saturating_sub(vmm.0).saturating_sub(host.0));
        CpuSplit { guest: Some(guest), vmm: Some(vmm), host: Some(host) }
    }
}

/// What was noted of frames, in time.
fn stages(noted: &Noted, ns_per_tick: f64) -> Option<FrameStages> {
    let time = |ticks: &[u64; Stage::ALL.len()]| {
        let spans = Stage::ALL.into_iter().zip(ticks).filter(|(_, ticks)| **ticks > 0);
        spans.map(|(stage, ticks)| (stage, Span((*ticks as f64 * ns_per_tick) as u64))).collect()
    };
    let way = |way: Way| FrameWay { frame: way.frame, bytes: way.bytes, stages: time(&way.ticks) };
    Some(FrameStages {
        noted: noted.count,
        stages: time(&noted.ticks),
        usual: way(noted.usual?),
        slowest: way(noted.slowest?),
    })
}

fn difference(before: Option<Duration>, after: Option<Duration>) -> Option<Duration> {
    after?.checked_sub(before?)
}

#[cfg(test)]
mod tests {
    use toll_protocol::report::FrameCounters;
    use toll_protocol::traffic::stream::{Flow, Stream};
    use toll_protocol::traffic::{Timing, Traffic};
    use toll_protocol::trial::{Direction, Open};

    use super::*;
    use crate::claim::Carried;
    use crate::clock::Timebase;
    use crate::exits::{Cause, Exits};
    use crate::io_thread::IoTicks;
    use crate::kvm::KvmCounts;

    fn snapshot(at: Timebase, millis: u64) -> Snapshot {
        Snapshot {
            at,
            cpu: Some(Duration::from_millis(millis)),
            control_cpu: None,
            io: None,
            asleep_ticks: 0,
            loop_ticks: 0,
            run_delay: None,
            program_ticks: 0,
            model_ticks: 0,
            thread: None,
            io_thread: None,
            port_ticks: 0,
            noted: Default::default(),
            retransmits: 0,
            window_bound_ns: 0,
            frames: FrameCounters::default(),
            spared: None,
            exits: None,
        }
    }

    /// Two flows, received.
    fn job() -> Job {
        Job {
            open: Open::Listen,
            direction: Direction::Receive,
            timing: Timing { warm_up: Span(0), duration: Span::from_millis(3) },
            traffic: Traffic::Stream(Stream { flows: 2, ..Stream::default() }),
        }
    }

    fn recording() -> Recording {
        let start = Timebase::now();
        while start.instant().elapsed() < Duration::from_millis(3) {}
        let end = Timebase::now();
        let interval = end.instant().duration_since(start.instant()).as_nanos() as u64;
        let received = |received| Carried { sent: 0, received };
        let claim = Claim {
            start: received(100),
            end: received(1100),
            flows: vec![400, 600, 0],
            start_ns: 5,
            end_ns: 5 + interval,
        };
        let (created, first_frame) = (start.instant(), Some(end.instant()));
        Recording {
            start: snapshot(start, 0),
            end: snapshot(end, 2),
            claim,
            created,
            first_frame,
            memory: 4096,
        }
    }

    #[test]
    fn a_report_is_of_the_interval_alone() {
        let mut recording = recording();
        recording.start.frames.receive_frames = 7;
        recording.end.frames.receive_frames = 9;
        let report = recording.report(&job(), Vec::new()).expect("good");
        assert_eq!((report.received_bytes, report.interval.0), (1000, recording.claim.end_ns - 5));
        assert_eq!(report.frames.expect("virtual").receive_frames, 2);
        assert_eq!(
            report.threads,
            [ThreadCpu { name: "payload".into(), total: Span::from_millis(2), user: None, system: None }]
        );
        assert!(report.start_to_first_frame.is_some_and(|span| span.0 >= 3_000_000));
    }

    #[test]
    fn each_flow_is_told_with_the_way_it_went() {
        let flow = |sent_bytes, received_bytes| Flow { sent_bytes, received_bytes };
        let flows = |recording: &Recording, job: &Job| {
            let TrafficReport::Stream(report) = recording.report(job, Vec::new()).expect("good").traffic
            else {
                panic!("another kind")
            };
            report.flows
        };
        let mut recording = recording();
        assert_eq!(flows(&recording, &job()), [flow(0, 400), flow(0, 600)]);
        let traffic = Traffic::Stream(Stream { flows: 1, ..Stream::default() });
        let both = Job { direction: Direction::Both, traffic, ..job() };
        (recording.claim.end.sent, recording.claim.end.received) = (600, 500);
        assert_eq!(flows(&recording, &both), [flow(0, 400), flow(600, 0)]);
        (recording.claim.end.sent, recording.claim.end.received) = (400, 700);
        assert_eq!(flows(&recording, &Job { open: Open::Connect, ..both }), [flow(400, 0), flow(0, 600)]);
    }

    #[test]
    fn parts_of_the_cpu_time_add_up_to_it() {
        let mut recording = recording();
        (recording.end.program_ticks, recording.end.model_ticks) = (3_000_000, 1_000_000);
        recording.end.port_ticks = 500_000;
        let CpuSplit { guest: Some(guest), vmm: Some(vmm), host: Some(host) } =
            recording.report(&job(), Vec::new()).expect("good").cpu
        else {
            panic!("all parts are known");
        };
        assert_eq!(guest.0 + vmm.0 + host.0, 2_000_000);
        assert!(guest.0.abs_diff(1_500_000) < 1000 && vmm.0.abs_diff(250_000) < 1000, "{guest} {vmm} {host}");
    }

    #[test]
    fn a_thread_that_waited_for_a_cpu_is_flagged() {
        let mut recording = recording();
        let waited = |recording: &Recording| {
            recording.report(&job(), Vec::new()).expect("good").flags.contains(&Flag::CpuWait)
        };
        recording.end.run_delay = Some(Duration::from_secs(1));
        assert!(!waited(&recording), "unknown at the begin");
        recording.start.run_delay = Some(Duration::from_millis(999));
        assert!(waited(&recording), "1 ms of about 3");
        recording.start.run_delay = recording.end.run_delay;
        assert!(!waited(&recording));
    }

    #[test]
    fn either_thread_of_the_data_path_may_have_been_the_limit() {
        let mut recording = recording();
        let bound = |recording: &Recording| {
            recording.report(&job(), Vec::new()).expect("good").flags.contains(&Flag::CpuBound)
        };
        assert!(!bound(&recording), "2 ms of 3");
        let io = |millis| {
            let ticks = IoTicks { at: Instant::now(), moved: 0, looked: 0, asleep: 0 };
            Some((Some(Duration::from_millis(millis)), ticks))
        };
        (recording.start.io, recording.end.io) = (io(5), io(6));
        assert!(!bound(&recording), "1 ms of 3");
        recording.end.io = io(1000);
        assert!(bound(&recording));
    }

    #[test]
    fn retransmissions_count_inside_the_interval_only() {
        let mut recording = recording();
        let flagged = |recording: &Recording| {
            recording.report(&job(), Vec::new()).expect("good").flags.contains(&Flag::Retransmits)
        };
        (recording.start.retransmits, recording.end.retransmits) = (3, 3);
        assert!(!flagged(&recording));
        recording.end.retransmits = 4;
        assert!(flagged(&recording));
    }

    #[test]
    fn waiting_for_a_window_is_flagged_from_half_of_the_time_that_flows_sent() {
        let mut recording = recording();
        let sent = |sent| Carried { sent, received: 0 };
        (recording.claim.start, recording.claim.end) = (sent(0), sent(1000));
        let sending = Job { direction: Direction::Send, ..job() };
        let flagged = |recording: &Recording| {
            recording.report(&sending, Vec::new()).expect("good").flags.contains(&Flag::WindowBound)
        };
        // Of two flows.
        let half = recording.claim.end_ns - recording.claim.start_ns;
        (recording.start.window_bound_ns, recording.end.window_bound_ns) = (7, 7 + half - 1);
        assert!(!flagged(&recording));
        recording.end.window_bound_ns += 1;
        assert!(flagged(&recording));
    }

    #[test]
    fn impossible_figures_of_a_program_are_refused() {
        let refused = |change: fn(&mut Recording)| {
            let mut recording = recording();
            change(&mut recording);
            recording.report(&job(), Vec::new()).expect_err("refused")
        };
        assert!(matches!(refused(|r| r.claim.end.received = 99), ClaimError::Backwards { .. }));
        assert!(matches!(refused(|r| r.claim.end_ns = 4), ClaimError::Backwards { .. }));
        assert!(matches!(refused(|r| r.claim.end_ns = r.claim.start_ns), ClaimError::Clock { .. }));
        assert!(matches!(refused(|r| r.claim.end_ns = u64::MAX), ClaimError::Clock { .. }));
        assert!(matches!(refused(|r| r.claim.end.received = u64::MAX), ClaimError::Bytes { .. }));
        assert!(matches!(refused(|r| r.claim.flows[0] = 401), ClaimError::Flows { .. }));
        assert!(matches!(refused(|r| r.claim.flows[0] = u64::MAX), ClaimError::Flows { .. }));
    }

    #[test]
    fn a_count_of_exits_that_kvm_does_not_share_is_flagged() {
        let mut recording = recording();
        let kvm = |fpu_reload| KvmCounts { exits: Some(9), fpu_reload: Some(fpu_reload) };
        let mut exits = Exits::default();
        recording.start.exits = Some((exits.clone(), kvm(10)));
        exits.enter(Cause::Wait, 0, 0, 0, 0);
        recording.end.exits = Some((exits.clone(), kvm(11)));
        assert!(
            !recording.report(&job(), Vec::new()).expect("good").flags.contains(&Flag::ExitCountMismatch)
        );
        recording.end.exits = Some((exits, kvm(12)));
        assert!(recording.report(&job(), Vec::new()).expect("good").flags.contains(&Flag::ExitCountMismatch));
    }
}
