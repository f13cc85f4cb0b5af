//! A macvtap device: a link of its own MAC address on a NIC, whose frames we take and give instead of the kernel's
//! stack (drivers/net/macvtap.c, drivers/net/tap.c). Somebody else has made the link; the port opens its character
//! device.
//!
//! ```text
//!   link tt<id> on the NIC --uevent--> major:minor --mknod in a private tmpfs--> open --TUNGETIFF: tt<id>?--> port
//! ```
//! The device is opened by its number. The node that udev makes of it stands in the /dev of the host, under a name
//! that counts interfaces of all network namespaces, and a container or namespace has none. So a node is made on a
//! tmpfs that is mounted nowhere (fsmount(2)) and ends with the descriptor: no path and no other process ever sees it.
//!
//! Its queue towards us holds as many frames as the link's `txqueuelen` was when it was opened; the kernel drops what
//! comes while it is full. Frames that were to be segmented or checksummed by the NIC are by the kernel, before we
//! get them, unless the adapter takes them unfinished ([`Offloads`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::{Framing, Offloads, Port, PortError, Queues, Sent, descriptor, tun};

/// What may wait to be sent, in bytes of kernel memory: no bound, as a TAP has none (`tun->sndbuf`); the NIC's queue
/// bounds it. The default of a socket would drop frames that the wire could take.
const SEND_BUFFER: i32 = i32::MAX;
const NODE: &str = "port";

/// The number of a character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Major number: that of the macvtap driver.
    pub major: u32,
    /// Minor number: the link's.
    pub minor: u32,
}

/// An open macvtap.
#[derive(Debug)]
pub struct Macvtap {
    descriptor: OwnedFd,
    name: String,
    framing: Framing,
    attached: bool,
}

impl Macvtap {
    /// Opens the device of the link `name` by its number, for frames with or without headers.
    ///
    /// # Errors
    /// [`PortError::Open`] with what to do: no node can be made or opened, or the device is another link's.
    pub fn open(name: &str, device: Device, framing: Framing) -> Result<Self, PortError> {
        Self::open_queue(name, device, framing, Queues::Single)
    }

    /// As [`open`](Self::open), with `count` queues, all attached: each port is one of them.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_queues(
        name: &str,
        device: Device,
        framing: Framing,
        count: usize,
    ) -> Result<Vec<Self>, PortError> {
        (0..count).map(|_| Self::open_queue(name, device, framing, Queues::Multiple)).collect()
    }

    fn open_queue(name: &str, device: Device, framing: Framing, queues: Queues) -> Result<Self, PortError> {
        let Device { major, minor } = device;
        let port = || format!("macvtap `{name}` ({major}:{minor})");
        let refused = |advice, error: Errno| PortError::Open { port: port(), advice, source: error.into() };
        let descriptor = open_by_number(device).map_err(|(advice, error)| refused(advice, error))?;
        let of_link = tun::link_name(descriptor.as_fd());
        let of_link = of_link.map_err(|error| refused("the device is not a macvtap's", error))?;
        if of_link != name.as_bytes() {
            return Err(refused("the number is another link's by now: the link was removed", Errno::ENODEV));
        }
        tun::set_interface(descriptor.as_fd(), "", framing, queues).map_err(|error| match framing {
            Framing::Bare => refused("it takes no plain frames", error),
            Framing::VirtioNetHeader => refused(tun::of_header(error), error),
        })?;
        tun::set_send_buffer(descriptor.as_fd(), SEND_BUFFER)
            .map_err(|error| refused("its send buffer can't be set", error))?;
        Ok(Self { descriptor, name: name.to_owned(), framing, attached: true })
    }

    /// Name of the link.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn failed(&self, call: &'static str, error: Errno) -> PortError {
        PortError::Io { call, port: format!("macvtap `{}`", self.name), source: error.into() }
    }
}

/// Opens the character device of that number for reading and writing, without blocking; or says what to do.
fn open_by_number(device: Device) -> Result<OwnedFd, (&'static str, Errno)> {
    let step = |advice: fn(Errno) -> &'static str| {
        move |error: rustix::io::Errno| {
            let error = Errno::from_raw(error.raw_os_error());
            (advice(error), error)
        }
    };
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(step(of_mount))?;
    fsconfig_create(context.as_fd()).map_err(step(of_mount))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let folder =
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(step(of_mount))?;
    let number = makedev(device.major, device.minor);
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(&folder, NODE, FileType::CharacterDevice, mode, number).map_err(step(of_mknod))?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(&folder, NODE, flags, Mode::empty()).map_err(step(of_open))
}

fn of_mount(error: Errno) -> &'static str {
    match error {
        Errno::EPERM => "CAP_SYS_ADMIN is needed to make its node: run as root; in a container, privileged",
        Errno::ENODEV => "the kernel has no tmpfs: boot one with CONFIG_TMPFS",
        _ => "no place for its node could be made",
    }
}

fn of_mknod(error: Errno) -> &'static str {
    match error {
        Errno::EPERM => {
            "CAP_MKNOD is needed to make its node: run as root of the host, not of a user namespace; in a container, \
             privileged"
        }
        _ => "its node could not be made",
    }
}

fn of_open(error: Errno) -> &'static str {
    match error {
        Errno::EPERM => {
            "the control group forbids the device: allow character devices of this major number to the container \
             (privileged does)"
        }
        Errno::EACCES => {
            "devices can't be opened on file systems of a user namespace: run as root of the host, not of a user \
             namespace"
        }
        Errno::ENXIO | Errno::ENODEV => {
            "there is no such device: the link was removed, or `modprobe macvtap`"
        }
        Errno::EBUSY => "all its queues are open: another process holds it",
        _ => "see the system's word",
    }
}

impl Port for Macvtap {
    fn send(&mut self, parts: &[crate::piece::Piece<'_>]) -> Result<Sent, PortError> {
        descriptor::send(self.descriptor.as_fd(), self.framing, parts, |call, error| self.failed(call, error))
    }

    fn receive(&mut self, parts: &mut [crate::piece::PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        descriptor::receive(self.descriptor.as_fd(), parts, |call, error| self.failed(call, error))
    }

    fn framing(&self) -> Framing {
        self.framing
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), PortError> {
        match self.framing {
            Framing::Bare => Ok(()),
            Framing::VirtioNetHeader => tun::set_offloads(self.descriptor.as_fd(), offloads)
                .map_err(|error| self.failed("TUNSETOFFLOAD", error)),
        }
    }

    fn set_attached(&mut self, attached: bool) -> Result<(), PortError> {
        if self.attached != attached {
            tun::set_attached(self.descriptor.as_fd(), attached)
                .map_err(|error| self.failed("TUNSETQUEUE", error))?;
            self.attached = attached;
        }
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.descriptor.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_no_macvtap_is_refused() {
        // /dev/null has the number 1:3 on every Linux (Documentation/admin-guide/devices.txt).
        let error =
            Macvtap::open("tt0", Device { major: 1, minor: 3 }, Framing::Bare).expect_err("no macvtap");
        let PortError::Open { port, advice, .. } = error else { panic!("{error:?}") };
        assert_eq!(port, "macvtap `tt0` (1:3)");
        // Who may make no nodes is told that.
        assert!(advice.contains("not a macvtap") || advice.contains("needed to make its node"), "{advice}");
    }

    #[test]
    fn advice_names_what_is_lacking() {
        assert!(of_mount(Errno::EPERM).contains("CAP_SYS_ADMIN"));
        assert!(of_mknod(Errno::EPERM).contains("CAP_MKNOD"));
        assert!(of_open(Errno::EPERM).contains("control group"));
        assert!(of_open(Errno::EACCES).contains("user namespace"));
        assert!(of_open(Errno::ENXIO).contains("modprobe macvtap"));
    }
}
