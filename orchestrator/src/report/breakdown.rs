//! Where the time of an arm's end goes, in the way of the 2001 paper: the share of each part of each thread, and what it
//! takes for a frame.

use std::collections::BTreeMap;

use toll_protocol::report::{EndReport, Part};
use toll_protocol::result::{CampaignResult, CellResult};
use toll_protocol::trial::Direction;

use crate::format;

/// A part of a thread, over the measured runs of a cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The thread's name.
    pub thread: String,
    /// What it did.
    pub part: Part,
    /// Of the measured intervals.
    pub share: f64,
    /// Microseconds for a frame in the direction of the payload; `None` without frames.
    pub microseconds_a_frame: Option<f64>,
}

/// A cell's parts, and its exits that KVM answered itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Breakdown<'a> {
    /// The cell.
    pub cell: &'a CellResult,
    /// By thread, in the order of [`Part`].
    pub rows: Vec<Row>,
    /// Exits answered in the kernel, for a frame; `None` where KVM doesn't count.
    pub in_kernel_a_frame: Option<f64>,
}

/// In words.
pub const fn describe(part: Part) -> &'static str {
    match part {
        Part::Guest => "guest, and KVM's own work",
        Part::Program => "payload program",
        Part::Adapter => "adapter",
        Part::Port => "port: host kernel",
        Part::Loop => "between exits",
        Part::Look => "looks that found nothing",
        Part::Wait => "asleep",
    }
}

fn frames(end: &EndReport, direction: Direction) -> u64 {
    end.frames.map_or(0, |frames| frames.of_payload(direction))
}

/// The cells of virtual arms that have measured runs.
pub fn breakdowns(result: &CampaignResult) -> Vec<Breakdown<'_>> {
    result.cells.iter().filter_map(of_cell).collect()
}

fn of_cell(cell: &CellResult) -> Option<Breakdown<'_>> {
    let ends: Vec<&EndReport> =
        cell.runs.iter().filter_map(|run| run.a.as_ref()).filter(|end| !end.times.is_empty()).collect();
    let frames: u64 = ends.iter().map(|end| frames(end, cell.key.direction)).fold(0, u64::saturating_add);
    let a_frame = |count: f64| (frames > 0).then(|| count / frames as f64);
    let mut threads: BTreeMap<&str, (f64, BTreeMap<Part, f64>)> = BTreeMap::new();
    for time in ends.iter().flat_map(|end| &end.times) {
        let (interval, parts) = threads.entry(&time.name).or_default();
        *interval += time.interval.seconds();
        for (part, span) in &time.parts {
            *parts.entry(*part).or_default() += span.seconds();
        }
    }
    let mut rows = Vec::new();
    for (thread, (interval, parts)) in threads {
        for (part, seconds) in parts {
            rows.push(Row {
                thread: thread.to_owned(),
                part,
                share: if interval > 0.0 { seconds / interval } else { 0.0 },
                microseconds_a_frame: a_frame(seconds * 1e6),
            });
        }
    }
    let in_kernel = |end: &&EndReport| {
        let exits = end.exits.as_ref()?;
        Some(exits.kvm_all?.saturating_sub(exits.kvm_userspace?) as f64)
    };
    let in_kernel: Option<f64> = ends.iter().map(in_kernel).sum();
    (!rows.is_empty()).then(|| Breakdown { cell, rows, in_kernel_a_frame: in_kernel.and_then(a_frame) })
}

/// A row in text: thread, part, share, microseconds a frame.
pub fn columns(row: &Row) -> [String; 4] {
    [
        row.thread.clone(),
        describe(row.part).to_owned(),
        format::percent(row.share),
        format::optional(row.microseconds_a_frame),
    ]
}

#[cfg(test)]
mod tests {
    use toll_protocol::report::ThreadTime;
    use toll_protocol::units::Span;

    use super::*;
    use crate::summary::summarise;
    use crate::test_support;

    #[test]
    fn parts_of_a_cell_are_those_of_its_runs() {
        let (header, records) = test_support::campaign();
        let mut result = summarise(&header, &records, &[]).expect("belongs together");
        assert_eq!(breakdowns(&result), [], "without times there is nothing to say");
        let cell = result.cells.iter_mut().find(|cell| cell.key.arm == "virtio").expect("a cell");
        let direction = cell.key.direction;
        let (mut frames_of_all, mut runs) = (0, 0.0);
        for (index, end) in cell.runs.iter_mut().filter_map(|run| run.a.as_mut()).enumerate() {
            frames_of_all += frames(end, direction);
            runs += 1.0;
            let guest = if index == 0 { 500 } else { 700 };
            let parts = [(Part::Guest, guest), (Part::Wait, 1000 - guest)];
            end.times = vec![ThreadTime {
                name: "vcpu0".to_owned(),
                interval: Span::from_millis(1000),
                parts: parts.map(|(part, time)| (part, Span::from_millis(time))).into(),
            }];
        }
        let html = crate::report::html::render(&result);
        let [breakdown] = &breakdowns(&result)[..] else { panic!("one cell has times") };
        let guest = &breakdown.rows[0];
        let seconds = 0.5 + 0.7 * (runs - 1.0);
        assert_eq!((guest.thread.as_str(), guest.part), ("vcpu0", Part::Guest));
        assert!((guest.share - seconds / runs).abs() < 1e-9, "{guest:?}");
        let expected = seconds * 1e6 / frames_of_all as f64;
        assert!(guest.microseconds_a_frame.is_some_and(|found| (found - expected).abs() < 1e-9));
        let shares: f64 = breakdown.rows.iter().map(|row| row.share).sum();
        assert!((shares - 1.0).abs() < 1e-9);
        assert!(html.contains("Where the time goes") && html.contains(describe(Part::Guest)));
    }
}
