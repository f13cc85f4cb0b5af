//! Accounting of exits: every return of `KVM_RUN` is counted and timed by cause, and the last few are kept for
//! the last words of a guest that fails.

use std::collections::BTreeMap;
use std::fmt;

use toll_protocol::report::ExitStat;
use toll_protocol::units::Span;

/// How many exits are kept for last words.
pub const RECENT: usize = 16;

/// Why the guest exited. A register is named by its adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// `in` from a register.
    PioRead(&'static str),
    /// `out` to a register.
    PioWrite(&'static str),
    /// A load from a memory-mapped register.
    MmioRead(&'static str),
    /// A store to a memory-mapped register.
    MmioWrite(&'static str),
    /// The WAIT doorbell.
    Wait,
    /// The PHASE doorbell.
    Phase,
    /// The END doorbell.
    End,
    /// A signal to the vCPU thread.
    Signal,
    /// The guest can't go on.
    Fault,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PioRead(register) => write!(f, "pio-read {register}"),
            Self::PioWrite(register) => write!(f, "pio-write {register}"),
            Self::MmioRead(register) => write!(f, "mmio-read {register}"),
            Self::MmioWrite(register) => write!(f, "mmio-write {register}"),
            Self::Wait => f.write_str("wait"),
            Self::Phase => f.write_str("phase"),
            Self::End => f.write_str("end"),
            Self::Signal => f.write_str("signal"),
            Self::Fault => f.write_str("fault"),
        }
    }
}

/// Exits of one cause: how many, and ticks of handling without time asleep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Account {
    count: u64,
    ticks: u64,
}

/// One exit, for last words.
#[derive(Debug, Clone, Copy)]
struct Recent {
    cause: Cause,
    address: u64,
    value: u64,
    ticks: u64,
}

/// Counts and times of exits so far. A copy is a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Exits {
    // A guest has a dozen causes at most, found faster by a scan than by a hash.
    accounts: Vec<(Cause, Account)>,
    total: u64,
    running: u64,
    handling: u64,
    recent: [Option<Recent>; RECENT],
}

impl Exits {
    /// Counts an exit after `running` ticks in the guest. `address` and `value` of the access are for last words.
    pub fn enter(&mut self, cause: Cause, address: u64, value: u64, now: u64, running: u64) {
        // Names are static and few; equal ones are equal text.
        match self.accounts.iter_mut().find(|(other, _)| *other == cause) {
            Some((_, account)) => account.count += 1,
            None => self.accounts.push((cause, Account { count: 1, ticks: 0 })),
        }
        self.running = self.running.saturating_add(running);
        self.recent[(self.total % RECENT as u64) as usize] =
            Some(Recent { cause, address, value, ticks: now });
        self.total += 1;
    }

    /// Adds `ticks` of handling to an exit counted as `cause`.
    pub fn leave(&mut self, cause: Cause, ticks: u64) {
        self.handling = self.handling.saturating_add(ticks);
        if let Some((_, account)) = self.accounts.iter_mut().find(|(other, _)| *other == cause) {
            account.ticks = account.ticks.saturating_add(ticks);
        }
    }

    /// Exits of all causes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Ticks inside `KVM_RUN`.
    pub fn running_ticks(&self) -> u64 {
        self.running
    }

    /// Ticks of handling, of all causes.
    pub fn handling_ticks(&self) -> u64 {
        self.handling
    }

    /// What was counted since `earlier`, by cause; a tick lasts `nanoseconds_per_tick`.
    pub fn since(&self, earlier: &Self, nanoseconds_per_tick: f64) -> BTreeMap<String, ExitStat> {
        let before = |cause: &Cause| {
            earlier
                .accounts
                .iter()
                .find(|(other, _)| other == cause)
                .map(|(_, account)| *account)
                .unwrap_or_default()
        };
        self.accounts
            .iter()
            .map(|(cause, account)| {
                let before = before(cause);
                let ticks = account.ticks.saturating_sub(before.ticks);
                let handling = Span((ticks as f64 * nanoseconds_per_tick) as u64);
                (cause.to_string(), ExitStat { count: account.count.saturating_sub(before.count), handling })
            })
            .filter(|(_, stat)| stat.count > 0)
            .collect()
    }

    /// The last exits, oldest first, a line each; times are relative to the last.
    pub fn last_words(&self, nanoseconds_per_tick: f64) -> Vec<String> {
        let start = self.total.saturating_sub(RECENT as u64);
        let recent: Vec<(u64, Recent)> = (start..self.total)
            .filter_map(|index| Some((index, self.recent[(index % RECENT as u64) as usize]?)))
            .collect();
        let last = recent.last().map_or(0, |(_, exit)| exit.ticks);
        recent
            .iter()
            .map(|(index, exit)| {
                let ago = last.saturating_sub(exit.ticks) as f64 * nanoseconds_per_tick / 1000.0;
                let Recent { cause, address, value, .. } = exit;
                format!(
                    "exit {index}: {cause} at {address:#x}, value {value:#x}, {ago:.0} us before the last"
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_counted_and_timed_by_cause_between_two_snapshots() {
        let mut exits = Exits::default();
        exits.enter(Cause::Wait, 0xf00, 0, 100, 10);
        exits.leave(Cause::Wait, 7);
        let earlier = exits.clone();
        for now in [200, 300] {
            exits.enter(Cause::PioWrite("rdp"), 0xc010, 0x48, now, 20);
            exits.leave(Cause::PioWrite("rdp"), 5);
        }
        let since = exits.since(&earlier, 2.0);
        assert_eq!(since.len(), 1, "a cause without exits is left out");
        assert_eq!(since["pio-write rdp"], ExitStat { count: 2, handling: Span(20) });
        assert_eq!((exits.total(), exits.running_ticks(), exits.handling_ticks()), (3, 50, 17));
    }

    #[test]
    fn last_words_are_the_last_sixteen_exits_oldest_first() {
        let mut exits = Exits::default();
        assert!(exits.last_words(1.0).is_empty());
        for index in 0..40 {
            exits.enter(Cause::PioRead("rap"), 0xc012, index, index * 1000, 0);
        }
        let words = exits.last_words(1.0);
        assert_eq!(words.len(), RECENT);
        assert_eq!(words[0], "exit 24: pio-read rap at 0xc012, value 0x18, 15 us before the last");
        assert!(words[15].starts_with("exit 39:"), "{}", words[15]);
    }
}
