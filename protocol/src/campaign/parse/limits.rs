//! Whether what was read is within the limits that its schema carries.

use std::collections::HashSet;

use serde_json::Value;

use super::super::limits::{
    DISTINCT, EXACTLY_ONE, NAME, NAMED, NO_NAME, NOT_EMPTY, RANGE, is_name, out_of_range,
};
use crate::units::{QUANTITY, Quantity};

/// What is wrong with a scalar.
pub(super) fn scalar(schema: &Value, read: &Value) -> Option<String> {
    if schema[NAME] == true
        && let Some(text) = read.as_str().filter(|text| !is_name(text))
    {
        return Some(format!("`{text}` {NO_NAME}"));
    }
    let (start, end) = (&schema[RANGE]["start"], &schema[RANGE]["end"]);
    let number = |value: &Value| -> Option<(f64, String)> {
        match (schema[QUANTITY].as_str().and_then(Quantity::named), value) {
            (Some(quantity), Value::String(text)) => quantity.read(text).ok(),
            (_, Value::Number(number)) => Some((number.as_f64()?, number.to_string())),
            _ => None,
        }
    };
    let ((least, start), (most, end)) = (number(start)?, number(end)?);
    let (number, shown) = number(read)?;
    (!(least..=most).contains(&number)).then(|| format!("{shown} {}", out_of_range(&start, &end)))
}

/// What is wrong with a list of `count` entries as a whole, and whether they are not looked at.
pub(super) fn list(schema: &Value, count: usize) -> Option<(String, bool)> {
    let most = schema["maxItems"].as_u64().and_then(|most| usize::try_from(most).ok());
    if let Some(most) = most.filter(|most| count > *most) {
        return Some((format!("has {count} entries; at most {most} are taken"), true));
    }
    schema[NOT_EMPTY].as_str().filter(|_| count == 0).map(|words| (words.to_owned(), false))
}

/// What is wrong with each entry of a list beside the others, and the field of it that is; `told` says of which one something
/// is wrong anyway.
pub(super) fn entries(
    schema: &Value,
    entries: &[Value],
    told: impl Fn(usize) -> bool,
) -> Vec<(usize, Option<&'static str>, String)> {
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    for (index, entry) in entries.iter().enumerate() {
        if told(index) {
            continue;
        }
        if schema[DISTINCT].is_string()
            && let Some(word) = entry.as_str().filter(|word| !seen.insert(*word))
        {
            found.push((index, None, format!("`{word}` is listed twice")));
        }
        if let Some(what) = schema[NAMED].as_str()
            && let Some(name) = entry["name"].as_str().filter(|name| !seen.insert(*name))
        {
            let message = format!("two {what}s are named `{name}`: give each a name of its own");
            found.push((index, Some("name"), message));
        }
    }
    found
}

/// What is wrong with a mapping in which other fields than exactly one of some are set. Where something in it is told to be wrong,
/// that may be the one which is missing.
pub(super) fn mapping(schema: &Value, read: &Value, is_told: bool) -> Option<String> {
    let words = schema[EXACTLY_ONE]["say"].as_str()?;
    let of = schema[EXACTLY_ONE]["of"].as_array();
    let among = |name: &str| of.is_none_or(|of| of.is_empty() || of.iter().any(|field| field == name));
    let set = read.as_object()?.iter().filter(|(name, value)| among(name) && !value.is_null()).count();
    (set > 1 || set == 0 && !is_told).then(|| words.to_owned())
}
