//! Times in which the kernel let everybody wait, as on a machine that shares its CPUs, memory and disk with others: limits of time
//! pass meanwhile. Who made it stand still, others or the load of the tests, is not told apart.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The shortest time limit that a trial has: its end must be gone a second after it was killed.
pub const LIMIT: Duration = Duration::from_secs(1);
/// Between two looks.
const PACE: Duration = Duration::from_millis(100);

/// Looks, until it is dropped, at how long the kernel takes for what any program may need: a CPU, a grace period (every
/// change of a network waits for those), and bytes on a disk.
pub struct Stillness {
    /// Held during a look.
    longest: Arc<Mutex<Duration>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Stillness {
    /// Begins to look, with a file in `directory`.
    ///
    /// # Errors
    /// When there can be no such file.
    pub fn watch(directory: &Path) -> Result<Self> {
        let mut file = tempfile::tempfile_in(directory).context("a file to look at the disk with")?;
        Ok(Self::of(move || {
            file.write_all(b"x")?;
            Ok(file.sync_data()?)
        }))
    }

    fn of(mut disk: impl FnMut() -> Result<()> + Send + 'static) -> Self {
        let (longest, stop) = (Arc::new(Mutex::new(Duration::ZERO)), Arc::new(AtomicBool::new(false)));
        let (seen, stopped) = (longest.clone(), stop.clone());
        let look = move || {
            while !stopped.load(Ordering::Relaxed) {
                let due = Instant::now() + PACE;
                std::thread::park_timeout(PACE);
                let mut longest = seen.lock().unwrap_or_else(PoisonError::into_inner);
                let began = Instant::now();
                grace_period()?;
                let network = began.elapsed();
                disk()?;
                let disk = began.elapsed() - network;
                *longest = longest.max(began.saturating_duration_since(due)).max(network).max(disk);
            }
            Ok(())
        };
        Self { longest, stop, thread: Some(std::thread::spawn(look)) }
    }

    /// The longest time that the machine stood still since the last question. A look that is going on is waited for.
    ///
    /// # Errors
    /// When nobody looks any more.
    pub fn longest(&mut self) -> Result<Duration> {
        let longest = std::mem::take(&mut *self.longest.lock().unwrap_or_else(PoisonError::into_inner));
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            match self.thread.take().map(JoinHandle::join) {
                Some(Ok(Err(error))) => return Err(error),
                _ => bail!("nobody looks whether the machine stands still"),
            }
        }
        Ok(longest)
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
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_disk_that_stands_still_is_seen_while_it_does() {
        let (entered, inside) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let mut stillness = Stillness::of(move || {
            entered.send(()).ok();
            released.recv().ok();
            Ok(())
        });
        inside.recv().expect("a look");
        let began = Instant::now();
        let free = std::thread::spawn(move || {
            crate::machine::pass(PACE);
            drop(release);
            began.elapsed()
        });
        let longest = stillness.longest().expect("somebody looks");
        assert!(free.join().expect("ends") >= PACE && longest >= PACE, "{longest:?}");
    }

    #[test]
    fn who_can_not_look_says_so() {
        let mut stillness = Stillness::of(|| bail!("no disk"));
        let told =
            crate::machine::wait_for("the word", Duration::from_secs(60), || Ok(stillness.longest().err()));
        assert_eq!(told.expect("is said").to_string(), "no disk");
    }
}
