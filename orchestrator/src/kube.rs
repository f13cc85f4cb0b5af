//! Toll in a Kubernetes cluster: `Campaign` objects become campaigns of the service, nodes say which hosts may be used,
//! a Lease says who leads. The only folder that knows kube and k8s-openapi.

mod controller;
pub mod crd;
mod leader;
mod lease;
mod nodes;
pub(crate) mod rules;
mod status;

use std::time::Duration;

use kube::api::ListParams;
use kube::{Api, Client, Config};

pub use leader::{Leadership, lead};

use crate::service::handle::Handle;

/// Field manager of everything that is written.
const MANAGER: &str = "toll";
/// A cluster that does not answer its first question within this is not there.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who this process is in the cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct KubeOptions {
    /// Namespace of the Lease: that of the orchestrator's pod
    #[arg(long = "kube-namespace", value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "toll")]
    pub namespace: String,
    /// Name under which the Lease is held, no other process's: the pod's
    #[arg(
        long = "kube-identity",
        value_name = "NAME",
        env = "POD_NAME",
        default_value = "toll-orchestrator"
    )]
    pub identity: String,
    /// Take Campaign objects of this namespace alone [default: of every namespace]
    #[arg(long = "kube-campaigns", value_name = "NAMESPACE")]
    pub campaigns: Option<String>,
}

/// Why there is no work in a cluster.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// There is no cluster to talk to.
    #[error(
        "there is no Kubernetes cluster to talk to ({why}): run in a pod with a service account, or name a kubeconfig \
         in KUBECONFIG"
    )]
    NoCluster {
        /// What is missing.
        why: String,
    },
    /// The Lease can't be had.
    #[error("the Lease can't be had ({why}): apply the Role of manifests/deploy")]
    Lease {
        /// What the API server says.
        why: String,
    },
    /// `Campaign` objects can't be read.
    #[error(
        "Campaign objects can't be read ({why}): apply manifests/crd and the ClusterRole of manifests/deploy"
    )]
    Campaigns {
        /// What the API server says.
        why: String,
    },
}

/// A client of the cluster that this process is in, or that its kubeconfig names.
async fn client() -> Result<Client, KubeError> {
    let no_cluster = |why: String| KubeError::NoCluster { why };
    let config = Config::infer().await.map_err(|error| no_cluster(error.to_string()))?;
    Client::try_from(config).map_err(|error| no_cluster(words(&error)))
}

/// What the API server says, without the whole answer around it.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text.push_str(&format!(": {cause_text}"));
                }
                source = cause.source();
            }
            text
        }
    }
}

/// Does what the cluster's `Campaign` objects ask for and tells the service of the cluster's nodes, until `stop`.
/// To be called by the leader alone.
///
/// # Errors
/// When there is no cluster, or it doesn't know `Campaign`. What passes is tried again.
pub async fn run(
    handle: Handle,
    options: &KubeOptions,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) -> Result<(), KubeError> {
    let client = client().await?;
    let campaigns: Api<crd::Campaign> = match &options.campaigns {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    // A watch would try for ever where the definition is missing: ask once first.
    let asked =
        tokio::time::timeout(PATIENCE, campaigns.list_metadata(&ListParams::default().limit(1))).await;
    match asked {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(KubeError::Campaigns { why: words(&error) }),
        Err(_) => {
            let why = format!("no answer within {} s", PATIENCE.as_secs());
            return Err(KubeError::NoCluster { why });
        }
    }
    tokio::select! {
        () = controller::control(client.clone(), campaigns, handle.clone(), &options.identity, stop) => {}
        () = nodes::watch(client, handle) => {}
    }
    Ok(())
}
