//! What the tests of the chip share: a chip on a bench, with memory and the far end of its wire.

use super::super::rings::status;
use super::super::*;
use crate::piece::{Piece, PieceMut};
use crate::port::memory::{MemoryPort, pair};

pub(super) const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
pub(super) const BROADCAST: [u8; 6] = [0xff; 6];
pub(super) const INIT: u64 = 0x100;
pub(super) const RX_RING: u64 = 0x1000;
pub(super) const TX_RING: u64 = 0x2000;
pub(super) const BUFFERS: u64 = 0x8000;
pub(super) const MEMORY: usize = 0x40000;

/// A chip, the guest memory it sees and the far end of its wire.
pub(super) struct Bench {
    pub(super) chip: Pcnet,
    pub(super) memory: GuestMemory,
    pub(super) wire: MemoryPort,
    /// Registers are accessed 32 bits wide.
    pub(super) dwio: bool,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(|chip| chip)
    }

    /// A bench whose chip is not the usual one.
    pub(super) fn with(change: impl FnOnce(Pcnet) -> Pcnet) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let (port, wire) = pair(64).unwrap();
        let chip = change(Pcnet::new(memory.clone(), Box::new(port), MAC));
        Self { chip, memory, wire, dwio: false }
    }

    pub(super) fn read16(&mut self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.chip.read(offset, &mut data).unwrap();
        u16::from_le_bytes(data)
    }

    pub(super) fn write16(&mut self, offset: u64, value: u16) {
        self.chip.write(offset, &value.to_le_bytes()).unwrap();
    }

    /// Reads a register by its offset in WIO, as the mode has it.
    fn read(&mut self, offset: u64) -> u16 {
        if !self.dwio {
            return self.read16(offset);
        }
        let mut data = [0; 4];
        self.chip.read(0x10 + 2 * (offset - 0x10), &mut data).unwrap();
        u32::from_le_bytes(data) as u16
    }

    fn write(&mut self, offset: u64, value: u16) {
        if self.dwio {
            self.chip.write(0x10 + 2 * (offset - 0x10), &u32::from(value).to_le_bytes()).unwrap();
        } else {
            self.write16(offset, value);
        }
    }

    pub(super) fn reset(&mut self) {
        self.read(0x14);
    }

    pub(super) fn rap(&mut self) -> u16 {
        self.read(0x12)
    }

    pub(super) fn write_rap(&mut self, value: u16) {
        self.write(0x12, value);
    }

    pub(super) fn csr(&mut self, index: u16) -> u16 {
        self.write(0x12, index);
        self.read(0x10)
    }

    pub(super) fn set_csr(&mut self, index: u16, value: u16) {
        self.write(0x12, index);
        self.write(0x10, value);
    }

    pub(super) fn bcr(&mut self, index: u16) -> u16 {
        self.write(0x12, index);
        self.read(0x16)
    }

    pub(super) fn set_bcr(&mut self, index: u16, value: u16) {
        self.write(0x12, index);
        self.write(0x16, value);
    }

    pub(super) fn put32(&self, at: u64, value: u32) {
        self.memory.write_obj(value.to_le(), GuestAddress(at)).unwrap();
    }

    pub(super) fn get32(&self, at: u64) -> u32 {
        u32::from_le(self.memory.read_obj(GuestAddress(at)).unwrap())
    }

    /// `pcnet32_open`: init block of style 2, rings of `1 << receive` and `1 << transmit` descriptors.
    pub(super) fn open(&mut self, mode: u16, receive: u8, transmit: u8) {
        self.set_bcr(20, 2);
        let mut block = [0; 28];
        block[..2].copy_from_slice(&mode.to_le_bytes());
        block[2] = receive << 4;
        block[3] = transmit << 4;
        block[4..10].copy_from_slice(&MAC.0);
        block[20..24].copy_from_slice(&(RX_RING as u32).to_le_bytes());
        block[24..].copy_from_slice(&(TX_RING as u32).to_le_bytes());
        self.memory.write_slice(&block, GuestAddress(INIT)).unwrap();
        self.set_csr(1, INIT as u16);
        self.set_csr(2, 0);
        self.set_csr(4, 0x0915);
        self.set_csr(0, csr0::INIT);
        assert_eq!(self.csr(0) & csr0::IDON, csr0::IDON);
        self.set_csr(0, csr0::IENA | csr0::STRT);
    }

    pub(super) fn descriptor(&self, ring: u64, index: u64, base: u64, length: u16, status: u16) {
        self.put32(ring + 16 * index, base as u32);
        self.put32(ring + 16 * index + 4, u32::from(status) << 16 | u32::from(length.wrapping_neg()));
        self.put32(ring + 16 * index + 8, 0);
    }

    /// A broadcast frame of `length` bytes in transmit descriptor `index`, alone; the frame.
    pub(super) fn queue(&self, index: u64, length: usize) -> Vec<u8> {
        let queued = frame(BROADCAST, length);
        self.put(BUFFERS, &queued);
        self.descriptor(TX_RING, index, BUFFERS, length as u16, status::OWN | status::STP | status::ENP);
        queued
    }

    pub(super) fn status(&self, ring: u64, index: u64) -> u16 {
        (self.get32(ring + 16 * index + 4) >> 16) as u16
    }

    pub(super) fn message_length(&self, index: u64) -> u32 {
        self.get32(RX_RING + 16 * index + 8)
    }

    /// Sends from the far end, and lets the chip look at its port.
    pub(super) fn arrives(&mut self, frame: &[u8]) -> bool {
        self.wire.send(&[Piece::new(frame)]).unwrap();
        self.chip.service().unwrap()
    }

    pub(super) fn departed(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 4096];
        let length = self.wire.receive(&mut [PieceMut::new(&mut frame)]).unwrap()?;
        frame.truncate(length);
        Some(frame)
    }

    pub(super) fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(super) fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

pub(super) fn frame(destination: [u8; 6], length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|i| (i * 7 + i / 256) as u8).collect();
    frame[..6].copy_from_slice(&destination);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame
}
