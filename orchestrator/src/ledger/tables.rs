//! The tables of a ledger, and what they hold as text.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toll_protocol::printable::{self, printable};
use toll_protocol::result::RunStatus;

use super::{BUSY_TIMEOUT, LedgerError, LedgerHeader, PlannedTrial};

/// SQLite's `application_id` of a ledger: "TOLL".
pub(super) const APPLICATION_ID: i32 = i32::from_be_bytes(*b"TOLL");

pub(super) const SCHEMA: &str = "
CREATE TABLE campaign (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL,
    manifest TEXT NOT NULL,   -- as it was written, byte for byte
    seed TEXT NOT NULL,       -- decimal: it may be over the largest INTEGER
    arms TEXT NOT NULL,       -- JSON
    provenance TEXT NOT NULL, -- JSON
    submitted INTEGER NOT NULL, -- milliseconds since the Unix epoch
    hosts TEXT,               -- JSON; NULL before there is a plan
    cancelled TEXT            -- why, if it was
) STRICT;
CREATE TABLE planned (
    position INTEGER PRIMARY KEY,
    trial TEXT NOT NULL UNIQUE,
    block INTEGER NOT NULL,
    cell TEXT NOT NULL        -- JSON
) STRICT;
CREATE TABLE begun (
    trial TEXT PRIMARY KEY REFERENCES planned (trial),
    started INTEGER NOT NULL  -- milliseconds since the Unix epoch
) STRICT;
CREATE TABLE record (
    trial TEXT PRIMARY KEY REFERENCES planned (trial),
    status TEXT NOT NULL,     -- measured, failed, skipped or lost
    record TEXT NOT NULL      -- JSON of the whole record, samples included
) STRICT;
";

pub(super) fn connect(path: &Path) -> Result<Connection, LedgerError> {
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

pub(super) fn read_header(connection: &Connection, path: &Path) -> Result<LedgerHeader, LedgerError> {
    let ([campaign, manifest, seed, arms, provenance], (submitted, hosts, cancelled), planned) = (|| {
        let query = "SELECT name, manifest, seed, arms, provenance FROM campaign";
        let texts: [String; 5] = connection.query_row(query, [], |row| {
            Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?])
        })?;
        let query = "SELECT submitted, hosts, cancelled FROM campaign";
        let rest: (i64, Option<String>, Option<String>) =
            connection.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let mut statement =
            connection.prepare("SELECT trial, cell, block, position FROM planned ORDER BY position")?;
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get(3)?))
        })?;
        Ok((texts, rest, rows.collect::<Result<Vec<(String, String, u32, u32)>, _>>()?))
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
        campaign: printable(&campaign).into_owned(),
        manifest,
        seed: seed.parse().map_err(|source| LedgerError::DamagedSeed { path: path.to_owned(), source })?,
        arms: from_json("the arms", path, &arms)?,
        planned: planned.collect::<Result<_, LedgerError>>()?,
        provenance: from_json("the provenance", path, &provenance)?,
        submitted_unix_ms: u64::try_from(submitted).unwrap_or(0),
        hosts: hosts.map(|hosts| from_json("the hosts", path, &hosts)).transpose()?,
        cancelled: cancelled.map(|why| printable(&why).into_owned()),
    })
}

pub(super) const fn status_name(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Measured => "measured",
        RunStatus::Failed => "failed",
        RunStatus::Skipped => "skipped",
        RunStatus::Lost => "lost",
    }
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String, LedgerError> {
    serde_json::to_string(value).map_err(LedgerError::Encode)
}

/// What was written as JSON. An older version may have written it, or somebody else: all of it is printable.
pub(super) fn from_json<T: DeserializeOwned>(
    what: &'static str,
    path: &Path,
    text: &str,
) -> Result<T, LedgerError> {
    serde_json::from_slice(&printable::json(text.as_bytes())).map_err(|source| LedgerError::Damaged {
        what,
        path: path.to_owned(),
        source,
    })
}

pub(super) fn failed(action: &'static str, path: &Path, source: rusqlite::Error) -> LedgerError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => LedgerError::DiskFull { path, source },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => LedgerError::Busy { path, source },
        Some(ErrorCode::NotADatabase) => LedgerError::NotALedger { path },
        _ => LedgerError::Database { action, path, source },
    }
}
