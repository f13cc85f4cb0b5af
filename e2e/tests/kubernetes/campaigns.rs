//! Campaigns as objects: the quickstart on two nodes, one that is deleted in the middle.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use toll_e2e::campaigns::{NATIVE, fleet_campaign};
use toll_e2e::dashboards::list;
use toll_e2e::documents;
use toll_e2e::kubernetes::{AGENTS, Cluster, LIMIT};
use toll_e2e::machine::wait_for;
use toll_protocol::figure::GOODPUT;
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

/// Whether a trial of it is over.
pub fn begun(campaign: &Value) -> bool {
    campaign["status"]["trials"].as_str().is_some_and(|trials| !trials.starts_with("0/"))
}

/// A number of a status.
pub fn count(counts: &Value, name: &str) -> Result<u64> {
    counts[name].as_u64().with_context(|| format!("{name} of {counts:#}"))
}

/// That every planned trial was measured; how many that are.
pub fn measured(campaign: &Value) -> Result<u64> {
    let status = &campaign["status"];
    let counts = &status["counts"];
    let planned = count(counts, "planned")?;
    ensure!(planned > 0 && count(counts, "measured")? == planned, "{status:#}");
    ensure!(status["trials"] == format!("{planned}/{planned}"), "{status:#}");
    Ok(planned)
}

/// Deletes the campaign `test`.
pub fn delete(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "campaign", "test", "--timeout=60s"]).map(drop)
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
    // Ten cells for each two nodes; a status lists no more than 256.
    let nodes = u64::try_from(cluster.hosts()?.len())?;
    let planned = measured(&campaign)?;
    ensure!(planned == 10 * nodes * (nodes - 1) / 2, "{planned} trials on {nodes} nodes");
    ensure!(condition(&campaign, "Accepted") == Some("True"), "{status:#}");
    ensure!(condition(&campaign, "Running") == Some("False"), "{status:#}");
    ensure!(list(status, "/cells").len() == usize::try_from(planned.min(256))?, "{status:#}");
    let listed = cluster.kubectl(&["get", "campaigns"])?;
    ensure!(listed.contains("STATE") && listed.contains("TRIALS") && listed.contains("VERDICT"), "{listed}");
    ensure!(listed.contains(&format!("{planned}/{planned}")), "{listed}");
    // Guests ran in the pods of the DaemonSet.
    let logs = cluster.kubectl(&["-n", "toll", "logs", "-l", AGENTS, "--tail=-1"])?;
    ensure!(logs.contains("/usr/bin/toll-vmm"), "no guest was started in a pod: {logs}");
    let id = status["campaignId"].as_str().context("an id")?;
    same_as_a_lab(&cluster.result(id)?)?;
    cluster.kubectl(&["delete", "campaign", "quickstart", "--timeout=60s"]).map(drop)
}

/// The document is that of `toll run` on the very same file: the same fields at every depth, the same arms and cells.
fn same_as_a_lab(document: &Value) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let run = toll_e2e::programs::start(&short(), directory.path(), |_| {})?;
    let (output, out) = run.end(LIMIT)?;
    toll_e2e::programs::expect(&output, 0)?;
    let lab_document: Value = serde_json::from_str(&std::fs::read_to_string(out.join("result.json"))?)?;
    let (paths, of_lab) = (key_paths(document), key_paths(&lab_document));
    let differ: Vec<&String> = paths.symmetric_difference(&of_lab).collect();
    ensure!(differ.is_empty(), "in one of the two documents only: {differ:?}");
    ensure!(paths.contains("cells[].runs[].a.exits.by_cause.*.handling_seconds"), "{paths:?}");

    let result = documents::result(&serde_json::to_vec(document)?)?;
    let lab = documents::result(&serde_json::to_vec(&lab_document)?)?;
    ensure!(result.arms == lab.arms && result.seed == lab.seed && result.campaign == lab.campaign);
    let cells = |result: &CampaignResult| -> BTreeSet<String> {
        let name = |cell: &toll_protocol::result::CellResult| {
            let key = &cell.key;
            format!("{} {} {} {}", key.workload, key.direction, key.arm, key.peer)
        };
        result.cells.iter().map(name).collect()
    };
    ensure!(cells(&result) == cells(&lab), "the cells differ");
    ensure!(result.cells.iter().all(|cell| cell.median(&GOODPUT).is_some()));
    ensure!(result.provenance.environment == "kubernetes" && lab.provenance.environment == "lab");
    Ok(())
}

/// Objects whose keys are data: causes of exits, flags of a cell.
const MAPS: [&str; 3] = [".by_cause", ".exits_by_cause", "cells[].flags"];

/// The paths of all fields of a document, those of all entries of a list together: `cells[].runs[].flags`.
fn key_paths(document: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![(String::new(), document)];
    while let Some((path, value)) = open.pop() {
        match value {
            Value::Array(entries) => open.extend(entries.iter().map(|entry| (format!("{path}[]"), entry))),
            Value::Object(fields) => {
                let map = MAPS.iter().any(|map| path.ends_with(map));
                for (name, field) in fields {
                    let name = if map { "*" } else { name.as_str() };
                    let dot = if path.is_empty() { "" } else { "." };
                    open.push((format!("{path}{dot}{name}"), field));
                }
            }
            _ => {}
        }
        // Whether a run is flagged, or has last words, is not the document's form.
        found.insert(path);
    }
    found.retain(|path| !path.ends_with("[]") && !path.ends_with("cells[].flags.*"));
    found
}

fn deleted(cluster: &Cluster) -> Result<()> {
    cluster.apply(&fleet_campaign(&[NATIVE], 50, "300ms", "pairs: all"))?;
    cluster.campaign("test", LIMIT, begun)?;
    delete(cluster)?;
    wait_for("clean nodes", Duration::from_secs(10), || Ok(cluster.leftovers()?.is_empty().then_some(())))?;
    // The hosts are free for the next one.
    cluster.apply(&fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all"))?;
    measured(&cluster.campaign("test", LIMIT, is_over)?)?;
    delete(cluster)
}
