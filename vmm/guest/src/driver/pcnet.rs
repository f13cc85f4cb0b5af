//! Am79C970A driver with the register accesses of Linux' `pcnet32` of 2001.
//!
//! ```text
//!  frame sent:  descriptor OWN -> RAP=0 -> RDP=TDMD|IENA                                   2 accesses
//!  interrupt:   RAP? -> [RAP=0 RDP? RAP=0 RDP=ack RAP=0 RDP?] -> RAP=0 RDP=0x7940 -> RAP=  10 accesses
//! ```
//! That is the paper's 12 I/O instructions a frame: 7 of RAP and 5 of RDP. In a guest the handler is entered through
//! the IDT, in the program's own privilege level (`payload/src/gate.rs`). It touches registers only and hands the
//! causes on; rings are walked by the program (the kernel's driver walks them in the handler, which costs no access).
//!
//! Registers are used 16 bits wide (WIO), structures 32 bits (software style 2), with 16 transmit and 32 receive
//! descriptors: the driver's defaults.

use core::ptr::NonNull;

use super::{Driver, DriverError, InterruptHandler};
use crate::dma::Dma;
use crate::platform::{Platform, Registers};

/// Offsets from the I/O base, WIO.
const RDP: u64 = 0x10;
const RAP: u64 = 0x12;
const RESET: u64 = 0x14;
const BDP: u64 = 0x16;

/// CSR0.
const INIT: u16 = 1 << 0;
const STRT: u16 = 1 << 1;
const TDMD: u16 = 1 << 3;
const IENA: u16 = 1 << 6;
const IDON: u16 = 1 << 8;
const RINT: u16 = 1 << 10;
/// What the handler looks for: ERR, RINT, TINT.
const CAUSES: u16 = 0x8600;
/// What the handler leaves out of its acknowledgement: IENA, TDMD, STOP, STRT, INIT.
const NOT_ACKNOWLEDGED: u16 = 0x004f;
/// The handler's last write: clears BABL, CERR, MISS, MERR, IDON and sets IENA.
const CLEAR_AND_ENABLE: u16 = 0x7940;
/// Turns of the handler's loop at most (the driver's `max_interrupt_work`).
const MAX_INTERRUPT_WORK: u32 = 20;

/// Descriptor status.
const OWN: u16 = 0x8000;
const STP_ENP: u16 = 0x0300;

/// 32 receive and 16 transmit descriptors, as powers of two.
const RECEIVE_BITS: u32 = 5;
const TRANSMIT_BITS: u32 = 4;
const RECEIVE_RING: usize = 1 << RECEIVE_BITS;
const TRANSMIT_RING: usize = 1 << TRANSMIT_BITS;
const DESCRIPTOR: usize = 16;
const INIT_BLOCK: usize = 28;
/// The driver's PKT_BUF_SZ.
const BUFFER: usize = 1544;
/// Distance of buffers, a multiple of the cache line.
const STRIDE: usize = 1600;
/// Frame check sequence, counted by a receive descriptor's message length.
const FCS: usize = 4;
/// A received frame is at least this long without FCS; the driver drops shorter ones.
const MINIMUM: usize = 60;

/// Alignment of what [`PcnetDriver::memory`] says.
const ALIGN: usize = 64;

/// Longest frame without FCS.
pub(crate) const LONGEST: usize = 1514;

fn read_csr(registers: &mut impl Registers, index: u16) -> u16 {
    registers.write_register(RAP, 2, u32::from(index));
    registers.read_register(RDP, 2) as u16
}

fn write_csr(registers: &mut impl Registers, index: u16, value: u16) {
    registers.write_register(RAP, 2, u32::from(index));
    registers.write_register(RDP, 2, u32::from(value));
}

fn read_bcr(registers: &mut impl Registers, index: u16) -> u16 {
    registers.write_register(RAP, 2, u32::from(index));
    registers.read_register(BDP, 2) as u16
}

fn write_bcr(registers: &mut impl Registers, index: u16, value: u16) {
    registers.write_register(RAP, 2, u32::from(index));
    registers.write_register(BDP, 2, u32::from(value));
}

/// The interrupt handler, `pcnet32_interrupt` without the rings: acknowledges what the chip says, and returns it.
/// All that runs in interrupt context.
pub(super) fn handle_interrupt(registers: &mut impl Registers) -> u32 {
    let mut causes = 0;
    let rap = registers.read_register(RAP, 2);
    for _ in 0..MAX_INTERRUPT_WORK {
        let csr0 = read_csr(registers, 0);
        if csr0 & CAUSES == 0 {
            break;
        }
        write_csr(registers, 0, csr0 & !NOT_ACKNOWLEDGED);
        causes |= u32::from(csr0);
    }
    write_csr(registers, 0, CLEAR_AND_ENABLE);
    registers.write_register(RAP, 2, rap);
    causes
}

/// The driver's rings and where it is in them.
#[derive(Debug)]
pub struct PcnetDriver {
    receive_ring: Dma,
    transmit_ring: Dma,
    receive_buffers: Dma,
    transmit_buffers: Dma,
    receive_next: usize,
    transmit_next: usize,
    /// RINT has come and the ring has not been seen empty since.
    receive_pending: bool,
    /// The current receive descriptor's frame is lent.
    lent: bool,
}

impl PcnetDriver {
    /// Bytes of DMA memory that [`open`](Self::open) takes.
    pub(crate) const fn memory() -> usize {
        let rings = (RECEIVE_RING + TRANSMIT_RING) * DESCRIPTOR;
        INIT_BLOCK.next_multiple_of(ALIGN) + rings + (RECEIVE_RING + TRANSMIT_RING) * STRIDE
    }

    /// `pcnet32_probe1` and `pcnet32_open`: finds the chip, hands it rings, starts it.
    ///
    /// # Errors
    /// [`DriverError`] if there is another chip, or none.
    pub fn open(platform: &mut impl Platform, mac: [u8; 6]) -> Result<Self, DriverError> {
        probe(platform, mac)?;
        let mut memory = Dma::allocate(platform, Self::memory(), ALIGN);
        if memory.address() + Self::memory() as u64 > 1 << 32 {
            return Err(DriverError::Unsupported { what: "addresses over 32 bits" });
        }
        let init_block = memory.split(INIT_BLOCK.next_multiple_of(ALIGN));
        let driver = Self {
            receive_ring: memory.split(RECEIVE_RING * DESCRIPTOR),
            transmit_ring: memory.split(TRANSMIT_RING * DESCRIPTOR),
            receive_buffers: memory.split(RECEIVE_RING * STRIDE),
            transmit_buffers: memory.split(TRANSMIT_RING * STRIDE),
            receive_next: 0,
            transmit_next: 0,
            receive_pending: false,
            lent: false,
        };
        for index in 0..RECEIVE_RING {
            let buffer = driver.receive_buffers.address() + (index * STRIDE) as u64;
            driver.receive_ring.write32(index * DESCRIPTOR, buffer as u32);
            driver.give_receive(index);
        }
        for index in 0..TRANSMIT_RING {
            let buffer = driver.transmit_buffers.address() + (index * STRIDE) as u64;
            driver.transmit_ring.write32(index * DESCRIPTOR, buffer as u32);
        }

        // As `pcnet32_open` does it: reset; software style 2; autoselection of the port; half duplex; GPSI off.
        platform.read_register(RESET, 2);
        write_bcr(platform, 20, 2);
        let port = read_bcr(platform, 2) & !2;
        write_bcr(platform, 2, port | 2);
        let duplex = read_bcr(platform, 9) & !3;
        write_bcr(platform, 9, duplex);
        let test = read_csr(platform, 124) & !0x10;
        write_csr(platform, 124, test);

        let word = |bytes: [u8; 4]| u32::from_le_bytes(bytes);
        let [a, b, c, d, e, f] = mac;
        let lengths = [0, 0, (RECEIVE_BITS << 4) as u8, (TRANSMIT_BITS << 4) as u8];
        let block = [
            word(lengths),
            word([a, b, c, d]),
            word([e, f, 0, 0]),
            0,
            0,
            driver.receive_ring.address() as u32,
            driver.transmit_ring.address() as u32,
        ];
        for (index, word) in block.into_iter().enumerate() {
            init_block.write32(index * 4, word);
        }
        write_csr(platform, 1, init_block.address() as u16);
        write_csr(platform, 2, (init_block.address() >> 16) as u16);
        // Automatic padding, no interrupts for transmission starts and counter overflows.
        write_csr(platform, 4, 0x0915);
        write_csr(platform, 0, INIT);
        if !(0..100).any(|_| read_csr(platform, 0) & IDON != 0) {
            return Err(DriverError::NotReady { what: "IDON" });
        }
        write_csr(platform, 0, IENA | STRT);
        Ok(driver)
    }

    /// Gives a receive descriptor to the chip.
    fn give_receive(&self, index: usize) {
        let at = index * DESCRIPTOR;
        self.receive_ring.write32(at + 8, 0);
        self.receive_ring.release32(at + 4, u32::from(OWN) << 16 | u32::from((BUFFER as u16).wrapping_neg()));
    }
}

/// Finds an Am79C970A with the address `mac` and leaves it stopped.
fn probe(registers: &mut impl Registers, mac: [u8; 6]) -> Result<(), DriverError> {
    let expect = |register, found: u32, wanted: u32| {
        if found == wanted { Ok(()) } else { Err(DriverError::Unexpected { register, found }) }
    };
    registers.read_register(RESET, 2);
    expect("CSR0", read_csr(registers, 0).into(), 4)?;
    registers.write_register(RAP, 2, 88);
    expect("RAP", registers.read_register(RAP, 2), 88)?;
    let version = u32::from(read_csr(registers, 89)) << 16 | u32::from(read_csr(registers, 88));
    expect("CSR88/89", version & 0x0fff_ffff, 0x0262_1003)?;
    for (index, pair) in mac.chunks_exact(2).enumerate() {
        let wanted = u16::from_le_bytes([pair[0], pair[1]]);
        expect("CSR12-14", read_csr(registers, 12 + index as u16).into(), wanted.into())?;
        expect("APROM", registers.read_register(2 * index as u64, 2), wanted.into())?;
    }
    Ok(())
}

impl Driver for PcnetDriver {
    fn can_transmit(&mut self, _: &mut impl Registers) -> bool {
        let status = self.transmit_ring.acquire32(self.transmit_next * DESCRIPTOR + 4) >> 16;
        status as u16 & OWN == 0
    }

    fn transmit<R>(
        &mut self,
        registers: &mut impl Registers,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        assert!(length <= BUFFER, "a frame over the adapter's buffer");
        let index = self.transmit_next;
        let mut frame = self.transmit_buffers.bytes(index * STRIDE, length);
        // SAFETY: the descriptor is the driver's, as `can_transmit` said, so the chip doesn't use the buffer; no
        // other reference to it exists.
        let result = fill(unsafe { frame.as_mut() });
        let at = index * DESCRIPTOR;
        self.transmit_ring.write32(at + 8, 0);
        let status = u32::from(OWN | STP_ENP) << 16;
        self.transmit_ring.release32(at + 4, status | u32::from((length as u16).wrapping_neg()));
        self.transmit_next = (index + 1) % TRANSMIT_RING;
        write_csr(registers, 0, TDMD | IENA);
        result
    }

    fn receive(&mut self, registers: &mut impl Registers) -> Option<NonNull<[u8]>> {
        self.release(registers);
        while self.receive_pending {
            let at = self.receive_next * DESCRIPTOR;
            let status = (self.receive_ring.acquire32(at + 4) >> 16) as u16;
            if status & OWN != 0 {
                self.receive_pending = false;
                break;
            }
            self.lent = true;
            let message = (self.receive_ring.read32(at + 8) & 0xfff) as usize;
            // One whole frame without errors, as long as an Ethernet frame is.
            if status >> 8 == STP_ENP >> 8 && (MINIMUM + FCS..=BUFFER).contains(&message) {
                return Some(self.receive_buffers.bytes(self.receive_next * STRIDE, message - FCS));
            }
            self.release(registers);
        }
        None
    }

    fn release(&mut self, _: &mut impl Registers) {
        if self.lent {
            self.give_receive(self.receive_next);
            self.receive_next = (self.receive_next + 1) % RECEIVE_RING;
            self.lent = false;
        }
    }

    fn interrupt_handler<R: Registers>() -> Option<InterruptHandler<R>> {
        Some(handle_interrupt)
    }

    fn interrupted(&mut self, causes: u32) {
        if causes & u32::from(RINT) != 0 {
            self.receive_pending = true;
        }
    }
}
