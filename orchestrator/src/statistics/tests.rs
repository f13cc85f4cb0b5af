use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::*;

fn rng(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// A standard normal deviate (Box & Muller 1958).
fn normal<R: Rng>(rng: &mut R) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

fn single(arm: f64, native: f64) -> PairedBlock {
    PairedBlock { arm: vec![arm], native: vec![native] }
}

#[test]
fn the_median_is_the_middle_value() {
    assert_eq!(median(&[]), None);
    assert_eq!(median(&[7.0]), Some(7.0));
    assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    assert_eq!(median(&[1.0, f64::NAN]), None);
    assert_eq!(median(&[1.0, f64::INFINITY]), None);
}

#[test]
fn fewer_than_three_runs_have_no_interval() {
    assert_eq!(median_estimate(&[], &mut rng(1)), None);
    for values in [&[5.0][..], &[5.0, 6.0]] {
        let estimate = median_estimate(values, &mut rng(1)).expect("a median");
        assert_eq!(estimate.ci95, None);
    }
    assert!(median_estimate(&[5.0, 6.0, 7.0], &mut rng(1)).expect("a median").ci95.is_some());
}

#[test]
fn identical_runs_have_an_interval_without_width() {
    let estimate = median_estimate(&[5.0; 4], &mut rng(1)).expect("a median");
    assert_eq!((estimate.median, estimate.ci95), (5.0, Some([5.0, 5.0])));
    let ratio = paired_ratio(&vec![single(2.0, 4.0); 5], &mut rng(1)).expect("a ratio");
    let [lower, upper] = ratio.ci95.expect("an interval");
    assert!(
        (ratio.estimate - 0.5).abs() < 1e-12 && (lower - 0.5).abs() < 1e-12 && (upper - 0.5).abs() < 1e-12
    );
}

#[test]
fn runs_without_bytes_keep_the_limits_in_range() {
    let estimate = median_estimate(&[0.0, 0.0, 8.0, 9.0, 10.0], &mut rng(1)).expect("a median");
    let [lower, upper] = estimate.ci95.expect("an interval");
    assert_eq!(lower, 0.0);
    assert!(upper.is_finite() && upper >= 9.0, "{upper}");
    assert_eq!(median_estimate(&[0.0; 5], &mut rng(1)).and_then(|estimate| estimate.ci95), Some([0.0, 0.0]));
    assert_eq!(median_estimate(&[-1.0, 2.0, 3.0], &mut rng(1)), None);
}

#[test]
fn the_interval_contains_its_estimate_and_is_positive() {
    let mut source = rng(9);
    for count in 3..40 {
        let values: Vec<f64> = (0..count).map(|_| (2.0 * normal(&mut source)).exp()).collect();
        let estimate = median_estimate(&values, &mut source).expect("a median");
        let [lower, upper] = estimate.ci95.expect("an interval");
        assert!(0.0 < lower && lower <= estimate.median && estimate.median <= upper, "{count}: {estimate:?}");
    }
}

#[test]
fn the_ratio_is_the_geometric_mean_of_the_blocks() {
    let blocks = [single(1.0, 2.0), single(8.0, 4.0), single(1.0, 4.0)];
    let ratio = paired_ratio(&blocks, &mut rng(1)).expect("a ratio");
    assert!((ratio.estimate - 0.25_f64.powf(1.0 / 3.0)).abs() < 1e-12);
    assert_eq!(ratio.blocks, 3);
}

#[test]
fn exchanging_the_arms_inverts_the_ratio() {
    let mut source = rng(2);
    let blocks: Vec<PairedBlock> = (0..6)
        .map(|_| single((0.1 * normal(&mut source)).exp(), (0.1 * normal(&mut source)).exp()))
        .collect();
    let exchanged: Vec<PairedBlock> = blocks
        .iter()
        .map(|block| PairedBlock { arm: block.native.clone(), native: block.arm.clone() })
        .collect();
    let (there, back) = (paired_ratio(&blocks, &mut rng(3)), paired_ratio(&exchanged, &mut rng(3)));
    let (there, back) = (there.expect("a ratio"), back.expect("a ratio"));
    assert!((there.estimate * back.estimate - 1.0).abs() < 1e-12);
    let ([lower, upper], [back_lower, back_upper]) = (there.ci95.expect("one"), back.ci95.expect("one"));
    assert!((lower * back_upper - 1.0).abs() < 1e-9 && (upper * back_lower - 1.0).abs() < 1e-9);
}

#[test]
fn drift_between_blocks_cancels() {
    // The machine gets ten times slower over the campaign; the arm is always at 80 % of native.
    let blocks: Vec<PairedBlock> =
        (0..8).map(|i| 10_f64.powf(f64::from(i) / -7.0)).map(|x| single(0.8 * x, x)).collect();
    let [lower, upper] =
        paired_ratio(&blocks, &mut rng(4)).and_then(|ratio| ratio.ci95).expect("an interval");
    assert!(upper - lower < 1e-9 && (lower - 0.8).abs() < 1e-9);
}

#[test]
fn a_block_counts_only_with_both_arms() {
    let half = |arm: &[f64], native: &[f64]| PairedBlock { arm: arm.to_vec(), native: native.to_vec() };
    assert_eq!(paired_ratio(&[], &mut rng(1)), None);
    assert_eq!(paired_ratio(&[half(&[1.0], &[]), half(&[], &[1.0])], &mut rng(1)), None);
    let blocks = [single(1.0, 2.0), half(&[100.0], &[]), single(1.0, 2.0)];
    let ratio = paired_ratio(&blocks, &mut rng(1)).expect("a ratio");
    assert!((ratio.estimate - 0.5).abs() < 1e-12);
    assert_eq!((ratio.blocks, ratio.ci95), (2, None));
}

#[test]
fn a_run_without_bytes_leaves_no_ratio() {
    let good = single(1.0, 2.0);
    for bad in [single(0.0, 2.0), single(1.0, 0.0), single(f64::NAN, 1.0), single(1.0, f64::INFINITY)] {
        assert_eq!(paired_ratio(&[good.clone(), bad, good.clone(), good.clone()], &mut rng(1)), None);
    }
    // Without a partner it is in no ratio.
    let alone = PairedBlock { arm: vec![0.0], native: vec![] };
    assert!(paired_ratio(&[good.clone(), alone, good], &mut rng(1)).is_some());
}

#[test]
fn the_same_seed_gives_the_same_interval() {
    let blocks: Vec<PairedBlock> = (1..6).map(|i| single(f64::from(i), 6.0 - f64::from(i) / 2.0)).collect();
    assert_eq!(paired_ratio(&blocks, &mut rng(5)), paired_ratio(&blocks, &mut rng(5)));
    let values = [1.0, 5.0, 2.0, 4.0];
    assert_eq!(median_estimate(&values, &mut rng(5)), median_estimate(&values, &mut rng(5)));
}

#[test]
fn several_runs_in_a_block_widen_the_interval() {
    let one: Vec<PairedBlock> = (0..5).map(|i| single(1.0 + 0.01 * f64::from(i), 2.0)).collect();
    let several: Vec<PairedBlock> = one
        .iter()
        .map(|block| PairedBlock {
            arm: vec![block.arm[0] / 1.2, block.arm[0] * 1.2],
            native: block.native.clone(),
        })
        .collect();
    let width = |blocks: &[PairedBlock]| {
        let ratio = paired_ratio(blocks, &mut rng(6)).expect("a ratio");
        let [lower, upper] = ratio.ci95.expect("an interval");
        (ratio.estimate, upper - lower)
    };
    let ((ratio_one, width_one), (ratio_several, width_several)) = (width(&one), width(&several));
    assert!((ratio_one - ratio_several).abs() < 1e-12, "runs within a block are averaged");
    assert!(width_several > 2.0 * width_one, "{width_several} {width_one}");
}

#[test]
fn quantiles_of_student_t_are_those_of_the_tables() {
    for (freedom, value) in [(1, 12.7062), (2, 4.3027), (9, 2.2622), (10, 2.2281), (19, 2.0930), (29, 2.0452)]
    {
        assert!((student_t_975(freedom) - value).abs() < 5e-4, "{freedom}: {}", student_t_975(freedom));
    }
    for (n, factor) in [(3, 2.69), (5, 1.58), (10, 1.22), (30, 1.06)] {
        assert!((expansion(n) - factor).abs() < 0.005, "{n}: {}", expansion(n));
    }
}

/// Share of 400 simulated campaigns whose interval contains the truth.
fn coverage(seed: u64, mut covers: impl FnMut(&mut Xoshiro256PlusPlus) -> bool) -> f64 {
    let mut source = rng(seed);
    let campaigns = 400;
    (0..campaigns).filter(|_| covers(&mut source)).count() as f64 / f64::from(campaigns)
}

fn contains(ci95: Option<[f64; 2]>, truth: f64) -> bool {
    ci95.is_some_and(|[lower, upper]| lower <= truth && truth <= upper)
}

#[test]
fn the_median_interval_covers_the_truth_95_percent() {
    for n in [3, 5, 10] {
        let covered = coverage(n as u64, |source| {
            let runs: Vec<f64> = (0..n).map(|_| 9.4e8 * (0.03 * normal(source)).exp()).collect();
            contains(median_estimate(&runs, source).and_then(|estimate| estimate.ci95), 9.4e8)
        });
        assert!((0.90..=0.99).contains(&covered), "n = {n}: {covered}");
    }
}

#[test]
fn the_ratio_interval_covers_the_truth_95_percent() {
    for n in [3, 5, 10] {
        let covered = coverage(100 + n as u64, |source| {
            let blocks: Vec<PairedBlock> = (0..n)
                .map(|_| {
                    let drift = (0.3 * normal(source)).exp();
                    single(0.4 * drift * (0.05 * normal(source)).exp(), drift * (0.02 * normal(source)).exp())
                })
                .collect();
            contains(paired_ratio(&blocks, source).and_then(|ratio| ratio.ci95), 0.4)
        });
        assert!((0.90..=0.99).contains(&covered), "n = {n}: {covered}");
    }
}

#[test]
fn without_the_expansion_few_blocks_would_promise_too_much() {
    let covered = coverage(7, |source| {
        let values: Vec<f64> = (0..3).map(|_| normal(source)).collect();
        let means = (0..1000).map(|_| mean_of_draws(&values, source)).collect();
        contains(Some(percentile_interval(means)), 0.0)
    });
    assert!(covered < 0.85, "{covered}");
}

#[test]
fn a_difference_is_paired_within_blocks_and_may_be_of_any_sign() {
    // What drifts from block to block is the same for both arms.
    let blocks: Vec<PairedBlock> =
        [10.0, 50.0, 90.0, 20.0, 70.0].map(|drift| single(drift + 3.0, drift)).into();
    let difference = paired_difference(&blocks, &mut rng(1)).expect("five blocks");
    assert!((difference.estimate - 3.0).abs() < 1e-9 && difference.blocks == 5, "{difference:?}");
    let [lower, upper] = difference.ci95.expect("five blocks");
    assert!((lower - 3.0).abs() < 1e-9 && (upper - 3.0).abs() < 1e-9, "{difference:?}");
    let blocks: Vec<PairedBlock> = [-1.0, 0.0, -2.0].map(|arm| single(arm, 0.0)).into();
    let difference = paired_difference(&blocks, &mut rng(1)).expect("0 and less are numbers too");
    assert!((difference.estimate + 1.0).abs() < 1e-9, "{difference:?}");
    assert!(difference.ci95.is_some_and(|[lower, upper]| lower < -1.0 && upper > -1.0), "{difference:?}");
    assert_eq!(paired_difference(&blocks[..2], &mut rng(1)).expect("two blocks").ci95, None);
    assert_eq!(paired_difference(&[single(f64::NAN, 1.0)], &mut rng(1)), None);
    assert_eq!(paired_difference(&[PairedBlock { arm: vec![1.0], native: vec![] }], &mut rng(1)), None);
}
