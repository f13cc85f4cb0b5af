//! Campaigns as objects: the quickstart on two nodes, one that is deleted in the middle.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use toll_e2e::campaigns::{NATIVE, fleet_campaign};
use toll_e2e::kubernetes::{Cluster, LIMIT};
use toll_e2e::machine::wait_for;
use toll_protocol::result::CampaignResult;

use crate::Body;

const QUICKSTART: &str = include_str!("../../../manifests/campaigns/quickstart.yaml");

pub fn tests() -> Vec<(&'static str, Body)> {
    vec![
        ("the_quickstart_runs_on_two_nodes_with_the_result_of_toll_run", quickstart),
        ("a_campaign_deleted_in_the_middle_ends_and_leaves_nothing", deleted),
    ]
}

/// Status of a condition: `True`, `False`, or nothing.
pub fn condition<'v>(campaign: &'v Value, kind: &str) -> Option<&'v str> {
    let conditions = campaign["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

pub fn is_over(campaign: &Value) -> bool {
    condition(campaign, "Complete") == Some("True")
}

/// The quickstart, with fewer and shorter runs.
fn short() -> String {
    QUICKSTART.replace("duration: 1s", "duration: 200ms").replace("blocks: 5", "blocks: 1")
}

fn quickstart(cluster: &Cluster) -> Result<()> {
    let applied = Instant::now();
    cluster.apply_as_told(&short())?;
    cluster.campaign("quickstart", LIMIT, |campaign| condition(campaign, "Scheduled") == Some("True"))?;
    wait_for("the first trial", LIMIT, || {
        let events = cluster.get(&["events.events.k8s.io"])?;
        let events = events["items"].as_array().cloned().unwrap_or_default();
        let first =
            |event: &Value| event["reason"] == "FirstTrial" && event["regarding"]["name"] == "quickstart";
        Ok(events.iter().any(first).then_some(()))
    })?;
    println!(
        "kubectl apply to the first trial, as its event tells: {:.1} s",
        applied.elapsed().as_secs_f64()
    );
    let campaign = cluster.campaign("quickstart", LIMIT, is_over)?;
    let status = &campaign["status"];
    ensure!(status["trials"] == "10/10", "{status:#}");
    ensure!(condition(&campaign, "Accepted") == Some("True"), "{status:#}");
    ensure!(condition(&campaign, "Running") == Some("False"), "{status:#}");
    ensure!(status["cells"].as_array().is_some_and(|cells| cells.len() == 10), "{status:#}");
    let listed = cluster.kubectl(&["get", "campaigns"])?;
    ensure!(listed.contains("STATE") && listed.contains("TRIALS") && listed.contains("VERDICT"), "{listed}");
    ensure!(listed.contains("10/10"), "{listed}");
    // Guests ran in the pods of the DaemonSet.
    let logs =
        cluster.kubectl(&["-n", "toll", "logs", "-l", "app.kubernetes.io/name=toll-agent", "--tail=-1"])?;
    ensure!(logs.contains("/usr/bin/toll-vmm"), "no guest was started in a pod: {logs}");
    let id = status["campaignId"].as_str().context("an id")?;
    same_as_a_lab(&cluster.result(id)?)?;
    cluster.kubectl(&["delete", "campaign", "quickstart", "--timeout=60s"]).map(drop)
}

/// The document is that of `toll run` on the very same file: the same fields, arms and cells.
fn same_as_a_lab(result: &CampaignResult) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let run = toll_e2e::programs::start(&short(), directory.path(), |_| {})?;
    let (output, out) = run.end(LIMIT)?;
    toll_e2e::programs::expect(&output, 0)?;
    let lab = toll_e2e::programs::result(&out)?;
    ensure!(result.arms == lab.arms && result.seed == lab.seed && result.campaign == lab.campaign);
    let cells = |result: &CampaignResult| -> BTreeSet<String> {
        let name = |cell: &toll_protocol::result::CellResult| {
            let key = &cell.key;
            format!("{} {} {} {}", key.workload, key.direction, key.arm, key.peer)
        };
        result.cells.iter().map(name).collect()
    };
    ensure!(cells(result) == cells(&lab), "the cells differ");
    ensure!(result.cells.iter().all(|cell| cell.goodput_bytes_per_second.is_some()));
    ensure!(fields(&serde_json::to_value(result)?) == fields(&serde_json::to_value(&lab)?));
    ensure!(result.provenance.engine == "kubernetes" && lab.provenance.engine == "lab");
    Ok(())
}

/// Names of the fields of a document.
fn fields(document: &Value) -> BTreeSet<String> {
    document.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
}

fn deleted(cluster: &Cluster) -> Result<()> {
    cluster.apply(&fleet_campaign(&[NATIVE], 50, "300ms", "pairs: all"))?;
    let begun = |campaign: &Value| {
        campaign["status"]["trials"].as_str().is_some_and(|trials| !trials.starts_with("0/"))
    };
    cluster.campaign("test", LIMIT, begun)?;
    cluster.kubectl(&["delete", "campaign", "test", "--timeout=60s"])?;
    wait_for("clean nodes", Duration::from_secs(10), || Ok(cluster.leftovers()?.is_empty().then_some(())))?;
    // The hosts are free for the next one.
    cluster.apply(&fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all"))?;
    let campaign = cluster.campaign("test", LIMIT, is_over)?;
    ensure!(campaign["status"]["trials"] == "2/2", "{:#}", campaign["status"]);
    cluster.kubectl(&["delete", "campaign", "test", "--timeout=60s"]).map(drop)
}
