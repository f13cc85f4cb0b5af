//! How a figure lies to the limit of a gate: one table. Whoever adds a relation adds a row to [`RELATIONS`].

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Verdict of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The whole interval is on the right side of the limit.
    Pass,
    /// The whole interval is on the wrong side.
    Fail,
    /// The interval contains the limit, or there is none: nothing was shown.
    Inconclusive,
}

/// A row of the table.
#[derive(Clone, Copy)]
pub struct Relation {
    /// Its field in a manifest.
    pub id: &'static str,
    /// Its name for people.
    pub words: &'static str,
    /// If its limits are distances from a ratio of 1: the largest one, as a fraction. Such a relation is of ratios alone, and its
    /// limits are above 0.
    pub widest: Option<f64>,
    /// Whether what has this 95 % interval lies so to a limit: on the one side or the other with the whole of it.
    pub holds: fn(interval: [f64; 2], limit: f64) -> Verdict,
}

impl Relation {
    /// That of this id.
    pub fn named(id: &str) -> Option<&'static Self> {
        RELATIONS.into_iter().find(|relation| relation.id == id)
    }

    /// The verdict on what has this interval, if it has one.
    pub fn verdict(&self, interval: Option<[f64; 2]>, limit: f64) -> Verdict {
        interval.map_or(Verdict::Inconclusive, |interval| (self.holds)(interval, limit))
    }
}

impl PartialEq for Relation {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Relation {}

impl fmt::Debug for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

/// What passes, what fails, and neither.
const fn verdict(passes: bool, fails: bool) -> Verdict {
    match (passes, fails) {
        (true, _) => Verdict::Pass,
        (_, true) => Verdict::Fail,
        (false, false) => Verdict::Inconclusive,
    }
}

/// At most so much.
pub static AT_MOST: Relation = Relation {
    id: "atMost",
    words: "at most",
    widest: None,
    holds: |[lower, upper], limit| verdict(upper <= limit, lower > limit),
};

/// At least so much.
pub static AT_LEAST: Relation = Relation {
    id: "atLeast",
    words: "at least",
    widest: None,
    holds: |[lower, upper], limit| verdict(lower >= limit, upper < limit),
};

/// A ratio is 1 within so much, either way: two one-sided tests by the interval's ends. Further apart than the half nothing is
/// equal.
pub static WITHIN: Relation = Relation {
    id: "within",
    words: "equal within",
    widest: Some(0.5),
    holds: |[lower, upper], margin| {
        let (least, most) = (1.0 - margin, 1.0 + margin);
        verdict(lower >= least && upper <= most, upper < least || lower > most)
    },
};

/// All of them, in the order in which they are named.
pub static RELATIONS: [&Relation; 3] = [&AT_MOST, &AT_LEAST, &WITHIN];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_the_whole_interval_on_one_side() {
        for (interval, most, least) in [
            (Some([0.05, 0.10]), Verdict::Pass, Verdict::Inconclusive),
            (Some([0.05, 0.11]), Verdict::Inconclusive, Verdict::Inconclusive),
            (Some([0.11, 0.12]), Verdict::Fail, Verdict::Pass),
            (Some([0.10, 0.12]), Verdict::Inconclusive, Verdict::Pass),
            (Some([0.01, 0.02]), Verdict::Pass, Verdict::Fail),
            (None, Verdict::Inconclusive, Verdict::Inconclusive),
        ] {
            let verdicts = (AT_MOST.verdict(interval, 0.10), AT_LEAST.verdict(interval, 0.10));
            assert_eq!(verdicts, (most, least), "{interval:?}");
        }
    }

    #[test]
    fn equivalence_is_shown_by_the_whole_interval() {
        for (interval, verdict) in [
            (Some([0.99, 1.01]), Verdict::Pass),
            (Some([0.98, 1.02]), Verdict::Pass),
            (Some([0.97, 1.01]), Verdict::Inconclusive),
            (Some([0.9, 1.1]), Verdict::Inconclusive),
            (Some([0.9, 0.97]), Verdict::Fail),
            (Some([1.03, 1.1]), Verdict::Fail),
            (None, Verdict::Inconclusive),
        ] {
            assert_eq!(WITHIN.verdict(interval, 0.02), verdict, "{interval:?}");
        }
    }

    #[test]
    fn ids_are_of_one_relation() {
        for relation in RELATIONS {
            assert_eq!(Relation::named(relation.id), Some(relation));
        }
        assert_eq!(Relation::named("about"), None);
    }
}
