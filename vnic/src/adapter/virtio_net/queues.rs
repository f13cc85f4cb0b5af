//! Frames of virtio-net: between the split rings (virtio 1.2, 2.7) and the port.
//!
//! ```text
//!  transmitq: chain of device-readable buffers: virtio_net_hdr (12 bytes) | frame --gather--> port
//!  receiveq:  chain of device-writable buffers: virtio_net_hdr (12 bytes) | room  <-scatter-- port
//! ```
//! The header is 12 bytes long in either direction, wherever the driver's buffers cut it (5.1.6).

use std::io::IoSliceMut;
use std::sync::atomic::Ordering;
use std::time::Instant;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Bus, HEADER, MINIMUM_FRAME, bad};
use crate::GuestMemory;
use crate::adapter::AdapterError;
use crate::gather::{self, Parts, PartsMut, Refused};
use crate::port::Sent;

type Chain<'m> = DescriptorChain<&'m GuestMemory>;

fn broken(what: &'static str, error: &virtio_queue::Error) -> AdapterError {
    bad(what, error.to_string())
}

fn refused(what: &'static str, refused: Refused, descriptor: &Descriptor) -> AdapterError {
    let (address, length) = (descriptor.addr().0, descriptor.len());
    bad(
        what,
        match refused {
            Refused::Outside => format!("{length} bytes at {address:#x} are outside of guest memory"),
            Refused::TooManyParts => format!("a chain has over {} descriptors", gather::MAX_PARTS),
            Refused::Overlap => format!("{length} bytes at {address:#x} are in the chain already"),
        },
    )
}

/// Calls `take` with the address and length of each piece of a chain that comes after the header. The chain's
/// length.
fn pieces(
    chain: &Chain<'_>,
    writable: bool,
    what: &'static str,
    mut take: impl FnMut(u64, usize) -> Result<(), Refused>,
) -> Result<usize, AdapterError> {
    let (mut total, mut last) = (0_usize, None);
    for descriptor in chain.clone() {
        if descriptor.is_write_only() != writable {
            return Err(bad(what, "a buffer is for the other direction".to_owned()));
        }
        // The iterator ends a chain before it is over 2^32 bytes long.
        let (skip, length) = (HEADER.saturating_sub(total), descriptor.len() as usize);
        total += length;
        if skip < length {
            let address = descriptor.addr().0.checked_add(skip as u64);
            let taken = address.ok_or(Refused::Outside).and_then(|address| take(address, length - skip));
            taken.map_err(|reason| refused(what, reason, &descriptor))?;
        }
        last = Some(descriptor);
    }
    match last {
        // The iterator ends quietly at an index out of the table, a loop, or a chain that is too long.
        None => Err(bad(what, "a chain is empty".to_owned())),
        Some(last) if last.has_next() => Err(bad(what, "a chain has no end".to_owned())),
        Some(_) if total < HEADER => {
            Err(bad(what, format!("a chain of {total} bytes has no room for the header")))
        }
        Some(_) => Ok(total),
    }
}

/// The bytes of the header in a device-readable chain.
fn read_header(chain: &Chain<'_>, memory: &GuestMemory) -> Result<[u8; HEADER], AdapterError> {
    let (mut header, mut filled) = ([0; HEADER], 0);
    for descriptor in chain.clone() {
        let count = (descriptor.len() as usize).min(HEADER - filled);
        memory
            .read_slice(&mut header[filled..filled + count], descriptor.addr())
            .map_err(|_| refused("transmit chain", Refused::Outside, &descriptor))?;
        filled += count;
        if filled == HEADER {
            break;
        }
    }
    Ok(header)
}

/// Writes the header into a device-writable chain: all zero but `num_buffers`, which is 1 (5.1.6.4).
fn write_header(chain: &Chain<'_>, memory: &GuestMemory) -> Result<(), AdapterError> {
    const RECEIVED: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let mut filled = 0;
    for descriptor in chain.clone() {
        let count = (descriptor.len() as usize).min(HEADER - filled);
        memory
            .write_slice(&RECEIVED[filled..filled + count], descriptor.addr())
            .map_err(|_| refused("receive chain", Refused::Outside, &descriptor))?;
        filled += count;
        if filled == HEADER {
            break;
        }
    }
    Ok(())
}

/// Whether the driver wants to be interrupted when buffers of `queue` were used (2.7.10).
pub(super) fn wants_interrupt(queue: &Queue, memory: &GuestMemory) -> bool {
    let flags: u16 = memory.load(GuestAddress(queue.avail_ring()), Ordering::Relaxed).unwrap_or(0);
    u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0
}

/// Whether the driver has made buffers of `queue` available that the device has not taken (2.7.6).
pub(super) fn has_available(queue: &Queue, memory: &GuestMemory) -> bool {
    queue.ready()
        && queue.avail_idx(memory, Ordering::Acquire).is_ok_and(|index| index.0 != queue.next_avail())
}

impl Bus {
    /// Sends what `queue` holds; how many chains it used.
    pub(super) fn transmit(&mut self, queue: &mut Queue) -> Result<usize, AdapterError> {
        const WHAT: &str = "transmit chain";
        let Self { memory, port, counters, port_time, longest, .. } = self;
        let memory: &GuestMemory = memory;
        let mut used = 0;
        // A driver on another CPU could go on for ever: one turn takes no more than the queue holds.
        for _ in 0..queue.size() {
            let chain = queue.iter(memory).map_err(|error| broken("transmit queue", &error))?.next();
            let Some(chain) = chain else { break };
            let mut parts = Parts::new();
            let length = pieces(&chain, false, WHAT, |address, length| {
                gather::push(&mut parts, memory, address, length)
            })? - HEADER;
            let header = read_header(&chain, memory)?;
            // flags and gso_type: no offload was offered (5.1.6.2).
            if header[0] != 0 || header[1] != 0 {
                return Err(bad(WHAT, "its header asks for an offload that was not negotiated".to_owned()));
            }
            if length < MINIMUM_FRAME || length > *longest {
                return Err(bad(
                    WHAT,
                    format!("a frame of {length} bytes; it has {MINIMUM_FRAME} to {longest}"),
                ));
            }
            let began = Instant::now();
            let sent = port.send(&parts);
            *port_time += began.elapsed();
            match sent? {
                Sent::Taken => {
                    counters.transmit_frames += 1;
                    counters.transmit_bytes += length as u64;
                }
                Sent::Dropped => counters.transmit_drops += 1,
            }
            queue
                .add_used(memory, chain.head_index(), 0)
                .map_err(|error| broken("transmit queue", &error))?;
            used += 1;
        }
        Ok(used)
    }

    /// Fills the buffers of `queue` from the port; how many frames the guest got.
    pub(super) fn receive(&mut self, queue: &mut Queue) -> Result<usize, AdapterError> {
        const WHAT: &str = "receive chain";
        let Self { memory, port, counters, port_time, overflow, .. } = self;
        let memory: &GuestMemory = memory;
        let mut received = 0;
        for _ in 0..queue.size() {
            let chain = queue.iter(memory).map_err(|error| broken("receive queue", &error))?.next();
            let Some(chain) = chain else { break };
            let mut parts = PartsMut::new();
            let room = pieces(&chain, true, WHAT, |address, length| {
                gather::push_mut(&mut parts, memory, address, length)
            })? - HEADER;
            // The last piece tells a frame that fits from one that was cut off.
            if parts.try_push(IoSliceMut::new(&mut overflow[..])).is_err() {
                return Err(bad(WHAT, format!("a chain has over {} descriptors", gather::MAX_PARTS - 1)));
            }
            let began = Instant::now();
            let length = port.receive(&mut parts);
            *port_time += began.elapsed();
            let Some(length) = length? else {
                queue.go_to_previous_position();
                break;
            };
            if length > room || length < MINIMUM_FRAME {
                // The buffers stay available: the driver never learns of it.
                counters.receive_drops += 1;
                queue.go_to_previous_position();
                continue;
            }
            write_header(&chain, memory)?;
            counters.receive_frames += 1;
            counters.receive_bytes += length as u64;
            // Both fit: a chain is at most 2^32 - 1 bytes long.
            let written = (HEADER + length) as u32;
            queue
                .add_used(memory, chain.head_index(), written)
                .map_err(|error| broken("receive queue", &error))?;
            received += 1;
        }
        Ok(received)
    }
}
