//! Bulk TCP: every write is as large as the workload says, and the next one follows at once.
//!
//! The sender writes until the receiver half-closes. Where payload goes both ways, each end half-closes when it has
//! measured, and goes on receiving.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Arms, Checked, Traffic, directions, timing};
use crate::campaign::{Findings, Step};
use crate::report::Failure;
use crate::trial::Direction;
use crate::units::{Bytes, Span};

/// The field of a workload.
pub(super) const FIELD: &str = "stream";
/// How it is written at its shortest.
pub(super) const EXAMPLE: &str = "stream: {}";
/// Bytes of a send or receive call that every kind of end takes.
pub const WRITE_SIZE: std::ops::RangeInclusive<Bytes> = Bytes(1)..=Bytes(1 << 20);

/// Bulk TCP.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Stream")]
pub struct Manifest {
    /// Seen from the arm. Default send and receive, one after the other.
    pub directions: Option<Vec<Direction>>,
    /// Bytes of each send or receive call. Default 64KiB.
    pub write_size: Option<Bytes>,
    /// Left out of the figure. Default 500ms.
    pub warm_up: Option<Span>,
    /// The interval measured. Default 2s.
    pub duration: Option<Span>,
}

impl Manifest {
    pub(super) fn check(&self, path: &[Step], arms: Arms<'_>, out: &mut Findings) -> Option<Checked> {
        let Stream { write_size, flows } = Stream::default();
        let write_size = self.write_size.unwrap_or(write_size);
        if !WRITE_SIZE.contains(&write_size) {
            let (least, most) = (WRITE_SIZE.start(), WRITE_SIZE.end());
            let message = format!("{write_size} is out of range: write {least} to {most}");
            out.add(&[path, &[Step::Field("writeSize")]].concat(), message);
        }
        Some(Checked {
            directions: directions(self.directions.as_deref(), path, out),
            timing: timing(self.warm_up, self.duration, path, arms, out),
            traffic: Traffic::Stream(Stream { write_size, flows }),
        })
    }
}

/// Parameters of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stream {
    /// Bytes of each send or receive call.
    pub write_size: Bytes,
    /// TCP connections each way, side by side. Where payload goes both ways, there are so many for each.
    pub flows: u32,
}

impl Stream {
    /// Whether an end can have it.
    pub fn is_possible(&self) -> bool {
        WRITE_SIZE.contains(&self.write_size) && (1..=128).contains(&self.flows)
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self { write_size: Bytes(64 << 10), flows: 1 }
    }
}

/// What an end of a stream measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "StreamReport")]
pub struct Report {
    /// Each connection, those that payload was received on first at the end that listens, last at the one that connects;
    /// nothing where they were not told apart.
    #[serde(default)]
    #[serde(deserialize_with = "crate::bounded::list::<_, _, { crate::bounded::MOST_FLOWS }>")]
    pub flows: Vec<Flow>,
}

/// What crossed one connection in the measured interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flow {
    /// Payload bytes that the end's stack accepted.
    pub sent_bytes: u64,
    /// Payload bytes that its application received.
    pub received_bytes: u64,
}

impl Report {
    pub(super) fn no_figure(&self, _: Direction) -> Option<Failure> {
        None
    }
}
