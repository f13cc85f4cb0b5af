//! What the kernel says of a process in `/proc/PID/status` (proc_pid_status(5)): whose it is, and whether it has given its
//! rights up as the processes of a trial do. From the file's text; reading is the agent's part.

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub id: u32,
    /// The name of its program, of 15 bytes at most.
    pub name: String,
    /// Its parent's number; 0 where that is outside of the PID namespace.
    pub parent: u32,
    /// Real and saved user id: either lets a process of that user send it a signal (kill(2)).
    pub users: [u32; 2],
    /// Whether something of it runs, or sleeps: a zombie's threads have all ended.
    pub is_alive: bool,
    /// Whether it can get no right any more: `no_new_privs` and an empty bounding set, which children inherit and nothing
    /// takes back. Every process of a trial that has a user of its own is so; a person's are not.
    pub is_confined: bool,
}

impl Process {
    /// The text of `/proc/ID/status`; `None` if it is not that.
    pub fn parse(id: u32, status: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = status.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            lines.next().map(str::trim)
        };
        let mut users = field("Uid")?.split_ascii_whitespace().map(str::parse);
        let (real, saved) = (users.next()?.ok()?, users.nth(1)?.ok()?);
        let ended = field("State")?.starts_with(['Z', 'X']);
        let threads: u32 = field("Threads")?.parse().ok()?;
        // Absent in a kernel that has no such set: then nobody is told to have given it up.
        let bounding = field("CapBnd").and_then(|set| u64::from_str_radix(set, 16).ok());
        Some(Self {
            id,
            name: field("Name")?.to_owned(),
            parent: field("PPid")?.parse().ok()?,
            users: [real, saved],
            // A process whose first thread has ended shows as a zombie while others go on.
            is_alive: !ended || threads > 1,
            is_confined: bounding == Some(0) && field("NoNewPrivs") == Some("1"),
        })
    }

    /// Whether a process of `user` without a capability may send it a signal.
    pub fn is_of(&self, user: u32) -> bool {
        self.users.contains(&user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\ttoll-vmm\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nPid:\t7\nPPid:\t3\nUid:\t61005\t\
                          61005\t61006\t61005\nGid:\t1\t1\t1\t1\nThreads:\t3\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n";

    #[test]
    fn a_status_is_understood() {
        let process = Process::parse(7, STATUS).expect("a status");
        assert_eq!((process.id, &*process.name, process.parent), (7, "toll-vmm", 3));
        assert!(process.is_of(61_005) && process.is_of(61_006) && !process.is_of(0));
        assert!(process.is_alive && process.is_confined);
        assert_eq!(Process::parse(7, ""), None);
        assert_eq!(Process::parse(7, &STATUS.replace("61005", "x")), None);
    }

    #[test]
    fn a_zombie_is_alive_while_it_has_other_threads() {
        let with = |state: &str, threads: &str| {
            let status = STATUS.replace("S (sleeping)", state).replace("Threads:\t3", threads);
            Process::parse(7, &status).expect("a status").is_alive
        };
        assert!(with("Z (zombie)", "Threads:\t2"));
        assert!(!with("Z (zombie)", "Threads:\t1"));
        assert!(with("D (disk sleep)", "Threads:\t1"));
    }

    #[test]
    fn a_person_s_process_is_not_confined() {
        for (this, that) in
            [("CapBnd:\t0000000000000000", "CapBnd:\t000001ffffffffff"), ("Privs:\t1", "Privs:\t0")]
        {
            assert!(!Process::parse(7, &STATUS.replace(this, that)).expect("a status").is_confined);
        }
        assert!(!Process::parse(7, &STATUS.replace("CapBnd", "Cap")).expect("a status").is_confined);
    }
}
