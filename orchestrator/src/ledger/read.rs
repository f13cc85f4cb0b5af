//! What a ledger says of its trials.

use std::collections::BTreeSet;

use rusqlite::types::FromSql;
use toll_protocol::result::{RunStatus, TrialRecord};
use toll_protocol::trial::TrialId;

use super::tables::{failed, from_json};
use super::{Ledger, LedgerError, PlannedTrial};

impl Ledger {
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
        let done: BTreeSet<TrialId> = self.outcomes()?.into_iter().map(|(trial, _)| trial).collect();
        let mut remaining: Vec<_> =
            self.header.planned.iter().filter(|planned| !done.contains(&planned.trial)).cloned().collect();
        remaining.sort_by_key(|planned| planned.position);
        Ok(remaining)
    }

    /// The trials that are recorded, and how each ended.
    ///
    /// # Errors
    /// As for [`records`](Self::records).
    pub fn outcomes(&self) -> Result<Vec<(TrialId, RunStatus)>, LedgerError> {
        let rows: Vec<(String, String)> = self.rows("SELECT trial, status FROM record")?;
        let parse = |(trial, status): (String, String)| {
            Ok((self.trial(&trial)?, from_json("a status", &self.path, &format!("\"{status}\""))?))
        };
        rows.into_iter().map(parse).collect()
    }

    /// Trials that were begun and have no record, and when they were, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// As for [`records`](Self::records).
    pub fn begun(&self) -> Result<Vec<(TrialId, u64)>, LedgerError> {
        let query = "SELECT trial, started FROM begun WHERE trial NOT IN (SELECT trial FROM record)";
        let rows: Vec<(String, i64)> = self.rows(query)?;
        let parse =
            |(trial, started): (String, i64)| Ok((self.trial(&trial)?, u64::try_from(started).unwrap_or(0)));
        rows.into_iter().map(parse).collect()
    }

    /// When the first trial was begun, milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// As for [`records`](Self::records).
    pub fn first_begun(&self) -> Result<Option<u64>, LedgerError> {
        let first: Result<Option<i64>, _> =
            self.connection.query_row("SELECT min(started) FROM begun", [], |row| row.get(0));
        let first = first.map_err(|source| failed("reading the results", &self.path, source))?;
        Ok(first.and_then(|started| u64::try_from(started).ok()))
    }

    fn rows<A: FromSql, B: FromSql>(&self, query: &str) -> Result<Vec<(A, B)>, LedgerError> {
        (|| {
            let mut statement = self.connection.prepare(query)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<_, _>>()
        })()
        .map_err(|source| failed("reading the results", &self.path, source))
    }

    fn trial(&self, text: &str) -> Result<TrialId, LedgerError> {
        text.parse().map_err(|why: String| LedgerError::Damaged {
            what: "a trial's id",
            path: self.path.clone(),
            source: serde::de::Error::custom(why),
        })
    }
}
