//! Ports, the host side of virtual adapters: one list of what each is ([`Port::traits`]), whoever asks for it (a campaign),
//! grants it (a host's wire), makes it ready (an agent) or opens it (a VMM).
//!
//! ```text
//! campaign: Port --a host's Wire grants--> Port --agent makes it ready--> VmmPort --VMM opens--> frames
//! ```

use std::fmt;
use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The host side of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Port {
    /// Whatever the host's [`Wire`] needs: what a campaign that names no port gets.
    Host,
    /// A TAP device on a bridge with the host's test NIC.
    Tap,
    /// A macvtap device on the host's test NIC.
    Macvtap,
    /// A private Ethernet of the two ends of the trial, which stand on one host: a socket pair between their VMMs. No
    /// network of the host is part of it.
    Hub,
    /// Address translation by the VMM itself, which opens a TCP connection of the host for each of the guest's: the guest
    /// can connect, and not be connected to.
    Nat,
}

/// How a virtual end is on a network, by the names that hosted VMMs have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// It is a host on the network of the test NIC, and has an address of its own there.
    Bridged,
    /// It is on a private network with the trial's other end, which stands on the same host.
    HostOnly,
    /// The host connects in its place, from an address of the host, and nobody can connect to it.
    Nat,
}

/// What a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Its name: what a campaign writes, and a metric label.
    pub name: &'static str,
    /// How an end behind it is on a network.
    pub mode: NetworkMode,
    /// Wires of a host that give it; none where it takes no wire.
    pub wires: &'static [Wire],
    /// Whether it takes a TAP device.
    pub needs_tun: bool,
    /// Whether it can have several queues.
    pub multi_queue: bool,
    /// Whether it takes frames without their checksum, and segments to be cut up.
    pub offloads: bool,
}

impl Port {
    /// All of them; of those that a wire gives, the first is what it gives to who names none.
    pub const ALL: [Self; 5] = [Self::Host, Self::Tap, Self::Macvtap, Self::Hub, Self::Nat];

    /// What it is.
    pub const fn traits(self) -> Traits {
        use NetworkMode::{Bridged, HostOnly, Nat};
        use Wire::{Bridge, Exclusive, Macvtap};
        const fn traits(name: &'static str, mode: NetworkMode, wires: &'static [Wire]) -> Traits {
            Traits { name, mode, wires, needs_tun: false, multi_queue: true, offloads: true }
        }
        match self {
            Self::Host => traits("host", Bridged, &[Exclusive, Bridge, Macvtap]),
            Self::Tap => Traits { needs_tun: true, ..traits("tap", Bridged, &[Exclusive, Bridge]) },
            Self::Macvtap => traits("macvtap", Bridged, &[Macvtap]),
            Self::Hub => Traits { multi_queue: false, ..traits("hub", HostOnly, &[]) },
            Self::Nat => Traits { multi_queue: false, offloads: false, ..traits("nat", Nat, &[]) },
        }
    }

    /// How an end behind it is on a network.
    pub const fn mode(self) -> NetworkMode {
        self.traits().mode
    }

    /// Whether it is of the host's test NIC, so that the wire there has to have it.
    pub const fn is_on_the_wire(self) -> bool {
        matches!(self.mode(), NetworkMode::Bridged)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.traits().name)
    }
}

/// How the virtual ends of a host reach the wire that its test NIC is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Wire {
    /// The NIC is the agent's alone: each trial puts it on a bridge of the trial's own, with a TAP.
    Exclusive,
    /// The NIC is a bridge that the host has already: TAPs are put on it, and nothing else is touched.
    Bridge,
    /// A macvtap device on the NIC (mode bridge): the NIC, its addresses and its traffic are untouched.
    Macvtap,
}

impl Wire {
    /// The port that it gives to an end which asks for `port`, or `None` if it can't give that one.
    pub fn port(self, port: Port) -> Option<Port> {
        let gives = |port: &Port| port.traits().wires.contains(&self);
        match port {
            Port::Host => Port::ALL.into_iter().find(|port| *port != Port::Host && gives(port)),
            // Of no wire: any host has it.
            _ if !port.is_on_the_wire() => Some(port),
            _ => Some(port).filter(gives),
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Bridge => "bridge",
            Self::Macvtap => "macvtap",
        })
    }
}

/// The host side of a virtual end's adapter, as the VMM opens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum VmmPort {
    /// A TAP that the VMM creates and the agent puts on a bridge.
    Tap {
        /// Its name, at most 15 bytes.
        name: String,
    },
    /// A macvtap link that the agent has made. The VMM opens its character device by the number, since a network
    /// namespace has no node in /dev of its own.
    Macvtap {
        /// Name of the link, at most 15 bytes: the device of this number must be that link's.
        name: String,
        /// Major number of the device.
        major: u32,
        /// Minor number of the device.
        minor: u32,
    },
    /// One end of a private Ethernet: a socket that keeps the borders of its messages (SOCK_SEQPACKET), each of them a frame.
    Hub {
        /// The descriptor, inherited from the agent.
        descriptor: i32,
    },
    /// Address translation by the VMM itself.
    Nat {
        /// The host's side of it.
        outside: Outside,
    },
}

/// The host's side of address translation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    /// The host's address that the end's connections come from: that of the test NIC.
    pub address: Ipv4Addr,
    /// The test NIC, by which alone they leave.
    pub interface: String,
    /// The one address that they go to.
    pub peer: Ipv4Addr,
    /// Largest TCP segment in bytes, where the trial's MTU is smaller than the NIC's.
    pub segment: Option<u16>,
}

impl VmmPort {
    /// Which port it is.
    pub const fn port(&self) -> Port {
        match self {
            Self::Tap { .. } => Port::Tap,
            Self::Macvtap { .. } => Port::Macvtap,
            Self::Hub { .. } => Port::Hub,
            Self::Nat { .. } => Port::Nat,
        }
    }

    /// Name of the interface, of a port that is one.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Self::Tap { name } | Self::Macvtap { name, .. } => Some(name),
            Self::Hub { .. } | Self::Nat { .. } => None,
        }
    }
}
