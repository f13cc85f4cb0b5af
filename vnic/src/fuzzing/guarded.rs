//! Guest memory in which each region lies between two pages that nobody may touch: whatever reads or writes one byte
//! outside of guest memory faults.

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::GuestMemory;

const PAGE: usize = 4096;

/// Guest memory and its mappings.
#[derive(Debug)]
pub(crate) struct Guarded {
    memory: GuestMemory,
    /// Guards included.
    mappings: Vec<(*mut std::ffi::c_void, usize)>,
}

impl Guarded {
    /// Memory with `regions`: guest address and length in bytes, both in whole pages, in order.
    pub(crate) fn new(regions: &[(u64, usize)]) -> Self {
        let mut mappings = Vec::new();
        let regions = regions.iter().map(|&(address, length)| {
            let whole = length + 2 * PAGE;
            // SAFETY: a mapping where the kernel likes it takes nobody's place. Its length is whole pages, as are the
            // guards', which lie within; nobody else knows of it yet.
            let (start, first) = unsafe {
                let start =
                    mmap_anonymous(std::ptr::null_mut(), whole, ProtFlags::empty(), MapFlags::PRIVATE)
                        .expect("address space is left");
                let first = start.byte_add(PAGE);
                mprotect(first, length, MprotectFlags::READ | MprotectFlags::WRITE)
                    .expect("a mapping of our own");
                (start, first)
            };
            mappings.push((start, whole));
            let bits = |flags: u32| flags as i32;
            let access = bits((ProtFlags::READ | ProtFlags::WRITE).bits());
            // SAFETY: `length` bytes from `first` on are in the mapping, which lives as long as this.
            let region = unsafe {
                MmapRegion::build_raw(first.cast(), length, access, bits(MapFlags::PRIVATE.bits()))
                    .expect("a whole page's address")
            };
            GuestRegionMmap::new(region, GuestAddress(address)).expect("an address that does not wrap")
        });
        let regions = regions.collect();
        let memory = GuestMemoryMmap::from_regions(regions).expect("regions in order");
        Self { memory, mappings }
    }

    /// The memory, for as long as this lives.
    pub(crate) const fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        for (start, length) in self.mappings.drain(..) {
            // SAFETY: our own mapping. Who was lent the memory has been dropped before.
            let _ = unsafe { munmap(start, length) };
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryBackend;

    use super::*;

    #[test]
    fn nobody_may_touch_what_is_beside_a_region() {
        let guarded = Guarded::new(&[(0, 2 * PAGE), (0x10000, PAGE)]);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        for (address, length) in [(0, 2 * PAGE), (0x10000, PAGE)] {
            let slice = guarded.memory().get_slice(GuestAddress(address), length).unwrap();
            let start = slice.ptr_guard().as_ptr().addr();
            let beside = |address: usize| {
                maps.lines().any(|line| {
                    let (range, rest) = line.split_once(' ').unwrap();
                    let (from, to) = range.split_once('-').unwrap();
                    let range =
                        usize::from_str_radix(from, 16).unwrap()..usize::from_str_radix(to, 16).unwrap();
                    range.contains(&address) && rest.starts_with("---p")
                })
            };
            assert!(beside(start - 1) && beside(start + length), "{start:#x}: {maps}");
            assert!(!beside(start) && !beside(start + length - 1));
        }
    }
}
