//! A port that writes every frame that crosses it to a capture file.
//!
//! ```text
//!  adapter <-> Capture <-> port
//!                 |
//!                 +--> pcap: header(24) [record(16) frame]...    (draft-ietf-opsawg-pcap, nanoseconds, LINKTYPE_ETHERNET)
//! ```
//! What the guest sends is written when the port has taken it, what it receives when it is handed over. A capture costs
//! a copy of each frame and is no way to measure: a run with one is flagged.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Framing, Lost, Offloads, Port, PortError, Sent};
use crate::piece::{Piece, PieceMut};

/// Magic of a file with nanoseconds, in the byte order of its writer.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;
/// Bytes kept of a frame at most: all of any.
const SNAP_LENGTH: u32 = 256 << 10;

/// Bytes of a file before its records.
pub const HEADER_BYTES: u64 = 24;

/// A port that captures.
pub struct Capture {
    port: Box<dyn Port>,
    file: Box<dyn Write + Send>,
    /// What the record of a frame is put together in.
    record: Vec<u8>,
    /// Bytes of records that may still be written.
    left: u64,
}

impl Capture {
    /// A capture of what crosses `port`, in `file`, which gets at most `limit` bytes, its header at least: frames after
    /// that are not captured.
    ///
    /// # Errors
    /// [`PortError::Io`] if the file takes no header.
    pub fn new(port: Box<dyn Port>, file: Box<dyn Write + Send>, limit: u64) -> Result<Self, PortError> {
        let mut capture = Self { port, file, record: Vec::new(), left: limit.saturating_sub(HEADER_BYTES) };
        let mut header = Vec::with_capacity(HEADER_BYTES as usize);
        header.extend(MAGIC.to_le_bytes());
        header.extend(VERSION.into_iter().flat_map(u16::to_le_bytes));
        // Correction to UTC and accuracy, which nobody sets.
        header.extend([0; 8]);
        header.extend(SNAP_LENGTH.to_le_bytes());
        header.extend(ETHERNET.to_le_bytes());
        capture.file.write_all(&header).map_err(failed)?;
        Ok(capture)
    }

    /// Writes a frame of `length` bytes, which are the first of `parts`.
    fn write<'p>(
        &mut self,
        parts: impl Iterator<Item = Piece<'p>>,
        length: usize,
        at: SystemTime,
    ) -> Result<(), PortError> {
        // A header before the frame is no part of it.
        let header = self.port.framing().header();
        let Some(length) = length.checked_sub(header) else { return Ok(()) };
        let kept = length.min(SNAP_LENGTH as usize);
        let size = (16 + kept) as u64;
        let Some(left) = self.left.checked_sub(size) else {
            self.left = 0;
            return Ok(());
        };
        self.left = left;
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.record.clear();
        // The field has 32 bits, until the year 2106.
        self.record.extend((since.as_secs() as u32).to_le_bytes());
        self.record.extend(since.subsec_nanos().to_le_bytes());
        self.record.extend((kept as u32).to_le_bytes());
        self.record.extend((length as u32).to_le_bytes());
        let (mut skip, mut missing) = (header, kept);
        for mut part in parts {
            let skipped = skip.min(part.len());
            part.advance(skipped);
            skip -= skipped;
            let part = part.first(missing);
            part.append_to(&mut self.record);
            missing -= part.len();
        }
        self.file.write_all(&self.record).map_err(failed)
    }
}

fn failed(source: std::io::Error) -> PortError {
    PortError::Io { call: "write", port: "capture file".to_owned(), source }
}

impl Port for Capture {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        let sent = self.port.send(parts)?;
        if sent == Sent::Taken {
            let length = parts.iter().map(|part| part.len()).sum();
            self.write(parts.iter().copied(), length, SystemTime::now())?;
        }
        Ok(sent)
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        let length = self.port.receive(parts)?;
        if let Some(length) = length {
            self.write(parts.iter().map(PieceMut::filled), length, SystemTime::now())?;
        }
        Ok(length)
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
        self.port.lost()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.fd()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Nobody is left to tell; whoever reads the file sees that it ends early.
        let _ = self.file.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::port::memory::pair;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn both_directions_are_written_up_to_the_limit() {
        let (near, mut far) = pair(4).unwrap();
        let file = Shared::default();
        let mut port = Capture::new(Box::new(near), Box::new(file.clone()), 24 + 16 + 5 + 16 + 3).unwrap();
        port.send(&[Piece::new(b"he"), Piece::new(b"llo")]).unwrap();
        far.send(&[Piece::new(b"you")]).unwrap();
        let mut room = [0; 64];
        assert_eq!(port.receive(&mut [PieceMut::new(&mut room)]).unwrap(), Some(3));
        port.send(&[Piece::new(b"over the limit")]).unwrap();
        let bytes = file.0.lock().unwrap().clone();
        assert_eq!(bytes.len(), 24 + 16 + 5 + 16 + 3);
        assert_eq!(&bytes[..4], &[0x4d, 0x3c, 0xb2, 0xa1]);
        assert_eq!(&bytes[24 + 8..24 + 16], &[5, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(&bytes[40..45], b"hello");
        assert_eq!(&bytes[61..], b"you");
    }

    #[test]
    fn the_time_is_that_of_the_frame() {
        let (near, _far) = pair(1).unwrap();
        let file = Shared::default();
        let mut port = Capture::new(Box::new(near), Box::new(file.clone()), 1 << 20).unwrap();
        let at = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        port.write([Piece::new(b"x")].into_iter(), 1, at).unwrap();
        let bytes = file.0.lock().unwrap().clone();
        assert_eq!(bytes[24..28], 1_700_000_000_u32.to_le_bytes());
        assert_eq!(bytes[28..32], 123_456_789_u32.to_le_bytes());
    }
}
