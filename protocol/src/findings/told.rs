//! What is wrong in a document and told already: what only follows from it is not told once more.

use std::collections::HashSet;

use super::Step;

/// Values of a document of which a problem is told. They are read as something else, or not at all.
#[derive(Debug, Default)]
pub(crate) struct Told {
    values: HashSet<String>,
    /// Mappings and lists with a part that is wrong or unknown.
    in_part: HashSet<String>,
}

impl Told {
    /// A problem of the value at `path` is told.
    pub(crate) fn value(&mut self, path: &str) {
        if let Some(end) = path.rfind(['.', '[']) {
            self.in_part(&path[..end]);
        } else if !path.is_empty() {
            self.in_part("");
        }
        self.values.insert(path.to_owned());
    }

    /// A problem is told of a part of the value at `path` that has no name in the schema.
    pub(crate) fn in_part(&mut self, path: &str) {
        self.in_part.insert(path.to_owned());
    }

    /// Whether a problem is told of the very value at `path`.
    pub(crate) fn is_value(&self, path: &str) -> bool {
        self.values.contains(path)
    }

    /// Whether something directly in the value at `path` is told to be wrong.
    pub(crate) fn is_in_part_of(&self, path: &str) -> bool {
        self.in_part.contains(path)
    }

    /// Whether a problem is told of the value at `path`, or of one that it is a part of.
    pub(crate) fn covers(&self, path: &[Step]) -> bool {
        !self.values.is_empty() && (0..=path.len()).any(|end| self.values.contains(&dotted(&path[..end])))
    }

    /// Whether something directly in the value at `path` is told to be wrong: it may be what would be missed there.
    pub(crate) fn is_in_part(&self, path: &[Step]) -> bool {
        self.covers(path) || self.in_part.contains(&dotted(path))
    }
}

/// A path as problems begin with it.
pub(crate) fn dotted(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) if text.is_empty() => text.push_str(name),
            Step::Field(name) => text.push_str(&format!(".{name}")),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}
