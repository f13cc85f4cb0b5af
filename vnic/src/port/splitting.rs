//! A port that takes what the kernel joined and gives it on in the segments that its owner takes: cut up late, one call of
//! the kernel for many frames. The other way it changes nothing.
//!
//! ```text
//!            whole frame: copied out                  a segment, copied out with headers of its own
//!  idle ---------------------------> idle      cut --------------------------------------------> cut
//!    |  one of many segments                    ^                                                 | the last
//!    '------------------------------------------'       idle <------------------------------------'
//! ```
//! An owner that takes segments of either version of IP whole gets frames straight from the kernel, which cuts up those of
//! the other.
//!
//! Checksums: what the kernel left out is completed for an owner that takes no unfinished frames, and left to one that
//! does.

use std::os::fd::BorrowedFd;

use super::{Framing, Lost, Offloads, Port, PortError, Sent};
use crate::piece::{Piece, PieceMut, write_at};
use crate::segment::{self, CHECKSUM, LONGEST_HEADERS, Segment};
use crate::vnet_header::{CSUM_OFFSET, CSUM_START, FLAGS, GSO_SIZE, GSO_TYPE, LENGTH as HEADER, NEEDS_CSUM};

/// The longest that the kernel gives: an IP packet of 65535 bytes in a frame with a VLAN tag.
const LONGEST: usize = HEADER + 18 + 65_535;
/// Frames of the kernel that one call takes at most: of those that can't be given on, more may come than anybody takes.
pub(crate) const MOST_TAKEN: u32 = 64;

/// See the module.
pub struct Splitting {
    port: Box<dyn Port>,
    /// What its owner takes.
    offloads: Offloads,
    /// A frame as the kernel gave it.
    frame: Box<[u8]>,
    cut: Option<Cut>,
}

/// A frame that is being cut up.
#[derive(Debug, Clone, Copy)]
struct Cut {
    segment: Segment,
    /// Payload bytes of each part but the last.
    size: usize,
    /// Payload bytes that were given on.
    done: usize,
    /// Parts that were given on.
    index: usize,
}

impl Splitting {
    /// Around `port`, which has headers.
    pub fn new(port: Box<dyn Port>) -> Self {
        let frame = vec![0; LONGEST].into_boxed_slice();
        Self { port, offloads: Offloads::default(), frame, cut: None }
    }

    fn field(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes([self.frame[at], self.frame[at + 1]]))
    }

    /// Takes a frame of `length` bytes with its header, as the kernel gave it. A whole one is finished, and its length
    /// given back.
    fn take(&mut self, length: usize) -> Option<usize> {
        let (header, frame) = self.frame[..length].split_at_mut_checked(HEADER)?;
        if header[GSO_TYPE] == 0 {
            if header[FLAGS] & NEEDS_CSUM != 0 && !self.offloads.checksum {
                let (start, offset) = (self.field(CSUM_START), self.field(CSUM_OFFSET));
                segment::complete_frame(&mut self.frame[HEADER..length], start, start + offset);
                self.frame[..HEADER].fill(0);
            }
            return Some(length);
        }
        // What can't be cut up can't be given on: the kernel joins TCP segments alone, when it is asked for those.
        let segment = Segment::parse(&frame[..frame.len().min(LONGEST_HEADERS)], frame.len())?;
        let size = self.field(GSO_SIZE);
        self.cut = (size > 0).then_some(Cut { segment, size, done: 0, index: 0 });
        None
    }

    /// Gives the next segment on; its length with its header.
    fn next_segment(&mut self, mut cut: Cut, parts: &mut [PieceMut<'_>]) -> usize {
        let Cut { segment, size, done, index } = cut;
        let length = size.min(segment.length - done);
        let last = done + length == segment.length;
        let mut head = [0; HEADER + LONGEST_HEADERS];
        let end = HEADER + segment.payload;
        head[HEADER..end].copy_from_slice(&self.frame[HEADER..end]);
        let payload = &self.frame[end + done..end + done + length];
        segment.rewrite(&mut head[HEADER..end], index, done, length, segment.flags_of_part(done == 0, last));
        if self.offloads.checksum {
            // The length of Ethernet, IPv6 and TCP headers is below 2^16.
            let start = (segment.transport as u16).to_le_bytes();
            head[FLAGS] = NEEDS_CSUM;
            head[CSUM_START..CSUM_START + 2].copy_from_slice(&start);
            head[CSUM_OFFSET..CSUM_OFFSET + 2].copy_from_slice(&(CHECKSUM as u16).to_le_bytes());
        } else {
            segment.complete(&mut head[HEADER..end], payload);
        }
        write_at(parts, 0, &head[..end]);
        write_at(parts, end, payload);
        cut.done += length;
        cut.index += 1;
        self.cut = (!last).then_some(cut);
        end + length
    }
}

impl Port for Splitting {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        self.port.send(parts)
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        if self.offloads.segments() {
            return self.port.receive(parts);
        }
        let room = parts.iter().map(|part| part.len()).sum();
        for _ in 0..MOST_TAKEN {
            if self.cut.is_none() {
                let Some(length) = self.port.receive(&mut [PieceMut::new(&mut self.frame)])? else {
                    return Ok(None);
                };
                if let Some(length) = self.take(length) {
                    write_at(parts, 0, &self.frame[..length]);
                    return Ok(Some(length.min(room)));
                }
            }
            if let Some(cut) = self.cut {
                return Ok(Some(self.next_segment(cut, parts).min(room)));
            }
        }
        // Others wait, and the descriptor says so.
        Ok(None)
    }

    fn framing(&self) -> Framing {
        self.port.framing()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), PortError> {
        self.offloads = offloads;
        self.cut = None;
        let all = Offloads { checksum: true, tso4: true, tso6: true };
        self.port.set_offloads(if offloads.segments() { offloads } else { all })
    }

    fn set_attached(&mut self, attached: bool) -> Result<(), PortError> {
        self.port.set_attached(attached)
    }

    fn lost(&self) -> Lost {
        self.port.lost()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.fd()
    }
}
