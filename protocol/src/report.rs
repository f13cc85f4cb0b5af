//! What one end of a trial measured. All figures cover the measured interval only; what could not be measured is
//! `None`, never 0.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cpu::HostCpu;
use crate::facts::NicFacts;
pub use crate::failure::Failure;
use crate::traffic::TrafficReport;
use crate::trial::Direction;
use crate::units::numbers::{self, Seconds};
use crate::units::{Bytes, Span};

/// A reason to read a sample with care (shown beside the figure, stored with it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Flag {
    /// A binary on the data path was built without optimisation.
    DebugBuild,
    /// The end's traffic thread was busy over 95 % of the interval: it, and not the path, set the figure.
    CpuBound,
    /// Goodput was within 5 % of what the link's rate allows.
    LinkBound,
    /// Frames were dropped at the adapter or the port.
    Drops,
    /// The hypervisor below took over 1 % of the host's CPU time (steal).
    Steal,
    /// The thread that carries the end's traffic was runnable and waited for a CPU for over 5 % of the interval.
    CpuWait,
    /// At the receiving end no payload byte arrived for two whole steps of samples (200 ms), or the end itself stood
    /// still.
    Stalled,
    /// The VMM's count of exits and KVM's own count differ.
    ExitCountMismatch,
    /// TCP retransmitted during the interval.
    Retransmits,
    /// For half of the interval or more TCP at this end waited for a window, the peer's or its own send buffer, with no queue on
    /// the path: a larger window would have carried more.
    WindowBound,
    /// What crossed the end's port was captured, which costs a copy and a write of each frame.
    Captured,
    /// The end's wire was made worse, as its arm says.
    Impaired,
}

/// Payload bytes up to a moment of the measured interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// Time since the measured interval began.
    #[serde(rename = "at_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub at: Span,
    /// Payload bytes that this end has sent since then, as in [`EndReport`].
    pub sent_bytes: u64,
    /// Those that it has received.
    pub received_bytes: u64,
}

impl Sample {
    /// Payload bytes of both ways.
    pub const fn bytes(&self) -> u64 {
        self.sent_bytes.saturating_add(self.received_bytes)
    }
}

/// CPU time of one thread over the measured interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ThreadCpu {
    /// The thread's name: `vcpu0`, `control`, `traffic`.
    #[serde(deserialize_with = "crate::bounded::name")]
    pub name: String,
    /// Its CPU time, user and system together (CLOCK_THREAD_CPUTIME_ID).
    #[serde(rename = "total_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub total: Span,
    /// Of that user time, guest code of a vCPU included, in steps of 10 ms.
    #[serde(rename = "user_seconds", with = "numbers")]
    #[schemars(with = "Option<Seconds>")]
    pub user: Option<Span>,
    /// And system time: KVM, and system calls.
    #[serde(rename = "system_seconds", with = "numbers")]
    #[schemars(with = "Option<Seconds>")]
    pub system: Option<Span>,
}

/// What a thread did during a part of the measured interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Inside `KVM_RUN`: guest code, and KVM's own work, with exits that it answers itself.
    Guest,
    /// The payload program of a same-stack end.
    Program,
    /// The adapter's model, with the dispatch of an exit to it.
    Adapter,
    /// System calls of the port: the host's kernel, up to the wire.
    Port,
    /// Between an exit's end and the next entry: interrupts, orders to stop.
    Loop,
    /// Looks at rings and port that found nothing.
    Look,
    /// Asleep: nothing to do.
    Wait,
}

impl Part {
    /// Its name, as it is serialised: a metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Program => "program",
            Self::Adapter => "adapter",
            Self::Port => "port",
            Self::Loop => "loop",
            Self::Look => "look",
            Self::Wait => "wait",
        }
    }
}

/// What a thread did with the measured interval, by the clock: time without a CPU is in the part that it was in. The parts
/// don't overlap, and add up to the interval within 1 %.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ThreadTime {
    /// The thread's name, as in [`ThreadCpu`].
    #[serde(deserialize_with = "crate::bounded::name")]
    pub name: String,
    /// The interval, by another clock than its parts.
    #[serde(rename = "interval_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub interval: Span,
    /// Its parts.
    #[serde(rename = "parts_seconds", with = "numbers")]
    #[schemars(with = "BTreeMap<Part, Seconds>")]
    pub parts: BTreeMap<Part, Span>,
}

impl ThreadTime {
    /// All parts together, of the interval.
    pub fn share(&self) -> f64 {
        let sum: u64 = self.parts.values().map(|part| part.0).fold(0, u64::saturating_add);
        sum as f64 / self.interval.0.max(1) as f64
    }
}

/// A stage of a frame's way through an adapter, in the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// In the guest's ring, held back for others to come: send combining.
    Held,
    /// From the exit, or the beginning of a look of the adapter's thread, until the model looks at the frame: dispatch,
    /// and the frames before it.
    Turn,
    /// Rings and descriptors, up to the call of the port.
    Adapter,
    /// The call of the port: the host's kernel.
    Port,
    /// Header and rings, until the guest may see it.
    Back,
    /// The frames behind it, until the guest goes on or the look is over.
    Resume,
}

impl Stage {
    /// All of them, in the order of time.
    pub const ALL: [Self; 6] = [Self::Held, Self::Turn, Self::Adapter, Self::Port, Self::Back, Self::Resume];

    /// Whether a frame has it for itself: other frames are not in it at the same time.
    pub const fn is_its_own(self) -> bool {
        matches!(self, Self::Adapter | Self::Port | Self::Back)
    }
}

/// The way of one frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FrameWay {
    /// Its number among those of its direction, from 1.
    pub frame: u64,
    /// Its bytes; of frames that crossed the port as one, those of all.
    pub bytes: u64,
    /// Time in each stage.
    #[serde(rename = "stages_seconds", with = "numbers")]
    #[schemars(with = "BTreeMap<Stage, Seconds>")]
    pub stages: BTreeMap<Stage, Span>,
}

impl FrameWay {
    /// All stages together.
    pub fn total(&self) -> Span {
        Span(self.stages.values().map(|span| span.0).fold(0, u64::saturating_add))
    }
}

/// What was noted of the ways of some frames of one direction, drawn at random.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FrameStages {
    /// Frames that were noted, at least one.
    pub noted: u64,
    /// Time of all of them in each stage.
    #[serde(rename = "stages_seconds", with = "numbers")]
    #[schemars(with = "BTreeMap<Stage, Seconds>")]
    pub stages: BTreeMap<Stage, Span>,
    /// One of usual length: the median of some.
    pub usual: FrameWay,
    /// The longest.
    pub slowest: FrameWay,
}

/// An end's CPU time split by who used it. The parts don't overlap; their sum is the CPU time of the end's
/// threads that carry traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CpuSplit {
    /// vCPU thread inside `KVM_RUN`: guest code and KVM's own work. A same-stack end: the payload program.
    #[serde(rename = "guest_seconds", with = "numbers")]
    #[schemars(with = "Option<Seconds>")]
    pub guest: Option<Span>,
    /// VMM outside `KVM_RUN` and outside its port's system calls: device models, dispatch.
    #[serde(rename = "vmm_seconds", with = "numbers")]
    #[schemars(with = "Option<Seconds>")]
    pub vmm: Option<Span>,
    /// Host kernel for this end: system calls of the port (TAP, bridge, wire), or, for a native end, the whole
    /// of its traffic thread.
    #[serde(rename = "host_seconds", with = "numbers")]
    #[schemars(with = "Option<Seconds>")]
    pub host: Option<Span>,
}

/// Exits of one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ExitStat {
    /// How many.
    pub count: u64,
    /// Time from the return of `KVM_RUN` to the next entry, without time asleep.
    #[serde(rename = "handling_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub handling: Span,
}

/// Exits of a guest by cause, and how the count compares with KVM's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ExitReport {
    /// By cause: `pio-write rap`, `pio-read rdp`, `mmio-write queue-notify`, `wait`, `signal`.
    #[serde(deserialize_with = "crate::bounded::map::<_, _, { crate::bounded::MOST_CAUSES }>")]
    pub by_cause: BTreeMap<String, ExitStat>,
    /// Returns of `KVM_RUN` by KVM's own count (`fpu_reload` of `KVM_GET_STATS_FD`), where it is offered.
    pub kvm_userspace: Option<u64>,
    /// All exits by KVM's own count (`exits`), those answered in the kernel too, where it is offered.
    pub kvm_all: Option<u64>,
}

impl ExitReport {
    /// Exits of all causes.
    pub fn total(&self) -> u64 {
        self.by_cause.values().map(|stat| stat.count).sum()
    }
}

/// Frames that crossed an adapter, named from the guest's side: `transmit` is what the guest sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FrameCounters {
    /// Frames the guest sent that the port took.
    pub transmit_frames: u64,
    /// Their bytes, Ethernet header included, FCS not.
    pub transmit_bytes: u64,
    /// Frames the guest sent that the port refused, or took and had no room for.
    pub transmit_drops: u64,
    /// Frames given to the guest.
    pub receive_frames: u64,
    /// Their bytes, Ethernet header included, FCS not.
    pub receive_bytes: u64,
    /// Frames for the guest that found no buffer or no room on an impaired wire, or that its driver may not get: longer than
    /// its MTU, or to be cut up.
    pub receive_drops: u64,
    /// Frames that came and that the driver of a virtio-net does not want: its filter kept them away, or they are another
    /// station's and it may not get them.
    pub receive_filtered: u64,
    /// Interrupts raised by the adapter.
    pub interrupts: u64,
    /// Descriptors or register accesses of the guest that were malformed.
    pub guest_errors: u64,
}

impl FrameCounters {
    /// Frames in the direction of the payload.
    pub const fn of_payload(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Send => self.transmit_frames,
            Direction::Receive => self.receive_frames,
            Direction::Both => self.transmit_frames.saturating_add(self.receive_frames),
        }
    }

    /// What was counted since `earlier`, a former reading of the same counters.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            transmit_frames: self.transmit_frames.saturating_sub(earlier.transmit_frames),
            transmit_bytes: self.transmit_bytes.saturating_sub(earlier.transmit_bytes),
            transmit_drops: self.transmit_drops.saturating_sub(earlier.transmit_drops),
            receive_frames: self.receive_frames.saturating_sub(earlier.receive_frames),
            receive_bytes: self.receive_bytes.saturating_sub(earlier.receive_bytes),
            receive_drops: self.receive_drops.saturating_sub(earlier.receive_drops),
            receive_filtered: self.receive_filtered.saturating_sub(earlier.receive_filtered),
            interrupts: self.interrupts.saturating_sub(earlier.interrupts),
            guest_errors: self.guest_errors.saturating_sub(earlier.guest_errors),
        }
    }
}

/// What optimisations of an adapter spared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Spared {
    /// Accesses of the guest that did not leave the kernel.
    pub exits: u64,
    /// Transmissions that sent 1, 2, 3, 4 to 7, 8 to 15, 16 and more frames together.
    #[serde(with = "together")]
    #[schemars(with = "together::Transmissions")]
    pub combined: [u64; 6],
    /// Looks at the port that needed no system call.
    pub looks: u64,
}

/// Transmissions by how many frames they sent, each number with its name.
mod together {
    use schemars::JsonSchema;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// How many transmissions sent so many frames together.
    #[derive(Serialize, Deserialize, JsonSchema)]
    pub struct Transmissions {
        #[serde(rename = "1")]
        one: u64,
        #[serde(rename = "2")]
        two: u64,
        #[serde(rename = "3")]
        three: u64,
        #[serde(rename = "4-7")]
        from_4: u64,
        #[serde(rename = "8-15")]
        from_8: u64,
        #[serde(rename = "16+")]
        from_16: u64,
    }

    pub fn serialize<S: Serializer>(counts: &[u64; 6], serializer: S) -> Result<S::Ok, S::Error> {
        let [one, two, three, from_4, from_8, from_16] = *counts;
        Transmissions { one, two, three, from_4, from_8, from_16 }.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u64; 6], D::Error> {
        let Transmissions { one, two, three, from_4, from_8, from_16 } =
            Transmissions::deserialize(deserializer)?;
        Ok([one, two, three, from_4, from_8, from_16])
    }
}

impl Spared {
    /// What was spared since `earlier`, a former reading.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut combined = self.combined;
        combined.iter_mut().zip(earlier.combined).for_each(|(now, before)| *now = now.saturating_sub(before));
        Self {
            exits: self.exits.saturating_sub(earlier.exits),
            combined,
            looks: self.looks.saturating_sub(earlier.looks),
        }
    }
}

/// What one end measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndReport {
    /// Payload bytes that this end's stack accepted from its application.
    pub sent_bytes: u64,
    /// Payload bytes that this end's application received.
    pub received_bytes: u64,
    /// What only this kind of traffic has.
    pub traffic: TrafficReport,
    /// Length of the measured interval by this end's clock.
    #[serde(rename = "interval_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub interval: Span,
    /// Bytes every 100 ms.
    #[serde(deserialize_with = "crate::bounded::list::<_, _, { crate::bounded::MOST_SAMPLES }>")]
    pub samples: Vec<Sample>,
    /// CPU time by thread.
    #[serde(deserialize_with = "crate::bounded::list::<_, _, { crate::bounded::MOST_THREADS }>")]
    pub threads: Vec<ThreadCpu>,
    /// What the threads of a virtual end did with the interval.
    #[serde(deserialize_with = "crate::bounded::list::<_, _, { crate::bounded::MOST_THREADS }>")]
    pub times: Vec<ThreadTime>,
    /// The ways of frames that a virtual end sent; nothing if none was noted.
    pub transmit_stages: Option<FrameStages>,
    /// The ways of frames that it received.
    pub receive_stages: Option<FrameStages>,
    /// CPU time of the whole host.
    pub host_cpu: Option<HostCpu>,
    /// CPU time by who used it.
    pub cpu: CpuSplit,
    /// Exits of a guest.
    pub exits: Option<ExitReport>,
    /// Frames of a virtual adapter.
    pub frames: Option<FrameCounters>,
    /// What the adapter's optimisations spared; nothing for an end without any.
    pub spared: Option<Spared>,
    /// From the creation of the guest to the first frame that its driver sent.
    #[serde(rename = "start_to_first_frame_seconds", with = "numbers")]
    #[schemars(with = "Option<Seconds>")]
    pub start_to_first_frame: Option<Span>,
    /// Memory that a virtual end took beside its guest's own while it was idle, before its start: pages of its
    /// process that are no file's.
    #[serde(rename = "overhead_bytes", with = "numbers")]
    #[schemars(with = "Option<u64>")]
    pub overhead: Option<Bytes>,
    /// The host's test NIC when the end was prepared, as its agent found it; nothing for an end that is not on its wire.
    pub nic: Option<NicFacts>,
    /// Reasons for care.
    #[serde(deserialize_with = "crate::bounded::list::<_, _, { crate::bounded::MOST_FLAGS }>")]
    pub flags: Vec<Flag>,
}

impl EndReport {
    /// A report of `interval`, in which no payload moved and nothing else was measured: whoever makes one says what was.
    pub fn new(traffic: TrafficReport, interval: Span) -> Self {
        Self {
            sent_bytes: 0,
            received_bytes: 0,
            traffic,
            interval,
            samples: Vec::new(),
            threads: Vec::new(),
            times: Vec::new(),
            transmit_stages: None,
            receive_stages: None,
            host_cpu: None,
            cpu: CpuSplit::default(),
            exits: None,
            frames: None,
            spared: None,
            start_to_first_frame: None,
            overhead: None,
            nic: None,
            flags: Vec::new(),
        }
    }

    /// Frames of its adapter in the direction of the payload.
    pub fn payload_frames(&self, direction: Direction) -> Option<u64> {
        self.frames.map(|frames| frames.of_payload(direction))
    }

    /// Payload bytes of both ways.
    pub const fn bytes(&self) -> u64 {
        self.sent_bytes.saturating_add(self.received_bytes)
    }
}
