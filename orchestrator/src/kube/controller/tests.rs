use serde_json::json;
use toll_protocol::campaign;

use super::*;
use crate::kube::crd;

#[test]
fn an_id_names_the_object_and_its_uid() {
    let uid = "72a7b79c-18eb-4449-a846-6e5fdb516c0c";
    assert_eq!(id("quickstart", uid), "quickstart-72a7b79c");
    let long = id(&"a".repeat(63), uid);
    assert!(long.len() <= 80 && long.ends_with("-72a7b79c"), "{long}");
}

#[test]
fn the_document_of_an_object_is_the_campaign_of_its_file() {
    let text = include_str!("../../../../manifests/campaigns/quickstart.yaml");
    let spec = json!({
        "hosts": {"select": {"matchLabels": {}}, "lab": {"count": 2, "link": {"rate": "10Gbit", "mtu": 1500}}},
        "pairs": "all",
        "arms": [
            {"name": "native", "native": {}},
            {"name": "same-stack", "sameStack": {"adapter": {"virtioNet": {}}}},
            {"name": "pcnet", "guest": {"os": "payload", "adapter": {"pcnet": {}}}},
            {
                "name": "virtio",
                "guest": {"os": "payload", "adapter": {"virtioNet": {}}},
                "peers": ["native", "same-arm"],
            },
        ],
        "workloads": [{
            "name": "bulk",
            "stream": {"directions": ["send", "receive"], "writeSize": "64KiB", "warmUp": "300ms", "duration": "1s"},
        }],
        "blocks": 5,
        "seed": 1,
    });
    let of_object = campaign::parse(&document("quickstart", &spec)).expect("the object is a campaign");
    assert_eq!(of_object, campaign::parse(text).expect("the file is a campaign"));
}

#[test]
fn what_the_service_will_never_take_is_told_and_the_rest_is_tried_again() {
    let problems = campaign::parse(&document("x", &json!({"hosts": {}}))).expect_err("is no campaign");
    let (reason, message) = refusal(&SubmitError::Invalid(problems)).expect("is final");
    assert_eq!(reason, "Invalid");
    // Of the shape and of values, a line each.
    let told =
        ["spec: missing field `arms`", "spec: missing field `workloads`", "spec.hosts: names no hosts"];
    assert!(told.iter().all(|told| message.contains(told)), "{message}");
    assert_eq!(message.lines().count(), 3, "{message}");
    assert!(refusal(&SubmitError::NoSelect).is_some());
    assert!(refusal(&SubmitError::Ending).is_none());
    assert!(refusal(&SubmitError::Store("the disk is full".into())).is_none());
    let left_out = |again| SubmitError::LeftOut { id: "x".into(), why: "it is held".into(), again };
    assert!(refusal(&left_out(true)).is_none() && refusal(&left_out(false)).is_some());
}

#[test]
fn a_campaign_that_can_never_be_served_is_told() {
    let left_out =
        |again| LookupError::LeftOut { id: "x".into(), why: "its ledger is damaged".into(), again };
    let (reason, message) = never_served(&left_out(false)).expect("is final");
    assert!(reason == "LeftOut" && message.contains("its ledger is damaged"), "{message}");
    assert!(never_served(&left_out(true)).is_none() && never_served(&LookupError::Ending).is_none());
}

/// The service removes campaigns that are over (--keep): an object that was told is not submitted again.
#[test]
fn an_object_whose_campaign_is_over_is_let_go_and_never_submitted_again() {
    let object = |finalizers: &[&str], deleted: bool| -> Campaign {
        let mut object = json!({
            "apiVersion": crd::API_VERSION, "kind": crd::KIND,
            "metadata": {"name": "c", "uid": "1", "finalizers": finalizers}, "spec": {},
        });
        if deleted {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(object).expect("an object")
    };
    let told = |state| CampaignStatus { state: Some(state), ..CampaignStatus::default() };
    let (new, ours, ending) =
        (object(&["x"], false), object(&["x", FINALIZER], false), object(&[FINALIZER], true));
    for state in [State::Finished, State::Cancelled, State::Refused] {
        let told = told(state);
        assert_eq!(next(&ours, Some(&told)), Next::LetGo, "{state:?}");
        assert_eq!(next(&new, Some(&told)), Next::Nothing, "{state:?}");
        assert_eq!(next(&ending, Some(&told)), Next::End, "{state:?}");
    }
    for told in [None, Some(told(State::Pending)), Some(told(State::Running))] {
        assert_eq!(next(&new, told.as_ref()), Next::Keep);
        assert_eq!(next(&ours, told.as_ref()), Next::Apply);
        assert_eq!(next(&ending, told.as_ref()), Next::End);
    }
    assert_eq!(next(&object(&["x"], true), None), Next::Nothing);
}

#[tokio::test(start_paused = true)]
async fn many_changes_are_one_tick_a_second() {
    let (sender, changes) = watch::channel(0_u64);
    let started = tokio::time::Instant::now();
    let mut ticks = std::pin::pin!(paced(changes));
    let mut seen = 0;
    for _ in 0..5 {
        for _ in 0..100 {
            sender.send_modify(|count| *count += 1);
        }
        ticks.next().await.expect("a tick");
        seen += 1;
    }
    let elapsed = started.elapsed();
    assert!(seen == 5 && elapsed >= PACE * 4 && elapsed < PACE * 5, "{elapsed:?}");
    drop(sender);
    assert_eq!(ticks.next().await, None);
}

#[test]
fn the_definition_is_the_one_of_the_manifests() {
    let written = include_str!("../../../../manifests/crd/campaigns.yaml");
    let wanted = crd::yaml().expect("the definition is sound");
    assert!(
        written == wanted,
        "manifests/crd/campaigns.yaml is old: toll crd > manifests/crd/campaigns.yaml"
    );
}

#[test]
fn an_object_that_another_schema_let_in_is_still_read() {
    let object = json!({
        "apiVersion": crd::API_VERSION, "kind": crd::KIND, "metadata": {"name": "odd"},
        "spec": {"hosts": {"select": {}}, "arms": [{"name": "x", "quantum": {}}], "workloads": 3},
    });
    let object: Campaign = serde_json::from_value(object).expect("any spec is read");
    assert_eq!(object.spec.0["workloads"], 3);
}
