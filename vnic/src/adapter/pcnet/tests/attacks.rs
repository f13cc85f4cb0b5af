//! What a hostile guest may do: every address, length and bit in memory is its own.

use std::sync::{Arc, Mutex, MutexGuard};

use proptest::prelude::*;

use super::*;
use crate::adapter::pcnet::fuzz::Step;
use crate::port::PortError;

const WHOLE: u16 = status::OWN | status::STP | status::ENP;

#[test]
fn addresses_outside_of_guest_memory_fail_the_guest() {
    let fails = |prepare: &dyn Fn(&mut Bench)| {
        let mut bench = Bench::new();
        bench.open(0, 2, 2);
        prepare(&mut bench);
        bench.write16(0x12, 0);
        let error = bench.chip.write(0x10, &csr0::TDMD.to_le_bytes()).and_then(|()| bench.chip.service());
        assert!(matches!(error, Err(AdapterError::Guest { adapter: "pcnet", .. })), "{error:?}");
        assert_eq!(bench.chip.counters().guest_errors, 1);
    };
    let end = MEMORY as u64;
    fails(&|b| b.descriptor(TX_RING, 0, end - 50, 100, status::OWN | status::STP | status::ENP));
    fails(&|b| b.descriptor(TX_RING, 0, u64::from(u32::MAX), 100, status::OWN | status::STP | status::ENP));
    fails(&|b| b.descriptor(RX_RING, 0, end, 1544, status::OWN));
    fails(&|b| (0..4).for_each(|i| b.descriptor(TX_RING, i, BUFFERS, 1, status::OWN | status::STP)));
    fails(&|b| {
        b.set_csr(0, csr0::STOP);
        b.set_csr(31, 0xffff);
        // Otherwise the chip looks at its ring as soon as it runs.
        b.set_csr(4, 0x0915 | csr4::DPOLL);
        b.set_csr(0, csr0::STRT);
    });
    let mut bench = Bench::new();
    bench.set_csr(2, 0xffff);
    bench.write16(0x12, 0);
    assert!(matches!(bench.chip.write(0x10, &[1, 0]), Err(AdapterError::Guest { what: "init block", .. })));
}

#[test]
fn buffers_may_end_with_memory_and_not_one_byte_later() {
    for (over, csr3) in [(0, 0), (1, 0), (0, csr3::BSWP), (1, csr3::BSWP)] {
        let mut bench = Bench::new();
        bench.open(0, 2, 2);
        bench.set_csr(3, csr3);
        bench.descriptor(TX_RING, 0, MEMORY as u64 - 60 + over, 60, WHOLE);
        bench.write16(0x12, 0);
        let sent = bench.chip.write(0x10, &csr0::TDMD.to_le_bytes());
        assert_eq!((sent.is_ok(), bench.departed().is_some()), (over == 0, over == 0));
        bench.descriptor(RX_RING, 0, MEMORY as u64 - 64 + over, 64, status::OWN);
        bench.wire.send(&[Piece::new(&frame(MAC.0, 60))]).unwrap();
        assert_eq!(bench.chip.service().is_ok(), over == 0);
    }
}

/// CVE-2015-3209: pieces whose lengths add up past what the model had room for.
#[test]
fn chained_lengths_past_any_buffer_are_counted_and_not_gathered() {
    for mode in [0, csr15::LOOP | csr15::INTL] {
        for pieces in [2_u64, 3, 17, 63, 64, 65, 200, 511, 512] {
            let mut bench = Bench::new();
            bench.open(mode, 2, 9);
            bench.descriptor(RX_RING, 0, 0x20000, 4096, status::OWN);
            for index in 0..pieces {
                let bits = if index == 0 { status::STP } else { 0 };
                let bits = bits | if index + 1 == pieces { status::ENP } else { 0 };
                // Count field 0: 4096 bytes.
                bench.descriptor(TX_RING, index, BUFFERS, 0, status::OWN | bits);
            }
            bench.set_csr(0, csr0::TDMD);
            assert_eq!(bench.departed(), None);
            assert_eq!(bench.csr(0) & csr0::BABL, csr0::BABL);
            assert_eq!(bench.status(RX_RING, 0), status::OWN, "nothing came back");
            assert!((0..pieces).all(|index| bench.status(TX_RING, index) & status::OWN == 0));
            assert_eq!(bench.chip.counters().guest_errors, 1);
        }
    }
}

/// CVE-2015-7504 and -7512: the FCS of a looped frame, and frames longer than what they come back into.
#[test]
fn looped_frames_at_the_limit_stay_within_their_buffer() {
    for length in [14, 59, 60, 1499, 1500, 1514, 1517, 1518] {
        for room in length.max(4) - 3..=length + 5 {
            let mut bench = Bench::new();
            bench.open(csr15::LOOP | csr15::INTL, 2, 2);
            bench.set_csr(4, 0x0115);
            let at = 0x20000;
            bench.put(at - 16, &vec![0xaa; room + 32]);
            bench.descriptor(RX_RING, 0, at, room as u16, status::OWN);
            let sent = bench.queue(0, length);
            bench.set_csr(0, csr0::TDMD);
            let fits = room >= length + FCS;
            let expected = if fits { status::ENP | status::BAM } else { status::ERR | status::BUFF };
            assert_eq!(bench.status(RX_RING, 0), status::STP | expected, "{length} in {room}");
            let kept = length.min(room);
            assert_eq!(bench.get(at, kept), sent[..kept]);
            assert_eq!(bench.get(at - 16, 16), [0xaa; 16], "before it");
            assert_eq!(bench.get(at + room as u64, 16), [0xaa; 16], "behind it");
        }
    }
    // One byte more is a babble, in loop-back too.
    let mut bench = Bench::new();
    bench.open(csr15::LOOP | csr15::INTL, 2, 2);
    bench.descriptor(RX_RING, 0, 0x20000, 4096, status::OWN);
    bench.queue(0, 1519);
    bench.set_csr(0, csr0::TDMD);
    assert_eq!((bench.csr(0) & csr0::BABL, bench.status(RX_RING, 0)), (csr0::BABL, status::OWN));
}

#[test]
fn rings_of_every_size_wrap_where_they_end() {
    let sends = |bench: &mut Bench, length: u64| {
        for round in 0..length.min(40) + 2 {
            let index = round % length;
            let sent = bench.queue(index, 60 + round as usize % 8);
            bench.descriptor(RX_RING, index, 0x20000, 1544, status::OWN);
            bench.set_csr(0, csr0::TDMD);
            assert_eq!(bench.departed(), Some(sent), "{length}: {round}");
            assert!(bench.arrives(&frame(MAC.0, 60)));
            assert_eq!(bench.status(RX_RING, index), status::STP | status::ENP | status::PAM);
        }
    };
    for bits in 0..16_u8 {
        let mut bench = Bench::new();
        bench.open(0, bits, bits);
        let length = 1 << bits.min(9);
        assert_eq!(bench.csr(76), (length as u16).wrapping_neg());
        if bits <= 6 {
            sends(&mut bench, length);
        }
    }
    for length in [1_u16, 2, 3, 7, 17, 31, 33] {
        let mut bench = Bench::new();
        bench.open(0, 2, 2);
        bench.set_csr(0, csr0::STOP);
        bench.set_csr(76, length.wrapping_neg());
        bench.set_csr(78, length.wrapping_neg());
        bench.set_csr(0, csr0::STRT);
        sends(&mut bench, length.into());
    }
    // Longer than memory: the walk ends where memory does.
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::STOP);
    bench.set_csr(78, 1);
    bench.set_csr(30, 0);
    bench.set_csr(31, 3);
    for index in 0..(MEMORY as u64 - 0x30000) / 16 {
        bench.descriptor(0x30000, index, BUFFERS, 1, status::OWN | status::STP);
    }
    bench.write16(0x12, 0);
    let error = bench.chip.write(0x10, &csr0::STRT.to_le_bytes());
    assert!(matches!(error, Err(AdapterError::Guest { what: "transmit ring", .. })), "{error:?}");
}

/// What happens on a wire while the chip is in the middle of a frame.
#[derive(Default)]
struct Meanwhile {
    /// Stores to guest memory during each call, as another vCPU would make them.
    stores: Vec<(u64, u32)>,
    incoming: Option<Vec<u8>>,
    sent: u32,
}

/// A port during whose calls the guest's memory changes.
struct Midway {
    memory: GuestMemory,
    meanwhile: Arc<Mutex<Meanwhile>>,
}

impl Midway {
    fn change(&self) -> MutexGuard<'_, Meanwhile> {
        let meanwhile = self.meanwhile.lock().unwrap();
        for (at, value) in &meanwhile.stores {
            self.memory.write_obj(value.to_le(), GuestAddress(*at)).unwrap();
        }
        meanwhile
    }
}

impl Port for Midway {
    fn send(&mut self, _: &[Piece<'_>]) -> Result<Sent, PortError> {
        self.change().sent += 1;
        Ok(Sent::Taken)
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        let Some(frame) = self.change().incoming.take() else { return Ok(None) };
        crate::piece::write_at(parts, 0, &frame);
        Ok(Some(frame.len()))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A running chip on such a port.
fn midway() -> (Bench, Arc<Mutex<Meanwhile>>) {
    let mut bench = Bench::new();
    let meanwhile = Arc::<Mutex<Meanwhile>>::default();
    let port = Midway { memory: bench.memory.clone(), meanwhile: Arc::clone(&meanwhile) };
    bench.chip = Pcnet::new(bench.memory.clone(), Box::new(port), MAC);
    bench.open(0, 2, 2);
    (bench, meanwhile)
}

fn word(status: u16, length: u16) -> u32 {
    u32::from(status) << 16 | u32::from(length.wrapping_neg())
}

#[test]
fn a_descriptor_taken_back_while_its_frame_is_sent_is_left_alone() {
    let (mut bench, meanwhile) = midway();
    bench.descriptor(TX_RING, 0, BUFFERS, 30, status::OWN | status::STP);
    bench.descriptor(TX_RING, 1, BUFFERS, 30, status::OWN);
    bench.descriptor(TX_RING, 2, BUFFERS, 30, status::OWN | status::ENP);
    // The middle one becomes the driver's own, with another use.
    meanwhile.lock().unwrap().stores.push((TX_RING + 16 + 4, word(0x0123, 7)));
    bench.set_csr(0, csr0::TDMD);
    assert_eq!(meanwhile.lock().unwrap().sent, 1);
    assert_eq!((bench.status(TX_RING, 0), bench.status(TX_RING, 2)), (status::STP, status::ENP));
    assert_eq!(bench.get32(TX_RING + 16 + 4), word(0x0123, 7));
    assert_eq!(bench.csr(74), 4_u16.wrapping_neg() + 3);
}

#[test]
fn descriptors_given_again_in_the_middle_do_not_keep_the_chip() {
    let (mut bench, meanwhile) = midway();
    bench.queue(0, 60);
    // Each frame sent gives the whole ring again.
    meanwhile.lock().unwrap().stores.extend((0..4).map(|index| (TX_RING + 16 * index + 4, word(WHOLE, 60))));
    for index in 0..4 {
        bench.put32(TX_RING + 16 * index, BUFFERS as u32);
    }
    bench.set_csr(0, csr0::TDMD);
    assert_eq!(meanwhile.lock().unwrap().sent, 4, "one way round the ring");
}

#[test]
fn a_receive_descriptor_that_changes_under_the_frame_counts_as_it_was_given() {
    let (mut bench, meanwhile) = midway();
    bench.put(0x20000, &[0xaa; 4096]);
    bench.descriptor(RX_RING, 0, 0x20000, 64, status::OWN);
    meanwhile.lock().unwrap().incoming = Some(frame(MAC.0, 60));
    // While the frame comes, the buffer moves out of memory, and grows.
    meanwhile.lock().unwrap().stores.extend([(RX_RING, 0xffff_0000), (RX_RING + 4, word(status::OWN, 4096))]);
    bench.chip.service().unwrap();
    assert_eq!(bench.get(0x20000, 60), frame(MAC.0, 60));
    assert_eq!(bench.get(0x20000 + 64, 64), [0xaa; 64]);
    assert_eq!(bench.status(RX_RING, 0), status::STP | status::ENP | status::PAM);
}

#[test]
fn looped_frames_that_land_in_the_transmit_ring_are_bounded() {
    let mut bench = Bench::new();
    bench.open(csr15::LOOP | csr15::INTL, 2, 2);
    // A frame whose bytes are the ring as it was given: each that comes back gives its descriptors again.
    let mut image = frame(MAC.0, 64);
    for index in 0..4 {
        bench.put32(TX_RING + 16 * index, BUFFERS as u32);
        bench.put32(TX_RING + 16 * index + 4, word(WHOLE, 64));
    }
    let ring = bench.get(TX_RING, 64);
    image[16..64].copy_from_slice(&ring[16..64]);
    bench.put(BUFFERS, &image);
    for index in 0..4 {
        bench.descriptor(RX_RING, index, TX_RING, 1544, status::OWN);
    }
    bench.set_csr(0, csr0::TDMD);
    assert!(bench.chip.counters().transmit_frames <= 4, "{:?}", bench.chip.counters());
    for _ in 0..10 {
        bench.chip.service().unwrap();
    }
}

#[test]
fn a_ring_in_its_own_buffers_is_no_trap() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    // The frame is received over the very descriptors that it is received with, and the init block is the ring.
    for index in 0..4 {
        bench.descriptor(RX_RING, index, RX_RING, 64, status::OWN);
    }
    bench.wire.send(&[Piece::new(&frame(MAC.0, 60))]).unwrap();
    // What the chip finds next is the frame's own bytes, and an address out of memory among them.
    assert!(matches!(bench.chip.service(), Err(AdapterError::Guest { what: "receive descriptor", .. })));
    assert_eq!(bench.status(RX_RING, 0) & status::OWN, 0);
    bench.set_csr(0, csr0::STOP);
    bench.set_csr(1, RX_RING as u16);
    bench.set_csr(0, csr0::INIT | csr0::STRT);
    let _ = bench.chip.service();
}

fn place() -> impl Strategy<Value = u32> {
    prop_oneof![
        // Structures, ends of regions, holes, anywhere.
        0_u32..0x5000,
        0x1_7f00_u32..0x1_8100,
        0x1_ff00_u32..0x2_0100,
        0x3_ff00_u32..0x5_0100,
        any::<u32>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let width = prop_oneof![Just(1_u8), Just(2), Just(4), 0_u8..9];
    let own = prop_oneof![4 => Just(status::OWN), 1 => Just(0)];
    let length = prop_oneof![0_u16..70, 1500_u16..1550, any::<u16>()];
    prop_oneof![
        2 => (0_u8..0x28, width.clone()).prop_map(|(offset, width)| Step::Read(offset, width)),
        2 => (0_u8..0x28, width, any::<u32>()).prop_map(|(offset, width, value)| Step::Write(offset, width, value)),
        2 => (prop_oneof![Just(0_u8), 0_u8..128], any::<u16>()).prop_map(|(index, value)| Step::Csr(index, value)),
        1 => (0_u8..40, any::<u16>()).prop_map(|(index, value)| Step::Bcr(index, value)),
        4 => prop_oneof![Just(0x48_u16), Just(0x43), Just(0x42), Just(4)].prop_map(|value| Step::Csr(0, value)),
        2 => (place(), any::<u32>()).prop_map(|(at, value)| Step::Store(at, value)),
        6 => (any::<bool>(), 0_u16..16, place(), length.clone(), own, any::<u8>()).prop_map(
            |(transmit, index, base, length, own, bits)| {
                Step::Descriptor { transmit, index, base, length, status: own | u16::from(bits & 0x7f) << 8 }
            }
        ),
        2 => (length, any::<bool>()).prop_map(|(length, mine)| Step::Arrives(length % 5000, mine)),
        2 => Just(Step::Service),
        2 => (place(), any::<u32>()).prop_map(|(at, value)| Step::StoreMidway(at, value)),
        1 => any::<bool>().prop_map(Step::Link),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever a guest does, the model neither panics nor hangs, and nothing but its own memory is touched: pages that
    /// nobody may touch are on both sides of each region.
    #[test]
    fn no_sequence_of_accesses_panics(
        style in prop_oneof![Just(0_u16), Just(2), Just(3)],
        mode in any::<u16>(),
        lengths in [0_u8..6, 0_u8..6],
        misses in any::<bool>(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        fuzz::steps(style, mode, lengths, misses, &steps);
    }
}
