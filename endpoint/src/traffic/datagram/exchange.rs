//! What the threads of an end tell each other: the control thread the moments of its interval, the sending thread how many of its
//! datagrams belong to it, and the reading one what the peer said.

use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use toll_protocol::traffic::datagram::{Delivery, Found};
use toll_protocol::trial::TrialId;

use super::header::{Header, Kind};
use super::socket;

/// Where the sender's interval is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// The search for the rate: the sending thread reads the socket itself.
    Search,
    /// Before the interval.
    Before,
    /// In it.
    Inside,
    /// After it.
    After,
}

/// The socket, and what is told.
#[derive(Debug)]
pub struct Exchange {
    socket: UdpSocket,
    trial: TrialId,
    phase: AtomicU8,
    sent: AtomicU64,
    received: AtomicU64,
    peer_has_all: AtomicBool,
    /// What the search found.
    pub found: OnceLock<Found>,
    /// What became of the peer's datagrams, once that is known.
    pub delivery: OnceLock<Delivery>,
}

impl Exchange {
    /// A socket that is connected to the peer.
    pub fn new(socket: UdpSocket, trial: TrialId, phase: Phase) -> Self {
        Self {
            socket,
            trial,
            phase: AtomicU8::new(phase as u8),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            peer_has_all: AtomicBool::new(false),
            found: OnceLock::new(),
            delivery: OnceLock::new(),
        }
    }

    /// The socket.
    pub const fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Where this end's interval is.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Search,
            1 => Phase::Before,
            2 => Phase::Inside,
            _ => Phase::After,
        }
    }

    /// It has come to this.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Datagrams sent and received so far, outside of a search.
    pub fn datagrams(&self) -> [u64; 2] {
        [&self.sent, &self.received].map(|count| count.load(Ordering::Relaxed))
    }

    /// The sending thread has sent so many.
    pub fn sent(&self, datagrams: u64) {
        self.sent.store(datagrams, Ordering::Relaxed);
    }

    /// The receiving thread has received so many.
    pub fn received(&self, datagrams: u64) {
        self.received.store(datagrams, Ordering::Relaxed);
    }

    /// Whether the peer has all that it measures of what this end sends.
    pub fn peer_has_all(&self) -> bool {
        self.peer_has_all.load(Ordering::Acquire)
    }

    /// Nobody needs what this end sends any more.
    pub fn nobody_listens(&self) {
        self.peer_has_all.store(true, Ordering::Release);
    }

    /// Takes what the peer said besides payload.
    ///
    /// # Errors
    /// What the kernel says of the answer.
    pub fn take(&self, header: Header) -> std::io::Result<()> {
        match header.kind {
            // Its welcome was lost.
            Kind::Hello if header == socket::greeting(Kind::Hello, self.trial) => {
                socket::say(&self.socket, socket::greeting(Kind::Welcome, self.trial))
            }
            Kind::Done => {
                self.nobody_listens();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl AsFd for Exchange {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
