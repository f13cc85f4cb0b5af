//! Two ports joined by a wire in this process's memory: what one sends the other receives, in order.
//!
//! Each direction holds a bounded number of frames; a frame that finds it full is dropped. The descriptor of a
//! port is readable exactly while frames wait for it.

use std::collections::VecDeque;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Framing, Port, PortError, Sent};
use crate::piece::{Piece, PieceMut};

const NAME: &str = "memory port";

/// One direction of the wire.
#[derive(Debug)]
struct Lane {
    frames: Mutex<Frames>,
    /// Non-zero while `frames` holds any.
    readable: EventFd,
}

#[derive(Debug, Default)]
struct Frames {
    waiting: VecDeque<Vec<u8>>,
    /// Buffers of frames that were taken, for those to come.
    spare: Vec<Vec<u8>>,
}

impl Lane {
    fn new() -> Result<Arc<Self>, PortError> {
        let readable =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|error| {
                PortError::Open {
                    port: NAME.to_owned(),
                    advice: "raise the limit of open descriptors",
                    source: error.into(),
                }
            })?;
        Ok(Arc::new(Self { frames: Mutex::default(), readable }))
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        // Nothing in here panics half-way through a change.
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One end of the wire.
#[derive(Debug)]
pub struct MemoryPort {
    outgoing: Arc<Lane>,
    incoming: Arc<Lane>,
    /// The buffer of the next frame that is sent.
    filled: Vec<u8>,
    /// The one of the last frame that was received.
    emptied: Vec<u8>,
    capacity: usize,
    framing: Framing,
}

/// Two joined ports, each direction with room for `capacity` frames.
///
/// # Errors
/// [`PortError::Open`] if the process has no descriptor left.
pub fn pair(capacity: usize) -> Result<(MemoryPort, MemoryPort), PortError> {
    joined(capacity, Framing::Bare)
}

/// As [`pair`], each frame with its header before it. What one end sends unfinished reaches the other as it is: both
/// have to have the same offloads.
///
/// # Errors
/// As for [`pair`].
pub fn pair_with_headers(capacity: usize) -> Result<(MemoryPort, MemoryPort), PortError> {
    joined(capacity, Framing::VirtioNetHeader)
}

fn joined(capacity: usize, framing: Framing) -> Result<(MemoryPort, MemoryPort), PortError> {
    let (there, back) = (Lane::new()?, Lane::new()?);
    let port = |outgoing: &Arc<Lane>, incoming: &Arc<Lane>| MemoryPort {
        outgoing: Arc::clone(outgoing),
        incoming: Arc::clone(incoming),
        filled: Vec::new(),
        emptied: Vec::new(),
        capacity,
        framing,
    };
    Ok((port(&there, &back), port(&back, &there)))
}

fn failed(call: &'static str, error: Errno) -> PortError {
    PortError::Io { call, port: NAME.to_owned(), source: error.into() }
}

impl Port for MemoryPort {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        // Nobody waits for the copy: the other end's thread may want the lock for its frame meanwhile.
        self.filled.clear();
        for part in parts {
            part.append_to(&mut self.filled);
        }
        let mut frames = self.outgoing.lock();
        if frames.waiting.len() >= self.capacity {
            return Ok(Sent::Dropped);
        }
        let next = frames.spare.pop().unwrap_or_default();
        frames.waiting.push_back(mem::replace(&mut self.filled, next));
        if frames.waiting.len() == 1 {
            self.outgoing.readable.write(1).map_err(|error| failed("write", error))?;
        }
        Ok(Sent::Taken)
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        {
            let mut frames = self.incoming.lock();
            let Some(frame) = frames.waiting.pop_front() else { return Ok(None) };
            if frames.waiting.is_empty() {
                self.incoming.readable.read().map_err(|error| failed("read", error))?;
            }
            frames.spare.push(mem::replace(&mut self.emptied, frame));
        }
        let mut copied = 0;
        for part in parts {
            copied += part.write(0, &self.emptied[copied..]);
        }
        Ok(Some(copied))
    }

    fn framing(&self) -> Framing {
        self.framing
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.incoming.readable.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_readable(port: &MemoryPort) -> bool {
        let mut fds = [PollFd::new(port.fd().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn frames_arrive_in_order_whole_and_bounded() {
        let (mut one, mut other) = pair(2).unwrap();
        assert!(!is_readable(&other));
        assert_eq!(one.send(&[Piece::new(b"he"), Piece::new(b"llo")]).unwrap(), Sent::Taken);
        assert_eq!(one.send(&[Piece::new(b"second")]).unwrap(), Sent::Taken);
        assert_eq!(one.send(&[Piece::new(b"third")]).unwrap(), Sent::Dropped);
        assert!(is_readable(&other) && !is_readable(&one));

        let (mut a, mut b) = ([0; 3], [0; 8]);
        let mut parts = [PieceMut::new(&mut a), PieceMut::new(&mut b)];
        assert_eq!(other.receive(&mut parts).unwrap(), Some(5));
        assert_eq!((&a, &b[..2]), (b"hel", &b"lo"[..]));
        assert!(is_readable(&other));
        let mut short = [0; 4];
        assert_eq!(other.receive(&mut [PieceMut::new(&mut short)]).unwrap(), Some(4));
        assert_eq!(&short, b"seco");
        assert!(!is_readable(&other));
        assert_eq!(other.receive(&mut [PieceMut::new(&mut short)]).unwrap(), None);
    }
}
