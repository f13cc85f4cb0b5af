//! Traffic: what a workload asks of the two ends of a trial, and what only that kind of it measures. Each kind is one
//! file of this directory and one line of the list below; `toll-endpoint` and the payload program have files of the
//! same names.
//!
//! ```text
//! manifest (as written) --check--> Workload {directions, timing, traffic} --plan--> Job of each end
//!                                                                                    |
//!                                           EndReport {.., traffic: TrafficReport} <-'
//! ```

pub mod datagram;
pub mod dscp;
pub mod request_response;
pub mod stream;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::direction::{Direction, Open};
use crate::failure::Failure;
use crate::findings::{Findings, Step};
use crate::units::{BitRate, Span};

/// The list of kinds: `Variant field module`. A kind's module has its shape in a manifest (`Manifest`), its parameters
/// (a type of the variant's name) and what it alone measures (`Report`).
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident $field:ident $module:ident;)+) => {
        /// A workload as a manifest has it: exactly one kind of traffic.
        #[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct Workload {
            /// Name, unique in the campaign.
            #[schemars(extend("x-name" = true))]
            pub name: String,
            $($(#[$doc])* pub $field: Option<$module::Manifest>,)+
        }

        impl Workload {
            /// Names of the kinds that are written.
            pub(crate) fn written(&self) -> Vec<&'static str> {
                [$(self.$field.as_ref().map(|_| Traffic::$field()),)+].into_iter().flatten().collect()
            }

            /// The one kind that is written, checked.
            fn check_kind(&self, path: &[Step], arms: Arms<'_>, out: &mut Findings) -> Option<Checked> {
                $(if let Some(kind) = &self.$field {
                    let path = [path, &[Step::Field(Traffic::$field())]].concat();
                    return kind.check(&path, arms, out);
                })+
                None
            }
        }

        /// What crosses between the ends of a trial: the parameters of its kind, the same for both.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "kebab-case", tag = "kind")]
        pub enum Traffic {
            $($(#[$doc])* $variant($module::$variant),)+
        }

        impl Traffic {
            $(#[doc = concat!("The field of a workload that has a [`", stringify!($variant), "`](Self::", stringify!($variant), ").")]
            pub const fn $field() -> &'static str {
                $module::FIELD
            })+

            /// The field of a workload that it is written in.
            pub const fn field(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $module::FIELD,)+
                }
            }
        }

        /// What one end measured that only this kind of traffic has.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "kebab-case", tag = "kind")]
        pub enum TrafficReport {
            $($(#[$doc])* $variant($module::Report),)+
        }

        impl TrafficReport {
            /// Why it is no figure, if it is none.
            pub fn no_figure(&self, direction: Direction) -> Option<Failure> {
                match self {
                    $(Self::$variant(report) => report.no_figure(direction),)+
                }
            }
        }

        /// An example of each kind, for who wrote none.
        pub const EXAMPLES: &[&str] = &[$($module::EXAMPLE,)+];
    };
}

kinds! {
    /// Bulk TCP.
    Stream stream stream;
    /// UDP.
    Datagram datagram datagram;
    /// Transactions: how many a second, and their latency.
    RequestResponse request_response request_response;
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field())
    }
}

impl Traffic {
    /// The time that it takes before its first payload byte at most, besides that of the connection.
    pub fn preparation(&self) -> Span {
        match self {
            Self::Datagram(datagram) => datagram.preparation(),
            Self::Stream(_) | Self::RequestResponse(_) => Span(0),
        }
    }
}

impl TrafficReport {
    /// Whether its payload is what it is about, so that costs are told for bytes of it; those of transactions are told for
    /// each.
    pub const fn is_bulk(&self) -> bool {
        match self {
            Self::Stream(_) | Self::Datagram(_) => true,
            Self::RequestResponse(_) => false,
        }
    }

    /// What only a stream has.
    pub const fn stream(&self) -> Option<&stream::Report> {
        match self {
            Self::Stream(report) => Some(report),
            Self::Datagram(_) | Self::RequestResponse(_) => None,
        }
    }

    /// What only datagrams have.
    pub const fn datagram(&self) -> Option<&datagram::Report> {
        match self {
            Self::Datagram(report) => Some(report),
            Self::Stream(_) | Self::RequestResponse(_) => None,
        }
    }
}

/// When it is measured. Each end measures from the first payload byte plus `warm_up` for `duration`, by its own monotonic
/// clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// Left out of the figures: TCP's slow start, caches that are cold.
    pub warm_up: Span,
    /// The interval measured.
    pub duration: Span,
}

impl Timing {
    /// From the first payload byte to the end of the interval.
    pub const fn total(&self) -> Span {
        Span(self.warm_up.0.saturating_add(self.duration.0))
    }
}

/// One end's part in the traffic of a trial: the same for a kernel socket, a guest and a same-stack process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Whether this end listens or connects.
    pub open: Open,
    /// Which way the payload goes, seen from this end.
    pub direction: Direction,
    /// When it is measured.
    pub timing: Timing,
    /// What it is.
    pub traffic: Traffic,
}

impl Job {
    /// From the connection to the end of the interval at most.
    pub fn longest(&self) -> Span {
        Span(self.traffic.preparation().0.saturating_add(self.timing.total().0))
    }

    /// The part of the end at the other side.
    pub fn of_peer(&self) -> Self {
        Self { open: self.open.opposite(), direction: self.direction.opposite(), ..self.clone() }
    }
}

/// What a workload was found to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Seen from the arm; at least one, each once.
    pub directions: Vec<Direction>,
    /// When it is measured.
    pub timing: Timing,
    /// What it is.
    pub traffic: Traffic,
}

/// What a workload has to know of its campaign: of the arms, and of the other workloads.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arms<'a> {
    /// Whether one of them runs iperf3.
    pub iperf3: bool,
    /// Whether one of them runs the payload program.
    pub payload: bool,
    /// Whether one of them has a `nat` port.
    pub nat: bool,
    /// MTU of the trials, in bytes of IP packet, where the campaign or its lab says it.
    pub mtu: Option<u16>,
    /// Rate of the links of its lab.
    pub link_rate: Option<BitRate>,
    /// All workloads, as they are written.
    pub workloads: &'a [Workload],
}

/// The one place where a kind is refused that only `toll-endpoint` runs.
pub(crate) fn refuse_other_ends(kind: &str, path: &[Step], arms: Arms<'_>, out: &mut Findings) {
    let others = [
        (arms.iperf3, "with `program: iperf3`, which has no such traffic"),
        (arms.payload, "with a virtual adapter, whose payload program has no such traffic"),
    ];
    for (_, why) in others.into_iter().filter(|(has, _)| *has) {
        let message = format!(
            "`{kind}` runs on arms `native: {{}}`, and the campaign has one {why}: give it a campaign of its own"
        );
        out.add(path, message);
    }
}

impl Workload {
    /// What it asks for; what is wrong with it is told.
    pub(crate) fn check(&self, path: &[Step], arms: Arms<'_>, out: &mut Findings) -> Option<Checked> {
        let written = self.written();
        match written[..] {
            [] => {
                let examples = EXAMPLES.join("`, `");
                out.add_missing(path, format!("workload `{}` is nothing yet: write `{examples}`", self.name));
                None
            }
            [_] => self.check_kind(path, arms, out),
            _ => {
                let kinds = written.join(", ");
                out.add(path, format!("workload `{}` is several things: keep one of {kinds}", self.name));
                None
            }
        }
    }
}

/// iperf3 reports in steps of so much, and an interval is cut from whole steps (MIN_INTERVAL in its iperf.h).
pub const IPERF3_STEP: Span = Span::from_millis(100);
/// The intervals that can be measured.
pub const DURATION: std::ops::RangeInclusive<Span> = Span::from_millis(100)..=Span::from_millis(3_600_000);
/// The warm-ups that there may be.
pub const WARM_UP: std::ops::RangeInclusive<Span> = Span(0)..=Span::from_millis(600_000);

/// `warmUp` and `duration` as every kind has them, whose schemas say how long they may be; what else is wrong with them is told.
pub(crate) fn timing(
    warm_up: Option<Span>,
    duration: Option<Span>,
    path: &[Step],
    arms: Arms<'_>,
    out: &mut Findings,
) -> Timing {
    let below = |field| [path, &[Step::Field(field)]].concat();
    let warm_up = warm_up.unwrap_or(Span::from_millis(500));
    let duration = duration.unwrap_or(Span::from_millis(2000));
    if arms.iperf3 {
        for (field, span) in [("warmUp", warm_up), ("duration", duration)] {
            if !span.0.is_multiple_of(IPERF3_STEP.0) {
                let message = format!("{span} is no multiple of {IPERF3_STEP}, as an arm with iperf3 needs");
                out.add(&below(field), message);
            }
        }
    }
    Timing { warm_up, duration }
}

/// What is wrong with `directions` that are none.
pub(crate) const NO_DIRECTIONS: &str = "is empty: write `[send, receive]`, one of them or `both`";

/// `directions` as most kinds have them, whose schemas say that there is one, and each once.
pub(crate) fn directions(written: Option<&[Direction]>) -> Vec<Direction> {
    written.map_or_else(|| vec![Direction::Send, Direction::Receive], <[Direction]>::to_vec)
}
