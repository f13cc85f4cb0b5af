//! How the orchestrator fares while somebody abuses it.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use toll_e2e::fleet::Fleet;

/// What the orchestrator may hold in memory, in bytes: a quarter of its pod's.
const MOST_MEMORY: u64 = 256 << 20;
/// Between two questions.
const PACE: Duration = Duration::from_millis(20);
/// An answer that takes longer is none.
const LIMIT: Duration = Duration::from_secs(10);

/// Answers of `/livez`, how long each took, and how long a thread that has nothing to do but sleep was kept from going on
/// before the question: the machine's part.
#[derive(Debug, Default, Clone)]
struct Seen {
    answers: Vec<Duration>,
    failure: Option<String>,
}

/// Asks `/livez` of a fleet's orchestrator again and again until it is dropped.
pub struct Health {
    process: u32,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Health {
    /// Begins to ask.
    ///
    /// # Errors
    /// When no orchestrator runs.
    pub fn watch(fleet: &Fleet) -> Result<Self> {
        let process = fleet.orchestrator.as_ref().context("an orchestrator runs")?.child.id();
        let wire = std::fs::File::open(fleet.wire_path())?;
        let (seen, stop) = (Arc::new(Mutex::default()), Arc::new(AtomicBool::new(false)));
        let (told, stopped): (Arc<Mutex<Seen>>, _) = (seen.clone(), stop.clone());
        let ask = move || {
            let entered = setns(wire, CloneFlags::CLONE_NEWNET).context("the wire's namespace");
            let mut failure = entered.err();
            while failure.is_none() && !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                failure = answer().err();
                told.lock().unwrap_or_else(PoisonError::into_inner).answers.push(began.elapsed());
                std::thread::park_timeout(PACE);
            }
            told.lock().unwrap_or_else(PoisonError::into_inner).failure =
                failure.map(|error| format!("{error:#}"));
        };
        Ok(Self { process, seen, stop, thread: Some(std::thread::spawn(ask)) })
    }

    fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The most memory that the orchestrator has had so far, in bytes.
    fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// Whether every answer came, 99 of 100 within `limit` (the machine's CPUs belong to the abuser and the test too), and
    /// memory stayed bounded.
    ///
    /// # Errors
    /// When not.
    pub fn is_good(&mut self, fleet: &Fleet, limit: Duration) -> Result<()> {
        let Seen { mut answers, failure } = self.seen();
        ensure!(failure.is_none(), "/livez did not answer: {failure:?}");
        ensure!(answers.len() >= 50, "too few questions: {}", answers.len());
        answers.sort_unstable();
        let late = answers[answers.len() * 99 / 100];
        ensure!(late < limit, "/livez took {late:?}: {self}");
        let memory = self.memory()?;
        ensure!(memory < MOST_MEMORY, "the orchestrator took {} MiB", memory >> 20);
        fleet.agents().map(drop)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut answers = self.seen().answers;
        answers.sort_unstable();
        let at = |part: usize| answers.get(answers.len() * part / 100).copied().unwrap_or_default();
        let most = answers.last().copied().unwrap_or_default();
        let memory = self.memory().unwrap_or_default() >> 20;
        let (count, median, late) = (answers.len(), at(50), at(99));
        write!(
            f,
            "{memory} MiB; {count} of /livez: median {median:?}, 99 of 100 within {late:?}, all within {most:?}"
        )
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic there has been seen as a missing answer.
            drop(thread.join());
        }
    }
}

/// Asks once, on a connection of its own, as a kubelet does.
fn answer() -> Result<()> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 8080));
    let mut connection = TcpStream::connect_timeout(&address, LIMIT)?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    connection.read_to_string(&mut text)?;
    ensure!(text.starts_with("HTTP/1.1 200"), "/livez: {text}");
    Ok(())
}
