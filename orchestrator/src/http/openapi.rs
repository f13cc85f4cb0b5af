//! The API described for machines: OpenAPI 3.1, whose schemas are JSON Schema 2020-12, made from the types that cross
//! the wire. The routes of [`super::router`] are those listed here: a test asks each.

use axum::response::Response;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use toll_protocol::result::CampaignResult;
use toll_protocol::service::{AgentStatus, CampaignPage, CampaignStatus, LeftOut, Refusal, Submitted};

use axum::http::StatusCode;

use crate::service::handle;

/// One operation: method, path, what it does, answers by status with the schema of their body.
pub(super) struct Operation {
    pub method: &'static str,
    pub path: &'static str,
    summary: &'static str,
    /// Status of success, and its body.
    success: &'static [(u16, Body)],
    /// Statuses of refusals.
    refusals: &'static [u16],
}

#[derive(Clone, Copy)]
enum Body {
    Text,
    Html,
    Events,
    OpenApi,
    Submitted,
    Status,
    Page,
    LeftOut,
    Agents,
    Result,
}

/// Every operation.
pub(super) const OPERATIONS: &[Operation] = &[
    operation("get", "/livez", "Whether the service turns", &[(200, Body::Text)], &[]),
    operation("get", "/readyz", "Whether the service answers", &[(200, Body::Text)], &[]),
    operation("get", "/metrics", "Metrics, as Prometheus reads them", &[(200, Body::Text)], &[]),
    operation("get", "/api/v1/openapi.json", "This document", &[(200, Body::OpenApi)], &[]),
    operation(
        "get",
        "/api/v1/campaigns",
        "Campaigns, the latest first, page by page: `limit` of them, from where the page before said `continue`",
        &[(200, Body::Page)],
        &[400],
    ),
    operation(
        "post",
        "/api/v1/campaigns",
        "Submit a campaign, the YAML document in the body; `id` is the id that it shall have",
        &[(201, Body::Submitted), (200, Body::Submitted)],
        &[400, 401, 403, 408, 409, 413, 422, 503, 507],
    ),
    operation("get", "/api/v1/campaigns/{id}", "How a campaign is", &[(200, Body::Status)], &[404, 500]),
    operation(
        "delete",
        "/api/v1/campaigns/{id}",
        "End a campaign; what was measured is kept",
        &[(202, Body::Status)],
        &[401, 403, 404, 500],
    ),
    operation(
        "get",
        "/api/v1/campaigns/{id}/events",
        "How a campaign is, and again whenever that changes, until it is over",
        &[(200, Body::Events)],
        &[404, 500],
    ),
    operation(
        "get",
        "/api/v1/campaigns/{id}/result",
        "What a campaign found, as far as it has come: result.json",
        &[(200, Body::Result)],
        &[404, 409, 500, 503],
    ),
    operation(
        "get",
        "/api/v1/campaigns/{id}/report",
        "The same as a page",
        &[(200, Body::Html)],
        &[404, 409, 500, 503],
    ),
    operation(
        "get",
        "/api/v1/left-out",
        "What lies in the data directory and can't be served, with the reasons",
        &[(200, Body::LeftOut)],
        &[],
    ),
    operation("get", "/api/v1/agents", "Every agent that has been connected", &[(200, Body::Agents)], &[]),
];

/// Refusals of every operation: the request names another host than the service.
const OF_ALL: &[u16] = &[421];
/// Who may do what.
const DESCRIPTION: &str = "Reads are answered to everybody who reaches the service. Operations that change something \
    take the token over TCP, and are refused if the service was started without one; at the Unix socket of the service \
    (/run/toll/toll.sock, or $XDG_RUNTIME_DIR/toll/toll.sock) its owner and root need none. Over TCP the Host header is an \
    address, `localhost`, the machine's name or one given by --http-name. Every answer carries Content-Security-Policy and \
    X-Content-Type-Options.";

const fn operation(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    success: &'static [(u16, Body)],
    refusals: &'static [u16],
) -> Operation {
    Operation { method, path, summary, success, refusals }
}

pub(super) async fn document() -> Response {
    super::json(StatusCode::OK, &openapi())
}

/// The document.
pub fn openapi() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let entry = paths.entry(operation.path).or_insert_with(|| json!({}));
        entry[operation.method] = describe(operation, &mut generator);
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Toll orchestrator",
            "description": DESCRIPTION,
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "The first line of the file that toll serve was given as --token-file",
            }},
        },
    })
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    for (status, body) in operation.success {
        let (media, schema) = content(*body, generator);
        let answer = json!({"description": "Done", "content": {media: {"schema": schema}}});
        responses.insert(status.to_string(), answer);
    }
    for status in operation.refusals.iter().chain(OF_ALL) {
        let schema = generator.subschema_for::<Refusal>();
        let answer = json!({"description": "Refused", "content": {"application/json": {"schema": schema}}});
        responses.insert(status.to_string(), answer);
    }
    let mut described = json!({"summary": operation.summary, "responses": responses});
    let text = json!({"type": "string"});
    if operation.path.contains("{id}") {
        described["parameters"] = json!([{"name": "id", "in": "path", "required": true, "schema": text}]);
    }
    if operation.path == "/api/v1/campaigns" && operation.method == "get" {
        let (most, usual) = (handle::LONGEST_PAGE, handle::PAGE);
        let limit = json!({"type": "integer", "minimum": 1, "maximum": most, "default": usual});
        described["parameters"] = json!([
            {"name": "limit", "in": "query", "required": false, "schema": limit},
            {"name": "continue", "in": "query", "required": false, "schema": text},
        ]);
    }
    if operation.method == "post" {
        described["parameters"] = json!([{"name": "id", "in": "query", "required": false, "schema": text}]);
        described["requestBody"] =
            json!({"required": true, "content": {"application/yaml": {"schema": text}}});
    }
    if operation.method != "get" {
        // None is for the owner of the Unix socket.
        described["security"] = json!([{"token": []}, {}]);
    }
    described
}

fn content(body: Body, generator: &mut SchemaGenerator) -> (&'static str, Value) {
    const JSON: &str = "application/json";
    match body {
        Body::Text => ("text/plain", json!({"type": "string"})),
        Body::Html => ("text/html", json!({"type": "string"})),
        Body::Events => ("text/event-stream", json!({"type": "string"})),
        Body::OpenApi => (JSON, json!({"type": "object"})),
        Body::Submitted => (JSON, json!(generator.subschema_for::<Submitted>())),
        Body::Status => (JSON, json!(generator.subschema_for::<CampaignStatus>())),
        Body::Page => (JSON, json!(generator.subschema_for::<CampaignPage>())),
        Body::LeftOut => (JSON, json!(generator.subschema_for::<LeftOut>())),
        Body::Agents => (JSON, json!(generator.subschema_for::<Vec<AgentStatus>>())),
        Body::Result => (JSON, json!(generator.subschema_for::<CampaignResult>())),
    }
}
