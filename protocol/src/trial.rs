//! What one trial asks of the two hosts it runs on. A campaign is planned into these once; an agent gets the
//! end that is its own and needs nothing else to run it.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::decorators::Decorators;
use crate::traffic::Job;
use crate::units::numbers::{self, Seconds};
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

/// TCP congestion controls that native ends ask for, the first that the host has: cubic (RFC 9438), else reno
/// (RFC 5681). The host's own default may be another and would make two hosts differ.
pub const CONGESTION_CONTROLS: [&str; 2] = ["cubic", "reno"];

/// A virtual Ethernet adapter and the switches of its optimisations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Adapter {
    /// AMD Am79C970A: registers and rings of 2001.
    Pcnet(PcnetSwitches),
    /// virtio 1.2 network device over MMIO: rings in shared memory.
    VirtioNet(VirtioNetSwitches),
}

/// The adapter's name, without its switches: a metric label.
impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcnet(_) => "pcnet",
            Self::VirtioNet(_) => "virtio-net",
        })
    }
}

impl Adapter {
    /// Names of the switches that are on, as a campaign writes them.
    pub fn switches(&self) -> Vec<&'static str> {
        match self {
            Self::Pcnet(switches) => switches.names(),
            Self::VirtioNet(switches) => switches.names(),
        }
    }
}

/// The three optimisations of the 2001 paper (Sugerman, Venkitachalam, Lim, USENIX 2001). All off: every register access of
/// the driver exits, and does at once what it asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PcnetSwitches {
    /// Accesses that need nothing of the host don't leave the kernel: writes of the address register are collected there
    /// (KVM_CAP_COALESCED_PIO), and done in their order before anything that can observe them.
    pub io_in_kernel: bool,
    /// While the guest exits often, frames that it sends wait for each other in its ring.
    pub send_combining: Option<SendCombining>,
    /// Whether frames have come is seen in memory shared with the kernel, instead of by a system call after each access.
    pub irq_notification: bool,
}

/// How sends are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendCombining {
    /// Frames that may wait: with the last of so many all are sent.
    pub threshold: u32,
    /// Exits a second from which on frames wait.
    pub rate: u32,
    /// Period of the counter of exits, and the longest time that a frame waits.
    #[serde(rename = "tick_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub tick: Span,
}

impl Default for SendCombining {
    /// The threshold and the host's clock tick (100 Hz) of the paper; a rate that any guest has which sends.
    fn default() -> Self {
        Self { threshold: 3, rate: 1000, tick: Span::from_millis(10) }
    }
}

impl PcnetSwitches {
    /// All off.
    pub const OFF: Self = Self { io_in_kernel: false, send_combining: None, irq_notification: false };

    fn names(self) -> Vec<&'static str> {
        let Self { io_in_kernel, send_combining, irq_notification } = self;
        let all = [
            (io_in_kernel, "ioInKernel"),
            (send_combining.is_some(), "sendCombining"),
            (irq_notification, "irqNotification"),
        ];
        all.into_iter().filter_map(|(on, name)| on.then_some(name)).collect()
    }
}

/// Optimisations of `virtio-net`; clauses are those of virtio 1.2. All off: frames whole, checksums in software.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VirtioNetSwitches {
    /// TCP checksums are left to the host, both ways: VIRTIO_NET_F_CSUM and VIRTIO_NET_F_GUEST_CSUM (5.1.3).
    pub checksum_offload: bool,
    /// TCP segments of up to 64 KiB cross the adapter, both ways: VIRTIO_NET_F_HOST_TSO4, _HOST_TSO6, _GUEST_TSO4 and
    /// _GUEST_TSO6. Needs `checksum_offload` (5.1.3.1).
    pub tso: bool,
    /// A received frame may lie in several buffers: VIRTIO_NET_F_MRG_RXBUF (5.1.6.3.1).
    pub mergeable_buffers: bool,
    /// Each side says from which buffer on it wants to be notified: VIRTIO_F_EVENT_IDX (2.7.7.2, 2.7.10).
    pub event_index: bool,
    /// The VMM joins segments of one flow that follow each other into one that the host's stack takes whole, and cuts up
    /// on the other way what the host's stack has joined: the guest knows nothing of it.
    pub segment_combining: bool,
    /// A thread of its own moves the frames, woken by notifications that KVM answers itself (KVM_IOEVENTFD), so that the
    /// guest goes on meanwhile.
    pub io_thread: bool,
    /// The driver says what it wants to receive: VIRTIO_NET_F_CTRL_VQ and what is commanded by it (5.1.6.5).
    pub control_queue: bool,
    /// Pairs of a receive and a transmit queue: VIRTIO_NET_F_MQ (5.1.2). More than one need `control_queue` (5.1.3.1).
    pub queue_pairs: QueuePairs,
}

/// A number of queue pairs, from 1 to [`MAX`](Self::MAX).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct QueuePairs(u8);

impl QueuePairs {
    /// One.
    pub const ONE: Self = Self(1);
    /// Most.
    pub const MAX: u32 = 8;

    /// So many, if there can be.
    pub fn new(count: u32) -> Option<Self> {
        u8::try_from(count).ok().filter(|_| (1..=Self::MAX).contains(&count)).map(Self)
    }

    /// How many.
    pub const fn count(self) -> usize {
        self.0 as usize
    }

    /// The switch that makes it so many; none for one.
    const fn name(self) -> Option<&'static str> {
        match self.0 {
            2 => Some("queuePairs: 2"),
            3 => Some("queuePairs: 3"),
            4 => Some("queuePairs: 4"),
            5 => Some("queuePairs: 5"),
            6 => Some("queuePairs: 6"),
            7 => Some("queuePairs: 7"),
            8 => Some("queuePairs: 8"),
            _ => None,
        }
    }
}

impl Default for QueuePairs {
    fn default() -> Self {
        Self::ONE
    }
}

impl TryFrom<u32> for QueuePairs {
    type Error = String;
    fn try_from(count: u32) -> Result<Self, String> {
        Self::new(count).ok_or_else(|| format!("{count} queue pairs: there are 1 to {}", Self::MAX))
    }
}

impl From<QueuePairs> for u32 {
    fn from(pairs: QueuePairs) -> Self {
        pairs.0.into()
    }
}

impl JsonSchema for QueuePairs {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "QueuePairs".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"description": "Queue pairs.", "type": "integer", "minimum": 1, "maximum": Self::MAX})
    }
}

impl VirtioNetSwitches {
    /// All off.
    pub const OFF: Self = Self {
        checksum_offload: false,
        tso: false,
        mergeable_buffers: false,
        event_index: false,
        segment_combining: false,
        io_thread: false,
        control_queue: false,
        queue_pairs: QueuePairs::ONE,
    };

    /// Whether frames cross the port with a `virtio_net_hdr` before them.
    pub const fn offloads(self) -> bool {
        self.checksum_offload || self.tso || self.segment_combining
    }

    fn names(self) -> Vec<&'static str> {
        let Self {
            checksum_offload,
            tso,
            mergeable_buffers,
            event_index,
            segment_combining,
            io_thread,
            control_queue,
            queue_pairs,
        } = self;
        let all = [
            (checksum_offload, "checksumOffload"),
            (tso, "tso"),
            (mergeable_buffers, "mergeableBuffers"),
            (event_index, "eventIndex"),
            (segment_combining, "segmentCombining"),
            (io_thread, "ioThread"),
            (control_queue, "controlQueue"),
        ];
        let on = all.into_iter().filter_map(|(on, name)| on.then_some(name));
        on.chain(queue_pairs.name()).collect()
    }
}

/// The host side of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Port {
    /// Whatever the host's [`Wire`](crate::facts::Wire) needs: what a campaign that names no port gets.
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

impl Port {
    /// Whether it is of the host's test NIC, so that the wire there has to have it.
    pub const fn is_on_the_wire(self) -> bool {
        match self {
            Self::Host | Self::Tap | Self::Macvtap => true,
            Self::Hub | Self::Nat => false,
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Tap => "tap",
            Self::Macvtap => "macvtap",
            Self::Hub => "hub",
            Self::Nat => "nat",
        })
    }
}

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
    /// The payload program as a host process on the same adapter model and port: no KVM.
    SameStack {
        /// The adapter model that the process drives.
        adapter: Adapter,
        /// The host side of it.
        port: Port,
    },
    /// A guest that KVM runs.
    Guest {
        /// The guest's adapter.
        adapter: Adapter,
        /// The host side of it.
        port: Port,
    },
}

/// Everything an agent needs to run its end of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndSpec {
    /// What stands at this end.
    pub kind: EndKind,
    /// What stands between a virtual end's adapter and its port.
    pub decorators: Decorators,
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
    /// An end that is not pinned, without a gateway, whose peer is not known yet, and with nothing between its adapter and its
    /// port.
    pub fn new(
        kind: EndKind,
        job: Job,
        address: InterfaceAddress,
        mac: MacAddress,
        mtu: u16,
        deadline: Span,
    ) -> Self {
        Self {
            kind,
            decorators: Decorators::default(),
            job,
            address,
            gateway: None,
            peer: None,
            mac,
            mtu,
            cpu: None,
            io_cpu: None,
            deadline,
        }
    }
}

impl EndKind {
    /// The host side of a virtual end's adapter.
    pub const fn port(&self) -> Option<Port> {
        match self {
            Self::Native { .. } => None,
            Self::SameStack { port, .. } | Self::Guest { port, .. } => Some(*port),
        }
    }
}

/// An agent's answer to `Prepare`: its end is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndReady {
    /// Where the other end finds this one.
    pub address: SocketAddrV4,
}
