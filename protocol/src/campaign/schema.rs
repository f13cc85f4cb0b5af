//! The campaign document as users write it: `toll.dev/v1alpha1`, kind `Campaign`. Only its shape; what the values
//! must be is in [`super::validate`]. Unions are structs of which exactly one field is set, as Kubernetes writes
//! them, so that the very file is also the Kubernetes object.

pub mod gate;

use std::collections::BTreeMap;

pub use gate::Gate;
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::limits::{self, ExactlyOne};
pub use crate::engine::GuestOs;
use crate::result::PaperArm;
use crate::traffic::Workload;
use crate::trial::Direction;
use crate::units::{BitRate, Bytes, Percent, Span};

const NO_PEERS: &str = "is empty: write `[native]`, `[same-arm]` or both";
const ONE_ADAPTER: ExactlyOne =
    ExactlyOne { of: &[], say: "must be exactly one adapter: `{pcnet: {}}` or `{virtioNet: {}}`" };
const ONE_PORT: ExactlyOne = ExactlyOne {
    of: &[],
    say: "must be exactly one port: `{tap: {}}`, `{macvtap: {}}`, `{hub: {}}` or `{nat: {}}`; leave it out for what the \
          host's agent offers",
};

/// The whole document.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    /// `toll.dev/v1alpha1`, as the parser has seen to.
    pub api_version: String,
    /// `Campaign`, likewise.
    pub kind: String,
    /// Name and labels.
    pub metadata: Metadata,
    /// What to measure.
    pub spec: Spec,
    /// What a cluster said of the object; without meaning in a file.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub status: IgnoredAny,
}

/// Object metadata: all that an object of Kubernetes has, so that one is taken as kubectl writes it. To Toll the name
/// alone has a meaning.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Name of the campaign.
    #[schemars(extend("x-name" = true))]
    pub name: String,
    /// Where it is in a cluster.
    pub namespace: Option<String>,
    /// For whoever selects objects.
    pub labels: Option<BTreeMap<String, String>>,
    /// For other programs.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Set by a server, as are all that follow.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub creation_timestamp: IgnoredAny,
    /// Of an object that is being deleted.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub deletion_grace_period_seconds: IgnoredAny,
    /// The same.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub deletion_timestamp: IgnoredAny,
    /// Who must agree to a deletion.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub finalizers: IgnoredAny,
    /// What the name was made of.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub generate_name: IgnoredAny,
    /// Counts changes of the spec.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub generation: IgnoredAny,
    /// Who set which field.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub managed_fields: IgnoredAny,
    /// Objects that it belongs to.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub owner_references: IgnoredAny,
    /// Counts changes.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub resource_version: IgnoredAny,
    /// Of old servers.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub self_link: IgnoredAny,
    /// Which object of this name it is.
    #[serde(default)]
    #[schemars(with = "Anything")]
    pub uid: IgnoredAny,
}

/// A value that nobody looks at.
type Anything = serde_json::Value;

/// What to measure.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Where.
    pub hosts: Hosts,
    /// Between which hosts. Default `all`.
    #[serde(default)]
    pub pairs: Pairs,
    /// What stands at the ends.
    #[schemars(length(max = limits::MAX_ENTRIES))]
    #[schemars(extend("x-named" = "arm", "x-not-empty" = "is empty: a campaign needs at least one arm"))]
    pub arms: Vec<Arm>,
    /// The traffic.
    #[schemars(length(max = limits::MAX_ENTRIES))]
    #[schemars(extend("x-named" = "workload", "x-not-empty" = "is empty: a campaign needs at least one workload"))]
    pub workloads: Vec<Workload>,
    /// What virtual arms are measured against. Default `[native]`.
    #[schemars(extend("x-distinct" = "peer", "x-not-empty" = NO_PEERS))]
    pub peers: Option<Vec<Peer>>,
    /// Repetitions of every arm. Default 5.
    #[schemars(extend("x-range" = limits::BLOCKS))]
    pub blocks: Option<u32>,
    /// Seed of the order; drawn and recorded if absent.
    pub seed: Option<u64>,
    /// What must hold for exit code 0.
    #[serde(default)]
    #[schemars(length(max = limits::MAX_ENTRIES))]
    pub gates: Vec<Gate>,
}

/// Where a campaign runs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hosts {
    /// Hosts of a fleet or cluster.
    pub select: Option<Select>,
    /// Virtual hosts that `toll run` makes on one machine.
    pub lab: Option<Lab>,
    /// MTU of every trial in bytes of IP packet, which every host's NIC must carry. Default: that of the NICs, which
    /// must be one.
    #[schemars(extend("x-range" = limits::MTU))]
    pub mtu: Option<u32>,
}

/// Selects hosts by the labels of their agents.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Select {
    /// Labels that a host must have; empty selects every host.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// The campaign waits until so many hosts are there. Default 2.
    #[schemars(extend("x-range" = limits::SELECTED))]
    pub at_least: Option<u32>,
}

/// A lab of virtual hosts.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lab {
    /// How many hosts, 2 to 16.
    #[schemars(extend("x-range" = limits::HOSTS))]
    pub count: u32,
    /// The link of each.
    #[serde(default)]
    pub link: Link,
}

/// A lab host's link.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// Rate in each direction; without it the link is as fast as the machine.
    #[schemars(extend("x-range" = limits::LINK_RATE))]
    pub rate: Option<BitRate>,
    /// MTU in bytes of IP packet. Default 1500.
    #[schemars(extend("x-range" = limits::MTU))]
    pub mtu: Option<u32>,
}

/// Which hosts are paired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Pairs {
    /// Every two hosts once.
    #[default]
    All,
    /// Each host with the next, the last with the first.
    Ring,
}

/// What stands at the ends: exactly one of `native`, `sameStack`, `guest`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Arm {
    /// Name, unique in the campaign.
    #[schemars(extend("x-name" = true))]
    pub name: String,
    /// The host's own kernel TCP.
    pub native: Option<Native>,
    /// The payload program as a host process.
    pub same_stack: Option<SameStack>,
    /// A guest.
    pub guest: Option<Guest>,
    /// Replaces the campaign's `peers` for this arm.
    #[schemars(extend("x-distinct" = "peer", "x-not-empty" = NO_PEERS))]
    pub peers: Option<Vec<Peer>>,
    /// Which arm of the paper of 2001 it stands for: the report sets the paper's figures beside it.
    pub paper: Option<PaperArm>,
}

/// A native end.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Native {
    /// Who produces the traffic. Default `endpoint`.
    pub program: Option<Program>,
    /// CPU of the traffic thread.
    pub pin: Option<NativePin>,
}

/// A native end's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Program {
    /// Toll's own endpoint.
    Endpoint,
    /// iperf3, where it is installed.
    Iperf3,
}

/// Pinning of a native end.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NativePin {
    /// CPU of the traffic thread, counted from 0 among those that its host has.
    pub traffic: u32,
}

/// A same-stack end.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SameStack {
    /// The adapter model that the program drives.
    pub adapter: Adapter,
    /// The host side of it. Default: what the host's agent offers.
    pub port: Option<Port>,
    /// A wire that is worse than it is.
    pub impairments: Option<Impairments>,
    /// A capture of what crosses the port, `{}` for one of 64MiB at most.
    pub capture: Option<Capture>,
    /// Pinning.
    pub pin: Option<VirtualPin>,
}

/// A guest end.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Guest {
    /// What it runs.
    pub os: GuestOs,
    /// Its adapter.
    pub adapter: Adapter,
    /// The host side of it. Default: what the host's agent offers.
    pub port: Option<Port>,
    /// A wire that is worse than it is.
    pub impairments: Option<Impairments>,
    /// A capture of what crosses the port, `{}` for one of 64MiB at most.
    pub capture: Option<Capture>,
    /// Pinning.
    pub pin: Option<VirtualPin>,
}

/// Pinning of a virtual end.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualPin {
    /// CPU of the vCPU thread, counted from 0 among those that its host has: a lab gives each host some of the
    /// machine's.
    pub vcpu: u32,
    /// The same for the thread of `ioThread: true`. Where it is left out, that thread runs where the system lets it.
    pub io: Option<u32>,
}

/// An adapter: exactly one of `pcnet`, `virtioNet`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-exactly-one" = ONE_ADAPTER))]
pub struct Adapter {
    /// AMD Am79C970A.
    pub pcnet: Option<Pcnet>,
    /// virtio 1.2 network device.
    pub virtio_net: Option<VirtioNet>,
}

/// Switches of `pcnet`, all off unless set: the three optimisations of the 2001 paper.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pcnet {
    /// Accesses that need nothing of the host don't leave the kernel; for guests. Default false.
    pub io_in_kernel: Option<bool>,
    /// While the guest exits often, frames that it sends wait for each other; `{}` for the paper's way. Default: no.
    pub send_combining: Option<SendCombining>,
    /// Whether frames have come is seen in shared memory instead of by a system call. Default false.
    pub irq_notification: Option<bool>,
}

/// How sends are combined.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SendCombining {
    /// Frames that may wait: with the last of so many all are sent, 1 to 512. Default 3.
    #[schemars(extend("x-range" = limits::COMBINED))]
    pub threshold: Option<u32>,
    /// Exits a second from which on frames wait, 0 to 1000000. Default 1000.
    #[schemars(extend("x-range" = limits::EXIT_RATE))]
    pub rate: Option<u32>,
    /// The longest time that a frame waits, 100us to 1s. Default 10ms.
    #[schemars(extend("x-range" = limits::TICK))]
    pub tick: Option<Span>,
}

/// Switches of `virtioNet`, all off unless set.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtioNet {
    /// TCP checksums are left to the host, both ways. Default false.
    pub checksum_offload: Option<bool>,
    /// TCP segments of up to 64KiB cross the adapter, both ways; needs `checksumOffload`. Default false.
    pub tso: Option<bool>,
    /// A received frame may lie in several of the guest's buffers. Default false.
    pub mergeable_buffers: Option<bool>,
    /// Guest and adapter say from which buffer on they want to be notified. Default false.
    pub event_index: Option<bool>,
    /// The VMM joins the guest's TCP segments for the host's stack, and cuts up what that stack has joined. Default false.
    pub segment_combining: Option<bool>,
    /// A thread of its own moves the frames while the guest goes on. Default false.
    pub io_thread: Option<bool>,
    /// The guest's driver says which frames it wants, and by how many queue pairs. Default false.
    pub control_queue: Option<bool>,
    /// Pairs of a receive and a transmit queue, 1 to 8; more than one need `controlQueue` and a port with as many: a TAP or
    /// a macvtap. Default 1.
    #[schemars(extend("x-range" = limits::QUEUE_PAIRS))]
    pub queue_pairs: Option<u32>,
}

/// A port: at most one field; without one it is what the host's agent offers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-exactly-one" = ONE_PORT))]
pub struct Port {
    /// A TAP on a bridge with the host's test NIC.
    pub tap: Option<Tap>,
    /// A macvtap on the host's test NIC, whose own addresses and traffic are untouched.
    pub macvtap: Option<Macvtap>,
    /// A private Ethernet between two guests of one host; for peers of the same arm.
    pub hub: Option<Hub>,
    /// The guest's connections become the host's own; for native peers, and without offloads.
    pub nat: Option<Nat>,
}

/// Switches of `tap`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tap {}

/// Switches of `macvtap`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Macvtap {}

/// Switches of `hub`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hub {}

/// Switches of `nat`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Nat {}

/// What is wrong with the wire behind an adapter, both ways alike; at least one field. What a frame is, is what crosses the
/// port: with offloads up to 64KiB.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Impairments {
    /// Its rate, 64kbit to 1000Gbit. Default: as much as there is.
    #[schemars(extend("x-range" = limits::WIRE_RATE))]
    pub rate: Option<BitRate>,
    /// How long a frame is under way, up to 1s. Default: no longer than it is.
    #[schemars(extend("x-range" = limits::DELAY))]
    pub delay: Option<Span>,
    /// Frames that are lost, 0% to 100%. Default 0%.
    #[schemars(extend("x-range" = limits::SHARE))]
    pub loss: Option<Percent>,
    /// Frames that come twice. Default 0%.
    #[schemars(extend("x-range" = limits::SHARE))]
    pub duplicate: Option<Percent>,
    /// Frames that overtake those before them; needs a delay. Default 0%.
    #[schemars(extend("x-range" = limits::SHARE))]
    pub reorder: Option<Percent>,
}

/// A capture.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Capture {
    /// Size of its file at most, 64KiB to 1GiB: what comes after that is not captured. Default 64MiB.
    #[schemars(extend("x-range" = limits::CAPTURE))]
    pub limit: Option<Bytes>,
}

/// What virtual arms are measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// Kernel TCP on the other host: guest to native.
    Native,
    /// The same arm on the other host: guest to guest.
    SameArm,
}

/// Selects cells.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cells {
    /// Name of an arm.
    pub arm: Option<String>,
    /// Name of a workload.
    pub workload: Option<String>,
    /// A direction.
    pub direction: Option<Direction>,
    /// A peer.
    pub peer: Option<Peer>,
}
