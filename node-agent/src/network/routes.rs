//! Addresses and routes as rtnetlink(7) tells them: whom the host is, and what leads where.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use toll_protocol::units::InterfaceAddress;

use super::NetworkError;
use super::links::Link;

/// IFA_LOCAL is the link's own address; IFA_ADDRESS is the peer's on a point-to-point link.
fn local(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
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
        if let Some(address) = local(&message)
            && first.is_none()
        {
            first = Some(InterfaceAddress { address, prefix: message.header.prefix_len });
        }
    }
    Ok(first)
}

/// Whether a link has the address.
pub(super) async fn has_address(handle: &Handle, link: &Link, address: IpAddr) -> Result<bool, NetworkError> {
    let error =
        |source| NetworkError::netlink(format!("addresses of {} could not be listed", link.name), source);
    let mut addresses = handle.address().get().set_link_index_filter(link.index).execute();
    let mut found = false;
    while let Some(message) = addresses.try_next().await.map_err(error)? {
        found |= match address {
            IpAddr::V4(address) => local(&message) == Some(address),
            // IPv6 gives its own address in IFA_ADDRESS.
            IpAddr::V6(_) => message.attributes.contains(&AddressAttribute::Address(address)),
        };
    }
    Ok(found)
}

/// Whether the host itself has the address, on any link.
pub(super) async fn is_own_address(handle: &Handle, address: Ipv4Addr) -> Result<bool, NetworkError> {
    let error = |source| NetworkError::netlink("the host's addresses could not be listed", source);
    let mut addresses = handle.address().get().execute();
    let mut found = false;
    while let Some(message) = addresses.try_next().await.map_err(error)? {
        found |= local(&message) == Some(address);
    }
    Ok(found)
}

/// Whether a default route leaves through the link, of whatever table: rules (ip-rule(8)) lead to others than the main
/// one.
pub(super) async fn has_default_route(handle: &Handle, link: &Link) -> Result<bool, NetworkError> {
    let routes = default_routes(handle).await?;
    Ok(routes.iter().any(|route| leaves_through(route, link.index)))
}

/// Index of the link that the default route of the main table leaves through: the one of the lowest metric, IPv4 before IPv6.
pub(super) async fn default_link(handle: &Handle) -> Result<Option<u32>, NetworkError> {
    let routes = default_routes(handle).await?;
    let main = routes.iter().filter(|route| table(route) == u32::from(RouteHeader::RT_TABLE_MAIN));
    let best = main.filter_map(|route| Some((metric(route), first_link(route)?)));
    // Of equals the first: the kernel lists IPv4 first, since it was asked first.
    Ok(best.min_by_key(|(metric, _)| *metric).map(|(_, index)| index))
}

/// The default routes of all tables but the local one, those of IPv4 first.
async fn default_routes(handle: &Handle) -> Result<Vec<RouteMessage>, NetworkError> {
    let error = |source| NetworkError::netlink("the routes could not be listed", source);
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let mut routes = handle.route().get(question).execute();
        while let Some(route) = routes.try_next().await.map_err(error)? {
            if route.header.destination_prefix_length == 0
                && table(&route) != u32::from(libc::RT_TABLE_LOCAL)
                && route.header.kind == RouteType::Unicast
            {
                found.push(route);
            }
        }
    }
    Ok(found)
}

/// The header has room for small numbers only.
fn table(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| route.header.table.into())
}

/// IPv4 routes sort before those of IPv6, whose metrics are of another scale.
fn metric(route: &RouteMessage) -> (bool, u32) {
    let metric = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    (route.header.address_family == AddressFamily::Inet6, metric.unwrap_or(0))
}

fn first_link(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}

/// How packets to an address leave the host, as far as routes say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the link that was asked for.
    ThisLink,
    /// Through another link, whose network the address is on.
    AnotherLink,
    /// It can't be known, and why, as the end of the sentence `the address ...`. What has a gateway may be the address of
    /// a service, which the host replaces by that of some machine before it looks for the way (Kubernetes); what is the
    /// host's own may be handed on by a forwarder.
    Unknown(&'static str),
}

/// How packets to `address` leave, asked of `link`.
pub(super) async fn way_to(handle: &Handle, link: &Link, address: IpAddr) -> Result<Way, NetworkError> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let question = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, length);
    let Ok(question) = question else { return Ok(Way::Unknown(NO_ROUTE)) };
    let mut routes = handle.route().get(question.build()).execute();
    let mut found = Vec::new();
    loop {
        match routes.try_next().await {
            Ok(Some(route)) => found.push(route),
            Ok(None) => return Ok(way(&found, link.index)),
            Err(rtnetlink::Error::NetlinkError(error)) if is_no_route(&error) => {
                return Ok(Way::Unknown(NO_ROUTE));
            }
            Err(source) => {
                return Err(NetworkError::netlink(
                    format!("the route to {address} could not be found"),
                    source,
                ));
            }
        }
    }
}

/// The gateway that packets to `address` take when they leave by `link`, from its own address, if they take one. Rules may
/// lead what comes from an address to a table of its own (ip-rule(8)), as clouds do for each NIC but the first.
pub(super) async fn gateway(
    handle: &Handle,
    link: &Link,
    address: Ipv4Addr,
) -> Result<Option<Ipv4Addr>, NetworkError> {
    let mut question =
        RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).output_interface(link.index);
    if let Some(own) = ipv4_address(handle, link).await? {
        question = question.source_prefix(own.address, 32);
    }
    let mut routes = handle.route().get(question.build()).execute();
    let mut gateway = None;
    loop {
        match routes.try_next().await {
            Ok(Some(route)) => gateway = gateway.or_else(|| gateway_of(&route)),
            Ok(None) => return Ok(gateway),
            Err(rtnetlink::Error::NetlinkError(error)) if is_no_route(&error) => return Ok(None),
            Err(source) => {
                return Err(NetworkError::netlink(
                    format!("the route to {address} could not be found"),
                    source,
                ));
            }
        }
    }
}

fn gateway_of(route: &RouteMessage) -> Option<Ipv4Addr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
        _ => None,
    })
}

const NO_ROUTE: &str = "has no route";

/// What the kernel's answers mean to the link of this index.
fn way(routes: &[RouteMessage], index: u32) -> Way {
    let has_gateway = |route: &RouteMessage| {
        let mut attributes = route.attributes.iter();
        attributes.any(|found| matches!(found, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)))
    };
    if routes.iter().any(|route| leaves_through(route, index)) {
        Way::ThisLink
    } else if routes.is_empty() {
        Way::Unknown(NO_ROUTE)
    } else if routes.iter().any(|route| route.header.kind != RouteType::Unicast) {
        Way::Unknown("is this host's own")
    } else if routes.iter().any(has_gateway) {
        Way::Unknown("is behind a gateway")
    } else {
        Way::AnotherLink
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
