//! The headlines: for each direction, what share of native each virtual arm reached, in words.

use maud::{Markup, html};
use toll_protocol::figure::GOODPUT;
use toll_protocol::report::Flag;
use toll_protocol::result::{CampaignResult, CellResult, Peer};
use toll_protocol::trial::Direction;

use crate::format;
use crate::report::{arm_of, describe, does, failures, is_baseline, without_figure};
use crate::statistics::median;
use crate::summary::baseline_cell;

/// One line: all cells of an arm with one direction and peer.
struct Line<'a> {
    cells: Vec<&'a CellResult>,
}

/// The section; nothing if the campaign has no virtual arm.
pub fn section(result: &CampaignResult) -> Markup {
    let lines = |direction| lines(result, direction);
    html! {
        div.headlines {
            @for direction in Direction::ALL {
                @let title = format!("When the arm {}", does(direction));
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

/// Whether native itself was held back by the link: then shares are of the link, not of what the machine can do.
fn link_bound_note(result: &CampaignResult) -> Markup {
    let native: Vec<&CellResult> = result
        .cells
        .iter()
        .filter(|cell| is_baseline(result, cell) && cell.estimate(&GOODPUT).is_some())
        .collect();
    // In most of its runs: one lucky run makes no cell link-bound.
    let is_bound = |cell: &&&CellResult| {
        cell.flags.get(&Flag::LinkBound).is_some_and(|runs| runs * 2 > cell.counts.measured)
    };
    let bound = native.iter().filter(is_bound).count();
    let virtual_arms = result.arms.iter().any(|arm| !arm.kind.is_native());
    html! {
        @if bound > 0 && virtual_arms {
            p.note {
                "Native filled the link"
                @if bound < native.len() { " in " (bound) " of its " (native.len()) " cells" }
                ", so shares of it are shares of the link: on a faster one they may be lower."
            }
        }
    }
}

/// One sentence: how far the best and the slowest guest got against a native host.
pub fn lede(result: &CampaignResult) -> Markup {
    // Arms with their shares, sending and receiving; of several cells the median.
    let share = |arm: &str, direction| {
        let of_arm = |cell: &&CellResult| {
            (cell.key.arm.as_str(), cell.key.direction, cell.key.peer) == (arm, direction, Peer::Native)
        };
        let ratios = result.cells.iter().filter(of_arm).filter_map(|cell| cell.to_native(&GOODPUT));
        median(&ratios.map(|ratio| ratio.estimate).collect::<Vec<_>>())
    };
    let mut guests: Vec<(&str, [Option<f64>; 3])> = result
        .arms
        .iter()
        .filter(|arm| arm.kind.is_guest())
        .map(|arm| (arm.name.as_str(), Direction::ALL.map(|direction| share(&arm.name, direction))))
        .filter(|(_, shares)| shares.iter().any(Option::is_some))
        .collect();
    let mean = |shares: &[Option<f64>; 3]| {
        let known: Vec<f64> = shares.iter().flatten().copied().collect();
        known.iter().sum::<f64>() / known.len() as f64
    };
    guests.sort_by(|(_, a), (_, b)| mean(b).total_cmp(&mean(a)));
    let words = |shares: [Option<f64>; 3], of: &str| {
        let known = Direction::ALL
            .into_iter()
            .zip(shares)
            .filter_map(|(direction, share)| Some((does(direction), format::percent(share?))));
        let words = known.enumerate().map(|(index, (does, percent))| {
            let of = if index == 0 { of } else { "" };
            format!("{percent}{of} when it {does}")
        });
        words.collect::<Vec<_>>().join(" and ")
    };
    html! {
        @if let Some((best, shares)) = guests.first() {
            p.lede {
                @if guests.len() == 1 { "The guest, " } @else { "The fastest guest, " }
                strong { (best) } ", reaches " (words(*shares, " of native goodput"))
                @if let [_, .., (slowest, shares)] = &guests[..] {
                    "; the slowest, " strong { (slowest) } ", " (words(*shares, ""))
                }
                "."
            }
        }
        (link_bound_note(result))
    }
}

/// Virtual arms first to native hosts, then to each other, in the campaign's order.
fn lines(result: &CampaignResult, direction: Direction) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for peer in [Peer::Native, Peer::SameArm] {
        for arm in result.arms.iter().filter(|arm| !arm.kind.is_native()) {
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
    let peer = match (key.direction, key.peer) {
        (Direction::Send, Peer::Native) => "to a native host",
        (Direction::Receive, Peer::Native) => "from a native host",
        (Direction::Send, Peer::SameArm) => "to its like on the other host",
        (Direction::Receive, Peer::SameArm) => "from its like on the other host",
        (Direction::Both, Peer::Native) => "to and from a native host",
        (Direction::Both, Peer::SameArm) => "to and from its like on the other host",
    };
    let Figure { big, against, interval } = figure(result, line);
    html! {
        li {
            span.big.none[big.is_none()] { @if let Some(big) = &big { (big) } @else { (without_figure(first)) } }
            span {
                strong { (key.arm) } " " (peer)
                small { (against) }
                small { @if let Some(interval) = interval { (interval) " · " } (what) }
            }
        }
    }
}

/// What there is to say of a line.
struct Figure {
    /// The share of native, in large type.
    big: Option<String>,
    /// The two goodputs, or why there is no share.
    against: String,
    /// How sure the share is.
    interval: Option<String>,
}

fn figure(result: &CampaignResult, line: &Line<'_>) -> Figure {
    if let [cell] = line.cells[..] {
        return one(result, cell);
    }
    let shares = line.cells.iter().filter_map(|cell| cell.to_native(&GOODPUT));
    let ratios: Vec<f64> = shares.map(|ratio| ratio.estimate).collect();
    let Some(middle) = median(&ratios) else {
        let against = format!("no figure in any of {} cells", line.cells.len());
        return Figure { big: None, against, interval: None };
    };
    let lowest = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Figure {
        big: Some(format::percent(middle)),
        against: format!("the median of {} of {} cells", ratios.len(), line.cells.len()),
        interval: Some(format!("from {} to {}", format::percent(lowest), format::percent(highest))),
    }
}

fn one(result: &CampaignResult, cell: &CellResult) -> Figure {
    let goodput = cell.estimate(&GOODPUT).map(|estimate| format::rate(estimate.median));
    let Some(ratio) = cell.to_native(&GOODPUT) else {
        let reason = failures(cell).first().map(|(_, reason, _)| (*reason).to_owned());
        let against = match (&goodput, reason) {
            (Some(_), _) => "no share of native: no block has figures of both".to_owned(),
            (None, reason) => reason.unwrap_or_else(|| "not measured".to_owned()),
        };
        return Figure { big: goodput, against, interval: None };
    };
    let native = baseline_cell(&result.arms, &result.cells, &cell.key)
        .and_then(|native| native.estimate(&GOODPUT))
        .map(|estimate| format::rate(estimate.median));
    let interval = match ratio.ci95 {
        Some(ci95) => {
            let limits = format::percent_interval(ratio.estimate, ci95);
            let [lower, upper] = ci95;
            let same = lower <= 1.0 && 1.0 <= upper;
            let meaning = if same { ": no difference from native was shown" } else { "" };
            format!("95 % interval {limits} %{meaning}")
        }
        None => format!("{} blocks: too few for an interval", ratio.blocks),
    };
    let against = match (goodput, native) {
        (Some(goodput), Some(native)) => format!("{goodput} against native's {native}"),
        _ => "of native".to_owned(),
    };
    Figure { big: Some(format::percent(ratio.estimate)), against, interval: Some(interval) }
}
