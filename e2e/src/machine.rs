//! What a machine has, and what is left on it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Why no guest can run here, if none can.
pub fn no_kvm() -> Option<&'static str> {
    fs::File::options().read(true).write(true).open("/dev/kvm").err().map(|_| "no usable /dev/kvm")
}

/// Why no TAP can be made here, if none can.
pub fn no_tun() -> Option<&'static str> {
    fs::File::options().read(true).write(true).open("/dev/net/tun").err().map(|_| "no usable /dev/net/tun")
}

/// Why no capture can be read, if none can.
pub fn no_tshark() -> Option<&'static str> {
    (!runs("tshark")).then_some("no tshark")
}

/// Debian's Python, which its packages are for; a path may have another first.
pub const PYTHON: &str = "/usr/bin/python3";

/// Why no result can be loaded into pandas, if none can.
pub fn no_pandas() -> Option<&'static str> {
    let imports = std::process::Command::new(PYTHON).args(["-c", "import pandas"]).output();
    (!imports.is_ok_and(|output| output.status.success())).then_some("no python3-pandas")
}

/// Why no arm of iperf3 can run, if none can.
pub fn no_iperf3() -> Option<&'static str> {
    (!runs("iperf3")).then_some("no iperf3")
}

/// Whether a program is installed.
fn runs(program: &str) -> bool {
    let version = std::process::Command::new(program).arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

/// Why this user can't change mounts and users, if it can't.
pub fn no_root() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("not root")
}

/// Interfaces of the network namespace that the test is in.
///
/// # Errors
/// When /proc can't be read.
pub fn interfaces() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/self/net/dev")?;
    Ok(text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
}

/// Processes that run a program of `directory`, with the parent of each: (pid, parent, name).
///
/// # Errors
/// When /proc can't be read.
pub fn processes(directory: &Path) -> Result<Vec<(i32, i32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(program) = fs::read_link(path.join("exe")) else { continue };
        let ours = program.parent() == Some(directory);
        let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if ours && name.starts_with("toll") {
            // Field 4 of stat(5); the second, in parentheses, may hold anything.
            let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
            let parent =
                stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
            found.push((pid, parent.unwrap_or(0), name));
        }
    }
    Ok(found)
}

/// Descendants of `ancestor` among [`processes`].
///
/// # Errors
/// When /proc can't be read.
pub fn descendants(directory: &Path, ancestor: i32) -> Result<Vec<(i32, String)>> {
    let all = processes(directory)?;
    let (mut family, mut found) = (BTreeSet::from([ancestor]), Vec::new());
    loop {
        let before = found.len();
        for (pid, parent, name) in &all {
            if family.contains(parent) && family.insert(*pid) {
                found.push((*pid, name.clone()));
            }
        }
        if found.len() == before {
            return Ok(found);
        }
    }
}

/// Waits until `condition` gives something, at most `limit`.
///
/// # Errors
/// When it never does, naming `what`.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("{what} did not come within {limit:?}");
        }
        // A condition of other processes: there is nothing to block on, so look again, soon at first. To look costs
        // time of the CPUs that those processes need.
        std::thread::park_timeout(pause);
        pause = (pause * 5 / 4).min(Duration::from_millis(50));
    }
}

/// Lets time pass, for a moment that is time by its nature: what is disturbed after it is disturbed at that moment.
pub fn pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        // It may end early, by a token that somebody has left.
        std::thread::park_timeout(left);
    }
}

/// Whether a process exists and has not ended.
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Whether a process is the end of a trial: it was started with a control socket. An agent also runs `toll-vmm
/// probe` once, to know whether guests can be created.
pub fn is_end(pid: i32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).any(|argument| argument == b"--control-fd")
}

/// Whether a process runs in the network namespace of this descriptor. What children of an agent are told apart by: of the
/// environment they get nothing.
pub fn is_in(pid: i32, namespace: BorrowedFd<'_>) -> bool {
    let of = |path: String| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let wanted = of(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
    wanted.is_some() && of(format!("/proc/{pid}/ns/net")) == wanted
}
