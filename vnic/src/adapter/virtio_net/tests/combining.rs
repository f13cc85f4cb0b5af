//! `segment_combining`: what leaves as one, what does not, and that cutting up gives back what was joined.

use etherparse::{PacketBuilder, TcpHeader};

use proptest::prelude::*;

use super::*;
use crate::port::Offloads;
use crate::port::splitting::Splitting;

const COMBINING: VirtioNetSwitches = VirtioNetSwitches { segment_combining: true, ..VirtioNetSwitches::OFF };
const CHECKSUM: VirtioNetSwitches = VirtioNetSwitches { checksum_offload: true, ..COMBINING };
/// VIRTIO_NET_F_CSUM and VIRTIO_NET_F_GUEST_CSUM.
const CSUM: u32 = 1 << 0 | 1 << 1;
const TCP_V4: usize = 34;
const TCP_V6: usize = 54;

#[derive(Debug, Clone, Copy)]
struct Sender {
    v6: bool,
    sequence: u32,
    identification: u16,
    port: u16,
}

impl Default for Sender {
    fn default() -> Self {
        Self { v6: false, sequence: u32::MAX - 2000, identification: u16::MAX, port: 40_000 }
    }
}

impl Sender {
    /// The next segment of its flow.
    fn segment(&mut self, length: usize, change: impl FnOnce(&mut TcpHeader)) -> Vec<u8> {
        let payload: Vec<u8> = (0..length).map(|i| (self.sequence as usize + i) as u8 ^ 0x5a).collect();
        let mut tcp = TcpHeader::new(self.port, 5201, self.sequence, 500);
        (tcp.ack, tcp.acknowledgment_number) = (true, 77);
        change(&mut tcp);
        let builder = PacketBuilder::ethernet2(MAC.0, [2; 6]);
        let builder = if self.v6 {
            builder.ipv6([1; 16], [2; 16], 64).tcp_header(tcp)
        } else {
            let mut ip =
                etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::TCP, [10, 0, 0, 1], [10, 0, 0, 2])
                    .unwrap();
            (ip.identification, ip.dont_fragment) = (self.identification, false);
            builder.ip(etherparse::IpHeaders::Ipv4(ip, Default::default())).tcp_header(tcp)
        };
        let mut frame = Vec::new();
        builder.write(&mut frame, &payload).unwrap();
        self.sequence = self.sequence.wrapping_add(length as u32);
        self.identification = self.identification.wrapping_add(1);
        frame
    }

    fn plain(&mut self, length: usize) -> Vec<u8> {
        self.segment(length, |_| {})
    }

    fn pushing(&mut self, length: usize) -> Vec<u8> {
        self.segment(length, |tcp| tcp.psh = true)
    }
}

/// What leaves when the guest makes `frames` available at once, each with `header`.
fn departures_with(bench: &mut Bench, header: &[u8; 12], frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let before = bench.used(1);
    for (index, frame) in frames.iter().enumerate() {
        let at = BUFFERS + 0x1000 * index as u64;
        bench.put(at, &[&header[..], frame].concat());
        bench.describe(1, index as u16, at, 12 + frame.len() as u32, 0, 0);
        bench.give(1, index as u16);
    }
    bench.write(0x50, 1);
    let heads: Vec<_> =
        (0..frames.len()).map(|n| bench.used_element(1, before.wrapping_add(n as u16)).0).collect();
    assert_eq!(heads, (0..frames.len() as u32).collect::<Vec<_>>(), "every chain comes back, in order");
    std::iter::from_fn(|| bench.departed()).collect()
}

fn departures(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut bench = Bench::live_with(COMBINING, 0);
    let departed = departures_with(&mut bench, &[0; 12], frames);
    let counters = bench.device.counters();
    let bytes: usize = frames.iter().map(Vec::len).sum();
    assert_eq!((counters.transmit_frames, counters.transmit_bytes), (frames.len() as u64, bytes as u64));
    departed
}

/// Header and frame of one that was not joined.
fn alone(frame: &[u8]) -> Vec<u8> {
    [&[0; 12], frame].concat()
}

/// What an owner without offloads gets of frames that leave.
fn cut(departed: &[Vec<u8>], offloads: Offloads) -> Vec<Vec<u8>> {
    let (mut wire, port) = pair_with_headers(64).unwrap();
    let mut port = Splitting::new(Box::new(port));
    port.set_offloads(offloads).unwrap();
    for frame in departed {
        wire.send(&[Piece::new(frame)]).unwrap();
    }
    let (mut one, mut other) = ([0; 13], vec![0; 9000]);
    std::iter::from_fn(|| {
        let mut parts = [PieceMut::new(&mut one), PieceMut::new(&mut other)];
        let length = port.receive(&mut parts).unwrap()?;
        Some([&one[..], &other[..length - 13]].concat())
    })
    .collect()
}

#[test]
fn segments_that_follow_each_other_leave_as_one() {
    for (v6, gso_type, tcp) in [(false, 1, TCP_V4), (true, 4, TCP_V6)] {
        let mut sender = Sender { v6, ..Sender::default() };
        let frames = [sender.plain(1400), sender.plain(1400), sender.pushing(300)];
        let departed = departures(&frames);
        assert_eq!(departed.len(), 1);
        let (header, joined) = departed[0].split_at(12);
        let fields: Vec<u16> =
            header[2..].chunks(2).map(|field| u16::from_le_bytes([field[0], field[1]])).collect();
        assert_eq!((header[0], header[1]), (1, gso_type));
        assert_eq!(fields, [tcp as u16 + 20, 1400, tcp as u16, 16, 0]);
        assert_eq!(joined.len(), tcp + 20 + 3100);
        let payload: Vec<u8> = frames.iter().flat_map(|frame| &frame[tcp + 20..]).copied().collect();
        assert_eq!(joined[tcp + 20..], payload);
        assert_eq!(joined[tcp + 13], 0x18, "the last one's PSH");
        let whole: Vec<_> = frames.iter().map(|frame| alone(frame)).collect();
        assert_eq!(cut(&departed, Offloads::default()), whole, "every byte is as it was");
    }
}

#[test]
fn what_ends_a_train_ends_it() {
    let joined = |frames: &[Vec<u8>]| -> Vec<usize> {
        let departed = departures(frames);
        let whole: Vec<_> = frames.iter().map(|frame| alone(frame)).collect();
        assert_eq!(cut(&departed, Offloads::default()), whole);
        departed.iter().map(|frame| frame.len() - 12).collect()
    };
    let mut s = Sender::default();
    let f = |payload: usize| TCP_V4 + 20 + payload;
    assert_eq!(joined(&[s.plain(1000), s.pushing(1000), s.plain(1000)]), [f(2000), f(1000)], "PSH");
    assert_eq!(joined(&[s.plain(1000), s.plain(999), s.plain(1000)]), [f(1999), f(1000)], "a short one");
    assert_eq!(joined(&[s.plain(1000), s.plain(1001)]), [f(1000), f(1001)], "a longer one");
    let gap = [s.plain(1000), {
        s.sequence += 1;
        s.plain(1000)
    }];
    assert_eq!(joined(&gap), [f(1000), f(1000)], "a gap");
    let again = [s.plain(1000), {
        s.sequence -= 1000;
        s.plain(1000)
    }];
    assert_eq!(joined(&again), [f(1000), f(1000)], "the same again");
    let jump = [s.plain(1000), {
        s.identification += 1;
        s.plain(1000)
    }];
    assert_eq!(joined(&jump), [f(1000), f(1000)], "identifications that cutting up would not give");
    let mut other = Sender { port: 40_001, ..s };
    assert_eq!(joined(&[s.plain(1000), other.plain(1000)]), [f(1000), f(1000)], "another flow");
    let acknowledged = [s.plain(1000), s.segment(1000, |tcp| tcp.acknowledgment_number = 78)];
    assert_eq!(joined(&acknowledged), [f(1000), f(1000)], "another acknowledgement");
    let window = [s.plain(1000), s.segment(1000, |tcp| tcp.window_size = 501)];
    assert_eq!(joined(&window), [f(1000), f(1000)], "another window");
    let flags: [fn(&mut TcpHeader); 4] =
        [|tcp| tcp.fin = true, |tcp| tcp.ece = true, |tcp| tcp.urg = true, |tcp| tcp.rst = true];
    for change in flags {
        assert_eq!(joined(&[s.plain(1000), s.segment(1000, change)]), [f(1000), f(1000)]);
    }
    let empty = [s.plain(1000), s.plain(0), s.plain(1000)];
    assert_eq!(joined(&empty), [f(1000), f(0), f(1000)], "an acknowledgement stays in its place");
}

#[test]
fn a_damaged_segment_is_not_repaired() {
    let mut sender = Sender::default();
    let good = [sender.plain(1000), sender.plain(1000), sender.plain(1000)];
    // A byte of the payload; of the TCP header; of the IP header.
    for at in [TCP_V4 + 500, TCP_V4 + 14, 22] {
        let mut frames = good.clone();
        frames[1][at] ^= 0x10;
        assert_eq!(departures(&frames), frames.iter().map(|frame| alone(frame)).collect::<Vec<_>>(), "{at}");
    }
}

#[test]
fn checksums_that_are_left_to_the_device_are_left_to_the_host() {
    let mut sender = Sender::default();
    let frames = [sender.plain(1000), sender.plain(1000)];
    let mut header = [0; 12];
    (header[0], header[6], header[8]) = (1, 34, 16);
    let mut bench = Bench::live_with(CHECKSUM, CSUM);
    let mut unfinished = frames.clone();
    // The device has only the driver's word for what is in the field.
    unfinished.iter_mut().for_each(|frame| frame[TCP_V4 + 16..TCP_V4 + 18].fill(0));
    let departed = departures_with(&mut bench, &header, &unfinished);
    assert_eq!(departed.len(), 1);
    assert_eq!(cut(&departed, Offloads::default()), frames.map(|frame| alone(&frame)));
    // One that says something else of where its checksum goes is left as it is.
    header[8] = 6;
    let departed = departures_with(&mut bench, &header, &unfinished);
    assert_eq!(departed.len(), 2);
    assert_eq!(departed[1], [&header[..], &unfinished[1]].concat());
}

#[test]
fn an_owner_that_takes_unfinished_frames_gets_the_sum_of_the_pseudo_header() {
    let mut sender = Sender::default();
    let frames = [sender.plain(1000), sender.plain(1000)];
    let offloads = Offloads { checksum: true, ..Offloads::default() };
    for (part, frame) in cut(&departures(&frames), offloads).iter().zip(&frames) {
        assert_eq!(part[..12], [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
        let mut part = part[12..].to_vec();
        crate::segment::complete_frame(&mut part, TCP_V4, TCP_V4 + 16);
        assert_eq!(part, *frame);
    }
}

#[test]
fn a_joined_segment_of_the_host_with_fin_and_cwr_is_cut_as_rfc_3168_says() {
    let (mut wire, port) = pair_with_headers(4).unwrap();
    let mut port = Splitting::new(Box::new(port));
    port.set_offloads(Offloads::default()).unwrap();
    let mut sender = Sender::default();
    let joined = sender.segment(2500, |tcp| (tcp.fin, tcp.cwr, tcp.psh) = (true, true, true));
    let header = [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0];
    wire.send(&[Piece::new(&header), Piece::new(&joined)]).unwrap();
    let mut room = [0; 2000];
    let mut flags = Vec::new();
    while let Some(length) = port.receive(&mut [PieceMut::new(&mut room)]).unwrap() {
        flags.push((length - 12 - 54, room[12 + TCP_V4 + 13]));
    }
    assert_eq!(flags, [(1000, 0x90), (1000, 0x10), (500, 0x19)]);
}

#[test]
fn a_guest_without_room_gets_the_rest_later() {
    let mut sender = Sender::default();
    let frames = [sender.plain(1000), sender.plain(1000), sender.plain(1000)];
    let departed = departures(&frames);
    let mut bench = Bench::live_with(COMBINING, 0);
    bench.arrives(&departed[0]);
    for (index, frame) in frames.iter().enumerate() {
        bench.write(0x64, 1);
        assert!(!bench.device.service().unwrap(), "nothing for the guest, and no interrupt");
        let at = BUFFERS + 0x1000 * index as u64;
        bench.describe(0, index as u16, at, 2000, WRITE, 0);
        bench.give(0, index as u16);
        assert!(bench.device.service().unwrap());
        assert_eq!(bench.get(at + 12, frame.len()), *frame);
        assert_eq!(bench.get(at, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }
    assert_eq!(bench.device.counters().receive_drops, 0);
}

proptest! {
    /// Whatever a guest sends: what is joined and cut up again is what it sent.
    #[test]
    fn cutting_up_gives_back_what_was_joined(
        v6: bool,
        steps in prop::collection::vec((0..5_u8, 1..1400_usize, 0..3_u8), 1..8),
    ) {
        let mut sender = Sender { v6, ..Sender::default() };
        let frames: Vec<_> = steps.into_iter().map(|(kind, length, change)| match kind {
            0 => sender.segment(length, |tcp| match change {
                0 => tcp.psh = true,
                1 => tcp.fin = true,
                _ => tcp.window_size ^= 1,
            }),
            1 => frame(length.max(14)),
            _ => sender.plain(1400 - 100 * usize::from(change / 2)),
        }).collect();
        let whole: Vec<_> = frames.iter().map(|frame| alone(frame)).collect();
        prop_assert_eq!(cut(&departures(&frames), Offloads::default()), whole);
    }
}
