//! Prometheus in a cluster: what is scraped carries the jobs and names that rules and dashboards ask for.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use toll_e2e::dashboards::{directory, list};
use toll_e2e::kubernetes::{AGENTS, Cluster, LIMIT};
use toll_e2e::machine::wait_for;
use toll_e2e::prometheus::{Prometheus, with_targets};

use crate::Body;

pub fn tests() -> Vec<(&'static str, Body)> {
    vec![("a_prometheus_of_the_cluster_names_orchestrator_and_nodes", named)]
}

/// Targets as Prometheus' discovery makes them of a Service: one for each port.
fn of_service(service: &Value) -> Vec<Value> {
    let target = |port: &Value| {
        json!({
            "targets": [format!("nowhere.invalid:{}", port["port"])],
            "labels": {
                "__meta_kubernetes_service_name": service["metadata"]["name"],
                "__meta_kubernetes_service_cluster_ip": service["spec"]["clusterIP"],
                "__meta_kubernetes_service_port_name": port["name"],
                "__meta_kubernetes_service_port_number": port["port"].to_string(),
            },
        })
    };
    list(service, "/spec/ports").iter().map(target).collect()
}

/// The same of a pod: one for each port of a container.
fn of_pod(pod: &Value) -> Vec<Value> {
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    let target = |port: &Value| {
        json!({
            "targets": [format!("{address}:{}", port["containerPort"])],
            "labels": {
                "__meta_kubernetes_pod_node_name": pod["spec"]["nodeName"],
                "__meta_kubernetes_pod_container_port_name": port["name"],
            },
        })
    };
    let containers = list(pod, "/spec/containers").iter();
    containers.flat_map(|container| list(container, "/ports")).map(target).collect()
}

/// Writes the configuration, with the targets that are in the cluster now.
fn configure(cluster: &Cluster, folder: &Path) -> Result<()> {
    let service = cluster.get(&["service", "toll-orchestrator", "-n", "toll"])?;
    let pods = cluster.get(&["pods", "-n", "toll", "-l", AGENTS])?;
    let agents: Vec<Value> = list(&pods, "/items").iter().flat_map(of_pod).collect();
    for (job, targets) in [("toll", of_service(&service)), ("toll-agent", agents)] {
        ensure!(!targets.is_empty(), "nothing to scrape for {job}");
        std::fs::write(folder.join(format!("{job}.json")), Value::from(targets).to_string())?;
    }
    let text = std::fs::read_to_string(directory().join("prometheus/kubernetes.yml"))?;
    let text = with_targets(&text, |job| format!("file_sd_configs: [{{files: [{job}.json]}}]"));
    Ok(std::fs::write(folder.join("prometheus.yml"), text.replace("15s", "1s"))?)
}

fn named(cluster: &Cluster) -> Result<()> {
    let folder = tempfile::tempdir()?;
    configure(cluster, folder.path())?;
    let prometheus = Prometheus::start(folder.path(), &cluster.network_of_a_node()?)?;
    let mut expected: Vec<(String, String)> =
        cluster.hosts()?.into_iter().map(|node| ("toll-agent".to_owned(), node)).collect();
    expected.push(("toll".to_owned(), "toll-orchestrator".to_owned()));
    expected.sort();
    let mut found = Vec::new();
    let all = wait_for("an answer of everyone", LIMIT, || {
        found = prometheus.instant("up")?;
        let label = |labels: &Value, name: &str| labels[name].as_str().unwrap_or_default().to_owned();
        let mut up: Vec<(String, String)> = found
            .iter()
            .filter(|(_, value)| *value == 1.0)
            .map(|(labels, _)| (label(labels, "job"), label(labels, "instance")))
            .collect();
        up.sort();
        Ok((up == expected && found.len() == expected.len()).then_some(()))
    });
    all.with_context(|| format!("{found:?}"))?;
    // Under the node's name, as campaigns have it.
    let connected = prometheus.instant("toll_agent_connected")?;
    ensure!(connected.len() == expected.len() - 1, "{connected:?}");
    Ok(())
}
