//! Virtual Ethernet adapters and the switches of their optimisations, and what they can't do, whoever asks: the checks of
//! campaigns, plans, agents and VMMs, each in its own words or in these.

use std::fmt;
use std::ops::RangeInclusive;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::units::Span;
use crate::units::numbers::{self, Seconds};

/// MTU of Ethernet in bytes of IP packet (IEEE 802.3), and of a path that says nothing else.
pub const ETHERNET_MTU: u16 = 1500;
/// MTUs of a trial in bytes of IP packet: from what any host takes (RFC 791) to jumbo frames.
pub const MTUS: RangeInclusive<u16> = 576..=9000;

/// A virtual Ethernet adapter and the switches of its optimisations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Adapter {
    /// AMD Am79C970A: registers and rings of 2001.
    Pcnet(PcnetSwitches),
    /// virtio 1.2 network device over MMIO: rings in shared memory.
    VirtioNet(VirtioNetSwitches),
}

/// The adapter's name, without its switches: a metric label.
impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcnet(_) => "pcnet",
            Self::VirtioNet(_) => "virtio-net",
        })
    }
}

impl Adapter {
    /// The field of a manifest's adapter that it is written in.
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Pcnet(_) => "pcnet",
            Self::VirtioNet(_) => "virtioNet",
        }
    }

    /// Whether a thread of its own looks after it.
    pub const fn has_thread(&self) -> bool {
        matches!(self, Self::VirtioNet(VirtioNetSwitches { io_thread: true, .. }))
    }

    /// Whether frames cross its port with a `virtio_net_hdr` before them.
    pub const fn offloads(&self) -> bool {
        matches!(self, Self::VirtioNet(switches) if switches.offloads())
    }

    /// How many pairs of a receive and a transmit queue it has.
    pub const fn queue_pairs(&self) -> QueuePairs {
        match self {
            Self::Pcnet(_) => QueuePairs::ONE,
            Self::VirtioNet(switches) => switches.queue_pairs,
        }
    }

    /// Names of the switches that are on, as a campaign writes them.
    pub fn switches(&self) -> Vec<&'static str> {
        match self {
            Self::Pcnet(switches) => switches.names(),
            Self::VirtioNet(switches) => switches.names(),
        }
    }
}

/// The three optimisations of the 2001 paper (Sugerman, Venkitachalam, Lim, USENIX 2001). All off: every register access of
/// the driver exits, and does at once what it asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PcnetSwitches {
    /// Accesses that need nothing of the host don't leave the kernel: writes of the address register are collected there
    /// (KVM_CAP_COALESCED_PIO), and done in their order before anything that can observe them.
    pub io_in_kernel: bool,
    /// While the guest exits often, frames that it sends wait for each other in its ring.
    pub send_combining: Option<SendCombining>,
    /// Whether frames have come is seen in memory shared with the kernel, instead of by a system call after each access.
    pub irq_notification: bool,
}

/// How sends are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendCombining {
    /// Frames that may wait: with the last of so many all are sent.
    pub threshold: u32,
    /// Exits a second from which on frames wait.
    pub rate: u32,
    /// Period of the counter of exits, and the longest time that a frame waits.
    #[serde(rename = "tick_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub tick: Span,
}

impl Default for SendCombining {
    /// The threshold and the host's clock tick (100 Hz) of the paper; a rate that any guest has which sends.
    fn default() -> Self {
        Self { threshold: 3, rate: 1000, tick: Span::from_millis(10) }
    }
}

impl PcnetSwitches {
    /// All off.
    pub const OFF: Self = Self { io_in_kernel: false, send_combining: None, irq_notification: false };

    fn names(self) -> Vec<&'static str> {
        let Self { io_in_kernel, send_combining, irq_notification } = self;
        let all = [
            (io_in_kernel, "ioInKernel"),
            (send_combining.is_some(), "sendCombining"),
            (irq_notification, "irqNotification"),
        ];
        all.into_iter().filter_map(|(on, name)| on.then_some(name)).collect()
    }
}

/// Optimisations of `virtio-net`; clauses are those of virtio 1.2. All off: frames whole, checksums in software.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VirtioNetSwitches {
    /// TCP checksums are left to the host, both ways: VIRTIO_NET_F_CSUM and VIRTIO_NET_F_GUEST_CSUM (5.1.3).
    pub checksum_offload: bool,
    /// TCP segments of up to 64 KiB cross the adapter, both ways: VIRTIO_NET_F_HOST_TSO4, _HOST_TSO6, _GUEST_TSO4 and
    /// _GUEST_TSO6. Needs `checksum_offload` (5.1.3.1).
    pub tso: bool,
    /// A received frame may lie in several buffers: VIRTIO_NET_F_MRG_RXBUF (5.1.6.3.1).
    pub mergeable_buffers: bool,
    /// Each side says from which buffer on it wants to be notified: VIRTIO_F_EVENT_IDX (2.7.7.2, 2.7.10).
    pub event_index: bool,
    /// The VMM joins segments of one flow that follow each other into one that the host's stack takes whole, and cuts up
    /// on the other way what the host's stack has joined: the guest knows nothing of it.
    pub segment_combining: bool,
    /// A thread of its own moves the frames, woken by notifications that KVM answers itself (KVM_IOEVENTFD), so that the
    /// guest goes on meanwhile.
    pub io_thread: bool,
    /// The driver says what it wants to receive: VIRTIO_NET_F_CTRL_VQ and what is commanded by it (5.1.6.5).
    pub control_queue: bool,
    /// Pairs of a receive and a transmit queue: VIRTIO_NET_F_MQ (5.1.2). More than one need `control_queue` (5.1.3.1).
    pub queue_pairs: QueuePairs,
}

/// A number of queue pairs, from 1 to [`MAX`](Self::MAX).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct QueuePairs(u8);

impl QueuePairs {
    /// One.
    pub const ONE: Self = Self(1);
    /// Most.
    pub const MAX: u32 = 8;

    /// So many, if there can be.
    pub fn new(count: u32) -> Option<Self> {
        u8::try_from(count).ok().filter(|_| (1..=Self::MAX).contains(&count)).map(Self)
    }

    /// How many.
    pub const fn count(self) -> usize {
        self.0 as usize
    }

    /// The switch that makes it so many; none for one.
    const fn name(self) -> Option<&'static str> {
        match self.0 {
            2 => Some("queuePairs: 2"),
            3 => Some("queuePairs: 3"),
            4 => Some("queuePairs: 4"),
            5 => Some("queuePairs: 5"),
            6 => Some("queuePairs: 6"),
            7 => Some("queuePairs: 7"),
            8 => Some("queuePairs: 8"),
            _ => None,
        }
    }
}

impl Default for QueuePairs {
    fn default() -> Self {
        Self::ONE
    }
}

impl TryFrom<u32> for QueuePairs {
    type Error = String;
    fn try_from(count: u32) -> Result<Self, String> {
        Self::new(count).ok_or_else(|| format!("{count} queue pairs: there are 1 to {}", Self::MAX))
    }
}

impl From<QueuePairs> for u32 {
    fn from(pairs: QueuePairs) -> Self {
        pairs.0.into()
    }
}

impl JsonSchema for QueuePairs {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "QueuePairs".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"description": "Queue pairs.", "type": "integer", "minimum": 1, "maximum": Self::MAX})
    }
}

impl VirtioNetSwitches {
    /// All off.
    pub const OFF: Self = Self {
        checksum_offload: false,
        tso: false,
        mergeable_buffers: false,
        event_index: false,
        segment_combining: false,
        io_thread: false,
        control_queue: false,
        queue_pairs: QueuePairs::ONE,
    };

    /// Whether frames cross the port with a `virtio_net_hdr` before them.
    pub const fn offloads(self) -> bool {
        self.checksum_offload || self.tso || self.segment_combining
    }

    fn names(self) -> Vec<&'static str> {
        let Self {
            checksum_offload,
            tso,
            mergeable_buffers,
            event_index,
            segment_combining,
            io_thread,
            control_queue,
            queue_pairs,
        } = self;
        let all = [
            (checksum_offload, "checksumOffload"),
            (tso, "tso"),
            (mergeable_buffers, "mergeableBuffers"),
            (event_index, "eventIndex"),
            (segment_combining, "segmentCombining"),
            (io_thread, "ioThread"),
            (control_queue, "controlQueue"),
        ];
        let on = all.into_iter().filter_map(|(on, name)| on.then_some(name));
        on.chain(queue_pairs.name()).collect()
    }
}

/// Switches of an adapter that need another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// VIRTIO_NET_F_HOST_TSO4 requires VIRTIO_NET_F_CSUM.
    #[error("needs the checksum offload (virtio 1.2, 5.1.3.1): write `checksumOffload: true, tso: true`")]
    Segmentation,
    /// VIRTIO_NET_F_MQ requires VIRTIO_NET_F_CTRL_VQ.
    #[error("more than one need the control queue (virtio 1.2, 5.1.3.1): write `controlQueue: true` too")]
    QueuePairs,
}

impl Conflict {
    /// The switch, as a campaign writes it.
    pub const fn switch(self) -> &'static str {
        match self {
            Self::Segmentation => "tso",
            Self::QueuePairs => "queuePairs",
        }
    }
}

impl Adapter {
    /// MTUs that its frames can carry. pcnet is an Ethernet chip: its frames have 1518 bytes with FCS.
    pub const fn mtus(&self) -> RangeInclusive<u16> {
        match self {
            Self::Pcnet(_) => *MTUS.start()..=ETHERNET_MTU,
            Self::VirtioNet(_) => MTUS,
        }
    }

    /// Its switches that lack another.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let Self::VirtioNet(switches) = self else { return Vec::new() };
        let all = [
            (switches.tso && !switches.checksum_offload, Conflict::Segmentation),
            (switches.queue_pairs > QueuePairs::ONE && !switches.control_queue, Conflict::QueuePairs),
        ];
        all.into_iter().filter_map(|(lacks, conflict)| lacks.then_some(conflict)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_told_that_lacks_another() {
        let conflicts = |switches| Adapter::VirtioNet(switches).conflicts();
        let (off, two) = (VirtioNetSwitches::OFF, QueuePairs::new(2).expect("is in range"));
        assert_eq!(conflicts(off), []);
        let tso = VirtioNetSwitches { tso: true, ..off };
        assert_eq!(conflicts(tso), [Conflict::Segmentation]);
        assert_eq!(conflicts(VirtioNetSwitches { checksum_offload: true, ..tso }), []);
        let pairs = VirtioNetSwitches { queue_pairs: two, ..tso };
        assert_eq!(conflicts(pairs), [Conflict::Segmentation, Conflict::QueuePairs]);
        assert_eq!(conflicts(pairs)[1].switch(), "queuePairs");
        assert_eq!(conflicts(VirtioNetSwitches { queue_pairs: two, control_queue: true, ..off }), []);
    }

    #[test]
    fn jumbo_frames_are_not_the_pcnets() {
        assert_eq!(Adapter::Pcnet(PcnetSwitches::OFF).mtus(), 576..=1500);
        assert_eq!(Adapter::VirtioNet(VirtioNetSwitches::OFF).mtus(), 576..=9000);
    }
}
