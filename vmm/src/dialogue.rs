//! What is said between the program of a virtual end and the thread that controls it, whatever carries it. That the program
//! has got somewhere (ready, measuring, done) it announces to the machine it runs on, which sends an
//! [`Event`](crate::channel::Event).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::Ordering;

use toll_protocol::trial::EndReady;

use crate::claim::Claim;
use crate::config::LISTEN_PORT;
use crate::memory::SharedPages;

/// The words of a program and to it.
pub trait Dialogue: Send + Sync {
    /// It has announced that it is ready: where its peer finds it.
    fn ready(&self) -> EndReady;

    /// Tells it its peer, and to connect if that is its part.
    fn start(&self, peer: SocketAddrV4);

    /// Bytes of data that it has sent and received since the measured interval began, as it counts them: progress, not a result.
    fn progress(&self) -> (u64, u64);

    /// What it says it measured, once it has ended.
    fn finish(&self) -> Claim;
}

/// A dialogue by the pages that a payload program shares with the VMM: none of its words costs an exit.
pub struct PagesDialogue {
    pages: SharedPages,
    address: Ipv4Addr,
}

impl PagesDialogue {
    /// With the program that has `address`.
    pub fn new(pages: SharedPages, address: Ipv4Addr) -> Self {
        Self { pages, address }
    }
}

impl Dialogue for PagesDialogue {
    fn ready(&self) -> EndReady {
        EndReady { address: SocketAddrV4::new(self.address, LISTEN_PORT) }
    }

    fn start(&self, peer: SocketAddrV4) {
        let command = self.pages.command();
        // Network order in memory.
        command.peer_address.store(u32::from_ne_bytes(peer.ip().octets()), Ordering::Relaxed);
        command.peer_port.store(u32::from(peer.port()), Ordering::Relaxed);
        command.start.store(1, Ordering::Release);
    }

    fn progress(&self) -> (u64, u64) {
        self.pages.measured_bytes()
    }

    fn finish(&self) -> Claim {
        Claim::of(self.pages.status())
    }
}
