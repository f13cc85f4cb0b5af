//! Users of the children: each child has one of a range to itself while it lives, so that none can signal or trace
//! another, or anything else of the host.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::thread::{CapabilitySet, capabilities};
use toll_protocol::trial::TrialId;

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
    /// Where in the range this agent begins: two on one machine begin at different places.
    offset: u64,
    taken: Arc<Mutex<BTreeSet<u32>>>,
}

/// A user that no other child of this agent has until it is dropped.
#[derive(Debug)]
pub struct ChildUser {
    id: u32,
    taken: Arc<Mutex<BTreeSet<u32>>>,
}

impl ChildUser {
    /// Its number, and its group's.
    pub const fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for ChildUser {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.id);
    }
}

fn lock(taken: &Mutex<BTreeSet<u32>>) -> MutexGuard<'_, BTreeSet<u32>> {
    // Nothing panics half-way through a change.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Users {
    /// Those of the agent `name`: of the range that is `wanted`, or else of [`DEFAULT`] where the agent may, and its own
    /// where it may not.
    ///
    /// # Errors
    /// [`UsersError::Taken`], by /etc/passwd and /etc/group; [`UsersError::Impossible`] if the range is `wanted`.
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
        if let Some(range) = range {
            for file in ["/etc/passwd", "/etc/group"] {
                let mut text = Vec::new();
                // A host may have none, and one that can't be read names nobody.
                let read = File::open(file).and_then(|list| list.take(LONGEST_LIST).read_to_end(&mut text));
                if let Err(error) = read {
                    tracing::debug!("{file} is not looked at: {error}");
                }
                if let Some((id, name)) = taken(&String::from_utf8_lossy(&text), range) {
                    return Err(UsersError::Taken { range, id, name, file: file.into() });
                }
            }
        }
        Ok(Self::of(range, name))
    }

    fn of(range: Option<UserRange>, name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        // Half of all numbers, so that the trial's can be added.
        Self { range, offset: hasher.finish() >> 1, taken: Arc::default() }
    }

    /// A user for the child of `trial`, or `None` where children keep the agent's.
    ///
    /// # Errors
    /// [`UsersError::Exhausted`].
    pub fn take(&self, trial: TrialId) -> Result<Option<ChildUser>, UsersError> {
        let Some(range) = self.range else { return Ok(None) };
        let UserRange { first, last } = range;
        let count = u64::from(last - first) + 1;
        let begin = (self.offset + trial.bits()) % count;
        let mut taken = lock(&self.taken);
        // Less than the range is long, which 32 bits hold.
        let ids = (0..count).map(|step| first + ((begin + step) % count) as u32);
        let id = ids.into_iter().find(|id| taken.insert(*id)).ok_or(UsersError::Exhausted { range })?;
        Ok(Some(ChildUser { id, taken: Arc::clone(&self.taken) }))
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

/// The first entry of passwd(5) or group(5) whose number is in `range`.
fn taken(text: &str, range: UserRange) -> Option<(u32, String)> {
    text.lines().find_map(|line| {
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

    #[test]
    fn a_child_has_its_user_alone_until_it_is_dropped() {
        let users = Users::of(Some(range("100-102")), "a");
        let trial = TrialId::new(5);
        let (one, two, three) = (users.take(trial), users.take(trial.far()), users.take(TrialId::new(8)));
        let three = three.expect("a third").expect("a user");
        let ids = BTreeSet::from([one.unwrap().unwrap().id(), two.unwrap().unwrap().id(), three.id()]);
        assert!(ids.len() < 4 && ids.iter().all(|id| (100..=102).contains(id)), "{ids:?}");
        let held: Vec<_> =
            (0..2).map(|n| users.take(TrialId::new(n)).expect("free").expect("a user")).collect();
        assert!(held.iter().all(|user| user.id() != three.id()) && held[0].id() != held[1].id());
        let full = users.take(TrialId::new(9)).expect_err("all are taken").to_string();
        assert!(full.contains("100-102") && full.contains("--child-uids"), "{full}");
        drop(held);
        assert!(users.take(TrialId::new(9)).is_ok());
        assert!(Users::of(None, "a").take(trial).expect("nothing to take").is_none());
    }

    #[test]
    fn agents_of_one_machine_begin_at_different_users() {
        let trial = TrialId::new(0x1234_5678);
        let of = |name: &str| Users::of(Some(DEFAULT), name).take(trial).expect("free").expect("a user").id();
        // The hosts of a lab.
        let ids: BTreeSet<u32> = (1..=8).map(|n| of(&format!("host-{n}"))).collect();
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
        assert_eq!(taken(passwd, DEFAULT), Some((61_005, "queue".to_owned())));
        assert_eq!(taken("root:x:0:\nstaff:x:50:\n+::::::\n", DEFAULT), None);
    }
}
