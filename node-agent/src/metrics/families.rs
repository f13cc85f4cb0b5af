//! Every family of the agent's metrics: name, labels, help.

use toll_protocol::metrics::{Family, Kind, Label};
use toll_protocol::trial::{Adapter, PcnetSwitches, VirtioNetSwitches};

/// Values of `state` of [`TRIALS`].
pub const STATES: [&str; 6] = ["setting-up", "starting", "ready", "running", "releasing", "released"];
/// Values of `outcome` of [`TRIALS_ENDED`].
pub const OUTCOMES: [&str; 3] = ["measured", "failed", "abandoned"];
/// Causes of exits that a guest of Toll's own has in a measured interval, by its adapter: their counters begin with 0.
pub const CAUSES: [(Adapter, &[&str]); 2] = [
    (
        Adapter::Pcnet(PcnetSwitches::OFF),
        &["phase", "pio-read rap", "pio-read rdp", "pio-write rap", "pio-write rdp", "signal", "wait"],
    ),
    (
        Adapter::VirtioNet(VirtioNetSwitches::OFF),
        &[
            "mmio-read interrupt-status",
            "mmio-write interrupt-ack",
            "mmio-write queue-notify",
            "phase",
            "signal",
            "wait",
        ],
    ),
];

const END: Label = Label { name: "end", values: "`native`, `same-stack`, `guest`" };
const VIRTUAL_END: Label = Label { name: "end", values: "`same-stack`, `guest`" };
const ADAPTER: Label =
    Label { name: "adapter", values: "`pcnet`, `virtio-net`, or `host-nic` for a native end" };
const VIRTUAL_ADAPTER: Label = Label { name: "adapter", values: "`pcnet`, `virtio-net`" };
const PAYLOAD: Label = Label { name: "direction", values: "`transmit` (this end sends), `receive`" };
const GUEST_SIDE: Label = Label { name: "direction", values: "`transmit` (sent by the guest), `receive`" };
const CAUSE: Label =
    Label { name: "cause", values: "as in `result.json`: `pio-write rap`, `wait`; at most 64, then `other`" };
const PART: Label = Label {
    name: "part",
    values: "`guest` (guest code and KVM), `vmm` (device models), `host` (I/O: system calls of the port, or the whole \
             traffic thread of a native end)",
};

/// Trials that exist.
pub const TRIALS: Family = Family {
    name: "toll_agent_trials",
    kind: Kind::Gauge,
    labels: &[Label {
        name: "state",
        values: "`setting-up`, `starting`, `ready`, `running`, `releasing`, `released` (nothing of the host is \
                 held, and the orchestrator has yet to say so)",
    }],
    help: "Trials on this host by state.",
};
/// Trials that are over.
pub const TRIALS_ENDED: Family = Family {
    name: "toll_agent_trials_ended_total",
    kind: Kind::Counter,
    labels: &[Label {
        name: "outcome",
        values: "`measured`, `failed` (a refused one too), `abandoned` (ended by the orchestrator or with the \
                 agent, before there was an outcome)",
    }],
    help: "Trials that ended on this host since the agent began.",
};
/// What runs now.
pub const GOODPUT: Family = Family {
    name: "toll_agent_goodput_bytes_per_second",
    kind: Kind::Gauge,
    labels: &[END, ADAPTER, PAYLOAD],
    help: "Payload bytes per second of the running trial over the last second of its measured interval. Absent \
           while nothing is measured.",
};
/// The denominator of rates.
pub const MEASURED_SECONDS: Family = Family {
    name: "toll_agent_measured_seconds_total",
    kind: Kind::Counter,
    labels: &[END, ADAPTER, PAYLOAD],
    help: "Seconds of measured intervals. Grows when a trial has been measured; what every other counter of \
           traffic and exits here covers.",
};
/// Payload.
pub const PAYLOAD_BYTES: Family = Family {
    name: "toll_agent_payload_bytes_total",
    kind: Kind::Counter,
    labels: &[END, ADAPTER, PAYLOAD],
    help: "Payload bytes that ends sent (as far as their stack accepted them) or received in measured intervals.",
};
/// Frames.
pub const FRAMES: Family = Family {
    name: "toll_agent_frames_total",
    kind: Kind::Counter,
    labels: &[VIRTUAL_END, VIRTUAL_ADAPTER, GUEST_SIDE],
    help: "Ethernet frames that crossed virtual adapters in measured intervals.",
};
/// Their bytes.
pub const FRAME_BYTES: Family = Family {
    name: "toll_agent_frame_bytes_total",
    kind: Kind::Counter,
    labels: &[VIRTUAL_END, VIRTUAL_ADAPTER, GUEST_SIDE],
    help: "Bytes of these frames, with the Ethernet header and without FCS, in measured intervals.",
};
/// Drops.
pub const DROPPED_FRAMES: Family = Family {
    name: "toll_agent_dropped_frames_total",
    kind: Kind::Counter,
    labels: &[VIRTUAL_END, VIRTUAL_ADAPTER, GUEST_SIDE],
    help: "Ethernet frames that the port refused (transmit) or that found no buffer of the guest (receive) in \
           measured intervals.",
};
/// Exits.
pub const EXITS: Family = Family {
    name: "toll_agent_exits_total",
    kind: Kind::Counter,
    labels: &[VIRTUAL_ADAPTER, CAUSE],
    help: "Returns of KVM_RUN to the VMM of guests in measured intervals.",
};
/// What exits took.
pub const EXIT_HANDLING_SECONDS: Family = Family {
    name: "toll_agent_exit_handling_seconds_total",
    kind: Kind::Counter,
    labels: &[VIRTUAL_ADAPTER, CAUSE],
    help: "Seconds from the return of KVM_RUN to the next entry, time asleep left out, in measured intervals.",
};
/// What optimisations spared.
pub const SPARED: Family = Family {
    name: "toll_agent_spared_total",
    kind: Kind::Counter,
    labels: &[
        VIRTUAL_END,
        VIRTUAL_ADAPTER,
        Label {
            name: "what",
            values: "`exits` (accesses of the guest that did not leave the kernel), `looks` (at the port, without a system \
                     call)",
        },
    ],
    help: "What the optimisations of virtual adapters spared in measured intervals.",
};
/// Transmissions of held back frames.
pub const TRANSMISSIONS: Family = Family {
    name: "toll_agent_combined_transmissions_total",
    kind: Kind::Counter,
    labels: &[
        VIRTUAL_END,
        VIRTUAL_ADAPTER,
        Label { name: "frames", values: "how many frames one sent: `1`, `2`, `3`, `4-7`, `8-15`, `16+`" },
    ],
    help: "Transmissions of adapters that combine sends, by how many frames each sent together, in measured intervals.",
};
/// Values of `frames` of [`TRANSMISSIONS`].
pub const TOGETHER: [&str; 6] = ["1", "2", "3", "4-7", "8-15", "16+"];
/// Filtered frames.
pub const FILTERED_FRAMES: Family = Family {
    name: "toll_agent_filtered_frames_total",
    kind: Kind::Counter,
    labels: &[VIRTUAL_END, VIRTUAL_ADAPTER],
    help: "Ethernet frames that came to virtual adapters and that their drivers did not want, in measured intervals.",
};
/// What threads did.
pub const THREAD_TIME_SECONDS: Family = Family {
    name: "toll_agent_thread_time_seconds_total",
    kind: Kind::Counter,
    labels: &[
        VIRTUAL_END,
        VIRTUAL_ADAPTER,
        Label {
            name: "thread",
            values: "`vcpu0` (a guest's vCPU), `payload` (a same-stack program), `io0` (the adapter's own)",
        },
        Label {
            name: "part",
            values: "`guest`, `program`, `adapter`, `port` (the host's kernel), `loop` (between exits), `look` (that found \
                     nothing), `wait` (asleep)",
        },
    ],
    help: "Seconds of measured intervals by what the threads of virtual ends did, by the clock. The parts of a thread add up \
           to the intervals. A part has no series before there was any.",
};
/// CPU time.
pub const CPU_SECONDS: Family = Family {
    name: "toll_agent_cpu_seconds_total",
    kind: Kind::Counter,
    labels: &[END, ADAPTER, PART],
    help: "CPU seconds of the threads that carry an end's traffic, in measured intervals. A part has no series before it \
           has been measured.",
};
/// The denominator of CPU time.
pub const CPU_MEASURED_SECONDS: Family = Family {
    name: "toll_agent_cpu_measured_seconds_total",
    kind: Kind::Counter,
    labels: &[END, ADAPTER, PART],
    help: "Seconds of the measured intervals in which CPU time of this part was measured: what the CPU seconds cover. \
           Ends that iperf3 runs measure none.",
};
/// The connection.
pub const CONNECTED: Family = Family {
    name: "toll_agent_connected",
    kind: Kind::Gauge,
    labels: &[],
    help: "1 while the orchestrator has taken this agent's connection, else 0.",
};
/// How often it was lost.
pub const RECONNECTS: Family = Family {
    name: "toll_agent_reconnects_total",
    kind: Kind::Counter,
    labels: &[],
    help: "Connections to the orchestrator after the first since the agent began.",
};
