//! Labels that campaigns select hosts by, in the syntax of Kubernetes labels, so that a node's can be passed on.

use std::collections::BTreeMap;
use std::str::FromStr;

use toll_protocol::bounded::MOST_LABELS;

/// Longest name or value.
const LONGEST: usize = 63;
/// Longest prefix: a DNS subdomain (RFC 1123).
const LONGEST_PREFIX: usize = 253;

/// Why a text is no label.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LabelError {
    /// There is no `=`.
    #[error("`{0}` is no label: write KEY=VALUE, such as `rack=b4` or `toll.dev/nic=25g`")]
    NoValue(String),
    /// The key is none.
    #[error(
        "`{0}` is no key of a label: 1 to 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends; a \
         prefix of lower-case letters, digits, `-` and `.` may stand before a `/`"
    )]
    Key(String),
    /// The value is none.
    #[error(
        "`{0}` is no value of a label: at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends"
    )]
    Value(String),
    /// There are more than an orchestrator takes.
    #[error("{0} labels are given; an agent has at most {MOST_LABELS}")]
    TooMany(usize),
    /// Two labels have the same key.
    #[error("the label `{0}` is given twice")]
    Twice(String),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    key: String,
    value: String,
}

impl FromStr for Label {
    type Err = LabelError;
    fn from_str(text: &str) -> Result<Self, LabelError> {
        let (key, value) = text.split_once('=').ok_or_else(|| LabelError::NoValue(text.to_owned()))?;
        let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
        if !is_name(name) || !prefix.is_none_or(is_subdomain) {
            return Err(LabelError::Key(key.to_owned()));
        }
        if !value.is_empty() && !is_name(value) {
            return Err(LabelError::Value(value.to_owned()));
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

/// The labels by their keys.
///
/// # Errors
/// [`LabelError::Twice`], [`LabelError::TooMany`].
pub fn by_key(labels: Vec<Label>) -> Result<BTreeMap<String, String>, LabelError> {
    if labels.len() > MOST_LABELS {
        return Err(LabelError::TooMany(labels.len()));
    }
    let mut all = BTreeMap::new();
    for Label { key, value } in labels {
        if all.contains_key(&key) {
            return Err(LabelError::Twice(key));
        }
        all.insert(key, value);
    }
    Ok(all)
}

fn ends_with_alphanumerics(text: &str) -> bool {
    let (first, last) = (text.bytes().next(), text.bytes().last());
    [first, last].into_iter().all(|byte| byte.is_some_and(|byte| byte.is_ascii_alphanumeric()))
}

fn is_name(text: &str) -> bool {
    text.len() <= LONGEST
        && ends_with_alphanumerics(text)
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        ends_with_alphanumerics(part)
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    text.len() <= LONGEST_PREFIX && text.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_kubernetes_are_labels() {
        for good in [
            "rack=b4",
            "kubernetes.io/hostname=node-1",
            "a=",
            "A.b_c-9=x.Y_z",
            "toll.dev/nic=25g",
            "node-role.kubernetes.io/worker=",
        ] {
            let label: Label = good.parse().expect(good);
            assert_eq!(format!("{}={}", label.key, label.value), good);
        }
    }

    #[test]
    fn what_is_no_label_is_refused_for_its_reason() {
        let refused = |text: &str| text.parse::<Label>().expect_err(text);
        assert_eq!(refused("rack"), LabelError::NoValue("rack".to_owned()));
        for key in ["", "-a", "a-", "a b", "/a", "a/", "A.example/a", "a/b/c", "a..b/c", "ä", &"k".repeat(64)]
        {
            assert_eq!(refused(&format!("{key}=v")), LabelError::Key(key.to_owned()));
        }
        for value in ["-", "a b", "a=b", "v.", &"v".repeat(64)] {
            assert_eq!(refused(&format!("key={value}")), LabelError::Value(value.to_owned()));
        }
    }

    #[test]
    fn a_key_has_one_value() {
        let labels = |texts: &[&str]| texts.iter().map(|text| text.parse().expect(text)).collect();
        let all = by_key(labels(&["b=2", "a=1"])).expect("two keys");
        assert_eq!(all.into_iter().collect::<Vec<_>>(), [("a".into(), "1".into()), ("b".into(), "2".into())]);
        assert_eq!(by_key(labels(&["a=1", "a=1"])), Err(LabelError::Twice("a".to_owned())));
        let many = |count| by_key((0..count).map(|n| format!("k{n}=v").parse().expect("is one")).collect());
        assert!(many(MOST_LABELS).is_ok());
        assert_eq!(many(MOST_LABELS + 1), Err(LabelError::TooMany(MOST_LABELS + 1)));
    }
}
