//! What is wrong in a document, collected while it is descended into.

use std::collections::BTreeSet;

/// Findings that are told of one document: whoever has so many begins with the first.
const MAX_FINDINGS: usize = 50;

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
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// All of them, in their order.
    pub(crate) fn into_vec(self) -> Vec<Finding> {
        self.0
    }

    /// Each costs a walk through the document, which finds its line: a hostile one could have a hundred thousand.
    pub(crate) fn add(&mut self, path: &[Step], message: impl Into<String>) {
        match self.0.len() {
            ..MAX_FINDINGS => self.0.push(Finding { path: path.to_vec(), message: message.into() }),
            MAX_FINDINGS => self.0.push(Finding { path: Vec::new(), message: "and more is wrong".into() }),
            _ => {}
        }
    }

    /// Finds values that stand in a list twice.
    pub(crate) fn distinct<T: Ord>(&mut self, values: &[T], path: &[Step], show: impl Fn(&T) -> String) {
        let mut seen = BTreeSet::new();
        for (index, value) in values.iter().enumerate() {
            if !seen.insert(value) {
                self.add(&below(path, &[Step::Index(index)]), format!("{} is listed twice", show(value)));
            }
        }
    }
}

/// The path of what is `steps` below `path`.
pub(crate) fn below(path: &[Step], steps: &[Step]) -> Vec<Step> {
    [path, steps].concat()
}
