//! What is wrong in a document, collected while it is descended into.

pub(crate) mod told;

use told::Told;

/// Findings that are kept of one document: more than are shown of a list as long as one may be.
const MAX_FINDINGS: usize = 4096;

/// A step from a value of the document to one inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Into a mapping.
    Field(&'static str),
    /// Into a sequence.
    Index(usize),
}

/// Something wrong, and the path to it.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) path: Vec<Step>,
    pub(crate) message: String,
}

/// Collects what is wrong in a document while it is descended into.
#[derive(Debug)]
pub struct Findings {
    found: Vec<Finding>,
    /// What is told already. It has a value in its place that means nothing.
    told: Told,
}

impl Findings {
    /// Nothing is found yet, and `told` is told.
    pub(crate) fn new(told: Told) -> Self {
        Self { found: Vec::new(), told }
    }

    /// Whether something directly in the value at `path` is told to be wrong: it may be what would be missed there.
    pub(crate) fn is_told_in_part(&self, path: &[Step]) -> bool {
        self.told.is_in_part(path)
    }

    /// All of them, in their order.
    pub(crate) fn into_vec(self) -> Vec<Finding> {
        self.found
    }

    /// Whether a problem of the value at `path`, or of one that it is a part of, is told already.
    pub(crate) fn is_told(&self, path: &[Step]) -> bool {
        self.told.covers(path)
    }

    /// Adds what is wrong with the value at `path`, unless a problem of that is told already.
    pub(crate) fn add(&mut self, path: &[Step], message: impl Into<String>) {
        if self.found.len() < MAX_FINDINGS && !self.told.covers(path) {
            self.found.push(Finding { path: path.to_vec(), message: message.into() });
        }
    }

    /// Adds that something is missing in the mapping at `path`, unless it is what a problem is told of.
    pub(crate) fn add_missing(&mut self, path: &[Step], message: impl Into<String>) {
        if !self.told.is_in_part(path) {
            self.add(path, message);
        }
    }

    /// Whether nobody knows what the mapping at `path` is: a problem is told of it, or it may have a field that can't be read.
    pub(crate) fn is_unclear(&self, path: &[Step]) -> bool {
        self.told.is_in_part(path) || self.found.iter().any(|finding| finding.path == path)
    }

    /// Whether the list `list` of the spec, which has `count` entries that are read, may have other names than it seems.
    pub(crate) fn has_unclear_names(&self, list: &'static str, count: usize) -> bool {
        let path = [Step::Field("spec"), Step::Field(list)];
        let name = |index| below(&path, &[Step::Index(index), Step::Field("name")]);
        self.told.covers(&path) || (0..count).any(|index| self.told.covers(&name(index)))
    }

    /// Whether there is anything wrong with the value at `path` or a part of it.
    pub(crate) fn is_wrong(&self, path: &[Step]) -> bool {
        self.told.is_in_part(path) || self.found.iter().any(|finding| finding.path.starts_with(path))
    }
}

/// The path of what is `steps` below `path`.
pub(crate) fn below(path: &[Step], steps: &[Step]) -> Vec<Step> {
    [path, steps].concat()
}
