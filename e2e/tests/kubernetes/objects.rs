//! What the API server refuses, with the words that a user needs.

use anyhow::{Result, ensure};
use toll_e2e::campaigns::{NATIVE, fleet_campaign};
use toll_e2e::kubernetes::Cluster;

use crate::Body;

pub fn tests() -> Vec<(&'static str, Body)> {
    vec![("a_bad_object_is_refused_by_the_api_server_with_what_would_be_right", refused)]
}

fn refused(cluster: &Cluster) -> Result<()> {
    let before = objects(cluster)?;
    let good = fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all");
    let with_arm = |arm: &str| fleet_campaign(&[NATIVE, arm], 1, "200ms", "pairs: all");
    let cases = [
        (
            with_arm("{name: two, native: {}, guest: {os: payload, adapter: {pcnet: {}}}}"),
            "keep one of native, sameStack, guest",
        ),
        (with_arm("{name: none}"), "is nothing yet"),
        (with_arm("{name: a, guest: {os: payload, adapter: {}}}"), "exactly one adapter"),
        (
            with_arm("{name: a, guest: {os: payload, adapter: {rtl8139: {}}}}"),
            "unknown field \"spec.arms[1].guest.adapter.rtl8139\"",
        ),
        (with_arm("{name: native, guest: {os: payload, adapter: {pcnet: {}}}}"), "two arms have one name"),
        (good.replace("blocks: 1", "blocks: 0"), "blocks"),
        (good.replace("200ms", "200"), "duration"),
        (good.replace("select: {}", "{}").replace("hosts: {{}}", "hosts: {}"), "names no hosts"),
        (
            good.replace("seed: 7", "gates: [{toll: {atMost: 10%}, goodput: {atLeast: 1Gbit}}]"),
            "exactly one condition",
        ),
    ];
    for (document, words) in cases {
        let output = cluster.try_kubectl(&["apply", "-f", "-"], Some(&document))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "it was taken, and should be refused with {words}: {document}");
        ensure!(said.contains(words), "`{words}` is not in {said}");
    }
    ensure!(objects(cluster)? == before, "something was taken");
    Ok(())
}

/// Campaigns of all namespaces.
fn objects(cluster: &Cluster) -> Result<String> {
    cluster.kubectl(&["get", "campaigns", "-A", "-o", "name"])
}
