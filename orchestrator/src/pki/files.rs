//! `toll pki`: an authority and its identities as files.
//!
//! ```text
//! DIR/ca.pem, DIR/ca.key                    the authority; its key never has to leave the machine
//! DIR/NAME/ca.pem, certificate.pem, key.pem what toll serve and toll-agent take as --pki
//! ```

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use toll_protocol::file::{Content, FileError};

use super::{Authority, FLEET_NAME, Identity, PkiError, SERVER_NAME};
use crate::file;

/// The authority's certificate, in every directory.
pub const CA: &str = "ca.pem";
/// The authority's private key.
const CA_KEY: &str = "ca.key";
/// An identity's certificate.
pub const CERTIFICATE: &str = "certificate.pem";
/// An identity's private key.
pub const KEY: &str = "key.pem";
/// Directory of the orchestrator's identity.
const ORCHESTRATOR: &str = "orchestrator";
/// Directory of the identity that all agents of a DaemonSet share.
const FLEET: &str = "fleet";

/// Why files of certificates can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Nothing is written over.
    #[error("{path} exists already, and certificates are never written over: remove it, or choose another directory", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file can't be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// There is no authority.
    #[error("{path} is not there: make an authority first (toll pki init --dir DIR)", path = path.display())]
    NoAuthority {
        /// The file.
        path: PathBuf,
    },
    /// A file can't be written.
    #[error("{path} can't be written", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The name can't be an agent's.
    #[error("`{name}` is no agent's name: write the name of its host, a DNS name (RFC 1123)")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// A certificate can't be made.
    #[error("no certificate can be made")]
    Pki(#[from] PkiError),
}

/// Makes an authority in `directory`, and the orchestrator's identity. Returns the identity's directory.
///
/// # Errors
/// [`FilesError`]; an authority that is there already is kept.
pub fn init(directory: &Path, days: u32) -> Result<PathBuf, FilesError> {
    make(directory)?;
    let authority = Authority::new(days)?;
    let (certificate, key) = authority.pem();
    write(&directory.join(CA_KEY), &key, 0o600)?;
    write(&directory.join(CA), certificate, 0o644)?;
    keep(&authority.issue(SERVER_NAME, days)?, &directory.join(ORCHESTRATOR))
}

/// Issues an identity for the agent of the host `name`. Returns its directory.
///
/// # Errors
/// [`FilesError`].
pub fn issue(directory: &Path, name: &str, days: u32) -> Result<PathBuf, FilesError> {
    if !is_host_name(name) || [SERVER_NAME, FLEET_NAME, ORCHESTRATOR, FLEET].contains(&name) {
        return Err(FilesError::Name { name: name.to_owned() });
    }
    keep(&authority(directory)?.issue(name, days)?, &directory.join(name))
}

/// Issues the identity that all agents of a DaemonSet share. Returns its directory.
///
/// # Errors
/// [`FilesError`].
pub fn issue_fleet(directory: &Path, days: u32) -> Result<PathBuf, FilesError> {
    keep(&authority(directory)?.issue(FLEET_NAME, days)?, &directory.join(FLEET))
}

/// Reads the identity that `directory` holds.
///
/// # Errors
/// [`FilesError::Read`].
pub fn read(directory: &Path) -> Result<Identity, FilesError> {
    let text = |name: &str, content| file::read(&directory.join(name), content);
    let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (authority_pem, certificate_pem) =
        (text(CA, Content::CERTIFICATE)?, text(CERTIFICATE, Content::CERTIFICATE)?);
    Ok(Identity { name, authority_pem, certificate_pem, key_pem: text(KEY, Content::KEY)? })
}

fn authority(directory: &Path) -> Result<Authority, FilesError> {
    let text = |name: &str, content| {
        let path = directory.join(name);
        file::read(&path, content).map_err(|error| match error {
            FileError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                FilesError::NoAuthority { path }
            }
            error => FilesError::Read(error),
        })
    };
    Ok(Authority::of(&text(CA, Content::CERTIFICATE)?, &text(CA_KEY, Content::KEY)?)?)
}

fn keep(identity: &Identity, directory: &Path) -> Result<PathBuf, FilesError> {
    make(directory)?;
    write(&directory.join(KEY), &identity.key_pem, 0o600)?;
    write(&directory.join(CERTIFICATE), &identity.certificate_pem, 0o644)?;
    write(&directory.join(CA), &identity.authority_pem, 0o644)?;
    Ok(directory.to_owned())
}

fn make(directory: &Path) -> Result<(), FilesError> {
    let failed = |source| FilesError::Write { path: directory.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)
}

/// Writes a file that must not exist.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), FilesError> {
    let file = File::options().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => FilesError::Exists { path: path.to_owned() },
        _ => FilesError::Write { path: path.to_owned(), source },
    })?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|source| FilesError::Write { path: path.to_owned(), source })
}

/// RFC 1123, 2.1: labels of letters, digits and `-`, in lower case as Kubernetes writes them; nothing that could lead
/// out of a directory.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::pki::DEFAULT_DAYS;

    #[test]
    fn identities_are_issued_by_the_authority_and_keys_are_their_owners_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let dir = directory.path().join("pki");
        let orchestrator = init(&dir, DEFAULT_DAYS).expect("makes an authority");
        assert!(matches!(init(&dir, 1), Err(FilesError::Exists { .. })), "an authority was written over");
        let node = issue(&dir, "node-1.rack2", DEFAULT_DAYS).expect("issues");
        let fleet = issue_fleet(&dir, DEFAULT_DAYS).expect("issues");
        for path in [&orchestrator, &node, &fleet] {
            let identity = read(path).expect("reads");
            assert_eq!(identity.authority_pem, fs::read_to_string(dir.join(CA)).expect("reads"));
            let mode = fs::metadata(path.join(KEY)).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(matches!(issue(&dir, "node-1.rack2", 1), Err(FilesError::Exists { .. })));
    }

    #[test]
    fn a_key_that_others_can_read_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        let orchestrator = init(directory.path(), DEFAULT_DAYS).expect("makes an authority");
        for key in [orchestrator.join(KEY), directory.path().join(CA_KEY)] {
            fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("set");
        }
        let error = read(&orchestrator).expect_err("others can read the key").to_string();
        assert!(error.contains("chmod 600") && error.contains(KEY), "{error}");
        let error = issue(directory.path(), "node", 1).expect_err("others can read the key").to_string();
        assert!(error.contains("chmod 600") && error.contains(CA_KEY), "{error}");
    }

    #[test]
    fn a_device_is_no_certificate() {
        let directory = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink("/dev/zero", directory.path().join(CA)).expect("linked");
        let error = read(directory.path()).expect_err("has no end").to_string();
        assert!(error.contains("neither a regular file"), "{error}");
    }

    #[test]
    fn what_is_no_hosts_name_gets_no_certificate() {
        let directory = tempfile::tempdir().expect("a directory");
        init(directory.path(), 1).expect("makes an authority");
        for name in ["", "..", "../x", "a/b", "A", "-a", "a-", "a..b", "toll-orchestrator", "fleet", "*.x"] {
            let error = issue(directory.path(), name, 1).expect_err(name);
            assert!(matches!(error, FilesError::Name { .. }), "{name}: {error}");
        }
        let empty = tempfile::tempdir().expect("a directory");
        let error = issue(empty.path(), "node", 1).expect_err("has no authority");
        assert!(error.to_string().contains("toll pki init"), "{error}");
    }
}
