//! What every adapter model offers to the machine it is attached to.

pub mod pcnet;
pub mod virtio_net;

use std::time::{Duration, Instant};

use toll_protocol::report::{FrameCounters, Spared};
use toll_protocol::trial;
use toll_protocol::units::MacAddress;

use crate::GuestMemory;
use crate::port::{Port, PortError};
use crate::stages::Stages;
use pcnet::Pcnet;
use pcnet::hosted::Hosted;
use virtio_net::VirtioNet;

/// What the guest or the port did that an adapter can't go on from.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The guest gave the adapter something malformed: the guest fails, the VMM doesn't.
    #[error("the guest gave its {adapter} adapter a bad {what}: {detail}")]
    Guest {
        /// `pcnet` or `virtio-net`.
        adapter: &'static str,
        /// `transmit descriptor`, `init block`, `ring`.
        what: &'static str,
        /// Addresses, lengths and limits.
        detail: String,
    },
    /// An MTU that no virtio-net device may have.
    #[error("a virtio-net adapter has an MTU of {least} bytes or more, and it was to have {mtu}")]
    Mtu {
        /// What it was to have.
        mtu: u16,
        /// The least, in bytes of IP packet.
        least: u16,
    },
    /// The port failed.
    #[error("the adapter's port failed")]
    Port(#[from] PortError),
}

/// Where an adapter's registers are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// So many I/O ports.
    Pio(u16),
    /// So many bytes of physical address space.
    Mmio(u64),
}

/// What an adapter wants of the clock tick of the thread that runs the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockTick {
    /// It goes on, or stands still, as before.
    AsItIs,
    /// Something waits for it.
    On,
    /// Nothing waits for it.
    Off,
}

/// The adapter of a trial's end, in `memory` and behind `ports`, one for each of its queue pairs.
///
/// # Errors
/// [`AdapterError`] if it can't be had behind these ports.
pub fn build(
    adapter: &trial::Adapter,
    memory: GuestMemory,
    mut ports: Vec<Box<dyn Port>>,
    mac: MacAddress,
    mtu: u16,
) -> Result<Box<dyn Adapter>, AdapterError> {
    match *adapter {
        trial::Adapter::Pcnet(switches) => {
            let queues = PortError::Queues { pairs: 1, ports: ports.len() };
            let port = ports.pop().filter(|_| ports.is_empty()).ok_or(queues)?;
            let epoch = Instant::now();
            Ok(Box::new(Hosted::new(Pcnet::new(memory, port, mac), switches, move || epoch.elapsed())))
        }
        trial::Adapter::VirtioNet(switches) => {
            Ok(Box::new(VirtioNet::new(memory, ports, mac, mtu, switches)?))
        }
    }
}

/// A chip. All methods are called by one thread at a time: the one that runs the guest, or that of its I/O. None blocks.
pub trait Adapter: Send {
    /// The registers that it decodes.
    fn window(&self) -> Window;

    /// The guest reads `data.len()` bytes of registers at `offset`.
    ///
    /// # Errors
    /// [`AdapterError`] if the access makes the adapter touch a malformed ring, or its port fails.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AdapterError>;

    /// The guest writes registers at `offset`. What the write starts (a transmission) is done on return, as far as the
    /// model's bound on the work of one access goes; the rest is done by [`service`](Adapter::service).
    ///
    /// # Errors
    /// As for [`read`](Adapter::read).
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AdapterError>;

    /// Takes what the transmit ring holds and fills the receive ring from the port; called when the guest
    /// waits, and when the port has become readable. Returns whether the guest has something to look at.
    ///
    /// # Errors
    /// As for [`read`](Adapter::read).
    fn service(&mut self) -> Result<bool, AdapterError>;

    /// The calling thread is the one that runs the program, and calls everything else from now on. The period of the clock
    /// tick that it is to have for [`interrupted`](Adapter::interrupted), if the adapter wants one.
    ///
    /// # Errors
    /// [`AdapterError::Port`] if the host lacks what an optimisation takes.
    fn begin(&mut self) -> Result<Option<Duration>, AdapterError> {
        Ok(None)
    }

    /// Called after each access of the guest: what a VMM does while the guest stands still anyway.
    ///
    /// # Errors
    /// As for [`read`](Adapter::read).
    fn accessed(&mut self) -> Result<ClockTick, AdapterError> {
        Ok(ClockTick::AsItIs)
    }

    /// The clock tick, or whoever else, has interrupted the program.
    ///
    /// # Errors
    /// As for [`read`](Adapter::read).
    fn interrupted(&mut self) -> Result<ClockTick, AdapterError> {
        Ok(ClockTick::AsItIs)
    }

    /// Whether a write of `width` bytes at `offset` may be done later, if it is done in its order before any other
    /// access, and before [`service`](Adapter::service): a register that is memory, which nothing but the guest sees.
    fn posts(&self, _offset: u64, _width: usize) -> bool {
        false
    }

    /// The guest has written registers at `offset`, and the kernel has kept it until now.
    ///
    /// # Errors
    /// As for [`read`](Adapter::read).
    fn write_posted(&mut self, offset: u64, data: &[u8]) -> Result<(), AdapterError> {
        self.write(offset, data)
    }

    /// What its optimisations have spared so far; `None` if it has none, or all are off.
    fn spared(&self) -> Option<Spared> {
        None
    }

    /// The register whose writes say no more than that the rings have something: who looks at them anyway needs none.
    fn notify_register(&self) -> Option<u64> {
        None
    }

    /// Tells the driver that its rings are looked at without a notification; or, with `false`, no longer. Whether something
    /// has come meanwhile that no notification will tell of.
    ///
    /// # Errors
    /// As for [`read`](Adapter::read).
    fn watch(&mut self, _watched: bool) -> Result<bool, AdapterError> {
        Ok(false)
    }

    /// Whether the guest has buffers for more frames: only then is waiting for the port of use.
    fn can_receive(&self) -> bool;

    /// Level of the interrupt line.
    fn interrupt(&self) -> bool;

    /// What crossed it so far.
    fn counters(&self) -> FrameCounters;

    /// Names the register at `offset`, for accounting of exits: `rdp`, `queue-notify`.
    fn register_name(&self, offset: u64) -> &'static str;

    /// Descriptor that becomes readable when the port has a frame.
    fn port_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>>;

    /// What crossed it so far, and `act` done with what is noted at that moment of frames' ways and of the time in the
    /// port.
    fn reading(&mut self, act: &mut dyn FnMut(&mut Stages)) -> FrameCounters {
        self.with_stages(act);
        self.counters()
    }

    /// Does `act` with what is noted of frames' ways, and of the time in the port.
    fn with_stages(&mut self, act: &mut dyn FnMut(&mut Stages));
}
