//! A process that records results is killed with SIGKILL, again and again, wherever it happens to be. What it
//! acknowledged is in the ledger each time, whole; the next process goes on from there.
//!
//! This shows that a crash of the process loses nothing. Power loss can't be made here: against it stands SQLite's
//! `synchronous=EXTRA`, which a test beside the ledger's code holds.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use toll_orchestrator::ledger::{Ledger, LedgerHeader, PlannedTrial, Recorded};
use toll_protocol::report::{EndReport, Flag, Sample};
use toll_protocol::result::{ArmSummary, CellKey, Outcome, Pair, Peer, Provenance, TrialRecord};
use toll_protocol::trial::{Direction, EndKind, NativeProgram, TrialId};
use toll_protocol::units::Span;

/// The variable that makes this program the process to be killed; its value is the ledger's path.
const VICTIM: &str = "TOLL_TEST_LEDGER_VICTIM";

const ROUNDS: usize = 20;

fn main() -> ExitCode {
    if let Some(path) = std::env::var_os(VICTIM) {
        return match record_what_remains(Path::new(&path)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let test = Trial::test("what_was_acknowledged_survives_sigkill", || {
        killed_again_and_again().map_err(|error| Failed::from(format!("{error:#}")))
    });
    libtest_mimic::run(&Arguments::from_args(), vec![test]).exit_code()
}

fn killed_again_and_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("ledger.sqlite");
    let header = header();
    drop(Ledger::create(&path, &header)?);
    let mut acknowledged = BTreeSet::new();
    for round in 0..ROUNDS {
        // The victim goes on recording while it is being killed: the kill falls anywhere in a commit.
        acknowledged.extend(kill_after(&path, 1 + round * 7 % 12)?);
        let ledger = Ledger::open(&path).with_context(|| format!("after kill {round}"))?;
        let records = ledger.records()?;
        let found: BTreeSet<TrialId> = records.iter().map(|record| record.trial).collect();
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        ensure!(lost.is_empty(), "kill {round} lost {lost:?}");
        for record in &records {
            let planned = header.planned.iter().find(|planned| planned.trial == record.trial);
            ensure!(planned.map(measured).as_ref() == Some(record), "kill {round} changed {}", record.trial);
        }
        ensure!(ledger.remaining()?.len() + records.len() == header.planned.len(), "trials add up");
        let check = rusqlite::Connection::open(&path)?;
        let verdict: String = check.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
        ensure!(verdict == "ok", "after kill {round}: {verdict}");
    }
    ensure!(acknowledged.len() >= ROUNDS, "only {} records were acknowledged", acknowledged.len());
    Ok(())
}

/// Starts the victim, kills it once it has acknowledged so many records, and gives back all that it acknowledged.
fn kill_after(path: &Path, records: usize) -> Result<Vec<TrialId>> {
    let mut victim = Command::new(std::env::current_exe()?)
        .env(VICTIM, path)
        .stdout(Stdio::piped())
        .spawn()
        .context("victim")?;
    let mut lines = BufReader::new(victim.stdout.take().context("its output")?).lines();
    let parse =
        |line: std::io::Result<String>| -> Result<TrialId> { line?.parse().map_err(anyhow::Error::msg) };
    let mut acknowledged = Vec::new();
    for _ in 0..records {
        acknowledged.push(parse(lines.next().context("the victim ended by itself")?)?);
    }
    victim.kill()?;
    for line in lines {
        acknowledged.push(parse(line)?);
    }
    let status = victim.wait()?;
    ensure!(!status.success(), "the victim was killed before it was done: {status}");
    Ok(acknowledged)
}

/// The victim: records what remains and says each id once it is recorded.
fn record_what_remains(path: &Path) -> Result<()> {
    let mut ledger = Ledger::open(path)?;
    let mut out = std::io::stdout().lock();
    for planned in ledger.remaining()? {
        ensure!(ledger.record(&measured(&planned))? == Recorded::New, "recorded before");
        writeln!(out, "{}", planned.trial)?;
        out.flush()?;
    }
    Ok(())
}

fn header() -> LedgerHeader {
    let pair = Pair { a: "a".to_owned(), b: "b".to_owned() };
    let cell = CellKey {
        pair,
        workload: "bulk".to_owned(),
        direction: Direction::Send,
        arm: "native".to_owned(),
        peer: Peer::Native,
    };
    let planned = |position: u32| PlannedTrial {
        trial: TrialId::new(u64::from(position) + 1),
        cell: cell.clone(),
        block: position,
        position,
    };
    LedgerHeader {
        arms: vec![ArmSummary {
            name: "native".to_owned(),
            kind: EndKind::Native { program: NativeProgram::Endpoint },
            baseline: true,
            paper: None,
        }],
        planned: (0..5_000).map(planned).collect(),
        hosts: Some(Vec::new()),
        ..LedgerHeader::new("killed", "", 1, Provenance::new("lab", 0))
    }
}

/// A record of the size that real ones have.
fn measured(planned: &PlannedTrial) -> TrialRecord {
    let bytes = u64::from(planned.position) * 1_000_003;
    let end = EndReport {
        sent_bytes: bytes,
        received_bytes: bytes,
        samples: (1..=20)
            .map(|i| Sample { at: Span::from_millis(i * 100), sent_bytes: 0, received_bytes: bytes / 20 * i })
            .collect(),
        flags: vec![Flag::Steal],
        ..EndReport::new(
            toll_protocol::traffic::TrafficReport::Stream(Default::default()),
            Span::from_millis(2_000),
        )
    };
    TrialRecord {
        trial: planned.trial,
        cell: planned.cell.clone(),
        block: planned.block,
        position: planned.position,
        started_unix_ms: Some(1),
        outcome: Outcome::Measured { a: Box::new(end.clone()), b: Box::new(end) },
    }
}
