//! Whether frames have come, seen in memory that the kernel shares with us (io_uring(7)): what the 2001 paper calls IRQ
//! notification. A look is a load, where asking the port is a system call.
//!
//! ```text
//!  port's descriptor --IORING_OP_POLL_ADD, multishot--> completion queue (shared memory) --look--> pending
//!                                                                                          ^          |
//!                                                             a new frame after it was empty   the port was emptied
//! ```
//! A completion comes when frames come, not while they wait: so frames stay pending until the port has been emptied.

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};

use super::PortError;

const NAME: &str = "notification of a port";

/// Watches one descriptor.
pub struct Arrivals {
    ring: IoUring,
    descriptor: i32,
    /// Frames may wait.
    pending: bool,
    /// Whether the kernel goes on telling.
    armed: bool,
    skipped: u64,
}

fn failed(call: &'static str) -> impl Fn(std::io::Error) -> PortError {
    move |source| PortError::Io { call, port: NAME.to_owned(), source }
}

impl Arrivals {
    /// Watches `descriptor`, which must stay open as long as this does.
    ///
    /// # Errors
    /// [`PortError::Open`] where the kernel has no io_uring, or forbids it.
    pub fn of(descriptor: BorrowedFd<'_>) -> Result<Self, PortError> {
        // Without COOP_TASKRUN the kernel would interrupt the thread to write the completion, and a guest would exit for
        // it: so it is written when the thread is in the kernel anyway, as for every exit.
        let ring = IoUring::builder().setup_coop_taskrun().build(8).map_err(|source| PortError::Open {
            port: NAME.to_owned(),
            advice: "it takes io_uring (Linux 5.19, and kernel.io_uring_disabled = 0): leave irqNotification out",
            source,
        })?;
        let descriptor = descriptor.as_raw_fd();
        let mut arrivals = Self { ring, descriptor, pending: true, armed: false, skipped: 0 };
        arrivals.arm()?;
        Ok(arrivals)
    }

    fn arm(&mut self) -> Result<(), PortError> {
        let poll = opcode::PollAdd::new(types::Fd(self.descriptor), libc::POLLIN as u32).multi(true).build();
        // SAFETY: the operation refers to no memory, and to a descriptor that the caller keeps open.
        unsafe { self.ring.submission().push(&poll) }
            .map_err(|_| failed("io_uring")(std::io::Error::other("its queue is full")))?;
        self.ring.submit().map_err(failed("io_uring_enter"))?;
        self.armed = true;
        Ok(())
    }

    /// Whether frames may wait: a look at shared memory.
    ///
    /// # Errors
    /// [`PortError::Io`].
    pub fn pending(&mut self) -> Result<bool, PortError> {
        let mut ended = false;
        for completion in self.ring.completion() {
            self.pending = true;
            ended |= !io_uring::cqueue::more(completion.flags());
        }
        if ended {
            self.arm()?;
        }
        if !self.pending {
            self.skipped += 1;
        }
        Ok(self.pending)
    }

    /// The port has been emptied: nothing waits until the kernel says so.
    pub fn emptied(&mut self) {
        self.pending = false;
    }

    /// How often nothing waited, and nobody had to be asked.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

impl Drop for Arrivals {
    /// The kernel ends a ring some time after it was closed, and until then the poll would hold the port's descriptor: a
    /// TAP would outlive its VMM.
    fn drop(&mut self) {
        let remove = opcode::PollRemove::new(0).build();
        // SAFETY: the operation refers to no memory. If there is no room for it, the kernel removes the poll later.
        if unsafe { self.ring.submission().push(&remove) }.is_ok() {
            let _ = self.ring.submit();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::piece::{Piece, PieceMut};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::port::Port;
    use crate::port::memory::pair;

    /// Looks until something is pending; the kernel tells when the thread next enters it.
    fn wait(arrivals: &mut Arrivals) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if arrivals.pending().unwrap() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    #[test]
    fn frames_are_seen_when_they_come_and_not_before() {
        let (near, mut far) = pair(8).unwrap();
        let mut near = near;
        let mut arrivals = Arrivals::of(near.fd().unwrap()).unwrap();
        assert!(arrivals.pending().unwrap(), "what came before is not known");
        arrivals.emptied();
        for round in 0..50 {
            assert!(!arrivals.pending().unwrap(), "round {round}");
            far.send(&[Piece::new(b"frame")]).unwrap();
            assert!(wait(&mut arrivals), "a frame was not seen in round {round}");
            assert!(arrivals.pending().unwrap(), "it waits still");
            let mut room = [0; 8];
            while near.receive(&mut [PieceMut::new(&mut room)]).unwrap().is_some() {}
            arrivals.emptied();
        }
        assert!(arrivals.skipped() >= 50);
    }
}
