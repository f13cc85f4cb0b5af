//! Figures of a cell, with their intervals.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::figure::Unit;

/// A median with its 95 % bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MedianEstimate {
    /// The median of the runs.
    pub median: f64,
    /// Lower and upper limit; `None` from fewer than 3 runs.
    #[serde(flatten, with = "limits")]
    #[schemars(with = "limits::Limits")]
    pub ci95: Option<[f64; 2]>,
}

/// A paired ratio with its 95 % bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RatioEstimate {
    /// Exponential of the mean log-ratio, paired within blocks.
    pub estimate: f64,
    /// Lower and upper limit; `None` from fewer than 3 blocks.
    #[serde(flatten, with = "limits")]
    #[schemars(with = "limits::Limits")]
    pub ci95: Option<[f64; 2]>,
    /// Blocks in which both arms were measured.
    pub blocks: u32,
}

/// A paired difference with its 95 % bootstrap interval, in the figure's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DifferenceEstimate {
    /// Mean difference, paired within blocks.
    pub estimate: f64,
    /// Lower and upper limit; `None` from fewer than 3 blocks.
    #[serde(flatten, with = "limits")]
    #[schemars(with = "limits::Limits")]
    pub ci95: Option<[f64; 2]>,
    /// Blocks in which both arms were measured.
    pub blocks: u32,
}

/// A figure of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FigureEstimate {
    /// Unit of the median and its interval.
    pub unit: Unit,
    /// Median over the measured runs that have it.
    #[serde(flatten)]
    pub median: MedianEstimate,
    /// The same relative to that of the native arm with the same pair, workload and direction, paired within blocks.
    pub to_native: Option<RatioEstimate>,
    /// What it is more than native's, for figures that are compared so, paired within blocks.
    #[serde(default)]
    pub over_native: Option<DifferenceEstimate>,
}

/// What is written of an interval: its two limits, each a number of its own.
pub(super) mod limits {
    use schemars::JsonSchema;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    /// A 95 % interval.
    #[derive(Serialize, Deserialize, JsonSchema)]
    pub struct Limits {
        /// Lower limit; `null` from fewer than 3 runs or blocks.
        ci95_low: Option<f64>,
        /// Upper limit.
        ci95_high: Option<f64>,
    }

    pub fn serialize<S: Serializer>(limits: &Option<[f64; 2]>, serializer: S) -> Result<S::Ok, S::Error> {
        let (ci95_low, ci95_high) = (limits.map(|[low, _]| low), limits.map(|[_, high]| high));
        Limits { ci95_low, ci95_high }.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[f64; 2]>, D::Error> {
        match Limits::deserialize(deserializer)? {
            Limits { ci95_low: Some(low), ci95_high: Some(high) } => Ok(Some([low, high])),
            Limits { ci95_low: None, ci95_high: None } => Ok(None),
            Limits { .. } => Err(de::Error::custom("an interval has two limits, or none")),
        }
    }
}

/// Exits of one cause, over the measured runs of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CauseSummary {
    /// Exits in all runs.
    pub count: u64,
    /// Exits per frame in the direction of the payload.
    pub per_frame: Option<f64>,
    /// Mean handling time, time asleep left out.
    pub mean_handling_seconds: Option<f64>,
}
