//! What a file may be that a program reads whole: its kind, its length and, where it holds a secret, who else can
//! read it. Both programs open such files themselves; here is what they hold them to.

use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Bits of a mode that let the group read, write or execute.
const GROUP: u32 = 0o070;
/// Bits of a mode that let everybody else do so.
const OTHERS: u32 = 0o007;
/// What the group may do with root's file, at most: read it.
const GROUP_READS: u32 = 0o040;
/// The owner root, who can read every file anyway.
const ROOT: u32 = 0;

/// What is read from a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// `the token`: for messages.
    pub what: &'static str,
    /// Most bytes.
    pub longest: u64,
    /// Whether nobody but its owner may read it.
    pub secret: bool,
}

impl Content {
    /// A token: one line.
    pub const TOKEN: Self = Self { what: "the token", longest: 4 << 10, secret: true };
    /// A certificate or a chain of them, PEM.
    pub const CERTIFICATE: Self = Self { what: "the certificate", longest: 1 << 20, secret: false };
    /// A private key, PEM.
    pub const KEY: Self = Self { what: "the private key", longest: 64 << 10, secret: true };
    /// What a service says of a campaign that is over, and its document: JSON.
    pub const STATUS: Self = Self { what: "the status", longest: 256 << 20, secret: false };
    /// A result of a campaign, JSON.
    pub const RESULT: Self = Self { what: "the result", longest: 1 << 30, secret: false };
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system says no.
    #[error("{what} can't be read from {}", path.display())]
    Read {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is a device, a folder or a socket.
    #[error("{what} can't be read from {}: it is neither a regular file nor a pipe", path.display())]
    Kind {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// It is longer than what it should hold ever is.
    #[error("{} is too long: {what} has at most {longest} bytes", path.display())]
    TooLong {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Most bytes.
        longest: u64,
    },
    /// It is no text.
    #[error("{} is not in UTF-8: {what} is text", path.display())]
    NotText {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// It belongs to somebody else, who can read and change it.
    #[error("{what} is a secret, and {} belongs to the user {owner}: chown {user} {}", path.display(), path.display())]
    Owner {
        /// What is in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who this process is.
        user: u32,
    },
    /// Others can read it.
    #[error(
        "{what} is a secret, and others can read {} (mode {mode:04o}): chmod {should:o} {}, or for a Secret of Kubernetes \
         `defaultMode: 0400`, without an fsGroup if the container runs as root",
        path.display(), path.display()
    )]
    Exposed {
        /// What is in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What they should be.
        should: u32,
    },
}

impl Content {
    /// Whether a file of this kind may be opened: to open a device can do something, and to read it may never end.
    ///
    /// # Errors
    /// [`FileError::Kind`].
    pub fn may_be(&self, path: &Path, file: &Metadata) -> Result<(), FileError> {
        if file.is_file() || file.file_type().is_fifo() {
            return Ok(());
        }
        Err(FileError::Kind { what: self.what, path: path.to_owned() })
    }

    /// Whether this may be read by the user `user` from the open `file`. A secret is its owner's alone, who is that user
    /// or root; root may let a group read it whose member the user is, as Kubernetes does for a pod's `fsGroup`.
    ///
    /// # Errors
    /// [`FileError::Kind`], [`FileError::Owner`], [`FileError::Exposed`].
    pub fn admit(&self, path: &Path, file: &Metadata, user: u32) -> Result<(), FileError> {
        self.may_be(path, file)?;
        if !self.secret {
            return Ok(());
        }
        let (what, path, owner) = (self.what, path.to_owned(), file.uid());
        if owner != user && owner != ROOT {
            return Err(FileError::Owner { what, path, owner, user });
        }
        let (mode, lent) = (file.mode() & 0o777, owner == ROOT && user != ROOT);
        let forbidden = if lent { OTHERS | (GROUP & !GROUP_READS) } else { OTHERS | GROUP };
        if mode & forbidden != 0 {
            return Err(FileError::Exposed { what, path, mode, should: if lent { 0o640 } else { 0o600 } });
        }
        Ok(())
    }

    /// Reads this to the end of `file`, which stands at `path`, but no more than there may be.
    ///
    /// # Errors
    /// [`FileError::Read`], [`FileError::TooLong`], [`FileError::NotText`].
    pub fn read(&self, path: &Path, file: impl Read) -> Result<String, FileError> {
        let (what, path) = (self.what, || path.to_owned());
        let mut bytes = Vec::new();
        let read = file.take(self.longest + 1).read_to_end(&mut bytes);
        read.map_err(|source| FileError::Read { what, path: path(), source })?;
        if bytes.len() as u64 > self.longest {
            return Err(FileError::TooLong { what, path: path(), longest: self.longest });
        }
        String::from_utf8(bytes).map_err(|_| FileError::NotText { what, path: path() })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// What is said of a secret in a file of this process' user with `mode`, to `user`.
    fn said(mode: u32, user: impl FnOnce(u32) -> u32) -> Result<(), FileError> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::set_permissions(file.path(), Permissions::from_mode(mode)).expect("set");
        let metadata = file.as_file().metadata().expect("known");
        Content::KEY.admit(file.path(), &metadata, user(metadata.uid()))
    }

    #[test]
    fn a_secret_is_its_owners_alone() {
        for mode in [0o400, 0o600] {
            said(mode, |owner| owner).expect("nobody else can read it");
        }
        for mode in [0o440, 0o640, 0o604, 0o644, 0o620, 0o777] {
            let error = said(mode, |owner| owner).expect_err("others can read it").to_string();
            assert!(error.contains("chmod 600 ") && error.contains(&format!("{mode:04o}")), "{error}");
        }
    }

    #[test]
    fn the_file_of_another_user_is_refused_and_roots_may_be_lent_to_a_group() {
        let of_root = nix_user() == ROOT;
        for (mode, lent) in [(0o400, true), (0o440, true), (0o640, true), (0o644, false), (0o660, false)] {
            let said = said(mode, |owner| owner + 1000);
            match (of_root, lent) {
                (true, true) => said.expect("root lends it"),
                (true, false) => assert!(matches!(said, Err(FileError::Exposed { should: 0o640, .. }))),
                (false, _) => {
                    let error = said.expect_err("is another's").to_string();
                    assert!(error.contains("chown"), "{error}");
                }
            }
        }
    }

    fn nix_user() -> u32 {
        fs::metadata("/proc/self").expect("there is one").uid()
    }

    #[test]
    fn what_is_public_may_be_read_by_all() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::set_permissions(file.path(), Permissions::from_mode(0o644)).expect("set");
        let metadata = file.as_file().metadata().expect("known");
        Content::CERTIFICATE
            .admit(file.path(), &metadata, metadata.uid() + 1)
            .expect("a certificate is no secret");
    }

    #[test]
    fn a_device_or_a_folder_is_no_file() {
        for path in ["/dev/zero", "/dev/null", "/"] {
            let path = Path::new(path);
            let error =
                Content::TOKEN.may_be(path, &fs::metadata(path).expect("known")).expect_err("is none");
            assert!(error.to_string().contains("neither a regular file nor a pipe"), "{error}");
        }
    }

    #[test]
    fn no_more_is_read_than_there_may_be() {
        let path = Path::new("f");
        let endless = Content::TOKEN.read(path, io::repeat(b'a')).expect_err("has no end");
        assert_eq!(endless.to_string(), "f is too long: the token has at most 4096 bytes");
        let longest = Content::TOKEN.read(path, io::repeat(b'a').take(4096)).expect("is as long as may be");
        assert_eq!(longest.len(), 4096);
        let binary = Content::TOKEN.read(path, &b"\xff"[..]).expect_err("is no text");
        assert!(matches!(binary, FileError::NotText { .. }), "{binary}");
    }
}
