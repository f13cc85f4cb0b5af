//! Private Ethernets of trials with both ends on this host: a pair of sockets, one for each VMM.
//!
//! The first of the two ends that is made ready takes one socket and leaves the other, the second takes that. The kernel's
//! buffers are the wire; they are gone with the VMMs.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use toll_protocol::trial::TrialId;

/// Bytes that may be under way in each direction: what a guest's TCP sends unacknowledged at most, with what the kernel
/// counts beside each frame.
const BUFFER: usize = 8 << 20;

/// Sockets that have not been taken, by the trial's own id.
#[derive(Debug, Default)]
pub(crate) struct Hubs(Mutex<HashMap<TrialId, OwnedFd>>);

impl Hubs {
    /// The socket for an end.
    ///
    /// # Errors
    /// The system's, if there can be no pair.
    pub fn take(&self, end: TrialId) -> io::Result<OwnedFd> {
        let mut left = self.lock();
        if let Some(socket) = left.remove(&end.near()) {
            return Ok(socket);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        for socket in [&one, &other] {
            // Without the right to go beyond the host's limit (net.core.wmem_max) the limit is what there is: a frame that
            // finds no room is lost, as on any wire.
            if sockopt::set_socket_send_buffer_size_force(socket, BUFFER).is_err() {
                sockopt::set_socket_send_buffer_size(socket, BUFFER)?;
            }
        }
        left.insert(end.near(), other);
        Ok(one)
    }

    /// An end is released: nobody will take what it has left.
    pub fn forget(&self, end: TrialId) {
        self.lock().remove(&end.near());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TrialId, OwnedFd>> {
        // Nothing in here panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{RecvFlags, SendFlags, recv, send};

    use super::*;

    #[test]
    fn both_ends_of_a_trial_get_the_same_pair_and_other_trials_another() {
        let hubs = Hubs::default();
        let trial = TrialId::new(7);
        let (near, other, far) =
            (hubs.take(trial).unwrap(), hubs.take(TrialId::new(8)).unwrap(), hubs.take(trial.far()).unwrap());
        send(&near, b"a frame", SendFlags::empty()).unwrap();
        send(&near, b"and another", SendFlags::empty()).unwrap();
        let mut room = [0; 32];
        assert_eq!(recv(&far, &mut room, RecvFlags::empty()).unwrap().0, 7);
        assert_eq!(recv(&far, &mut room, RecvFlags::empty()).unwrap().0, 11);
        assert!(recv(other.as_fd(), &mut room, RecvFlags::empty()).is_err(), "it came to another trial");
    }

    #[test]
    fn what_an_end_that_failed_has_left_is_closed() {
        let hubs = Hubs::default();
        let near = hubs.take(TrialId::new(7)).unwrap();
        hubs.forget(TrialId::new(7).far());
        assert!(send(&near, b"x", SendFlags::NOSIGNAL).is_err(), "somebody holds the other end");
    }
}
