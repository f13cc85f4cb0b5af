//! Drives a campaign: carries events from agents, ledger and clock to the scheduler, and its commands back.
//!
//! ```text
//!            Link <--- Send ---+            +--- Record ---> ledger thread (durable)
//!              |               |            |                   |
//!              +--> Event --> Scheduler --> Command    Stored --+
//!   clock, user, lost hosts --^
//! ```

use std::sync::mpsc as thread_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use toll_protocol::result::TrialRecord;
use toll_protocol::trial::TrialId;

use crate::ledger::{Ledger, LedgerError};
use crate::link::{Link, LinkEvent};
use crate::scheduler::{Command, Event, Now, Progress, Scheduler};

const TICK: Duration = Duration::from_millis(100);

/// Why a campaign could not be driven to its end.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// A result could not be kept: nothing more is measured, since it could not be kept either.
    #[error("the ledger takes no more results")]
    Ledger(#[from] LedgerError),
    /// The ledger's thread can't be started or has died.
    #[error("the ledger's thread failed")]
    Thread,
    /// The listener for agents has ended.
    #[error("agents can no longer be heard")]
    Link,
}

/// What an observer is told, at most every [`TICK`] and after each record.
pub trait Observer {
    /// The campaign is so far.
    fn progress(&mut self, progress: &Progress);

    /// A trial is over.
    fn recorded(&mut self, record: &TrialRecord);

    /// Names of hosts that are known to have died since the last call, and why.
    fn dead_hosts(&mut self) -> Vec<(String, String)>;
}

/// A campaign under way, with everything it needs.
pub struct Driver {
    /// What decides.
    pub scheduler: Scheduler,
    /// Agents.
    pub link: Link,
    /// What they say.
    pub events: mpsc::Receiver<LinkEvent>,
    /// When the campaign began.
    pub began: Instant,
}

impl Driver {
    /// Drives the campaign until every trial is recorded. A message on `cancel` ends it early. Gives back the
    /// ledger.
    ///
    /// # Errors
    /// [`DriveError`]; what was recorded before is in the ledger's file.
    pub async fn drive(
        &mut self,
        ledger: Ledger,
        cancel: &mut mpsc::Receiver<()>,
        observer: &mut impl Observer,
    ) -> Result<Ledger, DriveError> {
        let (writer, mut stored) = Writer::start(ledger)?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.scheduler.is_finished() {
            tokio::select! {
                event = self.events.recv() => {
                    let event = match event.ok_or(DriveError::Link)? {
                        LinkEvent::Connected { host, facts } => Event::AgentConnected { host, facts },
                        LinkEvent::Lost { host } => Event::AgentLost { host },
                        LinkEvent::Message { host, message } => Event::Agent { host, message },
                    };
                    self.step(event, &writer, observer)?;
                }
                trial = stored.recv() => match trial.ok_or(DriveError::Thread)? {
                    Ok(trial) => self.step(Event::Stored { trial }, &writer, observer)?,
                    Err(error) => return Err(error.into()),
                },
                Some(()) = cancel.recv() => self.step(Event::Cancel, &writer, observer)?,
                _ = tick.tick() => {
                    for (host, reason) in observer.dead_hosts() {
                        self.step(Event::HostDied { host, reason }, &writer, observer)?;
                    }
                    self.step(Event::Tick, &writer, observer)?;
                    observer.progress(&self.scheduler.progress(self.now()));
                }
            }
        }
        writer.finish()
    }

    fn now(&self) -> Now {
        Now { elapsed: self.began.elapsed(), unix_ms: unix_ms() }
    }

    fn step(
        &mut self,
        event: Event,
        writer: &Writer,
        observer: &mut impl Observer,
    ) -> Result<(), DriveError> {
        let now = self.now();
        for command in self.scheduler.step(event, now) {
            match command {
                Command::Send { host, message } => self.link.send(&host, message),
                Command::Record(record) => {
                    observer.recorded(&record);
                    writer.write(record)?;
                }
                Command::Finished => {}
            }
        }
        Ok(())
    }
}

/// Milliseconds since the Unix epoch; 0 on a machine whose clock is before it.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The thread that writes the ledger: a sync to disk must not hold up messages.
struct Writer {
    records: thread_channel::Sender<Box<TrialRecord>>,
    thread: JoinHandle<Ledger>,
}

type Stored = mpsc::UnboundedReceiver<Result<TrialId, LedgerError>>;

impl Writer {
    fn start(mut ledger: Ledger) -> Result<(Self, Stored), DriveError> {
        let (records, queue) = thread_channel::channel::<Box<TrialRecord>>();
        // Bounded by the plan: each trial is recorded once.
        let (stored, receiver) = mpsc::unbounded_channel();
        let work = move || {
            for record in queue {
                let written = ledger.record(&record).map(|_| record.trial);
                let failed = written.is_err();
                if stored.send(written).is_err() || failed {
                    break;
                }
            }
            ledger
        };
        let thread =
            std::thread::Builder::new().name("ledger".into()).spawn(work).map_err(|_| DriveError::Thread)?;
        Ok((Self { records, thread }, receiver))
    }

    fn write(&self, record: Box<TrialRecord>) -> Result<(), DriveError> {
        self.records.send(record).map_err(|_| DriveError::Thread)
    }

    fn finish(self) -> Result<Ledger, DriveError> {
        drop(self.records);
        self.thread.join().map_err(|_| DriveError::Thread)
    }
}
