//! The measured interval: a pure function of the readings it is given.
//!
//! ```text
//! Idle --first_byte(t)--> WarmUp --reading from t + warm_up on--> Measuring --reading `duration` later--> Measured
//!                                                                  | reading every 100 ms: a sample
//!                                                                  `--peer ended the stream--> Measured
//! ```
//! A reading is never at the very moment it was due. So the figures are those between two real readings, and the
//! interval is the time that really lay between them; the nominal moments only say when to take them. A thread that
//! was kept from running measures later, not less.
//!
//! The receiver ends the stream. A sender that began late has then measured a part of its interval, and that is
//! taken if it is half of it at least: goodput is the receiver's, the sender's figures are its costs.

use std::time::Duration;

use toll_protocol::report::Sample;
use toll_protocol::trial::Direction;
use toll_protocol::units::Span;

use crate::clock::rounded;

/// Time between two samples.
pub const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// What it means that the peer ends the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeersEnd {
    /// Traffic ends when the peer says so, whose figure it is: this end has measured what there was.
    Decides,
    /// All is over, and the peer had no reason to be first.
    Follows,
    /// A part is over, and the rest goes on.
    IsPart,
}

impl From<Direction> for PeersEnd {
    /// Of payload that goes this way: its receiver decides.
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Send => Self::Decides,
            Direction::Receive => Self::Follows,
            Direction::Both => Self::IsPart,
        }
    }
}

impl PeersEnd {
    /// Share of the interval, in hundredths, that must have been measured when the peer ends the traffic.
    const fn enough(self) -> u32 {
        match self {
            Self::Decides => 50,
            // The peer's clock may run faster than ours by some parts in a million.
            Self::Follows | Self::IsPart => 99,
        }
    }
}

/// What is read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// The moment.
    pub at: Duration,
    /// Payload bytes sent since the connection opened.
    pub sent_bytes: u64,
    /// Payload bytes received since then.
    pub received_bytes: u64,
}

/// What a reading led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was not due.
    Nothing,
    /// The measured interval has begun.
    Began,
    /// A sample inside it.
    Sampled(Sample),
    /// It is over; its last sample.
    Ended(Sample),
}

/// What was measured: the readings at both ends of the interval and the samples between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// At its begin.
    pub begin: Reading,
    /// At its end.
    pub end: Reading,
    /// Every 100 ms, the last at the end.
    pub samples: Vec<Sample>,
}

/// Why there is no figure.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    /// The peer ended the stream too early.
    #[error("the peer ended the stream when {measured} of an interval of {whole} had been measured")]
    EndedEarly {
        /// What had been measured.
        measured: Span,
        /// The interval.
        whole: Span,
    },
    /// The peer ended the stream before any payload.
    #[error("the peer ended the stream before the first payload byte")]
    NoPayload,
}

#[derive(Debug)]
enum State {
    Idle,
    WarmUp { begin: Duration },
    Measuring { first: Reading, sample_at: Duration, until: Duration },
    Measured { begin: Reading, end: Reading },
}

/// The state machine. Moments are times on any one clock.
#[derive(Debug)]
pub struct Meter {
    peers_end: PeersEnd,
    warm_up: Duration,
    duration: Duration,
    samples: Vec<Sample>,
    state: State,
}

impl Meter {
    /// A meter that waits for the first payload byte.
    pub fn new(peers_end: PeersEnd, warm_up: Duration, duration: Duration) -> Self {
        Self { peers_end, warm_up, duration, samples: Vec::new(), state: State::Idle }
    }

    /// The first payload byte was sent or received at `at`. Only the first call counts.
    pub fn first_byte(&mut self, at: Duration) {
        if matches!(self.state, State::Idle) {
            self.state = State::WarmUp { begin: at.saturating_add(self.warm_up) };
        }
    }

    /// When the next reading is due, or `None` while none is.
    pub fn due(&self) -> Option<Duration> {
        match self.state {
            State::Idle | State::Measured { .. } => None,
            State::WarmUp { begin } => Some(begin),
            State::Measuring { sample_at, until, .. } => Some(sample_at.min(until)),
        }
    }

    /// Whether a first payload byte has been seen.
    pub fn has_begun(&self) -> bool {
        !matches!(self.state, State::Idle)
    }

    /// Whether the interval is over.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Measured { .. })
    }

    /// Takes a reading.
    pub fn read(&mut self, reading: Reading) -> Step {
        match self.state {
            State::WarmUp { begin } if reading.at >= begin => {
                let until = reading.at.saturating_add(self.duration);
                self.state = State::Measuring { first: reading, sample_at: reading.at + SAMPLE_EVERY, until };
                Step::Began
            }
            State::Measuring { first, until, .. } if reading.at >= until => self.end(first, reading),
            State::Measuring { first, ref mut sample_at, .. } if reading.at >= *sample_at => {
                let sample = sample(first, reading);
                // Samples keep their raster; those that a late reading missed are left out, not invented.
                while *sample_at <= reading.at {
                    *sample_at += SAMPLE_EVERY;
                }
                self.samples.push(sample);
                Step::Sampled(sample)
            }
            _ => Step::Nothing,
        }
    }

    /// The peer has ended the stream: `reading` is the last there will be.
    ///
    /// # Errors
    /// [`MeterError::EndedEarly`] or [`MeterError::NoPayload`], unless enough of the interval is over.
    pub fn ended_by_peer(&mut self, reading: Reading) -> Result<Step, MeterError> {
        let early = |measured: Duration| {
            Err(MeterError::EndedEarly { measured: rounded(measured), whole: self.duration.into() })
        };
        match self.state {
            State::Measured { .. } => Ok(Step::Nothing),
            State::Idle => Err(MeterError::NoPayload),
            State::WarmUp { .. } => early(Duration::ZERO),
            State::Measuring { first, .. } => {
                let measured = reading.at.saturating_sub(first.at);
                if measured < self.duration / 100 * self.peers_end.enough() {
                    return early(measured);
                }
                Ok(self.end(first, reading))
            }
        }
    }

    fn end(&mut self, begin: Reading, end: Reading) -> Step {
        let sample = sample(begin, end);
        self.samples.push(sample);
        self.state = State::Measured { begin, end };
        Step::Ended(sample)
    }

    /// What was measured, once the interval is over.
    pub fn into_measured(self) -> Option<Measured> {
        match self.state {
            State::Measured { begin, end } => Some(Measured { begin, end, samples: self.samples }),
            _ => None,
        }
    }
}

fn sample(begin: Reading, now: Reading) -> Sample {
    Sample {
        at: (now.at - begin.at).into(),
        sent_bytes: now.sent_bytes.saturating_sub(begin.sent_bytes),
        received_bytes: now.received_bytes.saturating_sub(begin.received_bytes),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn reading(at: Duration, received_bytes: u64) -> Reading {
        Reading { at, received_bytes, ..Reading::default() }
    }

    fn sample_of(at: Span, received_bytes: u64) -> Sample {
        Sample { at, sent_bytes: 0, received_bytes }
    }

    /// A source of 1 byte a microsecond, read `late` after each due moment.
    fn run(warm_up: Duration, duration: Duration, late: impl Fn() -> Duration) -> Measured {
        let mut meter = Meter::new(PeersEnd::Follows, warm_up, duration);
        meter.first_byte(ms(7));
        while let Some(due) = meter.due() {
            let at = due + late();
            meter.read(reading(at, u64::try_from(at.as_micros()).unwrap_or(u64::MAX)));
        }
        meter.into_measured().expect("nothing is due, so it is over")
    }

    #[test]
    fn a_punctual_reader_measures_the_nominal_interval() {
        let measured = run(ms(500), ms(2_000), || Duration::ZERO);
        assert_eq!((measured.begin.at, measured.end.at), (ms(507), ms(2_507)));
        assert_eq!(measured.samples.len(), 20);
        assert_eq!(measured.samples[0], sample_of(Span::from_millis(100), 100_000));
        assert_eq!(measured.samples[19], sample_of(Span::from_millis(2_000), 2_000_000));
    }

    #[test]
    fn nothing_is_due_before_the_first_byte_or_after_the_end() {
        let mut meter = Meter::new(PeersEnd::Decides, ms(1), ms(1));
        assert_eq!(meter.due(), None);
        assert_eq!(meter.read(reading(ms(99), 5)), Step::Nothing);
        meter.first_byte(ms(100));
        meter.first_byte(ms(500));
        assert_eq!(meter.due(), Some(ms(101)));
        assert_eq!(meter.read(reading(ms(101), 5)), Step::Began);
        assert!(matches!(meter.read(reading(ms(102), 9)), Step::Ended(Sample { received_bytes: 4, .. })));
        assert_eq!(meter.due(), None);
        assert_eq!(meter.read(reading(ms(900), 5)), Step::Nothing);
    }

    #[test]
    fn samples_missed_by_a_late_reading_are_not_invented() {
        let mut meter = Meter::new(PeersEnd::Decides, ms(0), ms(1_000));
        meter.first_byte(ms(0));
        assert_eq!(meter.read(reading(ms(0), 0)), Step::Began);
        assert!(matches!(meter.read(reading(ms(350), 35)), Step::Sampled(_)));
        assert_eq!(meter.due(), Some(ms(400)));
    }

    #[test]
    fn a_reader_kept_from_running_measures_later_and_as_long() {
        let measured = run(ms(10), ms(100), || ms(60));
        assert_eq!((measured.begin.at, measured.end.at), (ms(77), ms(237)));
    }

    #[test]
    fn a_peer_that_ends_too_early_is_an_error() {
        let mut meter = Meter::new(PeersEnd::Decides, ms(100), ms(1_000));
        assert_eq!(meter.ended_by_peer(reading(ms(1), 0)), Err(MeterError::NoPayload));
        meter.first_byte(ms(0));
        let early = |measured| {
            let (measured, whole) = (Span::from_millis(measured), Span::from_millis(1_000));
            Err(MeterError::EndedEarly { measured, whole })
        };
        assert_eq!(meter.ended_by_peer(reading(ms(40), 0)), early(0));
        assert_eq!(meter.read(reading(ms(100), 0)), Step::Began);
        assert_eq!(meter.ended_by_peer(reading(ms(599) + Duration::from_nanos(7), 0)), early(499));
        let mut receiver = Meter::new(PeersEnd::Follows, ms(0), ms(1_000));
        receiver.first_byte(ms(0));
        assert_eq!(receiver.read(reading(ms(0), 0)), Step::Began);
        assert_eq!(receiver.ended_by_peer(reading(ms(900), 0)), early(900));
    }

    #[test]
    fn a_sender_that_began_late_keeps_what_it_measured() {
        let mut meter = Meter::new(PeersEnd::Decides, ms(100), ms(1_000));
        meter.first_byte(ms(0));
        assert_eq!(meter.read(reading(ms(400), 0)), Step::Began);
        assert!(matches!(meter.ended_by_peer(reading(ms(1_100), 70)), Ok(Step::Ended(_))));
        let measured = meter.into_measured().expect("over");
        assert_eq!(measured.end.at - measured.begin.at, ms(700));
    }

    #[test]
    fn a_peer_with_a_slightly_faster_clock_ends_the_interval() {
        let mut meter = Meter::new(PeersEnd::Decides, ms(100), ms(1_000));
        meter.first_byte(ms(0));
        assert_eq!(meter.read(reading(ms(100), 0)), Step::Began);
        assert!(matches!(meter.ended_by_peer(reading(ms(1_095), 42)), Ok(Step::Ended(_))));
        assert_eq!(meter.ended_by_peer(reading(ms(1_200), 50)), Ok(Step::Nothing));
        let measured = meter.into_measured().expect("over");
        assert_eq!(measured.samples, [sample_of(Span::from_millis(995), 42)]);
    }

    proptest! {
        /// However late the readings, the rate is that of the source: the interval is the real one.
        #[test]
        fn lateness_does_not_change_the_rate(warm_up in 0_u64..800, duration in 100_u64..3_000, late in 0_u64..50) {
            let measured = run(ms(warm_up), ms(duration), || ms(late));
            let interval = measured.end.at - measured.begin.at;
            let bytes = measured.end.received_bytes - measured.begin.received_bytes;
            prop_assert_eq!(u128::from(bytes), interval.as_micros());
            prop_assert!(interval >= ms(duration - 50) && interval <= ms(duration + 50));
            let last = measured.samples.last().expect("at least the end");
            prop_assert_eq!((last.at, last.received_bytes), (interval.into(), bytes));
            prop_assert!(measured.samples.windows(2).all(|w| w[0].at < w[1].at && w[0].received_bytes <= w[1].received_bytes));
        }
    }
}
