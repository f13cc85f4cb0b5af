//! What is read rather than looked at: all cells, gates, failures, flags, hosts, method.

use std::collections::BTreeSet;

use maud::{Markup, html};
use toll_protocol::facts::{HostFacts, KvmFact, KvmKind};
use toll_protocol::figure::{FIGURES, Figure, GOODPUT, Unit};
use toll_protocol::report::Flag;
use toll_protocol::result::{CampaignResult, CellResult, RunStatus, Verdict};

use super::group_label;
use crate::format;
use crate::report::terminal::gate_figure;
use crate::report::{explain, groups, is_baseline, paper, path, status, verdict, without_figure};

/// The table of all cells.
pub fn cells(result: &CampaignResult) -> Markup {
    let groups = groups(result);
    let columns = columns(result);
    html! {
        h2 { "All cells" }
        p.note { "Medians over the runs; intervals are 95 %. A second line is what a figure is more than native's in the same block. A dash is a figure that does not exist or could not be taken." }
        div.wide {
            table {
                thead {
                    tr {
                        th { "arm" } th { "payload" } th.r { "goodput" } th { "interval" } th.r { "of native" }
                        th { "interval" } @for figure in &columns { th.r { (figure.title) } } th.r { "runs" }
                        th { "flags (runs)" }
                    }
                }
                tbody {
                    @for (index, group) in groups.iter().enumerate() {
                        @if let Some(label) = group_label(&groups, index) {
                            tr.part { th colspan=(8 + columns.len()) { (label) } }
                        }
                        @for cell in &group.cells { (cell_row(result, cell, &columns)) }
                    }
                }
            }
        }
    }
}

/// Figures that any cell has; goodput has columns of its own, and who used the CPU a section.
fn columns(result: &CampaignResult) -> Vec<&'static Figure> {
    let is_part = |figure: &Figure| {
        figure.unit == Unit::SecondsPerGigabyte && figure.metric.is_some_and(|metric| metric.part.is_some())
    };
    let known = |figure: &&'static Figure| result.cells.iter().any(|cell| cell.figure(figure).is_some());
    FIGURES.into_iter().filter(|figure| **figure != GOODPUT && !is_part(figure)).filter(known).collect()
}

fn cell_row(result: &CampaignResult, cell: &CellResult, columns: &[&'static Figure]) -> Markup {
    let counts = cell.counts;
    html! {
        tr {
            th { (cell.key.arm) }
            td.where { (path(cell)) }
            @if let Some(estimate) = cell.estimate(&GOODPUT) {
                td.r { (format::rate(estimate.median)) }
                td.ci { @if let Some(ci95) = estimate.ci95 { (format::rate_interval(estimate.median, ci95)) } }
            } @else {
                td.r.bad { (without_figure(cell)) }
                td.ci {}
            }
            @if let Some(ratio) = cell.to_native(&GOODPUT) {
                td.r { (format::percent(ratio.estimate)) }
                td.ci { @if let Some(ci95) = ratio.ci95 { (format::percent_interval(ratio.estimate, ci95)) } }
            } @else {
                td.r { @if is_baseline(result, cell) { "baseline" } @else { (format::ABSENT) } }
                td.ci {}
            }
            @for figure in columns {
                @let text = cell.median(figure).map(|number| format::figure(figure.unit, number));
                td.r {
                    (text.unwrap_or_else(|| format::ABSENT.to_owned()))
                    @if let Some(over) = cell.over_native(figure) {
                        br;
                        small { (format::difference(figure.unit, &over)) }
                    }
                }
            }
            td.r.bad[counts.measured < counts.planned] { (counts.measured) "/" (counts.planned) }
            td { @for (flag, runs) in &cell.flags { span.flag { (explain(*flag).0) " " (runs) } " " } }
        }
    }
}

/// Arms that stand for those of the paper of 2001, beside them.
pub fn paper(result: &CampaignResult) -> Markup {
    let comparisons = paper::comparisons(result);
    if comparisons.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Beside the paper of 2001" }
        p.note { (paper::NOTE) }
        @for comparison in &comparisons {
            h3 { (comparison.title) }
            div.wide {
                table {
                    thead { tr { @for title in paper::TITLES { th { (title) } } } }
                    tbody {
                        @for row in &comparison.rows {
                            tr { @for text in paper::columns(row) { td { (text) } } }
                        }
                    }
                }
            }
        }
    }
}

/// The gates, if there are any.
pub fn gates(result: &CampaignResult) -> Markup {
    if result.gates.is_empty() {
        return html! {};
    }
    let class = |verdict| match verdict {
        Verdict::Pass => "good",
        Verdict::Fail => "bad",
        Verdict::Inconclusive => "undecided",
    };
    html! {
        h2 { "Gates" }
        p.note {
            "A gate passes if the whole interval is on the right side of its limit and fails if the whole interval is "
            "on the wrong side. Anything else shows nothing: more blocks would narrow the interval. Flagged runs count."
        }
        div.wide {
            table {
                thead { tr { th { "verdict" } th { "cell" } th { "condition" } th { "measured" } } }
                tbody {
                    @for gate in &result.gates {
                        tr {
                            td.(class(gate.verdict)) { (verdict(gate.verdict)) }
                            td {
                                @if let Some(key) = &gate.cell {
                                    (key.arm) ", " (key.direction) ", peer " (key.peer) ", " (key.workload) ", "
                                    (key.pair.a) " ⇄ " (key.pair.b)
                                } @else { "the gate selects no cell" }
                            }
                            td { (gate.condition) }
                            td { (gate_figure(gate).unwrap_or_else(|| format::ABSENT.to_owned())) }
                        }
                    }
                }
            }
        }
    }
}

/// Runs without figures, grouped by cell and reason, with the last words of the first of each.
pub fn failures(result: &CampaignResult) -> Markup {
    struct Kind<'a> {
        cell: &'a CellResult,
        status: RunStatus,
        blocks: Vec<u32>,
        last_words: &'a [String],
    }
    let mut kinds: Vec<(&str, Kind<'_>)> = Vec::new();
    for cell in &result.cells {
        for run in &cell.runs {
            let Some(reason) = run.reason.as_deref() else { continue };
            let same = |(known, kind): &&mut (&str, Kind<'_>)| {
                *known == reason && kind.status == run.status && kind.cell.key == cell.key
            };
            match kinds.iter_mut().find(same) {
                Some((_, kind)) => kind.blocks.push(run.block),
                None => {
                    let blocks = vec![run.block];
                    kinds.push((
                        reason,
                        Kind { cell, status: run.status, blocks, last_words: &run.last_words },
                    ));
                }
            }
        }
    }
    if kinds.is_empty() {
        return html! {};
    }
    let list = |blocks: &[u32]| blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    html! {
        h2 { "Runs without a figure" }
        p.note { "None of them counts as 0: they are left out of the figures, and their blocks out of the ratios." }
        @for (reason, kind) in &kinds {
            h3 { (kind.cell.key.arm) " " (path(kind.cell)) " · " span.bad { (status(kind.status)) } " in block" @if kind.blocks.len() > 1 { "s" } " " (list(&kind.blocks)) }
            p { (reason) }
            @if !kind.last_words.is_empty() {
                details open[kinds.len() <= 6] {
                    summary { "Last words" @if kind.blocks.len() > 1 { " of the first of them" } }
                    pre { @for line in kind.last_words { (line) "\n" } }
                }
            }
        }
    }
}

/// The flags that occur, in plain words.
pub fn flags(result: &CampaignResult) -> Markup {
    let flags: BTreeSet<Flag> = result.cells.iter().flat_map(|cell| cell.flags.keys().copied()).collect();
    if flags.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Flags: read these figures with care" }
        dl {
            @for flag in flags {
                @let (name, meaning) = explain(flag);
                dt { (name) }
                dd { (meaning) }
            }
        }
    }
}

/// What each host is; facts that all hosts share are said once.
pub fn hosts(result: &CampaignResult) -> Markup {
    let hosts: Vec<(&str, Vec<Fact>)> =
        result.provenance.hosts.iter().map(|host| (host.name.as_str(), facts(&host.facts))).collect();
    let Some((_, first)) = hosts.first() else { return html! {} };
    html! {
        h2 { "Where it was measured" }
        div.wide {
            table.facts {
                thead { tr { th {} @for (name, _) in &hosts { th { (name) } } } }
                tbody {
                    @for (index, fact) in first.iter().enumerate() {
                        tr {
                            th { (fact.label) }
                            @if hosts.iter().all(|(_, facts)| facts[index].value == fact.value) {
                                td colspan=(hosts.len()) { (fact.value) }
                            } @else {
                                @for (_, facts) in &hosts { td { (facts[index].value) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A line of a host's provenance.
struct Fact {
    label: &'static str,
    value: String,
}

/// A host's facts: the same labels in the same order for every host.
fn facts(facts: &HostFacts) -> Vec<Fact> {
    let absent = || format::ABSENT.to_owned();
    let text = |value: &Option<String>| value.clone().unwrap_or_else(absent);
    let nic = facts.nic.as_ref();
    let kvm = match &facts.kvm {
        KvmFact::Usable(KvmKind::Vmx) => "usable (Intel VT-x)".to_owned(),
        KvmFact::Usable(KvmKind::Svm) => "usable (AMD-V)".to_owned(),
        KvmFact::Usable(KvmKind::PageTable) => "usable (page-table based, no VMX or SVM)".to_owned(),
        KvmFact::Unusable { reason, .. } => format!("not usable: {reason}"),
    };
    let cpus = facts.cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let speed = nic.and_then(|nic| nic.speed).map(|speed| format::bit_rate(speed.0 as f64));
    let facts = [
        ("kernel", facts.kernel.clone()),
        ("CPU", text(&facts.cpu)),
        ("microcode", text(&facts.microcode)),
        ("CPUs used", cpus),
        ("memory", facts.memory.map_or_else(absent, format::memory)),
        ("frequency governor", text(&facts.governor)),
        ("clock source", text(&facts.clock_source)),
        ("KVM", kvm),
        (
            "TUN/TAP",
            facts.tun.clone().map_or_else(|reason| format!("not usable: {reason}"), |()| "usable".to_owned()),
        ),
        ("test NIC", nic.map_or_else(absent, |nic| format!("{} ({})", nic.name, text(&nic.driver)))),
        ("its address", nic.and_then(|nic| nic.address).map_or_else(absent, |address| address.to_string())),
        ("its MTU", nic.map_or_else(absent, |nic| nic.mtu.to_string())),
        ("its speed", speed.unwrap_or_else(absent)),
        ("its offloads", nic.map_or_else(absent, |nic| nic.offloads.join(", "))),
        ("congestion control", text(&facts.congestion_control)),
        ("Toll", format!("{} ({})", facts.toll_version, facts.build_profile)),
        ("iperf3", facts.iperf3.clone().unwrap_or_else(|reason| format!("not usable: {reason}"))),
    ];
    facts.into_iter().map(|(label, value)| Fact { label, value }).collect()
}

/// How the figures came about.
pub fn method(result: &CampaignResult) -> Markup {
    let term = |name: &str, text: Markup| html! { dt { (name) } dd { (text) } };
    html! {
        h2 { "How to read this" }
        dl {
            (term("arm", html! { "What stands on the first host: the host's own TCP (native), a KVM guest, or the guest's "
                "program as a host process on the same port (same-stack). → means that it sends, ← that it receives; what "
                "follows is the other end." }))
            (term("goodput", html! { "Payload bytes that the receiving application got in the measured interval, by the "
                "receiver's clock. Warm-up is left out." }))
            (term("block", html! { "One repetition of every arm on a pair of hosts, back to back, in an order drawn from the "
                "seed (" (result.seed) "). Every run has a fresh connection and, for a guest, a fresh boot." }))
            (term("share of native", html! { "The arm's goodput over native's in the same block, so that what drifts between "
                "blocks cancels; the geometric mean over the blocks. The toll is what is missing to 100 %." }))
            (term("95 % interval", html! { "Bootstrap of 10,000 resamples of runs (for the share: of blocks), widened for the "
                "small number of runs. It holds the true value in about 95 of 100 campaigns like this one. None is given "
                "from fewer than 3." }))
            (term("exit", html! { "A return of KVM_RUN to the VMM process: the world switch of a hosted VMM." }))
        }
        details {
            summary { "The campaign as it was written" }
            pre { (result.manifest) }
        }
    }
}
