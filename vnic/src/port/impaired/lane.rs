//! One direction of an impaired wire, as a pure state machine: frames enter at a time and leave when they are due.
//!
//! ```text
//!  enter --lost--> gone
//!    |  --twice--> two of it
//!    v
//!  delayed: waits for `delay`
//!    |  --overtakes: is not delayed
//!    v
//!  queue: serialised at `rate` (1000 frames wait; the frame that finds them is dropped)
//!    |  due: when its last bit is on the wire
//!    v
//!  serve: what is due is released together, at most once a `quantum` while more wait ---> leave
//! ```
//! **Wire time.** Each frame's time is reckoned by bytes and does not depend on when anybody looks: a wake-up that is late
//! releases all that is due. One that is later than [`BURST`] would release more than a wire may; the wire then stands still
//! for what is beyond, and its clock falls behind the host's.
//!
//! So in any interval at most `rate` times ([`BURST`] + [`GRAIN`] + the interval) and a frame leave, and a queue that never
//! empties carries the rate as long as it is served every [`BURST`].
//!
//! The order of the draws is fixed, and each frame draws all three: a frame's fate depends on its number and the seed.

use std::collections::VecDeque;
use std::num::NonZero;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{BURST, GRAIN, Impairments, QUANTUM};
use crate::piece::Piece;

/// Frames that wait for the rate at most: what a Linux interface queues (txqueuelen).
const QUEUE: usize = 1000;
/// Bytes that are under way at most, [`OVERHEAD`] included: a second at 500 Mb/s.
const MOST_BYTES: usize = 64 << 20;
/// What a frame takes beside its bytes, or a little more.
const OVERHEAD: usize = 128;
/// Buffers that are kept for frames to come: more than one [`QUANTUM`] releases at 10 Gb/s.
const SPARE: usize = 256;
const NANOSECONDS: u64 = 1_000_000_000;

/// A frame under way.
#[derive(Debug)]
struct Entry {
    /// Wire time at which it goes on: out of the delay, or out of the lane.
    due: Duration,
    frame: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Lane {
    impairments: Impairments,
    header: usize,
    fate: ChaCha8Rng,
    /// In the order of entry, which is that of their times.
    delayed: VecDeque<Entry>,
    /// On the wire or before it, in the order of their times.
    queue: VecDeque<Entry>,
    /// Bytes of both.
    held: usize,
    /// Wire time at which the last bit of what is queued is on the wire.
    free: Duration,
    /// What `free` is too early by, in nanoseconds times the rate.
    remainder: u64,
    /// How far wire time is behind the host's.
    stood: Duration,
    /// Wire time of the last release.
    released: Duration,
    /// Frames that are due until then are released.
    horizon: Duration,
    /// Wire time of the next release, if anything waits for one.
    wake: Option<Duration>,
    drops: u64,
    spare: Vec<Vec<u8>>,
}

impl Lane {
    /// A lane for frames with `header` bytes before them, which no wire carries.
    pub fn new(impairments: Impairments, seed: u64, header: usize) -> Self {
        Self {
            impairments,
            header,
            fate: ChaCha8Rng::seed_from_u64(seed),
            delayed: VecDeque::new(),
            queue: VecDeque::new(),
            held: 0,
            free: Duration::ZERO,
            remainder: 0,
            stood: Duration::ZERO,
            released: Duration::ZERO,
            horizon: Duration::ZERO,
            wake: None,
            drops: 0,
            spare: Vec::new(),
        }
    }

    /// Takes a frame that came at `came`. Whether there was room for it; a frame that the wire loses is taken too.
    pub fn enter(&mut self, parts: &[Piece<'_>], came: Duration) -> bool {
        let Impairments { loss, duplicate, reorder, .. } = self.impairments;
        let [lost, twice, overtakes] =
            [loss, duplicate, reorder].map(|share| self.fate.random::<f64>() < share);
        if lost {
            return true;
        }
        let now = self.wire_time(came);
        self.mature(now);
        let taken = self.take(parts, now, overtakes);
        if twice && taken && !self.take(parts, now, overtakes) {
            self.drops += 1;
        }
        taken
    }

    /// Takes one copy of a frame. Whether there was room for it.
    fn take(&mut self, parts: &[Piece<'_>], now: Duration, overtakes: bool) -> bool {
        let length: usize = parts.iter().map(Piece::len).sum();
        if self.held + length + OVERHEAD > MOST_BYTES {
            return false;
        }
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.clear();
        parts.iter().for_each(|part| part.append_to(&mut frame));
        self.held += length + OVERHEAD;
        let delay = self.impairments.delay;
        let due = if delay.is_zero() || overtakes {
            let Some(due) = self.serialise(frame, now) else { return false };
            due
        } else {
            // Times that went back would be a fault of the caller's clock.
            let due = (now + delay).max(self.delayed.back().map_or(Duration::ZERO, |last| last.due));
            self.delayed.push_back(Entry { due, frame });
            due
        };
        if self.wake.is_none_or(|wake| due < wake) {
            self.plan();
        }
        true
    }

    /// Puts a frame on the wire at `ready`, behind those that are there, unless too many wait; when it is due.
    fn serialise(&mut self, frame: Vec<u8>, ready: Duration) -> Option<Duration> {
        let full = self.queue.len() > QUEUE && {
            let gone = self.queue.partition_point(|entry| entry.due <= ready);
            // One of them is on the wire.
            self.queue.len() - gone > QUEUE
        };
        if full && self.impairments.rate > 0 {
            self.held -= frame.len() + OVERHEAD;
            self.spare(frame);
            return None;
        }
        (self.free, self.remainder) = self.end(frame.len(), ready);
        self.queue.push_back(Entry { due: self.free, frame });
        Some(self.free)
    }

    /// When a frame of `length` bytes that is put on the wire at `ready` is on it, and what that is too early by.
    fn end(&self, length: usize, ready: Duration) -> (Duration, u64) {
        let (start, remainder) = if ready > self.free { (ready, 0) } else { (self.free, self.remainder) };
        let Some(rate) = NonZero::new(self.impairments.rate) else { return (start, 0) };
        // The longest frame at 1 bit/s: below 2^53.
        let bits = length.saturating_sub(self.header) as u64 * 8;
        let time = bits.saturating_mul(NANOSECONDS).saturating_add(remainder);
        (start + Duration::from_nanos(time / rate), time % rate)
    }

    /// When the first frame leaves of those that are due after `horizon`.
    fn first(&self, horizon: Duration) -> Option<Duration> {
        let released = self.queue.partition_point(|entry| entry.due <= horizon);
        let delayed = || self.delayed.front().map(|entry| self.end(entry.frame.len(), entry.due).0);
        self.queue.get(released).map(|entry| entry.due).or_else(delayed)
    }

    /// Puts on the wire what has been delayed long enough at `now`.
    fn mature(&mut self, now: Duration) {
        while let Some(Entry { due, frame }) = self.delayed.pop_front_if(|entry| entry.due <= now) {
            if self.serialise(frame, due).is_none() {
                self.drops += 1;
            }
        }
    }

    /// Wire time at the host's `now`: not so late that more than a burst would be due.
    fn wire_time(&self, now: Duration) -> Duration {
        let now = now.saturating_sub(self.stood);
        match self.first(self.horizon) {
            Some(first) if self.impairments.rate > 0 => now.min(first.max(self.released) + BURST),
            _ => now,
        }
    }

    /// How much early a frame may leave: a timer would be later than that.
    fn grain(&self) -> Duration {
        if self.impairments.rate > 0 { GRAIN } else { Duration::ZERO }
    }

    /// Time between two releases while more waits.
    fn quantum(&self) -> Duration {
        // A delay is to be right within a few hundredths.
        if self.impairments.rate > 0 { QUANTUM } else { QUANTUM.min(self.impairments.delay / 20) }
    }

    /// Plans the next release: when the first frame is due; but if there are several, not before a quantum has passed
    /// since the last release, or all are due.
    fn plan(&mut self) {
        let last = self.delayed.back().or(self.queue.back()).map_or(Duration::ZERO, |entry| entry.due);
        let together = last.min(self.released + self.quantum());
        self.wake = self.first(self.horizon).map(|first| first.max(together));
    }

    /// Releases what is due at `now`, if it is time. The host's time, as in [`due`](Self::due).
    pub fn serve(&mut self, now: Duration) {
        let Some(wake) = self.wake.filter(|_| !self.has_released()) else { return };
        let at = self.wire_time(now);
        if at.saturating_add(self.grain()) < wake {
            return;
        }
        self.stood = now.saturating_sub(at);
        self.mature(at);
        (self.released, self.horizon) = (at, at.saturating_add(self.grain()));
        self.plan();
    }

    /// Whether frames are released that nobody has taken.
    pub fn has_released(&self) -> bool {
        self.queue.front().is_some_and(|first| first.due <= self.horizon)
    }

    /// When to [`serve`](Self::serve) next: at once, while there are released frames.
    pub fn due(&self) -> Option<Duration> {
        if self.has_released() {
            return Some(Duration::ZERO);
        }
        self.wake.map(|wake| wake.saturating_add(self.stood))
    }

    /// A released frame.
    pub fn leave(&mut self) -> Option<Vec<u8>> {
        let frame = self.queue.pop_front_if(|first| first.due <= self.horizon)?.frame;
        self.held -= frame.len() + OVERHEAD;
        Some(frame)
    }

    /// Frames that found no room after they had been taken.
    pub fn drops(&self) -> u64 {
        self.drops
    }

    /// Takes a frame's buffer back.
    pub fn spare(&mut self, frame: Vec<u8>) {
        if self.spare.len() < SPARE {
            self.spare.push(frame);
        }
    }
}

#[cfg(test)]
mod tests;
