//! Quantities for whoever learns only at run time which one a text must be.

use std::fmt;

use super::{BIT_RATE, BYTES, BitRate, Bytes, PERCENT, Percent, SPAN, Scale, Span, UnitError};

/// A kind of quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// [`Span`].
    Span,
    /// [`Bytes`].
    Bytes,
    /// [`BitRate`].
    BitRate,
    /// [`Percent`].
    Percent,
}

impl Quantity {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Span, Self::Bytes, Self::BitRate, Self::Percent];

    const fn scale(self) -> &'static Scale {
        match self {
            Self::Span => &SPAN,
            Self::Bytes => &BYTES,
            Self::BitRate => &BIT_RATE,
            Self::Percent => &PERCENT,
        }
    }

    /// What it is called: `duration`.
    pub const fn name(self) -> &'static str {
        self.scale().what
    }

    /// Some of it, as it is written.
    pub const fn example(self) -> &'static str {
        self.scale().example
    }

    /// Its units, each with its size in the first.
    pub const fn units(self) -> &'static [(&'static str, u64)] {
        self.scale().units
    }

    /// That of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quantity| quantity.name() == name)
    }

    /// One of the examples.
    pub fn sample(self) -> &'static str {
        self.example().split('`').nth(1).unwrap_or_default()
    }

    /// The number that `text` says (nanoseconds, bytes, bits a second; of a percentage the fraction), and its shortest text.
    ///
    /// # Errors
    /// [`UnitError`].
    pub fn read(self, text: &str) -> Result<(f64, String), UnitError> {
        fn both<T: fmt::Display>(value: T, number: impl FnOnce(&T) -> f64) -> (f64, String) {
            (number(&value), value.to_string())
        }
        Ok(match self {
            Self::Span => both(text.parse::<Span>()?, |span| span.0 as f64),
            Self::Bytes => both(text.parse::<Bytes>()?, |bytes| bytes.0 as f64),
            Self::BitRate => both(text.parse::<BitRate>()?, |rate| rate.0 as f64),
            Self::Percent => both(text.parse::<Percent>()?, |percent| percent.fraction()),
        })
    }

    /// A regular expression of the texts that it is written as; not all of them have a number that fits.
    pub fn pattern(self) -> String {
        let units = self.units().iter().map(|(name, _)| *name).collect::<Vec<_>>().join("|");
        match self {
            Self::Span | Self::Bytes | Self::BitRate => format!(r"^ *[0-9]+(\.[0-9]+)? *({units}) *$"),
            // What Rust reads as a finite `f64`, and a percent sign.
            Self::Percent => r"^ *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)? *% *$".into(),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} such as {}", self.name(), self.example())
    }
}
