//! What becomes of transactions: pure, with moments as parameters.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use toll_protocol::latencies::{LatenciesError, Recorder};

fn nanoseconds(moment: Duration) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

/// The measured interval as the asking thread sees it, and the answering thread's word that all is over.
#[derive(Debug)]
pub struct Marks {
    begin: AtomicU64,
    end: AtomicU64,
    over: AtomicBool,
}

impl Default for Marks {
    fn default() -> Self {
        Self { begin: AtomicU64::new(u64::MAX), end: AtomicU64::new(u64::MAX), over: AtomicBool::new(false) }
    }
}

impl Marks {
    /// The interval begins now.
    pub fn begins(&self, now: Duration) {
        self.begin.store(nanoseconds(now), Ordering::Release);
    }

    /// It is over.
    pub fn ends(&self, now: Duration) {
        self.end.store(nanoseconds(now), Ordering::Release);
    }

    /// Its end, once it is over.
    pub fn end(&self) -> Option<Duration> {
        Some(self.end.load(Ordering::Acquire)).filter(|end| *end != u64::MAX).map(Duration::from_nanos)
    }

    /// Whether a transaction that began at this moment is of the interval.
    pub fn measures(&self, moment: Duration) -> bool {
        let moment = nanoseconds(moment);
        moment >= self.begin.load(Ordering::Acquire) && moment < self.end.load(Ordering::Acquire)
    }

    /// The peer has ended it.
    pub fn set_over(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether it has.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// Transactions of the measured interval.
#[derive(Debug)]
pub struct Tally {
    /// Latencies of those that are complete.
    pub latencies: Recorder,
    /// Those that are not.
    pub lost: u64,
    /// Responses to those, and doubles.
    pub late: u64,
    /// By how much the worst request was sent after its moment.
    pub latest_send: Duration,
}

impl Tally {
    /// An empty one.
    ///
    /// # Errors
    /// [`LatenciesError`], never.
    pub fn new() -> Result<Self, LatenciesError> {
        Ok(Self { latencies: Recorder::new()?, lost: 0, late: 0, latest_send: Duration::ZERO })
    }

    /// A transaction was complete at `end`, that was to begin at `intended`.
    pub fn complete(&mut self, marks: &Marks, intended: Duration, end: Duration) {
        if marks.measures(intended) {
            self.latencies.record(end.saturating_sub(intended));
        }
    }

    /// One is lost.
    pub fn lose(&mut self, marks: &Marks, intended: Duration) {
        self.lost += u64::from(marks.measures(intended));
    }

    /// A request was sent that was to be sent at `intended`.
    pub fn sent(&mut self, marks: &Marks, intended: Duration, now: Duration) {
        if marks.measures(intended) {
            self.latest_send = self.latest_send.max(now.saturating_sub(intended));
        }
    }
}

/// The moments of an open loop: the n-th is n / rate after the first, without a sum of roundings.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// The first moment.
    pub begin: Duration,
    /// Moments a second.
    pub rate: u32,
}

impl Schedule {
    /// The moment of this number, from 0.
    pub fn moment(&self, number: u64) -> Duration {
        let rate = u64::from(self.rate.max(1));
        let (seconds, rest) = (number / rate, number % rate);
        self.begin + Duration::new(seconds, 0) + Duration::from_nanos(rest * 1_000_000_000 / rate)
    }

    /// How many have come by `now`.
    pub fn due(&self, now: Duration) -> u64 {
        let Some(since) = now.checked_sub(self.begin) else { return 0 };
        // A moment is rounded down to a nanosecond, so the product may be less than its number by one.
        let about = since.as_nanos().saturating_mul(u128::from(self.rate)) / 1_000_000_000;
        let about = u64::try_from(about).unwrap_or(u64::MAX - 2) + 1;
        if self.moment(about) <= now { about + 1 } else { about }
    }
}

/// A transaction that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// When it was to begin.
    pub intended: Duration,
    /// When its request was sent.
    pub sent: Duration,
}

/// The transactions that are open, numbered in the order of their requests.
#[derive(Debug, Default)]
pub struct Window {
    /// From the oldest that is open on; those between that are not are nothing.
    all: VecDeque<Option<Open>>,
    /// Number of the first of them.
    first: u64,
    open: u64,
}

impl Window {
    /// Requests that were sent so far: the number of the next one.
    pub fn asked(&self) -> u64 {
        self.first + self.all.len() as u64
    }

    /// How many are open.
    pub const fn open(&self) -> u64 {
        self.open
    }

    /// The oldest that is open.
    pub fn oldest(&self) -> Option<Open> {
        self.all.front().copied().flatten()
    }

    /// The next request is sent.
    pub fn ask(&mut self, intended: Duration, sent: Duration) {
        self.all.push_back(Some(Open { intended, sent }));
        self.open += 1;
    }

    /// The response to the request of this number has come, or without a number that to the oldest. Nothing if that is not
    /// open.
    pub fn answer(&mut self, number: Option<u64>) -> Option<Open> {
        let index = usize::try_from(number.unwrap_or(self.first).checked_sub(self.first)?).ok()?;
        let open = self.all.get_mut(index)?.take()?;
        self.open -= 1;
        while let Some(None) = self.all.front() {
            self.all.pop_front();
            self.first += 1;
        }
        Some(open)
    }

    /// The oldest, if it was sent at `before` or earlier; it is open no more.
    pub fn expire(&mut self, before: Duration) -> Option<Open> {
        self.oldest().filter(|open| open.sent <= before)?;
        self.answer(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn responses_come_in_any_order_twice_or_never() {
        let mut window = Window::default();
        for sent in 0..4 {
            window.ask(ms(sent), ms(10 + sent));
        }
        assert_eq!(window.answer(Some(2)), Some(Open { intended: ms(2), sent: ms(12) }));
        assert_eq!((window.answer(Some(2)), window.answer(Some(4)), window.open()), (None, None, 3));
        assert_eq!(window.expire(ms(9)), None);
        assert_eq!(window.expire(ms(10)).map(|open| open.intended), Some(ms(0)));
        assert_eq!(window.answer(Some(0)), None, "it came too late");
        assert_eq!(window.answer(Some(1)).map(|open| open.intended), Some(ms(1)));
        assert_eq!(window.answer(None).map(|open| open.intended), Some(ms(3)), "that of 2 has come already");
        assert_eq!((window.open(), window.asked(), window.expire(ms(99))), (0, 4, None));
    }

    #[test]
    fn what_began_in_the_interval_counts_and_nothing_else() {
        let marks = Marks::default();
        let mut tally = Tally::new().expect("good bounds");
        let at = |begin, tally: &mut Tally| tally.complete(&marks, ms(begin), ms(begin + 5));
        at(1, &mut tally);
        marks.begins(ms(10));
        at(9, &mut tally);
        at(10, &mut tally);
        assert_eq!(tally.latencies.count(), 1);
        assert_eq!(marks.end(), None);
        marks.ends(ms(20));
        at(19, &mut tally);
        at(20, &mut tally);
        tally.lose(&marks, ms(19));
        tally.lose(&marks, ms(20));
        tally.sent(&marks, ms(12), ms(15));
        tally.sent(&marks, ms(21), ms(31));
        assert_eq!((tally.latencies.count(), tally.lost, tally.latest_send), (2, 1, ms(3)));
    }

    proptest! {
        #[test]
        fn a_moment_is_due_when_it_has_come(rate in 1_u32..=1_000_000, number in 0..10_000_000_000_u64) {
            let schedule = Schedule { begin: ms(77), rate };
            let moment = schedule.moment(number);
            prop_assert_eq!(schedule.due(moment), number + 1);
            prop_assert_eq!(schedule.due(moment - Duration::from_nanos(1)), number);
            let exact = 77e-3 + number as f64 / f64::from(rate);
            prop_assert!((moment.as_secs_f64() - exact).abs() < 1e-6 * exact.max(1.0));
        }
    }
}
