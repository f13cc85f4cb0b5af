use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// The same with all the memory that it takes.
#[derive(Default)]
struct Naive {
    came: BTreeSet<u64>,
    late: u64,
    reordered: u64,
    duplicated: u64,
}

impl Naive {
    fn take(&mut self, number: u64) {
        let next = self.came.last().map_or(0, |last| last + 1);
        if number < next && next - number > WINDOW {
            self.late += 1;
        } else if !self.came.insert(number) {
            self.duplicated += 1;
        } else if number < next {
            self.reordered += 1;
        }
    }
}

fn compare(numbers: impl IntoIterator<Item = u64>) -> Result<Sequence, TestCaseError> {
    let (mut sequence, mut naive) = (Sequence::default(), Naive::default());
    for number in numbers {
        sequence.take(number);
        naive.take(number);
        prop_assert_eq!(
            (sequence.received, sequence.late, sequence.reordered, sequence.duplicated),
            (naive.came.len() as u64, naive.late, naive.reordered, naive.duplicated),
            "after {}",
            number
        );
    }
    Ok(sequence)
}

/// What a path made of a number: where it went.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Passes,
    Lost,
    Twice,
    /// Held back behind so many.
    Held(usize),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Passes),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Twice),
        1 => (1_usize..200).prop_map(Fate::Held),
    ]
}

proptest! {
    /// A path that loses, doubles and holds back: all is accounted for, and sent = received + lost.
    #[test]
    fn a_bad_path_is_accounted_for(fates in prop::collection::vec(fate(), 0..2_000), begin in 0..3 * WINDOW) {
        let mut path: Vec<(usize, u64)> = Vec::new();
        let (mut lost, mut twice) = (0, 0);
        for (place, fate) in fates.iter().enumerate() {
            let number = begin + place as u64;
            match fate {
                Fate::Passes => path.push((place, number)),
                Fate::Lost => lost += 1,
                Fate::Twice => {
                    twice += 1;
                    path.extend([(place, number); 2]);
                }
                Fate::Held(behind) => path.push((place + behind, number)),
            }
        }
        path.sort_by_key(|(place, _)| *place);
        let sequence = compare(path.into_iter().map(|(_, number)| number))?;
        let delivery = sequence.delivery(fates.len() as u64, Span(0));
        prop_assert_eq!((delivery.lost, delivery.duplicated, delivery.late), (lost, twice, 0));
        prop_assert_eq!(delivery.received + delivery.lost, delivery.sent);
    }

    /// Any numbers at all: near each other, at the window's edge, and far away.
    #[test]
    fn any_numbers_are_counted_as_by_a_naive_counter(
        steps in prop::collection::vec(
            prop_oneof![-300_i64..300, Just(WINDOW as i64), -(WINDOW as i64) - 2..2 - WINDOW as i64, any::<i32>().prop_map(i64::from)],
            0..300,
        ),
    ) {
        let mut number = 2 * WINDOW;
        let numbers = steps.into_iter().map(|step| {
            number = number.saturating_add_signed(step) & MASK;
            number
        });
        compare(numbers)?;
    }

    #[test]
    fn jitter_is_rfc_3550s(delays in prop::collection::vec(0_u32..10_000_000, 2..200)) {
        let mut jitter = Jitter::default();
        let (mut naive, mut last) = (0.0_f64, None);
        for (index, delay) in delays.into_iter().enumerate() {
            let sent = MASK - 5_000_000 + index as u64 * 1_000_000;
            jitter.take(sent & MASK, (sent + u64::from(delay)).wrapping_add(77) & MASK);
            // The others of its burst change nothing.
            jitter.take(sent & MASK, (sent + u64::from(delay)).wrapping_add(9_077) & MASK);
            if let Some(last) = last {
                naive += (f64::from(delay.abs_diff(last)) - naive) / 16.0;
            }
            last = Some(delay);
        }
        prop_assert!((jitter.now().0 as f64 - naive).abs() < 20.0, "{} and {naive}", jitter.now());
    }
}

#[test]
fn a_path_without_delay_variation_has_no_jitter() {
    let mut jitter = Jitter::default();
    (0..1_000).for_each(|at| jitter.take(at * 1_000, at * 1_000 + 5_000_000));
    assert_eq!(jitter.now(), Span(0));
}

#[test]
fn what_is_behind_the_window_is_late_and_stays_lost() {
    let mut sequence = Sequence::default();
    sequence.take(0);
    sequence.take(WINDOW + 1);
    sequence.take(1);
    sequence.take(2);
    let delivery = sequence.delivery(WINDOW + 2, Span(0));
    assert_eq!((delivery.received, delivery.late, delivery.reordered), (3, 1, 1), "{delivery:?}");
    assert_eq!(delivery.lost, WINDOW - 1);
}
