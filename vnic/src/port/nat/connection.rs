//! One connection of a guest, and the host's own that stands for it.
//!
//! ```text
//!  guest's SYN --> Opening: the host connects, no SYN|ACK yet --refused, unreachable--> RST to the guest: over
//!                     | connected
//!                     v
//!                   Open: bytes both ways --a FIN either way is passed on--> both closed: over
//!                     | reset, either way: the other is reset too: over
//! ```

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, getsockopt, setsockopt, socket, sockopt,
};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::IpListenEndpoint;
use toll_protocol::child::Outside;
use toll_protocol::trial::CONGESTION_CONTROLS;

/// Bytes that the translator holds in each direction: more than a guest of ours has unacknowledged.
const BUFFER: usize = 1 << 20;

/// A connection's ends, which name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub guest: SocketAddrV4,
    pub far: SocketAddrV4,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub ends: Ends,
    handle: SocketHandle,
    stream: TcpStream,
    open: bool,
    /// What the last calls and the events since say.
    readable: bool,
    writable: bool,
    /// The far end has sent its FIN.
    far_closed: bool,
    /// The guest's FIN has been passed on.
    guest_closed: bool,
}

/// A socket of the host's for a connection.
///
/// # Errors
/// The system's.
pub(super) fn outer() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
}

/// TSval of the TCP timestamps option (RFC 7323, 3), which every kernel uses: a tick of one or two milliseconds (5.4).
fn timestamp() -> u32 {
    (crate::stages::ticks() >> 22) as u32
}

/// Gives it the congestion control of native ends, which they are compared with, and not the host's default. The process
/// has no right any more: what the host allows to anybody can be had (sysctl `tcp_allowed_congestion_control`).
///
/// # Errors
/// The system's, if it may have none of [`CONGESTION_CONTROLS`].
pub(super) fn set_congestion(socket: &OwnedFd) -> nix::Result<()> {
    let mut refusal = Errno::ENOENT;
    for name in CONGESTION_CONTROLS {
        match setsockopt(socket, sockopt::TcpCongestion, &OsString::from(name)) {
            Ok(()) => return Ok(()),
            Err(errno) => refusal = errno,
        }
    }
    Err(refusal)
}

impl Connection {
    /// Begins one: the host connects `socket`, and the translator's TCP takes the SYN that is to come without an answer.
    ///
    /// # Errors
    /// The system's, if there is no way there.
    pub fn begin(
        socket: OwnedFd,
        ends: Ends,
        outside: &Outside,
        sockets: &mut SocketSet<'static>,
    ) -> io::Result<Self> {
        // Since Linux 5.7 no right is needed for it on a socket that has no interface yet.
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(&outside.interface))?;
        if let Some(segment) = outside.segment {
            setsockopt(&socket, sockopt::TcpMaxSeg, &segment.into())?;
        }
        bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(outside.address, 0)))?;
        match connect(socket.as_raw_fd(), &SockaddrIn::from(ends.far)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        let stream = TcpStream::from(socket);
        // What the guest sends is in segments already.
        stream.set_nodelay(true)?;
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut inside = tcp::Socket::new(buffer(), buffer());
        inside.set_congestion_control(tcp::CongestionControl::Cubic);
        inside.set_tsval_generator(Some(timestamp));
        inside.set_nagle_enabled(false);
        inside.pause_synack(true);
        let far = IpListenEndpoint { addr: Some((*ends.far.ip()).into()), port: ends.far.port() };
        inside.listen(far).map_err(|_| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        let handle = sockets.add(inside);
        let (open, far_closed, guest_closed) = (false, false, false);
        Ok(Self { ends, handle, stream, open, readable: false, writable: false, far_closed, guest_closed })
    }

    /// The host's socket, to be watched for edges.
    pub fn outside(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether the host has connected.
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// An edge came.
    pub fn ready(&mut self) {
        (self.readable, self.writable) = (true, true);
    }

    /// Moves what there is, both ways. Whether anything changed.
    pub fn turn(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let inside = sockets.get_mut::<tcp::Socket>(self.handle);
        if !self.open {
            return self.opened(inside);
        }
        let mut moved = false;
        let mut result = Ok(());
        while result.is_ok() && self.writable && inside.can_recv() {
            result = self.pass_on(inside);
            moved |= result.is_ok();
        }
        use tcp::State::{CloseWait, Closing, LastAck, TimeWait};
        let has_closed = matches!(inside.state(), CloseWait | Closing | LastAck | TimeWait);
        if result.is_ok() && !self.guest_closed && has_closed && !inside.can_recv() {
            self.guest_closed = true;
            moved = true;
            // Refused, it is closed already, which reading will show.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
        while result.is_ok() && self.readable && !self.far_closed && inside.can_send() && room(inside) {
            result = self.bring(inside);
            moved |= result.is_ok();
        }
        if let Err(error) = result
            && error.kind() != io::ErrorKind::WouldBlock
        {
            inside.abort();
            moved = true;
        }
        moved
    }

    /// Whether the host has connected, or was refused.
    fn opened(&mut self, inside: &mut tcp::Socket<'static>) -> bool {
        if !self.writable {
            return false;
        }
        self.writable = false;
        match getsockopt(&self.stream, sockopt::SocketError) {
            Ok(0) if self.stream.peer_addr().is_ok() => {
                inside.pause_synack(false);
                (self.open, self.writable, self.readable) = (true, true, true);
                true
            }
            // Not yet.
            Ok(0) => false,
            _ => {
                inside.abort();
                true
            }
        }
    }

    /// Guest to far end: one write.
    fn pass_on(&mut self, inside: &mut tcp::Socket<'static>) -> io::Result<()> {
        let (stream, writable) = (&mut self.stream, &mut self.writable);
        let written = inside.recv(|bytes| match stream.write(bytes) {
            Ok(count) => (count, Ok(())),
            Err(error) => (0, Err(error)),
        });
        let result = written.unwrap_or(Ok(()));
        *writable &= !matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        result
    }

    /// Far end to guest: one read.
    fn bring(&mut self, inside: &mut tcp::Socket<'static>) -> io::Result<()> {
        let stream = &mut self.stream;
        let read = inside.send(|room| match stream.read(room) {
            Ok(count) => (count, Ok(count)),
            Err(error) => (0, Err(error)),
        });
        match read.unwrap_or(Ok(0)) {
            Ok(0) => {
                self.far_closed = true;
                inside.close();
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => {
                self.readable &= error.kind() != io::ErrorKind::WouldBlock;
                Err(error)
            }
        }
    }

    /// Whether nothing of it is left but to be forgotten.
    pub fn is_over(&self, sockets: &SocketSet<'static>) -> bool {
        matches!(sockets.get::<tcp::Socket>(self.handle).state(), tcp::State::Closed | tcp::State::TimeWait)
    }

    /// Its buffers, to be dropped.
    pub fn handle(&self) -> SocketHandle {
        self.handle
    }
}

/// Whether a read would have room: one without would look like the far end's FIN.
fn room(inside: &tcp::Socket<'static>) -> bool {
    inside.send_queue() < inside.send_capacity()
}
