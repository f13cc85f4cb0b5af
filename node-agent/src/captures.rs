//! Where captures of trials go: a folder that whoever runs the agent names, and the space that they may take there.
//! Room is reserved before a file is begun: both ends of a trial may stand on one host, and neither file shows yet how
//! long it will be.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use toll_protocol::decorators::Capture;
use toll_protocol::trial::{EndSpec, Open, TrialId};
use toll_protocol::units::Bytes;

/// Ending of the files' names.
const ENDING: &str = ".pcap";

/// How long looking for room may take: the trial hears of nothing else meanwhile.
const LIMIT: Duration = Duration::from_secs(5);

/// Files that are being written, by their names, and what each may take.
type Reserved = Arc<Mutex<BTreeMap<OsString, u64>>>;

/// The folder.
#[derive(Debug)]
pub struct Captures {
    folder: PathBuf,
    space: Bytes,
    reserved: Reserved,
    /// Held by whoever looks for room, until it is reserved; by a thread that nobody waits for any more too.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Room for one capture until it is dropped: from then on its file counts by its length.
#[derive(Debug)]
pub struct Reservation {
    capture: Capture,
    file: PathBuf,
    reserved: Reserved,
}

impl Reservation {
    /// What is captured.
    pub const fn capture(&self) -> Capture {
        self.capture
    }

    /// The file for it.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(name) = self.file.file_name() {
            lock(&self.reserved).remove(name);
        }
    }
}

fn lock(reserved: &Mutex<BTreeMap<OsString, u64>>) -> MutexGuard<'_, BTreeMap<OsString, u64>> {
    // Nothing panics half-way through a change.
    reserved.lock().unwrap_or_else(PoisonError::into_inner)
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
        "captures take {taken} of the {space} that they may in {folder}, those under way included, and this one may \
         take {wanted}: remove some, or start the agent with a larger --captures-space"
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
    /// It does not answer, as a file system on the network whose server is gone.
    #[error(
        "the folder of captures, {folder}, could not be read within {} s: mount it anew, or give another with --captures",
        LIMIT.as_secs()
    )]
    Slow {
        /// Which.
        folder: PathBuf,
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
        Ok(Self { folder, space, reserved: Reserved::default(), turn: Arc::default() })
    }

    /// Room for the capture of `end` of `trial`, if there is any. The folder is read on a thread that may wait for it.
    async fn reserve(
        &self,
        trial: TrialId,
        end: &EndSpec,
        capture: Capture,
    ) -> Result<Reservation, CaptureError> {
        let side = match end.job.open {
            Open::Connect => "a",
            Open::Listen => "b",
        };
        let file = self.folder.join(format!("{trial}-{side}{ENDING}"));
        let name = OsString::from(file.file_name().unwrap_or_default());
        let turn = Arc::clone(&self.turn).lock_owned().await;
        // Before the folder is read: what is let go meanwhile is counted here, and not twice.
        let mut others = lock(&self.reserved).clone();
        others.remove(&name);
        let promised = others.values().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        let (folder, own) = (self.folder.clone(), name.clone());
        let read = move || (taken(&folder, |file| file != &own && !others.contains_key(file)), turn);
        let failed = |source| CaptureError::Folder { folder: self.folder.clone(), source };
        let (written, _turn) =
            tokio::task::spawn_blocking(read).await.map_err(|error| failed(io::Error::other(error)))?;
        let written = written.map_err(failed)?;
        let (taken, wanted) = (written.saturating_add(promised), capture.limit.0);
        if taken.saturating_add(wanted) > self.space.0 {
            let (folder, space) = (self.folder.clone(), self.space);
            return Err(CaptureError::Full { folder, taken: Bytes(taken), space, wanted: capture.limit });
        }
        lock(&self.reserved).insert(name, wanted);
        Ok(Reservation { capture, file, reserved: Arc::clone(&self.reserved) })
    }
}

/// Bytes of the captures in `folder` whose names `counts`.
fn taken(folder: &Path, counts: impl Fn(&OsString) -> bool) -> io::Result<u64> {
    let mut taken = 0_u64;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().ends_with(ENDING) && counts(&name) {
            // One that was removed meanwhile takes nothing.
            taken = taken.saturating_add(entry.metadata().map_or(0, |metadata| metadata.len()));
        }
    }
    Ok(taken)
}

/// Reserves room for the capture that `end` of `trial` wants, if it wants one.
///
/// # Errors
/// [`CaptureError`] if it can't be kept.
pub async fn reserve(
    captures: Option<&Captures>,
    trial: TrialId,
    end: &EndSpec,
) -> Result<Option<Reservation>, CaptureError> {
    let Some(capture) = end.kind.decorators().capture else { return Ok(None) };
    let captures = captures.ok_or(CaptureError::None)?;
    let slow = |_| CaptureError::Slow { folder: captures.folder.clone() };
    let reservation = tokio::time::timeout(LIMIT, captures.reserve(trial, end, capture)).await;
    reservation.map_err(slow)?.map(Some)
}

#[cfg(test)]
mod tests;
