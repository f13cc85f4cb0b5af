//! Every family of the orchestrator's metrics: name, labels, help.

use std::sync::LazyLock;

use toll_protocol::figure::{self, Limits, Metric};
use toll_protocol::metrics::{Family, Kind, Label};

/// Upper limits of the buckets of latencies inside the orchestrator, seconds.
pub const LATENCY_BUCKETS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Upper limits of the buckets of a trial's phases, seconds.
pub const PHASE_BUCKETS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

const CAMPAIGN: Label = Label {
    name: "campaign",
    values: "name of the campaign; of campaigns of one name the latest is shown, of all the latest 10",
};
const A: Label = Label { name: "a", values: "the host of the arm" };
const B: Label = Label { name: "b", values: "the host of the peer" };
const WORKLOAD: Label = Label { name: "workload", values: "name of the workload" };
const DIRECTION: Label = Label { name: "direction", values: "`send`, `receive`, seen from `a`" };
const ARM: Label = Label { name: "arm", values: "name of the arm" };
const END: Label = Label { name: "end", values: "what the arm is: `native`, `same-stack`, `guest`" };
const PEER: Label = Label { name: "peer", values: "what stands on `b`: `native`, `same-arm`" };
const LIMIT: Label = Label { name: "limit", values: "`lower`, `upper`" };
const PART: Label = Label {
    name: "part",
    values: "of CPU time `guest` (guest code and KVM), `vmm`, `host` (I/O); of latency `p50` to `p99.9`, `max`",
};

/// Labels of a cell, in the order of [`super::cells`].
pub const CELL: [Label; 8] = [CAMPAIGN, A, B, WORKLOAD, DIRECTION, ARM, END, PEER];
const CELL_LIMIT: [Label; 9] = [CAMPAIGN, A, B, WORKLOAD, DIRECTION, ARM, END, PEER, LIMIT];
const CELL_PART: [Label; 9] = [CAMPAIGN, A, B, WORKLOAD, DIRECTION, ARM, END, PEER, PART];

/// Families of the figures of cells, each once, in the order of the table.
pub static FIGURES: LazyLock<Vec<Family>> = LazyLock::new(|| {
    let mut families: Vec<Family> = Vec::new();
    for metric in figure::FIGURES.iter().filter_map(|figure| figure.metric) {
        let Metric { name, limit, part, help } = metric;
        let labels: &[Label] = if part.is_some() { &CELL_PART } else { &CELL };
        let median = Family { name, kind: Kind::Gauge, labels, help };
        let limits =
            limit.map(|Limits { name, help }| Family { name, kind: Kind::Gauge, labels: &CELL_LIMIT, help });
        for family in [median].into_iter().chain(limits) {
            if families.iter().all(|known| known.name != family.name) {
                families.push(family);
            }
        }
    }
    families
});

/// Agents.
pub const AGENTS: Family = Family {
    name: "toll_agents",
    kind: Kind::Gauge,
    labels: &[Label {
        name: "state",
        values: "`idle`, `busy`, `away` (not connected), `barred` (connected, and gets no trials)",
    }],
    help: "Agents that have ever been connected, by state.",
};
/// Campaigns.
pub const CAMPAIGNS: Family = Family {
    name: "toll_campaigns",
    kind: Kind::Gauge,
    labels: &[Label { name: "state", values: "`pending`, `running`, `finished`, `cancelled`, `refused`" }],
    help: "Campaigns that the service has, those that are over too, by state.",
};
/// Trials that are not over.
pub const TRIALS: Family = Family {
    name: "toll_trials",
    kind: Kind::Gauge,
    labels: &[Label {
        name: "state",
        values: "`waiting` (for its hosts), `in-flight` (from Prepare to the end of the teardown)",
    }],
    help: "Planned trials that are not over, by state.",
};
/// What can't be served.
pub const LEFT_OUT: Family = Family {
    name: "toll_left_out",
    kind: Kind::Gauge,
    labels: &[Label {
        name: "tried_again",
        values: "`yes` (what is wrong may pass: it is looked at from time to time), `no`",
    }],
    help: "Entries of the data directory that can't be served as campaigns: `/api/v1/left-out` names them.",
};
/// Trials that are over.
pub const TRIALS_ENDED: Family = Family {
    name: "toll_trials_ended_total",
    kind: Kind::Counter,
    labels: &[Label { name: "outcome", values: "`measured`, `failed`, `skipped`, `lost`" }],
    help: "Trials that were recorded since the orchestrator began, by how they ended.",
};
/// Dispatch.
pub const DISPATCH: Family = Family {
    name: "toll_dispatch_seconds",
    kind: Kind::Histogram,
    labels: &[],
    help: "Seconds from the moment that both hosts of a trial were free to its Prepare being sent.",
};
/// Phases of trials.
pub const PHASES: Family = Family {
    name: "toll_trial_phase_seconds",
    kind: Kind::Histogram,
    labels: &[Label {
        name: "phase",
        values: "`setup` (Prepare to both ends being up), `run` (Start to the outcome), `teardown` (Teardown to \
                 both hosts being free)",
    }],
    help: "Seconds that trials spent in a phase. A phase that a trial did not end is not counted.",
};
/// The ledger.
pub const LEDGER_WRITE: Family = Family {
    name: "toll_ledger_write_seconds",
    kind: Kind::Histogram,
    labels: &[],
    help: "Seconds that a record took to be durable in the ledger.",
};
/// Toll of a cell.
pub const CELL_TOLL: Family = Family {
    name: "toll_cell_toll_ratio",
    kind: Kind::Gauge,
    labels: &CELL,
    help: "Toll: 1 - goodput relative to the native arm, paired within blocks. Absent for native.",
};
/// Its interval.
pub const CELL_TOLL_LIMIT: Family = Family {
    name: "toll_cell_toll_limit_ratio",
    kind: Kind::Gauge,
    labels: &CELL_LIMIT,
    help: "Limits of the 95 % interval of the toll; absent below 3 blocks.",
};
/// Runs of a cell.
pub const CELL_RUNS: Family = Family {
    name: "toll_cell_runs",
    kind: Kind::Gauge,
    labels: &[
        CAMPAIGN,
        A,
        B,
        WORKLOAD,
        DIRECTION,
        ARM,
        END,
        PEER,
        Label { name: "status", values: "`measured`, `failed`, `skipped` (not reached yet, too), `lost`" },
    ],
    help: "Planned runs of the cell by status, which add up to those planned.",
};
/// Gates.
pub const GATE: Family = Family {
    name: "toll_gate_verdict",
    kind: Kind::Gauge,
    labels: &[
        CAMPAIGN,
        A,
        B,
        WORKLOAD,
        DIRECTION,
        ARM,
        END,
        PEER,
        Label { name: "condition", values: "what the gate asks: `toll at most 50%`" },
        Label { name: "verdict", values: "`pass`, `fail`, `inconclusive`" },
    ],
    help: "1 for the verdict of a gate on a cell as far as the campaign is, 0 for the other two. The labels of a \
           cell are empty if the gate selects none.",
};
/// Cells without series.
pub const CELLS_OMITTED: Family = Family {
    name: "toll_cells_omitted",
    kind: Kind::Gauge,
    labels: &[],
    help: "Cells of the campaigns shown that have no series here, because there are over 5000; `toll results` has \
           them all.",
};
