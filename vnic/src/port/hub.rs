//! One end of a private Ethernet between two VMMs of a host: a socket that keeps the borders of its messages
//! (SOCK_SEQPACKET, unix(7)), each message a frame. No network of the host is part of it.
//!
//! The kernel's buffers are the wire: a frame that finds no room is lost. Frames may have headers and be unfinished, if both
//! ends' adapters have the same offloads: nobody in between finishes them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::{Framing, Port, PortError, Sent, descriptor};
use crate::piece::{Piece, PieceMut};

const NAME: &str = "hub";

/// An end.
#[derive(Debug)]
pub struct Hub {
    socket: OwnedFd,
    framing: Framing,
}

fn failed(call: &'static str, error: Errno) -> PortError {
    PortError::Io { call, port: NAME.to_owned(), source: error.into() }
}

impl Hub {
    /// The end that `socket` is.
    ///
    /// # Errors
    /// [`PortError::Open`] if it is no such socket.
    pub fn new(socket: OwnedFd, framing: Framing) -> Result<Self, PortError> {
        let refused = |source: Errno| PortError::Open {
            port: NAME.to_owned(),
            advice: "whoever starts this program leaves it a socket of type SOCK_SEQPACKET",
            source: source.into(),
        };
        match getsockopt(&socket, sockopt::SockType).map_err(refused)? {
            SockType::SeqPacket => Ok(Self { socket, framing }),
            _ => Err(refused(Errno::EPROTOTYPE)),
        }
    }

    /// The end whose socket this process has inherited as `descriptor`. Called once for it.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn inherited(descriptor: RawFd, framing: Framing) -> Result<Self, PortError> {
        let refused = |source: Errno| PortError::Open {
            port: NAME.to_owned(),
            advice: "whoever starts this program leaves it the descriptor that it names",
            source: source.into(),
        };
        if descriptor <= 2 {
            return Err(refused(Errno::EBADF));
        }
        // SAFETY: only borrowed for this call, which fails on a descriptor that is not open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(refused)?;
        // SAFETY: open, as was just seen, and left to us by the process that started this one, for nobody else.
        Self::new(unsafe { OwnedFd::from_raw_fd(borrowed.as_raw_fd()) }, framing)
    }
}

/// Whether nobody is at the other end any more: a wire that is unplugged loses frames and brings none.
fn is_unplugged(error: &PortError) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error, PortError::Io { source, .. } if matches!(source.kind(), BrokenPipe | ConnectionReset))
}

impl Port for Hub {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        match descriptor::send(self.socket.as_fd(), Framing::Bare, parts, failed) {
            Err(error) if is_unplugged(&error) => Ok(Sent::Dropped),
            sent => sent,
        }
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        // No frame is empty: that is the end of the socket.
        descriptor::receive(self.socket.as_fd(), parts, failed)
            .map(|length| length.filter(|length| *length > 0))
    }

    fn framing(&self) -> Framing {
        self.framing
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, socketpair};

    use super::*;

    fn sockets(kind: SockType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_NONBLOCK).unwrap()
    }

    #[test]
    fn frames_keep_their_borders_both_ways() {
        let (one, other) = sockets(SockType::SeqPacket);
        let (mut one, mut other) =
            (Hub::new(one, Framing::Bare).unwrap(), Hub::new(other, Framing::Bare).unwrap());
        let mut room = [0; 64];
        assert_eq!(other.receive(&mut [PieceMut::new(&mut room)]).unwrap(), None);
        one.send(&[Piece::new(b"he"), Piece::new(b"llo")]).unwrap();
        one.send(&[Piece::new(b"again")]).unwrap();
        let (mut head, mut tail) = ([0; 2], [0; 62]);
        let mut parts = [PieceMut::new(&mut head), PieceMut::new(&mut tail)];
        assert_eq!(other.receive(&mut parts).unwrap(), Some(5));
        assert_eq!((&head, &tail[..3]), (b"he", &b"llo"[..]));
        assert_eq!(other.receive(&mut [PieceMut::new(&mut room)]).unwrap(), Some(5));
        other.send(&[Piece::new(b"back")]).unwrap();
        assert_eq!(one.receive(&mut [PieceMut::new(&mut room)]).unwrap(), Some(4));
    }

    #[test]
    fn a_full_wire_and_one_without_another_end_lose_frames() {
        let (one, other) = sockets(SockType::SeqPacket);
        let mut one = Hub::new(one, Framing::Bare).unwrap();
        let frame = [0; 1514];
        let taken =
            (0..100_000).take_while(|_| one.send(&[Piece::new(&frame)]).unwrap() == Sent::Taken).count();
        assert!((1..100_000).contains(&taken), "{taken}");
        drop(other);
        assert_eq!(one.send(&[Piece::new(&frame)]).unwrap(), Sent::Dropped);
        assert_eq!(one.receive(&mut [PieceMut::new(&mut [0; 64])]).unwrap(), None);
    }

    #[test]
    fn what_is_no_such_socket_is_refused() {
        let (stream, _other) = sockets(SockType::Stream);
        assert!(matches!(Hub::new(stream, Framing::Bare), Err(PortError::Open { .. })));
        for descriptor in [-1, 0, 2, 1_000_000] {
            let refused = Hub::inherited(descriptor, Framing::Bare);
            assert!(matches!(refused, Err(PortError::Open { .. })), "{descriptor}");
        }
    }
}
