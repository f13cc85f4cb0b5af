//! Quantities as plain numbers, for documents and messages that programs read: in the base unit, which the name of the field
//! says (`interval_seconds`, `memory_bytes`), as Prometheus names them. People write quantities as text with its unit.
//!
//! `#[serde(with = "numbers")]` takes a [`Span`], [`Bytes`] or [`BitRate`], an option of one and a map of spans;
//! `#[serde(with = "moments")]` a time in milliseconds since the Unix epoch.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{BitRate, Bytes, Span};

/// What is written of a quantity.
pub trait AsNumber: Sized {
    /// A number, or several.
    type Written: Serialize + DeserializeOwned;

    /// To be written.
    fn written(&self) -> Self::Written;

    /// As it was read.
    fn of(written: Self::Written) -> Self;
}

/// Writes a quantity as a number.
///
/// # Errors
/// The serializer's.
pub fn serialize<T: AsNumber, S: Serializer>(quantity: &T, serializer: S) -> Result<S::Ok, S::Error> {
    quantity.written().serialize(serializer)
}

/// Reads a quantity that was written as a number.
///
/// # Errors
/// What stands there is no such number.
pub fn deserialize<'de, T: AsNumber, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::Written::deserialize(deserializer).map(T::of)
}

/// A length of time in seconds. A double has every nanosecond of 26 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(Span);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.seconds())
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        whole(f64::deserialize(deserializer)?, 1e9).map(|nanoseconds| Self(Span(nanoseconds)))
    }
}

/// A number of seconds as a whole number of parts of a second.
fn whole<E: de::Error>(seconds: f64, parts: f64) -> Result<u64, E> {
    let number = (seconds * parts).round();
    // The largest is 2^64 less one, and as a double 2^64.
    if (0.0..=u64::MAX as f64).contains(&number) {
        Ok(number as u64)
    } else {
        Err(E::custom(format!("{seconds} is no number of seconds from 0 on")))
    }
}

impl JsonSchema for Seconds {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Seconds".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "minimum": 0})
    }
}

impl AsNumber for Span {
    type Written = Seconds;

    fn written(&self) -> Seconds {
        Seconds(*self)
    }
    fn of(Seconds(span): Seconds) -> Self {
        span
    }
}

impl AsNumber for Option<Span> {
    type Written = Option<Seconds>;

    fn written(&self) -> Option<Seconds> {
        self.map(Seconds)
    }
    fn of(written: Option<Seconds>) -> Self {
        written.map(Span::of)
    }
}

impl<K: Copy + Ord + Serialize + DeserializeOwned> AsNumber for BTreeMap<K, Span> {
    type Written = BTreeMap<K, Seconds>;

    fn written(&self) -> Self::Written {
        self.iter().map(|(key, span)| (*key, Seconds(*span))).collect()
    }
    fn of(written: Self::Written) -> Self {
        written.into_iter().map(|(key, seconds)| (key, Span::of(seconds))).collect()
    }
}

macro_rules! integer {
    ($name:ident) => {
        impl AsNumber for $name {
            type Written = u64;

            fn written(&self) -> u64 {
                self.0
            }
            fn of(number: u64) -> Self {
                Self(number)
            }
        }
        impl AsNumber for Option<$name> {
            type Written = Option<u64>;

            fn written(&self) -> Option<u64> {
                self.map(|quantity| quantity.0)
            }
            fn of(number: Option<u64>) -> Self {
                number.map($name)
            }
        }
    };
}

integer!(Bytes);
integer!(BitRate);

/// A moment as seconds since the Unix epoch: what is kept as milliseconds.
pub mod moments {
    use super::{Deserialize, Deserializer, Serialize, Serializer, whole};

    /// Milliseconds, written as seconds. A double has every millisecond of 70000 years.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Moment(u64);

    impl Serialize for Moment {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_f64(self.0 as f64 / 1e3)
        }
    }

    impl<'de> Deserialize<'de> for Moment {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            whole(f64::deserialize(deserializer)?, 1e3).map(Self)
        }
    }

    /// Milliseconds since the Unix epoch, or none.
    pub trait AsMoment: Copy {
        /// Writes them as seconds.
        ///
        /// # Errors
        /// The serializer's.
        fn write<S: Serializer>(self, serializer: S) -> Result<S::Ok, S::Error>;

        /// Reads them as they were written.
        ///
        /// # Errors
        /// What stands there is no such number.
        fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
    }

    impl AsMoment for u64 {
        fn write<S: Serializer>(self, serializer: S) -> Result<S::Ok, S::Error> {
            Moment(self).serialize(serializer)
        }
        fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Moment::deserialize(deserializer).map(|moment| moment.0)
        }
    }

    impl AsMoment for Option<u64> {
        fn write<S: Serializer>(self, serializer: S) -> Result<S::Ok, S::Error> {
            self.map(Moment).serialize(serializer)
        }
        fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Option::<Moment>::deserialize(deserializer).map(|moment| moment.map(|moment| moment.0))
        }
    }

    /// Writes a moment.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T: AsMoment, S: Serializer>(moment: &T, serializer: S) -> Result<S::Ok, S::Error> {
        moment.write(serializer)
    }

    /// Reads a moment.
    ///
    /// # Errors
    /// What stands there is none.
    pub fn deserialize<'de, T: AsMoment, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        T::read(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::units::numbers;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Written {
        #[serde(rename = "at_seconds", with = "numbers")]
        at: Span,
        #[serde(rename = "left_seconds", with = "numbers")]
        left: Option<Span>,
        #[serde(rename = "parts_seconds", with = "numbers")]
        parts: BTreeMap<u8, Span>,
        #[serde(rename = "memory_bytes", with = "numbers")]
        memory: Option<Bytes>,
        #[serde(rename = "rate_bits_per_second", with = "numbers")]
        rate: BitRate,
        #[serde(rename = "started_unix_seconds", with = "moments")]
        started: u64,
        #[serde(rename = "ended_unix_seconds", with = "moments")]
        ended: Option<u64>,
    }

    fn written() -> Written {
        Written {
            at: Span(127_776_129),
            left: None,
            parts: BTreeMap::from([(1, Span::from_millis(20))]),
            memory: Some(Bytes(4096)),
            rate: BitRate(u64::MAX),
            started: 1_769_879_109_001,
            ended: None,
        }
    }

    #[test]
    fn quantities_are_numbers_in_base_units() {
        assert_eq!(
            serde_json::to_value(written()).expect("encodes"),
            json!({
                "at_seconds": 0.127_776_129,
                "left_seconds": null,
                "parts_seconds": {"1": 0.02},
                "memory_bytes": 4096,
                "rate_bits_per_second": u64::MAX,
                "started_unix_seconds": 1_769_879_109.001,
                "ended_unix_seconds": null,
            })
        );
    }

    #[test]
    fn what_is_no_such_number_is_refused() {
        let with = |field: &str, value: Value| {
            let mut json = serde_json::to_value(written()).expect("encodes");
            json[field] = value;
            serde_json::from_value::<Written>(json)
        };
        with("at_seconds", json!(2)).expect("a whole number is one");
        for value in [json!("20ms"), json!(-0.1), json!(1e300), json!(null), json!(2e10)] {
            with("at_seconds", value.clone()).expect_err(&value.to_string());
            with("parts_seconds", json!({"1": value})).expect_err("the same");
        }
        with("started_unix_seconds", json!("2026-01-01")).expect_err("is text");
        with("memory_bytes", json!(0.5)).expect_err("is half a byte");
        let mut json = serde_json::to_value(written()).expect("encodes");
        json.as_object_mut().expect("an object").remove("left_seconds");
        serde_json::from_value::<Written>(json).expect_err("what is not known is said to be");
    }

    proptest! {
        #[test]
        fn every_nanosecond_and_millisecond_reads_back(span in 0_u64..1 << 51, moment in 0_u64..1 << 51) {
            let value = Written {
                at: Span(span), left: Some(Span(span)), started: moment, ended: Some(moment), ..written()
            };
            let json = serde_json::to_string(&value).expect("encodes");
            prop_assert_eq!(serde_json::from_str::<Written>(&json).expect("reads"), value);
        }
    }
}
