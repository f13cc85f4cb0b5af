//! Which received frames the driver wants: receive mode, MAC addresses and VLANs (virtio 1.2, 5.1.6.5.1 to 5.1.6.5.3).
//!
//! ```text
//!  frame -> unwanted VLAN? -> group address: broadcast, all-multicast, table   -> the guest
//!                             its own: the device's, table, all-unicast, promiscuous
//! ```
//! After a reset nothing is kept away, as long as the driver has said nothing: a driver that takes no control queue
//! does its own filtering.

use toll_protocol::units::MacAddress;

/// Bytes of a frame that are looked at: addresses, type, and the tag of a VLAN (IEEE 802.1Q, 9.6).
pub(super) const LOOKED_AT: usize = 16;
/// Where the type stands in a frame.
pub(super) const TAG: usize = 12;
/// Ethernet type of a VLAN tag.
pub(super) const VLAN: [u8; 2] = [0x81, 0x00];
/// VLAN identifiers.
const IDS: usize = 4096;

/// What a VIRTIO_NET_CTRL_RX command turns on or off (5.1.6.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// VIRTIO_NET_CTRL_RX_PROMISC.
    Promiscuous,
    /// VIRTIO_NET_CTRL_RX_ALLMULTI.
    AllMulticast,
    /// VIRTIO_NET_CTRL_RX_ALLUNI.
    AllUnicast,
    /// VIRTIO_NET_CTRL_RX_NOMULTI.
    NoMulticast,
    /// VIRTIO_NET_CTRL_RX_NOUNI.
    NoUnicast,
    /// VIRTIO_NET_CTRL_RX_NOBCAST.
    NoBroadcast,
}

/// Addresses beside the device's own (5.1.6.5.2).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MacTable {
    /// Sorted.
    pub(super) unicast: Vec<MacAddress>,
    /// Sorted.
    pub(super) multicast: Vec<MacAddress>,
}

/// The filter.
#[derive(Debug)]
pub(super) struct Filter {
    modes: [bool; 6],
    table: MacTable,
    /// A bit for each VLAN that is wanted; none at all if the driver has not taken VIRTIO_NET_F_CTRL_VLAN.
    vlans: Option<Box<[u64; IDS / 64]>>,
}

impl Filter {
    /// After a reset; with `vlans` only frames of VLANs that are added, and those without a tag.
    pub(super) fn new(vlans: bool) -> Self {
        let mut modes = [false; 6];
        modes[Mode::Promiscuous as usize] = true;
        Self { modes, table: MacTable::default(), vlans: vlans.then(|| Box::new([0; IDS / 64])) }
    }

    /// Turns a mode on or off.
    pub(super) fn set(&mut self, mode: Mode, on: bool) {
        self.modes[mode as usize] = on;
    }

    /// Replaces the table.
    pub(super) fn set_table(&mut self, table: MacTable) {
        self.table = table;
    }

    /// Wants the VLAN `id`, or no longer. Whether there can be such a one.
    pub(super) fn set_vlan(&mut self, id: u16, wanted: bool) -> bool {
        let (word, bit) = (usize::from(id) / 64, 1_u64 << (id % 64));
        let Some(word) = self.vlans.as_mut().and_then(|vlans| vlans.get_mut(word)) else { return false };
        *word = if wanted { *word | bit } else { *word & !bit };
        true
    }

    fn is(&self, mode: Mode) -> bool {
        self.modes[mode as usize]
    }

    /// Whether no frame is kept away.
    pub(super) fn is_open(&self) -> bool {
        self.vlans.is_none() && self.is(Mode::Promiscuous)
    }

    /// Whether a frame that begins with `head` is addressed to the guest of the address `own`: to it, to an address of its
    /// table, or to a group. A driver without a filter gets those of other stations too, but misses none of them.
    pub(super) fn addresses(&self, head: &[u8; LOOKED_AT], own: MacAddress) -> bool {
        let [a, b, c, d, e, f, ..] = *head;
        let destination = MacAddress([a, b, c, d, e, f]);
        a & 1 != 0 || destination == own || self.table.unicast.binary_search(&destination).is_ok()
    }

    /// Whether a frame that begins with `head` is for the guest of the address `own`. Of a short frame the rest is zero.
    pub(super) fn takes(&self, head: &[u8; LOOKED_AT], own: MacAddress) -> bool {
        let [a, b, c, d, e, f, ..] = *head;
        let destination = MacAddress([a, b, c, d, e, f]);
        if let Some(vlans) = &self.vlans
            && head[TAG..TAG + 2] == VLAN
        {
            let id = u16::from_be_bytes([head[14], head[15]]) & 0x0fff;
            if vlans[usize::from(id) / 64] >> (id % 64) & 1 == 0 {
                return false;
            }
        }
        if self.is(Mode::Promiscuous) {
            return true;
        }
        if destination == MacAddress([0xff; 6]) {
            return !self.is(Mode::NoBroadcast);
        }
        // IEEE 802: the lowest bit of the first byte marks a group address.
        let (all, none, table) = if a & 1 != 0 {
            (Mode::AllMulticast, Mode::NoMulticast, &self.table.multicast)
        } else {
            (Mode::AllUnicast, Mode::NoUnicast, &self.table.unicast)
        };
        !self.is(none) && (self.is(all) || destination == own || table.binary_search(&destination).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

    fn to(destination: [u8; 6]) -> [u8; LOOKED_AT] {
        let mut head = [0; LOOKED_AT];
        head[..6].copy_from_slice(&destination);
        head
    }

    /// Whether frames to its own address, another, a group and all pass.
    fn passes(filter: &Filter) -> [bool; 4] {
        [OWN.0, OTHER, GROUP, [0xff; 6]].map(|destination| filter.takes(&to(destination), OWN))
    }

    #[test]
    fn virtio_1_2_s5_1_6_5_1_modes_let_through_and_keep_away() {
        let mut filter = Filter::new(false);
        assert!(filter.is_open());
        assert_eq!(passes(&filter), [true; 4], "nobody has asked for a filter");
        filter.set(Mode::Promiscuous, false);
        assert!(!filter.is_open());
        assert_eq!(passes(&filter), [true, false, false, true]);
        for (mode, expected) in [
            (Mode::AllMulticast, [true, false, true, true]),
            (Mode::AllUnicast, [true, true, false, true]),
            (Mode::NoUnicast, [false, false, false, true]),
            (Mode::NoBroadcast, [true, false, false, false]),
            (Mode::NoMulticast, [true, false, false, true]),
            (Mode::Promiscuous, [true; 4]),
        ] {
            filter.set(mode, true);
            assert_eq!(passes(&filter), expected, "{mode:?}");
            filter.set(mode, false);
        }
    }

    #[test]
    fn virtio_1_2_s5_1_6_5_2_addresses_of_the_table_pass() {
        let mut filter = Filter::new(false);
        filter.set(Mode::Promiscuous, false);
        let (unicast, multicast) = (vec![MacAddress(OTHER)], vec![MacAddress(GROUP)]);
        filter.set_table(MacTable { unicast, multicast });
        assert_eq!(passes(&filter), [true; 4]);
        filter.set(Mode::NoMulticast, true);
        assert_eq!(passes(&filter), [true, true, false, true]);
        filter.set_table(MacTable::default());
        assert_eq!(passes(&filter), [true, false, false, true]);
    }

    #[test]
    fn virtio_1_2_s5_1_6_5_3_a_tagged_frame_passes_if_its_vlan_was_added() {
        let mut tagged = to(OWN.0);
        // Priority 5, VLAN 4095.
        tagged[12..].copy_from_slice(&[0x81, 0x00, 0xaf, 0xff]);
        assert!(Filter::new(false).takes(&tagged, OWN));
        let mut filter = Filter::new(true);
        assert!(!filter.is_open() && !filter.takes(&tagged, OWN) && filter.takes(&to(OWN.0), OWN));
        assert!(filter.set_vlan(4095, true) && filter.takes(&tagged, OWN));
        assert!(filter.set_vlan(4094, true) && filter.set_vlan(4095, false) && !filter.takes(&tagged, OWN));
        assert!(!filter.set_vlan(4096, true) && !Filter::new(false).set_vlan(1, true));
    }
}
