//! The number of a macvtap's character device, from the kernel's own announcement of it (lib/kobject_uevent.c).
//!
//! ```text
//!   listen --link is made--> add@/devices/virtual/net/tt<id>/macvtap/tap5 .. SUBSYSTEM=macvtap MAJOR=246 MINOR=2
//! ```
//! Sysfs has the number too, but shows the network namespace in which it was mounted, which need not be the agent's.
//! The announcement is sent to the namespace of the link, before the kernel answers the request that makes it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};

use super::NetworkError;

/// The multicast group of the kernel's announcements; udev's are in another.
const KERNEL: u32 = 1;
/// An announcement is at most this long (`UEVENT_BUFFER_SIZE` and its header).
const LONGEST: usize = 4096;
/// Bytes of announcements that may wait: a host that makes many links at once has many to say.
const BUFFER: usize = 1 << 20;

/// Listens for the announcements of one network namespace.
#[derive(Debug)]
pub(super) struct Announcements {
    socket: OwnedFd,
}

impl Announcements {
    /// Begins to listen in the network namespace of the calling thread.
    pub(super) fn listen() -> Result<Self, NetworkError> {
        let error = |error: Errno| NetworkError::Socket {
            what: "the kernel's announcements of devices can't be listened for (NETLINK_KOBJECT_UEVENT)",
            source: error.into(),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).map_err(error)?;
        // As much as the host allows: one that gives less has less to announce.
        let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL)).map_err(error)?;
        Ok(Self { socket })
    }

    /// The major and minor number of the device of `link`, which has been made since [`listen`](Self::listen).
    pub(super) fn device_of(&self, link: &str) -> Result<(u32, u32), NetworkError> {
        let failed = |source: io::Error| NetworkError::Device { link: link.to_owned(), source };
        let mut bytes = [0; LONGEST];
        loop {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut bytes) {
                // A process may send to the group too; the kernel's port is 0.
                Ok((length, Some(sender))) if sender.pid() == 0 => {
                    if let Some(number) = device(&bytes[..length], link) {
                        return Ok(number);
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    return Err(failed(io::Error::new(
                        io::ErrorKind::NotFound,
                        "the kernel has announced none: is it built with CONFIG_MACVTAP?",
                    )));
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

/// The number in an announcement, if that is of the device of `link`.
fn device(announcement: &[u8], link: &str) -> Option<(u32, u32)> {
    let fields: Vec<&str> =
        announcement.split(|&byte| byte == 0).filter_map(|field| std::str::from_utf8(field).ok()).collect();
    let field = |key: &str| {
        fields
            .iter()
            .find_map(|field| field.split_once('=').filter(|(found, _)| *found == key))
            .map(|(_, v)| v)
    };
    if field("ACTION") != Some("add") || field("SUBSYSTEM") != Some("macvtap") {
        return None;
    }
    // .../net/LINK/macvtap/tapN
    let mut path = field("DEVPATH")?.rsplit('/').skip(1);
    if (path.next(), path.next(), path.next()) != (Some("macvtap"), Some(link), Some("net")) {
        return None;
    }
    Some((field("MAJOR")?.parse().ok()?, field("MINOR")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(action: &str, link: &str, rest: &str) -> Vec<u8> {
        let path = format!("/devices/virtual/net/{link}/macvtap/tap5");
        let fields = format!("{action}@{path} ACTION={action} DEVPATH={path} {rest} SEQNUM=7 ");
        fields.replace(' ', "\0").into_bytes()
    }

    #[test]
    fn the_number_is_that_of_our_link_and_of_no_other() {
        let rest = "SUBSYSTEM=macvtap MAJOR=246 MINOR=2 DEVNAME=tap5";
        assert_eq!(device(&announcement("add", "tt1", rest), "tt1"), Some((246, 2)));
        assert_eq!(device(&announcement("add", "tt2", rest), "tt1"), None);
        assert_eq!(device(&announcement("remove", "tt1", rest), "tt1"), None);
        assert_eq!(device(&announcement("add", "tt1", "SUBSYSTEM=net MAJOR=1 MINOR=2"), "tt1"), None);
        assert_eq!(device(&announcement("add", "tt1", "SUBSYSTEM=macvtap MAJOR=246"), "tt1"), None);
        assert_eq!(device(&announcement("add", "tt1", "SUBSYSTEM=macvtap MAJOR=x MINOR=2"), "tt1"), None);
        for hostile in [&b""[..], b"\0\0", b"add@/x\0ACTION=add\0SUBSYSTEM=macvtap\0DEVPATH=\0", &[0xff; 64]]
        {
            assert_eq!(device(hostile, "tt1"), None);
        }
    }
}
