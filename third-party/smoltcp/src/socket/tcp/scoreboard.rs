//! Toll: what the remote has acknowledged selectively (RFC 2018), and what is sent again because of it (RFC 6675).

use crate::wire::TcpSeqNumber;

/// Ranges that are remembered. What comes beyond is forgotten, and sent again without need at worst.
const MAX_RANGES: usize = 64;

/// A range of sequence numbers, its end not included.
pub(super) type Range = (TcpSeqNumber, TcpSeqNumber);

/// Ranges above SND.UNA that have arrived, in order and apart from each other.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub(super) struct Scoreboard {
    ranges: [Range; MAX_RANGES],
    count: usize,
}

impl Scoreboard {
    pub(super) fn new() -> Self {
        Self {
            ranges: [(TcpSeqNumber(0), TcpSeqNumber(0)); MAX_RANGES],
            count: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn ranges(&self) -> &[Range] {
        &self.ranges[..self.count]
    }

    /// The range has arrived.
    pub(super) fn insert(&mut self, (mut start, mut end): Range) {
        let first = self
            .ranges()
            .iter()
            .take_while(|&&(_, known_end)| known_end < start)
            .count();
        let mut past = first;
        while past < self.count && self.ranges[past].0 <= end {
            start = start.min(self.ranges[past].0);
            end = end.max(self.ranges[past].1);
            past += 1;
        }
        if past == first && self.count == MAX_RANGES {
            return;
        }
        // Those from `first` to `past` become one.
        let kept = self.count - past;
        self.ranges.copy_within(past..self.count, first + 1);
        self.ranges[first] = (start, end);
        self.count = first + 1 + kept;
    }

    /// All below `una` has been acknowledged.
    pub(super) fn advance(&mut self, una: TcpSeqNumber) {
        let gone = self
            .ranges()
            .iter()
            .take_while(|&&(_, end)| end <= una)
            .count();
        self.ranges.copy_within(gone..self.count, 0);
        self.count -= gone;
        if self.count > 0 && self.ranges[0].0 < una {
            self.ranges[0].0 = una;
        }
    }

    /// Bytes that have arrived of the range.
    pub(super) fn arrived(&self, (from, to): Range) -> usize {
        let inside = self.ranges().iter().map(|&(start, end)| {
            let (start, end) = (start.max(from), end.min(to));
            if start < end { end - start } else { 0 }
        });
        inside.sum()
    }

    /// What did not arrive below this is lost: more than `bytes` above it did (RFC 6675, IsLost).
    pub(super) fn lost_below(&self, bytes: usize) -> Option<TcpSeqNumber> {
        let mut above = 0;
        self.ranges().iter().rev().find_map(|&(start, end)| {
            above += end - start;
            (above > bytes).then_some(start)
        })
    }

    /// The first range of `within` that has not arrived.
    pub(super) fn hole(&self, (from, to): Range) -> Option<Range> {
        let mut start = from;
        for &(known, end) in self.ranges() {
            if known > start {
                break;
            }
            start = start.max(end);
        }
        let next = self.ranges().iter().map(|&(known, _)| known);
        let end = next.filter(|&known| known > start).fold(to, |end, known| end.min(known));
        (start < end).then_some((start, end))
    }
}

/// A loss that is being mended.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub(super) struct Recovery {
    /// It is over when this has been acknowledged: what had been sent when it began.
    pub(super) until: TcpSeqNumber,
    /// What is lost below this has been sent again.
    pub(super) next: TcpSeqNumber,
    /// What has not arrived below this is lost.
    pub(super) lost_below: TcpSeqNumber,
    /// Whether it began with a timeout: all that had not arrived then is lost.
    pub(super) timeout: bool,
}

#[cfg(test)]
mod test {
    use super::*;

    fn at(offset: i32) -> TcpSeqNumber {
        // Sequence numbers wrap.
        TcpSeqNumber(i32::MAX.wrapping_add(offset - 50))
    }

    fn board(ranges: &[(i32, i32)]) -> Scoreboard {
        let mut board = Scoreboard::new();
        for &(start, end) in ranges {
            board.insert((at(start), at(end)));
        }
        board
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let all = board(&[(10, 20), (30, 40), (50, 60), (20, 30), (35, 70)]);
        assert_eq!(all.ranges(), [(at(10), at(70))]);
        let apart = board(&[(50, 60), (10, 20), (30, 40)]);
        assert_eq!(
            apart.ranges(),
            [(at(10), at(20)), (at(30), at(40)), (at(50), at(60))]
        );
    }

    #[test]
    fn what_is_acknowledged_is_forgotten() {
        let mut board = board(&[(10, 20), (30, 40), (50, 60)]);
        board.advance(at(35));
        assert_eq!(board.ranges(), [(at(35), at(40)), (at(50), at(60))]);
        board.advance(at(60));
        assert!(board.is_empty());
    }

    #[test]
    fn holes_and_losses() {
        let board = board(&[(10, 20), (30, 40), (50, 60)]);
        assert_eq!(board.arrived((at(0), at(100))), 30);
        assert_eq!(board.arrived((at(15), at(35))), 10);
        assert_eq!(board.hole((at(0), at(100))), Some((at(0), at(10))));
        assert_eq!(board.hole((at(10), at(100))), Some((at(20), at(30))));
        assert_eq!(board.hole((at(25), at(28))), Some((at(25), at(28))));
        assert_eq!(board.hole((at(50), at(60))), None);
        assert_eq!(board.lost_below(0), Some(at(50)));
        assert_eq!(board.lost_below(10), Some(at(30)));
        assert_eq!(board.lost_below(30), None);
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let mut board = Scoreboard::new();
        for number in 0..1000 {
            board.insert((at(number * 10), at(number * 10 + 5)));
        }
        assert_eq!(board.count, MAX_RANGES);
        board.insert((at(5), at(10)));
        assert_eq!(board.count, MAX_RANGES - 1);
    }
}
