//! From results and events to what Prometheus reads.

use std::collections::BTreeMap;

use prometheus::TextEncoder;
use toll_protocol::figure::{CPU_VMM, EXITS_PER_FRAME, GOODPUT};
use toll_protocol::latencies::Recorder;
use toll_protocol::report::Failure;
use toll_protocol::result::{Outcome, Peer, Verdict};
use toll_protocol::traffic::request_response::{Asked, Report};
use toll_protocol::traffic::{TrafficReport, datagram};
use toll_protocol::trial::Direction;
use toll_protocol::units::{BitRate, Bytes, Span};

use super::*;
use crate::summary::summarise;
use crate::test_support;

fn text(metrics: &Metrics) -> String {
    TextEncoder::new().encode_to_string(&metrics.registry().gather()).expect("encodes")
}

/// Series of a family: the labels as written, and the value.
fn series(metrics: &Metrics, family: &str) -> BTreeMap<String, f64> {
    let text = text(metrics);
    let lines = text.lines().filter_map(|line| line.strip_prefix(family)?.rsplit_once(' '));
    lines
        .filter(|(labels, _)| labels.is_empty() || labels.starts_with('{'))
        .map(|(labels, value)| (labels.to_owned(), value.parse().expect("a number")))
        .collect()
}

fn result() -> CampaignResult {
    let (header, records) = test_support::campaign();
    summarise(&header, &records, &test_support::gates()).expect("belongs together")
}

/// Labels of a cell of the synthetic campaign, sorted as they are written.
fn cell(arm: &str, end: &str, direction: Direction, peer: Peer, more: &str) -> String {
    let mut labels = vec![
        r#"a="lab-1""#.to_owned(),
        format!(r#"arm="{arm}""#),
        r#"b="lab-2""#.to_owned(),
        r#"campaign="quickstart""#.to_owned(),
        format!(r#"direction="{direction}""#),
        format!(r#"end="{end}""#),
        format!(r#"peer="{peer}""#),
        r#"workload="bulk""#.to_owned(),
    ];
    labels.extend((!more.is_empty()).then(|| more.to_owned()));
    labels.sort();
    format!("{{{}}}", labels.join(","))
}

#[test]
fn a_cell_is_shown_with_the_figures_of_its_result() {
    let metrics = Metrics::new().expect("registers");
    let result = result();
    metrics.observe_campaign("quickstart-1", &result);
    let key = test_support::key("virtio", Direction::Receive, Peer::Native);
    let found = result.cells.iter().find(|cell| cell.key == key).expect("the cell");
    let ratio = found.to_native(&GOODPUT).expect("a ratio");
    let [lower, upper] = ratio.ci95.expect("an interval");
    let labels = |more: &str| cell("virtio", "guest", Direction::Receive, Peer::Native, more);
    let at = |family: &str, more: &str| series(&metrics, family).get(&labels(more)).copied();
    let goodput = found.estimate(&GOODPUT).expect("goodput");
    assert_eq!(at("toll_cell_goodput_bytes_per_second", ""), Some(goodput.median));
    let limits = goodput.ci95.expect("an interval");
    let goodput_limit = |limit: &str| at("toll_cell_goodput_limit_bytes_per_second", limit);
    assert_eq!(goodput_limit(r#"limit="lower""#), Some(limits[0]));
    assert_eq!(goodput_limit(r#"limit="upper""#), Some(limits[1]));
    assert_eq!(at("toll_cell_toll_ratio", ""), Some(1.0 - ratio.estimate));
    assert_eq!(at("toll_cell_toll_limit_ratio", r#"limit="lower""#), Some(1.0 - upper));
    assert_eq!(at("toll_cell_toll_limit_ratio", r#"limit="upper""#), Some(1.0 - lower));
    assert!(at("toll_cell_toll_limit_ratio", r#"limit="lower""#) < at("toll_cell_toll_ratio", ""));
    assert_eq!(at("toll_cell_exits_per_frame", ""), found.median(&EXITS_PER_FRAME));
    let vmm = found.median(&CPU_VMM).expect("CPU time");
    assert_eq!(at("toll_cell_cpu_seconds_per_byte", r#"part="vmm""#), Some(vmm * 1e-9));
    assert_eq!(at("toll_cell_runs", r#"status="measured""#), Some(f64::from(found.counts.measured)));
}

#[test]
fn what_a_result_does_not_have_is_absent_and_not_0() {
    let metrics = Metrics::new().expect("registers");
    metrics.observe_campaign("quickstart-1", &result());
    // All runs of this cell failed.
    let failed = cell("pcnet", "guest", Direction::Receive, Peer::SameArm, "");
    for family in ["toll_cell_goodput_bytes_per_second", "toll_cell_toll_ratio", "toll_cell_exits_per_frame"]
    {
        assert!(!series(&metrics, family).contains_key(&failed), "{family}");
    }
    let runs = cell("pcnet", "guest", Direction::Receive, Peer::SameArm, r#"status="failed""#);
    assert_eq!(series(&metrics, "toll_cell_runs")[&runs], f64::from(test_support::BLOCKS));
    // Native pays no toll, has no exits, and its CPU time is the host's.
    let native = |more: &str| cell("native", "native", Direction::Send, Peer::Native, more);
    assert!(!series(&metrics, "toll_cell_toll_ratio").contains_key(&native("")));
    let cpu = series(&metrics, "toll_cell_cpu_seconds_per_byte");
    assert!(cpu.contains_key(&native(r#"part="host""#)) && !cpu.contains_key(&native(r#"part="guest""#)));
    // A campaign without a single record has cells and no figures.
    let (header, _) = test_support::campaign();
    let empty = summarise(&header, &[], &[]).expect("belongs together");
    metrics.observe_campaign("quickstart-1", &empty);
    let families: Vec<String> = metrics.registry().gather().iter().map(|f| f.name().to_owned()).collect();
    assert!(!families.iter().any(|name| name.starts_with("toll_cell_") && name != "toll_cell_runs"));
    assert!(!families.contains(&"toll_gate_verdict".to_owned()));
}

#[test]
fn a_gate_has_one_verdict() {
    let metrics = Metrics::new().expect("registers");
    let mut result = result();
    metrics.observe_campaign("quickstart-1", &result);
    let shown = series(&metrics, "toll_gate_verdict");
    let failed: Vec<&String> =
        shown.iter().filter(|(labels, _)| labels.contains(r#""fail""#)).map(|(labels, _)| labels).collect();
    assert_eq!(failed.len() * 3, shown.len());
    let verdicts = |verdict| result.gates.iter().filter(|gate| gate.verdict == verdict).count() as f64;
    for (name, verdict) in
        [("pass", Verdict::Pass), ("fail", Verdict::Fail), ("inconclusive", Verdict::Inconclusive)]
    {
        let label = format!(r#"verdict="{name}""#);
        let sum: f64 =
            shown.iter().filter(|(labels, _)| labels.contains(&label)).map(|(_, figure)| figure).sum();
        assert_eq!(sum, verdicts(verdict), "{name}");
    }
    // A gate on no cell, and one that is asked twice.
    let mut nowhere = result.gates[0].clone();
    (nowhere.cell, nowhere.verdict) = (None, Verdict::Inconclusive);
    result.gates = vec![nowhere.clone(), nowhere];
    metrics.observe_campaign("quickstart-1", &result);
    let shown = series(&metrics, "toll_gate_verdict");
    assert_eq!((shown.len(), shown.values().sum::<f64>()), (3, 1.0));
}

#[test]
fn the_latest_campaign_of_a_name_and_the_latest_names_are_shown() {
    let metrics = Metrics::new().expect("registers");
    let mut result = result();
    let campaigns = |metrics: &Metrics| -> Vec<String> {
        let runs = series(metrics, "toll_cell_runs");
        let name = |labels: &String| Some(labels.split_once("campaign=\"")?.1.split_once('"')?.0.to_owned());
        let names: std::collections::BTreeSet<String> = runs.keys().filter_map(name).collect();
        names.into_iter().collect()
    };
    for n in 0..2 * cells::MOST_CAMPAIGNS as u64 {
        result.campaign = format!("c{n:02}");
        result.provenance.started_unix_ms = n;
        metrics.observe_campaign(&format!("id-{n}"), &result);
    }
    let shown = campaigns(&metrics);
    assert_eq!(shown.len(), cells::MOST_CAMPAIGNS);
    assert_eq!(shown[0], "c10");
    // One of an older start than that shown changes nothing, a later one does.
    result.cells.truncate(1);
    let before = text(&metrics);
    (result.campaign, result.provenance.started_unix_ms) = ("c19".to_owned(), 3);
    metrics.observe_campaign("older", &result);
    assert_eq!(text(&metrics), before);
    result.provenance.started_unix_ms = 30;
    metrics.observe_campaign("later", &result);
    let of_c19 = series(&metrics, "toll_cell_runs").into_keys().filter(|labels| labels.contains("c19"));
    assert_eq!(of_c19.count(), 4);
    metrics.forget_campaign("later");
    assert!(!campaigns(&metrics).contains(&"c19".to_owned()));
}

#[test]
fn a_campaign_of_too_many_cells_is_left_out_and_counted() {
    let metrics = Metrics::new().expect("registers");
    let mut result = result();
    metrics.observe_campaign("small", &result);
    let small = series(&metrics, "toll_cell_runs").len();
    assert_eq!(series(&metrics, "toll_cells_omitted")[""], 0.0);
    let one = result.cells[0].clone();
    let cells = |count: usize| {
        let numbered = |n: usize| {
            let mut cell = one.clone();
            cell.key.workload = format!("w{n}");
            cell
        };
        (0..count).map(numbered).collect::<Vec<_>>()
    };
    result.campaign = "large".to_owned();
    result.cells = cells(cells::MOST_CELLS + 1);
    metrics.observe_campaign("large", &result);
    assert_eq!(series(&metrics, "toll_cell_runs").len(), small);
    assert_eq!(series(&metrics, "toll_cells_omitted")[""], cells::MOST_CELLS as f64 + 1.0);
    // Two that don't fit together: the later one is shown.
    result.cells = cells(cells::MOST_CELLS);
    result.provenance.started_unix_ms += 1;
    metrics.observe_campaign("large", &result);
    assert_eq!(series(&metrics, "toll_cell_runs").len(), cells::MOST_CELLS * 4);
    assert_eq!(series(&metrics, "toll_cells_omitted")[""], small as f64 / 4.0);
}

#[test]
fn states_that_nothing_is_in_are_0_once_they_are_known() {
    let metrics = Metrics::new().expect("registers");
    assert!(series(&metrics, "toll_agents").is_empty(), "nobody has counted yet");
    metrics.agents([(AgentState::Idle, 2), (AgentState::Away, 1), (AgentState::Idle, 1)]);
    let agents = series(&metrics, "toll_agents");
    let of = |state: &str| agents.get(&format!(r#"{{state="{state}"}}"#)).copied();
    let all = (of("idle"), of("busy"), of("away"), of("barred"));
    assert_eq!(all, (Some(3.0), Some(0.0), Some(1.0), Some(0.0)));
    metrics.campaigns([(CampaignState::Running, 1)]);
    assert_eq!(series(&metrics, "toll_campaigns").len(), CampaignState::ALL.len());
    metrics.trials(40, 2);
    assert_eq!(series(&metrics, "toll_trials")[r#"{state="in-flight"}"#], 2.0);
}

/// Something in every family.
fn everything() -> Metrics {
    let metrics = Metrics::new().expect("registers");
    metrics.agents([(AgentState::Busy, 2)]);
    metrics.campaigns([(CampaignState::Running, 1)]);
    metrics.trials(1, 1);
    metrics.left_out([1, 2]);
    metrics.recorded(&Outcome::Failed { host: "h".to_owned(), failure: Failure::new("it broke") });
    metrics.dispatched(Duration::from_micros(700));
    metrics.phase(Phase::Setup, Duration::from_millis(30));
    metrics.ledger_written(Duration::from_millis(2));
    metrics.observe_campaign("quickstart-1", &result());
    metrics.observe_campaign("latency-1", &of_requests());
    metrics.observe_campaign("datagram-1", &of_datagrams());
    metrics
}

/// The same plan, whose ends sent datagrams at the rate that a search found.
fn of_datagrams() -> CampaignResult {
    let (mut header, mut records) = test_support::campaign();
    header.campaign = "datagram".to_owned();
    for record in &mut records {
        if let Outcome::Measured { a, b } = &mut record.outcome {
            for end in [a, b] {
                let delivery =
                    datagram::Delivery { sent: 9, received: 9, jitter: Span(5_000), ..Default::default() };
                let found = datagram::Found { rate: BitRate(1_000_000), trials: 1 };
                let (delivery, found) = (Some(delivery), Some(found));
                end.traffic =
                    TrafficReport::Datagram(datagram::Report { sent: 9, received: 9, delivery, found });
            }
        }
    }
    summarise(&header, &records, &[]).expect("belongs together")
}

/// The same plan, whose ends asked and answered.
fn of_requests() -> CampaignResult {
    let (mut header, mut records) = test_support::campaign();
    header.campaign = "latency".to_owned();
    let mut recorder = Recorder::new().expect("good bounds");
    recorder.record(Duration::from_micros(30));
    let asked = Asked {
        response: Bytes(1),
        latencies: recorder.finish().expect("is written"),
        lost: 0,
        late: 0,
        latest_send: Span(0),
        busy_wait: false,
    };
    for record in &mut records {
        if let Outcome::Measured { a, .. } = &mut record.outcome {
            a.received_bytes = 1;
            a.traffic =
                TrafficReport::RequestResponse(Report { asked: Some(asked.clone()), background: Vec::new() });
        }
    }
    summarise(&header, &records, &[]).expect("belongs together")
}

#[test]
fn times_are_counted_in_seconds() {
    let metrics = everything();
    assert_eq!(series(&metrics, "toll_trials_ended_total")[r#"{outcome="failed"}"#], 1.0);
    assert_eq!(series(&metrics, "toll_dispatch_seconds_bucket")[r#"{le="0.0005"}"#], 0.0);
    assert_eq!(series(&metrics, "toll_dispatch_seconds_bucket")[r#"{le="0.001"}"#], 1.0);
    assert_eq!(series(&metrics, "toll_trial_phase_seconds_sum")[r#"{phase="setup"}"#], 0.03);
    assert_eq!(series(&metrics, "toll_ledger_write_seconds_sum")[""], 0.002);
}

#[test]
fn every_family_is_written_with_the_type_and_help_that_it_documents() {
    let metrics = everything();
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
