//! How the orchestrator fares while somebody abuses it.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use toll_e2e::fleet::Fleet;

/// What the orchestrator may hold in memory, in bytes: a quarter of its pod's.
const MOST_MEMORY: u64 = 256 << 20;
/// Where it answers probes.
const ORCHESTRATOR: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080));
/// Between two questions.
const PACE: Duration = Duration::from_millis(20);
/// An answer that takes longer is none.
const LIMIT: Duration = Duration::from_secs(10);

/// How long each answer of `/livez` took, and each of a program that does nothing else, asked in between: what the machine, with
/// the flood and the trials on it, takes from anybody.
#[derive(Debug, Default, Clone)]
struct Seen {
    answers: Vec<Duration>,
    idlers: Vec<Duration>,
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
            let idler = entered.and_then(|()| idler());
            let (mut failure, idler) = match idler {
                Ok(idler) => (None, idler),
                Err(error) => (Some(error), ORCHESTRATOR),
            };
            while failure.is_none() && !stopped.load(Ordering::Relaxed) {
                let [asked, other] = [ORCHESTRATOR, idler].map(|address| {
                    let began = Instant::now();
                    answer(address).map(|()| began.elapsed())
                });
                let mut seen = told.lock().unwrap_or_else(PoisonError::into_inner);
                match (asked, other) {
                    (Ok(asked), Ok(other)) => {
                        seen.answers.push(asked);
                        seen.idlers.push(other);
                    }
                    (Err(error), _) | (_, Err(error)) => failure = Some(error),
                }
                drop(seen);
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

    /// Whether every answer came, 99 of 100 within `limit` of what the machine takes from anybody, and memory stayed bounded.
    ///
    /// # Errors
    /// When not.
    pub fn is_good(&mut self, fleet: &Fleet, limit: Duration) -> Result<()> {
        let Seen { answers, idlers, failure } = self.seen();
        ensure!(failure.is_none(), "/livez did not answer: {failure:?}");
        ensure!(answers.len() >= 50, "too few questions: {}", answers.len());
        let (late, anybody) = (within(answers, 99), within(idlers, 99));
        ensure!(late < limit + anybody, "/livez took {late:?}, and anybody {anybody:?}: {self}");
        let memory = self.memory()?;
        ensure!(memory < MOST_MEMORY, "the orchestrator took {} MiB", memory >> 20);
        fleet.agents().map(drop)
    }
}

/// Within what time so many of a hundred came.
fn within(mut times: Vec<Duration>, part: usize) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get((times.len() * part / 100).min(last)).copied().unwrap_or_default()
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { answers, idlers, .. } = self.seen();
        let at = |part| within(answers.clone(), part);
        let memory = self.memory().unwrap_or_default() >> 20;
        let (count, median, late, most) = (answers.len(), at(50), at(99), at(100));
        write!(
            f,
            "{memory} MiB; {count} of /livez: median {median:?}, 99 of 100 within {late:?}, all within {most:?}; "
        )?;
        write!(f, "99 of 100 of a program that does nothing else within {:?}", within(idlers, 99))
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

/// Answers every connection of this namespace as `/livez` does, as long as the test runs.
fn idler() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a socket")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let answered = connection.and_then(|mut connection| {
                let mut question = [0; 256];
                let _ = connection.read(&mut question)?;
                connection.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            });
            if answered.is_err() {
                // Who asked sees that no answer comes.
                return;
            }
        }
    });
    Ok(address)
}

/// Asks once, on a connection of its own, as a kubelet does.
fn answer(address: SocketAddr) -> Result<()> {
    let mut connection = TcpStream::connect_timeout(&address, LIMIT)?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    connection.read_to_string(&mut text)?;
    ensure!(text.starts_with("HTTP/1.1 200"), "/livez: {text}");
    Ok(())
}
