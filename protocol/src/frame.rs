//! Framing for messages on any byte stream: a 32-bit big-endian length, then that many bytes of JSON. Sans-IO:
//! bytes in, messages out, so that a blocking thread and a tokio task use the same code.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::printable;

/// The longest message taken, in bytes: bounds what a hostile peer can make us hold.
pub const MAX_MESSAGE: usize = 4 << 20;

const HEADER: usize = 4;

/// What may be read from a stream.
pub trait Message: DeserializeOwned {
    /// Whether it comes from further outside than its reader is: from an agent, or from a child that runs a guest. Its
    /// strings end up before people, and are made printable as they arrive.
    const FROM_OUTSIDE: bool;

    /// Bytes that one of this kind has at most.
    fn longest(&self) -> usize {
        MAX_MESSAGE
    }
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It is longer than [`MAX_MESSAGE`], or than one of its kind may be.
    #[error("a message has {length} bytes; one of its kind has at most {longest}")]
    TooLong {
        /// What the header said.
        length: usize,
        /// Most bytes that are taken.
        longest: usize,
    },
    /// The body is not the message that was expected.
    #[error("a message could not be understood")]
    Malformed(#[source] serde_json::Error),
    /// A value could not be written as JSON.
    #[error("a message could not be encoded")]
    Encode(#[source] serde_json::Error),
}

/// The framed bytes of `message`.
///
/// # Errors
/// [`FrameError::Encode`] or [`FrameError::TooLong`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message).map_err(FrameError::Encode)?;
    let length = bytes.len() - HEADER;
    if length > MAX_MESSAGE {
        return Err(FrameError::TooLong { length, longest: MAX_MESSAGE });
    }
    // MAX_MESSAGE fits 32 bits.
    bytes[..HEADER].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// Collects bytes and gives out whole messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes have come.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] or [`FrameError::Malformed`]; the stream is then of no more use.
    pub fn next_message<T: Message>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header) as usize;
        if length > MAX_MESSAGE {
            return Err(FrameError::TooLong { length, longest: MAX_MESSAGE });
        }
        let Some(body) = self.buffer.get(HEADER..HEADER + length) else { return Ok(None) };
        let body = if T::FROM_OUTSIDE { printable::json(body) } else { body.into() };
        let message: T = serde_json::from_slice(&body).map_err(FrameError::Malformed)?;
        let longest = message.longest();
        if length > longest {
            return Err(FrameError::TooLong { length, longest });
        }
        self.buffer.drain(..HEADER + length);
        Ok(Some(message))
    }

    /// Whether the stream stopped in the middle of a message.
    pub fn is_partial(&self) -> bool {
        !self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Message for (u32, String) {
        const FROM_OUTSIDE: bool = false;
    }

    impl Message for u32 {
        const FROM_OUTSIDE: bool = true;
    }

    proptest! {
        #[test]
        fn messages_survive_any_fragmentation(messages: Vec<(u32, String)>, cut in 1_usize..9) {
            let mut stream = Vec::new();
            for message in &messages {
                stream.extend(encode(message).expect("encodes"));
            }
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(message) = decoder.next_message::<(u32, String)>().expect("decodes") {
                    got.push(message);
                }
            }
            prop_assert_eq!(got, messages);
            prop_assert!(!decoder.is_partial());
        }

        #[test]
        fn hostile_bytes_are_an_error_or_a_wait(bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            let _ = decoder.next_message::<(u32, String)>();
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_the_body_comes() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.next_message::<u32>(), Err(FrameError::TooLong { .. })));
    }
}
