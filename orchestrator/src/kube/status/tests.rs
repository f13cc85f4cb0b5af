use proptest::prelude::*;
use toll_protocol::result::RatioEstimate;
use toll_protocol::service::CellStatus;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a moment")
}

fn campaign(state: CampaignState) -> service::CampaignStatus {
    let planned = !matches!(state, CampaignState::Pending);
    let counts = RunCounts { planned: 50, measured: 12, ..RunCounts::default() };
    service::CampaignStatus {
        reason: (!planned).then(|| "1 of 2 hosts are there".to_owned()),
        counts: planned.then_some(counts),
        hosts: if planned { vec!["node1".into(), "node2".into()] } else { Vec::new() },
        started_unix_ms: planned.then_some(1_002_999),
        ..service::CampaignStatus::new("quickstart-72a7b79c", "quickstart", state, 1_000_500)
    }
}

fn condition<'s>(status: &'s CampaignStatus, name: &str) -> &'s Condition {
    status.conditions.iter().find(|condition| condition.type_ == name).expect(name)
}

fn states(status: &CampaignStatus) -> Vec<(&str, &str)> {
    status.conditions.iter().map(|condition| (condition.type_.as_str(), condition.status.as_str())).collect()
}

#[test]
fn a_campaign_goes_through_its_conditions() {
    let pending = status(Seen::Taken(&campaign(CampaignState::Pending)), Some(1), None, at(10));
    assert_eq!(
        states(&pending),
        [("Accepted", "True"), ("Scheduled", "False"), ("Running", "False"), ("Complete", "False")]
    );
    assert_eq!(condition(&pending, "Scheduled").message, "1 of 2 hosts are there");
    assert_eq!((pending.trials.as_deref(), pending.counts), (None, None));
    let running = status(Seen::Taken(&campaign(CampaignState::Running)), Some(1), Some(&pending), at(20));
    assert_eq!(
        states(&running),
        [("Accepted", "True"), ("Scheduled", "True"), ("Running", "True"), ("Complete", "False")]
    );
    assert_eq!(running.trials.as_deref(), Some("12/50"));
    // A condition's time is that of its own change.
    assert_eq!(condition(&running, "Accepted").last_transition_time.0, at(10));
    assert_eq!(condition(&running, "Running").last_transition_time.0, at(20));
    let mut over = campaign(CampaignState::Finished);
    over.counts = Some(RunCounts { planned: 50, measured: 48, failed: 2, ..RunCounts::default() });
    over.verdict = Some(Verdict::Inconclusive);
    let over = status(Seen::Taken(&over), Some(1), Some(&running), at(30));
    assert_eq!(
        states(&over),
        [("Accepted", "True"), ("Scheduled", "True"), ("Running", "False"), ("Complete", "True")]
    );
    assert_eq!(condition(&over, "Complete").message, "48 of 50 trials measured, 2 failed");
    let told = |old, new: &CampaignStatus| {
        news(old, new).into_iter().map(|news| (news.reason, news.warning)).collect::<Vec<_>>()
    };
    assert_eq!(told(None, &pending), [("Accepted", false)]);
    assert_eq!(told(Some(&pending), &running), [("FirstTrial", false)]);
    assert_eq!(told(Some(&running), &over), [("Finished", true)]);
    assert_eq!(told(Some(&over), &over), []);
    // One who looks late tells all of it.
    assert_eq!(told(None, &over), [("Accepted", false), ("FirstTrial", false), ("Finished", true)]);
}

#[test]
fn a_refusal_says_what_is_wrong() {
    let refused = Seen::Refused { reason: "Invalid", message: "spec.arms: is empty" };
    let refused = status(refused, Some(3), None, at(10));
    assert_eq!(refused.state, Some(State::Refused));
    assert_eq!(states(&refused), [("Accepted", "False")]);
    assert_eq!(condition(&refused, "Accepted").message, "spec.arms: is empty");
    assert_eq!(condition(&refused, "Accepted").observed_generation, Some(3));
    assert_eq!(news(None, &refused)[0].note, "spec.arms: is empty");
}

#[test]
fn a_cancelled_campaign_says_why() {
    let mut cancelled = campaign(CampaignState::Cancelled);
    cancelled.reason = Some("its Campaign object was deleted".into());
    let cancelled = status(Seen::Taken(&cancelled), Some(2), None, at(10));
    assert_eq!(condition(&cancelled, "Complete").reason, "Cancelled");
    let last = news(None, &cancelled).pop().expect("news");
    assert_eq!((last.reason, last.note.as_str()), ("Cancelled", "its Campaign object was deleted"));
}

#[test]
fn a_campaign_that_its_hosts_cannot_do_is_over_and_says_why() {
    let mut refused = campaign(CampaignState::Pending);
    (refused.state, refused.reason) = (CampaignState::Refused, Some("the NICs have different MTUs".into()));
    let pending = status(Seen::Taken(&campaign(CampaignState::Pending)), Some(1), None, at(10));
    let refused = status(Seen::Taken(&refused), Some(1), Some(&pending), at(20));
    assert_eq!(refused.state, Some(State::Refused));
    assert_eq!(
        states(&refused),
        [("Accepted", "True"), ("Scheduled", "False"), ("Running", "False"), ("Complete", "True")]
    );
    for name in ["Scheduled", "Complete"] {
        let told = condition(&refused, name);
        assert_eq!(
            (told.reason.as_str(), told.message.as_str()),
            ("Refused", "the NICs have different MTUs")
        );
    }
    let told = news(Some(&pending), &refused);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].warning && told[0].reason == "Refused" && told[0].note == "the NICs have different MTUs");
}

#[test]
fn figures_are_written_for_people_and_bounded() {
    let mut running = campaign(CampaignState::Running);
    let cell = CellStatus {
        name: "node1 → node2 · bulk · send · virtio · native".into(),
        counts: RunCounts { planned: 5, measured: 3, ..RunCounts::default() },
        goodput_bytes_per_second: Some(413_750_000.0),
        ratio_to_native: Some(RatioEstimate { estimate: 0.346, ci95: Some([0.339, 0.352]), blocks: 3 }),
    };
    running.cells = vec![cell; MAX_CELLS + 3];
    running.hosts = (0..100).map(|host| format!("node{host}")).collect();
    let status = status(Seen::Taken(&running), Some(1), None, at(10));
    let first = &status.cells[0];
    assert_eq!((first.trials.as_str(), first.goodput.as_deref()), ("3/5", Some("3.31 Gb/s")));
    assert!(first.of_native.as_deref().is_some_and(|ratio| ratio.starts_with("34.6 %")), "{first:?}");
    assert_eq!(
        (status.cells.len(), status.cells_left_out, status.hosts.len()),
        (MAX_CELLS, Some(3), MAX_HOSTS)
    );
}

fn any_campaign() -> impl Strategy<Value = service::CampaignStatus> {
    let state = prop::sample::select(CampaignState::ALL.to_vec());
    let counts = prop::option::of((0_u32..100, 0_u32..100, 0_u32..100, 0_u32..100));
    let verdict =
        prop::option::of(prop::sample::select(vec![Verdict::Pass, Verdict::Fail, Verdict::Inconclusive]));
    (state, counts, prop::option::of(0_u64..1 << 40), verdict, "\\PC{0,40}").prop_map(
        |(state, counts, started, verdict, reason)| {
            let mut campaign = campaign(state);
            campaign.counts = counts.map(|(measured, failed, skipped, lost)| RunCounts {
                planned: measured + failed + skipped + lost,
                measured,
                failed,
                skipped,
                lost,
            });
            campaign.started_unix_ms = started;
            campaign.verdict = verdict;
            campaign.reason = (!reason.is_empty()).then_some(reason);
            campaign
        },
    )
}

proptest! {
    /// What was written and read back is what would be written: an unchanged campaign is not written again.
    #[test]
    fn an_unchanged_campaign_has_an_unchanged_status(campaign in any_campaign(), now in 0_i64..1 << 33, later in 1_i64..1000) {
        let first = status(Seen::Taken(&campaign), Some(1), None, at(now));
        let text = serde_json::to_string(&first).expect("a status is JSON");
        let read: CampaignStatus = serde_json::from_str(&text).expect("a status is read");
        let again = status(Seen::Taken(&campaign), Some(1), Some(&read), at(now + later));
        prop_assert_eq!(&again, &read);
        prop_assert!(news(Some(&read), &again).is_empty());
        // Each type once, and no reason that the API server refuses.
        let mut types: Vec<&str> = again.conditions.iter().map(|condition| condition.type_.as_str()).collect();
        types.dedup();
        prop_assert_eq!(types.len(), again.conditions.len());
        prop_assert!(again.conditions.iter().all(|condition| !condition.reason.is_empty()));
    }

    #[test]
    fn a_text_is_cut_between_characters(text in "\\PC{0,80}", limit in 4_usize..40) {
        let cut = shortened(&text, limit);
        prop_assert!(cut.len() <= limit);
    }
}
