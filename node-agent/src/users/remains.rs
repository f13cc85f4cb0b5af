//! What a child leaves running. Its process group is killed with it, and one that a guest or a peer has taken over may have
//! left that: `fork`, then `setsid`. Whatever it does, it keeps its user, which nobody else has.
//!
//! ```text
//!   look in /proc --all of the user confined--> toll-endpoint end-user, as that user --> look again --> wait for their end
//!                 `--a person's among them----> each of the confined by itself -----------^
//! ```
//! Processes that could get a right are nobody's child (see [`Process::is_confined`]), and are left alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::Instant;
use toll_protocol::process::Process;

use crate::child::{Spawner, process_descriptor};

/// How long processes may take to end that were killed: one that sleeps in a driver may never.
const LIMIT: Duration = Duration::from_secs(1);
/// How long the program that ends them may take.
const PROGRAM_LIMIT: Duration = Duration::from_secs(5);
/// Times that it is started: what it is to end may end it first.
const ATTEMPTS: usize = 8;

/// What runs of the machine, as far as this process sees it. Zombies are left out.
pub(super) fn processes() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let read = |id: u32| Process::parse(id, &std::fs::read_to_string(format!("/proc/{id}/status")).ok()?);
    ids.filter_map(read).filter(|process| process.is_alive).collect()
}

/// The same, without keeping the runtime's thread.
pub(super) async fn look() -> Vec<Process> {
    tokio::task::spawn_blocking(processes).await.unwrap_or_else(|error| {
        tracing::error!(%error, "processes could not be looked at");
        Vec::new()
    })
}

/// Users of `range` whose confined processes have all outlived their agent: none has an ancestor but such a one, and the
/// process that takes orphans in. A living agent's children have that as an ancestor.
pub(super) fn orphaned(processes: &[Process], range: impl Fn(u32) -> bool) -> Vec<u32> {
    let by_id: BTreeMap<u32, &Process> = processes.iter().map(|process| (process.id, process)).collect();
    let is_child = |process: &Process| process.is_confined && range(process.users[0]);
    let is_orphan = |process: &Process| {
        let mut of = process.parent;
        // A chain is no longer than there are processes; numbers that were used again could make a ring.
        for _ in 0..processes.len() {
            match by_id.get(&of) {
                Some(parent) if is_child(parent) => of = parent.parent,
                _ => break,
            }
        }
        of <= 1
    };
    let mut users: BTreeMap<u32, bool> = BTreeMap::new();
    for process in processes.iter().filter(|process| is_child(process)) {
        let all = users.entry(process.users[0]).or_insert(true);
        *all &= is_orphan(process);
    }
    users.into_iter().filter(|(_, orphaned)| *orphaned).map(|(user, _)| user).collect()
}

/// Ends the processes of children that `user` has, and waits for their end. Returns those that did not end.
pub(super) async fn end(user: u32, spawner: &Spawner, endpoint: &Path) -> Vec<String> {
    let until = Instant::now() + LIMIT;
    let mut failed = None;
    for _ in 0..ATTEMPTS {
        let (ours, others): (Vec<_>, Vec<_>) =
            look().await.into_iter().filter(|process| process.is_of(user)).partition(|it| it.is_confined);
        let sent = match others.first() {
            None => end_user(user, spawner, endpoint).await,
            Some(other) => {
                tracing::warn!(user, process = other.id, "{} has the user id of a child", other.name);
                ours.iter().for_each(kill);
                Ok(())
            }
        };
        failed = sent.err();
        if failed.is_none() {
            for process in remaining(user).await {
                // It fails for one that has ended meanwhile.
                if let Ok(ended) = process_descriptor(process.id) {
                    drop(tokio::time::timeout_at(until, ended.readable()).await);
                }
            }
            if remaining(user).await.is_empty() {
                return Vec::new();
            }
        }
        if Instant::now() >= until {
            break;
        }
    }
    let left = remaining(user).await;
    let left = left.iter().map(|Process { id, name, .. }| format!("process {id} ({name}) of user {user}"));
    left.chain(failed.map(|why| format!("processes of user {user}, if there are any: {why}"))).collect()
}

async fn remaining(user: u32) -> Vec<Process> {
    look().await.into_iter().filter(|process| process.is_of(user) && process.is_confined).collect()
}

/// Kills `process`, unless its number is another's by now.
fn kill(process: &Process) {
    let id = i32::try_from(process.id).ok().and_then(Pid::from_raw);
    let Some(Ok(descriptor)) = id.map(|id| pidfd_open(id, PidfdFlags::empty())) else { return };
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id)).ok();
    let now = status.and_then(|status| Process::parse(process.id, &status));
    if now.is_some_and(|now| now.users == process.users && now.is_confined)
        && let Err(error) = pidfd_send_signal(descriptor, Signal::KILL)
    {
        tracing::warn!(process = process.id, %error, "it could not be killed");
    }
}

/// Has all processes of `user` killed at one moment, by a process of that user: it can reach nobody else.
async fn end_user(user: u32, spawner: &Spawner, endpoint: &Path) -> Result<(), String> {
    let user = user.to_string();
    let output = spawner.output(endpoint, &["--user", &user, "end-user"], PROGRAM_LIMIT).await;
    let output = output.map_err(|error| format!("{} could not end them: {error}", endpoint.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().last().unwrap_or("it said nothing");
    Err(format!("{} could not end them ({}): {said}", endpoint.display(), output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(id: u32, parent: u32, user: u32) -> Process {
        let name = "model".to_owned();
        Process { id, name, parent, users: [user; 2], is_alive: true, is_confined: user != 0 && user != 5 }
    }

    #[test]
    fn only_who_has_outlived_its_agent_is_orphaned() {
        let all = [
            process(1, 0, 0),
            process(10, 1, 0),
            // A living agent's child, and its child.
            process(11, 10, 100),
            process(12, 11, 100),
            // One that got away from a living agent, beside a child of that user.
            process(13, 1, 100),
            // Of an agent that was killed, and its child.
            process(14, 1, 101),
            process(15, 14, 101),
            // Of a user beyond the range, and of one with rights.
            process(16, 1, 200),
            process(17, 1, 5),
            // Of an agent's that the system's init is not the parent of.
            process(18, 0, 102),
        ];
        assert_eq!(orphaned(&all, |user| (100..110).contains(&user) || user == 5), [101, 102]);
        // A ring of numbers.
        assert_eq!(orphaned(&[process(2, 3, 100), process(3, 2, 100)], |_| true), [0; 0]);
    }

    #[test]
    fn this_process_is_seen_and_is_nobodys_child() {
        let own = std::process::id();
        let processes = processes();
        assert!(processes.iter().any(|process| process.id == own && !process.is_confined));
    }
}
