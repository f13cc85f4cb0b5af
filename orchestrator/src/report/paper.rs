//! A campaign's arms beside those of the paper of 2001 (Sugerman, Venkitachalam, Lim: Virtualizing I/O Devices on VMware
//! Workstation's Hosted Virtual Machine Monitor, USENIX 2001). Its figures are its text's; what is derived from them by
//! arithmetic says so. Machines are many times faster now, so what is compared are ratios.

use toll_protocol::figure::{CPU, GOODPUT, IDLE};
use toll_protocol::result::{ArmSummary, CampaignResult, CellResult, PaperArm, Peer};
use toll_protocol::trial::Direction;

use super::groups;
use crate::format;

/// What the paper says of one of its arms, sending from its PC-733 to a 100 Mb/s link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaperFigures {
    /// Throughput, in its words.
    pub throughput: &'static str,
    /// Share of the sender's CPU that was idle.
    pub idle: f64,
}

/// The paper's Table 3 and section 3.
pub const fn figures(arm: PaperArm) -> PaperFigures {
    let (throughput, idle) = match arm {
        PaperArm::Native => ("saturates the link", 0.86),
        PaperArm::Optimised => ("saturates the link", 0.217),
        PaperArm::WithoutIrqNotification => ("saturates the link", 0.179),
        PaperArm::WithoutSendCombining => ("saturates the link", 0.02),
        PaperArm::Unoptimised => ("64 Mb/s, CPU-bound", 0.0),
    };
    PaperFigures { throughput, idle }
}

/// CPU time relative to native at equal throughput, derived: (1 - idle) / (1 - idle of native). Of the unoptimised arm,
/// whose throughput is another, the paper gives none.
pub fn cpu_ratio(arm: PaperArm) -> Option<f64> {
    let busy = |arm| 1.0 - figures(arm).idle;
    (arm != PaperArm::Unoptimised).then(|| busy(arm) / busy(PaperArm::Native))
}

/// An arm of ours beside one of the paper's.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Our arm's name.
    pub arm: String,
    /// The paper's.
    pub paper: PaperArm,
    /// Our goodput, of native.
    pub share: String,
    /// The share of one CPU that our end left idle.
    pub idle: String,
    /// Our CPU time a byte, of native's.
    pub cpu: String,
}

/// The rows of one pair of hosts and one workload, in the campaign's order.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Hosts and workload.
    pub title: String,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// All that can be compared: arms that a campaign marks as one of the paper's, sending to native.
pub fn comparisons(result: &CampaignResult) -> Vec<Comparison> {
    let marked = |cell: &CellResult| -> Option<(&ArmSummary, PaperArm)> {
        let arm = result.arms.iter().find(|arm| arm.name == cell.key.arm)?;
        Some((arm, arm.paper?))
    };
    groups(result)
        .into_iter()
        .filter_map(|group| {
            let rows: Vec<Row> = group
                .cells
                .iter()
                .filter(|cell| cell.key.direction == Direction::Send && cell.key.peer == Peer::Native)
                .filter_map(|cell| marked(cell).map(|(arm, paper)| row(cell, arm, paper)))
                .collect();
            let title = format!("{}, {}", group.hosts, group.workload);
            (!rows.is_empty()).then_some(Comparison { title, rows })
        })
        .collect()
}

fn row(cell: &CellResult, arm: &ArmSummary, paper: PaperArm) -> Row {
    let absent = || format::ABSENT.to_owned();
    let baseline = |known: bool, text: &str| if arm.baseline && known { text.to_owned() } else { absent() };
    let share = cell.to_native(&GOODPUT).map(|ratio| {
        let interval =
            ratio.ci95.map(|ci95| format!(" [{}]", format::percent_interval(ratio.estimate, ci95)));
        format!("{}{}", format::percent(ratio.estimate), interval.unwrap_or_default())
    });
    let cpu = cell.to_native(&CPU).map(|ratio| {
        let interval = ratio
            .ci95
            .map(|[low, high]| format!(" [{}–{}]", format::significant(low), format::significant(high)));
        format!("{}{}", format::significant(ratio.estimate), interval.unwrap_or_default())
    });
    let idle = cell.estimate(&IDLE).map(|idle| {
        let interval = idle.ci95.map(|ci95| format!(" [{}]", format::percent_interval(idle.median, ci95)));
        format!("{}{}", format::percent(idle.median), interval.unwrap_or_default())
    });
    let measured = cell.estimate(&GOODPUT).is_some();
    Row {
        arm: arm.name.clone(),
        paper,
        share: share.unwrap_or_else(|| baseline(measured, "100 %")),
        idle: idle.unwrap_or_else(absent),
        cpu: cpu.unwrap_or_else(|| baseline(measured, "1")),
    }
}

/// Titles of the columns: ours, then the paper's.
pub const TITLES: [&str; 7] = [
    "arm",
    "of native",
    "idle",
    "CPU a byte, of native",
    "paper: throughput",
    "paper: idle",
    "paper: CPU, of native (derived)",
];

/// A row in text.
pub fn columns(row: &Row) -> [String; 7] {
    let paper = figures(row.paper);
    [
        row.arm.clone(),
        row.share.clone(),
        row.idle.clone(),
        row.cpu.clone(),
        paper.throughput.to_owned(),
        format::percent(paper.idle),
        cpu_ratio(row.paper).map_or_else(|| format::ABSENT.to_owned(), format::significant),
    ]
}

/// What a reader has to know of the columns.
pub const NOTE: &str = "Ours: idle is what the arm's own threads left of one CPU; CPU a byte is paired with native within \
                        blocks. The paper's: PC-733 sending to a 100 Mb/s link (section 3, Table 3), idle of the whole \
                        machine; what is derived is (1 - idle) / (1 - native's idle), at equal throughput.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::terminal::TerminalOptions;
    use crate::summary::summarise;
    use crate::test_support;

    #[test]
    fn marked_arms_stand_beside_the_papers_and_others_do_not() {
        let (header, records) = test_support::campaign();
        let mut result = summarise(&header, &records, &[]).expect("belongs together");
        assert_eq!(comparisons(&result), []);
        for (name, paper) in [("native", PaperArm::Native), ("pcnet", PaperArm::Unoptimised)] {
            let arm = result.arms.iter_mut().find(|arm| arm.name == name).expect("an arm");
            arm.paper = Some(paper);
        }
        let [comparison] = &comparisons(&result)[..] else { panic!("one pair, one workload") };
        let rows: Vec<_> = comparison.rows.iter().map(columns).collect();
        let row = |name: &str| rows.iter().find(|row| row[0] == name).expect("a row").clone();
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert_eq!(row("native")[4..], ["saturates the link", "86.0 %", "1.00"].map(str::to_owned));
        assert_eq!(row("native")[1], "100 %");
        let pcnet = row("pcnet");
        assert_eq!(pcnet[4..], ["64 Mb/s, CPU-bound", "0 %", format::ABSENT].map(str::to_owned));
        assert!(pcnet[1].contains('%') && pcnet[3].contains('['), "{pcnet:?}");
        let html = crate::report::html::render(&result);
        assert!(html.contains("Beside the paper of 2001") && html.contains("64 Mb/s, CPU-bound"));
        let text = crate::report::terminal::render(
            &result,
            None,
            TerminalOptions { width: 100, styled: false, unicode: true },
        );
        let beside = text.split_once("Beside the paper of 2001: lab-1").expect("its table").1;
        assert!(beside.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn the_papers_arithmetic() {
        let ratio = |arm| cpu_ratio(arm).map(|ratio| (ratio * 10.0).round() / 10.0);
        assert_eq!(ratio(PaperArm::Native), Some(1.0));
        assert_eq!(ratio(PaperArm::Optimised), Some(5.6));
        assert_eq!(ratio(PaperArm::WithoutIrqNotification), Some(5.9));
        assert_eq!(ratio(PaperArm::WithoutSendCombining), Some(7.0));
        assert_eq!(ratio(PaperArm::Unoptimised), None);
    }
}
