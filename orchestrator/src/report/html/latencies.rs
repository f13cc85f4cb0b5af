//! Latency by percentile: for each workload of requests and responses the whole histogram of each cell, over all runs.
//!
//! The way from a percentile to the next nine is as long as that to the nine before, so that a tail that one transaction in
//! a thousand has is as wide as the half of all.

use maud::{Markup, html};
use toll_protocol::result::{CampaignResult, CellResult};

use super::{class, group_label};
use crate::format;
use crate::report::plot::Scale;
use crate::report::{groups, path};

/// The panel in units of its view box.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;
/// Room for the text at the left and below.
const LEFT: f64 = 70.0;
const BELOW: f64 = 24.0;
/// Steps from one halving of what is left to the next.
const STEPS: u32 = 4;
/// Percentiles that are named, as the share that is left.
const NAMED: [(f64, &str); 6] =
    [(0.5, "p50"), (0.1, "p90"), (0.01, "p99"), (0.001, "p99.9"), (1e-4, "p99.99"), (1e-5, "p99.999")];

/// A cell's line: shares of transactions that take longer, and seconds.
type Line = Vec<(f64, f64)>;

/// The section; nothing without latencies.
pub fn section(result: &CampaignResult) -> Markup {
    let groups = groups(result);
    let lines = |cells: &[&CellResult]| -> Vec<(String, &'static str, Line)> {
        let named = |cell: &&CellResult| {
            let name = format!("{} {}", cell.key.arm, path(cell));
            Some((name, class(result, cell), line(cell)?))
        };
        cells.iter().filter_map(named).collect()
    };
    let panels: Vec<_> =
        groups.iter().enumerate().map(|(index, group)| (index, lines(&group.cells))).collect();
    if panels.iter().all(|(_, lines)| lines.is_empty()) {
        return html! {};
    }
    html! {
        h2 { "Latency by percentile" }
        p.note {
            "All transactions of all runs of a cell. The scale below is that of the nines: as far from p90 to p99 as from p99 to "
            "p99.9. Latency is from the moment for which a request was intended until the whole response was there."
        }
        div.panels.broad {
            @for (index, lines) in panels.iter().filter(|(_, lines)| !lines.is_empty()) {
                div.panel {
                    h3 {
                        @match group_label(&groups, *index) {
                            Some(label) => { (label) }
                            None => { "latency" }
                        }
                    }
                    (plot(lines))
                    p.note {
                        @for (name, _, line) in lines {
                            (name) ": median " (format::seconds(at(line, 0.5))) ", longest "
                            (format::seconds(line.last().map_or(0.0, |(_, seconds)| *seconds))) ". "
                        }
                    }
                }
            }
        }
    }
}

/// The line of a cell, if it has latencies.
fn line(cell: &CellResult) -> Option<Line> {
    let latencies = cell.latencies.as_ref().filter(|latencies| latencies.percentiles().count > 0)?;
    // It ends where one transaction is left.
    let least = 1.0 / latencies.percentiles().count as f64;
    let steps = latencies.distribution(STEPS).ok()?;
    Some(steps.into_iter().map(|(share, latency)| ((1.0 - share).max(least), latency.seconds())).collect())
}

/// Seconds at the first step where no more than `left` take longer.
fn at(line: &Line, left: f64) -> f64 {
    line.iter().find(|(share, _)| *share <= left).or(line.last()).map_or(0.0, |(_, seconds)| *seconds)
}

fn plot(lines: &[(String, &'static str, Line)]) -> Markup {
    let all = || lines.iter().flat_map(|(_, _, line)| line);
    let least = all().map(|(left, _)| *left).fold(0.1, f64::min);
    let (low, high) = all()
        .map(|(_, seconds)| *seconds)
        .fold((f64::INFINITY, 0.0_f64), |(low, high), seconds| (low.min(seconds), high.max(seconds)));
    let scale = Scale::Log { low: (low / 1.2).max(1e-9), high: (high * 1.2).max(2e-9) };
    let x = |left: f64| LEFT + (WIDTH - LEFT) * (left.ln() / least.ln()).clamp(0.0, 1.0);
    let y = |seconds: f64| (HEIGHT - BELOW) * (1.0 - scale.place(seconds) / 100.0);
    let named: Vec<_> = NAMED.into_iter().filter(|(left, _)| *left >= least * 0.99).collect();
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) width="100%" role="img" aria-label="latency by percentile" {
            @for tick in scale.ticks() {
                line.grid x1=(LEFT) x2=(WIDTH) y1=(y(tick)) y2=(y(tick)) {}
                text x=(LEFT - 6.0) y=(y(tick) + 4.0) text-anchor="end" { (format::seconds(tick)) }
            }
            @for (left, name) in &named {
                line.grid x1=(x(*left)) x2=(x(*left)) y1="0" y2=(HEIGHT - BELOW) {}
                text x=(x(*left)) y=(HEIGHT - 6.0) text-anchor="middle" { (name) }
            }
            @for (name, class, line) in lines {
                @let points: Vec<String> =
                    line.iter().map(|(left, seconds)| format!("{:.1},{:.1}", x(*left), y(*seconds))).collect();
                polyline.curve.(class) points=(points.join(" ")) { title { (name) } }
            }
        }
    }
}
