//! Quantities with their units. Each parses from and displays as text that carries the unit; a bare number is
//! refused, so that nobody has to guess whether `100` meant megabits or mebibytes. Display is exact: the text of
//! a value parses back to the same value.

mod mac;
mod networks;
pub mod numbers;
mod quantity;
mod scale;
mod schema;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use mac::MacAddress;
pub use quantity::Quantity;
use scale::{BIT_RATE, BYTES, PERCENT, SPAN, Scale};
pub use schema::QUANTITY;

/// Why a text is no quantity. The message says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The number is missing, malformed or not finite.
    #[error("`{text}` is no {what}: write a number and its unit, such as {example}")]
    Malformed {
        /// What was written.
        text: String,
        /// The quantity that was expected.
        what: &'static str,
        /// Something that would be right.
        example: &'static str,
    },
    /// There is a number and no unit.
    #[error("`{text}` has no unit: write a {what} such as {example}")]
    NoUnit {
        /// What was written.
        text: String,
        /// The quantity that was expected.
        what: &'static str,
        /// Something that would be right.
        example: &'static str,
    },
    /// The unit is not one of this quantity.
    #[error("`{text}` has an unknown unit: a {what} is written with one of {units}, such as {example}")]
    UnknownUnit {
        /// What was written.
        text: String,
        /// The quantity that was expected.
        what: &'static str,
        /// The units that exist.
        units: String,
        /// Something that would be right.
        example: &'static str,
    },
    /// Negative quantities don't exist here.
    #[error("`{text}` is negative: write a {what} such as {example}")]
    Negative {
        /// What was written.
        text: String,
        /// The quantity that was expected.
        what: &'static str,
        /// Something that would be right.
        example: &'static str,
    },
    /// The value does not fit, or is no whole number of the smallest unit.
    #[error("`{text}` is out of range or not a whole number of {smallest}: write a {what} such as {example}")]
    OutOfRange {
        /// What was written.
        text: String,
        /// The quantity that was expected.
        what: &'static str,
        /// The smallest unit.
        smallest: &'static str,
        /// Something that would be right.
        example: &'static str,
    },
}

/// Deserializes a quantity from text, and refuses a bare number with a hint.
fn from_text<'de, D, T>(deserializer: D, scale: &'static Scale) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = UnitError>,
{
    struct Text<T>(&'static Scale, std::marker::PhantomData<T>);
    impl<T: FromStr<Err = UnitError>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a {} such as {}", self.0.what, self.0.example)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
        fn visit_u64<E: de::Error>(self, n: u64) -> Result<T, E> {
            self.visit_str(&n.to_string())
        }
        fn visit_i64<E: de::Error>(self, n: i64) -> Result<T, E> {
            self.visit_str(&n.to_string())
        }
        fn visit_f64<E: de::Error>(self, n: f64) -> Result<T, E> {
            self.visit_str(&n.to_string())
        }
    }
    deserializer.deserialize_any(Text(scale, std::marker::PhantomData))
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $scale:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $scale.write(self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = UnitError;
            fn from_str(text: &str) -> Result<Self, UnitError> {
                $scale.parse(text).map(Self)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                from_text(deserializer, &$scale)
            }
        }
    };
}

quantity!(
    /// A length of time, in nanoseconds. Written `500ms`, `2s`, `1.5m`.
    Span, SPAN
);
quantity!(
    /// A size in bytes. Written `64KiB`, `1500B`, `1MB`.
    Bytes, BYTES
);
quantity!(
    /// A link rate in bits per second. Written `100Mbit`, `10Gbit`.
    BitRate, BIT_RATE
);

impl Span {
    /// This span as the standard library's type.
    pub const fn duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// Seconds, for arithmetic that ends in a figure.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// A span of so many milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds * 1_000_000)
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A share of a hundred. Written `10%` or `0.5%`; may be negative where it is a difference.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Percent(f64);

impl Percent {
    /// The percentage of a fraction: `0.1` is 10 %.
    pub const fn from_fraction(fraction: f64) -> Self {
        Self(fraction * 100.0)
    }

    /// The fraction: 10 % is `0.1`.
    pub const fn fraction(self) -> f64 {
        self.0 / 100.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FromStr for Percent {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let Scale { what, example, .. } = PERCENT;
        let trimmed = text.trim();
        let Some(number) = trimmed.strip_suffix('%') else {
            return Err(UnitError::NoUnit { text: text.to_owned(), what, example });
        };
        match number.trim_end().parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Self(value)),
            _ => Err(UnitError::Malformed { text: text.to_owned(), what, example }),
        }
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, &PERCENT)
    }
}

/// An IPv4 address with the length of its network's prefix (RFC 4632), such as `10.77.0.1/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterfaceAddress {
    /// The address of the interface.
    pub address: Ipv4Addr,
    /// Length of the network's prefix, 1 to 30 bits.
    pub prefix: u8,
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for InterfaceAddress {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError::Malformed {
            text: text.to_owned(),
            what: "interface address",
            example: "`10.77.0.1/24`",
        };
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address = address.parse().map_err(|_| error())?;
        let prefix = prefix.parse().ok().filter(|prefix| (1..=30).contains(prefix)).ok_or_else(error)?;
        Ok(Self { address, prefix })
    }
}

impl Serialize for InterfaceAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InterfaceAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// IPv4 addresses from a first to a last, such as `10.77.0.101-10.77.0.150`, or one alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressRange {
    /// The first address.
    pub first: Ipv4Addr,
    /// The last address, not before the first.
    pub last: Ipv4Addr,
}

impl AddressRange {
    /// The addresses in order.
    pub fn iter(self) -> impl Iterator<Item = Ipv4Addr> {
        (u32::from(self.first)..=u32::from(self.last)).map(Ipv4Addr::from)
    }

    /// Whether `address` is one of them.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for AddressRange {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || UnitError::Malformed {
            text: text.to_owned(),
            what: "range of addresses",
            example: "`10.77.0.101-10.77.0.150`",
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first: Ipv4Addr = first.trim().parse().map_err(|_| error())?;
        let last = last.trim().parse().map_err(|_| error())?;
        if first > last { Err(error()) } else { Ok(Self { first, last }) }
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_of_addresses_has_an_order() {
        let range: AddressRange = "10.0.0.9-10.0.0.11".parse().expect("a range");
        assert_eq!(range.iter().map(|address| address.octets()[3]).collect::<Vec<_>>(), [9, 10, 11]);
        assert_eq!(range.to_string(), "10.0.0.9-10.0.0.11");
        let one: AddressRange = "10.0.0.9".parse().expect("one address");
        assert_eq!((one.iter().count(), one.to_string().as_str()), (1, "10.0.0.9"));
        assert!(range.contains(one.first) && !one.contains(range.last));
        for wrong in ["", "-", "10.0.0.9-", "10.0.0.9-10.0.0.8", "10.0.0.0/24", "x-y"] {
            assert!(wrong.parse::<AddressRange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn quantities_parse_with_their_unit() {
        assert_eq!("1.5s".parse(), Ok(Span(1_500_000_000)));
        assert_eq!("500ms".parse(), Ok(Span::from_millis(500)));
        assert_eq!("64KiB".parse(), Ok(Bytes(65_536)));
        assert_eq!("2.5 Gbit".parse(), Ok(BitRate(2_500_000_000)));
        assert_eq!("10%".parse::<Percent>().map(Percent::fraction), Ok(0.1));
    }

    #[test]
    fn a_quantity_that_is_none_says_what_would_be_right() {
        let message = |text: &str| text.parse::<Span>().expect_err(text).to_string();
        assert_eq!(message("-2s"), "`-2s` is negative: write a duration such as `500ms` or `2s`");
        assert_eq!(message("2"), "`2` has no unit: write a duration such as `500ms` or `2s`");
        assert!(message("2 weeks").contains("one of ns, us, ms, s, m, h"));
        for malformed in [
            "",
            "s",
            ".s",
            "1.s",
            "1.2.3s",
            "0.5ns",
            "99999999999h",
            "1.00000000000000000000000000000000000000001s",
        ] {
            assert!(malformed.parse::<Span>().is_err(), "{malformed}");
        }
    }

    proptest! {
        #[test]
        fn display_parses_back(n: u64) {
            prop_assert_eq!(Span(n).to_string().parse(), Ok(Span(n)));
            prop_assert_eq!(Bytes(n).to_string().parse(), Ok(Bytes(n)));
            prop_assert_eq!(BitRate(n).to_string().parse(), Ok(BitRate(n)));
        }

        #[test]
        fn mac_displays_and_parses_back(bytes: [u8; 6]) {
            prop_assert_eq!(MacAddress(bytes).to_string().parse(), Ok(MacAddress(bytes)));
        }

        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = text.parse::<Span>();
            let _ = text.parse::<Percent>();
            let _ = text.parse::<MacAddress>();
            let _ = text.parse::<InterfaceAddress>();
        }
    }
}
