//! What a program says it measured, which is not believed before it has been looked at.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use toll_guest_abi::{Counters, Status};
use toll_protocol::traffic::stream::Flow;
use toll_protocol::traffic::{Job, Traffic};
use toll_protocol::trial::{Direction, Open};

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
}

/// What the program says it measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What it had carried when the interval began.
    pub start: Carried,
    /// What it had carried when it ended.
    pub end: Carried,
    /// What each flow carried in the interval, in the order of [`Status::flows`]; nothing, of flows that there are not.
    pub flows: Vec<u64>,
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
            flows: status.flows.iter().map(|flow| flow.load(Ordering::Acquire)).collect(),
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

    /// What each flow of `job` carried, if together they carried `carried`.
    pub(crate) fn of_flows(&self, job: &Job, carried: Carried) -> Result<Vec<Flow>, ClaimError> {
        let each_way = match &job.traffic {
            Traffic::Stream(stream) => stream.flows as usize,
            // Refused with the configuration.
            Traffic::RequestResponse(_) => 0,
        };
        // The first port is that of the payload which the listening end receives.
        let first_sends = match job.direction {
            Direction::Send => true,
            Direction::Receive => false,
            Direction::Both => job.open == Open::Connect,
        };
        let count = if job.direction == Direction::Both { 2 * each_way } else { each_way };
        let flow = |(index, bytes): (usize, &u64)| {
            let sends = if index < each_way { first_sends } else { !first_sends };
            let (sent_bytes, received_bytes) = if sends { (*bytes, 0) } else { (0, *bytes) };
            Flow { sent_bytes, received_bytes }
        };
        let flows: Vec<Flow> = self.flows.iter().take(count).enumerate().map(flow).collect();
        let sum = |of: fn(&Flow) -> u64| flows.iter().map(of).fold(0, u64::saturating_add);
        let together =
            Carried { sent: sum(|flow| flow.sent_bytes), received: sum(|flow| flow.received_bytes) };
        if together == carried { Ok(flows) } else { Err(ClaimError::Flows { claimed: carried, together }) }
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
    #[error("the program counts {claimed} bytes of data; {crossed} bytes of frames crossed its adapter")]
    Bytes {
        /// By the program.
        claimed: u64,
        /// By the adapter.
        crossed: u64,
    },
    /// Its flows carried something else than it did.
    #[error("the program counts {claimed:?}; its flows together {together:?}")]
    Flows {
        /// By the program.
        claimed: Carried,
        /// Its flows.
        together: Carried,
    },
}
