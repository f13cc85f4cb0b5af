//! virtio-net driver: virtio 1.2 over MMIO, split rings, polled.
//!
//! ```text
//!  frame sent:      descriptor, available ring, index       no access
//!  ring full:       QueueNotify, and only then              1 access
//!  nothing to do:   the WAIT doorbell flushes, fills and sleeps
//! ```
//! The device is told not to interrupt (2.7.7, VIRTQ_AVAIL_F_NO_INTERRUPT): it looks at both rings when the
//! program waits, and the program looks at the used rings when it runs. One descriptor is one frame: the header
//! of 12 zero bytes, then the frame.

use core::ptr::NonNull;

use super::{Driver, DriverError};
use crate::dma::Dma;
use crate::platform::{Platform, Registers};

/// virtio-mmio registers (4.2.2).
mod register {
    pub(super) const MAGIC_VALUE: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC: u64 = 0x080;
    pub(super) const QUEUE_DRIVER: u64 = 0x090;
    pub(super) const QUEUE_DEVICE: u64 = 0x0a0;
}

/// Device status (2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// VIRTIO_F_VERSION_1 (6), in the high half of the features.
const VERSION_1: u32 = 1 << 0;
/// VIRTIO_NET_F_MTU and VIRTIO_NET_F_MAC (5.1.3), in the low half.
const MTU_AND_MAC: u32 = 1 << 3 | 1 << 5;

const RECEIVEQ: u32 = 0;
const TRANSMITQ: u32 = 1;
/// `struct virtio_net_hdr` (5.1.6).
const HEADER: usize = 12;
/// VIRTQ_DESC_F_WRITE (2.7.5).
const WRITE: u16 = 2;
/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
const NO_INTERRUPT: u16 = 1;

/// Descriptors of a queue at most: more than the frames of a full TCP window at an MTU of 1500 (360), so that a burst
/// needs no QueueNotify: with 256 the sender made 2.0 a megabyte, with 512 it makes 0.1.
pub(super) const MAX_QUEUE_SIZE: usize = 512;
/// Memory for a queue's buffers, which bounds its size where frames are longer.
const BUFFERS: usize = 800 << 10;
const DESCRIPTOR: usize = 16;
const ALIGN: usize = 64;

/// Size and layout of a queue.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Descriptors, a power of two.
    size: usize,
    /// Distance of buffers.
    stride: usize,
}

impl Layout {
    /// For frames of up to `longest` bytes.
    const fn new(longest: usize) -> Self {
        let stride = (HEADER + longest).next_multiple_of(ALIGN);
        let mut size = MAX_QUEUE_SIZE;
        while size > 1 && size * stride > BUFFERS {
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

    /// flags, idx, ring, avail_event; rounded up.
    const fn used(self) -> usize {
        (6 + 8 * self.size).next_multiple_of(ALIGN)
    }

    const fn memory(self) -> usize {
        self.table().next_multiple_of(ALIGN) + self.available() + self.used() + self.size * self.stride
    }
}

/// One split queue (2.7) with a buffer for each descriptor.
#[derive(Debug)]
struct Queue {
    table: Dma,
    available: Dma,
    used: Dma,
    buffers: Dma,
    layout: Layout,
    /// Index that the next available entry has.
    next_available: u16,
    /// Index of the used entry that is looked at next.
    next_used: u16,
}

impl Queue {
    fn new(memory: &mut Dma, layout: Layout, flags: u16) -> Self {
        let queue = Self {
            table: memory.split(layout.table().next_multiple_of(ALIGN)),
            available: memory.split(layout.available()),
            used: memory.split(layout.used()),
            buffers: memory.split(layout.size * layout.stride),
            layout,
            next_available: 0,
            next_used: 0,
        };
        for index in 0..layout.size {
            let at = index * DESCRIPTOR;
            queue.table.write64(at, queue.buffers.address() + (index * layout.stride) as u64);
            queue.table.write32(at + 8, layout.stride as u32);
            queue.table.write16(at + 12, flags);
        }
        queue.available.write16(0, NO_INTERRUPT);
        queue
    }

    /// Hands the queue to the device (4.2.3.2).
    fn set_up(&self, registers: &mut impl Registers, index: u32) -> Result<(), DriverError> {
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

    /// Gives descriptor `id` to the device (2.7.13).
    fn give(&mut self, id: u16) {
        let slot = usize::from(self.next_available) % self.layout.size;
        self.available.write16(4 + 2 * slot, id);
        self.next_available = self.next_available.wrapping_add(1);
        self.available.release16(2, self.next_available);
    }

    /// The next descriptor that the device has used, and the bytes it wrote (2.7.14).
    fn take(&mut self) -> Option<(u16, usize)> {
        if self.used.acquire16(2) == self.next_used {
            return None;
        }
        let at = 4 + 8 * (usize::from(self.next_used) % self.layout.size);
        self.next_used = self.next_used.wrapping_add(1);
        let (id, length) = (self.used.read32(at) as u16, self.used.read32(at + 4) as usize);
        assert!(usize::from(id) < self.layout.size, "the device used a descriptor that there is not");
        Some((id, length))
    }

    /// `length` bytes of the frame in descriptor `id`.
    fn frame(&self, id: u16, length: usize) -> NonNull<[u8]> {
        assert!(HEADER + length <= self.layout.stride, "a frame over its buffer");
        self.buffers.bytes(usize::from(id) * self.layout.stride + HEADER, length)
    }
}

/// The driver's queues.
#[derive(Debug)]
pub(crate) struct VirtioNetDriver {
    receive: Queue,
    transmit: Queue,
    /// Transmit descriptors that are the driver's.
    free: [u16; MAX_QUEUE_SIZE],
    free_count: usize,
    /// The receive descriptor whose frame is lent.
    lent: Option<u16>,
}

impl VirtioNetDriver {
    /// Bytes of DMA memory that [`open`](Self::open) takes.
    pub(crate) const fn memory(longest: usize) -> usize {
        2 * Layout::new(longest).memory()
    }

    /// Finds the device and brings it up (3.1.1), for frames of up to `longest` bytes.
    pub(crate) fn open(platform: &mut impl Platform, longest: usize) -> Result<Self, DriverError> {
        for (register, name, wanted) in [
            (register::MAGIC_VALUE, "MagicValue", u32::from_le_bytes(*b"virt")),
            (register::VERSION, "Version", 2),
            (register::DEVICE_ID, "DeviceID", 1),
        ] {
            let found = platform.read_register(register, 4);
            if found != wanted {
                return Err(DriverError::Unexpected { register: name, found });
            }
        }
        let mut status = 0;
        let mut advance = |platform: &mut _, bit| {
            status |= bit;
            Registers::write_register(platform, register::STATUS, 4, status);
        };
        advance(platform, 0);
        advance(platform, ACKNOWLEDGE);
        advance(platform, DRIVER);
        for (half, wanted) in [(0, MTU_AND_MAC), (1, VERSION_1)] {
            platform.write_register(register::DEVICE_FEATURES_SEL, 4, half);
            let offered = platform.read_register(register::DEVICE_FEATURES, 4);
            platform.write_register(register::DRIVER_FEATURES_SEL, 4, half);
            platform.write_register(register::DRIVER_FEATURES, 4, offered & wanted);
        }
        advance(platform, FEATURES_OK);
        if platform.read_register(register::STATUS, 4) & FEATURES_OK == 0 {
            return Err(DriverError::Unsupported { what: "VIRTIO_F_VERSION_1" });
        }

        let mut memory = Dma::allocate(platform, Self::memory(longest), ALIGN);
        let layout = Layout::new(longest);
        let mut driver = Self {
            receive: Queue::new(&mut memory, layout, WRITE),
            transmit: Queue::new(&mut memory, layout, 0),
            free: core::array::from_fn(|index| index as u16),
            free_count: layout.size,
            lent: None,
        };
        driver.receive.set_up(platform, RECEIVEQ)?;
        driver.transmit.set_up(platform, TRANSMITQ)?;
        for id in 0..layout.size {
            driver.receive.give(id as u16);
        }
        advance(platform, DRIVER_OK);
        Ok(driver)
    }

    /// Takes back the transmit descriptors that the device has used.
    fn reclaim(&mut self) {
        while let Some((id, _)) = self.transmit.take() {
            assert!(self.free_count < self.transmit.layout.size, "the device used a descriptor twice");
            self.free[self.free_count] = id;
            self.free_count += 1;
        }
    }
}

impl Driver for VirtioNetDriver {
    fn can_transmit(&mut self, registers: &mut impl Registers) -> bool {
        if self.free_count == 0 {
            self.reclaim();
        }
        if self.free_count == 0 {
            registers.write_register(register::QUEUE_NOTIFY, 4, TRANSMITQ);
            self.reclaim();
        }
        self.free_count > 0
    }

    fn transmit<R>(&mut self, _: &mut impl Registers, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(self.free_count > 0, "no transmit descriptor is free");
        self.free_count -= 1;
        let id = self.free[self.free_count];
        let mut frame = self.transmit.frame(id, length);
        // SAFETY: the descriptor is free, so the device doesn't use its buffer; no other reference to it exists.
        let result = fill(unsafe { frame.as_mut() });
        self.transmit.table.write32(usize::from(id) * DESCRIPTOR + 8, (HEADER + length) as u32);
        self.transmit.give(id);
        result
    }

    fn receive(&mut self) -> Option<NonNull<[u8]>> {
        self.release();
        let (id, length) = self.receive.take()?;
        self.lent = Some(id);
        Some(self.receive.frame(id, length.saturating_sub(HEADER)))
    }

    fn release(&mut self) {
        if let Some(id) = self.lent.take() {
            self.receive.give(id);
        }
    }

    // Polled: interrupts are suppressed.
    fn interrupted(&mut self, _: u32) {}
}
