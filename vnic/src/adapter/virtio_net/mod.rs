//! virtio-net: the network device of virtio 1.2 (OASIS, 5.1) over MMIO (4.2), one pair of split queues.
//!
//! ```text
//!  driver                       shared memory                      device
//!  fill, publish ------------> transmitq (split ring) --writev---> port
//!  take, give buffers back <-- receiveq  (split ring) <--readv---- port
//!  QueueNotify, or the guest waits: one exit moves all that the rings hold
//! ```
//!
//! Frames go straight between guest memory and the port. Offered: VIRTIO_F_VERSION_1, VIRTIO_NET_F_MAC,
//! VIRTIO_NET_F_MTU, and what [`VirtioNetSwitches`] say. Checksums and segmentation are the host kernel's work: a
//! frame crosses the port with its header, and the port has to be one with headers. With `segment_combining` the device
//! joins what a guest sends for that kernel, and cuts up what comes from it. A malformed ring or header fails
//! the guest, and the device asks for a reset (2.1.2, DEVICE_NEEDS_RESET).

mod chain;
mod features;
mod header;
mod mmio;
mod notify;
mod receive;
#[cfg(test)]
mod tests;
mod train;
mod transmit;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use toll_protocol::report::FrameCounters;
use toll_protocol::trial::VirtioNetSwitches;
use toll_protocol::units::MacAddress;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_QUEUE_NOTIFY};
use virtio_queue::{Queue, QueueT};

use crate::GuestMemory;
use crate::adapter::{Adapter, AdapterError, Window};
use crate::port::splitting::Splitting;
use crate::port::{Framing, Port, PortError};
use features::Features;
use mmio::{Mmio, Order, RECEIVE, TRANSMIT};

/// Bytes of the MMIO window.
const WINDOW: u64 = 0x200;
/// Ethernet header: what a frame has at least.
const MINIMUM_FRAME: usize = 14;
/// What a frame has beside its MTU of IP packet: an Ethernet header and an IEEE 802.1Q tag.
const FRAMING: usize = 18;
/// Longest frame of a TCP segment that is to be cut up: the 65535 bytes that Linux puts into one with its Ethernet
/// header.
const LONGEST_SEGMENT: usize = 65_535;
/// Longest that a port may give us: an IP packet of 65535 bytes (5.1.6.3.1) and the rest of a frame.
const LONGEST_RECEIVED: usize = 65_535 + FRAMING;

/// Buffers of a queue at most: a power of two.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// The device.
#[derive(Debug)]
pub struct VirtioNet {
    mmio: Mmio,
    bus: Bus,
    /// Somebody looks at the rings without being notified.
    watched: bool,
}

/// What the device is connected to, apart from the registers so that queues and frames can be borrowed at once.
struct Bus {
    memory: GuestMemory,
    port: Box<dyn Port>,
    counters: FrameCounters,
    port_time: Duration,
    /// Longest frame that is sent, in bytes.
    longest: usize,
    /// What the driver took.
    features: Features,
    /// Where the end of a frame goes that is longer than the guest's buffers.
    overflow: Box<[u8]>,
    /// A frame as the port gave it that waits for more mergeable buffers; empty if there is none.
    waiting: Vec<u8>,
    /// Whether segments that follow each other leave as one.
    combines: bool,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("counters", &self.counters).finish_non_exhaustive()
    }
}

fn bad(what: &'static str, detail: String) -> AdapterError {
    AdapterError::Guest { adapter: "virtio-net", what, detail }
}

impl VirtioNet {
    /// A device after reset that offers what `switches` say. `mtu` is in bytes of IP packet; the driver learns it
    /// (VIRTIO_NET_F_MTU) and a frame over it that is not to be segmented fails the guest.
    ///
    /// # Errors
    /// [`PortError::NoHeaders`] if offloads are on and the port has no headers; [`AdapterError::Guest`] if
    /// [`MAX_QUEUE_SIZE`] were no power of two (2.7).
    pub fn new(
        memory: GuestMemory,
        port: Box<dyn Port>,
        mac: MacAddress,
        mtu: u16,
        switches: VirtioNetSwitches,
    ) -> Result<Self, AdapterError> {
        if switches.offloads() && port.framing() != Framing::VirtioNetHeader {
            return Err(PortError::NoHeaders.into());
        }
        let port = if switches.segment_combining { Box::new(Splitting::new(port)) } else { port };
        let queue = || Queue::new(MAX_QUEUE_SIZE).map_err(|error| bad("queue size", error.to_string()));
        let bus = Bus {
            memory,
            port,
            counters: FrameCounters::default(),
            port_time: Duration::ZERO,
            longest: usize::from(mtu) + FRAMING,
            features: Features::default(),
            overflow: vec![0; LONGEST_RECEIVED].into_boxed_slice(),
            waiting: Vec::new(),
            combines: switches.segment_combining,
        };
        let offered = Features::offered(switches);
        Ok(Self { mmio: Mmio::new([queue()?, queue()?], mac, mtu, offered), bus, watched: false })
    }

    /// DRIVER_OK: from now on the queues are used, so they have to be whole.
    fn activate(&mut self) -> Result<(), AdapterError> {
        for (queue, name) in self.mmio.queues.iter_mut().zip(["receive queue", "transmit queue"]) {
            if !queue.is_valid(&self.bus.memory) {
                return Err(bad(
                    name,
                    "it is not ready, or part of it is outside of guest memory".to_owned(),
                ));
            }
        }
        let features = self.mmio.driver_features();
        for queue in &mut self.mmio.queues {
            queue.set_event_idx(features.event_index());
            if self.watched {
                notify::want(queue, &self.bus.memory, false)?;
            }
        }
        self.bus.features = features;
        self.bus.waiting.clear();
        self.bus.port.set_offloads(features.receive_offloads())?;
        Ok(())
    }

    fn transmit(&mut self) -> Result<usize, AdapterError> {
        let queue = &mut self.mmio.queues[TRANSMIT];
        let before = queue.next_used();
        let mut sent = self.bus.transmit(queue)?;
        let asks = self.bus.features.event_index() && !self.watched;
        if asks && notify::ask_for_next(queue, &self.bus.memory)? {
            sent += self.bus.transmit(queue)?;
        }
        self.used(TRANSMIT, before);
        Ok(sent)
    }

    fn receive(&mut self) -> Result<usize, AdapterError> {
        let queue = &mut self.mmio.queues[RECEIVE];
        let before = queue.next_used();
        let mut received = self.bus.receive(queue)?;
        // Of new receive buffers the device needs to hear only when it has none.
        let asks = self.bus.features.event_index() && !self.watched;
        let starved = asks && !notify::has_available(queue, &self.bus.memory);
        if starved && notify::ask_for_next(queue, &self.bus.memory)? {
            received += self.bus.receive(queue)?;
        }
        self.used(RECEIVE, before);
        Ok(received)
    }

    /// Used buffer notification, unless there is nothing new since the used index was `before`, or the driver
    /// suppressed it.
    fn used(&mut self, index: usize, before: u16) {
        let Self { mmio, bus, .. } = self;
        let event_index = bus.features.event_index();
        let wanted = notify::wants_interrupt(&mmio.queues[index], &bus.memory, event_index, before);
        if wanted && mmio.raise() {
            bus.counters.interrupts += 1;
        }
    }

    /// Counts a fault of the guest; the device then needs a reset.
    fn concluded<T>(&mut self, result: Result<T, AdapterError>) -> Result<T, AdapterError> {
        if let Err(AdapterError::Guest { .. }) = &result {
            self.bus.counters.guest_errors += 1;
            self.mmio.fail();
        }
        result
    }
}

impl Adapter for VirtioNet {
    fn window(&self) -> Window {
        Window::Mmio(WINDOW)
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AdapterError> {
        let config = u64::from(VIRTIO_MMIO_CONFIG);
        let known = if offset >= config {
            self.mmio.read_config((offset - config) as usize, data)
        } else {
            // Registers are 32 bits wide (4.2.2.2).
            let value = u32::try_from(offset).ok().and_then(|offset| self.mmio.read(offset));
            match (value, <&mut [u8; 4]>::try_from(&mut *data)) {
                (Some(value), Ok(bytes)) => {
                    *bytes = value.to_le_bytes();
                    true
                }
                _ => {
                    data.fill(0);
                    false
                }
            }
        };
        if !known {
            self.bus.counters.guest_errors += 1;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AdapterError> {
        let order = match (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            (Ok(offset), Ok(bytes)) => self.mmio.write(offset, u32::from_le_bytes(bytes)),
            _ => Order::Malformed,
        };
        let result = match order {
            Order::None => Ok(()),
            Order::Activate => self.activate(),
            Order::Notify(TRANSMIT) => self.transmit().map(|_| ()),
            Order::Notify(_) => self.receive().map(|_| ()),
            Order::Malformed => {
                self.bus.counters.guest_errors += 1;
                Ok(())
            }
        };
        self.concluded(result)
    }

    fn service(&mut self) -> Result<bool, AdapterError> {
        if !self.mmio.live() {
            return Ok(false);
        }
        let result = self.transmit().and_then(|_| self.receive());
        // Frames sent need no look: a guest that has more to send asks for no sleep.
        self.concluded(result).map(|received| received > 0 || self.mmio.interrupt())
    }

    fn notify_register(&self) -> Option<u64> {
        Some(VIRTIO_MMIO_QUEUE_NOTIFY.into())
    }

    fn watch(&mut self, watched: bool) -> Result<bool, AdapterError> {
        self.watched = watched;
        if !self.mmio.live() {
            return Ok(false);
        }
        let Self { mmio, bus, .. } = self;
        let mut more = false;
        for (index, queue) in mmio.queues.iter_mut().enumerate() {
            // Of receive buffers the device needs to hear only when it has none.
            let wanted = !watched && (index == TRANSMIT || !notify::has_available(queue, &bus.memory));
            more |= notify::want(queue, &bus.memory, wanted)?;
        }
        Ok(more)
    }

    fn can_receive(&self) -> bool {
        self.mmio.live() && notify::has_available(&self.mmio.queues[RECEIVE], &self.bus.memory)
    }

    fn interrupt(&self) -> bool {
        self.mmio.interrupt()
    }

    fn counters(&self) -> FrameCounters {
        self.bus.counters
    }

    fn register_name(&self, offset: u64) -> &'static str {
        mmio::register_name(offset)
    }

    fn port_fd(&self) -> Option<BorrowedFd<'_>> {
        self.bus.port.fd()
    }

    fn port_nanoseconds(&self) -> u64 {
        u64::try_from(self.bus.port_time.as_nanos()).unwrap_or(u64::MAX)
    }
}
