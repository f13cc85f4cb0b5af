//! Reading a campaign's file, and telling what is wrong in it so that a person finds the place.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toll_protocol::campaign::{self, Campaign, Problem};

/// Why a file gives no campaign.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It can't be read.
    #[error("{path} can't be read", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// It is longer than any campaign.
    #[error("{path} is too long: a campaign has at most {most} bytes", path = path.display(), most = campaign::MAX_DOCUMENT)]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is no text.
    #[error("{path} is not in UTF-8 (byte {at}): a campaign is YAML text", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Offset of the first byte that is wrong.
        at: usize,
    },
    /// It is no campaign.
    #[error("{0}")]
    Invalid(String),
}

/// The text of a file and the campaign in it.
///
/// # Errors
/// [`ManifestError`]; for an invalid campaign with every problem, its line, column and the line itself.
pub fn load(path: &Path) -> Result<(String, Campaign), ManifestError> {
    let read = |source| ManifestError::Read { path: path.to_owned(), source };
    // A pipe or a device has no length to ask for: what is read is what is limited.
    let mut bytes = Vec::new();
    let most = campaign::MAX_DOCUMENT as u64 + 1;
    File::open(path).map_err(read)?.take(most).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() > campaign::MAX_DOCUMENT {
        return Err(ManifestError::TooLong { path: path.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ManifestError::NotText { path: path.to_owned(), at }
    })?;
    match campaign::parse(&text) {
        Ok(campaign) => Ok((text, campaign)),
        Err(problems) => {
            let shown: Vec<String> = problems.iter().map(|problem| show(path, &text, problem)).collect();
            Err(ManifestError::Invalid(shown.join("\n")))
        }
    }
}

/// `FILE:LINE:COLUMN: message`, then the line with a mark under the column.
fn show(path: &Path, text: &str, problem: &Problem) -> String {
    let Problem { line, column, message } = problem;
    let mut shown = format!("{}:{line}:{column}: {message}", path.display());
    if let Some(source) = text.lines().nth(line.saturating_sub(1)) {
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        // What precedes the column, in spaces, so that tabs stay aligned.
        let indent: String = source
            .chars()
            .take(column.saturating_sub(1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        shown.push_str(&format!("\n {number} | {source}\n {gutter} | {indent}^"));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_or_without_text_is_refused() {
        let endless = load(Path::new("/dev/zero")).expect_err("has no end");
        assert!(matches!(endless, ManifestError::TooLong { .. }), "{endless}");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("c.yaml");
        std::fs::write(&path, b"kind: \xff\n").expect("writes");
        let binary = load(&path).expect_err("is no text");
        assert!(matches!(binary, ManifestError::NotText { at: 6, .. }), "{binary}");
    }

    #[test]
    fn a_problem_shows_its_line_and_column() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("c.yaml");
        std::fs::write(&path, "apiVersion: toll.dev/v1alpha1\nkind: Campain\n").expect("writes");
        let error = load(&path).expect_err("is no campaign").to_string();
        assert!(error.contains("c.yaml:1:1: missing field `metadata`"), "{error}");
        assert!(error.contains("\n 1 | apiVersion"), "{error}");
    }
}
