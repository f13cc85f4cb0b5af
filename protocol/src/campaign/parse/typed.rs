//! From what has the shape of the schema to its types. Some know more of their texts than a schema says, and refuse one: that is
//! told where it stands, and the document is read without it.

use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::super::schema::Document;
use super::outline::Outline;
use super::problems::{Found, MAX_PROBLEMS};
use super::shape::{Shaped, stand_in};

/// Reads the document; what is wrong with it is told. It is nothing if no part of it can be read.
pub(super) fn document(shaped: &mut Shaped, outline: &Outline, schema: &Value) -> Option<Document> {
    for _ in 0..=MAX_PROBLEMS {
        match serde_path_to_error::deserialize(&shaped.document) {
            Ok(document) => return Some(document),
            Err(error) => {
                let refused = Refused::at(error.path(), outline);
                let message = error.inner().to_string();
                let found =
                    Found { place: outline.place_of(refused.node), path: refused.path.clone(), message };
                shaped.problems.extend_with(std::iter::once(found));
                shaped.told.value(&refused.path);
                if !refused.leave_out(&mut shaped.document, schema) {
                    return None;
                }
            }
        }
    }
    None
}

/// What a type has refused.
struct Refused {
    node: usize,
    path: String,
    steps: Vec<Step>,
}

enum Step {
    Field(String),
    Index(usize),
}

impl Refused {
    fn at(path: &Path, outline: &Outline) -> Self {
        let mut refused = Self { node: 0, path: String::new(), steps: Vec::new() };
        for segment in path {
            let (step, text, node) = match segment {
                Segment::Seq { index } => {
                    (Step::Index(*index), format!("[{index}]"), outline.entry(refused.node, *index))
                }
                Segment::Map { key } => {
                    let text = if refused.path.is_empty() { key.clone() } else { format!(".{key}") };
                    (Step::Field(key.clone()), text, outline.field(refused.node, key))
                }
                Segment::Enum { .. } | Segment::Unknown => break,
            };
            refused.steps.push(step);
            refused.path.push_str(&text);
            refused.node = node.unwrap_or(refused.node);
        }
        refused
    }

    /// Takes what was refused out of the document, or has something that means nothing in its place; whether that is possible.
    fn leave_out(&self, document: &mut Value, schema: &Value) -> bool {
        let Some((last, way)) = self.steps.split_last() else { return false };
        let (mut at, mut schema) = (document, schema);
        for step in way {
            let next = match step {
                Step::Field(name) => (at.get_mut(name), &schema["properties"][name]),
                Step::Index(index) => (at.get_mut(index), &schema["items"]),
            };
            let Some(value) = next.0 else { return false };
            (at, schema) = (value, next.1);
        }
        match last {
            Step::Field(name) => {
                let Some(fields) = at.as_object_mut() else { return false };
                let required =
                    schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
                let before = fields.remove(name);
                if required {
                    let value = stand_in(&schema["properties"][name]);
                    let changed = before.as_ref() != Some(&value);
                    fields.insert(name.clone(), value);
                    return changed;
                }
                before.is_some()
            }
            Step::Index(index) => {
                let value = stand_in(&schema["items"]);
                at.get_mut(index).is_some_and(|entry| std::mem::replace(entry, value.clone()) != value)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn what_only_a_type_refuses_is_told_where_it_stands() {
        let text = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: marked}
spec:
  hosts: {select: {}}
  arms: [{name: native, native: {}}]
  workloads:
    - {name: one, stream: {dscp: af14, flows: 0}}
    - {name: two, stream: {dscp: ef}}
    - {name: three, stream: {dscp: 64}}
  blocks: 0
";
        let found = parse(text).expect_err("has no such code points");
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(
            found[0].starts_with("line 8, column 34: spec.workloads[0].stream.dscp: `af14` is no code point")
        );
        assert!(found[1].starts_with("line 8, column 47: spec.workloads[0].stream.flows: 0 is out of range"));
        assert!(
            found[2].starts_with("line 10, column 36: spec.workloads[2].stream.dscp: `64` is no code point")
        );
        assert!(found[3].starts_with("line 11, column 11: spec.blocks: 0 is out of range"), "{found:#?}");
    }
}
