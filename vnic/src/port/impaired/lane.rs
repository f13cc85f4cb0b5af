//! One direction of an impaired wire, as a pure state machine: frames enter at a time and leave when they are due.
//!
//! ```text
//!  enter --lost--> gone
//!    |  --twice--> two of it
//!    v
//!  serialise at `rate` (a queue of 1000 frames; the frame that finds it full is dropped), then `delay`
//!    |  --reordered--> no delay: it overtakes
//!    v
//!  leave, when due; frames due at one time leave in the order of their entry
//! ```
//! The order of the draws is fixed, and each frame draws all three: a frame's fate depends on its number and the seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Impairments;
use crate::piece::Piece;

/// Frames that are under way at most: what a Linux interface queues (txqueuelen), plus what a delay holds.
const MOST: usize = 4000;
/// Frames that wait for the rate at most.
const QUEUE: usize = 1000;
/// Buffers that are kept for frames to come.
const SPARE: usize = 64;

/// A frame under way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    due: Duration,
    /// In the order of entry.
    number: u64,
    frame: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Lane {
    impairments: Impairments,
    header: usize,
    fate: ChaCha8Rng,
    under_way: BinaryHeap<Reverse<Entry>>,
    /// When the last bit of what is queued is on the wire.
    free: Duration,
    number: u64,
    spare: Vec<Vec<u8>>,
}

impl Lane {
    /// A lane for frames with `header` bytes before them, which no wire carries.
    pub fn new(impairments: Impairments, seed: u64, header: usize) -> Self {
        Self {
            impairments,
            header,
            fate: ChaCha8Rng::seed_from_u64(seed),
            under_way: BinaryHeap::new(),
            free: Duration::ZERO,
            number: 0,
            spare: Vec::new(),
        }
    }

    /// Takes a frame. Whether the queue had room for it; a frame that the wire loses is taken too.
    pub fn enter(&mut self, parts: &[Piece<'_>], now: Duration) -> bool {
        let Impairments { rate, delay, loss, duplicate, reorder, .. } = self.impairments;
        let [lost, twice, overtakes] =
            [loss, duplicate, reorder].map(|share| self.fate.random::<f64>() < share);
        let length = parts.iter().map(|part| part.len()).sum::<usize>().saturating_sub(self.header);
        let copies = if lost { 0 } else { 1 + usize::from(twice) };
        for _ in 0..copies {
            let start = self.free.max(now);
            let time = match rate {
                0 => Duration::ZERO,
                rate => Duration::from_secs_f64(length as f64 * 8.0 / rate as f64),
            };
            // So long a queue is the time that its frames take.
            let queued = time.checked_mul(QUEUE as u32).is_some_and(|most| start - now > most);
            if queued || self.under_way.len() >= MOST {
                return false;
            }
            self.free = start + time;
            let due = self.free + if overtakes { Duration::ZERO } else { delay };
            let mut frame = self.spare.pop().unwrap_or_default();
            frame.clear();
            parts.iter().for_each(|part| part.append_to(&mut frame));
            self.under_way.push(Reverse(Entry { due, number: self.number, frame }));
            self.number += 1;
        }
        true
    }

    /// When the next frame is due.
    pub fn due(&self) -> Option<Duration> {
        self.under_way.peek().map(|Reverse(entry)| entry.due)
    }

    /// A frame that is due.
    pub fn leave(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.due()? > now {
            return None;
        }
        self.under_way.pop().map(|Reverse(entry)| entry.frame)
    }

    /// Takes a frame's buffer back.
    pub fn spare(&mut self, frame: Vec<u8>) {
        if self.spare.len() < SPARE {
            self.spare.push(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn enter(lane: &mut Lane, byte: u8, length: usize, now: Duration) -> bool {
        lane.enter(&[Piece::new(&vec![byte; length])], now)
    }

    /// First bytes of all frames that leave until `end`, and when.
    fn all(lane: &mut Lane, end: Duration) -> Vec<(u8, Duration)> {
        let mut left = Vec::new();
        while let Some(due) = lane.due().filter(|due| *due <= end) {
            let frame = lane.leave(due).expect("it is due");
            left.push((frame[0], due));
        }
        left
    }

    const MS: Duration = Duration::from_millis(1);
    const FOR_EVER: Duration = Duration::from_secs(1_000_000);

    #[test]
    fn a_good_wire_changes_nothing() {
        let mut lane = Lane::new(Impairments::default(), 1, 0);
        (0..200).for_each(|n| assert!(enter(&mut lane, n, 60, MS)));
        assert_eq!(all(&mut lane, MS), (0..200).map(|n| (n, MS)).collect::<Vec<_>>());
    }

    #[test]
    fn a_frame_takes_its_bits_at_the_rate_and_then_the_delay() {
        // 1000 bytes at 8 Mb/s: 1 ms.
        let impairments = Impairments { rate: 8_000_000, delay: 5 * MS, ..Impairments::default() };
        let mut lane = Lane::new(impairments, 1, 0);
        (0..3).for_each(|n| assert!(enter(&mut lane, n, 1000, MS)));
        assert_eq!(lane.leave(6 * MS), None, "it left early");
        assert_eq!(all(&mut lane, FOR_EVER), [(0, 7 * MS), (1, 8 * MS), (2, 9 * MS)]);
        // An idle wire has no credit.
        assert!(enter(&mut lane, 9, 1000, 100 * MS));
        assert_eq!(all(&mut lane, FOR_EVER), [(9, 106 * MS)]);
    }

    #[test]
    fn a_header_before_a_frame_takes_no_time() {
        let mut lane = Lane::new(Impairments { rate: 8_000_000, ..Impairments::default() }, 1, 12);
        (0..2).for_each(|n| assert!(enter(&mut lane, n, 1012, MS)));
        assert_eq!(all(&mut lane, FOR_EVER), [(0, 2 * MS), (1, 3 * MS)]);
    }

    #[test]
    fn a_full_queue_drops() {
        let mut lane = Lane::new(Impairments { rate: 8_000_000, ..Impairments::default() }, 1, 0);
        let taken = (0..3000).filter(|_| enter(&mut lane, 0, 1000, MS)).count();
        assert_eq!(taken, QUEUE + 1, "one is on the wire");
        let mut held = Lane::new(Impairments { delay: FOR_EVER, ..Impairments::default() }, 1, 0);
        assert_eq!((0..10_000).filter(|_| enter(&mut held, 0, 60, MS)).count(), MOST);
    }

    #[test]
    fn shares_are_what_was_asked_for_and_fate_is_the_seeds() {
        let impairments =
            Impairments { loss: 0.1, duplicate: 0.05, reorder: 0.2, delay: MS, ..Impairments::default() };
        let run = |seed| {
            let mut lane = Lane::new(impairments, seed, 0);
            let mut left = Vec::new();
            for n in 0..10_000_u32 {
                let now = n * 2 * MS;
                enter(&mut lane, (n % 251) as u8, 60, now);
                left.extend(all(&mut lane, now + MS));
            }
            left
        };
        let once = run(7);
        assert_eq!(once, run(7));
        assert_ne!(once, run(8));
        // 9000 that are not lost, of which a twentieth comes twice: 9450.
        assert!((9300..9600).contains(&once.len()), "{}", once.len());
        let at_once = once.iter().filter(|(_, due)| due.as_millis() % 2 == 0).count();
        assert!((1750..2050).contains(&at_once), "{at_once} overtook");
    }

    #[test]
    fn a_frame_that_is_not_delayed_overtakes() {
        let impairments = Impairments { reorder: 0.5, delay: 10 * MS, ..Impairments::default() };
        let mut lane = Lane::new(impairments, 3, 0);
        (0..20).for_each(|n| assert!(enter(&mut lane, n, 60, u32::from(n) * MS)));
        let order: Vec<u8> = all(&mut lane, FOR_EVER).into_iter().map(|(n, _)| n).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
        assert_ne!(order, sorted);
    }

    proptest! {
        #[test]
        fn whatever_enters_leaves_when_due_or_is_lost(
            seed: u64,
            rate in prop_oneof![Just(0), 1_000..10_000_000_000_u64],
            delay in 0..1_000_000_u64,
            shares in prop::array::uniform3(0.0..=1.0_f64),
            frames in prop::collection::vec((1..2000_usize, 0..1_000_000_u64), 1..100),
        ) {
            let [loss, duplicate, reorder] = shares;
            let delay = Duration::from_micros(delay);
            let mut lane = Lane::new(Impairments { rate, delay, loss, duplicate, reorder, seed }, seed, 0);
            let (mut now, mut entered, mut left) = (Duration::ZERO, 0, 0);
            for (length, after) in frames {
                now += Duration::from_micros(after);
                entered += usize::from(enter(&mut lane, 1, length, now));
                let before = now;
                while let Some(due) = lane.due().filter(|due| *due <= before) {
                    prop_assert!(lane.leave(due).is_some());
                    left += 1;
                }
            }
            left += all(&mut lane, Duration::MAX).len();
            prop_assert!(left <= 2 * entered + 1);
            prop_assert_eq!(lane.due(), None);
        }
    }
}
