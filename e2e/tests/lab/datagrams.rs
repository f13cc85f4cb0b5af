//! Datagrams between the native ends of a lab.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::campaigns::{NATIVE, campaign};
use toll_e2e::programs::{self, expect};
use toll_e2e::suite::test;
use toll_protocol::figure::GOODPUT;
use toll_protocol::result::CellResult;
use toll_protocol::traffic::datagram::{JITTER, LOSS, LOSS_SEARCH_RATE, PACKET_RATE};

pub fn tests() -> Vec<Trial> {
    vec![test("datagrams_are_measured_on_native_ends", &[], measured)]
}

fn measured() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let workloads = [
        "fixed, datagram: {size: 500B, rate: 20Mbit, directions: [send, both], warmUp: 100ms, duration: 1s}",
        "imix, datagram: {imix: aaaaaaaddddg, rate: 20Mbit, directions: [receive], warmUp: 100ms, duration: 1s}",
        "ndr, datagram: {size: 1472B, rate: 120Mbit, lossSearch: {atMost: 1%, precision: 20%, trial: 1s}, directions: \
         [receive], warmUp: 100ms, duration: 1s}",
    ];
    let lines: String = workloads.iter().map(|workload| format!("    - {{name: {workload}}}\n")).collect();
    let stream = "    - {name: bulk, stream: {warmUp: 100ms, duration: 1s}}\n";
    let text = campaign(&[NATIVE], 1, "1s", "");
    ensure!(text.contains(stream), "{text}");
    let text = text.replace(stream, &lines).replace("10Gbit", "100Mbit");
    // The search is refused where it may try more than the link has, as any rate is.
    let over = programs::start(&text, directory.path(), |_| {})?.end(Duration::from_secs(60))?.0;
    expect(&over, 3)?;
    let told = String::from_utf8(over.stderr)?;
    ensure!(
        told.contains("over 100Mbit, the rate of the lab's links") && told.contains(":11:49: "),
        "{told}"
    );
    let text = text.replace("rate: 120Mbit, ", "");
    let (output, out) = programs::start(&text, directory.path(), |_| {})?.end(Duration::from_secs(120))?;
    expect(&output, 0)?;
    let result = programs::result(&out)?;
    ensure!(result.cells.len() == 4, "{} cells", result.cells.len());
    for cell in &result.cells {
        let what = format!("{:?}", cell.key);
        ensure!(cell.counts.measured == 1, "{what} is not measured: {:?}", cell.runs);
        cell_is_whole(cell).with_context(|| what)?;
    }
    let page = std::fs::read_to_string(out.join("report.html"))?;
    ensure!(page.contains("packets/s") && page.contains("rate by loss search"), "the page lacks figures");
    Ok(())
}

fn cell_is_whole(cell: &CellResult) -> Result<()> {
    let bits = cell.median(&GOODPUT).context("no goodput")? * 8.0;
    let loss = cell.median(&LOSS).context("no loss")?;
    let packets = cell.median(&PACKET_RATE).context("no packets")?;
    let found = cell.median(&LOSS_SEARCH_RATE);
    if cell.key.workload == "ndr" {
        let found = found.context("no rate was found")? * 8.0;
        // 100 Mb/s of frames are 97.2 Mb/s of payload.
        ensure!((85e6..99e6).contains(&found), "{found} bit/s found");
        ensure!(bits > 0.9 * found && loss < 0.05, "{bits} bit/s, {loss} lost at {found}");
        return Ok(());
    }
    let ways = if cell.key.direction == toll_protocol::trial::Direction::Both { 2.0 } else { 1.0 };
    // A receiver that waits for a CPU when its interval begins finds what came meanwhile in it.
    ensure!((bits / ways / 20e6 - 1.0).abs() < 0.1, "{bits} bit/s");
    ensure!(loss == 0.0, "{loss} lost");
    // A mix has 12 datagrams with 3462 bytes of payload.
    let size = if cell.key.workload == "imix" { 3462.0 / 12.0 } else { 500.0 };
    ensure!((packets * size * 8.0 / bits - 1.0).abs() < 0.02, "{packets} packets a second at {bits} bit/s");
    ensure!(found.is_none() && cell.median(&JITTER).is_some(), "{found:?}");
    Ok(())
}
