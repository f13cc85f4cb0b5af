//! Which addresses are of an interface's network.

use std::net::Ipv4Addr;

use super::{AddressRange, InterfaceAddress};

impl InterfaceAddress {
    /// The bits of an address that count the network's hosts.
    fn hosts(self) -> u32 {
        u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)
    }

    /// Whether `address` is of the interface's network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (u32::from(self.address) ^ u32::from(address)) & !self.hosts() == 0
    }

    /// Whether `address` is one that a host of the network may have: neither its first nor its last (RFC 1122, 3.2.1.3).
    pub fn is_host(self, address: Ipv4Addr) -> bool {
        let host = u32::from(address) & self.hosts();
        self.contains(address) && host != 0 && host != self.hosts()
    }

    /// The addresses of `range` that hosts of the network may have, if there are any.
    pub fn hosts_within(self, range: AddressRange) -> Option<AddressRange> {
        let network = u32::from(self.address) & !self.hosts();
        let first = range.first.max(network.checked_add(1)?.into());
        let last = range.last.min((network | self.hosts()).checked_sub(1)?.into());
        (first <= last).then_some(AddressRange { first, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_hosts_between_its_first_and_its_last_address() {
        let interface: InterfaceAddress = "10.77.0.5/30".parse().expect("an address");
        let of = |last: u8| {
            let address = Ipv4Addr::new(10, 77, 0, last);
            (interface.contains(address), interface.is_host(address))
        };
        assert_eq!(
            [3, 4, 5, 6, 7, 8].map(of),
            [(false, false), (true, false), (true, true), (true, true), (true, false), (false, false)]
        );
        // What no text of one says: nobody else is on such a network.
        let alone = InterfaceAddress { prefix: 32, ..interface };
        assert!(alone.contains(interface.address) && !alone.is_host(interface.address));
        let within = |interface: InterfaceAddress, range: &str| {
            let range = interface.hosts_within(range.parse().expect("a range"));
            range.map(|range| range.to_string())
        };
        assert_eq!(within(interface, "10.0.0.0-10.77.1.0").as_deref(), Some("10.77.0.5-10.77.0.6"));
        assert_eq!(within(interface, "10.77.0.6-10.77.0.9").as_deref(), Some("10.77.0.6"));
        assert_eq!(within(interface, "10.77.0.7-10.77.0.9"), None);
        assert_eq!(within(alone, "0.0.0.0-255.255.255.255"), None);
    }
}
