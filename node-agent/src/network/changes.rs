//! Whether somebody has changed the host's links or addresses, by the kernel's own announcements (rtnetlink(7)).

use futures_util::StreamExt;
use futures_util::stream::FusedStream;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::task::JoinHandle;

use super::NetworkError;

type Announcement = NetlinkMessage<RouteNetlinkMessage>;

/// Announcements of changes in one network namespace.
pub(crate) struct Changes {
    announced: Box<dyn FusedStream<Item = Announcement> + Unpin + Send>,
    connection: JoinHandle<()>,
}

impl Changes {
    /// Begins to listen in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetworkError::Socket`].
    pub(crate) fn listen() -> Result<Self, NetworkError> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];
        let (connection, _, announced) = new_multicast_connection(&groups).map_err(|source| {
            NetworkError::Socket { what: "changes of the host's links can't be listened for", source }
        })?;
        let announced = Box::new(announced.map(|(announcement, _)| announcement).fuse());
        Ok(Self { announced, connection: tokio::spawn(connection) })
    }

    /// Returns when something has changed. What was announced meanwhile is one change.
    pub(crate) async fn next(&mut self) {
        if self.announced.next().await.is_none() {
            // The kernel says nothing any more: what is asked at other times has to do.
            std::future::pending::<()>().await;
        }
        while let Some(Some(_)) = futures_util::FutureExt::now_or_never(self.announced.next()) {}
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
