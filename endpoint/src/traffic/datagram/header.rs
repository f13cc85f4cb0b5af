//! What each datagram begins with: 16 bytes, big-endian, so that the smallest frame of RFC 2544 has room for it.
//!
//! ```text
//!  0        2      3      4                     10                    16
//!  | magic  | kind | step | number (48 bits)    | value (48 bits)     |
//! ```

/// Bytes of a header.
pub const LENGTH: usize = toll_protocol::traffic::datagram::HEADER as usize;
const MAGIC: [u8; 2] = *b"tL";
/// What 48 bits hold.
pub const MASK: u64 = (1 << 48) - 1;

/// What a datagram is. `number` and `value` are 0 where nothing is said of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The connecting end is there; `number` is the trial's.
    Hello = 1,
    /// The listening end answers it, with the same number.
    Welcome = 2,
    /// Payload outside of the sender's interval; `value` is when it was sent, in nanoseconds.
    Payload = 3,
    /// Payload of the sender's interval: its `number` from 0, and when it was sent.
    Marked = 4,
    /// Payload after it; `number` is how many were marked.
    After = 5,
    /// The receiver has all that it measures.
    Done = 6,
    /// The sender has stopped.
    Bye = 7,
    /// Payload of a search's trial, which `step` counts: its `number` from 0.
    Probe = 8,
    /// How many of that step have come?
    Question = 9,
    /// So many, as `number`, within `value` nanoseconds.
    Answer = 10,
}

impl Kind {
    /// Whether it is payload, which an end that only sends has no use for.
    pub const fn is_payload(self) -> bool {
        matches!(self, Self::Payload | Self::Marked | Self::After | Self::Probe)
    }

    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Payload,
            4 => Self::Marked,
            5 => Self::After,
            6 => Self::Done,
            7 => Self::Bye,
            8 => Self::Probe,
            9 => Self::Question,
            10 => Self::Answer,
            _ => return None,
        })
    }
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the datagram is.
    pub kind: Kind,
    /// Trial of a search.
    pub step: u8,
    /// 48 bits.
    pub number: u64,
    /// 48 bits.
    pub value: u64,
}

impl Header {
    /// One that says only what it is.
    pub const fn new(kind: Kind) -> Self {
        Self { kind, step: 0, number: 0, value: 0 }
    }

    /// As it is sent.
    pub fn bytes(self) -> [u8; LENGTH] {
        let (number, value) = (u128::from(self.number & MASK), u128::from(self.value & MASK));
        let first = u128::from(u16::from_be_bytes(MAGIC)) << 16 | u128::from(self.kind as u8) << 8;
        ((first | u128::from(self.step)) << 96 | number << 48 | value).to_be_bytes()
    }

    /// That of a datagram, if it is one of an end.
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let bytes = *datagram.first_chunk::<LENGTH>()?;
        let [a, b, kind, step, ..] = bytes;
        if [a, b] != MAGIC {
            return None;
        }
        let all = u128::from_be_bytes(bytes);
        let low = |bits: u128| (bits & u128::from(MASK)) as u64;
        Some(Self { kind: Kind::of(kind)?, step, number: low(all >> 48), value: low(all) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(kind in 1_u8..=10, step: u8, number in 0..=MASK, value in 0..=MASK, more in 0_usize..9) {
            let header = Header { kind: Kind::of(kind).expect("a kind"), step, number, value };
            let datagram = [&header.bytes()[..], &vec![7; more]].concat();
            prop_assert_eq!(Header::of(&datagram), Some(header));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            if let Some(header) = Header::of(&bytes) {
                prop_assert_eq!(&header.bytes()[..], &bytes[..LENGTH]);
            }
        }
    }

    #[test]
    fn what_is_short_or_a_strangers_is_none() {
        let bytes = Header::new(Kind::Done).bytes();
        assert_eq!(Header::of(&bytes[..15]), None);
        let mut other = bytes;
        other[0] ^= 1;
        assert_eq!(Header::of(&other), None);
        let mut unknown = bytes;
        unknown[2] = 11;
        assert_eq!(Header::of(&unknown), None);
    }
}
