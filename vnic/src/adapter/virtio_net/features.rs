//! Feature bits: what the switches offer, and what a driver may take of it (virtio 1.2, 2.2, 5.1.3 and 6).

use toll_protocol::trial::{QueuePairs, VirtioNetSwitches};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use crate::port::Offloads;

/// Bits that need another one (5.1.3.1).
const REQUIREMENTS: [(u32, u32); 10] = [
    (VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_CSUM),
    (VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_CSUM),
    (VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_CSUM),
    (VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_CSUM),
    (VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ),
    (VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ),
    (VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ),
    (VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ),
    // The specification says it of these where their commands are described (5.1.6.5.1, 5.1.6.5.8).
    (VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VQ),
    (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ),
];
/// What VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET may turn on and off (5.1.6.5.8), of what is offered here.
const GUEST_OFFLOADS: u64 =
    1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;

/// A set of feature bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Features(pub(super) u64);

impl Features {
    /// What a device with these switches offers.
    pub(super) fn offered(switches: VirtioNetSwitches) -> Self {
        // What the device joins and cuts up is no business of the driver's.
        let VirtioNetSwitches {
            checksum_offload,
            tso,
            mergeable_buffers,
            event_index,
            control_queue,
            queue_pairs,
            ..
        } = switches;
        let bits = [
            (true, VIRTIO_F_VERSION_1),
            (true, VIRTIO_NET_F_MAC),
            (true, VIRTIO_NET_F_MTU),
            (checksum_offload, VIRTIO_NET_F_CSUM),
            (checksum_offload, VIRTIO_NET_F_GUEST_CSUM),
            (tso, VIRTIO_NET_F_HOST_TSO4),
            (tso, VIRTIO_NET_F_HOST_TSO6),
            (tso, VIRTIO_NET_F_GUEST_TSO4),
            (tso, VIRTIO_NET_F_GUEST_TSO6),
            (mergeable_buffers, VIRTIO_NET_F_MRG_RXBUF),
            (event_index, VIRTIO_RING_F_EVENT_IDX),
            (control_queue, VIRTIO_NET_F_CTRL_VQ),
            (control_queue, VIRTIO_NET_F_CTRL_RX),
            (control_queue, VIRTIO_NET_F_CTRL_RX_EXTRA),
            (control_queue, VIRTIO_NET_F_CTRL_VLAN),
            (control_queue, VIRTIO_NET_F_CTRL_MAC_ADDR),
            (control_queue && checksum_offload, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS),
            (queue_pairs > QueuePairs::ONE, VIRTIO_NET_F_MQ),
        ];
        let on = bits.into_iter().filter(|(on, _)| *on);
        Self(on.map(|(_, bit)| 1_u64 << bit).sum()).with_requirements()
    }

    /// Without the bits that need one which is not there: they must not be offered (2.2.2).
    fn with_requirements(self) -> Self {
        let met =
            |bits: u64, (bit, needed): (u32, u32)| if self.has(needed) { bits } else { bits & !(1 << bit) };
        Self(REQUIREMENTS.into_iter().fold(self.0, met))
    }

    /// Whether bit `bit` is among them.
    pub(super) const fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// Whether a driver may take `chosen` of what these offer: nothing else, VERSION_1, and with each bit the one that
    /// it needs (2.2.2, 6.2).
    pub(super) fn accept(self, chosen: Self) -> bool {
        chosen.0 & !self.0 == 0 && chosen.has(VIRTIO_F_VERSION_1) && chosen == chosen.with_requirements()
    }

    /// Which frames the driver takes unfinished.
    pub(super) const fn receive_offloads(self) -> Offloads {
        Offloads {
            checksum: self.has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: self.has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: self.has(VIRTIO_NET_F_GUEST_TSO6),
        }
    }

    /// With these of the receive offloads that were negotiated, and no other; `None` if one of them was not, or needs one
    /// that is not among them.
    pub(super) fn with_guest_offloads(self, offloads: u64) -> Option<Self> {
        let changed = Self(self.0 & !GUEST_OFFLOADS | offloads);
        let sensible = offloads & !(self.0 & GUEST_OFFLOADS) == 0 && changed == changed.with_requirements();
        sensible.then_some(changed)
    }

    /// Whether there is a control queue (5.1.2).
    pub(super) const fn control(self) -> bool {
        self.has(VIRTIO_NET_F_CTRL_VQ)
    }

    /// Whether there may be several queue pairs (5.1.2).
    pub(super) const fn multiqueue(self) -> bool {
        self.has(VIRTIO_NET_F_MQ)
    }

    /// Whether the driver says which VLANs it wants (5.1.6.5.3).
    pub(super) const fn vlans(self) -> bool {
        self.has(VIRTIO_NET_F_CTRL_VLAN)
    }

    /// Whether a received frame may lie in several chains (5.1.6.3.1).
    pub(super) const fn mergeable(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// Whether notifications go by index and not by flags (2.7.7, 2.7.10).
    pub(super) const fn event_index(self) -> bool {
        self.has(VIRTIO_RING_F_EVENT_IDX)
    }
}
