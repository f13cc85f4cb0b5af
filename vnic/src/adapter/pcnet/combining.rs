//! Send combining (Sugerman, Venkitachalam, Lim, USENIX 2001): while the guest exits often, a frame that it sends waits in
//! its own ring, and the guest goes on. Pure: time is a parameter.
//!
//! ```text
//!          exits a second >= rate, by the decaying counter
//!   off <--------------------------------------------------> on
//!    |                                                        |
//!    +- demand: transmit now                                  +- demand: wait, until
//!                                                                  `threshold` frames wait: transmit, all of them
//!                                                                  the guest is idle: transmit
//!                                                                  `tick` after the first: transmit, and off
//! ```
//! A frame waits for a tick at most. One that had to wait so long says that exits have become rare: combining is off until
//! the counter says otherwise. Nothing is copied: the frames are the guest's until they are sent.

use std::time::Duration;

/// How sends are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Frames that may wait: with the last of so many all are sent. 1 combines nothing.
    pub threshold: u32,
    /// Exits a second from which on frames wait.
    pub rate: u32,
    /// The counter's period, and the longest time that a frame waits.
    pub tick: Duration,
}

impl Default for Settings {
    /// The paper's threshold; the clock tick of its host (100 Hz); a rate that any guest has which sends.
    fn default() -> Self {
        Self { threshold: 3, rate: 1000, tick: Duration::from_millis(10) }
    }
}

/// How many transmissions sent so many frames: 1, 2, 3, 4 to 7, 8 to 15, 16 and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Combined(pub [u64; 6]);

impl Combined {
    fn count(&mut self, frames: u32) {
        let class = match frames {
            0 => return,
            1..=3 => frames as usize - 1,
            4..=7 => 3,
            8..=15 => 4,
            _ => 5,
        };
        self.0[class] += 1;
    }
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Combining {
    settings: Settings,
    /// Exits in the present period.
    exits: u32,
    /// Exits a period, each period weighing half of the one after it.
    average: f64,
    /// When the present period began.
    since: Duration,
    on: bool,
    /// Demands that wait, and when the first was made.
    waiting: u32,
    first: Duration,
    combined: Combined,
}

impl Combining {
    /// Nothing waits, and frames are sent at once until the rate is known.
    pub fn new(settings: Settings, now: Duration) -> Self {
        Self {
            settings,
            exits: 0,
            average: 0.0,
            since: now,
            on: false,
            waiting: 0,
            first: now,
            combined: Combined::default(),
        }
    }

    /// The guest has exited.
    pub fn exited(&mut self, now: Duration) {
        self.pass(now);
        self.exits = self.exits.saturating_add(1);
    }

    /// The guest wants what it has queued sent. Whether that is to be done now.
    pub fn demanded(&mut self, now: Duration) -> bool {
        self.pass(now);
        if self.waiting == 0 {
            self.first = now;
        }
        self.waiting = self.waiting.saturating_add(1);
        !self.on || self.waiting >= self.settings.threshold
    }

    /// When what waits is to be sent whatever happens; `None` if nothing does.
    pub fn due(&self) -> Option<Duration> {
        (self.waiting > 0).then(|| self.first + self.settings.tick)
    }

    /// What waited for a whole tick is being sent: exits are rare now.
    pub fn overdue(&mut self) {
        (self.on, self.average) = (false, 0.0);
    }

    /// Everything that waited has been sent: so many frames.
    pub fn sent(&mut self, frames: u32) {
        self.waiting = 0;
        self.combined.count(frames);
    }

    /// How many transmissions sent how many frames.
    pub fn combined(&self) -> Combined {
        self.combined
    }

    /// Closes the periods that are over. After so many that nothing of the past is left, the rest would change nothing.
    fn pass(&mut self, now: Duration) {
        let tick = self.settings.tick.max(Duration::from_nanos(1));
        for _ in 0..64 {
            if now.saturating_sub(self.since) < tick {
                return;
            }
            self.average = (self.average + f64::from(self.exits)) / 2.0;
            self.exits = 0;
            self.since += tick;
            self.on = self.average / tick.as_secs_f64() >= f64::from(self.settings.rate);
        }
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const US: Duration = Duration::from_micros(1);
    const MS: Duration = Duration::from_millis(1);

    /// One whose guest has exited every 50 us for 100 ms.
    fn busy(settings: Settings) -> (Combining, Duration) {
        let mut combining = Combining::new(settings, Duration::ZERO);
        let mut now = Duration::ZERO;
        for _ in 0..2000 {
            now += 50 * US;
            combining.exited(now);
        }
        (combining, now)
    }

    #[test]
    fn three_frames_that_wait_are_sent_together() {
        let (mut combining, now) = busy(Settings::default());
        for round in 0..10 {
            let now = now + round * 200 * US;
            assert!(!combining.demanded(now));
            assert_eq!(combining.due(), Some(now + 10 * MS));
            assert!(!combining.demanded(now + 50 * US));
            assert_eq!(combining.due(), Some(now + 10 * MS), "the first one's time counts");
            assert!(combining.demanded(now + 100 * US));
            combining.sent(3);
            assert_eq!(combining.due(), None);
        }
        assert_eq!(combining.combined(), Combined([0, 0, 10, 0, 0, 0]));
    }

    #[test]
    fn a_guest_that_exits_seldom_waits_for_nothing() {
        let mut combining = Combining::new(Settings::default(), Duration::ZERO);
        for n in 0..1000 {
            // 500 a second.
            let now = n * 2 * MS;
            combining.exited(now);
            assert!(combining.demanded(now), "frame {n} waits");
            combining.sent(1);
        }
    }

    #[test]
    fn the_counter_decays_and_combining_ends_with_it() {
        let (mut combining, now) = busy(Settings::default());
        assert!(!combining.demanded(now));
        combining.sent(1);
        // 20000 exits a second; half after a tick, a tenth of the rate's 1000 after 8.
        assert!(!combining.demanded(now + 20 * MS));
        combining.sent(1);
        assert!(combining.demanded(now + 100 * MS));
        // Years later it is one step.
        combining.exited(now + Duration::from_secs(1 << 40));
    }

    #[test]
    fn a_frame_that_waited_for_a_tick_switches_it_off() {
        let (mut combining, now) = busy(Settings::default());
        assert!(!combining.demanded(now));
        let due = combining.due().expect("it waits");
        assert_eq!(due, now + 10 * MS);
        combining.overdue();
        combining.sent(1);
        assert!(combining.demanded(due), "the next one waits again");
    }

    #[test]
    fn a_threshold_of_one_combines_nothing() {
        let (mut combining, now) = busy(Settings { threshold: 1, ..Settings::default() });
        assert!(combining.demanded(now));
    }

    proptest! {
        #[test]
        fn no_more_frames_wait_than_the_threshold_and_none_longer_than_a_tick(
            threshold in 1..20_u32,
            rate in 0..100_000_u32,
            tick in 1..20_000_u64,
            steps in prop::collection::vec((0..5_000_u64, any::<bool>()), 1..300),
        ) {
            let tick = Duration::from_micros(tick);
            let mut combining = Combining::new(Settings { threshold, rate, tick }, Duration::ZERO);
            let (mut now, mut waiting) = (Duration::ZERO, Vec::new());
            for (after, sends) in steps {
                now += Duration::from_micros(after);
                // What a host timer does.
                if let Some(due) = combining.due().filter(|due| *due <= now) {
                    prop_assert!(waiting.iter().all(|since| due <= *since + tick));
                    combining.overdue();
                    combining.sent(waiting.len() as u32);
                    waiting.clear();
                }
                combining.exited(now);
                if sends {
                    waiting.push(now);
                    if combining.demanded(now) {
                        combining.sent(waiting.len() as u32);
                        waiting.clear();
                    }
                    prop_assert!(waiting.len() < threshold as usize);
                }
                prop_assert_eq!(combining.due().is_some(), !waiting.is_empty());
            }
        }
    }
}
