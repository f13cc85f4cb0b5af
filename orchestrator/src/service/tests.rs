//! The service on real directories, without agents: what is kept, listed and left out.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicUsize;

use handle::{Handle, LookupError, PageQuery};
use proptest::prelude::*;
use tokio::time::timeout;
use toll_protocol::campaign;
use toll_protocol::service::CampaignStatus;

use super::*;
use crate::ledger::Ledger;
use crate::link::AGENT_TIMEOUT;
use crate::pki::{Authority, DEFAULT_DAYS, SERVER_NAME};
use crate::test_support;
use store::LEDGER;

const LIMIT: Duration = Duration::from_secs(60);
const DOCUMENT: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: NAME}
spec:
  hosts: {select: {}}
  arms: [{name: native, native: {}}]
  workloads: [{name: bulk, stream: {}}]
";

/// Counts summaries.
#[derive(Clone, Default)]
struct Summaries(Arc<AtomicUsize>);

impl Observer for Summaries {
    fn summarised(&mut self, _id: &str, _result: &CampaignResult) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Running {
    handle: Handle,
    heartbeat: Arc<AtomicU64>,
    summaries: Summaries,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<Summaries, ServiceError>>,
}

/// Waits until `look` gives something.
async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let found = async {
        let mut pace = interval(Duration::from_millis(5));
        loop {
            if let Some(found) = look() {
                return found;
            }
            pace.tick().await;
        }
    };
    timeout(LIMIT, found).await.expect("in time")
}

/// A data directory's store, once the threads of the service before have let it go.
async fn store(data: &Path) -> Store {
    until(|| match Store::fleet(data) {
        Err(StoreError::Held { .. }) => None,
        other => Some(other.expect("a store")),
    })
    .await
}

async fn new(data: &Path, interim: bool, keep: Option<usize>) -> (Service<Summaries>, Handle, Summaries) {
    new_with(data, |options| Options { interim, keep, ..options }).await
}

async fn new_with(
    data: &Path,
    change: impl FnOnce(Options) -> Options,
) -> (Service<Summaries>, Handle, Summaries) {
    let identity = Authority::new(DEFAULT_DAYS).and_then(|ca| ca.issue(SERVER_NAME, DEFAULT_DAYS));
    let address = "127.0.0.1:0".parse().expect("an address");
    let (link, events) =
        Link::bind(address, &identity.expect("certificates"), AGENT_TIMEOUT).expect("a socket");
    let (handle, questions) = handle::channel();
    let policy = Policy { limit: 1, grace: LIMIT, arrival: LIMIT, settle: Duration::ZERO, cluster: false };
    let options = Options::new(store(data).await, "fleet", policy);
    let summaries = Summaries::default();
    let service = Service::new(change(options), link, events, questions, summaries.clone()).expect("starts");
    (service, handle, summaries)
}

async fn start_with(data: &Path, interim: bool, keep: Option<usize>) -> Running {
    run(new(data, interim, keep).await)
}

fn run((service, handle, summaries): (Service<Summaries>, Handle, Summaries)) -> Running {
    let heartbeat = service.heartbeat();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(service.run(async move { drop(stopped.await) }));
    Running { handle, heartbeat, summaries, stop, task }
}

async fn start(data: &Path) -> Running {
    start_with(data, true, None).await
}

impl Running {
    async fn stop(self) {
        drop(self.stop);
        self.task.await.expect("no panic").expect("serves");
    }

    async fn over(&self, id: &str) -> CampaignStatus {
        let mut changes = self.handle.changes();
        let over = async {
            loop {
                let status = self.handle.campaign(id).await.expect("is there");
                if status.state.is_over() {
                    return status;
                }
                changes.changed().await.expect("the service goes on");
            }
        };
        timeout(LIMIT, over).await.expect("ends")
    }

    async fn turns(&self, count: u64) {
        let from = self.heartbeat.load(Ordering::Relaxed);
        until(|| (self.heartbeat.load(Ordering::Relaxed) >= from + count).then_some(())).await;
    }

    /// Every campaign, in pages of `limit`.
    async fn all(&self, limit: usize) -> Vec<CampaignStatus> {
        let (mut all, mut query) = (Vec::new(), PageQuery { limit: Some(limit), after: None });
        loop {
            let page = self.handle.campaigns(query.clone()).await.expect("a page");
            assert!(page.items.len() <= limit);
            all.extend(page.items);
            match page.next {
                Some(next) => query.after = Some(next),
                None => return all,
            }
        }
    }
}

fn named(name: &str) -> String {
    DOCUMENT.replace("NAME", name)
}

/// Writes the ledger of a campaign that has a plan and some records, as a former process leaves it.
fn begun(store: &Store, id: &str) {
    let document = named("begun");
    let campaign = campaign::parse(&document).expect("is valid");
    let host = |n| plan::Host { name: format!("host-{n}"), virtual_address: None, mtu: 1500, rate: None };
    let hosts: Vec<plan::Host> = (1..=2).map(host).collect();
    let mut ids = rand::rng();
    let plan = plan::Plan::new(&campaign, &hosts, 1, || plan::draw(&mut ids));
    let mut header = kept::header(&campaign, &document, 1, test_support::provenance(), 1);
    (header.planned, header.hosts) = (kept::planned(&plan), Some(hosts));
    let mut ledger = store.create(id, &header).expect("creates");
    let (_, records) = test_support::campaign();
    for planned in header.planned.iter().take(3) {
        let (trial, cell) = (planned.trial, planned.cell.clone());
        let (block, position) = (planned.block, planned.position);
        let record = TrialRecord { trial, cell, block, position, ..records[0].clone() };
        ledger.record(&record).expect("records");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Any valid names, any number of submissions at the same instant.
    #[test]
    fn what_was_taken_is_there_after_any_restart(
        names in proptest::collection::vec("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?|[a-z]{63}", 1..3),
        submissions in proptest::collection::vec(any::<prop::sample::Index>(), 1..12),
    ) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let directory = tempfile::tempdir().expect("a directory");
        runtime.block_on(async {
            let service = start(directory.path()).await;
            let submitted = submissions.iter().map(|which| {
                let name: &String = which.get(&names);
                // A name of digits is a number, unless it is quoted.
                service.handle.submit(None, named(&format!("'{name}'")))
            });
            let submitted = futures_util::future::join_all(submitted).await;
            let mut ids: Vec<String> = submitted.into_iter().map(|taken| taken.expect("is taken").id).collect();
            ids.sort();
            service.stop().await;
            let service = start(directory.path()).await;
            let mut found: Vec<String> = service.all(5).await.into_iter().map(|status| status.id).collect();
            found.sort();
            assert_eq!(found, ids);
            assert_eq!(service.handle.left_out().await.count, 0);
            service.stop().await;
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_lies_in_the_directory_the_service_starts_and_names_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let campaigns = directory.path().join("campaigns");
    let service = start(directory.path()).await;
    for id in ["good", "corrupt", "refused", "moved"] {
        service.handle.submit(Some(id.into()), named("c")).await.expect("is taken");
    }
    service.stop().await;
    fs::write(campaigns.join("corrupt").join(LEDGER), b"no database").expect("writes");
    fs::write(campaigns.join("file"), b"").expect("writes");
    let refused = rusqlite::Connection::open(campaigns.join("refused").join(LEDGER)).expect("opens");
    refused.execute("UPDATE campaign SET manifest = 'kind: Nothing'", []).expect("writes");
    fs::rename(campaigns.join("moved"), directory.path().join("elsewhere")).expect("moves");
    std::os::unix::fs::symlink("../elsewhere-not", campaigns.join("moved")).expect("links");

    let service = start(directory.path()).await;
    let found: Vec<String> = service.all(100).await.into_iter().map(|status| status.id).collect();
    assert_eq!(found, ["good"]);
    let left_out = service.handle.left_out().await;
    let told: Vec<_> =
        left_out.entries.iter().map(|entry| (entry.name.as_str(), entry.tried_again)).collect();
    assert_eq!(told, [("corrupt", false), ("file", false), ("moved", true), ("refused", false)]);
    assert_eq!(service.handle.campaigns(PageQuery::default()).await.expect("a page").left_out, 4);
    let refused = service.handle.campaign("refused").await.expect_err("is left out");
    assert!(refused.to_string().contains("refuses the campaign's document"), "{refused}");
    let taken = service.handle.submit(Some("corrupt".into()), named("c")).await.expect_err("is there");
    assert!(matches!(taken, SubmitError::LeftOut { again: false, .. }), "{taken}");
    // What may pass is looked at again, and what is gone is forgotten.
    fs::rename(directory.path().join("elsewhere"), directory.path().join("elsewhere-not")).expect("moves");
    fs::remove_file(campaigns.join("file")).expect("removes");
    let mut changes = service.handle.changes();
    let mended = async {
        while service.handle.left_out().await.count > 2 {
            changes.changed().await.expect("the service goes on");
        }
    };
    timeout(LIMIT, mended).await.expect("is looked at again");
    assert!(service.handle.campaign("moved").await.is_ok_and(|status| !status.state.is_over()));
    assert!(matches!(service.handle.campaign("file").await, Err(LookupError::Unknown { .. })));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_that_its_ledger_ended_has_its_result_and_stays_over() {
    let directory = tempfile::tempdir().expect("a directory");
    {
        let store = store(directory.path()).await;
        begun(&store, "one");
        begun(&store, "two");
        drop(store);
    }
    let ledger = |id: &str| directory.path().join("campaigns").join(id).join(LEDGER);
    let service = start(directory.path()).await;
    let refuse = "CREATE TRIGGER no BEFORE UPDATE ON campaign BEGIN SELECT RAISE(ABORT, 'no'); END";
    for (id, damage) in [("one", refuse), ("two", "DROP TABLE record; DROP TABLE campaign")] {
        rusqlite::Connection::open(ledger(id)).and_then(|it| it.execute_batch(damage)).expect("damages");
        service.handle.cancel(id, "it has to end").await.expect("is ending");
    }
    let check = async |service: &Running| {
        let one = service.over("one").await;
        assert_eq!(one.state, CampaignState::Cancelled);
        let fault = one.fault.expect("is told");
        assert!(fault.starts_with("its ledger can't be used any more") && one.reason == Some(fault));
        assert_eq!(one.counts.map(|counts| counts.measured), Some(3));
        let result = service.handle.result("one").await.expect("what it has");
        assert!(kept::total(&result).measured == 3 && result.provenance.interrupted);
        // Nothing can be read any more: that is told.
        let two = service.over("two").await;
        assert!(two.fault.is_some() && two.counts.is_some_and(|counts| counts.measured == 3), "{two:?}");
        let error = service.handle.result("two").await.expect_err("there is none");
        assert!(matches!(error, LookupError::Ledger { .. }), "{error}");
    };
    check(&service).await;
    service.stop().await;
    let service = start(directory.path()).await;
    check(&service).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_takes_nothing_for_now_is_told_as_long_as_it_lasts() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = start(directory.path()).await;
    service.handle.submit(Some("one".into()), named("c")).await.expect("is taken");
    let holder =
        rusqlite::Connection::open(directory.path().join("campaigns/one").join(LEDGER)).expect("opens");
    holder.execute_batch("BEGIN EXCLUSIVE").expect("holds it");
    let handle = service.handle.clone();
    let cancelled = tokio::spawn(async move { handle.cancel("one", "it has to end").await });
    let mut changes = service.handle.changes();
    let told = async {
        loop {
            let fault = service.handle.campaign("one").await.expect("is there").fault;
            if let Some(fault) = fault {
                return fault;
            }
            changes.changed().await.expect("the service goes on");
        }
    };
    let fault = timeout(LIMIT, told).await.expect("is told");
    assert!(fault.starts_with("its ledger takes nothing for now") && !cancelled.is_finished(), "{fault}");
    holder.execute_batch("COMMIT").expect("lets it go");
    cancelled.await.expect("no panic").expect("is durable");
    let status = service.over("one").await;
    assert!(status.state == CampaignState::Cancelled && status.fault.is_none(), "{status:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_measured_summarises_nothing_meanwhile() {
    for interim in [true, false] {
        let directory = tempfile::tempdir().expect("a directory");
        begun(&store(directory.path()).await, "one");
        let service = start_with(directory.path(), interim, None).await;
        service.turns(15).await;
        if interim {
            until(|| (service.summaries.0.load(Ordering::Relaxed) > 0).then_some(())).await;
        } else {
            assert_eq!(service.summaries.0.load(Ordering::Relaxed), 0);
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn campaigns_that_are_over_are_listed_page_by_page_and_not_held() {
    let directory = tempfile::tempdir().expect("a directory");
    let service = start(directory.path()).await;
    let ids: Vec<String> = (0..7).map(|number| format!("c-{number}")).collect();
    for id in &ids {
        service.handle.submit(Some(id.clone()), named("c")).await.expect("is taken");
        if id != "c-3" {
            service.handle.cancel(id, "it has to end").await.expect("is ending");
            service.over(id).await;
        }
    }
    for limit in [1, 3, 100] {
        let listed: Vec<String> = service.all(limit).await.into_iter().map(|status| status.id).collect();
        assert_eq!(listed, ids.iter().rev().cloned().collect::<Vec<_>>(), "in pages of {limit}");
    }
    let query = PageQuery { limit: None, after: Some("x".into()) };
    assert!(service.handle.campaigns(query).await.is_err());
    // The same document is known, another is not taken for it.
    let again = service.handle.submit(Some("c-0".into()), named("c")).await.expect("is known");
    assert!(!again.new);
    let other = service.handle.submit(Some("c-0".into()), named("d")).await.expect_err("is another");
    assert!(matches!(other, SubmitError::Taken { .. }), "{other}");
    service.stop().await;
    // Nothing is removed that nobody asked to be.
    let (service, _, _) = new(directory.path(), true, None).await;
    assert_eq!(service.kept.keys().collect::<Vec<_>>(), ["c-3"]);
    assert_eq!(service.past.iter().count(), 6);
    drop(service);
    let service = start_with(directory.path(), true, Some(2)).await;
    let left = || {
        let entries = fs::read_dir(directory.path().join("campaigns")).expect("lists");
        let mut left: Vec<String> =
            entries.map(|entry| entry.expect("reads").file_name().to_string_lossy().into_owned()).collect();
        left.sort();
        left
    };
    until(|| (left().len() == 3).then_some(())).await;
    assert_eq!(left(), ["c-3", "c-5", "c-6"]);
    service.handle.cancel("c-3", "it has to end").await.expect("is ending");
    service.over("c-3").await;
    assert!(matches!(service.handle.campaign("c-5").await, Err(LookupError::Unknown { .. })));
    assert!(Ledger::open(&directory.path().join("campaigns/c-6").join(LEDGER)).is_ok());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_that_is_kept_but_could_not_be_opened_goes_on_by_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut service, handle, summaries) = new(directory.path(), true, None).await;
    let document = named("c");
    let campaign = campaign::parse(&document).expect("is valid");
    let header = kept::header(&campaign, &document, 1, test_support::provenance(), 1);
    let (answer, answered) = oneshot::channel();
    service.kept.insert("one".into(), Kept::new("one", &header, Vec::new(), Phase::Creating));
    let new = service.new_campaign("one", campaign, 1);
    service.waiting.push(("one".into(), Waiting::Submitted(answer, Box::new(new))));
    drop(service.options.store.create("one", &header).expect("creates"));
    let source = StoreError::Id("one".into());
    let path = service.options.store.directory("one");
    service.created("one", Err(StoreError::There { path, source: Box::new(source) })).expect("goes on");
    let later = answered.await.expect("an answer").expect_err("can't be opened");
    assert!(matches!(&later, SubmitError::Later { id, .. } if id == "one"), "{later}");
    let service = run((service, handle, summaries));
    let mut changes = service.handle.changes();
    let known = async {
        loop {
            match service.handle.submit(Some("one".into()), document.clone()).await {
                Ok(submitted) => return submitted.new,
                Err(SubmitError::LeftOut { again: true, .. }) => {}
                Err(other) => panic!("{other}"),
            }
            changes.changed().await.expect("the service goes on");
        }
    };
    assert!(!timeout(LIMIT, known).await.expect("goes on"), "it is known");
    assert_eq!((service.all(5).await.len(), service.handle.left_out().await.count), (1, 0));
    // What somebody has put in a campaign's place is not taken for one.
    fs::create_dir_all(directory.path().join("campaigns/two/x")).expect("makes");
    let later = service.handle.submit(Some("two".into()), document.clone()).await.expect_err("is there");
    assert!(matches!(later, SubmitError::Later { .. }), "{later}");
    let never = async {
        while !matches!(service.handle.campaign("two").await, Err(LookupError::LeftOut { again: false, .. }))
        {
            changes.changed().await.expect("the service goes on");
        }
    };
    timeout(LIMIT, never).await.expect("is looked at");
    service.stop().await;
}

/// With a cluster the object of a campaign is told of its end before the campaign may go.
#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_that_has_just_ended_is_not_removed() {
    const LEAST: Duration = Duration::from_secs(1);
    let directory = tempfile::tempdir().expect("a directory");
    let there = |id: &str| directory.path().join("campaigns").join(id).exists();
    let keep = |options| Options { keep: Some(1), keep_for: LEAST, ..options };
    let service = run(new_with(directory.path(), keep).await);
    let mut ended = Instant::now();
    for id in ["a", "b", "c"] {
        service.handle.submit(Some(id.into()), named("c")).await.expect("is taken");
        if id == "b" {
            ended = Instant::now();
        }
        service.handle.cancel(id, "it has to end").await.expect("is ending");
        service.over(id).await;
    }
    until(|| (!there("b")).then_some(())).await;
    let took = ended.elapsed();
    until(|| (!there("a")).then_some(())).await;
    assert!(there("c"));
    service.stop().await;
    // The next process has not had the time to tell of them either.
    let store = store(directory.path()).await;
    let over = store.over("c").expect("reads").expect("is over");
    let status = CampaignStatus { id: "old".into(), ended_unix_ms: Some(0), ..over.status };
    fs::create_dir(store.directory("old")).expect("makes");
    store.write_status(&store::Over::new(status, over.manifest)).expect("writes");
    drop(store);
    let began = Instant::now();
    let service = run(new_with(directory.path(), keep).await);
    until(|| (!there("old")).then_some(())).await;
    // Times are written in whole milliseconds.
    for took in [took, began.elapsed()] {
        assert!(took + Duration::from_millis(1) >= LEAST, "{took:?}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_that_its_hosts_cannot_do_is_refused_and_stays_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let host = |name: &str, mtu| plan::Host { name: name.into(), virtual_address: None, mtu, rate: None };
    let lab = LabHosts { hosts: vec![host("a", 1400), host("b", 1500)], rate: None, mtu: 1500 };
    let service = run(new_with(directory.path(), |options| Options { lab: Some(lab), ..options }).await);
    service.handle.submit(Some("one".into()), named("c")).await.expect("is valid");
    let check = async |service: &Running| {
        let status = service.over("one").await;
        assert_eq!((status.state, status.fault, status.counts), (CampaignState::Refused, None, None));
        let why = status.reason.expect("is told");
        assert!(why.contains("a 1400, b 1500") && !why.contains("  "), "{why}");
        let error = service.handle.result("one").await.expect_err("there is none");
        assert!(matches!(&error, LookupError::Refused { why: told, .. } if *told == why), "{error}");
        service.handle.cancel("one", "too late").await.expect("is over");
        assert!(!directory.path().join("campaigns/one/result.json").exists());
    };
    check(&service).await;
    service.stop().await;
    let service = start(directory.path()).await;
    check(&service).await;
    service.stop().await;
}
