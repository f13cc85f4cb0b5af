use toll_protocol::figure::{
    CPU, CPU_GUEST, CPU_HOST, CPU_VMM, EXITS_PER_FRAME, EXITS_PER_MEGABYTE, FIRST_FRAME, GOODPUT, IDLE,
    MEMORY,
};
use toll_protocol::relation::{AT_LEAST, AT_MOST, WITHIN};
use toll_protocol::result::{Compared, GateCondition, GateSelector, Pair, Verdict};
use toll_protocol::units::{BitRate, Bytes, Percent, Span};

use super::*;
use crate::test_support::{self, BLOCKS, key};

fn cell<'a>(result: &'a CampaignResult, arm: &str, direction: Direction, peer: Peer) -> &'a CellResult {
    result.cells.iter().find(|cell| cell.key == key(arm, direction, peer)).expect("the cell")
}

fn whole() -> CampaignResult {
    let (header, records) = test_support::campaign();
    summarise(&header, &records, &test_support::gates()).expect("belongs together")
}

/// A cell's first measured trial, for a test to change.
fn measured<'a>(
    records: &'a mut [TrialRecord],
    cell: &CellKey,
    block: u32,
) -> (&'a mut EndReport, &'a mut EndReport) {
    let record =
        records.iter_mut().find(|record| record.cell == *cell && record.block == block).expect("planned");
    match &mut record.outcome {
        Outcome::Measured { a, b } => (a, b),
        other => panic!("not measured: {other:?}"),
    }
}

#[test]
fn every_planned_trial_is_a_run_and_counts_add_up() {
    let (header, records) = test_support::campaign();
    let result = summarise(&header, &records[..40], &[]).expect("belongs together");
    let runs: usize = result.cells.iter().map(|cell| cell.runs.len()).sum();
    assert_eq!(runs, header.planned.len());
    for cell in &result.cells {
        let RunCounts { planned, measured, failed, skipped, lost } = cell.counts;
        assert_eq!(planned, BLOCKS);
        assert_eq!(planned, measured + failed + skipped + lost);
        for run in &cell.runs {
            assert_eq!(run.goodput_bytes_per_second.is_some(), run.status == RunStatus::Measured);
            assert_eq!(run.reason.is_none(), run.status == RunStatus::Measured);
        }
    }
    let not_reached = result.cells.iter().flat_map(|cell| &cell.runs).filter(|run| run.position >= 40);
    for run in not_reached {
        assert_eq!((run.status, run.reason.as_deref()), (RunStatus::Skipped, Some(NOT_REACHED)));
    }
}

#[test]
fn pairs_stand_in_the_plans_order_and_not_by_name() {
    let (mut header, _) = test_support::campaign();
    let half = u32::try_from(header.planned.len() / 2).expect("few");
    for planned in &mut header.planned {
        planned.cell.pair.a = if planned.position < half { "host-2" } else { "host-10" }.to_owned();
    }
    let result = summarise(&header, &[], &[]).expect("belongs together");
    let mut hosts: Vec<&str> = result.cells.iter().map(|cell| cell.key.pair.a.as_str()).collect();
    hosts.dedup();
    assert_eq!(hosts, ["host-2", "host-10"]);
}

#[test]
fn a_campaign_without_records_has_no_figures() {
    let (header, _) = test_support::campaign();
    let result = summarise(&header, &[], &test_support::gates()).expect("belongs together");
    for cell in &result.cells {
        assert_eq!(
            (cell.estimate(&GOODPUT), cell.to_native(&GOODPUT), cell.median(&EXITS_PER_FRAME)),
            (None, None, None)
        );
        assert_eq!(cell.exits_by_cause, None);
        assert!(cell.figures.is_empty(), "{:?}", cell.figures);
        assert_eq!(cell.counts.skipped, BLOCKS);
    }
    assert!(result.gates.iter().all(|gate| gate.verdict == Verdict::Inconclusive));
    let json = serde_json::to_value(&result).expect("encodes");
    assert!(json["cells"][0]["figures"].as_object().is_some_and(|figures| figures.is_empty()));
}

#[test]
fn goodput_is_the_receivers() {
    let (header, mut records) = test_support::campaign();
    for direction in [Direction::Send, Direction::Receive] {
        let key = key("native", direction, Peer::Native);
        for block in 0..BLOCKS {
            let (a, b) = measured(&mut records, &key, block);
            let (receiver, sender) = if direction == Direction::Send { (b, a) } else { (a, b) };
            (receiver.received_bytes, receiver.interval) = (3_000_000, Span::from_millis(1_500));
            (sender.sent_bytes, sender.interval) = (77_000_000, Span::from_millis(2_000));
        }
    }
    let result = summarise(&header, &records, &[]).expect("belongs together");
    for direction in [Direction::Send, Direction::Receive] {
        let estimate = cell(&result, "native", direction, Peer::Native).estimate(&GOODPUT).expect("a figure");
        assert_eq!(estimate.median, 2_000_000.0, "{direction}");
        assert_eq!(estimate.ci95, Some([2_000_000.0, 2_000_000.0]));
    }
}

#[test]
fn the_ratio_is_taken_against_the_baseline_alone() {
    let result = whole();
    for direction in [Direction::Send, Direction::Receive] {
        assert_eq!(cell(&result, "native", direction, Peer::Native).to_native(&GOODPUT), None);
        let iperf3 = cell(&result, "iperf3", direction, Peer::Native).to_native(&GOODPUT).expect("a ratio");
        assert!((iperf3.estimate - 1.0).abs() < 0.02, "{iperf3:?}");
        for peer in [Peer::Native, Peer::SameArm] {
            let virtio = cell(&result, "virtio", direction, peer).to_native(&GOODPUT).expect("a ratio");
            assert!((0.1..0.2).contains(&virtio.estimate), "{virtio:?}");
        }
    }
    // One run failed: its block is in no ratio.
    let virtio = cell(&result, "virtio", Direction::Send, Peer::Native);
    assert_eq!(virtio.to_native(&GOODPUT).map(|ratio| ratio.blocks), Some(BLOCKS - 1));
    assert_eq!((virtio.counts.measured, virtio.counts.failed), (BLOCKS - 1, 1));
}

#[test]
fn without_a_baseline_there_is_no_ratio() {
    let (mut header, records) = test_support::campaign();
    for arm in &mut header.arms {
        arm.baseline = false;
    }
    let result = summarise(&header, &records, &[]).expect("belongs together");
    assert!(result.cells.iter().all(|cell| cell.to_native(&GOODPUT).is_none()));
    for arm in &mut header.arms[..2] {
        arm.baseline = true;
    }
    let error = summarise(&header, &records, &[]).expect_err("two baselines");
    assert_eq!(error, SummaryError::TwoBaselines("native".to_owned(), "iperf3".to_owned()));
}

#[test]
fn a_run_that_moved_nothing_is_zero_and_leaves_no_ratio() {
    let (header, mut records) = test_support::campaign();
    let key = key("virtio", Direction::Receive, Peer::Native);
    measured(&mut records, &key, 1).0.received_bytes = 0;
    let result = summarise(&header, &records, &[]).expect("belongs together");
    let cell = cell(&result, "virtio", Direction::Receive, Peer::Native);
    assert_eq!(cell.runs[1].goodput_bytes_per_second, Some(0.0));
    assert_eq!(cell.runs[1].status, RunStatus::Measured);
    assert_eq!(cell.to_native(&GOODPUT), None);
    assert!(cell.median(&CPU_GUEST).is_some_and(f64::is_finite), "from the other runs");
}

#[test]
fn an_interval_without_length_is_no_figure() {
    let (header, mut records) = test_support::campaign();
    for block in 0..BLOCKS {
        let (a, b) = measured(&mut records, &key("virtio", Direction::Receive, Peer::Native), block);
        (a.interval, b.interval) = (Span(0), Span(0));
    }
    let result = summarise(&header, &records, &[]).expect("belongs together");
    let cell = cell(&result, "virtio", Direction::Receive, Peer::Native);
    assert_eq!((cell.estimate(&GOODPUT), cell.to_native(&GOODPUT)), (None, None));
    assert!([&CPU_GUEST, &CPU_VMM, &CPU_HOST].iter().all(|part| cell.median(part).is_none()));
}

#[test]
fn exits_are_per_frame_in_the_direction_of_the_payload() {
    let result = whole();
    for direction in [Direction::Send, Direction::Receive] {
        let pcnet = cell(&result, "pcnet", direction, Peer::Native);
        assert!(
            (pcnet.median(&EXITS_PER_FRAME).expect("a figure") - 12.45).abs() < 0.01,
            "{:?}",
            pcnet.median(&EXITS_PER_FRAME)
        );
        let causes = pcnet.exits_by_cause.as_ref().expect("a guest");
        let rap = causes["pio-write rap"];
        assert!((rap.per_frame.expect("frames") - 7.0).abs() < 0.01);
        assert_eq!(rap.mean_handling_seconds, Some(1_150e-9));
        let runs: u64 = pcnet
            .runs
            .iter()
            .filter_map(|run| run.a.as_ref()?.exits.as_ref())
            .map(|exits| exits.total())
            .sum();
        assert_eq!(causes.values().map(|cause| cause.count).sum::<u64>(), runs);
    }
    let native = cell(&result, "native", Direction::Send, Peer::Native);
    assert_eq!((native.median(&EXITS_PER_FRAME), &native.exits_by_cause), (None, &None));
}

#[test]
fn cpu_is_seconds_per_gigabyte_at_the_arms_end() {
    let (header, mut records) = test_support::campaign();
    for block in 0..BLOCKS {
        let (a, b) = measured(&mut records, &key("virtio", Direction::Receive, Peer::Native), block);
        (a.received_bytes, a.interval) = (500_000_000, Span::from_millis(2_000));
        a.cpu.guest = Some(Span::from_millis(800));
        a.cpu.vmm = None;
        b.cpu.guest = Some(Span::from_millis(999_999));
    }
    let result = summarise(&header, &records, &[]).expect("belongs together");
    let cell = cell(&result, "virtio", Direction::Receive, Peer::Native);
    assert!((cell.median(&CPU_GUEST).expect("a figure") - 1.6).abs() < 1e-9);
    assert_eq!(cell.median(&CPU_VMM), None);
}

#[test]
fn cpu_and_idle_are_those_of_all_threads_of_the_arms_end() {
    let result = whole();
    for cell in &result.cells {
        let runs: Vec<&EndReport> = cell.runs.iter().filter_map(|run| run.a.as_ref()).collect();
        let idle: Vec<f64> = runs
            .iter()
            .filter(|end| !end.threads.is_empty())
            .map(|end| {
                let busy: f64 = end.threads.iter().map(|thread| thread.total.seconds()).sum();
                1.0 - busy / end.interval.seconds()
            })
            .collect();
        assert_eq!(
            cell.estimate(&IDLE).map(|idle| idle.median),
            crate::statistics::median(&idle),
            "{:?}",
            cell.key
        );
    }
    let native = cell(&result, "native", Direction::Send, Peer::Native);
    assert_eq!(native.to_native(&CPU), None);
    let virtio = cell(&result, "virtio", Direction::Send, Peer::Native);
    let per_byte = |run: &Run| {
        let end = run.a.as_ref()?;
        let busy: f64 = end.threads.iter().map(|thread| thread.total.seconds()).sum();
        Some(busy / end.interval.seconds() / run.goodput_bytes_per_second?)
    };
    let ratios: Vec<f64> = virtio
        .runs
        .iter()
        .filter_map(|run| {
            let other = native.runs.iter().find(|other| other.block == run.block)?;
            Some(per_byte(run)? / per_byte(other)?)
        })
        .collect();
    let (least, most) = ratios.iter().fold((f64::MAX, 0.0_f64), |(l, m), r| (l.min(*r), m.max(*r)));
    let ratio = virtio.to_native(&CPU).expect("both have CPU times");
    assert!(ratios.len() > 2 && (least..=most).contains(&ratio.estimate), "{ratio:?} of {ratios:?}");
}

#[test]
fn flags_count_runs_and_the_link_is_seen_from_here() {
    let (mut header, records) = test_support::campaign();
    header.provenance.hosts[1].facts.build_profile = "debug".to_owned();
    header.provenance.link_rate = Some(BitRate(9_500_000_000));
    let result = summarise(&header, &records, &[]).expect("belongs together");
    let native = cell(&result, "native", Direction::Send, Peer::Native);
    assert_eq!(native.flags.get(&Flag::LinkBound), Some(&BLOCKS));
    assert_eq!(native.flags.get(&Flag::DebugBuild), Some(&BLOCKS));
    let virtio = cell(&result, "virtio", Direction::Send, Peer::Native);
    assert_eq!(virtio.flags.get(&Flag::LinkBound), None);
    assert_eq!(virtio.flags.get(&Flag::CpuBound), Some(&(BLOCKS - 1)), "only measured runs carry flags");
}

#[test]
fn gates_pass_fail_or_show_nothing() {
    let result = whole();
    let of = |arm: &str| -> Vec<(Direction, Peer, Verdict)> {
        let gates = result.gates.iter().filter_map(|gate| Some((gate.cell.as_ref()?, gate.verdict)));
        gates
            .filter(|(cell, _)| cell.arm == arm)
            .map(|(cell, verdict)| (cell.direction, cell.peer, verdict))
            .collect()
    };
    assert_eq!(of("virtio").len(), 4);
    assert!(of("virtio").iter().all(|(_, _, verdict)| *verdict == Verdict::Pass), "{:?}", of("virtio"));
    let failed_cell = (Direction::Receive, Peer::SameArm);
    for (direction, peer, verdict) in of("pcnet") {
        let expected = if (direction, peer) == failed_cell { Verdict::Inconclusive } else { Verdict::Fail };
        assert_eq!(verdict, expected);
    }
    let gate = &result.gates[0];
    assert_eq!(gate.condition, "toll at most 90%");
    let [lower, upper] = gate.ci95.expect("an interval");
    assert!(gate.value.is_some_and(|toll| lower <= toll && toll <= upper), "{gate:?}");
}

#[test]
fn gates_on_other_figures_than_the_toll() {
    let (header, mut records) = test_support::campaign();
    for record in &mut records {
        if let Outcome::Measured { a, .. } = &mut record.outcome {
            a.overhead = Some(Bytes(1 << 20));
        }
    }
    let judged = |arm: Option<&str>, condition| {
        let cells = GateSelector {
            arm: arm.map(str::to_owned),
            direction: Some(Direction::Send),
            peer: Some(Peer::Native),
            ..GateSelector::default()
        };
        let gate = Gate { cells, condition };
        summarise(&header, &records, &[gate]).expect("belongs together").gates
    };
    let one = |condition| {
        let [gate] = &judged(Some("virtio"), condition)[..] else { panic!("one cell") };
        gate.clone()
    };
    let at_most = |figure, number, text: &dyn std::fmt::Display| {
        GateCondition::on_median(figure, &AT_MOST, number, text)
    };
    let ratio = |percent: f64| {
        let limit = Percent::from_fraction(percent / 100.0);
        GateCondition::on_ratio(&GOODPUT, "pcnet".to_owned(), &AT_LEAST, limit)
    };
    let whole = summarise(&header, &records, &[]).expect("belongs together");
    let goodput = |arm| cell(&whole, arm, Direction::Send, Peer::Native).median(&GOODPUT).expect("some");
    let about = goodput("virtio") / goodput("pcnet");
    let gate = one(ratio(about * 50.0));
    assert!(gate.value.is_some_and(|figure| (figure / about - 1.0).abs() < 0.2), "{gate:?} {about}");
    assert_eq!((gate.compared, gate.verdict), (Compared::Ratio, Verdict::Pass));
    assert_eq!(one(ratio(about * 200.0)).verdict, Verdict::Fail);
    let equal = |within: f64| {
        let within = Percent::from_fraction(within);
        GateCondition::on_ratio(&GOODPUT, "native".to_owned(), &WITHIN, within)
    };
    assert_eq!(one(equal(0.02)).verdict, Verdict::Fail);
    // Of all arms but the one that they are relative to.
    let all = judged(None, equal(0.02));
    assert!(
        !all.is_empty() && all.iter().all(|gate| gate.cell.as_ref().is_some_and(|cell| cell.arm != "native"))
    );
    let exits = cell(&whole, "virtio", Direction::Send, Peer::Native)
        .median(&EXITS_PER_MEGABYTE)
        .expect("a guest has exits");
    assert_eq!(one(at_most(&EXITS_PER_MEGABYTE, exits * 2.0, &"so many")).verdict, Verdict::Pass);
    assert_eq!(one(at_most(&EXITS_PER_MEGABYTE, exits / 2.0, &"so many")).verdict, Verdict::Fail);
    assert_eq!(one(at_most(&FIRST_FRAME, 0.005, &Span::from_millis(5))).verdict, Verdict::Pass);
    assert_eq!(one(at_most(&FIRST_FRAME, 0.001, &Span::from_millis(1))).verdict, Verdict::Fail);
    let memory = one(at_most(&MEMORY, 2_097_152.0, &Bytes(2 << 20)));
    assert_eq!((memory.value, memory.verdict), (Some(1_048_576.0), Verdict::Pass));
    assert_eq!(memory.condition, "memory beside the guest's at most 2MiB");
    // A native end has no exits to count.
    let native = judged(Some("native"), at_most(&EXITS_PER_MEGABYTE, 1.0, &"so many"));
    assert_eq!((native[0].value, native[0].verdict), (None, Verdict::Inconclusive));
}

#[test]
fn a_gate_that_selects_nothing_shows_nothing() {
    let (header, records) = test_support::campaign();
    let gate = |arm: Option<&str>, condition| Gate {
        cells: GateSelector { arm: arm.map(str::to_owned), ..GateSelector::default() },
        condition,
    };
    let gates = [
        gate(Some("e1000"), GateCondition::on_median(&GOODPUT, &AT_LEAST, 0.125, &BitRate(1))),
        gate(None, GateCondition::toll_at_most(&GOODPUT, Percent::from_fraction(0.5))),
        gate(Some("native"), GateCondition::toll_at_most(&GOODPUT, Percent::from_fraction(0.5))),
    ];
    let result = summarise(&header, &records, &gates).expect("belongs together");
    assert_eq!((&result.gates[0].cell, result.gates[0].verdict), (&None, Verdict::Inconclusive));
    let of_all = result.gates.iter().filter_map(|gate| gate.cell.as_ref());
    // The gate on every cell passes over native ones; the one that names `native` can show nothing.
    assert_eq!(of_all.filter(|cell| cell.arm == "iperf3").count(), 0);
    assert!(result.gates.iter().rev().take(2).all(|gate| gate.verdict == Verdict::Inconclusive));
}

#[test]
fn figures_do_not_depend_on_the_order_of_records_or_on_other_cells() {
    let (header, records) = test_support::campaign();
    let gates = test_support::gates();
    let mut reversed = records.clone();
    reversed.reverse();
    let result = summarise(&header, &records, &gates).expect("belongs together");
    assert!(summarise(&header, &reversed, &gates).expect("belongs together") == result);

    let keep = |cell: &CellKey| cell.arm == "native" || cell.arm == "virtio";
    let mut fewer = header.clone();
    fewer.planned.retain(|planned| keep(&planned.cell));
    let records: Vec<_> = records.into_iter().filter(|record| keep(&record.cell)).collect();
    let fewer = summarise(&fewer, &records, &[]).expect("belongs together");
    let kept = result.cells.into_iter().filter(|cell| keep(&cell.key)).collect::<Vec<_>>();
    assert!(fewer.cells == kept);
}

#[test]
fn records_of_another_plan_are_refused() {
    let (header, records) = test_support::campaign();
    let trial = records[0].trial;
    let with = |change: &dyn Fn(&mut LedgerHeader, &mut Vec<TrialRecord>)| {
        let (mut header, mut records) = (header.clone(), records.clone());
        change(&mut header, &mut records);
        summarise(&header, &records, &[]).expect_err("they don't belong together")
    };
    assert_eq!(with(&|_, records| records.push(records[0].clone())), SummaryError::RecordedTwice(trial));
    assert_eq!(
        with(&|header, _| header.planned.push(header.planned[0].clone())),
        SummaryError::PlannedTwice(trial)
    );
    assert_eq!(with(&|header, _| drop(header.planned.remove(0))), SummaryError::NotOfThePlan(trial));
    assert_eq!(with(&|_, records| records[0].block += 1), SummaryError::NotOfThePlan(trial));
    let other = Pair { a: "x".to_owned(), b: "y".to_owned() };
    assert_eq!(with(&|_, records| records[0].cell.pair = other.clone()), SummaryError::NotOfThePlan(trial));
    let unknown = with(&|header, _| header.arms.retain(|arm| arm.name != "pcnet"));
    assert_eq!(unknown, SummaryError::UnknownArm("pcnet".to_owned()));
}

#[test]
fn the_document_reads_back() {
    let result = whole();
    let json = serde_json::to_string_pretty(&result).expect("encodes");
    assert!(
        serde_json::from_str::<CampaignResult>(&json).expect("reads") == result,
        "every bit of every figure"
    );
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let cell = &value["cells"][0];
    for field in ["pair", "workload", "direction", "arm", "runs", "figures", "exits_by_cause", "flags"] {
        assert!(cell.get(field).is_some(), "{field}");
    }
    let goodput = &cell["figures"]["goodput"];
    assert!(goodput["ci95_high"].is_f64() && goodput["unit"] == "bytes-per-second", "{goodput}");
    assert!(
        cell["runs"][0]["a"]["samples"].as_array().is_some_and(|samples| samples.len() == 20),
        "raw samples are kept"
    );
}
