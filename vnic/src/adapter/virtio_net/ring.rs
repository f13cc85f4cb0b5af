//! A split queue (virtio 1.2, 2.7) as the device works with it: where the driver has put its three areas, which are seen to lie
//! in guest memory once, at DRIVER_OK. Working with it costs loads and stores and no look-up of addresses.
//!
//! ```text
//!  descriptor table  16 B each:  addr | len | flags | next
//!  available ring    flags | idx | ring[size]          | used_event     the driver writes it
//!  used ring         flags | idx | ring[size] {id,len} | avail_event    the device writes it
//! ```
//! A driver on another CPU may write anything at any time: whatever is read is checked, and read once.

use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::bad;
use crate::GuestMemory;
use crate::adapter::AdapterError;

/// Bytes of a descriptor, and of an element of the used ring.
const DESCRIPTOR: usize = 16;
const ELEMENT: usize = 8;
/// Where the rings begin, behind flags and index.
const RING: usize = 4;
/// Where the index stands.
const INDEX: usize = 2;

/// A descriptor as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Guest physical address of its buffer.
    pub(super) address: u64,
    /// Its length.
    pub(super) length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Whether the device is to write to it.
    pub(super) const fn is_writable(&self) -> bool {
        self.flags & VRING_DESC_F_WRITE as u16 != 0
    }

    /// Whether it says that its buffer is a table of further descriptors, which no driver may say of a device that has
    /// not offered VIRTIO_F_INDIRECT_DESC (2.7.5.3.1).
    pub(super) const fn is_indirect(&self) -> bool {
        self.flags & VRING_DESC_F_INDIRECT as u16 != 0
    }

    /// Whether another one follows.
    pub(super) const fn has_next(&self) -> bool {
        self.flags & VRING_DESC_F_NEXT as u16 != 0
    }
}

/// An area of the queue in this process.
#[derive(Debug, Clone, Copy)]
struct Area {
    pointer: *mut u8,
    length: usize,
}

impl Area {
    /// The guest's `length` bytes at `address`, which lie in one mapping and are aligned to `align` (2.7).
    fn map(memory: &GuestMemory, address: u64, length: usize, align: usize) -> Option<Self> {
        let slice = memory.get_slice(GuestAddress(address), length).ok()?;
        let pointer = slice.ptr_guard_mut().as_ptr();
        (pointer.addr() % align == 0).then_some(Self { pointer, length })
    }

    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        debug_assert!(offset + length <= self.length, "an access outside of a queue");
        // SAFETY: every offset is computed from an index below the size that the area's length was computed from.
        unsafe { self.pointer.add(offset) }
    }

    fn word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: in bounds, and aligned as areas and offsets are; both sides access these words atomically.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast()) }
    }

    fn load(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.word(offset).load(order))
    }

    fn store(&self, offset: usize, value: u16, order: Ordering) {
        self.word(offset).store(value.to_le(), order);
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct Ring {
    table: Area,
    available: Area,
    used: Area,
    size: u16,
    event_index: bool,
    next_available: u16,
    next_used: u16,
    /// Keeps the mapping of the areas.
    _memory: GuestMemory,
}

// SAFETY: the areas are memory that is shared with the guest anyway and stays mapped; nothing in here belongs to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// The queue that the driver has described; `None` if it is not ready, or any of it is outside of guest memory.
    pub(super) fn map(queue: &Queue, memory: &GuestMemory, event_index: bool) -> Option<Self> {
        if !queue.is_valid(memory) {
            return None;
        }
        let size = usize::from(queue.size());
        Some(Self {
            table: Area::map(memory, queue.desc_table(), DESCRIPTOR * size, 16)?,
            available: Area::map(memory, queue.avail_ring(), RING + 2 * size + 2, 2)?,
            used: Area::map(memory, queue.used_ring(), RING + ELEMENT * size + 2, 4)?,
            size: queue.size(),
            event_index,
            next_available: 0,
            next_used: 0,
            _memory: memory.clone(),
        })
    }

    /// Its descriptors.
    pub(super) const fn size(&self) -> u16 {
        self.size
    }

    /// The index of the available entry that is taken next.
    pub(super) const fn position(&self) -> u16 {
        self.next_available
    }

    /// Goes back, or on, to an available entry.
    pub(super) const fn set_position(&mut self, position: u16) {
        self.next_available = position;
    }

    /// The index of the used entry that is written next.
    pub(super) const fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Entries that the driver has made available and the device has not taken (2.7.6).
    fn waiting(&self) -> u16 {
        self.available.load(INDEX, Ordering::Acquire).wrapping_sub(self.next_available)
    }

    /// Whether there are any.
    pub(super) fn has_available(&self) -> bool {
        self.waiting() != 0
    }

    /// Takes the next available entry: the head of its chain.
    pub(super) fn take(&mut self, what: &'static str) -> Result<Option<u16>, AdapterError> {
        let waiting = self.waiting();
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.size {
            let detail = format!("{waiting} entries are available in a queue of {}", self.size);
            return Err(bad(what, detail));
        }
        let slot = usize::from(self.next_available % self.size);
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(self.available.load(RING + 2 * slot, Ordering::Relaxed)))
    }

    /// The descriptors from `head` on.
    pub(super) fn chain(&self, head: u16) -> Chain<'_> {
        Chain { ring: self, next: Some(head), left: self.size, total: 0 }
    }

    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        let at = self.table.at(DESCRIPTOR * usize::from(index), DESCRIPTOR);
        // SAFETY: in bounds, as `at` says, and aligned as the table is. What the driver writes meanwhile makes words of
        // other values, and no other harm.
        let [low, high] = unsafe { at.cast::<[u64; 2]>().read_volatile() };
        let (address, rest) = (u64::from_le(low), u64::from_le(high));
        Some(Descriptor {
            address,
            length: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        })
    }

    /// Gives chains back, each with the bytes written to it, so that the driver sees all or none of them (2.7.8): those
    /// of one frame belong together.
    pub(super) fn publish(&mut self, elements: impl IntoIterator<Item = (u16, u32)>) {
        for (head, written) in elements {
            let slot = usize::from(self.next_used % self.size);
            let at = self.used.at(RING + ELEMENT * slot, ELEMENT).cast::<[u32; 2]>();
            // SAFETY: in bounds, as `at` says, and aligned as the ring is.
            unsafe { at.write_volatile([u32::from(head).to_le(), written.to_le()]) };
            self.next_used = self.next_used.wrapping_add(1);
        }
        self.used.store(INDEX, self.next_used, Ordering::Release);
    }

    /// Tells the driver whether the device wants to be notified of the next entry that becomes available (2.7.10).
    /// Whether there is one already, whose notification may not come.
    pub(super) fn want(&mut self, wanted: bool) -> bool {
        if self.event_index {
            // What was taken already is not crossed again before 65535 more.
            let entry = if wanted { self.next_available } else { self.next_available.wrapping_sub(1) };
            self.used.store(RING + ELEMENT * usize::from(self.size), entry, Ordering::Relaxed);
        } else {
            let flags = if wanted { 0 } else { VRING_USED_F_NO_NOTIFY as u16 };
            self.used.store(0, flags, Ordering::Relaxed);
        }
        // The wish is written before the index is read, and the driver does it the other way round.
        fence(Ordering::SeqCst);
        wanted && self.has_available()
    }

    /// Whether the driver wants to be interrupted now that the used index went on from `before`.
    pub(super) fn wants_interrupt(&self, before: u16) -> bool {
        if self.next_used == before {
            return false;
        }
        // The used index is written before the driver's wish is read, and the driver does it the other way round.
        fence(Ordering::SeqCst);
        if self.event_index {
            let event = self.available.load(RING + 2 * usize::from(self.size), Ordering::Relaxed);
            return crosses(event, self.next_used, before);
        }
        u32::from(self.available.load(0, Ordering::Relaxed)) & VRING_AVAIL_F_NO_INTERRUPT == 0
    }
}

/// Whether one side wants to hear of the other's step from index `before` to `after`, when it asked to be told of the
/// entry at `event` (2.7.10, as `vring_need_event` of linux/virtio_ring.h computes it, modulo 2^16).
const fn crosses(event: u16, after: u16, before: u16) -> bool {
    after.wrapping_sub(event).wrapping_sub(1) < after.wrapping_sub(before)
}

/// The descriptors of a chain. It ends quietly at an index out of the table, after as many as the table has, and before it is
/// over 2^32 - 1 bytes long (2.7.5.2): its last one then says that another follows.
#[derive(Debug, Clone)]
pub(super) struct Chain<'r> {
    ring: &'r Ring,
    next: Option<u16>,
    left: u16,
    total: u32,
}

impl Iterator for Chain<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let index = self.next.take()?;
        self.left = self.left.checked_sub(1)?;
        let descriptor = self.ring.descriptor(index)?;
        self.total = self.total.checked_add(descriptor.length)?;
        self.next = descriptor.has_next().then_some(descriptor.next);
        Some(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_1_2_s2_7_10_an_event_is_crossed_when_the_index_goes_past_it() {
        assert!(crosses(0, 1, 0), "the entry at 0 was used");
        assert!(!crosses(1, 1, 0), "that at 1 was not");
        assert!(!crosses(0, 2, 1), "it was before");
        assert!(crosses(5, 8, 4) && !crosses(8, 8, 4) && !crosses(3, 8, 4));
        assert!(crosses(0xffff, 2, 0xfffe), "indices wrap");
        assert!(!crosses(7, 7, 7), "nothing was used");
    }

    #[test]
    fn areas_have_to_be_aligned_and_inside() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let map = |address, length, align| Area::map(&memory, address, length, align).is_some();
        assert!(map(0x100, 0x100, 16) && map(0xf00, 0x100, 16));
        assert!(!map(0x108, 0x100, 16) && !map(0xf10, 0x100, 16) && !map(0x2000, 16, 16));
    }
}
