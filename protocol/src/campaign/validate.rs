//! What the values of a campaign must be. Every finding is collected, so that a user mends a file in one go.

mod adapters;
mod decorators;
mod gates;
mod ports;

use adapters::adapter;
use decorators::decorators;
use gates::gates;
use ports::port;

use super::limits;
use super::schema::{self, Document};
use super::{Arm, Campaign, Lab, Select, Workload};
use crate::findings::told::Told;
use crate::findings::{Finding, Findings, Step, below};
use crate::result::Peer;
use crate::traffic::Arms;
use crate::trial::{EndKind, Engine, NativeProgram, Nic};

/// Trials that a campaign may have: two days of the shortest. A plan is held in memory.
pub const MAX_TRIALS: u64 = 100_000;

use Step::{Field, Index};

/// Checks `document` and turns it into a campaign, which is one if nothing is found or told. What only follows from what is
/// told is not found.
pub(super) fn validate(document: &Document, told: Told) -> (Campaign, Vec<Finding>) {
    let mut findings = Findings::new(told);
    let out = &mut findings;
    let spec = &document.spec;
    let lab = lab(&spec.hosts, out);
    let select = select(&spec.hosts);
    let peers = peers(spec.peers.as_deref());
    let asked = mtu(&spec.hosts, lab, out);
    let mtu = mtu_of_trials(asked, lab, out);
    let arms = arms(spec, &peers, mtu, out);
    let workloads = workloads(spec, lab, mtu, out);
    let blocks = spec.blocks.unwrap_or(5);
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
    let too_large = [lab.map(|lab| lab.count), at_least]
        .into_iter()
        .flatten()
        .find_map(|hosts| campaign.too_large(hosts));
    if let Some(why) = too_large.filter(|_| !factors(spec).iter().any(|path| out.is_wrong(path))) {
        out.add(&[Field("spec")], why);
    }
    (campaign, findings.into_vec())
}

/// What the number of trials is the product of.
fn factors(spec: &schema::Spec) -> Vec<Vec<Step>> {
    let path = |steps: &[Step]| below(&[Field("spec")], steps);
    let mut factors = vec![
        path(&[Field("hosts"), Field("lab"), Field("count")]),
        path(&[Field("hosts"), Field("select"), Field("atLeast")]),
        path(&[Field("pairs")]),
        path(&[Field("peers")]),
        path(&[Field("blocks")]),
    ];
    factors.extend((0..spec.arms.len()).map(|arm| path(&[Field("arms"), Index(arm), Field("peers")])));
    for (index, workload) in spec.workloads.iter().enumerate() {
        let directions = |kind| path(&[Field("workloads"), Index(index), Field(kind), Field("directions")]);
        factors.extend(workload.written().into_iter().map(directions));
    }
    factors
}

/// The MTU that trials will have, as far as the document says it.
fn mtu_of_trials(asked: Option<u16>, lab: Option<Lab>, out: &Findings) -> Option<u16> {
    let hosts = [Field("spec"), Field("hosts")];
    let wrong = |steps: &[Step]| out.is_wrong(&below(&hosts, steps));
    let of_lab = || lab.filter(|_| !wrong(&[Field("lab"), Field("link"), Field("mtu")])).map(|lab| lab.mtu);
    if wrong(&[Field("mtu")]) { None } else { asked.or_else(of_lab) }
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

fn lab(hosts: &schema::Hosts, out: &mut Findings) -> Option<Lab> {
    let path = [Field("spec"), Field("hosts")];
    if hosts.select.is_none() && hosts.lab.is_none() {
        out.add_missing(
            &path,
            "names no hosts: write `lab: {count: 2}` for virtual hosts on this machine, or `select: {}`",
        );
    }
    let lab = hosts.lab.as_ref()?;
    let mtu = lab.link.mtu.unwrap_or(limits::LAB_MTU);
    Some(Lab { count: lab.count, rate: lab.link.rate, mtu: u16::try_from(mtu).unwrap_or_default() })
}

/// The MTU that trials are asked to have.
fn mtu(hosts: &schema::Hosts, lab: Option<Lab>, out: &mut Findings) -> Option<u16> {
    let path = [Field("spec"), Field("hosts"), Field("mtu")];
    let mtu = u16::try_from(hosts.mtu?).ok()?;
    if let Some(lab) = lab.filter(|lab| lab.mtu < mtu) {
        let message = format!(
            "is over {}, the MTU of the lab's links: write less, or a larger `lab.link.mtu`",
            lab.mtu
        );
        out.add(&path, message);
    }
    Some(mtu)
}

fn select(hosts: &schema::Hosts) -> Option<Select> {
    let select = hosts.select.as_ref()?;
    let at_least = select.at_least.unwrap_or(*limits::SELECTED.start());
    Some(Select { labels: select.match_labels.clone(), at_least })
}

fn peer(peer: schema::Peer) -> Peer {
    match peer {
        schema::Peer::Native => Peer::Native,
        schema::Peer::SameArm => Peer::SameArm,
    }
}

fn peers(peers: Option<&[schema::Peer]>) -> Vec<Peer> {
    peers.map_or_else(|| vec![Peer::Native], |peers| peers.iter().copied().map(peer).collect())
}

fn arms(spec: &schema::Spec, peers: &[Peer], mtu: Option<u16>, out: &mut Findings) -> Vec<Arm> {
    let path = |index| [Field("spec"), Field("arms"), Index(index)];
    let arms = spec.arms.iter().enumerate();
    arms.filter_map(|(index, written)| arm(written, &path(index), peers, mtu, out)).collect()
}

fn arm(
    written: &schema::Arm,
    path: &[Step],
    peers_of_all: &[Peer],
    mtu: Option<u16>,
    out: &mut Findings,
) -> Option<Arm> {
    let mut io_cpu = None;
    let is_native = written.native.is_some();
    if is_native && written.peers.is_some() {
        out.add(&below(path, &[Field("peers")]), "a native arm has native peers only: leave `peers` out");
    }
    let own = below(path, &[Field("peers")]);
    let peers_path =
        if written.peers.is_some() || out.is_told(&own) { own } else { vec![Field("spec"), Field("peers")] };
    let peers = match (&written.peers, is_native) {
        (_, true) => vec![Peer::Native],
        (Some(own), false) => peers(Some(own)),
        (None, false) => peers_of_all.to_vec(),
    };
    let (kind, cpu) = match (&written.native, &written.same_stack, &written.guest) {
        (Some(native), None, None) => {
            let program = match native.program.unwrap_or(schema::Program::Endpoint) {
                schema::Program::Endpoint => NativeProgram::Endpoint,
                schema::Program::Iperf3 => NativeProgram::Iperf3,
            };
            (Some(EndKind::Native { program }), native.pin.as_ref().map(|pin| pin.traffic))
        }
        (None, Some(schema::SameStack { adapter, port, impairments, capture, pin }), None) => {
            let wire = (impairments.as_ref(), capture.as_ref());
            let peers = (&peers[..], &peers_path[..]);
            io_cpu = pin.as_ref().and_then(|pin| pin.io);
            let written = Written { engine: Engine::SameStack, adapter, port: port.as_ref(), wire, io_cpu };
            (written.check(peers, path, mtu, out), pin.as_ref().map(|pin| pin.vcpu))
        }
        (None, None, Some(schema::Guest { os, adapter, port, impairments, capture, pin })) => {
            let wire = (impairments.as_ref(), capture.as_ref());
            let peers = (&peers[..], &peers_path[..]);
            io_cpu = pin.as_ref().and_then(|pin| pin.io);
            let written = Written { engine: os.engine(), adapter, port: port.as_ref(), wire, io_cpu };
            (written.check(peers, path, mtu, out), pin.as_ref().map(|pin| pin.vcpu))
        }
        (None, None, None) => {
            let example = "write `native: {}`, `sameStack: {adapter: {virtioNet: {}}}` or \
                           `guest: {os: payload, adapter: {virtioNet: {}}}`";
            out.add_missing(path, format!("arm `{}` is nothing yet: {example}", written.name));
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
    let name = written.name.clone();
    Some(Arm { name, kind: kind?, cpu, io_cpu, peers, paper: written.paper })
}

/// A virtual end as it is written, whatever runs it.
struct Written<'a> {
    engine: Engine,
    adapter: &'a schema::Adapter,
    port: Option<&'a schema::Port>,
    wire: (Option<&'a schema::Impairments>, Option<&'a schema::Capture>),
    io_cpu: Option<u32>,
}

impl Written<'_> {
    /// The end that it is, in the arm at `path`, whose peers are said where the second of `peers` says.
    fn check(
        &self,
        peers: (&[Peer], &[Step]),
        path: &[Step],
        mtu: Option<u16>,
        out: &mut Findings,
    ) -> Option<EndKind> {
        let engine = self.engine;
        let path = below(path, &[Field(engine.traits().field)]);
        let adapter = adapter(self.adapter, &path, mtu, out);
        if let Some(adapter) = &adapter
            && let Some(useless) = engine.useless_switch(adapter)
        {
            let path = below(&path, &[Field("adapter"), Field(adapter.field()), Field(useless.switch)]);
            out.add(&path, useless.to_string());
        }
        let port = port(self.port);
        let decorators = decorators(self.wire.0, self.wire.1, &path, out);
        // Without an adapter that is one nobody knows.
        if self.io_cpu.is_some() && adapter.as_ref().is_some_and(|adapter| !adapter.has_thread()) {
            let message =
                "the adapter has no thread of its own: write `ioThread: true` in it, or leave `io` out";
            out.add(&below(&path, &[Field("pin"), Field("io")]), message);
        }
        ports::check(adapter.as_ref(), port, &decorators, peers, &path, out);
        let (adapter, port) = adapter.zip(port)?;
        Some(EndKind::Virtual { engine, nic: Nic { adapter, port, decorators } })
    }
}

fn workloads(spec: &schema::Spec, lab: Option<Lab>, mtu: Option<u16>, out: &mut Findings) -> Vec<Workload> {
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
        mtu,
        link_rate: lab.and_then(|lab| lab.rate),
        nat: spec.arms.iter().filter_map(port).any(|port| port.nat.is_some()),
        workloads: &spec.workloads,
    };
    let mut workloads = Vec::new();
    for (index, written) in spec.workloads.iter().enumerate() {
        let path = [Field("spec"), Field("workloads"), Index(index)];
        let name = || written.name.clone();
        workloads.extend(written.check(&path, arms, out).map(|asks| Workload { name: name(), asks }));
    }
    workloads
}
