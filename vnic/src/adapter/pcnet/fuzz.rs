//! Hostile guests of the Am79C970A. Bytes become [`Step`]s, steps are taken, and what has to hold after each is asserted:
//!
//! * nothing outside of guest memory is touched, or this process faults (`fuzzing/guarded.rs`);
//! * one step moves a bounded number of frames, and each that leaves is a frame;
//! * a fault is the guest's, typed and counted;
//! * rings are at a descriptor that they have, and the line is as the registers say.

use std::sync::Arc;

use toll_protocol::report::FrameCounters;
use toll_protocol::units::MacAddress;

use super::{HEADER, MAXIMUM, MOST_FRAMES, NoDescriptor, Pcnet};
use crate::adapter::{Adapter, AdapterError};
use crate::fuzzing::wire::{SharedWire, WirePort, locked, store};
use crate::fuzzing::{Guarded, Input};
use crate::port::Framing;

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
/// Two regions that meet, so that buffers may lie across them, and one behind a hole.
const REGIONS: [(u64, usize); 3] = [(0, 0x1_8000), (0x1_8000, 0x8000), (0x4_0000, 0x1_0000)];
/// Addresses that a guest is likely to choose: structures, the ends of regions, nothing.
const PLACES: [u32; 16] = [
    0,
    INIT,
    RECEIVE,
    TRANSMIT,
    0x8000,
    0x9000,
    0x1_0000,
    0x1_7ff0,
    0x1_7fff,
    0x1_8000,
    0x1_ff00,
    0x1_fff8,
    0x2_0000,
    0x4_0000,
    0x4_fff0,
    0xffff_fff0,
];
const INIT: u32 = 0x100;
const RECEIVE: u32 = 0x1000;
const TRANSMIT: u32 = 0x3000;
/// Lengths at which something changes: 1, a header, the shortest and the longest frame, with and without FCS, a buffer.
const LENGTHS: [u16; 16] = [0, 1, 2, 13, 14, 15, 59, 60, 64, 100, 1514, 1518, 1519, 1522, 1544, 4095];
/// Steps of one input at most.
const STEPS: usize = 512;

/// One thing that a guest, its wire or its machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reads so many bytes at an offset.
    Read(u8, u8),
    /// Writes so many bytes at an offset.
    Write(u8, u8, u32),
    /// Writes a CSR, in the width of the mode.
    Csr(u8, u16),
    /// Writes a BCR, in the width of the mode.
    Bcr(u8, u16),
    /// Stores a word at an address.
    Store(u32, u32),
    /// Writes a descriptor of the transmit ring, or of the receive ring: index, buffer, count field, status.
    Descriptor {
        /// Which ring.
        transmit: bool,
        /// Which descriptor.
        index: u16,
        /// Address of its buffer.
        base: u32,
        /// Its length, as the guest means it.
        length: u16,
        /// Its status bits.
        status: u16,
    },
    /// A frame of so many bytes comes, for the guest or not.
    Arrives(u16, bool),
    /// The machine lets the chip look at rings and port.
    Service,
    /// A word is stored while the port moves the next frame: a ring that changes under the chip's hands.
    StoreMidway(u32, u32),
    /// The cable is plugged in or out.
    Link(bool),
}

impl Step {
    fn parse(input: &mut Input<'_>) -> Option<Self> {
        let place =
            |input: &mut Input<'_>| Some(input.one_of(&PLACES)?.wrapping_add(u32::from(input.byte()?)));
        Some(match input.byte()? % 16 {
            0 => Self::Read(input.byte()? % 0x28, input.byte()? % 9),
            1 => Self::Write(input.byte()? % 0x28, input.byte()? % 9, input.long()?),
            2 | 3 => Self::Csr(input.byte()? % 128, input.word()?),
            4 => Self::Bcr(input.byte()? % 40, input.word()?),
            // What a driver writes to CSR0: demand, INIT|STRT, STRT, STOP, acknowledgements.
            5 | 6 => Self::Csr(0, input.one_of(&[0x48, 0x48, 0x48, 0x43, 0x42, 0x04, 0x7940, 0x7f00])?),
            // Rings and modes: lengths, counters, bases, style, mode, suspension.
            7 => Self::Csr(input.one_of(&[76, 78, 72, 74, 24, 30, 58, 15, 5, 3, 4, 8])?, input.word()?),
            8 => Self::Store(place(input)?, input.long()?),
            9..=11 => {
                let ring = input.byte()?;
                let base = if ring & 2 == 0 { place(input)? } else { input.long()? };
                let length = if ring & 4 == 0 { input.one_of(&LENGTHS)? } else { input.word()? };
                let own = if ring & 8 == 0 { 0x8000 } else { 0 };
                let (index, status) = (u16::from(ring >> 4), own | u16::from(input.byte()?) << 8);
                Self::Descriptor { transmit: ring & 1 == 0, index, base, length, status }
            }
            12 => Self::Arrives(
                if input.byte()? & 1 == 0 { input.one_of(&LENGTHS)? } else { input.word()? % 5000 },
                input.byte()? & 3 != 0,
            ),
            13 => Self::Service,
            14 => Self::StoreMidway(place(input)?, input.long()?),
            _ => Self::Link(input.byte()? & 3 != 0),
        })
    }
}

/// A chip in the hands of a hostile guest.
#[derive(Debug)]
struct Guest {
    // Dropped before the memory that they use.
    chip: Pcnet,
    wire: SharedWire,
    guarded: Guarded,
}

impl Guest {
    fn new(policy: NoDescriptor) -> Self {
        let guarded = Guarded::new(&REGIONS);
        let wire = SharedWire::default();
        let port = WirePort {
            wire: Arc::clone(&wire),
            memory: guarded.memory().clone(),
            framing: Framing::Bare,
            lengths: HEADER..=MAXIMUM,
        };
        let chip = Pcnet::new(guarded.memory().clone(), Box::new(port), MAC).with_no_descriptor(policy);
        Self { chip, wire, guarded }
    }

    fn write(&mut self, offset: u64, value: u16) -> Result<(), AdapterError> {
        if self.chip.registers.dwio() {
            self.chip.write(0x10 + 2 * (offset - 0x10), &u32::from(value).to_le_bytes())
        } else {
            self.chip.write(offset, &value.to_le_bytes())
        }
    }

    fn select(&mut self, register: u8, port: u64, value: u16) -> Result<(), AdapterError> {
        self.write(0x12, u16::from(register))?;
        self.write(port, value)
    }

    fn descriptor(&mut self, transmit: bool, index: u16, fields: [u32; 3]) {
        let [base, length, status] = fields;
        let style = self.chip.registers.csr58() & 0xff;
        let size = if style == 0 { 8 } else { 16 };
        let at = if transmit { TRANSMIT } else { RECEIVE } + u32::from(index) * size;
        let memory = self.guarded.memory();
        let count = length.wrapping_neg() & 0xffff;
        match style {
            0 => {
                store(memory, at, base & 0x00ff_ffff | (status & 0xff00) << 16);
                store(memory, at + 4, count);
            }
            3 => {
                store(memory, at + 8, base);
                store(memory, at + 4, count | status << 16);
            }
            _ => {
                store(memory, at, base);
                store(memory, at + 4, count | status << 16);
            }
        }
    }

    /// Takes a step and asserts what has to hold after it.
    fn take(&mut self, step: Step) {
        {
            let mut wire = locked(&self.wire);
            wire.calls = 0;
            wire.left.clear();
            wire.given.clear();
        }
        let before = self.chip.counters();
        let result = match step {
            Step::Read(offset, width) => {
                self.chip.read(offset.into(), &mut [0; 16][..usize::from(width.min(16))])
            }
            Step::Write(offset, width, value) => {
                let data = u64::from(value).to_le_bytes();
                self.chip.write(offset.into(), &data[..usize::from(width.min(8))])
            }
            Step::Csr(register, value) => self.select(register, 0x10, value),
            Step::Bcr(register, value) => self.select(register, 0x16, value),
            Step::Store(at, value) => {
                store(self.guarded.memory(), at, value);
                Ok(())
            }
            Step::Descriptor { transmit, index, base, length, status } => {
                self.descriptor(transmit, index, [base, length.into(), status.into()]);
                Ok(())
            }
            Step::Arrives(length, for_guest) => {
                let head = if for_guest { MAC.0 } else { [0x01, 0, 0x5e, 0, 0, 1] };
                let frame = head.into_iter().chain(std::iter::repeat(0xa5)).take(length.into());
                locked(&self.wire).waiting.push_back(frame.collect());
                Ok(())
            }
            Step::Service => self.chip.service().map(|_| ()),
            Step::StoreMidway(at, value) => {
                locked(&self.wire).stores.push_back((at, value));
                Ok(())
            }
            Step::Link(up) => {
                self.chip.set_link(up);
                Ok(())
            }
        };
        let after = self.chip.counters();
        match &result {
            Ok(()) => {}
            Err(AdapterError::Guest { .. }) => assert!(after.guest_errors > before.guest_errors, "{step:?}"),
            Err(error @ (AdapterError::Port(_) | AdapterError::Mtu { .. })) => {
                unreachable!("neither the port nor the device fails: {error}")
            }
        }
        let frames = after.transmit_frames - before.transmit_frames;
        assert!(frames <= MOST_FRAMES.into(), "{step:?} sent {frames} frames");
        let calls = locked(&self.wire).calls;
        assert!(calls <= 2 * MOST_FRAMES, "{step:?} made {calls} calls of the port");
        let registers = &self.chip.registers;
        for ring in [&registers.receive, &registers.transmit] {
            assert!((1..=0x1_0000).contains(&ring.length) && ring.index < ring.length, "{step:?}: {ring:?}");
        }
        assert_eq!(self.chip.interrupt(), registers.interrupt_line(), "{step:?}");
        assert!(self.chip.bus.looped.is_empty(), "{step:?}");
        let _ = self.chip.can_receive();
    }

    fn take_all(&mut self, input: &mut Input<'_>) {
        for _ in 0..STEPS {
            let Some(step) = Step::parse(input) else { break };
            self.take(step);
        }
    }

    /// The driver's way to a running chip, with these lengths of rings (powers of two).
    fn open(&mut self, style: u16, mode: u16, [receive, transmit]: [u8; 2]) {
        self.take(Step::Csr(0, 4));
        self.take(Step::Bcr(20, style));
        let (low, high) = ([MAC.0[0], MAC.0[1], MAC.0[2], MAC.0[3]], [MAC.0[4], MAC.0[5], 0, 0]);
        let words = if style == 0 {
            let [a, b, c, d, e, f] = MAC.0;
            vec![
                u32::from(mode) | u32::from(a) << 16 | u32::from(b) << 24,
                u32::from_le_bytes([c, d, e, f]),
                0,
                0,
                RECEIVE | u32::from(receive) << 29,
                TRANSMIT | u32::from(transmit) << 29,
            ]
        } else {
            let lengths = u32::from(receive & 0xf) << 20 | u32::from(transmit & 0xf) << 28;
            let lengths = lengths | u32::from(mode);
            vec![lengths, u32::from_le_bytes(low), u32::from_le_bytes(high), 0, 0, RECEIVE, TRANSMIT]
        };
        for (at, word) in (INIT..).step_by(4).zip(words) {
            self.take(Step::Store(at, word));
        }
        self.take(Step::Csr(1, INIT as u16));
        self.take(Step::Csr(2, 0));
        self.take(Step::Csr(4, 0x0915));
        self.take(Step::Csr(0, 0x43));
    }
}

/// Any accesses to a chip after H_RESET, or to one that runs. What it moved, unless there are too few bytes to begin.
pub fn registers(input: &[u8]) -> Option<FrameCounters> {
    let mut input = Input(input);
    let first = input.byte()?;
    let mut guest = Guest::new(if first & 1 == 0 { NoDescriptor::Wait } else { NoDescriptor::Miss });
    if first & 2 != 0 {
        guest.open(2, 0, [5, 4]);
    }
    if first & 4 != 0 {
        guest.take(Step::Write(0x10, 4, 0));
    }
    guest.take_all(&mut input);
    Some(guest.chip.counters())
}

/// Rings of any style, length and content, then any accesses. What it moved, unless there are too few bytes to begin.
pub fn rings(input: &[u8]) -> Option<FrameCounters> {
    let mut input = Input(input);
    let (first, mode, count) = (input.byte()?, input.word()?, input.byte()?);
    let mut guest = Guest::new(if first & 1 == 0 { NoDescriptor::Wait } else { NoDescriptor::Miss });
    let style = [0, 2, 3, 2][usize::from(first >> 1 & 3)];
    // Promiscuous, neither transmitter nor receiver off; loop-back by chance.
    let mode = mode & !3 | 0x8000;
    guest.open(style, mode, [first >> 3 & 7, first >> 5]);
    for _ in 0..count {
        // Descriptors alone, whatever the bytes mean elsewhere.
        let ring = input.byte()?;
        let base = if ring & 2 == 0 { input.one_of(&PLACES)? } else { input.long()? };
        let length = if ring & 4 == 0 { input.one_of(&LENGTHS)? } else { input.word()? };
        let high = input.byte()?;
        let (index, status) = (u16::from(ring >> 4), 0x8000 | u16::from(high) << 8);
        guest.take(Step::Descriptor { transmit: ring & 1 == 0, index, base, length, status });
    }
    guest.take(Step::Csr(0, 0x48));
    guest.take_all(&mut input);
    Some(guest.chip.counters())
}

/// These steps, by a guest with a running chip.
#[cfg(test)]
pub(crate) fn steps(style: u16, mode: u16, lengths: [u8; 2], misses: bool, steps: &[Step]) {
    let mut guest = Guest::new(if misses { NoDescriptor::Miss } else { NoDescriptor::Wait });
    guest.open(style, mode & !3 | 0x8000, lengths);
    steps.iter().for_each(|step| guest.take(*step));
}
