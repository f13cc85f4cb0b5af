//! The socket of an end, and how the two ends find each other: the connecting one says hello until it is answered, which opens a
//! way through address translation too.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use toll_protocol::traffic::datagram::Datagram;
use toll_protocol::trial::TrialId;

use super::header::{Header, Kind};
use crate::clock::waited;
use crate::config::EndConfig;
use crate::control::Control;
use crate::socket::{CONNECT_LIMIT, SocketError};

/// How often the connecting end says hello.
const HELLO_EVERY: Duration = Duration::from_millis(20);
/// What the kernel may hold of a socket's datagrams: some milliseconds of the fastest path, while their thread waits for a CPU.
const BUFFER: usize = 8 << 20;
/// How long a thread waits in a call before it looks around.
pub const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often a datagram is sent that nobody confirms.
pub const UNCONFIRMED: u32 = 3;

fn io_error(call: &'static str, address: SocketAddrV4) -> impl Fn(io::Error) -> SocketError {
    move |source| SocketError::Io { call, address, source }
}

/// Sets an option that is a number and that nix does not know.
fn set(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is one of `length` bytes that outlives the call.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A socket that is bound to the config's address and to its interface alone. Its datagrams are never fragmented.
///
/// # Errors
/// [`SocketError::Io`] or [`SocketError::Interface`].
pub fn open(config: &EndConfig, datagram: &Datagram) -> Result<UdpSocket, SocketError> {
    let address = config.bind;
    let failed = |call: &'static str| move |errno: Errno| io_error(call, address)(errno.into());
    let fd: OwnedFd =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp)
            .map_err(failed("socket"))?;
    setsockopt(&fd, sockopt::BindToDevice, &config.interface).map_err(|errno| SocketError::Interface {
        interface: config.interface.clone(),
        source: errno.into(),
    })?;
    // Beyond net.core.rmem_max if this process may, as those of agents may; else up to it.
    if setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&fd, sockopt::RcvBuf, &BUFFER).map_err(failed("setsockopt of SO_RCVBUF"))?;
    }
    if datagram.segmentation_offload {
        set(&fd, libc::SOL_UDP, libc::UDP_GRO, 1).map_err(io_error("setsockopt of UDP_GRO", address))?;
    }
    set(&fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
        .map_err(io_error("setsockopt of IP_MTU_DISCOVER", address))?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(address)).map_err(failed("bind"))?;
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(LOOK_EVERY)).map_err(io_error("setsockopt of SO_RCVTIMEO", address))?;
    socket.set_write_timeout(Some(LOOK_EVERY)).map_err(io_error("setsockopt of SO_SNDTIMEO", address))?;
    Ok(socket)
}

/// Where it is bound.
///
/// # Errors
/// [`SocketError::Io`].
pub fn address(socket: &UdpSocket, config: &EndConfig) -> Result<SocketAddrV4, SocketError> {
    match socket.local_addr() {
        Ok(SocketAddr::V4(address)) => Ok(address),
        Ok(SocketAddr::V6(_)) => Err(io_error("getsockname", config.bind)(ErrorKind::InvalidData.into())),
        Err(source) => Err(io_error("getsockname", config.bind)(source)),
    }
}

/// Both ends say the number of the trial before payload crosses.
pub fn greeting(kind: Kind, trial: TrialId) -> Header {
    Header { number: trial.near().bits(), ..Header::new(kind) }
}

/// Reads one datagram: its header, if it is an end's, and who sent it. Waits [`LOOK_EVERY`] at most.
///
/// # Errors
/// What the kernel says.
pub fn read(socket: &UdpSocket) -> io::Result<(Option<Header>, SocketAddr)> {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((Header::of(&buffer[..length]), from))
}

/// What says no more than that there is nothing now, or that the peer's host has no such socket (ICMP, RFC 792: it may come yet).
pub fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionRefused)
}

/// Waits for the connecting end, from its host's address `peer`, and answers it. From then on the socket is connected to it: the kernel
/// keeps all others away.
///
/// # Errors
/// [`SocketError`]; [`SocketError::TimedOut`] if nobody comes until `deadline` or within [`CONNECT_LIMIT`].
pub fn accept(
    control: &mut Control,
    socket: &UdpSocket,
    config: &EndConfig,
    peer: SocketAddrV4,
    deadline: Duration,
) -> Result<(), SocketError> {
    let begin = control.clock().now();
    let until = deadline.min(begin + CONNECT_LIMIT);
    let hello = greeting(Kind::Hello, config.trial);
    loop {
        let woken = control.wait(&[(socket.as_fd(), PollFlags::POLLIN)], Some(until))?;
        if woken.is_some() {
            match read(socket) {
                Ok((Some(header), SocketAddr::V4(from))) if header == hello && from.ip() == peer.ip() => {
                    socket.connect(from).map_err(io_error("connect", from))?;
                    return say(socket, greeting(Kind::Welcome, config.trial))
                        .map_err(io_error("send", from));
                }
                // A stranger's, or a former trial's.
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(source) => return Err(io_error("recv", config.bind)(source)),
            }
        }
        if woken.is_none() || control.clock().now() >= until {
            let what = "the other end to say hello".to_owned();
            return Err(SocketError::TimedOut { waited: waited(begin, until), what });
        }
    }
}

/// Connects to the listening end at `peer`: says hello until it is answered.
///
/// # Errors
/// [`SocketError`]; [`SocketError::TimedOut`] if nobody answers until `deadline` or within [`CONNECT_LIMIT`].
pub fn connect(
    control: &mut Control,
    socket: &UdpSocket,
    config: &EndConfig,
    peer: SocketAddrV4,
    deadline: Duration,
) -> Result<(), SocketError> {
    let begin = control.clock().now();
    let until = deadline.min(begin + CONNECT_LIMIT);
    let (hello, welcome) = (greeting(Kind::Hello, config.trial), greeting(Kind::Welcome, config.trial));
    socket.connect(peer).map_err(io_error("connect", peer))?;
    let mut hello_at = begin;
    loop {
        let now = control.clock().now();
        if now >= until {
            let what = format!("{peer} to answer the hello");
            return Err(SocketError::TimedOut { waited: waited(begin, until), what });
        }
        if now >= hello_at {
            say(socket, hello).map_err(io_error("send", peer))?;
            hello_at = now + HELLO_EVERY;
        }
        if control.wait(&[(socket.as_fd(), PollFlags::POLLIN)], Some(hello_at.min(until)))?.is_none() {
            continue;
        }
        match read(socket) {
            // Payload is an answer too, where the answer itself was lost.
            Ok((Some(header), _)) if header == welcome || header.kind.is_payload() => return Ok(()),
            Ok(_) => {}
            Err(error) if is_passing(&error) => {}
            Err(source) => return Err(io_error("recv", peer)(source)),
        }
    }
}

/// Sends a header alone. What the path makes of it is not told; whoever needs an answer sends it again.
///
/// # Errors
/// What the kernel says.
pub fn say(socket: &UdpSocket, header: Header) -> io::Result<()> {
    match socket.send(&header.bytes()) {
        Err(error) if !is_passing(&error) => Err(error),
        _ => Ok(()),
    }
}

/// MTU of the way to the peer, in bytes of IP packet (IP_MTU, ip(7)).
pub fn mtu(socket: &UdpSocket) -> Option<u32> {
    number(socket, libc::IPPROTO_IP, libc::IP_MTU, [0; 1]).map(|[mtu]| mtu)
}

/// What the kernel has dropped so far since the socket's buffer was full.
pub fn drops(socket: &UdpSocket) -> Option<u32> {
    /// SK_MEMINFO_DROPS of the kernel's linux/sock_diag.h.
    const DROPS: usize = 8;
    /// Of the kernel's asm-generic/socket.h; libc has it for few architectures.
    const SO_MEMINFO: libc::c_int = 55;
    number(socket, libc::SOL_SOCKET, SO_MEMINFO, [0; DROPS + 1]).map(|all| all[DROPS])
}

/// An option that is `COUNT` numbers, if the kernel has it.
fn number<const COUNT: usize>(
    socket: &UdpSocket,
    level: libc::c_int,
    name: libc::c_int,
    mut value: [u32; COUNT],
) -> Option<[u32; COUNT]> {
    let mut length = libc::socklen_t::try_from(size_of_val(&value)).ok()?;
    let whole = length;
    let pointer = value.as_mut_ptr().cast();
    // SAFETY: `pointer` leads to `length` writable bytes, of which the kernel fills at most `length`.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut length) };
    (result == 0 && length == whole).then_some(value)
}
