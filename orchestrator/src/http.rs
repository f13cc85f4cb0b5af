//! The HTTP API of the service: JSON for the command line and for pages, and what Prometheus and a kubelet ask for.
//!
//! ```text
//! GET    /livez  /readyz  /metrics
//! GET    /api/v1/campaigns            ?limit=&continue=     POST  ?id=    the document is the body: 201, 200 if known
//! GET    /api/v1/campaigns/ID         DELETE        202: it is being cancelled
//! GET    /api/v1/campaigns/ID/events                its status, and again whenever it changes (server-sent events)
//! GET    /api/v1/campaigns/ID/result                result.json, as far as it has come
//! GET    /api/v1/campaigns/ID/report                the page of the same
//! GET    /api/v1/left-out                           what lies in the data directory and can't be served
//! GET    /api/v1/agents               GET /api/v1/openapi.json
//! ```
//! What changes something comes by the Unix socket as its owner, or shows the token: [`guard`].

pub mod bodies;
pub mod client;
pub mod guard;
pub mod held;
mod listen;
pub mod openapi;
mod patience;
pub mod socket;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinError;
use toll_protocol::campaign;
use toll_protocol::result::CampaignResult;
use toll_protocol::service::Refusal;

use crate::http::bodies::{Bodies, Document};
use crate::http::guard::Names;
use crate::http::held::Answers;
use crate::http::socket::Socket;
use crate::report;
use crate::service::handle::{Handle, ListError, LookupError, PageQuery, SubmitError};

/// How long the service's task may stand still before it counts as dead.
const STALLED: Duration = Duration::from_secs(30);
/// Why a campaign ends that somebody cancels without saying why.
const CANCELLED: &str = "the campaign was cancelled";

/// Text of the metrics.
pub type Exposition = Arc<dyn Fn() -> String + Send + Sync>;

/// Whether the service's task turns.
#[derive(Debug, Clone)]
pub struct Pulse {
    heartbeat: Arc<AtomicU64>,
    /// The last beat seen, and when.
    seen: Arc<std::sync::Mutex<(u64, Instant)>>,
}

impl Pulse {
    /// The pulse of what counts `heartbeat` up.
    pub fn new(heartbeat: Arc<AtomicU64>) -> Self {
        Self { heartbeat, seen: Arc::new(std::sync::Mutex::new((0, Instant::now()))) }
    }

    /// For how long it has stood still, as far as it was asked.
    fn stalled(&self) -> Duration {
        let now = self.heartbeat.load(Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if seen.0 != now {
            *seen = (now, Instant::now());
        }
        seen.1.elapsed()
    }
}

/// What the API needs.
#[derive(Clone)]
pub struct Api {
    /// The service.
    pub handle: Handle,
    /// What must be shown to change something, but by the Unix socket's owner.
    pub token: Option<Arc<str>>,
    /// What the service is called over TCP.
    pub names: Names,
    /// Whether its task turns.
    pub pulse: Pulse,
    /// What Prometheus gets.
    pub metrics: Exposition,
    /// Who may have a result made: one of a running campaign is read and computed anew, and may be large.
    pub results: Arc<Semaphore>,
    /// What documents hold while they are read.
    pub bodies: Bodies,
    /// What answers hold while they are sent.
    pub answers: Answers,
}

/// Results that are made at the same time.
pub const RESULTS: usize = 2;
/// How long one waits for its turn.
const TURN: Duration = Duration::from_secs(10);
/// When somebody may come again who had no turn, in seconds (RFC 9110, 10.2.3).
const RETRY_AFTER: &str = "10";

/// Serves at both until `stop` is done; connections end with it.
pub async fn serve(listener: TcpListener, socket: Socket, api: Api, stop: impl Future<Output = ()> + Send) {
    let router = router(api);
    tokio::select! {
        () = listen::serve(listener, router.clone()) => {}
        () = listen::serve(socket, router) => {}
        () = stop => {}
    }
}

/// The routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/v1/campaigns", get(campaigns).post(submit))
        .route("/api/v1/campaigns/{id}", get(campaign).delete(cancel))
        .route("/api/v1/campaigns/{id}/events", get(stream::events))
        .route("/api/v1/campaigns/{id}/result", get(result))
        .route("/api/v1/campaigns/{id}/report", get(page))
        .route("/api/v1/left-out", get(left_out))
        .route("/api/v1/agents", get(agents))
        .route("/api/v1/openapi.json", get(openapi::document))
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(api.clone(), held::hold))
        .layer(middleware::from_fn_with_state(api.clone(), guard::guard))
        .layer(middleware::from_fn(guard::harmless))
        .with_state(api)
}

/// An answer that is no success.
#[derive(Debug)]
struct Refused(StatusCode, Refusal);

impl Refused {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self(status, Refusal { message: message.into(), problems: Vec::new() })
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let answer = json(self.0, &self.1);
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            return ([(header::RETRY_AFTER, RETRY_AFTER)], answer).into_response();
        }
        answer
    }
}

impl From<LookupError> for Refused {
    fn from(error: LookupError) -> Self {
        let status = match &error {
            LookupError::Unknown { .. } => StatusCode::NOT_FOUND,
            LookupError::Pending { .. } | LookupError::Refused { .. } => StatusCode::CONFLICT,
            LookupError::Ledger { .. } | LookupError::LeftOut { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            LookupError::Ending => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<ListError> for Refused {
    fn from(error: ListError) -> Self {
        let status = match &error {
            ListError::Continue { .. } => StatusCode::BAD_REQUEST,
            ListError::Ending => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<SubmitError> for Refused {
    fn from(error: SubmitError) -> Self {
        let status = match &error {
            SubmitError::Invalid(_) | SubmitError::NoSelect => StatusCode::UNPROCESSABLE_ENTITY,
            SubmitError::Id { .. } => StatusCode::BAD_REQUEST,
            SubmitError::Taken { .. } | SubmitError::LeftOut { .. } => StatusCode::CONFLICT,
            SubmitError::Store(_) => StatusCode::INSUFFICIENT_STORAGE,
            SubmitError::Later { .. } | SubmitError::Busy | SubmitError::Ending => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        let message = error.to_string();
        let problems = match error {
            SubmitError::Invalid(problems) => problems.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        Self(status, Refusal { message, problems })
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn live(State(api): State<Api>) -> Response {
    let stalled = api.pulse.stalled();
    if stalled < STALLED {
        return "ok\n".into_response();
    }
    let why = format!("the service has stood still for {} s\n", stalled.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

/// Ready is who answers: the service's task is asked.
async fn ready(State(api): State<Api>) -> Response {
    let answer = tokio::time::timeout(Duration::from_secs(2), api.handle.agents()).await;
    match answer {
        Ok(agents) => format!("ok, {} agents known\n", agents.len()).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the service does not answer\n").into_response(),
    }
}

async fn metrics(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (api.metrics)()).into_response()
}

#[derive(Deserialize)]
struct Submission {
    id: Option<String>,
}

async fn submit(
    State(api): State<Api>,
    Query(Submission { id }): Query<Submission>,
    Document { text, place }: Document,
) -> Result<Response, Refused> {
    let decoded = campaign::decode(&text)
        .map_err(|error| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, format!("the document {error}")))?;
    drop(text);
    let submitted = api.handle.submit(id, decoded).await?;
    drop(place);
    Ok(json(if submitted.new { StatusCode::CREATED } else { StatusCode::OK }, &submitted))
}

#[derive(Deserialize)]
struct Page {
    limit: Option<usize>,
    #[serde(rename = "continue")]
    after: Option<String>,
}

async fn campaigns(
    State(api): State<Api>,
    Query(Page { limit, after }): Query<Page>,
) -> Result<Response, Refused> {
    Ok(json(StatusCode::OK, &api.handle.campaigns(PageQuery { limit, after }).await?))
}

async fn left_out(State(api): State<Api>) -> Response {
    json(StatusCode::OK, &api.handle.left_out().await)
}

async fn campaign(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Refused> {
    Ok(json(StatusCode::OK, &api.handle.campaign(&id).await?))
}

async fn cancel(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Refused> {
    api.handle.cancel(&id, CANCELLED).await?;
    Ok(json(StatusCode::ACCEPTED, &api.handle.campaign(&id).await?))
}

async fn result(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Refused> {
    made(&api, &id, |result| json(StatusCode::OK, result)).await
}

async fn page(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Refused> {
    made(&api, &id, |result| {
        let page = Body::from(report::html::render(result));
        let policy = format!("{}; frame-ancestors 'none'", report::html::CONTENT_POLICY);
        let html = "text/html; charset=utf-8".to_owned();
        ([(header::CONTENT_TYPE, html), (header::CONTENT_SECURITY_POLICY, policy)], page).into_response()
    })
    .await
}

/// A result, as `make` shows it: in its turn, and beside the threads that talk to agents. What has begun goes on when whoever asked
/// has left, and keeps its turn until it is over.
async fn made(
    api: &Api,
    id: &str,
    make: impl FnOnce(&CampaignResult) -> Response + Send + 'static,
) -> Result<Response, Refused> {
    let turn = tokio::time::timeout(TURN, api.results.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        let why = "others have results made and yours had no turn: ask again later";
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, why));
    };
    let (handle, id) = (api.handle.clone(), id.to_owned());
    let failed = |error: JoinError| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let made = tokio::spawn(async move {
        let _turn = turn;
        let result = handle.result(&id).await?;
        tokio::task::spawn_blocking(move || make(&result)).await.map_err(failed)
    });
    made.await.map_err(failed)?
}

async fn agents(State(api): State<Api>) -> Response {
    json(StatusCode::OK, &api.handle.agents().await)
}

async fn unknown(request: Request) -> Refused {
    Refused::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", request.uri().path()))
}
