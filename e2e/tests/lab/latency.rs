//! Campaigns of requests and responses: transactions, their latency, and what a stream beside them does to it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::programs::{self, expect};
use toll_e2e::suite::test;
use toll_protocol::figure::{
    CPU_PER_TRANSACTION, GOODPUT, LATENCY_MAX, LATENCY_P50, LATENCY_P99, LOST_TRANSACTIONS, TRANSACTIONS,
};
use toll_protocol::result::{CellResult, Verdict};
use toll_protocol::traffic::TrafficReport;
use toll_protocol::trial::Direction;

pub fn tests() -> Vec<Trial> {
    vec![test("latency_is_measured_quiet_and_beside_a_stream", &[], quiet_and_loaded)]
}

const CAMPAIGN: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: latency}
spec:
  hosts: {lab: {count: 2, link: {rate: 20Mbit}}}
  arms: [{name: native, native: {}}, {name: again, native: {}}]
  workloads:
    - {name: bulk, stream: {directions: [send], warmUp: 100ms, duration: 300ms}}
    - {name: loop, requestResponse: {warmUp: 100ms, duration: 300ms}}
    - {name: quiet, requestResponse: {protocol: udp, rate: 200, request: 64B, response: 200B, warmUp: 400ms, duration: 500ms}}
    - {name: loaded, requestResponse: {protocol: udp, rate: 200, request: 64B, response: 200B, background: bulk, warmUp: 400ms, duration: 500ms}}
  blocks: 3
  seed: 7
  gates:
    - {cells: {workload: loop}, latencyP50: {atMost: 1s}}
    - {cells: {workload: quiet, arm: again}, ratio: {of: latencyP99, to: native, atMost: 100000%}}
";

fn quiet_and_loaded() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (output, out) = programs::start(CAMPAIGN, directory.path(), |_| {})?.end(Duration::from_secs(120))?;
    expect(&output, 0)?;
    let result = programs::result(&out)?;
    ensure!(
        result.cells.len() == 8,
        "one cell a workload and arm, and not one a direction: {}",
        result.cells.len()
    );
    let cell = |workload: &str, arm: &str| -> Result<&CellResult> {
        let found = result
            .cells
            .iter()
            .find(|cell| (cell.key.workload.as_str(), cell.key.arm.as_str()) == (workload, arm));
        let cell = found.with_context(|| format!("no cell of {workload} and {arm}"))?;
        ensure!(cell.counts.measured == 3, "{workload}, {arm}: {:?}", cell.runs);
        Ok(cell)
    };
    for workload in ["loop", "quiet", "loaded"] {
        let cell = cell(workload, "again")?;
        ensure!(cell.key.direction == Direction::Both, "{:?}", cell.key);
        let figures = [&TRANSACTIONS, &LATENCY_P50, &LATENCY_P99, &LATENCY_MAX, &LOST_TRANSACTIONS];
        for figure in figures {
            let estimate =
                cell.estimate(figure).with_context(|| format!("{workload} has no {}", figure.id))?;
            ensure!(estimate.ci95.is_some(), "{workload}: {} has no interval", figure.id);
        }
        let over = cell.over_native(&LATENCY_P50).context("no difference to native")?;
        ensure!(
            over.blocks == 3 && over.ci95.is_some() && cell.to_native(&LATENCY_P50).is_none(),
            "{over:?}"
        );
        ensure!(cell.to_native(&TRANSACTIONS).is_some(), "transactions are compared as a ratio");
        // What costs are told for: transactions, and with a stream beside them nothing.
        let cpu = cell.median(&CPU_PER_TRANSACTION);
        ensure!(cpu.is_some() == (workload != "loaded"), "{workload}: {cpu:?}");
        let merged = cell.latencies.as_ref().context("no histogram")?.percentiles().count;
        let counts = cell.runs.iter().filter_map(|run| match &run.a.as_ref()?.traffic {
            TrafficReport::RequestResponse(report) => {
                Some(report.asked.as_ref()?.latencies.percentiles().count)
            }
            TrafficReport::Stream(_) | TrafficReport::Datagram(_) => None,
        });
        ensure!(merged > 0 && merged == counts.sum::<u64>(), "the histogram is not that of all runs");
    }
    // 200 a second, whatever the latency; the queue of the link is full beside the stream.
    for workload in ["quiet", "loaded"] {
        let rate = cell(workload, "native")?.median(&TRANSACTIONS).context("no transactions")?;
        ensure!((150.0..=250.0).contains(&rate), "{workload}: {rate} a second");
    }
    let p50 = |workload| -> Result<f64> { cell(workload, "native")?.median(&LATENCY_P50).context("no p50") };
    let (quiet, loaded) = (p50("quiet")?, p50("loaded")?);
    ensure!(loaded > 2.0 * quiet && loaded > 0.002, "{quiet} s quiet and {loaded} s beside a stream");
    let background = |cell: &CellResult| -> Option<f64> {
        let run = cell.runs.first()?;
        let TrafficReport::RequestResponse(report) = &run.b.as_ref()?.traffic else { return None };
        let received: u64 = report.background.iter().map(|flow| flow.received_bytes).sum();
        Some(received as f64 / run.b.as_ref()?.interval.seconds())
    };
    let stream = background(cell("loaded", "native")?).context("no background")?;
    let alone = cell("bulk", "native")?.median(&GOODPUT).context("no goodput")?;
    ensure!(stream > alone * 0.5, "the stream beside it brought {stream} B/s, and {alone} alone");

    ensure!(result.gates.iter().all(|gate| gate.verdict == Verdict::Pass), "{:?}", result.gates);
    let told = String::from_utf8(output.stdout)?;
    ensure!(told.contains("transactions") && told.contains("p99.9") && told.contains("goodput"), "{told}");
    let page = std::fs::read_to_string(out.join("report.html"))?;
    for title in ["transactions/s", "latency p99.9", "Latency by percentile"] {
        ensure!(page.contains(title), "the page has no {title}");
    }
    Ok(())
}
