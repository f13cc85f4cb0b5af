//! Campaigns: the schema that users write, and the validated form that everything else works with. A text is
//! parsed and validated once; after that nothing checks it again.

pub mod limits;
mod parse;
pub mod schema;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;
use std::fmt;

pub use parse::{EncodingError, MAX_DEPTH, MAX_DOCUMENT, MAX_NODES, decode, lines, parse, to_yaml};
pub use validate::MAX_TRIALS;

use crate::printable::printable;
use crate::result::{Gate, PaperArm, Peer};
use crate::traffic::Checked;
use crate::trial::EndKind;
use crate::units::BitRate;

/// Characters of the two ends of a problem's message that are kept of a long one.
const QUOTED: usize = 500;

/// What is wrong in a campaign, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong and what would be right. Printable: it quotes the document.
    pub message: String,
}

impl Problem {
    /// A problem at a place, in words that may quote the document: all of it, so they are cut in the middle.
    fn new(line: usize, column: usize, message: &str) -> Self {
        let message = printable(message);
        let end = |at: usize| message.char_indices().nth(at).map(|(at, _)| at);
        let message = match (end(QUOTED), message.char_indices().nth_back(QUOTED)) {
            (Some(head), Some((tail, _))) if head < tail => {
                format!("{}…{}", &message[..head], &message[tail..])
            }
            _ => message.into_owned(),
        };
        Self { line, column, message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// A campaign that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Campaign {
    /// Its name: a DNS label (RFC 1123).
    pub name: String,
    /// The hosts of a fleet or cluster.
    pub select: Option<Select>,
    /// The lab that `toll run` makes.
    pub lab: Option<Lab>,
    /// MTU of every trial in bytes of IP packet, if it is not that of the hosts' NICs.
    pub mtu: Option<u16>,
    /// How hosts are paired.
    pub pairs: schema::Pairs,
    /// Arms, at least one, names unique.
    pub arms: Vec<Arm>,
    /// Workloads, at least one, names unique.
    pub workloads: Vec<Workload>,
    /// Repetitions of every arm.
    pub blocks: u32,
    /// Seed of the order, if the campaign names one.
    pub seed: Option<u64>,
    /// Gates.
    pub gates: Vec<Gate>,
}

impl Campaign {
    /// The arm that others are compared with: the first native one.
    pub fn native_arm(&self) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.kind.is_native())
    }
}

/// Hosts of a fleet, by the labels of their agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Select {
    /// Labels that a host must have.
    pub labels: BTreeMap<String, String>,
    /// The campaign waits for so many.
    pub at_least: u32,
}

impl Select {
    /// Whether a host with `labels` is meant.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
    }
}

/// A lab of virtual hosts on one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lab {
    /// How many hosts.
    pub count: u32,
    /// Link rate of each, each way.
    pub rate: Option<BitRate>,
    /// MTU in bytes of IP packet.
    pub mtu: u16,
}

/// What stands at the ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: EndKind,
    /// CPU of the vCPU or traffic thread, counted from 0 among those that its host has.
    pub cpu: Option<u32>,
    /// The same for the adapter's own thread.
    pub io_cpu: Option<u32>,
    /// What it is measured against.
    pub peers: Vec<Peer>,
    /// Which arm of the paper of 2001 it stands for.
    pub paper: Option<PaperArm>,
}

/// A workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// What it asks for.
    pub asks: Checked,
}
