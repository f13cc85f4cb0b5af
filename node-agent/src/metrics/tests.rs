//! From what a trial does to what Prometheus reads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prometheus::TextEncoder;
use toll_protocol::report::{
    CpuSplit, ExitReport, ExitStat, Failure, FrameCounters, Part, Spared, ThreadTime,
};
use toll_protocol::traffic::TrafficReport;
use toll_protocol::trial::{NativeProgram, PcnetSwitches, Port};
use toll_protocol::units::Span;

use super::*;

const GUEST: EndKind = EndKind::behind(Engine::Payload, Adapter::Pcnet(PcnetSwitches::OFF), Port::Tap);
const NATIVE: EndKind = EndKind::Native { program: NativeProgram::Endpoint };

fn text(metrics: &Metrics) -> String {
    TextEncoder::new().encode_to_string(&metrics.registry().gather()).expect("encodes")
}

/// The value of a series, as the exposition writes both.
fn value(metrics: &Metrics, series: &str) -> Option<f64> {
    let text = text(metrics);
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().expect("a number"))
}

fn measured(metrics: &Metrics, kind: &EndKind, direction: Direction, report: &EndReport) {
    metrics.trial(kind, direction).sees(&Command::Conclude(Ok(Box::new(report.clone()))));
}

fn report(bytes: u64, frames: Option<FrameCounters>, exits: &[(&str, u64, u64)]) -> EndReport {
    let by_cause = exits
        .iter()
        .map(|(cause, count, handling)| {
            ((*cause).to_owned(), ExitStat { count: *count, handling: Span(*handling) })
        })
        .collect();
    let exits = (!exits.is_empty()).then_some(ExitReport { by_cause, ..ExitReport::default() });
    EndReport {
        sent_bytes: bytes,
        received_bytes: bytes,
        cpu: CpuSplit { guest: None, vmm: Some(Span::from_millis(250)), host: Some(Span::from_millis(500)) },
        exits,
        frames,
        ..EndReport::new(TrafficReport::Stream(Default::default()), Span::from_millis(2_000))
    }
}

#[test]
fn bytes_of_a_sender_are_transmit() {
    let metrics = Metrics::new().expect("registers");
    // A sender transmits data frames and receives acknowledgements, fewer and small.
    let frames = FrameCounters {
        transmit_frames: 700,
        transmit_bytes: 1_059_800,
        transmit_drops: 3,
        receive_frames: 350,
        receive_bytes: 18_900,
        receive_drops: 1,
        ..FrameCounters::default()
    };
    measured(&metrics, &GUEST, Direction::Send, &report(1_000_000, Some(frames), &[]));
    measured(&metrics, &NATIVE, Direction::Receive, &report(999_000, None, &[]));
    let of = |name: &str, labels: &str| value(&metrics, &format!("toll_agent_{name}_total{{{labels}}}"));
    let guest = |direction: &str| format!(r#"adapter="pcnet",direction="{direction}",end="guest""#);
    let native = |direction: &str| format!(r#"adapter="host-nic",direction="{direction}",end="native""#);
    assert_eq!(of("payload_bytes", &guest("transmit")), Some(1e6));
    assert_eq!(of("payload_bytes", &guest("receive")), Some(0.0));
    assert_eq!(of("frames", &guest("transmit")), Some(700.0));
    assert_eq!(of("frames", &guest("receive")), Some(350.0));
    assert_eq!(of("frame_bytes", &guest("transmit")), Some(1_059_800.0));
    assert_eq!(of("frame_bytes", &guest("receive")), Some(18_900.0));
    assert_eq!(of("dropped_frames", &guest("transmit")), Some(3.0));
    assert_eq!(of("dropped_frames", &guest("receive")), Some(1.0));
    assert_eq!(of("payload_bytes", &native("receive")), Some(999_000.0));
    assert_eq!(of("payload_bytes", &native("transmit")), Some(0.0));
    assert_eq!(of("measured_seconds", &native("receive")), Some(2.0));
    // No figure is made up for the frames of a native end, whose NIC others use too.
    assert_eq!(of("frames", &native("receive")), None);
}

#[test]
fn what_was_spared_and_what_threads_did_is_added_by_kind() {
    let metrics = Metrics::new().expect("registers");
    let frames = FrameCounters { receive_filtered: 4, ..FrameCounters::default() };
    let mut spared = report(1, Some(frames), &[]);
    spared.spared = Some(Spared { exits: 70, combined: [5, 0, 3, 0, 0, 1], looks: 9 });
    let parts = [(Part::Guest, Span::from_millis(1_500)), (Part::Wait, Span::from_millis(500))].into();
    spared.times = vec![ThreadTime { name: "vcpu0".to_owned(), interval: Span::from_millis(2_000), parts }];
    measured(&metrics, &GUEST, Direction::Send, &spared);
    measured(&metrics, &GUEST, Direction::Send, &spared);
    let of = |family: &str, more: &str| {
        value(&metrics, &format!(r#"toll_agent_{family}_total{{adapter="pcnet",end="guest"{more}}}"#))
    };
    assert_eq!(of("spared", r#",what="exits""#), Some(140.0));
    assert_eq!(of("spared", r#",what="looks""#), Some(18.0));
    let together = r#"toll_agent_combined_transmissions_total{adapter="pcnet",end="guest",frames="#;
    let of_frames = |frames: &str| value(&metrics, &format!("{together}\"{frames}\"}}"));
    assert_eq!(["1", "2", "3", "16+"].map(of_frames), [Some(10.0), Some(0.0), Some(6.0), Some(2.0)]);
    assert_eq!(of("filtered_frames", ""), Some(8.0));
    assert_eq!(of("thread_time_seconds", r#",part="guest",thread="vcpu0""#), Some(3.0));
    assert_eq!(of("thread_time_seconds", r#",part="adapter",thread="vcpu0""#), None);
}

#[test]
fn exits_and_cpu_are_added_in_seconds_and_what_is_not_known_is_not() {
    let metrics = Metrics::new().expect("registers");
    let twice = report(1, None, &[("pio-write rap", 12, 3_000), ("wait", 1, 500_000_000)]);
    measured(&metrics, &GUEST, Direction::Send, &twice);
    measured(&metrics, &GUEST, Direction::Send, &twice);
    let exits = r#"{adapter="pcnet",cause="pio-write rap"}"#;
    assert_eq!(value(&metrics, &format!("toll_agent_exits_total{exits}")), Some(24.0));
    let seconds = value(&metrics, &format!("toll_agent_exit_handling_seconds_total{exits}"));
    assert!((seconds.expect("a series") - 6e-6).abs() < 1e-12, "{seconds:?}");
    let cpu = |part: &str| {
        let labels = format!(r#"{{adapter="pcnet",end="guest",part="{part}"}}"#);
        value(&metrics, &format!("toll_agent_cpu_seconds_total{labels}"))
    };
    assert_eq!((cpu("vmm"), cpu("host"), cpu("guest")), (Some(0.5), Some(1.0), None));
}

#[test]
fn cpu_time_that_was_not_measured_is_neither_0_nor_divided_by() {
    let metrics = Metrics::new().expect("registers");
    let of = |name: &str| {
        let labels = r#"{adapter="host-nic",end="native",part="host"}"#;
        value(&metrics, &format!("toll_agent_{name}_total{labels}"))
    };
    // As iperf3 reports: bytes, and nothing of CPUs.
    let unknown = EndReport { cpu: CpuSplit::default(), ..report(1_000, None, &[]) };
    measured(&metrics, &NATIVE, Direction::Send, &unknown);
    assert_eq!((of("cpu_seconds"), of("cpu_measured_seconds")), (None, None));
    measured(&metrics, &NATIVE, Direction::Send, &report(1_000, None, &[]));
    measured(&metrics, &NATIVE, Direction::Send, &unknown);
    assert_eq!((of("cpu_seconds"), of("cpu_measured_seconds")), (Some(0.5), Some(2.0)));
    let all = r#"toll_agent_measured_seconds_total{adapter="host-nic",direction="transmit",end="native"}"#;
    assert_eq!(value(&metrics, all), Some(6.0));
}

#[test]
fn a_known_cause_begins_with_0_so_that_an_increase_has_the_first_trial() {
    let metrics = Metrics::new().expect("registers");
    for family in ["toll_agent_exits_total", "toll_agent_exit_handling_seconds_total"] {
        for cause in ["wait", "mmio-write queue-notify", "other"] {
            let series = format!(r#"{family}{{adapter="virtio-net",cause="{cause}"}}"#);
            assert_eq!(value(&metrics, &series), Some(0.0), "{series}");
        }
    }
}

#[test]
fn a_child_that_invents_causes_gets_a_bound_of_series() {
    let metrics = Metrics::new().expect("registers");
    for n in 0..1_000 {
        let cause = format!("invented {n}");
        measured(&metrics, &GUEST, Direction::Send, &report(1, None, &[(&cause, 1, 1)]));
    }
    let long = "x".repeat(LONGEST_CAUSE + 1);
    measured(&metrics, &GUEST, Direction::Send, &report(1, None, &[(&long, 1, 1)]));
    let text = text(&metrics);
    let series = text.lines().filter(|line| line.starts_with("toll_agent_exits_total{")).count();
    let known: BTreeSet<&str> = families::CAUSES.iter().flat_map(|(_, causes)| *causes).copied().collect();
    let begun: usize = families::CAUSES.iter().map(|(_, causes)| causes.len() + 1).sum();
    let invented = MOST_CAUSES - known.len();
    assert_eq!(series, begun + invented);
    let other = value(&metrics, r#"toll_agent_exits_total{adapter="pcnet",cause="other"}"#);
    assert_eq!(other, Some(1_001.0 - invented as f64));
    // Known ones are still counted under their names.
    measured(&metrics, &GUEST, Direction::Send, &report(1, None, &[("invented 0", 5, 1)]));
    let first = value(&metrics, r#"toll_agent_exits_total{adapter="pcnet",cause="invented 0"}"#);
    assert_eq!(first, Some(6.0));
}

fn running() -> State {
    let address = std::net::SocketAddrV4::new([10, 0, 0, 1].into(), 5201);
    State::Running { ready: toll_protocol::trial::EndReady { address } }
}

fn sample(milliseconds: u64, bytes: u64) -> Command {
    Command::SendSample(Sample {
        at: Span::from_millis(milliseconds),
        sent_bytes: bytes,
        received_bytes: bytes,
    })
}

const GOODPUT: &str =
    r#"toll_agent_goodput_bytes_per_second{adapter="host-nic",direction="transmit",end="native"}"#;

fn trials(metrics: &Metrics, state: &str) -> Option<f64> {
    value(metrics, &format!(r#"toll_agent_trials{{state="{state}"}}"#))
}

fn ended(metrics: &Metrics, outcome: &str) -> Option<f64> {
    value(metrics, &format!(r#"toll_agent_trials_ended_total{{outcome="{outcome}"}}"#))
}

#[test]
fn goodput_is_that_of_the_last_second_and_absent_when_nothing_runs() {
    let metrics = Metrics::new().expect("registers");
    assert_eq!(value(&metrics, GOODPUT), None);
    let mut watch = metrics.trial(&NATIVE, Direction::Send);
    watch.enters(&State::SettingUp { run: Duration::ZERO });
    assert_eq!(trials(&metrics, "setting-up"), Some(1.0));
    watch.enters(&running());
    assert_eq!((trials(&metrics, "setting-up"), trials(&metrics, "running")), (Some(0.0), Some(1.0)));
    assert_eq!(value(&metrics, GOODPUT), None, "nothing is measured yet");
    watch.sees(&sample(100, 50));
    assert_eq!(value(&metrics, GOODPUT), Some(500.0));
    // 1000 bytes every 100 ms from now on: after a second nothing else is seen.
    for n in 1..=WINDOW as u64 {
        watch.sees(&sample(100 + n * 100, 50 + n * 1_000));
    }
    assert_eq!(value(&metrics, GOODPUT), Some(10_000.0));
    // A clock that goes back says nothing.
    watch.sees(&sample(1, 0));
    assert_eq!(value(&metrics, GOODPUT), Some(10_000.0));
    watch.sees(&Command::Conclude(Ok(Box::new(report(7, None, &[])))));
    watch.enters(&State::Released { leftovers: Vec::new() });
    assert_eq!(value(&metrics, GOODPUT), None);
    assert_eq!(ended(&metrics, "measured"), Some(1.0));
    drop(watch);
    assert_eq!(trials(&metrics, "released"), Some(0.0));
    assert_eq!((ended(&metrics, "failed"), ended(&metrics, "abandoned")), (Some(0.0), Some(0.0)));
}

#[test]
fn a_trial_whose_task_dies_leaves_no_gauge_behind() {
    let metrics = Metrics::new().expect("registers");
    let mut watch = metrics.trial(&NATIVE, Direction::Send);
    watch.enters(&running());
    watch.sees(&sample(100, 50));
    drop(watch);
    assert_eq!((value(&metrics, GOODPUT), trials(&metrics, "running")), (None, Some(0.0)));
    assert_eq!(ended(&metrics, "abandoned"), Some(1.0));
    let mut refused = metrics.trial(&GUEST, Direction::Send);
    refused.sees(&Command::Conclude(Err(Failure::new("no KVM"))));
    drop(refused);
    assert_eq!((ended(&metrics, "failed"), ended(&metrics, "abandoned")), (Some(1.0), Some(1.0)));
}

#[test]
fn the_first_connection_is_no_reconnection() {
    let metrics = Metrics::new().expect("registers");
    let now = |metrics: &Metrics| {
        (value(metrics, "toll_agent_connected"), value(metrics, "toll_agent_reconnects_total"))
    };
    assert_eq!(now(&metrics), (Some(0.0), Some(0.0)));
    metrics.connected();
    assert_eq!(now(&metrics), (Some(1.0), Some(0.0)));
    metrics.lost();
    metrics.clone().connected();
    assert_eq!(now(&metrics), (Some(1.0), Some(1.0)));
}

#[test]
fn every_family_is_written_with_the_type_and_help_that_it_documents() {
    let metrics = Metrics::new().expect("registers");
    let mut watch = metrics.trial(&NATIVE, Direction::Send);
    watch.enters(&running());
    watch.sees(&sample(100, 50));
    let mut guest = report(1, None, &[("wait", 1, 1)]);
    let parts = [(Part::Wait, Span::from_millis(2_000))].into();
    guest.times = vec![ThreadTime { name: "vcpu0".to_owned(), interval: Span::from_millis(2_000), parts }];
    measured(&metrics, &GUEST, Direction::Send, &guest);
    let written: BTreeMap<String, (String, String)> = metrics
        .registry()
        .gather()
        .iter()
        .map(|family| {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            (family.name().to_owned(), (kind, family.help().to_owned()))
        })
        .collect();
    let documented = metrics
        .families()
        .iter()
        .map(|family| (family.name.to_owned(), (family.kind.to_string(), family.help.to_owned())))
        .collect();
    assert_eq!(written, documented);
}
