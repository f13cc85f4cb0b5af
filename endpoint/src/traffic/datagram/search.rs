//! The highest rate whose loss is allowed: binary search with loss verification (ETSI GS NFV-TST 009, 12.3.3), a pure state
//! machine.
//!
//! ```text
//!  first: the highest rate --loss allowed--> found
//!     '--more--> again at the same rate --more--> upper = it, try (lower + upper) / 2
//!                          '--allowed--> lower = it, as if the first had not been
//!  upper - lower <= precision of upper: found = lower
//! ```
//! A loss that comes from a moment's disturbance, as a virtual machine's host has them, does not come again in the
//! verification, and so does not halve the rate for good. MLRsearch (draft-ietf-bmwg-mlrsearch) finds a lower and an upper bound for several goals
//! by trials whose number and length it decides as it goes; here a trial has a deadline, so the number is bounded.

use toll_protocol::traffic::datagram::{Found, SEARCH_TRIALS, Search as Parameters};
use toll_protocol::units::BitRate;

/// Trials at a rate whose loss was too high before it is given up.
const VERIFICATIONS: u32 = 1;
/// A rate came slower than it was sent from so many hundredths on: less is what threads wait for a CPU.
const BUFFERED: u64 = 5;

/// What a trial gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Datagrams sent, and of these received.
    pub sent: u64,
    /// Each once.
    pub received: u64,
    /// Rate at which they really were sent, in bits of payload a second.
    pub offered: u64,
    /// The same by the time from the first to the last that came: less where buffers on the path filled meanwhile.
    pub carried: u64,
}

/// What is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A trial at this rate, in bits of payload a second; as fast as they go without.
    Try(Option<u64>),
    /// It is over.
    Found(Found),
    /// There is none: also at the lowest rate that was tried, this one, more was lost.
    Nothing(BitRate),
}

/// The state machine.
#[derive(Debug)]
pub struct Search {
    parameters: Parameters,
    /// The lowest rate that is worth a trial.
    least: u64,
    trying: Option<u64>,
    /// Rates with loss as allowed, and with more.
    lower: u64,
    upper: Option<u64>,
    /// At what rate the datagrams of `lower` came.
    carried: u64,
    failures: u32,
    trials: u32,
}

impl Search {
    /// A search below `highest` and not below `least`, bits of payload a second.
    pub const fn new(parameters: Parameters, highest: Option<u64>, least: u64) -> Self {
        Self { parameters, least, trying: highest, lower: 0, upper: None, carried: 0, failures: 0, trials: 0 }
    }

    /// The first trial.
    pub const fn first(&self) -> Next {
        Next::Try(self.trying)
    }

    /// What to do after a trial.
    pub fn take(&mut self, outcome: Outcome) -> Next {
        self.trials += 1;
        let Outcome { sent, received, offered, carried } = outcome;
        let lost = u128::from(sent.saturating_sub(received)) * 1_000_000;
        let passes = sent > 0 && lost <= u128::from(self.parameters.at_most_ppm) * u128::from(sent);
        // Nobody can find more than the sender offers.
        let asked = self.trying.unwrap_or(offered);
        let rate = asked.min(offered);
        if passes {
            self.failures = 0;
            if rate >= self.lower {
                (self.lower, self.carried) = (rate, rate.min(carried));
            }
            // What is over the path's rate lies in its buffers at the end of a short trial, and is not lost: what came says
            // what the path carries.
            if self.upper.is_none()
                || rate.min(carried) < asked - self.part(asked).max(asked / 100 * BUFFERED)
            {
                return self.found();
            }
        } else {
            self.failures += 1;
            if self.failures <= VERIFICATIONS && self.trials < SEARCH_TRIALS {
                return Next::Try(self.trying);
            }
            self.failures = 0;
            // A sender that was slower than asked lost at its own rate.
            self.upper = Some(self.upper.unwrap_or(u64::MAX).min(rate.max(self.lower)));
        }
        let upper = self.upper.unwrap_or(asked);
        let middle = self.lower + (upper - self.lower) / 2;
        if upper - self.lower <= self.part(upper) || self.trials >= SEARCH_TRIALS || middle < self.least {
            return self.found();
        }
        self.trying = Some(middle);
        Next::Try(self.trying)
    }

    fn found(&self) -> Next {
        if self.carried == 0 {
            return Next::Nothing(BitRate(self.upper.unwrap_or(0)));
        }
        Next::Found(Found { rate: BitRate(self.carried), trials: self.trials })
    }

    /// What the precision leaves open of a rate.
    fn part(&self, rate: u64) -> u64 {
        let part = u128::from(rate) * u128::from(self.parameters.precision_ppm) / 1_000_000;
        u64::try_from(part).unwrap_or(rate).min(rate)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use toll_protocol::units::Span;

    use super::*;

    const fn parameters(at_most_ppm: u32, precision_ppm: u32) -> Parameters {
        Parameters { at_most_ppm, precision_ppm, trial: Span::from_millis(100) }
    }

    /// Runs `search` on a path that carries `capacity`, by a sender that sends at most `most`; `disturbed` says which trials
    /// lose one datagram more.
    fn run(mut search: Search, capacity: u64, most: u64, disturbed: impl Fn(u32) -> bool) -> (Next, u32) {
        let (mut next, mut trials) = (search.first(), 0);
        while let Next::Try(rate) = next {
            assert!(trials < SEARCH_TRIALS, "it has an end");
            let offered = rate.unwrap_or(most).min(most);
            let sent = 1_000_000;
            let received = sent * capacity.min(offered) / offered.max(1) - u64::from(disturbed(trials));
            next = search.take(Outcome { sent, received, offered, carried: offered });
            trials += 1;
        }
        (next, trials)
    }

    proptest! {
        #[test]
        fn it_finds_what_a_path_carries(
            capacity in 1_000_000_u64..100_000_000_000, highest in prop::option::of(1_000_000_u64..100_000_000_000),
            most in 1_000_000_u64..100_000_000_000, allowed in prop_oneof![Just(0_u32), 1_u32..20_000],
            precision in prop_oneof![Just(1_000_u32), 10_000_u32..200_000],
        ) {
            let top = highest.unwrap_or(most).min(most);
            prop_assume!(capacity > top / 64);
            let (next, _) = run(Search::new(parameters(allowed, precision), highest, 100), capacity, most, |_| false);
            let Next::Found(found) = next else { return Err(TestCaseError::fail(format!("{next:?}"))) };
            // What is allowed to be lost is sent besides what the path carries.
            let carried = (capacity as f64 / (1.0 - f64::from(allowed) / 1e6)).min(top as f64);
            let precision = f64::from(precision) / 1e6 + 1e-5;
            prop_assert!(found.rate.0 as f64 <= carried * 1.00001 + 1.0, "{found:?} over {carried}");
            prop_assert!(found.rate.0 as f64 >= carried * (1.0 - precision) - 2.0 || found.trials == SEARCH_TRIALS,
                "{found:?} below {carried}");
        }
    }

    #[test]
    fn a_loss_that_does_not_come_again_costs_a_trial_and_no_rate() {
        let search = || Search::new(parameters(0, 10_000), Some(1_000_000_000), 100);
        let (quiet, trials) = run(search(), 2_000_000_000, 5_000_000_000, |_| false);
        assert_eq!((quiet, trials), (Next::Found(Found { rate: BitRate(1_000_000_000), trials: 1 }), 1));
        let (once, trials) = run(search(), 2_000_000_000, 5_000_000_000, |trial| trial == 0);
        assert_eq!((once, trials), (Next::Found(Found { rate: BitRate(1_000_000_000), trials: 2 }), 2));
    }

    #[test]
    fn a_path_that_carries_nothing_has_no_rate() {
        let (next, trials) =
            run(Search::new(parameters(1_000, 10_000), None, 1_000), 0, 1_000_000, |_| false);
        assert!(matches!(next, Next::Nothing(rate) if rate.0 < 2_000), "{next:?}");
        assert!(trials <= SEARCH_TRIALS);
    }

    /// A trial whose excess fits the buffers of the path loses nothing.
    #[test]
    fn what_lies_in_buffers_is_not_carried() {
        let mut search = Search::new(parameters(0, 10_000), None, 100);
        let next = search.take(Outcome { sent: 1_000, received: 1_000, offered: 120_000, carried: 97_000 });
        assert_eq!(next, Next::Found(Found { rate: BitRate(97_000), trials: 1 }));
    }

    #[test]
    fn a_sender_that_is_slower_than_asked_finds_its_own_rate() {
        let (next, _) =
            run(Search::new(parameters(0, 10_000), Some(10_000), 10), 1_000_000, 7_000, |_| false);
        assert_eq!(next, Next::Found(Found { rate: BitRate(7_000), trials: 1 }));
    }
}
