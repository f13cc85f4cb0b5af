use futures_util::stream;
use serde_json::json;

use super::*;
use crate::service::handle::Request;

fn node(name: &str, unschedulable: bool, ready: Option<&str>) -> Node {
    let conditions: Vec<_> = ready
        .map(|status| json!({"type": "Ready", "status": status, "reason": "KubeletTalks"}))
        .into_iter()
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"zone": "a"}},
        "spec": {"unschedulable": unschedulable},
        "status": {"conditions": conditions},
    }))
    .expect("a node")
}

fn barred(node: &Node) -> Option<String> {
    view(node).barred
}

#[test]
fn a_node_that_is_cordoned_or_not_ready_is_barred() {
    assert_eq!(barred(&node("a", false, Some("True"))), None);
    assert_eq!(barred(&node("a", true, Some("True"))).as_deref(), Some("the node is cordoned"));
    let not_ready = Some("the node is NotReady: KubeletTalks".to_owned());
    assert_eq!(barred(&node("a", false, Some("False"))), not_ready);
    assert_eq!(barred(&node("a", false, Some("Unknown"))), not_ready);
    assert!(barred(&node("a", false, None)).is_some());
    assert_eq!(view(&node("a", false, Some("True"))).labels["zone"], "a");
}

#[tokio::test]
async fn the_service_is_told_of_whole_lists_and_of_changes_alone() {
    let (handle, mut questions) = handle::channel();
    let (reader, writer) = reflector::store();
    let ready = |name| node(name, false, Some("True"));
    let events = stream::iter([
        watcher::Event::Init,
        watcher::Event::InitApply(ready("a")),
        watcher::Event::InitApply(ready("b")),
        watcher::Event::InitDone,
        // Its heartbeat: nothing that the service would notice.
        watcher::Event::Apply(ready("a")),
        watcher::Event::Apply(node("b", true, Some("True"))),
        watcher::Event::Delete(ready("a")),
    ]);
    tell(reflector(writer, events.map(Ok)), reader, handle).await;
    let mut told = Vec::new();
    while let Some(Request::Nodes(nodes)) = questions.requests.recv().await {
        told.push(nodes.into_iter().map(|(name, node)| (name, node.barred.is_some())).collect::<Vec<_>>());
    }
    let of =
        |list: &[(&str, bool)]| list.iter().map(|(name, barred)| ((*name).to_owned(), *barred)).collect();
    let wanted: [Vec<(String, bool)>; 3] =
        [of(&[("a", false), ("b", false)]), of(&[("a", false), ("b", true)]), of(&[("b", true)])];
    assert_eq!(told, wanted);
}
