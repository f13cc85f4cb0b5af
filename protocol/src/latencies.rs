//! Latencies of an end, kept whole: an HDR histogram (hdrhistogram.org) of nanoseconds, 3 significant digits of 1 ns to 2 h. It
//! crosses machines in the V2 encoding in base64, and takes as many bytes as it has distinct values, some thousands.
//!
//! ```text
//! Recorder --record--> .. --finish--> Latencies --base64--> ledger, result.json
//!                                        | of several runs: `merged`
//!                                        '-- percentiles
//! ```
//! What comes from outside is decoded once, as it is read, and refused by a typed error before anything is allocated by its
//! word: its header is that of a [`Recorder`], or it is none of ours.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer as Decoder, Serializer as _, V2Serializer};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::units::Span;

/// The longest latency that is told apart: the longest deadline of an end. What takes longer counts as this.
pub const HIGHEST: Span = Span::from_millis(2 * 3_600_000);
/// Digits of a latency that are kept.
const DIGITS: u8 = 3;
/// Transactions of an end: a million a second for ten times as long as an end may run.
const MOST_COUNTED: u64 = 1 << 36;
/// Bytes before the counts: cookie, length of the counts, offset, digits, lowest, highest, ratio.
const HEADER: usize = 40;
/// A count takes 8 bytes or less: none that takes 9 is below [`MOST_COUNTED`].
const LONGEST_COUNT: usize = 8;
/// Counts that a histogram of these bounds has at most: 1024 for each doubling of the value.
const MOST_COUNTS: usize = 36 << 10;
/// Bytes of an encoded histogram.
const LONGEST: usize = HEADER + MOST_COUNTS * LONGEST_COUNT;

/// Why a text or its bytes are no latencies.
#[derive(Debug, thiserror::Error)]
pub enum LatenciesError {
    /// It is longer than one can be.
    #[error("a histogram of {bytes} bytes stands here; one has at most {LONGEST}")]
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// It is no base64.
    #[error("a histogram is no base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// It has other bounds or digits, or the parts of its encoding contradict each other.
    #[error("a histogram is not of 1ns to {HIGHEST} with {DIGITS} digits in the V2 encoding")]
    Foreign,
    /// Its counts can't be read.
    #[error("the counts of a histogram can't be read: {0}")]
    Counts(String),
    /// It counts more than any end can have done.
    #[error("a histogram counts {counted} latencies; one has at most {MOST_COUNTED}")]
    TooMany {
        /// What it counts.
        counted: u64,
    },
    /// Its bounds are none: a fault of the program.
    #[error("a histogram can't be made: {0}")]
    Bounds(String),
}

/// Takes latencies as they are measured. Recording allocates nothing.
#[derive(Debug, Clone)]
pub struct Recorder(Histogram<u64>);

impl Recorder {
    /// An empty one.
    ///
    /// # Errors
    /// [`LatenciesError::Bounds`], never with these bounds.
    pub fn new() -> Result<Self, LatenciesError> {
        let bounds = Histogram::new_with_bounds(1, HIGHEST.0, DIGITS);
        bounds.map(Self).map_err(|error| LatenciesError::Bounds(error.to_string()))
    }

    /// Takes one.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many it has.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// All of them.
    ///
    /// # Errors
    /// [`LatenciesError::Counts`] if one can't be written.
    pub fn finish(&self) -> Result<Latencies, LatenciesError> {
        let mut encoded = Vec::new();
        V2Serializer::new()
            .serialize(&self.0, &mut encoded)
            .map_err(|error| LatenciesError::Counts(error.to_string()))?;
        Ok(Latencies { encoded, percentiles: Percentiles::of(&self.0) })
    }
}

/// Percentiles of latencies, each the highest of those that can't be told from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Percentiles {
    /// How many latencies there are. Without any all others are 0.
    pub count: u64,
    /// The shortest.
    pub min: Span,
    /// The median.
    pub p50: Span,
    /// The 90th.
    pub p90: Span,
    /// The 99th.
    pub p99: Span,
    /// The 99.9th.
    pub p999: Span,
    /// The longest.
    pub max: Span,
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at =
            |quantile| Span(if histogram.is_empty() { 0 } else { histogram.value_at_quantile(quantile) });
        let min = if histogram.is_empty() { 0 } else { histogram.min() };
        Self {
            count: histogram.len(),
            min: Span(min),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

/// Latencies that were measured.
#[derive(Clone, PartialEq, Eq)]
pub struct Latencies {
    /// In the V2 encoding, and found to be good.
    encoded: Vec<u8>,
    percentiles: Percentiles,
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its thousands of bytes say nothing to a reader.
        f.debug_tuple("Latencies").field(&self.percentiles).finish()
    }
}

impl Latencies {
    /// Their percentiles.
    pub const fn percentiles(&self) -> Percentiles {
        self.percentiles
    }

    /// All of several ends together; nothing of none.
    ///
    /// # Errors
    /// [`LatenciesError`] if together they are too many.
    pub fn merged<'a>(all: impl IntoIterator<Item = &'a Self>) -> Result<Option<Self>, LatenciesError> {
        let mut sum: Option<Histogram<u64>> = None;
        for latencies in all {
            let histogram = decode(&latencies.encoded)?;
            match &mut sum {
                None => sum = Some(histogram),
                Some(sum) => {
                    sum.add(histogram).map_err(|error| LatenciesError::Counts(error.to_string()))?;
                    if sum.len() > MOST_COUNTED {
                        return Err(LatenciesError::TooMany { counted: sum.len() });
                    }
                }
            }
        }
        sum.map(|sum| Recorder(sum).finish()).transpose()
    }

    /// For a picture: at each step of the way from the median to the longest, the share of latencies that are at most so
    /// long. Each step halves what is left as often as `halvings` says.
    ///
    /// # Errors
    /// [`LatenciesError`], never for what was read.
    pub fn distribution(&self, halvings: u32) -> Result<Vec<(f64, Span)>, LatenciesError> {
        let histogram = decode(&self.encoded)?;
        let steps = histogram.iter_quantiles(halvings.max(1));
        Ok(steps.map(|step| (step.quantile(), Span(step.value_iterated_to()))).collect())
    }

    fn read(text: &str) -> Result<Self, LatenciesError> {
        // Base64 has 4 characters for 3 bytes.
        if text.len() > LONGEST.div_ceil(3) * 4 {
            return Err(LatenciesError::TooLong { bytes: text.len() / 4 * 3 });
        }
        let encoded = STANDARD.decode(text)?;
        let percentiles = Percentiles::of(&decode(&encoded)?);
        Ok(Self { encoded, percentiles })
    }
}

/// The histogram that `encoded` is. What the library would take at its word is looked at before.
fn decode(encoded: &[u8]) -> Result<Histogram<u64>, LatenciesError> {
    let (header, counts) = encoded.split_at_checked(HEADER).ok_or(LatenciesError::Foreign)?;
    if u32::try_from(counts.len()).ok().is_none_or(|length| header != self::header(length)) {
        return Err(LatenciesError::Foreign);
    }
    // A count of 9 bytes, whose sign the library can't always turn.
    if counts.windows(LONGEST_COUNT).any(|bytes| bytes.iter().all(|byte| byte & 0x80 != 0)) {
        return Err(LatenciesError::Counts("one takes more than 8 bytes".to_owned()));
    }
    let histogram: Histogram<u64> = Decoder::new()
        .deserialize(&mut &*encoded)
        .map_err(|error| LatenciesError::Counts(error.to_string()))?;
    if histogram.len() > MOST_COUNTED {
        return Err(LatenciesError::TooMany { counted: histogram.len() });
    }
    Ok(histogram)
}

/// The header of a [`Recorder`]'s encoding, with so many bytes of counts.
fn header(length: u32) -> Vec<u8> {
    /// Of the V2 encoding without compression.
    const COOKIE: u32 = 0x1c84_9313;
    /// What the index of a count is shifted by.
    const OFFSET: u32 = 0;
    /// What values were multiplied by.
    const RATIO: f64 = 1.0;
    let words = [COOKIE, length, OFFSET, u32::from(DIGITS)].map(u32::to_be_bytes);
    let bounds = [1, HIGHEST.0, RATIO.to_bits()].map(u64::to_be_bytes);
    words.as_flattened().iter().chain(bounds.as_flattened()).copied().collect()
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.encoded))
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(&Cow::<str>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for Latencies {
    fn schema_name() -> Cow<'static, str> {
        "Latencies".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let what = "An HDR histogram of nanoseconds (V2 encoding, base64): hdrhistogram's libraries read it.";
        json_schema!({"description": what, "type": "string", "contentEncoding": "base64"})
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[u64]) -> Latencies {
        let mut recorder = Recorder::new().expect("good bounds");
        values.iter().for_each(|value| recorder.record(Duration::from_nanos(*value)));
        recorder.finish().expect("is written")
    }

    fn text(latencies: &Latencies) -> String {
        serde_json::to_string(latencies).expect("is JSON")
    }

    fn refused(bytes: &[u8]) -> String {
        let text = format!("\"{}\"", STANDARD.encode(bytes));
        serde_json::from_str::<Latencies>(&text).expect_err("is none").to_string()
    }

    #[test]
    fn percentiles_have_three_digits() {
        let all: Vec<u64> = (1..=1000).map(|n| n * 1_000).collect();
        let percentiles = of(&all).percentiles();
        let near = |span: Span, value: f64| (span.0 as f64 / value - 1.0).abs() < 0.001;
        assert_eq!(percentiles.count, 1000);
        for (span, value) in [
            (percentiles.min, 1e3),
            (percentiles.p50, 500e3),
            (percentiles.p90, 900e3),
            (percentiles.p99, 990e3),
            (percentiles.p999, 999e3),
            (percentiles.max, 1e6),
        ] {
            assert!(near(span, value), "{span} is not {value}");
        }
        assert_eq!(of(&[]).percentiles(), Percentiles::default());
        assert!(near(of(&[u64::MAX]).percentiles().max, HIGHEST.0 as f64));
    }

    #[test]
    fn what_an_agent_makes_up_is_refused_before_it_costs_anything() {
        let good = of(&[5, 5, 7_000, 1 << 40]).encoded;
        let changed = |at: usize, bytes: &[u8]| {
            let mut changed = good.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            refused(&changed)
        };
        assert!(refused(&[]).contains("is not of 1ns to "), "{}", refused(&[]));
        assert!(changed(0, &[1]).contains("is not of"), "another encoding");
        assert!(changed(4, &u32::MAX.to_be_bytes()).contains("is not of"), "counts that are not there");
        assert!(changed(12, &5_u32.to_be_bytes()).contains("is not of"), "5 digits");
        assert!(changed(24, &u64::MAX.to_be_bytes()).contains("is not of"), "all of 64 bits");
        let with = |counts: &[u8]| {
            let length = u32::try_from(counts.len()).expect("is short").to_be_bytes();
            let mut bytes = good[..HEADER].to_vec();
            bytes[4..8].copy_from_slice(&length);
            bytes.extend(counts);
            refused(&bytes)
        };
        assert!(with(&[0xff; 9]).contains("more than 8 bytes"), "a count of 2^63");
        let most = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(with(&most).contains("at most"), "a count of 2^55");
        assert!(with(&most.repeat(1000)).contains("at most"), "counts whose sum is over 2^64");
        assert!(with(&[2; MOST_COUNTS]).contains("longer than it should be"));
        assert!(with(&[0x80]).contains("can't be read"));
        assert!(refused(&vec![0; LONGEST + 3]).contains("one has at most"));
        assert!(
            serde_json::from_str::<Latencies>("\"?\"").expect_err("is none").to_string().contains("base64")
        );
    }

    #[test]
    fn the_longest_that_there_is_fits() {
        let histogram = Recorder::new().expect("good bounds").0;
        assert!(histogram.distinct_values() <= MOST_COUNTS, "{}", histogram.distinct_values());
    }

    #[test]
    fn a_distribution_comes_closer_to_the_longest_step_by_step() {
        let steps = of(&(1..=10_000).collect::<Vec<_>>()).distribution(2).expect("was read");
        assert!(steps.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1), "{steps:?}");
        assert!(steps.len() > 20 && steps.last().is_some_and(|last| last.0 == 1.0), "{steps:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn merged_histograms_are_that_of_the_union(
            runs in prop::collection::vec(prop::collection::vec(0..10_000_000_000_000_u64, 0..60), 1..6),
        ) {
            let each: Vec<Latencies> = runs.iter().map(|run| of(run)).collect();
            let merged = Latencies::merged(&each).expect("are good").expect("at least one");
            prop_assert_eq!(&merged, &of(&runs.concat()));
            prop_assert_eq!(merged.percentiles().count, runs.concat().len() as u64);
        }

        #[test]
        fn what_was_written_is_read(values in prop::collection::vec(any::<u64>(), 0..100)) {
            let latencies = of(&values);
            prop_assert_eq!(serde_json::from_str::<Latencies>(&text(&latencies)).expect("reads"), latencies);
        }

        #[test]
        fn no_bytes_panic(counts in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = of(&[]).encoded[..HEADER].to_vec();
            bytes[4..8].copy_from_slice(&u32::try_from(counts.len()).expect("is short").to_be_bytes());
            bytes.extend(counts);
            let _ = serde_json::from_str::<Latencies>(&format!("\"{}\"", STANDARD.encode(bytes)));
        }
    }
}
