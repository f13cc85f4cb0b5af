//! Toll on a real Kubernetes, as a user puts it there. One cluster for all tests, one test after the other.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use libtest_mimic::Arguments;
use toll_e2e::kubernetes::{Cluster, anothers_cluster, no_kubernetes};
use toll_e2e::machine::{no_kvm, no_tun};
use toll_e2e::prometheus;
use toll_e2e::suite::conditional;

#[path = "kubernetes/campaigns.rs"]
mod campaigns;
#[path = "kubernetes/faults.rs"]
mod faults;
#[path = "kubernetes/metrics.rs"]
mod metrics;
#[path = "kubernetes/objects.rs"]
mod objects;

type Body = fn(&Cluster) -> Result<()>;

/// The cluster, which comes up with the first test; if it did not, why.
type Shared = Arc<Mutex<Option<Result<Cluster, String>>>>;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let shared = Shared::default();
    let lacking: Vec<&str> = [no_kubernetes(), no_kvm(), no_tun()].into_iter().flatten().collect();
    // The network of its nodes is entered.
    let entering: Vec<&str> =
        lacking.iter().copied().chain(prometheus::lacking()).chain(anothers_cluster()).collect();
    let bodies = [
        (objects::tests(), &lacking),
        (metrics::tests(), &entering),
        (campaigns::tests(), &lacking),
        (faults::tests(), &lacking),
    ];
    let tests = bodies
        .into_iter()
        .flat_map(|(bodies, lacking)| bodies.into_iter().map(move |body| (body, lacking)))
        .map(|((name, body), lacking)| {
            let shared = shared.clone();
            conditional(name, lacking, move || on_cluster(&shared, body))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, tests);
    // Taken down before the process ends: `exit` drops nothing.
    drop(shared.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit();
}

fn on_cluster(shared: &Shared, body: Body) -> Result<()> {
    let mut slot = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = slot.get_or_insert_with(|| Cluster::up().map_err(|error| format!("{error:#}")));
    let cluster = cluster.as_ref().map_err(|why| anyhow::anyhow!("there is no cluster: {why}"))?;
    body(cluster).with_context(|| cluster.story())
}
