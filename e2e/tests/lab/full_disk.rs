//! Results on a file system that fills: what was measured is shown, and the ledger gives it again. The file system is
//! a small tmpfs in a mount namespace.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::campaigns::{NATIVE, campaign};
use toll_e2e::machine::no_root;
use toll_e2e::programs::{self, expect};
use toll_e2e::suite::test;
use toll_protocol::result::{CampaignResult, RunStatus};

pub fn tests() -> Vec<Trial> {
    vec![
        test("a_ledger_that_finds_no_room_ends_the_campaign_with_what_was_measured", &[no_root()], || {
            ledger().map(drop)
        }),
        test("files_that_find_no_room_are_written_from_the_ledger_later", &[no_root()], || files().map(drop)),
    ]
}

/// What a run printed on a full file system, and what `toll report` made of its ledger when there was room again.
struct Shown {
    table: String,
    told: String,
    again: CampaignResult,
}

/// Runs a campaign of 12 trials on a file system of `size`.
fn on(size: &str) -> Result<Shown> {
    let directory = tempfile::tempdir()?;
    let at = directory.path();
    std::fs::write(at.join("c.yaml"), campaign(&[NATIVE], 6, "200ms", ""))?;
    std::fs::create_dir(at.join("small"))?;
    let toll = programs::directory()?.join("toll");
    // The run's own exit code goes into a file; that of the script is of the last command.
    let script = format!(
        "mount -t tmpfs -o size={size} tmpfs small\n\
         code=0; {toll} run c.yaml --out small/out >table 2>told || code=$?; echo $code >code\n\
         test ! -e small/out/result.json; test ! -e small/out/report.html\n\
         {toll} report small/out >full 2>>full && exit 1\n\
         grep -q 'what was measured is above' full\n\
         mount -o remount,size=8m small\n\
         {toll} report small/out --format json >again || test $? = 4\n\
         test -e small/out/report.html; cp small/out/result.json kept\n",
        toll = toll.display()
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-ec", &script])
        .current_dir(at)
        .output()
        .context("unshare")?;
    let read = |name: &str| std::fs::read_to_string(Path::new(at).join(name)).unwrap_or_default();
    let (table, told) = (read("table"), read("told"));
    expect(&output, 0).with_context(|| format!("{table}\n{told}\n{}", read("full")))?;
    ensure!(read("code").trim() == "4", "exit code {}: {told}", read("code"));
    // One sentence of what is wrong, one of what to do.
    let lines: Vec<&str> = told.lines().filter(|line| line.starts_with("toll: ")).collect();
    ensure!(lines.len() == 2 && lines[1].contains("`toll report small/out`"), "{told}");
    ensure!(read("kept") == read("again").trim_end(), "the file is not what is printed");
    let again = toll_e2e::documents::result(read("again").as_bytes())?;
    Ok(Shown { table, told, again })
}

/// Measured runs of a result.
fn measured(result: &CampaignResult) -> usize {
    let runs = result.cells.iter().flat_map(|cell| &cell.runs);
    runs.filter(|run| run.status == RunStatus::Measured).count()
}

fn ledger() -> Result<Shown> {
    // Room for the plan and a few records.
    let shown = on("64k")?;
    ensure!(shown.told.contains("no room is left for small/out/ledger.sqlite"), "{}", shown.told);
    let kept = measured(&shown.again);
    ensure!((1..12).contains(&kept), "{kept} were kept");
    // The one that the ledger had no room for was measured too.
    let words = format!("{} of 12 runs measured", kept + 1);
    ensure!(shown.table.contains(&words), "not {words}:\n{}", shown.table);
    Ok(shown)
}

fn files() -> Result<Shown> {
    // Room for the ledger (80 KiB) and its journal, and not for a copy of what it has (64 KiB).
    let shown = on("128k")?;
    ensure!(shown.told.contains("result.json can't be written: No space left on device"), "{}", shown.told);
    ensure!(
        measured(&shown.again) == 12 && shown.table.contains("12 of 12 runs measured"),
        "{}",
        shown.table
    );
    Ok(shown)
}
