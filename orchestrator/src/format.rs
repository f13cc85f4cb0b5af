//! How figures are written for people: three significant digits, a unit that fits, intervals in the unit of their
//! figure, and a dash for what is absent. The one place for it, so that the terminal and the page agree.

use toll_protocol::figure::Unit;
use toll_protocol::result::{DifferenceEstimate, MedianEstimate, RatioEstimate};

/// What stands for an absent figure.
pub const ABSENT: &str = "—";

/// `value` with three significant digits and no exponent: `0.0123`, `1.23`, `12.3`, `1230`.
pub fn significant(value: f64) -> String {
    with_decimals(value, decimals(value))
}

/// `value`, or [`ABSENT`].
pub fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| ABSENT.to_owned(), significant)
}

/// Decimals that give `value` three significant digits; at most 9.
fn decimals(value: f64) -> usize {
    if !value.is_finite() || value == 0.0 {
        return 0;
    }
    // Rounded to three digits first: 9.996 is 10.0, not 10.00.
    let magnitude = value.abs().log10().floor();
    let rounded = (value.abs() / 10_f64.powf(magnitude - 2.0)).round() * 10_f64.powf(magnitude - 2.0);
    let magnitude = (rounded * (1.0 + 1e-12)).log10().floor() as i32;
    usize::try_from((2 - magnitude).clamp(0, 9)).unwrap_or(0)
}

fn with_decimals(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return ABSENT.to_owned();
    }
    let text = format!("{value:.decimals$}");
    // No "-0.00".
    if text.starts_with('-') && text.bytes().all(|byte| matches!(byte, b'-' | b'0' | b'.')) {
        text[1..].to_owned()
    } else {
        text
    }
}

/// A unit of bit rate that `bits_per_second` is written in.
fn rate_unit(bits_per_second: f64) -> (f64, &'static str) {
    // 999.5 Mb/s and more would be written 1000 Mb/s.
    match bits_per_second.abs() {
        rate if rate >= 999.5e6 => (1e9, "Gb/s"),
        rate if rate >= 999.5e3 => (1e6, "Mb/s"),
        rate if rate >= 999.5 => (1e3, "kb/s"),
        _ => (1.0, "b/s"),
    }
}

/// A rate in bytes per second as bits per second: `9.41 Gb/s`, `94.1 Mb/s`.
pub fn rate(bytes_per_second: f64) -> String {
    bit_rate(bytes_per_second * 8.0)
}

/// A rate in bits per second: `9.41 Gb/s`.
pub fn bit_rate(bits_per_second: f64) -> String {
    let (size, unit) = rate_unit(bits_per_second);
    format!("{} {unit}", significant(bits_per_second / size))
}

/// The limits of an interval of `bytes_per_second`, in the unit and with the decimals of that rate: `9.38–9.44`.
pub fn rate_interval(bytes_per_second: f64, ci95: [f64; 2]) -> String {
    let (size, _) = rate_unit(bytes_per_second * 8.0);
    let places = decimals(bytes_per_second * 8.0 / size);
    range(ci95.map(|limit| limit * 8.0 / size), places)
}

/// A median goodput and its interval: `9.41 Gb/s [9.38–9.44]`.
pub fn goodput(estimate: &MedianEstimate) -> String {
    bracketed(rate(estimate.median), estimate.ci95.map(|ci95| rate_interval(estimate.median, ci95)))
}

/// A fraction as a percentage: `41.2 %`.
pub fn percent(fraction: f64) -> String {
    format!("{} %", significant(fraction * 100.0))
}

/// The limits of an interval of fractions, with the decimals of `fraction`: `39.8–42.7`.
pub fn percent_interval(fraction: f64, ci95: [f64; 2]) -> String {
    range(ci95.map(|limit| limit * 100.0), decimals(fraction * 100.0))
}

/// A ratio to native and its interval: `41.2 % [39.8–42.7]`.
pub fn ratio(estimate: &RatioEstimate) -> String {
    bracketed(percent(estimate.estimate), estimate.ci95.map(|ci95| percent_interval(estimate.estimate, ci95)))
}

/// A number in `unit`: `9.41 Gb/s`, `41.2 %`, `845 µs`, `0.123`.
pub fn figure(unit: Unit, number: f64) -> String {
    match unit {
        Unit::BytesPerSecond => rate(number),
        Unit::Fraction => percent(number),
        Unit::PerFrame | Unit::PerMegabyte | Unit::SecondsPerGigabyte => significant(number),
        Unit::PerSecond => per_second(number),
        Unit::Seconds => seconds(number),
        // No more than a machine has.
        Unit::Bytes => memory(number as u64),
    }
}

/// The limits of an interval of `number` in `unit`, without the unit where that of the number is theirs.
pub fn figure_interval(unit: Unit, number: f64, ci95: [f64; 2]) -> String {
    match unit {
        Unit::BytesPerSecond => rate_interval(number, ci95),
        Unit::Fraction => percent_interval(number, ci95),
        Unit::PerSecond
        | Unit::PerFrame
        | Unit::PerMegabyte
        | Unit::SecondsPerGigabyte
        | Unit::Seconds
        | Unit::Bytes => ci95.map(|limit| figure(unit, limit)).join("–"),
    }
}

/// What a figure is more or less than native's, and its interval: `+3.21 µs [+3.02 µs–+3.40 µs]`.
pub fn difference(unit: Unit, estimate: &DifferenceEstimate) -> String {
    let signed = |number: f64| {
        let sign = if number > 0.0 { "+" } else { "" };
        format!("{sign}{}", figure(unit, number))
    };
    bracketed(signed(estimate.estimate), estimate.ci95.map(|ci95| ci95.map(signed).join("–")))
}

/// The same in one text: `41.2 % [39.8–42.7]`.
pub fn figure_with_interval(unit: Unit, number: f64, ci95: Option<[f64; 2]>) -> String {
    bracketed(figure(unit, number), ci95.map(|ci95| figure_interval(unit, number, ci95)))
}

/// A number a second with a fitting prefix: `1.23 M/s`, `845 k/s`, `97.0 /s`.
pub fn per_second(number: f64) -> String {
    let (size, unit) = match number.abs() {
        n if n >= 999.5e3 => (1e6, "M/s"),
        n if n >= 999.5 => (1e3, "k/s"),
        _ => (1.0, "/s"),
    };
    format!("{} {unit}", significant(number / size))
}

/// A time in seconds with a fitting unit: `1.20 s`, `845 µs`.
pub fn seconds(seconds: f64) -> String {
    let (size, unit) = match seconds.abs() {
        s if s >= 0.9995 => (1.0, "s"),
        s if s >= 0.999_5e-3 => (1e-3, "ms"),
        s if s >= 0.999_5e-6 => (1e-6, "µs"),
        _ => (1e-9, "ns"),
    };
    format!("{} {unit}", significant(seconds / size))
}

/// A length of time for people: `48 s`, `3 min 20 s`, `1 h 05 min`.
pub fn elapsed(milliseconds: u64) -> String {
    let total = milliseconds.div_ceil(1000);
    match (total / 3600, total / 60 % 60, total % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// A moment, milliseconds since the Unix epoch, in UTC: `2026-01-31 17:05:09 UTC`.
pub fn moment(unix_ms: u64) -> String {
    let timestamp = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(|| ABSENT.to_owned(), |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// A size of memory in bytes, with a binary unit: `7.76 GiB`.
pub fn memory(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", significant(value), UNITS[unit])
}

/// A count with its digits in threes: `1 234 567` (with no-break thin spaces).
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// `lower–upper` with so many decimals, or up to three more if that takes two limits to be told apart.
fn range([lower, upper]: [f64; 2], places: usize) -> String {
    let text = |places| [with_decimals(lower, places), with_decimals(upper, places)];
    let apart = |places: &usize| {
        let [lower, upper] = text(*places);
        lower != upper
    };
    let [lower, upper] = text((places..=places + 3).find(apart).unwrap_or(places));
    format!("{lower}–{upper}")
}

fn bracketed(figure: String, interval: Option<String>) -> String {
    match interval {
        Some(interval) => format!("{figure} [{interval}]"),
        None => figure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_has_its_sign() {
        let of =
            |estimate, ci95| difference(Unit::Seconds, &DifferenceEstimate { estimate, ci95, blocks: 3 });
        assert_eq!(of(3.21e-6, Some([-1e-7, 6.5e-6])), "+3.21 µs [-100 ns–+6.50 µs]");
        assert_eq!(of(-2e-3, None), "-2.00 ms");
    }

    #[test]
    fn three_significant_digits_without_exponent() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1.00"),
            (9.994, "9.99"),
            (9.996, "10.0"),
            (99.96, "100"),
            (12.345, "12.3"),
            (1234.5, "1234"),
            (0.012_345, "0.0123"),
            (-0.000_000_000_04, "0.000000000"),
            (-2.5, "-2.50"),
            (f64::NAN, ABSENT),
            (f64::INFINITY, ABSENT),
        ] {
            assert_eq!(significant(value), text, "{value}");
        }
        assert_eq!(optional(None), "—");
    }

    #[test]
    fn rates_have_a_unit_that_fits() {
        for (bits, text) in [
            (9.41e9, "9.41 Gb/s"),
            (941e6, "941 Mb/s"),
            (999.6e6, "1.00 Gb/s"),
            (64.03e6, "64.0 Mb/s"),
            (1.5e3, "1.50 kb/s"),
            (12.0, "12.0 b/s"),
            (0.0, "0 b/s"),
        ] {
            assert_eq!(bit_rate(bits), text);
        }
        assert_eq!(rate(125e6), "1.00 Gb/s");
    }

    #[test]
    fn intervals_take_the_unit_and_decimals_of_their_figure() {
        let estimate = MedianEstimate { median: 124e6, ci95: Some([123e6, 126e6]) };
        assert_eq!(goodput(&estimate), "992 Mb/s [984–1008]");
        assert_eq!(goodput(&MedianEstimate { ci95: None, ..estimate }), "992 Mb/s");
        let estimate = RatioEstimate { estimate: 0.412, ci95: Some([0.398, 0.4271]), blocks: 5 };
        assert_eq!(ratio(&estimate), "41.2 % [39.8–42.7]");
        let estimate = RatioEstimate { estimate: 1.012, ci95: Some([0.9989, 1.0271]), blocks: 5 };
        assert_eq!(ratio(&estimate), "101 % [100–103]");
        assert_eq!(percent_interval(0.992, [0.99231, 0.99238]), "99.23–99.24");
        assert_eq!(percent_interval(0.992, [0.992, 0.992]), "99.2–99.2");
    }

    #[test]
    fn times_memory_and_counts() {
        assert_eq!(seconds(0.000_845), "845 µs");
        assert_eq!(seconds(1.2), "1.20 s");
        assert_eq!(seconds(3.2e-8), "32.0 ns");
        assert_eq!(elapsed(47_100), "48 s");
        assert_eq!(elapsed(200_000), "3 min 20 s");
        assert_eq!(elapsed(3_900_000), "1 h 05 min");
        assert_eq!(moment(1_769_879_109_000), "2026-01-31 17:05:09 UTC");
        assert_eq!(moment(u64::MAX), "—");
        assert_eq!(memory(8_332_000_000), "7.76 GiB");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(count(123), "123");
    }
}
