//! The host's side of a virtual path: a bridge per trial that joins the test NIC and the TAP of the trial's
//! VMM, by rtnetlink(7).
//!
//! ```text
//!   kernel TCP          VMM                        native ends use the NIC's own address and no bridge
//!       |                |
//!   [ test NIC ]     [ tt<id> ]      TAP, made by the VMM, gone with it
//!       |                |
//!       +--[ tb<id> ]----+           bridge, made here, alias `toll trial <id>`
//! ```
//! The NIC's address and MTU are never touched. Names and aliases carry the trial's id, so that whatever an agent
//! left behind when it was killed is found by the next one.

use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rtnetlink::Handle;
use tokio::task::JoinHandle;
use toll_protocol::trial::TrialId;
use toll_protocol::units::InterfaceAddress;

mod links;

use links::Link;

/// How long the kernel may take for all requests of one step.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What the alias of everything made for a trial begins with.
const ALIAS: &str = "toll trial ";

/// Why the host's network can't be made ready.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no link of that name in the agent's network namespace.
    #[error("there is no network interface {name}")]
    NoSuchLink {
        /// Its name.
        name: String,
    },
    /// The test NIC is not fit for a trial.
    #[error("network interface {nic} {why}")]
    Unfit {
        /// Its name.
        nic: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A request was refused.
    #[error("{what}")]
    Netlink {
        /// The request.
        what: String,
        /// The kernel's word.
        #[source]
        source: rtnetlink::Error,
    },
    /// The kernel did not answer.
    #[error("the kernel did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// A netlink or lock socket could not be opened.
    #[error("{what}")]
    Socket {
        /// Which, and what to do.
        what: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
}

impl NetworkError {
    fn netlink(what: impl Into<String>, source: rtnetlink::Error) -> Self {
        Self::Netlink { what: what.into(), source }
    }

    /// Whether the kernel's word is this error number.
    fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Netlink { source: rtnetlink::Error::NetlinkError(error), .. }
            if error.raw_code() == -errno)
    }
}

/// Name of a trial's bridge.
pub fn bridge_name(trial: TrialId) -> String {
    format!("tb{trial}")
}

/// Name of a trial's TAP.
pub fn tap_name(trial: TrialId) -> String {
    format!("tt{trial}")
}

/// The trial that a link was made for, if its name and its alias agree that it was made for one. The kernel takes
/// an alias only once there is a link, so an agent may be killed in between: a bridge of such a name that has no alias
/// and has never been set up is ours too.
fn made_for(link: &Link) -> Option<TrialId> {
    let id = link.name.strip_prefix("tb").or_else(|| link.name.strip_prefix("tt"))?;
    let agrees = match &link.alias {
        Some(alias) => alias.strip_prefix(ALIAS)? == id,
        None => link.is_bridge && !link.up && link.name.starts_with("tb"),
    };
    agrees.then(|| id.parse().ok()).flatten()
}

/// The network of the agent's host, as far as it is the agent's business.
#[derive(Debug)]
pub struct Network {
    handle: Handle,
    connection: JoinHandle<()>,
    nic: String,
    orchestrator: Option<IpAddr>,
    /// Bound as long as the agent lives: see [`Network::open`].
    _lock: UnixListener,
}

impl Network {
    /// Opens the network of the namespace that the caller is in. `nic` is the test NIC; what leads to
    /// `orchestrator` is never put on a bridge. There can be one for a network namespace: another agent's
    /// sweep would take the links of this one's trials. The lock is an abstract socket (unix(7)), which belongs
    /// to the network namespace and goes with the process.
    ///
    /// # Errors
    /// [`NetworkError::Socket`].
    pub fn open(nic: &str, orchestrator: Option<IpAddr>) -> Result<Self, NetworkError> {
        let error = |source| NetworkError::Socket {
            what: "another agent runs in this network namespace: one is enough for a host",
            source,
        };
        let name = SocketAddr::from_abstract_name("toll-agent").map_err(error)?;
        let lock = UnixListener::bind_addr(&name).map_err(error)?;
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| NetworkError::Socket { what: "no netlink socket could be opened", source })?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
            nic: nic.to_owned(),
            orchestrator,
            _lock: lock,
        })
    }

    /// Looks whether the NIC is there, so that a wrong name is told at the start and not by every trial.
    ///
    /// # Errors
    /// [`NetworkError::NoSuchLink`], or the kernel's word.
    pub async fn check_nic(&self) -> Result<(), NetworkError> {
        within(async { links::find(&self.handle, &self.nic).await.map(drop) }).await
    }

    /// The address that a native end uses: the NIC's own. Its MTU must be that of the trial, because the kernel's
    /// TCP will use it.
    ///
    /// # Errors
    /// [`NetworkError`]; the NIC is unfit if it is down, has no address, one that is alone in its network, or another
    /// MTU.
    pub async fn native_address(&self, mtu: u16) -> Result<InterfaceAddress, NetworkError> {
        within(async {
            let nic = self.find_nic().await?;
            if nic.mtu != u32::from(mtu) {
                return Err(self.unfit(format!(
                    "has an MTU of {} bytes and the trial asks for {mtu}: set it, or change the campaign",
                    nic.mtu
                )));
            }
            let address = links::ipv4_address(&self.handle, &nic).await?;
            let address = address.ok_or_else(|| self.unfit("has no IPv4 address: a native end needs one"))?;
            if !(1..=30).contains(&address.prefix) {
                return Err(self.unfit(format!(
                    "has the address {address}: a native end needs a network with room for its peers, of a prefix of \
                     1 to 30 bits"
                )));
            }
            Ok(address)
        })
        .await
    }

    /// Makes the bridge of a trial and puts the NIC on it.
    ///
    /// # Errors
    /// [`NetworkError`]; the NIC is unfit if it is down, is on a bridge already, carries a default route or the
    /// route to the orchestrator, or has a smaller MTU than the trial. What was made before the error is left to
    /// [`tear_down`](Self::tear_down).
    pub async fn set_up(&self, trial: TrialId, mtu: u16) -> Result<(), NetworkError> {
        within(async {
            let nic = self.find_nic().await?;
            self.check_bridgeable(&nic, mtu).await?;
            let bridge = links::add_bridge(&self.handle, &bridge_name(trial), &alias(trial)).await?;
            links::no_ipv6_address(&self.handle, &bridge).await?;
            links::enslave(&self.handle, &nic, bridge.index).await?;
            // After the port, since a bridge without an MTU of its own takes that of its ports.
            links::set_mtu(&self.handle, &bridge, mtu).await?;
            links::set_up(&self.handle, &bridge).await
        })
        .await
    }

    /// Puts the TAP of a trial on its bridge.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn attach(&self, trial: TrialId, mtu: u16) -> Result<(), NetworkError> {
        within(async {
            let bridge = links::find(&self.handle, &bridge_name(trial)).await?;
            let tap = links::find(&self.handle, &tap_name(trial)).await?;
            links::set_alias(&self.handle, &tap, &alias(trial)).await?;
            links::no_ipv6_address(&self.handle, &tap).await?;
            links::set_mtu(&self.handle, &tap, mtu).await?;
            links::enslave(&self.handle, &tap, bridge.index).await?;
            links::set_up(&self.handle, &tap).await
        })
        .await
    }

    /// Removes everything of a trial and looks whether it is gone. Returns what is left, and why.
    pub async fn tear_down(&self, trial: TrialId) -> Vec<String> {
        let (bridge, tap) = (bridge_name(trial), tap_name(trial));
        match self.remove(|link| link.name == bridge || link.name == tap).await {
            Ok((_, leftovers)) => leftovers,
            Err(error) => vec![format!("{bridge}: {}", crate::chain(&error))],
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
                leftovers.extend(reasons.iter().map(|reason| crate::chain(reason)));
            }
            Ok((found.iter().map(|link| link.name.clone()).collect(), leftovers))
        })
        .await
    }

    async fn find_nic(&self) -> Result<Link, NetworkError> {
        let nic = links::find(&self.handle, &self.nic).await?;
        if nic.up { Ok(nic) } else { Err(self.unfit("is down: set it up")) }
    }

    /// Refuses a NIC whose loss would cut the host off, or that can't carry the trial.
    async fn check_bridgeable(&self, nic: &Link, mtu: u16) -> Result<(), NetworkError> {
        if nic.controller.is_some() {
            return Err(self.unfit("is a port of a bridge already: the agent needs a NIC of its own"));
        }
        if links::has_default_route(&self.handle, nic).await? {
            return Err(self.unfit(
                "carries a default route: a bridge would cut the host off; name a NIC for tests alone",
            ));
        }
        if let Some(orchestrator) = self.orchestrator
            && links::is_way_to(&self.handle, nic, orchestrator).await?
        {
            return Err(self.unfit(format!(
                "is the way to the orchestrator {orchestrator}: name a NIC for tests alone"
            )));
        }
        if nic.mtu < u32::from(mtu) {
            return Err(self.unfit(format!("has an MTU of {} bytes and the trial asks for {mtu}", nic.mtu)));
        }
        Ok(())
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
        Link { index: 1, name, alias, mtu: 1500, controller: None, up: true, is_bridge: true }
    }

    #[test]
    fn a_bridge_whose_maker_was_killed_before_it_got_its_alias_is_ours() {
        let unfinished = Link { up: false, ..link("tb123456789abc", None) };
        assert_eq!(made_for(&unfinished), Some(TrialId::new(0x1234_5678_9abc)));
        assert_eq!(made_for(&Link { is_bridge: false, ..unfinished.clone() }), None);
        assert_eq!(made_for(&Link { name: "tt123456789abc".to_owned(), ..unfinished.clone() }), None);
        assert_eq!(made_for(&Link { name: "tb-office".to_owned(), ..unfinished }), None);
    }

    #[test]
    fn names_fit_an_interface_and_lead_back_to_the_trial() {
        let trial = TrialId::new(0x1234_5678_9abc);
        for name in [bridge_name(trial), tap_name(trial)] {
            // IFNAMSIZ is 16 with the final zero.
            assert!(name.len() <= 15, "{name}");
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
    }
}
