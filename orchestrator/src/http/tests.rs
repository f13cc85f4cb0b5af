//! The API over real sockets on loopback, in front of a service without agents.

mod peers;
mod readers;
mod writers;

use std::net::SocketAddr;
use std::path::PathBuf;

use reqwest::Method;
use serde_json::Value;
use tokio::sync::oneshot;
use toll_protocol::campaign::MAX_DOCUMENT;

use super::client::{Client, ClientError};
use super::*;
use crate::link::{AGENT_TIMEOUT, Link};
use crate::pki::{Authority, DEFAULT_DAYS, SERVER_NAME};
use crate::scheduler::Policy;
use crate::service::store::Store;
use crate::service::{Observer, Options, Service, handle};

const GOOD: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: c}
spec:
  hosts: {select: {}}
  arms: [{name: native, native: {}}]
  workloads: [{name: bulk, stream: {}}]
";

/// How long a document may take to come, in tests.
const PATIENCE: Duration = Duration::from_secs(5);

struct Nobody;
impl Observer for Nobody {}

struct Served {
    url: String,
    /// Its Unix socket.
    socket: PathBuf,
    results: Arc<Semaphore>,
    bodies: Bodies,
    directory: tempfile::TempDir,
    _stop: oneshot::Sender<()>,
}

/// A service and its API, with `token`.
async fn serve_with(token: Option<&str>) -> Served {
    let directory = tempfile::tempdir().expect("a directory");
    let identity = Authority::new(DEFAULT_DAYS).and_then(|ca| ca.issue(SERVER_NAME, DEFAULT_DAYS));
    let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let (link, events) =
        Link::bind(address, &identity.expect("certificates"), AGENT_TIMEOUT).expect("a socket");
    let (handle, questions) = handle::channel();
    let options = Options::new(
        Store::fleet(directory.path()).expect("a store"),
        "fleet",
        Policy {
            limit: 1,
            grace: Duration::from_secs(1),
            arrival: Duration::from_secs(1),
            settle: Duration::ZERO,
            cluster: false,
        },
    );
    let service = Service::new(options, link, events, questions, Nobody).expect("a service");
    let results = Arc::new(Semaphore::new(RESULTS));
    let bodies = Bodies::new(bodies::BUDGET, PATIENCE);
    let api = Api {
        handle,
        token: token.map(Arc::from),
        names: Names::new(&[]),
        pulse: Pulse::new(service.heartbeat()),
        metrics: Arc::new(|| "toll_up 1\n".to_owned()),
        results: results.clone(),
        bodies: bodies.clone(),
        answers: Answers::new(held::BUDGET),
    };
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(service.run(async move { drop(stopped.await) }));
    let listener = TcpListener::bind(address).await.expect("a socket");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let path = directory.path().join("toll.sock");
    let socket = Socket::bind(&path).expect("a socket");
    tokio::spawn(serve(listener, socket, api, std::future::pending()));
    Served { url, socket: path, results, bodies, directory, _stop: stop }
}

/// The owner, at the Unix socket.
fn client(served: &Served) -> Client {
    Client::new(Some(&format!("unix:{}", served.socket.display())), None).expect("a client")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_of_the_document_is_served_and_answers_as_it_says() {
    let served = serve_with(None).await;
    let id = client(&served).submit(Some("one"), GOOD.to_owned()).await.expect("is taken").id;
    let http = reqwest::Client::builder().unix_socket(served.socket.as_path()).build().expect("a client");
    for operation in openapi::OPERATIONS {
        // The stream of a campaign that waits has no end: its head is what is looked at.
        let path = operation.path.replace("{id}", &id);
        let method = Method::from_bytes(operation.method.to_uppercase().as_bytes()).expect("a method");
        let request = http.request(method, format!("{}{path}", served.url)).body(GOOD);
        let answer = request.send().await.expect("an answer");
        let status = answer.status().as_u16();
        let told = &openapi::openapi()["paths"][operation.path][operation.method]["responses"];
        let content = &told[status.to_string()]["content"];
        let media =
            answer.headers()["content-type"].to_str().expect("text").split(';').next().expect("a type");
        assert!(content[media].is_object(), "{} {path} answered {status}, {media}: {told}", operation.method);
        assert_harmless(answer.headers());
    }
}

fn assert_harmless(headers: &reqwest::header::HeaderMap) {
    assert_eq!(headers["x-content-type-options"], "nosniff");
    let policy = headers["content-security-policy"].to_str().expect("text");
    assert!(
        policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    let media = headers["content-type"].to_str().expect("text");
    assert!(
        !media.starts_with("text/") || media.ends_with("charset=utf-8") || media == "text/event-stream",
        "{media}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_as_harmless_as_answers() {
    let served = serve_with(None).await;
    let http = reqwest::Client::new();
    for (method, path, status) in [
        (Method::GET, "/<script>", 404),
        (Method::POST, "/api/v1/campaigns", 403),
        (Method::GET, "/api/v1/campaigns/x", 404),
        (Method::GET, "/api/v1/campaigns/x/report", 404),
        (Method::GET, "/api/v1/campaigns/%ff", 400),
    ] {
        let answer = http.request(method, format!("{}{path}", served.url)).send().await.expect("an answer");
        assert_eq!(answer.status(), status, "{path}");
        assert_harmless(answer.headers());
    }
    let answer = http.patch(format!("{}/livez", served.url)).send().await.expect("an answer");
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    let metrics = http.get(format!("{}/metrics", served.url)).send().await.expect("an answer");
    assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_harmless(metrics.headers());
}

#[test]
fn the_document_refers_to_schemas_that_it_has() {
    let document = openapi::openapi();
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 20, "{references:?}");
    for reference in references {
        let pointer = reference.strip_prefix('#').expect("one of this document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            references.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| collect(value, references));
        }
        Value::Array(array) => array.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_is_taken_once_and_another_under_its_id_is_not() {
    let served = serve_with(None).await;
    let client = client(&served);
    let first = client.submit(Some("one"), GOOD.to_owned()).await.expect("is taken");
    let again = client.submit(Some("one"), GOOD.to_owned()).await.expect("is known");
    assert!(first.new && !again.new && first.id == again.id);
    let other = client.submit(Some("one"), format!("{GOOD}  blocks: 2\n")).await.expect_err("is another");
    assert!(other.to_string().contains("another campaign with the id one"), "{other}");
    let status = client.campaign("one").await.expect("is there");
    assert_eq!(status.state, toll_protocol::service::CampaignState::Pending);
    assert!(
        matches!(client.result("one").await, Err(ClientError::Refused(refusal)) if refusal.message.contains("waits"))
    );
    client.cancel("one").await.expect("is cancelled");
    let last = client.watch("one", |_| {}).await.expect("ends");
    assert_eq!(last.state, toll_protocol::service::CampaignState::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_with_its_place() {
    let served = serve_with(None).await;
    let client = client(&served);
    let bad = client.submit(None, GOOD.replace("bulk", "Bulk")).await.expect_err("is wrong");
    let ClientError::Refused(refusal) = bad else { panic!("{bad}") };
    assert!(refusal.problems[0].starts_with("line 7, column"), "{refusal:?}");
    // All at once, those of the shape too.
    let faults = GOOD.replace("bulk", "Bulk").replace("select: {}", "select: {atMost: 2}");
    let bad = client.submit(None, faults).await.expect_err("is wrong twice");
    assert!(matches!(&bad, ClientError::Refused(refusal) if refusal.problems.len() == 2), "{bad:?}");
    for (id, words) in [("../x", "no campaign id"), ("", "no campaign id")] {
        let error = client.submit(Some(id), GOOD.to_owned()).await.expect_err("is no id");
        assert!(error.to_string().contains(words), "{error}");
    }
    let lab = GOOD.replace("select: {}", "lab: {count: 2}");
    let error = client.submit(None, lab).await.expect_err("has no hosts here");
    assert!(error.to_string().contains("select"), "{error}");
    let error = client.campaign("nothing").await.expect_err("is not there");
    assert_eq!(error.to_string(), "there is no campaign nothing");
    let long = client.submit(None, "#".repeat(MAX_DOCUMENT + 1)).await.expect_err("is too long");
    assert!(
        matches!(&long, ClientError::Refused(refusal) if refusal.problems[0].contains("at most")),
        "{long}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_ask_nothing_keep_nobody_out() {
    let served = serve_with(None).await;
    let address = served.url.trim_start_matches("http://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(tokio::net::TcpStream::connect(&address).await.expect("connected"));
    }
    assert!(client(&served).campaigns(&PageQuery::default()).await.expect("answered").items.is_empty());
    // The oldest has lost its place.
    let mut byte = [0; 1];
    let closed = tokio::io::AsyncReadExt::read(&mut silent[0], &mut byte).await;
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_made_in_turn() {
    let served = serve_with(None).await;
    let turns = served.results.clone().acquire_many_owned(RESULTS as u32).await.expect("open");
    let asking = client(&served);
    let asked = tokio::spawn(async move { asking.result("nothing").await });
    // Everything else is answered meanwhile.
    assert!(client(&served).campaigns(&PageQuery::default()).await.expect("answered").items.is_empty());
    assert!(!asked.is_finished());
    drop(turns);
    let error = asked.await.expect("no panic").expect_err("there is none");
    assert_eq!(error.to_string(), "there is no campaign nothing");
}

#[tokio::test]
async fn a_result_that_nobody_waits_for_any_more_keeps_its_turn_until_it_is_made() {
    let (handle, mut questions) = handle::channel();
    let results = Arc::new(Semaphore::new(RESULTS));
    let api = Api {
        handle,
        token: None,
        names: Names::new(&[]),
        pulse: Pulse::new(Arc::new(AtomicU64::new(0))),
        metrics: Arc::new(String::new),
        results: results.clone(),
        bodies: Bodies::default(),
        answers: Answers::new(held::BUDGET),
    };
    let mut asked = Vec::new();
    for _ in 0..RESULTS {
        let leaves = made(&api, "one", |_| Response::default());
        let question = tokio::select! {
            _ = leaves => panic!("nobody has answered"),
            question = questions.requests.recv() => question,
        };
        let Some(handle::Request::Result { answer, .. }) = question else { panic!("asks for a result") };
        asked.push(answer);
    }
    // Both have left, and both results are still being read.
    assert_eq!(results.available_permits(), 0);
    for answer in asked {
        drop(answer.send(Err(LookupError::Ending)));
    }
    let all = results.acquire_many(RESULTS as u32);
    assert!(tokio::time::timeout(Duration::from_secs(10), all).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_taken_in_the_encodings_that_editors_write() {
    let served = serve_with(Some("secret")).await;
    let post = async |body: Vec<u8>| {
        let request = reqwest::Client::new().post(format!("{}/api/v1/campaigns", served.url));
        let answer = request.bearer_auth("secret").body(body).send();
        let answer = answer.await.expect("answered");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    };
    let utf16 = format!("\u{feff}{GOOD}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    for good in [format!("\u{feff}{GOOD}").into_bytes(), GOOD.replace('\n', "\r\n").into_bytes(), utf16] {
        let (status, text) = post(good).await;
        assert_eq!(status, 201, "{text}");
    }
    for (bad, words) in [
        (b"kind: \xff".to_vec(), "the document is not in UTF-8 (byte 6)"),
        (b"k\0i\0n\0d\0".to_vec(), "the document is in UTF-16 without a byte order mark: save it as UTF-8"),
        (GOOD.replace("bulk", "bu\0lk").into_bytes(), "line 7, column 24: a NUL byte stands here"),
    ] {
        let (status, text) = post(bad).await;
        assert!(status == 422 && text.contains(words), "{status} {text}");
    }
}

#[test]
fn a_service_that_stands_still_is_seen() {
    let heartbeat = Arc::new(AtomicU64::new(1));
    let pulse = Pulse::new(heartbeat.clone());
    assert!(pulse.stalled() < STALLED);
    // A pulse is compared with the last one seen: time alone makes it stale.
    pulse.seen.lock().expect("not poisoned").1 = Instant::now() - 2 * STALLED;
    assert!(pulse.stalled() > STALLED);
    heartbeat.fetch_add(1, Ordering::Relaxed);
    assert!(pulse.stalled() < STALLED);
}

#[test]
fn an_address_that_is_none_is_told() {
    for server in ["", "localhost:8080", "https://x", "ftp://x", "http://", "unix:"] {
        let error = Client::new(Some(server), None).err().expect(server);
        assert!(error.to_string().contains("http://HOST:PORT"), "{error}");
    }
}
