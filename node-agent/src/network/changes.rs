//! Whether somebody has changed a link of the host's, or its addresses, by the kernel's own announcements (rtnetlink(7)).

use futures_util::StreamExt;
use futures_util::stream::FusedStream;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::task::JoinHandle;

use super::NetworkError;

type Announcement = NetlinkMessage<RouteNetlinkMessage>;

/// Announcements of changes of one link, in one network namespace.
pub(crate) struct Changes {
    announced: Box<dyn FusedStream<Item = Announcement> + Unpin + Send>,
    connection: JoinHandle<()>,
    link: Watched,
}

impl Changes {
    /// Begins to listen for those of the link `name`, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetworkError::Socket`].
    pub(crate) fn listen(name: &str) -> Result<Self, NetworkError> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];
        let (connection, _, announced) = new_multicast_connection(&groups).map_err(|source| {
            NetworkError::Socket { what: "changes of the host's links can't be listened for", source }
        })?;
        let announced = Box::new(announced.map(|(announcement, _)| announcement).fuse());
        // After the groups were joined: who takes the name from now on is announced.
        let link = Watched { name: name.to_owned(), index: nix::net::if_::if_nametoindex(name).ok() };
        Ok(Self { announced, connection: tokio::spawn(connection), link })
    }

    /// Returns when the link, or its addresses, may have changed. What was announced meanwhile is one change. Hosts of
    /// containers announce others' all the time: nobody hears of these.
    pub(crate) async fn next(&mut self) {
        loop {
            let Some(announcement) = self.announced.next().await else {
                // The kernel says nothing any more: what is asked at other times has to do.
                return std::future::pending().await;
            };
            let mut changed = self.link.is_meant(&announcement.payload);
            while let Some(Some(more)) = futures_util::FutureExt::now_or_never(self.announced.next()) {
                changed |= self.link.is_meant(&more.payload);
            }
            if changed {
                return;
            }
        }
    }
}

/// A link by its name: which one has it changes when it is renamed, or removed and made again.
#[derive(Debug)]
struct Watched {
    name: String,
    index: Option<u32>,
}

impl Watched {
    fn is_meant(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
        match payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
            ) => {
                // A bridge says of a port that it lets go that it is deleted, in its own address family.
                let gone = matches!(payload, NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(_)))
                    && link.header.interface_family == AddressFamily::Unspec;
                let index = Some(link.header.index);
                let has_name = link
                    .attributes
                    .iter()
                    .any(|it| matches!(it, LinkAttribute::IfName(name) if *name == self.name));
                let had_it = self.index == index;
                if has_name && !gone {
                    self.index = index;
                } else if had_it {
                    self.index = None;
                }
                has_name || had_it
            }
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
            ) => self.index == Some(address.header.index),
            // The kernel had more to say than there was room for.
            NetlinkPayload::Overrun(_) => true,
            _ => false,
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::address::AddressMessage;
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    fn link(index: u32, name: &str) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link
    }

    #[test]
    fn what_another_link_announces_is_no_change() {
        let mut watched = Watched { name: "eth0".to_owned(), index: Some(2) };
        let mut is_meant = |message| watched.is_meant(&NetlinkPayload::InnerMessage(message));
        let address = |index| {
            let mut address = AddressMessage::default();
            address.header.index = index;
            address
        };
        use RouteNetlinkMessage::{DelAddress, DelLink, NewAddress, NewLink};
        for other in [NewLink(link(3, "veth1")), NewAddress(address(3)), DelLink(link(3, "veth1"))] {
            assert!(!is_meant(other));
        }
        for own in [NewLink(link(2, "eth0")), NewAddress(address(2)), DelAddress(address(2))] {
            assert!(is_meant(own));
        }
        let mut let_go = link(2, "eth0");
        let_go.header.interface_family = AddressFamily::Bridge;
        assert!(is_meant(DelLink(let_go)) && is_meant(NewAddress(address(2))));
        // It loses its name, which another one takes.
        assert!(is_meant(NewLink(link(2, "old0"))) && !is_meant(NewLink(link(2, "old0"))));
        assert!(!is_meant(NewAddress(address(2))));
        assert!(is_meant(NewLink(link(4, "eth0"))) && is_meant(NewAddress(address(4))));
        assert!(is_meant(DelLink(link(4, "eth0"))) && !is_meant(NewAddress(address(4))));
        assert!(watched.is_meant(&NetlinkPayload::Overrun(Vec::new())));
    }
}
