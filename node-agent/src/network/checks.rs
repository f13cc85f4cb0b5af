//! What is asked of the kernel and of the neighbours before a trial gets the NIC: whether the host needs it, and whether
//! a guest's address is free.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use toll_protocol::facts::Wire;
use toll_protocol::peer::{self, PeerError};
use toll_protocol::units::InterfaceAddress;

use super::links::Link;
use super::routes::Way;
use super::{Network, NetworkError, fitness, links, probe, routes, within};
use crate::facts::ethtool::Interface;

impl Network {
    /// Refuses a NIC whose loss would cut the host off.
    pub(super) async fn check_dispensable(&self, nic: &Link) -> Result<(), NetworkError> {
        if routes::has_default_route(&self.handle, nic).await? {
            return Err(self.unfit(
                "carries a default route: a bridge would cut the host off; name a NIC for tests alone, or use \
                 --wire macvtap",
            ));
        }
        let orchestrator = self.known().orchestrator;
        if let Some(orchestrator) = orchestrator {
            match routes::way_to(&self.handle, nic, orchestrator).await? {
                Way::ThisLink => {
                    return Err(self.unfit(format!(
                        "is the way to the orchestrator {orchestrator}: name a NIC for tests alone, or use --wire \
                         macvtap"
                    )));
                }
                Way::Unknown(why) if !self.nic_is_spare => {
                    return Err(self.unfit(format!(
                        "may be the way to the orchestrator, whose address {orchestrator} {why}: if the NIC carries \
                         nothing but trials, say so with --nic-is-spare; else use --wire macvtap"
                    )));
                }
                Way::AnotherLink | Way::Unknown(_) => {}
            }
        }
        // What can't be asked about has no such feature.
        let features = Interface::open(&nic.name).and_then(|interface| interface.features());
        match fitness::of_features(&nic.name, &features.unwrap_or_default()) {
            Some(why) => Err(self.unfit(why)),
            None => Ok(()),
        }
    }

    /// Refuses a NIC whose loss would keep probes from the agent.
    pub(super) async fn check_http(&self, nic: &Link, http: IpAddr) -> Result<(), NetworkError> {
        if routes::has_address(&self.handle, nic, http).await? {
            return Err(self.unfit(format!(
                "has the address {http}, where probes are to be answered (--http) and can't while a trial has the NIC: \
                 answer them at another address, name a NIC for tests alone, or use --wire macvtap"
            )));
        }
        Ok(())
    }

    /// Refuses a peer that is no other host: an orchestrator is not believed about that.
    ///
    /// # Errors
    /// [`NetworkError::Peer`].
    pub(crate) async fn check_peer(&self, peer: Option<Ipv4Addr>) -> Result<(), NetworkError> {
        let refused = |why: String| NetworkError::Peer { why };
        let peer = peer.ok_or_else(|| refused("the orchestrator has named none".to_owned()))?;
        within(async {
            let nic = links::find(&self.handle, &self.nic).await?;
            match routes::ipv4_address(&self.handle, &nic).await? {
                Some(own) => peer::check_from(own, peer),
                None => peer::check(peer),
            }
            .map_err(|error| refused(error.to_string()))?;
            if routes::is_own_address(&self.handle, peer).await? {
                return Err(refused(PeerError::Own { address: peer }.to_string()));
            }
            Ok(())
        })
        .await
    }

    /// Who takes what a virtual end at `address` sends to `peer`, if that is on another network: whom the host itself
    /// would give it by the test NIC.
    ///
    /// # Errors
    /// [`NetworkError::Peer`] if no route leads there.
    pub(crate) async fn gateway(
        &self,
        address: InterfaceAddress,
        peer: Ipv4Addr,
    ) -> Result<Option<Ipv4Addr>, NetworkError> {
        if address.contains(peer) {
            return Ok(None);
        }
        within(async {
            let nic = links::find(&self.handle, &self.nic).await?;
            let gateway = routes::gateway(&self.handle, &nic, peer).await?;
            // One of another network can't be asked by ARP from the end's address.
            match gateway.filter(|gateway| address.contains(*gateway)) {
                Some(gateway) => Ok(Some(gateway)),
                None => Err(NetworkError::Peer {
                    why: format!(
                        "{peer} is on another network than {address}, and no route through {} leads there by a gateway \
                         of {address}: add one",
                        self.nic
                    ),
                }),
            }
        })
        .await
    }

    /// Refuses an address that is not the guests' to use. A NIC of the agent's own is not asked on: whoever is on its
    /// network is there for the trial.
    pub(super) async fn check_address(&self, nic: &Link, address: Ipv4Addr) -> Result<(), NetworkError> {
        if let Some(range) = self.guest_addresses.filter(|range| !range.contains(address)) {
            let why = format!("the trial asks for {address}, which is none of them");
            return Err(NetworkError::GuestAddresses { range, nic: self.nic.clone(), why });
        }
        if routes::is_own_address(&self.handle, address).await? {
            return Err(NetworkError::AddressInUse { address, user: "this host".to_owned() });
        }
        if self.wire == Wire::Exclusive || self.known().free.contains(address, Instant::now()) {
            return Ok(());
        }
        let user = probe::user_of(nic.index, address).await;
        if let Some(user) = user.map_err(|source| NetworkError::Probe { address, source })? {
            return Err(NetworkError::AddressInUse { address, user: user.to_string() });
        }
        self.known().free.insert(address, Instant::now());
        Ok(())
    }
}
