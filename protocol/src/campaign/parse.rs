//! From YAML text to a campaign, with line and column in every error. The only file that knows serde_yaml, so
//! that it can be replaced.

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::schema::Document;
use super::{Campaign, Problem, Step, validate};

/// The longest document taken, in bytes.
pub const MAX_DOCUMENT: usize = 1 << 20;

/// Parses and validates a campaign.
///
/// # Errors
/// Every problem found: one if the text is not a campaign's shape, else all that validation finds.
pub fn parse(text: &str) -> Result<Campaign, Vec<Problem>> {
    if text.len() > MAX_DOCUMENT {
        let message = format!("the document has {} bytes; at most {MAX_DOCUMENT} are taken", text.len());
        return Err(vec![Problem { line: 1, column: 1, message }]);
    }
    let document = document(text).map_err(|problem| vec![problem])?;
    validate::validate(&document).map_err(|findings| {
        let problem = |finding: validate::Finding| {
            if finding.path.is_empty() {
                return Problem { line: 1, column: 1, message: finding.message };
            }
            let (line, column) = locate(text, &finding.path);
            Problem { line, column, message: format!("{}: {}", dotted(&finding.path), finding.message) }
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

/// Parses the shape alone.
fn document(text: &str) -> Result<Document, Problem> {
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let Some(first) = documents.next() else {
        return Err(Problem { line: 1, column: 1, message: "the document is empty".into() });
    };
    let document = Document::deserialize(first).map_err(|error| problem(&error))?;
    if documents.next().is_some() {
        let message = "a file holds one campaign: split the documents after `---` into files".into();
        return Err(Problem { line: 1, column: 1, message });
    }
    Ok(document)
}

/// serde_yaml writes the place at the end of its text; here it has fields of its own.
fn problem(error: &serde_yaml::Error) -> Problem {
    let text = error.to_string();
    let (line, column) = error.location().map_or((1, 1), |place| (place.line(), place.column()));
    let place = format!(" at line {line} column {column}");
    Problem { line, column, message: text.replacen(&place, "", 1) }
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

/// Line and column of the value at `path`, or of its nearest ancestor that exists. It walks the document again
/// and fails on purpose when it arrives: the error carries the place.
fn locate(text: &str, path: &[Step]) -> (usize, usize) {
    for length in (0..=path.len()).rev() {
        let Some(document) = serde_yaml::Deserializer::from_str(text).next() else { break };
        if let Err(error) = (Walk { path: &path[..length] }).deserialize(document)
            && let Some(place) = error.location().filter(|_| error.to_string().contains(ARRIVED))
        {
            return (place.line(), place.column());
        }
    }
    (1, 1)
}

const ARRIVED: &str = "arrived at the value";

struct Walk<'p> {
    path: &'p [Step],
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(ARRIVED)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Field(name), rest)) = self.path.split_first() else {
            return Err(de::Error::custom(ARRIVED));
        };
        while let Some(key) = map.next_key::<String>()? {
            if key == *name {
                map.next_value_seed(Walk { path: rest })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Step::Index(index), rest)) = self.path.split_first() else {
            return Err(de::Error::custom(ARRIVED));
        };
        for _ in 0..*index {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        if seq.next_element_seed(Walk { path: rest })?.is_some() {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
        }
        Ok(())
    }
}
