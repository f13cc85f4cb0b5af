//! Queue pairs: each receiveq and transmitq has a port of its own, a queue of one interface (virtio 1.2, 5.1.2).
//!
//! ```text
//!               reset                        VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET n
//!  (any) ----------------> pair 1 alone ----------------------------------------> pairs 1 to n
//!                               ^  the ports of the others are detached: the kernel sends their frames elsewhere
//! ```
//! Which pair gets a flow is the kernel's choice: that from which the flow's frames came last, as the automatic receive
//! steering of 5.1.6.5.6 wants it.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::port::{Lost, Offloads, Port, PortError};

const NAME: &str = "queue pairs";

/// What a pair has that is not in its queues.
pub(super) struct Pair {
    pub(super) port: Box<dyn Port>,
    /// A frame as the port gave it that waits for more mergeable buffers; empty if there is none.
    pub(super) waiting: Vec<u8>,
}

/// The pairs of a device.
pub(super) struct Pairs {
    pairs: Vec<Pair>,
    enabled: usize,
    /// Readable while the port of an enabled pair is; a single pair's port says that itself.
    readable: Option<Epoll>,
}

fn failed(call: &'static str) -> impl Fn(Errno) -> PortError {
    move |errno| PortError::Io { call, port: NAME.to_owned(), source: errno.into() }
}

impl Pairs {
    /// One pair for each port, the first enabled.
    pub(super) fn new(ports: Vec<Box<dyn Port>>) -> Result<Self, PortError> {
        let several = ports.len() > 1;
        let epoll = || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("epoll_create1"));
        let readable = several.then(epoll).transpose()?;
        let pairs = ports.into_iter().map(|port| Pair { port, waiting: Vec::new() }).collect();
        let mut pairs = Self { pairs, enabled: 0, readable };
        if several {
            for pair in &mut pairs.pairs {
                pair.port.set_attached(false)?;
            }
        }
        pairs.enable(1)?;
        Ok(pairs)
    }

    /// All of them.
    pub(super) fn count(&self) -> usize {
        self.pairs.len()
    }

    /// How many are in use: the first ones.
    pub(super) fn enabled(&self) -> usize {
        self.enabled
    }

    /// One of them.
    pub(super) fn get(&mut self, index: usize) -> &mut Pair {
        &mut self.pairs[index]
    }

    /// Uses the first `count` and no others. A frame that waits in one of these is lost.
    pub(super) fn enable(&mut self, count: usize) -> Result<(), PortError> {
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            let (is, shall_be) = (index < self.enabled, index < count);
            if is == shall_be {
                continue;
            }
            pair.waiting.clear();
            pair.port.set_attached(shall_be)?;
            let Some((readable, fd)) = self.readable.as_ref().zip(pair.port.fd()) else { continue };
            if shall_be {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
                readable.add(fd, event).map_err(failed("epoll_ctl"))?;
            } else {
                readable.delete(fd).map_err(failed("epoll_ctl"))?;
            }
        }
        self.enabled = count;
        Ok(())
    }

    /// After a reset: the first alone, with no frame.
    pub(super) fn reset(&mut self) -> Result<(), PortError> {
        self.pairs.iter_mut().for_each(|pair| pair.waiting.clear());
        self.enable(1)
    }

    /// Which frames may come unfinished.
    pub(super) fn set_offloads(&mut self, offloads: Offloads) -> Result<(), PortError> {
        self.pairs.iter_mut().try_for_each(|pair| pair.port.set_offloads(offloads))
    }

    /// What the ports lost inside.
    pub(super) fn lost(&self) -> impl Iterator<Item = Lost> {
        self.pairs.iter().map(|pair| pair.port.lost())
    }

    /// Readable while a frame waits in the port of an enabled pair.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.readable {
            Some(epoll) => Some(epoll.0.as_fd()),
            None => self.pairs.first().and_then(|pair| pair.port.fd()),
        }
    }
}
