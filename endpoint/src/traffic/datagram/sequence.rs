//! What became of numbered datagrams: a pure state machine with bounded memory.
//!
//! ```text
//!  numbers  ... | late | window of the last 2^20: a bit each, whether it came | next | not sent yet, or under way
//! ```
//! A number from `next` on moves the window. One inside it came before (duplicated) or comes after one that was sent later
//! (reordered, RFC 4737, 3.3). Of one behind it nobody knows any more: it is late, and stays lost.

use toll_protocol::traffic::datagram::Delivery;
use toll_protocol::units::Span;

use super::header::MASK;

/// Numbers that are remembered: a second of a million datagrams a second.
pub const WINDOW: u64 = 1 << 20;
const WORDS: usize = (WINDOW / 64) as usize;

/// The state machine.
#[derive(Debug)]
pub struct Sequence {
    /// A bit for each number of the window, at the number modulo its length.
    came: Box<[u64]>,
    /// One more than the highest number that came.
    next: u64,
    received: u64,
    late: u64,
    reordered: u64,
    duplicated: u64,
}

impl Default for Sequence {
    fn default() -> Self {
        Self { came: vec![0; WORDS].into(), next: 0, received: 0, late: 0, reordered: 0, duplicated: 0 }
    }
}

impl Sequence {
    /// A datagram of this number, counted from 0, came.
    pub fn take(&mut self, number: u64) {
        if number >= self.next {
            self.forget(number);
            self.set(number);
            self.next = number + 1;
            self.received += 1;
        } else if self.next - number > WINDOW {
            self.late += 1;
        } else if self.set(number) {
            self.duplicated += 1;
        } else {
            self.received += 1;
            self.reordered += 1;
        }
    }

    /// How many came, each once.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// What became of so many that were sent. `received` is never over that.
    pub fn delivery(&self, sent: u64, jitter: Span) -> Delivery {
        let received = self.received.min(sent);
        Delivery {
            sent,
            received,
            lost: sent - received,
            late: self.late,
            reordered: self.reordered,
            duplicated: self.duplicated,
            jitter,
            buffer_drops: None,
        }
    }

    /// Makes the bits of the numbers from `next` to `number` those of numbers that have not come.
    fn forget(&mut self, number: u64) {
        if number - self.next >= WINDOW {
            self.came.fill(0);
            return;
        }
        let mut first = self.next;
        // A word at a time.
        while first <= number {
            let last = (first | 63).min(number);
            let (word, bit) = place(first);
            self.came[word] &= !(u64::MAX << bit & u64::MAX >> (63 - last % 64));
            first = last + 1;
        }
    }

    /// Sets the bit of a number of the window; whether it was set.
    fn set(&mut self, number: u64) -> bool {
        let (word, bit) = place(number);
        let before = self.came[word];
        self.came[word] = before | 1 << bit;
        before >> bit & 1 == 1
    }
}

/// Word and bit of a number.
const fn place(number: u64) -> (usize, u32) {
    ((number / 64) as usize % WORDS, (number % 64) as u32)
}

/// Interarrival jitter (RFC 3550, 6.4.1). Datagrams of a burst carry one time and arrive with one: of those only the first says
/// something.
#[derive(Debug, Default)]
pub struct Jitter {
    /// When the last burst was sent, by the sender's clock, and arrived, by ours; nanoseconds.
    last: Option<(u64, u64)>,
    /// 16 times the estimate, as in RFC 3550, A.8.
    scaled: u64,
}

impl Jitter {
    /// A datagram that was sent at `sent` came at `arrived`, nanoseconds of two clocks whose difference says nothing.
    pub fn take(&mut self, sent: u64, arrived: u64) {
        match self.last {
            Some((last, _)) if last == sent => return,
            Some((last_sent, last_arrived)) => {
                let under_way = |arrived: u64, sent: u64| arrived.wrapping_sub(sent) & MASK;
                let change = under_way(arrived, sent).wrapping_sub(under_way(last_arrived, last_sent)) & MASK;
                // 48 bits with a sign.
                let change = change.min(MASK + 1 - change);
                self.scaled = self.scaled - (self.scaled + 8) / 16 + change;
            }
            None => {}
        }
        self.last = Some((sent, arrived));
    }

    /// The estimate.
    pub const fn now(&self) -> Span {
        Span(self.scaled / 16)
    }
}

#[cfg(test)]
mod tests;
