//! What the service asks of the fleet's connections beside the events of the scheduler. Pure.

use std::net::IpAddr;

use super::{Now, Scheduler};

impl Scheduler {
    /// Whether there is room for `host` among `most` hosts. The one that has been away longest, and that nobody waits for,
    /// gives way to one that comes.
    pub fn has_room_for(&mut self, host: &str, most: usize) -> bool {
        let campaigns = &self.campaigns;
        self.fleet.has_room_for(host, most, |host| campaigns.iter().any(|active| active.wants(host)))
    }

    /// Whether a connection of this number is newer than all that the agent of `host` had before.
    pub fn is_newer(&self, host: &str, session: u64) -> bool {
        self.fleet.is_newer(host, session)
    }

    /// Whether the agent of `host` speaks on the connection of this number.
    pub fn hears(&self, host: &str, session: u64) -> bool {
        self.fleet.session(host) == Some(session)
    }

    /// An agent that wants to be `host` was refused. Whether that is news.
    pub fn refused(&mut self, host: &str, holder: IpAddr, newcomer: IpAddr, now: Now) -> bool {
        self.fleet.refused(host, holder, newcomer, now.elapsed)
    }
}
