//! Which process of an agent a new connection is from. Pure.

use std::net::IpAddr;

use crate::transport::Session;

/// Which process of an agent is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    /// The one that was there before.
    Same,
    /// Another one, at the same address.
    Restarted,
    /// Another one at another address, after the one before no longer answered.
    Replaced { before: IpAddr, now: IpAddr },
    /// The one before was another orchestrator's, if there was one.
    First,
}

impl Process {
    /// Whose the connection `now` is, after the one `before`.
    pub fn of(before: Option<Session>, now: Session) -> Self {
        match before {
            None => Self::First,
            Some(before) if before.instance == now.instance => Self::Same,
            Some(before) if before.address == now.address => Self::Restarted,
            Some(before) => Self::Replaced { before: before.address, now: now.address },
        }
    }

    /// Why the agent of `host` does not hold a trial that it was in: what is known, and no more.
    pub fn forgot(self, host: &str) -> String {
        match self {
            Self::Same => format!("the agent of {host} has lost it, though it is still the same process"),
            Self::Restarted => {
                format!("the agent of {host} has forgotten it: the agent had to be started again")
            }
            Self::Replaced { before, now } => format!(
                "the agent of {host} at {before} no longer answered, and another agent of that name, at {now}, does not \
                 know it"
            ),
            Self::First => {
                format!("the orchestrator was started again, and the agent of {host} came back without it")
            }
        }
    }
}
