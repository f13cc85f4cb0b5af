//! virtio-net driver: virtio 1.2 over MMIO, split rings, polled.
//!
//! ```text
//!  frame sent, buffer given back:  descriptor, available ring, index; QueueNotify if the device wants it (2.7.10)
//!  ring full:                      QueueNotify                 1 access
//!  nothing to do:                  the WAIT doorbell flushes, fills and sleeps
//! ```
//! A device that is served by the WAIT doorbell wants no notification. One with a thread of its own moves frames while the
//! program runs, and wants to be notified when it has gone to sleep; with its ring full the driver asks for an interrupt,
//! which ends a wait.
//!
//! The device is told not to interrupt (2.7.7): it looks at both rings when the program waits, and the program looks
//! at the used rings when it runs. One descriptor is one frame, the header of 12 bytes before it; with mergeable
//! buffers a received frame may lie in several.
//!
//! Offloads: the checksum of a TCP segment is left to the device, and a segment of up to 64 KiB is cut up there. A
//! received one comes as large, into a buffer of that size or several mergeable ones. These are given back in the
//! order in which they came, so they stay neighbours and the frame is read in place; only where the ring wraps it is
//! copied together.
//!
//! Of several queue pairs the program, which has one flow and one CPU, sends by the last, so that the flow's frames come
//! back there (automatic receive steering, 5.1.6.5.6), and looks at the receive queues of all.

mod control;
mod header;
mod initialization;
mod queue;
#[cfg(test)]
mod tests;

use core::num::{NonZeroU16, NonZeroUsize};
use core::ptr::NonNull;

use toll_guest_abi::virtio_net as switches;

use super::{Driver, DriverError, ETHERNET_HEADER, Offloads};
use crate::dma::Dma;
use crate::platform::{Platform, Registers};
use initialization::{Progress, find, negotiate};
pub(crate) use queue::MAX_QUEUE_SIZE;
use queue::{ALIGN, Layout, Queue};

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
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC: u64 = 0x080;
    pub(super) const QUEUE_DRIVER: u64 = 0x090;
    pub(super) const QUEUE_DEVICE: u64 = 0x0a0;
    /// `struct virtio_net_config` (5.1.4): `mac`, `max_virtqueue_pairs` and `mtu`.
    pub(super) const MAC: u64 = 0x100;
    pub(super) const MAX_VIRTQUEUE_PAIRS: u64 = 0x108;
    pub(super) const MTU: u64 = 0x10a;
}

/// Device status (2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const FAILED: u32 = 128;

/// VIRTIO_F_VERSION_1 (6), in the high half of the features.
const VERSION_1: u32 = 1 << 0;
/// VIRTIO_NET_F_MTU and VIRTIO_NET_F_MAC (5.1.3), in the low half.
const MTU: u32 = 1 << 3;
const MAC: u32 = 1 << 5;
/// VIRTIO_NET_F_CSUM and VIRTIO_NET_F_GUEST_CSUM.
const CHECKSUMS: u32 = 1 << 0 | 1 << 1;
/// VIRTIO_NET_F_GUEST_TSO4 and VIRTIO_NET_F_HOST_TSO4: the stack speaks IPv4.
const TSO: u32 = 1 << 7 | 1 << 11;
/// VIRTIO_NET_F_MRG_RXBUF.
const MERGEABLE: u32 = 1 << 15;
/// VIRTIO_NET_F_CTRL_VQ and VIRTIO_NET_F_CTRL_RX.
const CONTROL: u32 = 1 << 17 | 1 << 18;
/// VIRTIO_NET_F_MQ.
const MULTIQUEUE: u32 = 1 << 22;
/// VIRTIO_F_EVENT_IDX.
const EVENT_INDEX: u32 = 1 << 29;

/// Queue pairs at most.
pub(crate) const MAX_PAIRS: usize = 8;
/// `struct virtio_net_hdr` (5.1.6).
const HEADER: usize = 12;
/// Where `num_buffers` stands in it.
const NUM_BUFFERS: usize = 10;
/// VIRTQ_DESC_F_WRITE (2.7.5).
const WRITE: u16 = 2;

/// Memory for a queue's buffers, which bounds its size where frames are longer.
const BUFFERS: usize = 800 << 10;
/// The same where they hold segments of 64 KiB: 32 of them. A sender waits, which is an exit, when they are full; with twice
/// as many it waits half as often, and its throughput falls by a fifth, as what one side wrote has left the other's cache.
const LARGE_BUFFERS: usize = 32 * LARGE_BUFFER.next_multiple_of(ALIGN);
/// Room for any segment that the device may give (5.1.6.3.1).
const LARGE_BUFFER: usize = 65_562;
/// A mergeable buffer: of a size that holds a frame of Ethernet's MTU, and with segmentation a page.
const MERGEABLE_BUFFER: usize = 2048;
const MERGEABLE_PAGE: usize = 4096;
/// Mergeable buffers of one frame at most.
const MOST_MERGED: usize = LARGE_BUFFER.div_ceil(MERGEABLE_PAGE);
/// A segment and its headers are shorter than this in Linux.
const SEGMENT_LIMIT: usize = 65_535;
/// IPv4 and TCP headers, with the timestamps option.
const IP_AND_TCP: usize = 20 + 20 + 12;

/// A transmit queue that has to be there and that nothing is sent by.
const UNUSED: Layout = Layout { size: 1, stride: ALIGN };

/// What a driver is to drive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    /// MTU in bytes of IP packet.
    pub(crate) mtu: usize,
    /// The address that the program speaks from.
    pub(crate) mac: [u8; 6],
    /// Bits of [`toll_guest_abi::virtio_net`].
    pub(crate) switches: u64,
    /// Whether the payload is sent: only then are long segments.
    pub(crate) sends: bool,
    /// Queue pairs, 1 to [`MAX_PAIRS`]; more than one need [`switches::CONTROL_QUEUE`].
    pub(crate) pairs: usize,
}

impl Setup {
    const fn has(self, switch: u64) -> bool {
        self.switches & switch != 0
    }

    /// Longest segment that is left to the device to cut up, in bytes of frame: whole segments, since one that is cut
    /// off in the middle costs a short one each time.
    fn segment(self) -> Option<NonZeroUsize> {
        let (headers, each) = (ETHERNET_HEADER + IP_AND_TCP, self.mtu - IP_AND_TCP);
        let longest = headers + (SEGMENT_LIMIT - headers) / each * each;
        NonZeroUsize::new(longest).filter(|_| self.sends && self.has(switches::TSO))
    }

    fn transmit(self) -> Layout {
        match self.segment() {
            Some(longest) => Layout::new(HEADER + longest.get(), LARGE_BUFFERS),
            None => Layout::new(HEADER + ETHERNET_HEADER + self.mtu, BUFFERS),
        }
    }

    fn receive(self) -> Layout {
        match (self.has(switches::MERGEABLE_BUFFERS), self.has(switches::TSO)) {
            (true, true) => Layout::new(MERGEABLE_PAGE, LARGE_BUFFERS),
            (true, false) => Layout::new(MERGEABLE_BUFFER, LARGE_BUFFERS),
            (false, true) => Layout::new(LARGE_BUFFER, LARGE_BUFFERS),
            (false, false) => Layout::new(HEADER + ETHERNET_HEADER + self.mtu, BUFFERS),
        }
    }

    /// Index of the transmit queue that is used: the last one.
    const fn transmitq(self) -> u32 {
        2 * self.pairs as u32 - 1
    }

    /// Where a frame is copied together.
    fn copied(self) -> usize {
        if self.has(switches::MERGEABLE_BUFFERS) { LARGE_BUFFER.next_multiple_of(ALIGN) } else { 0 }
    }

    /// Bytes of DMA memory that [`VirtioNetDriver::open`] takes.
    pub(crate) fn memory(self) -> usize {
        let unused = (self.pairs - 1) * UNUSED.memory();
        let control = if self.has(switches::CONTROL_QUEUE) { control::LAYOUT.memory() } else { 0 };
        self.pairs * self.receive().memory() + self.transmit().memory() + unused + control + self.copied()
    }

    fn features(self) -> u32 {
        let bits = [
            (switches::CHECKSUM_OFFLOAD, CHECKSUMS),
            (switches::TSO, TSO),
            (switches::MERGEABLE_BUFFERS, MERGEABLE),
            (switches::EVENT_INDEX, EVENT_INDEX),
            (switches::CONTROL_QUEUE, CONTROL),
        ];
        let several = if self.pairs > 1 { MULTIQUEUE } else { 0 };
        bits.into_iter().filter(|(switch, _)| self.has(*switch)).fold(several, |bits, (_, bit)| bits | bit)
    }
}

/// The driver's queues.
#[derive(Debug)]
pub(crate) struct VirtioNetDriver {
    setup: Setup,
    /// Those of as many pairs as there are.
    receives: [Option<Queue>; MAX_PAIRS],
    /// Which of them frames were taken from last.
    current: usize,
    transmit: Queue,
    /// Transmit descriptors that are the driver's.
    free: [u16; MAX_QUEUE_SIZE],
    free_count: usize,
    /// The receive descriptors of the current queue whose frame is lent, in their order.
    lent: [u16; MOST_MERGED],
    lent_count: usize,
    /// Whether the lent frame's checksum needs no look.
    vouched: bool,
    /// Where a frame is copied together.
    copied: Dma,
    /// Payload of each segment that the next frame is to be cut into.
    segment: Option<NonZeroU16>,
    /// An interrupt was asked for.
    asked: bool,
}

impl VirtioNetDriver {
    /// Finds the device and brings it up (3.1.1).
    pub(crate) fn open(platform: &mut impl Platform, setup: Setup) -> Result<Self, DriverError> {
        find(platform)?;
        let mut progress = Progress(0);
        let driver = Self::bring_up(platform, &mut progress, setup);
        if driver.is_err() {
            // It has given up on the device (2.2.1).
            progress.reach(platform, FAILED);
        }
        driver
    }

    fn bring_up(
        platform: &mut impl Platform,
        progress: &mut Progress,
        setup: Setup,
    ) -> Result<Self, DriverError> {
        for bit in [0, ACKNOWLEDGE, DRIVER] {
            progress.reach(platform, bit);
        }
        negotiate(platform, setup)?;
        progress.reach(platform, FEATURES_OK);
        if platform.read_register(register::STATUS, 4) & FEATURES_OK == 0 {
            return Err(DriverError::Unsupported { what: "these features together" });
        }

        let most = if setup.pairs > 1 { platform.read_register(register::MAX_VIRTQUEUE_PAIRS, 2) } else { 1 };
        if (most as usize) < setup.pairs {
            return Err(DriverError::Unexpected { register: "max_virtqueue_pairs", found: most });
        }

        let mut memory = Dma::allocate(platform, setup.memory(), ALIGN);
        let (receive, transmit) = (setup.receive(), setup.transmit());
        let event_index = setup.has(switches::EVENT_INDEX);
        let mut receives = [const { None }; MAX_PAIRS];
        for (pair, queue) in receives.iter_mut().enumerate().take(setup.pairs) {
            let queue = queue.insert(Queue::new(&mut memory, receive, WRITE, event_index));
            queue.set_up(platform, 2 * pair as u32)?;
            (0..receive.size).for_each(|id| queue.give(id as u16));
            if pair + 1 < setup.pairs {
                Queue::new(&mut memory, UNUSED, 0, event_index).set_up(platform, 2 * pair as u32 + 1)?;
            }
        }
        let mut driver = Self {
            setup,
            receives,
            current: 0,
            transmit: Queue::new(&mut memory, transmit, 0, event_index),
            free: core::array::from_fn(|index| index as u16),
            free_count: transmit.size,
            lent: [0; MOST_MERGED],
            lent_count: 0,
            vouched: false,
            copied: memory.split(setup.copied()),
            segment: None,
            asked: false,
        };
        driver.transmit.set_up(platform, setup.transmitq())?;
        let mut control = None;
        if setup.has(switches::CONTROL_QUEUE) {
            let index = 2 * most;
            control = Some(control::Control::new(&mut memory, event_index, index).set_up(platform)?);
        }
        progress.reach(platform, DRIVER_OK);
        for pair in 0..setup.pairs {
            driver.current = pair;
            driver.notify_receive(platform);
        }
        driver.current = 0;
        if let Some(control) = &mut control {
            control.receive_own(platform)?;
            if setup.pairs > 1 {
                control.use_pairs(platform, setup.pairs as u16)?;
            }
        }
        Ok(driver)
    }

    fn current(&mut self) -> &mut Queue {
        self.receives[self.current].as_mut().unwrap_or_else(|| unreachable!("no such pair"))
    }

    /// The next frame's first buffer, of the current pair as long as it has any, and then of the next.
    fn take(&mut self) -> Option<(u16, usize)> {
        for _ in 0..self.setup.pairs {
            let taken = self.current().take();
            if taken.is_some() {
                return taken;
            }
            self.current = (self.current + 1) % self.setup.pairs;
        }
        None
    }

    /// Takes back the transmit descriptors that the device has used.
    fn reclaim(&mut self) {
        while let Some((id, _)) = self.transmit.take() {
            assert!(self.free_count < self.transmit.layout.size, "the device used a descriptor twice");
            self.free[self.free_count] = id;
            self.free_count += 1;
        }
    }

    /// Asks for an interrupt while the ring is full, and takes it back when it is no longer.
    fn ask(&mut self, registers: &mut impl Registers) {
        if self.free_count == 0 && !self.asked {
            self.transmit.ask_for_interrupt();
            self.asked = true;
            // What was used before the device could see it.
            self.reclaim();
        }
        if self.free_count > 0 && self.asked {
            self.transmit.suppress_interrupts();
            self.asked = false;
            registers.write_register(register::INTERRUPT_ACK, 4, 1);
        }
    }

    /// Tells the device of the current pair's buffers, if it wants to hear of them.
    fn notify_receive(&mut self, registers: &mut impl Registers) {
        if self.current().notification_wanted() {
            registers.write_register(register::QUEUE_NOTIFY, 4, 2 * self.current as u32);
        }
    }

    fn lend(&mut self, id: u16) {
        assert!(self.lent_count < MOST_MERGED, "a frame of more buffers than the longest has");
        self.lent[self.lent_count] = id;
        self.lent_count += 1;
    }

    /// The rest of a frame whose first `length` bytes, header included, are in descriptor `first` and which has `count`
    /// buffers (5.1.6.4).
    fn merge(&mut self, first: u16, length: usize, count: u16) -> NonNull<[u8]> {
        let stride = self.current().layout.stride;
        let mut total = length;
        // While the frame's buffers are neighbours, each full, nothing is copied.
        let (mut copied, mut end) = (false, usize::from(first) * stride + length);
        for _ in 1..count {
            // The device shows all buffers of a frame at once (2.7.8).
            let (id, length) = self.current().take().unwrap_or_else(|| unreachable!("a frame in part"));
            let start = usize::from(id) * stride;
            self.lend(id);
            if !copied && start != end {
                let buffers = self.current().buffers;
                self.copied.copy(0, &buffers, end - total, total);
                copied = true;
            }
            if copied {
                let buffers = self.current().buffers;
                self.copied.copy(total, &buffers, start, length);
            }
            total += length;
            end = start + length;
        }
        if copied {
            self.copied.bytes(HEADER, total.saturating_sub(HEADER))
        } else {
            self.current().frame(first, total.saturating_sub(HEADER))
        }
    }
}

impl Driver for VirtioNetDriver {
    fn can_transmit(&mut self, registers: &mut impl Registers) -> bool {
        if self.free_count == 0 {
            self.reclaim();
        }
        if self.setup.has(switches::IO_THREAD) {
            self.ask(registers);
        } else if self.free_count == 0 {
            // The device looks at its rings by and by; now is when there is nothing else to do. It may be told of what it
            // did not want to hear of.
            registers.write_register(register::QUEUE_NOTIFY, 4, self.setup.transmitq());
            self.reclaim();
        }
        self.free_count > 0
    }

    fn transmit<R>(
        &mut self,
        registers: &mut impl Registers,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        assert!(self.free_count > 0, "no transmit descriptor is free");
        assert!(HEADER + length <= self.transmit.layout.stride, "a frame over its buffer");
        self.free_count -= 1;
        let id = self.free[self.free_count];
        let mut frame = self.transmit.frame(id, length);
        // SAFETY: the descriptor is free, so the device doesn't use its buffer; no other reference to it exists.
        let frame = unsafe { frame.as_mut() };
        let result = fill(frame);
        if self.setup.has(switches::CHECKSUM_OFFLOAD) {
            let words = header::leave_to_device(frame, self.segment.take());
            let start = usize::from(id) * self.transmit.layout.stride;
            for (index, word) in words.into_iter().enumerate() {
                self.transmit.buffers.write32(start + 4 * index, word);
            }
        }
        self.transmit.set_length(id, HEADER + length);
        self.transmit.give(id);
        if self.transmit.notification_wanted() {
            registers.write_register(register::QUEUE_NOTIFY, 4, self.setup.transmitq());
        }
        result
    }

    fn receive(&mut self, registers: &mut impl Registers) -> Option<NonNull<[u8]>> {
        self.release(registers);
        let (id, length) = self.take()?;
        self.lend(id);
        let queue = self.current();
        let start = usize::from(id) * queue.layout.stride;
        let (buffers, frame) = (queue.buffers, queue.frame(id, length.saturating_sub(HEADER)));
        self.vouched = header::vouched(buffers.read32(start));
        if self.setup.has(switches::MERGEABLE_BUFFERS) {
            let count = buffers.acquire16(start + NUM_BUFFERS);
            return Some(self.merge(id, length, count));
        }
        Some(frame)
    }

    fn release(&mut self, registers: &mut impl Registers) {
        if self.lent_count == 0 {
            return;
        }
        for index in 0..core::mem::take(&mut self.lent_count) {
            let id = self.lent[index];
            self.current().give(id);
        }
        self.notify_receive(registers);
    }

    // Polled: interrupts are suppressed.
    fn interrupted(&mut self, _: u32) {}

    fn offloads(&self) -> Offloads {
        Offloads { checksum: self.setup.has(switches::CHECKSUM_OFFLOAD), segment: self.setup.segment() }
    }

    fn segment_next(&mut self, size: NonZeroU16) {
        self.segment = Some(size);
    }

    fn vouched(&self) -> bool {
        self.vouched
    }
}
