//! A network interface of this process's network namespace.

use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{SockaddrIn, SockaddrStorage};
use toll_protocol::facts::NicFacts;
use toll_protocol::units::{BitRate, InterfaceAddress};

use crate::facts::ethtool::Interface;

/// Prefixes of the kernel's names (net/ethtool/common.c `netdev_features_strings`) for work that hardware, or one
/// large frame in place of many, takes off the CPU. The other features of that table are no offloads.
const OFFLOADS: [&str; 9] = [
    "tx-checksum-",
    "rx-checksum",
    "tx-scatter-gather",
    "tx-generic-segmentation",
    "tx-tcp",
    "tx-udp-segmentation",
    "tx-udp_tnl",
    "rx-gro",
    "rx-lro",
];

/// What is known of `name`, or `None` if there is no such interface here.
pub fn facts(name: &str) -> Option<NicFacts> {
    let interface = Interface::open(name).ok()?;
    Some(NicFacts {
        name: name.to_owned(),
        mtu: interface.mtu().ok()?,
        driver: interface.driver().ok(),
        speed: interface.speed().ok().flatten().map(|megabits| BitRate(u64::from(megabits) * 1_000_000)),
        address: address(name),
        offloads: interface.features().map(offloads).unwrap_or_default(),
    })
}

fn offloads(mut active: Vec<String>) -> Vec<String> {
    active.retain(|name| OFFLOADS.iter().any(|prefix| name.starts_with(prefix)));
    active
}

/// Its first IPv4 address.
fn address(name: &str) -> Option<InterfaceAddress> {
    let of_name = getifaddrs().ok()?.filter(|entry| entry.interface_name == name);
    of_name.into_iter().find_map(|entry| interface_address(ip(entry.address)?, ip(entry.netmask)?))
}

fn ip(address: Option<SockaddrStorage>) -> Option<Ipv4Addr> {
    address?.as_sockaddr_in().map(SockaddrIn::ip)
}

/// `None` for a mask with holes, or one that leaves no room for hosts: tests can't run in such a network.
fn interface_address(address: Ipv4Addr, mask: Ipv4Addr) -> Option<InterfaceAddress> {
    let bits = u32::from(mask);
    let ones = bits.leading_ones();
    let contiguous = ones == bits.count_ones();
    let prefix = u8::try_from(ones).ok().filter(|prefix| contiguous && (1..=30).contains(prefix))?;
    Some(InterfaceAddress { address, prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_an_interface() {
        let facts = facts("lo").expect("every namespace has it");
        assert!(facts.mtu >= 1_280, "{facts:?}");
        assert_eq!(facts.name, "lo");
        assert!(facts.offloads.iter().any(|name| name == "tx-tcp-segmentation"), "{facts:?}");
        assert!(facts.offloads.iter().all(|name| name != "loopback" && name != "tx-lockless"));
    }

    #[test]
    fn what_is_no_interface_has_no_facts() {
        for name in ["", "no-such-nic", "a-name-longer-than-any", "lo\0", "../lo"] {
            assert_eq!(facts(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_netmask_becomes_a_prefix() {
        let address = Ipv4Addr::new(10, 77, 0, 1);
        let prefix = |mask: [u8; 4]| interface_address(address, mask.into()).map(|address| address.prefix);
        assert_eq!(prefix([255, 255, 255, 0]), Some(24));
        assert_eq!(prefix([255, 255, 255, 252]), Some(30));
        assert_eq!(prefix([255, 0, 255, 0]), None);
        assert_eq!(prefix([255, 255, 255, 255]), None);
        assert_eq!(prefix([0, 0, 0, 0]), None);
    }
}
