//! Whose an address is beyond doubt: a host that tells it as its test NIC's, and whose connection comes from it. QUIC has proved
//! that whoever speaks there is reached by that address (RFC 9000, 8.1). Nobody else's word on it counts. Pure.

use std::net::{IpAddr, Ipv4Addr};

use super::{Fleet, Host, HostIndex};
use crate::plan::Cell;
use crate::scheduler::ends::place;

impl Host {
    /// The address that is its own beyond doubt.
    fn proved(&self) -> Option<Ipv4Addr> {
        let told = self.facts.as_ref()?.nic.as_ref()?.address?.address;
        let connected = self.session.filter(|_| self.away_since.is_none())?;
        (connected.address == IpAddr::V4(told)).then_some(told)
    }
}

impl Fleet {
    /// Why an end of `cell` can't be where its host says, if another host is there: who is sent there would reach that one.
    pub(super) fn impostor(&self, hosts: [HostIndex; 2], cell: &Cell) -> Option<String> {
        if cell.is_local() {
            return None;
        }
        hosts.into_iter().zip([&cell.a, &cell.b]).find_map(|(index, end)| {
            let host = &self.hosts[index];
            let address = place(end, host.facts.as_deref()?)?;
            // Two agents may be of one machine.
            if host.proved() == Some(address) {
                return None;
            }
            let others = self.hosts.iter().enumerate().filter(|(other, _)| *other != index);
            let owner = others.map(|(_, other)| other).find(|other| other.proved() == Some(address))?;
            Some(format!(
                "{}: its agent says that its end is at {address}, which is the address of {}, whose agent is connected from \
                 there: nobody is sent there for another host",
                host.name, owner.name
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use toll_protocol::facts::{HostFacts, NicFacts};
    use toll_protocol::message::Instance;

    use super::super::Told;
    use super::*;
    use crate::link::Session;
    use crate::plan::{self, Plan};
    use crate::test_support;

    const CAMPAIGN: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: c}
spec:
  hosts: {select: {}}
  arms: [{name: native, native: {}}, {name: virtio, sameStack: {adapter: {virtioNet: {}}}}]
  workloads: [{name: bulk, stream: {directions: [send]}}]
";
    const NAMES: [&str; 3] = ["a", "b", "c"];

    /// A fleet of hosts that tell these addresses and are connected from those.
    fn fleet(told: [&str; 3], from: [&str; 3]) -> Fleet {
        let mut fleet = Fleet::new(false);
        for ((name, told), (number, from)) in NAMES.into_iter().zip(told).zip((1..).zip(from)) {
            let address = Some(format!("{told}/24").parse().expect("an address"));
            let provenance = test_support::campaign().0.provenance;
            let facts = provenance.hosts.into_iter().next().expect("a host").facts;
            let nic = NicFacts { address, ..NicFacts::new("eth0", 1500) };
            let facts = Box::new(HostFacts { nic: Some(nic), ..facts });
            let address = from.parse().expect("an address");
            let session = Session { number, instance: Instance(number), address };
            let told = Told { facts, labels: BTreeMap::new() };
            fleet.connected(name, session, told, &[], |_| false, Duration::ZERO);
        }
        fleet
    }

    /// Why cells of `a` and `b` whose guests have the address `guest` can't be, each once.
    fn refused(fleet: &Fleet, guest: &str) -> Vec<String> {
        let campaign = toll_protocol::campaign::parse(CAMPAIGN).expect("is valid");
        let virtual_address = Some(format!("{guest}/24").parse().expect("an address"));
        let host = |name: &str| plan::Host { name: name.into(), virtual_address, mtu: 1500, rate: None };
        let plan =
            Plan::new(&campaign, &NAMES[..2].iter().map(|name| host(name)).collect::<Vec<_>>(), 1, || {
                plan::draw(&mut rand::rng())
            });
        let hosts = ["a", "b"].map(|name| fleet.find(name).expect("is there"));
        let mut why: Vec<String> = plan.cells.iter().filter_map(|cell| fleet.impostor(hosts, cell)).collect();
        why.sort();
        why.dedup();
        why
    }

    const FREE: &str = "10.0.0.9";

    #[test]
    fn the_address_of_a_connected_host_is_nobody_elses() {
        let honest = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
        assert!(refused(&fleet(honest, honest), FREE).is_empty());
        let why = refused(&fleet(["10.0.0.3", "10.0.0.2", "10.0.0.3"], honest), FREE);
        assert!(
            why.len() == 1 && why[0].starts_with("a: ") && why[0].contains("the address of c"),
            "{why:?}"
        );
        // Nor is it a guest's.
        let why = refused(&fleet(honest, honest), "10.0.0.3");
        assert!(
            why.len() == 1 && why[0].contains("10.0.0.3") && why[0].contains("the address of c"),
            "{why:?}"
        );
    }

    #[test]
    fn what_is_not_proved_keeps_nobody_out() {
        let told = ["10.0.0.3", "10.0.0.2", "10.0.0.3"];
        // Both may be in a network of their own, and are connected by another.
        assert!(refused(&fleet(told, ["192.0.2.1", "192.0.2.2", "192.0.2.3"]), FREE).is_empty());
        // Two agents of one machine.
        assert!(refused(&fleet(told, ["10.0.0.3", "10.0.0.2", "10.0.0.3"]), FREE).is_empty());
        // Everybody comes by one gateway, which is no host's test NIC.
        assert!(refused(&fleet(told, ["10.0.0.254"; 3]), FREE).is_empty());
        // One that is away is not known to be there any more.
        let mut fleet = fleet(told, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        fleet.lost("c", Duration::ZERO);
        assert!(refused(&fleet, FREE).is_empty());
    }
}
