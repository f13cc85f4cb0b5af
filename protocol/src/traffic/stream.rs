//! Bulk TCP: every write is as large as the workload says, and the next one follows at once.
//!
//! A flow is a TCP connection whose payload goes one way. Its sender writes until its receiver half-closes, which it does
//! when it has measured. Where payload goes both ways there are flows for each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dscp::Dscp;
use super::{Arms, Checked, DURATION, NO_DIRECTIONS, Traffic, WARM_UP, directions, timing};
use crate::direction::Direction;
use crate::failure::Failure;
use crate::findings::{Findings, Step};
use crate::units::{Bytes, Span};

/// The field of a workload.
pub(super) const FIELD: &str = "stream";
/// How it is written at its shortest.
pub(super) const EXAMPLE: &str = "stream: {}";
/// Bytes of a send or receive call that every kind of end takes.
pub const WRITE_SIZE: std::ops::RangeInclusive<Bytes> = Bytes(1)..=Bytes(1 << 20);
/// Connections each way.
pub const FLOWS: std::ops::RangeInclusive<u32> = 1..=128;
/// Largest TCP segments that can be asked for: TCP_MIN_MSS and MAX_TCP_WINDOW of the kernel's net/tcp.h.
pub const MAX_SEGMENT_SIZE: std::ops::RangeInclusive<u16> = 88..=32_767;
/// Buffers of a socket that can be asked for.
pub const SOCKET_BUFFER: std::ops::RangeInclusive<Bytes> = Bytes(4 << 10)..=Bytes(64 << 20);
/// Bytes of a congestion control's name (TCP_CA_NAME_MAX of the kernel's net/tcp.h, less the terminating zero).
const NAME_MAX: usize = 15;

/// Bulk TCP.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Stream")]
pub struct Manifest {
    /// Seen from the arm; `both` sends and receives at the same time. Default send and receive, one after the other.
    #[schemars(extend("x-distinct" = "direction", "x-not-empty" = NO_DIRECTIONS))]
    pub directions: Option<Vec<Direction>>,
    /// TCP connections side by side, 1 to 128; with `both` so many each way. Default 1.
    #[schemars(extend("x-range" = FLOWS))]
    pub flows: Option<u32>,
    /// Bytes of each send or receive call. Default 64KiB.
    #[schemars(extend("x-range" = WRITE_SIZE))]
    pub write_size: Option<Bytes>,
    /// Name of a TCP congestion control that every host of the campaign has. Default: cubic, or reno where there is none.
    #[schemars(regex(pattern = r"^[a-z0-9_-]{1,15}$"))]
    pub congestion_control: Option<String>,
    /// Differentiated services code point of its packets (RFC 2474): a name such as af11, ef, cs1, le, or 0 to 63. Default 0.
    pub dscp: Option<Dscp>,
    /// Largest TCP segment in bytes, 88 to 32767. Default: what the MTU allows.
    #[schemars(extend("x-range" = MAX_SEGMENT_SIZE))]
    pub max_segment_size: Option<u32>,
    /// Send and receive buffer of each socket, 4KiB to 64MiB, which bounds its window. Default: the kernel adjusts them.
    #[schemars(extend("x-range" = SOCKET_BUFFER))]
    pub socket_buffer: Option<Bytes>,
    /// Send without a copy (MSG_ZEROCOPY). Default false.
    pub zero_copy: Option<bool>,
    /// Left out of the figure. Default 500ms.
    #[schemars(extend("x-range" = WARM_UP))]
    pub warm_up: Option<Span>,
    /// The interval measured. Default 2s.
    #[schemars(extend("x-range" = DURATION))]
    pub duration: Option<Span>,
}

impl Manifest {
    pub(super) fn check(&self, path: &[Step], arms: Arms<'_>, out: &mut Findings) -> Option<Checked> {
        let below = |field| [path, &[Step::Field(field)]].concat();
        let standard = Stream::default();
        let write_size = self.write_size.unwrap_or(standard.write_size);
        let flows = self.flows.unwrap_or(standard.flows);
        let size = |size| u16::try_from(size).unwrap_or(*MAX_SEGMENT_SIZE.end());
        let max_segment_size = self.max_segment_size.map(size);
        if let Some(name) = &self.congestion_control {
            congestion_control(name, &below("congestionControl"), arms, out);
        }
        let stream = Stream {
            write_size,
            flows,
            congestion_control: self.congestion_control.clone(),
            dscp: self.dscp,
            max_segment_size,
            socket_buffer: self.socket_buffer,
            zero_copy: self.zero_copy.unwrap_or_default(),
        };
        let directions = directions(self.directions.as_deref());
        self.check_arms(&stream, &directions, path, arms, out);
        let timing = timing(self.warm_up, self.duration, path, arms, out);
        Some(Checked { directions, timing, traffic: Traffic::Stream(stream) })
    }

    /// What the programs of its arms can't do.
    fn check_arms(
        &self,
        stream: &Stream,
        directions: &[Direction],
        path: &[Step],
        arms: Arms<'_>,
        out: &mut Findings,
    ) {
        let below = |field| [path, &[Step::Field(field)]].concat();
        let payload = "the payload program of a guest or same-stack arm";
        if arms.payload {
            let asked = [
                ("dscp", stream.dscp.is_some()),
                ("maxSegmentSize", stream.max_segment_size.is_some()),
                ("socketBuffer", stream.socket_buffer.is_some()),
                ("zeroCopy", stream.zero_copy),
            ];
            for (field, _) in asked.into_iter().filter(|(_, asked)| *asked) {
                out.add(&below(field), format!("{payload} has no such option: leave it out, or those arms"));
            }
        }
        if arms.iperf3 && stream.zero_copy {
            out.add(&below("zeroCopy"), "iperf3 has no MSG_ZEROCOPY: leave it out, or the arm with iperf3");
        }
        if let Some(at) = directions.iter().position(|direction| *direction == Direction::Both) {
            let place = [path, &[Step::Field("directions"), Step::Index(at)]].concat();
            if arms.iperf3 {
                let message = "an arm with iperf3 measures one way at a time: leave `both` out, or that arm";
                out.add(&place, message);
            }
            if arms.nat {
                let message =
                    "a `nat` port can't be connected to, and `both` needs it: leave `both` out, or that arm";
                out.add(&place, message);
            }
        }
    }
}

/// What can be a congestion control's name, and what the payload program has.
fn congestion_control(name: &str, place: &[Step], arms: Arms<'_>, out: &mut Findings) {
    let is_part =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(is_part) {
        let message = format!(
            "`{name}` is no name of a congestion control: write 1 to {NAME_MAX} of a-z, 0-9, _ and -"
        );
        out.add(place, message);
    } else if arms.payload && !PAYLOAD_CONGESTION_CONTROLS.contains(&name) {
        let known = PAYLOAD_CONGESTION_CONTROLS.join(" and ");
        let message = format!("the payload program of a guest or same-stack arm has {known}, not `{name}`");
        out.add(place, message);
    }
}

/// Congestion controls of the payload program.
pub const PAYLOAD_CONGESTION_CONTROLS: [&str; 2] = ["cubic", "reno"];

/// Parameters of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stream {
    /// Bytes of each send or receive call.
    pub write_size: Bytes,
    /// TCP connections each way, side by side.
    pub flows: u32,
    /// Congestion control by name; nothing for the first that an end has of
    /// [`CONGESTION_CONTROLS`](crate::trial::CONGESTION_CONTROLS).
    #[serde(default)]
    pub congestion_control: Option<String>,
    /// Code point of its packets.
    #[serde(default)]
    pub dscp: Option<Dscp>,
    /// Largest TCP segment in bytes.
    #[serde(default)]
    pub max_segment_size: Option<u16>,
    /// Send and receive buffer of each socket.
    #[serde(default)]
    pub socket_buffer: Option<Bytes>,
    /// Whether sends are made without a copy.
    #[serde(default)]
    pub zero_copy: bool,
}

impl Stream {
    /// Whether an end can have it.
    pub fn is_possible(&self) -> bool {
        WRITE_SIZE.contains(&self.write_size) && FLOWS.contains(&self.flows)
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            write_size: Bytes(64 << 10),
            flows: 1,
            congestion_control: None,
            dscp: None,
            max_segment_size: None,
            socket_buffer: None,
            zero_copy: false,
        }
    }
}

/// What an end of a stream measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "StreamReport")]
pub struct Report {
    /// Each connection; nothing where they were not told apart.
    #[serde(default)]
    #[serde(deserialize_with = "crate::bounded::list::<_, _, { crate::bounded::MOST_FLOWS }>")]
    pub flows: Vec<Flow>,
    /// Sends without a copy, and what became of them; nothing where none was asked for.
    #[serde(default)]
    pub zero_copy: Option<ZeroCopy>,
}

/// Sends without a copy that the kernel has done with, of the whole connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ZeroCopy {
    /// Those that were sent without one.
    pub sends: u64,
    /// Those that the kernel copied all the same, as it does where the other end is on the same host
    /// (SO_EE_CODE_ZEROCOPY_COPIED).
    pub copied: u64,
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
    pub(super) fn no_figure(&self, direction: Direction) -> Option<Failure> {
        let silent =
            self.flows.iter().filter(|flow| flow.sent_bytes == 0 && flow.received_bytes == 0).count();
        (direction.receives() && silent > 0).then(|| {
            let of = self.flows.len();
            Failure::new(format!("{silent} of {of} flows carried no payload in the measured interval"))
        })
    }

    /// Payload bytes that this end received by each flow that it received any by.
    pub fn received(&self) -> impl Iterator<Item = u64> {
        self.flows.iter().map(|flow| flow.received_bytes).filter(|bytes| *bytes > 0)
    }
}

/// Jain's index of fairness: `(sum x)^2 / (n sum x^2)`, 1 where all shares are equal and 1/n where one has all (Jain, Chiu,
/// Hawe: A quantitative measure of fairness, DEC-TR-301, 1984). Nothing of fewer than two shares, or if all are 0.
pub fn fairness(shares: impl Iterator<Item = u64>) -> Option<f64> {
    let (count, sum, squares) = shares.map(|share| share as f64).fold((0.0, 0.0, 0.0), |sums, share| {
        let (count, sum, squares) = sums;
        (count + 1.0, sum + share, squares + share * share)
    });
    (count > 1.0 && squares > 0.0).then(|| sum * sum / (count * squares))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_shares_are_fair_and_one_that_has_all_is_not() {
        assert_eq!(fairness([5, 5, 5, 5].into_iter()), Some(1.0));
        assert_eq!(fairness([9, 0, 0].into_iter()), Some(1.0 / 3.0));
        assert_eq!(fairness([1, 2].into_iter()), Some(0.9));
        assert_eq!(fairness([7].into_iter()), None);
        assert_eq!(fairness([0, 0].into_iter()), None);
    }

    #[test]
    fn a_flow_that_carried_nothing_is_a_failure_of_the_receiver() {
        let flow = |received_bytes| Flow { sent_bytes: 0, received_bytes };
        let report =
            |bytes: &[u64]| Report { flows: bytes.iter().copied().map(flow).collect(), zero_copy: None };
        assert_eq!(report(&[1, 2]).no_figure(Direction::Receive), None);
        let failure = report(&[1, 0, 0]).no_figure(Direction::Receive).expect("failed");
        assert_eq!(failure.reason, "2 of 3 flows carried no payload in the measured interval");
        assert_eq!(report(&[0]).no_figure(Direction::Send), None);
        assert_eq!(report(&[]).no_figure(Direction::Receive), None);
    }
}
