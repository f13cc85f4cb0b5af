//! Where captures of trials go: a folder that whoever runs the agent names, and the space that they may take there.

use std::io;
use std::path::{Path, PathBuf};

use toll_protocol::decorators::Capture;
use toll_protocol::trial::{EndSpec, Open, TrialId};
use toll_protocol::units::Bytes;

/// Ending of the files' names.
const ENDING: &str = ".pcap";

/// The folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captures {
    folder: PathBuf,
    space: Bytes,
}

/// Why a capture can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The folder can't be used.
    #[error("the folder of captures, {folder}, can't be used: make it, or give another with --captures")]
    Folder {
        /// Which.
        folder: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is full.
    #[error(
        "captures take {taken} of the {space} that they may in {folder}, and this one may take {wanted}: remove some, or \
         start the agent with a larger --captures-space"
    )]
    Full {
        /// Which folder.
        folder: PathBuf,
        /// Bytes of the captures in it.
        taken: Bytes,
        /// Bytes that they may take.
        space: Bytes,
        /// Bytes that were asked for.
        wanted: Bytes,
    },
    /// There is none.
    #[error(
        "this host's agent keeps no captures: start it with --captures DIR, or leave `capture` out of the campaign"
    )]
    None,
}

impl Captures {
    /// Captures in `folder`, which is there, of `space` bytes together.
    ///
    /// # Errors
    /// [`CaptureError::Folder`].
    pub fn new(folder: &Path, space: Bytes) -> Result<Self, CaptureError> {
        let failed = |source| CaptureError::Folder { folder: folder.to_owned(), source };
        // Children get the path, whose folder may be another.
        let folder = folder.canonicalize().map_err(failed)?;
        std::fs::read_dir(&folder).map_err(failed)?;
        Ok(Self { folder, space })
    }

    /// The file for `end` of `trial`, if there is room for it.
    fn file(&self, trial: TrialId, end: &EndSpec, capture: Capture) -> Result<PathBuf, CaptureError> {
        let taken =
            self.taken().map_err(|source| CaptureError::Folder { folder: self.folder.clone(), source })?;
        if taken.saturating_add(capture.limit.0) > self.space.0 {
            let (folder, space, wanted) = (self.folder.clone(), self.space, capture.limit);
            return Err(CaptureError::Full { folder, taken: Bytes(taken), space, wanted });
        }
        let side = match end.job.open {
            Open::Connect => "a",
            Open::Listen => "b",
        };
        Ok(self.folder.join(format!("{trial}-{side}{ENDING}")))
    }

    /// Bytes of the captures that there are.
    fn taken(&self) -> io::Result<u64> {
        let mut taken = 0_u64;
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(ENDING) {
                // One that was removed meanwhile takes nothing.
                taken = taken.saturating_add(entry.metadata().map_or(0, |metadata| metadata.len()));
            }
        }
        Ok(taken)
    }
}

/// The capture that `end` of `trial` wants, and the file for it.
///
/// # Errors
/// [`CaptureError`] if it can't be kept.
pub fn of(
    captures: Option<&Captures>,
    trial: TrialId,
    end: &EndSpec,
) -> Result<Option<(Capture, PathBuf)>, CaptureError> {
    let Some(capture) = end.decorators.capture else { return Ok(None) };
    let file = captures.ok_or(CaptureError::None)?.file(trial, end, capture)?;
    Ok(Some((capture, file)))
}
