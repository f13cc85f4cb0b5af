//! Requests and responses: the end that connects asks and measures how long each transaction takes, the end that listens
//! answers.
//!
//! ```text
//! closed loop: so many transactions are open at a time (`depth`), and each is followed by the next
//! open loop:   the n-th transaction begins n / `rate` after the first, whatever became of those before it; what is sent late
//!              counts from the moment for which it was intended
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::stream::{self, Flow, Stream};
use super::{Arms, Checked, DURATION, Traffic, WARM_UP, timing};
use crate::findings::told::Told;
use crate::findings::{Findings, Step};
use crate::latencies::Latencies;
use crate::report::Failure;
use crate::trial::Direction;
use crate::units::numbers::{self, Seconds};
use crate::units::{Bytes, Span};

/// The field of a workload.
pub(super) const FIELD: &str = "requestResponse";
/// How it is written at its shortest.
pub(super) const EXAMPLE: &str = "requestResponse: {}";
/// Bytes of a request or response.
pub const SIZE: std::ops::RangeInclusive<Bytes> = Bytes(1)..=Bytes(1 << 20);
/// The same in a datagram: it carries the number of its transaction, and no more than UDP over IPv4 takes (RFC 768).
pub const DATAGRAM: std::ops::RangeInclusive<Bytes> = Bytes(8)..=Bytes(65_507);
/// Headers of IPv4 (RFC 791) and UDP in a packet.
const DATAGRAM_HEADERS: u64 = 20 + 8;
/// Transactions a second of an open loop.
pub const RATE: std::ops::RangeInclusive<u32> = 1..=1_000_000;
/// Transactions that are open at a time in a closed loop.
pub const DEPTH: std::ops::RangeInclusive<u32> = 1..=1024;
/// How long a response may take: less than ends are patient for after the interval.
pub const TIMEOUT: std::ops::RangeInclusive<Span> = Span::from_millis(1)..=Span::from_millis(2_000);

/// Requests and responses, as in netperf's TCP_RR, UDP_RR and TCP_CRR: transactions a second and their latency.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "RequestResponse")]
pub struct Manifest {
    /// Default tcp.
    pub protocol: Option<Protocol>,
    /// Bytes of a request, up to 1MiB; with UDP 8B up to what fits the MTU. Default 1B, with UDP 8B.
    #[schemars(extend("x-range" = SIZE))]
    pub request: Option<Bytes>,
    /// Bytes of a response, as those of a request.
    #[schemars(extend("x-range" = SIZE))]
    pub response: Option<Bytes>,
    /// Transactions a second, 1 to 1000000: an open loop. Default: a closed loop.
    #[schemars(extend("x-range" = RATE))]
    pub rate: Option<u32>,
    /// Transactions that are open at a time in a closed loop, 1 to 1024. Default 1.
    #[schemars(extend("x-range" = DEPTH))]
    pub depth: Option<u32>,
    /// Whether all transactions have one TCP connection, or each its own. Default persistent.
    pub connection: Option<Connection>,
    /// Whether an open loop waits for its moments on the CPU in place of asleep, which is more punctual and costs a CPU. Default
    /// false.
    pub busy_wait: Option<bool>,
    /// A transaction of UDP, or with a connection of its own, that takes longer is lost, 1ms to 2s; on a persistent connection
    /// none is, and so long is waited for those that are open at the end. Default 1s.
    #[schemars(extend("x-range" = TIMEOUT))]
    pub timeout: Option<Span>,
    /// Name of a stream of this campaign that runs beside it, each way that it names at the same time: latency under load.
    pub background: Option<String>,
    /// Left out of the figures. Default 500ms.
    #[schemars(extend("x-range" = WARM_UP))]
    pub warm_up: Option<Span>,
    /// The interval measured. Default 2s.
    #[schemars(extend("x-range" = DURATION))]
    pub duration: Option<Span>,
}

/// What carries requests and responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// A byte stream: responses come in the order of their requests.
    Tcp,
    /// Datagrams, each a request or a response.
    Udp,
}

/// How long a TCP connection is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Connection {
    /// For all transactions.
    #[serde(rename = "persistent")]
    Persistent,
    /// For one: a transaction is connect, request, response, close.
    #[serde(rename = "perRequest")]
    PerRequest,
}

/// When transactions begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// As many as are open at a time.
    ClosedLoop {
        /// How many.
        depth: u32,
    },
    /// At moments that were fixed in advance.
    OpenLoop {
        /// So many a second.
        rate: u32,
        /// Whether the end waits for them on the CPU.
        busy_wait: bool,
    },
}

/// A stream beside the transactions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Background {
    /// What it is.
    pub stream: Stream,
    /// Which way its payload goes, seen from the end that asks.
    pub direction: Direction,
}

impl Manifest {
    pub(super) fn check(&self, path: &[Step], arms: Arms<'_>, out: &mut Findings) -> Option<Checked> {
        let at = |field| [path, &[Step::Field(field)]].concat();
        super::refuse_other_ends(FIELD, path, arms, out);
        let protocol = self.protocol.unwrap_or(Protocol::Tcp);
        let [request, response] = [("request", self.request), ("response", self.response)]
            .map(|(field, size)| size_of(protocol, size, arms, &at(field), out));
        let busy_wait = self.busy_wait.unwrap_or(false);
        let load = match (self.rate, self.depth) {
            (Some(_), Some(_)) => {
                let message = "an open loop has as many transactions open as its rate makes: leave `depth` out, or `rate` \
                               for a closed loop";
                out.add(&at("depth"), message);
                return None;
            }
            (Some(rate), None) => Load::OpenLoop { rate, busy_wait },
            (None, depth) => {
                let depth = depth.unwrap_or(1);
                if busy_wait {
                    out.add(
                        &at("busyWait"),
                        "a closed loop waits for no moment: add `rate`, or leave it out",
                    );
                }
                Load::ClosedLoop { depth }
            }
        };
        let connection = self.connection.unwrap_or(Connection::Persistent);
        if connection == Connection::PerRequest {
            if protocol == Protocol::Udp {
                out.add(&at("connection"), "UDP has no connections: leave it out");
            }
            if self.depth.is_some_and(|depth| depth > 1) {
                out.add(&at("depth"), "a connection of its own carries one transaction: leave it out");
            }
        }
        let timeout = self.timeout.unwrap_or(Span::from_millis(1_000));
        let background = match &self.background {
            Some(name) => Some(background(name, arms, &at("background"), out)?),
            None => None,
        };
        Some(Checked {
            directions: vec![Direction::Both],
            timing: timing(self.warm_up, self.duration, path, arms, out),
            traffic: Traffic::RequestResponse(RequestResponse {
                protocol,
                request,
                response,
                load,
                connection,
                timeout,
                background,
            }),
        })
    }
}

/// Bytes of a request or response; what a datagram can't have is told.
fn size_of(
    protocol: Protocol,
    size: Option<Bytes>,
    arms: Arms<'_>,
    path: &[Step],
    out: &mut Findings,
) -> Bytes {
    if protocol == Protocol::Tcp {
        return size.unwrap_or(*SIZE.start());
    }
    let size = size.unwrap_or(*DATAGRAM.start());
    let of_mtu = arms.mtu.map(|mtu| u64::from(mtu).saturating_sub(DATAGRAM_HEADERS));
    let most = of_mtu.unwrap_or(u64::MAX).min(DATAGRAM.end().0);
    if SIZE.contains(&size) && !(*DATAGRAM.start()..=Bytes(most)).contains(&size) {
        let least = DATAGRAM.start();
        let message = format!(
            "{size} is out of range: write {least} to {most}B with UDP, as a datagram has the number of its transaction and is \
             one packet"
        );
        out.add(path, message);
    }
    size
}

/// The stream of that name; that there is none is told.
fn background(name: &str, arms: Arms<'_>, path: &[Step], out: &mut Findings) -> Option<Background> {
    let found = arms.workloads.iter().find(|workload| workload.name == name);
    let Some(stream) = found.and_then(|workload| workload.stream.as_ref()) else {
        if out.has_unclear_names("workloads", arms.workloads.len()) {
            return None;
        }
        let streams: Vec<&str> =
            arms.workloads.iter().filter_map(|w| w.stream.as_ref().map(|_| w.name.as_str())).collect();
        let known = if streams.is_empty() {
            "it has none: add one, `{name: bulk, stream: {}}`".to_owned()
        } else {
            format!("write one of `{}`", streams.join("`, `"))
        };
        let what = if found.is_some() { "is no stream" } else { "is no workload" };
        out.add(path, format!("`{name}` {what} of this campaign: {known}"));
        return None;
    };
    // What is wrong with it is told where it stands.
    let (stream, directions) = stream.parameters();
    let sends = directions.iter().any(|direction| direction.sends());
    let receives = directions.iter().any(|direction| direction.receives());
    let direction = match (sends, receives) {
        (true, false) => Direction::Send,
        (false, true) => Direction::Receive,
        _ => Direction::Both,
    };
    Some(Background { stream, direction })
}

/// Parameters of requests and responses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestResponse {
    /// What carries them.
    pub protocol: Protocol,
    /// Bytes of a request.
    pub request: Bytes,
    /// Bytes of a response.
    pub response: Bytes,
    /// When they begin.
    pub load: Load,
    /// How long a TCP connection is kept.
    pub connection: Connection,
    /// What takes longer is lost, unless the connection is persistent: there nothing is, before the end.
    pub timeout: Span,
    /// What runs beside them.
    pub background: Option<Background>,
}

impl Default for RequestResponse {
    fn default() -> Self {
        Self {
            protocol: Protocol::Tcp,
            request: Bytes(1),
            response: Bytes(1),
            load: Load::ClosedLoop { depth: 1 },
            connection: Connection::Persistent,
            timeout: Span::from_millis(1_000),
            background: None,
        }
    }
}

impl RequestResponse {
    /// Why no end can run it, if none can: it may come from a peer that checks less.
    pub fn fault(&self) -> Option<String> {
        let sizes = match self.protocol {
            Protocol::Tcp => &SIZE,
            Protocol::Udp => &DATAGRAM,
        };
        let load = match self.load {
            Load::ClosedLoop { depth } => DEPTH.contains(&depth),
            Load::OpenLoop { rate, .. } => RATE.contains(&rate),
        };
        let own_connection = self.connection == Connection::PerRequest;
        let alone = !matches!(self.load, Load::ClosedLoop { depth: 2.. }) && self.protocol == Protocol::Tcp;
        let stream = self.background.as_ref().is_none_or(|background| background.stream.is_possible());
        [
            (sizes.contains(&self.request), "its request"),
            (sizes.contains(&self.response), "its response"),
            (load, "its rate or depth"),
            (TIMEOUT.contains(&self.timeout), "its timeout"),
            (!own_connection || alone, "a connection for each request"),
            (stream, "its background"),
        ]
        .into_iter()
        .find_map(|(good, what)| (!good).then(|| format!("{what} is none that an end can have: {self:?}")))
    }
}

/// What an end measured of requests and responses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RequestResponseReport")]
pub struct Report {
    /// What the end that asks measured; nothing at the other.
    pub asked: Option<Asked>,
    /// What crossed the connections of the background in the interval; they are not in the end's sums.
    #[serde(default)]
    #[serde(deserialize_with = "crate::bounded::list::<_, _, { crate::bounded::MOST_FLOWS }>")]
    pub background: Vec<Flow>,
}

/// Transactions that began in the measured interval: of an open loop, that were to begin in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Asked {
    /// Bytes of a response, of which the end received as many as it had transactions.
    #[serde(rename = "response_bytes", with = "numbers")]
    #[schemars(with = "u64")]
    pub response: Bytes,
    /// From the moment for which it was intended until the whole response was there.
    pub latencies: Latencies,
    /// Transactions without a response in time.
    pub lost: u64,
    /// Responses to those, and such as came twice.
    pub late: u64,
    /// How long after its moment the worst request of an open loop was sent: its own part in the latency.
    #[serde(rename = "latest_send_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub latest_send: Span,
    /// Whether the end waited for its moments on the CPU.
    pub busy_wait: bool,
}

impl Asked {
    /// Share of the transactions that are lost; nothing without any.
    pub fn loss(&self) -> Option<f64> {
        let all = self.latencies.percentiles().count.saturating_add(self.lost);
        (all > 0).then(|| self.lost as f64 / all as f64)
    }
}

impl Report {
    pub(super) fn no_figure(&self, _: Direction) -> Option<Failure> {
        let asked = self.asked.as_ref()?;
        (asked.latencies.percentiles().count == 0).then(|| {
            Failure::new(format!(
                "no transaction of the measured interval came to its end, and {} were lost",
                asked.lost
            ))
        })
    }
}

impl stream::Manifest {
    /// Its parameters and directions, whether or not they are good.
    fn parameters(&self) -> (Stream, Vec<Direction>) {
        match self.check(&[], Arms::default(), &mut Findings::new(Told::default())) {
            Some(Checked { traffic: Traffic::Stream(stream), directions, .. }) => (stream, directions),
            _ => (Stream::default(), Vec::new()),
        }
    }
}
