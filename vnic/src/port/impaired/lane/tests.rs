use proptest::prelude::*;

use super::*;

const US: Duration = Duration::from_micros(1);
const MS: Duration = Duration::from_millis(1);
const FOR_EVER: Duration = Duration::from_secs(1_000_000);
/// A frame of the default MTU.
const FRAME: usize = 1514;

fn enter(lane: &mut Lane, byte: u8, length: usize, now: Duration) -> bool {
    lane.enter(&[Piece::new(&vec![byte; length])], now)
}

fn rated(rate: u64) -> Lane {
    Lane::new(Impairments { rate, ..Impairments::default() }, 1, 0)
}

/// First bytes of what leaves at `now`.
fn leaving(lane: &mut Lane, now: Duration) -> Vec<u8> {
    lane.serve(now);
    std::iter::from_fn(|| lane.leave()).map(|frame| frame[0]).collect()
}

/// First bytes of all frames that leave until `end`, and when.
fn all(lane: &mut Lane, end: Duration) -> Vec<(u8, Duration)> {
    let mut left = Vec::new();
    while let Some(due) = lane.due().filter(|due| *due <= end) {
        let now = leaving(lane, due);
        assert!(!now.is_empty(), "nothing leaves when it is due");
        left.extend(now.into_iter().map(|byte| (byte, due)));
    }
    left
}

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
    assert!(leaving(&mut lane, 6 * MS).is_empty(), "it left early");
    let left: Vec<u8> = (6..=9).flat_map(|ms| leaving(&mut lane, ms * MS)).collect();
    assert_eq!(left, [0, 1, 2]);
    // An idle wire has no credit.
    assert!(enter(&mut lane, 9, 1000, 100 * MS));
    assert!(leaving(&mut lane, 105 * MS).is_empty());
    assert_eq!(leaving(&mut lane, 106 * MS), [9]);
}

#[test]
fn a_header_before_a_frame_takes_no_time() {
    let mut lane = Lane::new(Impairments { rate: 8_000_000, ..Impairments::default() }, 1, 12);
    (0..2).for_each(|n| assert!(enter(&mut lane, n, 1012, MS)));
    assert_eq!(all(&mut lane, FOR_EVER), [(0, 2 * MS), (1, 3 * MS)]);
}

#[test]
fn frames_that_wait_in_a_row_leave_together() {
    // 12.7 us each.
    let mut lane = rated(950_000_000);
    (0..100).for_each(|n| assert!(enter(&mut lane, n, FRAME, MS)));
    let left = all(&mut lane, FOR_EVER);
    assert_eq!(left.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    let mut releases: Vec<Duration> = left.iter().map(|(_, at)| *at).collect();
    releases.dedup();
    // The first does not wait for others, and the last no longer than it has to.
    assert_eq!(releases[0], MS + Duration::from_nanos(12_749));
    assert!(releases.len() <= 8, "{releases:?}");
    assert!(releases[1..releases.len() - 1].windows(2).all(|pair| pair[1] - pair[0] >= QUANTUM));
    let end = MS + Duration::from_nanos(1_274_947);
    assert!((end - GRAIN..=end).contains(releases.last().unwrap()), "{releases:?}");
}

#[test]
fn a_frame_alone_waits_for_nothing_but_its_bits() {
    // Request and response: a timer for 12.7 us would be later than that.
    let mut lane = rated(950_000_000);
    for n in 1..50 {
        let now = n * 50 * US;
        assert!(enter(&mut lane, 7, FRAME, now));
        assert_eq!(leaving(&mut lane, now), [7]);
    }
    let mut slow = rated(100_000_000);
    assert!(enter(&mut slow, 7, FRAME, MS));
    assert_eq!(slow.due(), Some(MS + Duration::from_nanos(121_120)));
}

#[test]
fn a_full_queue_drops() {
    let mut lane = rated(8_000_000);
    let taken = (0..3000).filter(|_| enter(&mut lane, 0, 1000, MS)).count();
    assert_eq!(taken, QUEUE + 1, "one is on the wire");
    // An acknowledgement is no more likely to be dropped than a long frame: one place is free.
    assert_eq!(leaving(&mut lane, 2 * MS).len(), 1);
    assert!(enter(&mut lane, 0, 60, 2 * MS));
    assert!(!enter(&mut lane, 0, 1000, 2 * MS));
    assert_eq!(lane.drops(), 0, "who hands it over is told");

    let impairments = Impairments { rate: 8_000_000, delay: MS, ..Impairments::default() };
    let mut lane = Lane::new(impairments, 1, 0);
    (0..3000).for_each(|_| assert!(enter(&mut lane, 0, 1000, Duration::ZERO)));
    assert_eq!(all(&mut lane, FOR_EVER).len(), QUEUE + 1);
    assert_eq!(lane.drops(), 3000 - (QUEUE as u64 + 1));

    let mut held = Lane::new(Impairments { delay: FOR_EVER, ..Impairments::default() }, 1, 0);
    let room = MOST_BYTES / (60 + OVERHEAD);
    assert_eq!((0..room + 10).filter(|_| enter(&mut held, 0, 60, MS)).count(), room);
}

#[test]
fn a_wire_that_nobody_looked_at_has_not_saved_up() {
    let mut lane = rated(8_000_000);
    (0..100).for_each(|n| assert!(enter(&mut lane, n, 1000, Duration::ZERO)));
    // 90 ms late: no more leaves than a burst after the first, and the rest at the rate.
    let burst = leaving(&mut lane, 90 * MS);
    assert_eq!(burst.len(), 51);
    let left: usize = (91..=100).map(|ms| leaving(&mut lane, ms * MS).len()).sum();
    assert_eq!(left, 10);
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
    let mut order = Vec::new();
    for n in 0..20 {
        assert!(enter(&mut lane, n, 60, u32::from(n) * MS));
        order.extend(leaving(&mut lane, u32::from(n) * MS));
    }
    order.extend(all(&mut lane, FOR_EVER).into_iter().map(|(n, _)| n));
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..20).collect::<Vec<_>>());
    assert_ne!(order, sorted);
}

/// Bytes that a wire of `rate` carries in `time`.
fn carries(rate: u64, time: Duration) -> f64 {
    rate as f64 / 8.0 * time.as_secs_f64()
}

const RATES: std::ops::Range<u32> = 3..11;

proptest! {
    // Each is some ten thousand frames.
    #![proptest_config(ProptestConfig::with_cases(48))]

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
            left += leaving(&mut lane, now).len();
        }
        left += all(&mut lane, Duration::MAX).len();
        prop_assert!(left <= 2 * entered + 1);
        prop_assert_eq!(lane.due(), None);
        prop_assert_eq!((lane.held, lane.queue.len(), lane.delayed.len()), (0, 0, 0));
    }

    /// Whatever enters, and whenever anybody looks.
    #[test]
    fn in_no_interval_leaves_more_than_the_rate_and_a_burst(
        digits in RATES,
        shares in prop::array::uniform2(0.0..=1.0_f64),
        delay in 0..20_000_u64,
        turns in prop::collection::vec((0..120_000_u64, 0..40_usize, 1..3000_usize, any::<bool>()), 1..200),
    ) {
        let rate = 10_u64.pow(digits);
        let [duplicate, reorder] = shares;
        let delay = Duration::from_micros(delay);
        let impairments = Impairments { rate, delay, duplicate, reorder, ..Impairments::default() };
        let mut lane = Lane::new(impairments, 1, 0);
        let (mut now, mut left) = (Duration::ZERO, Vec::new());
        for (after, frames, length, looks) in turns {
            now += Duration::from_micros(after);
            for _ in 0..frames {
                enter(&mut lane, 1, length, now);
            }
            if looks {
                lane.serve(now);
                left.extend(std::iter::from_fn(|| lane.leave()).map(|frame| (now, frame.len())));
            }
        }
        for (from, (start, _)) in left.iter().enumerate() {
            let mut bytes = 0;
            for (end, length) in &left[from..] {
                bytes += length;
                let most = carries(rate, *end - *start + BURST + GRAIN) + 3000.0;
                prop_assert!(bytes as f64 <= most, "{} bytes in {:?}", bytes, *end - *start);
            }
        }
    }

    /// Wake-ups that are anything but regular, each within a burst of the last, and a queue that is filled up each time:
    /// by who reads late from a port that had frames all the while, too.
    #[test]
    fn a_queue_that_never_empties_carries_the_rate(
        digits in RATES,
        length in 60..3000_usize,
        late: bool,
        turns in prop::collection::vec(0.0..1.0_f64, 100..200),
    ) {
        let rate = 10_u64.pow(digits);
        let (mut lane, mut now, mut asked, mut bytes) = (rated(rate), Duration::ZERO, Duration::ZERO, 0_usize);
        // In a burst a fast wire carries more than waits for it.
        let longest = BURST.min(Duration::from_secs_f64((QUEUE * length) as f64 * 8.0 / rate as f64));
        let fill = |lane: &mut Lane, came| {
            while lane.free <= came + longest && enter(lane, 1, length, came) {}
        };
        fill(&mut lane, now);
        for after in turns {
            now += longest.mul_f64(after);
            fill(&mut lane, if late { asked } else { now });
            asked = now;
            lane.serve(now);
            bytes += std::iter::from_fn(|| lane.leave()).map(|frame| frame.len()).sum::<usize>();
            fill(&mut lane, now);
        }
        let least = 0.99 * carries(rate, now.saturating_sub(QUANTUM)) - length as f64;
        prop_assert!(bytes as f64 >= least, "{} of {}", bytes, carries(rate, now));
    }
}
