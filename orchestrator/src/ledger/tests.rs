use toll_protocol::report::Failure;

use super::*;
use crate::test_support;

fn new(directory: &tempfile::TempDir) -> (Ledger, Vec<TrialRecord>, PathBuf) {
    let (header, records) = test_support::campaign();
    let path = directory.path().join("ledger.sqlite");
    let ledger = Ledger::create(&path, &header).expect("creates");
    (ledger, records, path)
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn what_was_written_reads_back() {
    let directory = directory();
    let (mut ledger, records, path) = new(&directory);
    let (header, _) = test_support::campaign();
    for record in records.iter().rev() {
        assert_eq!(ledger.record(record).expect("records"), Recorded::New);
    }
    drop(ledger);
    let ledger = Ledger::open(&path).expect("opens");
    assert!(*ledger.header() == header);
    assert!(ledger.records().expect("reads") == records, "samples included, by position");
    assert_eq!(ledger.remaining().expect("reads"), []);
    let files: Vec<_> = std::fs::read_dir(directory.path()).expect("lists").collect();
    assert_eq!(files.len(), 1, "the ledger is one file: {files:?}");
}

#[test]
fn what_remains_is_what_has_no_record() {
    let directory = directory();
    let (mut ledger, records, path) = new(&directory);
    for record in records.iter().step_by(2) {
        ledger.record(record).expect("records");
    }
    let ledger = Ledger::open(&path).expect("opens beside the writer");
    let remaining: Vec<u32> =
        ledger.remaining().expect("reads").iter().map(|planned| planned.position).collect();
    let odd: Vec<u32> = records.iter().skip(1).step_by(2).map(|record| record.position).collect();
    assert_eq!(remaining, odd);
}

#[test]
fn the_same_outcome_twice_is_one_record_and_another_is_refused() {
    let directory = directory();
    let (mut ledger, records, _) = new(&directory);
    let record = &records[0];
    assert_eq!(ledger.record(record).expect("records"), Recorded::New);
    let later = TrialRecord { started_unix_ms: None, ..record.clone() };
    assert_eq!(ledger.record(&later).expect("the same outcome"), Recorded::Already);
    let other = TrialRecord { outcome: Outcome::Lost { reason: "agent gone".to_owned() }, ..record.clone() };
    let error = ledger.record(&other).expect_err("another outcome");
    assert!(matches!(error, LedgerError::Conflict { trial } if trial == record.trial), "{error}");
    assert_eq!(ledger.records().expect("reads"), std::slice::from_ref(record));
}

#[test]
fn only_trials_of_the_plan_are_recorded() {
    let directory = directory();
    let (mut ledger, records, _) = new(&directory);
    let stranger = TrialRecord { trial: TrialId::new(1), ..records[0].clone() };
    assert!(matches!(ledger.record(&stranger), Err(LedgerError::NotPlanned { .. })));
    for change in [
        |record: &mut TrialRecord| record.block += 1,
        |record: &mut TrialRecord| record.position += 1,
        |record: &mut TrialRecord| record.cell.arm.push('x'),
    ] {
        let mut moved = records[0].clone();
        change(&mut moved);
        assert!(matches!(ledger.record(&moved), Err(LedgerError::OtherPlace { .. })));
    }
    assert_eq!(ledger.records().expect("reads"), []);
}

#[test]
fn the_provenance_can_be_completed() {
    let directory = directory();
    let (mut ledger, _, path) = new(&directory);
    let mut provenance = test_support::provenance();
    (provenance.ended_unix_ms, provenance.interrupted) = (Some(u64::MAX), true);
    ledger.set_provenance(&provenance).expect("records");
    assert_eq!(ledger.header().provenance, provenance);
    assert_eq!(Ledger::open(&path).expect("opens").header().provenance, provenance);
}

#[test]
fn hostile_text_is_kept_as_text_and_read_as_what_can_be_printed() {
    let directory = directory();
    let (mut ledger, records, path) = new(&directory);
    let record = |words: &str| {
        let failure = Failure { reason: words.to_owned(), last_words: vec![words.to_owned(); 3] };
        let outcome = Outcome::Failed { host: "x'y".to_owned(), failure };
        TrialRecord { outcome, ..records[0].clone() }
    };
    let hostile = record("'); DROP TABLE record; -- \u{0} \u{1f980} </script>\u{1b}[2J\u{202e}");
    ledger.record(&hostile).expect("records");
    assert_eq!(ledger.record(&hostile).expect("is the same"), Recorded::Already);
    let shown = record("'); DROP TABLE record; -- \\0 \u{1f980} </script>\\u{1b}[2J\\u{202e}");
    assert_eq!(Ledger::open(&path).expect("opens").records().expect("reads"), [shown]);
}

#[test]
fn what_an_older_version_wrote_of_a_campaign_is_read_as_what_can_be_printed() {
    let directory = directory();
    let (mut header, _) = test_support::campaign();
    header.campaign = "c\u{1b}[2J".into();
    header.provenance.hosts[0].facts.kernel = "Linux\u{202e}\n".into();
    header.manifest = "a: 1\n# \u{202e}\n".into();
    let path = directory.path().join("old.sqlite");
    drop(Ledger::create(&path, &header).expect("creates"));
    let ledger = Ledger::open(&path).expect("opens");
    assert_eq!(ledger.header().campaign, "c\\u{1b}[2J");
    assert_eq!(ledger.header().provenance.hosts[0].facts.kernel, "Linux\\u{202e}\\n");
    assert_eq!(ledger.header().manifest, header.manifest, "a document is what was submitted");
}

#[test]
fn a_file_is_never_written_over() {
    let directory = directory();
    let (_, _, path) = new(&directory);
    let (header, _) = test_support::campaign();
    assert!(matches!(Ledger::create(&path, &header), Err(LedgerError::Exists { .. })));
    let nowhere = directory.path().join("missing/ledger.sqlite");
    assert!(matches!(Ledger::create(&nowhere, &header), Err(LedgerError::Open { .. })));
    assert!(matches!(Ledger::open(&nowhere), Err(LedgerError::Open { .. })));
}

#[test]
fn a_file_that_is_no_ledger_is_named() {
    let directory = directory();
    for content in [&b""[..], b"not a database, but long enough that SQLite looks at its header twice"] {
        let path = directory.path().join("file");
        std::fs::write(&path, content).expect("writes");
        let error = Ledger::open(&path).expect_err("no ledger");
        assert!(matches!(error, LedgerError::NotALedger { .. }), "{error:?}");
    }
    let path = directory.path().join("other.sqlite");
    Connection::open(&path)
        .and_then(|other| other.execute_batch("CREATE TABLE t (x)"))
        .expect("another database");
    assert!(matches!(Ledger::open(&path), Err(LedgerError::NotALedger { .. })));
}

#[test]
fn a_newer_ledger_is_left_alone() {
    let directory = directory();
    let (ledger, _, path) = new(&directory);
    ledger.connection.pragma_update(None, "user_version", SCHEMA_VERSION + 1).expect("sets");
    drop(ledger);
    let error = Ledger::open(&path).expect_err("newer");
    assert!(matches!(error, LedgerError::Newer { found, .. } if found == SCHEMA_VERSION + 1), "{error}");
    assert!(error.to_string().contains("newer Toll"), "{error}");
}

#[test]
fn a_full_disk_loses_nothing_that_was_acknowledged() {
    let directory = directory();
    let (mut ledger, records, path) = new(&directory);
    // SQLite's own limit takes the very path of ENOSPC: SQLITE_FULL, and the transaction is rolled back.
    let pages: u32 =
        ledger.connection.pragma_query_value(None, "page_count", |row| row.get(0)).expect("a count");
    ledger.connection.pragma_update_and_check(None, "max_page_count", pages + 6, |_| Ok(())).expect("limits");
    let mut acknowledged = Vec::new();
    let error = records.iter().find_map(|record| match ledger.record(record) {
        Ok(_) => {
            acknowledged.push(record.clone());
            None
        }
        Err(error) => Some(error),
    });
    let error = error.expect("the room is for a few records only");
    assert!(matches!(error, LedgerError::DiskFull { .. }), "{error:?}");
    assert!(!acknowledged.is_empty());
    assert!(ledger.records().expect("reads") == acknowledged);
    // With room again the same ledger goes on.
    ledger.connection.pragma_update_and_check(None, "max_page_count", 1 << 20, |_| Ok(())).expect("unlimits");
    ledger.record(&records[acknowledged.len()]).expect("records again");
    assert_eq!(Ledger::open(&path).expect("opens").records().expect("reads").len(), acknowledged.len() + 1);
}

#[test]
fn a_damaged_record_is_named() {
    let directory = directory();
    let (mut ledger, records, path) = new(&directory);
    ledger.record(&records[0]).expect("records");
    ledger.connection.execute("UPDATE record SET record = '{'", []).expect("damages");
    assert!(matches!(ledger.records(), Err(LedgerError::Damaged { .. })));
    ledger.connection.execute("UPDATE campaign SET seed = 'x'", []).expect("damages");
    assert!(matches!(Ledger::open(&path), Err(LedgerError::DamagedSeed { .. })));
}

#[test]
fn commits_are_synced_to_the_directory_too() {
    let directory = directory();
    let (ledger, _, _) = new(&directory);
    let setting = |name| {
        ledger.connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
    };
    assert_eq!(setting("synchronous"), Ok(rusqlite::types::Value::Integer(3)), "EXTRA");
    assert_eq!(setting("journal_mode"), Ok(rusqlite::types::Value::Text("delete".to_owned())));
}
