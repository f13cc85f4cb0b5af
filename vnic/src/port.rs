//! The host side of an adapter: where its frames go and come from. One trait, so that loss, shaping and capture
//! can wrap any port.

pub mod capture;
mod descriptor;
pub mod impaired;
pub mod macvtap;
pub mod memory;
pub mod tap;

use std::os::fd::BorrowedFd;

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
}

/// What became of a frame handed to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The port took it.
    Taken,
    /// The port has no room now: the frame is lost, as on a wire.
    Dropped,
}

/// A place for Ethernet frames (without FCS). Never blocks.
pub trait Port: Send {
    /// Sends one frame, gathered from `parts`.
    ///
    /// # Errors
    /// [`PortError::Io`].
    fn send(&mut self, parts: &[std::io::IoSlice<'_>]) -> Result<Sent, PortError>;

    /// Receives one frame, scattered over `parts`; its length, or `None` if there is none. A frame longer than
    /// `parts` is cut off at their end, and the length returned is that of `parts`.
    ///
    /// # Errors
    /// [`PortError::Io`].
    fn receive(&mut self, parts: &mut [std::io::IoSliceMut<'_>]) -> Result<Option<usize>, PortError>;

    /// Descriptor that becomes readable when a frame has come.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}
