//! Which datagrams are due: pure functions of the time.
//!
//! A datagram is due when all bytes before it have had their time at the rate. Those that have become due meanwhile go together, a
//! [`BURST`] at most: the sender sleeps no shorter than that, so that it asks the clock once for each burst.

use std::time::Duration;

use toll_protocol::traffic::datagram::SizeRun;

/// The shortest sleep.
pub const BURST: Duration = Duration::from_micros(100);
/// What a sender that was kept from running makes up for; the rest is not sent, so that no longer burst follows.
const DEBT: Duration = Duration::from_millis(10);

/// The moments of datagrams at a rate.
#[derive(Debug)]
pub struct Pace {
    /// Bits of payload a second, over 0.
    rate: u64,
    begin: Duration,
    /// Payload bytes since `begin`.
    bytes: u64,
}

impl Pace {
    /// A pace whose first datagram is due `now`.
    pub fn new(rate: u64, now: Duration) -> Self {
        Self { rate: rate.max(1), begin: now, bytes: 0 }
    }

    /// Payload bytes from whose first to whose last the datagrams begin that are due. 0: none is.
    pub fn due(&mut self, now: Duration) -> u64 {
        let next = self.next();
        if now < next {
            return 0;
        }
        if now - next > DEBT {
            self.begin += now - next - DEBT;
        }
        let passed = now.saturating_sub(self.begin).as_nanos();
        let bytes = passed * u128::from(self.rate) / 8_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).saturating_sub(self.bytes) + 1
    }

    /// So many bytes are sent.
    pub fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
        // Whole seconds are taken off, so that nothing grows without bound.
        let second = self.rate / 8;
        if self.rate.is_multiple_of(8) && second > 0 && self.bytes >= second {
            self.begin += Duration::from_secs(self.bytes / second);
            self.bytes %= second;
        }
    }

    /// When the next datagram is due.
    pub fn next(&self) -> Duration {
        let nanoseconds = (u128::from(self.bytes) * 8_000_000_000).div_ceil(u128::from(self.rate));
        self.begin.saturating_add(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }
}

/// Where a sender is in the order of sizes.
#[derive(Debug)]
pub struct Mix {
    runs: Vec<SizeRun>,
    run: usize,
    /// Datagrams of the run that are sent.
    sent: u16,
}

impl Mix {
    /// The order `runs`, not empty, from its begin.
    pub const fn new(runs: Vec<SizeRun>) -> Self {
        Self { runs, run: 0, sent: 0 }
    }

    /// Size of the next datagrams and how many there are of it, at most `most`, whose payload begins within `bytes`. In a mix
    /// of one size a run has no end.
    pub fn take(&mut self, most: usize, bytes: u64) -> (usize, usize) {
        let run = self.runs[self.run];
        let size = u64::from(run.size);
        let one = self.runs.len() == 1;
        let left = if one { usize::MAX } else { usize::from(run.count - self.sent) };
        let due = usize::try_from(bytes.div_ceil(size)).unwrap_or(usize::MAX);
        let count = left.min(most).min(due);
        if !one {
            // No more than `left`, which is a u16's.
            self.sent += count as u16;
            if self.sent == run.count {
                (self.run, self.sent) = ((self.run + 1) % self.runs.len(), 0);
            }
        }
        (usize::from(run.size), count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_datagram_is_due_when_those_before_it_have_had_their_time() {
        // 1000 bytes a millisecond.
        let at = Duration::from_micros;
        let mut pace = Pace::new(8_000_000, at(500));
        assert_eq!(pace.due(at(499)), 0);
        assert_eq!(pace.due(at(500)), 1, "the first byte");
        pace.sent(1_000);
        assert_eq!(pace.next(), at(1_500));
        assert_eq!(pace.due(at(1_499)), 0);
        assert_eq!(pace.due(at(3_500)), 2_001, "two datagrams and the first byte of a third");
    }

    #[test]
    fn what_a_sender_slept_through_is_not_made_up_for() {
        let mut pace = Pace::new(8_000_000, Duration::ZERO);
        assert_eq!(pace.due(Duration::from_secs(5)), 10_001, "10 ms of it");
    }

    proptest! {
        /// However irregularly it is looked at (within the debt), what is sent is what the rate says, to a datagram.
        #[test]
        fn the_rate_is_kept(
            rate in 1_000_000_u64..40_000_000_000, steps in prop::collection::vec(1_u64..9_000, 1..400),
            runs in prop::collection::vec((16_u16..8_972, 1_u16..9), 1..4),
        ) {
            let runs = runs.into_iter().map(|(size, count)| SizeRun { size, count }).collect();
            let (mut pace, mut mix, mut now, mut total) = (Pace::new(rate, Duration::ZERO), Mix::new(runs), Duration::ZERO, 0_u64);
            for step in steps {
                now += Duration::from_micros(step);
                let mut due = pace.due(now);
                while due > 0 {
                    let (size, count) = mix.take(64, due);
                    prop_assert!((1..=64).contains(&count));
                    let bytes = (size * count) as u64;
                    pace.sent(bytes);
                    total += bytes;
                    due = due.saturating_sub(bytes);
                }
            }
            let nominal = now.as_nanos() as f64 * rate as f64 / 8e9;
            prop_assert!((total as f64 - nominal).abs() <= 8_972.0 + 2.0, "{total} of {nominal}");
        }

        #[test]
        fn a_mix_is_in_its_order(counts in prop::collection::vec(1_u16..9, 2..9), most in 1_usize..20) {
            let runs: Vec<_> = counts.iter().zip(16..).map(|(count, size)| SizeRun { size, count: *count }).collect();
            let one: Vec<usize> = runs.iter().flat_map(|run| vec![usize::from(run.size); run.count.into()]).collect();
            let mut mix = Mix::new(runs);
            let mut sizes = Vec::new();
            while sizes.len() < 3 * one.len() {
                let (size, count) = mix.take(most, u64::MAX);
                sizes.extend(vec![size; count]);
            }
            prop_assert!(sizes.iter().zip(one.iter().cycle()).all(|(size, expected)| size == expected));
        }
    }
}
