use std::os::unix::fs::{PermissionsExt as _, symlink};

use rusqlite::Connection;

use super::*;
use crate::test_support;

const MANIFEST: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: c}
spec:
  hosts: {select: {}}
  arms: [{name: native, native: {}}]
  workloads: [{name: bulk, stream: {}}]
";

fn store(directory: &tempfile::TempDir) -> Store {
    Store::fleet(directory.path()).expect("makes a store")
}

/// Whoever can open a file can lock it: to read it is enough.
#[test]
fn what_could_be_locked_is_its_owners_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let mode = |name: &str| fs::metadata(path(name)).expect("is there").mode() & 0o7777;
    for round in 0..2 {
        let store = store(&directory);
        assert_eq!((mode("campaigns"), mode("lock")), (0o700, 0o600), "round {round}");
        if round == 0 {
            drop(store.create("one", &test_support::campaign().0).expect("creates"));
            assert_eq!(mode("campaigns/one/ledger.sqlite"), 0o600);
        }
        drop(store);
        // As an older version made them, or an fsGroup of Kubernetes.
        for (name, mode) in [("campaigns", 0o2775), ("lock", 0o664)] {
            fs::set_permissions(path(name), Permissions::from_mode(mode)).expect("opens it to others");
        }
    }
}

#[test]
fn a_file_is_written_whole_by_each_and_what_a_killed_process_left_is_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(&directory);
    drop(store.create("one", &test_support::campaign().0).expect("creates"));
    let campaign = store.directory("one");
    let result = |length: usize| vec![b'0' + (length % 10) as u8; length];
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = campaign.join(RESULT);
            scope.spawn(move || {
                for round in 0..50 {
                    replace(&path, &result(100_000 * (round % 4) + writer)).expect("writes");
                    let read = fs::read(&path).expect("is there");
                    assert!(read == result(read.len()), "{} bytes of several writers", read.len());
                }
            });
        }
    });
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(&campaign).expect("lists").map(|it| it.expect("reads").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), [LEDGER, RESULT]);
    for left in ["result.unfinished", "status.json.x1y2.unfinished"] {
        fs::write(campaign.join(left), "{").expect("writes");
    }
    let made =
        kept::of_ledger(&Ledger::open(&campaign.join(LEDGER)).expect("opens"), &[], &[]).expect("a result");
    store.write_result("one", &made).expect("writes");
    assert_eq!(names(), [LEDGER, REPORT, RESULT]);
}

#[test]
fn a_campaign_is_found_again_and_a_half_made_one_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(&directory);
    let (header, records) = test_support::campaign();
    let mut ledger = store.create("one", &header).expect("creates");
    ledger.record(&records[0]).expect("records");
    drop(ledger);
    for half in ["two.new", "three.removed"].map(|name| directory.path().join("campaigns").join(name)) {
        fs::create_dir(&half).expect("makes");
        fs::write(half.join(LEDGER), b"").expect("writes");
    }
    let mut seen = store.load().expect("lists");
    seen.retain(|(_, look)| !matches!(look, Look::Gone));
    let [(name, Look::Found(Found::Live(live)))] = &seen[..] else { panic!("{} entries", seen.len()) };
    assert!(name == "one" && *live.ledger.header() == header && live.outcomes.len() == 1);
    assert_eq!(fs::read_dir(directory.path().join("campaigns")).expect("lists").count(), 1);
}

/// All that its campaign goes on from: the service's task, which takes it up, waits for no database.
#[test]
fn a_look_at_a_ledger_reads_what_it_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(&directory);
    let (header, _) = test_support::campaign();
    drop(store.create("one", &header).expect("creates"));
    assert!(matches!(store.look("one"), Look::Found(Found::Live(_))));
    for table in ["record", "begun"] {
        let database = Connection::open(store.directory("one").join(LEDGER)).expect("opens");
        database.execute(&format!("ALTER TABLE {table} RENAME TO other"), []).expect("renames");
        assert!(matches!(store.look("one"), Look::LeftOut { .. }), "{table}");
        database.execute(&format!("ALTER TABLE other RENAME TO {table}"), []).expect("renames");
    }
}

/// Whatever lies there: each is named with its reason, none keeps the others from being found, none is changed.
#[test]
fn whatever_lies_in_the_directory_is_named_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(&directory);
    let (header, _) = test_support::campaign();
    let path = |name: &str| directory.path().join("campaigns").join(name);
    let ledger = |name: &str| path(name).join(LEDGER);
    for name in ["corrupt", "good", "newer", "older", "truncated", "tables", "json"] {
        drop(store.create(name, &header).expect("creates"));
    }
    let length = fs::metadata(ledger("corrupt")).expect("is there").len();
    let file = File::options().write(true).open(ledger("truncated")).expect("opens");
    file.set_len(length / 2).expect("truncates");
    fs::write(ledger("corrupt"), b"not a database, but long enough that SQLite looks at its header twice")
        .expect("writes");
    let version = |name: &str, number: i32| {
        let connection = Connection::open(ledger(name)).expect("opens");
        connection.pragma_update(None, "user_version", number).expect("sets");
    };
    version("newer", crate::ledger::SCHEMA_VERSION + 1);
    version("older", crate::ledger::SCHEMA_VERSION - 1);
    Connection::open(ledger("tables"))
        .and_then(|it| it.execute_batch("DROP TABLE planned"))
        .expect("damages");
    fs::write(path("json").join(STATUS), b"{").expect("writes");
    // Neither may keep a start waiting, nor fill the memory.
    for (name, device) in [("zero", "/dev/zero"), ("endless", "/dev/full")] {
        fs::create_dir(path(name)).expect("makes");
        symlink(device, path(name).join(STATUS)).expect("links");
    }
    fs::create_dir(path("pipe")).expect("makes");
    nix::unistd::mkfifo(&path("pipe").join(STATUS), nix::sys::stat::Mode::S_IRWXU).expect("makes");
    fs::create_dir(path("long")).expect("makes");
    let long = fs::File::create(path("long").join(STATUS)).expect("makes");
    long.set_len(Content::STATUS.longest + 1).expect("grows");
    fs::create_dir_all(ledger("directory")).expect("makes");
    fs::create_dir(path("empty")).expect("makes");
    fs::create_dir(path("lost+found")).expect("makes");
    fs::create_dir(path("My notes.new")).expect("makes");
    fs::write(path("file"), b"").expect("writes");
    fs::write(path("file.new"), b"").expect("writes");
    symlink("loop", path("loop")).expect("links");
    symlink("nowhere", path("link")).expect("links");
    let seen = store.load().expect("lists");
    let mut expected = vec![
        ("My notes.new", "no campaign's id", false),
        ("corrupt", "is no ledger of Toll", false),
        ("directory", "is no ledger of Toll", false),
        ("empty", "can't be opened", false),
        ("endless", "neither a regular file nor a pipe", false),
        ("file", "not the directory of a campaign", false),
        ("file.new", "no campaign's id", false),
        ("json", "status.json is not what Toll writes there", false),
        ("link", "can't be looked at", true),
        ("long", "is too long", false),
        ("loop", "can't be looked at", true),
        ("lost+found", "no campaign's id", false),
        ("newer", "was written by a newer Toll", false),
        ("older", "was written by an older Toll", false),
        ("pipe", "neither a regular file", false),
        ("tables", "reading the plan", false),
        ("truncated", "ledger.sqlite", false),
        ("zero", "neither a regular file nor a pipe", false),
    ];
    let mut found = Vec::new();
    for (name, look) in &seen {
        match look {
            Look::Found(_) => found.push(name.as_str()),
            Look::LeftOut { reason, again } => {
                let (wanted, words, may_pass) = expected.remove(0);
                assert!(name == wanted && reason.contains(words), "{name}: {reason}, not {wanted}: {words}");
                assert!(*again == may_pass, "{name}: {reason}: {again}");
                assert!(path(name).symlink_metadata().is_ok(), "{name} is gone");
            }
            Look::Gone => panic!("{name} is gone"),
        }
    }
    assert!(expected.is_empty() && found == ["good"], "{found:?} {expected:?}");
}

#[test]
fn what_would_not_be_found_again_is_not_made() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(&directory);
    let (header, _) = test_support::campaign();
    for id in ["../x", "", "a.new", &"n".repeat(81)] {
        let error = store.create(id, &header).expect_err(id);
        assert!(matches!(error, StoreError::Id(_)), "{error}");
        assert!(store.remove(id).is_err());
    }
}

#[test]
fn a_result_that_was_not_written_is_made_from_the_ledger() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(&directory);
    let (mut header, records) = test_support::campaign();
    header.manifest = MANIFEST.to_owned();
    let mut ledger = store.create("one", &header).expect("creates");
    ledger.record(&records[0]).expect("records");
    let made = store.result("one").expect("is made");
    assert_eq!(kept::total(&made).measured, 1);
    store.write_result("one", &made).expect("writes");
    assert_eq!(store.result("one").expect("is read"), made);
    store.remove("one").expect("removes");
    assert!(!directory.path().join("campaigns/one").exists() && store.load().expect("lists").is_empty());
    let error = store.result("one").expect_err("there is none");
    assert!(error.contains("the result can't be read from") && error.contains("ledger.sqlite"), "{error}");
}

/// What version 1 wrote: neither document said its version, and times were texts.
#[test]
fn documents_and_ledgers_of_an_older_version_are_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(&directory);
    drop(store.create("one", &test_support::campaign().0).expect("creates"));
    let campaign = store.directory("one");
    Connection::open(campaign.join(LEDGER))
        .and_then(|ledger| ledger.pragma_update(None, "user_version", 2))
        .expect("is of version 2");
    let result = r#"{"campaign": "c", "seed": 1, "manifest": "", "provenance": {}, "arms": [], "cells": [], "gates": []}"#;
    fs::write(campaign.join(RESULT), result).expect("writes");
    let why = store.result("one").expect_err("is not read");
    for words in
        ["result.json", "an older Toll wrote it", "toll.dev/v1alpha2", "written by an older Toll (schema 2"]
    {
        assert!(why.contains(words), "{why}");
    }
    let status = r#"{"status": {"id": "one", "submitted_unix_ms": 1, "left": "20ms"}, "manifest": ""}"#;
    fs::write(campaign.join(STATUS), status).expect("writes");
    let seen = store.load().expect("lists");
    let [(name, Look::LeftOut { reason, again: false })] = &seen[..] else { panic!("it is not left out") };
    assert!(name == "one" && reason.contains("an older Toll wrote it"), "{reason}");
}
