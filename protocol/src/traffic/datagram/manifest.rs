//! How datagrams are written in a manifest, and what they must be.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BATCH, Datagram, ETHERNET, HEADER, IP_UDP_HEADERS, MAX_SIZE, MOST_RUNS, Search, SizeRun};
use crate::campaign::limits::ExactlyOne;
use crate::findings::{Findings, Step};
use crate::traffic::{Arms, Checked, DURATION, NO_DIRECTIONS, Traffic, WARM_UP, directions, timing};
use crate::trial::Direction;
use crate::units::{BitRate, Bytes, Percent, Span};

/// Frames by the letters of RFC 6985: `z`, the frame of the path's MTU, is left out, as hosts may differ in it.
const GENOME: [(char, u16); 9] = [
    ('a', 64),
    ('b', 128),
    ('c', 256),
    ('d', 512),
    ('e', 1024),
    ('f', 1280),
    ('g', 1518),
    ('h', 2112),
    ('i', 9000),
];
/// Datagrams a second of the slowest rate.
const SLOWEST: u64 = 10;
/// Payloads, and frames with them.
const SIZE: RangeInclusive<Bytes> = Bytes(HEADER as u64)..=Bytes(MAX_SIZE as u64);
const FRAME: RangeInclusive<Bytes> = Bytes((HEADER + HEADERS) as u64)..=Bytes((MAX_SIZE + HEADERS) as u64);
/// What is before and behind the payload of a frame.
const HEADERS: u16 = ETHERNET + IP_UDP_HEADERS;
/// Rates: an end may be asked for more than it can.
const RATE: RangeInclusive<BitRate> = BitRate(1_000)..=BitRate(1_000_000_000_000);
/// Of a hundred datagrams.
const SHARE: RangeInclusive<Percent> = Percent::from_fraction(0.01)..=Percent::from_fraction(1.0);
/// What a search's trials may take.
const TRIAL: RangeInclusive<Span> = Span::from_millis(100)..=Span::from_millis(60_000);
/// Losses that a search may allow.
const LOSS: RangeInclusive<Percent> = Percent::from_fraction(0.0)..=Percent::from_fraction(0.5);
/// How near it may come.
const PRECISION: RangeInclusive<Percent> = Percent::from_fraction(0.001)..=Percent::from_fraction(0.5);
/// The fields of sizes.
const ONE_SIZE: ExactlyOne = ExactlyOne {
    of: &["size", "frameSize", "imix", "sizes"],
    say: "must have exactly one size: `size: 512B` (UDP payload), `frameSize: 64B` (Ethernet frame), `imix` or `sizes`",
};
/// What is wrong with a mix of nothing.
const NO_SIZES: &str = "is empty: write `[{size: 64B, share: 60%}, {size: 1000B, share: 40%}]`";

/// UDP.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Datagram", extend("x-exactly-one" = ONE_SIZE))]
pub struct Manifest {
    /// Seen from the arm. Default send and receive, one after the other.
    #[schemars(extend("x-distinct" = "direction", "x-not-empty" = NO_DIRECTIONS))]
    pub directions: Option<Vec<Direction>>,
    /// UDP payload of each datagram. One of `size`, `frameSize`, `imix` and `sizes` is written.
    #[schemars(extend("x-range" = SIZE))]
    pub size: Option<Bytes>,
    /// Ethernet frame of each datagram, header and FCS included, as RFC 2544 has it: 64B, 128B, 256B, 512B, 1024B, 1280B,
    /// 1518B.
    #[schemars(extend("x-range" = FRAME))]
    pub frame_size: Option<Bytes>,
    /// Frames in the order in which they are sent, over and over, a letter each (RFC 6985): a 64, b 128, c 256, d 512, e 1024,
    /// f 1280, g 1518, h 2112, i 9000 bytes. `aaaaaaaddddg` is the usual mix of 7 : 4 : 1.
    pub imix: Option<String>,
    /// UDP payloads and how many of a hundred datagrams have each.
    #[schemars(extend("x-not-empty" = NO_SIZES))]
    pub sizes: Option<Vec<Share>>,
    /// Bits of UDP payload a second. Without it: as fast as they go; to a search it is the highest rate that is tried.
    #[schemars(extend("x-range" = RATE))]
    pub rate: Option<BitRate>,
    /// Searches for the highest rate whose loss is allowed, and measures at that rate.
    pub loss_search: Option<LossSearch>,
    /// UDP_SEGMENT and UDP_GRO of the kernel: it cuts and joins datagrams of one size. Default true.
    pub segmentation_offload: Option<bool>,
    /// Datagrams that one sendmmsg or recvmmsg takes at most; 1: a system call each. Default 64.
    #[schemars(extend("x-range" = BATCH))]
    pub batch: Option<u32>,
    /// Left out of the figure. Default 500ms.
    #[schemars(extend("x-range" = WARM_UP))]
    pub warm_up: Option<Span>,
    /// The interval measured. Default 2s.
    #[schemars(extend("x-range" = DURATION))]
    pub duration: Option<Span>,
}

/// Datagrams of one size.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "SizeShare")]
pub struct Share {
    /// UDP payload of each.
    #[schemars(extend("x-range" = SIZE))]
    pub size: Bytes,
    /// How many of a hundred, a whole number. All shares together are 100%.
    #[schemars(extend("x-range" = SHARE))]
    pub share: Percent,
}

/// Binary search with loss verification (ETSI GS NFV-TST 009, 12.3.3).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LossSearch {
    /// The loss that is allowed, of the datagrams sent. Default 0%.
    #[schemars(extend("x-range" = LOSS))]
    pub at_most: Option<Percent>,
    /// How near the found rate is to one with more loss. Default 1%.
    #[schemars(extend("x-range" = PRECISION))]
    pub precision: Option<Percent>,
    /// How long datagrams are sent at each rate that is tried. Default 500ms.
    #[schemars(extend("x-range" = TRIAL))]
    pub trial: Option<Span>,
}

/// Whether `number` is in steps of `step`, nearly: what a user writes as a decimal has no exact binary form.
fn whole(number: f64) -> Option<u32> {
    let rounded = number.round();
    ((number - rounded).abs() < 1e-6 && (0.0..=1e9).contains(&rounded)).then_some(rounded as u32)
}

impl Manifest {
    pub(in crate::traffic) fn check(&self, path: &[Step], arms: Arms, out: &mut Findings) -> Option<Checked> {
        let below = |field| [path, &[Step::Field(field)]].concat();
        if arms.payload {
            let message = "datagrams are sent by native ends only: leave the other arms out, or write this workload in a \
                           campaign of its own";
            out.add(path, message);
        }
        if arms.iperf3 {
            let message = "iperf3 tells no loss of an interval within its run: leave the arm with iperf3 out";
            out.add(path, message);
        }
        let directions = directions(self.directions.as_deref());
        let sizes = self.sizes(path, arms, out);
        let batch = self.batch.and_then(|batch| u16::try_from(batch).ok()).unwrap_or(64);
        let search = self.loss_search.as_ref().map(|search| search.check(&below("lossSearch"), out));
        if search.is_some() && directions.contains(&Direction::Both) {
            let message =
                "searches of both ways at once would find each other's load: write `[send, receive]`";
            out.add(&below("directions"), message);
        }
        let datagram = Datagram {
            sizes: sizes.unwrap_or_default(),
            rate: self.rate,
            search,
            segmentation_offload: self.segmentation_offload.unwrap_or(true),
            batch,
        };
        if let Some(rate) = self.rate.filter(|_| !datagram.sizes.is_empty()) {
            check_rate(rate, &datagram, arms, &below("rate"), out);
        }
        let timing = timing(self.warm_up, self.duration, path, Arms { iperf3: false, ..arms }, out);
        Some(Checked { directions, timing, traffic: Traffic::Datagram(datagram) })
    }

    /// What is written of sizes, if it can be. The schema says that one of the fields is.
    fn sizes(&self, path: &[Step], arms: Arms, out: &mut Findings) -> Option<Vec<SizeRun>> {
        let below = |field| [path, &[Step::Field(field)]].concat();
        if let Some(size) = self.size {
            return Some(vec![SizeRun { size: fitting(size, arms, &below("size"), out)?, count: 1 }]);
        }
        if let Some(frame) = self.frame_size {
            return Some(vec![SizeRun { size: payload(frame, arms, &below("frameSize"), out)?, count: 1 }]);
        }
        if let Some(genome) = &self.imix {
            return of_genome(genome, arms, &below("imix"), out);
        }
        of_shares(self.sizes.as_deref().unwrap_or_default(), arms, &below("sizes"), out)
    }
}

impl LossSearch {
    fn check(&self, path: &[Step], out: &mut Findings) -> Search {
        let below = |field| [path, &[Step::Field(field)]].concat();
        let mut ppm = |field, written: Option<Percent>, default: u32| {
            let Some(written) = written else { return default };
            whole(written.fraction() * 1e6).unwrap_or_else(|| {
                out.add(&below(field), format!("{written} is no multiple of 0.0001%"));
                default
            })
        };
        let at_most_ppm = ppm("atMost", self.at_most, 0);
        let precision_ppm = ppm("precision", self.precision, 10_000);
        let trial = self.trial.unwrap_or(Span::from_millis(500));
        Search { at_most_ppm, precision_ppm, trial }
    }
}

/// `size` of UDP payload, if a datagram of it fits the trials' MTU.
fn fitting(size: Bytes, arms: Arms, path: &[Step], out: &mut Findings) -> Option<u16> {
    if let Some(mtu) = arms.mtu.filter(|mtu| size.0 > u64::from(mtu.saturating_sub(IP_UDP_HEADERS))) {
        let most = mtu.saturating_sub(IP_UDP_HEADERS);
        let message = format!(
            "{size} of UDP payload with {IP_UDP_HEADERS} bytes of IPv4 and UDP headers are over the MTU of {mtu}: write {most}B \
             at most"
        );
        out.add(path, message);
        return None;
    }
    // What is out of range is told already.
    u16::try_from(size.0).ok().filter(|size| (HEADER..=MAX_SIZE).contains(size))
}

/// UDP payload of a frame, if it fits the trials' MTU.
fn payload(frame: Bytes, arms: Arms, path: &[Step], out: &mut Findings) -> Option<u16> {
    if let Some(mtu) = arms.mtu.filter(|mtu| frame.0 > u64::from(mtu + ETHERNET)) {
        let most = mtu + ETHERNET;
        let message = format!(
            "a frame of {frame} is over the MTU of {mtu} with {ETHERNET} bytes of Ethernet header and FCS: write {most}B at most"
        );
        out.add(path, message);
        return None;
    }
    u16::try_from(frame.0)
        .ok()
        .and_then(|frame| frame.checked_sub(HEADERS))
        .filter(|size| (HEADER..=MAX_SIZE).contains(size))
}

fn of_genome(genome: &str, arms: Arms, path: &[Step], out: &mut Findings) -> Option<Vec<SizeRun>> {
    if genome.is_empty() || genome.chars().count() > MOST_RUNS {
        let message = format!("a genome has 1 to {MOST_RUNS} letters of RFC 6985, such as `aaaaaaaddddg`");
        out.add(path, message);
        return None;
    }
    let mut runs: Vec<SizeRun> = Vec::new();
    for letter in genome.chars() {
        let Some((_, frame)) = GENOME.into_iter().find(|(known, _)| *known == letter) else {
            let message = format!("`{letter}` is no frame of RFC 6985: write a (64 bytes) to i (9000 bytes)");
            out.add(path, message);
            return None;
        };
        // One finding is enough for a mix.
        let size = payload(Bytes(frame.into()), arms, path, out)?;
        match runs.last_mut() {
            Some(run) if run.size == size => run.count += 1,
            _ => runs.push(SizeRun { size, count: 1 }),
        }
    }
    Some(runs)
}

fn of_shares(shares: &[Share], arms: Arms, path: &[Step], out: &mut Findings) -> Option<Vec<SizeRun>> {
    if shares.len() > MOST_RUNS {
        out.add(path, format!("has {} entries; at most {MOST_RUNS} are taken", shares.len()));
        return None;
    }
    let mut runs = Vec::new();
    let (mut sum, mut all) = (0, true);
    for (index, Share { size, share }) in shares.iter().enumerate() {
        let below = |field| [path, &[Step::Index(index), Step::Field(field)]].concat();
        let size = fitting(*size, arms, &below("size"), out);
        let count = whole(share.fraction() * 100.0).filter(|count| (1..=100).contains(count));
        if count.is_none() {
            out.add(&below("share"), format!("{share} is no whole number of a hundred"));
        }
        match (size, count.and_then(|count| u16::try_from(count).ok())) {
            (Some(size), Some(count)) => {
                sum += count;
                runs.push(SizeRun { size, count });
            }
            _ => all = false,
        }
    }
    if all && sum != 100 {
        out.add(path, format!("adds up to {sum}%: the shares of a mix are 100% together"));
    }
    // The least mix of these shares: its datagrams alternate as often as they can.
    let divisor = runs.iter().fold(0, |divisor, run| gcd(divisor, run.count)).max(1);
    runs.iter_mut().for_each(|run| run.count /= divisor);
    all.then_some(runs)
}

const fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn check_rate(rate: BitRate, datagram: &Datagram, arms: Arms, path: &[Step], out: &mut Findings) {
    let slowest = (SLOWEST * 8 * datagram.period_bytes()).div_ceil(datagram.period().max(1));
    if rate.0 < slowest {
        let message = format!("{rate} is below {}, {SLOWEST} datagrams a second", BitRate(slowest));
        out.add(path, message);
    }
    let frames = datagram.rate_of_frames(rate);
    if let Some(link) = arms.link_rate.filter(|link| frames > link.0) {
        // Rounded up to whole kilobits: for people.
        let frames = BitRate(frames.div_ceil(1000) * 1000);
        let message =
            format!("{rate} of payload are {frames} of frames: over {link}, the rate of the lab's links");
        out.add(path, message);
    }
}
