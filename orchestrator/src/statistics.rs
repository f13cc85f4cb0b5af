//! The figures of a campaign and how sure they are. Pure functions; randomness is a parameter.
//!
//! ```text
//! runs of a cell ------------------> median, 95 % interval            [`median_estimate`]
//! runs of arm and native by block -> paired ratio, 95 % interval      [`paired_ratio`]
//!                                    or difference                    [`paired_difference`]
//! interval and limit --------------> pass | fail | inconclusive       `protocol/src/relation.rs`
//! ```
//! **Interval.** Throughput on shared hardware is not normal (Maricq et al., "Taming Performance Variability",
//! OSDI 2018, 4), so every interval is a percentile bootstrap (Efron & Tibshirani, "An Introduction to the
//! Bootstrap", 1993, ch. 13) of [`RESAMPLES`] resamples. That interval is too short when there are few runs: its
//! spread is that of a plug-in variance, sqrt((n - 1) / n) of the unbiased one, and it takes no account of the
//! variance being estimated. Both are put right by one factor on its distance from the estimate,
//! t(0.975, n - 1) / 1.96 * sqrt(n / (n - 1)): the expansion of Hesterberg, "What Teachers Should Know About the
//! Bootstrap", The American Statistician 69(4), 2015, 3.2, applied to the limits instead of the percentiles, as
//! percentiles beyond the smallest of n = 3 runs don't exist. It raises the coverage of a mean from 75 % to 95 % at
//! n = 3 and from 86 % to 96 % at n = 5 (docs/adr/0004-statistics.md).
//!
//! **Ratio.** Both arms of a block ran on the same hosts within minutes, so what drifts between blocks cancels in
//! the block's log-ratio. The mean of the log-ratios is symmetric in the arms: native/guest is exactly the inverse
//! of guest/native.

use rand::{Rng, RngExt};
use toll_protocol::result::{DifferenceEstimate, MedianEstimate, RatioEstimate};

#[cfg(test)]
mod tests;

/// Bootstrap resamples behind each interval.
pub const RESAMPLES: usize = 10_000;

/// Fewest runs, or blocks, that an interval is given for.
pub const FEWEST: usize = 3;

/// The two arms' runs in one block.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PairedBlock {
    /// Numbers of the arm's measured runs.
    pub arm: Vec<f64>,
    /// Those of the native baseline's.
    pub native: Vec<f64>,
}

/// Median of `values`: the middle one, or the mean of the two in the middle. `None` without values, or if one is
/// not finite.
pub fn median(values: &[f64]) -> Option<f64> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    Some(middle(&mut values.to_vec()))
}

/// Median of finite `values`, at least one, whose order is lost.
fn middle(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

/// Median of `values`, none of them negative, with its 95 % interval. `None` without values or if one is negative
/// or not finite; no interval from fewer than [`FEWEST`].
///
/// The limits are widened on the logarithmic scale, so that they stay positive; if the lower percentile is 0,
/// there is no such scale and the lower limit is 0.
pub fn median_estimate<R: Rng>(values: &[f64], rng: &mut R) -> Option<MedianEstimate> {
    if values.iter().any(|value| *value < 0.0) {
        return None;
    }
    let estimate = median(values)?;
    let ci95 = (values.len() >= FEWEST).then(|| {
        let mut resample = vec![0.0; values.len()];
        let medians = (0..RESAMPLES).map(|_| {
            resample.fill_with(|| draw(values, rng));
            middle(&mut resample)
        });
        let [lower, upper] = percentile_interval(medians.collect());
        let factor = expansion(values.len());
        if lower > 0.0 {
            [lower, upper].map(|limit| estimate * (limit / estimate).powf(factor))
        } else {
            [0.0, estimate + (upper - estimate) * factor]
        }
    });
    Some(MedianEstimate { median: estimate, ci95 })
}

/// Ratio of an arm to native over the blocks in which both were measured: the exponential of the mean over blocks
/// of log(geometric mean of the arm's runs / geometric mean of native's runs).
///
/// The bootstrap has the data's two levels: blocks are drawn with replacement and, within each block drawn, the
/// runs of each arm. With one run of each arm in a block, the usual plan, the second level does nothing; with
/// more it errs on the wide side, as it counts the variance within blocks twice.
///
/// `None` if no block has both arms, and if any run in such a block moved no bytes: the logarithm of 0 does not
/// exist, and leaving just that block out would flatter the arm. No interval from fewer than [`FEWEST`] blocks.
pub fn paired_ratio<R: Rng>(blocks: &[PairedBlock], rng: &mut R) -> Option<RatioEstimate> {
    let log = |value: f64| (value.is_finite() && value > 0.0).then(|| value.ln());
    let Paired { mean, ci95, blocks } = paired(blocks, log, rng)?;
    Some(RatioEstimate { estimate: mean.exp(), ci95: ci95.map(|ci95| ci95.map(f64::exp)), blocks })
}

/// Difference of an arm to native over the blocks in which both were measured: the mean over blocks of the mean of the arm's
/// runs less the mean of native's. Its interval is made as that of [`paired_ratio`].
///
/// `None` if no block has both arms, or a number is not finite. No interval from fewer than [`FEWEST`] blocks.
pub fn paired_difference<R: Rng>(blocks: &[PairedBlock], rng: &mut R) -> Option<DifferenceEstimate> {
    let finite = |value: f64| value.is_finite().then_some(value);
    let Paired { mean, ci95, blocks } = paired(blocks, finite, rng)?;
    Some(DifferenceEstimate { estimate: mean, ci95, blocks })
}

/// A mean of differences within blocks.
struct Paired {
    mean: f64,
    ci95: Option<[f64; 2]>,
    blocks: u32,
}

/// Mean difference of the arm's numbers to native's within blocks, each as `scale` has it.
fn paired<R: Rng>(blocks: &[PairedBlock], scale: impl Fn(f64) -> Option<f64>, rng: &mut R) -> Option<Paired> {
    let scaled = |values: &[f64]| -> Option<Vec<f64>> { values.iter().map(|value| scale(*value)).collect() };
    let paired: Option<Vec<PairedBlock>> = blocks
        .iter()
        .filter(|block| !block.arm.is_empty() && !block.native.is_empty())
        .map(|block| Some(PairedBlock { arm: scaled(&block.arm)?, native: scaled(&block.native)? }))
        .collect();
    let paired = paired.filter(|blocks| !blocks.is_empty())?;

    let differences: Vec<f64> = paired.iter().map(|block| mean(&block.arm) - mean(&block.native)).collect();
    let estimate = mean(&differences);
    let ci95 = (paired.len() >= FEWEST).then(|| {
        let count = paired.len() as f64;
        let means = (0..RESAMPLES).map(|_| {
            let total: f64 = (0..paired.len())
                .map(|_| {
                    let block = &paired[rng.random_range(0..paired.len())];
                    mean_of_draws(&block.arm, rng) - mean_of_draws(&block.native, rng)
                })
                .sum();
            total / count
        });
        let factor = expansion(paired.len());
        percentile_interval(means.collect()).map(|limit| estimate + (limit - estimate) * factor)
    });
    Some(Paired { mean: estimate, ci95, blocks: u32::try_from(paired.len()).unwrap_or(u32::MAX) })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// One of `values`, which are not empty.
fn draw<R: Rng>(values: &[f64], rng: &mut R) -> f64 {
    values[rng.random_range(0..values.len())]
}

fn mean_of_draws<R: Rng>(values: &[f64], rng: &mut R) -> f64 {
    match values {
        [only] => *only,
        _ => (0..values.len()).map(|_| draw(values, rng)).sum::<f64>() / values.len() as f64,
    }
}

/// The 2.5 % and 97.5 % percentiles of a bootstrap distribution, by linear interpolation between order statistics
/// (definition 7 of Hyndman & Fan, The American Statistician 50(4), 1996).
fn percentile_interval(mut distribution: Vec<f64>) -> [f64; 2] {
    distribution.sort_unstable_by(f64::total_cmp);
    [0.025, 0.975].map(|share| {
        let place = share * (distribution.len() - 1) as f64;
        let (below, above) = (place.floor(), place.ceil());
        let (low, high) = (distribution[below as usize], distribution[above as usize]);
        low + (high - low) * (place - below)
    })
}

/// By how much the distance of a percentile limit from the estimate is widened for `n` runs: see the module's
/// head. 2.69 at 3, 1.58 at 5, 1.22 at 10, 1.06 at 30. `n` is at least 2.
fn expansion(n: usize) -> f64 {
    let n_f = n as f64;
    student_t_975(n - 1) / Z_975 * (n_f / (n_f - 1.0)).sqrt()
}

const Z_975: f64 = 1.959_963_984_540_054;

/// The 97.5 % quantile of Student's t with so many degrees of freedom, at least 1: tabulated to 9, then the
/// expansion of Abramowitz & Stegun, 26.7.5, to its third order (right to 0.0005).
fn student_t_975(freedom: usize) -> f64 {
    const TABLE: [f64; 9] = [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622];
    if let Some(value) = freedom.checked_sub(1).and_then(|index| TABLE.get(index)) {
        return *value;
    }
    let (z, v) = (Z_975, freedom as f64);
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + first / v + second / v.powi(2) + third / v.powi(3)
}
