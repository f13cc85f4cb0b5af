//! The lock of a data directory: one process at a time serves what is in it. Another one would take the first one's
//! trials for lost.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{CAMPAIGNS, StoreError, io_error, keep_others_out};

/// The lock's file in the directory. It stays: what counts is whether somebody has it locked (flock(2)), which ends
/// with the process.
const FILE: &str = "lock";
/// Permissions of it: whoever can open a file, to read it too, can lock it (flock(2)).
const PRIVATE: u32 = 0o600;
/// What is read of who holds it.
const LONGEST: u64 = 256;

/// A directory that is this process's, until this is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks `directory`.
    ///
    /// # Errors
    /// [`StoreError::Held`] if another process has it, [`StoreError::Io`].
    pub fn take(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(FILE);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(PRIVATE);
        let mut file = options.open(&path).map_err(io_error("opened", &path))?;
        keep_others_out(&file, &path, PRIVATE)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(directory, file)),
            Err(TryLockError::Error(source)) => return Err(io_error("locked", &path)(source)),
        }
        // Who holds it is for people alone: a disk that is full is no reason not to serve.
        if let Err(error) = tell(&mut file) {
            tracing::warn!("{} does not name this process: {error}", path.display());
        }
        Ok(Self { _file: file })
    }

    /// Locks the data directory that `directory` is a campaign of, if it is one's.
    ///
    /// # Errors
    /// [`StoreError::Held`] if a service has it, [`StoreError::Io`].
    pub fn of_campaign(directory: &Path) -> Result<Option<Self>, StoreError> {
        let Ok(directory) = directory.canonicalize() else { return Ok(None) };
        let campaigns = directory.parent().filter(|parent| parent.ends_with(CAMPAIGNS));
        match campaigns.and_then(Path::parent).filter(|data| data.join(FILE).is_file()) {
            Some(data) => Self::take(data).map(Some),
            None => Ok(None),
        }
    }
}

fn tell(file: &mut File) -> io::Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "process {} on {}", std::process::id(), host.trim())
}

fn held(directory: &Path, file: File) -> StoreError {
    let mut by = String::new();
    // It may be about to be written: the one who holds it is then not named.
    let read = file.take(LONGEST).read_to_string(&mut by);
    let by = by.lines().next().filter(|by| read.is_ok() && !by.is_empty());
    StoreError::Held { directory: PathBuf::from(directory), by: by.unwrap_or("another process").to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_processs_who_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = Lock::take(directory.path()).expect("is free");
        let error = Lock::take(directory.path()).expect_err("is held");
        let pid = std::process::id();
        assert!(error.to_string().contains(&format!("process {pid} on ")), "{error}");
        drop(lock);
        drop(Lock::take(directory.path()).expect("is free again"));
        // What a process that was killed has left says nothing.
        std::fs::write(directory.path().join(FILE), "process 1 on nowhere\n").expect("writes");
        drop(Lock::take(directory.path()).expect("is free"));
    }
}
