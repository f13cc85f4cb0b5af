//! CPU time by the kernel's own account, and what the optimisations of an adapter spared: sums over the measured runs of a
//! cell, as shares and for a frame.

use std::collections::BTreeMap;

use toll_protocol::report::{EndReport, Spared};
use toll_protocol::result::{CampaignResult, CellResult};

/// The kernel's account of a cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Account<'a> {
    /// The cell.
    pub cell: &'a CellResult,
    /// Threads of the arm's end: name, and user and system time as shares of the measured intervals.
    pub threads: Vec<(&'a str, f64, f64)>,
    /// Parts of the whole host's time, which add up to 1; empty if it was not read.
    pub host: Vec<(&'static str, f64)>,
}

/// What was spared in a cell, for a frame in the direction of the payload.
#[derive(Debug, Clone, PartialEq)]
pub struct SparedInCell<'a> {
    /// The cell.
    pub cell: &'a CellResult,
    /// Exits.
    pub exits: f64,
    /// Looks at the port without a system call.
    pub looks: f64,
    /// Shares of the transmissions that sent 1, 2, 3, 4 to 7, 8 to 15, 16 and more frames; `None` if none was counted.
    pub combined: Option<[f64; 6]>,
}

/// How many frames a transmission sends together, by place in [`Spared::combined`].
pub const TOGETHER: [&str; 6] = ["1", "2", "3", "4–7", "8–15", "16+"];

fn ends(cell: &CellResult) -> impl Iterator<Item = &EndReport> {
    cell.runs.iter().filter_map(|run| run.a.as_ref())
}

/// The accounts of all cells whose ends could read one.
pub fn accounts(result: &CampaignResult) -> Vec<Account<'_>> {
    let of_cell = |cell| {
        let mut threads: BTreeMap<&str, (f64, f64, f64)> = BTreeMap::new();
        let mut host: Vec<(&'static str, f64)> = Vec::new();
        for end in ends(cell) {
            for thread in &end.threads {
                let Some((user, system)) = thread.user.zip(thread.system) else { continue };
                let sums = threads.entry(&thread.name).or_default();
                sums.0 += user.seconds();
                sums.1 += system.seconds();
                sums.2 += end.interval.seconds();
            }
            for (place, (name, span)) in end.host_cpu.iter().flat_map(|cpu| cpu.parts()).enumerate() {
                match host.get_mut(place % 6) {
                    Some((_, sum)) => *sum += span.seconds(),
                    None => host.push((name, span.seconds())),
                }
            }
        }
        let all: f64 = host.iter().map(|(_, seconds)| seconds).sum();
        host.iter_mut().for_each(|(_, seconds)| *seconds /= all);
        let share = |(name, (user, system, interval)): (_, (f64, f64, f64))| {
            (interval > 0.0).then(|| (name, user / interval, system / interval))
        };
        let threads: Vec<_> = threads.into_iter().filter_map(share).collect();
        (!threads.is_empty() || !host.is_empty()).then_some(Account { cell, threads, host })
    };
    result.cells.iter().filter_map(of_cell).collect()
}

/// What was spared in the cells of arms with optimisations that spare something.
pub fn spared(result: &CampaignResult) -> Vec<SparedInCell<'_>> {
    let of_cell = |cell| {
        let (mut sum, mut frames) = (Spared::default(), 0);
        for end in ends(cell) {
            let Some((spared, counted)) = end.spared.zip(end.frames) else { continue };
            sum.exits += spared.exits;
            sum.looks += spared.looks;
            sum.combined.iter_mut().zip(spared.combined).for_each(|(sum, count)| *sum += count);
            frames += counted.of_payload(cell.key.direction);
        }
        let transmissions: u64 = sum.combined.iter().sum();
        (frames > 0).then(|| SparedInCell {
            cell,
            exits: sum.exits as f64 / frames as f64,
            looks: sum.looks as f64 / frames as f64,
            combined: (transmissions > 0)
                .then(|| sum.combined.map(|count| count as f64 / transmissions as f64)),
        })
    };
    result.cells.iter().filter_map(of_cell).collect()
}

#[cfg(test)]
mod tests {
    use toll_protocol::cpu::HostCpu;
    use toll_protocol::report::ThreadCpu;
    use toll_protocol::units::Span;

    use super::*;
    use crate::summary::summarise;
    use crate::test_support;

    #[test]
    fn sums_over_the_runs_become_shares() {
        let (header, records) = test_support::campaign();
        let mut result = summarise(&header, &records, &[]).expect("belongs together");
        assert_eq!((accounts(&result), spared(&result)), (vec![], vec![]), "nobody has said anything");
        let cell = result
            .cells
            .iter_mut()
            .find(|cell| {
                cell.key.arm == "pcnet" && cell.key.direction == toll_protocol::trial::Direction::Send
            })
            .expect("a cell");
        let mut intervals = 0.0;
        let mut frames = 0;
        for end in cell.runs.iter_mut().filter_map(|run| run.a.as_mut()) {
            let ms = Span::from_millis;
            let (user, system) = (Some(ms(100)), Some(ms(300)));
            end.threads = vec![ThreadCpu { name: "vcpu0".to_owned(), total: ms(400), user, system }];
            let (user, system, idle) = (ms(10), ms(20), ms(50));
            let host = HostCpu { user, system, irq: ms(0), softirq: ms(15), steal: ms(5), idle };
            end.host_cpu = Some(host);
            end.spared = Some(Spared { exits: 500, combined: [30, 0, 10, 0, 0, 0], looks: 250 });
            intervals += end.interval.seconds() / 0.1;
            frames += end.frames.expect("virtual").transmit_frames;
        }
        let [account] = &accounts(&result)[..] else { panic!("one cell has an account") };
        let runs = account.cell.runs.iter().filter(|run| run.a.is_some()).count() as f64;
        let [("vcpu0", user, system)] = account.threads[..] else { panic!("{account:?}") };
        assert!((user - runs / intervals).abs() < 1e-9 && (system - 3.0 * user).abs() < 1e-9);
        let shares =
            [("user", 0.1), ("system", 0.2), ("irq", 0.0), ("softirq", 0.15), ("steal", 0.05), ("idle", 0.5)];
        for ((name, share), (expected, value)) in account.host.iter().zip(shares) {
            assert!(*name == expected && (share - value).abs() < 1e-9, "{name} {share}");
        }
        let [spared] = &spared(&result)[..] else { panic!("one cell has optimisations") };
        assert!((spared.exits - 500.0 * runs / frames as f64).abs() < 1e-9);
        assert!((spared.looks - spared.exits / 2.0).abs() < 1e-9);
        assert_eq!(spared.combined, Some([0.75, 0.0, 0.25, 0.0, 0.0, 0.0]));
        let html = crate::report::html::render(&result);
        assert!(html.contains("What the optimisations spared") && html.contains("softirq"));
    }
}
