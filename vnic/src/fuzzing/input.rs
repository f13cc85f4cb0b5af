//! Bytes as a source of numbers.

/// What is left of an input. Numbers are little-endian; one that is cut off is not there.
#[derive(Debug)]
pub(crate) struct Input<'i>(pub(crate) &'i [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    /// 8 bits.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    /// 16 bits.
    pub(crate) fn word(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    /// 32 bits.
    pub(crate) fn long(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// One of `choices`.
    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> Option<T> {
        self.byte().map(|byte| choices[usize::from(byte) % choices.len()])
    }
}
