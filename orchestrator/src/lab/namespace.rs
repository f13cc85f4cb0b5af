//! Network namespaces: entering one of one's own, and making more inside it. None has a name or a mount, so
//! each ends with the last process or descriptor that holds it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid};

/// Why a namespace can't be made or entered, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel doesn't let this user make one.
    #[error(
        "no network namespace can be made: run as root, or allow user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1; on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0)"
    )]
    Unshare(#[source] io::Error),
    /// The user could not be mapped into a new user namespace.
    #[error("the user could not be mapped into a user namespace: {file} can't be written")]
    Map {
        /// The file.
        file: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// A namespace's descriptor could not be opened.
    #[error("/proc/thread-self/ns/net can't be opened: is /proc mounted?")]
    Open(#[source] io::Error),
    /// A namespace could not be entered.
    #[error("a namespace of the lab can't be entered")]
    Enter(#[source] io::Error),
    /// No thread could be started.
    #[error("no thread could be started")]
    Thread(#[source] io::Error),
}

/// Moves the process into a network namespace of its own; a plain user gets a user namespace first, in which
/// they are root. Call it before any thread is started: the kernel refuses a user namespace to a process with
/// threads, and threads would stay behind.
///
/// # Errors
/// [`NamespaceError`], with what to do.
pub fn enter() -> Result<(), NamespaceError> {
    if geteuid().is_root() && unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(());
    }
    let (user, group) = (geteuid(), getegid());
    let both = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET;
    unshare(both).map_err(|error| NamespaceError::Unshare(error.into()))?;
    let maps = [
        // A group map is taken from a plain user only when setgroups is denied (user_namespaces(7)).
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ];
    for (file, text) in maps {
        fs::write(file, text).map_err(|source| NamespaceError::Map { file, source })?;
    }
    Ok(())
}

/// A network namespace held by a descriptor.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// A new, empty namespace.
    ///
    /// # Errors
    /// [`NamespaceError`].
    pub fn new() -> Result<Self, NamespaceError> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|error| NamespaceError::Unshare(error.into()))?;
            let file = File::open("/proc/thread-self/ns/net").map_err(NamespaceError::Open)?;
            Ok(Self(file))
        })
    }

    /// Runs `work` on a thread inside the namespace; sockets that it opens stay there.
    ///
    /// # Errors
    /// [`NamespaceError::Enter`] or [`NamespaceError::Thread`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        on_a_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET).map_err(|error| NamespaceError::Enter(error.into()))?;
            Ok(work())
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A namespace is an attribute of a thread: what changes it runs on a thread that ends with the change.
fn on_a_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NamespaceError> + Send,
) -> Result<T, NamespaceError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, work).map_err(NamespaceError::Thread)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
