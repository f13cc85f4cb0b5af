//! Rules in the words of JSON Schema, for editors: those that look at one value alone. What CEL compares, a schema can't.

use serde_json::{Map, Value, json};

use super::{BOUNDS, Rule, gates, object, table, wires};

/// Adds to the schema of a campaign what rules say of single values.
///
/// # Errors
/// Which path is not in the schema.
pub fn describe(root: &mut Value) -> Result<(), String> {
    let in_manifest = |path: &&&str| !path.starts_with("status");
    for bound in BOUNDS {
        for path in bound.at.iter().filter(in_manifest) {
            object(root, path)?.insert(bound.keyword.to_owned(), bound.limit.into());
        }
    }
    for rule in table::RULES.iter().chain(gates::RULES).chain(wires::RULES) {
        let Some(keywords) = keywords(rule) else { continue };
        for path in rule.at.iter().filter(in_manifest) {
            let schema = object(root, path)?;
            for (keyword, value) in &keywords {
                // Each of several rules of a kind holds.
                match schema.get(keyword) {
                    Some(known) if known != value => {
                        let all = schema.entry("allOf").or_insert_with(|| json!([]));
                        let all = all.as_array_mut().ok_or_else(|| format!("`{path}` has no list allOf"))?;
                        all.push(json!({(keyword.as_str()): value}));
                    }
                    _ => drop(schema.insert(keyword.clone(), value.clone())),
                }
            }
        }
    }
    // A cluster's object selects hosts; in a file it may be a lab alone.
    let hosts = json!([{"required": ["select"]}, {"required": ["lab"]}]);
    object(root, "spec.hosts")?.insert("anyOf".into(), hosts);
    let name = object(root, "metadata.name")?;
    name.insert("pattern".into(), "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$".into());
    Ok(())
}

/// Keywords that say what a rule says, if there are any.
fn keywords(rule: &Rule) -> Option<Map<String, Value>> {
    let text: String = rule.rule.split_whitespace().collect::<Vec<_>>().join(" ");
    let words = match &*text {
        "size(self) > 0" => json!({"minItems": 1}),
        "self.all(a, self.exists_one(b, b == a))" => json!({"uniqueItems": true}),
        text => {
            pattern(text).or_else(|| limits(text, "self")).or_else(|| field(text)).or_else(|| fields(text))?
        }
    };
    words.as_object().cloned()
}

/// `self.matches('PATTERN')`.
fn pattern(rule: &str) -> Option<Value> {
    let quoted = rule.strip_prefix("self.matches(")?.strip_suffix(')')?;
    let pattern = quoted.strip_prefix('r').unwrap_or(quoted).strip_prefix('\'')?.strip_suffix('\'')?;
    (!pattern.contains('\'')).then(|| json!({"pattern": pattern}))
}

/// `self >= 2 && self <= 16`, or one of the two.
fn limits(rule: &str, of: &str) -> Option<Value> {
    let mut found = Map::new();
    for part in rule.split(" && ") {
        let (relation, number) = part.strip_prefix(of)?.strip_prefix(' ')?.split_once(' ')?;
        let keyword = match relation {
            ">=" => "minimum",
            "<=" => "maximum",
            _ => return None,
        };
        let number: Value = serde_json::from_str(number).ok()?;
        found.insert(keyword.to_owned(), number.is_number().then_some(number)?);
    }
    Some(found.into())
}

/// Limits of a field that may be left out: `!has(self.a) || (self.a >= 1 && self.a <= 8)`.
fn field(rule: &str) -> Option<Value> {
    let (name, limited) = rule.strip_prefix("!has(self.")?.split_once(") || (")?;
    let limits = limits(limited.strip_suffix(')')?, &format!("self.{name}"))?;
    Some(json!({"properties": {(name): limits}}))
}

/// How many of some fields are there: `has(self.a) || has(self.b)`, `has(self.a) != has(self.b)`,
/// `[has(self.a), has(self.b)].filter(is, is).size() == 1` or `<= 1`.
fn fields(rule: &str) -> Option<Value> {
    let required = |text: &str, between: &str| -> Option<Vec<Value>> {
        let names = text.split(between).map(|part| part.trim().strip_prefix("has(self.")?.strip_suffix(')'));
        let names = names.map(|name| name.filter(|name| !name.contains(['.', '('])));
        names.map(|name| Some(json!({"required": [name?]}))).collect()
    };
    if let Some((list, count)) =
        rule.strip_prefix('[').and_then(|rest| rest.split_once("].filter(is, is).size() "))
    {
        let one_of = required(list, ",")?;
        return match count {
            "== 1" => Some(json!({"oneOf": one_of})),
            // None, or exactly one.
            "<= 1" => Some(json!({"if": {"anyOf": one_of}, "then": {"oneOf": one_of}})),
            _ => None,
        };
    }
    if let Some(one_of) = required(rule, " != ").filter(|fields| fields.len() == 2) {
        return Some(json!({"oneOf": one_of}));
    }
    Some(json!({"anyOf": required(rule, " || ")?}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_one_value_have_words_in_a_schema() {
        let said = |rule: &'static str| {
            let rule = Rule { at: &[], rule, message: "", expression: None, field: None };
            keywords(&rule).map(Value::from)
        };
        assert_eq!(said("self >= 2 && self <= 16"), Some(json!({"minimum": 2, "maximum": 16})));
        assert_eq!(said("self >= 0.0"), Some(json!({"minimum": 0.0})));
        let limits = json!({"properties": {"a": {"minimum": 1, "maximum": 8}}});
        assert_eq!(said("!has(self.a) || (self.a >= 1 && self.a <= 8)"), Some(limits));
        assert_eq!(said("size(self) > 0"), Some(json!({"minItems": 1})));
        assert_eq!(said(r"self.matches(r'^a\.b$')"), Some(json!({"pattern": r"^a\.b$"})));
        assert_eq!(said("has(self.a)"), Some(json!({"anyOf": [{"required": ["a"]}]})));
        let either = json!([{"required": ["a"]}, {"required": ["b"]}]);
        assert_eq!(said("has(self.a) || has(self.b)"), Some(json!({"anyOf": either})));
        assert_eq!(said("has(self.a) != has(self.b)"), Some(json!({"oneOf": either})));
        assert_eq!(
            said("[has(self.a), \n has(self.b)].filter(is, is).size() == 1"),
            Some(json!({"oneOf": either}))
        );
        for other in [
            "self == oldSelf",
            "self >= 2 && self < size(x)",
            "self.matches('a') || true",
            "has(self.a) || self.b > 1",
            "!has(self.a) || has(self.b)",
            "has(self.a.b)",
        ] {
            assert_eq!(said(other), None, "{other}");
        }
    }
}
