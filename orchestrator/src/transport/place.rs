//! How long a connection holds its place: until QUIC has forgotten it.
//!
//! ```text
//! Initial --admitted--> held --Welcome--> an agent's, given back --its end--> held --QUIC forgets it--> given back
//!                        |                                                                                 ^
//!                        +---- the handshake or the Hello fails: closing, draining (RFC 9000, 10.2) -------+
//! ```
//! Who has no certificate can have a connection remembered long after its handshake has failed: for three probe timeouts, in
//! which the peer's delays have a part, or for the idle timeout.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use quinn::{ServerConfig, TimeSource};

use super::admission::{Admission, Place, Verdict};

/// Who is let in: the places, which every connection shares.
#[derive(Clone, Default)]
pub struct Door(Arc<Mutex<Admission>>);

impl Door {
    fn lock(&self) -> MutexGuard<'_, Admission> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of one more handshake from `address`, which is `proved` or not.
    pub fn admit(&self, address: IpAddr, proved: bool) -> Verdict {
        self.lock().admit(address, proved)
    }

    /// Holds a place that was admitted.
    pub fn hold(&self, place: Place) -> Arc<Held> {
        Arc::new(Held { door: self.clone(), place, agent: Mutex::new(false) })
    }

    /// Places that are held.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.lock().held()
    }
}

/// The place of one connection. It is given back when the last one who knows of it has dropped it, and that is QUIC.
pub struct Held {
    door: Door,
    place: Place,
    /// Whether the connection is an agent's, which needs no place.
    agent: Mutex<bool>,
}

impl Held {
    /// The configuration of the connection: `config`, with this in it.
    ///
    /// quinn tells nobody that it forgets a connection; it drops what the connection has, and the configuration is that
    /// connection's own. The clock is the part of it that is easily made.
    pub fn config(self: &Arc<Self>, config: &ServerConfig) -> Arc<ServerConfig> {
        let mut config = config.clone();
        config.time_source(self.clone());
        Arc::new(config)
    }

    /// The connection is an agent's from now on: these have a bound of their own.
    pub fn enters(&self) {
        self.is_agents(true);
    }

    /// The agent's connection has ended, and QUIC remembers it for a while.
    pub fn leaves(&self) {
        self.is_agents(false);
    }

    fn is_agents(&self, is: bool) {
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *agent, is) == is {
            return;
        }
        let mut admission = self.door.lock();
        if is { admission.over(self.place) } else { admission.back(self.place) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Unless it has been given back.
        self.is_agents(true);
    }
}

impl TimeSource for Held {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
