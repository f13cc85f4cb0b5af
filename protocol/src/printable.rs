//! Text from outside, made fit to be printed. What users, agents, guests and other programs wrote may hold characters that
//! command a terminal, begin a line of their own, turn the direction of writing or are not seen at all: each is shown as
//! an escape, `\u{1b}`. The one place for it.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// `text` on one line, with every character that is not printable as an escape. What is printable already, such as
/// the outcome itself, is left as it is: a backslash stays a backslash.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    // The standard library knows which characters Unicode calls printable; it also escapes these three, for literals.
    let literal = ['\'', '"', '\\'];
    for piece in text.split_inclusive(literal) {
        let body = piece.strip_suffix(literal).unwrap_or(piece);
        shown.extend(body.escape_debug());
        shown.push_str(&piece[body.len()..]);
    }
    Cow::Owned(shown)
}

/// A line of text that is printable, wherever it came from: reading one from a message or a file makes it so.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Line(String);

impl Line {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: AsRef<str>> From<T> for Line {
    fn from(text: T) -> Self {
        Self(printable(text.as_ref()).into_owned())
    }
}

impl std::ops::Deref for Line {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}
