//! Files that are read whole: `toll_protocol::file` says which ones may be.

use std::fs::{self, File};
use std::path::Path;

use toll_protocol::file::{Content, FileError};

/// Reads the file at `path`, which should hold `content`.
///
/// # Errors
/// [`FileError`].
pub fn read(path: &Path, content: Content) -> Result<String, FileError> {
    let failed = |source| FileError::Read { what: content.what, path: path.to_owned(), source };
    content.may_be(path, &fs::metadata(path).map_err(failed)?)?;
    let file = File::open(path).map_err(failed)?;
    // What was opened may be another file than the one that was looked at.
    content.admit(path, &file.metadata().map_err(failed)?, nix::unistd::geteuid().as_raw())?;
    content.read(path, file)
}
