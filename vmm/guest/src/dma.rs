//! Memory shared with an adapter: volatile, bounds-checked access by offset.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use crate::platform::{DmaRegion, Platform};

/// A part of a [`DmaRegion`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dma {
    pointer: *mut u8,
    address: u64,
    length: usize,
}

impl Dma {
    /// Takes `length` zeroed bytes, aligned to `align`, from the platform.
    pub(crate) fn allocate(platform: &mut impl Platform, length: usize, align: usize) -> Self {
        let DmaRegion { pointer, address, length } = platform.allocate(length, align);
        Self { pointer, address, length }
    }

    /// The next `length` bytes, taken off the front.
    pub(crate) fn split(&mut self, length: usize) -> Self {
        assert!(length <= self.length, "a DMA region is smaller than what was asked for");
        let front = Self { length, ..*self };
        // SAFETY: in bounds of the region, as just checked.
        self.pointer = unsafe { self.pointer.add(length) };
        self.address += length as u64;
        self.length -= length;
        front
    }

    /// Where the adapter finds offset 0.
    pub(crate) const fn address(&self) -> u64 {
        self.address
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset.saturating_add(size_of::<T>()) <= self.length, "access outside of a DMA region");
        // SAFETY: in bounds of the region, as just checked.
        let pointer = unsafe { self.pointer.add(offset) }.cast::<T>();
        debug_assert!(pointer.is_aligned(), "misaligned access to a DMA region");
        pointer
    }

    /// Reads an aligned 32-bit word.
    pub(crate) fn read32(&self, offset: usize) -> u32 {
        // SAFETY: `at` gives a pointer into the region, which the platform hands out once and keeps.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    /// Writes an aligned 16-bit word.
    pub(crate) fn write16(&self, offset: usize, value: u16) {
        // SAFETY: as in `read32`.
        unsafe { self.at::<u16>(offset).write_volatile(value) }
    }

    /// Writes an aligned 32-bit word.
    pub(crate) fn write32(&self, offset: usize, value: u32) {
        // SAFETY: as in `read32`.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }

    /// Writes an aligned 64-bit word.
    pub(crate) fn write64(&self, offset: usize, value: u64) {
        // SAFETY: as in `read32`.
        unsafe { self.at::<u64>(offset).write_volatile(value) }
    }

    /// Reads a 16-bit word that the adapter publishes: what it wrote before is seen after.
    pub(crate) fn acquire16(&self, offset: usize) -> u16 {
        // SAFETY: as in `read32`; both sides access this word atomically.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }.load(Ordering::Acquire)
    }

    /// Writes a 16-bit word that publishes: what was written before is seen by whoever sees it.
    pub(crate) fn release16(&self, offset: usize, value: u16) {
        // SAFETY: as in `acquire16`.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }.store(value, Ordering::Release);
    }

    /// As [`acquire16`](Self::acquire16), for 32 bits.
    pub(crate) fn acquire32(&self, offset: usize) -> u32 {
        // SAFETY: as in `acquire16`.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }.load(Ordering::Acquire)
    }

    /// As [`release16`](Self::release16), for 32 bits.
    pub(crate) fn release32(&self, offset: usize, value: u32) {
        // SAFETY: as in `acquire16`.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }.store(value, Ordering::Release);
    }

    /// Copies `length` bytes at `offset` of `source`, another part, to `to`. The adapter owns neither meanwhile.
    pub(crate) fn copy(&self, to: usize, source: &Self, offset: usize, length: usize) {
        let (from, to) = (source.bytes(offset, length), self.bytes(to, length));
        // SAFETY: both are in bounds; parts are split off one another, so they don't overlap.
        unsafe {
            core::ptr::copy_nonoverlapping(from.cast::<u8>().as_ptr(), to.cast::<u8>().as_ptr(), length);
        };
    }

    /// `length` bytes at `offset`: a frame's place. Whoever makes a reference of it sees to it that the adapter
    /// doesn't own the buffer meanwhile.
    pub(crate) fn bytes(&self, offset: usize, length: usize) -> NonNull<[u8]> {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "a frame outside of a DMA region");
        // SAFETY: in bounds, as just checked, and a region's pointer is not null.
        let start = unsafe { NonNull::new_unchecked(self.pointer.add(offset)) };
        NonNull::slice_from_raw_parts(start, length)
    }
}
