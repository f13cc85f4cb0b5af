//! Registers, one fact of the data sheet a test.

use super::bench::*;
use crate::adapter::pcnet::bits::{bcr, csr3, csr4, csr5, csr15};
use crate::adapter::pcnet::*;

#[test]
fn h_reset_leaves_what_the_data_sheet_says() {
    let mut bench = Bench::new();
    let csrs =
        [(0, 4), (3, 0), (4, 0x0115), (5, 0), (15, 0), (47, 0), (58, 0x0200), (72, 0xffff), (74, 0xffff)];
    for (index, value) in csrs {
        assert_eq!(bench.csr(index), value, "CSR{index}");
    }
    let csrs =
        [(76, 0xffff), (78, 0xffff), (80, 0x1410), (88, 0x1003), (89, 0x0262), (112, 0), (114, 0), (124, 0)];
    for (index, value) in csrs {
        assert_eq!(bench.csr(index), value, "CSR{index}");
    }
    let bcrs = [(0, 5), (1, 5), (2, 2), (4, 0x80c0), (5, 0x84), (6, 0x88), (7, 0x90), (9, 0), (18, 0x9001)];
    for (index, value) in bcrs {
        assert_eq!(bench.bcr(index), value, "BCR{index}");
    }
    for (index, value) in [(19, 2), (20, 0x0200), (22, 0xff06)] {
        assert_eq!(bench.bcr(index), value, "BCR{index}");
    }
    assert!(!bench.chip.interrupt());
}

#[test]
fn s_reset_keeps_what_pcnet32_does_not_write_again_in_both_modes() {
    // After a transmit error the driver resets, writes CSR4, and gives INIT and STRT without CSR1, CSR2 and BCR20.
    for dwio in [false, true] {
        let mut bench = Bench::new();
        if dwio {
            bench.chip.write(0x10, &[0; 4]).unwrap();
            bench.dwio = true;
        }
        bench.open(csr15::PROM, 5, 4);
        bench.set_csr(3, 0x5f00);
        bench.set_csr(5, csr5::TOKINTD);
        bench.set_bcr(9, 1);
        bench.reset();
        assert_eq!(bench.rap(), 0);
        assert_eq!((bench.csr(0), bench.csr(3), bench.csr(4), bench.csr(5)), (4, 0, 0x0115, 0));
        assert_eq!((bench.csr(1), bench.csr(2)), (INIT as u16, 0), "IADR");
        assert_eq!((bench.bcr(20), bench.csr(58), bench.bcr(9)), (0x0302, 0x0302, 1));
        assert_eq!((bench.csr(76), bench.csr(78)), (0xffe0, 0xfff0), "ring lengths");
        assert_eq!(bench.bcr(18) & bcr::DWIO != 0, dwio, "DWIO");
        bench.set_csr(4, 0x0915);
        bench.set_csr(0, csr0::INIT);
        assert_eq!(bench.csr(0) & csr0::IDON, csr0::IDON);
        assert_eq!(bench.csr(24), RX_RING as u16);
        assert_eq!(bench.csr(15), csr15::PROM, "the mode comes from the init block again");
    }
}

#[test]
fn only_the_reset_register_of_the_mode_resets() {
    let mut bench = Bench::new();
    bench.set_csr(3, 0x5f00);
    bench.chip.write(0x14, &[0; 2]).unwrap();
    bench.chip.read(0x18, &mut [0; 4]).unwrap();
    bench.chip.read(0x14, &mut [0; 4]).unwrap();
    assert_eq!(bench.csr(3), 0x5f00, "neither a write, nor another offset, nor another width");
    bench.chip.write(0x10, &[0; 4]).unwrap();
    bench.dwio = true;
    bench.set_csr(3, 0x5f00);
    bench.chip.read(0x14, &mut [0; 2]).unwrap();
    bench.chip.read(0x18, &mut [0; 2]).unwrap();
    assert_eq!(bench.csr(3), 0x5f00);
    bench.reset();
    assert_eq!(bench.csr(3), 0);
}

#[test]
fn the_aprom_is_read_in_every_width_in_both_modes_and_written_with_aprom_we_only() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        for width in [1, 2, 4] {
            let mut aprom = [0; 16];
            for offset in (0..16).step_by(width) {
                bench.chip.read(offset as u64, &mut aprom[offset..offset + width]).unwrap();
            }
            assert_eq!(&aprom[..6], &MAC.0);
            assert_eq!((aprom[9], &aprom[14..]), (0x11, &b"WW"[..]));
        }
        bench.chip.write(0x10, &[0; 4]).unwrap();
        bench.dwio = true;
    }
    let mut byte = [0];
    bench.chip.write(0, &[0xaa]).unwrap();
    bench.chip.read(0, &mut byte).unwrap();
    assert_eq!(byte, [MAC.0[0]]);
    bench.set_bcr(2, bcr::APROMWE);
    bench.chip.write(0, &[0xaa]).unwrap();
    bench.chip.read(0, &mut byte).unwrap();
    assert_eq!(byte, [0xaa]);
}

#[test]
fn csr0_stop_wins_over_init_and_strt_and_init_works_once() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::STOP | csr0::INIT | csr0::STRT | csr0::IENA);
    assert_eq!(bench.csr(0), csr0::STOP);
    bench.set_csr(0, csr0::INIT | csr0::STRT);
    let running = csr0::INIT | csr0::STRT | csr0::TXON | csr0::RXON;
    assert_eq!(bench.csr(0), running | csr0::IDON | csr0::INTR);
    bench.set_csr(0, csr0::IDON);
    bench.set_csr(0, csr0::INIT);
    assert_eq!(bench.csr(0), running, "no second initialisation without STOP");
}

#[test]
fn csr0_cerr_is_an_error_without_interrupt() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::IDON | csr0::IENA);
    bench.chip.set_link(false);
    bench.set_csr(3, csr0::TINT);
    bench.queue(0, 60);
    bench.set_csr(0, csr0::TDMD | csr0::IENA);
    assert_eq!(bench.csr(0) & (csr0::ERR | csr0::CERR | csr0::INTR), csr0::ERR | csr0::CERR);
    assert!(!bench.chip.interrupt());
}

#[test]
fn csr3_masks_each_cause_and_reserved_bits_stay_0() {
    let mut bench = Bench::new();
    bench.set_csr(3, 0xffff);
    assert_eq!(bench.csr(3), csr3::WRITABLE);
    bench.open(0, 2, 2);
    for (mask, high) in [(0x5f00, false), (0x5e00, true), (csr0::IDON, false), (0, true)] {
        bench.set_csr(3, mask);
        assert_eq!(bench.chip.interrupt(), high, "{mask:#x}");
        assert_eq!(bench.csr(0) & csr0::INTR != 0, high);
    }
}

#[test]
fn csr4_txstrt_and_uint_interrupt_unless_masked_and_clear_by_writing_1() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::IDON | csr0::IENA);
    bench.set_csr(3, 0x5f00);
    bench.queue(0, 60);
    bench.set_csr(0, csr0::TDMD | csr0::IENA);
    assert_eq!(bench.csr(4), 0x0915 | csr4::TXSTRT, "pcnet32 masks it");
    assert!(!bench.chip.interrupt());
    bench.set_csr(4, 0x0911);
    assert!(bench.chip.interrupt());
    bench.set_csr(4, 0x0911 | csr4::TXSTRT);
    assert!(!bench.chip.interrupt());
    bench.set_csr(4, 0x0915 | csr4::UINTCMD);
    assert_eq!(bench.csr(4), 0x0915 | csr4::UINT, "UINTCMD reads as 0");
    assert!(bench.chip.interrupt());
    bench.set_csr(4, 0x0915 | csr4::UINT);
    assert!(!bench.chip.interrupt());
}

#[test]
fn csr5_keeps_its_switches_and_stop_ends_a_suspension() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(5, 0xffff);
    assert_eq!(bench.csr(5), csr5::WRITABLE);
    bench.set_csr(0, csr0::STOP);
    assert_eq!(bench.csr(5), csr5::WRITABLE & !csr5::SPND);
}

#[test]
fn registers_of_the_set_up_take_writes_while_stopped_or_suspended_only() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    let indices = [1, 2, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 30, 31, 46, 47, 58, 76, 78, 80, 82];
    let before: Vec<u16> = indices.iter().map(|index| bench.csr(*index)).collect();
    for index in indices {
        bench.set_csr(index, 0x1203);
    }
    let after: Vec<u16> = indices.iter().map(|index| bench.csr(*index)).collect();
    assert_eq!(before, after, "while it runs");
    for prepare in [(5, csr5::SPND), (0, csr0::STOP)] {
        bench.set_csr(prepare.0, prepare.1);
        for (index, value) in indices.into_iter().zip(0x1000..) {
            bench.set_csr(index, value);
            let expected = if index == 58 { 0x0200 } else { value };
            assert_eq!(bench.csr(index), expected, "CSR{index}");
        }
        bench.open(0, 2, 2);
    }
}

#[test]
fn csr6_has_the_ring_lengths_of_the_init_block_and_takes_no_write() {
    let mut bench = Bench::new();
    bench.open(0, 5, 4);
    bench.set_csr(0, csr0::STOP);
    bench.set_csr(6, 0xffff);
    assert_eq!(bench.csr(6), 0x4500);
}

#[test]
fn csr72_and_74_number_the_descriptor_and_csr26_to_35_have_its_address() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    let pair = |bench: &mut Bench, low| u64::from(bench.csr(low)) | u64::from(bench.csr(low + 1)) << 16;
    assert_eq!((bench.csr(72), bench.csr(74)), (0xfffc, 0xfffc));
    bench.queue(0, 60);
    bench.set_csr(0, csr0::TDMD);
    assert_eq!((bench.csr(72), bench.csr(74)), (0xfffc, 0xfffd));
    assert_eq!((pair(&mut bench, 34), pair(&mut bench, 32)), (TX_RING + 16, TX_RING + 32));
    assert_eq!((pair(&mut bench, 28), pair(&mut bench, 26)), (RX_RING, RX_RING + 16));
    bench.set_csr(0, csr0::STOP);
    bench.set_csr(74, 0xffff);
    bench.set_csr(72, 0);
    assert_eq!((bench.csr(74), pair(&mut bench, 34)), (0xffff, TX_RING + 48), "the last of four");
    assert_eq!(pair(&mut bench, 28), RX_RING, "more than the ring has is its first");
}

#[test]
fn csr76_and_78_are_any_length_from_1_to_65536() {
    let mut bench = Bench::new();
    for (value, written) in [(1_u32, 0xffff_u16), (17, 0xffef), (65535, 1), (65536, 0)] {
        bench.set_csr(76, written);
        bench.set_csr(78, written);
        assert_eq!((bench.csr(76), bench.csr(78)), (written, written));
        assert_eq!(bench.chip.registers.receive.length, value);
        assert_eq!(bench.chip.registers.transmit.length, value);
    }
}

#[test]
fn csr88_and_89_identify_the_chip_and_take_no_write() {
    let mut bench = Bench::new();
    bench.set_csr(88, 0);
    bench.set_csr(89, 0);
    bench.reset();
    assert_eq!((bench.csr(88), bench.csr(89)), (0x1003, 0x0262));
}

#[test]
fn csr112_counts_wraps_into_mfco_and_is_cleared_by_stop() {
    let mut bench = Bench::new();
    bench.open(0, 2, 2);
    bench.set_csr(0, csr0::IDON | csr0::IENA);
    bench.set_csr(112, 7);
    assert_eq!(bench.csr(112), 0, "a write is nothing without EN124");
    bench.set_csr(4, 0x8805);
    for index in [112, 114] {
        for _ in 0..0x1_0000 {
            assert!(!bench.chip.interrupt());
            bench.set_csr(index, 0);
        }
        assert_eq!(bench.csr(index), 0);
        let cause = if index == 112 { csr4::MFCO } else { csr4::RCVCCO };
        assert_eq!(bench.csr(4) & csr4::STATUS, cause);
        assert!(bench.chip.interrupt());
        bench.set_csr(4, 0x8805 | cause);
        bench.set_csr(index, 0);
    }
    assert_eq!((bench.csr(112), bench.csr(114)), (1, 1));
    bench.set_csr(0, csr0::STOP);
    assert_eq!((bench.csr(112), bench.csr(114)), (0, 0));
}

#[test]
fn csr124_takes_what_pcnet32_writes_back() {
    let mut bench = Bench::new();
    let test = bench.csr(124) & !0x10;
    bench.set_csr(124, test);
    assert_eq!(bench.csr(124), 0);
    bench.set_csr(124, 0x10);
    assert_eq!(bench.csr(124), 0x10);
}

#[test]
fn bcrs_keep_what_pcnet32_writes_and_drop_reserved_bits() {
    let mut bench = Bench::new();
    for (index, value) in [(2, bcr::MC_WRITABLE), (9, 7), (19, 0x0017), (22, 0xffff), (5, 0xe3ff)] {
        bench.set_bcr(index, 0xffff);
        assert_eq!(bench.bcr(index), value, "BCR{index}");
    }
    // The autoselection and full-duplex bits, as the driver changes them.
    let port = bench.bcr(2) & !2;
    bench.set_bcr(2, port | 2);
    let duplex = bench.bcr(9) & !3;
    bench.set_bcr(9, duplex | 1);
    assert_eq!((bench.bcr(2) & 2, bench.bcr(9) & 3), (2, 1));
}

#[test]
fn bcr18_dwio_is_not_the_drivers_to_write() {
    let mut bench = Bench::new();
    bench.set_bcr(18, 0x9081);
    assert_eq!(bench.bcr(18), 0x9001);
    bench.chip.write(0x10, &[0; 4]).unwrap();
    bench.dwio = true;
    bench.set_bcr(18, 0x9861);
    assert_eq!(bench.bcr(18), 0x98e1);
}

#[test]
fn bcr20_is_csr58_and_only_the_styles_of_the_chip_are_kept() {
    let mut bench = Bench::new();
    for (written, kept) in [(2, 0x0302), (3, 0x0303), (1, 0x0101), (4, 0x0200), (0, 0x0200), (0x0402, 0x0702)]
    {
        bench.set_bcr(20, written);
        assert_eq!((bench.bcr(20), bench.csr(58)), (kept, kept), "{written:#x}");
        bench.set_csr(58, written);
        assert_eq!((bench.bcr(20), bench.csr(58)), (kept, kept), "{written:#x}");
    }
    bench.open(0, 2, 2);
    bench.set_bcr(20, 3);
    assert_eq!(bench.bcr(20), 0x0302, "not while it runs");
}

#[test]
fn bcr32_to_34_are_of_later_chips_pcnet32_writes_them_all_the_same() {
    let mut bench = Bench::new();
    for index in [32, 33, 34, 127] {
        bench.set_bcr(index, 0x0020);
        assert_eq!(bench.bcr(index), 0, "BCR{index}");
    }
    assert_eq!(bench.chip.counters().guest_errors, 0);
}

#[test]
fn bcr4_shows_the_link_and_other_leds_do_if_told_to() {
    let mut bench = Bench::new();
    assert_eq!(bench.bcr(4), 0x80c0);
    bench.chip.set_link(false);
    assert_eq!(bench.bcr(4), 0x00c0, "what pcnet32 takes for no carrier");
    bench.set_bcr(5, bcr::LNKSTE);
    assert_eq!(bench.bcr(5), bcr::LNKSTE);
    bench.chip.set_link(true);
    assert_eq!((bench.bcr(4), bench.bcr(5)), (0x80c0, 0x8040));
    bench.set_bcr(4, 0x0080);
    assert_eq!(bench.bcr(4), 0x0080, "it no longer shows the link");
}

#[test]
fn rap_has_seven_bits_and_every_register_can_be_read() {
    let mut bench = Bench::new();
    bench.open(0, 9, 9);
    bench.set_csr(5, csr5::SPND);
    // The driver's register dump, and all that is between.
    for index in 0..128 {
        bench.csr(index);
        bench.bcr(index);
    }
    bench.write_rap(0x1ff);
    assert_eq!(bench.rap(), 0x7f);
    assert_eq!(bench.chip.counters().guest_errors, 0);
}
