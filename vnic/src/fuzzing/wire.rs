//! The far side of an adapter in a hostile guest's hands: frames that wait for it, frames that left, and stores that the
//! guest makes while its adapter works.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;
use crate::piece::{self, Piece, PieceMut};
use crate::port::{Framing, Port, PortError, Sent};
use crate::vnet_header::{CSUM_OFFSET, CSUM_START, FLAGS, NEEDS_CSUM};

/// What happened on a wire, and what will.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// Frames as the port gives them, with their header if it has headers.
    pub(crate) waiting: VecDeque<Vec<u8>>,
    /// Stores of the guest, one for each call of the port.
    pub(crate) stores: VecDeque<(u32, u32)>,
    /// Calls since this was set to 0.
    pub(crate) calls: u32,
    /// What was handed to the port, taken or not, since this was emptied.
    pub(crate) left: Vec<Vec<u8>>,
    /// What the port has given since this was emptied.
    pub(crate) given: VecDeque<Vec<u8>>,
}

/// A wire that both sides have.
pub(crate) type SharedWire = Arc<Mutex<Wire>>;

/// The wire, for a moment.
pub(crate) fn locked(wire: &SharedWire) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest's own store; one outside of its memory is no matter of its adapter.
pub(crate) fn store(memory: &GuestMemory, at: u32, value: u32) {
    let _ = memory.write_slice(&value.to_le_bytes(), GuestAddress(u64::from(at)));
}

/// The adapter's end of a wire.
#[derive(Debug)]
pub(crate) struct WirePort {
    pub(crate) wire: SharedWire,
    pub(crate) memory: GuestMemory,
    pub(crate) framing: Framing,
    /// Bytes of a frame that may leave, without its header.
    pub(crate) lengths: RangeInclusive<usize>,
}

impl WirePort {
    fn call(&self) -> MutexGuard<'_, Wire> {
        let mut wire = locked(&self.wire);
        wire.calls += 1;
        if let Some((at, value)) = wire.stores.pop_front() {
            store(&self.memory, at, value);
        }
        wire
    }

    /// As the kernel does with a frame whose checksum would be written outside of it.
    fn refuses(&self, frame: &[u8]) -> bool {
        let field = |at: usize| usize::from(u16::from_le_bytes([frame[at], frame[at + 1]]));
        self.framing == Framing::VirtioNetHeader
            && frame[FLAGS] & NEEDS_CSUM != 0
            && field(CSUM_START) + field(CSUM_OFFSET) + 2 > frame.len() - self.framing.header()
    }
}

impl Port for WirePort {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        let mut wire = self.call();
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let bare = length.checked_sub(self.framing.header()).expect("a frame has its header");
        assert!(self.lengths.contains(&bare), "a frame of {bare} bytes left");
        // Each byte is read: one outside of guest memory faults.
        let frame = piece::collect(parts);
        let refused = self.refuses(&frame);
        let sum = frame.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        wire.left.push(frame);
        if refused {
            return Err(PortError::Refused { port: "wire".to_owned() });
        }
        Ok(if sum % 8 == 7 && wire.calls.is_multiple_of(2) { Sent::Dropped } else { Sent::Taken })
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        let mut wire = self.call();
        let Some(frame) = wire.waiting.pop_front() else { return Ok(None) };
        piece::write_at(parts, 0, &frame);
        let length = frame.len().min(parts.iter().map(PieceMut::len).sum());
        wire.given.push_back(frame);
        Ok(Some(length))
    }

    fn framing(&self) -> Framing {
        self.framing
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
