//! Flags of runs that something disturbed: real processes, really disturbed.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{End, config, fail, pair};
use toll_protocol::child::ChildEvent;
use toll_protocol::report::Flag;
use toll_protocol::trial::{Direction, Open};
use toll_protocol::units::Span;

/// 0 is the calling thread.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// Both ends of the pair have work for the whole interval, and a loop wants their CPU too.
#[test]
fn a_busy_loop_on_the_same_cpu_is_flagged() {
    let allowed = sched_getaffinity(THIS_THREAD).expect("a set of CPUs");
    let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).expect("a CPU");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut set = CpuSet::new();
            set.set(cpu).and_then(|()| sched_setaffinity(THIS_THREAD, &set)).expect("pinned");
            while !done.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let mut sender = config(Direction::Send, Open::Connect, 65_536);
        let mut receiver = config(Direction::Receive, Open::Listen, 65_536);
        (sender.cpu, receiver.cpu) = (u32::try_from(cpu).ok(), u32::try_from(cpu).ok());
        let reports = std::panic::catch_unwind(|| pair(receiver, sender));
        done.store(true, Ordering::Relaxed);
        let (received, sent) = reports.unwrap_or_else(|_| fail("the ends gave no reports"));
        for report in [received, sent] {
            assert!(report.flags.contains(&Flag::CpuWait), "{report:?}");
        }
    });
}

/// The receiver of a stream whose sender is stopped, by SIGSTOP, from its second sample on for four more.
#[test]
fn a_sender_that_is_stopped_for_a_while_is_flagged_at_the_receiver() {
    let mut receiver = config(Direction::Receive, Open::Listen, 65_536);
    let mut sender = config(Direction::Send, Open::Connect, 65_536);
    (receiver.job.timing.duration, sender.job.timing.duration) =
        (Span::from_millis(1_200), Span::from_millis(1_200));
    let (mut receiver, mut sender) = (End::configured(receiver), End::configured(sender));
    let (address, nowhere) = (receiver.ready(), sender.ready());
    receiver.start(nowhere);
    sender.start(address);
    let process = Pid::from_raw(i32::try_from(sender.process.id()).expect("a process id"));
    samples_until(&mut receiver, 2);
    kill(process, Signal::SIGSTOP).expect("stopped");
    samples_until(&mut receiver, 6);
    kill(process, Signal::SIGCONT).expect("continued");
    let report = receiver.report();
    assert!(report.flags.contains(&Flag::Stalled), "{report:?}");
    assert!(report.bytes() > 0 && !sender.report().flags.contains(&Flag::Stalled));
}

fn samples_until(end: &mut End, count: usize) {
    while end.samples.len() < count {
        match end.event() {
            Some(ChildEvent::Sample(sample)) => end.samples.push(sample),
            other => fail(&format!("samples were due, and {other:?} came")),
        }
    }
}
