//! Times in which the machine itself stood still, as one that shares its CPUs, memory and disk with others now and then does:
//! every time limit of every program here passes meanwhile, and what failed then says nothing about the programs.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The shortest time limit that a trial has: its end must be gone a second after it was killed.
pub const LIMIT: Duration = Duration::from_secs(1);
/// Between two looks.
const PACE: Duration = Duration::from_millis(100);

/// Looks, until it is dropped, at how long the kernel takes for what any program may need: a CPU, a grace period (every
/// change of a network waits for those), and bytes on a disk. Nothing that the tests strike is part of it.
pub struct Stillness {
    longest: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Stillness {
    /// Begins to look, with a file in `directory`.
    ///
    /// # Errors
    /// When there can be no such file.
    pub fn watch(directory: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(directory).context("a file to look at the disk with")?;
        let (longest, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, stopped) = (longest.clone(), stop.clone());
        let thread = std::thread::spawn(move || look(file, &seen, &stopped));
        Ok(Self { longest, stop, thread: Some(thread) })
    }

    /// The longest time that the machine stood still since the last question.
    ///
    /// # Errors
    /// When nobody looks any more.
    pub fn longest(&mut self) -> Result<Duration> {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            match self.thread.take().map(JoinHandle::join) {
                Some(Ok(Err(error))) => return Err(error),
                _ => bail!("nobody looks whether the machine stands still"),
            }
        }
        Ok(Duration::from_nanos(self.longest.swap(0, Ordering::Relaxed)))
    }
}

impl Drop for Stillness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // What it failed with was asked for, or matters to nobody.
            drop(thread.join());
        }
    }
}

fn look(mut file: File, longest: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let mut began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(PACE);
        let due = began + PACE;
        let late = Instant::now().saturating_duration_since(due);
        began = Instant::now();
        grace_period()?;
        let network = began.elapsed();
        file.write_all(b"x")?;
        file.sync_data()?;
        let disk = began.elapsed() - network;
        let most = late.max(network).max(disk);
        longest.fetch_max(u64::try_from(most.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        began = Instant::now();
    }
    Ok(())
}

/// Waits for one (membarrier(2), MEMBARRIER_CMD_GLOBAL).
fn grace_period() -> Result<()> {
    // SAFETY: this command has no other argument and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("membarrier");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut stillness = Stillness::watch(directory.path()).expect("begins");
        let seen = |stillness: &mut Stillness| {
            crate::machine::wait_for("a look", Duration::from_secs(60), || {
                Ok(Some(stillness.longest()?).filter(|longest| !longest.is_zero()))
            })
        };
        // A look takes some time on any machine, and the next one is seen by itself.
        seen(&mut stillness).expect("a look");
        seen(&mut stillness).expect("another");
    }
}
