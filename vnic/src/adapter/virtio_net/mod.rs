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
//! VIRTIO_NET_F_MTU; no offload, so every header is zero. A malformed ring fails the guest, and the device asks
//! for a reset (2.1.2, DEVICE_NEEDS_RESET).

mod mmio;
mod queues;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use toll_protocol::report::FrameCounters;
use toll_protocol::units::MacAddress;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;
use virtio_queue::{Queue, QueueT};

use crate::GuestMemory;
use crate::adapter::{Adapter, AdapterError, Window};
use crate::port::Port;
use mmio::{Mmio, Order, RECEIVE, TRANSMIT};

/// Bytes of the MMIO window.
const WINDOW: u64 = 0x200;
/// `struct virtio_net_hdr` with VIRTIO_F_VERSION_1 (5.1.6).
const HEADER: usize = 12;
/// Ethernet header: what a frame has at least.
const MINIMUM_FRAME: usize = 14;
/// What a frame has beside its MTU of IP packet: an Ethernet header and an IEEE 802.1Q tag.
const FRAMING: usize = 18;

/// Buffers of a queue at most: a power of two.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// The device.
#[derive(Debug)]
pub struct VirtioNet {
    mmio: Mmio,
    bus: Bus,
}

/// What the device is connected to, apart from the registers so that queues and frames can be borrowed at once.
struct Bus {
    memory: GuestMemory,
    port: Box<dyn Port>,
    counters: FrameCounters,
    port_time: Duration,
    /// Longest frame that is sent, in bytes.
    longest: usize,
    /// Where the end of a frame goes that is longer than the guest's buffers.
    overflow: Box<[u8; 2048]>,
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
    /// A device after reset. `mtu` is in bytes of IP packet; the driver learns it (VIRTIO_NET_F_MTU) and a frame
    /// over it fails the guest.
    ///
    /// # Errors
    /// [`AdapterError::Guest`] if [`MAX_QUEUE_SIZE`] were no power of two (2.7).
    pub fn new(
        memory: GuestMemory,
        port: Box<dyn Port>,
        mac: MacAddress,
        mtu: u16,
    ) -> Result<Self, AdapterError> {
        let queue = || Queue::new(MAX_QUEUE_SIZE).map_err(|error| bad("queue size", error.to_string()));
        let bus = Bus {
            memory,
            port,
            counters: FrameCounters::default(),
            port_time: Duration::ZERO,
            longest: usize::from(mtu) + FRAMING,
            overflow: Box::new([0; 2048]),
        };
        Ok(Self { mmio: Mmio::new([queue()?, queue()?], mac, mtu), bus })
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
        Ok(())
    }

    fn transmit(&mut self) -> Result<usize, AdapterError> {
        let queue = &mut self.mmio.queues[TRANSMIT];
        let used = self.bus.transmit(queue)?;
        self.used(TRANSMIT, used);
        Ok(used)
    }

    fn receive(&mut self) -> Result<usize, AdapterError> {
        let queue = &mut self.mmio.queues[RECEIVE];
        let received = self.bus.receive(queue)?;
        self.used(RECEIVE, received);
        Ok(received)
    }

    /// Used buffer notification for `count` chains, unless the driver suppressed it.
    fn used(&mut self, index: usize, count: usize) {
        let wanted = count > 0 && queues::wants_interrupt(&self.mmio.queues[index], &self.bus.memory);
        if wanted && self.mmio.raise() {
            self.bus.counters.interrupts += 1;
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

    fn can_receive(&self) -> bool {
        self.mmio.live() && queues::has_available(&self.mmio.queues[RECEIVE], &self.bus.memory)
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
