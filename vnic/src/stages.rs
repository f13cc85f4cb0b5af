//! The way of single frames through an adapter: when it was where. Of some frames, drawn at random, so that noting it costs
//! a part in a thousand of moving a frame.
//!
//! ```text
//!  exit, or a look of the adapter's thread
//!    |-- held --|           in the guest's ring for others (send combining), until this exit
//!    |-- turn --------|     dispatch, and the frames before it
//!                     |-- adapter --|          rings and descriptors, up to the call of the port
//!                                   |-- port --|            the host's kernel
//!                                              |-- back --|      header and rings, until the guest may see it
//!                                                         |-- resume --|   until the guest goes on
//! ```
//! Both ways are alike: a received frame is in the port when its turn comes.

use std::arch::x86_64::_rdtsc;
use std::collections::VecDeque;

use arrayvec::ArrayVec;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use toll_protocol::report::Stage;

/// Frames between two that are noted: drawn evenly from 1 to twice as many.
const EVERY: u32 = 64;
/// Ways of frames that are kept for one to be shown.
const KEPT: usize = 64;
/// Frames of one turn that are noted at most.
const A_TURN: usize = 8;
/// Demands of frames that are held back, at most: the largest ring.
const ASKED: usize = 512;
/// Stages of a way.
const STAGES: usize = Stage::ALL.len();

/// Ticks of the time stamp counter. Only differences mean something.
pub fn ticks() -> u64 {
    // SAFETY: RDTSC reads a counter; Linux lets every process use it.
    unsafe { _rdtsc() }
}

/// A frame's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Its number among those of its direction, from 1.
    pub frame: u64,
    /// Its bytes: of frames that crossed the port as one, those of all.
    pub bytes: u64,
    /// Ticks in each stage, in the order of [`Stage::ALL`].
    pub ticks: [u64; STAGES],
    /// When the last of them ended.
    at: u64,
}

impl Way {
    /// The stage until now ends.
    fn ends(&mut self, stage: Stage, now: u64) {
        self.ticks[stage as usize] += now.saturating_sub(self.at);
        self.at = now;
    }

    fn total(&self) -> u64 {
        self.ticks.iter().sum()
    }
}

/// What was noted of the frames of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noted {
    /// Frames.
    pub count: u64,
    /// Ticks of all of them in each stage, in the order of [`Stage::ALL`].
    pub ticks: [u64; STAGES],
    /// The one whose way was of median length, of those that were kept.
    pub usual: Option<Way>,
    /// The one whose way was the longest.
    pub slowest: Option<Way>,
}

/// One direction.
#[derive(Debug)]
pub struct Path {
    /// Frames until one is noted, that one included.
    left: u32,
    random: ChaCha8Rng,
    /// Whose turn has not ended.
    open: ArrayVec<Way, A_TURN>,
    noted: Noted,
    kept: Vec<Way>,
}

impl Path {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let left = random.random_range(1..=2 * EVERY);
        Self { left, random, open: ArrayVec::new(), noted: Noted::default(), kept: Vec::new() }
    }

    /// Whether the next frame is one to note.
    pub fn is_due(&self) -> bool {
        self.left <= 1
    }

    /// A frame that is not noted has passed, or one whose way ends here.
    pub fn passed(&mut self) {
        if self.left <= 1 {
            self.left = self.random.random_range(1..=2 * EVERY);
        } else {
            self.left -= 1;
        }
    }

    fn close(&mut self, mut way: Way, now: u64) {
        way.ends(Stage::Resume, now);
        let Noted { count, ticks, slowest, .. } = &mut self.noted;
        *count += 1;
        ticks.iter_mut().zip(way.ticks).for_each(|(sum, ticks)| *sum += ticks);
        if slowest.is_none_or(|slowest| slowest.total() < way.total()) {
            *slowest = Some(way);
        }
        // Each of all has the same chance to be kept (reservoir sampling).
        if self.kept.len() < KEPT {
            self.kept.push(way);
        } else if let Some(place) = self.kept.get_mut(self.random.random_range(0..*count) as usize) {
            *place = way;
        }
    }

    fn noted(&self) -> Noted {
        let mut kept = self.kept.clone();
        kept.sort_by_key(Way::total);
        Noted { usual: kept.get(kept.len() / 2).copied(), ..self.noted.clone() }
    }
}

/// A frame that is being noted, or one that is not.
#[derive(Debug, Default, Clone, Copy)]
pub struct Mark(Option<Way>);

impl Mark {
    /// Whether it is noted.
    pub const fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// The port was called from `began` to `ended`.
    pub fn crossed(&mut self, began: u64, ended: u64) {
        if let Some(way) = &mut self.0 {
            way.ends(Stage::Adapter, began);
            way.ends(Stage::Port, ended);
        }
    }
}

/// Both directions, and the port's clock.
#[derive(Debug)]
pub struct Stages {
    /// When the guest's turn ended; 0 if nobody says.
    turn: u64,
    /// Ticks in calls of the port so far.
    port: u64,
    /// Whose demands were held back, the first first.
    asked: VecDeque<u64>,
    /// What the guest sends.
    pub transmit: Path,
    /// What it receives.
    pub receive: Path,
}

impl Default for Stages {
    fn default() -> Self {
        // Which frames are drawn is no secret; the two directions differ.
        Self { turn: 0, port: 0, asked: VecDeque::new(), transmit: Path::new(1), receive: Path::new(2) }
    }
}

impl Stages {
    /// The guest has stopped, or the adapter's thread looks.
    pub fn turn_began(&mut self, now: u64) {
        self.turn = now;
    }

    /// The guest goes on, or the look is over.
    pub fn turn_ended(&mut self, now: u64) {
        for path in [&mut self.transmit, &mut self.receive] {
            while let Some(way) = path.open.pop() {
                path.close(way, now);
            }
        }
    }

    /// The guest has asked for a transmission that is held back.
    pub fn asked(&mut self) {
        if self.asked.len() < ASKED {
            self.asked.push_back(ticks());
        }
    }

    /// Nothing is held back any longer.
    pub fn none_held(&mut self) {
        self.asked.clear();
    }

    fn begin(&self, asked: Option<u64>) -> Mark {
        let now = ticks();
        let turn = if self.turn == 0 { now } else { self.turn };
        let mut way = Way { frame: 0, bytes: 0, ticks: [0; STAGES], at: turn };
        if let Some(asked) = asked {
            way.ticks[Stage::Held as usize] = turn.saturating_sub(asked);
        }
        way.ends(Stage::Turn, now);
        Mark(Some(way))
    }

    /// The transmitter looks at a frame.
    pub fn transmits(&mut self) -> Mark {
        let asked = self.asked.pop_front();
        if self.transmit.is_due() { self.begin(asked) } else { Mark::default() }
    }

    /// The receiver looks whether a frame has come.
    pub fn receives(&self) -> Mark {
        if self.receive.is_due() { self.begin(None) } else { Mark::default() }
    }

    /// A call of the port, on the port's account.
    pub fn in_port<T>(&mut self, mark: &mut Mark, call: impl FnOnce() -> T) -> T {
        let began = ticks();
        let result = call();
        let ended = ticks();
        self.port += ended.saturating_sub(began);
        mark.crossed(began, ended);
        result
    }

    /// Ticks in calls of the port so far.
    pub fn port_ticks(&self) -> u64 {
        self.port
    }

    fn end(path: &mut Path, mark: Mark, frame: u64, bytes: usize) {
        path.passed();
        if let Some(mut way) = mark.0 {
            way.ends(Stage::Back, ticks());
            (way.frame, way.bytes) = (frame, bytes as u64);
            // One turn has no more than that.
            let _ = path.open.try_push(way);
        }
    }

    /// A frame has left, the `frame`th, and its buffers are the guest's again.
    pub fn transmitted(&mut self, mark: Mark, frame: u64, bytes: usize) {
        Self::end(&mut self.transmit, mark, frame, bytes);
    }

    /// A frame has come, the `frame`th, and the guest may see it.
    pub fn received(&mut self, mark: Mark, frame: u64, bytes: usize) {
        Self::end(&mut self.receive, mark, frame, bytes);
    }

    /// Forgets what was noted: a measured interval begins.
    pub fn restart(&mut self) {
        for path in [&mut self.transmit, &mut self.receive] {
            path.noted = Noted::default();
            path.kept.clear();
            path.open.clear();
        }
    }

    /// What was noted of the frames sent and of those received.
    pub fn noted(&self) -> [Noted; 2] {
        [self.transmit.noted(), self.receive.noted()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames that pass; how many of them were noted.
    fn pass(stages: &mut Stages, count: u64) -> u64 {
        for frame in 1..=count {
            stages.turn_began(ticks());
            let mut mark = stages.transmits();
            stages.in_port(&mut mark, || ());
            stages.transmitted(mark, frame, 100);
            stages.turn_ended(ticks());
        }
        stages.noted()[0].count
    }

    #[test]
    fn one_frame_in_64_is_noted_and_its_stages_are_its_whole_way() {
        let mut stages = Stages::default();
        let noted = pass(&mut stages, 64_000);
        assert!((900..1100).contains(&noted), "{noted}");
        let [sent, received] = stages.noted();
        assert_eq!(received, Noted::default());
        let (usual, slowest) = (sent.usual.expect("some were kept"), sent.slowest.expect("one was"));
        assert!(
            usual.total() <= slowest.total() && usual.bytes == 100 && (1..=64_000).contains(&usual.frame)
        );
        assert!(sent.ticks.iter().sum::<u64>() >= slowest.total());
        stages.restart();
        assert_eq!(stages.noted()[0], Noted::default());
        assert!(pass(&mut stages, 200) > 0);
    }

    #[test]
    fn stages_follow_each_other() {
        let mut stages = Stages::default();
        stages.transmit.left = 1;
        stages.turn_began(0);
        stages.asked();
        let from = ticks();
        stages.turn_began(from);
        let mut mark = stages.transmits();
        assert!(mark.is_some());
        mark.crossed(from + 1_000_000, from + 3_000_000);
        let Mark(Some(mut way)) = mark else { unreachable!() };
        way.ends(Stage::Back, from + 3_500_000);
        stages.transmit.close(way, from + 4_000_000);
        let way = stages.noted()[0].usual.expect("one was kept");
        let of = |stage: Stage| way.ticks[stage as usize];
        assert!(of(Stage::Held) > 0 && of(Stage::Held) < 1_000_000_000);
        assert_eq!(of(Stage::Turn) + of(Stage::Adapter), 1_000_000);
        assert_eq!((of(Stage::Port), of(Stage::Back), of(Stage::Resume)), (2_000_000, 500_000, 500_000));
        assert_eq!(way.total() - of(Stage::Held), 4_000_000);
    }

    #[test]
    fn demands_and_turns_are_bounded() {
        let mut stages = Stages::default();
        (0..2 * ASKED).for_each(|_| stages.asked());
        assert_eq!(stages.asked.len(), ASKED);
        stages.none_held();
        for _ in 0..2 * A_TURN {
            stages.receive.left = 1;
            let mark = stages.receives();
            stages.received(mark, 1, 60);
        }
        stages.turn_ended(ticks());
        assert_eq!(stages.noted()[1].count, A_TURN as u64);
        // Looks that found nothing are no frames.
        stages.receive.left = 1;
        for _ in 0..10 {
            assert!(stages.receives().is_some());
        }
    }
}
