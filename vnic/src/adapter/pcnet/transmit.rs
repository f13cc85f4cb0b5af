//! The transmitter of the Am79C970A: from the transmit ring to the port, or looped back.
//!
//! ```text
//!  descriptor:  OWN --STP..ENP--> port | loop-back | LCAR, RTRY --> OWN cleared, TINT
//!                |--no STP------> given back, skipped
//!                |--no ENP, next not owned--> BUFF|UFLO, TXON off unless DXSUFLO
//!                |--too many pieces---------> UFLO, the same
//!                '--too long----------------> BABL
//! ```
//! Source: AMD publication 19436 (Am79C970A data sheet), "Transmit Operation", "Loopback Operation", TMD0 to TMD3.

use std::sync::Arc;

use super::bits::{csr0, csr3, csr4, csr5, csr15};
use super::rings::{Descriptor, Layout, Ring, status, transmit_error};
use super::{Bus, FCS, HEADER, MAXIMUM, MINIMUM, MOST_FRAMES, Pcnet, bad, bad_buffer, bad_ring};
use crate::GuestMemory;
use crate::adapter::AdapterError;
use crate::gather::{self, Parts, Refused};
use crate::piece::{self, Piece};
use crate::port::Sent;
use crate::stages::Mark;

const PAD: [u8; MINIMUM] = [0; MINIMUM];

/// Descriptors that make a frame, from the current one on.
struct Chain {
    first: Descriptor,
    last: Descriptor,
    count: u32,
    /// Bytes in all buffers.
    length: usize,
    /// The last one has ENP.
    whole: bool,
    /// The frame is in too many pieces.
    underflow: bool,
}

/// How a transmission ends, as the descriptor's status and misc words say it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Sent,
    /// The chip's misc word, with ERR.
    Failed(u32),
    /// Neither sent nor an error of the descriptor: a babble, or less than a header.
    Refused,
}

impl Pcnet {
    /// Sends what the transmit ring holds; whether there may be more.
    ///
    /// Its work is bounded, whatever a guest writes: at most `MOST_FRAMES` frames and one way round the ring, so that
    /// not even a loop-back frame that lands in the ring keeps it going.
    pub(super) fn transmit(&mut self) -> Result<bool, AdapterError> {
        let mut walked = 0;
        for _ in 0..MOST_FRAMES {
            if !self.running(csr0::TXON) {
                return Ok(false);
            }
            let taken = self.transmit_frame()?;
            if taken == 0 {
                return Ok(false);
            }
            if !self.bus.looped.is_empty() {
                let received = self.receive_looped();
                self.bus.looped.clear();
                received?;
            }
            walked += taken;
            if walked >= self.registers.transmit.length {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends the frame that begins at the current descriptor; how many descriptors it took.
    fn transmit_frame(&mut self) -> Result<u32, AdapterError> {
        let (layout, ring) = (self.registers.layout(), self.registers.transmit);
        let at_ring = bad_ring("transmit ring");
        let Some(first) = ring.owned(0, layout, &self.bus.memory).map_err(&at_ring)? else { return Ok(0) };
        if first.status & status::STP == 0 {
            // The rest of a frame whose beginning was given back: skipped (data sheet, TMD1 STP).
            give_back(&first, layout, &self.bus.memory, 0, None)?;
            self.registers.transmit.advance(1);
            return Ok(1);
        }
        let mut mark = self.bus.stages.transmits();
        let memory = Arc::clone(&self.bus.memory);
        let swap = self.registers.csr3() & csr3::BSWP != 0;
        let mut swapped = Vec::new();
        let mut parts = Parts::new();
        let chain = gather_chain(&ring, layout, &memory, first, |base, length| {
            if swap {
                gather::copy_swapped(&mut swapped, &memory, base, length)
            } else {
                gather::push(&mut parts, &memory, base, length)
            }
        })?;
        if swap {
            parts.clear();
            parts.push(Piece::new(&swapped));
        }
        let outcome = self.send(&mut mark, &chain, parts)?;
        self.conclude(&chain, layout, outcome)?;
        let Bus { counters, stages, .. } = &mut self.bus;
        stages.transmitted(mark, counters.transmit_frames, chain.length);
        Ok(chain.count)
    }

    /// Hands the frame to the port or to the receiver.
    fn send(
        &mut self,
        mark: &mut Mark,
        chain: &Chain,
        mut parts: Parts<'_>,
    ) -> Result<Outcome, AdapterError> {
        let mode = self.registers.mode();
        let is = |bit| mode & bit != 0;
        let internal = is(csr15::LOOP) && is(csr15::INTL);
        if !chain.whole || chain.underflow {
            self.bus.counters.guest_errors += 1;
            let buffer = if chain.whole { 0 } else { transmit_error::BUFF };
            return Ok(Outcome::Failed(buffer | transmit_error::UFLO));
        }
        // A padded frame gets its FCS whatever DXMTFCS says (data sheet, "Automatic Pad Generation"). Otherwise the last
        // four bytes may be the driver's FCS; ports carry none.
        let pads = self.registers.csr4() & csr4::APAD_XMT != 0 && chain.length < MINIMUM;
        let fcs_from_driver = is(csr15::DXMTFCS) && chain.first.status & status::ADD_FCS == 0 && !pads;
        let mut length = if fcs_from_driver { chain.length.saturating_sub(FCS) } else { chain.length };
        if length > MAXIMUM {
            // It would be on the wire, and every receiver would discard it as a giant.
            self.registers.raise(csr0::BABL);
            self.bus.counters.guest_errors += 1;
            return Ok(Outcome::Refused);
        }
        if length < HEADER {
            self.bus.counters.guest_errors += 1;
            return Ok(Outcome::Refused);
        }
        self.registers.raise_csr4(csr4::TXSTRT);
        if internal && is(csr15::FCOLL) {
            self.bus.counters.transmit_drops += 1;
            return Ok(Outcome::Failed(transmit_error::RTRY));
        }
        if !self.registers.link() && !internal {
            // Nobody hears it: the carrier is lost, and the heartbeat (SQE test) does not come.
            self.registers.raise(csr0::CERR);
            self.bus.counters.transmit_drops += 1;
            return Ok(Outcome::Failed(transmit_error::LCAR));
        }
        if pads {
            // Room is left: a frame this short in as many pieces as fit lacks one for its padding.
            if parts.try_push(Piece::new(&PAD[length..])).is_err() {
                self.bus.counters.guest_errors += 1;
                return Ok(Outcome::Failed(transmit_error::UFLO));
            }
            length = MINIMUM;
        }
        let Bus { counters, looped, .. } = &mut self.bus;
        if is(csr15::LOOP) {
            // The receiver sees the frame as it would be on the wire, its FCS included.
            looped.clear();
            parts.iter().for_each(|part| part.append_to(looped));
            if !fcs_from_driver {
                looped.extend_from_slice(&crc32fast::hash(looped).to_le_bytes());
            }
            counters.transmit_frames += 1;
            counters.transmit_bytes += length as u64;
            return Ok(Outcome::Sent);
        }
        let sent = if fcs_from_driver {
            let mut bytes = piece::collect(&parts);
            bytes.truncate(length);
            self.bus.send(mark, &[Piece::new(&bytes)])?
        } else {
            self.bus.send(mark, &parts)?
        };
        match sent {
            Sent::Taken => {
                self.bus.counters.transmit_frames += 1;
                self.bus.counters.transmit_bytes += length as u64;
            }
            Sent::Dropped => self.bus.counters.transmit_drops += 1,
        }
        Ok(Outcome::Sent)
    }

    /// Gives the frame's descriptors back and tells the driver.
    fn conclude(&mut self, chain: &Chain, layout: Layout, outcome: Outcome) -> Result<(), AdapterError> {
        let ring = self.registers.transmit;
        let memory = &self.bus.memory;
        let (errors, misc) = match outcome {
            Outcome::Failed(misc) => (status::ERR, misc),
            Outcome::Sent | Outcome::Refused => (0, 0),
        };
        // From the last to the first: once the driver sees the first, all are its own.
        give_back(&chain.last, layout, memory, errors, Some(misc))?;
        for ahead in (0..chain.count - 1).rev() {
            // What is no longer the chip's by now is left alone.
            if let Some(descriptor) = ring.owned(ahead, layout, memory).map_err(bad_ring("transmit ring"))? {
                give_back(&descriptor, layout, memory, 0, None)?;
            }
        }
        self.registers.transmit.advance(chain.count);
        if misc & transmit_error::UFLO != 0 && self.registers.csr3() & csr3::DXSUFLO == 0 {
            self.registers.transmitter_off();
        }
        // LTINTEN overrides TOKINTD; neither keeps an error to itself (data sheet, CSR5).
        let csr5 = self.registers.csr5();
        let asked = if csr5 & csr5::LTINTEN != 0 {
            chain.last.status & status::LTINT != 0
        } else {
            csr5 & csr5::TOKINTD == 0
        };
        if asked || outcome != Outcome::Sent {
            self.registers.raise(csr0::TINT);
        }
        Ok(())
    }
}

/// Walks the descriptors of a frame, and calls `take` with the buffers of one that is not too long.
fn gather_chain(
    ring: &Ring,
    layout: Layout,
    memory: &GuestMemory,
    first: Descriptor,
    mut take: impl FnMut(u64, usize) -> Result<(), Refused>,
) -> Result<Chain, AdapterError> {
    let mut chain = Chain { first, last: first, count: 1, length: 0, whole: false, underflow: false };
    loop {
        let last = chain.last;
        // A babble's bytes are counted, not gathered: no length that a guest writes makes us hold more.
        chain.length += last.length;
        if chain.length <= MAXIMUM + FCS && !chain.underflow {
            match take(u64::from(last.base), last.length) {
                Ok(()) => {}
                Err(Refused::Outside) => return Err(bad_buffer("transmit descriptor", &last)),
                // The FIFO runs empty while the chip fetches one tiny buffer after the other.
                Err(Refused::TooManyParts | Refused::Overlap) => chain.underflow = true,
            }
        }
        if last.status & status::ENP != 0 {
            chain.whole = true;
            return Ok(chain);
        }
        if chain.count == ring.length {
            let detail = format!("none of its {} descriptors ends the frame", chain.count);
            return Err(bad("transmit ring", detail));
        }
        match ring.owned(chain.count, layout, memory).map_err(bad_ring("transmit ring"))? {
            Some(next) => (chain.last, chain.count) = (next, chain.count + 1),
            // The chip began the frame and the driver has not given it the end.
            None => return Ok(chain),
        }
    }
}

/// Gives a transmit descriptor back: OWN and what the chip says of collisions are cleared.
fn give_back(
    descriptor: &Descriptor,
    layout: Layout,
    memory: &GuestMemory,
    errors: u16,
    misc: Option<u32>,
) -> Result<(), AdapterError> {
    let chips = status::OWN | status::ERR | status::COLLISIONS;
    let status = descriptor.status & !chips | errors;
    descriptor.give_back(layout, memory, status, misc).map_err(bad_ring("transmit ring"))
}
