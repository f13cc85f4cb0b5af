use std::time::Duration;

use rusqlite::Connection;
use tokio::time::timeout;

use super::*;
use crate::service::store::LEDGER;
use crate::test_support;

const LIMIT: Duration = Duration::from_secs(20);

/// A writer of a fleet with two campaigns, `held` and `free`, each with the same plan.
async fn two(directory: &std::path::Path) -> (Writer, Done) {
    let store = Store::fleet(directory).expect("a store");
    let (writer, mut done) = Writer::start(store, true).expect("a thread");
    for id in ["held", "free"] {
        writer.give(id, Job::Create(Box::new(test_support::campaign().0)));
        let (_, wrote) = next(&mut done).await;
        assert!(matches!(wrote, Wrote::Created(Ok(()))), "{wrote:?}");
    }
    (writer, done)
}

async fn next(done: &mut Done) -> (String, Wrote) {
    timeout(LIMIT, done.recv()).await.expect("in time").expect("the thread lives")
}

fn record(index: usize) -> Job {
    Job::Entry(Entry::Record(Box::new(test_support::campaign().1[index].clone())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_somebody_holds_keeps_its_own_campaign_waiting_and_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let (writer, mut done) = two(directory.path()).await;
    let path = directory.path().join("campaigns/held").join(LEDGER);
    let reader = Connection::open(path).expect("opens");
    reader.execute_batch("BEGIN EXCLUSIVE").expect("holds it");
    writer.give("held", record(0));
    let (id, wrote) = next(&mut done).await;
    assert!(id == "held" && matches!(wrote, Wrote::Failed { again: true, .. }), "{id} {wrote:?}");
    writer.give("held", record(1));
    writer.give("free", record(0));
    // Whatever else is tried again meanwhile.
    loop {
        match next(&mut done).await {
            (id, Wrote::Recorded { .. }) => {
                assert_eq!(id, "free");
                break;
            }
            (id, Wrote::Failed { again: true, .. }) => assert_eq!(id, "held"),
            (id, other) => panic!("{id} {other:?}"),
        }
    }
    reader.execute_batch("COMMIT").expect("lets it go");
    let mut recorded = Vec::new();
    while recorded.len() < 2 {
        if let (id, Wrote::Recorded { trial, .. }) = next(&mut done).await {
            assert_eq!(id, "held");
            recorded.push(trial);
        }
    }
    let (_, records) = test_support::campaign();
    assert_eq!(recorded, [records[0].trial, records[1].trial], "not in their order");
    tokio::task::block_in_place(|| writer.finish());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_damaged_ends_its_own_campaign_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let (writer, mut done) = two(directory.path()).await;
    let path = directory.path().join("campaigns/held").join(LEDGER);
    Connection::open(path).and_then(|other| other.execute_batch("DROP TABLE record")).expect("damaged");
    writer.give("held", record(0));
    writer.give("held", record(1));
    writer.give("free", record(0));
    let (id, wrote) = next(&mut done).await;
    assert!(id == "held" && matches!(wrote, Wrote::Failed { again: false, .. }), "{id} {wrote:?}");
    // What it did not take comes back: it was measured all the same.
    let mut unkept = Vec::new();
    while unkept.len() < 2 {
        let (id, Wrote::Unkept(records)) = next(&mut done).await else { panic!("something else came") };
        assert_eq!(id, "held");
        unkept.extend(records);
    }
    assert_eq!(unkept, test_support::campaign().1[..2]);
    let (id, wrote) = next(&mut done).await;
    assert!(id == "free" && matches!(wrote, Wrote::Recorded { .. }), "{id} {wrote:?}");
    let provenance = Box::new(test_support::provenance());
    writer.give("held", Job::Close(provenance));
    let (id, wrote) = next(&mut done).await;
    assert!(id == "held" && matches!(wrote, Wrote::Closed), "{id} {wrote:?}");
    tokio::task::block_in_place(|| writer.finish());
}
