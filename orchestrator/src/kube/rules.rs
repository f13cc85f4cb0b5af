//! What the schema of a `Campaign` says beyond its shape: bounds, and CEL rules (`x-kubernetes-validations`) for what
//! `toll validate` refuses, in its words. So a bad object is refused by `kubectl apply`, not hours later.
//!
//! What the schema itself says the limits of (`protocol/src/campaign/limits.rs`, the tables of figures and relations) has its rules
//! made of that, in `made`, `gates` and `workloads`. By hand are those that look at several values at once.
//!
//! CEL's cost is estimated from the bounds, so everything that a rule looks at has one. What CEL can't say cheaply is
//! left to the service, which refuses the object with the condition `Accepted`: parts of a nanosecond or a byte, and
//! quantities that no 64 bits hold.

mod describe;
mod gates;
mod made;
mod table;
mod wires;
mod workloads;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use serde_json::{Map, Value, json};

pub use describe::describe;
use made::Made;
use table::{BOUNDS, RULES};

/// A limit on the values at a path.
pub(super) struct Bound {
    /// Where: `spec.arms[].name`; `{}` is a map's values, the empty path the whole object.
    pub at: &'static [&'static str],
    /// `maxItems`, `maxLength` or `maxProperties`.
    pub keyword: &'static str,
    /// The limit.
    pub limit: u64,
}

/// A CEL rule that is written by hand.
pub(super) struct Rule {
    /// Where, as in [`Bound`].
    pub at: &'static [&'static str],
    /// What must hold, `self` being the value there.
    pub rule: &'static str,
    /// What to do about it.
    pub message: &'static str,
    /// The message with what was written in it; `message` stands in if it can't be evaluated.
    pub expression: Option<&'static str>,
    /// The field that is wrong, relative to `at`.
    pub field: Option<&'static str>,
}

/// Makes a derived schema one that a cluster takes, with every bound and rule.
///
/// # Errors
/// Which path is not in the schema.
pub(super) fn apply(schema: &mut JSONSchemaProps) -> Result<(), String> {
    let mut root = serde_json::to_value(&*schema).map_err(|error| error.to_string())?;
    clean(&mut root);
    let made = Made::of_spec();
    for made::Bound { at, keyword, limit } in made.bounds {
        object(&mut root, &at)?.insert(keyword.to_owned(), limit.into());
    }
    for bound in BOUNDS {
        for path in bound.at {
            object(&mut root, path)?.insert(bound.keyword.to_owned(), bound.limit.into());
        }
    }
    for rule in RULES.iter().chain(wires::RULES) {
        for path in rule.at {
            add(&mut root, path, (rule.rule, rule.message), rule.expression, rule.field)?;
        }
    }
    for made::Rule { at, rule, message, expression, field } in &made.rules {
        add(&mut root, at, (rule, message), expression.as_deref(), *field)?;
    }
    // Lists whose entries have a name: server-side apply merges them by it, and a name that stands twice is named.
    for (path, key) in [("spec.arms", "name"), ("spec.workloads", "name"), ("status.conditions", "type")] {
        let list = object(&mut root, path)?;
        list.insert("x-kubernetes-list-type".into(), "map".into());
        list.insert("x-kubernetes-list-map-keys".into(), json!([key]));
    }
    *schema = serde_json::from_value(root).map_err(|error| error.to_string())?;
    Ok(())
}

/// Adds a rule and its message to those at `path`.
fn add(
    root: &mut Value,
    path: &str,
    (rule, message): (&str, &str),
    expression: Option<&str>,
    field: Option<&str>,
) -> Result<(), String> {
    let mut entry =
        Map::from_iter([("rule".to_owned(), rule.into()), ("message".to_owned(), message.into())]);
    entry.extend(expression.map(|text| ("messageExpression".to_owned(), text.into())));
    entry.extend(field.map(|text| ("fieldPath".to_owned(), text.into())));
    let rules = object(root, path)?.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    let rules = rules.as_array_mut().ok_or_else(|| format!("the rules of `{path}` are no list"))?;
    rules.push(Value::Object(entry));
    Ok(())
}

/// Takes out what a derived schema has and an API server doesn't want: formats that OpenAPI has not, `nullable`
/// (absent is absent), defaults (the object stays as it was written) and `additionalProperties: false`, which a
/// structural schema implies.
fn clean(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("nullable");
            map.remove("default");
            if map.get("additionalProperties") == Some(&Value::Bool(false)) {
                map.remove("additionalProperties");
            }
            match map.get("format").and_then(Value::as_str) {
                Some("uint32") => {
                    map.insert("format".into(), "int64".into());
                    map.entry("maximum").or_insert(u32::MAX.into());
                }
                Some("uint64") => {
                    map.insert("format".into(), "int64".into());
                }
                Some("double") => {
                    map.remove("format");
                }
                _ => {}
            }
            map.values_mut().for_each(clean);
        }
        Value::Array(list) => list.iter_mut().for_each(clean),
        _ => {}
    }
}

/// The schema at `path`.
fn object<'v>(root: &'v mut Value, path: &str) -> Result<&'v mut Map<String, Value>, String> {
    let missing = || format!("the schema of Campaign has no `{path}`");
    let mut at = root;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        let name = step.trim_end_matches("[]").trim_end_matches("{}");
        at = at.get_mut("properties").and_then(|properties| properties.get_mut(name)).ok_or_else(missing)?;
        if step.ends_with("[]") {
            at = at.get_mut("items").ok_or_else(missing)?;
        } else if step.ends_with("{}") {
            at = at.get_mut("additionalProperties").ok_or_else(missing)?;
        }
    }
    at.as_object_mut().ok_or_else(missing)
}
