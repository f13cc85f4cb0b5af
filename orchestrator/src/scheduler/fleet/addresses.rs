//! Addresses that somebody has, and the first ones that nobody has. Pure.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use toll_protocol::units::{AddressRange, InterfaceAddress};

use super::{Fleet, FleetHost, HostIndex};

/// Addresses by how many have them. All hosts of a plan get theirs from one of these: what they cost together grows with
/// their number, and not with its square, however their ranges overlap.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    taken: HashMap<u32, usize>,
    /// Where to look on from a taken address, as far as anybody has looked. Past the last address there is a number that is none.
    next: HashMap<u32, u64>,
}

impl Addresses {
    /// Somebody has this address.
    pub fn take(&mut self, address: Ipv4Addr) {
        *self.taken.entry(address.to_bits()).or_default() += 1;
    }

    /// One who had it has it no more. Before any [`first`](Self::first), which looks at no run of taken addresses twice.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        if let Some(count) = self.taken.get_mut(&address.to_bits()) {
            *count -= 1;
            if *count == 0 {
                self.taken.remove(&address.to_bits());
            }
        }
    }

    /// Whether one has it, and nobody else.
    pub fn is_taken_once(&self, address: Ipv4Addr) -> bool {
        self.taken.get(&address.to_bits()) == Some(&1)
    }

    /// Takes the first address of `range` that nobody has.
    pub fn first(&mut self, range: AddressRange) -> Option<Ipv4Addr> {
        let (mut passed, mut at) = (Vec::new(), u64::from(range.first.to_bits()));
        while let Ok(address) = u32::try_from(at)
            && self.taken.contains_key(&address)
        {
            passed.push(address);
            at = self.next.get(&address).copied().unwrap_or(at + 1);
        }
        self.next.extend(passed.into_iter().map(|address| (address, at)));
        let address = Ipv4Addr::from_bits(u32::try_from(at).ok()?);
        if !range.contains(address) {
            return None;
        }
        self.take(address);
        Some(address)
    }
}

impl Fleet {
    /// Gives hosts addresses for guests: each the first of its range that nobody has. One keeps its own while it may.
    pub(super) fn give_addresses(&mut self, hosts: &[HostIndex]) {
        let mut addresses = Addresses::default();
        for host in &self.hosts {
            let nic = host.facts.as_ref().and_then(|facts| facts.nic.as_ref()?.address);
            [nic, host.guest_address].into_iter().flatten().for_each(|taken| addresses.take(taken.address));
        }
        // Addresses of the NIC's network: an agent that names others would send its peers elsewhere.
        let range = |host: &FleetHost| {
            let facts = host.facts.as_ref()?;
            let nic = facts.nic.as_ref()?.address?;
            Some((nic.hosts_within(facts.guest_addresses?), nic.prefix))
        };
        // What is given back is given back before anything is given.
        for index in hosts {
            let host = &mut self.hosts[*index];
            let (Some((range, prefix)), Some(own)) = (range(host), host.guest_address) else { continue };
            let keeps = range.is_some_and(|range| range.contains(own.address))
                && addresses.is_taken_once(own.address);
            if !keeps {
                addresses.give_back(own.address);
            }
            host.guest_address = keeps.then_some(InterfaceAddress { prefix, ..own });
        }
        for index in hosts {
            let host = &mut self.hosts[*index];
            if let (Some((Some(range), prefix)), None) = (range(host), host.guest_address) {
                host.guest_address =
                    addresses.first(range).map(|address| InterfaceAddress { address, prefix });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> AddressRange {
        text.parse().expect("a range")
    }

    #[test]
    fn the_first_free_address_of_each_range_is_given_once() {
        let mut addresses = Addresses::default();
        addresses.take([10, 0, 0, 2].into());
        let mut given = Vec::new();
        for text in ["10.0.0.1-10.0.0.4", "10.0.0.2-10.0.0.3", "10.0.0.1-10.0.0.4", "10.0.0.1-10.0.0.4"] {
            given.push(addresses.first(range(text)).map(|address| address.octets()[3]));
        }
        assert_eq!(given, [Some(1), Some(3), Some(4), None]);
        let last = range("255.255.255.255");
        assert_eq!(addresses.first(last), Some(Ipv4Addr::BROADCAST));
        assert_eq!(addresses.first(last), None);
    }

    #[test]
    fn what_nobody_has_any_more_is_given_again() {
        let mut addresses = Addresses::default();
        let address = [10, 0, 0, 1].into();
        addresses.take(address);
        addresses.take(address);
        addresses.give_back(address);
        assert!(addresses.is_taken_once(address));
        assert_eq!(addresses.first(range("10.0.0.1")), None);
        let mut addresses = Addresses::default();
        addresses.take(address);
        addresses.give_back(address);
        assert_eq!(addresses.first(range("10.0.0.1")), Some(address));
    }
}
