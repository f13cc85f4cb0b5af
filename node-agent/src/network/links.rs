//! Links as rtnetlink(7) tells and takes them: what the agent needs of them and no more.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use toll_protocol::units::InterfaceAddress;

use super::NetworkError;

/// A link of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    pub(super) mtu: u32,
    /// Index of the bridge (or other controller) that it is a port of.
    pub(super) controller: Option<u32>,
    pub(super) up: bool,
    pub(super) is_bridge: bool,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            mtu: 0,
            controller: None,
            up: message.header.flags.contains(LinkFlags::Up),
            is_bridge: false,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                LinkAttribute::Controller(index) if index != 0 => link.controller = Some(index),
                _ => {}
            }
        }
        link
    }
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
pub(super) async fn set_mtu(handle: &Handle, link: &Link, mtu: u16) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_index(link.index).mtu(u32::from(mtu));
    set(handle, link, message, &format!("get an MTU of {mtu} bytes")).await
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

/// The first IPv4 address of a link.
pub(super) async fn ipv4_address(
    handle: &Handle,
    link: &Link,
) -> Result<Option<InterfaceAddress>, NetworkError> {
    let error =
        |source| NetworkError::netlink(format!("addresses of {} could not be listed", link.name), source);
    let mut addresses = handle.address().get().set_link_index_filter(link.index).execute();
    let mut first = None;
    // Read to the end, so that nothing of this answer is left for the next question.
    while let Some(message) = addresses.try_next().await.map_err(error)? {
        // IFA_LOCAL is the link's own address; IFA_ADDRESS is the peer's on a point-to-point link.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        if let Some(address) = local
            && first.is_none()
        {
            first = Some(InterfaceAddress { address, prefix: message.header.prefix_len });
        }
    }
    Ok(first)
}

/// Whether a default route of the main table leaves through the link.
pub(super) async fn has_default_route(handle: &Handle, link: &Link) -> Result<bool, NetworkError> {
    let error = |source| NetworkError::netlink("the routes could not be listed", source);
    let mut found = false;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let mut routes = handle.route().get(question).execute();
        while let Some(route) = routes.try_next().await.map_err(error)? {
            found |= route.header.destination_prefix_length == 0
                && route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.kind == RouteType::Unicast
                && leaves_through(&route, link.index);
        }
    }
    Ok(found)
}

/// Whether packets to `address` leave through the link. An address without a route leaves through none.
pub(super) async fn is_way_to(handle: &Handle, link: &Link, address: IpAddr) -> Result<bool, NetworkError> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let question = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, length);
    let Ok(question) = question else { return Ok(false) };
    let mut routes = handle.route().get(question.build()).execute();
    let mut found = false;
    loop {
        match routes.try_next().await {
            Ok(Some(route)) => found |= leaves_through(&route, link.index),
            Ok(None) => return Ok(found),
            Err(rtnetlink::Error::NetlinkError(error)) if is_no_route(&error) => return Ok(false),
            Err(source) => {
                return Err(NetworkError::netlink(
                    format!("the route to {address} could not be found"),
                    source,
                ));
            }
        }
    }
}

fn is_no_route(error: &rtnetlink::packet_core::ErrorMessage) -> bool {
    [-libc::ENETUNREACH, -libc::EHOSTUNREACH, -libc::EACCES].contains(&error.raw_code())
}

fn leaves_through(route: &RouteMessage, index: u32) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Oif(interface) => *interface == index,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == index),
        _ => false,
    })
}
