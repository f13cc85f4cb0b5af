//! One TCP connection for all transactions. Responses come in the order of their requests, so that no number is needed. The
//! asking end ends it by its FIN.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use super::Parameters;
use super::ask::Wire;
use super::tally::{Marks, Tally};
use crate::worker::{Traffic, WorkerError, pattern};

/// Requests that are written by one call at most, and room for responses of one call.
const BATCH: usize = 64 << 10;

/// A closed loop of one transaction at a time, by blocking calls and nothing else: the shortest way there is.
pub fn ping_pong(
    traffic: &Traffic,
    mut stream: &TcpStream,
    parameters: &Parameters,
    marks: &Marks,
    tally: &mut Tally,
) -> Result<(), WorkerError> {
    let request = pattern(parameters.request);
    let mut response = vec![0; parameters.response];
    let (mut sent, mut received) = (0, 0);
    traffic.begin();
    while !traffic.stops() {
        let begin = traffic.clock().now();
        stream.write_all(&request).map_err(|source| traffic.failed("send", source))?;
        sent += request.len() as u64;
        traffic.sent(sent);
        match stream.read_exact(&mut response) {
            Ok(()) => {}
            // The connection was broken off after the interval.
            Err(_) if traffic.stops() => {
                tally.lose(marks, begin);
                return Ok(());
            }
            Err(source) => return Err(traffic.failed("recv", source)),
        }
        let end = traffic.clock().now();
        received += response.len() as u64;
        traffic.received(received);
        tally.complete(marks, begin, end);
    }
    close(traffic, stream)
}

/// Half-closes and waits for the peer's FIN.
pub fn close(traffic: &Traffic, mut stream: &TcpStream) -> Result<(), WorkerError> {
    // It fails only on a connection that is gone, as the next call says.
    let _ = stream.shutdown(Shutdown::Write);
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(traffic.failed("recv", ErrorKind::InvalidData.into())),
        Err(source) => Err(traffic.failed("recv", source)),
    }
}

/// Answers each request until the asking end's FIN.
pub fn answer(traffic: &Traffic, mut stream: &TcpStream, parameters: &Parameters) -> Result<(), WorkerError> {
    let mut requests = vec![0; parameters.request.max(BATCH)];
    let response = pattern(parameters.response);
    // Of the request that is not whole yet.
    let mut partial = 0;
    let (mut sent, mut received) = (0, 0);
    loop {
        let read = match stream.read(&mut requests) {
            Ok(0) if partial == 0 => {
                // Its FIN tells the asking end that this one has seen its own.
                let _ = stream.shutdown(Shutdown::Write);
                return Ok(());
            }
            Ok(0) => return Err(traffic.failed("recv", ErrorKind::UnexpectedEof.into())),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(source) => return Err(traffic.failed("recv", source)),
        };
        if received == 0 {
            traffic.begin();
        }
        received += read as u64;
        traffic.received(received);
        partial += read;
        while partial >= parameters.request {
            partial -= parameters.request;
            stream.write_all(&response).map_err(|source| traffic.failed("send", source))?;
            sent += response.len() as u64;
            traffic.sent(sent);
        }
    }
}

/// The connection of an asking end that has several transactions open, which must not block.
#[derive(Debug)]
pub struct Connection<'s> {
    stream: &'s TcpStream,
    request: usize,
    response: usize,
    /// Some requests, one after the other, and one more.
    requests: Vec<u8>,
    responses: Vec<u8>,
    /// Bytes of the last request that are not written.
    owed: usize,
    /// Bytes of the next response that are read.
    partial: usize,
}

impl<'s> Connection<'s> {
    /// # Errors
    /// What the system says.
    pub fn new(stream: &'s TcpStream, parameters: &Parameters) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (request, response) = (parameters.request, parameters.response);
        let requests = pattern(request).repeat((BATCH / request.max(1)).max(1));
        Ok(Self { stream, request, response, requests, responses: vec![0; BATCH], owed: 0, partial: 0 })
    }
}

impl Wire for Connection<'_> {
    fn send(&mut self, _first: u64, count: u64) -> io::Result<u64> {
        // The rest of the last request stands at the end of the buffer.
        let rest = self.requests.len() - self.owed;
        if self.owed > 0 {
            self.owed -= some(self.stream.write(&self.requests[rest..]))?.unwrap_or(0);
            if self.owed > 0 {
                return Ok(0);
            }
        }
        let most = self.requests.len() / self.request;
        let count = usize::try_from(count).unwrap_or(most).min(most);
        if count == 0 {
            return Ok(0);
        }
        let written = some(self.stream.write(&self.requests[..count * self.request]))?.unwrap_or(0);
        let begun = written.div_ceil(self.request);
        self.owed = begun * self.request - written;
        Ok(begun as u64)
    }

    fn receive(&mut self, each: &mut dyn FnMut(Option<u64>)) -> io::Result<bool> {
        let Some(read) = some((&*self.stream).read(&mut self.responses))? else { return Ok(false) };
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.partial += read;
        while self.partial >= self.response {
            self.partial -= self.response;
            each(None);
        }
        Ok(true)
    }

    fn is_blocked(&self) -> bool {
        self.owed > 0
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// What a call took or gave, or nothing if it would have blocked.
fn some(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}
