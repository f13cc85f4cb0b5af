//! The host's side of a virtual path: how the port of a VMM is joined to the wire that the test NIC is on, by
//! rtnetlink(7).
//!
//! ```text
//!   exclusive                           bridge                           macvtap
//!
//!   [ test NIC ]   [ tt<id> ] TAP       [ NIC ]    [ tt<id> ] TAP        [ tt<id> ] macvtap, made here
//!        |              |                  |           |                     |
//!        +-[ tb<id> ]---+               [ test NIC: the host's bridge ]  [ test NIC ] and the host's addresses
//!           bridge, made here
//! ```
//! Native ends use the NIC's own address and none of this. A TAP is made by the VMM and gone with it. The NIC's address
//! and MTU are never touched. Names and aliases (`toll trial <id>`) carry the trial's id, so that whatever an agent left
//! behind when it was killed is found by the next one.

use std::net::{IpAddr, Ipv4Addr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rtnetlink::Handle;
use tokio::task::JoinHandle;
use toll_protocol::child::VmmPort;
use toll_protocol::error::chain;
use toll_protocol::facts::{NicFacts, Wire};
use toll_protocol::trial::TrialId;
use toll_protocol::units::{AddressRange, InterfaceAddress, MacAddress};

mod changes;
mod checks;
mod device;
mod error;
mod fitness;
mod free;
mod links;
mod probe;
mod routes;

use crate::facts::nic;
pub(crate) use changes::Changes;
use device::Announcements;
pub use error::NetworkError;
use error::TIMEOUT;
use free::FreeAddresses;
use links::{Kind, Link};

/// What the alias of everything made for a trial begins with.
const ALIAS: &str = "toll trial ";

/// Name of a trial's bridge.
pub fn bridge_name(trial: TrialId) -> String {
    format!("tb{trial}")
}

/// Name of a trial's TAP or macvtap.
pub fn tap_name(trial: TrialId) -> String {
    format!("tt{trial}")
}

/// The trial that a link of this name would be of.
pub(crate) fn trial_named(name: &str) -> Option<TrialId> {
    id_in(name)?.parse().ok()
}

fn id_in(name: &str) -> Option<&str> {
    name.strip_prefix("tb").or_else(|| name.strip_prefix("tt"))
}

/// The trial that a link was made for, if its name and its alias agree that it was made for one. The kernel takes
/// an alias only once there is a link, so an agent may be killed in between: a bridge or macvtap of such a name that
/// has no alias and has never been set up is ours too.
fn made_for(link: &Link) -> Option<TrialId> {
    let id = id_in(&link.name)?;
    let agrees = match (&link.alias, link.kind) {
        (Some(alias), _) => alias.strip_prefix(ALIAS)? == id,
        (None, Kind::Bridge { .. }) => !link.up && link.name.starts_with("tb"),
        (None, Kind::Macvtap) => !link.up && link.name.starts_with("tt"),
        (None, _) => false,
    };
    agrees.then(|| id.parse().ok()).flatten()
}

/// What a virtual end is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// MTU of the path, in bytes of IP packet.
    pub mtu: u16,
}

/// Where an end that uses the host's own TCP stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NativeSite {
    /// The NIC's address.
    pub address: InterfaceAddress,
    /// Largest TCP segment in bytes, where the trial's MTU is smaller than the NIC's.
    pub segment: Option<u16>,
}

/// Headers of IPv4 and TCP without options, which a segment's size leaves out (RFC 9293, 3.7.1).
const HEADERS: u16 = 40;

/// What the agent is told of its network; what is `None` it finds out.
#[derive(Debug, Clone, Default)]
pub struct NetworkConfig {
    /// The test NIC; else that of the default route.
    pub nic: Option<String>,
    /// How virtual ends reach the wire; else the host's bridge if the NIC is one, and macvtap if not.
    pub wire: Option<Wire>,
    /// Addresses that virtual ends may have; else any that nobody uses.
    pub guest_addresses: Option<AddressRange>,
    /// Where the agent answers probes, if at one address.
    pub http: Option<IpAddr>,
    /// The user's word that the NIC carries nothing but trials, for what routes can't tell.
    pub nic_is_spare: bool,
}

/// The network of the agent's host, as far as it is the agent's business.
#[derive(Debug)]
pub struct Network {
    handle: Handle,
    connection: JoinHandle<()>,
    nic: String,
    wire: Wire,
    guest_addresses: Option<AddressRange>,
    nic_is_spare: bool,
    known: Mutex<Known>,
    /// Held by whoever reads the NIC's facts, also by a thread that nobody waits for any more.
    facts_turn: Arc<tokio::sync::Mutex<()>>,
    /// Bound as long as the agent lives: see [`Network::open`].
    _lock: UnixListener,
}

/// What is learned while the agent runs.
#[derive(Debug, Default)]
struct Known {
    /// Where the orchestrator was last dialled.
    orchestrator: Option<IpAddr>,
    /// Addresses that nobody else was found to use.
    free: FreeAddresses,
}

impl Network {
    /// Opens the network of the namespace that the caller is in, and looks whether what it is told fits the host, so
    /// that what is wrong is told at the start and not by every trial. There can be one for a network namespace:
    /// another agent's sweep would take the links of this one's trials. The lock is an abstract socket (unix(7)),
    /// which belongs to the network namespace and goes with the process.
    ///
    /// # Errors
    /// [`NetworkError`]: there is an agent already; the NIC is not there, or no NIC for such a wire; the guests'
    /// addresses are none of its network.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let error = |source| NetworkError::Socket {
            what: "another agent runs in this network namespace: one is enough for a host",
            source,
        };
        let name = SocketAddr::from_abstract_name("toll-agent").map_err(error)?;
        let lock = UnixListener::bind_addr(&name).map_err(error)?;
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| NetworkError::Socket { what: "no netlink socket could be opened", source })?;
        let mut network = Self {
            handle,
            connection: tokio::spawn(connection),
            nic: config.nic.clone().unwrap_or_default(),
            wire: config.wire.unwrap_or(Wire::Macvtap),
            guest_addresses: config.guest_addresses,
            nic_is_spare: config.nic_is_spare,
            known: Mutex::default(),
            facts_turn: Arc::default(),
            _lock: lock,
        };
        within(network.choose(config)).await?;
        Ok(network)
    }

    async fn choose(&mut self, config: NetworkConfig) -> Result<(), NetworkError> {
        let all = links::dump(&self.handle).await?;
        let nic = if config.nic.is_some() {
            all.iter().find(|link| link.name == self.nic)
        } else {
            let index = routes::default_link(&self.handle).await?.ok_or(NetworkError::NoDefaultRoute)?;
            all.iter().find(|link| link.index == index)
        };
        let nic = nic.ok_or_else(|| NetworkError::NoSuchLink { name: self.nic.clone() })?;
        self.nic.clone_from(&nic.name);
        // On a bridge that a killed agent has left it stays until the sweep.
        let swept = |index: &u32| all.iter().any(|link| link.index == *index && made_for(link).is_some());
        let nic = &Link { controller: nic.controller.filter(|index| !swept(index)), ..nic.clone() };
        self.wire = config.wire.unwrap_or(if nic.is_bridge() { Wire::Bridge } else { Wire::Macvtap });
        if let Some(why) = fitness::of_kind(nic, &all, self.wire) {
            return Err(self.unfit(why));
        }
        if let (Wire::Exclusive, Some(http)) = (self.wire, config.http) {
            self.check_http(nic, http).await?;
        }
        if let Some(range) = config.guest_addresses {
            let address = routes::ipv4_address(&self.handle, nic).await?;
            if let Some(why) = fitness::of_guests(range, address) {
                return Err(NetworkError::GuestAddresses { range, nic: self.nic.clone(), why });
            }
        }
        Ok(())
    }

    /// The test NIC.
    pub fn nic(&self) -> &str {
        &self.nic
    }

    /// How virtual ends reach the wire.
    pub const fn wire(&self) -> Wire {
        self.wire
    }

    /// Addresses that virtual ends may have, if they were named.
    pub const fn guest_addresses(&self) -> Option<AddressRange> {
        self.guest_addresses
    }

    /// Remembers where the orchestrator is: what leads there is never put on a bridge of a trial.
    pub fn dialled(&self, orchestrator: IpAddr) {
        self.known().orchestrator = Some(orchestrator);
    }

    /// A trial with this address has failed: somebody who has it too may be why, so they are asked again.
    pub fn doubt(&self, address: Ipv4Addr) {
        self.known().free.forget(address);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing in here panics half-way through a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where an end that uses the host's own TCP stands: on the NIC, with its address. A NIC whose MTU is larger than the
    /// trial's carries smaller segments.
    ///
    /// # Errors
    /// [`NetworkError`]; the NIC is unfit if it is down or without carrier, has no address, one that is alone in its
    /// network, or a smaller MTU.
    pub async fn native(&self, mtu: u16) -> Result<NativeSite, NetworkError> {
        within(async {
            let nic = self.find_nic().await?;
            if let Some(why) = fitness::of_mtu(&nic, mtu) {
                return Err(self.unfit(why));
            }
            let address = routes::ipv4_address(&self.handle, &nic).await?;
            let address = address.ok_or_else(|| self.unfit("has no IPv4 address: a native end needs one"))?;
            if !(1..=30).contains(&address.prefix) {
                return Err(self.unfit(format!(
                    "has the address {address}: a native end needs a network with room for its peers, of a prefix of \
                     1 to 30 bits"
                )));
            }
            let segment = (nic.mtu > u32::from(mtu)).then(|| mtu.saturating_sub(HEADERS));
            Ok(NativeSite { address, segment })
        })
        .await
    }

    /// Makes the host ready for a virtual end, and says what port its VMM is to open.
    ///
    /// # Errors
    /// [`NetworkError`]; the NIC is unfit if it is down or without carrier, has a smaller MTU than the trial, or if the
    /// way to the wire would cut the host off; the address is refused if somebody uses it. What was made before the error is left
    /// to [`tear_down`](Self::tear_down).
    pub async fn set_up(&self, trial: TrialId, station: &Station) -> Result<VmmPort, NetworkError> {
        within(async {
            let all = links::dump(&self.handle).await?;
            let nic = all.iter().find(|link| link.name == self.nic);
            let nic = nic.ok_or_else(|| NetworkError::NoSuchLink { name: self.nic.clone() })?;
            let unfit = fitness::of_kind(nic, &all, self.wire)
                .or_else(|| fitness::of_state(nic, &all, self.wire, station.mtu));
            if let Some(why) = unfit {
                return Err(self.unfit(why));
            }
            self.check_address(nic, station.address).await?;
            let name = tap_name(trial);
            match self.wire {
                Wire::Exclusive => {
                    self.check_dispensable(nic).await?;
                    self.add_bridge(trial, nic, station.mtu).await?;
                    Ok(VmmPort::Tap { name })
                }
                Wire::Bridge => Ok(VmmPort::Tap { name }),
                Wire::Macvtap => {
                    let announcements = Announcements::listen()?;
                    links::add_macvtap(&self.handle, nic, &name, station.mac, station.mtu).await?;
                    let link = links::find(&self.handle, &name).await?;
                    links::set_alias(&self.handle, &link, &alias(trial)).await?;
                    links::no_ipv6_address(&self.handle, &link).await?;
                    let (major, minor) = announcements.device_of(&name)?;
                    Ok(VmmPort::Macvtap { name, major, minor })
                }
            }
        })
        .await
    }

    /// Makes the bridge of a trial and puts the NIC on it.
    async fn add_bridge(&self, trial: TrialId, nic: &Link, mtu: u16) -> Result<(), NetworkError> {
        let bridge = links::add_bridge(&self.handle, &bridge_name(trial), &alias(trial)).await?;
        links::no_ipv6_address(&self.handle, &bridge).await?;
        links::enslave(&self.handle, nic, bridge.index).await?;
        // After the port, since a bridge without an MTU of its own takes that of its ports.
        links::set_mtu(&self.handle, &bridge, mtu.into()).await?;
        links::set_up(&self.handle, &bridge).await
    }

    /// Joins the port that the VMM of a trial has opened to the wire.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn attach(&self, trial: TrialId, station: &Station) -> Result<(), NetworkError> {
        within(async {
            let port = links::find(&self.handle, &tap_name(trial)).await?;
            let (bridge, mtu) = match self.wire {
                // Not before the VMM holds the device: what came would go to the host's own stack.
                Wire::Macvtap => return links::set_up(&self.handle, &port).await,
                Wire::Exclusive => {
                    (links::find(&self.handle, &bridge_name(trial)).await?, u32::from(station.mtu))
                }
                Wire::Bridge => {
                    let bridge = self.find_nic().await?;
                    // A bridge takes the lowest MAC address of its ports for its own, and their smallest MTU, and
                    // neither may change.
                    let mut mac = station.mac;
                    mac.0[0] = 0xfe;
                    links::set_mac(&self.handle, &port, mac).await?;
                    let mtu = bridge.mtu;
                    (bridge, mtu)
                }
            };
            links::set_alias(&self.handle, &port, &alias(trial)).await?;
            links::no_ipv6_address(&self.handle, &port).await?;
            links::set_mtu(&self.handle, &port, mtu).await?;
            links::enslave(&self.handle, &port, bridge.index).await?;
            links::set_up(&self.handle, &port).await
        })
        .await
    }

    /// The test NIC as it is now; `None` if it is gone. One reading at a time, on a thread that may wait: some of the system
    /// calls do as long as anybody changes any interface.
    ///
    /// # Errors
    /// [`NetworkError::Timeout`].
    pub async fn nic_facts(&self) -> Result<Option<NicFacts>, NetworkError> {
        within(async {
            let (turn, nic) = (Arc::clone(&self.facts_turn).lock_owned().await, self.nic.clone());
            let read = move || {
                let _turn = turn;
                nic::facts(&nic)
            };
            Ok(tokio::task::spawn_blocking(read).await.unwrap_or_default())
        })
        .await
    }

    /// Removes everything of a trial and looks whether it is gone. Returns what is left, and why. What has such a name
    /// and was not made for the trial stays, and is nothing of it.
    pub async fn tear_down(&self, trial: TrialId) -> Vec<String> {
        match self.remove(|link| made_for(link) == Some(trial)).await {
            Ok((_, leftovers)) => leftovers,
            Err(error) => vec![format!("{}: {}", bridge_name(trial), chain(&error))],
        }
    }

    /// Removes what agents that were killed left on the host. Returns the names of what was found, and what of
    /// it is left, and why.
    ///
    /// # Errors
    /// [`NetworkError`] if the host's links can't be listed.
    pub async fn sweep(&self) -> Result<(Vec<String>, Vec<String>), NetworkError> {
        self.remove(|link| made_for(link).is_some()).await
    }

    /// Removes the links that `ours` names, and takes the NIC from them. Returns what was found, and what of it
    /// is left, with the reasons.
    async fn remove(&self, ours: impl Fn(&Link) -> bool) -> Result<(Vec<String>, Vec<String>), NetworkError> {
        within(async {
            let all = links::dump(&self.handle).await?;
            let found: Vec<&Link> = all.iter().filter(|link| ours(link)).collect();
            let mut reasons = Vec::new();
            for port in &all {
                let bridged =
                    port.controller.is_some_and(|index| found.iter().any(|link| link.index == index));
                if bridged && !ours(port) {
                    reasons.extend(links::release(&self.handle, port).await.err());
                }
            }
            for link in &found {
                reasons.extend(links::delete(&self.handle, link).await.err());
            }
            let left = links::dump(&self.handle).await?;
            let mut leftovers: Vec<String> =
                left.iter().filter(|link| ours(link)).map(|link| link.name.clone()).collect();
            if !leftovers.is_empty() {
                leftovers.extend(reasons.iter().map(|reason| chain(reason)));
            }
            Ok((found.iter().map(|link| link.name.clone()).collect(), leftovers))
        })
        .await
    }

    async fn find_nic(&self) -> Result<Link, NetworkError> {
        let nic = links::find(&self.handle, &self.nic).await?;
        match fitness::of_cable(&nic) {
            Some(why) => Err(self.unfit(why)),
            None => Ok(nic),
        }
    }

    fn unfit(&self, why: impl Into<String>) -> NetworkError {
        NetworkError::Unfit { nic: self.nic.clone(), why: why.into() }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn alias(trial: TrialId) -> String {
    format!("{ALIAS}{trial}")
}

async fn within<T>(steps: impl Future<Output = Result<T, NetworkError>>) -> Result<T, NetworkError> {
    tokio::time::timeout(TIMEOUT, steps).await.unwrap_or(Err(NetworkError::Timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, alias: Option<&str>) -> Link {
        let alias = alias.map(str::to_owned);
        let name = name.to_owned();
        let kind = Kind::Bridge { forward_delay: 0 };
        Link { index: 1, name, alias, mtu: 1500, controller: None, up: true, carrier: true, kind }
    }

    #[test]
    fn a_link_whose_maker_was_killed_before_it_got_its_alias_is_ours() {
        let unfinished = Link { up: false, ..link("tb123456789abc", None) };
        assert_eq!(made_for(&unfinished), Some(TrialId::new(0x1234_5678_9abc)));
        assert_eq!(made_for(&Link { kind: Kind::Other, ..unfinished.clone() }), None);
        let macvtap = Link { kind: Kind::Macvtap, up: false, ..link("tt123456789abc", None) };
        assert_eq!(made_for(&macvtap), Some(TrialId::new(0x1234_5678_9abc)));
        assert_eq!(made_for(&Link { up: true, ..macvtap.clone() }), None);
        assert_eq!(made_for(&Link { kind: Kind::Other, ..macvtap }), None);
        assert_eq!(made_for(&Link { name: "tt123456789abc".to_owned(), ..unfinished.clone() }), None);
        assert_eq!(made_for(&Link { name: "tb-office".to_owned(), ..unfinished }), None);
    }

    #[test]
    fn names_fit_an_interface_and_lead_back_to_the_trial() {
        let trial = TrialId::new(0x1234_5678_9abc);
        for name in [bridge_name(trial), tap_name(trial)] {
            // IFNAMSIZ is 16 with the final zero.
            assert!(name.len() <= 15, "{name}");
            assert_eq!(trial_named(&name), Some(trial));
            assert_eq!(made_for(&link(&name, Some(&alias(trial)))), Some(trial));
        }
    }

    #[test]
    fn links_of_others_are_not_ours() {
        for (name, alias) in [
            ("tb123456789abc", None),
            ("tb123456789abc", Some("uplink")),
            ("tb123456789abc", Some("toll trial 0000000000ff")),
            ("eth0", Some("toll trial 123456789abc")),
            ("tbx", Some("toll trial x")),
        ] {
            assert_eq!(made_for(&link(name, alias)), None, "{name} {alias:?}");
        }
        assert_eq!(trial_named("tb123456789abc could not be removed"), None);
    }
}
