//! What the cluster says of its nodes: cordoned and NotReady ones get no trials. [`view`] is pure; [`watch`] tells the
//! service whenever it changes.

use std::collections::BTreeMap;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};

use crate::service::handle::{self, Handle};

/// What the service is told of `node`.
fn view(node: &Node) -> handle::Node {
    let ready = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref()?.iter().find(|condition| condition.type_ == "Ready"));
    let barred = if node.metadata.deletion_timestamp.is_some() {
        Some("the node is being deleted".to_owned())
    } else if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        Some("the node is cordoned".to_owned())
    } else {
        match ready {
            Some(ready) if ready.status == "True" => None,
            Some(ready) => {
                let why = ready.reason.as_deref().filter(|reason| !reason.is_empty());
                Some(why.map_or_else(
                    || "the node is NotReady".to_owned(),
                    |why| format!("the node is NotReady: {why}"),
                ))
            }
            None => Some("the node is NotReady: its kubelet has said nothing yet".to_owned()),
        }
    };
    handle::Node { labels: node.labels().clone(), barred }
}

/// Tells the service of the nodes at every change that it would notice, until the watch ends, which it does not of
/// itself: what fails is tried again.
pub(super) async fn watch(client: Client, handle: Handle) {
    let (reader, writer) = reflector::store();
    let events = watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff();
    tell(reflector(writer, events), reader, handle).await;
}

async fn tell(
    events: impl Stream<Item = watcher::Result<watcher::Event<Node>>>,
    reader: reflector::Store<Node>,
    handle: Handle,
) {
    let mut events = std::pin::pin!(events);
    let mut told: Option<BTreeMap<String, handle::Node>> = None;
    while let Some(event) = events.next().await {
        match event {
            // The list is not whole before `InitDone`: nodes that are still to come would be taken for gone.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(_) => {
                let nodes: BTreeMap<_, _> =
                    reader.state().iter().map(|node| (node.name_any(), view(node))).collect();
                if told.as_ref() != Some(&nodes) {
                    handle.nodes(nodes.clone()).await;
                    told = Some(nodes);
                }
            }
            Err(error) => tracing::warn!("nodes can't be watched: {error}"),
        }
    }
}

#[cfg(test)]
mod tests;
