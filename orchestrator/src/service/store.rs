//! Where the service keeps its campaigns: a directory each, found again by the next process.
//!
//! ```text
//! DATA/lock                         who serves it; its owner's alone
//! DATA/campaigns/                   its owner's alone
//! DATA/campaigns/ID.new/            being made; what a killed process left of it is removed
//! DATA/campaigns/ID/ledger.sqlite   durable from the answer to the submission on
//!                   result.json, report.html, status.json   written in this order when it is over
//! DATA/campaigns/ID.removed/        being removed, because it was asked for (--keep)
//! ```
//! `toll run` keeps its one campaign in the directory of its results, without `status.json`.

mod durable;
mod load;
mod lock;

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use toll_protocol::document::{self, ApiVersion, StatusKind};
use toll_protocol::file::{Content, FileError};
use toll_protocol::printable;
use toll_protocol::result::CampaignResult;
use toll_protocol::service::CampaignStatus;

use super::ids::is_id;
use super::kept;
use crate::file;
use crate::ledger::{Ledger, LedgerError, LedgerHeader};
use crate::report;

pub use durable::make_directories;
use durable::{replace, sync};
pub(super) use load::{Found, Live, Look, Seen};
pub use lock::Lock;

/// The ledger's name in the directory of a campaign.
pub const LEDGER: &str = "ledger.sqlite";
/// The result.
pub const RESULT: &str = "result.json";
/// The page.
pub const REPORT: &str = "report.html";
/// What the service says of a campaign that is over.
const STATUS: &str = "status.json";
const UNFINISHED: &str = ".new";
const REMOVED: &str = ".removed";
/// The directory of campaigns in a data directory.
const CAMPAIGNS: &str = "campaigns";
/// Permissions of that: whoever could open a ledger could lock it, and stop its campaign.
const PRIVATE_DIRECTORY: u32 = 0o700;
/// Bits of a mode that are other users'.
const OTHERS: u32 = 0o077;

/// Why campaigns can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory.
    #[error("{path} can't be {what}", path = path.display())]
    Io {
        /// `written`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Another process serves it.
    #[error("{directory} is served already, by {by}: end it first, or choose another directory (--data)", directory = directory.display())]
    Held {
        /// The directory.
        directory: PathBuf,
        /// `process 4711 on node1`.
        by: String,
    },
    /// A campaign that the next process will find, but this one can't go on with yet.
    #[error("{path} is there, and can't be served yet", path = path.display())]
    There {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: Box<StoreError>,
    },
    /// A name that leads elsewhere, or that would not be found again.
    #[error("`{0}` can't be a campaign's id")]
    Id(String),
    /// A document can't be written as JSON, or read.
    #[error("{path} is not what Toll writes there", path = path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A file that is not read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The ledger.
    #[error("the ledger can't be used")]
    Ledger(#[from] LedgerError),
}

impl StoreError {
    /// Whether an attempt may fare better later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Held { .. } | Self::There { .. } | Self::File(FileError::Read { .. }) => {
                true
            }
            Self::Json { .. } | Self::Id(_) | Self::File(_) => false,
            Self::Ledger(LedgerError::Open { source, .. }) => source.kind() != io::ErrorKind::NotFound,
            Self::Ledger(error) => error.may_pass(),
        }
    }

    /// Whether it is that there is no such file.
    fn is_missing(&self) -> bool {
        matches!(self, Self::File(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound)
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// Where campaigns are.
#[derive(Debug, Clone)]
pub enum Store {
    /// A directory for each.
    Fleet(Fleet),
    /// This very directory for the only one.
    One(PathBuf),
}

/// A data directory, which is this process's as long as there is a copy of this.
#[derive(Debug, Clone)]
pub struct Fleet {
    campaigns: PathBuf,
    _lock: Arc<Lock>,
}

/// A campaign that is over: `status.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Over {
    /// `apiVersion`.
    #[serde(rename = "apiVersion")]
    pub api_version: ApiVersion,
    /// What it is.
    pub kind: StatusKind,
    /// What the service says of it.
    pub status: CampaignStatus,
    /// The document, as it was submitted.
    pub manifest: String,
}

impl Over {
    /// What the service says of a campaign, and its document.
    pub const fn new(status: CampaignStatus, manifest: String) -> Self {
        Self { api_version: ApiVersion, kind: StatusKind, status, manifest }
    }

    /// Reads what was written: all that it says is printable, but for the document, whose lines stay lines.
    ///
    /// # Errors
    /// Why it is none.
    fn read(json: &[u8]) -> serde_json::Result<Self> {
        let manifest = document::manifest(json, StatusKind::NAME)?;
        Ok(Self { manifest, ..serde_json::from_slice(&printable::json(json))? })
    }
}

impl Store {
    /// The store of a service in `data`, which is made if it is not there, and locked. Other users are kept out of what
    /// they could stop it by.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Held`].
    pub fn fleet(data: &Path) -> Result<Self, StoreError> {
        let campaigns = data.join(CAMPAIGNS);
        make_directories(data)?;
        match DirBuilder::new().mode(PRIVATE_DIRECTORY).create(&campaigns) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("made", &campaigns)(error));
            }
            _ => {}
        }
        // Whoever has made it, and what is in it, may not have lived to see them synced.
        sync(data)?;
        sync(&campaigns)?;
        let directory = File::open(&campaigns).map_err(io_error("opened", &campaigns))?;
        keep_others_out(&directory, &campaigns, PRIVATE_DIRECTORY)?;
        let lock = Arc::new(Lock::take(data)?);
        Ok(Self::Fleet(Fleet { campaigns, _lock: lock }))
    }

    /// The directory of a campaign.
    pub fn directory(&self, id: &str) -> PathBuf {
        match self {
            Self::Fleet(fleet) => fleet.campaigns.join(id),
            Self::One(directory) => directory.clone(),
        }
    }

    /// Makes the ledger of a new campaign, durably: whole or not at all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn create(&self, id: &str, header: &LedgerHeader) -> Result<Ledger, StoreError> {
        let Self::Fleet(Fleet { campaigns, .. }) = self else {
            return Ok(Ledger::create(&self.directory(id).join(LEDGER), header)?);
        };
        // The next process would not look at it.
        if !is_id(id) {
            return Err(StoreError::Id(id.to_owned()));
        }
        let (directory, unfinished) = (self.directory(id), campaigns.join(format!("{id}{UNFINISHED}")));
        remove(&unfinished)?;
        let make = || {
            fs::create_dir(&unfinished).map_err(io_error("made", &unfinished))?;
            drop(Ledger::create(&unfinished.join(LEDGER), header)?);
            sync(&unfinished)?;
            fs::rename(&unfinished, &directory).map_err(io_error("made", &directory))
        };
        let there = |error| StoreError::There { path: directory.clone(), source: Box::new(error) };
        if let Err(error) = make() {
            // It takes room that a full disk has not. The first error is the one to tell.
            let _ = remove(&unfinished);
            // Something of that name which this process has not seen: it is to be looked at.
            return Err(if directory.symlink_metadata().is_ok() { there(error) } else { error });
        }
        // From here on the next process finds it: what fails does not undo that.
        sync(campaigns).map_err(there)?;
        Ledger::open(&directory.join(LEDGER)).map_err(|error| there(error.into()))
    }

    /// Removes a campaign that is over, whole or not at all: what a killed process left of it is no campaign.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Id`].
    pub fn remove(&self, id: &str) -> Result<(), StoreError> {
        let Self::Fleet(Fleet { campaigns, .. }) = self else { return Ok(()) };
        if !is_id(id) {
            return Err(StoreError::Id(id.to_owned()));
        }
        let (directory, removed) = (self.directory(id), campaigns.join(format!("{id}{REMOVED}")));
        remove(&removed)?;
        match fs::rename(&directory, &removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(io_error("removed", &directory))?,
        }
        sync(campaigns)?;
        remove(&removed)
    }

    /// Writes the result and the page of a campaign. Returns the page's path.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write_result(&self, id: &str, result: &CampaignResult) -> Result<PathBuf, StoreError> {
        let directory = self.directory(id);
        if let Self::Fleet(_) = self {
            durable::sweep(&directory);
        }
        write_files(&directory, result)
    }

    /// Writes that a campaign is over: the last of its files.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write_status(&self, over: &Over) -> Result<(), StoreError> {
        let Self::Fleet(_) = self else { return Ok(()) };
        let path = self.directory(&over.status.id).join(STATUS);
        let text = serde_json::to_string_pretty(over);
        let text = text.map_err(|source| StoreError::Json { path: path.clone(), source })?;
        replace(&path, text.as_bytes())
    }

    /// Reads the result of a campaign that is over, or makes it from its ledger if it was not written.
    ///
    /// # Errors
    /// What is wrong, in one sentence.
    pub fn result(&self, id: &str) -> Result<Box<CampaignResult>, String> {
        let path = self.directory(id).join(RESULT);
        match read(&path, Content::RESULT, CampaignResult::read) {
            Ok(result) => Ok(Box::new(result)),
            Err(error) => {
                let ledger = Ledger::open(&self.directory(id).join(LEDGER));
                let made = ledger.map_err(|error| kept::chain(&error)).and_then(|ledger| {
                    kept::of_ledger(&ledger, &kept::gates(&ledger)?, &[]).map_err(|error| kept::chain(&error))
                });
                made.map_err(|why| format!("{}; {why}", kept::chain(&error)))
            }
        }
    }

    /// Reads what the service says of a campaign that is over; `None` if it is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn over(&self, id: &str) -> Result<Option<Over>, StoreError> {
        match read(&self.directory(id).join(STATUS), Content::STATUS, Over::read) {
            Err(error) if error.is_missing() => Ok(None),
            other => other.map(Some),
        }
    }
}

/// Writes the result and the page of a campaign into `directory`, which is made if it is not there. Returns the page's
/// path.
///
/// # Errors
/// [`StoreError`].
pub fn write_files(directory: &Path, result: &CampaignResult) -> Result<PathBuf, StoreError> {
    make_directories(directory)?;
    let (json, page) = (directory.join(RESULT), directory.join(REPORT));
    let text = serde_json::to_string_pretty(result);
    let text = text.map_err(|source| StoreError::Json { path: json.clone(), source })?;
    replace(&json, text.as_bytes())?;
    replace(&page, report::html::render(result).as_bytes())?;
    Ok(page)
}

/// Reads a document. Whoever can write to the data directory may have put anything there, and a start looks at all of it.
fn read<T>(
    path: &Path,
    content: Content,
    parse: impl Fn(&[u8]) -> serde_json::Result<T>,
) -> Result<T, StoreError> {
    let (what, path_of) = (content.what, || path.to_owned());
    let known = fs::metadata(path).map_err(|source| FileError::Read { what, path: path_of(), source })?;
    // To open a pipe would wait for somebody to write.
    if !known.is_file() {
        return Err(FileError::Kind { what, path: path_of() }.into());
    }
    if known.len() > content.longest {
        return Err(FileError::TooLong { what, path: path_of(), longest: content.longest }.into());
    }
    let text = file::read(path, content)?;
    parse(text.as_bytes()).map_err(|source| StoreError::Json { path: path.to_owned(), source })
}

fn remove(directory: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removed", directory)(error)),
        _ => Ok(()),
    }
}

/// Gives `file`, which stands at `path`, the permissions `mode` if other users can do anything with it, as an older version
/// left it.
fn keep_others_out(file: &File, path: &Path, mode: u32) -> Result<(), StoreError> {
    if file.metadata().map_err(io_error("looked at", path))?.mode() & OTHERS == 0 {
        return Ok(());
    }
    match file.set_permissions(Permissions::from_mode(mode)) {
        // Another user's, as on a volume that pods of different users have had: whoever lent it knows to whom.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let path = path.display();
            tracing::warn!(
                "other users can stop the service by {path}: give it to the service's user (chown)"
            );
            Ok(())
        }
        other => other.map_err(io_error("kept from others", path)),
    }
}

#[cfg(test)]
mod tests;
