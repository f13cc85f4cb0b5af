//! Register semantics and transcripts of the `pcnet32` driver's accesses.

mod attacks;
mod bench;
mod frames;
mod hosted;
mod registers;
mod transcript;

use bench::*;

use super::bits::{csr3, csr4, csr5, csr15};
use super::rings::{status, transmit_error};
use super::*;
use crate::piece::Piece;

#[test]
fn pcnet32_probe_finds_the_chip() {
    let mut bench = Bench::new();
    // pcnet32_wio_reset, then CSR0 must read 4 and RAP hold 88.
    bench.read16(0x14);
    assert_eq!(bench.csr(0), 4);
    bench.write16(0x12, 88);
    assert_eq!(bench.read16(0x12), 88);
    let version = u32::from(bench.csr(89)) << 16 | u32::from(bench.csr(88));
    assert_eq!(version & 0xfff, 0x003);
    assert_eq!(version >> 12 & 0xffff, 0x2621);
    let address: Vec<u8> = (12..15).flat_map(|index| bench.csr(index).to_le_bytes()).collect();
    let mut aprom = [0; 16];
    for (offset, byte) in aprom.iter_mut().enumerate() {
        bench.chip.read(offset as u64, std::slice::from_mut(byte)).unwrap();
    }
    assert_eq!(address, MAC.0);
    assert_eq!(&aprom[..6], &MAC.0);
    assert_eq!((aprom[9], &aprom[14..]), (0x11, &b"WW"[..]));
    let sum: u16 =
        aprom.iter().enumerate().filter(|(i, _)| !(12..14).contains(i)).map(|(_, b)| u16::from(*b)).sum();
    assert_eq!([aprom[12], aprom[13]], sum.to_le_bytes());
    bench.set_bcr(20, 2);
    assert_eq!(bench.bcr(20), 0x0302);
    assert_eq!(bench.csr(58), 0x0302);
    assert_eq!(bench.bcr(4), 0x80c0, "the link is up");
    assert_eq!(bench.chip.counters().guest_errors, 0);
}

#[test]
fn a_32_bit_write_to_rdp_enters_dwio_for_good() {
    let mut bench = Bench::new();
    assert_eq!(bench.chip.register_name(0x12), "rap");
    bench.chip.write(0x10, &4_u32.to_le_bytes()).unwrap();
    assert_eq!(bench.chip.register_name(0x14), "rap");
    bench.chip.write(0x14, &88_u32.to_le_bytes()).unwrap();
    let mut data = [0; 4];
    bench.chip.read(0x10, &mut data).unwrap();
    assert_eq!(u32::from_le_bytes(data), 0x1003);
    bench.chip.read(0x18, &mut data).unwrap();
    bench.chip.read(0x10, &mut data).unwrap();
    assert_eq!(u32::from_le_bytes(data), 4, "S_RESET leaves DWIO on");
    assert_eq!(bench.read16(0x12), 0xffff, "16-bit accesses are not decoded");
    assert_eq!(bench.chip.counters().guest_errors, 1);
}

#[test]
fn csr0_flags_clear_by_writing_1_and_the_line_follows() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    assert!(bench.chip.interrupt(), "IDON raises it once IENA is set");
    assert_eq!(bench.csr(0) & (csr0::INTR | csr0::IDON), csr0::INTR | csr0::IDON);
    bench.set_csr(0, csr0::IDON);
    assert!(!bench.chip.interrupt());
    assert_eq!(bench.csr(0), csr0::INIT | csr0::STRT | csr0::TXON | csr0::RXON, "IENA is written as 0");
    bench.set_csr(3, 0x5f00);
    bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
    bench.set_csr(0, csr0::IENA);
    assert!(bench.arrives(&frame(MAC.0, 60)));
    assert!(!bench.chip.interrupt(), "CSR3 masks RINT");
    bench.set_csr(3, 0);
    assert!(bench.chip.interrupt());
    bench.set_csr(0, csr0::STOP);
    assert!(!bench.chip.interrupt());
    assert_eq!(bench.csr(0), csr0::STOP);
    assert_eq!(bench.chip.counters().interrupts, 2);
}

#[test]
fn pcnet32_send_transmits_within_the_write_and_its_interrupt_takes_ten_accesses() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::IDON | csr0::IENA);
    let sent = frame(BROADCAST, 1514);
    bench.put(BUFFERS, &sent);
    bench.descriptor(TX_RING, 0, BUFFERS, 1514, status::OWN | status::STP | status::ENP);
    bench.set_csr(0, 0x48);
    assert_eq!(bench.departed(), Some(sent));
    assert_eq!(bench.status(TX_RING, 0), status::STP | status::ENP);
    assert!(bench.chip.interrupt());
    // The interrupt handler of the 2001 driver.
    let rap = bench.read16(0x12);
    let causes = bench.csr(0);
    assert_eq!(causes & 0x8600, csr0::TINT);
    bench.set_csr(0, causes & !0x4f);
    assert_eq!(bench.csr(0) & 0x8600, 0);
    bench.set_csr(0, 0x7940);
    bench.write16(0x12, rap);
    assert!(!bench.chip.interrupt());
    assert_eq!(bench.chip.counters().transmit_frames, 1);
    assert_eq!(bench.chip.counters().transmit_bytes, 1514);
}

#[test]
fn pcnet32_napi_handler_masks_by_csr3_and_the_end_of_its_poll_unmasks() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::IDON | csr0::IENA);
    bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
    bench.descriptor(RX_RING, 1, BUFFERS, 1544, status::OWN);
    assert!(bench.arrives(&frame(MAC.0, 60)));
    assert!(bench.chip.interrupt());
    // Handler: 8 accesses.
    let causes = bench.csr(0);
    bench.set_csr(0, causes & !0x4f);
    let masks = bench.csr(3);
    bench.set_csr(3, masks | 0x5f00);
    assert_eq!(causes & 0x8f00, csr0::RINT);
    // What comes while the driver polls raises nothing, and is not lost.
    assert!(bench.arrives(&frame(MAC.0, 60)));
    assert!(!bench.chip.interrupt());
    // End of the poll: 6 accesses.
    let masks = bench.csr(3);
    bench.set_csr(3, masks & 0x00ff);
    bench.set_csr(0, csr0::IENA);
    assert!(bench.chip.interrupt());
}

#[test]
fn pcnet32_close_stops_and_a_second_open_starts_over() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        bench.open(0, 2, 2);
        bench.put(BUFFERS, &frame(BROADCAST, 60));
        bench.descriptor(TX_RING, 0, BUFFERS, 60, status::OWN | status::STP | status::ENP);
        bench.set_csr(0, csr0::TDMD | csr0::IENA);
        assert!(bench.departed().is_some());
        bench.set_csr(0, csr0::STOP);
        bench.set_bcr(20, 4);
        assert_eq!(bench.csr(0), csr0::STOP);
        bench.descriptor(TX_RING, 1, BUFFERS, 60, status::OWN | status::STP | status::ENP);
        bench.set_csr(0, csr0::TDMD);
        assert_eq!(bench.departed(), None, "a stopped transmitter sends nothing");
        bench.descriptor(TX_RING, 1, BUFFERS, 60, 0);
    }
}

#[test]
fn a_frame_of_several_descriptors_is_gathered_and_the_ring_wraps() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    let sent = frame(BROADCAST, 300);
    for round in 0..5_u64 {
        bench.put(BUFFERS, &sent);
        for piece in 0..3 {
            let index = (round * 3 + piece) % 4;
            let bits = [status::STP, 0, status::ENP][piece as usize];
            bench.descriptor(TX_RING, index, BUFFERS + 100 * piece, 100, status::OWN | bits);
        }
        bench.set_csr(0, csr0::TDMD);
        assert_eq!(bench.departed().as_deref(), Some(&sent[..]));
        assert!((0..4).all(|index| bench.status(TX_RING, index) & status::OWN == 0));
    }
}

#[test]
fn a_short_frame_is_padded_only_with_apad_xmt() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.put(BUFFERS, &frame(BROADCAST, 42));
    bench.descriptor(TX_RING, 0, BUFFERS, 42, status::OWN | status::STP | status::ENP);
    bench.set_csr(0, csr0::TDMD);
    let padded = bench.departed().unwrap();
    assert_eq!(padded.len(), 60);
    assert!(padded[42..].iter().all(|byte| *byte == 0));
    bench.set_csr(4, 0x0115);
    bench.descriptor(TX_RING, 1, BUFFERS, 42, status::OWN | status::STP | status::ENP);
    bench.set_csr(0, csr0::TDMD);
    assert_eq!(bench.departed().unwrap().len(), 42);
}

#[test]
fn the_drivers_own_fcs_is_taken_off() {
    let mut bench = Bench::new();
    bench.open(csr15::DXMTFCS, 2, 2);
    let sent = frame(BROADCAST, 104);
    bench.put(BUFFERS, &sent);
    bench.descriptor(TX_RING, 0, BUFFERS, 104, status::OWN | status::STP | status::ENP);
    bench.descriptor(TX_RING, 1, BUFFERS, 104, status::OWN | status::STP | status::ENP | status::ADD_FCS);
    bench.set_csr(0, csr0::TDMD);
    assert_eq!(bench.departed().as_deref(), Some(&sent[..100]));
    assert_eq!(bench.departed().as_deref(), Some(&sent[..]));
}

#[test]
fn descriptors_without_stp_are_skipped_and_a_missing_end_stops_the_transmitter() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.descriptor(TX_RING, 0, BUFFERS, 100, status::OWN | status::ENP);
    bench.descriptor(TX_RING, 1, BUFFERS, 100, status::OWN | status::STP);
    bench.set_csr(0, csr0::TDMD);
    assert_eq!(bench.departed(), None);
    assert_eq!(bench.status(TX_RING, 0), status::ENP);
    assert_eq!(bench.status(TX_RING, 1), status::STP | status::ERR);
    assert_eq!(bench.get32(TX_RING + 16 + 8), transmit_error::BUFF | transmit_error::UFLO);
    assert_eq!(bench.csr(0) & (csr0::TXON | csr0::TINT), csr0::TINT);
}

#[test]
fn a_babble_is_not_sent_and_the_driver_sees_babl_and_err() {
    let mut bench = Bench::new();
    bench.open(0, 2, 3);
    for index in 0..4 {
        let bits = [status::STP, 0, 0, status::ENP][index as usize];
        bench.descriptor(TX_RING, index, BUFFERS, 4096, status::OWN | bits);
    }
    bench.set_csr(0, csr0::TDMD);
    assert_eq!(bench.departed(), None);
    assert_eq!(bench.csr(0) & (csr0::BABL | csr0::ERR), csr0::BABL | csr0::ERR);
    assert_eq!(bench.chip.counters().guest_errors, 1);
    assert!((0..4).all(|index| bench.status(TX_RING, index) & status::OWN == 0));
    bench.set_csr(0, csr0::BABL);
    assert_eq!(bench.csr(0) & (csr0::BABL | csr0::ERR), 0);
}

#[test]
fn a_received_frame_is_padded_and_ends_with_its_fcs() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
    let arrived = frame(MAC.0, 42);
    assert!(bench.arrives(&arrived));
    assert_eq!(bench.status(RX_RING, 0), status::STP | status::ENP | status::PAM);
    assert_eq!(bench.message_length(0), 64);
    let memory = bench.get(BUFFERS, 64);
    assert_eq!(&memory[..42], &arrived[..]);
    assert!(memory[42..60].iter().all(|byte| *byte == 0));
    assert_eq!(memory[60..], crc32fast::hash(&memory[..60]).to_le_bytes());
    assert_eq!(bench.csr(0) & csr0::RINT, csr0::RINT);
    assert_eq!(bench.chip.counters().receive_bytes, 42);
}

#[test]
fn astrp_rcv_strips_padding_and_fcs_of_an_802_3_frame() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(4, 0x0915 | csr4::ASTRP_RCV);
    bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
    let mut arrived = frame(MAC.0, 60);
    arrived[12..14].copy_from_slice(&[0, 3]);
    assert!(bench.arrives(&arrived));
    assert_eq!(bench.message_length(0), 17);
}

#[test]
fn a_frame_is_scattered_over_descriptors_and_one_that_does_not_fit_ends_in_buff() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    for index in 0..3 {
        bench.descriptor(RX_RING, index, BUFFERS + 0x1000 * index, 100, status::OWN);
    }
    let arrived = frame(MAC.0, 250);
    assert!(bench.arrives(&arrived));
    assert_eq!(bench.status(RX_RING, 0), status::STP);
    assert_eq!(bench.status(RX_RING, 1), 0);
    assert_eq!(bench.status(RX_RING, 2), status::ENP | status::PAM);
    assert_eq!(bench.message_length(2), 254);
    let memory: Vec<u8> = (0..3).flat_map(|i| bench.get(BUFFERS + 0x1000 * i, 100)).collect();
    assert_eq!(&memory[..250], &arrived[..]);
    assert_eq!(memory[250..254], crc32fast::hash(&arrived).to_le_bytes());

    // 100 bytes of frame would fit, the FCS after them does not.
    bench.descriptor(RX_RING, 3, BUFFERS, 100, status::OWN);
    bench.put(BUFFERS + 100, &[0xaa; 8]);
    assert!(bench.arrives(&frame(MAC.0, 100)));
    assert_eq!(bench.status(RX_RING, 3), status::STP | status::ERR | status::BUFF);
    assert_eq!(bench.get(BUFFERS + 100, 8), [0xaa; 8], "nothing is written past the buffer");
    assert_eq!(bench.chip.counters().receive_drops, 1);
}

#[test]
fn frames_wait_in_the_port_while_the_guest_has_no_descriptor() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::IDON | csr0::IENA);
    assert!(!bench.chip.can_receive());
    assert!(!bench.arrives(&frame(MAC.0, 60)));
    bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
    assert!(bench.chip.can_receive());
    assert!(bench.chip.service().unwrap());
    assert_eq!(bench.chip.counters().receive_frames, 1);
}

#[test]
fn the_filter_takes_own_broadcast_logical_and_with_prom_any() {
    let other = [0x52, 0x54, 0, 0, 0, 1];
    let multicast = [0x01, 0x00, 0x5e, 0, 0, 1];
    let hash = !crc32fast::hash(&multicast) >> 26;
    let takes = |mode: u16, filter: u64, destination| {
        let mut bench = Bench::new();
        bench.open(mode, 2, 2);
        bench.set_csr(0, csr0::STOP);
        for word in 0..4 {
            bench.set_csr(8 + word, (filter >> (16 * word)) as u16);
        }
        bench.set_csr(0, csr0::STRT | csr0::IENA);
        bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
        bench.arrives(&frame(destination, 60)).then(|| bench.status(RX_RING, 0) & 0x70)
    };
    assert_eq!(takes(0, 0, MAC.0), Some(status::PAM));
    assert_eq!(takes(csr15::DRCVPA, 0, MAC.0), None);
    assert_eq!(takes(0, 0, BROADCAST), Some(status::BAM));
    assert_eq!(takes(csr15::DRCVBC, 0, BROADCAST), None);
    // "LAFM will be set on the reception of a Broadcast frame": data sheet, RMD1, with DRCVBC.
    let all_ones = !crc32fast::hash(&BROADCAST) >> 26;
    assert_eq!(takes(csr15::DRCVBC, 1 << all_ones, BROADCAST), Some(status::LAFM));
    assert_eq!(takes(csr15::DRCVBC, !(1 << all_ones), BROADCAST), None);
    assert_eq!(takes(csr15::DRCVBC | csr15::PROM, 0, BROADCAST), Some(0));
    assert_eq!(takes(0, 0, multicast), None);
    assert_eq!(takes(0, 1 << hash, multicast), Some(status::LAFM));
    assert_eq!(takes(0, !(1 << hash), multicast), None);
    assert_eq!(takes(0, u64::MAX, other), None);
    assert_eq!(takes(csr15::PROM, 0, other), Some(0));
    assert_eq!(takes(csr15::DRX, 0, MAC.0), None);
}

#[test]
fn a_looped_frame_comes_back_with_its_fcs_or_is_missed() {
    let mut bench = Bench::new();
    bench.open(csr15::LOOP, 2, 2);
    let sent = frame(MAC.0, 1514);
    bench.put(BUFFERS, &sent);
    bench.descriptor(TX_RING, 0, BUFFERS, 1514, status::OWN | status::STP | status::ENP);
    bench.set_csr(0, csr0::TDMD);
    assert_eq!(bench.csr(0) & (csr0::MISS | csr0::ERR), csr0::MISS | csr0::ERR);
    assert_eq!(bench.csr(112), 1);
    // A buffer that ends exactly with the frame has no room for the FCS (CVE-2015-7504).
    bench.descriptor(RX_RING, 0, 0x10000, 1514, status::OWN);
    bench.put(0x10000 + 1514, &[0xaa; 8]);
    bench.descriptor(TX_RING, 1, BUFFERS, 1514, status::OWN | status::STP | status::ENP);
    bench.set_csr(0, csr0::TDMD);
    assert_eq!(bench.status(RX_RING, 0), status::STP | status::ERR | status::BUFF);
    assert_eq!(bench.get(0x10000 + 1514, 8), [0xaa; 8]);
    bench.descriptor(RX_RING, 1, 0x10000, 1544, status::OWN);
    bench.descriptor(TX_RING, 2, BUFFERS, 1514, status::OWN | status::STP | status::ENP);
    bench.set_csr(0, csr0::TDMD);
    assert_eq!(bench.get(0x10000, 1514), sent);
    assert_eq!(bench.get(0x10000 + 1514, 4), crc32fast::hash(&sent).to_le_bytes());
    assert_eq!(bench.departed(), None, "nothing reaches the wire");
}

#[test]
fn sixteen_bit_structures_work_alike() {
    let mut bench = Bench::new();
    let mut block = [0; 24];
    block[2..8].copy_from_slice(&MAC.0);
    block[16..20].copy_from_slice(&(RX_RING as u32 | 2 << 29).to_le_bytes());
    block[20..].copy_from_slice(&(TX_RING as u32 | 1 << 29).to_le_bytes());
    bench.put(INIT, &block);
    bench.set_csr(1, INIT as u16);
    bench.set_csr(2, 0);
    bench.set_csr(0, csr0::INIT | csr0::STRT);
    assert_eq!((bench.csr(76), bench.csr(78)), (4_u16.wrapping_neg(), 2_u16.wrapping_neg()));
    let sent = frame(BROADCAST, 100);
    bench.put(BUFFERS, &sent);
    bench.put32(TX_RING, BUFFERS as u32 | 0x83 << 24);
    bench.put32(TX_RING + 4, u32::from(100_u16.wrapping_neg()));
    bench.set_csr(0, csr0::TDMD);
    assert_eq!(bench.departed(), Some(sent));
    assert_eq!(bench.get32(TX_RING), BUFFERS as u32 | 0x03 << 24);
    bench.put32(RX_RING, BUFFERS as u32 | 0x80 << 24);
    bench.put32(RX_RING + 4, u32::from(1544_u16.wrapping_neg()));
    assert!(bench.arrives(&frame(MAC.0, 100)));
    assert_eq!(bench.get32(RX_RING), BUFFERS as u32 | 0x03 << 24);
    assert_eq!(bench.get32(RX_RING + 4) >> 16, 104);
}

#[test]
fn style_3_swaps_address_and_misc() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::STOP);
    bench.set_bcr(20, 3);
    bench.set_csr(0, csr0::STRT);
    bench.put32(RX_RING + 8, BUFFERS as u32);
    bench.put32(RX_RING + 4, u32::from(status::OWN) << 16 | u32::from(1544_u16.wrapping_neg()));
    assert!(bench.arrives(&frame(MAC.0, 100)));
    assert_eq!((bench.get32(RX_RING), bench.get32(RX_RING + 8)), (104, BUFFERS as u32));
}

#[test]
fn suspend_stops_both_ways_and_goes_on_where_it_was() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::IDON);
    bench.set_csr(5, csr5::SPND);
    assert_eq!(bench.csr(5) & csr5::SPND, csr5::SPND);
    bench.descriptor(RX_RING, 0, BUFFERS, 1544, status::OWN);
    assert!(!bench.arrives(&frame(MAC.0, 60)));
    bench.set_csr(5, 0);
    assert!(bench.chip.service().unwrap());
}
