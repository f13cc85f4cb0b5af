//! What will be run, in which order: a campaign and its hosts become cells, blocks and trials. Pure; the order
//! comes from the campaign's seed alone, so that a plan can be made again.
//!
//! ```text
//! campaign -> pairs x workloads -> blocks, back to back -> every arm, peer and direction once, shuffled
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use toll_protocol::campaign::schema::Pairs;
use toll_protocol::campaign::{Arm, Campaign, Workload};
use toll_protocol::result::{CellKey, Pair, Peer};
use toll_protocol::traffic::{Checked, Job};
use toll_protocol::trial::{Direction, EndKind, EndSpec, NativeProgram, NetworkMode, Open, TrialId};
use toll_protocol::units::{BitRate, Bytes, InterfaceAddress, MacAddress, Span};

/// Preparing, starting and tearing down one trial, as far as an estimate needs to know.
const OVERHEAD: Span = Span::from_millis(150);
/// What an end may take beyond its warm-up and interval before it counts as hung.
const GRACE: Span = Span::from_millis(10_000);

/// Bytes that may still be on their way when the interval ends: the largest send buffer of Linux (tcp_wmem, 4 MiB)
/// and a device's queue of 1000 frames. The sender waits until they have gone over the link.
const IN_FLIGHT: Bytes = Bytes(6 << 20);
/// No link is taken for slower, whatever its host says: nobody waits for days.
const SLOWEST: BitRate = BitRate(1_000_000);

/// A host as the plan needs it. The ledger keeps it, so that the plan can be made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its agent's name.
    pub name: String,
    /// Address for the virtual end that stands on it; without one it can have none.
    pub virtual_address: Option<InterfaceAddress>,
    /// MTU of its test NIC.
    pub mtu: u16,
    /// Rate of its link, where it is known.
    pub rate: Option<BitRate>,
}

/// One cell and what is needed to run it.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Its key in the result.
    pub key: CellKey,
    /// What stands on `pair.a`.
    pub a: EndSpec,
    /// What stands on `pair.b`.
    pub b: EndSpec,
}

impl Cell {
    /// Whether both ends stand on `pair.a`.
    pub fn is_local(&self) -> bool {
        self.a.kind.network_mode() == Some(NetworkMode::HostOnly)
    }

    /// The hosts of its ends.
    pub fn hosts(&self) -> [&str; 2] {
        let Pair { a, b } = &self.key.pair;
        [a, if self.is_local() { a } else { b }]
    }
}

/// One trial of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Its id.
    pub id: TrialId,
    /// Index of its cell.
    pub cell: usize,
    /// Its block.
    pub block: u32,
}

/// A campaign on hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Seed of the order.
    pub seed: u64,
    /// The matrix.
    pub cells: Vec<Cell>,
    /// Trials in the order to run them.
    pub trials: Vec<Trial>,
}

impl Plan {
    /// Plans `campaign` on `hosts`, in an order drawn from `seed`. Trial ids are what `id` gives, in the plan's order,
    /// so that two runs of one campaign never share one, and that a plan made again has those that it had.
    pub fn new(campaign: &Campaign, hosts: &[Host], seed: u64, mut id: impl FnMut() -> TrialId) -> Self {
        let mut order = ChaCha8Rng::seed_from_u64(seed);
        let (mut cells, mut trials) = (Vec::new(), Vec::new());
        for (a, b) in pairs(campaign.pairs, hosts) {
            for workload in &campaign.workloads {
                let first = cells.len();
                cells.extend(matrix(campaign, a, b, workload));
                for block in 0..campaign.blocks {
                    let mut indices: Vec<usize> = (first..cells.len()).collect();
                    indices.shuffle(&mut order);
                    let trial = |cell| Trial { id: id(), cell, block };
                    trials.extend(indices.into_iter().map(trial));
                }
            }
        }
        Self { seed, cells, trials }
    }

    /// Time that the trials take one after the other.
    pub fn estimate(&self) -> Span {
        let trial = |trial: &Trial| self.cells[trial.cell].a.job.timing.total().0 + OVERHEAD.0;
        Span(self.trials.iter().map(trial).sum())
    }
}

/// Why trials of `campaign` can't have one MTU on `hosts`, if they can't: the NICs differ and the campaign does not say
/// which, or one of them carries less than it says.
pub fn carried(campaign: &Campaign, hosts: &[Host]) -> Option<String> {
    let with_mtu = |host: &Host| format!("{} {}", host.name, host.mtu);
    if let Some(mtu) = campaign.mtu {
        let below: Vec<String> = hosts.iter().filter(|host| host.mtu < mtu).map(with_mtu).collect();
        return (!below.is_empty()).then(|| {
            let below = listed(&below);
            format!(
                "`spec.hosts.mtu` is {mtu}, and some NICs carry less ({below}): set their MTU, ask for less, or select other hosts"
            )
        });
    }
    let (least, most) =
        (hosts.iter().min_by_key(|host| host.mtu)?, hosts.iter().max_by_key(|host| host.mtu)?);
    (least.mtu != most.mtu).then(|| {
        let all = listed(&[with_mtu(least), with_mtu(most)]);
        let least = least.mtu;
        format!(
            "the NICs of its hosts have different MTUs ({all}): write `mtu: {least}` in `spec.hosts` for trials at what each of them carries, or set the NICs alike"
        )
    })
}

/// Some of them, for a sentence.
fn listed(names: &[String]) -> String {
    const MOST: usize = 8;
    let more = names.len().checked_sub(MOST + 1).map(|more| format!(" and {} more", more + 1));
    format!("{}{}", names[..names.len().min(MOST)].join(", "), more.unwrap_or_default())
}

/// A trial id drawn from `generator`.
pub fn draw(generator: &mut impl rand::Rng) -> TrialId {
    TrialId::new(generator.next_u64()).near()
}

fn pairs(pairs: Pairs, hosts: &[Host]) -> Vec<(&Host, &Host)> {
    let count = hosts.len();
    match pairs {
        Pairs::All => (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))).collect::<Vec<_>>(),
        // With two hosts the way back is the same pair.
        Pairs::Ring if count == 2 => vec![(0, 1)],
        Pairs::Ring => (0..count).map(|a| (a, (a + 1) % count)).collect(),
    }
    .into_iter()
    .map(|(a, b)| (&hosts[a], &hosts[b]))
    .collect()
}

/// Every arm, peer and direction of a pair and workload.
fn matrix(campaign: &Campaign, a: &Host, b: &Host, workload: &Workload) -> Vec<Cell> {
    let mut cells = Vec::new();
    for arm in &campaign.arms {
        for peer in &arm.peers {
            let arm = (arm, campaign.mtu);
            cells.extend(
                workload.asks.directions.iter().map(|direction| cell(arm, *peer, *direction, a, b, workload)),
            );
        }
    }
    cells
}

fn cell(
    (arm, mtu): (&Arm, Option<u16>),
    peer: Peer,
    direction: Direction,
    a: &Host,
    b: &Host,
    workload: &Workload,
) -> Cell {
    let far = match (peer, &arm.kind) {
        // iperf3 speaks its own protocol: its peer is iperf3 too.
        (Peer::SameArm, kind) | (Peer::Native, kind @ EndKind::Native { .. }) => kind.clone(),
        (Peer::Native, _) => EndKind::Native { program: NativeProgram::Endpoint },
    };
    let Checked { timing, traffic, .. } = &workload.asks;
    let timing = *timing;
    let mtu = mtu.unwrap_or(a.mtu.min(b.mtu));
    let rate = a.rate.into_iter().chain(b.rate).min();
    let drain = rate.map_or(Duration::ZERO, |rate| {
        Duration::from_secs_f64(IN_FLIGHT.0 as f64 * 8.0 / (rate.0.max(SLOWEST.0) as f64))
    });
    let end = |kind: EndKind, host: &Host, direction, open, (cpu, io_cpu)| {
        let (address, gateway) = address(&kind, host, open);
        let job = Job { open, direction, timing, traffic: traffic.clone() };
        let deadline = Span::from(timing.total().duration() + GRACE.duration() + drain);
        EndSpec { gateway, cpu, io_cpu, ..EndSpec::new(kind, job, address, mac(address), mtu, deadline) }
    };
    // The pin counts the CPUs of a host; the far end of a guest-to-guest cell is pinned alike, unless that would be to the
    // same CPU.
    let local = arm.kind.network_mode() == Some(NetworkMode::HostOnly);
    let near_cpus = (arm.cpu, arm.io_cpu);
    let far_cpus = if peer == Peer::SameArm && !local { near_cpus } else { (None, None) };
    Cell {
        key: CellKey {
            pair: Pair { a: a.name.clone(), b: b.name.clone() },
            workload: workload.name.clone(),
            direction,
            arm: arm.name.clone(),
            peer,
        },
        a: end(arm.kind.clone(), a, direction, Open::Connect, near_cpus),
        b: end(far, b, direction.opposite(), Open::Listen, far_cpus),
    }
}

/// The private network behind a hub or address translation, and who is who in it. Each trial has one of its own.
const PRIVATE_PREFIX: u8 = 24;
const PRIVATE_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const PRIVATE_FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 16);

/// Address and gateway of an end. Unspecified (RFC 1122, 3.2.1.3) where the host has none for it: no virtual end is ever
/// begun there.
fn address(kind: &EndKind, host: &Host, open: Open) -> (InterfaceAddress, Option<Ipv4Addr>) {
    let private = |address| InterfaceAddress { address, prefix: PRIVATE_PREFIX };
    match kind.network_mode() {
        Some(NetworkMode::Nat) => (private(PRIVATE), Some(PRIVATE_GATEWAY)),
        Some(NetworkMode::HostOnly) if open == Open::Listen => (private(PRIVATE_FAR), None),
        Some(NetworkMode::HostOnly) => (private(PRIVATE), None),
        Some(NetworkMode::Bridged) | None => {
            (host.virtual_address.unwrap_or(private(Ipv4Addr::UNSPECIFIED)), None)
        }
    }
}

/// A locally administered address (IEEE 802, bit 1 of the first byte) that carries the IPv4 address: unique
/// where that is, and the same for every guest of a host, so that no neighbour table goes stale between trials.
fn mac(address: InterfaceAddress) -> MacAddress {
    let [a, b, c, d] = address.address.octets();
    MacAddress([0x02, 0x54, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    fn campaign(blocks: u32, pairs: &str) -> Campaign {
        let text = format!(
            "apiVersion: toll.dev/v1alpha1\nkind: Campaign\nmetadata: {{name: c}}\nspec:\n  hosts: {{lab: {{count: 2}}}}\n  \
             pairs: {pairs}\n  blocks: {blocks}\n  peers: [native, same-arm]\n  arms:\n    - {{name: native, native: {{}}}}\n    \
             - {{name: v, guest: {{os: payload, adapter: {{virtioNet: {{}}}}}}}}\n  workloads: [{{name: bulk, stream: {{}}}}]\n"
        );
        toll_protocol::campaign::parse(&text).expect("is good")
    }

    fn hosts(count: u8) -> Vec<Host> {
        let host = |n| Host {
            name: format!("host-{n}"),
            virtual_address: Some(InterfaceAddress { address: [10, 77, 0, 100 + n].into(), prefix: 24 }),
            mtu: 1500,
            rate: None,
        };
        (1..=count).map(host).collect()
    }

    #[test]
    fn a_block_holds_every_cell_of_its_pair_once() {
        let plan = Plan::new(&campaign(7, "all"), &hosts(3), 1, || draw(&mut rand::rng()));
        // native both ways, guest to native both ways, guest to guest both ways
        assert_eq!(plan.cells.len(), 3 * 6);
        assert_eq!(plan.trials.len(), 3 * 6 * 7);
        for chunk in plan.trials.chunks(6) {
            let cells: HashSet<_> = chunk.iter().map(|trial| trial.cell).collect();
            assert_eq!(cells.len(), 6, "a block repeats a cell");
            assert!(
                chunk.iter().all(|trial| trial.block == chunk[0].block),
                "blocks of a pair are not back to back"
            );
        }
        let ids: HashSet<_> = plan.trials.iter().map(|trial| trial.id).collect();
        assert_eq!(ids.len(), plan.trials.len());
    }

    #[test]
    fn the_order_is_the_seeds_and_differs_between_blocks() {
        let order = |seed| {
            let plan = Plan::new(&campaign(20, "all"), &hosts(2), seed, || draw(&mut rand::rng()));
            plan.trials.iter().map(|trial| trial.cell).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        let blocks: HashSet<Vec<usize>> = order(1).chunks(6).map(<[usize]>::to_vec).collect();
        assert!(blocks.len() > 15, "the order of arms hardly varies: {blocks:?}");
    }

    #[test]
    fn a_ring_pairs_each_host_twice() {
        let plan = Plan::new(&campaign(1, "ring"), &hosts(5), 1, || draw(&mut rand::rng()));
        let mut seen = BTreeMap::new();
        for cell in
            plan.cells.iter().filter(|cell| cell.key.arm == "native" && cell.key.direction == Direction::Send)
        {
            *seen.entry(cell.key.pair.a.clone()).or_insert(0) += 1;
            *seen.entry(cell.key.pair.b.clone()).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 5);
        assert!(seen.values().all(|count| *count == 2), "{seen:?}");
    }

    #[test]
    fn a_slow_link_gives_its_buffers_time_to_empty() {
        let deadline = |rate| {
            let hosts: Vec<Host> = hosts(2).into_iter().map(|host| Host { rate, ..host }).collect();
            Plan::new(&campaign(1, "all"), &hosts, 1, || draw(&mut rand::rng())).cells[0].a.deadline
        };
        // 0.5 s of warm-up, 2 s, the grace; and 6 MiB at 1 Mb/s.
        assert_eq!(deadline(None), Span::from_millis(12_500));
        assert!(deadline(Some(BitRate(1_000_000))) > Span::from_millis(12_500 + 50_000));
        assert!(deadline(Some(BitRate(10_000_000_000))) < Span::from_millis(12_510));
    }

    #[test]
    fn ends_of_a_trial_go_opposite_ways_and_one_listens() {
        let plan = Plan::new(&campaign(1, "all"), &hosts(2), 1, || draw(&mut rand::rng()));
        for cell in &plan.cells {
            assert_eq!(cell.a.job.direction, cell.key.direction);
            assert_eq!(cell.b.job.direction, cell.key.direction.opposite());
            assert_eq!((cell.a.job.open, cell.b.job.open), (Open::Connect, Open::Listen));
            assert_ne!(cell.a.mac, cell.b.mac);
        }
    }
}
