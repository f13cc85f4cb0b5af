//! The plots: share of native, runs in order, exits by cause, CPU.

use maud::{Markup, html};
use toll_protocol::figure::{CPU_GUEST, CPU_HOST, CPU_VMM, EXITS_PER_FRAME, GOODPUT};
use toll_protocol::result::{CampaignResult, CauseSummary, CellResult};
use toll_protocol::trial::Direction;

use super::{class, group_label, heading, legend};
use crate::format;
use crate::report::plot::{self, Scale};
use crate::report::{does, groups, headline, is_baseline, path, without_figure};
use crate::statistics::median;
use crate::summary::{baseline_cell, blocks};

/// A CPU cost over so many times another makes bars of one scale unreadable.
const WIDEST_SPREAD: f64 = 15.0;

/// The forest plot of ratios.
pub fn share_of_native(result: &CampaignResult) -> Markup {
    let groups = groups(result);
    let all: Vec<f64> = result
        .cells
        .iter()
        .flat_map(|cell| {
            let ratio = cell.to_native(&GOODPUT).into_iter();
            let figures =
                ratio.flat_map(|ratio| [ratio.estimate].into_iter().chain(ratio.ci95.into_iter().flatten()));
            figures.chain(block_ratios(result, cell))
        })
        .collect();
    if all.is_empty() {
        return html! {};
    }
    let scale = Scale::of_ratios(all);
    html! {
        h2 { "How close to native" }
        p.note {
            "Goodput as a share of the native arm's in the same block. Large dots are estimates with their 95 % intervals \
             (where a dot hides its interval, the interval is narrower than the dot); the small dots below are the single \
             blocks; the dashed line is native."
            @if matches!(scale, Scale::Log { .. }) { " The scale is logarithmic." }
        }
        (legend(result))
        div.wide {
            table.forest {
                thead {
                    tr {
                        th { "arm" } th { "payload" } th.plot { (plot::ratio_axis(&scale)) }
                        th.r { "of native" } th { "95 % interval" } th.r { "blocks" }
                    }
                }
                tbody {
                    @for (index, group) in groups.iter().enumerate() {
                        @for direction in Direction::ALL {
                            @let cells: Vec<_> = group.cells.iter().filter(|cell| {
                                cell.key.direction == direction && !is_baseline(result, cell)
                            }).collect();
                            @if !cells.is_empty() {
                                tr.part {
                                    th colspan="6" {
                                        "the arm " (does(direction))
                                        @if let Some(label) = group_label(&groups, index) { " · " (label) }
                                    }
                                }
                                @for cell in cells { (forest_row(result, cell, &scale)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn forest_row(result: &CampaignResult, cell: &CellResult, scale: &Scale) -> Markup {
    let ratio = cell.to_native(&GOODPUT);
    let figure = ratio.map(|ratio| (ratio.estimate, ratio.ci95));
    html! {
        tr {
            th { (cell.key.arm) }
            td.where { (path(cell)) }
            td.plot { (plot::forest_row(scale, figure, &block_ratios(result, cell), class(result, cell))) }
            @if let Some(ratio) = ratio {
                td.r { (format::percent(ratio.estimate)) }
                td.ci {
                    @match ratio.ci95 {
                        Some(ci95) => { (format::percent_interval(ratio.estimate, ci95)) }
                        None => { (format::ABSENT) }
                    }
                }
                td.r { (ratio.blocks) }
            } @else {
                td.r.bad[cell.counts.measured == 0] {
                    @if cell.counts.measured == 0 { (without_figure(cell)) } @else { (format::ABSENT) }
                }
                td.ci { (format::ABSENT) }
                td.r { (format::ABSENT) }
            }
        }
    }
}

/// Ratio to native of each block that has both.
fn block_ratios(result: &CampaignResult, cell: &CellResult) -> Vec<f64> {
    let Some(baseline) = baseline_cell(&result.arms, &result.cells, &cell.key) else { return Vec::new() };
    let ratio = |arm: f64, native: f64| Some(arm / native).filter(|ratio| ratio.is_finite() && *ratio > 0.0);
    let blocks = blocks(&GOODPUT, cell, baseline);
    blocks.iter().filter_map(|block| ratio(median(&block.arm)?, median(&block.native)?)).collect()
}

/// Every cell's runs in the order of blocks.
pub fn runs(result: &CampaignResult) -> Markup {
    let groups = groups(result);
    html! {
        h2 { "Every run" }
        p.note {
            "Goodput of each run, or its transactions a second, in the order of the blocks from left to right; the line is the median, the band its "
            "95 % interval, a cross a run without a figure. Each panel has a scale of its own, given at its right: "
            "look here for drift, not for comparison."
        }
        div.panels {
            @for (index, group) in groups.iter().enumerate() {
                @for cell in &group.cells {
                    div.panel {
                        (heading(cell, group_label(&groups, index).as_deref()))
                        @let figure = headline(cell);
                        @if let Some(estimate) = cell.estimate(figure) {
                            @let numbers: Vec<_> =
                                cell.runs.iter().map(|run| (figure.of_run)(cell.key.direction, run)).collect();
                            @let [low, high] = plot::strip_limits(&numbers, estimate.median, estimate.ci95);
                            p.figure { (format::figure_with_interval(figure.unit, estimate.median, estimate.ci95)) }
                            div.framed {
                                (plot::run_strip(&numbers, estimate.median, estimate.ci95, class(result, cell)))
                                span.high { (format::figure(figure.unit, high)) }
                                span.low { (format::figure(figure.unit, low)) }
                            }
                        } @else {
                            p.figure.bad { (without_figure(cell)) ": " (cell.counts.planned) " of " (cell.counts.planned) }
                        }
                    }
                }
            }
        }
    }
}

/// Exits by cause per frame, with the time that the VMM took for them.
pub fn exits(result: &CampaignResult) -> Markup {
    let groups = groups(result);
    let has = |cell: &&CellResult| cell.exits_by_cause.as_ref().is_some_and(|causes| !causes.is_empty());
    if !result.cells.iter().any(|cell| has(&cell)) {
        return html! {};
    }
    html! {
        h2 { "Exits: what each frame costs in world switches" }
        p.note {
            "Returns of KVM_RUN to the VMM for each frame in the direction of the payload, by cause, over all measured "
            "runs. Time is from the return to the next entry, time asleep left out."
        }
        div.panels.broad {
            @for (index, group) in groups.iter().enumerate() {
                @for cell in group.cells.iter().copied().filter(has) {
                    div.panel {
                        (heading(cell, group_label(&groups, index).as_deref()))
                        @if let Some(exits) = cell.median(&EXITS_PER_FRAME) {
                            p.figure { (format::significant(exits)) " exits a frame" }
                        }
                        (causes_table(cell))
                    }
                }
            }
        }
    }
}

fn causes_table(cell: &CellResult) -> Markup {
    let mut causes: Vec<(&String, &CauseSummary)> = cell.exits_by_cause.iter().flatten().collect();
    causes.sort_by_key(|(_, summary)| std::cmp::Reverse(summary.count));
    let most = causes.first().map_or(0, |(_, summary)| summary.count) as f64;
    let microseconds = |seconds: Option<f64>| format::optional(seconds.map(|time| time * 1e6));
    let per_frame_time = |summary: &CauseSummary| Some(summary.per_frame? * summary.mean_handling_seconds?);
    html! {
        table {
            thead {
                tr { th { "cause" } th { } th.r { "per frame" } th.r { "µs each" } th.r { "µs per frame" } }
            }
            tbody {
                @for (cause, summary) in causes {
                    tr {
                        td { (cause) }
                        td.fill { (plot::bar(&[("part-guest", Some(summary.count as f64))], most)) }
                        td.r { (format::optional(summary.per_frame)) }
                        td.r { (microseconds(summary.mean_handling_seconds)) }
                        td.r { (microseconds(per_frame_time(summary))) }
                    }
                }
            }
        }
    }
}

/// CPU-seconds per gigabyte by who used them.
pub fn cpu(result: &CampaignResult) -> Markup {
    let groups = groups(result);
    let totals: Vec<f64> = result.cells.iter().filter_map(total).collect();
    let largest = totals.iter().copied().fold(0.0, f64::max);
    let smallest = totals.iter().copied().fold(f64::INFINITY, f64::min);
    if totals.is_empty() || largest <= 0.0 {
        return html! {};
    }
    let one_scale = largest <= smallest * WIDEST_SPREAD;
    html! {
        h2 { "CPU: who did the work" }
        p.note {
            "CPU-seconds at the arm's end for each gigabyte (10⁹ bytes) that arrived, medians over the runs. "
            @if one_scale { "All bars have one scale." } @else {
                "Totals span over too much for one scale, so each bar is the whole of its row, split by who used it."
            }
        }
        ul.legend {
            li { i.part-guest {} "guest code and KVM" }
            li { i.part-vmm {} "VMM: device models" }
            li { i.part-host {} "host: kernel's TAP, bridge and sockets; a native end's whole thread" }
        }
        div.wide {
            table {
                thead {
                    tr {
                        th { "arm" } th { "payload" } th { } th.r { "guest" } th.r { "VMM" } th.r { "host" }
                        th.r { "total s/GB" } th.r { "× native" }
                    }
                }
                tbody {
                    @for (index, group) in groups.iter().enumerate() {
                        @if let Some(label) = group_label(&groups, index) {
                            tr.part { th colspan="8" { (label) } }
                        }
                        @for cell in &group.cells {
                            @if let Some(total) = total(cell) { (cpu_row(result, cell, total, one_scale, largest)) }
                        }
                    }
                }
            }
        }
    }
}

fn cpu_row(result: &CampaignResult, cell: &CellResult, all: f64, one_scale: bool, largest: f64) -> Markup {
    let parts = cpu_parts(cell);
    let native =
        baseline_cell(&result.arms, &result.cells, &cell.key).and_then(total).filter(|native| *native > 0.0);
    html! {
        tr {
            th { (cell.key.arm) }
            td.where { (path(cell)) }
            td.fill.cpu { (plot::bar(&parts, if one_scale { largest } else { all })) }
            @for (_, part) in parts { td.r { (format::optional(part)) } }
            td.r { strong { (format::significant(all)) } }
            td.r {
                @if is_baseline(result, cell) { "1" } @else { (format::optional(native.map(|native| all / native))) }
            }
        }
    }
}

/// Sum of the parts that were measured; `None` if none was.
fn total(cell: &CellResult) -> Option<f64> {
    let parts = cpu_parts(cell).map(|(_, part)| part);
    parts.iter().any(Option::is_some).then(|| parts.iter().flatten().sum())
}

/// CPU time by who used it, with the class of its bar.
fn cpu_parts(cell: &CellResult) -> [(&'static str, Option<f64>); 3] {
    [("part-guest", &CPU_GUEST), ("part-vmm", &CPU_VMM), ("part-host", &CPU_HOST)]
        .map(|(class, figure)| (class, cell.median(figure)))
}
