//! Frames both ways, one fact of the data sheet a test.

use super::bench::*;
use crate::adapter::pcnet::bits::{csr3, csr4, csr5, csr15};
use crate::adapter::pcnet::rings::{status, transmit_error};
use crate::adapter::pcnet::*;

const WHOLE: u16 = status::OWN | status::STP | status::ENP;

fn misc(bench: &Bench, index: u64) -> u32 {
    bench.get32(TX_RING + 16 * index + 8)
}

fn demand(bench: &mut Bench) {
    bench.set_csr(0, csr0::TDMD | csr0::IENA);
}

/// Whether TINT is set, which this clears.
fn tint(bench: &mut Bench) -> bool {
    let causes = bench.csr(0);
    bench.set_csr(0, csr0::TINT | csr0::IENA);
    causes & csr0::TINT != 0
}

#[test]
fn strt_and_the_end_of_a_suspension_look_at_the_transmit_ring_without_a_demand() {
    let mut bench = Bench::new();
    bench.queue(0, 60);
    bench.queue(1, 60);
    bench.open(0, 2, 2);
    assert!(bench.departed().is_some() && bench.departed().is_some());
    bench.set_csr(5, csr5::SPND);
    bench.queue(2, 60);
    demand(&mut bench);
    bench.chip.service().unwrap();
    assert_eq!(bench.departed(), None, "suspended");
    bench.set_csr(5, 0);
    assert!(bench.departed().is_some());
}

#[test]
fn dpoll_leaves_the_ring_alone_until_a_demand() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(4, 0x0915 | csr4::DPOLL);
    bench.queue(0, 60);
    bench.chip.service().unwrap();
    assert_eq!(bench.departed(), None);
    demand(&mut bench);
    assert!(bench.departed().is_some());
    bench.set_csr(4, 0x0915);
    bench.queue(1, 60);
    bench.chip.service().unwrap();
    assert!(bench.departed().is_some(), "the poll finds it");
}

#[test]
fn tokintd_and_ltint_keep_tint_to_errors_and_to_frames_that_ask_for_it() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::IDON | csr0::IENA);
    let mut index = 0;
    let mut sends = |bench: &mut Bench, csr5: u16, ltint: u16, link: bool| {
        bench.set_csr(5, csr5);
        bench.chip.set_link(link);
        bench.put(BUFFERS, &frame(BROADCAST, 60));
        bench.descriptor(TX_RING, index, BUFFERS, 60, WHOLE | ltint);
        demand(bench);
        assert_eq!(bench.status(TX_RING, index) & status::LTINT, 0, "the chip writes MORE there");
        index = (index + 1) % 4;
        tint(bench)
    };
    for (csr5, ltint, raised) in [
        (0, 0, true),
        (0, status::LTINT, true),
        (csr5::TOKINTD, 0, false),
        (csr5::TOKINTD, status::LTINT, false),
        (csr5::LTINTEN, 0, false),
        (csr5::LTINTEN, status::LTINT, true),
        (csr5::LTINTEN | csr5::TOKINTD, status::LTINT, true),
    ] {
        assert_eq!(sends(&mut bench, csr5, ltint, true), raised, "{csr5:#x} {ltint:#x}");
        assert!(sends(&mut bench, csr5, ltint, false), "an error is never kept: {csr5:#x} {ltint:#x}");
    }
}

#[test]
fn without_a_link_a_frame_is_lost_with_lcar_and_cerr_and_none_is_received() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::IDON | csr0::IENA);
    bench.chip.set_link(false);
    bench.queue(0, 60);
    demand(&mut bench);
    assert_eq!(bench.departed(), None);
    assert_eq!(bench.status(TX_RING, 0), status::STP | status::ENP | status::ERR);
    assert_eq!(misc(&bench, 0), transmit_error::LCAR);
    let causes = csr0::CERR | csr0::ERR | csr0::TINT | csr0::TXON;
    assert_eq!(bench.csr(0) & causes, causes, "the transmitter stays on");
    bench.set_csr(0, csr0::CERR | csr0::TINT | csr0::IENA);
    bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
    assert!(bench.chip.can_receive(), "it is to be taken off the port");
    assert!(!bench.arrives(&frame(MAC.0, 60)));
    bench.chip.set_link(true);
    assert!(!bench.chip.service().unwrap(), "what came meanwhile is lost");
    assert!(bench.arrives(&frame(MAC.0, 60)));
    assert_eq!(bench.chip.counters().transmit_drops, 1);
}

#[test]
fn a_missing_end_stops_the_transmitter_unless_dxsuflo() {
    for (csr3, goes_on) in [(0, 0), (csr3::DXSUFLO, csr0::TXON)] {
        let mut bench = Bench::new();
        bench.open(0, 2, 2);
        bench.set_csr(3, csr3);
        bench.descriptor(TX_RING, 0, BUFFERS, 100, status::OWN | status::STP);
        demand(&mut bench);
        assert_eq!(misc(&bench, 0), transmit_error::BUFF | transmit_error::UFLO);
        assert_eq!(bench.csr(0) & (csr0::TXON | csr0::TINT), goes_on | csr0::TINT);
        bench.queue(1, 60);
        demand(&mut bench);
        assert_eq!(bench.departed().is_some(), goes_on != 0);
    }
}

#[test]
fn a_frame_in_too_many_pieces_underflows_and_stops_the_transmitter() {
    let mut bench = Bench::new();
    bench.open(0, 2, 7);
    for index in 0..65 {
        let bits = [(0, status::STP), (64, status::ENP)].iter().find(|(at, _)| *at == index);
        let bits = bits.map_or(0, |(_, bits)| *bits);
        bench.descriptor(TX_RING, index, BUFFERS, 10, status::OWN | bits);
    }
    demand(&mut bench);
    assert_eq!((misc(&bench, 64), misc(&bench, 0)), (transmit_error::UFLO, 0));
    assert_eq!(bench.status(TX_RING, 64), status::ENP | status::ERR);
    assert!((0..65).all(|index| bench.status(TX_RING, index) & status::OWN == 0));
    assert_eq!(bench.csr(0) & csr0::TXON, 0);
    assert_eq!(bench.departed(), None);
}

#[test]
fn fcoll_in_internal_loop_back_fails_with_rtry() {
    let mut bench = Bench::new();
    bench.open(csr15::LOOP | csr15::INTL | csr15::FCOLL, 2, 2);
    bench.descriptor(RX_RING, 0, 0x10000, 1544, status::OWN);
    bench.queue(0, 60);
    demand(&mut bench);
    assert_eq!(misc(&bench, 0), transmit_error::RTRY);
    assert_eq!(bench.status(RX_RING, 0), status::OWN);
}

#[test]
fn internal_loop_back_needs_no_link_and_external_does() {
    for (mode, returns) in [(csr15::LOOP | csr15::INTL, true), (csr15::LOOP, false)] {
        let mut bench = Bench::new();
        bench.chip.set_link(false);
        bench.open(mode, 2, 2);
        bench.descriptor(RX_RING, 0, 0x10000, 1544, status::OWN);
        let sent = bench.queue(0, 100);
        demand(&mut bench);
        assert_eq!(bench.status(RX_RING, 0) & status::OWN == 0, returns);
        assert_eq!(bench.get(0x10000, 100) == sent, returns);
        assert_eq!(misc(&bench, 0), if returns { 0 } else { transmit_error::LCAR });
    }
}

#[test]
fn a_looped_runt_comes_back_as_it_is_unless_apad_xmt() {
    for (csr4, length) in [(0x0115, 46), (0x0915, 64)] {
        let mut bench = Bench::new();
        bench.open(csr15::LOOP | csr15::INTL, 2, 2);
        bench.set_csr(4, csr4);
        bench.descriptor(RX_RING, 0, 0x10000, 1544, status::OWN);
        bench.queue(0, 42);
        demand(&mut bench);
        assert_eq!(bench.message_length(0), length);
        let fcs = bench.get(0x10000 + u64::from(length) - 4, 4);
        let whole = bench.get(0x10000, length as usize - 4);
        assert_eq!(fcs, crc32fast::hash(&whole).to_le_bytes());
    }
}

#[test]
fn a_looped_frame_with_a_wrong_fcs_of_the_driver_has_crc() {
    for wrong in [false, true] {
        let mut bench = Bench::new();
        bench.open(csr15::LOOP | csr15::INTL | csr15::DXMTFCS, 2, 2);
        bench.descriptor(RX_RING, 0, 0x10000, 1544, status::OWN);
        let mut sent = frame(BROADCAST, 100);
        sent.extend_from_slice(&(crc32fast::hash(&sent) ^ u32::from(wrong)).to_le_bytes());
        bench.put(BUFFERS, &sent);
        bench.descriptor(TX_RING, 0, BUFFERS, 104, WHOLE);
        demand(&mut bench);
        let whole = status::STP | status::ENP | status::BAM;
        let error = if wrong { status::CRC | status::ERR } else { 0 };
        assert_eq!(bench.status(RX_RING, 0), whole | error);
        assert_eq!((bench.message_length(0), bench.get(0x10000, 104)), (104, sent));
        assert_eq!(bench.chip.counters().receive_drops, u64::from(wrong));
    }
}

#[test]
fn a_padded_frame_gets_its_fcs_whatever_dxmtfcs_says() {
    let mut bench = Bench::new();
    bench.open(csr15::DXMTFCS, 2, 2);
    let sent = bench.queue(0, 50);
    demand(&mut bench);
    let padded = bench.departed().unwrap();
    assert_eq!((padded.len(), &padded[..50], &padded[50..]), (60, &sent[..], &[0; 10][..]));
    bench.queue(1, 64);
    demand(&mut bench);
    assert_eq!(bench.departed().unwrap().len(), 60, "64 bytes are long enough, and the last four an FCS");
}

#[test]
fn a_frame_that_finds_no_descriptor_is_missed_if_so_told() {
    let mut bench = Bench::with(|chip| chip.with_no_descriptor(NoDescriptor::Miss));
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::IDON | csr0::IENA);
    assert!(bench.chip.can_receive(), "it is to be taken off the port");
    assert!(!bench.arrives(&frame([0x52, 0, 0, 0, 0, 1], 60)), "the filter comes first");
    assert_eq!(bench.csr(112), 0);
    assert!(bench.arrives(&frame(MAC.0, 60)));
    assert!(bench.chip.interrupt());
    assert_eq!(bench.csr(0) & (csr0::MISS | csr0::ERR | csr0::RINT), csr0::MISS | csr0::ERR);
    assert_eq!(bench.csr(112), 1);
    bench.set_csr(0, csr0::MISS | csr0::IENA);
    bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
    assert!(bench.arrives(&frame(MAC.0, 60)), "the next one is received");
    assert_eq!((bench.csr(112), bench.chip.counters().receive_drops), (1, 1));
    bench.set_csr(0, csr0::STOP);
    assert!(!bench.chip.can_receive());
    assert!(!bench.arrives(&frame(MAC.0, 60)), "a receiver that is off misses nothing");
    assert_eq!(bench.csr(112), 0);
}

#[test]
fn a_looped_frame_that_the_filter_rules_out_is_not_missed() {
    let mut bench = Bench::new();
    bench.open(csr15::LOOP | csr15::INTL | csr15::DRCVBC, 2, 2);
    bench.queue(0, 60);
    demand(&mut bench);
    assert_eq!((bench.csr(112), bench.csr(0) & csr0::MISS), (0, 0));
}

#[test]
fn a_buffer_smaller_than_the_address_still_tells_of_the_frame() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.descriptor(RX_RING, 0, BUFFERS, 1, status::OWN);
    assert!(bench.arrives(&frame(MAC.0, 60)));
    assert_eq!(bench.status(RX_RING, 0), status::STP | status::ERR | status::BUFF);
    assert_eq!(bench.csr(0) & csr0::RINT, csr0::RINT);
}

#[test]
fn the_message_length_has_12_bits_and_a_longer_frame_does_not_fit() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    for (index, length) in [(0, 4091), (1, 4092)] {
        bench.descriptor(RX_RING, index, 0x10000, 4096, status::OWN);
        assert!(bench.arrives(&frame(MAC.0, length)));
    }
    assert_eq!((bench.status(RX_RING, 0), bench.message_length(0)), (0x0340, 0xfff));
    assert_eq!(bench.status(RX_RING, 1), status::STP | status::ERR | status::BUFF);
}

#[test]
fn bswp_reverses_the_words_of_frames_and_leaves_descriptors_alone() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(3, csr3::BSWP);
    let plain = frame(MAC.0, 102);
    let mut reversed = plain.clone();
    reversed.resize(104, 0);
    reversed.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    bench.put(BUFFERS, &reversed);
    bench.descriptor(TX_RING, 0, BUFFERS, 60, status::OWN | status::STP);
    bench.descriptor(TX_RING, 1, BUFFERS + 60, 42, status::OWN | status::ENP);
    demand(&mut bench);
    assert_eq!(bench.departed().as_deref(), Some(&plain[..]));
    bench.descriptor(RX_RING, 0, 0x10000, 64, status::OWN);
    bench.descriptor(RX_RING, 1, 0x12000, 64, status::OWN);
    assert!(bench.arrives(&plain));
    assert_eq!((bench.get(0x10000, 64), bench.message_length(1)), (reversed[..64].to_vec(), 106));
    let mut rest = bench.get(0x12000, 44);
    rest.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    assert_eq!(rest[..38], plain[64..]);
    assert_eq!(rest[38..42], crc32fast::hash(&plain).to_le_bytes());
}

#[test]
fn a_ring_of_65536_frames_is_sent_in_bounded_steps() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::STOP);
    bench.set_csr(4, 0x0915 | csr4::DPOLL);
    // 0x1000 descriptors that are all the chip's: the ring is longer than memory has room for.
    bench.set_csr(78, 0);
    bench.put(BUFFERS, &frame(BROADCAST, 60));
    let first = 0x20000;
    bench.set_csr(30, first as u16);
    bench.set_csr(31, (first >> 16) as u16);
    for index in 0..0x1000 {
        bench.descriptor(first, index, BUFFERS, 60, WHOLE);
    }
    bench.set_csr(0, csr0::STRT | csr0::IENA);
    demand(&mut bench);
    let counters = |bench: &Bench| bench.chip.counters();
    let moved = |bench: &Bench| counters(bench).transmit_frames + counters(bench).transmit_drops;
    assert_eq!(moved(&bench), 512);
    for polls in 2..=8 {
        assert!(bench.chip.service().unwrap(), "the guest is not to sleep");
        assert_eq!(moved(&bench), 512 * polls);
    }
    // A demand goes on over polls even with DPOLL, until a descriptor is the driver's.
    bench.set_csr(0, csr0::TINT);
    assert!(!bench.chip.service().unwrap());
    assert_eq!(moved(&bench), 0x1000);
}

#[test]
fn the_logical_filter_is_hashed_as_pcnet32_hashes_it() {
    // ether_crc_le, bit by bit; its upper six bits are a word of CSR8 to CSR11 and a bit in it.
    let hash = |address: [u8; 6]| {
        let crc = address.iter().fold(u32::MAX, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 })
        });
        (crc >> 26) as u16
    };
    for last in 0..64 {
        let address = [0x33, 0x33, 0, 0, 1, last];
        let (word, bit) = (hash(address) >> 4, hash(address) & 0xf);
        let mut bench = Bench::new();
        bench.open(0, 2, 2);
        bench.set_csr(5, csr5::SPND);
        bench.set_csr(8 + word, 1 << bit);
        bench.set_csr(5, 0);
        bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
        assert!(bench.arrives(&frame(address, 60)), "{address:x?}");
        assert_eq!(bench.status(RX_RING, 0) & 0x70, status::LAFM);
    }
}

#[test]
fn a_flood_of_frames_for_others_does_not_hold_the_chip() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
    for _ in 0..64 {
        bench.wire.send(&[Piece::new(&frame([0x52, 0, 0, 0, 0, 1], 60))]).unwrap();
    }
    bench.chip.service().unwrap();
    assert_eq!(bench.status(RX_RING, 0), status::OWN);
    assert!(bench.arrives(&frame(MAC.0, 60)), "the port is empty of them");
}
