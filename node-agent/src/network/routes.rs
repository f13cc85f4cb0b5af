//! Addresses and routes as rtnetlink(7) tells them: whom the host is, and what leads where.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
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

/// Whether a default route of the main table leaves through the link.
pub(super) async fn has_default_route(handle: &Handle, link: &Link) -> Result<bool, NetworkError> {
    let routes = default_routes(handle).await?;
    Ok(routes.iter().any(|route| leaves_through(route, link.index)))
}

/// Index of the link that the default route leaves through: the one of the lowest metric, IPv4 before IPv6.
pub(super) async fn default_link(handle: &Handle) -> Result<Option<u32>, NetworkError> {
    let routes = default_routes(handle).await?;
    let best = routes.iter().filter_map(|route| Some((metric(route), first_link(route)?)));
    // Of equals the first: the kernel lists IPv4 first, since it was asked first.
    Ok(best.min_by_key(|(metric, _)| *metric).map(|(_, index)| index))
}

/// The default routes of the main table, those of IPv4 first.
async fn default_routes(handle: &Handle) -> Result<Vec<RouteMessage>, NetworkError> {
    let error = |source| NetworkError::netlink("the routes could not be listed", source);
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let mut routes = handle.route().get(question).execute();
        while let Some(route) = routes.try_next().await.map_err(error)? {
            if route.header.destination_prefix_length == 0
                && route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.kind == RouteType::Unicast
            {
                found.push(route);
            }
        }
    }
    Ok(found)
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
