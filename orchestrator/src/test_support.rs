//! A synthetic campaign for tests: figures of the size that real ones have, made up and never shipped as results.

use std::collections::BTreeMap;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use toll_protocol::facts::{HostFacts, KvmFact, KvmKind, NicFacts, Wire};
use toll_protocol::figure::GOODPUT;
use toll_protocol::relation::AT_LEAST;
use toll_protocol::report::{
    CpuSplit, EndReport, ExitReport, ExitStat, Failure, Flag, FrameCounters, Sample, ThreadCpu,
};
use toll_protocol::result::{
    ArmSummary, CellKey, Gate, GateCondition, GateSelector, HostProvenance, Outcome, Pair, Peer, Provenance,
    TrialRecord,
};
use toll_protocol::traffic::{TrafficReport, stream};
use toll_protocol::trial::{Adapter, Direction, EndKind, Engine, NativeProgram, Port, TrialId};
use toll_protocol::units::{BitRate, Bytes, Percent, Span};

use crate::ledger::{LedgerHeader, PlannedTrial};

/// Blocks of the synthetic campaign.
pub const BLOCKS: u32 = 5;

/// What an arm does, in the middle.
struct Behaviour {
    name: &'static str,
    kind: EndKind,
    baseline: bool,
    /// Bits per second, sending and receiving.
    goodput: [f64; 2],
    /// Share of a CPU: guest, VMM, host.
    cpu: [Option<f64>; 3],
    /// Exits per frame and nanoseconds of handling, by cause.
    exits: &'static [(&'static str, f64, u64)],
}

fn behaviours() -> Vec<Behaviour> {
    let virtual_end = |engine, adapter| EndKind::behind(engine, adapter, Port::Tap);
    let guest = |adapter| virtual_end(Engine::Payload, adapter);
    let native = |program| EndKind::Native { program };
    vec![
        Behaviour {
            name: "native",
            kind: native(NativeProgram::Endpoint),
            baseline: true,
            goodput: [9.31e9, 9.28e9],
            cpu: [None, None, Some(0.71)],
            exits: &[],
        },
        Behaviour {
            name: "iperf3",
            kind: native(NativeProgram::Iperf3),
            baseline: false,
            goodput: [9.35e9, 9.30e9],
            cpu: [None, None, Some(0.74)],
            exits: &[],
        },
        Behaviour {
            name: "same-stack",
            kind: virtual_end(Engine::SameStack, Adapter::VirtioNet(Default::default())),
            baseline: false,
            goodput: [2.61e9, 2.95e9],
            cpu: [Some(0.22), Some(0.14), Some(0.61)],
            exits: &[],
        },
        Behaviour {
            name: "pcnet",
            kind: guest(Adapter::Pcnet(Default::default())),
            baseline: false,
            goodput: [71e6, 64e6],
            cpu: [Some(0.69), Some(0.19), Some(0.09)],
            exits: &[
                ("pio-write rap", 7.0, 1_150),
                ("pio-write rdp", 3.1, 2_900),
                ("pio-read rdp", 2.0, 1_240),
                ("wait", 0.31, 4_800),
                ("signal", 0.04, 900),
            ],
        },
        Behaviour {
            name: "virtio",
            kind: guest(Adapter::VirtioNet(Default::default())),
            baseline: false,
            goodput: [1.43e9, 1.72e9],
            cpu: [Some(0.37), Some(0.12), Some(0.49)],
            exits: &[
                ("mmio-write queue-notify", 0.36, 3_100),
                ("mmio-read interrupt-status", 0.11, 980),
                ("mmio-write interrupt-ack", 0.11, 940),
                ("wait", 0.09, 6_200),
            ],
        },
    ]
}

/// The pair of hosts.
pub fn pair() -> Pair {
    Pair { a: "lab-1".to_owned(), b: "lab-2".to_owned() }
}

/// Key of a cell of the synthetic campaign.
pub fn key(arm: &str, direction: Direction, peer: Peer) -> CellKey {
    CellKey { pair: pair(), workload: "bulk".to_owned(), direction, arm: arm.to_owned(), peer }
}

/// The gates of the synthetic campaign.
pub fn gates() -> Vec<Gate> {
    let arm = |name: &str| GateSelector { arm: Some(name.to_owned()), ..GateSelector::default() };
    let toll = |fraction| GateCondition::toll_at_most(&GOODPUT, Percent::from_fraction(fraction));
    vec![
        Gate { cells: arm("virtio"), condition: toll(0.9) },
        Gate { cells: arm("pcnet"), condition: toll(0.1) },
        Gate {
            cells: GateSelector { direction: Some(Direction::Send), ..arm("iperf3") },
            condition: GateCondition::on_median(
                &GOODPUT,
                &AT_LEAST,
                1_168_750_000.0,
                &BitRate(9_350_000_000),
            ),
        },
    ]
}

/// The plan and a record of every trial; all `pcnet` guests that receive from `pcnet` have failed, and one run of
/// `virtio` too.
pub fn campaign() -> (LedgerHeader, Vec<TrialRecord>) {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(20_010_625);
    let behaviours = behaviours();
    let mut trials = Vec::new();
    for block in 0..BLOCKS {
        let mut cells = Vec::new();
        for behaviour in &behaviours {
            for direction in [Direction::Send, Direction::Receive] {
                cells.push(key(behaviour.name, direction, Peer::Native));
                if behaviour.kind.is_guest() {
                    cells.push(key(behaviour.name, direction, Peer::SameArm));
                }
            }
        }
        cells.shuffle(&mut source);
        trials.extend(cells.into_iter().map(|cell| (cell, block)));
    }
    let planned: Vec<PlannedTrial> = trials
        .into_iter()
        .zip(0_u32..)
        .map(|((cell, block), position)| PlannedTrial {
            trial: TrialId::new(source.random()),
            cell,
            block,
            position,
        })
        .collect();
    let records = planned
        .iter()
        .map(|trial| {
            let behaviour =
                behaviours.iter().find(|behaviour| behaviour.name == trial.cell.arm).expect("an arm");
            record(trial, outcome(behaviour, trial, &mut source))
        })
        .collect();
    let arms = behaviours
        .into_iter()
        .map(|arm| ArmSummary {
            name: arm.name.to_owned(),
            kind: arm.kind,
            baseline: arm.baseline,
            paper: None,
        })
        .collect();
    let manifest = "apiVersion: toll.dev/v1alpha1\nkind: Campaign\nmetadata: {name: quickstart}\n";
    let header = LedgerHeader {
        arms,
        planned,
        submitted_unix_ms: 1_769_879_100_000,
        hosts: Some(Vec::new()),
        ..LedgerHeader::new("quickstart", manifest, u64::MAX, provenance())
    };
    (header, records)
}

/// A record of `planned` with `outcome`.
pub fn record(planned: &PlannedTrial, outcome: Outcome) -> TrialRecord {
    TrialRecord {
        trial: planned.trial,
        cell: planned.cell.clone(),
        block: planned.block,
        position: planned.position,
        started_unix_ms: Some(1_769_879_109_000 + u64::from(planned.position) * 2_900),
        outcome,
    }
}

fn outcome(behaviour: &Behaviour, trial: &PlannedTrial, source: &mut Xoshiro256PlusPlus) -> Outcome {
    let failed = |reason: &str, last_words: &[&str]| Outcome::Failed {
        host: trial.cell.pair.b.clone(),
        failure: Failure {
            reason: reason.to_owned(),
            last_words: last_words.iter().map(|line| (*line).to_owned()).collect(),
        },
    };
    if (behaviour.name, trial.cell.peer, trial.cell.direction) == ("pcnet", Peer::SameArm, Direction::Receive)
    {
        return failed(
            "the guest faulted: page fault at 0x7f00_0010, rip 0x20_11f4",
            &[
                "exit 88121 pio-write rdp 0x0008",
                "exit 88122 pio-read rdp 0x04f3 <script>alert('csr0')</script>",
            ],
        );
    }
    if (behaviour.name, trial.block, trial.cell.peer) == ("virtio", 2, Peer::Native)
        && trial.cell.direction == Direction::Send
    {
        return failed(
            "the guest did not end within 12s: it was killed",
            &["phase 3, 0 bytes in the last 100 ms"],
        );
    }
    let [send, receive] = behaviour.goodput;
    let middle = if trial.cell.direction.sends() { send } else { receive };
    let middle = if trial.cell.peer == Peer::SameArm { middle * 0.78 } else { middle };
    // A block's drift is common to its arms; the rest is the run's own.
    let drift = f64::from((trial.block * 7919) % 11) / 11.0 * 0.03;
    let goodput = middle * (1.0 - drift) * (1.0 + 0.02 * (source.random::<f64>() - 0.5));
    let a = end(behaviour, trial.cell.direction, goodput);
    let mut b = end(behaviour, trial.cell.direction.opposite(), goodput);
    if trial.cell.peer == Peer::Native {
        (b.exits, b.frames, b.start_to_first_frame) = (None, None, None);
    }
    Outcome::Measured { a: Box::new(a), b: Box::new(b) }
}

fn end(behaviour: &Behaviour, direction: Direction, goodput: f64) -> EndReport {
    let interval = Span::from_millis(2_000);
    let bytes = (goodput / 8.0 * interval.seconds()) as u64;
    let is_guest = behaviour.kind.is_guest();
    let segments = bytes / 1_448;
    let share = |share: Option<f64>| share.map(|share| Span((share * interval.0 as f64) as u64));
    let by_cause: BTreeMap<String, ExitStat> = behaviour
        .exits
        .iter()
        .map(|(cause, per_frame, handling)| {
            let count = (segments as f64 * per_frame) as u64;
            ((*cause).to_owned(), ExitStat { count, handling: Span(count * handling) })
        })
        .collect();
    let total: u64 = by_cause.values().map(|stat| stat.count).sum();
    let frames = FrameCounters {
        transmit_frames: if direction == Direction::Send { segments } else { segments / 2 },
        receive_frames: if direction == Direction::Send { segments / 2 } else { segments },
        ..FrameCounters::default()
    };
    let [guest, vmm, host] = behaviour.cpu.map(share);
    let ways = |bytes: u64| if direction.sends() { (bytes, 0) } else { (0, bytes) };
    let (sent_bytes, received_bytes) = ways(bytes);
    let flow = |bytes| {
        let (sent_bytes, received_bytes) = ways(bytes);
        stream::Flow { sent_bytes, received_bytes }
    };
    let sample = |step: u64| {
        let (sent_bytes, received_bytes) = ways(bytes * step / 20);
        Sample { at: Span::from_millis(step * 100), sent_bytes, received_bytes }
    };
    EndReport {
        sent_bytes,
        received_bytes,
        samples: (1..=20).map(sample).collect(),
        threads: vec![ThreadCpu {
            name: "traffic".to_owned(),
            total: Span::from_millis(1_900),
            user: None,
            system: None,
        }],
        cpu: CpuSplit { guest, vmm, host },
        exits: is_guest.then_some(ExitReport { by_cause, kvm_userspace: Some(total), kvm_all: None }),
        frames: (!behaviour.kind.is_native()).then_some(frames),
        start_to_first_frame: is_guest.then(|| Span::from_millis(3)),
        overhead: is_guest.then_some(Bytes(320 << 10)),
        flags: if is_guest { vec![Flag::CpuBound] } else { Vec::new() },
        ..EndReport::new(
            TrafficReport::Stream(stream::Report { flows: vec![flow(bytes / 2); 2], zero_copy: None }),
            interval,
        )
    }
}

/// Provenance of a lab of two hosts.
pub fn provenance() -> Provenance {
    let host = |name: &str, address: &str| HostProvenance {
        name: name.to_owned(),
        facts: HostFacts {
            kernel: "6.1.0-31-cloud-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.128-1".to_owned(),
            cpu: Some("AMD EPYC 7B13".to_owned()),
            cpus: vec![0, 1],
            memory: Some(8_332_000_000),
            kvm: KvmFact::Usable(KvmKind::Svm),
            tun: Ok(()),
            nic: Some(NicFacts {
                driver: Some("veth".to_owned()),
                speed: Some(BitRate(10_000_000_000)),
                address: address.parse().ok(),
                offloads: vec!["tx-checksum-ip-generic".to_owned(), "tx-tcp-segmentation".to_owned()],
                ..NicFacts::new("toll0", 1500)
            }),
            wire: Some(Wire::Exclusive),
            clock_source: Some("tsc".to_owned()),
            congestion_control: Some("cubic".to_owned()),
            build_profile: "release".to_owned(),
            iperf3: Ok("3.12".to_owned()),
            ..HostFacts::default()
        },
    };
    Provenance {
        build_profile: "release".to_owned(),
        link_rate: Some(BitRate(10_000_000_000)),
        mtu: Some(1500),
        ended_unix_ms: Some(1_769_879_109_000 + 204_000),
        hosts: vec![host("lab-1", "10.77.0.1/24"), host("lab-2", "10.77.0.2/24")],
        ..Provenance::new("lab", 1_769_879_109_000)
    }
}
