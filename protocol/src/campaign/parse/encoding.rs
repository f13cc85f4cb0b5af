//! From bytes to text: what editors and shells write, or the reason why it is no text.

/// Why bytes are no YAML text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// They are not in UTF-8, nor do they begin as another encoding that is taken.
    #[error("is not in UTF-8 (byte {at}): a campaign is YAML text; save it as UTF-8")]
    NotUtf8 {
        /// Offset of the first byte that is wrong.
        at: usize,
    },
    /// They begin as UTF-16 and don't go on so.
    #[error("begins as UTF-16 and is not in UTF-16 (byte {at}): save it as UTF-8")]
    NotUtf16 {
        /// Offset of the first unit that is wrong.
        at: usize,
    },
    /// They are in UTF-16 that does not say so, or in UTF-32.
    #[error("is in {0}: save it as UTF-8")]
    Other(&'static str),
}

const UTF8_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// The text that `bytes` say in UTF-8, or in UTF-16 with a byte order mark; without that mark.
///
/// # Errors
/// [`EncodingError`].
pub fn decode(bytes: &[u8]) -> Result<String, EncodingError> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Err(EncodingError::Other("UTF-32")),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        // No text of one campaign begins with a NUL, or has one after its first character.
        [0, second, ..] | [second, 0, ..] if *second != 0 => {
            Err(EncodingError::Other("UTF-16 without a byte order mark"))
        }
        bytes => {
            let bytes = bytes.strip_prefix(UTF8_MARK).unwrap_or(bytes);
            let text = std::str::from_utf8(bytes);
            text.map(str::to_owned).map_err(|error| EncodingError::NotUtf8 { at: error.valid_up_to() })
        }
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, EncodingError> {
    let (units, rest) = bytes.as_chunks::<2>();
    let (mut text, mut at) = (String::with_capacity(units.len()), 2);
    for decoded in char::decode_utf16(units.iter().copied().map(unit)) {
        let decoded = decoded.map_err(|_| EncodingError::NotUtf16 { at })?;
        at += decoded.len_utf16() * 2;
        text.push(decoded);
    }
    if rest.is_empty() { Ok(text) } else { Err(EncodingError::NotUtf16 { at }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_editors_write_is_text() {
        let text = "kind: Campaign # ä😀\r\n";
        let utf16 = |unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
            "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(unit).collect()
        };
        for bytes in [
            text.as_bytes().to_vec(),
            [UTF8_MARK, text.as_bytes()].concat(),
            utf16(u16::to_le_bytes),
            utf16(u16::to_be_bytes),
        ] {
            assert_eq!(decode(&bytes).as_deref(), Ok(text));
        }
        assert_eq!(decode(b"").as_deref(), Ok(""));
    }

    #[test]
    fn what_is_no_text_says_what_it_is() {
        for (bytes, error) in [
            (&b"kind: \xff\n"[..], EncodingError::NotUtf8 { at: 6 }),
            (b"k\0i\0n\0d\0", EncodingError::Other("UTF-16 without a byte order mark")),
            (b"\0k\0i\0n\0d", EncodingError::Other("UTF-16 without a byte order mark")),
            (b"\xff\xfe\0\0k\0\0\0", EncodingError::Other("UTF-32")),
            (b"\xff\xfek\0\x00\xd8", EncodingError::NotUtf16 { at: 4 }),
            (b"\xff\xfek\0i", EncodingError::NotUtf16 { at: 4 }),
        ] {
            assert_eq!(decode(bytes), Err(error));
        }
    }
}
