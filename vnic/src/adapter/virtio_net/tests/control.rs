//! The control queue, what it filters, and several queue pairs.

use toll_protocol::trial::QueuePairs;

use super::*;
use crate::port::{Offloads, Sent};

const CTRL_GUEST_OFFLOADS: u32 = 1 << 2;
const CTRL_VQ: u32 = 1 << 17;
const CTRL_RX: u32 = 1 << 18;
const CTRL_VLAN: u32 = 1 << 19;
const CTRL_RX_EXTRA: u32 = 1 << 20;
const MQ: u32 = 1 << 22;
const CTRL_MAC_ADDR: u32 = 1 << 23;

const COMMANDED: VirtioNetSwitches = VirtioNetSwitches { control_queue: true, ..VirtioNetSwitches::OFF };
/// Where commands and their answers lie.
const COMMAND: u64 = MEMORY as u64 - 0x4000;
const ANSWER: u64 = MEMORY as u64 - 0x100;
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 9];

/// The same with a control queue and three pairs.
pub(super) fn several(switches: VirtioNetSwitches) -> VirtioNetSwitches {
    VirtioNetSwitches { control_queue: true, queue_pairs: QueuePairs::new(3).unwrap(), ..switches }
}

/// Makes a command available in `queue`, cut in the middle of its class and command.
pub(super) fn put(bench: &mut Bench, queue: usize, command: &[u8]) {
    bench.put(COMMAND, command);
    bench.put(ANSWER, &[0xee]);
    bench.describe(queue, 0, COMMAND, 1, NEXT, 1);
    bench.describe(queue, 1, COMMAND + 1, command.len() as u32 - 1, NEXT, 2);
    bench.describe(queue, 2, ANSWER, 1, WRITE, 0);
    bench.give(queue, 0);
}

/// What the device answers to a command: 0 is VIRTIO_NET_OK, 1 VIRTIO_NET_ERR.
fn command(bench: &mut Bench, queue: usize, command: &[u8]) -> u8 {
    let used = bench.used(queue);
    put(bench, queue, command);
    bench.write(0x50, queue as u32);
    assert_eq!(bench.used(queue), used + 1);
    assert_eq!(bench.used_element(queue, used), (0, 1), "2.7.8.2: the answer was written");
    bench.get(ANSWER, 1)[0]
}

/// Whether the guest gets a frame that begins with `head`.
fn passes(bench: &mut Bench, head: &[u8]) -> bool {
    let mut arrived = frame(60);
    arrived[..head.len()].copy_from_slice(head);
    let before = bench.device.counters();
    bench.describe(0, 0, BUFFERS, 2048, WRITE, 0);
    if !bench.device.can_receive() {
        bench.give(0, 0);
    }
    bench.arrives(&arrived);
    bench.device.service().unwrap();
    let now = bench.device.counters().since(&before);
    assert_eq!((now.receive_frames + now.receive_filtered, now.receive_drops), (1, 0));
    now.receive_frames == 1
}

#[test]
fn virtio_1_2_s5_1_3_1_what_commands_need_is_offered_and_taken_together() {
    let offered = |switches| Bench::with(switches).read(0x10) & !(1 << 3 | 1 << 5);
    let all = CTRL_VQ | CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | CTRL_MAC_ADDR;
    assert_eq!(offered(COMMANDED), all);
    assert_eq!(offered(several(VirtioNetSwitches::OFF)), all | MQ);
    let checksums = VirtioNetSwitches { checksum_offload: true, ..COMMANDED };
    assert_eq!(offered(checksums), all | CTRL_GUEST_OFFLOADS | 1 << 0 | 1 << 1);
    let uncommanded = VirtioNetSwitches { control_queue: false, ..several(VirtioNetSwitches::OFF) };
    assert_eq!(offered(uncommanded), 0, "2.2.2: nothing that needs what is not offered");
    let accepts = |features: u32| {
        let mut bench = Bench::with(several(VirtioNetSwitches::OFF));
        bench.negotiate(features);
        bench.read(0x70) & 8 != 0
    };
    assert!(accepts(CTRL_VQ) && accepts(CTRL_VQ | MQ) && accepts(all | MQ));
    for alone in [MQ, CTRL_RX, CTRL_VLAN, CTRL_MAC_ADDR, CTRL_RX_EXTRA] {
        assert!(!accepts(alone), "{alone:#x}");
    }
}

#[test]
fn virtio_1_2_s5_1_2_the_control_queue_is_behind_the_pairs_that_are_taken() {
    let mut bench = Bench::with(several(VirtioNetSwitches::OFF));
    let mut pairs = [0; 2];
    bench.device.read(0x108, &mut pairs).unwrap();
    assert_eq!((bench.queues(), pairs), (7, [3, 0]));
    // Whoever takes several finds it behind all of them.
    let mut bench = Bench::live_with(several(VirtioNetSwitches::OFF), CTRL_VQ | CTRL_RX | MQ);
    assert_eq!(command(&mut bench, 6, &[0, 0, 1]), 0);
    // Whoever doesn't finds it behind the first.
    let mut bench = Bench::live_with(several(VirtioNetSwitches::OFF), CTRL_VQ | CTRL_RX);
    assert_eq!(command(&mut bench, 2, &[0, 0, 1]), 0);
    assert_eq!(bench.errors(), 0);
    bench.write(0x50, 6);
    assert_eq!(bench.errors(), 1, "there is no such queue then");
}

#[test]
fn virtio_1_2_s5_1_6_5_1_the_receive_mode_filters_frames() {
    let mut bench = Bench::live_with(COMMANDED, CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA);
    assert!(passes(&mut bench, &OTHER), "nobody has asked for a filter");
    assert_eq!(command(&mut bench, 2, &[0, 0, 0]), 0);
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let seen = |bench: &mut Bench| [MAC.0, OTHER, group, [0xff; 6]].map(|to| passes(bench, &to));
    assert_eq!(seen(&mut bench), [true, false, false, true]);
    for (number, expected) in [
        (1, [true, false, true, true]),
        (2, [true, true, false, true]),
        (3, [true, false, false, true]),
        (4, [false, false, false, true]),
        (5, [true, false, false, false]),
    ] {
        assert_eq!(command(&mut bench, 2, &[0, number, 1]), 0);
        assert_eq!(seen(&mut bench), expected, "command {number}");
        assert_eq!(command(&mut bench, 2, &[0, number, 0]), 0);
    }
    // 2.4: a reset forgets it.
    bench.write(0x70, 0);
    bench.available = [0; QUEUES];
    for queue in 0..3 {
        bench.memory.write_obj(0_u32, GuestAddress(areas(queue)[1])).unwrap();
    }
    bench.negotiate(CTRL_VQ | CTRL_RX);
    (0..3).for_each(|queue| bench.set_up(queue));
    bench.write(0x70, 15);
    assert!(passes(&mut bench, &OTHER));
}

#[test]
fn virtio_1_2_s5_1_6_5_2_addresses_are_set_and_a_table_is_kept() {
    let mut bench = Bench::live_with(COMMANDED, CTRL_VQ | CTRL_RX | CTRL_MAC_ADDR);
    assert_eq!(command(&mut bench, 2, &[0, 0, 0]), 0);
    let table = |unicast: &[[u8; 6]], multicast: &[[u8; 6]]| {
        let list = |list: &[[u8; 6]]| [&(list.len() as u32).to_le_bytes(), &list.concat()[..]].concat();
        [vec![1, 0], list(unicast), list(multicast)].concat()
    };
    let group = [0x01, 0, 0x5e, 0, 0, 1];
    assert!(!passes(&mut bench, &OTHER) && !passes(&mut bench, &group));
    assert_eq!(command(&mut bench, 2, &table(&[OTHER, MAC.0], &[group])), 0);
    assert!(passes(&mut bench, &OTHER) && passes(&mut bench, &group));
    let most = vec![OTHER; 1300];
    assert_eq!(command(&mut bench, 2, &table(&most, &[])), 0);
    assert!(passes(&mut bench, &OTHER) && !passes(&mut bench, &group));
    assert_eq!(command(&mut bench, 2, &table(&vec![MAC.0; 1366], &[])), 1, "over 8 KiB");
    assert_eq!(command(&mut bench, 2, &[1, 0, 1, 0, 0, 0]), 1, "an address is missing");
    assert_eq!(
        command(&mut bench, 2, &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
        1,
        "so many are not there"
    );
    assert!(passes(&mut bench, &OTHER), "what was refused changes nothing");
    // VIRTIO_NET_CTRL_MAC_ADDR_SET.
    let own = [0x52, 0x54, 0, 0, 0, 0x77];
    assert!(!passes(&mut bench, &own));
    assert_eq!(command(&mut bench, 2, &[&[1, 1], &own[..]].concat()), 0);
    let mut mac = [0; 6];
    bench.device.read(0x100, &mut mac).unwrap();
    assert_eq!(mac, own);
    assert!(passes(&mut bench, &own) && !passes(&mut bench, &MAC.0));
    assert_eq!(command(&mut bench, 2, &[&[1, 1], &group[..]].concat()), 1, "a group's is nobody's own");
    assert_eq!(command(&mut bench, 2, &[1, 1, 2]), 1);
    bench.write(0x70, 0);
    bench.device.read(0x100, &mut mac).unwrap();
    assert_eq!(mac, MAC.0, "after a reset it has its own again");
}

#[test]
fn virtio_1_2_s5_1_6_5_3_tagged_frames_pass_if_their_vlan_is_added() {
    let mut bench = Bench::live_with(COMMANDED, CTRL_VQ | CTRL_VLAN);
    let tagged = [&MAC.0[..], &OTHER, &[0x81, 0, 0x20, 7]].concat();
    assert!(!passes(&mut bench, &tagged) && passes(&mut bench, &MAC.0));
    assert_eq!(command(&mut bench, 2, &[2, 0, 7, 0]), 0);
    assert!(passes(&mut bench, &tagged));
    assert_eq!(command(&mut bench, 2, &[2, 1, 7, 0]), 0);
    assert!(!passes(&mut bench, &tagged));
    assert_eq!(command(&mut bench, 2, &[2, 0, 0, 0x10]), 1, "there are 4096");
}

#[test]
fn virtio_1_2_s5_1_6_5_what_is_unknown_or_was_not_negotiated_is_answered_err() {
    let mut bench = Bench::live_with(several(offloads::ALL), CTRL_VQ);
    for refused in [
        &[0, 0, 1][..],
        &[0, 2, 1],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[1, 1, 0x52, 0, 0, 0, 0, 1],
        &[2, 0, 7, 0],
        &[4, 0, 1, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[9, 9],
        &[0],
    ] {
        assert_eq!(command_of(&mut bench, refused), 1, "{refused:?}");
    }
    assert_eq!(bench.errors(), 0, "these are answers, and no faults");
    let mut bench = Bench::live_with(COMMANDED, CTRL_VQ | CTRL_RX);
    for refused in [&[0, 0][..], &[0, 0, 2], &[0, 0, 1, 1], &[0, 6, 1]] {
        assert_eq!(command_of(&mut bench, refused), 1, "{refused:?}");
    }
}

/// As [`command`], in the third queue and in one piece.
fn command_of(bench: &mut Bench, bytes: &[u8]) -> u8 {
    bench.put(COMMAND, bytes);
    bench.describe(2, 0, COMMAND, bytes.len() as u32, NEXT, 1);
    bench.describe(2, 1, ANSWER, 1, WRITE, 0);
    bench.give(2, 0);
    bench.write(0x50, 2);
    bench.get(ANSWER, 1)[0]
}

#[test]
fn a_command_without_room_for_an_answer_or_outside_of_memory_fails_the_guest() {
    let fails = |describe: fn(&Bench), expected: &str| {
        let mut bench = Bench::live_with(COMMANDED, CTRL_VQ | CTRL_RX);
        describe(&bench);
        bench.give(2, 0);
        bench.fails(expected);
    };
    fails(|bench| bench.describe(2, 0, COMMAND, 3, 0, 0), "no room for an answer");
    fails(|bench| bench.describe(2, 0, MEMORY as u64, 3, NEXT, 1), "outside of guest memory");
    let far = |bench: &Bench| {
        bench.describe(2, 0, COMMAND, 3, NEXT, 1);
        bench.describe(2, 1, MEMORY as u64, 1, WRITE, 0);
    };
    fails(far, "its answer is outside of guest memory");
}

/// A port that says when it is attached and what it takes.
#[derive(Clone, Default)]
struct Watched(std::sync::Arc<std::sync::Mutex<(bool, Offloads)>>);

impl Port for Watched {
    fn send(&mut self, _: &[Piece<'_>]) -> Result<Sent, PortError> {
        Ok(Sent::Taken)
    }
    fn receive(&mut self, _: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        Ok(None)
    }
    fn framing(&self) -> Framing {
        Framing::VirtioNetHeader
    }
    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), PortError> {
        self.0.lock().unwrap().1 = offloads;
        Ok(())
    }
    fn set_attached(&mut self, attached: bool) -> Result<(), PortError> {
        self.0.lock().unwrap().0 = attached;
        Ok(())
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A device whose ports are [`Watched`], with all its features and queues.
fn watched() -> (Bench, Vec<Watched>) {
    let switches = several(offloads::ALL);
    let ports: Vec<_> = (0..3).map(|_| Watched::default()).collect();
    let boxed = ports.iter().map(|port| -> Box<dyn Port> { Box::new(port.clone()) }).collect();
    let mut bench = Bench::with(switches);
    bench.device = VirtioNet::new(bench.memory.clone(), boxed, MAC, 1500, switches).unwrap();
    let features = bench.read(0x10);
    bench.negotiate(features);
    (0..QUEUES).for_each(|queue| bench.set_up(queue));
    bench.write(0x70, 15);
    assert_eq!(bench.read(0x70), 15);
    (bench, ports)
}

#[test]
fn virtio_1_2_s5_1_6_5_6_pairs_in_use_are_attached_and_the_others_are_not() {
    let (mut bench, ports) = watched();
    let attached = || ports.iter().map(|port| port.0.lock().unwrap().0).collect::<Vec<_>>();
    assert_eq!(attached(), [true, false, false], "after a reset there is one");
    assert_eq!(command(&mut bench, 6, &[4, 0, 3, 0]), 0);
    assert_eq!(attached(), [true; 3]);
    assert_eq!(command(&mut bench, 6, &[4, 0, 2, 0]), 0);
    assert_eq!(attached(), [true, true, false]);
    for refused in [0, 4, 0xff] {
        assert_eq!(command(&mut bench, 6, &[4, 0, refused, 0]), 1, "{refused}");
    }
    assert_eq!(attached(), [true, true, false]);
    bench.write(0x70, 0);
    assert_eq!(attached(), [true, false, false]);
}

#[test]
fn virtio_1_2_s5_1_6_5_8_offloads_of_received_frames_are_turned_on_and_off() {
    let (mut bench, ports) = watched();
    let taken = || ports.iter().map(|port| port.0.lock().unwrap().1).collect::<Vec<_>>();
    assert_eq!(taken(), [Offloads { checksum: true, tso4: true, tso6: true }; 3]);
    let set = |bits: u64| [&[5, 0], &bits.to_le_bytes()[..]].concat();
    assert_eq!(command(&mut bench, 6, &set(1 << 1)), 0);
    assert_eq!(taken(), [Offloads { checksum: true, ..Offloads::default() }; 3]);
    assert_eq!(command(&mut bench, 6, &set(1 << 7)), 1, "segments without checksums");
    assert_eq!(command(&mut bench, 6, &set(1 << 1 | 1 << 15)), 1, "no offload");
    assert_eq!(taken(), [Offloads { checksum: true, ..Offloads::default() }; 3]);
    assert_eq!(command(&mut bench, 6, &set(0)), 0);
    assert_eq!(taken(), [Offloads::default(); 3]);
    assert_eq!(command(&mut bench, 6, &set(1 << 1 | 1 << 7 | 1 << 8)), 0, "they may come back");
    assert_eq!(taken(), [Offloads { checksum: true, tso4: true, tso6: true }; 3]);
}

#[test]
fn virtio_1_2_s5_1_6_5_8_what_was_not_negotiated_is_not_turned_on() {
    let mut bench = Bench::live_with(several(offloads::ALL), CTRL_VQ | CTRL_GUEST_OFFLOADS | 1 << 1);
    assert_eq!(command(&mut bench, 2, &[&[5, 0], &(1_u64 << 1).to_le_bytes()[..]].concat()), 0);
    let segments = 1_u64 << 1 | 1 << 7;
    assert_eq!(command(&mut bench, 2, &[&[5, 0], &segments.to_le_bytes()[..]].concat()), 1);
}

#[test]
fn each_pair_has_its_own_way() {
    let switches = several(VirtioNetSwitches::OFF);
    let mut bench = Bench::live_with(switches, CTRL_VQ | MQ);
    let sent = |bench: &mut Bench, pair: usize| {
        let frame = frame(60 + pair);
        bench.put(BUFFERS, &[vec![0; 12], frame.clone()].concat());
        bench.describe(2 * pair + 1, 0, BUFFERS, 72 + pair as u32, 0, 0);
        bench.give(2 * pair + 1, 0);
        bench.write(0x50, 2 * pair as u32 + 1);
        let mut room = vec![0; 2000];
        let wire = if pair == 0 { &mut bench.wire } else { &mut bench.wires[pair - 1] };
        let length = wire.receive(&mut [PieceMut::new(&mut room)]).unwrap();
        length.is_some_and(|length| room[..length] == frame)
    };
    assert!(sent(&mut bench, 0) && !sent(&mut bench, 1), "5.1.6.5.6.2: one pair after a reset");
    assert_eq!(command(&mut bench, 6, &[4, 0, 3, 0]), 0);
    // What waits in a pair that has come into use leaves with what comes.
    assert!(sent(&mut bench, 0) && sent(&mut bench, 2));
    // Received: each pair from its own port, and the descriptor of all tells of any.
    for pair in 1..3 {
        assert!(!readable(&bench));
        bench.wires[pair - 1].send(&[Piece::new(&frame(100 + pair))]).unwrap();
        assert!(readable(&bench));
        bench.describe(2 * pair, 0, BUFFERS, 2048, WRITE, 0);
        bench.give(2 * pair, 0);
        assert!(bench.device.service().unwrap());
        assert_eq!(bench.used_element(2 * pair, 0), (0, 112 + pair as u32));
    }
    // Out of use: its frames wake nobody and go nowhere.
    assert_eq!(command(&mut bench, 6, &[4, 0, 1, 0]), 0);
    bench.wires[1].send(&[Piece::new(&frame(60))]).unwrap();
    assert!(!readable(&bench) && !sent(&mut bench, 2));
}

fn readable(bench: &Bench) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(bench.device.port_fd().unwrap(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn pairs_and_ports_are_as_many() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let (port, _wire) = pair(1).unwrap();
    let refused = VirtioNet::new(memory, vec![Box::new(port)], MAC, 1500, several(VirtioNetSwitches::OFF));
    assert!(matches!(refused, Err(AdapterError::Port(PortError::Queues { pairs: 3, ports: 1 }))));
}

#[test]
fn one_turn_does_so_many_commands_and_the_next_the_rest() {
    let mut bench = Bench::with(COMMANDED);
    bench.negotiate(CTRL_VQ | CTRL_RX);
    (0..2).for_each(|queue| bench.set_up(queue));
    // As long as they come: each entry of the ring is the same chain.
    bench.set_up_of(2, 128);
    bench.write(0x70, 15);
    bench.put(COMMAND, &[0, 0, 1]);
    bench.describe(2, 0, COMMAND, 3, NEXT, 1);
    bench.describe(2, 1, ANSWER, 1, WRITE, 0);
    bench.memory.write_obj(100_u16, GuestAddress(areas(2)[1] + 2)).unwrap();
    assert!(bench.device.service().unwrap(), "there is more to do");
    assert_eq!(bench.used(2), 64);
    bench.device.service().unwrap();
    assert_eq!(bench.used(2), 100);
}

#[test]
fn a_pair_that_is_not_set_up_is_not_used() {
    let mut bench = Bench::with(several(VirtioNetSwitches::OFF));
    bench.negotiate(CTRL_VQ | MQ);
    // The third pair is left out.
    [0, 1, 2, 3, 6].into_iter().for_each(|queue| bench.set_up(queue));
    bench.write(0x70, 15);
    assert_eq!(bench.read(0x70), 15);
    assert_eq!(command(&mut bench, 6, &[4, 0, 2, 0]), 0);
    assert_eq!(command(&mut bench, 6, &[4, 0, 3, 0]), 1);
}
