//! Adapter drivers, without an operating system and without a heap. Rings and buffers are in DMA memory, and
//! frames are built and read there.

pub mod pcnet;
#[cfg(test)]
mod tests;
pub(crate) mod virtio_net;

use core::fmt;
use core::num::{NonZeroU16, NonZeroUsize};
use core::ptr::NonNull;

use toll_guest_abi::adapter;

use crate::platform::Registers;

/// Ethernet header: destination, source, type (IEEE 802.3, 3.2).
pub(crate) const ETHERNET_HEADER: usize = 14;

/// An adapter that a driver can't bring up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverError {
    /// There is none where it should be.
    Absent,
    /// A register holds something else than the driver needs.
    Unexpected {
        /// The register.
        register: &'static str,
        /// What it held.
        found: u32,
    },
    /// The adapter does not come up within the number of looks that the driver takes.
    NotReady {
        /// What the driver waits for.
        what: &'static str,
    },
    /// The adapter can't do what the program needs.
    Unsupported {
        /// What it lacks.
        what: &'static str,
    },
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no adapter"),
            Self::Unexpected { register, found } => write!(f, "{register} holds {found:#x}"),
            Self::NotReady { what } => write!(f, "{what} does not come"),
            Self::Unsupported { what } => write!(f, "the adapter lacks {what}"),
        }
    }
}

impl core::error::Error for DriverError {}

/// What an adapter does for the TCP stack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// TCP checksums of frames sent; those of received frames as far as it vouches for them.
    pub(crate) checksum: bool,
    /// It cuts up segments: the longest one in bytes of frame.
    pub(crate) segment: Option<NonZeroUsize>,
}

/// An interrupt handler: given the adapter's registers, it returns the causes that it has found.
pub type InterruptHandler<R> = fn(&mut R) -> u32;

/// The interrupt handler of the driver of `adapter`, one of [`toll_guest_abi::adapter`].
pub fn interrupt_handler<R: Registers>(adapter: u32) -> Option<InterruptHandler<R>> {
    match adapter {
        adapter::PCNET => pcnet::PcnetDriver::interrupt_handler(),
        adapter::VIRTIO_NET => virtio_net::VirtioNetDriver::interrupt_handler(),
        _ => None,
    }
}

/// What the TCP stack needs of an adapter.
pub trait Driver {
    /// Whether a frame can be queued. May ask the adapter to make room.
    fn can_transmit(&mut self, registers: &mut impl Registers) -> bool;

    /// Queues a frame of `length` bytes that `fill` writes in place. Only after
    /// [`can_transmit`](Driver::can_transmit) said yes.
    fn transmit<R>(
        &mut self,
        registers: &mut impl Registers,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R;

    /// Lends the next received frame. The adapter gets its buffer back by [`release`](Driver::release).
    fn receive(&mut self, registers: &mut impl Registers) -> Option<NonNull<[u8]>>;

    /// Gives back the buffer that [`receive`](Driver::receive) lent last, if it has not been.
    fn release(&mut self, registers: &mut impl Registers);

    /// What runs in interrupt context: it touches registers only, and returns the causes that it has found. `None` of a
    /// driver that polls.
    fn interrupt_handler<R: Registers>() -> Option<InterruptHandler<R>> {
        None
    }

    /// Learns of interrupts: what the handler found.
    fn interrupted(&mut self, causes: u32);

    /// What the adapter does for the stack: nothing, unless its driver says so.
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    /// The next frame queued is to be cut into segments of `size` bytes of payload. Only if [`Offloads::segment`] is
    /// set.
    fn segment_next(&mut self, _size: NonZeroU16) {}

    /// Whether the checksum of the frame that [`receive`](Driver::receive) lent last needs no look.
    fn vouched(&self) -> bool {
        false
    }
}
