//! Who is connected: one agent by each name.
//!
//! ```text
//!                 nobody has the name ------------------------------> in
//!  Hello of a ->  its holder is this very process, at this address -> in, the old connection is closed
//!                 somebody else has it ----> answers ---------------> refused, both addresses are told
//!                                   \------> does not, for PROBE ---> in, the old connection is closed
//! ```
//! An agent that was killed and started again is the third case: nothing tells it from a copy of its host but that the old
//! process does not answer. The same process at another address is too: a copy of a running machine is the same process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, VarInt};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout_at};
use toll_protocol::message::{Instance, ToAgent};

use super::{OUTGOING, TransportError};

/// How long the holder of a name has to answer. QUIC repeats an unanswered question several times meanwhile (RFC 9002, 6.2).
pub const PROBE: Duration = Duration::from_secs(2);
/// Between two looks whether it has: quinn counts acknowledgements and tells of none.
const LOOK: Duration = Duration::from_millis(10);
/// Holders that may turn out to be gone, one after the other, before a newcomer is to try again.
const PROBES: usize = 2;
/// Agents that may be connected.
const MOST: usize = 4096;

/// A connection with a name.
struct Holder {
    session: u64,
    instance: Instance,
    connection: Connection,
    outgoing: mpsc::Sender<ToAgent>,
}

/// Everybody who is connected.
#[derive(Default)]
pub struct Roster(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    holders: HashMap<String, Holder>,
    /// Number of the last connection that got a name.
    last: u64,
}

impl Roster {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `name` to a connection if it may have it: its number, larger than that of any connection before, and what it
    /// is to be told.
    pub async fn enter(
        &self,
        name: &str,
        instance: Instance,
        connection: &Connection,
    ) -> Result<(u64, mpsc::Receiver<ToAgent>), TransportError> {
        // The holder that has been asked and did not answer.
        let mut gone = None;
        for _ in 0..=PROBES {
            let (session, holder) = {
                let mut inner = self.lock();
                match inner.holders.get(name) {
                    Some(holder)
                        if !holder.gives_way(instance, connection) && gone != Some(holder.session) =>
                    {
                        (holder.session, holder.connection.clone())
                    }
                    None if inner.holders.len() >= MOST => return Err(TransportError::Full),
                    _ => return Ok(inner.take(name, instance, connection.clone())),
                }
            };
            if answers(&holder).await {
                let (holder, newcomer) = (holder.remote_address(), connection.remote_address());
                return Err(TransportError::Taken { name: name.to_owned(), holder, newcomer });
            }
            gone = Some(session);
        }
        Err(TransportError::Busy { name: name.to_owned() })
    }

    /// The connection has ended: its name is free, unless a newer one has it.
    pub fn leave(&self, name: &str, session: u64) {
        let mut inner = self.lock();
        if inner.holders.get(name).is_some_and(|holder| holder.session == session) {
            inner.holders.remove(name);
        }
    }

    /// Whether `message` is on its way to the agent of that name.
    pub fn send(&self, name: &str, message: ToAgent) -> bool {
        let inner = self.lock();
        inner.holders.get(name).is_some_and(|holder| holder.outgoing.try_send(message).is_ok())
    }

    /// Closes the connection, with a reason for the agent's log.
    pub fn dismiss(&self, name: &str, session: u64, why: &str) {
        let inner = self.lock();
        if let Some(holder) = inner.holders.get(name).filter(|holder| holder.session == session) {
            holder.connection.close(VarInt::from_u32(1), why.as_bytes());
        }
    }

    /// Lets everybody go: what waits is still written, and nobody can be told anything more.
    pub fn clear(&self) {
        self.lock().holders.clear();
    }
}

impl Inner {
    fn take(
        &mut self,
        name: &str,
        instance: Instance,
        connection: Connection,
    ) -> (u64, mpsc::Receiver<ToAgent>) {
        self.last += 1;
        let (session, (outgoing, queue)) = (self.last, mpsc::channel(OUTGOING));
        let holder = Holder { session, instance, connection, outgoing };
        if let Some(old) = self.holders.insert(name.to_owned(), holder) {
            old.connection
                .close(VarInt::from_u32(1), b"a newer connection of this agent has taken its place");
        }
        (session, queue)
    }
}

impl Holder {
    /// Whether a newcomer need not ask for the name: the holder is gone, or it is the newcomer's own former connection.
    fn gives_way(&self, instance: Instance, newcomer: &Connection) -> bool {
        let same_address = self.connection.remote_address().ip() == newcomer.remote_address().ip();
        self.connection.close_reason().is_some() || (self.instance == instance && same_address)
    }
}

/// Whether the other side of a connection acknowledges something that is sent to it now, within [`PROBE`].
async fn answers(connection: &Connection) -> bool {
    let acknowledged = || connection.stats().frame_rx.acks;
    let before = acknowledged();
    // An empty datagram (RFC 9221): it has to be acknowledged and says nothing. Where there is no way to send one, the
    // keep-alive does the same, within a second.
    let _ = connection.send_datagram(Default::default());
    let mut look = interval(LOOK);
    let answer = async {
        while acknowledged() == before && connection.close_reason().is_none() {
            look.tick().await;
        }
    };
    let in_time = timeout_at(Instant::now() + PROBE, answer).await.is_ok();
    in_time && connection.close_reason().is_none()
}
