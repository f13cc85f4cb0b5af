//! From YAML text to a campaign, with line and column in every error. The only file that knows serde_yaml, so
//! that it can be replaced.
//!
//! A text goes through in this order, and nothing is built of one that is too large: its characters, its outline (size as
//! expanded, syntax, places), its scalars (serde_yaml), its shape (by the schema), its values (`validate`). All of it is linear in
//! what the limits allow. Characters and syntax end it at the first fault; all that is wrong after that is told at once.

mod encoding;
mod events;
mod limits;
mod outline;
#[cfg(test)]
mod planted;
mod problems;
mod scalars;
mod shape;
#[cfg(test)]
mod tests;
mod typed;

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde::de::DeserializeSeed;
use serde_json::Value;

pub use encoding::{EncodingError, decode};
use events::Place;
use outline::Outline;

use super::schema::Document;
use super::{Campaign, Problem, validate};
use crate::findings::Step;
use crate::findings::told::dotted;
use problems::Found;
use scalars::Scalars;
use shape::Shaped;

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
/// Every problem found, in order of place: one if the text is no YAML or no campaign's at all; of very many the first ones, and
/// the number of the others.
pub fn parse(text: &str) -> Result<Campaign, Vec<Problem>> {
    let start = Place { line: 1, column: 1 };
    let refused = |place: Place, message: &str| vec![Problem::new(place.line, place.column, message)];
    if text.len() > MAX_DOCUMENT {
        let message = format!("the document has {} bytes; at most {MAX_DOCUMENT} are taken", text.len());
        return Err(refused(start, &message));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    check_characters(text).map_err(|(place, message)| refused(place, &message))?;
    let mut outline = Outline::of(text).map_err(|fault| refused(fault.place, &explained(text, &fault)))?;
    if let Some((field, message)) = foreign(&outline) {
        return Err(refused(outline.place(&[field]), &message));
    }
    scalars(text, &mut outline).map_err(|problem| vec![problem])?;
    let mut shaped = shape::shape(&outline, &SCHEMA);
    shaped.problems.extend(std::mem::take(&mut outline.repeated));
    let document = typed::document(&mut shaped, &outline, &SCHEMA);
    let Shaped { mut problems, told, .. } = shaped;
    let Some(document) = document else { return Err(problems.shown()) };
    let (campaign, findings) = validate::validate(&document, told);
    problems.extend_with(findings.into_iter().map(|finding| Found {
        place: outline.place(&finding.path),
        path: dotted(&finding.path),
        message: finding.message,
    }));
    let problems = problems.shown();
    if problems.is_empty() { Ok(campaign) } else { Err(problems) }
}

/// The schema of a document, without references.
static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Document>().into()
});

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

/// Has the outline's scalars told apart.
fn scalars(text: &str, outline: &mut Outline) -> Result<(), Problem> {
    let document = serde_yaml::Deserializer::from_str(text).nth(outline.index);
    let Some(document) = document else { return Err(Problem::new(1, 1, "the document is empty")) };
    Scalars { outline, at: 0 }.deserialize(document).map_err(|error| problem(&error))
}

/// serde_yaml writes the place at the end of its text; here it has fields of its own.
fn problem(error: &serde_yaml::Error) -> Problem {
    let (line, column) = error.location().map_or((1, 1), |place| (place.line(), place.column()));
    let place = format!(" at line {line} column {column}");
    Problem::new(line, column, &error.to_string().replacen(&place, "", 1))
}
