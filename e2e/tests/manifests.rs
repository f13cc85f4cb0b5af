//! Every campaign of `manifests/campaigns` runs, shortened: one block, short intervals. What it is about is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Arguments;
use toll_e2e::machine::{no_iperf3, no_kvm, no_tun};
use toll_e2e::programs;
use toll_e2e::suite::conditional;
use toll_protocol::result::{CampaignResult, RunStatus};
use toll_protocol::trial::{Adapter, EndKind, Nic};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/campaigns");

/// The campaign with one block, and intervals that are no measurement.
fn shortened(text: &str) -> String {
    let line = |line: &str| {
        let (warm_up, rest) = match line.split_once("warmUp: ") {
            Some((before, after)) => (before, after),
            None if line.starts_with("  blocks: ") => return "  blocks: 1".to_owned(),
            None => return line.to_owned(),
        };
        let rest = rest.split_once('}').map_or(rest, |(_, rest)| rest);
        format!("{warm_up}warmUp: 100ms, duration: 200ms}}{rest}")
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn runs(file: &Path) -> Result<()> {
    let text = shortened(&fs::read_to_string(file)?);
    ensure!(text.contains("blocks: 1\n") && text.contains("duration: 200ms"), "it was not shortened: {text}");
    let directory = tempfile::tempdir()?;
    let (output, out) = programs::start(&text, directory.path(), |_| {})?.end(Duration::from_secs(120))?;
    // One block shows nothing of a gate.
    let code = output.status.code();
    ensure!(code == Some(0) || code == Some(1) && text.contains("gates:"), "{output:?}");
    let result = programs::result(&out)?;
    for cell in &result.cells {
        for run in &cell.runs {
            ensure!(run.status == RunStatus::Measured, "{:?}: {:?}", cell.key, run.reason);
        }
    }
    says_what_it_is_about(&result, &fs::read_to_string(out.join("report.html"))?)
}

/// Each virtual end says where its time went; what was optimised, what it spared; arms of the paper stand beside it.
fn says_what_it_is_about(result: &CampaignResult, page: &str) -> Result<()> {
    for cell in &result.cells {
        let arm =
            result.arms.iter().find(|arm| arm.name == cell.key.arm).context("an arm of the campaign")?;
        let EndKind::Virtual { nic: Nic { adapter, .. }, .. } = &arm.kind else {
            continue;
        };
        let ends = cell.runs.iter().filter_map(|run| run.a.as_ref());
        for end in ends {
            let what = &cell.key;
            ensure!(
                end.frames.is_some() && end.host_cpu.is_some() && !end.times.is_empty(),
                "{what:?}: {end:?}"
            );
            let optimised = matches!(adapter, Adapter::Pcnet(_)) && !adapter.switches().is_empty();
            ensure!(end.spared.is_some() == optimised, "{what:?}: {:?}", end.spared);
            let thread = adapter.switches().contains(&"ioThread");
            ensure!(end.times.iter().any(|time| time.name == "io0") == thread, "{what:?}: {:?}", end.times);
        }
    }
    // Of threads of virtual ends; native ones have the kernel's word alone.
    let has_virtual = result.arms.iter().any(|arm| !arm.kind.is_native());
    ensure!(
        page.contains("Where the time goes") == has_virtual
            && (page.contains("CPU time by the kernel") || !has_virtual),
        "the page does not say where the time went"
    );
    let paper = result.arms.iter().any(|arm| arm.paper.is_some());
    ensure!(page.contains("Beside the paper of 2001") == paper, "arms of the paper: {paper}");
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    // Trials of two labs would compete for the machine's cores.
    arguments.test_threads = Some(1);
    let mut files: Vec<PathBuf> =
        fs::read_dir(DIRECTORY)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.sort();
    let mut tests = Vec::new();
    for file in files {
        let name = file.file_stem().context("a file")?.to_string_lossy().into_owned();
        let text = fs::read_to_string(&file)?;
        let iperf3 = if text.contains("program: iperf3") { no_iperf3() } else { None };
        let lacking: Vec<&str> = [no_kvm(), no_tun(), iperf3].into_iter().flatten().collect();
        tests.push(conditional(&name, &lacking, move || runs(&file)));
    }
    libtest_mimic::run(&arguments, tests).exit()
}
