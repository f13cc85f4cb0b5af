//! Which user ids are whose: of this agent's trials, and of other agents of the machine. Each id that is in use is a byte of
//! one file, locked by an open file description (fcntl_locking(2)): the kernel lets it go with the agent, however that ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use toll_protocol::trial::TrialId;

/// The file, which stays, and is empty. It belongs to no service whose folder goes when it stops.
pub(super) const FILE: &str = "/run/toll-child-uids.lock";

/// Users that are in use.
#[derive(Debug)]
pub(super) struct Claims {
    by_user: Mutex<BTreeMap<u32, TrialId>>,
    /// `None` where there can be no file: other agents are then not seen by it.
    file: Option<File>,
}

impl Claims {
    /// Those of nobody yet, and the file at `path` that other agents share.
    pub(super) fn open(path: Option<&Path>) -> Self {
        let open = |path: &Path| {
            let options = File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
            options.inspect_err(|error| {
                let path = path.display();
                tracing::info!(%error, "user ids of children are not kept from other agents: {path} can't be opened");
            })
        };
        Self { by_user: Mutex::default(), file: path.and_then(|path| open(path).ok()) }
    }

    /// Whether other agents are seen by the file.
    pub(super) const fn are_shared(&self) -> bool {
        self.file.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, TrialId>> {
        // Nothing panics half-way through a change.
        self.by_user.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `user` for `trial`, if nobody has it.
    pub(super) fn take(&self, user: u32, trial: TrialId) -> bool {
        let mut by_user = self.lock();
        let free = !by_user.contains_key(&user) && self.set(user, libc::F_WRLCK);
        if free {
            by_user.insert(user, trial);
        }
        free
    }

    /// Gives `user` back: nothing of it may run any more.
    pub(super) fn give_back(&self, user: u32) {
        if self.lock().remove(&user).is_some() {
            self.set(user, libc::F_UNLCK);
        }
    }

    /// The users of a trial.
    pub(super) fn of(&self, trial: TrialId) -> Vec<u32> {
        self.lock().iter().filter(|(_, of)| **of == trial).map(|(user, _)| *user).collect()
    }

    /// Trials that have one.
    pub(super) fn trials(&self) -> Vec<TrialId> {
        self.lock().values().copied().collect()
    }

    /// Locks or unlocks the byte of `user`. Returns false if another agent has locked it.
    fn set(&self, user: u32, how: libc::c_int) -> bool {
        let Some(file) = &self.file else { return true };
        let lock = libc::flock {
            // F_WRLCK and the like are 0 to 2.
            l_type: how as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: user.into(),
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
            Err(Errno::EAGAIN | Errno::EACCES) => false,
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, user, "a user id of a child is not kept from other agents");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_agents_of_the_machine() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || Claims::open(Some(file.path()));
        let (one, other, trial) = (open(), open(), TrialId::new(1));
        assert!(one.take(7, trial) && !one.take(7, trial), "it has it already");
        assert!(!other.take(7, trial) && other.take(8, trial), "another agent has it");
        one.give_back(7);
        assert!(other.take(7, trial));
        assert_eq!((other.of(trial), one.of(trial)), (vec![7, 8], vec![]));
        // As a killed agent does.
        drop(other);
        assert!(one.take(7, trial) && one.take(8, trial));
    }

    #[test]
    fn without_a_file_users_are_one_agents_own() {
        let claims = Claims::open(Some(Path::new("/no/such/folder/lock")));
        assert!(claims.take(7, TrialId::new(1)) && !claims.take(7, TrialId::new(2)));
        assert!(!claims.are_shared());
    }
}
