//! A port whose wire is worse than it is: slower, longer, with loss, with frames twice or in another order. Both
//! directions have the same impairments and their own fate, drawn from a seed.
//!
//! ```text
//!  adapter --send-----> lane --due--> port
//!  adapter <--due-- lane <--receive-- port
//!                    |
//!                    +-- timer: when frames of either lane are due next, the descriptor is readable
//! ```
//! What is due together moves together: a frame at 950 Mb/s takes 12.7 us, and a wake-up for each would take the CPU that
//! the frames need. While received frames wait for such a release, frames that come to the port behind wake nobody.

mod lane;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use toll_protocol::decorators;

use super::{Framing, Lost, Offloads, Port, PortError, Sent};
use crate::piece::{Piece, PieceMut};
use crate::vnet_header;
use lane::Lane;

const NAME: &str = "impaired port";
/// Frames that one call takes from the port behind: more than two [`QUANTUM`]s bring at 10 Gb/s.
const MOST_TAKEN: usize = 512;
/// Least time between two releases of frames that wait in a row.
const QUANTUM: Duration = Duration::from_micros(250);
/// What a timer is late by even on a quiet host: a frame that is due so soon leaves at once.
const GRAIN: Duration = Duration::from_micros(20);
/// How late a release may be without a loss of rate: so long a busy host lets a thread wait for a CPU. A real wire would have
/// gone on meanwhile, and a NIC's rings would hold what it carried.
const BURST: Duration = Duration::from_millis(50);
/// The longest frame, GSO frames included.
const LONGEST: usize = 65_536 + 14 + vnet_header::LENGTH;

/// What is wrong with a wire. All zero: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Impairments {
    /// Bits a second; 0: as many as there are.
    pub rate: u64,
    /// How long a frame is under way.
    pub delay: Duration,
    /// Share of the frames that are lost, 0 to 1.
    pub loss: f64,
    /// Share of the frames that come twice, 0 to 1.
    pub duplicate: f64,
    /// Share of the frames that overtake those before them, 0 to 1: they are not delayed. Of use with a delay.
    pub reorder: f64,
    /// Fate is drawn from it: the same seed and the same frames have the same fate.
    pub seed: u64,
}

impl Impairments {
    /// Those of an arm.
    pub fn of(written: &decorators::Impairments, seed: u64) -> Self {
        let decorators::Impairments { rate, delay, loss, duplicate, reorder } = written;
        Self {
            rate: rate.map_or(0, |rate| rate.0),
            delay: delay.duration(),
            loss: loss.fraction(),
            duplicate: duplicate.fraction(),
            reorder: reorder.fraction(),
            seed,
        }
    }
}

/// A port with impairments.
pub struct Impaired {
    port: Box<dyn Port>,
    outgoing: Lane,
    incoming: Lane,
    timer: TimerFd,
    ready: Epoll,
    began: Instant,
    /// What the timer is set to.
    alarm: Option<Duration>,
    /// Whether the descriptor is silent about the port behind.
    muted: bool,
    /// When the port behind was last asked for frames.
    asked: Duration,
    /// Whether it may have had more.
    unfinished: bool,
    /// Frames that a lane, or the port behind, had no room for and that nobody else counts.
    lost: Lost,
    buffer: Vec<u8>,
}

fn failed(call: &'static str) -> impl Fn(Errno) -> PortError {
    move |error| PortError::Io { call, port: NAME.to_owned(), source: error.into() }
}

impl Impaired {
    /// `port` behind a wire with `impairments`.
    ///
    /// # Errors
    /// [`PortError::Io`] if the process has no descriptor left.
    pub fn new(port: Box<dyn Port>, impairments: Impairments) -> Result<Self, PortError> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(failed("timerfd_create"))?;
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("epoll_create1"))?;
        let event = || EpollEvent::new(EpollFlags::EPOLLIN, 0);
        ready.add(timer.as_fd(), event()).map_err(failed("epoll_ctl"))?;
        if let Some(fd) = port.fd() {
            ready.add(fd, event()).map_err(failed("epoll_ctl"))?;
        }
        let header = port.framing().header();
        Ok(Self {
            port,
            outgoing: Lane::new(impairments, impairments.seed, header),
            // Another fate for the other direction.
            incoming: Lane::new(impairments, !impairments.seed, header),
            timer,
            ready,
            began: Instant::now(),
            alarm: None,
            muted: false,
            asked: Duration::ZERO,
            unfinished: false,
            lost: Lost::default(),
            buffer: vec![0; LONGEST],
        })
    }

    /// Takes what has come to the port behind, and releases what is due for the adapter.
    fn bring(&mut self, now: Duration) -> Result<(), PortError> {
        if !self.muted || self.incoming.due().is_none_or(|due| due <= now + GRAIN) {
            // What nobody was told of has waited for longer, behind frames that waited too.
            let came = if self.muted || self.unfinished { self.asked } else { now };
            self.unfinished = true;
            for _ in 0..MOST_TAKEN {
                let Some(length) = self.port.receive(&mut [PieceMut::new(&mut self.buffer)])? else {
                    self.unfinished = false;
                    break;
                };
                let taken = self.incoming.enter(&[Piece::new(&self.buffer[..length])], came);
                self.lost.receive += u64::from(!taken);
            }
            self.asked = now;
        }
        self.incoming.serve(now);
        self.mute(self.incoming.due().is_some_and(|due| now < due && due <= now + QUANTUM))
    }

    /// Lets the descriptor say nothing of the port behind, or say it again.
    fn mute(&mut self, muted: bool) -> Result<(), PortError> {
        let Some(fd) = self.port.fd().filter(|_| muted != self.muted) else { return Ok(()) };
        let events = if muted { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        self.ready.modify(fd, &mut EpollEvent::new(events, 0)).map_err(failed("epoll_ctl"))?;
        self.muted = muted;
        Ok(())
    }

    /// Gives the port behind what is due for it.
    fn dispatch(&mut self, now: Duration) -> Result<(), PortError> {
        self.outgoing.serve(now);
        while let Some(frame) = self.outgoing.leave() {
            let sent = self.port.send(&[Piece::new(&frame)]);
            self.outgoing.spare(frame);
            self.lost.transmit += u64::from(sent? == Sent::Dropped);
        }
        Ok(())
    }

    /// Sets the timer to when either lane has something to do.
    fn arm(&mut self, now: Duration) -> Result<(), PortError> {
        let next = self.outgoing.due().into_iter().chain(self.incoming.due()).min();
        let over = |time: Option<Duration>| time.is_some_and(|time| time <= now);
        // A timer that has gone off is readable until it is set again.
        if next == self.alarm || over(next) && over(self.alarm) {
            return Ok(());
        }
        self.alarm = next;
        match next {
            Some(due) => {
                // 0 would disarm it.
                let after = due.saturating_sub(now).max(Duration::from_nanos(1));
                let expiration = Expiration::OneShot(TimeSpec::from_duration(after));
                self.timer.set(expiration, TimerSetTimeFlags::empty())
            }
            None => self.timer.unset(),
        }
        .map_err(failed("timerfd_settime"))
    }
}

impl Port for Impaired {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        let now = self.began.elapsed();
        let taken = self.outgoing.enter(parts, now);
        self.dispatch(now)?;
        self.arm(now)?;
        Ok(if taken { Sent::Taken } else { Sent::Dropped })
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        let mut frame = self.incoming.leave();
        if frame.is_none() {
            let now = self.began.elapsed();
            self.dispatch(now)?;
            self.bring(now)?;
            frame = self.incoming.leave();
            self.arm(now)?;
        }
        let Some(frame) = frame else { return Ok(None) };
        let mut copied = 0;
        for part in parts {
            let count = part.write(0, &frame[copied..]);
            copied += count;
        }
        self.incoming.spare(frame);
        Ok(Some(copied))
    }

    fn framing(&self) -> Framing {
        self.port.framing()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), PortError> {
        self.port.set_offloads(offloads)
    }

    fn set_attached(&mut self, attached: bool) -> Result<(), PortError> {
        self.port.set_attached(attached)
    }

    fn lost(&self) -> Lost {
        let Lost { transmit, receive } = self.port.lost();
        Lost {
            transmit: transmit + self.lost.transmit + self.outgoing.drops(),
            receive: receive + self.lost.receive + self.incoming.drops(),
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.0.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::port::memory::{pair, pair_with_headers};

    fn wait(port: &Impaired, milliseconds: u16) -> bool {
        let mut fds = [PollFd::new(port.fd().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(milliseconds)).unwrap() == 1
    }

    #[test]
    fn a_delayed_frame_comes_when_the_descriptor_says_so_and_not_before() {
        let (near, mut far) = pair(8).unwrap();
        let delay = Duration::from_millis(30);
        let mut port =
            Impaired::new(Box::new(near), Impairments { delay, ..Impairments::default() }).unwrap();
        let began = Instant::now();
        far.send(&[Piece::new(b"hello")]).unwrap();
        let mut room = [0; 8];
        loop {
            assert!(wait(&port, 5000), "the frame never came");
            if let Some(length) = port.receive(&mut [PieceMut::new(&mut room)]).unwrap() {
                assert_eq!(&room[..length], b"hello");
                break;
            }
        }
        assert!(began.elapsed() >= delay, "it came after {:?}", began.elapsed());
        // Nothing is due any more: the descriptor is quiet.
        assert_eq!(port.receive(&mut [PieceMut::new(&mut room)]).unwrap(), None);
        assert!(!wait(&port, 0));
    }

    #[test]
    fn frames_keep_the_header_of_the_port_behind() {
        let (near, mut far) = pair_with_headers(8).unwrap();
        let mut port = Impaired::new(Box::new(near), Impairments::default()).unwrap();
        assert_eq!(port.framing(), Framing::VirtioNetHeader);
        let mut frame = [7; vnet_header::LENGTH + 60];
        frame[0] = vnet_header::NEEDS_CSUM;
        assert_eq!(port.send(&[Piece::new(&frame)]).unwrap(), Sent::Taken);
        let mut room = [0; 100];
        assert_eq!(far.receive(&mut [PieceMut::new(&mut room)]).unwrap(), Some(frame.len()));
        assert_eq!(room[..frame.len()], frame);
    }

    #[test]
    fn a_delayed_frame_leaves_when_the_port_is_served() {
        let (near, mut far) = pair(8).unwrap();
        let delay = Duration::from_millis(20);
        let mut port =
            Impaired::new(Box::new(near), Impairments { delay, ..Impairments::default() }).unwrap();
        assert_eq!(port.send(&[Piece::new(b"bye")]).unwrap(), Sent::Taken);
        let mut room = [0; 8];
        assert_eq!(far.receive(&mut [PieceMut::new(&mut room)]).unwrap(), None);
        assert!(wait(&port, 5000), "nobody is told that it is due");
        assert_eq!(port.receive(&mut [PieceMut::new(&mut [0; 8])]).unwrap(), None);
        assert_eq!(far.receive(&mut [PieceMut::new(&mut room)]).unwrap(), Some(3));
    }
}
