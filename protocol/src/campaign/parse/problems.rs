//! Problems of one document: as many as are shown, in order of place, and the number of the others.

use super::super::Problem;
use super::events::Place;

/// Problems that are shown of one document.
pub(super) const MAX_PROBLEMS: usize = 50;

/// A problem of the value at a path.
#[derive(Debug)]
pub(super) struct Found {
    pub place: Place,
    /// As in `spec.arms[1].name`; of the whole document it is empty.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// Problems as they are found. Whoever finds them in the order of the text need not ask how many there are.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// One more than are shown: where the others begin.
    found: Vec<Found>,
    /// Those after them.
    more: usize,
}

impl Problems {
    /// Adds a problem; its words are made only if they may be shown.
    pub(super) fn add(&mut self, place: Place, path: &str, message: impl FnOnce() -> String) {
        if self.is_open() {
            self.found.push(Found { place, path: path.to_owned(), message: message() });
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// Whether the words of one more would be kept.
    pub(super) const fn is_open(&self) -> bool {
        self.found.len() <= MAX_PROBLEMS
    }

    /// Adds those of another look at the document.
    pub(super) fn extend(&mut self, other: Self) {
        self.found.extend(other.found);
        self.more = self.more.saturating_add(other.more);
    }

    /// Adds problems that may stand anywhere.
    pub(super) fn extend_with(&mut self, problems: impl Iterator<Item = Found>) {
        self.found.extend(problems);
    }

    /// What is shown.
    pub(super) fn shown(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|found| (found.place.line, found.place.column));
        // What aliases lead to is met once for each.
        self.found.dedup_by(|next, found| next.place == found.place && next.message == found.message);
        let rest = self.found.split_off(self.found.len().min(MAX_PROBLEMS));
        let mut shown: Vec<Problem> = self.found.into_iter().map(Found::problem).collect();
        let count = rest.len().saturating_add(self.more);
        if let Some(first) = rest.into_iter().next() {
            let message = if count == 1 {
                "one more problem is not shown".to_owned()
            } else {
                format!("{count} more problems are not shown")
            };
            shown.push(Found { path: String::new(), message, ..first }.problem());
        }
        shown
    }
}

impl Found {
    fn problem(self) -> Problem {
        let Self { place, path, message } = self;
        let message = if path.is_empty() { message } else { format!("{path}: {message}") };
        Problem::new(place.line, place.column, &message)
    }
}
