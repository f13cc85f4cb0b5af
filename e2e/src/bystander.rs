//! Traffic of a host's own, over the NIC that trials use: a connection that must not notice them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use toll_orchestrator::lab::namespace::Namespace;

/// How long an answer may take before the connection counts as cut.
const CUT: Duration = Duration::from_secs(5);
/// Bytes of a question.
const WORD: usize = 8;

/// What was noticed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Noticed {
    /// Questions that were answered, in their order.
    pub answers: u64,
    /// The longest time that an answer took.
    pub longest: Duration,
}

/// One connection from `wire` to a host: numbers go there and come back, one after the other.
pub struct Bystander {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<Result<Noticed>>,
    echoing: JoinHandle<Result<()>>,
}

impl Bystander {
    /// Begins to talk to `address` in the namespace `host`, from the namespace `wire`.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn start(wire: &Namespace, host: &Namespace, address: &str) -> Result<Self> {
        let listener = host.run(|| TcpListener::bind((address, 0)))??;
        let to = listener.local_addr()?;
        let echoing = std::thread::spawn(move || echo(&listener));
        let connection = wire.run(|| TcpStream::connect_timeout(&to, CUT))??;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let asking = std::thread::spawn(move || ask(connection, &stopped));
        Ok(Self { stop, asking, echoing })
    }

    /// Stops, and tells what was noticed.
    ///
    /// # Errors
    /// When the connection was cut, or carried something wrong.
    pub fn stop(self) -> Result<Noticed> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a bystander panicked");
        let noticed = self.asking.join().map_err(panicked)??;
        self.echoing.join().map_err(panicked)??;
        Ok(noticed)
    }
}

fn echo(listener: &TcpListener) -> Result<()> {
    let (mut connection, _) = listener.accept()?;
    connection.set_nodelay(true)?;
    let mut word = [0; WORD];
    loop {
        match connection.read_exact(&mut word) {
            Ok(()) => connection.write_all(&word)?,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn ask(mut connection: TcpStream, stop: &AtomicBool) -> Result<Noticed> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(CUT))?;
    let mut noticed = Noticed::default();
    while !stop.load(Ordering::Relaxed) {
        let since = Instant::now();
        let question = noticed.answers.to_be_bytes();
        let mut answer = [0; WORD];
        connection.write_all(&question).context("a bystander's connection was cut")?;
        connection.read_exact(&mut answer).context("a bystander's connection was cut")?;
        ensure!(question == answer, "a bystander's connection carried something wrong");
        noticed.answers += 1;
        noticed.longest = noticed.longest.max(since.elapsed());
        // Some hundred questions a second: traffic, and no load.
        std::thread::park_timeout(Duration::from_millis(3));
    }
    Ok(noticed)
}
