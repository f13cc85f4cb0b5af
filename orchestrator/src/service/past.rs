//! Campaigns that are over: of each a line is held, the rest is read from its directory when somebody asks.

use std::collections::{BTreeMap, BTreeSet};

use ring::digest::{SHA256, digest};
use toll_protocol::service::{CampaignState, CampaignStatus};

use super::store::{Over, Store};

/// What is held of a campaign that is over: some 200 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Past {
    pub id: String,
    name: String,
    pub state: CampaignState,
    pub submitted_unix_ms: u64,
    ended_unix_ms: Option<u64>,
    document: [u8; 32],
}

impl Past {
    pub fn new(over: &Over) -> Self {
        let status = &over.status;
        Self {
            id: status.id.clone(),
            name: status.name.clone(),
            state: status.state,
            submitted_unix_ms: status.submitted_unix_ms,
            ended_unix_ms: status.ended_unix_ms,
            document: fingerprint(&over.manifest),
        }
    }

    /// Whether it is the campaign of this very document.
    pub fn is_of(&self, document: &str) -> bool {
        self.document == fingerprint(document)
    }

    /// Its status, from its directory; `None` if that is gone. Reads: for a thread that may block.
    pub fn status(&self, store: &Store) -> Option<CampaignStatus> {
        match store.over(&self.id) {
            Ok(over) => over.map(|over| over.status),
            Err(error) => Some(CampaignStatus {
                ended_unix_ms: self.ended_unix_ms,
                fault: Some(super::kept::chain(&error)),
                ..CampaignStatus::new(&self.id, &self.name, self.state, self.submitted_unix_ms)
            }),
        }
    }
}

fn fingerprint(document: &str) -> [u8; 32] {
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest(&SHA256, document.as_bytes()).as_ref());
    fingerprint
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Archive {
    by_id: BTreeMap<String, Past>,
    /// By the end and the id.
    by_end: BTreeSet<(Option<u64>, String)>,
    counts: BTreeMap<CampaignState, usize>,
}

impl Archive {
    pub fn insert(&mut self, past: Past) {
        self.remove(&past.id.clone());
        *self.counts.entry(past.state).or_default() += 1;
        self.by_end.insert((past.ended_unix_ms, past.id.clone()));
        self.by_id.insert(past.id.clone(), past);
    }

    pub fn remove(&mut self, id: &str) {
        if let Some(past) = self.by_id.remove(id) {
            self.by_end.remove(&(past.ended_unix_ms, past.id));
            if let Some(count) = self.counts.get_mut(&past.state) {
                *count -= 1;
            }
        }
    }

    pub fn get(&self, id: &str) -> Option<&Past> {
        self.by_id.get(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Past> {
        self.by_id.values()
    }

    /// How many there are of each state.
    pub const fn counts(&self) -> &BTreeMap<CampaignState, usize> {
        &self.counts
    }

    /// Ids of the latest `count` to end that have a result, the first to end first.
    pub fn latest(&self, count: usize) -> Vec<String> {
        let has_result =
            |id: &&String| self.by_id.get(*id).is_some_and(|past| past.state != CampaignState::Refused);
        let ended = self.by_end.iter().rev().map(|(_, id)| id);
        let mut latest: Vec<String> = ended.filter(has_result).take(count).cloned().collect();
        latest.reverse();
        latest
    }

    /// Ids of all but the latest `keep` to end, of those that ended by `until`.
    pub fn beyond(&self, keep: usize, until: u64) -> Vec<String> {
        let beyond = self.by_end.len().saturating_sub(keep);
        let ended = self.by_end.iter().take(beyond).take_while(|(end, _)| end.is_none_or(|end| end <= until));
        ended.map(|(_, id)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(id: &str, ended: u64, state: CampaignState) -> Past {
        let (id, name) = (id.to_owned(), "c".to_owned());
        let ended_unix_ms = Some(ended);
        Past { id, name, state, submitted_unix_ms: 0, ended_unix_ms, document: fingerprint("c") }
    }

    #[test]
    fn the_first_to_end_is_the_first_to_go() {
        let mut archive = Archive::default();
        for (id, ended) in [("b", 1), ("a", 2), ("c", 3), ("a", 4)] {
            archive.insert(past(id, ended, CampaignState::Finished));
        }
        assert_eq!(archive.latest(2), ["c", "a"]);
        assert_eq!(archive.beyond(2, 4), ["b"]);
        assert_eq!(
            (archive.beyond(0, 3), archive.beyond(0, 0)),
            (vec!["b".to_owned(), "c".to_owned()], Vec::new())
        );
        assert_eq!(archive.beyond(3, 4), [""; 0]);
        archive.remove("b");
        archive.insert(past("d", 5, CampaignState::Cancelled));
        let counts = [(CampaignState::Finished, 2), (CampaignState::Cancelled, 1)];
        assert_eq!(*archive.counts(), BTreeMap::from(counts));
        archive.insert(past("e", 6, CampaignState::Refused));
        assert_eq!(
            (archive.latest(2), archive.beyond(1, 6).len()),
            (vec!["a".to_owned(), "d".to_owned()], 3)
        );
        assert!(archive.get("b").is_none() && archive.get("d").is_some_and(|past| past.is_of("c")));
        assert!(!archive.get("a").expect("is there").is_of("another"));
    }
}
