//! What adapters can't do, whoever asks: the checks of campaigns, plans, agents and VMMs, each in its own words or in these.

use std::ops::RangeInclusive;

use crate::trial::{Adapter, QueuePairs};

/// MTU of Ethernet in bytes of IP packet (IEEE 802.3), and of a path that says nothing else.
pub const ETHERNET_MTU: u16 = 1500;
/// MTUs of a trial in bytes of IP packet: from what any host takes (RFC 791) to jumbo frames.
pub const MTUS: RangeInclusive<u16> = 576..=9000;

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
    use crate::trial::{PcnetSwitches, VirtioNetSwitches};

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
