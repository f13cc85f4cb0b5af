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
//! get them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::{Port, PortError, Sent, descriptor};

/// Bytes of a name in an ioctl: IFNAMSIZ.
const NAME_BYTES: usize = 16;
/// What may wait to be sent, in bytes of kernel memory: no bound, as a TAP has none (`tun->sndbuf`); the NIC's queue
/// bounds it. The default of a socket would drop frames that the wire could take.
static SEND_BUFFER: i32 = i32::MAX;
const NODE: &str = "port";

/// The part of `struct ifreq` (linux/if.h) that TUNSETIFF and TUNGETIFF use; the kernel reads and writes 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: i16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// Calls of linux/if_tun.h. The numbers of two say `int` where the structure is an ifreq all the same.
mod ioctl {
    use super::InterfaceRequest;
    use nix::{ioctl_read_bad, ioctl_write_ptr_bad, request_code_read, request_code_write};

    ioctl_write_ptr_bad! {
        /// TUNSETIFF: the flags of an open device.
        set_interface, request_code_write!(b'T', 202, size_of::<i32>()), InterfaceRequest
    }
    ioctl_read_bad! {
        /// TUNGETIFF: name and flags.
        get_interface, request_code_read!(b'T', 210, size_of::<u32>()), InterfaceRequest
    }
    ioctl_write_ptr_bad! {
        /// TUNSETSNDBUF: bytes that may wait.
        set_send_buffer, request_code_write!(b'T', 212, size_of::<i32>()), i32
    }
}

const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;

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
}

impl Macvtap {
    /// Opens the device of the link `name` by its number.
    ///
    /// # Errors
    /// [`PortError::Open`] with what to do: no node can be made or opened, or the device is another link's.
    pub fn open(name: &str, device: Device) -> Result<Self, PortError> {
        let Device { major, minor } = device;
        let port = || format!("macvtap `{name}` ({major}:{minor})");
        let refused = |advice, error: Errno| PortError::Open { port: port(), advice, source: error.into() };
        let descriptor = open_by_number(device).map_err(|(advice, error)| refused(advice, error))?;
        let of_link = link_name(&descriptor);
        let of_link = of_link.map_err(|error| refused("the device is not a macvtap's", error))?;
        if of_link != name.as_bytes() {
            return Err(refused("the number is another link's by now: the link was removed", Errno::ENODEV));
        }
        let request = InterfaceRequest { name: [0; NAME_BYTES], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
        // SAFETY: TUNSETIFF reads an ifreq, which the request is as far as the kernel reads it.
        unsafe { ioctl::set_interface(descriptor.as_raw_fd(), &raw const request) }
            .map_err(|error| refused("it takes no plain frames", error))?;
        // SAFETY: TUNSETSNDBUF reads an int.
        unsafe { ioctl::set_send_buffer(descriptor.as_raw_fd(), &raw const SEND_BUFFER) }
            .map_err(|error| refused("its send buffer can't be set", error))?;
        Ok(Self { descriptor, name: name.to_owned() })
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

/// Name of the link that an open device belongs to.
fn link_name(descriptor: &OwnedFd) -> nix::Result<Vec<u8>> {
    let mut request = InterfaceRequest { name: [0; NAME_BYTES], flags: 0, rest: [0; 22] };
    // SAFETY: TUNGETIFF writes the name and flags of an ifreq, which the request has room for.
    unsafe { ioctl::get_interface(descriptor.as_raw_fd(), &raw mut request) }?;
    Ok(request.name.iter().copied().take_while(|&byte| byte != 0).collect())
}

impl Port for Macvtap {
    fn send(&mut self, parts: &[std::io::IoSlice<'_>]) -> Result<Sent, PortError> {
        descriptor::send(self.descriptor.as_fd(), parts, |call, error| self.failed(call, error))
    }

    fn receive(&mut self, parts: &mut [std::io::IoSliceMut<'_>]) -> Result<Option<usize>, PortError> {
        descriptor::receive(self.descriptor.as_fd(), parts, |call, error| self.failed(call, error))
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
        let error = Macvtap::open("tt0", Device { major: 1, minor: 3 }).expect_err("no macvtap");
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
