//! The `Campaign` object: its spec is the manifest's own [`schema::Spec`], its status what `kubectl` shows.

use std::borrow::Cow;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, CustomResourceExt};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use toll_protocol::campaign::{schema, to_yaml};

use super::rules;

/// API version of the object, as the manifest carries it.
pub const API_VERSION: &str = "toll.dev/v1alpha1";
/// Its kind.
pub const KIND: &str = "Campaign";

/// The spec as it was written. It stays JSON here, because the service reads it with the very code that reads a
/// file: an object that an older or newer schema let in is refused there with a reason, and doesn't end the watch of
/// all the others.
#[allow(clippy::duplicated_attributes, reason = "each column has a name and a type of its own")]
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "toll.dev",
    version = "v1alpha1",
    kind = "Campaign",
    namespaced,
    status = "CampaignStatus",
    derive = "PartialEq",
    doc = "What to measure, between which hosts: virtual against native, with a confidence interval.",
    shortname = "camp",
    category = "toll",
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.state",
        description = "Pending, Running, Finished, Cancelled or Refused"
    ),
    printcolumn(
        name = "Trials",
        type_ = "string",
        json_path = ".status.trials",
        description = "Trials recorded, of those planned"
    ),
    printcolumn(
        name = "Verdict",
        type_ = "string",
        json_path = ".status.verdict",
        description = "The worst verdict of the gates, once it is over"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Failed",
        type_ = "integer",
        json_path = ".status.counts.failed",
        priority = 1,
        description = "Trials that failed"
    ),
    printcolumn(
        name = "Id",
        type_ = "string",
        json_path = ".status.campaignId",
        priority = 1,
        description = "The campaign's id in the service"
    )
)]
#[serde(transparent)]
pub struct CampaignSpec(pub Value);

impl JsonSchema for CampaignSpec {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "CampaignSpec".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schema::Spec::json_schema(generator)
    }
}

/// What became of a campaign. Absent is absent, never 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CampaignStatus {
    /// The generation of the object that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The campaign's id in the service: `toll results ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub campaign_id: Option<String>,
    /// Where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Accepted, Scheduled, Running, Complete.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Trials recorded, of those planned: `12/50`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trials: Option<String>,
    /// Trials by how they ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// The worst verdict of the gates, once it is over: pass, fail or inconclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Hosts of the plan, at most 64 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// When it was submitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<Time>,
    /// When its first trial began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When its last trial was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Its cells, at most 256 of them, in the order of the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cells: Vec<Cell>,
    /// Cells that are not listed here; the result has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cells_left_out: Option<u32>,
}

/// Where a campaign is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum State {
    /// It waits for hosts.
    Pending,
    /// Trials run or wait for their hosts.
    Running,
    /// Every trial is recorded.
    Finished,
    /// It was cancelled, and every trial is recorded.
    Cancelled,
    /// The service does not take it, or the hosts that it selects can't do what it asks for.
    Refused,
}

/// Trials by how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// Trials that the plan names.
    pub planned: u32,
    /// With figures.
    pub measured: u32,
    /// Failed.
    pub failed: u32,
    /// Not tried.
    pub skipped: u32,
    /// Lost.
    pub lost: u32,
}

/// A cell in short, written for people; `result.json` has its figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cell {
    /// `node1 → node2 · bulk · send · virtio · native`.
    pub name: String,
    /// Trials recorded, of those planned: `3/5`.
    pub trials: String,
    /// Median goodput at the receiver: `9.41 Gb/s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goodput: Option<String>,
    /// Goodput relative to native, with its 95 % interval: `41.2 % [39.8–42.7]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_native: Option<String>,
}

/// The definition that a cluster is given, rules included.
///
/// # Errors
/// Which rule has no place in the schema: a fault of Toll's own.
pub fn definition() -> Result<CustomResourceDefinition, String> {
    let mut crd = Campaign::crd();
    for version in &mut crd.spec.versions {
        let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut())
        else {
            return Err(format!("version {} has no schema", version.name));
        };
        rules::apply(schema)?;
    }
    Ok(crd)
}

/// `manifests/crd/campaigns.yaml`: what `toll crd` prints.
///
/// # Errors
/// A fault of Toll's own.
pub fn yaml() -> Result<String, String> {
    Ok(format!("# Generated by `toll crd`; don't edit.\n{}", to_yaml(&definition()?)?))
}
