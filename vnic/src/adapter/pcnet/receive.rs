//! The receiver of the Am79C970A: from the port, or from the transmitter, to the receive ring.
//!
//! ```text
//!  frame --address filter--> descriptors: OWN.. --fits--> STP..ENP, message length --> RINT
//!            |                             |'--too short--> ERR|BUFF in the last ----> RINT
//!            '--discarded                  '--none--> waits in the port | MISS, CSR112
//! ```
//! Source: AMD publication 19436 (Am79C970A data sheet), "Receive Operation", "Loopback Operation", RMD0 to RMD3.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::bits::{csr0, csr3, csr4, csr15};
use super::registers::RegisterFile;
use super::rings::{Descriptor, Layout, Ring, status};
use super::{Bus, FCS, HEADER, MAXIMUM, MINIMUM, MOST_FRAMES, NoDescriptor, Pcnet, bad_buffer, bad_ring};
use crate::GuestMemory;
use crate::adapter::AdapterError;
use crate::gather::{self, PartsMut, Refused};
use crate::piece::{self, PieceMut};
use crate::stages::Mark;

/// What became of a frame at the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    /// It is in the guest's memory.
    Delivered,
    /// The address filter or its length ruled it out.
    Discarded,
    /// The guest has no descriptor for it, and has been told so by MISS.
    Missed,
    /// There is none, or it waits in the port.
    Nothing,
}

/// What the guest has for the next frame.
struct Room<'m> {
    /// Its buffers, in order.
    parts: PartsMut<'m>,
    descriptors: ArrayVec<Descriptor, { gather::MAX_PARTS }>,
    /// Bytes in all buffers.
    capacity: usize,
}

/// A frame that lies in the room.
struct Placed {
    /// Bytes of message, as the last descriptor will say.
    message: usize,
    /// PAM, LAFM, BAM or none; CRC with ERR.
    bits: u16,
    /// Bytes that came from the wire.
    length: usize,
}

impl<'m> Room<'m> {
    /// The descriptors that the guest has given, as many as the longest frame needs.
    fn gather(ring: &Ring, layout: Layout, memory: &'m GuestMemory) -> Result<Self, AdapterError> {
        let mut room = Self { parts: PartsMut::new(), descriptors: ArrayVec::new(), capacity: 0 };
        // One piece is left for what does not fit.
        while room.capacity < MAXIMUM + FCS && room.parts.remaining_capacity() > 1 {
            let count = room.descriptors.len() as u32;
            if count == ring.length {
                break;
            }
            let owned = ring.owned(count, layout, memory).map_err(bad_ring("receive ring"))?;
            let Some(descriptor) = owned else { break };
            let (base, length) = (u64::from(descriptor.base), descriptor.length);
            match gather::push_mut(&mut room.parts, memory, base, length) {
                Ok(()) => {}
                Err(Refused::Outside) => return Err(bad_buffer("receive descriptor", &descriptor)),
                // A buffer that the frame has already is no room.
                Err(Refused::TooManyParts | Refused::Overlap) => break,
            }
            room.descriptors.push(descriptor);
            room.capacity += descriptor.length;
        }
        Ok(room)
    }
}

impl Pcnet {
    /// Fills the receive ring from the port; whether the guest has something to look at.
    ///
    /// Its work is bounded: at most `MOST_FRAMES` frames, those that the filter discards among them. What is left waits
    /// in the port, whose descriptor stays readable.
    pub(super) fn receive(&mut self) -> Result<bool, AdapterError> {
        let mut news = false;
        if self.registers.mode() & csr15::LOOP != 0 {
            // The receiver listens to the transmitter alone.
            return Ok(news);
        }
        for _ in 0..MOST_FRAMES {
            if !self.running(csr0::RXON) {
                break;
            }
            match self.receive_from_port()? {
                Received::Delivered | Received::Missed => news = true,
                Received::Discarded => {}
                Received::Nothing => break,
            }
        }
        Ok(news)
    }

    /// Receives one frame of the port into the descriptors that the guest has given.
    fn receive_from_port(&mut self) -> Result<Received, AdapterError> {
        let memory = Arc::clone(&self.bus.memory);
        let (layout, ring) = (self.registers.layout(), self.registers.receive);
        if !self.registers.link() {
            // What comes while the cable is out is lost, and nobody here knows of it.
            let lost = self.bus.receive::<HEADER>(&mut Mark::default(), &mut PartsMut::new())?;
            return Ok(lost.map_or(Received::Nothing, |_| Received::Discarded));
        }
        let mut mark = self.bus.stages.receives();
        let Room { mut parts, descriptors, capacity } = Room::gather(&ring, layout, &memory)?;
        if descriptors.is_empty() && self.no_descriptor == NoDescriptor::Wait {
            return Ok(Received::Nothing);
        }
        let Some((length, head)) = self.bus.receive::<HEADER>(&mut mark, &mut parts)? else {
            return Ok(Received::Nothing);
        };
        if length < HEADER {
            self.bus.counters.receive_drops += 1;
            return Ok(Received::Discarded);
        }
        let Some(bits) = address_match(&self.registers, &head) else { return Ok(Received::Discarded) };
        if descriptors.is_empty() {
            return Ok(self.missed());
        }
        // Hosts don't pad what they send to each other; a wire's end does.
        let message = match stripped(&head, length).filter(|_| self.strips()) {
            Some(message) => message,
            None => complete(length, &mut parts),
        };
        drop(parts);
        let received = self.deliver(&descriptors, capacity, &Placed { message, bits, length })?;
        let Bus { counters, stages, .. } = &mut self.bus;
        stages.received(mark, counters.receive_frames, length);
        Ok(received)
    }

    /// A frame has found no descriptor.
    fn missed(&mut self) -> Received {
        self.registers.count_missed();
        self.bus.counters.receive_drops += 1;
        Received::Missed
    }

    /// Receives what the transmitter looped back: a frame with its FCS. Runts are accepted (data sheet, "Miscellaneous
    /// Loopback Features").
    pub(super) fn receive_looped(&mut self) -> Result<(), AdapterError> {
        let looped = std::mem::take(&mut self.bus.looped);
        let result = self.take_looped(&looped);
        self.bus.looped = looped;
        result
    }

    fn take_looped(&mut self, frame: &[u8]) -> Result<(), AdapterError> {
        let (Some(length), Some(head)) = (frame.len().checked_sub(FCS), frame.first_chunk::<HEADER>()) else {
            return Ok(());
        };
        if length < HEADER || !self.running(csr0::RXON) {
            return Ok(());
        }
        let Some(mut bits) = address_match(&self.registers, head) else { return Ok(()) };
        let memory = Arc::clone(&self.bus.memory);
        let (layout, ring) = (self.registers.layout(), self.registers.receive);
        let Room { mut parts, descriptors, capacity } = Room::gather(&ring, layout, &memory)?;
        if descriptors.is_empty() {
            // The transmitter is no queue that it could wait in.
            self.missed();
            return Ok(());
        }
        if crc32fast::hash(&frame[..length]).to_le_bytes() != frame[length..] {
            bits |= status::CRC | status::ERR;
        }
        let message = stripped(head, length).filter(|_| self.strips()).unwrap_or(frame.len());
        piece::write_at(&mut parts, 0, &frame[..message]);
        drop(parts);
        self.deliver(&descriptors, capacity, &Placed { message, bits, length }).map(|_| ())
    }

    const fn strips(&self) -> bool {
        self.registers.csr4() & csr4::ASTRP_RCV != 0
    }

    /// Gives the descriptors that the frame needs back to the driver, and tells it.
    fn deliver(
        &mut self,
        descriptors: &[Descriptor],
        capacity: usize,
        frame: &Placed,
    ) -> Result<Received, AdapterError> {
        let layout = self.registers.layout();
        let memory = &self.bus.memory;
        // MCNT has 12 bits.
        let fits = frame.message <= capacity.min(0xfff);
        let mut covered = 0;
        let filled = descriptors.iter().take_while(|descriptor| {
            let needed = covered < frame.message;
            covered += descriptor.length;
            needed
        });
        let used = filled.count();
        if self.registers.csr3() & csr3::BSWP != 0 {
            let mut left = frame.message;
            for descriptor in &descriptors[..used] {
                let length = left.min(descriptor.length);
                gather::swap(memory, u64::from(descriptor.base), length)
                    .map_err(|_| bad_buffer("receive descriptor", descriptor))?;
                left -= length;
            }
        }
        // From the last to the first: once the driver sees the first, the frame is whole.
        for (index, descriptor) in descriptors[..used].iter().enumerate().rev() {
            let mut bits = if index == 0 { status::STP } else { 0 };
            let mut misc = None;
            if index + 1 == used {
                bits |= if fits { status::ENP | frame.bits } else { status::ERR | status::BUFF };
                misc = fits.then_some((frame.message & 0xfff) as u32);
            }
            let status = descriptor.status & !status::RECEIVE_MASK | bits;
            descriptor.give_back(layout, memory, status, misc).map_err(bad_ring("receive ring"))?;
        }
        self.registers.receive.advance(used as u32);
        self.registers.raise(csr0::RINT);
        if fits && frame.bits & status::ERR == 0 {
            self.bus.counters.receive_frames += 1;
            self.bus.counters.receive_bytes += frame.length as u64;
        } else {
            self.bus.counters.receive_drops += 1;
        }
        Ok(Received::Delivered)
    }
}

/// Message length of an IEEE 802.3 frame of `length` bytes that ASTRP_RCV strips of padding and FCS; `None` if it is
/// none, or has no padding.
fn stripped(head: &[u8; HEADER], length: usize) -> Option<usize> {
    let [.., high, low] = *head;
    let payload = usize::from(u16::from_be_bytes([high, low]));
    (payload < MINIMUM - HEADER && HEADER + payload <= length).then_some(HEADER + payload)
}

/// Completes a frame of `length` bytes as the chip leaves it in memory: padded to the minimum, with its FCS, as far as
/// there is room. The message length.
fn complete(length: usize, parts: &mut [PieceMut<'_>]) -> usize {
    const ZEROS: [u8; MINIMUM] = [0; MINIMUM];
    let padded = length.max(MINIMUM);
    piece::write_at(parts, length, &ZEROS[..padded - length]);
    let mut crc = crc32fast::Hasher::new();
    gather::for_each_chunk(parts, padded, |chunk| crc.update(chunk));
    piece::write_at(parts, padded, &crc.finalize().to_le_bytes());
    padded + FCS
}

/// Whether the address filter takes a frame that begins with `head`, and the status bit that says why.
fn address_match(registers: &RegisterFile, head: &[u8; HEADER]) -> Option<u16> {
    let [a, b, c, d, e, f, ..] = *head;
    let destination = [a, b, c, d, e, f];
    let mode = registers.mode();
    let matched = if destination == [0xff; 6] && mode & csr15::DRCVBC == 0 {
        Some(status::BAM)
    } else if destination[0] & 1 != 0 {
        // The top six bits of the CRC before its final inversion select a bit of LADRF. With DRCVBC that goes for the
        // broadcast address too (data sheet, RMD1 LAFM).
        let bit = !crc32fast::hash(&destination) >> 26;
        (registers.logical_filter() >> bit & 1 != 0).then_some(status::LAFM)
    } else {
        (mode & csr15::DRCVPA == 0 && destination == registers.physical_address()).then_some(status::PAM)
    };
    matched.or((mode & csr15::PROM != 0).then_some(0))
}
