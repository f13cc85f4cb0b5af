//! Many datagrams a system call: sendmmsg(2) and recvmmsg(2), with the kernel's cutting and joining of datagrams of one size
//! (UDP_SEGMENT and UDP_GRO, udp(7)). All buffers are made once.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::header::{self, Header};

/// Datagrams that the kernel cuts one message into (UDP_MAX_SEGMENTS of its linux/udp.h, before 6.9).
const SEGMENTS: usize = 64;
/// UDP payload of the longest message: what an IPv4 packet holds.
const LONGEST: usize = 65_535 - 20 - 8;
/// What a message that the kernel joined may have.
const JOINED: usize = 65_536;

/// Room for one control message of an integer, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Ancillary([u8; 24]);

impl Ancillary {
    const EMPTY: Self = Self([0; 24]);
}

/// Messages, and the memory that they lead to. The pointers in `headers` are set anew before each call, so that the vectors may
/// move with their owner.
struct Messages {
    headers: Vec<libc::mmsghdr>,
    pieces: Vec<libc::iovec>,
    ancillary: Vec<Ancillary>,
    buffer: Vec<u8>,
}

// SAFETY: the pointers are written from the vectors of the same value before each call that follows them, and are
// read nowhere else.
unsafe impl Send for Messages {}

impl Messages {
    fn new(count: usize, bytes: usize) -> Self {
        // SAFETY: both types are integers and pointers, for which all zeroes is a value.
        let (header, piece) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            headers: vec![header; count],
            pieces: vec![piece; count],
            ancillary: vec![Ancillary::EMPTY; count],
            buffer: vec![0; bytes],
        }
    }

    /// Makes message `index` that of `length` bytes of the buffer from `offset` on, with the control message if it has room for one.
    fn set(&mut self, index: usize, offset: usize, length: usize, ancillary: usize) {
        let buffer = &mut self.buffer[offset..offset + length];
        self.pieces[index] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: length };
        let header = &mut self.headers[index].msg_hdr;
        header.msg_iov = &raw mut self.pieces[index];
        header.msg_iovlen = 1;
        header.msg_controllen = ancillary;
        header.msg_control =
            if ancillary == 0 { std::ptr::null_mut() } else { (&raw mut self.ancillary[index].0).cast() };
    }
}

/// A control message of UDP: its header as `struct cmsghdr` has it, and a 16-bit number.
fn segment(size: usize) -> (Ancillary, usize) {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const LENGTH: usize = HEADER + size_of::<u16>();
    let mut ancillary = Ancillary::EMPTY;
    let bytes = &mut ancillary.0;
    bytes[..8].copy_from_slice(&LENGTH.to_ne_bytes());
    bytes[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    bytes[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    // Datagrams have 8972 bytes at most.
    bytes[HEADER..LENGTH].copy_from_slice(&(size as u16).to_ne_bytes());
    (ancillary, size_of::<Ancillary>())
}

/// The size of the datagrams that the kernel joined, by the control message that it wrote.
fn joined(ancillary: &Ancillary, length: usize) -> Option<usize> {
    let bytes = ancillary.0.get(..length)?;
    let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes);
    let is_size = number(8) == Some(libc::SOL_UDP) && number(12) == Some(libc::UDP_GRO);
    number(16).filter(|_| is_size).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0)
}

/// Datagrams to send.
pub struct Outgoing {
    messages: Messages,
    /// Messages, datagrams and bytes that wait.
    count: usize,
    datagrams: usize,
    bytes: usize,
    batch: usize,
    offload: bool,
}

impl Outgoing {
    /// Room for `batch` datagrams of up to `longest` bytes, which the kernel cuts if `offload` says so.
    pub fn new(batch: usize, longest: usize, offload: bool) -> Self {
        let mut messages = Messages::new(batch, batch * longest);
        let pattern = crate::worker::pattern(messages.buffer.len());
        messages.buffer.copy_from_slice(&pattern);
        Self { messages, count: 0, datagrams: 0, bytes: 0, batch, offload }
    }

    /// How many more there is room for.
    pub const fn room(&self) -> usize {
        self.batch - self.datagrams
    }

    /// Adds `count` datagrams of `size` bytes, no more than there is [`room`](Self::room) for, whose headers `header` gives.
    pub fn add(&mut self, size: usize, count: usize, mut header: impl FnMut() -> Header) {
        let together = if self.offload { SEGMENTS.min(LONGEST / size) } else { 1 };
        let mut left = count;
        while left > 0 {
            let now = left.min(together);
            for datagram in self.messages.buffer[self.bytes..].chunks_exact_mut(size).take(now) {
                if let Some(room) = datagram.first_chunk_mut::<{ header::LENGTH }>() {
                    *room = header().bytes();
                }
            }
            let mut ancillary = 0;
            if now > 1 {
                (self.messages.ancillary[self.count], ancillary) = segment(size);
            }
            self.messages.set(self.count, self.bytes, now * size, ancillary);
            self.count += 1;
            self.datagrams += now;
            self.bytes += now * size;
            left -= now;
        }
    }

    /// Sends all that waits; `goes_on` is asked when the socket has been full for as long as its time limit. How many were sent is
    /// all, or less if it said no.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&mut self, socket: BorrowedFd<'_>, mut goes_on: impl FnMut() -> bool) -> io::Result<bool> {
        let mut sent = 0;
        while sent < self.count {
            let left = &mut self.messages.headers[sent..self.count];
            let length = libc::c_uint::try_from(left.len()).unwrap_or(libc::c_uint::MAX);
            // SAFETY: the first `length` headers lead to pieces, buffers and control messages of `self`, as `set`
            // made them since they were last empty; none has moved, as `self` was borrowed for that alone, and the vectors
            // never grow.
            let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), left.as_mut_ptr(), length, 0) };
            match usize::try_from(result) {
                Ok(taken) => sent += taken,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if error.kind() == io::ErrorKind::WouldBlock => {
                        if !goes_on() {
                            break;
                        }
                    }
                    error => return Err(error),
                },
            }
        }
        let all = sent == self.count;
        (self.count, self.datagrams, self.bytes) = (0, 0, 0);
        Ok(all)
    }
}

/// Datagrams that came.
pub struct Incoming {
    messages: Messages,
    /// Bytes of the buffer that each message has.
    slot: usize,
    offload: bool,
    came: usize,
}

impl Incoming {
    /// Room for `batch` messages of datagrams of up to `longest` bytes, which the kernel has joined if `offload` says so.
    pub fn new(batch: usize, longest: usize, offload: bool) -> Self {
        let slot = if offload { JOINED } else { longest };
        let count = if offload { batch.min(SEGMENTS) } else { batch };
        Self { messages: Messages::new(count, count * slot), slot, offload, came: 0 }
    }

    /// Waits for a message, as long as the socket's time limit, and takes those that are there with it.
    ///
    /// # Errors
    /// What the kernel says; [`io::ErrorKind::WouldBlock`] when none came in time.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.came = 0;
        let count = self.messages.headers.len();
        let ancillary = if self.offload { size_of::<Ancillary>() } else { 0 };
        for index in 0..count {
            self.messages.set(index, index * self.slot, self.slot, ancillary);
        }
        let length = libc::c_uint::try_from(count).unwrap_or(libc::c_uint::MAX);
        let (headers, wait) = (self.messages.headers.as_mut_ptr(), libc::MSG_WAITFORONE);
        // SAFETY: all headers lead to pieces, buffers and control messages of `self`, as `set` made them just now.
        let result =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, length, wait, std::ptr::null_mut()) };
        self.came = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        Ok(())
    }

    /// The datagrams that came, in their order.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let Messages { headers, ancillary, buffer, .. } = &self.messages;
        let messages = headers.iter().zip(ancillary).zip(buffer.chunks_exact(self.slot)).take(self.came);
        messages.flat_map(|((header, ancillary), slot)| {
            let length = (header.msg_len as usize).min(slot.len());
            let size = joined(ancillary, header.msg_hdr.msg_controllen).unwrap_or(length.max(1));
            slot[..length].chunks(size)
        })
    }
}
