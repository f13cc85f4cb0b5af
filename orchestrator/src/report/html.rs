//! `report.html`: one page that says what a campaign found. It needs nothing but itself: style and plots are inside,
//! there is no script, and its content policy forbids any. All text is escaped by `maud`.
//!
//! ```text
//! title, headlines -> share of native (forest plot) -> runs -> latency by percentile -> exits by cause -> CPU -> where the time goes
//!                  -> all cells -> beside the paper -> gates -> what failed -> flags -> hosts -> method
//! ```

use maud::{DOCTYPE, Markup, PreEscaped, html};
use toll_protocol::result::{CampaignResult, CellResult, Verdict};

use super::{arm_of, path};
use crate::format;

mod figures;
mod headlines;
mod latencies;
mod tables;
mod times;

#[cfg(test)]
mod tests;

const STYLE: &str = include_str!("style.css");

/// Nothing is fetched and nothing runs, whatever a guest's last words contain.
pub const CONTENT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The page.
pub fn render(result: &CampaignResult) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(CONTENT_POLICY);
                title { (result.campaign) " · Toll" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (title(result))
                (headlines::lede(result))
                (headlines::section(result))
                (figures::share_of_native(result))
                (figures::runs(result))
                (latencies::section(result))
                (figures::exits(result))
                (figures::cpu(result))
                (times::section(result))
                (tables::cells(result))
                (tables::paper(result))
                (tables::gates(result))
                (tables::failures(result))
                (tables::flags(result))
                (tables::hosts(result))
                (tables::method(result))
                footer {
                    "Toll " (result.provenance.toll_version) " · the figures of this page are in result.json, and the raw "
                    "samples behind them in the ledger beside it."
                }
            }
        }
    }
    .into_string()
}

fn title(result: &CampaignResult) -> Markup {
    let provenance = &result.provenance;
    let total = |count: fn(&CellResult) -> u32| result.cells.iter().map(count).sum::<u32>();
    let (planned, measured) = (total(|cell| cell.counts.planned), total(|cell| cell.counts.measured));
    let verdicts = |verdict| result.gates.iter().filter(|gate| gate.verdict == verdict).count();
    let gates: Vec<String> = [Verdict::Pass, Verdict::Fail, Verdict::Inconclusive]
        .into_iter()
        .map(|verdict| (verdicts(verdict), super::verdict(verdict)))
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    html! {
        header {
            p.eyebrow { "Toll · what virtualisation takes on a network" }
            h1 { (result.campaign) }
            p.meta {
                (provenance.environment) " of " (provenance.hosts.len()) " hosts"
                @if let Some(rate) = provenance.link_rate { " · link " (format::bit_rate(rate.0 as f64)) }
                @if let Some(mtu) = provenance.mtu { " · MTU " (mtu) }
                " · " span.n { (format::moment(provenance.started_unix_ms)) }
                @if let Some(ended) = provenance.ended_unix_ms {
                    " · took " (format::elapsed(ended.saturating_sub(provenance.started_unix_ms)))
                }
                " · " span.bad[measured < planned] { (measured) " of " (planned) " runs measured" }
                @if !gates.is_empty() { " · " span.n { "gates: " (gates.join(", ")) } }
            }
            @if provenance.interrupted {
                p.warn { "The campaign was interrupted: cells below may lack runs." }
            }
            @if provenance.build_profile == "debug" {
                p.warn { "This is a debug build of Toll: its figures are not the product's." }
            }
        }
    }
}

/// The class that gives a cell its colour: by what stands at the arm's end.
fn class(result: &CampaignResult, cell: &CellResult) -> &'static str {
    arm_of(result, cell).map_or("native", |arm| arm.kind.label())
}

/// A cell's arm and where its payload goes, as a heading of a small panel.
fn heading(cell: &CellResult, hosts: Option<&str>) -> Markup {
    html! {
        h3 {
            (cell.key.arm) " " span { (path(cell)) @if let Some(hosts) = hosts { " · " (hosts) } }
        }
    }
}

/// The hosts and workload of a group, where a page has more than one.
fn group_label(groups: &[super::Group<'_>], index: usize) -> Option<String> {
    (groups.len() > 1).then(|| format!("{} · {}", groups[index].hosts, groups[index].workload))
}

/// What the colours of arms mean.
fn legend(result: &CampaignResult) -> Markup {
    let has = |wanted: &str| result.cells.iter().any(|cell| class(result, cell) == wanted);
    let names = [
        ("guest", "KVM guest"),
        ("same-stack", "same stack as a host process, no KVM"),
        ("native", "native: the host's own TCP"),
    ];
    html! {
        ul.legend {
            @for (class, name) in names.into_iter().filter(|(class, _)| has(class)) {
                li { i.dot.(class) {} (name) }
            }
        }
    }
}
