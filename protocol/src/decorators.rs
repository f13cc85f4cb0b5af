//! What stands between a virtual end's adapter and its port: a wire that is worse than it is, and a capture.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::numbers::{self, Seconds};
use crate::units::{BitRate, Bytes, Percent, Span};

/// A share in millionths, 0 to [`ALL`](Self::ALL): of frames, which have one fate or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
pub struct Millionths(pub u32);

impl Millionths {
    /// Every one.
    pub const ALL: Self = Self(1_000_000);

    /// The share that `percent` is, rounded; `None` if that is none, from 0 % to 100 %.
    pub fn from_percent(percent: Percent) -> Option<Self> {
        let share = percent.fraction() * 1e6;
        (0.0..=1e6).contains(&share).then(|| Self(share.round() as u32))
    }

    /// From 0 to 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

/// What is wrong with a wire, both ways alike: each direction has its own fate, drawn from the trial's id and the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Impairments {
    /// Bits a second; as many as there are if `None`.
    #[serde(rename = "rate_bits_per_second", with = "numbers")]
    #[schemars(with = "Option<u64>")]
    pub rate: Option<BitRate>,
    /// How long a frame is under way.
    #[serde(rename = "delay_seconds", with = "numbers")]
    #[schemars(with = "Seconds")]
    pub delay: Span,
    /// Frames that are lost.
    #[serde(rename = "loss_millionths")]
    pub loss: Millionths,
    /// Frames that come twice.
    #[serde(rename = "duplicate_millionths")]
    pub duplicate: Millionths,
    /// Frames that overtake those before them: they are not delayed.
    #[serde(rename = "reorder_millionths")]
    pub reorder: Millionths,
}

/// A capture of what crosses the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    /// Bytes of the file at most: what comes after that is not captured.
    #[serde(rename = "limit_bytes", with = "numbers")]
    #[schemars(with = "u64")]
    pub limit: Bytes,
}

/// What stands between an adapter and its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Decorators {
    /// A worse wire.
    pub impairments: Option<Impairments>,
    /// A capture, between the adapter and that wire: what the guest sent, and what came to it.
    pub capture: Option<Capture>,
}
