//! What a campaign's result says, for people: a table on the terminal, one page for a browser. Both are pure
//! functions of [`toll_protocol::result::CampaignResult`], and what they have in common is here: how arms, cells
//! and flags are put in words.

use toll_protocol::figure::{Figure, GOODPUT, TRANSACTIONS};
use toll_protocol::report::Flag;
use toll_protocol::result::{ArmSummary, CampaignResult, CellResult, Peer, RunStatus, Verdict};
use toll_protocol::trial::{Adapter, Direction, EndKind, NativeProgram};

pub mod account;
pub mod breakdown;
pub mod html;
pub mod paper;
pub mod plot;
pub mod stages;
pub mod terminal;

/// Cells of one pair of hosts and one workload: what is read together.
#[derive(Debug)]
pub struct Group<'a> {
    /// `lab-1 → lab-2`: the arm's host, then the peer's.
    pub hosts: String,
    /// Name of the workload.
    pub workload: &'a str,
    /// In the result's order.
    pub cells: Vec<&'a CellResult>,
}

/// The cells of `result` by pair and workload.
pub fn groups(result: &CampaignResult) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for cell in &result.cells {
        let key = &cell.key;
        let same = |group: &&mut Group<'_>| {
            group
                .cells
                .first()
                .is_some_and(|first| (&first.key.pair, &first.key.workload) == (&key.pair, &key.workload))
        };
        if let Some(group) = groups.iter_mut().find(same) {
            group.cells.push(cell);
        } else {
            let hosts = format!("{} ⇄ {}", key.pair.a, key.pair.b);
            groups.push(Group { hosts, workload: &key.workload, cells: vec![cell] });
        }
    }
    groups
}

/// What stands at an arm's end: `KVM guest, pcnet`.
pub fn describe(kind: &EndKind) -> String {
    match kind {
        EndKind::Native { program: NativeProgram::Endpoint } => "kernel TCP, no virtualisation".to_owned(),
        EndKind::Native { program: NativeProgram::Iperf3 } => "iperf3, no virtualisation".to_owned(),
        EndKind::Virtual { engine, nic } => {
            format!("{}, {}", engine.traits().description, described(&nic.adapter))
        }
    }
}

/// An adapter with the switches that are on: `virtio-net (checksumOffload, tso)`.
fn described(adapter: &Adapter) -> String {
    let switches = adapter.switches();
    if switches.is_empty() { adapter.to_string() } else { format!("{adapter} ({})", switches.join(", ")) }
}

/// The arm of a cell.
pub fn arm_of<'a>(result: &'a CampaignResult, cell: &CellResult) -> Option<&'a ArmSummary> {
    result.arms.iter().find(|arm| arm.name == cell.key.arm)
}

/// Whether the cell is of the arm that ratios are taken against.
pub fn is_baseline(result: &CampaignResult, cell: &CellResult) -> bool {
    arm_of(result, cell).is_some_and(|arm| arm.baseline)
}

/// The figure that a cell is about.
pub fn headline(cell: &CellResult) -> &'static Figure {
    if cell.figure(&TRANSACTIONS).is_some() { &TRANSACTIONS } else { &GOODPUT }
}

/// What an end does whose payload goes this way.
pub const fn does(direction: Direction) -> &'static str {
    match direction {
        Direction::Send => "sends",
        Direction::Receive => "receives",
        Direction::Both => "sends and receives",
    }
}

/// Where a cell's payload goes, seen from the arm: `→ native`, `← same-arm`.
pub fn path(cell: &CellResult) -> String {
    let arrow = match cell.key.direction {
        Direction::Send => '→',
        Direction::Receive => '←',
        Direction::Both => '↔',
    };
    let peer = match cell.key.peer {
        Peer::Native => "native",
        Peer::SameArm => "same arm",
    };
    format!("{arrow} {peer}")
}

/// A flag's short name, and what it means for the figure beside it.
pub const fn explain(flag: Flag) -> (&'static str, &'static str) {
    match flag {
        Flag::DebugBuild => (
            "debug build",
            "A program on the data path was built without optimisation: the figure is not the product's.",
        ),
        Flag::CpuBound => (
            "CPU-bound",
            "The thread that carries the traffic was busy for over 95 % of the interval: the end, not the path, set the figure.",
        ),
        Flag::LinkBound => (
            "link-bound",
            "Goodput came within 5 % of what the link allows: the arm might do more on a faster one, so a comparison here says nothing of its limit.",
        ),
        Flag::Drops => (
            "drops",
            "Frames were dropped at the adapter or its port, or datagrams at the receiver's own socket.",
        ),
        Flag::Steal => ("steal", "The hypervisor below this machine took over 1 % of its CPU time."),
        Flag::CpuWait => (
            "CPU-wait",
            "The thread that carries the traffic was ready to run and had to wait for a CPU for over 5 % of the interval: other work on the host took part of the figure.",
        ),
        Flag::Stalled => (
            "stalled",
            "For a fifth of a second or more no payload arrived: the path or an end stood still, and the figure is a mean over that too.",
        ),
        Flag::ExitCountMismatch => {
            ("exit count", "The VMM's count of exits and KVM's own differ: exits per frame are not certain.")
        }
        Flag::Retransmits => ("retransmits", "TCP retransmitted during the interval."),
        Flag::WindowBound => (
            "window-bound",
            "TCP waited for its window, the receiver's or the send buffer, and not for the path: the figure is the window's.",
        ),
        Flag::Captured => {
            ("captured", "What crossed the end's port was written to a file: it is no measurement.")
        }
        Flag::Impaired => ("impaired", "The end's wire was made worse, as its arm says."),
    }
}

/// A verdict in a word.
pub const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Inconclusive => "inconclusive",
    }
}

/// The runs of a cell that have no figures, by status and reason in order of appearance, with their number.
pub fn failures(cell: &CellResult) -> Vec<(RunStatus, &str, usize)> {
    let mut kinds: Vec<(RunStatus, &str, usize)> = Vec::new();
    for run in &cell.runs {
        let Some(reason) = run.reason.as_deref() else { continue };
        match kinds.iter_mut().find(|(status, known, _)| (*status, *known) == (run.status, reason)) {
            Some((_, _, count)) => *count += 1,
            None => kinds.push((run.status, reason, 1)),
        }
    }
    kinds
}

/// A status in a word.
pub const fn status(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Measured => "measured",
        RunStatus::Failed => "failed",
        RunStatus::Skipped => "not run",
        RunStatus::Lost => "lost",
    }
}

/// What stands in place of a figure in a cell without one: its worst status, never 0.
pub fn without_figure(cell: &CellResult) -> &'static str {
    let counts = cell.counts;
    let worst = [
        (counts.failed, RunStatus::Failed),
        (counts.lost, RunStatus::Lost),
        (counts.skipped, RunStatus::Skipped),
    ];
    worst.into_iter().find(|(count, _)| *count > 0).map_or("no figure", |(_, kind)| status(kind))
}
