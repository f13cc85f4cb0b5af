//! What a program says it measured, which is not believed before it has been looked at.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use toll_guest_abi::{Counters, Status};

/// Payload bytes that a program, or one of its flows, has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Accepted by its stack.
    pub sent: u64,
    /// Received by its application.
    pub received: u64,
}

impl Carried {
    fn of(counters: &Counters) -> Self {
        let load = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        Self { sent: load(&counters.sent), received: load(&counters.received) }
    }

    fn since(self, earlier: Self) -> Option<Self> {
        let sent = self.sent.checked_sub(earlier.sent)?;
        Some(Self { sent, received: self.received.checked_sub(earlier.received)? })
    }

    fn and(self, other: Self) -> Option<Self> {
        let sent = self.sent.checked_add(other.sent)?;
        Some(Self { sent, received: self.received.checked_add(other.received)? })
    }
}

/// What the program says it measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What it had carried when the interval began.
    pub start: Carried,
    /// What it had carried when it ended.
    pub end: Carried,
    /// What each flow carried in the interval; nothing, of flows that there are not.
    pub flows: Vec<Carried>,
    /// The program's clock when it began.
    pub start_ns: u64,
    /// The program's clock when it ended.
    pub end_ns: u64,
}

impl Claim {
    /// What stands in the page that the program writes.
    pub fn of(status: &Status) -> Self {
        Self {
            start: Carried::of(&status.start),
            end: Carried::of(&status.end),
            flows: status.flows.iter().map(Carried::of).collect(),
            start_ns: status.start_ns.load(Ordering::Acquire),
            end_ns: status.end_ns.load(Ordering::Acquire),
        }
    }

    /// What was carried in the interval, and its length in nanoseconds by the program's clock.
    pub(crate) fn interval(&self) -> Result<(Carried, u64), ClaimError> {
        let carried = self.end.since(self.start);
        let (Some(carried), Some(interval)) = (carried, self.end_ns.checked_sub(self.start_ns)) else {
            let Self { start, end, start_ns, end_ns, .. } = *self;
            return Err(ClaimError::Backwards { start, end, start_ns, end_ns });
        };
        Ok((carried, interval))
    }

    /// Whether its flows together carried `carried`.
    pub(crate) fn flows_add_up_to(&self, carried: Carried) -> Result<(), ClaimError> {
        let flows = self.flows.iter().try_fold(Carried::default(), |sum, flow| sum.and(*flow));
        if flows == Some(carried) { Ok(()) } else { Err(ClaimError::Flows { claimed: carried, flows }) }
    }
}

/// Why a program's figures are not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ClaimError {
    /// It ended before it began, or fewer bytes had come later.
    #[error(
        "the program's counters run backwards: from {start:?} to {end:?}, from {start_ns} to {end_ns} ns"
    )]
    Backwards {
        /// Carried when the interval began.
        start: Carried,
        /// Carried when it ended.
        end: Carried,
        /// The program's clock when it began.
        start_ns: u64,
        /// The program's clock when it ended.
        end_ns: u64,
    },
    /// Its clock and the VMM's disagree.
    #[error("the program's interval is {program:?}, the VMM saw {vmm:?}")]
    Clock {
        /// By the program's clock.
        program: Duration,
        /// By the VMM's clock.
        vmm: Duration,
    },
    /// More bytes than crossed the adapter.
    #[error("the program counts {claimed} bytes of payload; {crossed} bytes of frames crossed its adapter")]
    Bytes {
        /// By the program.
        claimed: u64,
        /// By the adapter.
        crossed: u64,
    },
    /// Its flows carried something else than it did.
    #[error("the program counts {claimed:?}; its flows together {flows:?}")]
    Flows {
        /// By the program.
        claimed: Carried,
        /// The sum of its flows; `None` if it fits no number.
        flows: Option<Carried>,
    },
}
