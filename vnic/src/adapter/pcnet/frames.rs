//! Frames of the Am79C970A: from the transmit ring to the port, from the port to the receive ring.
//!
//! ```text
//!  transmit descriptor:  OWN --STP..ENP--> sent --> TINT
//!                         |--no STP------> skipped
//!                         |--no ENP, next not owned--> BUFF|UFLO, TXON off
//!                         '--too long----> BABL
//!  receive descriptors:  OWN.. --fits--> STP..ENP, message length --> RINT
//!                         '--too short--> ERR|BUFF in the last ---> RINT
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::time::Instant;

use arrayvec::ArrayVec;

use super::registers::{RegisterFile, csr0, csr4, csr5, csr15};
use super::rings::{Descriptor, Outside, status, transmit_error};
use super::{Bus, MAX_INIT_RING, Pcnet, bad};
use crate::adapter::AdapterError;
use crate::gather::{self, Parts, PartsMut, Refused};
use crate::port::Sent;

/// Ethernet header: what a frame has at least.
pub(super) const HEADER: usize = 14;
/// Shortest frame without FCS (IEEE 802.3, 4.2.3.3); shorter ones are padded.
pub(super) const MINIMUM: usize = 60;
/// Longest frame without FCS, with an IEEE 802.1Q tag. A longer one is a babble.
pub(super) const MAXIMUM: usize = 1518;
/// Frame check sequence.
pub(super) const FCS: usize = 4;

/// What became of a frame at the receiver.
enum Received {
    /// It is in the guest's memory.
    Delivered,
    /// The address filter or its length ruled it out.
    Discarded,
    /// The guest has no descriptor for it.
    NoDescriptor,
    /// There is none.
    Nothing,
}

fn bad_ring(what: &'static str) -> impl Fn(Outside) -> AdapterError {
    move |Outside { at }| bad(what, format!("{at:#x} is outside of guest memory"))
}

fn bad_buffer(what: &'static str, descriptor: &Descriptor) -> AdapterError {
    let Descriptor { at, base, length, .. } = descriptor;
    bad(what, format!("at {at:#x}: its {length} bytes at {base:#x} are outside of guest memory"))
}

impl Pcnet {
    /// Sends what the transmit ring holds. A guest can't hold it longer than one way round the ring.
    pub(super) fn transmit(&mut self) -> Result<(), AdapterError> {
        let mut left = self.registers.transmit.length;
        while left > 0 && self.running(csr0::TXON) {
            let taken = self.transmit_frame()?;
            if taken == 0 {
                break;
            }
            if !self.bus.looped.is_empty() {
                if let Received::NoDescriptor = self.receive_frame(true)? {
                    self.registers.count_missed();
                    self.bus.counters.receive_drops += 1;
                }
                self.bus.looped.clear();
            }
            left = left.saturating_sub(taken);
        }
        Ok(())
    }

    /// Sends the frame that begins at the current descriptor; how many descriptors it took.
    fn transmit_frame(&mut self) -> Result<u32, AdapterError> {
        let layout = self.registers.layout();
        let mode = self.registers.mode();
        let Bus { memory, port, counters, port_time, looped, .. } = &mut self.bus;
        let ring = self.registers.transmit;
        let at_ring = bad_ring("transmit ring");
        let owned = |ahead| ring.owned(ahead, layout, memory).map_err(&at_ring);
        let Some(first) = owned(0)? else { return Ok(0) };
        let give_back = |descriptor: &Descriptor, errors: u16, misc| {
            let status = descriptor.status & !(status::OWN | status::ERR) | errors;
            descriptor.give_back(layout, memory, status, misc).map_err(&at_ring)
        };
        // From the last to the first: once the driver sees the first, all are its own.
        let give_back_all = |last: &Descriptor, count: u32, (errors, misc)| {
            give_back(last, errors, Some(misc))?;
            for ahead in (0..count - 1).rev() {
                if let Some(descriptor) = owned(ahead)? {
                    give_back(&descriptor, 0, None)?;
                }
            }
            Ok::<(), AdapterError>(())
        };
        if first.status & status::STP == 0 {
            // The rest of a frame whose beginning was given back: skipped (data sheet, TMD1 STP).
            give_back(&first, 0, None)?;
            self.registers.transmit.advance(1);
            return Ok(1);
        }

        let mut parts = Parts::new();
        let (mut last, mut count, mut length, mut underflow) = (first, 1, 0_usize, false);
        loop {
            // A babble's bytes are counted, not gathered: no length that a guest writes makes us hold more.
            length += last.length;
            if length <= MAXIMUM + FCS && !underflow {
                match gather::push(&mut parts, memory, u64::from(last.base), last.length) {
                    Ok(()) => {}
                    Err(Refused::Outside) => return Err(bad_buffer("transmit descriptor", &last)),
                    // The FIFO runs empty while the chip fetches one tiny buffer after the other.
                    Err(Refused::TooManyParts | Refused::Overlap) => underflow = true,
                }
            }
            if last.status & status::ENP != 0 {
                break;
            }
            if count == ring.length {
                let detail = format!("none of its {count} descriptors ends the frame");
                return Err(bad("transmit ring", detail));
            }
            let Some(next) = owned(count)? else {
                // The chip began the frame and the driver has not given it the end: BUFF and UFLO, and the
                // transmitter stops (DXSUFLO is 0 after reset).
                give_back_all(&last, count, (status::ERR, transmit_error::BUFF | transmit_error::UFLO))?;
                counters.guest_errors += 1;
                self.registers.transmit.advance(count);
                self.registers.transmitter_off();
                self.registers.raise(csr0::TINT);
                return Ok(count);
            };
            (last, count) = (next, count + 1);
        }

        // Without FCS from the chip the frame's last four bytes are the driver's; ports carry none.
        let fcs_from_driver = mode & csr15::DXMTFCS != 0 && first.status & status::ADD_FCS == 0;
        let mut frame_length = if fcs_from_driver { length.saturating_sub(FCS) } else { length };
        let babble = frame_length > MAXIMUM;
        let mut error = (0, 0);
        if underflow {
            error = (status::ERR, transmit_error::UFLO);
            counters.guest_errors += 1;
        } else if babble {
            // It would be on the wire, and every receiver would discard it as a giant.
            self.registers.raise(csr0::BABL);
            counters.guest_errors += 1;
        } else if frame_length < HEADER {
            counters.guest_errors += 1;
        } else {
            const PAD: [u8; MINIMUM] = [0; MINIMUM];
            if self.registers.csr4() & csr4::APAD_XMT != 0 && !fcs_from_driver && frame_length < MINIMUM {
                // Room is left: a frame this short in MAX_PARTS pieces is an underflow.
                if parts.try_push(IoSlice::new(&PAD[frame_length..])).is_ok() {
                    frame_length = MINIMUM;
                }
            }
            let whole = mode & csr15::LOOP == 0 && !fcs_from_driver;
            if !whole {
                looped.clear();
                parts.iter().for_each(|part| looped.extend_from_slice(part));
                looped.truncate(frame_length);
            }
            let sent = if mode & csr15::LOOP != 0 {
                Sent::Taken
            } else {
                let began = Instant::now();
                let sent = if whole { port.send(&parts) } else { port.send(&[IoSlice::new(looped)]) };
                *port_time += began.elapsed();
                if !whole {
                    looped.clear();
                }
                sent?
            };
            match sent {
                Sent::Taken => {
                    counters.transmit_frames += 1;
                    counters.transmit_bytes += frame_length as u64;
                }
                Sent::Dropped => counters.transmit_drops += 1,
            }
        }
        give_back_all(&last, count, error)?;
        self.registers.transmit.advance(count);
        let quiet = csr5::TOKINTD | csr5::LTINTEN;
        let wanted = match self.registers.csr5() & quiet {
            0 => true,
            mode if mode & csr5::LTINTEN != 0 => last.status & status::LTINT != 0,
            _ => error.0 != 0,
        };
        if wanted {
            self.registers.raise(csr0::TINT);
        }
        Ok(count)
    }

    /// Fills the receive ring from the port; whether the guest got a frame.
    pub(super) fn receive(&mut self) -> Result<bool, AdapterError> {
        let mut delivered = false;
        // Frames that the filter discards take no descriptor: a flood of them can't hold us here either.
        for _ in 0..self.registers.receive.length.max(MAX_INIT_RING) {
            match self.receive_frame(false)? {
                Received::Delivered => delivered = true,
                Received::Discarded => {}
                Received::NoDescriptor | Received::Nothing => break,
            }
        }
        Ok(delivered)
    }

    /// Receives one frame, from the port or looped back, into the descriptors that the guest has given.
    fn receive_frame(&mut self, from_transmitter: bool) -> Result<Received, AdapterError> {
        if !self.running(csr0::RXON) || (self.registers.mode() & csr15::LOOP != 0) != from_transmitter {
            return Ok(Received::Nothing);
        }
        let layout = self.registers.layout();
        let ring = self.registers.receive;
        let Bus { memory, port, counters, port_time, looped, overflow } = &mut self.bus;
        let at_ring = bad_ring("receive ring");
        let owned = |ahead| ring.owned(ahead, layout, memory).map_err(&at_ring);

        let mut parts = PartsMut::new();
        let mut descriptors = ArrayVec::<Descriptor, { gather::MAX_PARTS }>::new();
        let mut capacity = 0_usize;
        while capacity < MAXIMUM + FCS && parts.remaining_capacity() > 1 {
            let count = descriptors.len() as u32;
            let Some(descriptor) = (if count < ring.length { owned(count)? } else { None }) else { break };
            match gather::push_mut(&mut parts, memory, u64::from(descriptor.base), descriptor.length) {
                Ok(()) => {}
                Err(Refused::Outside) => return Err(bad_buffer("receive descriptor", &descriptor)),
                // A buffer that the frame has already is no room.
                Err(Refused::TooManyParts | Refused::Overlap) => break,
            }
            descriptors.push(descriptor);
            capacity += descriptor.length;
        }
        if descriptors.is_empty() {
            return Ok(Received::NoDescriptor);
        }
        let length = if from_transmitter {
            gather::write_at(&mut parts, 0, looped);
            looped.len()
        } else {
            // The last piece tells a frame that fits from one that was cut off.
            if parts.try_push(IoSliceMut::new(&mut overflow[..])).is_err() {
                return Ok(Received::NoDescriptor);
            }
            let began = Instant::now();
            let length = port.receive(&mut parts);
            *port_time += began.elapsed();
            parts.truncate(parts.len() - 1);
            let Some(length) = length? else { return Ok(Received::Nothing) };
            length
        };
        if length < HEADER || capacity < 6 {
            counters.receive_drops += 1;
            return Ok(Received::Discarded);
        }
        let Some(matched) = address_match(&self.registers, gather::head(&parts)) else {
            return Ok(Received::Discarded);
        };

        let message = message(length, &mut parts, self.registers.csr4() & csr4::ASTRP_RCV != 0);
        let fits = message <= capacity;
        let mut covered = 0;
        let filled = descriptors.iter().take_while(|descriptor| {
            let needed = covered < message;
            covered += descriptor.length;
            needed
        });
        let used = filled.count();
        for (index, descriptor) in descriptors[..used].iter().enumerate().rev() {
            let mut bits = if index == 0 { status::STP } else { 0 };
            let mut misc = None;
            if index + 1 == used {
                bits |= if fits { status::ENP | matched } else { status::ERR | status::BUFF };
                misc = fits.then_some((message & 0xfff) as u32);
            }
            let status = descriptor.status & !status::RECEIVE_MASK | bits;
            descriptor.give_back(layout, memory, status, misc).map_err(&at_ring)?;
        }
        self.registers.receive.advance(used as u32);
        self.registers.raise(csr0::RINT);
        if fits {
            counters.receive_frames += 1;
            counters.receive_bytes += length as u64;
        } else {
            counters.receive_drops += 1;
        }
        Ok(Received::Delivered)
    }
}

/// Completes a frame of `length` bytes as the chip leaves it in memory: padded to the minimum, with its FCS. The
/// message length. With `strip` (ASTRP_RCV) an IEEE 802.3 frame loses its padding and FCS instead.
fn message(length: usize, parts: &mut PartsMut<'_>, strip: bool) -> usize {
    if strip {
        let [.., high, low] = gather::head::<HEADER>(parts);
        let payload = usize::from(u16::from_be_bytes([high, low]));
        if payload < MINIMUM - HEADER && HEADER + payload <= length {
            return HEADER + payload;
        }
    }
    let padded = length.max(MINIMUM);
    const ZEROS: [u8; MINIMUM] = [0; MINIMUM];
    gather::write_at(parts, length, &ZEROS[..padded - length]);
    let mut crc = crc32fast::Hasher::new();
    gather::for_each_piece(parts, padded, |piece| crc.update(piece));
    gather::write_at(parts, padded, &crc.finalize().to_le_bytes());
    padded + FCS
}

/// Whether the address filter takes a frame for `destination`, and the status bit that says why.
fn address_match(registers: &RegisterFile, destination: [u8; 6]) -> Option<u16> {
    let mode = registers.mode();
    let matched = if destination == [0xff; 6] {
        (mode & csr15::DRCVBC == 0).then_some(status::BAM)
    } else if destination[0] & 1 != 0 {
        // The top six bits of the CRC before its final inversion select a bit of LADRF.
        let bit = !crc32fast::hash(&destination) >> 26;
        (registers.logical_filter() >> bit & 1 != 0).then_some(status::LAFM)
    } else {
        (mode & csr15::DRCVPA == 0 && destination == registers.physical_address()).then_some(status::PAM)
    };
    matched.or((mode & csr15::PROM != 0).then_some(0))
}
