//! What is still there after a power cut: a file's bytes are synced, and so is the directory that has its name.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::errno::Errno;
use tempfile::Builder;

use super::{StoreError, io_error};

/// The end of the name of a file that is being written.
const UNFINISHED: &str = ".unfinished";
/// Permissions of a file as any program makes it: the umask takes from them.
const AS_USUAL: u32 = 0o666;

/// Makes a directory, and those above it that are missing, durably.
///
/// # Errors
/// [`StoreError::Io`].
pub fn make_directories(directory: &Path) -> Result<(), StoreError> {
    let missing = directory.ancestors().take_while(|it| !it.as_os_str().is_empty() && !it.exists());
    let missing: Vec<&Path> = missing.collect();
    fs::create_dir_all(directory).map_err(io_error("made", directory))?;
    missing.into_iter().try_for_each(|made| sync(above(made)))
}

/// Syncs a directory: the names in it are durable.
///
/// # Errors
/// [`StoreError::Io`].
pub(super) fn sync(directory: &Path) -> Result<(), StoreError> {
    match File::open(directory).and_then(|directory| directory.sync_all()) {
        // A file system that does not sync directories says so (fsync(2)).
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(()),
        other => other.map_err(io_error("synced", directory)),
    }
}

/// Writes a file as a whole or not at all, durably. Others may write the same one: each has a file of its own until then.
///
/// # Errors
/// [`StoreError::Io`].
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let write = || {
        // Removed if it is not finished: half a file is of no use, and takes room that a full disk has not.
        let mut unfinished = Builder::new()
            .prefix(&format!("{name}."))
            .suffix(UNFINISHED)
            .permissions(Permissions::from_mode(AS_USUAL))
            .tempfile_in(above(path))?;
        unfinished.write_all(bytes)?;
        unfinished.as_file().sync_all()?;
        unfinished.persist(path).map_err(|error| error.error)
    };
    write().map_err(io_error("written", path))?;
    sync(above(path))
}

/// Removes what killed processes were writing in `directory`, in which nobody else writes.
pub(super) fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().ends_with(UNFINISHED.as_bytes()) {
            // What stays takes room, no more.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The directory that has a path's name in it.
fn above(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
