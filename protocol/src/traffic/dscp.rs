//! Code points of differentiated services.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A differentiated services code point (RFC 2474, 3): the upper six bits of an IPv4 header's second byte, or of an IPv6
/// header's traffic class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dscp(u8);

/// Names of code points: RFC 2474 (class selectors), RFC 2597 (assured forwarding), RFC 3246 (expedited forwarding),
/// RFC 5865 (voice admit) and RFC 8622 (lower effort).
const NAMES: [(&str, u8); 23] = [
    ("cs0", 0),
    ("le", 1),
    ("cs1", 8),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("cs2", 16),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("cs3", 24),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("cs4", 32),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("cs5", 40),
    ("voice-admit", 44),
    ("ef", 46),
    ("cs6", 48),
    ("cs7", 56),
];
const MAX: u8 = 63;

impl Dscp {
    /// The byte of an IP header that has it, with the two bits of ECN (RFC 3168) clear.
    pub const fn traffic_class(self) -> u8 {
        self.0 << 2
    }
}

impl FromStr for Dscp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = NAMES.into_iter().find(|(name, _)| *name == text).map(|(_, point)| point);
        let number = || text.parse().ok().filter(|point| *point <= MAX);
        named.or_else(number).map(Self).ok_or_else(|| {
            format!("`{text}` is no code point: write a name such as af11, ef, cs1 or le, or a number from 0 to {MAX}")
        })
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.into_iter().find(|(_, point)| *point == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Dscp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A name, or a number without quotes.
struct Visitor;

impl de::Visitor<'_> for Visitor {
    type Value = Dscp;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a code point: a name such as af11, or a number from 0 to {MAX}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Dscp, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Dscp, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Dscp, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for Dscp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Dscp {
    fn schema_name() -> Cow<'static, str> {
        "Dscp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = NAMES.map(|(name, _)| name).join("|");
        json_schema!({
            "description": "Code point of differentiated services (RFC 2474): a name such as af11, ef, cs1, le, or \"0\" to \"63\".",
            "type": "string",
            "pattern": format!("^({names}|[0-9]|[1-5][0-9]|6[0-3])$"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_code_points() {
        let point = |text: &str| text.parse::<Dscp>().map(Dscp::traffic_class);
        assert_eq!((point("af11"), point("10"), point("ef")), (Ok(40), Ok(40), Ok(184)));
        assert_eq!(point("63"), Ok(252));
        for other in ["64", "-1", "af14", "AF11", "", "1.5"] {
            assert!(point(other).is_err(), "{other}");
        }
        assert_eq!("10".parse::<Dscp>().expect("a number").to_string(), "af11");
        assert_eq!("11".parse::<Dscp>().expect("a number").to_string(), "11");
        assert!(NAMES.windows(2).all(|two| two[0].1 < two[1].1), "each number has one name");
    }
}
