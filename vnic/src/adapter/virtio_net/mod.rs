//! virtio-net: the network device of virtio 1.2 (OASIS, 5.1) over MMIO (4.2), with split queues: one pair or several.
//!
//! ```text
//!  driver                       shared memory                      device
//!  fill, publish ------------> transmitq (split ring) --writev---> port
//!  take, give buffers back <-- receiveq  (split ring) <--readv---- port
//!  command, answer          <-> controlq  (split ring): what is received, and by how many pairs
//!  QueueNotify, or the guest waits: one exit moves all that the rings hold
//! ```
//!
//! Frames go straight between guest memory and the port. Offered: VIRTIO_F_VERSION_1, VIRTIO_NET_F_MAC,
//! VIRTIO_NET_F_MTU, and what [`VirtioNetSwitches`] say. Checksums and segmentation are the host kernel's work: a
//! frame crosses the port with its header, and the port has to be one with headers. With `segment_combining` the device
//! joins what a guest sends for that kernel, and cuts up what comes from it. A malformed ring or header fails
//! the guest, and the device asks for a reset (2.1.2, DEVICE_NEEDS_RESET).

mod chain;
mod control;
mod features;
mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod header;
mod mmio;
mod pairs;
mod receive;
mod ring;
#[cfg(test)]
mod tests;
mod train;
mod transmit;

use std::os::fd::BorrowedFd;

use toll_protocol::report::FrameCounters;
use toll_protocol::trial::VirtioNetSwitches;
use toll_protocol::units::MacAddress;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_QUEUE_NOTIFY};
use virtio_queue::{Queue, QueueT};

use crate::GuestMemory;
use crate::adapter::{Adapter, AdapterError, Window};
use crate::port::splitting::Splitting;
use crate::port::{Framing, Port, PortError};
use crate::stages::Stages;
use control::{Command, Request};
use features::Features;
use filter::Filter;
use mmio::{Mmio, Order, Role, receive_queue, transmit_queue};
use pairs::Pairs;
use ring::Ring;

/// Bytes of the MMIO window.
const WINDOW: u64 = 0x200;
/// Ethernet header: what a frame has at least.
const MINIMUM_FRAME: usize = 14;
/// An IEEE 802.1Q tag.
const TAG_LENGTH: usize = 4;
/// What a frame has beside its MTU of IP packet: an Ethernet header and a tag.
const FRAMING: usize = MINIMUM_FRAME + TAG_LENGTH;
/// Least MTU of a device (5.1.4.1).
const LEAST_MTU: u16 = 68;
/// Longest frame of a TCP segment that is to be cut up: the 65535 bytes that Linux puts into one with its Ethernet
/// header.
const LONGEST_SEGMENT: usize = 65_535;
/// Longest that a port may give us: an IP packet of 65535 bytes (5.1.6.3.1) and the rest of a frame.
const LONGEST_RECEIVED: usize = 65_535 + FRAMING;

/// Commands of one turn at most. One that takes a queue pair out of use waits for the kernel, for milliseconds.
const MOST_COMMANDS: u16 = 64;

/// Buffers of a queue at most: a power of two.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// The device.
#[derive(Debug)]
pub struct VirtioNet {
    mmio: Mmio,
    bus: Bus,
    /// The queues in use, by index; none before DRIVER_OK.
    rings: Vec<Option<Ring>>,
    /// The address that it has after a reset.
    permanent: MacAddress,
    /// Somebody looks at the rings without being notified.
    watched: bool,
}

/// What the device is connected to, apart from the registers so that queues and frames can be borrowed at once.
struct Bus {
    memory: GuestMemory,
    pairs: Pairs,
    counters: FrameCounters,
    stages: Stages,
    /// Longest frame that is sent, in bytes.
    longest: usize,
    /// What the driver took, less the receive offloads that it has turned off since.
    features: Features,
    /// Where the end of a frame goes that is longer than the guest's buffers.
    overflow: Box<[u8]>,
    /// What the driver wants to receive.
    filter: Filter,
    /// The device's address, as the filter needs it.
    mac: MacAddress,
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
    /// A device after reset that offers what `switches` say, with a port for each queue pair: all of them queues of
    /// one interface. `mtu` is in bytes of IP packet; the driver learns it (VIRTIO_NET_F_MTU) and a frame over it that is
    /// not to be segmented fails the guest.
    ///
    /// # Errors
    /// [`PortError::NoHeaders`] if offloads are on and a port has no headers; [`PortError::Queues`] if there are not as
    /// many ports as queue pairs; [`PortError::Io`] if they can't be waited for; [`AdapterError::Guest`] if
    /// [`MAX_QUEUE_SIZE`] were no power of two (2.7); [`AdapterError::Mtu`] if the MTU is below 68 (5.1.4.1).
    pub fn new(
        memory: GuestMemory,
        ports: Vec<Box<dyn Port>>,
        mac: MacAddress,
        mtu: u16,
        switches: VirtioNetSwitches,
    ) -> Result<Self, AdapterError> {
        if switches.offloads() && ports.iter().any(|port| port.framing() != Framing::VirtioNetHeader) {
            return Err(PortError::NoHeaders.into());
        }
        if mtu < LEAST_MTU {
            return Err(AdapterError::Mtu { mtu, least: LEAST_MTU });
        }
        let count = switches.queue_pairs.count();
        if ports.len() != count {
            return Err(PortError::Queues { pairs: count, ports: ports.len() }.into());
        }
        let around = |port| -> Box<dyn Port> {
            if switches.segment_combining { Box::new(Splitting::new(port)) } else { port }
        };
        let bus = Bus {
            memory,
            pairs: Pairs::new(ports.into_iter().map(around).collect())?,
            counters: FrameCounters::default(),
            stages: Stages::default(),
            longest: usize::from(mtu) + FRAMING,
            features: Features::default(),
            overflow: vec![0; LONGEST_RECEIVED].into_boxed_slice(),
            filter: Filter::new(false),
            mac,
            combines: switches.segment_combining,
        };
        let queue = |_| Queue::new(MAX_QUEUE_SIZE).map_err(|error| bad("queue size", error.to_string()));
        let queues = (0..2 * count + usize::from(switches.control_queue)).map(queue);
        // At most QueuePairs::MAX.
        let mmio =
            Mmio::new(queues.collect::<Result<_, _>>()?, mac, mtu, count as u16, Features::offered(switches));
        Ok(Self { mmio, bus, rings: Vec::new(), permanent: mac, watched: false })
    }

    /// The driver starts again from the beginning (2.4).
    fn reset(&mut self) -> Result<(), AdapterError> {
        self.rings.clear();
        self.mmio.set_mac(self.permanent);
        self.bus.mac = self.permanent;
        self.bus.features = Features::default();
        self.bus.filter = Filter::new(false);
        Ok(self.bus.pairs.reset()?)
    }

    /// DRIVER_OK: from now on the queues are used, so they have to be whole. A driver may leave out pairs that it doesn't
    /// use.
    fn activate(&mut self) -> Result<(), AdapterError> {
        let (features, control) = (self.mmio.driver_features(), self.mmio.control_queue());
        self.rings.clear();
        for (index, queue) in self.mmio.queues.iter().enumerate() {
            let name = match index {
                _ if Some(index) == control => "control queue",
                _ if index % 2 == 0 => "receive queue",
                _ => "transmit queue",
            };
            let mut ring = Ring::map(queue, &self.bus.memory, features.event_index());
            let needed = index < 2 || Some(index) == control || queue.ready();
            if needed && ring.is_none() {
                return Err(bad(
                    name,
                    "it is not ready, or part of it is outside of guest memory".to_owned(),
                ));
            }
            if let Some(ring) = ring.as_mut().filter(|_| self.watched) {
                // Nobody looks at the control queue unasked for long.
                ring.want(Some(index) == control);
            }
            self.rings.push(ring);
        }
        self.bus.features = features;
        self.bus.filter = Filter::new(features.vlans());
        self.bus.pairs.reset()?;
        self.bus.pairs.set_offloads(features.receive_offloads())?;
        Ok(())
    }

    fn transmit(&mut self, pair: usize) -> Result<(), AdapterError> {
        let index = transmit_queue(pair);
        let Some(Some(ring)) = self.rings.get_mut(index) else { return Ok(()) };
        let before = ring.next_used();
        let asks = self.bus.features.event_index() && !self.watched;
        let mut sent = self.bus.transmit(pair, ring);
        if sent.is_ok() && asks && ring.want(true) {
            sent = self.bus.transmit(pair, ring);
        }
        // Of what was used before a fault, too (2.7.7.2).
        self.used(index, before);
        sent
    }

    /// Whether the guest got a frame.
    fn receive(&mut self, pair: usize) -> Result<bool, AdapterError> {
        let index = receive_queue(pair);
        let Some(Some(ring)) = self.rings.get_mut(index) else { return Ok(false) };
        let before = ring.next_used();
        let asks = self.bus.features.event_index() && !self.watched;
        let mut result = self.bus.receive(pair, ring);
        // Of new receive buffers the device needs to hear only when it has none.
        if result.is_ok() && asks && !ring.has_available() && ring.want(true) {
            result = self.bus.receive(pair, ring);
        }
        let received = ring.next_used() != before;
        self.used(index, before);
        result.map(|()| received)
    }

    /// Answers the commands that the control queue holds, if there is one.
    fn control(&mut self) -> Result<(), AdapterError> {
        let Some(index) = self.mmio.control_queue() else { return Ok(()) };
        let Some(Some(ring)) = self.rings.get(index) else { return Ok(()) };
        let before = ring.next_used();
        let result = self.commands(index);
        self.used(index, before);
        result
    }

    /// The same, of the queue of this index, as many as one turn does.
    fn commands(&mut self, index: usize) -> Result<(), AdapterError> {
        for _ in 0..MOST_COMMANDS {
            let Self { mmio, bus, rings, .. } = self;
            let Some(Some(ring)) = rings.get_mut(index) else { break };
            let mut request = Request::take(ring, &bus.memory)?;
            if request.is_none() && bus.features.event_index() && ring.want(true) {
                request = Request::take(ring, &bus.memory)?;
            }
            let Some(request) = request else { break };
            let command = request.command(mmio.driver_features());
            let done = command.map_or(Ok(false), |command| self.execute(command))?;
            let Some(Some(ring)) = self.rings.get_mut(index) else { break };
            request.answer(ring, &self.bus.memory, done)?;
        }
        Ok(())
    }

    /// Does what the driver commands; whether it could be done.
    fn execute(&mut self, command: Command) -> Result<bool, AdapterError> {
        let Self { mmio, bus, rings, .. } = self;
        match command {
            Command::Receive(mode, on) => bus.filter.set(mode, on),
            Command::MacTable(table) => bus.filter.set_table(table),
            // A group address is nobody's own (IEEE 802).
            Command::MacAddress(mac) if mac.0[0] & 1 != 0 => return Ok(false),
            Command::MacAddress(mac) => {
                mmio.set_mac(mac);
                bus.mac = mac;
            }
            Command::Vlan(id, wanted) => return Ok(bus.filter.set_vlan(id, wanted)),
            Command::Pairs(count) => {
                let count = usize::from(count);
                let has = |pair| {
                    let ready = |index: usize| rings.get(index).is_some_and(Option::is_some);
                    ready(receive_queue(pair)) && ready(transmit_queue(pair))
                };
                if !(1..=bus.pairs.count()).contains(&count) || !(0..count).all(has) {
                    return Ok(false);
                }
                bus.pairs.enable(count)?;
            }
            Command::Offloads(features) => {
                bus.features = features;
                bus.pairs.set_offloads(features.receive_offloads())?;
            }
        }
        Ok(true)
    }

    /// Used buffer notification, unless there is nothing new since the used index was `before`, or the driver
    /// suppressed it.
    fn used(&mut self, index: usize, before: u16) {
        let Self { mmio, bus, rings, .. } = self;
        let wanted = |ring: &Ring| ring.wants_interrupt(before);
        if rings.get(index).and_then(Option::as_ref).is_some_and(wanted) && mmio.notify_used() {
            bus.counters.interrupts += 1;
        }
    }

    /// Serves all queues in use; whether the guest has something to look at, or the device something left to do.
    fn turn(&mut self) -> Result<bool, AdapterError> {
        // What the driver wants goes before what it gets.
        self.control()?;
        let mut received = false;
        for pair in 0..self.bus.pairs.enabled() {
            self.transmit(pair)?;
            received |= self.receive(pair)?;
        }
        let control = self.mmio.control_queue().and_then(|index| self.rings.get(index)?.as_ref());
        Ok(received || control.is_some_and(Ring::has_available))
    }

    /// Counts a fault of the guest; the device then needs a reset.
    fn concluded<T>(&mut self, result: Result<T, AdapterError>) -> Result<T, AdapterError> {
        if let Err(AdapterError::Guest { .. }) = &result {
            self.bus.counters.guest_errors += 1;
            if self.mmio.fail() {
                self.bus.counters.interrupts += 1;
            }
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
            Order::Reset => self.reset(),
            Order::Activate => self.activate(),
            Order::Notify(Role::Control) => self.control(),
            // The rings of a pair that is not in use are nobody's.
            Order::Notify(Role::Receive(pair) | Role::Transmit(pair)) if pair >= self.bus.pairs.enabled() => {
                Ok(())
            }
            Order::Notify(Role::Transmit(pair)) => self.transmit(pair),
            Order::Notify(Role::Receive(pair)) => self.receive(pair).map(drop),
            // None of its contents is looked at any more (4.2.2.1).
            Order::Stop(index) => {
                if let Some(ring) = self.rings.get_mut(index) {
                    *ring = None;
                }
                Ok(())
            }
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
        let result = self.turn();
        // Frames sent need no look: a guest that has more to send asks for no sleep.
        self.concluded(result).map(|news| news || self.mmio.interrupt())
    }

    fn notify_register(&self) -> Option<u64> {
        Some(VIRTIO_MMIO_QUEUE_NOTIFY.into())
    }

    fn watch(&mut self, watched: bool) -> Result<bool, AdapterError> {
        self.watched = watched;
        if !self.mmio.live() {
            return Ok(false);
        }
        let mut more = false;
        for pair in 0..self.bus.pairs.enabled() {
            if let Some(Some(ring)) = self.rings.get_mut(transmit_queue(pair)) {
                more |= ring.want(!watched);
            }
            if let Some(Some(ring)) = self.rings.get_mut(receive_queue(pair)) {
                // Of receive buffers the device needs to hear only when it has none.
                more |= ring.want(!watched && !ring.has_available());
            }
        }
        let control = self.mmio.control_queue().and_then(|index| self.rings.get_mut(index));
        if let Some(Some(ring)) = control {
            more |= ring.want(true);
        }
        Ok(more)
    }

    fn can_receive(&self) -> bool {
        let ring = |pair| self.rings.get(receive_queue(pair)).and_then(Option::as_ref);
        let has_room = |pair| ring(pair).is_some_and(Ring::has_available);
        self.mmio.live() && (0..self.bus.pairs.enabled()).any(has_room)
    }

    fn interrupt(&self) -> bool {
        self.mmio.interrupt()
    }

    fn counters(&self) -> FrameCounters {
        self.bus.pairs.lost().fold(self.bus.counters, |counters, lost| lost.beside(counters))
    }

    fn register_name(&self, offset: u64) -> &'static str {
        mmio::register_name(offset)
    }

    fn port_fd(&self) -> Option<BorrowedFd<'_>> {
        self.bus.pairs.fd()
    }

    fn with_stages(&mut self, act: &mut dyn FnMut(&mut Stages)) {
        act(&mut self.bus.stages);
    }
}
