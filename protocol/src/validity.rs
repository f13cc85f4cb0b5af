//! The rules behind validity flags that both kinds of end share: from readings of the kernel, or from samples, to a
//! yes or no. Reading is the ends' part; nothing here does I/O. What could not be read is no statement.
//!
//! | Flag | Reading | Taken |
//! |---|---|---|
//! | `cpu-wait` | run delay of the thread that carries the traffic | at both ends of the measured interval |
//! | `window-bound` | time that TCP waited for a window, and its round trips | at both ends of the measured interval |
//! | `steal` | CPU time of the host ([`HostCpu`](crate::cpu::HostCpu)) | at both ends of the measured interval |
//! | `stalled` | the receiver's samples | every 100 ms, as they are |

use std::time::Duration;

use crate::report::{EndReport, Failure, Sample};
use crate::trial::Direction;
use crate::units::Span;

/// Waiting for a CPU is told of from this share of the interval on.
const CPU_WAIT: f64 = 0.05;
/// Waiting for a window is told of from this share of the interval on.
const WINDOW_BOUND: f64 = 0.5;
/// Two steps of samples (100 ms each), less what a punctual look may be early by.
const STANDSTILL: Span = Span::from_millis(190);
/// The longest time between two looks that is a step of samples and no hole.
const LONGEST_STEP: Span = Span::from_millis(250);

/// Why what an end measured is no figure, if it is none: a receiver that got no byte in the interval has no goodput, and
/// 0 would be one; its path or its peer stood still. A sender may find its buffer full for the whole interval; what it
/// sends is the receiver's to count. The one rule for every program and kind of end: agents hold to it, and so does the
/// orchestrator, who does not take their word.
pub fn no_figure(direction: Direction, report: &EndReport) -> Option<Failure> {
    if direction.receives() && report.received_bytes == 0 {
        return Some(Failure::new(format!(
            "no payload arrived in the measured interval of {}: the path or the peer stood still",
            report.interval
        )));
    }
    report.traffic.no_figure(direction)
}

/// How long a thread has been runnable and waited for a CPU: the second field of `/proc/PID/task/TID/schedstat`,
/// nanoseconds (Documentation/scheduler/sched-stats.rst). `None` if `schedstat` is not such a file's text.
pub fn run_delay(schedstat: &str) -> Option<Duration> {
    schedstat.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// Whether a thread waited for a CPU for over 5 % of `interval`, by its run delay at both ends of it.
pub fn waits_for_cpu(begin: Duration, end: Duration, interval: Duration) -> bool {
    end.saturating_sub(begin).as_secs_f64() > CPU_WAIT * interval.as_secs_f64()
}

/// Whether flows waited for a window of TCP for half of `sending`, the time that they sent, all together, or more.
pub fn window_bound(waited: Span, sending: Span) -> bool {
    sending.0 > 0 && waited.seconds() >= WINDOW_BOUND * sending.seconds()
}

/// Whether a path with the round trips `smoothed` and `shortest` has no queue: what a sender waits for is then its window.
/// Behind a queue, or before a receiver that is slow, a larger window would only make the round trip longer.
pub fn is_without_queue(smoothed: Duration, shortest: Duration) -> bool {
    smoothed * 4 < shortest * 5
}

/// Whether what an end receives stood still: two whole steps of its `samples` in a row without a byte, or a hole of
/// over 250 ms between two samples, which only an end has that itself stood still. `received_bytes` arrived in `interval`. A
/// standstill of 300 ms is found wherever it lies, one of less than 190 ms is none.
pub fn stands_still(samples: &[Sample], interval: Span, received_bytes: u64) -> bool {
    let mut looked = Span(0);
    let mut moved = Sample { at: Span(0), sent_bytes: 0, received_bytes: 0 };
    let end = Sample { at: interval, sent_bytes: 0, received_bytes };
    for sample in samples.iter().filter(|sample| sample.at < interval).chain([&end]) {
        if sample.at.0.saturating_sub(looked.0) > LONGEST_STEP.0 {
            return true;
        }
        looked = sample.at;
        if sample.received_bytes > moved.received_bytes {
            moved = *sample;
        } else if sample.at.0.saturating_sub(moved.at.0) >= STANDSTILL.0 {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_run_delay_is_the_second_field() {
        assert_eq!(run_delay("1200 44690 17\n"), Some(Duration::from_nanos(44_690)));
        for other in ["", "1200", "a b c", "1 -2 3"] {
            assert_eq!(run_delay(other), None, "{other}");
        }
    }

    #[test]
    fn over_a_twentieth_of_the_interval_is_a_wait() {
        assert!(!waits_for_cpu(ms(7), ms(107), ms(2_000)));
        assert!(waits_for_cpu(ms(7), ms(108), ms(2_000)));
        assert!(!waits_for_cpu(ms(108), ms(7), ms(2_000)), "a counter that runs backwards says nothing");
    }

    fn received(at: u64, received_bytes: u64) -> Sample {
        Sample { at: Span::from_millis(at), sent_bytes: 0, received_bytes }
    }

    /// Samples every 100 ms, a byte a step but for `silent` ones.
    fn steps(count: u64, silent: std::ops::Range<u64>) -> Vec<Sample> {
        let bytes = |step| (1..=step).filter(|step| !silent.contains(step)).count() as u64;
        (1..=count).map(|step| received(step * 100, bytes(step))).collect()
    }

    fn still(samples: &[Sample]) -> bool {
        let last = samples.last().expect("some");
        stands_still(samples, last.at, last.received_bytes)
    }

    #[test]
    fn two_whole_steps_without_a_byte_are_a_standstill_wherever_they_lie() {
        assert!(!still(&steps(20, 0..0)));
        for at in 1..=19 {
            assert!(!still(&steps(20, at..at + 1)), "one step, {at}");
            assert!(still(&steps(20, at..at + 2)), "two steps from {at}");
        }
    }

    #[test]
    fn an_end_without_a_sample_at_the_end_is_judged_to_its_end() {
        let samples = steps(7, 0..0);
        assert!(!stands_still(&samples, Span::from_millis(899), 8));
        assert!(stands_still(&samples, Span::from_millis(899), 7), "nothing since 700 ms");
        assert!(stands_still(&[], Span::from_millis(1_000), 7), "nobody looked");
        assert!(!stands_still(&[], Span::from_millis(100), 7));
    }

    #[test]
    fn samples_made_up_for_at_once_hide_no_standstill() {
        let at = received;
        assert!(still(&[at(100, 1), at(500, 2), at(500, 2), at(501, 2), at(502, 2), at(600, 3)]));
        assert!(!still(&[at(100, 1), at(300, 2), at(301, 2), at(400, 3)]), "late and moving");
    }

    proptest! {
        #[test]
        fn a_standstill_of_300_ms_is_found_and_one_below_190_ms_is_none(
            begin in 0_u64..1_700, length in 0_u64..600, jitter in 0_u64..5,
        ) {
            let bytes = |at: u64| at.min(begin) + at.saturating_sub(begin + length);
            let samples: Vec<_> = (1..=20).map(|step| {
                let at = step * 100 + if step % 2 == 0 { jitter } else { 0 };
                received(at, bytes(at))
            }).collect();
            let found = still(&samples);
            prop_assert!(found || length < 310 || begin + length > 2_000);
            prop_assert!(!found || length >= 190);
        }
    }
}
