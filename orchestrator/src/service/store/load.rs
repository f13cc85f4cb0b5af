//! What lies in a data directory when a process begins, whatever it is: campaigns, and what is left as it is, with the
//! reason.

use std::fs;
use std::io;
use std::path::Path;

use toll_protocol::error::chain;
use toll_protocol::result::RunStatus;
use toll_protocol::trial::TrialId;

use super::{
    Content, Fleet, LEDGER, Over, REMOVED, STATUS, Store, StoreError, UNFINISHED, io_error, read, remove,
    sync,
};
use crate::ledger::{Ledger, LedgerError};
use crate::service::ids::is_id;
use crate::service::past::Past;

/// A campaign that a former process left.
pub(in crate::service) enum Found {
    /// It is over: what is held of it. The rest, which may be a megabyte, stays on disk.
    Over(Box<Past>),
    /// It goes on.
    Live(Box<Live>),
}

/// A campaign that goes on: its ledger and what it says of trials, read where that may take its time.
pub(in crate::service) struct Live {
    pub ledger: Ledger,
    /// How those ended that are recorded.
    pub outcomes: Vec<(TrialId, RunStatus)>,
    /// When those began that were begun and are not recorded.
    pub begun: Vec<(TrialId, u64)>,
    /// When the first one began, if one did.
    pub started: Option<u64>,
}

impl Live {
    fn read(ledger: Ledger) -> Result<Self, LedgerError> {
        let (outcomes, begun) = (ledger.outcomes()?, ledger.begun()?);
        Ok(Self { outcomes, begun, started: ledger.first_begun()?, ledger })
    }
}

/// What an entry of the directory is.
pub(in crate::service) enum Look {
    /// A campaign.
    Found(Found),
    /// It is left as it is.
    LeftOut {
        /// Why, in one sentence.
        reason: String,
        /// Whether another look may find more.
        again: bool,
    },
    /// It is not there (any more).
    Gone,
}

/// An entry and what it is.
pub(in crate::service) type Seen = (String, Look);

impl Store {
    /// Every entry of the directory, by name.
    ///
    /// # Errors
    /// [`StoreError`] if there is no list.
    pub(in crate::service) fn load(&self) -> Result<Vec<Seen>, StoreError> {
        let Self::Fleet(Fleet { campaigns, .. }) = self else { return Ok(Vec::new()) };
        let mut seen = Vec::new();
        for entry in fs::read_dir(campaigns).map_err(io_error("listed", campaigns))? {
            let name = entry.map_err(io_error("listed", campaigns))?.file_name();
            match name.to_str() {
                Some(name) => seen.push((name.to_owned(), look(campaigns, name))),
                None => {
                    seen.push((
                        name.to_string_lossy().into_owned(),
                        not_ours("its name is no campaign's id"),
                    ));
                }
            }
        }
        seen.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(seen)
    }

    /// Looks at one entry again.
    pub(in crate::service) fn look(&self, name: &str) -> Look {
        let Self::Fleet(Fleet { campaigns, .. }) = self else { return Look::Gone };
        // What is answered for is durable: it may be here because that could not be seen to.
        match sync(campaigns) {
            Ok(()) => look(campaigns, name),
            Err(error) => left_out(&error),
        }
    }

    /// Whether an entry is there no more.
    pub(in crate::service) fn gone(&self, name: &str) -> Option<Look> {
        let missing = self.directory(name).symlink_metadata().err()?;
        (missing.kind() == io::ErrorKind::NotFound).then_some(Look::Gone)
    }
}

fn not_ours(why: &str) -> Look {
    Look::LeftOut { reason: format!("{why}: it is left as it is; move it elsewhere"), again: false }
}

fn look(campaigns: &Path, name: &str) -> Look {
    let path = campaigns.join(name);
    let half_made = [UNFINISHED, REMOVED].iter().any(|suffix| name.strip_suffix(suffix).is_some_and(is_id));
    let kind = match fs::metadata(&path) {
        Ok(kind) => kind,
        // A link that leads nowhere is there.
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => {
            return Look::Gone;
        }
        Err(error) => return left_out(&io_error("looked at", &path)(error)),
    };
    if half_made && kind.is_dir() {
        return match remove(&path) {
            Ok(()) => Look::Gone,
            Err(error) => left_out(&error),
        };
    }
    if !is_id(name) {
        return not_ours("its name is no campaign's id");
    }
    if !kind.is_dir() {
        return not_ours("it is not the directory of a campaign");
    }
    open(&path).map_or_else(|error| left_out(&error), Look::Found)
}

fn left_out(error: &StoreError) -> Look {
    Look::LeftOut { reason: chain(error), again: error.may_pass() }
}

fn open(directory: &Path) -> Result<Found, StoreError> {
    match read(&directory.join(STATUS), Content::STATUS, Over::read) {
        Ok(over) => Ok(Found::Over(Box::new(Past::new(&over)))),
        Err(error) if error.is_missing() => {
            Ok(Found::Live(Box::new(Live::read(Ledger::open(&directory.join(LEDGER))?)?)))
        }
        Err(error) => Err(error),
    }
}
