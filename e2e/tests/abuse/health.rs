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
use toll_e2e::priority::{self, FirstSession};

/// What the orchestrator may hold in memory, in bytes: a quarter of its pod's.
const MOST_MEMORY: u64 = 256 << 20;
/// How long any of its answers may take.
const PROMPT: Duration = Duration::from_millis(100);
/// Where it answers probes.
const ORCHESTRATOR: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080));
/// Between two questions.
const PACE: Duration = Duration::from_millis(20);
/// Between two looks at what the machine takes from anybody.
const LOOKS: Duration = Duration::from_millis(5);
/// Questions that it takes to judge.
const ENOUGH: usize = 100;
/// An answer that takes longer is none.
const LIMIT: Duration = Duration::from_secs(10);

/// A question that was answered.
#[derive(Debug, Clone, Copy)]
struct Answer {
    began: Instant,
    ended: Instant,
}

impl Answer {
    fn took(self) -> Duration {
        self.ended - self.began
    }

    /// How much of it was the service's own: less the longest answer, at the same time, of a program that does nothing else. That
    /// waited for a machine which stood still, as everybody did.
    fn own(self, idlers: &[Self]) -> Duration {
        let meanwhile = idlers.iter().filter(|idler| idler.began < self.ended && idler.ended > self.began);
        let anybody = meanwhile.map(|idler| idler.took()).max().unwrap_or_default();
        self.took().saturating_sub(anybody)
    }
}

type Answers = Arc<Mutex<Vec<Answer>>>;

/// Asks `/livez` of a fleet's orchestrator again and again until it is dropped. Whoever asks gets a CPU before all others, the
/// orchestrator before all but them.
pub struct Health {
    process: u32,
    answers: Answers,
    idlers: Answers,
    stop: Arc<AtomicBool>,
    /// Each ends with what kept it from going on.
    threads: Vec<JoinHandle<Result<()>>>,
    _first: FirstSession,
}

impl Health {
    /// Begins to ask.
    ///
    /// # Errors
    /// When no orchestrator runs, or it can't be given a CPU first.
    pub fn watch(fleet: &Fleet) -> Result<Self> {
        let process = fleet.orchestrator.as_ref().context("an orchestrator runs")?.child.id();
        let first = FirstSession::begin()?;
        priority::measured(process)?;
        let (answers, idlers) = (Answers::default(), Answers::default());
        let stop = Arc::new(AtomicBool::new(false));
        let idler = fleet.wire.run(idler)??;
        let mut threads = Vec::new();
        for (address, pace, told) in [(ORCHESTRATOR, PACE, &answers), (idler, LOOKS, &idlers)] {
            let wire = std::fs::File::open(fleet.wire_path())?;
            let (told, stopped) = (told.clone(), stop.clone());
            threads.push(std::thread::spawn(move || {
                priority::watches()?;
                setns(wire, CloneFlags::CLONE_NEWNET).context("the wire's namespace")?;
                while !stopped.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    ask(address)?;
                    let answer = Answer { began, ended: Instant::now() };
                    told.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
                    std::thread::park_timeout(pace);
                }
                Ok(())
            }));
        }
        Ok(Self { process, answers, idlers, stop, threads, _first: first })
    }

    /// Whether it was asked often enough to be judged, or can't be asked any more.
    pub fn is_known(&self) -> bool {
        known(&self.answers).len() >= ENOUGH || self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops to ask. Whether every answer came, each of them promptly as far as it was the orchestrator's own to be prompt, and
    /// memory stayed bounded.
    ///
    /// # Errors
    /// When not.
    pub fn is_good(&mut self, fleet: &Fleet) -> Result<()> {
        for ended in self.end() {
            ended.map_err(|_| anyhow::anyhow!("who asks panicked"))?.context("/livez did not answer")?;
        }
        let own = self.own();
        ensure!(own.len() >= ENOUGH, "too few questions: {}", own.len());
        let late = own.last().copied().unwrap_or_default();
        ensure!(late < PROMPT, "an answer of /livez took {late:?} of the orchestrator's own: {self}");
        is_small(self.process)?;
        fleet.agents().map(drop)
    }

    fn end(&mut self) -> Vec<std::thread::Result<Result<()>>> {
        self.stop.store(true, Ordering::Relaxed);
        let threads: Vec<_> = self.threads.drain(..).collect();
        threads.iter().for_each(|thread| thread.thread().unpark());
        threads.into_iter().map(JoinHandle::join).collect()
    }

    /// What of each answer was the orchestrator's own, in the order of length.
    fn own(&self) -> Vec<Duration> {
        let (answers, idlers) = (known(&self.answers), known(&self.idlers));
        sorted(answers.into_iter().map(|answer| answer.own(&idlers)))
    }
}

/// The most memory that a process has had so far, in bytes: VmHWM of proc_pid_status(5).
fn most_memory(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Whether an orchestrator has never had more memory than it may.
///
/// # Errors
/// When it has.
pub fn is_small(process: u32) -> Result<()> {
    let memory = most_memory(process)?;
    ensure!(memory < MOST_MEMORY, "the orchestrator took {} MiB", memory >> 20);
    Ok(())
}

fn known(answers: &Answers) -> Vec<Answer> {
    answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = most_memory(self.process).unwrap_or_default() >> 20;
        let took = |answers| sorted(known(answers).into_iter().map(Answer::took));
        let (answers, idlers, own) = (took(&self.answers), took(&self.idlers), self.own());
        let median = answers.get(answers.len() / 2).copied().unwrap_or_default();
        let longest = |times: &[Duration]| times.last().copied().unwrap_or_default();
        write!(f, "{memory} MiB; {} of /livez: median {median:?}, ", answers.len())?;
        write!(f, "all within {:?}, {:?} of the orchestrator's own; ", longest(&answers), longest(&own))?;
        let known = known(&self.answers);
        let latest = known.iter().max_by_key(|answer| answer.took());
        if let (Some(first), Some(latest)) = (known.first(), latest) {
            write!(f, "the longest came {:?} after the first; ", latest.began - first.began)?;
        }
        write!(f, "{} of a program that does nothing else: all within {:?}", idlers.len(), longest(&idlers))
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        // What failed was told by `is_good`, or the test has failed for another reason.
        self.end();
    }
}

/// Answers every connection of this namespace as `/livez` does, before all others, as long as the test runs.
fn idler() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a socket")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        priority::watches()?;
        for connection in listener.incoming() {
            // Who asked sees that no answer comes.
            let mut connection = connection?;
            let mut question = [0; 256];
            let _ = connection.read(&mut question)?;
            connection.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        }
        anyhow::Ok(())
    });
    Ok(address)
}

/// Asks once, on a connection of its own, as a kubelet does.
fn ask(address: SocketAddr) -> Result<()> {
    let mut connection = TcpStream::connect_timeout(&address, LIMIT)?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    connection.read_to_string(&mut text)?;
    ensure!(text.starts_with("HTTP/1.1 200"), "/livez: {text}");
    Ok(())
}
