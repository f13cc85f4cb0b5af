//! What is refused in the words of JSON Schema, for editors: the limits that the schema of a campaign carries
//! (`protocol/src/campaign/limits.rs`) as keywords that every validator knows, and those rules that count fields. What CEL compares
//! beyond that, a schema can't.

use serde_json::{Map, Value, json};
use toll_protocol::campaign::limits;
use toll_protocol::units::{QUANTITY, Quantity};

use super::{BOUNDS, RULES, gates, made, object, wires, workloads};

/// What a name is. JSON Schema's regular expressions are ECMA's, which know this as CEL's do.
const NAME: &str = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$";

/// Says in the schema of a campaign's document, whose parts stand in it, what is refused.
///
/// # Errors
/// Which path is not in the schema.
pub fn describe(root: &mut Value) -> Result<(), String> {
    for bound in BOUNDS {
        for path in bound.at.iter().filter(|path| path.starts_with("spec")) {
            object(root, path)?.insert(bound.keyword.to_owned(), bound.limit.into());
        }
    }
    let by_hand = RULES.iter().chain(wires::RULES);
    let by_hand = by_hand.flat_map(|rule| rule.at.iter().map(|at| (*at, rule.rule)));
    let mut made = workloads::rules(&root["properties"]["spec"]);
    made.extend(gates::rules());
    for (at, rule) in by_hand.chain(made.iter().map(|rule| (&*rule.at, &*rule.rule))) {
        // A cluster's object selects hosts; in a file it may be a lab alone.
        let rule = if (at, rule) == HOSTS { "has(self.select) || has(self.lab)" } else { rule };
        let said = if rule == "self >= 0.0" { Some(json!({"minimum": 0})) } else { fields(rule) };
        if let Some(keywords) = said.as_ref().and_then(Value::as_object) {
            object(root, at)?.extend(keywords.clone());
        }
    }
    walk(root);
    Ok(())
}

/// The rule on the hosts that are selected.
const HOSTS: (&str, &str) = ("spec.hosts", "has(self.select)");

fn walk(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            limit(map);
            map.retain(|keyword, _| !keyword.starts_with("x-"));
            map.values_mut().for_each(walk);
        }
        Value::Array(list) => list.iter_mut().for_each(walk),
        _ => {}
    }
}

/// Says what the keywords of Toll's own say.
fn limit(schema: &mut Map<String, Value>) {
    if schema.get(limits::NAME) == Some(&Value::Bool(true)) {
        schema.insert("pattern".into(), NAME.into());
        schema.insert("maxLength".into(), limits::LONGEST_NAME.into());
    }
    if let Some(quantity) = schema.get(QUANTITY).and_then(Value::as_str).and_then(Quantity::named) {
        let examples = quantity.example().split('`').skip(1).step_by(2);
        schema.insert("examples".into(), examples.collect());
        if quantity == Quantity::Percent {
            // A number whose exponent is beyond what a figure can be is none.
            schema.insert("pattern".into(), made::PERCENT.into());
        }
    } else if let Some(range) = schema.get(limits::RANGE).cloned() {
        schema.insert("minimum".into(), range["start"].clone());
        schema.insert("maximum".into(), range["end"].clone());
    }
    if schema.contains_key(limits::NOT_EMPTY) {
        schema.insert("minItems".into(), 1.into());
    }
    if schema.contains_key(limits::DISTINCT) {
        schema.insert("uniqueItems".into(), true.into());
    }
    if let Some(of) = schema.get(limits::EXACTLY_ONE) {
        let some = of["of"].as_array().filter(|names| !names.is_empty()).cloned();
        let all = || schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
        let names = some.unwrap_or_else(|| all().map(|name| name.as_str().into()).collect());
        let one_of: Vec<Value> = names.iter().map(|name| json!({"required": [name]})).collect();
        schema.insert("oneOf".into(), one_of.into());
    }
}

/// What a rule says that counts fields: `has(self.a) || has(self.b)`, or `[has(self.a), has(self.b)].filter(is, is).size() <= 1`.
fn fields(rule: &str) -> Option<Value> {
    let required = |text: &str, between: &str| -> Option<Vec<Value>> {
        let names = text.split(between).map(|part| part.trim().strip_prefix("has(self.")?.strip_suffix(')'));
        let names = names.map(|name| name.filter(|name| !name.contains(['.', '('])));
        names.map(|name| Some(json!({"required": [name?]}))).collect()
    };
    match rule.strip_prefix('[').and_then(|rest| rest.split_once("].filter(is, is).size() ")) {
        // None, or exactly one.
        Some((list, "<= 1")) => {
            let fields = required(list, ",")?;
            Some(json!({"if": {"anyOf": fields}, "then": {"oneOf": fields}}))
        }
        Some(_) => None,
        None => Some(json!({"anyOf": required(rule, " || ")?})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_count_fields_have_words_in_a_schema() {
        let either = json!([{"required": ["a"]}, {"required": ["b"]}]);
        assert_eq!(fields("has(self.a)"), Some(json!({"anyOf": [{"required": ["a"]}]})));
        assert_eq!(fields("has(self.a) || has(self.b)"), Some(json!({"anyOf": either})));
        assert_eq!(
            fields("[has(self.a), \n has(self.b)].filter(is, is).size() <= 1"),
            Some(json!({"if": {"anyOf": either}, "then": {"oneOf": either}}))
        );
        for other in [
            "self == oldSelf",
            "has(self.a) || self.b > 1",
            "!has(self.a) || has(self.b)",
            "has(self.a.b)",
            "size([has(self.a)]) == 1",
        ] {
            assert_eq!(fields(other), None, "{other}");
        }
    }

    #[test]
    fn limits_become_keywords_that_every_validator_knows() {
        let mut schema = json!({"properties": {
            "name": {"type": "string", (limits::NAME): true},
            "blocks": {"type": "integer", (limits::RANGE): {"start": 1, "end": 1000}},
            "rate": {"type": "string", (QUANTITY): Quantity::BitRate.name(), (limits::RANGE): {"start": "1bit", "end": "1Gbit"}},
            "list": {"type": "array", (limits::NOT_EMPTY): "is empty", (limits::DISTINCT): "peer"},
            "port": {"properties": {"tap": {}, "nat": {}}, (limits::EXACTLY_ONE): {"of": [], "say": "one"}},
        }});
        walk(&mut schema);
        let examples = Quantity::BitRate.example().split('`').skip(1).step_by(2).collect::<Vec<_>>();
        assert_eq!(
            schema["properties"],
            json!({
                "name": {"type": "string", "pattern": NAME, "maxLength": 63},
                "blocks": {"type": "integer", "minimum": 1, "maximum": 1000},
                "rate": {"type": "string", "examples": examples},
                "list": {"type": "array", "minItems": 1, "uniqueItems": true},
                "port": {
                    "properties": {"tap": {}, "nat": {}},
                    "oneOf": [{"required": ["nat"]}, {"required": ["tap"]}],
                },
            })
        );
        assert!(!examples.is_empty());
    }
}
