//! Processes that are killed, pods that are replaced, a node that is cordoned, and what is left when Toll is removed.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use toll_e2e::campaigns::{NATIVE, VIRTIO, fleet_campaign};
use toll_e2e::kubernetes::{AGENTS, Cluster, LIMIT, ORCHESTRATOR};
use toll_e2e::machine::wait_for;

use crate::Body;
use crate::campaigns::{begun, condition, count, delete, is_over, measured};

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
    cluster.campaign("test", LIMIT, begun).map(drop)
}

/// Waits until nothing of trials is on the nodes of our own cluster.
fn clean(cluster: &Cluster) -> Result<()> {
    let nothing = || Ok(cluster.leftovers()?.is_empty().then_some(()));
    wait_for("clean nodes", LIMIT, nothing).with_context(|| format!("{:?}", cluster.leftovers()))
}

/// Waits until all of the campaign has been measured.
fn all_measured(cluster: &Cluster) -> Result<()> {
    let campaign = cluster.campaign("test", LIMIT, is_over)?;
    measured(&campaign)?;
    delete(cluster)
}

/// Who holds the Lease.
fn leader(cluster: &Cluster) -> Result<String> {
    let lease = cluster.get(&["lease", "toll-orchestrator", "-n", "toll"])?;
    Ok(lease["spec"]["holderIdentity"].as_str().context("a holder")?.to_owned())
}

/// How often containers of these pods have been started again.
fn restarts(cluster: &Cluster, selector: &str) -> Result<u64> {
    let pods = cluster.get(&["pods", "-n", "toll", "-l", selector])?;
    let containers = pods["items"].as_array().into_iter().flatten();
    let counts = containers.filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64());
    Ok(counts.sum())
}

fn orchestrator(cluster: &Cluster) -> Result<()> {
    let document = fleet_campaign(&[NATIVE, VIRTIO], 3, "300ms", "pairs: all");
    in_the_middle(cluster, &document)?;
    cluster.kill("toll", ORCHESTRATOR)?;
    all_measured(cluster)?;
    ensure!(!cluster.is_our_own() || restarts(cluster, ORCHESTRATOR)? > 0, "nothing was killed");
    // A killed process is started again in its pod and still holds the Lease. Another pod has to take it over.
    let before = leader(cluster)?;
    in_the_middle(cluster, &document)?;
    cluster.delete_pods(ORCHESTRATOR)?;
    all_measured(cluster)?;
    ensure!(leader(cluster)? != before, "{before} still leads");
    cluster.rolled_out()
}

fn agent(cluster: &Cluster) -> Result<()> {
    in_the_middle(cluster, &fleet_campaign(&[VIRTIO], 4, "1s", "pairs: all"))?;
    if cluster.is_our_own() {
        wait_for("a guest at a macvtap", LIMIT, || {
            Ok((!cluster.on_the_nodes(&[])?.is_empty() && !cluster.on_the_nodes(&["toll-vmm"])?.is_empty())
                .then_some(()))
        })?;
    }
    cluster.kill("toll-agent", AGENTS)?;
    let campaign = cluster.campaign("test", LIMIT, is_over)?;
    let counts = &campaign["status"]["counts"];
    let without_figures = count(counts, "planned")? - count(counts, "measured")?;
    // A trial has two hosts, and all agents were killed.
    let hosts = u64::try_from(cluster.hosts()?.len())?;
    ensure!(without_figures <= hosts, "{counts:#}");
    ensure!(count(counts, "skipped")? == 0, "{counts:#}");
    if cluster.is_our_own() {
        ensure!(without_figures >= 1, "nobody was killed inside a trial: {counts:#}");
        ensure!(restarts(cluster, AGENTS)? >= hosts, "an agent was not killed");
    }
    cluster.rolled_out()?;
    clean(cluster)?;
    delete(cluster)
}

fn cordoned(cluster: &Cluster) -> Result<()> {
    let hosts = cluster.hosts()?;
    let node = hosts.last().context("a node")?;
    cluster.kubectl(&["cordon", node])?;
    let waited = waits_for_all(cluster, hosts.len());
    // Whatever was found: it may be a cluster of others.
    cluster.kubectl(&["uncordon", node])?;
    waited?;
    all_measured(cluster)
}

fn waits_for_all(cluster: &Cluster, hosts: usize) -> Result<()> {
    let all = fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all")
        .replace("select: {}", &format!("select: {{atLeast: {hosts}}}"));
    cluster.apply(&all)?;
    let campaign = cluster.campaign("test", LIMIT, waits)?;
    let said = campaign["status"]["conditions"].to_string();
    ensure!(said.contains(&format!("{} of at least {hosts}", hosts - 1)), "{said}");
    Ok(())
}

fn waits(campaign: &Value) -> bool {
    condition(campaign, "Accepted") == Some("True") && condition(campaign, "Scheduled") == Some("False")
}

const REMOVING: &str = "Removing it";

/// Waits until no pod, no process and no interface of Toll is left.
fn gone(cluster: &Cluster) -> Result<()> {
    let all = ["toll", "toll-agent", "toll-vmm", "toll-endpoint"];
    let left = || -> Result<Vec<String>> {
        let pods = cluster.kubectl(&["-n", "toll", "get", "pods", "--no-headers"])?;
        Ok(pods.lines().map(str::to_owned).chain(cluster.on_the_nodes(&all)?).collect())
    };
    wait_for("nodes without Toll", LIMIT, || Ok(left()?.is_empty().then_some(())))
        .with_context(|| format!("{:?}", left()))
}

fn removed(cluster: &Cluster) -> Result<()> {
    in_the_middle(cluster, &fleet_campaign(&[VIRTIO], 50, "1s", "pairs: all"))?;
    if cluster.is_our_own() {
        let guest = || Ok((!cluster.on_the_nodes(&["toll-vmm"])?.is_empty()).then_some(()));
        wait_for("a guest", LIMIT, guest)?;
    }
    // Campaigns were to be deleted first: this user forgot, in the middle of a trial.
    cluster.run_as_told(REMOVING, "overlays/")?;
    gone(cluster)?;
    let campaign = cluster.get(&["campaign", "test"])?;
    ensure!(!is_over(&campaign), "it ended: {:#}", campaign["status"]);
    cluster.deploy_again()?;
    cluster.run_as_told(REMOVING, "delete campaigns")?;

    // Forgotten again, and this time Toll is not to come back.
    let more = "pairs: ring";
    let never = fleet_campaign(&[NATIVE], 1, "200ms", more).replace("select: {}", "select: {atLeast: 1000}");
    cluster.apply(&never)?;
    cluster.campaign("test", LIMIT, waits)?;
    cluster.run_as_told(REMOVING, "overlays/")?;
    gone(cluster)?;
    cluster.kubectl(&["delete", "campaign", "test", "--wait=false"])?;
    cluster.run_as_told(REMOVING, "patch campaign")?;
    wait_for("the end of the object", LIMIT, || {
        let objects = cluster.kubectl(&["get", "campaigns", "-A", "--no-headers"])?;
        Ok(objects.is_empty().then_some(()))
    })?;
    cluster.run_as_told(REMOVING, "delete namespace")?;
    cluster.run_as_told(REMOVING, "manifests/crd")
}
