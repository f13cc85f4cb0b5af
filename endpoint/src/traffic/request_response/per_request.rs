//! A TCP connection for each transaction: connect, request, response, close, as HTTP/1.0 has it. The answering end closes
//! first, so that TIME_WAIT (RFC 9293, 3.3.2) stands at its one port and takes none of the asking end's, which has some 28000. The
//! last connection carries no request, and is the end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_timerslack;
use nix::sys::socket::{SockaddrIn, connect};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};
use toll_protocol::traffic::request_response::Load;

use super::Parameters;
use super::tally::{Marks, Schedule, Tally};
use crate::config::EndConfig;
use crate::socket::{self, SocketError};
use crate::worker::{Traffic, WorkerError, pattern};

/// The longest sleep: how late the thread sees that it shall stop.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);
/// Times that the end is told.
const ENDS: u32 = 3;

/// Asks, each time on a connection of its own, until the thread is told to stop.
pub fn ask(
    traffic: &Traffic,
    config: &EndConfig,
    peer: SocketAddrV4,
    parameters: &Parameters,
    marks: &Marks,
    tally: &mut Tally,
) -> Result<(), WorkerError> {
    let _ = set_timerslack(1);
    let request = pattern(parameters.request);
    let mut response = vec![0; parameters.response];
    let (mut sent, mut received) = (0, 0);
    traffic.begin();
    let begin = traffic.clock().now();
    for number in 0.. {
        let intended = match parameters.load {
            Load::ClosedLoop { .. } => traffic.clock().now(),
            Load::OpenLoop { rate, busy_wait } => {
                let moment = Schedule { begin, rate }.moment(number);
                wait(traffic, moment, busy_wait);
                moment
            }
        };
        if traffic.stops() && marks.end().is_none_or(|end| intended >= end) {
            break;
        }
        // What was to begin in the interval is asked, if late, for as long as the end is patient.
        let now = traffic.clock().now();
        if marks.end().is_some_and(|end| now >= end + parameters.timeout) {
            tally.lose(marks, intended);
            continue;
        }
        tally.sent(marks, intended, now);
        match transaction(config, peer, parameters.timeout, &request, &mut response) {
            Ok(()) => {
                let end = traffic.clock().now();
                sent += request.len() as u64;
                received += response.len() as u64;
                traffic.sent(sent);
                traffic.received(received);
                tally.complete(marks, intended, end);
            }
            Err((_, error)) if is_time(&error) => tally.lose(marks, intended),
            Err((call, source)) => return Err(traffic.failed(call, source)),
        }
    }
    for last in (0..ENDS).rev() {
        match connection(config, peer, parameters.timeout) {
            Ok(stream) => {
                let _ = stream.shutdown(Shutdown::Write);
                break;
            }
            Err((call, source)) if last == 0 => return Err(traffic.failed(call, source)),
            Err(_) => {}
        }
    }
    Ok(())
}

/// Sleeps to the moment, or spends the time on the CPU; less if the thread shall stop.
fn wait(traffic: &Traffic, moment: Duration, busy: bool) {
    while !traffic.stops() {
        let left = moment.saturating_sub(traffic.clock().now());
        if left.is_zero() {
            return;
        }
        if busy {
            std::hint::spin_loop();
            continue;
        }
        // A signal ends it early, and the loop goes on.
        let _ = clock_nanosleep(
            ClockId::CLOCK_MONOTONIC,
            ClockNanosleepFlags::empty(),
            &TimeSpec::from(left.min(LONGEST_SLEEP)),
        );
    }
}

type CallError = (&'static str, io::Error);

fn is_time(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
        || error.raw_os_error() == Some(libc::EINPROGRESS)
}

/// A connection to the peer, whose calls take no longer than `timeout`.
fn connection(config: &EndConfig, peer: SocketAddrV4, timeout: Duration) -> Result<TcpStream, CallError> {
    let fd = socket::open(config, 0).map_err(|error| ("socket", io_error(error)))?;
    let stream = TcpStream::from(fd);
    stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_nodelay(true))
        .and_then(|()| stream.set_write_timeout(Some(timeout)))
        .and_then(|()| stream.set_read_timeout(Some(timeout)))
        .map_err(|error| ("setsockopt", error))?;
    // SO_SNDTIMEO bounds connect(2) too (socket(7)).
    match connect(stream.as_raw_fd(), &SockaddrIn::from(peer)) {
        Ok(()) => Ok(stream),
        Err(errno) => Err(("connect", named(errno))),
    }
}

/// What a refusal of the system means here.
fn named(errno: Errno) -> io::Error {
    if errno == Errno::EADDRNOTAVAIL || errno == Errno::EADDRINUSE {
        return io::Error::new(
            ErrorKind::AddrNotAvailable,
            format!(
                "{}: every local port has a connection to the peer that is open or in TIME_WAIT (RFC 9293, 3.3.2): lower the \
                 rate, or widen net.ipv4.ip_local_port_range",
                errno.desc()
            ),
        );
    }
    errno.into()
}

/// The same for a socket that could not be opened.
fn io_error(error: SocketError) -> io::Error {
    match error {
        SocketError::Io { source, .. } => match source.raw_os_error() {
            Some(number) => named(Errno::from_raw(number)),
            None => source,
        },
        other => io::Error::other(other),
    }
}

/// One transaction: it is over when the peer has closed.
fn transaction(
    config: &EndConfig,
    peer: SocketAddrV4,
    timeout: Duration,
    request: &[u8],
    response: &mut [u8],
) -> Result<(), CallError> {
    let mut stream = connection(config, peer, timeout)?;
    stream.write_all(request).map_err(|error| ("send", error))?;
    stream.read_exact(response).map_err(|error| ("recv", error))?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(("recv", ErrorKind::InvalidData.into())),
        Err(error) => Err(("recv", error)),
    }
}

/// Answers the requests of `peer`, each on its connection, until one carries none.
pub fn answer(
    traffic: &Traffic,
    listener: &TcpListener,
    peer: Ipv4Addr,
    parameters: &Parameters,
) -> Result<(), WorkerError> {
    listener.set_nonblocking(false).map_err(|source| traffic.failed("fcntl", source))?;
    let mut request = vec![0; parameters.request];
    let response = pattern(parameters.response);
    let (mut sent, mut received) = (0, 0);
    loop {
        let (mut stream, from) = match listener.accept() {
            Ok(accepted) => accepted,
            // A connection that was gone before it was taken (accept(2), "Error handling").
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {
                continue;
            }
            Err(source) => return Err(traffic.failed("accept", source)),
        };
        if from.ip() != IpAddr::V4(peer) {
            continue;
        }
        let timed = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(parameters.timeout)));
        timed.map_err(|source| traffic.failed("setsockopt", source))?;
        let first = loop {
            match stream.read(&mut request) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                first => break first,
            }
        };
        match first {
            Ok(0) => {
                return Ok(());
            }
            Ok(length) if stream.read_exact(&mut request[length..]).is_ok() => {}
            // The asking end has given this one up, and counts it.
            Ok(_) | Err(_) => continue,
        }
        if received == 0 {
            traffic.begin();
        }
        received += request.len() as u64;
        traffic.received(received);
        if stream.write_all(&response).is_ok() {
            sent += response.len() as u64;
            traffic.sent(sent);
        }
    }
}
