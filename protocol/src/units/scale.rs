//! The units of each quantity, and how their texts are read and written: in integer arithmetic.

use std::fmt;

use super::UnitError;

/// A quantity's units, smallest first, each with its size in the smallest.
pub(super) struct Scale {
    /// What the quantity is called.
    pub what: &'static str,
    /// Some of it.
    pub example: &'static str,
    /// Name and size of each.
    pub units: &'static [(&'static str, u64)],
}

impl Scale {
    /// Parses `text` into a whole number of the smallest unit, in integer arithmetic: `1.5s` is exactly
    /// 1,500,000,000 ns.
    pub(super) fn parse(&self, text: &str) -> Result<u64, UnitError> {
        let (what, example) = (self.what, self.example);
        let text = text.trim();
        let owned = || text.to_owned();
        if text.starts_with('-') {
            return Err(UnitError::Negative { text: owned(), what, example });
        }
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim_start());
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
            return Err(UnitError::Malformed { text: owned(), what, example });
        }
        if unit.is_empty() {
            return Err(UnitError::NoUnit { text: owned(), what, example });
        }
        let Some(&(_, size)) = self.units.iter().find(|(name, _)| *name == unit) else {
            let units = self.units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            return Err(UnitError::UnknownUnit { text: owned(), what, units, example });
        };
        let smallest = self.units[0].0;
        let out_of_range = || UnitError::OutOfRange { text: owned(), what, smallest, example };
        let whole: u64 = whole.parse().map_err(|_| out_of_range())?;
        let mut value = whole.checked_mul(size).ok_or_else(out_of_range)?;
        if !fraction.is_empty() {
            let digits: u128 = fraction.parse().map_err(|_| out_of_range())?;
            let power = u32::try_from(fraction.len()).ok().and_then(|n| 10_u128.checked_pow(n));
            let power = power.ok_or_else(out_of_range)?;
            let scaled = digits.checked_mul(u128::from(size)).ok_or_else(out_of_range)?;
            if scaled % power != 0 {
                return Err(out_of_range());
            }
            let part = u64::try_from(scaled / power).map_err(|_| out_of_range())?;
            value = value.checked_add(part).ok_or_else(out_of_range)?;
        }
        Ok(value)
    }

    /// Writes `value` in the largest unit that divides it.
    pub(super) fn write(&self, value: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |size: u64| value != 0 && value.is_multiple_of(size);
        let &(name, size) = self.units.iter().rev().find(|(_, size)| fits(*size)).unwrap_or(&self.units[0]);
        write!(f, "{}{name}", value / size)
    }
}

pub(super) const SPAN: Scale = Scale {
    what: "duration",
    example: "`500ms` or `2s`",
    units: &[
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ],
};

pub(super) const BYTES: Scale = Scale {
    what: "size",
    example: "`64KiB` or `1500B`",
    units: &[
        ("B", 1),
        ("kB", 1_000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
    ],
};

pub(super) const BIT_RATE: Scale = Scale {
    what: "link rate in bits per second",
    example: "`100Mbit` or `10Gbit`",
    units: &[("bit", 1), ("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000)],
};

pub(super) const PERCENT: Scale = Scale { what: "percentage", example: "`10%`", units: &[("%", 1)] };
