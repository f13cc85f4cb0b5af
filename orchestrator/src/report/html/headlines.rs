//! The headlines: for each direction, what share of native each virtual arm reached, in words.

use maud::{Markup, html};
use toll_protocol::result::{CampaignResult, CellResult, Peer};
use toll_protocol::trial::{Direction, EndKind};

use crate::format;
use crate::report::{arm_of, describe, failures, without_figure};
use crate::statistics::median;
use crate::summary::baseline_cell;

/// One line: all cells of an arm with one direction and peer.
struct Line<'a> {
    cells: Vec<&'a CellResult>,
}

/// The section; nothing if the campaign has no virtual arm.
pub fn section(result: &CampaignResult) -> Markup {
    let directions = [(Direction::Send, "When the arm sends"), (Direction::Receive, "When the arm receives")];
    let lines = |direction| lines(result, direction);
    html! {
        div.headlines {
            @for (direction, title) in directions {
                @let lines = lines(direction);
                @if !lines.is_empty() {
                    section {
                        h2 { (title) }
                        ul { @for line in &lines { (item(result, line)) } }
                    }
                }
            }
        }
    }
}

/// Virtual arms first to native hosts, then to each other, in the campaign's order.
fn lines(result: &CampaignResult, direction: Direction) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for peer in [Peer::Native, Peer::SameArm] {
        for arm in result.arms.iter().filter(|arm| !matches!(arm.kind, EndKind::Native { .. })) {
            let cells: Vec<&CellResult> = result
                .cells
                .iter()
                .filter(|cell| {
                    let key = &cell.key;
                    (&key.arm, key.direction, key.peer) == (&arm.name, direction, peer)
                })
                .collect();
            if !cells.is_empty() {
                lines.push(Line { cells });
            }
        }
    }
    lines
}

fn item(result: &CampaignResult, line: &Line<'_>) -> Markup {
    let first = line.cells[0];
    let key = &first.key;
    let what = arm_of(result, first).map(|arm| describe(&arm.kind)).unwrap_or_default();
    let (verb, preposition) = match key.direction {
        Direction::Send => ("sends", "to"),
        Direction::Receive => ("receives", "from"),
    };
    let peer = match key.peer {
        Peer::Native => "a native host",
        Peer::SameArm => "its like",
    };
    let (big, sentence) = figure(result, line);
    html! {
        li {
            span.big.none[big.is_none()] { @if let Some(big) = &big { (big) } @else { (without_figure(first)) } }
            span {
                strong { (key.arm) } " " (verb) " " (preposition) " " (peer)
                small { (sentence) }
                small { (what) }
            }
        }
    }
}

/// The share of native in large type, if there is one, and what there is to know of it.
fn figure(result: &CampaignResult, line: &Line<'_>) -> (Option<String>, String) {
    if let [cell] = line.cells[..] {
        return one(result, cell);
    }
    let ratios: Vec<f64> =
        line.cells.iter().filter_map(|cell| cell.ratio_to_native).map(|ratio| ratio.estimate).collect();
    let Some(middle) = median(&ratios) else {
        return (None, format!("no figure in any of {} cells", line.cells.len()));
    };
    let lowest = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sentence = format!(
        "of native: the median of {} of {} cells, which lie from {} to {}",
        ratios.len(),
        line.cells.len(),
        format::percent(lowest),
        format::percent(highest)
    );
    (Some(format::percent(middle)), sentence)
}

fn one(result: &CampaignResult, cell: &CellResult) -> (Option<String>, String) {
    let goodput = cell.goodput_bytes_per_second.map(|estimate| format::rate(estimate.median));
    let Some(ratio) = cell.ratio_to_native else {
        let reason = match (&goodput, failures(cell).first()) {
            (Some(goodput), _) => {
                format!("{goodput}; no share of native, as the two were not both measured in a block")
            }
            (None, Some((_, reason, _))) => (*reason).to_owned(),
            (None, None) => "not measured".to_owned(),
        };
        return (goodput, reason);
    };
    let native = baseline_cell(&result.arms, &result.cells, &cell.key)
        .and_then(|native| native.goodput_bytes_per_second)
        .map(|estimate| format::rate(estimate.median));
    let interval = match ratio.ci95 {
        Some(ci95) => {
            let limits = format::percent_interval(ratio.estimate, ci95);
            let [lower, upper] = ci95;
            let meaning =
                if lower <= 1.0 && 1.0 <= upper { "; no difference from native was shown" } else { "" };
            format!("95 % interval {limits} %{meaning}")
        }
        None => format!("{} blocks: too few for an interval", ratio.blocks),
    };
    let against = match (goodput, native) {
        (Some(goodput), Some(native)) => format!("of native: {goodput} against {native}. "),
        _ => "of native. ".to_owned(),
    };
    (Some(format::percent(ratio.estimate)), format!("{against}{}.", capitalised(&interval)))
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
