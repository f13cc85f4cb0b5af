//! From YAML text to a campaign, with line and column in every error. The only file that knows serde_yaml, so
//! that it can be replaced.
//!
//! A text goes through in this order, and nothing is built of one that is too large: its characters, its outline (size as
//! expanded, syntax, places), its shape (serde_yaml), its values (`validate`). All of it is linear in what the limits allow.

mod encoding;
mod events;
mod outline;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use encoding::{EncodingError, decode};
use events::Place;
use outline::Outline;

use super::schema::Document;
use super::{Campaign, Problem, validate};
use crate::findings::{Finding, Step};

/// The longest document taken, in bytes: as written, and its values with every alias written out.
pub const MAX_DOCUMENT: usize = 1 << 20;
/// Values that a document may have with every alias written out, keys among them. The largest campaign that is valid has
/// some ten thousand.
pub const MAX_NODES: usize = 1 << 16;
/// Levels of lists and mappings in each other.
pub const MAX_DEPTH: usize = 64;
const API_VERSION: &str = "toll.dev/v1alpha1";
const KIND: &str = "Campaign";
/// Lines that may begin as directives (`%YAML 1.1`): libyaml compares each with all others.
const MAX_DIRECTIVES: usize = 8;

/// Parses and validates a campaign.
///
/// # Errors
/// Every problem found: one if the text is not a campaign's shape, else all that validation finds.
pub fn parse(text: &str) -> Result<Campaign, Vec<Problem>> {
    let start = Place { line: 1, column: 1 };
    let refused = |place: Place, message: &str| vec![Problem::new(place.line, place.column, message)];
    if text.len() > MAX_DOCUMENT {
        let message = format!("the document has {} bytes; at most {MAX_DOCUMENT} are taken", text.len());
        return Err(refused(start, &message));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    check_characters(text).map_err(|(place, message)| refused(place, &message))?;
    let outline = Outline::of(text).map_err(|fault| refused(fault.place, &explained(text, &fault)))?;
    if let Some((field, message)) = foreign(&outline) {
        return Err(refused(outline.place(&[field]), &message));
    }
    let document = document(text, outline.index).map_err(|problem| vec![problem])?;
    validate::validate(&document).map_err(|findings| {
        let problem = |finding: Finding| {
            let place = outline.place(&finding.path);
            let path = dotted(&finding.path);
            let message =
                if path.is_empty() { finding.message } else { format!("{path}: {}", finding.message) };
            Problem::new(place.line, place.column, &message)
        };
        findings.into_iter().map(problem).collect()
    })
}

/// Writes `value` as a YAML document, for people.
///
/// # Errors
/// Why `value` is nothing that YAML can say.
pub fn to_yaml<T: Serialize>(value: &T) -> Result<String, String> {
    serde_yaml::to_string(value).map_err(|error| error.to_string())
}

/// The lines of a text as YAML counts them (1.1, 4.2): places in errors are of these.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text.strip_prefix('\u{feff}').unwrap_or(text));
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(is_break) else { return rest.take() };
        let after = &text[end..];
        let length =
            if after.starts_with("\r\n") { 2 } else { after.chars().next().map_or(0, char::len_utf8) };
        rest = Some(&after[length..]);
        Some(&text[..end])
    })
}

const fn is_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Refuses what libyaml would refuse without a place, and what it would be slow with.
fn check_characters(text: &str) -> Result<(), (Place, String)> {
    // As YAML 1.1, 4.1.1 has it.
    let allowed = |c: char| {
        matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..)
            && c != '\u{feff}'
    };
    let mut directives = 0;
    for (index, line) in lines(text).enumerate() {
        let place = |column| Place { line: index + 1, column };
        if let Some((at, c)) = line.chars().enumerate().find(|(_, c)| !allowed(*c)) {
            let message = match c {
                '\0' => {
                    "a NUL byte stands here: this is no text file, or one in UTF-16; save it as UTF-8".into()
                }
                '\u{feff}' => "a byte order mark stands inside of the text: remove it".into(),
                c => format!("the character U+{:04X} is not allowed in YAML: remove it", u32::from(c)),
            };
            return Err((place(at + 1), message));
        }
        directives += usize::from(line.starts_with('%'));
        if directives > MAX_DIRECTIVES {
            let message =
                format!("more than {MAX_DIRECTIVES} lines begin with `%`: a campaign needs no directives");
            return Err((place(1), message));
        }
    }
    Ok(())
}

/// The words for a fault, with a hint where libyaml's own give none.
fn explained(text: &str, fault: &outline::Fault) -> String {
    let Place { line, column } = fault.place;
    let tab = lines(text).nth(line - 1).and_then(|line| line.chars().nth(column - 1)) == Some('\t');
    if tab {
        format!("{}: YAML is indented with spaces, not tabs", fault.message)
    } else {
        fault.message.clone()
    }
}

/// What a document is that is no campaign, and the field that says so. Its other fields would all be unknown.
fn foreign(outline: &Outline) -> Option<(Step, String)> {
    let kind = outline.scalar(&[Step::Field("kind")]);
    if kind == Some("List")
        && let Some(count) = outline.entries(&[Step::Field("items")])
    {
        let message = format!(
            "a `List` of {count} objects, as kubectl writes it: write one campaign to a file: `kubectl get campaign NAME -o yaml`"
        );
        return Some((Step::Field("kind"), message));
    }
    if let Some(kind) = kind.filter(|kind| *kind != KIND) {
        return Some((Step::Field("kind"), format!("kind: `{kind}` is not known: write {KIND}")));
    }
    let version = outline.scalar(&[Step::Field("apiVersion")]).filter(|version| *version != API_VERSION)?;
    Some((Step::Field("apiVersion"), format!("apiVersion: `{version}` is not known: write {API_VERSION}")))
}

/// Parses the shape alone.
fn document(text: &str, index: usize) -> Result<Document, Problem> {
    let document = serde_yaml::Deserializer::from_str(text).nth(index);
    let Some(document) = document else { return Err(Problem::new(1, 1, "the document is empty")) };
    Document::deserialize(document).map_err(|error| problem(&error))
}

/// serde_yaml writes the place at the end of its text; here it has fields of its own.
fn problem(error: &serde_yaml::Error) -> Problem {
    let (line, column) = error.location().map_or((1, 1), |place| (place.line(), place.column()));
    let place = format!(" at line {line} column {column}");
    Problem::new(line, column, &in_words_of_yaml(&error.to_string().replacen(&place, "", 1)))
}

/// serde names types of Rust, and ways of writing them that nobody needs here.
fn in_words_of_yaml(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let expected = match expected {
        "a YAML tag starting with '!'" | "field identifier" => "a word",
        "a sequence" => "a list",
        "f64" => "a number",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" => "a whole number from 0 to 9223372036854775807",
        other if other.starts_with("struct ") => "a mapping, such as `{name: value}`",
        other => other,
    };
    let found = found
        .replace("invalid type: unit value", "invalid type: nothing")
        .replace("type: sequence", "type: list");
    format!("{found}, expected {expected}")
}

fn dotted(path: &[Step]) -> String {
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
