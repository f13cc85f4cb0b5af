//! The plug of an interface: an ioctl(2), because a process that does it takes longer than what it is to disturb.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

/// Sets an interface of the calling thread's network up or down (netdevice(7)).
///
/// # Errors
/// The system's word.
pub fn set(name: &str, up: bool) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an ifreq is plain data, for which all zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the kernel reads and writes the ifreq that is passed, no more, and only during the call.
    let told = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    if told != 0 {
        return Err(io::Error::last_os_error());
    }
    let flag = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCGIFFLAGS has written this member of the union, which is plain data in any case.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = if up { flags | flag } else { flags & !flag };
    // SAFETY: as above.
    let set = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
