//! The virtio-mmio register block: virtio 1.2, 4.2.2 (MMIO Device Register Layout), version 2.
//!
//! ```text
//!                      Status <- ACKNOWLEDGE, DRIVER          features, FEATURES_OK            queues, DRIVER_OK
//!  RESET (Status 0) ------------------------------> NEGOTIATING --------------> CONFIGURING ------------------> LIVE
//!    ^                                                                                                   |
//!    +-------------------------------- Status <- 0 ------------------------------------------------------+
//! ```
//! A register file and the negotiation; what a write makes the device do is the answer.

use toll_protocol::units::MacAddress;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_SHM_SEL, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_queue::{Queue, QueueT};

use super::features::Features;

/// What a queue is (5.1.2): receiveq and transmitq of pair 1, of pair 2, ..., controlq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The receiveq of a pair; the first has index 0.
    Receive(usize),
    /// The transmitq of a pair.
    Transmit(usize),
    /// The controlq.
    Control,
}

/// Index of the receiveq of a pair.
pub(super) const fn receive_queue(pair: usize) -> usize {
    2 * pair
}

/// Index of the transmitq of a pair.
pub(super) const fn transmit_queue(pair: usize) -> usize {
    2 * pair + 1
}

/// "virt" in little-endian order.
const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout.
const LAYOUT_VERSION: u32 = 2;
/// "TOLL".
const VENDOR: u32 = u32::from_le_bytes(*b"TOLL");

/// What the device has to do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing.
    None,
    /// The driver has reset the device.
    Reset,
    /// The driver is ready: check the queues.
    Activate,
    /// The driver has made buffers of a queue available.
    Notify(Role),
    /// The driver uses the queue of this index no longer.
    Stop(usize),
    /// The access has no meaning here.
    Malformed,
}

/// Registers, negotiation and queues.
#[derive(Debug)]
pub(super) struct Mmio {
    device_features: Features,
    device_features_select: u32,
    driver_features: Features,
    driver_features_select: u32,
    queue_select: u32,
    interrupt_status: u32,
    status: u32,
    /// Two for each pair and, if it is offered, the controlq. Where the driver hasn't taken several pairs, the controlq
    /// is the third one.
    pub(super) queues: Vec<Queue>,
    /// `struct virtio_net_config` (5.1.4): mac, status, max_virtqueue_pairs, mtu.
    config: [u8; 12],
    /// ConfigGeneration: another one after each change of `config`.
    generation: u32,
}

impl Mmio {
    /// After reset.
    pub(super) fn new(
        queues: Vec<Queue>,
        mac: MacAddress,
        mtu: u16,
        pairs: u16,
        device_features: Features,
    ) -> Self {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac.0);
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..].copy_from_slice(&mtu.to_le_bytes());
        Self {
            device_features,
            device_features_select: 0,
            driver_features: Features::default(),
            driver_features_select: 0,
            queue_select: 0,
            interrupt_status: 0,
            status: 0,
            queues,
            config,
            generation: 0,
        }
    }

    /// Pairs that there are for what the driver has taken (5.1.5).
    fn pairs(&self) -> usize {
        if self.driver_features.multiqueue() { self.queues.len() / 2 } else { 1 }
    }

    /// Index of the controlq, if the driver has taken it.
    pub(super) fn control_queue(&self) -> Option<usize> {
        self.driver_features.control().then(|| 2 * self.pairs())
    }

    /// What the queue of this index is.
    fn role(&self, index: usize) -> Option<Role> {
        if self.control_queue() == Some(index) {
            return Some(Role::Control);
        }
        let pair = index / 2;
        let role = if index == receive_queue(pair) { Role::Receive(pair) } else { Role::Transmit(pair) };
        (pair < self.pairs()).then_some(role)
    }

    /// Whether the driver may set up the queue of this index: any, until what it has taken says how many there are
    /// (5.1.2).
    fn is_available(&self, index: usize) -> bool {
        self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 || self.role(index).is_some()
    }

    /// Changes the device's MAC address (5.1.6.5.2.1), which a driver reads byte by byte (4.2.2.1).
    pub(super) fn set_mac(&mut self, mac: MacAddress) {
        if self.config[..6] != mac.0 {
            self.config[..6].copy_from_slice(&mac.0);
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// What the driver has taken.
    pub(super) const fn driver_features(&self) -> Features {
        self.driver_features
    }

    /// Whether the driver is ready and the device has not failed.
    pub(super) const fn live(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && self.status & VIRTIO_CONFIG_S_NEEDS_RESET == 0
    }

    /// Level of the interrupt line.
    pub(super) const fn interrupt(&self) -> bool {
        self.interrupt_status != 0
    }

    const fn raise(&mut self, event: u32) -> bool {
        let rose = self.interrupt_status == 0;
        self.interrupt_status |= event;
        rose
    }

    /// A used buffer notification (4.2.2.1). Whether the line rose.
    pub(super) const fn notify_used(&mut self) -> bool {
        self.raise(VIRTIO_MMIO_INT_VRING)
    }

    /// The device can't go on until it is reset: a driver that is ready hears of it by a configuration change
    /// notification (2.1.2). Whether the line rose.
    pub(super) const fn fail(&mut self) -> bool {
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    fn reset(&mut self) {
        self.queues.iter_mut().for_each(QueueT::reset);
        self.device_features_select = 0;
        self.driver_features = Features::default();
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.interrupt_status = 0;
        self.status = 0;
    }

    /// The 32-bit half of a feature word that a select register names; there are two.
    const fn half(features: u64, select: u32) -> u32 {
        match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        }
    }

    /// A 32-bit register, `None` if it can't be read.
    pub(super) fn read(&self, offset: u32) -> Option<u32> {
        let index = self.queue_select as usize;
        let queue = self.queues.get(index).filter(|_| self.is_available(index));
        Some(match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => LAYOUT_VERSION,
            VIRTIO_MMIO_DEVICE_ID => VIRTIO_ID_NET,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => Self::half(self.device_features.0, self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(QueueT::ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status,
            VIRTIO_MMIO_STATUS => self.status,
            // No shared memory region: length and address read as -1 (4.2.2).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.generation,
            _ => return None,
        })
    }

    /// Bytes of the configuration space at `offset` from its beginning; whether all are in it.
    pub(super) fn read_config(&self, offset: usize, data: &mut [u8]) -> bool {
        let end = offset.saturating_add(data.len());
        let Some(bytes) = self.config.get(offset..end) else {
            data.fill(0);
            return false;
        };
        data.copy_from_slice(bytes);
        true
    }

    /// Writes a 32-bit register.
    pub(super) fn write(&mut self, offset: u32, value: u32) -> Order {
        let configuring = self.status & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK)
            == VIRTIO_CONFIG_S_FEATURES_OK;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            // There is none to select.
            VIRTIO_MMIO_SHM_SEL => {}
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt_status &= !value,
            VIRTIO_MMIO_STATUS => return self.write_status(value),
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                let role = self.role(value as usize).filter(|_| self.live());
                return role.map_or(Order::Malformed, Order::Notify);
            }
            VIRTIO_MMIO_DRIVER_FEATURES if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 => {
                let (value, features) = (u64::from(value), &mut self.driver_features.0);
                match self.driver_features_select {
                    0 => *features = *features & !0xffff_ffff | value,
                    1 => *features = *features & 0xffff_ffff | value << 32,
                    _ if value == 0 => {}
                    _ => return Order::Malformed,
                }
            }
            // A driver may stop a queue whenever it likes (4.2.2.2).
            VIRTIO_MMIO_QUEUE_READY if value == 0 => return self.stop_queue(),
            // Queues are set up between FEATURES_OK and DRIVER_OK (3.1.1).
            VIRTIO_MMIO_QUEUE_NUM..=VIRTIO_MMIO_QUEUE_READY
            | VIRTIO_MMIO_QUEUE_DESC_LOW..=VIRTIO_MMIO_QUEUE_USED_HIGH
                if configuring =>
            {
                return self.write_queue(offset, value);
            }
            _ => return Order::Malformed,
        }
        Order::None
    }

    fn stop_queue(&mut self) -> Order {
        let index = self.queue_select as usize;
        let Some(queue) = self.queues.get_mut(index) else { return Order::Malformed };
        queue.set_ready(false);
        Order::Stop(index)
    }

    fn write_queue(&mut self, offset: u32, value: u32) -> Order {
        let index = self.queue_select as usize;
        let available = self.is_available(index);
        let Some(queue) = self.queues.get_mut(index).filter(|_| available) else { return Order::Malformed };
        if offset == VIRTIO_MMIO_QUEUE_READY {
            queue.set_ready(value == 1);
            return Order::None;
        }
        // A queue that is ready is not changed (4.2.2.2).
        if queue.ready() {
            return Order::Malformed;
        }
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => match u16::try_from(value) {
                Ok(size) if size.is_power_of_two() && size <= queue.max_size() => queue.set_size(size),
                _ => return Order::Malformed,
            },
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => return Order::Malformed,
        }
        Order::None
    }

    fn write_status(&mut self, value: u32) -> Order {
        if value == 0 {
            self.reset();
            return Order::Reset;
        }
        let mut status = value & 0xff | self.status & VIRTIO_CONFIG_S_NEEDS_RESET;
        // The device takes FEATURES_OK only with a subset of its features that makes sense (2.2.2).
        if !self.device_features.accept(self.driver_features) {
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        // A driver that skips FEATURES_OK doesn't get a device.
        if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            status &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        let activated = status & !self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        self.status = status;
        if activated { Order::Activate } else { Order::None }
    }
}

/// Name of the register at `offset`, as in Table 4.1 of the specification.
pub(super) const fn register_name(offset: u64) -> &'static str {
    if offset >= VIRTIO_MMIO_CONFIG as u64 {
        return "config";
    }
    match offset as u32 {
        VIRTIO_MMIO_MAGIC_VALUE => "magic-value",
        VIRTIO_MMIO_VERSION => "version",
        VIRTIO_MMIO_DEVICE_ID => "device-id",
        VIRTIO_MMIO_VENDOR_ID => "vendor-id",
        VIRTIO_MMIO_DEVICE_FEATURES => "device-features",
        VIRTIO_MMIO_DEVICE_FEATURES_SEL => "device-features-sel",
        VIRTIO_MMIO_DRIVER_FEATURES => "driver-features",
        VIRTIO_MMIO_DRIVER_FEATURES_SEL => "driver-features-sel",
        VIRTIO_MMIO_QUEUE_SEL => "queue-sel",
        VIRTIO_MMIO_QUEUE_NUM_MAX => "queue-size-max",
        VIRTIO_MMIO_QUEUE_NUM => "queue-size",
        VIRTIO_MMIO_QUEUE_READY => "queue-ready",
        VIRTIO_MMIO_QUEUE_NOTIFY => "queue-notify",
        VIRTIO_MMIO_INTERRUPT_STATUS => "interrupt-status",
        VIRTIO_MMIO_INTERRUPT_ACK => "interrupt-ack",
        VIRTIO_MMIO_STATUS => "status",
        VIRTIO_MMIO_QUEUE_DESC_LOW | VIRTIO_MMIO_QUEUE_DESC_HIGH => "queue-desc",
        VIRTIO_MMIO_QUEUE_AVAIL_LOW | VIRTIO_MMIO_QUEUE_AVAIL_HIGH => "queue-driver",
        VIRTIO_MMIO_QUEUE_USED_LOW | VIRTIO_MMIO_QUEUE_USED_HIGH => "queue-device",
        VIRTIO_MMIO_SHM_SEL..=VIRTIO_MMIO_SHM_BASE_HIGH => "shared-memory",
        VIRTIO_MMIO_CONFIG_GENERATION => "config-generation",
        _ => "reserved",
    }
}
