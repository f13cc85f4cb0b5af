//! Users of the children: each child has one of a range to itself until nothing of it runs, so that none can signal or
//! trace another, or anything else of the host.
//!
//! ```text
//!   free --take--> a trial's --release: all its processes are killed--> none is left: free
//!                     ^                                          `--> some did not end: leftovers
//!                     `---------------------------------------------------------'
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::thread::{CapabilitySet, capabilities};
use toll_protocol::trial::TrialId;

use crate::child::Spawner;

mod claims;
mod remains;

use claims::Claims;

/// The range without `--child-uids`: between those that systemd gives to people and to services of its own
/// (systemd's UIDS-GIDS), and among those that Debian gives to packages on demand, of which none has one here.
pub const DEFAULT: UserRange = UserRange { first: 61_000, last: 61_183 };
/// What gives a child a user, takes it its capabilities, and ends it.
const NEEDED: [(CapabilitySet, &str); 4] = [
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    (CapabilitySet::SETPCAP, "CAP_SETPCAP"),
    (CapabilitySet::KILL, "CAP_KILL"),
];
/// Bytes that are looked at of a list of users or groups: those of a million.
const LONGEST_LIST: u64 = 64 << 20;
/// "16-bit -1", the user that nobody has, and "-1" (setresuid(2)): no user's numbers.
const NOBODYS: [u32; 3] = [65_534, 65_535, u32::MAX];

/// Numbers of users, and of groups that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserRange {
    first: u32,
    last: u32,
}

impl fmt::Display for UserRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for UserRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (Ok(first), Ok(last)) = (first.trim().parse(), last.trim().parse()) else {
            return Err("a range of user ids is two numbers, such as 61000-61183".to_owned());
        };
        if first == 0 {
            return Err("user id 0 is root's, which children must not be".to_owned());
        }
        if first > last {
            return Err(format!("the range ends before it begins: write {last}-{first}"));
        }
        let range = Self { first, last };
        match NOBODYS.into_iter().find(|id| range.contains(*id)) {
            Some(id) => Err(format!("user id {id} is no user's: leave it out")),
            None => Ok(range),
        }
    }
}

impl UserRange {
    fn contains(self, id: u32) -> bool {
        (self.first..=self.last).contains(&id)
    }
}

/// Why children can't have users of their own.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// Somebody has one of them.
    #[error(
        "children can't have the user ids {range}: {id} belongs to `{name}` by {}: give a range that nobody has with \
         --child-uids",
        file.display()
    )]
    Taken {
        /// The range.
        range: UserRange,
        /// Which of it.
        id: u32,
        /// Whose.
        name: String,
        /// Where that stands.
        file: PathBuf,
    },
    /// The agent may not change users, and was told to.
    #[error("children can't have the user ids {range}, which --child-uids asks for: {why}")]
    Impossible {
        /// The range.
        range: UserRange,
        /// What is missing.
        why: String,
    },
    /// All are in use.
    #[error("all user ids of children, {range}, are in use: give more with --child-uids")]
    Exhausted {
        /// The range.
        range: UserRange,
    },
}

/// The users of an agent's children.
#[derive(Debug)]
pub struct Users {
    /// `None` where children keep the agent's.
    range: Option<UserRange>,
    /// Numbers of the range that are somebody's.
    others: BTreeSet<u32>,
    /// Where in the range this agent begins: two on one machine begin at different places.
    offset: u64,
    claims: Claims,
}

impl Users {
    /// Those of the agent `name`: of the range that is `wanted`, or else of [`DEFAULT`] where the agent may, and its own
    /// where it may not.
    ///
    /// # Errors
    /// [`UsersError::Taken`], by /etc/passwd and /etc/group, and [`UsersError::Impossible`], if the range is `wanted`. What is
    /// taken of the default range is left out.
    pub fn open(wanted: Option<UserRange>, name: &str) -> Result<Self, UsersError> {
        let range = wanted.unwrap_or(DEFAULT);
        let range = match (impossible(range), wanted) {
            (None, _) => Some(range),
            (Some(why), Some(_)) => return Err(UsersError::Impossible { range, why }),
            (Some(why), None) => {
                tracing::warn!("children keep the agent's user, without its capabilities: {why}");
                None
            }
        };
        let mut others = BTreeSet::new();
        if let Some(range) = range {
            for file in ["/etc/passwd", "/etc/group"] {
                let mut text = Vec::new();
                // A host may have none, and one that can't be read names nobody.
                let read = File::open(file).and_then(|list| list.take(LONGEST_LIST).read_to_end(&mut text));
                if let Err(error) = read {
                    tracing::debug!("{file} is not looked at: {error}");
                }
                for (id, name) in taken(&String::from_utf8_lossy(&text), range) {
                    if wanted.is_some() {
                        return Err(UsersError::Taken { range, id, name, file: file.into() });
                    }
                    tracing::info!(id, name, file, "no child gets this user id, which is somebody's");
                    others.insert(id);
                }
            }
        }
        let file = range.map(|_| Path::new(claims::FILE));
        Ok(Self::of(range, others, name, Claims::open(file)))
    }

    fn of(range: Option<UserRange>, others: BTreeSet<u32>, name: &str, claims: Claims) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        // Half of all numbers, so that the trial's can be added.
        Self { range, others, offset: hasher.finish() >> 1, claims }
    }

    /// A user for the child of `trial`, which nobody has, no process and no other agent of the machine, until
    /// [`release`](Self::release); `None` where children keep the agent's.
    ///
    /// # Errors
    /// [`UsersError::Exhausted`].
    pub async fn take(&self, trial: TrialId) -> Result<Option<u32>, UsersError> {
        let Some(range) = self.range else { return Ok(None) };
        let UserRange { first, last } = range;
        let count = u64::from(last - first) + 1;
        let begin = (self.offset + trial.bits()) % count;
        let mut in_use = None;
        // Less than the range is long, which 32 bits hold.
        for id in (0..count).map(|step| first + ((begin + step) % count) as u32) {
            if self.others.contains(&id) || !self.claims.take(id, trial) {
                continue;
            }
            // Looked at once it is this agent's: from then on no other agent's child becomes it.
            let in_use: &BTreeSet<u32> = match &in_use {
                Some(in_use) => in_use,
                None => in_use.insert(remains::look().await.iter().flat_map(|it| it.users).collect()),
            };
            if !in_use.contains(&id) {
                return Ok(Some(id));
            }
            self.claims.give_back(id);
        }
        Err(UsersError::Exhausted { range })
    }

    /// Ends what children of `trial` have left running, by the program `endpoint`, and gives their users back. What does not
    /// end is returned, and keeps its user.
    pub async fn release(&self, trial: TrialId, spawner: &Spawner, endpoint: &Path) -> Vec<String> {
        let mut left = Vec::new();
        for user in self.claims.of(trial) {
            let remains = remains::end(user, spawner, endpoint).await;
            if remains.is_empty() {
                self.claims.give_back(user);
            }
            left.extend(remains);
        }
        left
    }

    /// The same for all trials.
    pub async fn release_all(&self, spawner: &Spawner, endpoint: &Path) -> Vec<String> {
        let mut left = Vec::new();
        for trial in self.claims.trials() {
            left.extend(self.release(trial, spawner, endpoint).await);
        }
        left
    }

    /// Ends what children of agents that were killed have left running. Returns whose users were found, and what of them is
    /// left. Another agent's children are left alone: it has claimed their users, and is an ancestor of theirs. Where claims can't be seen
    /// nothing is ended.
    pub async fn sweep(&self, spawner: &Spawner, endpoint: &Path) -> (Vec<u32>, Vec<String>) {
        let Some(range) = self.range.filter(|_| self.claims.are_shared()) else { return Default::default() };
        let ours = |id| range.contains(id) && !self.others.contains(&id);
        let nobodys = TrialId::new(0);
        let mut found = remains::orphaned(&remains::look().await, ours);
        found.retain(|user| self.claims.take(*user, nobodys));
        (found, self.release(nobodys, spawner, endpoint).await)
    }
}

/// Why children can't have users of `range`, if they can't.
fn impossible(range: UserRange) -> Option<String> {
    for (file, what) in [("/proc/self/uid_map", "users"), ("/proc/self/gid_map", "groups")] {
        let map = std::fs::read_to_string(file).unwrap_or_default();
        if !maps(&map, range) {
            return Some(format!("the agent's user namespace has no {what} {range} ({file})"));
        }
    }
    // Once the groups are mapped, a namespace's word on this is final (user_namespaces(7)).
    let setgroups = "/proc/self/setgroups";
    if std::fs::read_to_string(setgroups).is_ok_and(|word| word.trim() == "deny") {
        return Some(format!(
            "the agent's user namespace lets nobody give groups up ({setgroups} says deny)"
        ));
    }
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(capability, _)| !held.contains(*capability)).map(|(_, name)| *name).collect();
    (!missing.is_empty()).then(|| format!("the agent lacks {}", missing.join(", ")))
}

/// Whether a map of user_namespaces(7) has all of `range`.
fn maps(map: &str, range: UserRange) -> bool {
    let mut parts: Vec<(u64, u64)> = map
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let first: u64 = fields.next()?.parse().ok()?;
            let length: u64 = fields.nth(1)?.parse().ok()?;
            Some((first, first + length))
        })
        .collect();
    parts.sort_unstable();
    let mut next = u64::from(range.first);
    for (first, end) in parts {
        if first <= next && next < end {
            next = end;
        }
    }
    next > u64::from(range.last)
}

/// The entries of passwd(5) or group(5) whose numbers are in `range`.
fn taken(text: &str, range: UserRange) -> impl Iterator<Item = (u32, String)> {
    text.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id: u32 = fields.nth(1)?.parse().ok()?;
        range.contains(id).then(|| (id, name.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> UserRange {
        text.parse().expect("a range")
    }

    #[test]
    fn a_range_leaves_root_and_nobody_out() {
        assert_eq!(range("61000-61183"), DEFAULT);
        assert_eq!(DEFAULT.to_string(), "61000-61183");
        assert_eq!(range("7"), range("7-7"));
        for wrong in ["", "-", "x", "0-7", "9-8", "65000-66000", "1-4294967295", "1-4294967296", "-1-5"] {
            assert!(wrong.parse::<UserRange>().is_err(), "{wrong}");
        }
    }

    fn users(range: Option<UserRange>, name: &str) -> Users {
        Users::of(range, BTreeSet::from([103]), name, Claims::open(None))
    }

    #[tokio::test]
    async fn a_trial_has_its_user_alone_until_it_is_given_back() {
        let users = users(Some(range("100-103")), "a");
        let mut ids = BTreeSet::new();
        for n in [5, 6, 8] {
            ids.insert(users.take(TrialId::new(n)).await.expect("free").expect("a user"));
        }
        assert_eq!(ids, BTreeSet::from([100, 101, 102]), "103 is somebody's");
        let full = users.take(TrialId::new(9)).await.expect_err("all are taken").to_string();
        assert!(full.contains("100-103") && full.contains("--child-uids"), "{full}");
        let free = users.claims.of(TrialId::new(6))[0];
        users.claims.give_back(free);
        assert_eq!(users.take(TrialId::new(9)).await.expect("free"), Some(free));
        assert_eq!(self::users(None, "a").take(TrialId::new(5)).await.expect("nothing to take"), None);
    }

    #[tokio::test]
    async fn a_user_that_a_process_has_is_nobodys_child() {
        // This test's own: whoever runs it is no child of an agent.
        let own = rustix::process::getuid().as_raw();
        let only = UserRange { first: own, last: own };
        assert!(users(Some(only), "a").take(TrialId::new(5)).await.is_err());
    }

    #[tokio::test]
    async fn agents_of_one_machine_begin_at_different_users() {
        // The hosts of a lab.
        let mut ids = BTreeSet::new();
        for n in 1..=8 {
            let users = users(Some(DEFAULT), &format!("host-{n}"));
            ids.extend(users.take(TrialId::new(0x1234_5678)).await.expect("free"));
        }
        assert_eq!(ids.len(), 8, "{ids:?}");
    }

    #[test]
    fn a_map_has_a_range_if_it_has_all_of_it() {
        assert!(maps("         0          0 4294967295\n", DEFAULT));
        assert!(!maps("         0       1000          1\n", DEFAULT));
        assert!(maps("0 1000 1\n1 100000 61100\n61101 300000 1000\n", DEFAULT));
        assert!(!maps("0 1000 1\n1 100000 61100\n61102 300000 1000\n", DEFAULT));
        assert!(!maps("", DEFAULT) && !maps("x y z\n", DEFAULT));
    }

    #[test]
    fn whose_numbers_they_are_is_named() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n\n# a comment\nqueue:x:61005:61005::/:/bin/false\n";
        assert_eq!(taken(passwd, DEFAULT).collect::<Vec<_>>(), [(61_005, "queue".to_owned())]);
        assert_eq!(taken("root:x:0:\nstaff:x:50:\n+::::::\n", DEFAULT).count(), 0);
    }
}
