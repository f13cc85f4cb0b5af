//! Frames through a descriptor of the kernel that takes and gives one frame a call: what TAP and macvtap have in
//! common. Both are open with IFF_NO_PI and
//! without IFF_VNET_HDR, so that nothing stands before a frame.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::uio::{readv, writev};

use super::{PortError, Sent};

/// Sends one frame. `failed` names the port in an error.
pub(super) fn send(
    descriptor: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    failed: impl FnOnce(&'static str, Errno) -> PortError,
) -> Result<Sent, PortError> {
    loop {
        return match writev(descriptor, parts) {
            Ok(_) => Ok(Sent::Taken),
            Err(Errno::EINTR) => continue,
            // EIO: the interface is down, a wire that nobody has plugged in.
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EIO) => Ok(Sent::Dropped),
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
