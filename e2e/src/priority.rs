//! Who gets a CPU first. Attackers, the attacked and whoever times its answers share the CPUs of one machine here, and that with
//! others; each would have a machine of its own. Where a program's own lateness is measured, it comes first.

use anyhow::{Context, Result};
use rustix::process::{Pid, getpriority_process, setpriority_process};

/// Of the thread that holds the watch.
const WATCH: i32 = -20;
/// Of the process that is measured.
const MEASURED: i32 = -15;
/// Of those that only make work.
const LAST: i32 = 19;

/// Why priorities can't be set, if they can't: what a test lacks.
pub fn no_priority() -> Option<&'static str> {
    let own = getpriority_process(None).ok()?;
    let raised = setpriority_process(None, WATCH).is_ok();
    // Lowering it again needs no right.
    let restored = setpriority_process(None, own).is_ok();
    (!raised || !restored).then_some("CAP_SYS_NICE")
}

/// This session, in which everything stands that a test starts, comes before all others as long as there is this.
#[derive(Debug)]
pub struct FirstSession {
    before: Option<String>,
}

/// The priority of a session. Where there is one (sched(7), "The autogroup feature"), those of threads count among its own alone.
const SESSION: &str = "/proc/self/autogroup";

impl FirstSession {
    /// From now on.
    ///
    /// # Errors
    /// The system's word.
    pub fn begin() -> Result<Self> {
        // `/autogroup-77 nice 0`, and no file in a kernel without.
        let before = std::fs::read_to_string(SESSION).ok();
        let before = before.and_then(|text| Some(text.trim().rsplit_once("nice ")?.1.to_owned()));
        if before.is_some() {
            std::fs::write(SESSION, WATCH.to_string()).context("the priority of the session")?;
        }
        Ok(Self { before })
    }
}

impl Drop for FirstSession {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = std::fs::write(SESSION, before)
        {
            eprintln!("this session keeps a priority that it got for a test: {error}");
        }
    }
}

/// The calling thread watches.
///
/// # Errors
/// The system's word.
pub fn watches() -> Result<()> {
    setpriority_process(None, WATCH).context("the priority of a watch")
}

/// The calling thread comes last.
///
/// # Errors
/// The system's word.
pub fn comes_last() -> Result<()> {
    setpriority_process(None, LAST).context("the priority of an attacker")
}

/// `process` is measured: all its threads, and those that they start.
///
/// # Errors
/// The system's word.
pub fn measured(process: u32) -> Result<()> {
    of_all_threads(process, MEASURED)
}

/// `process` comes last, with all its threads.
///
/// # Errors
/// The system's word.
pub fn last(process: u32) -> Result<()> {
    of_all_threads(process, LAST)
}

/// Linux has a priority for each thread, and a new one has that of the thread which started it.
fn of_all_threads(process: u32, priority: i32) -> Result<()> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).context("the threads of a process")?;
    for task in tasks {
        let name = task?.file_name();
        let thread = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        match setpriority_process(thread, priority) {
            // One that has ended meanwhile needs none.
            Err(rustix::io::Errno::SRCH) => {}
            other => other.with_context(|| format!("the priority of process {process}"))?,
        }
    }
    Ok(())
}
