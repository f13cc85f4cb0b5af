//! Where the service keeps its campaigns: a directory each, found again by the next process.
//!
//! ```text
//! DATA/campaigns/ID.new/            being made; what a killed process left of it is removed
//! DATA/campaigns/ID/ledger.sqlite   durable from the answer to the submission on
//!                   result.json, report.html, status.json   written in this order when it is over
//! ```
//! `toll run` keeps its one campaign in the directory of its results, without `status.json`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toll_protocol::result::CampaignResult;
use toll_protocol::service::CampaignStatus;

use crate::ledger::{Ledger, LedgerError, LedgerHeader};
use crate::report;

/// The ledger's name in the directory of a campaign.
pub const LEDGER: &str = "ledger.sqlite";
/// The result.
pub const RESULT: &str = "result.json";
/// The page.
pub const REPORT: &str = "report.html";
/// What the service says of a campaign that is over.
const STATUS: &str = "status.json";
const UNFINISHED: &str = ".new";
/// Longest id of a campaign: it names a directory, and with a suffix a Kubernetes object's status.
const LONGEST_ID: usize = 80;

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
    /// A document can't be written as JSON, or read.
    #[error("{path} is not what Toll writes there", path = path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The ledger.
    #[error("the ledger can't be used")]
    Ledger(#[from] LedgerError),
}

impl StoreError {
    /// Whether an attempt may fare better later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            Self::Json { .. } => false,
            Self::Ledger(LedgerError::Open { source, .. }) => source.kind() != io::ErrorKind::NotFound,
            Self::Ledger(error) => error.may_pass(),
        }
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
    Fleet(PathBuf),
    /// This very directory for the only one.
    One(PathBuf),
}

/// A campaign that is over: `status.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Over {
    /// What the service says of it.
    pub status: CampaignStatus,
    /// The document, as it was submitted.
    pub manifest: String,
}

/// A campaign that a former process left.
pub enum Found {
    /// It is over.
    Over(Box<Over>),
    /// It goes on.
    Live(Box<Ledger>),
}

/// What former processes left.
#[derive(Default)]
pub struct Loaded {
    /// Campaigns by id.
    pub found: Vec<(String, Found)>,
    /// Why others can't be read; they are left as they are.
    pub unreadable: Vec<StoreError>,
}

impl Store {
    /// The store of a service in `data`, which is made if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn fleet(data: &Path) -> Result<Self, StoreError> {
        let campaigns = data.join("campaigns");
        fs::create_dir_all(&campaigns).map_err(io_error("made", &campaigns))?;
        Ok(Self::Fleet(campaigns))
    }

    /// The directory of a campaign.
    pub fn directory(&self, id: &str) -> PathBuf {
        match self {
            Self::Fleet(campaigns) => campaigns.join(id),
            Self::One(directory) => directory.clone(),
        }
    }

    /// Makes the ledger of a new campaign, durably: whole or not at all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn create(&self, id: &str, header: &LedgerHeader) -> Result<Ledger, StoreError> {
        let Self::Fleet(campaigns) = self else {
            return Ok(Ledger::create(&self.directory(id).join(LEDGER), header)?);
        };
        let (directory, unfinished) = (self.directory(id), campaigns.join(format!("{id}{UNFINISHED}")));
        remove(&unfinished)?;
        fs::create_dir(&unfinished).map_err(io_error("made", &unfinished))?;
        drop(Ledger::create(&unfinished.join(LEDGER), header)?);
        sync(&unfinished)?;
        fs::rename(&unfinished, &directory).map_err(io_error("made", &directory))?;
        sync(campaigns)?;
        Ok(Ledger::open(&directory.join(LEDGER))?)
    }

    /// Every campaign that former processes left, by id.
    ///
    /// # Errors
    /// [`StoreError`] if there is no list.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let Loaded { mut found, mut unreadable } = Loaded::default();
        let Self::Fleet(campaigns) = self else { return Ok(Loaded { found, unreadable }) };
        for entry in fs::read_dir(campaigns).map_err(io_error("listed", campaigns))? {
            let entry = entry.map_err(io_error("listed", campaigns))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(UNFINISHED) {
                remove(&entry.path())?;
            } else if is_id(name) {
                match open(&entry.path()) {
                    Ok(campaign) => found.push((name.to_owned(), campaign)),
                    Err(error) => unreadable.push(error),
                }
            }
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Loaded { found, unreadable })
    }

    /// Writes the result and the page of a campaign. Returns the page's path.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write_result(&self, id: &str, result: &CampaignResult) -> Result<PathBuf, StoreError> {
        let directory = self.directory(id);
        let (json, page) = (directory.join(RESULT), directory.join(REPORT));
        let text = serde_json::to_string_pretty(result);
        let text = text.map_err(|source| StoreError::Json { path: json.clone(), source })?;
        replace(&json, text.as_bytes())?;
        replace(&page, report::html::render(result).as_bytes())?;
        Ok(page)
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

    /// Reads the result of a campaign that is over.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read_result(&self, id: &str) -> Result<Box<CampaignResult>, StoreError> {
        let path = self.directory(id).join(RESULT);
        let text = fs::read(&path).map_err(io_error("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| StoreError::Json { path, source })
    }
}

/// Whether `id` can be a campaign's: it names a directory.
pub fn is_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=LONGEST_ID).contains(&id.len())
        && id.chars().all(allowed)
        && !id.starts_with('-')
        && !id.ends_with('-')
}

fn open(directory: &Path) -> Result<Found, StoreError> {
    let path = directory.join(STATUS);
    match fs::read(&path) {
        Ok(text) => {
            let over = serde_json::from_slice(&text).map_err(|source| StoreError::Json { path, source })?;
            Ok(Found::Over(Box::new(over)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Found::Live(Box::new(Ledger::open(&directory.join(LEDGER))?)))
        }
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

fn remove(directory: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removed", directory)(error)),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error("synced", directory))
}

/// Writes a file as a whole or not at all, durably.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let unfinished = path.with_extension("unfinished");
    let write = || {
        fs::write(&unfinished, bytes)?;
        File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(io_error("written", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support;

    #[test]
    fn an_id_leads_nowhere_else() {
        for id in ["a", "quickstart-20261124-190406", "x-0a1b2c3d"] {
            assert!(is_id(id), "{id}");
        }
        for id in ["", ".", "..", "a/b", "-a", "a-", "A", "a.new", &"a".repeat(81)] {
            assert!(!is_id(id), "{id}");
        }
    }

    #[test]
    fn a_campaign_is_found_again_and_a_half_made_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::fleet(directory.path()).expect("makes a store");
        let (header, records) = test_support::campaign();
        let mut ledger = store.create("one", &header).expect("creates");
        ledger.record(&records[0]).expect("records");
        drop(ledger);
        let half = directory.path().join("campaigns/two.new");
        fs::create_dir(&half).expect("makes");
        fs::write(half.join(LEDGER), b"").expect("writes");
        fs::create_dir(directory.path().join("campaigns/three")).expect("makes");
        let Loaded { found, unreadable } = store.load().expect("lists");
        assert_eq!(found.len(), 1);
        let Found::Live(ledger) = &found[0].1 else { panic!("it is not over") };
        assert!(*ledger.header() == header && ledger.outcomes().expect("reads").len() == 1);
        assert!(!half.exists());
        assert!(unreadable.len() == 1 && unreadable[0].to_string().contains("ledger"), "{unreadable:?}");
    }
}
