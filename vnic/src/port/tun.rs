//! Calls of linux/if_tun.h, which TAP and macvtap have in common, and the header that stands before a frame with
//! IFF_VNET_HDR.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::{Framing, Offloads, Queues};
use crate::vnet_header;

/// Bytes of a name in an ioctl: IFNAMSIZ.
const NAME_BYTES: usize = 16;
/// Bytes of the header, as an ioctl takes them.
static HEADER_BYTES: i32 = vnet_header::LENGTH as i32;

const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_ATTACH_QUEUE: i16 = 0x0200;
const IFF_DETACH_QUEUE: i16 = 0x0400;

const TUN_F_CSUM: i32 = 0x01;
const TUN_F_TSO4: i32 = 0x02;
const TUN_F_TSO6: i32 = 0x04;

/// The part of `struct ifreq` (linux/if.h) that TUNSETIFF and TUNGETIFF use; the kernel reads and writes 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: i16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// The calls. The numbers of some say `int` where the structure is an ifreq all the same.
mod ioctl {
    use super::InterfaceRequest;
    use nix::{
        ioctl_read_bad, ioctl_write_int_bad, ioctl_write_ptr_bad, request_code_read, request_code_write,
    };

    ioctl_write_ptr_bad! {
        /// TUNSETIFF: name and flags of an open device.
        set_interface, request_code_write!(b'T', 202, size_of::<i32>()), InterfaceRequest
    }
    ioctl_write_int_bad! {
        /// TUNSETOFFLOAD: which unfinished frames may be given to us.
        set_offload, request_code_write!(b'T', 208, size_of::<u32>())
    }
    ioctl_read_bad! {
        /// TUNGETIFF: name and flags.
        get_interface, request_code_read!(b'T', 210, size_of::<u32>()), InterfaceRequest
    }
    ioctl_write_ptr_bad! {
        /// TUNSETSNDBUF: bytes that may wait.
        set_send_buffer, request_code_write!(b'T', 212, size_of::<i32>()), i32
    }
    ioctl_write_ptr_bad! {
        /// TUNSETQUEUE: whether a queue of several gets frames.
        set_queue, request_code_write!(b'T', 217, size_of::<i32>()), InterfaceRequest
    }
    ioctl_write_ptr_bad! {
        /// TUNSETVNETHDRSZ: bytes of the header.
        set_header_size, request_code_write!(b'T', 216, size_of::<i32>()), i32
    }
}

/// Makes an open device give and take Ethernet frames (IFF_TAP, IFF_NO_PI), with or without a header, as one of the
/// interface's queues. A TAP is created with `name`, or gets another queue if it has several; a macvtap has its name
/// already.
pub(super) fn set_interface(
    descriptor: BorrowedFd<'_>,
    name: &str,
    framing: Framing,
    queues: Queues,
) -> nix::Result<()> {
    let header = framing == Framing::VirtioNetHeader;
    let mut flags = IFF_TAP | IFF_NO_PI;
    flags |= if header { IFF_VNET_HDR } else { 0 };
    flags |= if queues == Queues::Multiple { IFF_MULTI_QUEUE } else { 0 };
    let mut request = InterfaceRequest { name: [0; NAME_BYTES], flags, rest: [0; 22] };
    // The last byte stays 0.
    for (to, from) in request.name[..NAME_BYTES - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF reads an ifreq and writes one back, which the request has room for.
    unsafe { ioctl::set_interface(descriptor.as_raw_fd(), (&raw mut request).cast_const()) }?;
    if header {
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        unsafe { ioctl::set_header_size(descriptor.as_raw_fd(), &raw const HEADER_BYTES) }?;
    }
    Ok(())
}

/// Tells the kernel which frames it may give us unfinished; the others it finishes itself.
pub(super) fn set_offloads(descriptor: BorrowedFd<'_>, offloads: Offloads) -> nix::Result<()> {
    let Offloads { checksum, tso4, tso6 } = offloads;
    let bits = [(checksum, TUN_F_CSUM), (tso4, TUN_F_TSO4), (tso6, TUN_F_TSO6)];
    let flags = bits.into_iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum();
    // SAFETY: TUNSETOFFLOAD takes flags and no pointer.
    unsafe { ioctl::set_offload(descriptor.as_raw_fd(), flags) }.map(drop)
}

/// A change of whether this queue of several gets frames.
pub(super) fn set_attached(descriptor: BorrowedFd<'_>, attached: bool) -> nix::Result<()> {
    let flags = if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
    let request = InterfaceRequest { name: [0; NAME_BYTES], flags, rest: [0; 22] };
    // SAFETY: TUNSETQUEUE reads an ifreq.
    unsafe { ioctl::set_queue(descriptor.as_raw_fd(), &raw const request) }.map(drop)
}

/// Bytes that may wait to be sent.
pub(super) fn set_send_buffer(descriptor: BorrowedFd<'_>, bytes: i32) -> nix::Result<()> {
    // SAFETY: TUNSETSNDBUF reads an int.
    unsafe { ioctl::set_send_buffer(descriptor.as_raw_fd(), &raw const bytes) }.map(drop)
}

/// Name of the link that an open device belongs to.
pub(super) fn link_name(descriptor: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    let mut request = InterfaceRequest { name: [0; NAME_BYTES], flags: 0, rest: [0; 22] };
    // SAFETY: TUNGETIFF writes the name and flags of an ifreq, which the request has room for.
    unsafe { ioctl::get_interface(descriptor.as_raw_fd(), &raw mut request) }?;
    Ok(request.name.iter().copied().take_while(|&byte| byte != 0).collect())
}

/// What to do if a frame's header can't be had.
pub(super) fn of_header(error: Errno) -> &'static str {
    match error {
        Errno::EINVAL => "this kernel's driver has no IFF_VNET_HDR: leave the adapter's offloads off",
        _ => "see the system's word",
    }
}
