//! What the values of a campaign must be. Every finding is collected, so that a user mends a file in one go.

mod adapters;
mod decorators;
mod gates;
mod ports;

use std::collections::BTreeSet;

use adapters::adapter;
use decorators::decorators;
use gates::gates;
use ports::port;

use super::schema::{self, Document};
use super::{Arm, Campaign, Lab, Select, Step, Workload};
use crate::decorators::Decorators;
use crate::result::Peer;
use crate::traffic::Arms;
use crate::trial::{Adapter, EndKind, NativeProgram, PcnetSwitches, VirtioNetSwitches};
use crate::units::BitRate;

/// IPv4 requires 576 of every host (RFC 791); virtual adapters here take frames up to 9000.
const MTU: std::ops::RangeInclusive<u32> = 576..=9000;
const HOSTS: std::ops::RangeInclusive<u32> = 2..=16;
/// A fleet's hosts in one campaign.
const SELECTED: std::ops::RangeInclusive<u32> = 2..=1000;
const BLOCKS: std::ops::RangeInclusive<u32> = 1..=1000;
const MAX_ARMS: usize = 64;
const MAX_WORKLOADS: usize = 64;
/// Findings that are told of one document: whoever has so many begins with the first.
const MAX_FINDINGS: usize = 50;
const MIN_RATE: u64 = 1_000_000;
/// Trials that a campaign may have: two days of the shortest. A plan is held in memory.
pub const MAX_TRIALS: u64 = 100_000;

/// Something wrong, and the path to it.
#[derive(Debug)]
pub(super) struct Finding {
    pub path: Vec<Step>,
    pub message: String,
}

/// Collects what is wrong in a document while it is descended into.
#[derive(Debug)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// What is found of a value that is looked at from elsewhere, and told at its own place.
    pub(crate) fn aside() -> Self {
        Self(Vec::new())
    }

    /// Each costs a walk through the document, which finds its line: a hostile one could have a hundred thousand.
    pub(crate) fn add(&mut self, path: &[Step], message: impl Into<String>) {
        match self.0.len() {
            ..MAX_FINDINGS => self.0.push(Finding { path: path.to_vec(), message: message.into() }),
            MAX_FINDINGS => self.0.push(Finding { path: Vec::new(), message: "and more is wrong".into() }),
            _ => {}
        }
    }

    /// Finds a value that is out of its range.
    pub(crate) fn range<T: Copy + PartialOrd + std::fmt::Display>(
        &mut self,
        value: T,
        range: &std::ops::RangeInclusive<T>,
        path: &[Step],
    ) {
        if !range.contains(&value) {
            let (least, most) = (range.start(), range.end());
            self.add(path, format!("{value} is out of range: write {least} to {most}"));
        }
    }

    /// Finds values that stand in a list twice.
    pub(crate) fn distinct<T: Ord>(&mut self, values: &[T], path: &[Step], show: impl Fn(&T) -> String) {
        let mut seen = BTreeSet::new();
        for (index, value) in values.iter().enumerate() {
            if !seen.insert(value) {
                self.add(&below(path, &[Index(index)]), format!("{} is listed twice", show(value)));
            }
        }
    }
}

fn below(path: &[Step], steps: &[Step]) -> Vec<Step> {
    [path, steps].concat()
}

use Step::{Field, Index};

/// Checks `document` and turns it into a campaign.
pub(super) fn validate(document: &Document) -> Result<Campaign, Vec<Finding>> {
    let mut findings = Findings(Vec::new());
    let out = &mut findings;
    name(&document.metadata.name, &[Field("metadata"), Field("name")], out);
    let spec = &document.spec;
    let lab = lab(&spec.hosts, out);
    let select = select(&spec.hosts, out);
    let peers = peers(spec.peers.as_deref(), &[Field("spec"), Field("peers")], out);
    let asked = mtu(&spec.hosts, lab, out);
    let mtu = asked.or(lab.map(|lab| lab.mtu)).map(u32::from);
    let arms = arms(spec, &peers, mtu, out);
    let workloads = workloads(spec, mtu, out);
    let blocks = spec.blocks.unwrap_or(5);
    if !BLOCKS.contains(&blocks) {
        let message = format!("{blocks} is out of range: write {} to {}", BLOCKS.start(), BLOCKS.end());
        out.add(&[Field("spec"), Field("blocks")], message);
    }
    if spec.seed.is_some_and(|seed| i64::try_from(seed).is_err()) {
        out.add(&[Field("spec"), Field("seed")], "is over 2^63 - 1, the largest that Kubernetes keeps");
    }
    let gates = gates(spec, out);
    let name = document.metadata.name.clone();
    let at_least = select.as_ref().map(|select| select.at_least);
    let campaign = Campaign {
        name,
        select,
        lab,
        mtu: asked,
        pairs: spec.pairs,
        arms,
        workloads,
        blocks,
        seed: spec.seed,
        gates,
    };
    if let Some(why) =
        [lab.map(|lab| lab.count), at_least].into_iter().flatten().find_map(|hosts| campaign.too_large(hosts))
    {
        out.add(&[Field("spec")], why);
    }
    if findings.0.is_empty() { Ok(campaign) } else { Err(findings.0) }
}

impl Campaign {
    /// Trials that it makes of so many hosts. Saturates.
    pub fn trials(&self, hosts: u32) -> u64 {
        let hosts = u64::from(hosts);
        let pairs = match self.pairs {
            schema::Pairs::All => hosts.saturating_mul(hosts.saturating_sub(1)) / 2,
            schema::Pairs::Ring if hosts == 2 => 1,
            schema::Pairs::Ring => hosts,
        };
        let ends: u64 = self.arms.iter().map(|arm| arm.peers.len() as u64).sum();
        let directions: u64 =
            self.workloads.iter().map(|workload| workload.asks.directions.len() as u64).sum();
        [ends, directions, u64::from(self.blocks)].into_iter().fold(pairs, u64::saturating_mul)
    }

    /// Why it can't be run on so many hosts, if it makes more than [`MAX_TRIALS`] of them.
    pub fn too_large(&self, hosts: u32) -> Option<String> {
        let trials = self.trials(hosts);
        (trials > MAX_TRIALS).then(|| {
            format!(
                "has {trials} trials on {hosts} hosts; at most {MAX_TRIALS} are taken: fewer blocks, arms or hosts"
            )
        })
    }
}

/// RFC 1123 label: what Kubernetes takes as a name, and what is safe in a file name.
fn name(name: &str, path: &[Step], out: &mut Findings) {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = !name.starts_with('-') && !name.ends_with('-');
    if name.is_empty() || name.len() > 63 || !name.chars().all(allowed) || !edges {
        out.add(path, format!("`{name}` is no name: write 1 to 63 of a-z, 0-9 and -, not - at an end"));
    }
}

fn lab(hosts: &schema::Hosts, out: &mut Findings) -> Option<Lab> {
    let path = [Field("spec"), Field("hosts")];
    if hosts.select.is_none() && hosts.lab.is_none() {
        out.add(
            &path,
            "names no hosts: write `lab: {count: 2}` for virtual hosts on this machine, or `select: {}`",
        );
    }
    let lab = hosts.lab.as_ref()?;
    let path = below(&path, &[Field("lab")]);
    if !HOSTS.contains(&lab.count) {
        let message = format!("a lab has {} to {} hosts, not {}", HOSTS.start(), HOSTS.end(), lab.count);
        out.add(&below(&path, &[Field("count")]), message);
    }
    let mtu = lab.link.mtu.unwrap_or(1500);
    if !MTU.contains(&mtu) {
        let message = format!("{mtu} is out of range: write {} to {}", MTU.start(), MTU.end());
        out.add(&below(&path, &[Field("link"), Field("mtu")]), message);
    }
    if let Some(rate) = lab.link.rate.filter(|rate| rate.0 < MIN_RATE) {
        let message = format!("{rate} is below {}, the slowest link a lab makes", BitRate(MIN_RATE));
        out.add(&below(&path, &[Field("link"), Field("rate")]), message);
    }
    Some(Lab { count: lab.count, rate: lab.link.rate, mtu: u16::try_from(mtu).unwrap_or(1500) })
}

/// The MTU that trials are asked to have.
fn mtu(hosts: &schema::Hosts, lab: Option<Lab>, out: &mut Findings) -> Option<u16> {
    let mtu = hosts.mtu?;
    let path = [Field("spec"), Field("hosts"), Field("mtu")];
    if !MTU.contains(&mtu) {
        out.add(&path, format!("{mtu} is out of range: write {} to {}", MTU.start(), MTU.end()));
    } else if let Some(lab) = lab.filter(|lab| u32::from(lab.mtu) < mtu) {
        let message = format!(
            "is over {}, the MTU of the lab's links: write less, or a larger `lab.link.mtu`",
            lab.mtu
        );
        out.add(&path, message);
    }
    u16::try_from(mtu).ok()
}

fn select(hosts: &schema::Hosts, out: &mut Findings) -> Option<Select> {
    let select = hosts.select.as_ref()?;
    let path = [Field("spec"), Field("hosts"), Field("select")];
    let at_least = select.at_least.unwrap_or(*SELECTED.start());
    if !SELECTED.contains(&at_least) {
        let message = format!("{at_least} is out of range: write {} to {}", SELECTED.start(), SELECTED.end());
        out.add(&below(&path, &[Field("atLeast")]), message);
    }
    Some(Select { labels: select.match_labels.clone(), at_least })
}

fn peer(peer: schema::Peer) -> Peer {
    match peer {
        schema::Peer::Native => Peer::Native,
        schema::Peer::SameArm => Peer::SameArm,
    }
}

fn peers(peers: Option<&[schema::Peer]>, path: &[Step], out: &mut Findings) -> Vec<Peer> {
    let Some(peers) = peers else { return vec![Peer::Native] };
    if peers.is_empty() {
        out.add(path, "is empty: write `[native]`, `[same-arm]` or both");
    }
    out.distinct(peers, path, |written| format!("`{}`", peer(*written)));
    peers.iter().copied().map(peer).collect()
}

fn arms(spec: &schema::Spec, peers: &[Peer], mtu: Option<u32>, out: &mut Findings) -> Vec<Arm> {
    let path = [Field("spec"), Field("arms")];
    if !count(spec.arms.len(), MAX_ARMS, "arm", &path, out) {
        return Vec::new();
    }
    let mut names = BTreeSet::new();
    let mut arms = Vec::new();
    for (index, written) in spec.arms.iter().enumerate() {
        let path = below(&path, &[Index(index)]);
        let name_path = below(&path, &[Field("name")]);
        name(&written.name, &name_path, out);
        if !names.insert(&written.name) {
            out.add(
                &name_path,
                format!("two arms are named `{}`: give each a name of its own", written.name),
            );
        }
        arms.extend(arm(written, &path, peers, mtu, out));
    }
    arms
}

/// Whether there are as many as there may be.
fn count(count: usize, most: usize, what: &str, path: &[Step], out: &mut Findings) -> bool {
    if count == 0 {
        out.add(path, format!("is empty: a campaign needs at least one {what}"));
    } else if count > most {
        out.add(path, format!("has {count} entries; at most {most} are taken"));
    }
    (1..=most).contains(&count)
}

fn arm(
    written: &schema::Arm,
    path: &[Step],
    peers_of_all: &[Peer],
    mtu: Option<u32>,
    out: &mut Findings,
) -> Option<Arm> {
    let (mut decorated, mut io_cpu) = (Decorators::default(), None);
    let (kind, cpu) = match (&written.native, &written.same_stack, &written.guest) {
        (Some(native), None, None) => {
            let program = match native.program.unwrap_or(schema::Program::Endpoint) {
                schema::Program::Endpoint => NativeProgram::Endpoint,
                schema::Program::Iperf3 => NativeProgram::Iperf3,
            };
            (EndKind::Native { program }, native.pin.as_ref().map(|pin| pin.traffic))
        }
        (None, Some(same), None) => {
            let path = below(path, &[Field("sameStack")]);
            let adapter = adapter(&same.adapter, &path, mtu, out)?;
            if matches!(adapter, Adapter::Pcnet(PcnetSwitches { io_in_kernel: true, .. })) {
                let path = below(&path, &[Field("adapter"), Field("pcnet"), Field("ioInKernel")]);
                out.add(&path, "a same-stack end has no exits that the kernel could spare: leave it out");
            }
            let port = port(same.port.as_ref(), &path, out)?;
            decorated = decorators(same.impairments.as_ref(), same.capture.as_ref(), &path, out);
            io_cpu = io_pin(same.pin.as_ref(), &adapter, &path, out);
            (EndKind::SameStack { adapter, port }, same.pin.as_ref().map(|pin| pin.vcpu))
        }
        (None, None, Some(guest)) => {
            let path = below(path, &[Field("guest")]);
            let adapter = adapter(&guest.adapter, &path, mtu, out)?;
            let port = port(guest.port.as_ref(), &path, out)?;
            decorated = decorators(guest.impairments.as_ref(), guest.capture.as_ref(), &path, out);
            io_cpu = io_pin(guest.pin.as_ref(), &adapter, &path, out);
            (EndKind::Guest { adapter, port }, guest.pin.as_ref().map(|pin| pin.vcpu))
        }
        (None, None, None) => {
            let example = "write `native: {}`, `sameStack: {adapter: {virtioNet: {}}}` or \
                           `guest: {os: payload, adapter: {virtioNet: {}}}`";
            out.add(path, format!("arm `{}` is nothing yet: {example}", written.name));
            return None;
        }
        _ => {
            out.add(
                path,
                format!("arm `{}` is several things: keep one of native, sameStack, guest", written.name),
            );
            return None;
        }
    };
    let native = matches!(kind, EndKind::Native { .. });
    if native && written.peers.is_some() {
        out.add(&below(path, &[Field("peers")]), "a native arm has native peers only: leave `peers` out");
    }
    let peers = match (&written.peers, native) {
        (_, true) => vec![Peer::Native],
        (Some(own), false) => peers(Some(own), &below(path, &[Field("peers")]), out),
        (None, false) => peers_of_all.to_vec(),
    };
    ports::check(&kind, &decorated, &peers, path, out);
    let name = written.name.clone();
    Some(Arm { name, kind, decorators: decorated, cpu, io_cpu, peers, paper: written.paper })
}

/// The CPU of the adapter's own thread.
fn io_pin(
    pin: Option<&schema::VirtualPin>,
    adapter: &Adapter,
    path: &[Step],
    out: &mut Findings,
) -> Option<u32> {
    let io = pin?.io?;
    if !matches!(adapter, Adapter::VirtioNet(VirtioNetSwitches { io_thread: true, .. })) {
        let message = "the adapter has no thread of its own: write `ioThread: true` in it, or leave `io` out";
        out.add(&below(path, &[Field("pin"), Field("io")]), message);
    }
    Some(io)
}

fn workloads(spec: &schema::Spec, mtu: Option<u32>, out: &mut Findings) -> Vec<Workload> {
    let path = [Field("spec"), Field("workloads")];
    if !count(spec.workloads.len(), MAX_WORKLOADS, "workload", &path, out) {
        return Vec::new();
    }
    let runs_iperf3 = |arm: &schema::Arm| {
        arm.native.as_ref().is_some_and(|native| native.program == Some(schema::Program::Iperf3))
    };
    let port = |arm: &schema::Arm| {
        let guest = arm.guest.as_ref().and_then(|guest| guest.port.clone());
        guest.or_else(|| arm.same_stack.as_ref().and_then(|same| same.port.clone()))
    };
    let arms = Arms {
        iperf3: spec.arms.iter().any(runs_iperf3),
        payload: spec.arms.iter().any(|arm| arm.guest.is_some() || arm.same_stack.is_some()),
        nat: spec.arms.iter().filter_map(port).any(|port| port.nat.is_some()),
        mtu,
        workloads: &spec.workloads,
    };
    let mut names = BTreeSet::new();
    let mut workloads = Vec::new();
    for (index, written) in spec.workloads.iter().enumerate() {
        let path = below(&path, &[Index(index)]);
        let name_path = below(&path, &[Field("name")]);
        name(&written.name, &name_path, out);
        if !names.insert(&written.name) {
            out.add(
                &name_path,
                format!("two workloads are named `{}`: give each a name of its own", written.name),
            );
        }
        let name = || written.name.clone();
        workloads.extend(written.check(&path, arms, out).map(|asks| Workload { name: name(), asks }));
    }
    workloads
}
