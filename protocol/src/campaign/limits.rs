//! Limits of what a campaign may say, each in one place, and the keywords that the schema carries them in. The parser holds a document
//! to them, and the rules of the Kubernetes object are made of them, in the same words.

use std::ops::RangeInclusive;

use serde::Serialize;

use crate::adapters::{ETHERNET_MTU, MTUS};
use crate::trial::QueuePairs;
use crate::units::{BitRate, Bytes, Percent, Span};

/// Keyword of a scalar: the least and the most that it may be, as `{start, end}`.
pub const RANGE: &str = "x-range";
/// Keyword of a text that names something: `true`.
pub const NAME: &str = "x-name";
/// Keyword of a list: what is wrong if it is empty.
pub const NOT_EMPTY: &str = "x-not-empty";
/// Keyword of a list of words, each of which is listed once: what one of them is.
pub const DISTINCT: &str = "x-distinct";
/// Keyword of a list whose entries have a `name` of their own: what one of them is.
pub const NAMED: &str = "x-named";
/// Keyword of a mapping that has exactly one of some fields: [`ExactlyOne`].
pub const EXACTLY_ONE: &str = "x-exactly-one";

/// Which fields of a mapping exclude each other.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ExactlyOne {
    /// Their names; none for all that there are.
    pub of: &'static [&'static str],
    /// What is wrong if there are none or several.
    pub say: &'static str,
}

/// What is wrong with a value out of its range, behind the value.
pub fn out_of_range(least: &str, most: &str) -> String {
    // The shortest text of no time at all is not what anybody writes.
    let least = if least == "0ns" { "0s" } else { least };
    format!("is out of range: write {least} to {most}")
}

/// What is wrong with a text that is no name, behind the text.
pub const NO_NAME: &str = "is no name: write 1 to 63 of a-z, 0-9 and -, not - at an end";
/// The longest name: an RFC 1123 label, what Kubernetes takes and what is safe in a file name.
pub const LONGEST_NAME: usize = 63;

/// Whether `text` is a name.
pub fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = !text.starts_with('-') && !text.ends_with('-');
    (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(allowed) && edges
}

/// Bytes of an IP packet.
pub const MTU: RangeInclusive<u32> = *MTUS.start() as u32..=*MTUS.end() as u32;
/// MTU of a lab's links that don't say it.
pub const LAB_MTU: u32 = ETHERNET_MTU as u32;
/// Hosts of a lab.
pub const HOSTS: RangeInclusive<u32> = 2..=16;
/// Rates of a lab's links.
pub const LINK_RATE: RangeInclusive<BitRate> = BitRate(1_000_000)..=BitRate(1_000_000_000_000);
/// A fleet's hosts in one campaign.
pub const SELECTED: RangeInclusive<u32> = 2..=1000;
/// Repetitions.
pub const BLOCKS: RangeInclusive<u32> = 1..=1000;
/// Entries of the lists of arms, workloads and gates.
pub const MAX_ENTRIES: usize = 64;
/// Frames that send combining may hold back: a ring's.
pub const COMBINED: RangeInclusive<u32> = 1..=512;
/// Exits a second from which on frames wait.
pub const EXIT_RATE: RangeInclusive<u32> = 0..=1_000_000;
/// The longest time that a frame waits.
pub const TICK: RangeInclusive<Span> = Span(100_000)..=Span(1_000_000_000);
/// Queue pairs of an adapter.
pub const QUEUE_PAIRS: RangeInclusive<u32> = 1..=QueuePairs::MAX;
/// Rates of an impaired wire: one that is slower carries no trial to its end.
pub const WIRE_RATE: RangeInclusive<BitRate> = BitRate(64_000)..=BitRate(1_000_000_000_000);
/// Delays of one.
pub const DELAY: RangeInclusive<Span> = Span(0)..=Span(1_000_000_000);
/// Frames that meet with an impairment.
pub const SHARE: RangeInclusive<Percent> = Percent::from_fraction(0.0)..=Percent::from_fraction(1.0);
/// Sizes of a capture's file.
pub const CAPTURE: RangeInclusive<Bytes> = Bytes(64 << 10)..=Bytes(1 << 30);
