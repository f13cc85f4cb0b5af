//! Which way payload goes between the two ends of a trial, and which of them opens the connection.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which way the payload bytes go, seen from an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// This end sends.
    Send,
    /// This end receives.
    Receive,
    /// This end sends and receives at the same time.
    Both,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Send, Self::Receive, Self::Both];

    /// The other end's direction.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Send => Self::Receive,
            Self::Receive => Self::Send,
            Self::Both => Self::Both,
        }
    }

    /// Whether the end sends payload.
    pub const fn sends(self) -> bool {
        matches!(self, Self::Send | Self::Both)
    }

    /// Whether the end receives payload.
    pub const fn receives(self) -> bool {
        matches!(self, Self::Receive | Self::Both)
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Both => "both",
        })
    }
}

/// Which end opens the TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Open {
    /// Passive OPEN (RFC 9293, 3.9.1): listens, and its address is the other end's peer.
    Listen,
    /// Active OPEN: connects to the peer named by `Start`.
    Connect,
}

impl Open {
    /// What the other end does.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Listen => Self::Connect,
            Self::Connect => Self::Listen,
        }
    }
}
