//! Pods that are killed, a node that is cordoned, and what is left when Toll is removed.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use toll_e2e::campaigns::{NATIVE, VIRTIO, fleet_campaign};
use toll_e2e::kubernetes::{Cluster, LIMIT};
use toll_e2e::machine::wait_for;
use toll_protocol::result::RunStatus;

use crate::Body;
use crate::campaigns::{condition, is_over};

pub fn tests() -> Vec<(&'static str, Body)> {
    vec![
        ("a_killed_orchestrator_pod_loses_nothing", orchestrator),
        ("a_killed_agent_pod_costs_its_trial_alone", agent),
        ("a_cordoned_node_gets_no_trials", cordoned),
        // The last one: there is no Toll after it.
        ("nothing_is_left_on_a_node_when_toll_is_removed", removed),
    ]
}

/// Applies a campaign and waits until it is in its middle.
fn in_the_middle(cluster: &Cluster, document: &str) -> Result<()> {
    cluster.apply(document)?;
    let begun = |campaign: &Value| {
        campaign["status"]["trials"].as_str().is_some_and(|trials| !trials.starts_with("0/"))
    };
    cluster.campaign("test", LIMIT, begun).map(drop)
}

fn kill_pods(cluster: &Cluster, selector: &str) -> Result<()> {
    cluster.kubectl(&["-n", "toll", "delete", "pod", "-l", selector, "--force", "--grace-period=0"]).map(drop)
}

/// How many runs of the campaign ended so.
fn count(cluster: &Cluster, campaign: &Value, status: RunStatus) -> Result<usize> {
    let id = campaign["status"]["campaignId"].as_str().context("an id")?;
    let result = cluster.result(id)?;
    Ok(result.cells.iter().flat_map(|cell| &cell.runs).filter(|run| run.status == status).count())
}

fn delete(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "campaign", "test", "--timeout=60s"]).map(drop)
}

fn orchestrator(cluster: &Cluster) -> Result<()> {
    in_the_middle(cluster, &fleet_campaign(&[NATIVE, VIRTIO], 3, "300ms", "pairs: all"))?;
    kill_pods(cluster, "app.kubernetes.io/name=toll-orchestrator")?;
    let campaign = cluster.campaign("test", LIMIT, is_over)?;
    ensure!(campaign["status"]["trials"] == "18/18", "{:#}", campaign["status"]);
    let measured = count(cluster, &campaign, RunStatus::Measured)?;
    ensure!(measured == 18, "{measured} of 18 were measured");
    delete(cluster)
}

fn agent(cluster: &Cluster) -> Result<()> {
    in_the_middle(cluster, &fleet_campaign(&[NATIVE, VIRTIO], 3, "300ms", "pairs: all"))?;
    kill_pods(cluster, "app.kubernetes.io/name=toll-agent")?;
    let campaign = cluster.campaign("test", LIMIT, is_over)?;
    ensure!(campaign["status"]["trials"] == "18/18", "{:#}", campaign["status"]);
    let measured = count(cluster, &campaign, RunStatus::Measured)?;
    ensure!(measured >= 16, "{measured} of 18 were measured");
    cluster.rolled_out()?;
    delete(cluster)
}

fn cordoned(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["cordon", "node2"])?;
    cluster.apply(&fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all"))?;
    let waits = |campaign: &Value| {
        condition(campaign, "Accepted") == Some("True") && condition(campaign, "Scheduled") == Some("False")
    };
    let campaign = cluster.campaign("test", LIMIT, waits)?;
    let said = campaign["status"]["conditions"].to_string();
    ensure!(said.contains("1 of at least 2"), "{said}");
    cluster.kubectl(&["uncordon", "node2"])?;
    let campaign = cluster.campaign("test", LIMIT, is_over)?;
    ensure!(campaign["status"]["trials"] == "2/2", "{:#}", campaign["status"]);
    delete(cluster)
}

fn removed(cluster: &Cluster) -> Result<()> {
    in_the_middle(cluster, &fleet_campaign(&[VIRTIO], 20, "300ms", "pairs: all"))?;
    delete(cluster)?;
    cluster.undeploy()?;
    wait_for("clean nodes", LIMIT, || {
        let pods = cluster.get(&["pods", "-A"])?;
        let none = pods["items"].as_array().is_some_and(Vec::is_empty);
        Ok((none && cluster.leftovers()?.is_empty()).then_some(()))
    })
}
