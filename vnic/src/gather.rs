//! Views of guest buffers for scatter/gather system calls: what a guest names by address and length becomes an
//! I/O vector of the host only after it was checked to lie in guest memory, so frames cross without a copy.

use arrayvec::ArrayVec;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::GuestMemory;
use crate::piece::{Piece, PieceMut};

/// Most pieces of one frame. Far below the kernel's IOV_MAX (1024); drivers use one or two.
pub(crate) const MAX_PARTS: usize = 64;

/// A frame to be sent, in pieces of guest memory.
pub(crate) type Parts<'m> = ArrayVec<Piece<'m>, MAX_PARTS>;
/// Room for a frame, in pieces of guest memory.
pub(crate) type PartsMut<'m> = ArrayVec<PieceMut<'m>, MAX_PARTS>;

/// Why a guest buffer can't be part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Some of it is outside guest memory.
    Outside,
    /// The frame has over [`MAX_PARTS`] pieces.
    TooManyParts,
    /// The frame's room has the same bytes twice.
    Overlap,
}

/// The host ranges of the guest's `length` bytes at `address`, in order.
fn ranges(
    memory: &GuestMemory,
    address: u64,
    length: usize,
) -> impl Iterator<Item = Result<(*mut u8, usize), Refused>> + '_ {
    let whole = in_one_region(memory, address, length);
    let pieces = whole.is_none().then(|| memory.get_slices(GuestAddress(address), length));
    let pieces = pieces.into_iter().flatten().map(|slice| {
        let slice = slice.map_err(|_| Refused::Outside)?;
        Ok((slice.ptr_guard_mut().as_ptr(), slice.len()))
    });
    whole.map(|pointer| Ok((pointer, length))).into_iter().chain(pieces)
}

/// The same where they lie in one region, as they do but for a buffer across two: a fraction of the time.
fn in_one_region(memory: &GuestMemory, address: u64, length: usize) -> Option<*mut u8> {
    let region = memory.find_region(GuestAddress(address))?;
    let offset = usize::try_from(address - region.start_addr().0).ok()?;
    let left = usize::try_from(region.len()).ok()?.checked_sub(offset)?;
    // SAFETY: `length` bytes from there are in the region's mapping, as just seen.
    (0 < length && length <= left).then(|| unsafe { region.as_ptr().add(offset) })
}

/// Appends the guest's `length` bytes at `address` to a frame.
pub(crate) fn push<'m>(
    parts: &mut Parts<'m>,
    memory: &'m GuestMemory,
    address: u64,
    length: usize,
) -> Result<(), Refused> {
    for range in ranges(memory, address, length) {
        let (pointer, length) = range?;
        // SAFETY: the range lies in a mapping that `memory` keeps for 'm, and nothing in this process refers to guest
        // memory. A driver that writes to a buffer which it has given to its adapter spoils its own frame: what decisions
        // are made on is copied first, and a sum that is wrong leaves a frame as it is.
        let piece = unsafe { Piece::shared(pointer, length) };
        parts.try_push(piece).map_err(|_| Refused::TooManyParts)?;
    }
    Ok(())
}

/// Takes the first bytes off a frame of `N` bytes or more.
pub(crate) fn take_head<const N: usize>(parts: &mut [Piece<'_>]) -> [u8; N] {
    let (mut bytes, mut filled) = ([0; N], 0);
    for part in parts {
        let count = part.copy_to(&mut bytes[filled..]);
        part.advance(count);
        filled += count;
        if filled == N {
            break;
        }
    }
    bytes
}

/// Appends room for `length` bytes at the guest's `address`.
pub(crate) fn push_mut<'m>(
    parts: &mut PartsMut<'m>,
    memory: &'m GuestMemory,
    address: u64,
    length: usize,
) -> Result<(), Refused> {
    for range in ranges(memory, address, length) {
        let (pointer, length) = range?;
        // A guest may name the same bytes twice in one frame.
        if parts.iter().any(|part| part.overlaps(pointer, length)) {
            return Err(Refused::Overlap);
        }
        // SAFETY: as in `push`.
        let piece = unsafe { PieceMut::shared(pointer, length) };
        parts.try_push(piece).map_err(|_| Refused::TooManyParts)?;
    }
    Ok(())
}

/// Calls `take` with copies of the first `length` bytes of `parts`, in order.
pub(crate) fn for_each_chunk(parts: &[PieceMut<'_>], mut length: usize, mut take: impl FnMut(&[u8])) {
    for part in parts {
        let part = part.filled().first(length);
        length -= part.len();
        part.for_each_chunk(&mut take);
        if length == 0 {
            break;
        }
    }
}

/// The first bytes of a frame of `N` bytes or more that lies in `parts`.
pub(crate) fn head<const N: usize>(parts: &[PieceMut<'_>]) -> [u8; N] {
    head_at(parts, 0)
}

/// `N` bytes of `parts`, `skip` bytes from their beginning; zero where there are none.
pub(crate) fn head_at<const N: usize>(parts: &[PieceMut<'_>], mut skip: usize) -> [u8; N] {
    let (mut bytes, mut filled) = ([0; N], 0);
    for part in parts {
        let mut part = part.filled();
        let from = skip.min(part.len());
        skip -= from;
        part.advance(from);
        filled += part.copy_to(&mut bytes[filled..]);
        if filled == N {
            break;
        }
    }
    bytes
}

/// The 32-bit words that hold any of `length` bytes at `address`.
fn words(address: u64, length: usize) -> impl Iterator<Item = GuestAddress> {
    (address & !3..address + length as u64).step_by(4).map(GuestAddress)
}

/// Appends the guest's `length` bytes at `address` to `bytes`, as an adapter reads them that reverses the bytes of each
/// 32-bit word on its way.
pub(crate) fn copy_swapped(
    bytes: &mut Vec<u8>,
    memory: &GuestMemory,
    address: u64,
    length: usize,
) -> Result<(), Refused> {
    let start = bytes.len() + (address & 3) as usize;
    for word in words(address, length) {
        let word: u32 = memory.read_obj(word).map_err(|_| Refused::Outside)?;
        bytes.extend_from_slice(&word.swap_bytes().to_ne_bytes());
    }
    bytes.drain(start - (address & 3) as usize..start);
    bytes.truncate(start - (address & 3) as usize + length);
    Ok(())
}

/// Reverses the bytes of each 32-bit word that holds any of the guest's `length` bytes at `address`.
pub(crate) fn swap(memory: &GuestMemory, address: u64, length: usize) -> Result<(), Refused> {
    for at in words(address, length) {
        let word: u32 = memory.read_obj(at).map_err(|_| Refused::Outside)?;
        memory.write_obj(word.swap_bytes(), at).map_err(|_| Refused::Outside)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::piece::write_at;

    #[test]
    fn a_buffer_that_leaves_guest_memory_is_refused() {
        let memory =
            GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap();
        let mut parts = Parts::new();
        assert_eq!(push(&mut parts, &memory, 0xff0, 0x20), Ok(()));
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [0x10, 0x10]);
        assert_eq!(push(&mut parts, &memory, 0x1ff0, 0x20), Err(Refused::Outside));
        assert_eq!(push(&mut parts, &memory, u64::MAX - 4, 0x20), Err(Refused::Outside));
        for _ in 0..MAX_PARTS {
            let _ = push(&mut parts, &memory, 0, 1);
        }
        assert_eq!(push(&mut parts, &memory, 0, 1), Err(Refused::TooManyParts));
    }

    #[test]
    fn room_that_has_the_same_bytes_twice_is_refused() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut parts = PartsMut::new();
        assert_eq!(push_mut(&mut parts, &memory, 0x100, 0x100), Ok(()));
        assert_eq!(push_mut(&mut parts, &memory, 0x200, 0x100), Ok(()));
        for (address, length) in [(0x100, 0x100), (0x180, 1), (0xff, 2), (0x2ff, 1), (0, 0x1000)] {
            assert_eq!(push_mut(&mut parts, &memory, address, length), Err(Refused::Overlap), "{address:#x}");
        }
        assert_eq!(push_mut(&mut parts, &memory, 0x300, 1), Ok(()));
    }

    #[test]
    fn words_are_reversed_in_place_and_on_the_way() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        memory.write_slice(&[1, 2, 3, 4, 5, 6, 7, 8], GuestAddress(0)).unwrap();
        let mut bytes = vec![9];
        copy_swapped(&mut bytes, &memory, 1, 5).unwrap();
        assert_eq!(bytes, [9, 3, 2, 1, 8, 7]);
        swap(&memory, 0, 6).unwrap();
        let mut whole = [0; 8];
        memory.read_slice(&mut whole, GuestAddress(0)).unwrap();
        assert_eq!(whole, [4, 3, 2, 1, 8, 7, 6, 5]);
        assert_eq!(copy_swapped(&mut bytes, &memory, 0xffe, 3), Err(Refused::Outside));
        assert_eq!(swap(&memory, 0xffe, 3), Err(Refused::Outside));
        assert_eq!(swap(&memory, 0xffd, 3), Ok(()), "the last word ends with memory");
    }

    #[test]
    fn bytes_are_placed_across_pieces() {
        let (mut a, mut b) = ([0; 3], [0; 4]);
        let mut parts = [PieceMut::new(&mut a), PieceMut::new(&mut b)];
        write_at(&mut parts, 2, &[1, 2, 3]);
        assert_eq!(head::<6>(&parts), [0, 0, 1, 2, 3, 0]);
        assert_eq!(head_at::<3>(&parts, 2), [1, 2, 3]);
        assert_eq!(head_at::<3>(&parts, 5), [0, 0, 0], "two of them are not there");
        write_at(&mut parts, 6, &[9, 9, 9]);
        assert_eq!((a, b), ([0, 0, 1], [2, 3, 0, 9]));
    }
}
