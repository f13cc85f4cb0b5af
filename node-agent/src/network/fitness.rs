//! Whether a NIC and the guests' addresses are fit for trials, and if not, why and what to do. Pure: links in,
//! sentences out.

use std::net::Ipv4Addr;

use toll_protocol::facts::Wire;
use toll_protocol::units::{AddressRange, InterfaceAddress};

use super::links::{Kind, Link};

/// What keeps the NIC from being used for such a wire whatever state it is in, as the end of the sentence `network
/// interface NAME ...`.
pub(super) fn of_kind(nic: &Link, all: &[Link], wire: Wire) -> Option<String> {
    let controller = nic.controller.map(|index| {
        let controller = all.iter().find(|link| link.index == index);
        controller.map_or_else(|| "another interface".to_owned(), |link| link.name.clone())
    });
    match (wire, nic.kind) {
        (Wire::Exclusive | Wire::Macvtap, Kind::Loopback) => {
            Some("is the loopback interface, which leads to no other host: name a NIC".to_owned())
        }
        (Wire::Bridge, Kind::Bridge { .. }) => None,
        (Wire::Bridge, _) => Some(match controller {
            Some(controller) => format!("is no bridge but a port of {controller}: name that with --nic"),
            None => "is no bridge: name a bridge of this host, or use --wire macvtap".to_owned(),
        }),
        (Wire::Exclusive | Wire::Macvtap, _) if controller.is_some() => {
            let controller = controller.unwrap_or_default();
            Some(match wire {
                Wire::Exclusive => {
                    format!("is a port of {controller} already: the agent needs a NIC of its own")
                }
                _ => format!(
                    "is a port of {controller}, which takes all its frames: name {controller}, with --wire bridge if \
                     it is one"
                ),
            })
        }
        (Wire::Exclusive | Wire::Macvtap, Kind::Bridge { .. }) => {
            Some("is a bridge: use --wire bridge".to_owned())
        }
        (Wire::Macvtap, Kind::Macvlan | Kind::Macvtap) => {
            Some("is a macvlan itself, which can't carry another: name the NIC below it".to_owned())
        }
        (Wire::Exclusive | Wire::Macvtap, _) => None,
    }
}

/// What keeps the NIC from carrying a trial of this MTU now.
pub(super) fn of_state(nic: &Link, all: &[Link], wire: Wire, mtu: u16) -> Option<String> {
    if nic.up && wire == Wire::Bridge && all.iter().all(|link| link.controller != Some(nic.index)) {
        return Some("has no port, so it leads nowhere: put a NIC on it".to_owned());
    }
    if let Some(why) = of_cable(nic) {
        return Some(why);
    }
    if let Some(why) = of_mtu(nic, mtu) {
        return Some(why);
    }
    match (wire, nic.kind) {
        (Wire::Bridge, Kind::Bridge { forward_delay }) if forward_delay > 0 => Some(format!(
            "runs a spanning tree, and a new port of it carries nothing for {} s: switch the tree off",
            f64::from(forward_delay) / 50.0
        )),
        _ => None,
    }
}

/// What keeps packets of this MTU from the NIC.
pub(super) fn of_mtu(nic: &Link, mtu: u16) -> Option<String> {
    (nic.mtu < u32::from(mtu)).then(|| {
        format!(
            "has an MTU of {} bytes and the trial asks for {mtu}: set it, or let the campaign's `hosts` say `mtu: {}`",
            nic.mtu, nic.mtu
        )
    })
}

/// What keeps any frame from the wire.
pub(super) fn of_cable(nic: &Link) -> Option<String> {
    let why = match (nic.up, nic.carrier) {
        (true, true) => return None,
        (true, false) => "has no carrier: plug its cable in, or set the other end up",
        (false, _) => "is down: set it up",
    };
    Some(why.to_owned())
}

/// What putting the NIC on a bridge would change of it for good: a bridge switches large receive offload off
/// (net/bridge/br_if.c, `br_add_if`) and nothing switches it on again.
pub(super) fn of_features(nic: &str, active: &[String]) -> Option<String> {
    active.iter().any(|feature| feature == "rx-lro").then(|| {
        format!(
            "has large receive offload (rx-lro) on, which a bridge would switch off and not on again: switch it off \
             yourself (`ethtool -K {nic} lro off`), or use --wire macvtap"
        )
    })
}

/// What keeps guests from having these addresses on the network of a NIC that has this one.
pub(super) fn of_guests(range: AddressRange, nic: Option<InterfaceAddress>) -> Option<String> {
    let Some(nic) = nic else {
        return Some("it has no IPv4 address, so its network is not known: give it one".to_owned());
    };
    let InterfaceAddress { address, prefix } = nic;
    if !(1..=30).contains(&prefix) {
        return Some(format!("its address {nic} leaves no room for others"));
    }
    let hosts = u32::MAX >> prefix;
    let network = Ipv4Addr::from(u32::from(address) & !hosts);
    let broadcast = Ipv4Addr::from(u32::from(address) | hosts);
    let inside = AddressRange { first: network, last: broadcast };
    if !inside.contains(range.first) || !inside.contains(range.last) {
        return Some(format!("its network is {network}/{prefix}: choose addresses of that"));
    }
    for (forbidden, what) in [
        (address, "the interface's own address"),
        (network, "the address of its network"),
        (broadcast, "its broadcast address"),
    ] {
        if range.contains(forbidden) {
            return Some(format!("{forbidden} is {what}: leave it out"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(kind: Kind) -> Link {
        let name = "nic0".to_owned();
        Link { index: 2, name, alias: None, mtu: 1500, controller: None, up: true, carrier: true, kind }
    }

    const BRIDGE: Kind = Kind::Bridge { forward_delay: 0 };

    #[test]
    fn each_wire_takes_the_nics_that_can_carry_it() {
        let why = |kind, wire| of_kind(&nic(kind), &[], wire).unwrap_or_default();
        for (kind, wire) in
            [(Kind::Other, Wire::Macvtap), (Kind::Other, Wire::Exclusive), (BRIDGE, Wire::Bridge)]
        {
            assert_eq!(why(kind, wire), "", "{kind:?} {wire}");
        }
        assert!(why(BRIDGE, Wire::Macvtap).contains("use --wire bridge"));
        assert!(why(BRIDGE, Wire::Exclusive).contains("use --wire bridge"));
        assert!(why(Kind::Macvlan, Wire::Macvtap).contains("name the NIC below it"));
        assert!(why(Kind::Macvtap, Wire::Macvtap).contains("macvlan itself"));
        assert!(why(Kind::Loopback, Wire::Macvtap).contains("loopback"));
        assert!(why(Kind::Other, Wire::Bridge).contains("use --wire macvtap"));
    }

    #[test]
    fn a_port_of_a_bridge_is_refused_and_the_bridge_named() {
        let port = Link { controller: Some(7), ..nic(Kind::Other) };
        let all = [Link { index: 7, name: "br0".to_owned(), ..nic(BRIDGE) }];
        for wire in [Wire::Macvtap, Wire::Bridge, Wire::Exclusive] {
            let why = of_kind(&port, &all, wire).expect("refused");
            assert!(why.contains("a port of br0"), "{wire}: {why}");
        }
    }

    #[test]
    fn the_state_of_a_nic_is_looked_at() {
        let why = |nic: &Link, wire, mtu| {
            let port = Link { index: 9, controller: Some(nic.index), ..self::nic(Kind::Other) };
            of_state(nic, &[port], wire, mtu).unwrap_or_default()
        };
        assert_eq!(why(&nic(Kind::Other), Wire::Macvtap, 1500), "");
        assert_eq!(why(&nic(BRIDGE), Wire::Bridge, 1500), "");
        let down = Link { up: false, ..nic(Kind::Other) };
        assert_eq!(why(&down, Wire::Macvtap, 1500), "is down: set it up");
        for (kind, wire) in
            [(Kind::Other, Wire::Macvtap), (Kind::Other, Wire::Exclusive), (BRIDGE, Wire::Bridge)]
        {
            let unplugged = Link { carrier: false, ..nic(kind) };
            assert!(why(&unplugged, wire, 1500).starts_with("has no carrier: "), "{wire}");
        }
        assert!(why(&nic(BRIDGE), Wire::Bridge, 9000).contains("1500"));
        let slow = nic(Kind::Bridge { forward_delay: 1500 });
        // The bridge's forward delay can't be set to 0 while it runs a spanning tree (net/bridge/br_stp.c).
        let slow = why(&slow, Wire::Bridge, 1500);
        assert!(slow.contains("for 30 s") && slow.ends_with(": switch the tree off"), "{slow}");
        let empty = of_state(&nic(BRIDGE), &[nic(BRIDGE)], Wire::Bridge, 1500);
        assert!(empty.is_some_and(|why| why.contains("has no port")));
    }

    #[test]
    fn what_a_bridge_would_switch_off_for_good_is_refused_with_the_command() {
        let features = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(of_features("nic0", &features(&["rx-gro", "rx-gro-hw", "rx-lro-x"])), None);
        let why = of_features("nic0", &features(&["rx-gro", "rx-lro"])).expect("refused");
        assert!(why.contains("`ethtool -K nic0 lro off`"), "{why}");
    }

    #[test]
    fn guests_get_addresses_of_the_nics_network_that_are_nobodys() {
        let why = |range: &str, nic: &str| {
            let nic = (!nic.is_empty()).then(|| nic.parse().expect("an address"));
            of_guests(range.parse().expect("a range"), nic).unwrap_or_default()
        };
        assert_eq!(why("10.77.0.100-10.77.0.120", "10.77.0.1/24"), "");
        assert_eq!(why("10.77.0.100", "10.77.0.1/24"), "");
        assert!(why("10.77.1.1", "10.77.0.1/24").contains("10.77.0.0/24"));
        assert!(why("10.77.0.250-10.77.1.2", "10.77.0.1/24").contains("10.77.0.0/24"));
        assert!(why("10.77.0.1-10.77.0.9", "10.77.0.1/24").contains("own address"));
        assert!(why("10.77.0.0-10.77.0.9", "10.77.0.20/24").contains("address of its network"));
        assert!(why("10.77.0.200-10.77.0.255", "10.77.0.1/24").contains("broadcast"));
        assert!(why("10.77.0.200", "").contains("no IPv4 address"));
        let alone = InterfaceAddress { address: Ipv4Addr::new(10, 77, 0, 1), prefix: 32 };
        let range = "10.77.0.200".parse().expect("a range");
        assert!(of_guests(range, Some(alone)).is_some_and(|why| why.contains("no room")));
    }
}
