//! What one trial asks of the two hosts it runs on. A campaign is planned into these once; an agent gets the
//! end that is its own and needs nothing else to run it.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use crate::adapters::{Adapter, PcnetSwitches, QueuePairs, SendCombining, VirtioNetSwitches};
use crate::decorators::Decorators;
pub use crate::direction::{Direction, Open};
pub use crate::engine::Engine;
pub use crate::port::{NetworkMode, Port};
use crate::traffic::Job;
use crate::units::{InterfaceAddress, MacAddress, Span};

/// Names a trial everywhere: in messages, in the ledger and on everything an agent creates for it.
/// 48 random-looking bits, written as 12 hexadecimal digits, so that it fits an interface name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrialId(u64);

impl TrialId {
    /// The id made from the low 48 bits of `bits`.
    pub const fn new(bits: u64) -> Self {
        Self(bits & 0xffff_ffff_ffff)
    }

    /// Its bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The id of the end at the far side of a trial whose ends stand on one host: the agent there has two of them, and
    /// each is to it what a trial is otherwise. Ids that are drawn have the bit clear.
    pub const fn far(self) -> Self {
        Self(self.0 | FAR)
    }

    /// The trial's own id, of either end.
    pub const fn near(self) -> Self {
        Self(self.0 & !FAR)
    }
}

/// The highest of 48 bits.
const FAR: u64 = 1 << 47;

impl fmt::Display for TrialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

impl FromStr for TrialId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() == 12 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u64::from_str_radix(text, 16) {
            Ok(bits) if digits => Ok(Self(bits)),
            _ => Err(format!("`{text}` is no trial id: 12 hexadecimal digits")),
        }
    }
}

impl Serialize for TrialId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for TrialId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TrialId".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"description": "Names a trial.", "type": "string", "pattern": "^[0-9a-fA-F]{12}$"})
    }
}

impl<'de> Deserialize<'de> for TrialId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// TCP congestion controls that native ends ask for, the first that the host has: cubic (RFC 9438), else reno
/// (RFC 5681). The host's own default may be another and would make two hosts differ.
pub const CONGESTION_CONTROLS: [&str; 2] = ["cubic", "reno"];

/// Which program a native end runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NativeProgram {
    /// `toll-endpoint` over kernel sockets.
    Endpoint,
    /// iperf3, where it is installed.
    Iperf3,
}

/// What stands at one end of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EndKind {
    /// The host's kernel TCP, no virtualisation.
    Native {
        /// Who produces the traffic.
        program: NativeProgram,
    },
    /// A program behind a virtual adapter.
    Virtual {
        /// What runs the program.
        engine: Engine,
        /// What it has of a network.
        nic: Nic,
    },
}

/// The network interface of a virtual end, from its registers to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Nic {
    /// The adapter model.
    pub adapter: Adapter,
    /// The host side of it.
    pub port: Port,
    /// What stands between the two.
    #[serde(default)]
    pub decorators: Decorators,
}

/// Everything an agent needs to run its end of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndSpec {
    /// What stands at this end.
    pub kind: EndKind,
    /// Its part in the traffic.
    pub job: Job,
    /// Address of a virtual end. A native end uses the address of the host's test NIC.
    pub address: InterfaceAddress,
    /// Who takes what a virtual end sends to other networks.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// Where the other end is, as its host told: this end talks to nobody else. `None` in a plan, whose hosts are not
    /// known yet.
    #[serde(default)]
    pub peer: Option<Ipv4Addr>,
    /// MAC address of a virtual end.
    pub mac: MacAddress,
    /// MTU of the path, in bytes of IP packet.
    pub mtu: u16,
    /// CPU to pin the vCPU (or the same-stack thread, or the endpoint's traffic thread) to: the machine's number in
    /// what an agent gets; in a plan, whose hosts are not known yet, counted from 0 among the host's own.
    pub cpu: Option<u32>,
    /// The same for the adapter's own thread.
    #[serde(default)]
    pub io_cpu: Option<u32>,
    /// How long after `Start` the end may take before it is stopped and counted as failed.
    pub deadline: Span,
}

impl EndSpec {
    /// An end that is not pinned, without a gateway, whose peer is not known yet.
    pub fn new(
        kind: EndKind,
        job: Job,
        address: InterfaceAddress,
        mac: MacAddress,
        mtu: u16,
        deadline: Span,
    ) -> Self {
        Self { kind, job, address, gateway: None, peer: None, mac, mtu, cpu: None, io_cpu: None, deadline }
    }
}

impl EndKind {
    /// The label of the adapter of an end that has none of its own: the host's NIC.
    pub const HOST_NIC: &'static str = "host-nic";

    /// A virtual end with nothing between its adapter and its port.
    pub const fn behind(engine: Engine, adapter: Adapter, port: Port) -> Self {
        let decorators = Decorators { impairments: None, capture: None };
        Self::Virtual { engine, nic: Nic { adapter, port, decorators } }
    }

    /// The network interface of a virtual end.
    pub const fn nic(&self) -> Option<&Nic> {
        match self {
            Self::Native { .. } => None,
            Self::Virtual { nic, .. } => Some(nic),
        }
    }

    /// What runs a virtual end's program.
    pub const fn engine(&self) -> Option<Engine> {
        match self {
            Self::Native { .. } => None,
            Self::Virtual { engine, .. } => Some(*engine),
        }
    }

    /// The host side of a virtual end's adapter.
    pub fn port(&self) -> Option<Port> {
        self.nic().map(|nic| nic.port)
    }

    /// How a virtual end is on a network.
    pub fn network_mode(&self) -> Option<NetworkMode> {
        self.port().map(Port::mode)
    }

    /// What stands between a virtual end's adapter and its port.
    pub fn decorators(&self) -> Decorators {
        self.nic().map(|nic| nic.decorators).unwrap_or_default()
    }

    /// Whether it is the host's own TCP.
    pub const fn is_native(&self) -> bool {
        matches!(self, Self::Native { .. })
    }

    /// Whether it is a KVM guest: it needs KVM, and it has exits.
    pub fn is_guest(&self) -> bool {
        self.engine().is_some_and(|engine| engine.traits().guest)
    }

    /// `native`, `same-stack` or `guest`: a metric label, and the class of a report's colours.
    pub fn label(&self) -> &'static str {
        self.engine().map_or("native", |engine| engine.traits().end)
    }

    /// The adapter's name, without its switches: a metric label.
    pub fn adapter_label(&self) -> String {
        self.nic().map_or_else(|| Self::HOST_NIC.to_owned(), |nic| nic.adapter.to_string())
    }
}

/// An agent's answer to `Prepare`: its end is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndReady {
    /// Where the other end finds this one.
    pub address: SocketAddrV4,
}
