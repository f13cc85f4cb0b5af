//! Why the program ends early, and what memory it has.

use core::fmt;

use toll_guest_abi::BootInfo;

use crate::driver::DriverError;

/// Why the program ended before its connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramError {
    /// A field of the boot information is out of range.
    BootInfo {
        /// Its name.
        field: &'static str,
    },
    /// The arena is too small for so many flows.
    Arena {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// The adapter does not come up.
    Driver(DriverError),
    /// The connection was refused, or reset before the interval was over.
    Reset,
    /// The peer closed its end before enough of the interval was measured.
    PeerClosed,
    /// The TCP stack refused an order.
    Stack {
        /// Which.
        order: &'static str,
    },
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BootInfo { field } => write!(f, "the boot information's {field} is out of range"),
            Self::Arena { needed, found } => {
                write!(f, "the guest's memory has {found} bytes for traffic, and so many flows need {needed}")
            }
            Self::Driver(error) => write!(f, "the adapter does not come up: {error}"),
            Self::Reset => f.write_str("the connection was refused or reset"),
            Self::PeerClosed => {
                f.write_str("the peer closed its end before half of the interval was measured")
            }
            Self::Stack { order } => write!(f, "the TCP stack refused to {order}"),
        }
    }
}

impl core::error::Error for ProgramError {}

impl From<DriverError> for ProgramError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

/// The arena, and what of it an application may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Bytes that there are.
    found: u64,
    /// Bytes that the driver takes.
    driver: usize,
    /// Bytes that are left.
    pub(crate) left: usize,
}

impl Budget {
    pub(crate) fn beside(driver: usize, boot: &BootInfo) -> Self {
        let found = boot.arena_length;
        // The driver's one allocation may lose up to a page to its alignment.
        let driver = driver + 4096;
        Self { found, driver, left: usize::try_from(found).unwrap_or(usize::MAX).saturating_sub(driver) }
    }

    /// An application can't do with less than `needed` bytes.
    pub(crate) fn too_small(self, needed: usize) -> ProgramError {
        ProgramError::Arena { needed: (self.driver + needed) as u64, found: self.found }
    }
}
