//! Toll's other programs stand beside this one.

use std::path::PathBuf;

/// A program is not where it must be.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// This program doesn't know where it is.
    #[error("the directory of this program can't be found")]
    Here(#[source] std::io::Error),
    /// The other one is not there.
    #[error("{path} is missing: build all of Toll (cargo build --release), and keep its programs in one directory", path = path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
}

/// The path of `name` beside the running program.
///
/// # Errors
/// [`BinaryError`].
pub fn beside(name: &str) -> Result<PathBuf, BinaryError> {
    let here = std::env::current_exe().map_err(BinaryError::Here)?;
    let path = here.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(BinaryError::Missing { path }) }
}
