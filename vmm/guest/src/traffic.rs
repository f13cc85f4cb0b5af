//! What a program carries. Each kind of traffic is an [`Application`] in a file of its own; the program knows none of
//! them, and an application knows neither the phases nor the interval.

mod stream;

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use smoltcp::iface::{Interface, SocketSet, SocketStorage};
use smoltcp::time::Duration;
use smoltcp::wire::IpEndpoint;
use toll_guest_abi::{BootInfo, kind};

use stream::Stream;

use crate::dma::Dma;
use crate::error::{Budget, ProgramError};
use crate::platform::Platform;

/// The stack as an application sees it.
pub(crate) struct Stack<'a, 's> {
    pub(crate) interface: &'a mut Interface,
    pub(crate) sockets: &'a mut SocketSet<'s>,
}

/// What the flows have carried since they opened, in bytes of payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Accepted by the stack.
    pub(crate) sent: u64,
    /// Received by the application.
    pub(crate) received: u64,
}

/// What the stack did for the flows since they opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Segments of payload sent more than once.
    pub(crate) retransmits: u32,
    /// Time that flows waited for a window, all together, in nanoseconds.
    pub(crate) window_bound_ns: u64,
}

/// How the traffic goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Some flow has carried nothing yet.
    Opening,
    /// Each flow has carried payload.
    Flowing,
    /// The peer has measured: it has ended what this end sends.
    PeerMeasured,
}

/// A kind of traffic, from the sockets' opening to their end.
pub(crate) trait Application<'s> {
    /// How many sockets [`open`](Self::open) makes.
    fn sockets(&self) -> usize;

    /// Makes the sockets; those of an end that listens do.
    fn open<P: Platform>(
        &mut self,
        stack: &mut Stack<'_, 's>,
        platform: &mut P,
        boot: &BootInfo,
    ) -> Result<(), ProgramError>;

    /// Connects to `peer`, whose order to do so has come.
    fn connect(&mut self, stack: &mut Stack<'_, 's>, peer: IpEndpoint) -> Result<(), ProgramError>;

    /// Takes what has come, and gives the stack what it has room for. Before the interval is over a flow that ends without
    /// a reason is an error.
    fn turn<P: Platform>(
        &mut self,
        stack: &mut Stack<'_, 's>,
        platform: &mut P,
    ) -> Result<Progress, ProgramError>;

    /// The program is about to wait: the stack has sent what it may.
    fn rests(&mut self, stack: &Stack<'_, 's>, now_ns: u64);

    /// The interval is over: ends the traffic, as far as it is this end's to do. A peer that says nothing within
    /// `patience` is given up.
    fn measured(&mut self, stack: &mut Stack<'_, 's>, patience: Duration);

    /// Whether nothing more is to be sent or received. The stack needs its next turn in `left`.
    fn is_over(&self, stack: &Stack<'_, 's>, left: Option<Duration>) -> bool;

    /// What all flows have carried.
    fn counters(&self) -> Counters;

    /// What the stack did for them.
    fn statistics(&self, stack: &Stack<'_, 's>) -> Statistics;

    /// What each flow has carried, in the order of [`toll_guest_abi::Status::flows`].
    fn flows(&self) -> impl Iterator<Item = u64>;
}

/// The traffic that a program was told to carry.
pub(crate) enum Traffic<'s> {
    Stream(Stream<'s>),
}

impl Traffic<'_> {
    /// What `boot` asks for, within `budget`. `segments`: whether the adapter cuts up segments of 64 KiB.
    ///
    /// # Errors
    /// [`ProgramError::BootInfo`] or [`ProgramError::Arena`].
    pub(crate) fn of(boot: &BootInfo, segments: bool, budget: Budget) -> Result<Self, ProgramError> {
        match boot.traffic.kind {
            kind::STREAM => Ok(Self::Stream(Stream::new(boot, segments, budget)?)),
            _ => Err(ProgramError::BootInfo { field: "traffic" }),
        }
    }
}

/// Places for `count` sockets, in the platform's memory: the stack of a guest has no room for many.
pub(crate) fn places<'b>(platform: &mut impl Platform, count: usize) -> &'b mut [SocketStorage<'b>] {
    let length = count * size_of::<SocketStorage<'_>>();
    let bytes = Dma::allocate(platform, length, align_of::<SocketStorage<'_>>()).bytes(0, length);
    let mut places = NonNull::slice_from_raw_parts(bytes.cast::<MaybeUninit<SocketStorage<'b>>>(), count);
    // SAFETY: the platform hands memory out once, aligned and as long as asked for, and keeps it while the program runs;
    // nothing else, the adapter included, knows of it.
    let places = unsafe { places.as_mut() };
    for place in &mut *places {
        place.write(SocketStorage::EMPTY);
    }
    // SAFETY: each has been written just now.
    unsafe { places.assume_init_mut() }
}

/// Memory for as long as the program runs.
pub(crate) fn buffer<'b>(platform: &mut impl Platform, length: usize) -> &'b mut [u8] {
    let mut bytes = Dma::allocate(platform, length, 64).bytes(0, length);
    // SAFETY: the platform hands memory out once, zeroed, and keeps it while the program runs; nothing else,
    // the adapter included, knows of it.
    unsafe { bytes.as_mut() }
}

/// The byte at `offset` of the buffer that is sent again and again: position-dependent over more than a frame, so
/// that a test sees bytes that are lost, doubled or moved.
pub const fn pattern(offset: usize) -> u8 {
    ((offset as u32).wrapping_mul(0x9e37_79b1) >> 24) as u8
}
