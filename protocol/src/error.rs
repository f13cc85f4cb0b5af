//! What errors say.

use std::error::Error;

/// An error and all its sources on one line, outermost first.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[derive(Debug, thiserror::Error)]
    #[error("a file can't be read")]
    struct Outer(#[from] std::io::Error);

    #[test]
    fn all_sources_are_told_in_their_order() {
        let inner = std::io::Error::other("the disk is gone");
        assert_eq!(chain(&Outer(inner)), "a file can't be read: the disk is gone");
    }
}
