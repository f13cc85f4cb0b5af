//! The ledger: what was planned and what became of it, in one SQLite file. A result is durable when
//! [`Ledger::record`] returns; whatever happens to the process or the machine after that, [`Ledger::open`] finds it.
//!
//! ```text
//! create(header) -> record, record, ... -> set_provenance (the end)
//!                       | killed, power lost
//!                       v
//!                  open -> records, remaining -> record, ...
//! ```
//! Rollback journal (`journal_mode=DELETE`) with `synchronous=EXTRA`: a commit syncs the journal, the file and, once
//! the journal is unlinked, their directory, so that neither a result nor the ledger's own name is lost with the
//! power. `FULL` leaves that last sync out, and a result acknowledged just before a power cut could then be rolled
//! back by a journal that reappears (sqlite.org/pragma.html, "synchronous"). A write-ahead log would need one sync
//! less, which nobody notices at one result a second, and would leave results in a second file that is easily
//! forgotten when a ledger is copied. See docs/adr/0005-ledger.md.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toll_protocol::result::{ArmSummary, CellKey, Outcome, Provenance, RunStatus, TrialRecord};
use toll_protocol::trial::TrialId;

#[cfg(test)]
mod tests;

/// Version of the tables: SQLite's `user_version`.
pub const SCHEMA_VERSION: i32 = 1;

/// SQLite's `application_id` of a ledger: "TOLL".
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"TOLL");

/// How long a statement waits for another process that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
CREATE TABLE campaign (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL,
    manifest TEXT NOT NULL,   -- as it was written, byte for byte
    seed TEXT NOT NULL,       -- decimal: it may be over the largest INTEGER
    arms TEXT NOT NULL,       -- JSON
    provenance TEXT NOT NULL  -- JSON
) STRICT;
CREATE TABLE planned (
    position INTEGER PRIMARY KEY,
    trial TEXT NOT NULL UNIQUE,
    block INTEGER NOT NULL,
    cell TEXT NOT NULL        -- JSON
) STRICT;
CREATE TABLE record (
    trial TEXT PRIMARY KEY REFERENCES planned (trial),
    status TEXT NOT NULL,     -- measured, failed, skipped or lost
    record TEXT NOT NULL      -- JSON of the whole record, samples included
) STRICT;
";

/// A trial of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTrial {
    /// Its id.
    pub trial: TrialId,
    /// The cell that it repeats.
    pub cell: CellKey,
    /// Number of its block, from 0.
    pub block: u32,
    /// Its place in the order of the campaign, from 0; no two trials share one.
    pub position: u32,
}

/// What a ledger knows before the first trial begins.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerHeader {
    /// The campaign's name.
    pub campaign: String,
    /// The campaign as it was written, byte for byte.
    pub manifest: String,
    /// The seed that the order was drawn from.
    pub seed: u64,
    /// The arms, in the campaign's order; at most one is the baseline.
    pub arms: Vec<ArmSummary>,
    /// Every trial of the campaign.
    pub planned: Vec<PlannedTrial>,
    /// Where the figures come from, as far as it is known.
    pub provenance: Provenance,
}

/// What [`Ledger::record`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// The record is new and durable.
    New,
    /// The ledger had this very outcome already.
    Already,
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
    /// No room on the disk.
    #[error("no room is left for {path}: free some space; every result acknowledged before is kept", path = path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// SQLite's word.
        source: rusqlite::Error,
    },
    /// Another process holds the file.
    #[error("{path} is held by another process: end it, then try again", path = path.display())]
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
}

impl Ledger {
    /// Creates the file `path` with `header` in it, durably.
    ///
    /// # Errors
    /// [`LedgerError::Exists`], [`LedgerError::Open`], [`LedgerError::DiskFull`], [`LedgerError::Database`].
    pub fn create(path: &Path, header: &LedgerHeader) -> Result<Self, LedgerError> {
        File::create_new(path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => LedgerError::Exists { path: path.to_owned() },
            _ => LedgerError::Open { path: path.to_owned(), source },
        })?;
        let mut connection = connect(path)?;
        let action = "writing the plan";
        let rows = Rows::of(header)?;
        (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.execute_batch(SCHEMA)?;
            transaction.execute(
                "INSERT INTO campaign (id, name, manifest, seed, arms, provenance) VALUES (1, ?, ?, ?, ?, ?)",
                params![
                    header.campaign,
                    header.manifest,
                    header.seed.to_string(),
                    rows.arms,
                    rows.provenance
                ],
            )?;
            let insert = "INSERT INTO planned (position, trial, block, cell) VALUES (?, ?, ?, ?)";
            for (planned, cell) in header.planned.iter().zip(&rows.cells) {
                let trial = planned.trial.to_string();
                transaction.prepare_cached(insert)?.execute(params![
                    planned.position,
                    trial,
                    planned.block,
                    cell
                ])?;
            }
            transaction.commit()
        })()
        .map_err(|source| failed(action, path, source))?;
        Ok(Self { connection, path: path.to_owned(), header: header.clone() })
    }

    /// Opens the ledger at `path`, finishing or undoing what a killed process left half done.
    ///
    /// # Errors
    /// [`LedgerError::Open`], [`LedgerError::NotALedger`], [`LedgerError::Newer`], [`LedgerError::Damaged`],
    /// [`LedgerError::Busy`], [`LedgerError::Database`].
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        File::open(path).map_err(|source| LedgerError::Open { path: path.to_owned(), source })?;
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
            _ => return Err(LedgerError::NotALedger { path: path.to_owned() }),
        }
        let header = read_header(&connection, path)?;
        Ok(Self { connection, path: path.to_owned(), header })
    }

    /// What was planned, and the provenance as of the last [`set_provenance`](Self::set_provenance).
    pub fn header(&self) -> &LedgerHeader {
        &self.header
    }

    /// Records how a trial ended. Durable on return; the same outcome once more changes nothing, so that an agent
    /// may repeat itself.
    ///
    /// # Errors
    /// [`LedgerError::NotPlanned`], [`LedgerError::OtherPlace`], [`LedgerError::Conflict`], in which cases nothing
    /// was changed; [`LedgerError::DiskFull`], [`LedgerError::Busy`], [`LedgerError::Database`], after which the
    /// record may be tried again.
    pub fn record(&mut self, record: &TrialRecord) -> Result<Recorded, LedgerError> {
        let action = "recording a result";
        let (path, trial) = (&self.path, record.trial);
        let planned = self.header.planned.iter().find(|planned| planned.trial == trial);
        let planned = planned.ok_or(LedgerError::NotPlanned { trial })?;
        if (&planned.cell, planned.block, planned.position) != (&record.cell, record.block, record.position) {
            return Err(LedgerError::OtherPlace { trial });
        }
        let json = to_json(record)?;
        let begin = TransactionBehavior::Immediate;
        let transaction = self
            .connection
            .transaction_with_behavior(begin)
            .map_err(|source| failed(action, path, source))?;
        let known: Option<String> = transaction
            .query_row("SELECT record FROM record WHERE trial = ?", [trial.to_string()], |row| row.get(0))
            .optional()
            .map_err(|source| failed(action, path, source))?;
        if let Some(known) = known {
            let known: TrialRecord = from_json("a record", path, &known)?;
            let same = known.outcome == record.outcome;
            return if same { Ok(Recorded::Already) } else { Err(LedgerError::Conflict { trial }) };
        }
        (|| {
            transaction.execute(
                "INSERT INTO record (trial, status, record) VALUES (?, ?, ?)",
                params![trial.to_string(), status_name(status(&record.outcome)), json],
            )?;
            transaction.commit()
        })()
        .map_err(|source| failed(action, path, source))?;
        Ok(Recorded::New)
    }

    /// Every record, by position.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`], [`LedgerError::Busy`], [`LedgerError::Database`].
    pub fn records(&self) -> Result<Vec<TrialRecord>, LedgerError> {
        let texts = (|| {
            let query = "SELECT record FROM record JOIN planned USING (trial) ORDER BY position";
            let mut statement = self.connection.prepare(query)?;
            statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()
        })()
        .map_err(|source| failed("reading the results", &self.path, source))?;
        texts.iter().map(|text| from_json("a record", &self.path, text)).collect()
    }

    /// The planned trials that have no record yet, by position: what a resumed campaign still has to run.
    ///
    /// # Errors
    /// As for [`records`](Self::records).
    pub fn remaining(&self) -> Result<Vec<PlannedTrial>, LedgerError> {
        let done: std::collections::BTreeSet<TrialId> =
            self.records()?.iter().map(|record| record.trial).collect();
        let mut remaining: Vec<_> =
            self.header.planned.iter().filter(|planned| !done.contains(&planned.trial)).cloned().collect();
        remaining.sort_by_key(|planned| planned.position);
        Ok(remaining)
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

/// The header's parts as the tables hold them.
struct Rows {
    arms: String,
    provenance: String,
    cells: Vec<String>,
}

impl Rows {
    fn of(header: &LedgerHeader) -> Result<Self, LedgerError> {
        let cells = header.planned.iter().map(|planned| to_json(&planned.cell)).collect::<Result<_, _>>()?;
        Ok(Self { arms: to_json(&header.arms)?, provenance: to_json(&header.provenance)?, cells })
    }
}

fn connect(path: &Path) -> Result<Connection, LedgerError> {
    let action = "opening the ledger";
    (|| {
        let connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "DELETE")?;
        connection.pragma_update(None, "synchronous", "EXTRA")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(connection)
    })()
    .map_err(|source| failed(action, path, source))
}

fn read_header(connection: &Connection, path: &Path) -> Result<LedgerHeader, LedgerError> {
    let ([campaign, manifest, seed, arms, provenance], planned) = (|| {
        let query = "SELECT name, manifest, seed, arms, provenance FROM campaign";
        let texts: [String; 5] = connection.query_row(query, [], |row| {
            Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?])
        })?;
        let mut statement =
            connection.prepare("SELECT trial, cell, block, position FROM planned ORDER BY position")?;
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get(3)?))
        })?;
        Ok((texts, rows.collect::<Result<Vec<(String, String, u32, u32)>, _>>()?))
    })()
    .map_err(|source| failed("reading the plan", path, source))?;
    let planned = planned.into_iter().map(|(trial, cell, block, position)| {
        let trial = trial.parse().map_err(|text: String| LedgerError::Damaged {
            what: "a trial's id",
            path: path.to_owned(),
            source: serde::de::Error::custom(text),
        })?;
        Ok(PlannedTrial { trial, cell: from_json("a cell", path, &cell)?, block, position })
    });
    Ok(LedgerHeader {
        campaign,
        manifest,
        seed: seed.parse().map_err(|source| LedgerError::DamagedSeed { path: path.to_owned(), source })?,
        arms: from_json("the arms", path, &arms)?,
        planned: planned.collect::<Result<_, LedgerError>>()?,
        provenance: from_json("the provenance", path, &provenance)?,
    })
}

const fn status_name(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Measured => "measured",
        RunStatus::Failed => "failed",
        RunStatus::Skipped => "skipped",
        RunStatus::Lost => "lost",
    }
}

fn to_json<T: Serialize>(value: &T) -> Result<String, LedgerError> {
    serde_json::to_string(value).map_err(LedgerError::Encode)
}

fn from_json<T: DeserializeOwned>(what: &'static str, path: &Path, text: &str) -> Result<T, LedgerError> {
    serde_json::from_str(text).map_err(|source| LedgerError::Damaged { what, path: path.to_owned(), source })
}

fn failed(action: &'static str, path: &Path, source: rusqlite::Error) -> LedgerError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => LedgerError::DiskFull { path, source },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => LedgerError::Busy { path, source },
        Some(ErrorCode::NotADatabase) => LedgerError::NotALedger { path },
        _ => LedgerError::Database { action, path, source },
    }
}
