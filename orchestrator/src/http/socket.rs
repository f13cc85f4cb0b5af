//! The Unix socket of the API: whoever may connect to it may change something, so it is its owner's alone.
//!
//! ```text
//! DIR/            the owner's or root's, and nobody else may write there; made with 0700 if it is not there
//!   toll.sock      0600 from the moment that it exists
//!   toll.sock.lock held for as long as a process listens: what is there without it was left by one that died
//! ```

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Uid, geteuid};
use tokio::net::UnixListener;

/// Where a service of root's has its socket, and one that is told nothing else.
const OF_ROOT: &str = "/run/toll/toll.sock";
/// Where a user's programs keep what lives as long as they run (XDG Base Directory Specification).
const RUNTIME_DIRECTORY: &str = "XDG_RUNTIME_DIR";
/// The same in it.
const OF_A_USER: &str = "toll/toll.sock";
/// Permissions of the socket.
const OWNER_ALONE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
/// Bits of a directory's mode that let others put a socket of their own in the place of ours.
const OTHERS_WRITE: u32 = 0o022;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A file or directory.
    #[error("the Unix socket {} can't be made: choose a place for it with --socket PATH", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Another process listens there.
    #[error("another toll serve listens at {}: give this one a socket of its own with --socket PATH", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something is there that no service has made.
    #[error("{} is there and is no socket: remove it, or choose another place with --socket PATH", path.display())]
    NoSocket {
        /// What is there.
        path: PathBuf,
    },
    /// Others could put a socket of theirs there.
    #[error("others can write to {}: choose a directory for the Unix socket that is yours alone, with --socket PATH", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
}

/// A socket that listens, and is removed in the end.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Held until the path is free again.
    _lock: File,
}

/// Where a service listens unless it is told otherwise.
pub fn own_path() -> PathBuf {
    candidates(geteuid(), std::env::var_os(RUNTIME_DIRECTORY).map(PathBuf::from)).swap_remove(0)
}

/// Where the service of this machine listens that this process can connect to, if there is one.
pub fn find() -> Option<PathBuf> {
    let places = candidates(geteuid(), std::env::var_os(RUNTIME_DIRECTORY).map(PathBuf::from));
    places.into_iter().find(|path| UnixStream::connect(path).is_ok())
}

/// Where the socket of a service of `user` is, the likeliest first. The runtime directory goes when its user logs out:
/// root's services are there for longer.
fn candidates(user: Uid, runtime_directory: Option<PathBuf>) -> Vec<PathBuf> {
    let of_the_user = runtime_directory.filter(|directory| directory.is_absolute() && !user.is_root());
    of_the_user.map(|directory| directory.join(OF_A_USER)).into_iter().chain([OF_ROOT.into()]).collect()
}

impl Socket {
    /// Listens at `path`. What a process that died has left there is removed.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        let no_name = || failed(io::Error::new(io::ErrorKind::InvalidInput, "it has no name"));
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Err(no_name()) };
        prepare(if directory.as_os_str().is_empty() { Path::new(".") } else { directory }, &failed)?;
        let mut lock = name.to_owned();
        lock.push(".lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.with_file_name(lock));
        let lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SocketError::Taken { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => fs::remove_file(path).map_err(failed)?,
            Ok(_) => return Err(SocketError::NoSocket { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = listen_at(path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // What stays is removed by the next process.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the directory, or looks whether the one that is there will do.
fn prepare(directory: &Path, failed: &impl Fn(io::Error) -> SocketError) -> Result<(), SocketError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let there = fs::metadata(directory).map_err(failed)?;
    let trusted = there.uid() == geteuid().as_raw() || there.uid() == 0;
    if !trusted || there.mode() & OTHERS_WRITE != 0 {
        return Err(SocketError::Directory { path: directory.to_owned() });
    }
    Ok(())
}

fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Linux gives the file the mode of the socket: nobody finds it open to others, whatever the umask is.
    fchmod(&socket, OWNER_ALONE)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::MAXCONN)?;
    UnixListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("is there").mode() & 0o7777
    }

    #[test]
    fn roots_socket_is_in_run_and_a_users_in_their_own_directory() {
        let (root, user) = (Uid::from_raw(0), Uid::from_raw(1000));
        let runtime = || Some(PathBuf::from("/run/user/1000"));
        assert_eq!(candidates(root, runtime()), [Path::new(OF_ROOT)]);
        assert_eq!(
            candidates(user, runtime()),
            [Path::new("/run/user/1000/toll/toll.sock"), Path::new(OF_ROOT)]
        );
        // A relative path is to be ignored (XDG).
        assert_eq!(candidates(user, Some("run".into())), [Path::new(OF_ROOT)]);
        assert_eq!(candidates(user, None), [Path::new(OF_ROOT)]);
    }

    #[tokio::test]
    async fn a_socket_is_its_owners_alone_and_goes_with_its_process() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("own/toll.sock");
        let socket = Socket::bind(&path).expect("listens");
        assert_eq!((mode(&path), mode(&directory.path().join("own"))), (0o600, 0o700));
        drop(socket);
        assert!(!path.exists());
        Socket::bind(&path).expect("listens again");
    }

    #[tokio::test]
    async fn what_a_killed_process_left_is_removed_and_a_living_one_is_not_disturbed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("toll.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        assert!(UnixStream::connect(&path).is_err() && path.exists(), "a socket that nobody listens at");
        let socket = Socket::bind(&path).expect("takes its place");
        UnixStream::connect(&path).expect("somebody listens");
        let error = Socket::bind(&path).expect_err("somebody listens").to_string();
        assert!(error.contains("another toll serve") && error.contains("--socket"), "{error}");
        UnixStream::connect(&path).expect("the first goes on");
        drop(socket);
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("results.txt");
        fs::write(&path, "mine").expect("writes");
        let error = Socket::bind(&path).expect_err("is a file");
        assert!(matches!(error, SocketError::NoSocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "mine");
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_to_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        for mode in [0o777, 0o1777, 0o770] {
            fs::set_permissions(directory.path(), Permissions::from_mode(mode)).expect("set");
            let error = Socket::bind(&directory.path().join("toll.sock")).expect_err("is everybody's");
            assert!(matches!(error, SocketError::Directory { .. }), "{mode:o}: {error}");
        }
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = Socket::bind(&directory.path().join("x".repeat(120))).expect_err("is too long");
        assert!(error.to_string().contains("--socket"), "{error}");
    }
}
