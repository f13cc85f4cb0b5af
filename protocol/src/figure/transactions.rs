//! Figures of requests and responses.

use super::{Better, Compare, Ends, Figure, GOODPUT, Limits, Metric, Unit, cpu_time};
use crate::latencies::Percentiles;
use crate::result::Run;
use crate::traffic::stream::Flow;
use crate::traffic::{TrafficReport, request_response};
use crate::units::Span;

/// Transactions of requests and responses.
pub static TRANSACTIONS: Figure = Figure {
    id: "transactions",
    title: "transactions/s",
    unit: Unit::PerSecond,
    metric: Some(Metric {
        name: "toll_cell_transactions_per_second",
        limit: Some(Limits {
            name: "toll_cell_transactions_limit_per_second",
            help: "Limits of the 95 % interval of the median of transactions per second; absent below 3 runs.",
        }),
        part: None,
        help: "Transactions per second that the end on `a` completed, median over the runs.",
    }),
    of_run: |_, run| {
        let end = run.a.as_ref()?;
        let number = end.received_bytes as f64 / asked(run)?.response.0 as f64;
        (end.interval.0 > 0).then(|| number / end.interval.seconds())
    },
    ..GOODPUT
};

/// Latency that half of the transactions kept below.
pub static LATENCY_P50: Figure = Figure {
    id: "latency-p50",
    title: "latency p50",
    unit: Unit::Seconds,
    better: Better::Lower,
    compare: Compare::Difference,
    ends: Ends::All,
    metric: Some(Metric { part: Some("p50"), ..LATENCY }),
    of_run: |_, run| latency(run, |percentiles| percentiles.p50),
};

const LATENCY: Metric = Metric {
    name: "toll_cell_latency_seconds",
    limit: None,
    part: None,
    help: "Latency of transactions asked by the end on `a` in seconds, by percentile, median over the runs.",
};

/// Latency that 90 % of the transactions kept below.
pub static LATENCY_P90: Figure = Figure {
    id: "latency-p90",
    title: "latency p90",
    metric: Some(Metric { part: Some("p90"), ..LATENCY }),
    of_run: |_, run| latency(run, |percentiles| percentiles.p90),
    ..LATENCY_P50
};

/// Latency that 99 % of the transactions kept below.
pub static LATENCY_P99: Figure = Figure {
    id: "latency-p99",
    title: "latency p99",
    metric: Some(Metric { part: Some("p99"), ..LATENCY }),
    of_run: |_, run| latency(run, |percentiles| percentiles.p99),
    ..LATENCY_P50
};

/// Latency that 99.9 % of the transactions kept below.
pub static LATENCY_P999: Figure = Figure {
    id: "latency-p999",
    title: "latency p99.9",
    metric: Some(Metric { part: Some("p99.9"), ..LATENCY }),
    of_run: |_, run| latency(run, |percentiles| percentiles.p999),
    ..LATENCY_P50
};

/// The longest latency of a run.
pub static LATENCY_MAX: Figure = Figure {
    id: "latency-max",
    title: "latency max",
    metric: Some(Metric { part: Some("max"), ..LATENCY }),
    of_run: |_, run| latency(run, |percentiles| percentiles.max),
    ..LATENCY_P50
};

/// Transactions without a response in time.
pub static LOST_TRANSACTIONS: Figure = Figure {
    id: "lost-transactions",
    title: "lost",
    unit: Unit::Fraction,
    better: Better::Lower,
    compare: Compare::None,
    ends: Ends::All,
    metric: Some(Metric {
        name: "toll_cell_lost_transactions_ratio",
        limit: None,
        part: None,
        help: "Share of the transactions of the end on `a` that got no response in time, median over the runs.",
    }),
    of_run: |_, run| asked(run)?.loss(),
};

/// CPU time of all threads of the arm's end for each transaction, of a run without a background.
pub static CPU_PER_TRANSACTION: Figure = Figure {
    id: "cpu-per-transaction",
    title: "CPU/transaction",
    compare: Compare::Ratio,
    metric: None,
    of_run: |direction, run| {
        let end = run.a.as_ref()?;
        let transactions = (TRANSACTIONS.of_run)(direction, run).filter(|number| *number > 0.0)?;
        background(run).is_empty().then_some(())?;
        (end.interval.0 > 0).then_some(cpu_time(end)?.seconds() / end.interval.seconds() / transactions)
    },
    ..LATENCY_P50
};

/// What the arm's end measured of requests and responses, if that was its traffic.
fn request_response(run: &Run) -> Option<&request_response::Report> {
    match &run.a.as_ref()?.traffic {
        TrafficReport::RequestResponse(report) => Some(report),
        TrafficReport::Stream(_) | TrafficReport::Datagram(_) => None,
    }
}

/// The transactions of the arm's end.
fn asked(run: &Run) -> Option<&request_response::Asked> {
    request_response(run)?.asked.as_ref()
}

/// The connections beside its transactions.
fn background(run: &Run) -> &[Flow] {
    request_response(run).map_or(&[], |report| &report.background)
}

/// A percentile of its latencies in seconds.
fn latency(run: &Run, of: impl Fn(&Percentiles) -> Span) -> Option<f64> {
    let percentiles = asked(run)?.latencies.percentiles();
    (percentiles.count > 0).then(|| of(&percentiles).seconds())
}
