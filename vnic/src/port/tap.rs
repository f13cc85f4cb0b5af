//! A TAP device: the host's kernel sees a network interface, we hold its other end.
//!
//! The interface is created in the network namespace of the calling thread and is gone when the port is
//! dropped. Its queue towards us holds `txqueuelen` frames (1000 unless changed); the kernel drops what comes
//! while it is full.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tun_tap::{Iface, Mode};

use super::{Framing, Offloads, Port, PortError, Queues, Sent, descriptor, tun};
use crate::piece::{Piece, PieceMut};

/// Longest name of an interface in bytes: IFNAMSIZ without its terminator.
const MAX_NAME: usize = 15;

/// The clone device: what is opened becomes a TAP by TUNSETIFF.
const DEVICE: &str = "/dev/net/tun";

/// An open TAP, or one queue of it.
#[derive(Debug)]
pub struct Tap {
    interface: Interface,
    framing: Framing,
    attached: bool,
}

/// Who opened it: `tun-tap` knows neither IFF_VNET_HDR nor IFF_MULTI_QUEUE.
#[derive(Debug)]
enum Interface {
    /// Bare frames, one queue.
    Plain(Iface),
    /// Anything else.
    Other { device: File, name: String },
}

fn refused(name: &str, advice: &'static str, source: io::Error) -> PortError {
    PortError::Open { port: format!("TAP `{name}`"), advice, source }
}

impl Tap {
    /// Creates the TAP `name` in the network namespace of the calling thread, for frames with or without headers. It is
    /// down and on no bridge.
    ///
    /// # Errors
    /// [`PortError::Open`] with what to do: the name is no name of an interface or is taken, there is no
    /// `/dev/net/tun`, or the process lacks CAP_NET_ADMIN in the namespace.
    pub fn create(name: &str, framing: Framing) -> Result<Self, PortError> {
        Self::check(name)?;
        let interface = match framing {
            Framing::Bare => Iface::without_packet_info(name, Mode::Tap).map(Interface::Plain),
            Framing::VirtioNetHeader => Self::queue(name, framing, Queues::Single),
        };
        Self::opened(name, framing, interface)
    }

    /// As [`create`](Self::create), with `count` queues, all attached: each port is one of them, and the interface is
    /// gone when the last is.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_queues(name: &str, framing: Framing, count: usize) -> Result<Vec<Self>, PortError> {
        Self::check(name)?;
        let queue = |_| Self::opened(name, framing, Self::queue(name, framing, Queues::Multiple));
        (0..count).map(queue).collect()
    }

    /// Whether `name` can be that of a new interface.
    fn check(name: &str) -> Result<(), PortError> {
        let invalid =
            |advice, why: &str| refused(name, advice, io::Error::new(io::ErrorKind::InvalidInput, why));
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(invalid("choose a name of 1 to 15 bytes", "the name's length is out of range"));
        }
        // `%d` would make the kernel choose another name, the others can't be in one.
        if name == "." || name == ".." || !name.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b))
        {
            return Err(invalid(
                "choose a name of letters, digits, `-`, `_` or `.`",
                "the name has other characters",
            ));
        }
        // A persistent TAP of this name would be taken over instead of created.
        if nix::net::if_::if_nametoindex(name).is_ok() {
            let advice = "an interface of this name exists: remove it or choose another name";
            return Err(refused(name, advice, Errno::EEXIST.into()));
        }
        Ok(())
    }

    fn queue(name: &str, framing: Framing, queues: Queues) -> io::Result<Interface> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        tun::set_interface(device.as_fd(), name, framing, queues)?;
        Ok(Interface::Other { device, name: name.to_owned() })
    }

    /// The port, made non-blocking.
    fn opened(name: &str, framing: Framing, interface: io::Result<Interface>) -> Result<Self, PortError> {
        let interface = interface.map_err(|error| {
            let advice = match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => {
                    "there is no TUN driver: `modprobe tun`, and make /dev/net/tun available (c 10 200)"
                }
                Some(Errno::EACCES) => "open /dev/net/tun to this user",
                Some(Errno::EPERM) => "CAP_NET_ADMIN is needed: run as root, or inside a user namespace",
                Some(errno @ Errno::EINVAL) => tun::of_header(errno),
                Some(Errno::EBUSY) => "another process holds an interface of this name: choose another",
                Some(Errno::E2BIG) => "the kernel gives an interface no more queues: choose fewer",
                _ => "see the system's word",
            };
            refused(name, advice, error)
        })?;
        let tap = Self { interface, framing, attached: true };
        let flags = fcntl(tap.descriptor(), FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        flags
            .and_then(|flags| fcntl(tap.descriptor(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
            .map_err(|error| refused(name, "it could not be made non-blocking", error.into()))?;
        Ok(tap)
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        match &self.interface {
            Interface::Plain(interface) => interface.name(),
            Interface::Other { name, .. } => name,
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.interface {
            // SAFETY: the descriptor is open as long as `interface`, which the borrow keeps.
            Interface::Plain(interface) => unsafe { BorrowedFd::borrow_raw(interface.as_raw_fd()) },
            Interface::Other { device, .. } => device.as_fd(),
        }
    }

    fn failed(&self, call: &'static str, error: Errno) -> PortError {
        PortError::Io { call, port: format!("TAP `{}`", self.name()), source: error.into() }
    }
}

impl Port for Tap {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        descriptor::send(self.descriptor(), self.framing(), parts, |call, error| self.failed(call, error))
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        descriptor::receive(self.descriptor(), parts, |call, error| self.failed(call, error))
    }

    fn framing(&self) -> Framing {
        self.framing
    }

    fn set_offloads(&mut self, offloads: Offloads) -> Result<(), PortError> {
        match self.framing() {
            Framing::Bare => Ok(()),
            Framing::VirtioNetHeader => tun::set_offloads(self.descriptor(), offloads)
                .map_err(|error| self.failed("TUNSETOFFLOAD", error)),
        }
    }

    fn set_attached(&mut self, attached: bool) -> Result<(), PortError> {
        if self.attached != attached {
            tun::set_attached(self.descriptor(), attached)
                .map_err(|error| self.failed("TUNSETQUEUE", error))?;
            self.attached = attached;
        }
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.descriptor())
    }
}
