//! Sends without a copy (Documentation/networking/msg_zerocopy.rst of the kernel): the pages of a buffer go to the wire as they
//! are, and the socket's error queue tells when the kernel has done with them.
//!
//! ```text
//! send(MSG_ZEROCOPY) --ENOBUFS: too many are under way--> wait for the error queue, read it, send again
//!        '--every so many sends--> read the error queue
//! ```

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use toll_protocol::traffic::stream::ZeroCopy;

/// Sends after which the error queue is read: its entries take memory of the socket's own allowance (net.core.optmem_max).
const READ_EVERY: u32 = 32;
/// SO_EE_ORIGIN_ZEROCOPY and SO_EE_CODE_ZEROCOPY_COPIED of the kernel's linux/errqueue.h.
const ORIGIN: u8 = 5;
const CODE_COPIED: u8 = 1;
/// Room for one message of the error queue: a `sock_extended_err`, an address and a header.
const CONTROL: usize = 128;

/// Lets a socket send so.
///
/// # Errors
/// The kernel's, which has no such option before 4.14.
pub fn allow(socket: &impl AsFd) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `on` is `length` readable bytes for the time of the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

/// What became of sends, for another thread to read.
#[derive(Debug, Default)]
pub struct Counts {
    sends: AtomicU64,
    copied: AtomicU64,
}

impl Counts {
    /// Those that the kernel has done with.
    pub fn done(&self) -> ZeroCopy {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ZeroCopy { sends: read(&self.sends), copied: read(&self.copied) }
    }
}

/// Sends of one socket, from a buffer that never changes: it may be sent again before the kernel has done with it.
#[derive(Debug)]
pub struct Sender {
    since: u32,
    counts: Arc<Counts>,
}

impl Sender {
    /// One that counts in `counts`.
    pub fn new(counts: Arc<Counts>) -> Self {
        Self { since: 0, counts }
    }

    /// One send of `buffer`, blocking; how many bytes were taken.
    ///
    /// # Errors
    /// The system's.
    pub fn send(&mut self, stream: &TcpStream, buffer: &'static [u8]) -> io::Result<usize> {
        self.since += 1;
        if self.since >= READ_EVERY {
            self.read(stream)?;
        }
        loop {
            // SAFETY: `buffer` is as many readable bytes as is said. The kernel reads them after the call too: they live and
            // stay as they are to the end of the process.
            let sent = unsafe {
                libc::send(
                    stream.as_raw_fd(),
                    buffer.as_ptr().cast(),
                    buffer.len(),
                    libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL,
                )
            };
            match Errno::result(sent) {
                Ok(sent) => return Ok(usize::try_from(sent).unwrap_or(0)),
                Err(Errno::ENOBUFS) => self.wait(stream)?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits until the error queue has something, and reads it.
    fn wait(&mut self, stream: &TcpStream) -> io::Result<()> {
        /// A socket that was shut down meanwhile has POLLHUP; this is for all else.
        const LIMIT_MS: u16 = 100;
        // POLLERR is told without being asked for (poll(2)).
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        match poll(&mut fds, PollTimeout::from(LIMIT_MS)) {
            Ok(_) | Err(Errno::EINTR) => self.read(stream),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads the error queue to its end.
    fn read(&mut self, stream: &TcpStream) -> io::Result<()> {
        self.since = 0;
        loop {
            let mut control = [0_u64; CONTROL / 8];
            // SAFETY: all zeroes is a msghdr without name and data.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = CONTROL;
            // SAFETY: the header describes `control` alone, which lives through the call.
            let read = unsafe {
                libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
            };
            match Errno::result(read) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            // SAFETY: the kernel has filled the header and `control`, which is aligned for a cmsghdr.
            let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
            if header.is_null() {
                continue;
            }
            // SAFETY: it is the first header inside `control`, and the kernel writes whole ones.
            let (level, kind, length) =
                unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
            let is_error = (level, kind) == (libc::SOL_IP, libc::IP_RECVERR);
            // SAFETY: a number for a number.
            let whole = unsafe { libc::CMSG_LEN(size_of::<libc::sock_extended_err>() as u32) } as usize;
            if !is_error || length < whole {
                continue;
            }
            // SAFETY: the data of that header is a sock_extended_err, and its length says that it is whole.
            let error = unsafe { libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned() };
            if error.ee_origin == ORIGIN {
                // A range of sends, both ends included.
                let sends = u64::from(error.ee_data.wrapping_sub(error.ee_info)) + 1;
                self.counts.sends.fetch_add(sends, Ordering::Relaxed);
                if error.ee_code & CODE_COPIED != 0 {
                    self.counts.copied.fetch_add(sends, Ordering::Relaxed);
                }
            }
        }
    }
}
