//! Pieces of memory that a frame lies in, as a system call takes them: I/O vectors that need not be this process's alone.
//!
//! A guest's thread may write to its buffers while its adapter works with them. So no reference to their bytes is ever made:
//! they are read and written by the kernel, or copied as volatile memory.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use libc::iovec;
use vm_memory::VolatileSlice;

/// Bytes that are looked at at once: more than an Ethernet frame, and an even number, as sums of 16-bit words need.
const CHUNK: usize = 2048;

/// Room for a copy, on lines of the cache of its own: stores that cross two lines take twice as long.
#[repr(align(64))]
struct Chunk([MaybeUninit<u8>; CHUNK]);

/// A part of a frame to be sent.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Piece<'m> {
    vector: iovec,
    memory: PhantomData<&'m [u8]>,
}

impl<'m> Piece<'m> {
    /// Bytes of this process.
    pub const fn new(bytes: &'m [u8]) -> Self {
        let vector = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        Self { vector, memory: PhantomData }
    }

    /// `length` bytes that others may write to.
    ///
    /// # Safety
    /// They stay mapped and readable for `'m`, and nobody holds a reference that may write to them.
    pub(crate) const unsafe fn shared(pointer: *mut u8, length: usize) -> Self {
        Self { vector: iovec { iov_base: pointer.cast(), iov_len: length }, memory: PhantomData }
    }

    /// Its bytes.
    pub const fn len(&self) -> usize {
        self.vector.iov_len
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn volatile(&self) -> VolatileSlice<'_> {
        // SAFETY: the bytes are mapped and readable, as the constructors have it, and this is only read from.
        unsafe { VolatileSlice::new(self.vector.iov_base.cast(), self.vector.iov_len) }
    }

    /// Leaves its first `count` bytes out, or all if it has fewer.
    pub(crate) fn advance(&mut self, count: usize) {
        let count = count.min(self.len());
        // SAFETY: within the bytes, or one past them.
        self.vector.iov_base = unsafe { self.vector.iov_base.cast::<u8>().add(count) }.cast();
        self.vector.iov_len -= count;
    }

    /// Its first `count` bytes, or all if it has fewer.
    pub(crate) fn first(mut self, count: usize) -> Self {
        self.vector.iov_len = self.vector.iov_len.min(count);
        self
    }

    /// Copies its first bytes, as many as there are and fit; how many.
    pub fn copy_to(&self, bytes: &mut [u8]) -> usize {
        self.volatile().copy_to(bytes)
    }

    /// Appends its bytes to `bytes`.
    pub fn append_to(&self, bytes: &mut Vec<u8>) {
        bytes.reserve(self.len());
        // SAFETY: so much room was just reserved, which nothing refers to.
        let room = unsafe { VolatileSlice::new(bytes.spare_capacity_mut().as_mut_ptr().cast(), self.len()) };
        self.volatile().copy_to_volatile_slice(room);
        // SAFETY: the room was filled by the copy.
        unsafe { bytes.set_len(bytes.len() + self.len()) };
    }

    /// Calls `take` with copies of its bytes, of an even number of them but for the last ones.
    pub(crate) fn for_each_chunk(mut self, mut take: impl FnMut(&[u8])) {
        // Nobody looks at what was not copied, so it need not be zeroed for each frame.
        let mut chunk = Chunk([MaybeUninit::uninit(); CHUNK]);
        while !self.is_empty() {
            let count = self.len().min(CHUNK);
            let room = &mut chunk.0[..count];
            // SAFETY: so much room there is, which nothing else refers to.
            let bytes = unsafe { VolatileSlice::new(room.as_mut_ptr().cast(), count) };
            self.first(count).volatile().copy_to_volatile_slice(bytes);
            // SAFETY: the copy has filled them.
            take(unsafe { room.assume_init_ref() });
            self.advance(count);
        }
    }
}

/// A part of the room for a frame to be received.
#[derive(Debug)]
#[repr(transparent)]
pub struct PieceMut<'m> {
    vector: iovec,
    memory: PhantomData<&'m mut [u8]>,
}

impl<'m> PieceMut<'m> {
    /// Bytes of this process.
    pub const fn new(bytes: &'m mut [u8]) -> Self {
        let vector = iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        Self { vector, memory: PhantomData }
    }

    /// `length` bytes that others may read and write.
    ///
    /// # Safety
    /// They stay mapped and writable for `'m`, and nobody holds a reference to them.
    pub(crate) const unsafe fn shared(pointer: *mut u8, length: usize) -> Self {
        Self { vector: iovec { iov_base: pointer.cast(), iov_len: length }, memory: PhantomData }
    }

    /// Its bytes.
    pub const fn len(&self) -> usize {
        self.vector.iov_len
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it has any of the `length` bytes at `pointer`.
    pub(crate) fn overlaps(&self, pointer: *const u8, length: usize) -> bool {
        let (start, own) = (pointer.addr(), self.vector.iov_base.addr());
        own < start + length && start < own + self.len()
    }

    /// The same for a shorter time.
    pub(crate) fn reborrow(&mut self) -> PieceMut<'_> {
        PieceMut { vector: self.vector, memory: PhantomData }
    }

    /// What it holds.
    pub fn filled(&self) -> Piece<'_> {
        Piece { vector: self.vector, memory: PhantomData }
    }

    /// Copies `bytes` to its `offset`, as many as fit; how many.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> usize {
        let mut room = self.filled();
        room.advance(offset);
        // What fits of them: `copy_from` takes no more.
        let count = bytes.len().min(room.len());
        room.volatile().copy_from(&bytes[..count]);
        count
    }
}

/// Copies `bytes` into `parts`, `offset` bytes from their beginning; what does not fit is left out.
pub fn write_at(parts: &mut [PieceMut<'_>], mut offset: usize, mut bytes: &[u8]) {
    for part in parts {
        if offset >= part.len() {
            offset -= part.len();
            continue;
        }
        let count = part.write(offset, bytes);
        bytes = &bytes[count..];
        offset = 0;
        if bytes.is_empty() {
            break;
        }
    }
}

/// The bytes of a frame in `parts`.
pub fn collect(parts: &[Piece<'_>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.iter().map(Piece::len).sum());
    parts.iter().for_each(|part| part.append_to(&mut bytes));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_copied_out_and_in_within_a_piece() {
        let bytes: Vec<u8> = (0..5000_u32).map(|at| (at * 7) as u8).collect();
        let mut piece = Piece::new(&bytes);
        let mut head = [0; 3];
        assert_eq!((piece.copy_to(&mut head), &head[..]), (3, &bytes[..3]));
        piece.advance(4990);
        let mut rest = [0xee; 20];
        assert_eq!((piece.copy_to(&mut rest), &rest[..10], rest[10]), (10, &bytes[4990..], 0xee));
        piece.advance(100);
        assert!(piece.is_empty());
        let mut room = [0; 8];
        let mut piece = PieceMut::new(&mut room);
        assert_eq!((piece.write(2, &[1, 2, 3]), piece.write(6, &[4, 5, 6]), piece.write(9, &[7])), (3, 2, 0));
        assert_eq!(collect(&[piece.filled(), Piece::new(&[9])]), [0, 0, 1, 2, 3, 0, 4, 5, 9]);
    }

    #[test]
    fn chunks_are_all_bytes_and_even_but_for_the_last() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
            let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let mut seen = Vec::new();
            Piece::new(&bytes).for_each_chunk(|chunk| {
                assert!(seen.len().is_multiple_of(2) && !chunk.is_empty());
                seen.extend_from_slice(chunk);
            });
            assert_eq!(seen, bytes);
        }
    }

    #[test]
    fn a_piece_is_what_a_system_call_takes() {
        assert_eq!(size_of::<Piece<'_>>(), size_of::<iovec>());
        assert_eq!(size_of::<PieceMut<'_>>(), size_of::<iovec>());
        // Another thread writes to the bytes all the while: whatever is copied is some of what was written.
        let mut shared = vec![0_u8; 64];
        let pointer = shared.as_mut_ptr().expose_provenance();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: the bytes outlive the scope, and are only ever accessed as volatile ones meanwhile.
                let guest = unsafe { VolatileSlice::new(std::ptr::with_exposed_provenance_mut(pointer), 64) };
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    guest.copy_from(&[0x55_u8; 64]);
                    guest.copy_from(&[0_u8; 64]);
                }
            });
            // SAFETY: as above.
            let piece = unsafe { Piece::shared(std::ptr::with_exposed_provenance_mut(pointer), 64) };
            for _ in 0..1000 {
                assert!(collect(&[piece]).iter().all(|byte| matches!(byte, 0 | 0x55)));
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
