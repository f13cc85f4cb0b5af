//! Plots as inline SVG. Each is a strip without a view box whose places are percentages, so that it takes the width
//! of the table cell it stands in, lines up with the strips above and below, and text and dots keep their size.
//! Colours and line widths are classes of `style.css`; every strip has a text of its figures beside it.

use maud::{Markup, html};

/// From figures to places on an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// Equal distances are equal differences.
    Linear {
        /// Figure at the low end.
        low: f64,
        /// Figure at the high end.
        high: f64,
    },
    /// Equal distances are equal ratios.
    Log {
        /// Figure at the low end, above 0.
        low: f64,
        /// Figure at the high end.
        high: f64,
    },
}

impl Scale {
    /// A scale for ratios with room for all of `values` and for 1: from 0, or logarithmic if the values span over a
    /// decade. Values that are not positive and finite have no place on it.
    pub fn of_ratios(values: impl IntoIterator<Item = f64>) -> Self {
        let values = values.into_iter().filter(|value| value.is_finite() && *value > 0.0);
        let (low, high) =
            values.fold((1.0_f64, 1.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        if high / low > 10.0 {
            // Down to 1, 2 or 5 of a decade, and a little air above.
            let decade = 10_f64.powf((low / 1.1).log10().floor());
            let low = [5.0, 2.0]
                .map(|m| m * decade)
                .into_iter()
                .find(|start| *start <= low / 1.1)
                .unwrap_or(decade);
            Self::Log { low, high: high * 1.35 }
        } else {
            Self::Linear { low: 0.0, high: high * 1.08 }
        }
    }

    /// A scale with room for all of `values` and for 5 % on both sides of `middle`: close enough to see drift, wide
    /// enough not to make noise of it.
    pub fn around(middle: f64, values: impl IntoIterator<Item = f64>) -> Self {
        let start = (middle * 0.95, middle * 1.05);
        let values = values.into_iter().filter(|value| value.is_finite());
        let (low, high) = values.fold(start, |(low, high), value| (low.min(value), high.max(value)));
        Self::Linear { low, high: if high > low { high } else { low + 1.0 } }
    }

    /// Place of `value`, 0 to 100; what lies outside is put at the end.
    pub fn place(&self, value: f64) -> f64 {
        let share = match *self {
            Self::Linear { low, high } => (value - low) / (high - low),
            Self::Log { low, high } => (value / low).ln() / (high / low).ln(),
        };
        if share.is_finite() { share.clamp(0.0, 1.0) * 100.0 } else { 0.0 }
    }

    /// Figures for grid lines, at most about eight.
    pub fn ticks(&self) -> Vec<f64> {
        match *self {
            Self::Linear { low, high } => {
                let rough = (high - low) / 5.0;
                let power = 10_f64.powf(rough.log10().floor());
                let step =
                    [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough);
                let step = step.unwrap_or(rough);
                let first = (low / step).ceil() as i64;
                (first..first + 12)
                    .map(|i| i as f64 * step)
                    .take_while(|tick| *tick <= high * (1.0 + 1e-9))
                    .collect()
            }
            Self::Log { low, high } => {
                let decades = (high / low).log10();
                let within: &[f64] = if decades < 2.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let first = low.log10().floor() as i32;
                let every = (decades / 8.0).ceil().max(1.0) as usize;
                (first..first + 40)
                    .step_by(every)
                    .flat_map(|decade| within.iter().map(move |m| m * 10_f64.powi(decade)))
                    .skip_while(|tick| *tick < low * (1.0 - 1e-9))
                    .take_while(|tick| *tick <= high)
                    .collect()
            }
        }
    }
}

fn at(place: f64) -> String {
    format!("{place:.2}%")
}

/// Names of the ticks, and of the line at 1.
pub fn ratio_axis(scale: &Scale) -> Markup {
    html! {
        svg.axis aria-hidden="true" {
            @for tick in scale.ticks() {
                @let x = at(scale.place(tick));
                @let one = (tick - 1.0).abs() < 1e-9;
                line.tick x1=(x) x2=(x) y1="74%" y2="100%" {}
                text.one[one] x=(x) y="62%" text-anchor=(if scale.place(tick) < 2.0 { "start" } else { "middle" }) {
                    (percent_tick(tick))
                }
            }
        }
    }
}

/// `0.1 %`, `40 %`: as many digits as the tick needs.
fn percent_tick(tick: f64) -> String {
    let percent = (tick * 100.0 * 1e6).round() / 1e6;
    format!("{percent} %")
}

/// One row of a forest plot: grid, the line at 1, the interval, the estimate and, below it, the runs. Without a figure, the
/// grid alone.
pub fn forest_row(
    scale: &Scale,
    figure: Option<(f64, Option<[f64; 2]>)>,
    runs: &[f64],
    class: &str,
) -> Markup {
    html! {
        svg.forest aria-hidden="true" {
            @for tick in scale.ticks() {
                @let x = at(scale.place(tick));
                line.grid x1=(x) x2=(x) y1="0" y2="100%" {}
            }
            @let one = at(scale.place(1.0));
            line.one x1=(one) x2=(one) y1="0" y2="100%" {}
            @for run in runs {
                circle.run.(class) cx=(at(scale.place(*run))) cy="80%" r="2.5" {}
            }
            @if let Some((estimate, ci95)) = figure {
                @if let Some([lower, upper]) = ci95 {
                    @let (from, to) = (at(scale.place(lower)), at(scale.place(upper)));
                    line.interval.(class) x1=(from) x2=(to) y1="46%" y2="46%" {}
                    line.interval.(class) x1=(from) x2=(from) y1="31%" y2="61%" {}
                    line.interval.(class) x1=(to) x2=(to) y1="31%" y2="61%" {}
                }
                circle.estimate.(class).open[ci95.is_none()] cx=(at(scale.place(estimate))) cy="46%" r="5" {}
            }
        }
    }
}

/// The runs of a cell in the order of their blocks: a dot each, a cross for one without a figure; the median as a
/// line and its interval as a band.
pub fn run_strip(runs: &[Option<f64>], median: f64, ci95: Option<[f64; 2]>, class: &str) -> Markup {
    let scale = strip_scale(runs, median, ci95);
    // 8 % of air above and below.
    let y = |value: f64| 92.0 - scale.place(value) * 0.84;
    let x = |index: usize| at((index as f64 + 0.5) / runs.len() as f64 * 100.0);
    html! {
        svg.strip aria-hidden="true" {
            @if let Some([lower, upper]) = ci95 {
                rect.band.(class) x="0" width="100%" y=(at(y(upper))) height=(at(y(lower) - y(upper))) {}
            }
            line.median.(class) x1="0" x2="100%" y1=(at(y(median))) y2=(at(y(median))) {}
            @for (index, run) in runs.iter().enumerate() {
                @match run {
                    Some(value) => { circle.dot.(class) cx=(x(index)) cy=(at(y(*value))) r="4" {} }
                    None => { text.missing x=(x(index)) y="92%" text-anchor="middle" { "×" } }
                }
            }
        }
    }
}

/// The limits that [`run_strip`] is drawn between.
pub fn strip_limits(runs: &[Option<f64>], median: f64, ci95: Option<[f64; 2]>) -> [f64; 2] {
    match strip_scale(runs, median, ci95) {
        Scale::Linear { low, high } | Scale::Log { low, high } => [low, high],
    }
}

fn strip_scale(runs: &[Option<f64>], median: f64, ci95: Option<[f64; 2]>) -> Scale {
    Scale::around(median, runs.iter().flatten().copied().chain(ci95.into_iter().flatten()))
}

/// A bar of parts, each with a class of its own, where `whole` is the full width. Parts without a figure are left
/// out.
pub fn bar(parts: &[(&str, Option<f64>)], whole: f64) -> Markup {
    let mut from = 0.0;
    let placed: Vec<(&str, f64, f64)> = parts
        .iter()
        .filter_map(|(class, value)| {
            let share = (value.filter(|value| *value > 0.0)? / whole * 100.0).min(100.0 - from);
            let start = from;
            from += share;
            Some((*class, start, share))
        })
        .collect();
    html! {
        svg.bar aria-hidden="true" {
            @for (class, start, share) in placed {
                rect.(class) x=(at(start)) width=(at(share)) y="18%" height="64%" {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_over_a_decade_apart_get_a_logarithmic_scale() {
        let linear = Scale::of_ratios([0.2, 1.05]);
        assert!(matches!(linear, Scale::Linear { low: 0.0, .. }), "{linear:?}");
        let log = Scale::of_ratios([0.0061, 1.01]);
        let Scale::Log { low, high } = log else { panic!("{log:?}") };
        assert!((low - 0.005).abs() < 1e-12 && high > 1.01);
        let ticks = log.ticks();
        assert_eq!(ticks.len(), 3, "{ticks:?}");
        for pair in ticks.windows(2) {
            assert!((pair[1] / pair[0] - 10.0).abs() < 1e-9, "{ticks:?}");
        }
    }

    #[test]
    fn one_has_always_a_place_and_nothing_is_outside() {
        for values in
            [vec![], vec![0.5], vec![30.0], vec![1e-9, 1e9], vec![0.0, f64::NAN, f64::INFINITY, -1.0]]
        {
            let scale = Scale::of_ratios(values.clone());
            for value in values.iter().copied().chain([1.0]) {
                let place = scale.place(value);
                assert!((0.0..=100.0).contains(&place), "{value} at {place}");
            }
            assert!((2..=13).contains(&scale.ticks().len()), "{:?}", scale.ticks());
            let places: Vec<f64> = scale.ticks().iter().map(|tick| scale.place(*tick)).collect();
            assert!(places.is_sorted(), "{places:?}");
        }
    }

    #[test]
    fn ticks_are_named_with_the_digits_they_need() {
        assert_eq!(
            [0.001, 0.02, 0.25, 1.0, 10.0].map(percent_tick),
            ["0.1 %", "2 %", "25 %", "100 %", "1000 %"]
        );
        assert_eq!(percent_tick(0.1 + 0.2), "30 %");
        let names: Vec<String> = Scale::of_ratios([0.4, 1.0]).ticks().into_iter().map(percent_tick).collect();
        assert_eq!(names, ["0 %", "25 %", "50 %", "75 %", "100 %"]);
    }

    #[test]
    fn strips_of_hostile_figures_are_still_strips() {
        for runs in [vec![], vec![None, None], vec![Some(0.0), None], vec![Some(f64::MAX), Some(0.0)]] {
            let text = run_strip(&runs, 0.0, None, "guest").into_string();
            assert!(text.starts_with("<svg") && !text.contains("NaN") && !text.contains("inf"), "{text}");
        }
        let text = bar(&[("guest", Some(f64::MAX)), ("vmm", None), ("host", Some(1.0))], 1.0).into_string();
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
