//! What the API server refuses, with the words that a user needs.

use anyhow::{Context, Result, ensure};
use toll_e2e::campaigns::{NATIVE, fleet_campaign};
use toll_e2e::kubernetes::Cluster;
use toll_e2e::refused::{BY_SHAPE, CASES, GOOD};

use crate::Body;
use crate::campaigns::delete;

pub fn tests() -> Vec<(&'static str, Body)> {
    vec![
        ("a_bad_object_is_refused_by_the_api_server_with_what_would_be_right", refused),
        ("a_campaign_that_is_planned_can_not_be_changed", unchangeable),
    ]
}

/// What the API server says of a document that would be applied; nothing if it would be taken.
fn refusal(cluster: &Cluster, document: &str) -> Result<Option<String>> {
    let output = cluster.try_kubectl(&["apply", "--dry-run=server", "-f", "-"], Some(document))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((!output.status.success()).then_some(said))
}

/// Tells of all that went wrong, so that a rule is mended in one go.
fn refused(cluster: &Cluster) -> Result<()> {
    let before = objects(cluster)?;
    let good = refusal(cluster, GOOD)?;
    ensure!(good.is_none(), "{good:?}");
    // Whole steps of iperf3, however they are written.
    for span in ["1.1s", "300ms", "0.5m", "200000us"] {
        let steps = GOOD.replace("native: {}}", "native: {program: iperf3}}").replace("1.1s", span);
        let taken = refusal(cluster, &steps)?;
        ensure!(taken.is_none(), "{span}: {taken:?}");
    }
    let mut wrong = Vec::new();
    for case in CASES.iter().chain(BY_SHAPE) {
        match refusal(cluster, &case.document())? {
            Some(said) if said.contains(case.words) => {}
            other => wrong.push(format!("`{}` is not in {other:?}: {}", case.words, case.document())),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(objects(cluster)? == before, "something was taken");
    Ok(())
}

/// Campaigns of all namespaces.
fn objects(cluster: &Cluster) -> Result<String> {
    cluster.kubectl(&["get", "campaigns", "-A", "-o", "name"])
}

fn unchangeable(cluster: &Cluster) -> Result<()> {
    let waits =
        fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all").replace("select: {}", "select: {atLeast: 1000}");
    cluster.apply(&waits)?;
    let said = refusal(cluster, &waits.replace("200ms", "300ms"))?;
    // Labels are the user's own.
    let labelled = refusal(cluster, &waits.replace("{name: test}", "{name: test, labels: {a: b}}"))?;
    delete(cluster)?;
    let said = said.context("it was changed")?;
    ensure!(said.contains("a campaign is planned once and can't be changed"), "{said}");
    ensure!(labelled.is_none(), "{labelled:?}");
    Ok(())
}
