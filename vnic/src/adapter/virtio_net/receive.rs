//! receiveq: chains of device-writable buffers, filled by one call of the port for each frame (virtio 1.2, 5.1.6.4).
//!
//! ```text
//!  without VIRTIO_NET_F_MRG_RXBUF:  chain = header | room for a whole frame
//!  with it:                         chain = header | room, chain = room, chain = room, ...   num_buffers of them are used
//! ```
//! With mergeable buffers the chains that a frame doesn't need stay available. A frame that needs more than there are
//! waits in the device for the next ones: the port has given it away already.

use arrayvec::ArrayVec;
use toll_protocol::report::FrameCounters;
use toll_protocol::units::MacAddress;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::chain::{self, pieces, too_many};
use super::filter::{self, Filter};
use super::pairs::Pair;
use super::ring::Ring;
use super::{Bus, LONGEST_RECEIVED, MINIMUM_FRAME, TAG_LENGTH, bad};
use crate::GuestMemory;
use crate::adapter::AdapterError;
use crate::gather::{self, MAX_PARTS, PartsMut};
use crate::piece::{self, PieceMut};
use crate::port::{Framing, Offloads};
use crate::vnet_header;

const WHAT: &str = "receive chain";
/// Chains of one frame at most: each has a part, and the last part is the device's own.
const MAX_CHAINS: usize = MAX_PARTS - 1;

/// Chains that a frame may fill.
struct Room<'m> {
    parts: PartsMut<'m>,
    /// Bytes of `parts`.
    length: usize,
    /// Head and length of each chain.
    chains: ArrayVec<(u16, usize), MAX_CHAINS>,
}

impl<'m> Room<'m> {
    /// The next chain, or with `wanted` as many as have room for so many bytes behind the first `skip`, as far as the
    /// driver has made any available.
    fn take(
        ring: &mut Ring,
        memory: &'m GuestMemory,
        skip: usize,
        wanted: Option<usize>,
    ) -> Result<Self, AdapterError> {
        let mut room = Self { parts: PartsMut::new(), length: 0, chains: ArrayVec::new() };
        while room.chains.is_empty() || wanted.is_some_and(|wanted| room.length < wanted) {
            let position = ring.position();
            let Some(head) = ring.take("receive queue")? else { break };
            let (skip, least) = if room.chains.is_empty() { (skip, vnet_header::LENGTH) } else { (0, 1) };
            let held = room.parts.len();
            let length = pieces(ring.chain(head), true, WHAT, (skip, least), |address, length| {
                gather::push_mut(&mut room.parts, memory, address, length)
            });
            // The last part is the device's own.
            if length.is_err() && held > 0 && room.parts.is_full() || room.parts.len() > MAX_CHAINS {
                if held == 0 {
                    return Err(bad(WHAT, too_many(MAX_CHAINS)));
                }
                // As many chains as one call takes: this one is for another frame.
                room.parts.truncate(held);
                ring.set_position(position);
                break;
            }
            let length = length?;
            room.length += length - skip;
            room.chains.push((head, length));
        }
        Ok(room)
    }
}

impl Bus {
    /// Fills the buffers of `ring`, that of this pair, from its port.
    pub(super) fn receive(&mut self, pair: usize, ring: &mut Ring) -> Result<(), AdapterError> {
        for _ in 0..ring.size() {
            if !self.receive_one(pair, ring)? {
                break;
            }
        }
        Ok(())
    }

    /// The next frame; `false` if there is none, or no room for it.
    fn receive_one(&mut self, pair: usize, ring: &mut Ring) -> Result<bool, AdapterError> {
        let Self { memory, pairs, counters, stages, longest, features, overflow, filter, mac, .. } = self;
        let memory: &GuestMemory = memory;
        let Pair { port, waiting } = pairs.get(pair);
        let offloads = features.receive_offloads();
        let with_headers = port.framing() == Framing::VirtioNetHeader;
        // What the port puts before a frame, and what of the header is for the device to write.
        let (before, skip) = if with_headers { (vnet_header::LENGTH, 0) } else { (0, vnet_header::LENGTH) };
        let most = if offloads.segments() { LONGEST_RECEIVED } else { *longest };
        let mut mark = stages.receives();
        let position = ring.position();
        let mut room = Room::take(ring, memory, skip, features.mergeable().then_some(before + most))?;
        let Some((first, _)) = room.chains.first().copied() else { return Ok(false) };
        let length = if waiting.is_empty() {
            // The last piece tells a frame that fits from one that was cut off.
            room.parts.push(PieceMut::new(&mut overflow[..]));
            let length = stages.in_port(&mut mark, || port.receive(&mut room.parts));
            let Some(length) = length? else {
                ring.set_position(position);
                return Ok(false);
            };
            length
        } else {
            if waiting.len() <= room.length {
                piece::write_at(&mut room.parts, 0, waiting);
            }
            waiting.len()
        };
        if length > room.length || length < before + MINIMUM_FRAME {
            ring.set_position(position);
            // More chains may come, unless the driver has given all that there can be, or the frame is none that may pass.
            let more = features.mergeable()
                && (room.length + 1..=before + most).contains(&length)
                && room.chains.len() < most_chains(ring);
            if more && waiting.is_empty() {
                gather::for_each_chunk(&room.parts, length, |chunk| waiting.extend_from_slice(chunk));
            }
            if more {
                return Ok(false);
            }
            // The buffers stay available: the driver never learns of it.
            let mut head = gather::head_at(&room.parts, before);
            if let Some(frame) = waiting.get(before..).filter(|frame| !frame.is_empty()) {
                let count = frame.len().min(head.len());
                head = [0; filter::LOOKED_AT];
                head[..count].copy_from_slice(&frame[..count]);
            }
            waiting.clear();
            if length < before + MINIMUM_FRAME {
                counters.receive_drops += 1;
            } else {
                count_kept(counters, filter, &head, *mac);
            }
            return Ok(true);
        }
        waiting.clear();
        let kept_away = !filter.is_open() && !filter.takes(&gather::head_at(&room.parts, before), *mac);
        let passes = !kept_away && may_pass(&room.parts, before, length - before, offloads, *longest);
        if !passes {
            // The buffers stay available, as if it had not come.
            ring.set_position(position);
            count_kept(counters, filter, &gather::head_at(&room.parts, before), *mac);
            return Ok(true);
        }
        let length = length - before;
        let mut left = vnet_header::LENGTH + length;
        let mut elements = ArrayVec::<(u16, u32), MAX_CHAINS>::new();
        for (head, room) in room.chains {
            let written = left.min(room);
            // It fits: a chain is at most 2^32 - 1 bytes long.
            elements.push((head, written as u32));
            left -= written;
            if left == 0 {
                break;
            }
        }
        // At most MAX_CHAINS.
        let count = elements.len() as u16;
        if !offloads.checksum {
            // Without VIRTIO_NET_F_GUEST_CSUM flags are zero (5.1.6.4.1), and there are no segments either.
            chain::write(ring.chain(first), memory, 0, &[0; vnet_header::NUM_BUFFERS])?;
        }
        chain::write(ring.chain(first), memory, vnet_header::NUM_BUFFERS, &count.to_le_bytes())?;
        counters.receive_frames += 1;
        counters.receive_bytes += length as u64;
        ring.set_position(position.wrapping_add(count));
        ring.publish(elements);
        stages.received(mark, counters.receive_frames, length);
        Ok(true)
    }
}

/// Counts a frame that begins with `head` and that the driver does not get. It is lost only if it is this station's: a wire floods
/// others' too.
fn count_kept(
    counters: &mut FrameCounters,
    filter: &Filter,
    head: &[u8; filter::LOOKED_AT],
    own: MacAddress,
) {
    if filter.takes(head, own) && filter.addresses(head, own) {
        counters.receive_drops += 1;
    } else {
        counters.receive_filtered += 1;
    }
}

/// Whether the driver may get a frame of `length` bytes that lies in `parts`, `before` bytes from their beginning: one
/// that is to be cut up if it takes such (5.1.6.4.1), and any other if it is no longer than the MTU allows (5.1.4.1).
/// A port's own limits may be others, as a hub's are, whose frames are another guest's. `longest` is of a frame with a
/// VLAN tag.
fn may_pass(parts: &PartsMut<'_>, before: usize, length: usize, offloads: Offloads, longest: usize) -> bool {
    let gso_type = if before > 0 { gather::head_at::<1>(parts, vnet_header::GSO_TYPE)[0] } else { 0 };
    match u32::from(gso_type) {
        VIRTIO_NET_HDR_GSO_NONE => {
            let is_tagged = || gather::head_at(parts, before + filter::TAG) == filter::VLAN;
            length + TAG_LENGTH <= longest || length <= longest && is_tagged()
        }
        VIRTIO_NET_HDR_GSO_TCPV4 => offloads.tso4,
        VIRTIO_NET_HDR_GSO_TCPV6 => offloads.tso6,
        _ => false,
    }
}

/// Chains that a frame can ever have.
fn most_chains(ring: &Ring) -> usize {
    usize::from(ring.size()).min(MAX_CHAINS)
}
