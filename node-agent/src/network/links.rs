//! Links as rtnetlink(7) tells and takes them: what the agent needs of them and no more.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoData, InfoKind, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage, MacVtapMode,
};
use rtnetlink::{Handle, LinkBridge, LinkMacVtap, LinkMessageBuilder, LinkUnspec};
use toll_protocol::units::MacAddress;

use super::NetworkError;

/// Frames that wait in a macvtap until the VMM takes them: as many as a TAP keeps (`TUN_READQ_SIZE` of a macvtap is
/// half of that), so that the port makes no difference.
const QUEUE: u32 = 1000;

/// What a link is, as far as it matters to a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A bridge.
    Bridge {
        /// How long a new port carries nothing, in hundredths of a second; 0 without spanning tree.
        forward_delay: u32,
    },
    /// A macvlan of another link.
    Macvlan,
    /// A macvtap of another link.
    Macvtap,
    /// The loopback interface.
    Loopback,
    /// Anything else.
    Other,
}

/// A link of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    /// MTU in bytes.
    pub(super) mtu: u32,
    /// Index of the bridge (or other controller) that it is a port of.
    pub(super) controller: Option<u32>,
    pub(super) up: bool,
    /// Whether the other end of the cable (of a bridge: of one of its ports) is there.
    pub(super) carrier: bool,
    pub(super) kind: Kind,
}

impl Link {
    pub(super) const fn is_bridge(&self) -> bool {
        matches!(self.kind, Kind::Bridge { .. })
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let loopback = message.header.flags.contains(LinkFlags::Loopback);
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            mtu: 0,
            controller: None,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            kind: if loopback { Kind::Loopback } else { Kind::Other },
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::LinkInfo(infos) if !loopback => link.kind = kind(&infos),
                LinkAttribute::Controller(index) if index != 0 => link.controller = Some(index),
                _ => {}
            }
        }
        link
    }
}

fn kind(infos: &[LinkInfo]) -> Kind {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some(Kind::Bridge { forward_delay: 0 }),
        LinkInfo::Kind(InfoKind::MacVlan) => Some(Kind::Macvlan),
        LinkInfo::Kind(InfoKind::MacVtap) => Some(Kind::Macvtap),
        _ => None,
    });
    let bridge = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(data)) => Some(data),
        _ => None,
    });
    match (kind, bridge) {
        (Some(Kind::Bridge { .. }), Some(data)) => Kind::Bridge { forward_delay: forward_delay(data) },
        (kind, _) => kind.unwrap_or(Kind::Other),
    }
}

/// How long a port that is put on the bridge carries nothing (IEEE 802.1D, 17.14): not at all without spanning tree.
fn forward_delay(data: &[InfoBridge]) -> u32 {
    let (mut stp, mut delay) = (false, 0);
    for attribute in data {
        match attribute {
            InfoBridge::StpState(state) => stp = *state != BridgeStpState::Disabled,
            InfoBridge::ForwardDelay(hundredths) => delay = *hundredths,
            _ => {}
        }
    }
    if stp { delay } else { 0 }
}

/// All links.
pub(super) async fn dump(handle: &Handle) -> Result<Vec<Link>, NetworkError> {
    let error = |source| NetworkError::netlink("the links could not be listed", source);
    handle.link().get().execute().map_ok(Link::from).try_collect().await.map_err(error)
}

/// The link of that name.
pub(super) async fn find(handle: &Handle, name: &str) -> Result<Link, NetworkError> {
    let links = dump(handle).await?;
    let found = links.into_iter().find(|link| link.name == name);
    found.ok_or_else(|| NetworkError::NoSuchLink { name: name.to_owned() })
}

/// A bridge that forwards at once and says nothing itself: no spanning tree, no forward delay (IEEE 802.1D, 17.14),
/// no IGMP and MLD snooping. It is down, so that nothing leaves it before it is complete.
pub(super) async fn add_bridge(handle: &Handle, name: &str, alias: &str) -> Result<Link, NetworkError> {
    let bridge = LinkMessageBuilder::<LinkBridge>::new(name)
        .stp_state(BridgeStpState::Disabled)
        .forward_delay(0)
        .mcast_snooping(false)
        .build();
    let error = |source| NetworkError::netlink(format!("bridge {name} could not be made"), source);
    handle.link().add(bridge).execute().await.map_err(error)?;
    let link = find(handle, name).await?;
    set_alias(handle, &link, alias).await?;
    Ok(link)
}

/// A macvtap of `nic`, mode bridge, which is down. Its queue has its length before anybody opens it, and it answers
/// no ARP itself: while no VMM holds it, the kernel's stack gets what comes, and would answer for the host's own
/// addresses with another MAC address than the NIC's.
pub(super) async fn add_macvtap(
    handle: &Handle,
    nic: &Link,
    name: &str,
    mac: MacAddress,
    mtu: u16,
) -> Result<(), NetworkError> {
    let macvtap = LinkMacVtap::new(name, nic.index, MacVtapMode::Bridge)
        .address(mac.0.to_vec())
        .mtu(u32::from(mtu))
        .txqueuelen(QUEUE)
        .arp(false)
        .build();
    let error =
        |source| NetworkError::netlink(format!("macvtap {name} could not be made on {}", nic.name), source);
    handle.link().add(macvtap).execute().await.map_err(error)
}

/// Gives a link the alias by which the next agent knows whose it was.
pub(super) async fn set_alias(handle: &Handle, link: &Link, alias: &str) -> Result<(), NetworkError> {
    set(handle, link, LinkUnspec::new_with_index(link.index).alias(alias), "be named").await
}

/// Keeps the kernel from giving the link an IPv6 address of its own (RFC 4862, 5.3), and so from sending router
/// solicitations and multicast reports through the path that is measured.
pub(super) async fn no_ipv6_address(handle: &Handle, link: &Link) -> Result<(), NetworkError> {
    let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let message = LinkUnspec::new_with_index(link.index)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none]));
    match set(handle, link, message, "be kept from IPv6 addresses").await {
        // A kernel without IPv6, or with IPv6 disabled: there is nothing to keep it from.
        Err(error) if error.is(libc::EAFNOSUPPORT) || error.is(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Makes a link a port of a bridge.
pub(super) async fn enslave(handle: &Handle, link: &Link, bridge: u32) -> Result<(), NetworkError> {
    set(handle, link, LinkUnspec::new_with_index(link.index).controller(bridge), "be put on the bridge").await
}

/// Takes a link from its bridge.
pub(super) async fn release(handle: &Handle, link: &Link) -> Result<(), NetworkError> {
    set(handle, link, LinkUnspec::new_with_index(link.index).nocontroller(), "be taken from the bridge").await
}

/// Sets a link's MTU.
pub(super) async fn set_mtu(handle: &Handle, link: &Link, mtu: u32) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_index(link.index).mtu(mtu);
    set(handle, link, message, &format!("get an MTU of {mtu} bytes")).await
}

/// Sets a link's MAC address.
pub(super) async fn set_mac(handle: &Handle, link: &Link, mac: MacAddress) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_index(link.index).address(mac.0.to_vec());
    set(handle, link, message, &format!("get the MAC address {mac}")).await
}

/// Sets a link up.
pub(super) async fn set_up(handle: &Handle, link: &Link) -> Result<(), NetworkError> {
    set(handle, link, LinkUnspec::new_with_index(link.index).up(), "be set up").await
}

/// Deletes a link; one that has gone by itself meanwhile is no error.
pub(super) async fn delete(handle: &Handle, link: &Link) -> Result<(), NetworkError> {
    match handle.link().del(link.index).execute().await {
        Ok(()) => Ok(()),
        Err(source) => {
            let error = NetworkError::netlink(format!("{} could not be removed", link.name), source);
            if error.is(libc::ENODEV) { Ok(()) } else { Err(error) }
        }
    }
}

async fn set(
    handle: &Handle,
    link: &Link,
    message: LinkMessageBuilder<LinkUnspec>,
    what: &str,
) -> Result<(), NetworkError> {
    let error = |source| NetworkError::netlink(format!("{} could not {what}", link.name), source);
    handle.link().set(message.build()).execute().await.map_err(error)
}
