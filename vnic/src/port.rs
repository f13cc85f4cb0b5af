//! The host side of an adapter: where its frames go and come from. One trait, so that loss, shaping and capture
//! can wrap any port.

pub mod arrivals;
pub mod capture;
mod descriptor;
pub mod hub;
pub mod impaired;
pub mod macvtap;
pub mod memory;
pub mod nat;
pub mod splitting;
pub mod tap;
mod tun;

use std::os::fd::BorrowedFd;

use toll_protocol::report::FrameCounters;

use crate::vnet_header;

/// Why a port can't go on.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The port could not be opened.
    #[error("{port} could not be opened: {advice}")]
    Open {
        /// Its kind and name.
        port: String,
        /// What to do.
        advice: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
    /// A system call on an open port failed.
    #[error("{call} on {port} failed")]
    Io {
        /// The call.
        call: &'static str,
        /// Its kind and name.
        port: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The kernel finds the header before a frame malformed: the guest's fault, and the port goes on.
    #[error("{port} refuses the virtio_net_hdr before a frame")]
    Refused {
        /// Its kind and name.
        port: String,
    },
    /// The adapter's offloads need a header before each frame, and the port has none.
    #[error("the adapter's offloads need a port whose frames have a virtio_net_hdr")]
    NoHeaders,
    /// A queue pair has no port of its own, or a port no pair.
    #[error("{pairs} queue pairs need as many ports, and there are {ports}")]
    Queues {
        /// Queue pairs.
        pairs: usize,
        /// Ports.
        ports: usize,
    },
}

/// What stands before a frame on its way through a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Nothing.
    Bare,
    /// `struct virtio_net_hdr` of 12 bytes (virtio 1.2, 5.1.6), little-endian, in either direction: a frame may be
    /// without its checksum, or be a TCP segment to be cut up. The port leaves `num_buffers` of a received one alone.
    VirtioNetHeader,
}

impl Framing {
    /// Bytes before a frame.
    pub const fn header(self) -> usize {
        match self {
            Self::Bare => 0,
            Self::VirtioNetHeader => vnet_header::LENGTH,
        }
    }
}

/// Whether an interface has one queue or several, of which each is a port (IFF_MULTI_QUEUE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queues {
    /// One.
    Single,
    /// Several: the kernel sends the frames of a flow to the queue that its frames came from last.
    Multiple,
}

/// Which frames an adapter takes from a port with headers before they are finished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Without their TCP or UDP checksum.
    pub checksum: bool,
    /// TCP over IPv4, to be segmented. Needs `checksum`.
    pub tso4: bool,
    /// TCP over IPv6, to be segmented. Needs `checksum`.
    pub tso6: bool,
}

impl Offloads {
    /// Whether TCP segments may come that are to be cut up.
    pub const fn segments(self) -> bool {
        self.tso4 || self.tso6
    }
}

/// What became of a frame handed to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The port took it.
    Taken,
    /// The port has no room now: the frame is lost, as on a wire.
    Dropped,
}

/// Frames that a port lost and nobody heard of at the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Of those that it had taken.
    pub transmit: u64,
    /// Of those for the adapter.
    pub receive: u64,
}

impl Lost {
    /// What an adapter has counted, and these.
    pub(crate) fn beside(self, counted: FrameCounters) -> FrameCounters {
        FrameCounters {
            transmit_drops: counted.transmit_drops + self.transmit,
            receive_drops: counted.receive_drops + self.receive,
            ..counted
        }
    }
}

/// A place for Ethernet frames (without FCS). Never blocks.
pub trait Port: Send {
    /// Sends one frame, gathered from `parts`.
    ///
    /// # Errors
    /// [`PortError::Io`]; [`PortError::Refused`] if the frame's header doesn't fit it.
    fn send(&mut self, parts: &[crate::piece::Piece<'_>]) -> Result<Sent, PortError>;

    /// Receives one frame, scattered over `parts`; its length, or `None` if there is none. A frame longer than
    /// `parts` is cut off at their end, and the length returned is that of `parts`.
    ///
    /// # Errors
    /// [`PortError::Io`].
    fn receive(&mut self, parts: &mut [crate::piece::PieceMut<'_>]) -> Result<Option<usize>, PortError>;

    /// What stands before a frame. A wrapper of a port says what that port says.
    fn framing(&self) -> Framing {
        Framing::Bare
    }

    /// Says which frames may come unfinished: none, until this is called. Without meaning to a port without headers.
    ///
    /// # Errors
    /// [`PortError::Io`].
    fn set_offloads(&mut self, _offloads: Offloads) -> Result<(), PortError> {
        Ok(())
    }

    /// Whether frames are to come this way: a port that is one queue of a network interface gets none while it is
    /// detached. Attached, until this is called. Without meaning to a port that is all there is.
    ///
    /// # Errors
    /// [`PortError::Io`].
    fn set_attached(&mut self, _attached: bool) -> Result<(), PortError> {
        Ok(())
    }

    /// What was lost inside of the port for want of room. None in one that holds no frames.
    fn lost(&self) -> Lost {
        Lost::default()
    }

    /// Descriptor that becomes readable when a frame has come.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}
