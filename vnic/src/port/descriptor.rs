//! Frames through a descriptor of the kernel that takes and gives one frame a call: what TAP and macvtap have in
//! common. Both are open with IFF_NO_PI, so that nothing but the header of IFF_VNET_HDR stands before a frame.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::uio::{readv, writev};

use super::{Framing, PortError, Sent};

/// Sends one frame. `failed` names the port in an error.
pub(super) fn send(
    descriptor: BorrowedFd<'_>,
    framing: Framing,
    parts: &[IoSlice<'_>],
    failed: impl FnOnce(&'static str, Errno) -> PortError,
) -> Result<Sent, PortError> {
    loop {
        return match writev(descriptor, parts) {
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
    parts: &mut [IoSliceMut<'_>],
    failed: impl FnOnce(&'static str, Errno) -> PortError,
) -> Result<Option<usize>, PortError> {
    loop {
        return match readv(descriptor, parts) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(failed("readv", error)),
        };
    }
}
