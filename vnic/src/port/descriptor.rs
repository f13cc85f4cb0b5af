//! Frames through a descriptor of the kernel that takes and gives one frame a call: what TAP and macvtap have in
//! common. Both are open with IFF_NO_PI, so that nothing but the header of IFF_VNET_HDR stands before a frame.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::{Framing, PortError, Sent};
use crate::piece::{Piece, PieceMut};

/// A number of pieces, which are far fewer, as the call takes it.
fn count(parts: usize) -> libc::c_int {
    libc::c_int::try_from(parts).unwrap_or(libc::c_int::MAX)
}

/// Sends one frame. `failed` names the port in an error.
pub(super) fn send(
    descriptor: BorrowedFd<'_>,
    framing: Framing,
    parts: &[Piece<'_>],
    failed: impl FnOnce(&'static str, Errno) -> PortError,
) -> Result<Sent, PortError> {
    loop {
        // SAFETY: so many I/O vectors, which pieces are, each of bytes that can be read.
        let written =
            unsafe { libc::writev(descriptor.as_raw_fd(), parts.as_ptr().cast(), count(parts.len())) };
        return match Errno::result(written) {
            Ok(_) => Ok(Sent::Taken),
            Err(Errno::EINTR) => continue,
            // EIO: the interface is down, a wire that nobody has plugged in.
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EIO) => Ok(Sent::Dropped),
            // virtio_net_hdr_to_skb: offsets outside of the frame, or another protocol than the header says.
            Err(error @ Errno::EINVAL) if framing == Framing::VirtioNetHeader => {
                Err(match failed("writev", error) {
                    PortError::Io { port, .. } => PortError::Refused { port },
                    other => other,
                })
            }
            Err(error) => Err(failed("writev", error)),
        };
    }
}

/// Receives one frame, if there is one. `failed` names the port in an error.
pub(super) fn receive(
    descriptor: BorrowedFd<'_>,
    parts: &mut [PieceMut<'_>],
    failed: impl FnOnce(&'static str, Errno) -> PortError,
) -> Result<Option<usize>, PortError> {
    loop {
        // SAFETY: so many I/O vectors, which pieces are, each of bytes that can be written.
        let read = unsafe { libc::readv(descriptor.as_raw_fd(), parts.as_ptr().cast(), count(parts.len())) };
        return match Errno::result(read) {
            // What is no error is no negative number.
            Ok(length) => Ok(Some(length as usize)),
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(failed("readv", error)),
        };
    }
}
