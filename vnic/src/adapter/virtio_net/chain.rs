//! Descriptor chains (virtio 1.2, 2.7.5) as pieces of guest memory. A driver cuts header and frame as it likes.

use vm_memory::Bytes;

use super::bad;
use super::ring::{Chain, Descriptor};
use crate::GuestMemory;
use crate::adapter::AdapterError;
use crate::gather::{self, Refused};

fn refused(what: &'static str, refused: Refused, descriptor: &Descriptor) -> AdapterError {
    let Descriptor { address, length, .. } = descriptor;
    bad(
        what,
        match refused {
            Refused::Outside => format!("{length} bytes at {address:#x} are outside of guest memory"),
            Refused::TooManyParts => too_many(gather::MAX_PARTS),
            Refused::Overlap => format!("{length} bytes at {address:#x} are in the chain already"),
        },
    )
}

/// What is wrong with a descriptor that refers to an indirect table.
pub(super) const INDIRECT: &str = "a descriptor is indirect, and VIRTIO_F_INDIRECT_DESC was not negotiated";

pub(super) fn too_many(most: usize) -> String {
    format!("a chain has over {most} descriptors")
}

/// Calls `take` with the address and length of each piece of a chain that comes after its first `skip` bytes. The
/// chain's length, which is at least `least`.
pub(super) fn pieces(
    chain: Chain<'_>,
    writable: bool,
    what: &'static str,
    (skip, least): (usize, usize),
    mut take: impl FnMut(u64, usize) -> Result<(), Refused>,
) -> Result<usize, AdapterError> {
    let (mut total, mut last) = (0_usize, None);
    for (index, descriptor) in chain.enumerate() {
        // Empty ones count too: the work for a frame is bounded.
        if index == gather::MAX_PARTS {
            return Err(refused(what, Refused::TooManyParts, &descriptor));
        }
        if descriptor.is_indirect() {
            return Err(bad(what, INDIRECT.to_owned()));
        }
        if descriptor.is_writable() != writable {
            return Err(bad(what, "a buffer is for the other direction".to_owned()));
        }
        // The iterator ends a chain before it is over 2^32 bytes long.
        let (skip, length) = (skip.saturating_sub(total), descriptor.length as usize);
        total += length;
        if skip < length {
            let address = descriptor.address.checked_add(skip as u64);
            let taken = address.ok_or(Refused::Outside).and_then(|address| take(address, length - skip));
            taken.map_err(|reason| refused(what, reason, &descriptor))?;
        }
        last = Some(descriptor);
    }
    match last {
        // The iterator ends quietly at an index out of the table, a loop, or a chain that is too long.
        None => Err(bad(what, "a chain is empty".to_owned())),
        Some(last) if last.has_next() => Err(bad(what, "a chain has no end".to_owned())),
        Some(_) if total < least => {
            Err(bad(what, format!("a chain of {total} bytes has no room for the header")))
        }
        Some(_) => Ok(total),
    }
}

/// Writes `bytes` into a device-writable chain, `offset` bytes from its beginning.
pub(super) fn write(
    chain: Chain<'_>,
    memory: &GuestMemory,
    mut offset: usize,
    mut bytes: &[u8],
) -> Result<(), AdapterError> {
    for descriptor in chain {
        let length = descriptor.length as usize;
        if offset >= length {
            offset -= length;
            continue;
        }
        let count = bytes.len().min(length - offset);
        let outside = || refused("receive chain", Refused::Outside, &descriptor);
        let address = descriptor.address.checked_add(offset as u64).ok_or_else(outside)?;
        memory.write_slice(&bytes[..count], vm_memory::GuestAddress(address)).map_err(|_| outside())?;
        bytes = &bytes[count..];
        offset = 0;
        if bytes.is_empty() {
            break;
        }
    }
    Ok(())
}
