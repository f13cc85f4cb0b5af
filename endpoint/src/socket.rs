//! Kernel TCP sockets: opened as trials need them, with every wait bounded.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect as start_connect,
    getsockopt, listen as start_listening, setsockopt, socket, sockopt,
};
use toll_protocol::trial::CONGESTION_CONTROLS;
use toll_protocol::units::Span;
use toll_protocol::validity;

use crate::clock::waited;
use crate::config::EndConfig;
use crate::control::{Control, ControlError};
use crate::zero_copy;

/// How long a connection may take to come about, the other end being up.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A system call failed.
    #[error("{call} failed for {address}")]
    Io {
        /// The call.
        call: &'static str,
        /// Ours, or the peer's.
        address: SocketAddrV4,
        /// The system's word.
        source: io::Error,
    },
    /// It can't be kept to the test NIC.
    #[error("the socket can't be bound to the interface {}", interface.display())]
    Interface {
        /// The interface.
        interface: OsString,
        /// The system's word.
        source: io::Error,
    },
    /// Trials need a congestion control that doesn't depend on the host's default.
    #[error(
        "no congestion control {names} can be set: see net.ipv4.tcp_available_congestion_control and \
         tcp_allowed_congestion_control"
    )]
    Congestion {
        /// Those that were tried.
        names: String,
        /// The system's word.
        source: io::Error,
    },
    /// The host does not give buffers of that size.
    #[error(
        "socket buffers of {asked} bytes were asked for and {found} were given: see net.core.rmem_max and wmem_max"
    )]
    Buffer {
        /// What was asked for.
        asked: usize,
        /// The smaller one that was given.
        found: usize,
    },
    /// It can't be told or asked their size.
    #[error("the socket's buffers can't be set")]
    BufferCall(#[source] io::Error),
    /// Nobody came, or nobody answered.
    #[error("waited {waited} for {what}")]
    TimedOut {
        /// How long.
        waited: Span,
        /// For what.
        what: String,
    },
    /// The control socket ended the wait.
    #[error(transparent)]
    Control(#[from] ControlError),
}

fn io_error(call: &'static str, address: SocketAddrV4) -> impl Fn(io::Error) -> SocketError {
    move |source| SocketError::Io { call, address, source }
}

/// Sets the congestion control: the one that is asked for, else the first of [`CONGESTION_CONTROLS`] that can be. Must come
/// before the handshake: bbr, a common default, leaves its pacing on a socket that it has once controlled.
fn set_congestion(socket: &impl AsFd, asked: Option<&str>) -> Result<(), SocketError> {
    let mut refusal = Errno::ENOENT;
    let names = asked.map_or_else(|| CONGESTION_CONTROLS.to_vec(), |name| vec![name]);
    for name in &names {
        match setsockopt(socket, sockopt::TcpCongestion, &OsString::from(name)) {
            Ok(()) => return Ok(()),
            Err(errno) => refusal = errno,
        }
    }
    let names = names.join(" and no ");
    Err(SocketError::Congestion { names, source: refusal.into() })
}

/// Sets both buffers of a socket, beyond net.core.[rw]mem_max where the process has the right to (CAP_NET_ADMIN). The kernel
/// doubles what it is told, for its own records (socket(7)); a window is of half of what it then has.
fn set_buffers(socket: &impl AsFd, bytes: usize) -> Result<(), SocketError> {
    let send = || setsockopt(socket, sockopt::SndBufForce, &bytes);
    let receive = || setsockopt(socket, sockopt::RcvBufForce, &bytes);
    if send().and_then(|()| receive()).is_ok() {
        return Ok(());
    }
    let set = setsockopt(socket, sockopt::SndBuf, &bytes)
        .and_then(|()| setsockopt(socket, sockopt::RcvBuf, &bytes))
        .and_then(|()| Ok((getsockopt(socket, sockopt::SndBuf)?, getsockopt(socket, sockopt::RcvBuf)?)));
    match set {
        Ok((send, receive)) if send.min(receive) >= bytes => Ok(()),
        Ok((send, receive)) => Err(SocketError::Buffer { asked: bytes, found: send.min(receive) / 2 }),
        Err(errno) => Err(SocketError::BufferCall(errno.into())),
    }
}

/// A socket that is bound to the configuration's address and `port` (0: the kernel chooses), so that what the peer answers comes to the
/// test NIC on a host with several addresses, and to its interface: nothing leaves or comes by another one. Its congestion
/// control may take CAP_NET_ADMIN (sysctl `tcp_allowed_congestion_control`). Since Linux 5.7 SO_BINDTODEVICE needs no right
/// on a socket that has no interface yet.
///
/// # Errors
/// [`SocketError::Io`], [`SocketError::Interface`] or [`SocketError::Congestion`].
pub fn open(config: &EndConfig, port: u16) -> Result<OwnedFd, SocketError> {
    let address = SocketAddrV4::new(*config.bind.ip(), port);
    let failed = |call: &'static str| move |errno: Errno| io_error(call, address)(errno.into());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd =
        socket(AddressFamily::Inet, SockType::Stream, flags, SockProtocol::Tcp).map_err(failed("socket"))?;
    let options = &config.sockets;
    set_congestion(&fd, options.congestion_control.as_deref())?;
    setsockopt(&fd, sockopt::BindToDevice, &config.interface).map_err(|errno| SocketError::Interface {
        interface: config.interface.clone(),
        source: errno.into(),
    })?;
    if let Some(segment) = options.segment {
        setsockopt(&fd, sockopt::TcpMaxSeg, &segment).map_err(failed("setsockopt of TCP_MAXSEG"))?;
    }
    if let Some(dscp) = options.dscp {
        let traffic_class = i32::from(dscp.traffic_class());
        setsockopt(&fd, sockopt::Ipv4Tos, &traffic_class).map_err(failed("setsockopt of IP_TOS"))?;
    }
    if let Some(bytes) = options.buffer {
        set_buffers(&fd, bytes)?;
    }
    if options.zero_copy {
        zero_copy::allow(&fd).map_err(failed("setsockopt of SO_ZEROCOPY"))?;
    }
    setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(failed("setsockopt"))?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(address)).map_err(failed("bind"))?;
    Ok(fd)
}

/// Bytes that a UDP socket is to hold: what a second of an open loop brings while its end has no CPU should not be lost.
const DATAGRAM_BUFFER: usize = 8 << 20;

/// A UDP socket on the configuration's address and a port that the kernel chooses, bound to its interface as those of TCP are. What it
/// sends is never cut into fragments (RFC 1191): what is too long for the path is refused.
///
/// # Errors
/// [`SocketError::Io`] or [`SocketError::Interface`].
pub fn datagrams(config: &EndConfig) -> Result<(UdpSocket, SocketAddrV4), SocketError> {
    let address = SocketAddrV4::new(*config.bind.ip(), 0);
    let failed = |call: &'static str| move |errno: Errno| io_error(call, address)(errno.into());
    let fd: OwnedFd =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp)
            .map_err(failed("socket"))?;
    setsockopt(&fd, sockopt::BindToDevice, &config.interface).map_err(|errno| SocketError::Interface {
        interface: config.interface.clone(),
        source: errno.into(),
    })?;
    // Beyond net.core.rmem_max where the process has the right to (CAP_NET_ADMIN), else as far as that goes.
    if setsockopt(&fd, sockopt::RcvBufForce, &DATAGRAM_BUFFER).is_err() {
        setsockopt(&fd, sockopt::RcvBuf, &DATAGRAM_BUFFER).map_err(failed("setsockopt of SO_RCVBUF"))?;
    }
    rustix::net::sockopt::set_ip_mtu_discover(&fd, rustix::net::sockopt::Ipv4PathMtuDiscovery::DO)
        .map_err(|errno| io_error("setsockopt of IP_MTU_DISCOVER", address)(errno.into()))?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(address)).map_err(failed("bind"))?;
    let socket = UdpSocket::from(fd);
    match socket.local_addr() {
        Ok(SocketAddr::V4(bound)) => Ok((socket, bound)),
        Ok(_) => Err(io_error("getsockname", address)(io::ErrorKind::InvalidData.into())),
        Err(source) => Err(io_error("getsockname", address)(source)),
    }
}

/// Listens on the configuration's address and `port` (0: the kernel chooses); connections inherit what the socket was made with.
///
/// # Errors
/// [`SocketError::Io`], [`SocketError::Interface`] or [`SocketError::Congestion`].
pub fn listen(config: &EndConfig, port: u16) -> Result<(TcpListener, SocketAddrV4), SocketError> {
    let address = SocketAddrV4::new(*config.bind.ip(), port);
    let fd = open(config, port)?;
    start_listening(&fd, Backlog::MAXCONN).map_err(|errno| io_error("listen", address)(errno.into()))?;
    let listener = TcpListener::from(fd);
    match listener.local_addr() {
        Ok(SocketAddr::V4(bound)) => Ok((listener, bound)),
        Ok(_) => Err(io_error("getsockname", address)(io::ErrorKind::InvalidData.into())),
        Err(source) => Err(io_error("getsockname", address)(source)),
    }
}

/// Connections that were closed because they were not the other end's. Told twice at most, however many there are.
#[derive(Debug, Default)]
struct Strangers {
    closed: u64,
}

impl Strangers {
    /// Takes note of one, whose connection is closed.
    fn refuse(&mut self, stranger: SocketAddr, peer: Ipv4Addr) {
        self.closed += 1;
        if self.closed == 1 {
            eprintln!("toll-endpoint: a connection from {stranger} was closed: {peer} is expected");
        }
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        if self.closed > 1 {
            eprintln!("toll-endpoint: {} connections from others than the peer were closed", self.closed);
        }
    }
}

/// Waits for the connection of the other end, from its address `peer`. One from elsewhere is closed at once: whoever
/// else can reach the host must not take the place of the other end.
///
/// # Errors
/// [`SocketError`]; [`SocketError::TimedOut`] if nobody connects until `deadline` or within [`CONNECT_LIMIT`].
pub fn accept(
    control: &mut Control,
    listener: &TcpListener,
    address: SocketAddrV4,
    peer: Ipv4Addr,
    deadline: Duration,
) -> Result<TcpStream, SocketError> {
    let begin = control.clock().now();
    let until = deadline.min(begin + CONNECT_LIMIT);
    let mut strangers = Strangers::default();
    loop {
        match listener.accept() {
            Ok((_, stranger)) if stranger.ip() != peer => strangers.refuse(stranger, peer),
            Ok((stream, _)) => {
                // Accepted sockets block on Linux; said here so that nobody has to know.
                stream.set_nonblocking(false).map_err(io_error("fcntl", address))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // A connection that was gone before it was taken (accept(2), "Error handling").
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(io_error("accept", address)(source)),
        }
        // Strangers may come faster than they are closed: the agent is listened to, and time passes, after each.
        let woken = control.wait(&[(listener.as_fd(), PollFlags::POLLIN)], Some(until))?;
        if woken.is_none() || control.clock().now() >= until {
            let what = format!("the other end to connect to {address}");
            return Err(SocketError::TimedOut { waited: waited(begin, until), what });
        }
    }
}

/// Connects the socket `fd`, which [`open`] gave, to `peer`.
///
/// # Errors
/// [`SocketError`]; [`SocketError::TimedOut`] if nobody answers until `deadline` or within [`CONNECT_LIMIT`].
pub fn connect(
    control: &mut Control,
    fd: OwnedFd,
    peer: SocketAddrV4,
    deadline: Duration,
) -> Result<TcpStream, SocketError> {
    let begin = control.clock().now();
    let until = deadline.min(begin + CONNECT_LIMIT);
    let failed = |call: &'static str| move |errno: Errno| io_error(call, peer)(errno.into());
    match start_connect(fd.as_raw_fd(), &SockaddrIn::from(peer)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            if control.wait(&[(fd.as_fd(), PollFlags::POLLOUT)], Some(until))?.is_none() {
                let what = format!("{peer} to answer the connection");
                return Err(SocketError::TimedOut { waited: waited(begin, until), what });
            }
        }
        Err(errno) => return Err(failed("connect")(errno)),
    }
    let stream = TcpStream::from(fd);
    if let Some(source) = stream.take_error().map_err(io_error("getsockopt", peer))? {
        return Err(io_error("connect", peer)(source));
    }
    stream.set_nonblocking(false).map_err(io_error("fcntl", peer))?;
    Ok(stream)
}

/// Segments that the socket has retransmitted so far (tcp_info.tcpi_total_retrans), where the kernel says so.
pub fn retransmits(stream: &TcpStream) -> Option<u32> {
    let (info, length) = tcp_info(stream)?;
    let filled = std::mem::offset_of!(libc::tcp_info, tcpi_total_retrans) + size_of::<u32>();
    (length >= filled).then_some(info.tcpi_total_retrans)
}

/// How long a sender has waited for a window, and whether its path has no queue now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowWait {
    /// The receiver's window (tcp_info.tcpi_rwnd_limited) or the send buffer (tcpi_sndbuf_limited) was all that it waited for.
    pub waited: Duration,
    /// By its round trips: see [`validity::is_without_queue`].
    pub without_queue: bool,
}

/// What the socket has waited for a window so far, where the kernel says so (Linux 4.10).
pub fn window_wait(stream: &TcpStream) -> Option<WindowWait> {
    let (info, length) = tcp_info(stream)?;
    let filled = std::mem::offset_of!(libc::tcp_info, tcpi_sndbuf_limited) + size_of::<u64>();
    let [smoothed, shortest] =
        [info.tcpi_rtt, info.tcpi_min_rtt].map(|rtt| Duration::from_micros(rtt.into()));
    (length >= filled).then(|| WindowWait {
        waited: Duration::from_micros(info.tcpi_rwnd_limited.saturating_add(info.tcpi_sndbuf_limited)),
        without_queue: validity::is_without_queue(smoothed, shortest),
    })
}

/// Whether the connection is at its end (CLOSED of RFC 9293, 3.3.2): both FINs are acknowledged, or it was reset.
pub fn is_closed(stream: &TcpStream) -> bool {
    /// TCP_CLOSE of the kernel's net/tcp_states.h.
    const CLOSED: u8 = 7;
    tcp_info(stream).is_none_or(|(info, _)| info.tcpi_state == CLOSED)
}

/// TCP_INFO (tcp(7)), and how many of its bytes this kernel fills.
fn tcp_info(stream: &TcpStream) -> Option<(libc::tcp_info, usize)> {
    // SAFETY: tcp_info is plain integers, for which all zeroes is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    let pointer = (&raw mut info).cast();
    // SAFETY: `pointer` leads to `length` writable bytes, of which the kernel fills at most `length`.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, pointer, &raw mut length)
    };
    usize::try_from(length).ok().filter(|_| result == 0).map(|length| (info, length))
}

/// Makes the close of `stream`, which the end of the process is too, a reset that drops what the kernel still holds
/// (SO_LINGER of 0 s, socket(7)).
pub fn reset_on_close(stream: &TcpStream) {
    // It fails on no TCP socket.
    let _ = setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}
