//! A real Prometheus scrapes a real fleet while a campaign runs on it: everything that dashboards and rules ask has an
//! answer, and what they show is what was measured.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::campaigns::{NATIVE, PCNET, SAME_STACK, VIRTIO, fleet_campaign};
use toll_e2e::fleet::{Fleet, no_fleet};
use toll_e2e::machine::{no_kvm, no_tun, wait_for};
use toll_e2e::prometheus::{Prometheus, get, lacking, promtool};
use toll_e2e::suite::test;
use toll_protocol::figure::{EXITS_PER_FRAME, GOODPUT};
use toll_protocol::report::EndReport;
use toll_protocol::result::{CampaignResult, Peer, RunStatus};
use toll_protocol::trial::{Direction, EndKind};

use crate::questions;

/// For a campaign of 30 trials of a second, on a machine that others use too.
const LIMIT: Duration = Duration::from_secs(240);

pub fn tests() -> Vec<Trial> {
    let lacks = [lacking(), no_fleet(), no_kvm(), no_tun()];
    vec![test("every_query_of_every_panel_and_rule_returns_data_while_a_campaign_runs", &lacks, everything)]
}

/// Where the orchestrator of a fleet answers HTTP.
const HTTP: &str = "127.0.0.1:8080";

fn everything() -> Result<()> {
    let mut fleet = Fleet::new(2)?;
    fleet.start_orchestrator(&[])?;
    let mut agents = Vec::new();
    for index in 0..2 {
        let address = format!("10.91.0.{}:8081", index + 1);
        fleet.start_agent(index, &["--http", &address])?;
        agents.push((fleet.hosts[index].name.clone(), address));
    }
    fleet.wait_for_agents(2)?;
    observed(&fleet, &agents).with_context(|| fleet.logs())
}

fn observed(fleet: &Fleet, agents: &[(String, String)]) -> Result<()> {
    let folder = fleet.path("prometheus");
    std::fs::create_dir(&folder)?;
    questions::configure(&folder, HTTP, agents)?;
    let wire = fleet.wire_path();
    let prometheus = Prometheus::start(&folder, &wire)?;
    let began = questions::now();

    // One gate that holds and one that can't: pcnet exits 12 times a frame.
    let gates = "gates:\n    - {cells: {arm: native}, goodput: {atLeast: 1Mbit}}\n    \
                 - {cells: {arm: pcnet}, toll: {atMost: 1%}}\n";
    let id = &fleet.submit(&fleet_campaign(&[NATIVE, SAME_STACK, PCNET, VIRTIO], 3, "1s", gates))?;

    let asked = questions::all_answered(&prometheus, "test", began, LIMIT)?;
    ensure!(asked > 80, "{asked} questions only");
    let (result, _) = fleet.result(id, LIMIT)?;
    let runs = result.cells.iter().flat_map(|cell| &cell.runs);
    for run in runs {
        ensure!(run.status == RunStatus::Measured, "{:?} {:?}", run.status, run.reason);
    }
    counters_are_the_result(&prometheus, &result)?;
    exits_are_the_result(&prometheus, &result)?;
    a_senders_bytes_are_transmit(&prometheus, &result)?;
    cells_are_the_result(&prometheus, &result)?;
    let failed = r#"ALERTS{alertname="TollGateFailed", alertstate="firing"}"#;
    let alerts = wait_for("the alert of the gate", Duration::from_secs(20), || {
        let alerts = prometheus.instant(failed)?;
        Ok((!alerts.is_empty()).then_some(alerts))
    })?;
    ensure!(alerts.iter().all(|(labels, _)| labels["arm"] == "pcnet"), "{alerts:?}");

    for address in std::iter::once(HTTP).chain(agents.iter().map(|(_, at)| at.as_str())) {
        let exposition = get(&wire, &format!("http://{address}/metrics"), &[])?;
        promtool(&folder, &["check", "metrics"], &exposition).with_context(|| address.to_owned())?;
        // No trial's id, whatever its label would be called.
        let ids = result.cells.iter().flat_map(|cell| &cell.runs).map(|run| run.trial.to_string());
        for trial in ids {
            ensure!(!exposition.contains(&trial), "{address} tells of trial {trial}");
        }
    }
    Ok(())
}

/// What agents should have counted: by family, host, end, adapter and direction.
type Counts = BTreeMap<(&'static str, String, String, String, String), u64>;

fn expected(result: &CampaignResult) -> Result<Counts> {
    let mut counts = Counts::new();
    for cell in &result.cells {
        let arm = result.arms.iter().find(|arm| arm.name == cell.key.arm).context("the arm")?;
        let native = result.arms.iter().find(|arm| arm.baseline).context("the native arm")?;
        let peer = if cell.key.peer == Peer::Native { native } else { arm };
        let (pair, direction) = (&cell.key.pair, cell.key.direction);
        for run in &cell.runs {
            for (host, kind, direction, report) in
                [(&pair.a, &arm.kind, direction, &run.a), (&pair.b, &peer.kind, direction.opposite(), &run.b)]
            {
                count(&mut counts, host, kind, direction, report.as_ref().context("a report")?);
            }
        }
    }
    Ok(counts)
}

fn count(counts: &mut Counts, host: &str, kind: &EndKind, direction: Direction, report: &EndReport) {
    let (end, adapter) = (kind.label(), kind.adapter_label());
    let mut add = |family, direction: &str, by: u64| {
        let key = (family, host.to_owned(), end.to_owned(), adapter.clone(), direction.to_owned());
        *counts.entry(key).or_default() += by;
    };
    let payload = if direction == Direction::Send { "transmit" } else { "receive" };
    add("toll_agent_payload_bytes_total", payload, report.bytes());
    if let Some(frames) = report.frames {
        add("toll_agent_frames_total", "transmit", frames.transmit_frames);
        add("toll_agent_frames_total", "receive", frames.receive_frames);
        add("toll_agent_frame_bytes_total", "transmit", frames.transmit_bytes);
        add("toll_agent_frame_bytes_total", "receive", frames.receive_bytes);
        add("toll_agent_dropped_frames_total", "transmit", frames.transmit_drops);
        add("toll_agent_dropped_frames_total", "receive", frames.receive_drops);
    }
}

/// Every counter of bytes and frames is, to the last one, the sum over the runs of the result.
fn counters_are_the_result(prometheus: &Prometheus, result: &CampaignResult) -> Result<()> {
    let expected = expected(result)?;
    ensure!(expected.len() > 20, "{} counters only", expected.len());
    for ((family, host, end, adapter, direction), count) in expected {
        let labels = format!(
            r#"{family}{{instance="{host}", end="{end}", adapter="{adapter}", direction="{direction}"}}"#
        );
        let scraped = wait_for(&format!("{labels} of {count}"), Duration::from_secs(15), || {
            let found = prometheus.instant(&labels)?;
            Ok(found.iter().any(|(_, value)| *value == count as f64).then_some(()))
        });
        scraped.with_context(|| format!("it is {:?}", prometheus.instant(&labels).ok()))?;
    }
    Ok(())
}

/// Exits by cause, as the increase of their counters, which misses what a series is born with: the names of causes
/// that an agent begins with are those of its guests.
fn exits_are_the_result(prometheus: &Prometheus, result: &CampaignResult) -> Result<()> {
    let mut expected: BTreeMap<(String, String), u64> = BTreeMap::new();
    for cell in &result.cells {
        let kind = &result.arms.iter().find(|arm| arm.name == cell.key.arm).context("the arm")?.kind;
        let Some(adapter) = kind.nic().filter(|_| kind.is_guest()).map(|nic| &nic.adapter) else { continue };
        let reports = cell.runs.iter().flat_map(|run| [&run.a, &run.b]).flatten();
        for (cause, stat) in reports.filter_map(|end| end.exits.as_ref()).flat_map(|exits| &exits.by_cause) {
            *expected.entry((adapter.to_string(), cause.clone())).or_default() += stat.count;
        }
    }
    ensure!(expected.len() > 6, "{expected:?}");
    for ((adapter, cause), count) in expected {
        let series = format!(r#"toll_agent_exits_total{{adapter="{adapter}", cause="{cause}"}}"#);
        let born = prometheus.instant(&format!("min(min_over_time({series}[1h]))"))?;
        ensure!(born.first().is_some_and(|(_, least)| *least == 0.0), "{series} began with {born:?}");
        let sum = format!("sum({series})");
        let scraped = wait_for(&format!("{sum} of {count}"), Duration::from_secs(15), || {
            let found = prometheus.instant(&sum)?;
            Ok(found.first().is_some_and(|(_, value)| *value == count as f64).then_some(()))
        });
        scraped.with_context(|| format!("it is {:?}", prometheus.instant(&sum).ok()))?;
    }
    Ok(())
}

/// Of frames of a campaign that sends as much as it receives nobody could tell: of a run in which the guest sends, the
/// bytes transmitted hold the payload and the bytes received are the acknowledgements. What is shown is their sum.
fn a_senders_bytes_are_transmit(prometheus: &Prometheus, result: &CampaignResult) -> Result<()> {
    let mut senders = 0;
    for cell in result.cells.iter().filter(|cell| cell.key.direction == Direction::Send) {
        for run in &cell.runs {
            let a = run.a.as_ref().context("a report")?;
            let Some(frames) = a.frames else { continue };
            let (transmitted, received) = (frames.transmit_bytes, frames.receive_bytes);
            ensure!(
                transmitted as f64 > 0.9 * a.bytes() as f64 && received < transmitted / 4,
                "{:?}: {} bytes sent, {transmitted} transmitted, {received} received",
                cell.key,
                a.bytes()
            );
            senders += 1;
        }
    }
    ensure!(senders > 0, "no guest has sent");
    // The hosts of a pair: what one end transmits the other receives, but for what is under way at the edges.
    let sum = |direction: &str| -> Result<f64> {
        let query = format!(r#"sum(toll_agent_payload_bytes_total{{direction="{direction}"}})"#);
        Ok(prometheus.instant(&query)?.first().context("a sum")?.1)
    };
    let (transmit, receive) = (sum("transmit")?, sum("receive")?);
    ensure!((0.8..1.25).contains(&(transmit / receive)), "{transmit} transmitted, {receive} received");
    Ok(())
}

/// Goodput and toll of each cell are those of the result.
fn cells_are_the_result(prometheus: &Prometheus, result: &CampaignResult) -> Result<()> {
    for cell in &result.cells {
        let key = &cell.key;
        let labels = format!(
            r#"{{campaign="{}", a="{}", b="{}", workload="{}", direction="{}", arm="{}", peer="{}"}}"#,
            result.campaign, key.pair.a, key.pair.b, key.workload, key.direction, key.arm, key.peer
        );
        let toll = cell.to_native(&GOODPUT).map(|ratio| 1.0 - ratio.estimate);
        for (family, figure) in [
            ("toll_cell_goodput_bytes_per_second", cell.median(&GOODPUT)),
            ("toll_cell_toll_ratio", toll),
            ("toll_cell_exits_per_frame", cell.median(&EXITS_PER_FRAME)),
        ] {
            let query = format!("{family}{labels}");
            let same = wait_for(&format!("{query} of {figure:?}"), Duration::from_secs(15), || {
                let shown = prometheus.instant(&query)?.first().map(|(_, value)| *value);
                Ok((shown == figure).then_some(()))
            });
            same.with_context(|| format!("it is {:?}", prometheus.instant(&query).ok()))?;
        }
    }
    Ok(())
}
