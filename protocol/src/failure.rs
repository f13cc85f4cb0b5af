//! Why something failed, with all that is known of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why an end failed, with what a person needs to find the cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// One sentence: what went wrong.
    pub reason: String,
    /// The guest's or the program's last words, its registers, the last exits: a line each, oldest first.
    #[serde(deserialize_with = "crate::bounded::last_lines::<_, { crate::bounded::MOST_WORDS }>")]
    pub last_words: Vec<String>,
}

impl Failure {
    /// A failure without last words.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), last_words: Vec::new() }
    }
}
