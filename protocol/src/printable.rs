//! Text from outside, made fit to be printed. What users, agents, guests and other programs wrote may hold characters that
//! command a terminal, begin a line of their own, turn the direction of writing or are not seen at all: each is shown as
//! an escape, `\u{1b}`. The one place for it.

use std::borrow::Cow;

/// `text` on one line, with every character that is not printable as an escape. What is printable already, such as
/// the outcome itself, is left as it is: a backslash stays a backslash.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' '..='~' => shown.push(c),
            c if is_ignorable(c) => shown.extend(c.escape_unicode()),
            // The standard library knows what Unicode calls printable. A mark that combines is escaped where nothing
            // is before it.
            c => shown.extend(['a', c].iter().collect::<String>().escape_debug().skip(1)),
        }
    }
    Cow::Owned(shown)
}

/// Letters and marks that are not seen (Unicode's Default_Ignorable_Code_Point, as far as they are no controls).
const fn is_ignorable(c: char) -> bool {
    matches!(
        c,
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}'
    )
}

/// The document `json` with its strings made printable. It is done in the text, so that no field of any message is left out.
pub fn json(json: &[u8]) -> Cow<'_, [u8]> {
    let plain = |byte: &u8| matches!(byte, b' '..=b'[' | b']'..=b'~' | b'\n' | b'\r' | b'\t');
    if json.iter().all(plain) {
        return Cow::Borrowed(json);
    }
    // What is not UTF-8 is no JSON: its parser says where.
    let Ok(mut rest) = std::str::from_utf8(json) else { return Cow::Borrowed(json) };
    let mut shown = String::with_capacity(rest.len());
    while let Some(at) = rest.find('\\') {
        push(&rest[..at], &mut shown);
        let written = escape(&rest[at..]);
        match serde_json::from_str(&format!("\"{written}\"")) {
            // Their escapes are JSON's own.
            Ok('"' | '\\') | Err(_) => shown.push_str(written),
            Ok(c) => shown.push_str(&printable(c.encode_utf8(&mut [0; 4])).replace('\\', "\\\\")),
        }
        rest = &rest[at + written.len()..];
    }
    push(rest, &mut shown);
    Cow::Owned(shown.into_bytes())
}

/// The document `json`, for a terminal: what is not printable in its strings is written as JSON's own escape, `\u202e`, so that
/// it stays the same document.
pub fn as_json(json: &str) -> Cow<'_, str> {
    let between = |c: char| matches!(c, '\n' | '\r' | '\t');
    let is_shown = |c: char| matches!(c, ' '..='~') || between(c);
    if json.chars().all(is_shown) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        // JSON has such characters in strings alone.
        if is_shown(c) || printable(c.encode_utf8(&mut [0; 4])).chars().eq([c]) {
            shown.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Cow::Owned(shown)
}

/// Appends a piece of JSON without escapes. Line breaks in it are between values: JSON allows none in a string.
fn push(piece: &str, shown: &mut String) {
    let between = ['\n', '\r', '\t'];
    for piece in piece.split_inclusive(between) {
        let body = piece.strip_suffix(between).unwrap_or(piece);
        shown.push_str(&printable(body).replace('\\', "\\\\"));
        shown.push_str(&piece[body.len()..]);
    }
}

/// The escape that `text` begins with (RFC 8259, 7): two units of UTF-16 where the first is half a character.
fn escape(text: &str) -> &str {
    let unit = |at| text.get(at..at + 6).filter(|unit| unit.starts_with("\\u"));
    let half = |unit: &str| {
        matches!(unit.as_bytes(), [_, _, b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', ..])
    };
    match (unit(0), unit(6)) {
        (Some(first), Some(_)) if half(first) => &text[..12],
        (Some(first), _) => first,
        // No character that stands alone is longer than one byte.
        (None, _) => text.get(..2).unwrap_or(text),
    }
}

/// A field of a log as it is written: the message itself, or `name=value`.
pub fn field(name: &str, value: &dyn std::fmt::Debug) -> String {
    let value = format!("{value:?}");
    let value = printable(&value);
    if name == "message" { value.into_owned() } else { format!("{name}={value}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_commands_a_terminal_or_is_not_seen_is_shown() {
        for (text, shown) in [
            ("a\u{1b}[31mx", "a\\u{1b}[31mx"),
            ("ok\rtoll: c is valid\n", "ok\\rtoll: c is valid\\n"),
            ("\u{9b}2J\0\u{7f}", "\\u{9b}2J\\0\\u{7f}"),
            ("a\u{202e}b\u{2066}c\u{200f}", "a\\u{202e}b\\u{2066}c\\u{200f}"),
            ("a\u{200b}\u{2028}\u{feff}\u{e0041}", "a\\u{200b}\\u{2028}\\u{feff}\\u{e0041}"),
            ("a\u{3164}\u{fe0f}\u{34f}", "a\\u{3164}\\u{fe0f}\\u{34f}"),
            ("\"it's\" C:\\x — 10 µs, café, 東京, नमस्ते", "\"it's\" C:\\x — 10 µs, café, 東京, नमस्ते"),
        ] {
            assert_eq!(printable(text), shown);
            assert_eq!(printable(shown), shown, "once is enough");
        }
    }

    #[test]
    fn a_field_of_a_log_begins_no_line() {
        let said = format_args!("gone: \u{1b}[2J\n2026-11-27 INFO all is well");
        assert_eq!(field("message", &said), "gone: \\u{1b}[2J\\n2026-11-27 INFO all is well");
        assert_eq!(field("agent", &"a\n\u{202e}"), "agent=\"a\\n\\u{202e}\"");
    }

    /// Every string made printable, one by one.
    fn by_hand(value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(printable(text).into_owned()),
            Value::Array(values) => Value::Array(values.iter().map(by_hand).collect()),
            Value::Object(fields) => Value::Object(
                fields.iter().map(|(name, value)| (printable(name).into_owned(), by_hand(value))).collect(),
            ),
            other => other.clone(),
        }
    }

    /// JSON with every character of every string as an escape.
    fn escaped(text: &str) -> String {
        let units =
            |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
        let (mut json, mut string) = (String::new(), false);
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => string = !string,
                '\\' => {
                    let kind = chars.next().expect("an escape has a kind");
                    json.extend(['\\', kind]);
                    json.extend(chars.by_ref().take(if kind == 'u' { 4 } else { 0 }));
                    continue;
                }
                c if string => {
                    let unit: String = units(c);
                    json.push_str(&unit);
                    continue;
                }
                _ => {}
            }
            json.push(c);
        }
        json
    }

    fn values() -> impl Strategy<Value = Value> {
        let text = || prop_oneof!["\\PC{0,8}", any::<String>(), "[\\x00-\\x7f\u{202e}\u{200b}]{0,8}"];
        let leaf = prop_oneof![
            text().prop_map(Value::String),
            any::<i64>().prop_map(Value::from),
            Just(Value::Null)
        ];
        leaf.prop_recursive(3, 16, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::vec((text(), inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_string_of_a_document_is_printable_and_nothing_else_is_changed(value in values()) {
            let compact = serde_json::to_string(&value).expect("is JSON");
            let pretty = serde_json::to_string_pretty(&value).expect("is JSON");
            for text in [&compact, &pretty, &escaped(&compact)] {
                let read: Value = serde_json::from_slice(&json(text.as_bytes())).expect("is JSON still");
                prop_assert_eq!(&read, &by_hand(&value));
            }
        }

        #[test]
        fn a_document_for_a_terminal_is_printable_and_the_same(value in values()) {
            for text in [serde_json::to_string(&value), serde_json::to_string_pretty(&value)] {
                let text = text.expect("is JSON");
                let shown = as_json(&text);
                let read: Value = serde_json::from_str(&shown).expect("is JSON still");
                prop_assert_eq!(&read, &value);
                // A mark that combines is escaped in any case, though it could stand where it does.
                prop_assert!(shown.lines().all(|line| printable(line) == line), "{}", shown);
            }
        }

        #[test]
        fn what_is_no_json_stays_none(text in "[\\x00-\\x7f\u{202e}]{0,20}", bytes: Vec<u8>) {
            for bytes in [text.as_bytes(), &bytes] {
                if serde_json::from_slice::<Value>(bytes).is_err() {
                    prop_assert!(serde_json::from_slice::<Value>(&json(bytes)).is_err());
                }
            }
        }
    }
}
