//! A datagram for each request and response. Its first 8 bytes say what it is and the number of its transaction, in network
//! byte order; the rest is a pattern.
//!
//! ```text
//! asking end                    answering end
//!   | request n ---------------> |
//!   | <--------------- response n |   the first comes from the peer's address; its port is then the peer's
//!   | end ---------------------> |   again every 100 ms, 20 times at most
//!   | <------------------- ended |
//! ```

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::Parameters;
use super::ask::Wire;
use super::tally::{Marks, Tally};
use crate::worker::{Traffic, WorkerError, pattern};

/// Bytes of what it is and the number.
const HEADER: usize = 8;
/// Room for the longest datagram.
const LONGEST: usize = 1 << 16;
/// How long the answer to an end may take.
const END_AGAIN: Duration = Duration::from_millis(100);
/// Ends that are sent: for less time than the control thread is patient for.
const ENDS: u32 = 20;
/// Datagrams that are taken before the schedule is looked at again.
const BATCH: u32 = 64;

/// What a datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Request = 1,
    Response = 2,
    End = 3,
    Ended = 4,
}

/// Number of a transaction: 56 bits.
const NUMBER: u64 = (1 << 56) - 1;

fn write(datagram: &mut [u8], kind: Kind, number: u64) {
    let word = (u64::from(kind as u8) << 56) | (number & NUMBER);
    if let Some(header) = datagram.get_mut(..HEADER) {
        header.copy_from_slice(&word.to_be_bytes());
    }
}

fn read(datagram: &[u8]) -> Option<(Kind, u64)> {
    let word = u64::from_be_bytes(datagram.get(..HEADER)?.try_into().ok()?);
    let kinds = [Kind::Request, Kind::Response, Kind::End, Kind::Ended];
    let kind = kinds.into_iter().find(|kind| u64::from(*kind as u8) == word >> 56)?;
    Some((kind, word & NUMBER))
}

/// Whether an error is the peer's port that is closed (ICMP), which on a connected socket any call may tell.
fn is_refused(error: &io::Error) -> bool {
    error.kind() == ErrorKind::ConnectionRefused
}

fn is_time(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// A closed loop of one transaction at a time, by blocking calls, and then the end of all.
pub fn ping_pong(
    traffic: &Traffic,
    socket: &UdpSocket,
    parameters: &Parameters,
    marks: &Marks,
    tally: &mut Tally,
) -> Result<(), WorkerError> {
    let timed =
        socket.set_nonblocking(false).and_then(|()| socket.set_read_timeout(Some(parameters.timeout)));
    timed.map_err(|source| traffic.failed("setsockopt", source))?;
    let mut request = pattern(parameters.request);
    let mut response = vec![0; LONGEST];
    let (mut number, mut sent, mut received) = (0, 0, 0);
    traffic.begin();
    while !traffic.stops() {
        number += 1;
        write(&mut request, Kind::Request, number);
        let begin = traffic.clock().now();
        socket.send(&request).map_err(|source| traffic.failed("send", source))?;
        sent += request.len() as u64;
        traffic.sent(sent);
        loop {
            let taken = socket.recv(&mut response);
            let now = traffic.clock().now();
            match taken {
                Ok(length) => match read(&response[..length]) {
                    Some((Kind::Response, of)) if of == number && length == parameters.response => {
                        received += length as u64;
                        traffic.received(received);
                        tally.complete(marks, begin, now);
                        break;
                    }
                    Some((Kind::Response, _)) => tally.late += u64::from(marks.measures(begin)),
                    _ => {}
                },
                Err(error) if is_time(&error) => {}
                Err(source) => return Err(traffic.failed("recv", source)),
            }
            if now.saturating_sub(begin) >= parameters.timeout {
                tally.lose(marks, begin);
                break;
            }
        }
    }
    end(traffic, socket)
}

/// Tells the answering end that all is over, until it says that it knows, or is gone, or has been told often enough.
pub fn end(traffic: &Traffic, socket: &UdpSocket) -> Result<(), WorkerError> {
    let timed = socket.set_nonblocking(false).and_then(|()| socket.set_read_timeout(Some(END_AGAIN)));
    timed.map_err(|source| traffic.failed("setsockopt", source))?;
    let mut datagram = [0; HEADER];
    write(&mut datagram, Kind::End, 0);
    let mut answer = vec![0; LONGEST];
    for _ in 0..ENDS {
        match socket.send(&datagram) {
            Ok(_) => {}
            Err(error) if is_refused(&error) => return Ok(()),
            Err(source) => return Err(traffic.failed("send", source)),
        }
        let until = traffic.clock().now() + END_AGAIN;
        while traffic.clock().now() < until {
            match socket.recv(&mut answer) {
                Ok(length) => {
                    if let Some((Kind::Ended, _)) = read(&answer[..length]) {
                        return Ok(());
                    }
                }
                Err(error) if is_time(&error) => break,
                Err(error) if is_refused(&error) => return Ok(()),
                Err(source) => return Err(traffic.failed("recv", source)),
            }
        }
    }
    Ok(())
}

/// Answers each request from `peer` until its end.
pub fn answer(
    traffic: &Traffic,
    socket: &UdpSocket,
    peer: Ipv4Addr,
    parameters: &Parameters,
) -> Result<(), WorkerError> {
    socket.set_nonblocking(false).map_err(|source| traffic.failed("fcntl", source))?;
    let mut request = vec![0; LONGEST];
    let mut response = pattern(parameters.response);
    let (mut sent, mut received) = (0, 0);
    let mut known: Option<SocketAddr> = None;
    loop {
        let (length, from) = match socket.recv_from(&mut request) {
            Ok(taken) => taken,
            // What the peer had no more use for.
            Err(error) if is_refused(&error) || is_time(&error) => continue,
            Err(source) => return Err(traffic.failed("recv", source)),
        };
        // Whoever else can reach the host must not take the place of the other end.
        if known.map_or(from.ip() != peer, |known| known != from) {
            continue;
        }
        match read(&request[..length]) {
            Some((Kind::Request, number)) if length == parameters.request => {
                if known.is_none() {
                    socket.connect(from).map_err(|source| traffic.failed("connect", source))?;
                    known = Some(from);
                    traffic.begin();
                }
                received += length as u64;
                traffic.received(received);
                write(&mut response, Kind::Response, number);
                match socket.send(&response) {
                    Ok(_) => {}
                    Err(error) if is_refused(&error) => continue,
                    Err(source) => return Err(traffic.failed("send", source)),
                }
                sent += response.len() as u64;
                traffic.sent(sent);
            }
            Some((Kind::End, number)) => {
                write(&mut request, Kind::Ended, number);
                // If it is lost, the peer asks again, and finds the port closed.
                let _ = socket.send_to(&request[..HEADER], from);
                return Ok(());
            }
            _ => {}
        }
    }
}

/// The socket of an asking end that has several transactions open.
#[derive(Debug)]
pub struct Socket<'s> {
    socket: &'s UdpSocket,
    request: Vec<u8>,
    response: Vec<u8>,
    /// Bytes of a response.
    length: usize,
}

impl<'s> Socket<'s> {
    /// # Errors
    /// What the system says.
    pub fn new(socket: &'s UdpSocket, parameters: &Parameters) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            request: pattern(parameters.request),
            response: vec![0; LONGEST],
            length: parameters.response,
        })
    }
}

impl Wire for Socket<'_> {
    fn send(&mut self, first: u64, count: u64) -> io::Result<u64> {
        for number in first..first + count.min(u64::from(BATCH)) {
            write(&mut self.request, Kind::Request, number);
            match self.socket.send(&self.request) {
                Ok(_) => {}
                Err(error) if is_time(&error) => return Ok(number - first),
                Err(error) => return Err(error),
            }
        }
        Ok(count.min(u64::from(BATCH)))
    }

    fn receive(&mut self, each: &mut dyn FnMut(Option<u64>)) -> io::Result<bool> {
        for taken in 0..BATCH {
            match self.socket.recv(&mut self.response) {
                Ok(length) => {
                    if let Some((Kind::Response, number)) = read(&self.response[..length])
                        && length == self.length
                    {
                        each(Some(number));
                    }
                }
                Err(error) if is_time(&error) => return Ok(taken > 0),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn is_blocked(&self) -> bool {
        false
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_has_what_it_is_and_a_number_and_anything_else_is_none() {
        let mut datagram = [0xff; 10];
        write(&mut datagram, Kind::Response, 0x0123_4567_89ab);
        assert_eq!(datagram, [2, 0, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xff, 0xff]);
        assert_eq!(read(&datagram), Some((Kind::Response, 0x0123_4567_89ab)));
        assert_eq!((read(&datagram[..7]), read(&[9; 8]), read(&[])), (None, None, None));
    }
}
