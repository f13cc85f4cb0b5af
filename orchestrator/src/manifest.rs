//! Reading a campaign's file, and telling what is wrong in it so that a person finds the place.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toll_protocol::campaign::{self, Campaign, EncodingError, Problem};
use toll_protocol::printable::printable;

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
    #[error("{path} {why}", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: EncodingError,
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
    let text = campaign::decode(&bytes);
    let text = text.map_err(|why| ManifestError::NotText { path: path.to_owned(), why })?;
    match campaign::parse(&text) {
        Ok(campaign) => Ok((text, campaign)),
        Err(problems) => {
            let shown: Vec<String> = problems.iter().map(|problem| show(path, &text, problem)).collect();
            Err(ManifestError::Invalid(shown.join("\n")))
        }
    }
}

/// Characters of a line that are shown on either side of a problem.
const AROUND: usize = 60;

/// `FILE:LINE:COLUMN: message`, then the line, or the part of it around the column, with a mark under the column.
fn show(path: &Path, text: &str, problem: &Problem) -> String {
    let Problem { line, column, message } = problem;
    let mut shown = format!("{}:{line}:{column}: {message}", printable(&path.to_string_lossy()));
    if let Some(source) = campaign::lines(text).nth(line.saturating_sub(1)) {
        let at = column.saturating_sub(1);
        let from = at.saturating_sub(AROUND);
        let part = |from: usize, count: usize| source.chars().skip(from).take(count).collect::<String>();
        let [before, after] = [part(from, at - from), part(at, AROUND)]
            .map(|part| printable(&part.replace('\t', " ")).into_owned());
        let dots = |cut: bool| if cut { "…" } else { "" };
        let (start, end) = (dots(from > 0), dots(source.chars().nth(at + AROUND).is_some()));
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        let indent = " ".repeat(start.chars().count() + before.chars().count());
        shown.push_str(&format!("\n {number} | {start}{before}{after}{end}\n {gutter} | {indent}^"));
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
        assert!(
            binary
                .to_string()
                .ends_with("c.yaml is not in UTF-8 (byte 6): a campaign is YAML text; save it as UTF-8")
        );
    }

    #[test]
    fn a_line_is_shown_as_it_is_counted_cut_and_without_what_commands_a_terminal() {
        let shown = |text: &str, line, column| {
            let problem = Problem { line, column, message: "wrong".into() };
            show(Path::new("c"), text, &problem)
        };
        assert_eq!(
            shown("a: b\rtoll: c is valid\r", 2, 7),
            "c:2:7: wrong\n 2 | toll: c is valid\n   |       ^"
        );
        assert_eq!(
            shown("\tk: \u{202e}x\u{1b}[2J y", 1, 6),
            "c:1:6: wrong\n 1 |  k: \\u{202e}x\\u{1b}[2J y\n   |             ^"
        );
        let long = shown(&format!("{}here{}", "a".repeat(1 << 19), "b".repeat(1 << 19)), 1, (1 << 19) + 1);
        assert!(
            long.len() < 300 && long.contains("…aaa") && long.contains("hereb") && long.contains("b…"),
            "{long}"
        );
        let mark = long.lines().last().expect("has a last line").find('^');
        assert_eq!(mark, long.lines().nth(1).and_then(|line| line.chars().position(|c| c == 'h')));
    }

    #[test]
    fn a_file_of_another_encoding_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("c.yaml");
        let units = "\u{feff}kind: Campain\r\n".encode_utf16();
        std::fs::write(&path, units.flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).expect("writes");
        let error = load(&path).expect_err("is no campaign").to_string();
        assert!(
            error.contains("c.yaml:1:7: kind: `Campain` is not known: write Campaign\n 1 | kind: Campain\n"),
            "{error}"
        );
    }

    #[test]
    fn a_problem_shows_its_line_and_column() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("c.yaml");
        std::fs::write(&path, "apiVersion: toll.dev/v1alpha1\nkind: Campaign\n").expect("writes");
        let error = load(&path).expect_err("is no campaign").to_string();
        assert!(error.contains("c.yaml:1:1: missing field `metadata`"), "{error}");
        assert!(error.contains("\n 1 | apiVersion"), "{error}");
    }
}
