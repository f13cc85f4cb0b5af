//! The ledger: what was planned and what became of it, in one SQLite file. A result is durable when
//! [`Ledger::record`] returns; whatever happens to the process or the machine after that, [`Ledger::open`] finds it.
//!
//! ```text
//! create(header) -> set_plan -> begun, record, begun, record, ... -> set_provenance (the end)
//!                       | killed, power lost
//!                       v
//!                  open -> records, begun, remaining -> record, ...
//! ```
//! Rollback journal (`journal_mode=DELETE`) with `synchronous=EXTRA`: a commit syncs the journal, the file and, once
//! the journal is unlinked, their directory, so that neither a result nor the ledger's own name is lost with the
//! power. `FULL` leaves that last sync out, and a result acknowledged just before a power cut could then be rolled
//! back by a journal that reappears (sqlite.org/pragma.html, "synchronous"). A write-ahead log would need one sync
//! less, which nobody notices at one result a second, and would leave results in a second file that is easily
//! forgotten when a ledger is copied. See docs/adr/0005-ledger.md.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use toll_protocol::result::{Outcome, Provenance, RunStatus, TrialRecord};
use toll_protocol::trial::TrialId;

use crate::plan;

mod header;
mod read;
mod tables;
#[cfg(test)]
mod tests;

pub use header::{LedgerHeader, PlannedTrial};
use tables::{APPLICATION_ID, SCHEMA, connect, failed, from_json, read_header, status_name, to_json};

/// Version of the tables: SQLite's `user_version`.
pub const SCHEMA_VERSION: i32 = 3;

/// Permissions of the file: whoever can read a database can lock it, and keep its writer waiting for ever.
const PRIVATE: u32 = 0o600;

/// How long a statement waits for another process that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Something to be kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A trial was begun.
    Begun {
        /// The trial.
        trial: TrialId,
        /// When, milliseconds since the Unix epoch.
        unix_ms: u64,
    },
    /// A trial has ended.
    Record(Box<TrialRecord>),
}

/// What [`Ledger::record`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// The record is new and durable.
    New,
    /// The ledger had this very outcome already.
    Already,
}

impl LedgerError {
    /// Whether an attempt may fare better later: what others do to the file or the disk passes, a ledger that is
    /// damaged stays so.
    pub fn may_pass(&self) -> bool {
        use rusqlite::ErrorCode as Code;
        match self {
            Self::DiskFull { .. } | Self::Busy { .. } => true,
            Self::Database { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(
                    Code::CannotOpen
                        | Code::DatabaseBusy
                        | Code::DatabaseLocked
                        | Code::OutOfMemory
                        | Code::ReadOnly
                        | Code::SystemIoFailure
                )
            ),
            _ => false,
        }
    }
}

/// Why the ledger can't be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// [`Ledger::create`] never writes over a file.
    #[error("{path} exists already, and results are never written over: choose another directory (--out)", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be created or read.
    #[error("the ledger {path} can't be opened: check that the directory exists and may be written", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Not a SQLite file, or one of another program, or one whose creation was cut off.
    #[error("{path} is no ledger of Toll: choose the `ledger.sqlite` of a campaign's directory", path = path.display())]
    NotALedger {
        /// The file.
        path: PathBuf,
    },
    /// The tables are of a later version.
    #[error("{path} was written by a newer Toll (schema {found}, this one knows {SCHEMA_VERSION}): use that one", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// The tables are of an earlier version.
    #[error("{path} was written by an older Toll (schema {found}, this one knows {SCHEMA_VERSION}): use that one", path = path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// No room on the disk.
    #[error("no room is left for {path}: free some space; every result acknowledged before is kept", path = path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// SQLite's word.
        source: rusqlite::Error,
    },
    /// Somebody else, of this process or another, has the file locked for longer than a commit takes.
    #[error("{path} is locked and stays so: try again, or end the process that holds it", path = path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// SQLite's word.
        source: rusqlite::Error,
    },
    /// A read or write failed for another reason.
    #[error("{action} in {path} failed", path = path.display())]
    Database {
        /// `recording a result`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// SQLite's word.
        source: rusqlite::Error,
    },
    /// Something in the file is not what this version writes there.
    #[error("{what} in {path} can't be understood: the file is damaged; restore it from a copy", path = path.display())]
    Damaged {
        /// `a record`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The seed in the file is no number.
    #[error("the seed in {path} is no number: the file is damaged; restore it from a copy", path = path.display())]
    DamagedSeed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: std::num::ParseIntError,
    },
    /// A value can't be written as JSON.
    #[error("a record could not be encoded")]
    Encode(#[source] serde_json::Error),
    /// The plan doesn't name the trial.
    #[error("trial {trial} is not in the campaign's plan")]
    NotPlanned {
        /// The trial.
        trial: TrialId,
    },
    /// The plan has another cell, block or position for the trial.
    #[error("trial {trial} is planned for another cell, block or position than its record says")]
    OtherPlace {
        /// The trial.
        trial: TrialId,
    },
    /// The campaign has a plan already.
    #[error("the campaign in {path} has a plan already, which is kept", path = path.display())]
    Planned {
        /// The file.
        path: PathBuf,
    },
    /// The trial ended already, and differently.
    #[error("trial {trial} is recorded already with another outcome, which is kept")]
    Conflict {
        /// The trial.
        trial: TrialId,
    },
}

/// An open ledger. One process at a time writes it; any may read it meanwhile.
#[derive(Debug)]
pub struct Ledger {
    connection: Connection,
    path: PathBuf,
    header: LedgerHeader,
    /// Places of the planned trials in the header.
    places: HashMap<TrialId, usize>,
}

impl Ledger {
    /// Creates the file `path`, its owner's alone, with `header` in it, durably.
    ///
    /// # Errors
    /// [`LedgerError::Exists`], [`LedgerError::Open`], [`LedgerError::DiskFull`], [`LedgerError::Database`].
    pub fn create(path: &Path, header: &LedgerHeader) -> Result<Self, LedgerError> {
        File::options().write(true).create_new(true).mode(PRIVATE).open(path).map_err(
            |source| match source.kind() {
                io::ErrorKind::AlreadyExists => LedgerError::Exists { path: path.to_owned() },
                _ => LedgerError::Open { path: path.to_owned(), source },
            },
        )?;
        let mut connection = connect(path)?;
        let action = "writing the plan";
        let (arms, provenance) = (to_json(&header.arms)?, to_json(&header.provenance)?);
        let hosts = header.hosts.as_ref().map(to_json).transpose()?;
        let cells = cells(&header.planned)?;
        (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.execute_batch(SCHEMA)?;
            transaction.execute(
                "INSERT INTO campaign (id, name, manifest, seed, arms, provenance, submitted, hosts, cancelled)
                 VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    header.campaign,
                    header.manifest,
                    header.seed.to_string(),
                    arms,
                    provenance,
                    integer(header.submitted_unix_ms),
                    hosts,
                    header.cancelled,
                ],
            )?;
            insert_planned(&transaction, &header.planned, &cells)?;
            transaction.commit()
        })()
        .map_err(|source| failed(action, path, source))?;
        Ok(Self::with(connection, path, header.clone()))
    }

    /// Opens the ledger at `path`, finishing or undoing what a killed process left half done.
    ///
    /// # Errors
    /// [`LedgerError::Open`], [`LedgerError::NotALedger`], [`LedgerError::Newer`], [`LedgerError::Older`],
    /// [`LedgerError::Damaged`], [`LedgerError::Busy`], [`LedgerError::Database`].
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        // Not opened: closing a descriptor of a file gives up all locks of this process on it (fcntl(2)), those of
        // another connection too.
        let file =
            std::fs::metadata(path).map_err(|source| LedgerError::Open { path: path.to_owned(), source })?;
        if !file.is_file() {
            return Err(LedgerError::NotALedger { path: path.to_owned() });
        }
        let connection = connect(path)?;
        let action = "reading the plan";
        let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        if number("application_id").map_err(|source| failed(action, path, source))? != APPLICATION_ID {
            return Err(LedgerError::NotALedger { path: path.to_owned() });
        }
        match number("user_version").map_err(|source| failed(action, path, source))? {
            SCHEMA_VERSION => {}
            found if found > SCHEMA_VERSION => {
                return Err(LedgerError::Newer { path: path.to_owned(), found });
            }
            found => return Err(LedgerError::Older { path: path.to_owned(), found }),
        }
        let header = read_header(&connection, path)?;
        Ok(Self::with(connection, path, header))
    }

    /// From now on others that hold the file are waited for so long.
    ///
    /// # Errors
    /// SQLite's word.
    pub fn wait_for_others(&self, time: Duration) -> rusqlite::Result<()> {
        self.connection.busy_timeout(time)
    }

    /// What was planned, and the provenance as of the last [`set_provenance`](Self::set_provenance).
    pub fn header(&self) -> &LedgerHeader {
        &self.header
    }

    fn with(connection: Connection, path: &Path, header: LedgerHeader) -> Self {
        let mut ledger = Self { connection, path: path.to_owned(), header, places: HashMap::new() };
        ledger.index();
        ledger
    }

    fn index(&mut self) {
        let places = self.header.planned.iter().enumerate();
        self.places = places.map(|(place, planned)| (planned.trial, place)).collect();
    }

    /// Keeps the plan of a campaign that has none, with the hosts that it is for, durably.
    ///
    /// # Errors
    /// [`LedgerError::Planned`], [`LedgerError::DiskFull`], [`LedgerError::Busy`], [`LedgerError::Database`].
    pub fn set_plan(
        &mut self,
        hosts: Vec<plan::Host>,
        planned: Vec<PlannedTrial>,
        provenance: &Provenance,
    ) -> Result<(), LedgerError> {
        if self.header.hosts.is_some() {
            return Err(LedgerError::Planned { path: self.path.clone() });
        }
        let (hosts_json, provenance_json) = (to_json(&hosts)?, to_json(provenance)?);
        let cells = cells(&planned)?;
        let connection = &mut self.connection;
        (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute(
                "UPDATE campaign SET hosts = ?, provenance = ? WHERE id = 1",
                params![hosts_json, provenance_json],
            )?;
            insert_planned(&transaction, &planned, &cells)?;
            transaction.commit()
        })()
        .map_err(|source| failed("writing the plan", &self.path, source))?;
        (self.header.hosts, self.header.planned) = (Some(hosts), planned);
        self.header.provenance = provenance.clone();
        self.index();
        Ok(())
    }

    /// Records how a trial ended. Durable on return; the same outcome once more changes nothing, so that an agent
    /// may repeat itself.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn record(&mut self, record: &TrialRecord) -> Result<Recorded, LedgerError> {
        let mut done = self.write(&[Entry::Record(Box::new(record.clone()))])?;
        Ok(done.pop().unwrap_or(Recorded::Already))
    }

    /// Keeps entries, all or none; durable on return. What the ledger has already changes nothing.
    ///
    /// # Errors
    /// [`LedgerError::NotPlanned`], [`LedgerError::OtherPlace`], [`LedgerError::Conflict`], in which cases nothing
    /// was changed; [`LedgerError::DiskFull`], [`LedgerError::Busy`], [`LedgerError::Database`], after which the
    /// entries may be tried again.
    pub fn write(&mut self, entries: &[Entry]) -> Result<Vec<Recorded>, LedgerError> {
        let action = "recording a result";
        let path = &self.path;
        let sql = |source| failed(action, path, source);
        let begin = TransactionBehavior::Immediate;
        let transaction = self.connection.transaction_with_behavior(begin).map_err(sql)?;
        let mut done = Vec::with_capacity(entries.len());
        for entry in entries {
            done.push(match entry {
                Entry::Begun { trial, unix_ms } => {
                    let place = self.places.get(trial);
                    place.ok_or(LedgerError::NotPlanned { trial: *trial })?;
                    let insert = "INSERT INTO begun (trial, started) VALUES (?, ?) ON CONFLICT DO NOTHING";
                    let values = params![trial.to_string(), integer(*unix_ms)];
                    let mut statement = transaction.prepare_cached(insert).map_err(sql)?;
                    if statement.execute(values).map_err(sql)? > 0 {
                        Recorded::New
                    } else {
                        Recorded::Already
                    }
                }
                Entry::Record(record) => {
                    let trial = record.trial;
                    let place = self.places.get(&trial).ok_or(LedgerError::NotPlanned { trial })?;
                    let planned = &self.header.planned[*place];
                    if (&planned.cell, planned.block, planned.position)
                        != (&record.cell, record.block, record.position)
                    {
                        return Err(LedgerError::OtherPlace { trial });
                    }
                    insert_record(&transaction, record, path)?
                }
            });
        }
        transaction.commit().map_err(sql)?;
        Ok(done)
    }

    /// Keeps the wish to end the campaign, durably. The first reason stands.
    ///
    /// # Errors
    /// [`LedgerError::DiskFull`], [`LedgerError::Busy`], [`LedgerError::Database`].
    pub fn cancel(&mut self, reason: &str) -> Result<(), LedgerError> {
        self.connection
            .execute("UPDATE campaign SET cancelled = COALESCE(cancelled, ?) WHERE id = 1", [reason])
            .map_err(|source| failed("recording the cancellation", &self.path, source))?;
        self.header.cancelled.get_or_insert_with(|| reason.to_owned());
        Ok(())
    }

    /// Replaces the provenance, durably: when the hosts' facts are known, and at the end.
    ///
    /// # Errors
    /// [`LedgerError::DiskFull`], [`LedgerError::Busy`], [`LedgerError::Database`].
    pub fn set_provenance(&mut self, provenance: &Provenance) -> Result<(), LedgerError> {
        let json = to_json(provenance)?;
        self.connection
            .execute("UPDATE campaign SET provenance = ? WHERE id = 1", [json])
            .map_err(|source| failed("recording the provenance", &self.path, source))?;
        self.header.provenance = provenance.clone();
        Ok(())
    }
}

/// Which status an outcome has in `result.json`.
pub const fn status(outcome: &Outcome) -> RunStatus {
    match outcome {
        Outcome::Measured { .. } => RunStatus::Measured,
        Outcome::Failed { .. } => RunStatus::Failed,
        Outcome::Skipped { .. } => RunStatus::Skipped,
        Outcome::Lost { .. } => RunStatus::Lost,
    }
}

fn cells(planned: &[PlannedTrial]) -> Result<Vec<String>, LedgerError> {
    planned.iter().map(|planned| to_json(&planned.cell)).collect()
}

fn insert_planned(
    transaction: &Transaction<'_>,
    planned: &[PlannedTrial],
    cells: &[String],
) -> rusqlite::Result<()> {
    let mut statement = transaction
        .prepare_cached("INSERT INTO planned (position, trial, block, cell) VALUES (?, ?, ?, ?)")?;
    for (planned, cell) in planned.iter().zip(cells) {
        statement.execute(params![planned.position, planned.trial.to_string(), planned.block, cell])?;
    }
    Ok(())
}

fn insert_record(
    transaction: &Transaction<'_>,
    record: &TrialRecord,
    path: &Path,
) -> Result<Recorded, LedgerError> {
    let (trial, sql) = (record.trial, |source| failed("recording a result", path, source));
    let known: Option<String> = transaction
        .query_row("SELECT record FROM record WHERE trial = ?", [trial.to_string()], |row| row.get(0))
        .optional()
        .map_err(sql)?;
    if let Some(known) = known {
        // Both as they are read: what an older version wrote may not be printable.
        let known: TrialRecord = from_json("a record", path, &known)?;
        let new: TrialRecord = from_json("a record", path, &to_json(record)?)?;
        let same = known.outcome == new.outcome;
        return if same { Ok(Recorded::Already) } else { Err(LedgerError::Conflict { trial }) };
    }
    let json = to_json(record)?;
    let insert = "INSERT INTO record (trial, status, record) VALUES (?, ?, ?)";
    let mut statement = transaction.prepare_cached(insert).map_err(sql)?;
    statement.execute(params![trial.to_string(), status_name(status(&record.outcome)), json]).map_err(sql)?;
    Ok(Recorded::New)
}

/// SQLite's integers are signed; no time comes near the difference.
fn integer(unix_ms: u64) -> i64 {
    i64::try_from(unix_ms).unwrap_or(i64::MAX)
}
