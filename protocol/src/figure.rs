//! What is measured, compared, gated, shown and exported: one table. Whoever adds a figure adds a row to [`FIGURES`].
//!
//! ```text
//! run of a cell --of_run--> number --runs of the cell--> median and interval --compare--> paired ratio to native
//!                                                            |                                |
//!                                 result.json, terminal, page, metrics, gates: all by the row of the table
//! ```

mod transactions;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use transactions::{
    CPU_PER_TRANSACTION, LATENCY_MAX, LATENCY_P50, LATENCY_P90, LATENCY_P99, LATENCY_P999, LOST_TRANSACTIONS,
    TRANSACTIONS,
};

use crate::report::EndReport;
use crate::result::Run;
use crate::traffic::{TrafficReport, datagram, stream};
use crate::trial::Direction;
use crate::units::{Quantity, Span};

/// The unit that a figure is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Bytes of payload a second; people read bits.
    BytesPerSecond,
    /// A part of 1; people read per cent.
    Fraction,
    /// A number each second.
    PerSecond,
    /// A number for each frame in the direction of the payload.
    PerFrame,
    /// A number for each 10^6 bytes of payload.
    PerMegabyte,
    /// Seconds for each 10^9 bytes of payload.
    SecondsPerGigabyte,
    /// Seconds.
    Seconds,
    /// Bytes of memory.
    Bytes,
}

impl Unit {
    /// What limits of a gate on it are written in, and what the number of that is divided by to be in it; a number of something is
    /// written without a unit.
    pub const fn limit(self) -> (Option<Quantity>, f64) {
        match self {
            Self::BytesPerSecond => (Some(Quantity::BitRate), 8.0),
            Self::Fraction => (Some(Quantity::Percent), 1.0),
            Self::PerSecond | Self::PerFrame | Self::PerMegabyte => (None, 1.0),
            Self::SecondsPerGigabyte | Self::Seconds => (Some(Quantity::Span), 1e9),
            Self::Bytes => (Some(Quantity::Bytes), 1.0),
        }
    }

    /// What a number in it is multiplied by to be in units without a prefix, as Prometheus has them.
    pub const fn base(self) -> f64 {
        match self {
            Self::BytesPerSecond
            | Self::Fraction
            | Self::PerSecond
            | Self::PerFrame
            | Self::Seconds
            | Self::Bytes => 1.0,
            Self::PerMegabyte => 1e-6,
            Self::SecondsPerGigabyte => 1e-9,
        }
    }
}

/// Which of two numbers is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// The higher one.
    Higher,
    /// The lower one.
    Lower,
}

/// How an arm's figure is set beside native's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// As a ratio, paired within blocks. It takes numbers above 0.
    Ratio,
    /// As a difference, paired within blocks: what virtualisation adds. It takes any numbers.
    Difference,
    /// Not at all: native has none, or the two mean different things.
    None,
}

/// Which arms have the figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// All.
    All,
    /// Those with a virtual adapter.
    Virtual,
}

/// The series of a figure in `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Family of its median, in [base](Unit::base) units.
    pub name: &'static str,
    /// Those of the limits of its interval.
    pub limit: Option<Limits>,
    /// Value of the label `part`, for figures that share a family.
    pub part: Option<&'static str>,
    /// `# HELP` of the family.
    pub help: &'static str,
}

/// The series of the limits of a figure's interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Their family.
    pub name: &'static str,
    /// Its `# HELP`.
    pub help: &'static str,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Its name in `result.json`.
    pub id: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// Unit of its numbers.
    pub unit: Unit,
    /// Which number is better.
    pub better: Better,
    /// How it is set beside native's.
    pub compare: Compare,
    /// Who has it.
    pub ends: Ends,
    /// Its series.
    pub metric: Option<Metric>,
    /// Its number of a measured run of a cell with this direction; nothing if the run has none.
    pub of_run: fn(Direction, &Run) -> Option<f64>,
}

impl PartialEq for Figure {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Figure {}

/// Payload that the receiving application got.
pub static GOODPUT: Figure = Figure {
    id: "goodput",
    title: "goodput",
    unit: Unit::BytesPerSecond,
    better: Better::Higher,
    compare: Compare::Ratio,
    ends: Ends::All,
    metric: Some(Metric {
        name: "toll_cell_goodput_bytes_per_second",
        limit: Some(Limits {
            name: "toll_cell_goodput_limit_bytes_per_second",
            help: "Limits of the 95 % interval of the median goodput, bytes per second; absent below 3 runs.",
        }),
        part: None,
        help: "Median goodput at the receiver over the cell's measured runs, bytes per second.",
    }),
    of_run: |_, run| run.goodput_bytes_per_second,
};

/// What the arm's peer received of an arm that sends and receives at the same time.
pub static GOODPUT_SENT: Figure = Figure {
    id: "goodput-sent",
    title: "goodput sent",
    metric: None,
    of_run: |direction, run| of_both(direction, run.b.as_ref()?),
    ..GOODPUT
};

/// What such an arm received.
pub static GOODPUT_RECEIVED: Figure = Figure {
    id: "goodput-received",
    title: "goodput received",
    metric: None,
    of_run: |direction, run| of_both(direction, run.a.as_ref()?),
    ..GOODPUT
};

/// What the receiving `end` got each second, if both ends receive.
fn of_both(direction: Direction, end: &EndReport) -> Option<f64> {
    (direction == Direction::Both && end.traffic.is_bulk() && end.interval.0 > 0)
        .then(|| end.received_bytes as f64 / end.interval.seconds())
}

/// How evenly the flows of a stream shared what was received: Jain's index, 1 where all had the same.
pub static FAIRNESS: Figure = Figure {
    id: "fairness",
    title: "fairness of flows",
    unit: Unit::Fraction,
    better: Better::Higher,
    compare: Compare::None,
    ends: Ends::All,
    metric: Some(Metric {
        name: "toll_cell_fairness_ratio",
        limit: None,
        part: None,
        help: "Jain's index of what the flows of a cell received, 1 where all had the same, median over the runs.",
    }),
    of_run: |_, run| {
        let received = |end: &Option<EndReport>| -> Vec<u64> {
            match end.as_ref().map(|end| &end.traffic) {
                Some(TrafficReport::Stream(report)) => report.received().collect(),
                Some(TrafficReport::Datagram(_) | TrafficReport::RequestResponse(_)) | None => Vec::new(),
            }
        };
        // Of each way by itself: the two may have different paths.
        let ways = [received(&run.a), received(&run.b)];
        ways.into_iter().filter_map(|shares| stream::fairness(shares.into_iter())).reduce(f64::min)
    },
};

/// CPU time of all threads of the arm's end.
pub static CPU: Figure = Figure {
    id: "cpu",
    title: "CPU s/GB",
    unit: Unit::SecondsPerGigabyte,
    better: Better::Lower,
    compare: Compare::Ratio,
    ends: Ends::All,
    metric: None,
    of_run: |_, run| cpu_per_gigabyte(run, cpu_time).filter(|time| *time > 0.0),
};

/// What the threads of the arm's end left of one CPU: below 0 where they used more than one.
pub static IDLE: Figure = Figure {
    id: "idle",
    title: "idle",
    unit: Unit::Fraction,
    better: Better::Higher,
    compare: Compare::None,
    ends: Ends::All,
    metric: None,
    of_run: |_, run| {
        let end = run.a.as_ref()?;
        Some(1.0 - cpu_time(end)?.seconds() / end.interval.seconds())
    },
};

const CPU_PART: Metric = Metric {
    name: "toll_cell_cpu_seconds_per_byte",
    limit: None,
    part: None,
    help: "CPU seconds on `a` per payload byte, median over the runs; times 10^9 for seconds per gigabyte.",
};

/// CPU time of guest code and KVM.
pub static CPU_GUEST: Figure = Figure {
    id: "cpu-guest",
    title: "CPU s/GB, guest",
    unit: Unit::SecondsPerGigabyte,
    better: Better::Lower,
    compare: Compare::None,
    ends: Ends::Virtual,
    metric: Some(Metric { part: Some("guest"), ..CPU_PART }),
    of_run: |_, run| cpu_per_gigabyte(run, |end| end.cpu.guest),
};

/// CPU time of the VMM.
pub static CPU_VMM: Figure = Figure {
    id: "cpu-vmm",
    title: "CPU s/GB, VMM",
    metric: Some(Metric { part: Some("vmm"), ..CPU_PART }),
    of_run: |_, run| cpu_per_gigabyte(run, |end| end.cpu.vmm),
    ..CPU_GUEST
};

/// CPU time of the host's kernel.
pub static CPU_HOST: Figure = Figure {
    id: "cpu-host",
    title: "CPU s/GB, host",
    ends: Ends::All,
    metric: Some(Metric { part: Some("host"), ..CPU_PART }),
    of_run: |_, run| cpu_per_gigabyte(run, |end| end.cpu.host),
    ..CPU_GUEST
};

/// Exits of the guest for its frames.
pub static EXITS_PER_FRAME: Figure = Figure {
    id: "exits-per-frame",
    title: "exits/frame",
    unit: Unit::PerFrame,
    better: Better::Lower,
    compare: Compare::None,
    ends: Ends::Virtual,
    metric: Some(Metric {
        name: "toll_cell_exits_per_frame",
        limit: None,
        part: None,
        help: "Exits of the guest on `a` per frame in the direction of the payload, median over the runs.",
    }),
    of_run: |direction, run| {
        let end = run.a.as_ref()?;
        let frames = end.payload_frames(direction).filter(|frames| *frames > 0)?;
        Some(end.exits.as_ref()?.total() as f64 / frames as f64)
    },
};

/// Exits of the guest for its payload.
pub static EXITS_PER_MEGABYTE: Figure = Figure {
    id: "exits-per-megabyte",
    title: "exits/MB",
    unit: Unit::PerMegabyte,
    metric: Some(Metric {
        name: "toll_cell_exits_per_byte",
        limit: None,
        part: None,
        help: "Exits of the guest on `a` per payload byte, median over the runs; times 10^6 for exits per megabyte.",
    }),
    of_run: |_, run| {
        let end = run.a.as_ref().filter(|end| end.traffic.is_bulk())?;
        let exits = end.exits.as_ref()?.total();
        (end.bytes() > 0).then(|| exits as f64 * 1e6 / end.bytes() as f64)
    },
    ..EXITS_PER_FRAME
};

/// From the creation of the guest to the first frame that its driver sent.
pub static FIRST_FRAME: Figure = Figure {
    id: "first-frame",
    title: "first frame after",
    unit: Unit::Seconds,
    metric: Some(Metric {
        name: "toll_cell_first_frame_seconds",
        limit: None,
        part: None,
        help: "Seconds from the creation of the guest on `a` to the first frame that its driver sent, median over the runs.",
    }),
    of_run: |_, run| run.a.as_ref()?.start_to_first_frame.map(Span::seconds),
    ..EXITS_PER_FRAME
};

/// What an idle end takes of the host's memory.
pub static MEMORY: Figure = Figure {
    id: "memory",
    title: "memory beside the guest's",
    unit: Unit::Bytes,
    metric: Some(Metric {
        name: "toll_cell_overhead_bytes",
        limit: None,
        part: None,
        help: "Memory that the idle end on `a` takes beside its guest's own, in bytes, median over the runs.",
    }),
    of_run: |_, run| Some(run.a.as_ref()?.overhead?.0 as f64),
    ..EXITS_PER_FRAME
};

/// All of them, in the order in which they are shown.
pub static FIGURES: [&Figure; 27] = [
    &GOODPUT,
    &GOODPUT_SENT,
    &GOODPUT_RECEIVED,
    &FAIRNESS,
    &TRANSACTIONS,
    &LATENCY_P50,
    &LATENCY_P90,
    &LATENCY_P99,
    &LATENCY_P999,
    &LATENCY_MAX,
    &LOST_TRANSACTIONS,
    &CPU_PER_TRANSACTION,
    &CPU,
    &IDLE,
    &CPU_GUEST,
    &CPU_VMM,
    &CPU_HOST,
    &EXITS_PER_FRAME,
    &EXITS_PER_MEGABYTE,
    &FIRST_FRAME,
    &MEMORY,
    &datagram::PACKET_RATE,
    &datagram::LOSS,
    &datagram::REORDERED,
    &datagram::DUPLICATED,
    &datagram::JITTER,
    &datagram::LOSS_SEARCH_RATE,
];

/// CPU time of all threads of an end that carry traffic; nothing if none was read.
fn cpu_time(end: &EndReport) -> Option<Span> {
    let total = end.threads.iter().map(|thread| thread.total.0).fold(0, u64::saturating_add);
    (!end.threads.is_empty()).then_some(Span(total))
}

/// CPU-seconds per 10^9 bytes at the arm's end: CPU time by its clock and goodput by the receiver's are both taken per second
/// first, as the two intervals may differ a little.
fn cpu_per_gigabyte(run: &Run, time: impl Fn(&EndReport) -> Option<Span>) -> Option<f64> {
    let end = run.a.as_ref().filter(|end| end.traffic.is_bulk())?;
    let goodput = run.goodput_bytes_per_second.filter(|goodput| *goodput > 0.0)?;
    (end.interval.0 > 0).then_some(time(end)?.seconds() / end.interval.seconds() / goodput * 1e9)
}

/// Names a figure of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FigureId(&'static Figure);

impl FigureId {
    /// Its row.
    pub const fn figure(self) -> &'static Figure {
        self.0
    }

    /// That of this name.
    pub fn named(id: &str) -> Option<Self> {
        FIGURES.into_iter().find(|figure| figure.id == id).map(Self)
    }

    /// All of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        FIGURES.into_iter().map(Self)
    }
}

impl From<&'static Figure> for FigureId {
    fn from(figure: &'static Figure) -> Self {
        Self(figure)
    }
}

impl Ord for FigureId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.id.cmp(other.0.id)
    }
}

impl PartialOrd for FigureId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for FigureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.id)
    }
}

impl Serialize for FigureId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.id)
    }
}

impl<'de> Deserialize<'de> for FigureId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = String::deserialize(deserializer)?;
        Self::named(&id).ok_or_else(|| de::Error::custom(format!("there is no figure `{id}`")))
    }
}

impl JsonSchema for FigureId {
    fn schema_name() -> Cow<'static, str> {
        "FigureId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let ids: Vec<&str> = FIGURES.iter().map(|figure| figure.id).collect();
        json_schema!({"description": "Names a figure.", "type": "string", "enum": ids})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_series_are_of_one_figure() {
        for (index, figure) in FIGURES.iter().enumerate() {
            assert_eq!(FigureId::named(figure.id), Some(FigureId(figure)));
            let others = || FIGURES[index + 1..].iter();
            assert!(
                others().all(|other| other.id != figure.id && other.title != figure.title),
                "{}",
                figure.id
            );
            let series = |figure: &Figure| figure.metric.map(|metric| (metric.name, metric.part));
            assert!(
                others().all(|other| series(other).is_none() || series(other) != series(figure)),
                "{}",
                figure.id
            );
        }
        assert_eq!(FigureId::named("speed"), None);
        let id = FigureId(&EXITS_PER_FRAME);
        assert_eq!(serde_json::to_string(&id).expect("encodes"), "\"exits-per-frame\"");
        assert_eq!(serde_json::from_str::<FigureId>("\"exits-per-frame\"").expect("decodes"), id);
        let error = serde_json::from_str::<FigureId>("\"speed\"").expect_err("is none");
        assert!(error.to_string().starts_with("there is no figure `speed`"), "{error}");
    }
}
