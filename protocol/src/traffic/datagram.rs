//! UDP: datagrams of given sizes at a fixed rate, as fast as they go, or at the highest rate at which no more are lost than
//! the workload allows.
//!
//! `size` is UDP payload, as `iperf3 --length` has it; `frameSize` is an Ethernet frame with its header and FCS, as RFC 2544
//! (9.1) and RFC 6985 count. Each datagram begins with a header of [`HEADER`] bytes, so that the receiving end knows what was lost,
//! late, reordered or duplicated.

mod manifest;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use manifest::{LossSearch, Manifest, Share};

use crate::figure::{Better, Compare, Ends, Figure, Limits, Metric, Unit};
use crate::report::{EndReport, Failure};
use crate::result::Run;
use crate::trial::Direction;
use crate::units::numbers::{self, Seconds};
use crate::units::{BitRate, Span};

/// The field of a workload.
pub(super) const FIELD: &str = "datagram";
/// How it is written at its shortest.
pub(super) const EXAMPLE: &str = "datagram: {size: 512B}";
/// Bytes of the header that each datagram's payload begins with.
pub const HEADER: u16 = 16;
/// IPv4 and UDP headers (RFC 791, RFC 768).
pub const IP_UDP_HEADERS: u16 = 20 + 8;
/// Ethernet header and FCS (IEEE 802.3).
pub const ETHERNET: u16 = 14 + 4;
/// UDP payload of the longest datagram: the largest MTU less headers.
pub const MAX_SIZE: u16 = 9000 - IP_UDP_HEADERS;
/// Datagrams that one system call may take.
pub const BATCH: std::ops::RangeInclusive<u16> = 1..=1024;
/// Runs of equal datagrams of a mix.
pub const MOST_RUNS: usize = 100;
/// Trials of one search. 1 part in 1000 of the highest rate is reached by 10 bisections, each with its verification.
pub const SEARCH_TRIALS: u32 = 24;
/// What a trial of a search takes besides its duration at most: the last datagrams to arrive, and question and answer.
pub const SEARCH_PAUSE: Span = Span::from_millis(600);

/// Parameters of the traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Datagram {
    /// Sizes in the order in which they are sent, over and over.
    #[serde(deserialize_with = "crate::bounded::list::<_, _, { MOST_RUNS }>")]
    pub sizes: Vec<SizeRun>,
    /// Bits of UDP payload a second; as many as there can be without. To a search it is the highest that is tried.
    pub rate: Option<BitRate>,
    /// The search for the rate, if there is one.
    pub search: Option<Search>,
    /// Whether the kernel cuts and joins datagrams of one size: UDP_SEGMENT and UDP_GRO (udp(7)).
    pub segmentation_offload: bool,
    /// Datagrams that one system call takes: sendmmsg(2), recvmmsg(2).
    pub batch: u16,
}

/// Datagrams of one size that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SizeRun {
    /// UDP payload of each in bytes.
    pub size: u16,
    /// How many.
    pub count: u16,
}

/// The search for the highest rate whose loss is at most so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Search {
    /// Lost datagrams of a million sent.
    pub at_most_ppm: u32,
    /// The search ends when the highest rate without such loss and the lowest with it differ by so many parts in a million of
    /// the latter.
    pub precision_ppm: u32,
    /// How long datagrams are sent at each rate that is tried.
    pub trial: Span,
}

impl Datagram {
    /// Datagrams of the mix before it begins again.
    pub fn period(&self) -> u64 {
        self.sizes.iter().map(|run| u64::from(run.count)).sum()
    }

    /// UDP payload of these in bytes.
    pub fn period_bytes(&self) -> u64 {
        self.sizes.iter().map(|run| u64::from(run.size) * u64::from(run.count)).sum()
    }

    /// Bits of frames a second, Ethernet header included and FCS not, that carry `rate` of payload.
    pub fn rate_of_frames(&self, rate: BitRate) -> u64 {
        let headers = u128::from(self.period()) * u128::from(IP_UDP_HEADERS + ETHERNET - 4);
        let (payload, rate) = (u128::from(self.period_bytes()), u128::from(rate.0));
        u64::try_from(rate * (payload + headers) / payload.max(1)).unwrap_or(u64::MAX)
    }

    /// The time that it takes before its first payload byte at most: that of the search.
    pub fn preparation(&self) -> Span {
        let trial = |search: Search| {
            (search.trial.0.saturating_add(SEARCH_PAUSE.0)).saturating_mul(SEARCH_TRIALS.into())
        };
        Span(self.search.map_or(0, trial))
    }

    /// Why an end can't run it, if it can't. Manifests never ask for such a thing.
    pub fn unfit(&self) -> Option<&'static str> {
        let fits = |run: &SizeRun| (HEADER..=MAX_SIZE).contains(&run.size) && run.count > 0;
        if self.sizes.is_empty() || !self.sizes.iter().all(fits) {
            return Some("datagrams have 16 to 8972 bytes");
        }
        if !BATCH.contains(&self.batch) {
            return Some("a system call takes 1 to 1024 datagrams");
        }
        if self.rate.is_some_and(|rate| rate.0 == 0) {
            return Some("a rate is over 0");
        }
        match self.search {
            Some(search) if search.precision_ppm == 0 || search.trial.0 == 0 => {
                Some("a search has a precision and trials")
            }
            _ => None,
        }
    }
}

/// What an end measured. All that is counted apart from goodput is of the datagrams that the sending end sent in its
/// measured interval, and so the numbers add up: sent = received + lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DatagramReport")]
pub struct Report {
    /// Datagrams that this end's stack accepted in its measured interval.
    pub sent: u64,
    /// Datagrams that its application received in its measured interval, duplicates included.
    pub received: u64,
    /// What became of those that the other end sent in its measured interval; nothing at an end that does not receive, or that
    /// was never told how many there were.
    #[serde(default)]
    pub delivery: Option<Delivery>,
    /// What the search found, at the end that sends.
    #[serde(default)]
    pub found: Option<Found>,
}

/// What became of datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Delivery {
    /// Sent, as the sending end told.
    pub sent: u64,
    /// Received, each once.
    pub received: u64,
    /// Not received: sent less received.
    pub lost: u64,
    /// Of those lost: came so late that the end no longer knew whether it had them (over a million datagrams behind the newest).
    pub late: u64,
    /// Of those received: came after one that was sent later (RFC 4737, 3.3: Type-P-Reordered).
    pub reordered: u64,
    /// Further copies of those received.
    pub duplicated: u64,
    /// Interarrival jitter at the end of the interval (RFC 3550, 6.4.1).
    #[serde(rename = "jitter_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub jitter: Span,
    /// What this end's kernel dropped in its measured interval as the socket's buffer was full (SO_MEMINFO); of datagrams that
    /// it had joined (GRO) it counts one. Such loss is the host's, and not the path's. Nothing where the kernel doesn't say.
    pub buffer_drops: Option<u64>,
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    /// The highest rate, in bits of UDP payload a second.
    #[serde(rename = "rate_bits_per_second", with = "numbers")]
    #[schemars(with = "u64")]
    pub rate: BitRate,
    /// Trials that it took.
    pub trials: u32,
}

impl Report {
    pub(super) fn no_figure(&self, direction: Direction) -> Option<Failure> {
        let untold = direction.receives() && self.delivery.is_none();
        untold.then(|| {
            Failure::new(
                "the sending end never told how many datagrams it sent: nothing of what it sent after its interval arrived",
            )
        })
    }
}

/// What the receiving ends of a run tell, each with its report.
fn receivers(direction: Direction, run: &Run) -> impl Iterator<Item = (&EndReport, &Report)> {
    let ends = [(direction.receives(), run.a.as_ref()), (direction.sends(), run.b.as_ref())];
    ends.into_iter()
        .filter(|(receives, _)| *receives)
        .filter_map(|(_, end)| Some((end?, end?.traffic.datagram()?)))
}

/// A part of what was sent.
fn share(direction: Direction, run: &Run, part: fn(&Delivery) -> u64) -> Option<f64> {
    let mut sums = None;
    for (_, report) in receivers(direction, run) {
        let delivery = report.delivery.as_ref()?;
        let (sent, of_it) = sums.unwrap_or((0_u64, 0_u64));
        sums = Some((sent.saturating_add(delivery.sent), of_it.saturating_add(part(delivery))));
    }
    sums.filter(|(sent, _)| *sent > 0).map(|(sent, of_it)| of_it as f64 / sent as f64)
}

/// Datagrams a second that the receiving application got.
pub static PACKET_RATE: Figure = Figure {
    id: "packet-rate",
    title: "packets/s",
    unit: Unit::PerSecond,
    better: Better::Higher,
    compare: Compare::Ratio,
    ends: Ends::All,
    metric: Some(Metric {
        name: "toll_cell_packets_per_second",
        limit: Some(Limits {
            name: "toll_cell_packets_limit_per_second",
            help: "Limits of the 95 % interval of the median datagrams per second; absent below 3 runs.",
        }),
        part: None,
        help: "Median datagrams per second at the receiver over the cell's measured runs.",
    }),
    of_run: |direction, run| {
        let rate = |(end, report): (&EndReport, &Report)| {
            (end.interval.0 > 0).then(|| report.received as f64 / end.interval.seconds())
        };
        receivers(direction, run).map(rate).reduce(|sum, rate| Some(sum? + rate?)).flatten()
    },
};

/// Datagrams lost, of those sent.
pub static LOSS: Figure = Figure {
    id: "loss",
    title: "loss",
    unit: Unit::Fraction,
    better: Better::Lower,
    compare: Compare::None,
    ends: Ends::All,
    metric: Some(Metric {
        name: "toll_cell_loss_ratio",
        limit: None,
        part: None,
        help: "Datagrams lost of those sent, 0 to 1, median over the runs.",
    }),
    of_run: |direction, run| share(direction, run, |delivery| delivery.lost),
};

/// Datagrams reordered, of those sent.
pub static REORDERED: Figure = Figure {
    id: "reordered",
    title: "reordered",
    metric: None,
    of_run: |direction, run| share(direction, run, |delivery| delivery.reordered),
    ..LOSS
};

/// Datagrams that came twice, of those sent.
pub static DUPLICATED: Figure = Figure {
    id: "duplicated",
    title: "duplicated",
    of_run: |direction, run| share(direction, run, |delivery| delivery.duplicated),
    ..REORDERED
};

/// Interarrival jitter (RFC 3550); the greater one where datagrams go both ways.
pub static JITTER: Figure = Figure {
    id: "jitter",
    title: "jitter",
    unit: Unit::Seconds,
    better: Better::Lower,
    compare: Compare::Ratio,
    ends: Ends::All,
    metric: Some(Metric {
        name: "toll_cell_jitter_seconds",
        limit: None,
        part: None,
        help: "Interarrival jitter at the receiver (RFC 3550), seconds, median over the runs.",
    }),
    of_run: |direction, run| {
        let of_ends = receivers(direction, run).filter_map(|(_, report)| Some(report.delivery?.jitter));
        of_ends.max().map(Span::seconds).filter(|jitter| *jitter > 0.0)
    },
};

/// The rate that a loss search found.
pub static LOSS_SEARCH_RATE: Figure = Figure {
    id: "loss-search-rate",
    title: "rate by loss search",
    unit: Unit::BytesPerSecond,
    better: Better::Higher,
    compare: Compare::Ratio,
    ends: Ends::All,
    metric: Some(Metric {
        name: "toll_cell_loss_search_bytes_per_second",
        limit: None,
        part: None,
        help: "Highest payload rate whose loss a search found allowed, bytes per second, median over the runs.",
    }),
    of_run: |_, run| {
        let ends = [run.a.as_ref(), run.b.as_ref()].into_iter().flatten();
        let found = |end: &EndReport| Some(end.traffic.datagram()?.found?.rate.0 as f64 / 8.0);
        ends.filter_map(found).next()
    },
};

#[cfg(test)]
mod tests;
