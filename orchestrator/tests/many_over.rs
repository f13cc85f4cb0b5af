//! A service that begins on a directory of campaigns that are over reads each, and holds none of them. A program of its
//! own: the memory of a process is looked at.

use std::fs;
use std::time::Duration;

use toll_orchestrator::link::{AGENT_TIMEOUT, Link};
use toll_orchestrator::pki::{Authority, DEFAULT_DAYS, SERVER_NAME};
use toll_orchestrator::scheduler::Policy;
use toll_orchestrator::service::handle::{self, PageQuery};
use toll_orchestrator::service::store::{Over, Store};
use toll_orchestrator::service::{Observer, Options, Service};
use toll_protocol::service::{CampaignState, CampaignStatus};

/// Campaigns, and bytes of each one's document.
const CAMPAIGNS: u64 = 128;
const DOCUMENT: usize = 1 << 20;
/// KiB that may be held at a time: far below the documents together, far above one of them.
const MOST: u64 = 64 << 10;

struct Nobody;

impl Observer for Nobody {}

/// The largest resident set since [`forget`], in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("reads");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Makes the largest resident set that of now (proc(5), clear_refs).
fn forget() {
    fs::write("/proc/self/clear_refs", "5").expect("writes");
}

fn over(store: &Store, number: u64) -> std::io::Result<()> {
    let id = format!("c-{number}");
    let status = CampaignStatus {
        ended_unix_ms: Some(number),
        ..CampaignStatus::new(&id, "c", CampaignState::Finished, number)
    };
    let over = Over::new(status, "#".repeat(DOCUMENT));
    fs::create_dir(store.directory(&id))?;
    fs::write(store.directory(&id).join("status.json"), serde_json::to_string(&over)?)
}

fn service(store: Store) -> (Service<Nobody>, handle::Handle) {
    let identity = Authority::new(DEFAULT_DAYS).and_then(|ca| ca.issue(SERVER_NAME, DEFAULT_DAYS));
    let address = "127.0.0.1:0".parse().expect("an address");
    let (link, events) =
        Link::bind(address, &identity.expect("certificates"), AGENT_TIMEOUT).expect("a socket");
    let (handle, questions) = handle::channel();
    let options = Options::new(
        store,
        "fleet",
        Policy {
            limit: 1,
            grace: Duration::ZERO,
            arrival: Duration::ZERO,
            settle: Duration::ZERO,
            cluster: false,
        },
    );
    (Service::new(options, link, events, questions, Nobody).expect("starts"), handle)
}

#[tokio::test(flavor = "multi_thread")]
async fn campaigns_that_are_over_are_not_all_in_memory_when_a_service_begins() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::fleet(directory.path()).expect("a store");
    for number in 0..CAMPAIGNS {
        over(&store, number).expect("writes");
    }
    forget();
    let before = peak();
    let (service, handle) = service(store);
    let took = peak().saturating_sub(before);
    assert!(took < MOST, "{took} KiB for {CAMPAIGNS} documents of {DOCUMENT} bytes");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(service.run(async move { drop(stopped.await) }));
    let page = handle.campaigns(PageQuery { limit: Some(500), after: None }).await.expect("a page");
    assert_eq!((page.items.len() as u64, page.left_out), (CAMPAIGNS, 0));
    drop(stop);
    running.await.expect("no panic").expect("serves");
}
