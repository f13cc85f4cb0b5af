//! One split queue (virtio 1.2, 2.7), polled, with a buffer for each descriptor.

use core::ptr::NonNull;

use super::{HEADER, register};
use crate::dma::Dma;
use crate::driver::DriverError;
use crate::platform::Registers;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY (2.7.8).
const NO_NOTIFY: u16 = 1;

/// Descriptors of a queue at most: more than the frames of a full TCP window at an MTU of 1500 (360), so that a burst
/// needs no QueueNotify: with 256 the sender made 2.0 a megabyte, with 512 it makes 0.1.
pub(crate) const MAX_QUEUE_SIZE: usize = 512;
const DESCRIPTOR: usize = 16;
pub(super) const ALIGN: usize = 64;

/// Size and layout of a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Descriptors, a power of two.
    pub(super) size: usize,
    /// Bytes of a buffer, and their distance.
    pub(super) stride: usize,
}

impl Layout {
    /// For buffers of `length` bytes, in at most `budget` bytes of memory.
    pub(super) const fn new(length: usize, budget: usize) -> Self {
        let stride = length.next_multiple_of(ALIGN);
        let mut size = MAX_QUEUE_SIZE;
        while size > 1 && size * stride > budget {
            size /= 2;
        }
        Self { size, stride }
    }

    const fn table(self) -> usize {
        self.size * DESCRIPTOR
    }

    /// flags, idx, ring, used_event; rounded up.
    const fn available(self) -> usize {
        (6 + 2 * self.size).next_multiple_of(ALIGN)
    }

    const fn used_event(self) -> usize {
        4 + 2 * self.size
    }

    /// flags, idx, ring, avail_event; rounded up.
    const fn used(self) -> usize {
        (6 + 8 * self.size).next_multiple_of(ALIGN)
    }

    const fn avail_event(self) -> usize {
        4 + 8 * self.size
    }

    pub(super) const fn memory(self) -> usize {
        self.table().next_multiple_of(ALIGN) + self.available() + self.used() + self.size * self.stride
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    table: Dma,
    available: Dma,
    used: Dma,
    pub(super) buffers: Dma,
    pub(super) layout: Layout,
    /// Notifications go by index (VIRTIO_F_EVENT_IDX).
    event_index: bool,
    /// Index that the next available entry has.
    next_available: u16,
    /// What it was when the device's wish for a notification was last looked at.
    looked: u16,
    /// Index of the used entry that is looked at next.
    next_used: u16,
}

impl Queue {
    pub(super) fn new(memory: &mut Dma, layout: Layout, flags: u16, event_index: bool) -> Self {
        let queue = Self {
            table: memory.split(layout.table().next_multiple_of(ALIGN)),
            available: memory.split(layout.available()),
            used: memory.split(layout.used()),
            buffers: memory.split(layout.size * layout.stride),
            layout,
            event_index,
            next_available: 0,
            looked: 0,
            next_used: 0,
        };
        for index in 0..layout.size {
            let at = index * DESCRIPTOR;
            queue.table.write64(at, queue.buffers.address() + (index * layout.stride) as u64);
            queue.table.write32(at + 8, layout.stride as u32);
            queue.table.write16(at + 12, flags);
        }
        queue.suppress_interrupts();
        queue
    }

    /// Hands the queue to the device (4.2.3.2).
    pub(super) fn set_up(&self, registers: &mut impl Registers, index: u32) -> Result<(), DriverError> {
        registers.write_register(register::QUEUE_SEL, 4, index);
        let largest = registers.read_register(register::QUEUE_SIZE_MAX, 4);
        if registers.read_register(register::QUEUE_READY, 4) != 0 || (largest as usize) < self.layout.size {
            return Err(DriverError::Unexpected { register: "QueueSizeMax", found: largest });
        }
        registers.write_register(register::QUEUE_SIZE, 4, self.layout.size as u32);
        for (register, part) in [
            (register::QUEUE_DESC, &self.table),
            (register::QUEUE_DRIVER, &self.available),
            (register::QUEUE_DEVICE, &self.used),
        ] {
            registers.write_register(register, 4, part.address() as u32);
            registers.write_register(register + 4, 4, (part.address() >> 32) as u32);
        }
        registers.write_register(register::QUEUE_READY, 4, 1);
        Ok(())
    }

    /// By VIRTQ_AVAIL_F_NO_INTERRUPT; or, as with VIRTIO_F_EVENT_IDX the flags stay 0 (2.7.7.1), `used_event` (2.7.6)
    /// becomes the entry that was looked at last: the device crosses it again after 65535 more (2.7.10).
    pub(super) fn suppress_interrupts(&self) {
        if self.event_index {
            self.available.release16(self.layout.used_event(), self.next_used.wrapping_sub(1));
        } else {
            self.available.release16(0, NO_INTERRUPT);
        }
    }

    /// The next used entry is to interrupt (2.7.7).
    pub(super) fn ask_for_interrupt(&self) {
        if self.event_index {
            self.available.release16(self.layout.used_event(), self.next_used);
        } else {
            self.available.release16(0, 0);
        }
        // Seen before the used index is looked at: as `fence` on the device's side.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }

    /// Gives descriptor `id` other flags, and a next one.
    pub(super) fn chain(&self, id: u16, flags: u16, next: u16) {
        let at = usize::from(id) * DESCRIPTOR;
        self.table.write16(at + 12, flags);
        self.table.write16(at + 14, next);
    }

    /// Says how many bytes descriptor `id` has.
    pub(super) fn set_length(&self, id: u16, length: usize) {
        self.table.write32(usize::from(id) * DESCRIPTOR + 8, length as u32);
    }

    /// Gives descriptor `id` to the device (2.7.13).
    pub(super) fn give(&mut self, id: u16) {
        let slot = usize::from(self.next_available) % self.layout.size;
        self.available.write16(4 + 2 * slot, id);
        self.next_available = self.next_available.wrapping_add(1);
        self.available.release16(2, self.next_available);
    }

    /// The next descriptor that the device has used, and the bytes it wrote (2.7.14).
    pub(super) fn take(&mut self) -> Option<(u16, usize)> {
        if self.used.acquire16(2) == self.next_used {
            return None;
        }
        let at = 4 + 8 * (usize::from(self.next_used) % self.layout.size);
        self.next_used = self.next_used.wrapping_add(1);
        if self.event_index {
            self.suppress_interrupts();
        }
        let (id, length) = (self.used.read32(at) as u16, self.used.read32(at + 4) as usize);
        assert!(usize::from(id) < self.layout.size, "the device used a descriptor that there is not");
        assert!(length <= self.layout.stride, "the device wrote more than a buffer holds");
        Some((id, length))
    }

    /// Whether the device wants to hear of what was made available since the last look (2.7.10).
    pub(super) fn notification_wanted(&mut self) -> bool {
        let before = core::mem::replace(&mut self.looked, self.next_available);
        // The available index is seen before the device's wish is read, and the device does it the other way round.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        if !self.event_index {
            return self.used.acquire16(0) & NO_NOTIFY == 0;
        }
        let event = self.used.acquire16(self.layout.avail_event());
        let beyond = self.next_available.wrapping_sub(event).wrapping_sub(1);
        beyond < self.next_available.wrapping_sub(before)
    }

    /// `length` bytes of the frame in descriptor `id`, behind its header, and in the buffers that follow if it is
    /// longer.
    pub(super) fn frame(&self, id: u16, length: usize) -> NonNull<[u8]> {
        self.buffers.bytes(usize::from(id) * self.layout.stride + HEADER, length)
    }
}
