//! What is read at each end of the measured interval.

use std::time::Duration;

use toll_protocol::cpu::ThreadTimes;
use toll_protocol::report::{FrameCounters, Spared};
use toll_vnic::stages::Noted;

use crate::clock::Timebase;
use crate::exits::Exits;
use crate::io_thread::IoTicks;
use crate::kvm::KvmCounts;

/// Counters at a moment, read by the thread that runs the program.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The moment.
    pub at: Timebase,
    /// CPU time of the program's thread.
    pub cpu: Option<Duration>,
    /// CPU time of the control thread.
    pub control_cpu: Option<Duration>,
    /// CPU time of the adapter's own thread, and what it did with its time.
    pub io: Option<(Option<Duration>, IoTicks)>,
    /// Ticks that the program's thread was asleep.
    pub asleep_ticks: u64,
    /// Ticks between the end of an exit and the next entry.
    pub loop_ticks: u64,
    /// How long the program's thread has been runnable without a CPU.
    pub run_delay: Option<Duration>,
    /// Its user and system time.
    pub thread: Option<ThreadTimes>,
    /// The same of the adapter's own thread.
    pub io_thread: Option<ThreadTimes>,
    /// Ticks in the program: inside `KVM_RUN`, or outside of the model for a host process.
    pub program_ticks: u64,
    /// Ticks in the VMM's model of the machine, time asleep left out, the port's system calls included.
    pub model_ticks: u64,
    /// Ticks in calls of the port.
    pub port_ticks: u64,
    /// What was noted of frames sent and received since the interval began.
    pub noted: [Noted; 2],
    /// Segments that the program's stack has sent more than once, as it says.
    pub retransmits: u32,
    /// Time that its flows waited for a window of TCP, all together, as it says, in nanoseconds.
    pub window_bound_ns: u64,
    /// Frames.
    pub frames: FrameCounters,
    /// What optimisations spared; `None` without any.
    pub spared: Option<Spared>,
    /// Exits of a guest, and KVM's own counts.
    pub exits: Option<(Exits, KvmCounts)>,
}
