use toll_protocol::report::Sample;
use toll_protocol::traffic::stream;

use super::*;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A second, over which the path carries a byte a millisecond until it stands still at `until`.
fn measured(direction: Direction, until: u64) -> Meter {
    let mut meter = Meter::new(direction.into(), ms(0), ms(1_000));
    meter.first_byte(ms(0));
    for step in 0..=10 {
        let (at, received_bytes) = (step * 100, (step * 100).min(until));
        meter.read(Reading { at: ms(at), sent_bytes: 0, received_bytes: 77 + received_bytes });
    }
    meter
}

fn thread(cpu: u64, run_delay: Option<u64>) -> ThreadCosts {
    let (name, run_delay) = ("traffic".to_owned(), run_delay.map(ms));
    ThreadCosts { name, cpu: Some(ms(cpu)), times: None, run_delay }
}

fn costs(threads: Vec<ThreadCosts>, retransmits: u64) -> Costs {
    Costs { threads, retransmits: Some(retransmits), ..Costs::default() }
}

fn of(direction: Direction, until: u64, costs: [Costs; 2]) -> EndReport {
    let traffic = TrafficReport::Stream(stream::Report::default());
    let mut report =
        report(measured(direction, until), costs, direction.receives(), traffic).expect("is over");
    report.flags.retain(|flag| *flag != Flag::DebugBuild);
    report
}

fn flags(direction: Direction, until: u64, costs: [Costs; 2]) -> Vec<Flag> {
    of(direction, until, costs).flags
}

#[test]
fn figures_cover_the_interval_only_and_what_is_unknown_is_absent() {
    let after = Costs { control: Some(ms(1)), ..costs(vec![thread(405, None)], 3) };
    let report = of(Direction::Receive, 1_000, [costs(vec![thread(5, None)], 3), after]);
    assert_eq!((report.sent_bytes, report.received_bytes), (0, 1_000));
    assert_eq!(report.interval.duration(), Duration::from_secs(1));
    assert_eq!(report.cpu.host.map(|cpu| cpu.duration()), Some(ms(400)));
    assert_eq!(report.threads.len(), 1, "the control thread's time at the begin is unknown");
    assert_eq!(
        report.samples.last(),
        Some(&Sample { at: Span::from_millis(1_000), sent_bytes: 0, received_bytes: 1_000 })
    );
    assert_eq!(report.flags, []);
}

#[test]
fn the_cost_of_an_end_is_that_of_all_its_threads() {
    let threads = |cpus: [u64; 2]| cpus.map(|cpu| thread(cpu, None)).to_vec();
    let report = of(Direction::Send, 1_000, [costs(threads([5, 10]), 0), costs(threads([305, 960]), 0)]);
    assert_eq!(report.cpu.host.map(|cpu| cpu.duration()), Some(ms(1_250)));
    assert_eq!(report.threads.len(), 2);
    // No single one was busy over 95 % of the interval, and then one is.
    assert_eq!(report.flags, []);
    let busy = flags(Direction::Send, 1_000, [costs(threads([5, 10]), 0), costs(threads([6, 961]), 0)]);
    assert_eq!(busy, [Flag::CpuBound]);
}

#[test]
fn competition_for_the_cpu_is_flagged_and_what_is_unknown_is_no_statement() {
    let at = |delay: Option<u64>, steal: u64| Costs {
        host: HostCpu::parse(&format!("cpu  {} 0 0 0 0 0 0 {steal}", 1_000 + steal * 9)),
        ..costs(vec![thread(0, Some(0)), thread(0, delay)], 0)
    };
    let flags = |costs| flags(Direction::Receive, 1_000, costs);
    assert_eq!(flags([at(Some(900), 7), at(Some(950), 7)]), []);
    assert_eq!(flags([at(Some(900), 7), at(Some(951), 7)]), [Flag::CpuWait]);
    assert_eq!(flags([at(Some(900), 7), at(Some(950), 9)]), [Flag::Steal]);
    assert_eq!(flags([at(None, 7), at(Some(951), 7)]), []);
    assert_eq!(flags([Costs::default(), at(Some(951), 90)]), []);
}

#[test]
fn a_standstill_is_the_receivers_to_tell() {
    let unknown = || [Costs::default(), Costs::default()];
    assert_eq!(flags(Direction::Receive, 750, unknown()), [Flag::Stalled]);
    assert_eq!(flags(Direction::Receive, 850, unknown()), []);
    assert_eq!(flags(Direction::Send, 750, unknown()), []);
    assert_eq!(flags(Direction::Both, 750, unknown()), [Flag::Stalled]);
}

#[test]
fn retransmissions_of_the_interval_are_flagged() {
    let none = || vec![thread(0, None)];
    assert_eq!(flags(Direction::Send, 1_000, [costs(none(), 3), costs(none(), 3)]), []);
    assert_eq!(flags(Direction::Send, 1_000, [costs(none(), 3), costs(none(), 4)]), [Flag::Retransmits]);
}

#[test]
fn a_window_that_most_of_the_interval_was_waited_for_is_flagged_unless_there_is_a_queue() {
    let wait = |millis, without_queue| Some(WindowWait { waited: ms(millis), without_queue });
    let costs = |window_waits| Costs { window_waits, ..Costs::default() };
    let flags = |before, after| flags(Direction::Send, 1_000, [costs(before), costs(after)]);
    assert_eq!(flags(vec![wait(100, true)], vec![wait(600, true)]), [Flag::WindowBound]);
    assert_eq!(flags(vec![wait(100, true)], vec![wait(599, true)]), []);
    assert_eq!(flags(vec![wait(100, true)], vec![wait(1_100, false)]), []);
    // Of two flows one is not most.
    let one_of_two = flags(vec![wait(0, true); 2], vec![wait(999, true), wait(0, true)]);
    assert_eq!(one_of_two, []);
    assert_eq!(flags(vec![wait(0, true); 2], vec![wait(999, true), wait(2, true)]), [Flag::WindowBound]);
    assert_eq!(flags(vec![None], vec![None]), []);
}
