//! The end of what a process wrote to standard error, in bounded memory.

use std::collections::VecDeque;

/// Lines kept.
const LINES: usize = 40;
/// Bytes kept of a line.
const LINE_BYTES: usize = 512;

/// The last lines that a process wrote.
#[derive(Debug, Default)]
pub(super) struct LastWords {
    lines: VecDeque<String>,
    /// A line whose end has not come yet.
    partial: Vec<u8>,
}

impl LastWords {
    /// Takes the next bytes of the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.partial.len() < LINE_BYTES {
                self.partial.push(byte);
            }
        }
    }

    /// The lines, oldest first, with the one that has no end.
    pub(super) fn lines(&mut self) -> Vec<String> {
        if !self.partial.is_empty() {
            self.end_line();
        }
        self.lines.iter().cloned().collect()
    }

    fn end_line(&mut self) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(String::from_utf8_lossy(&self.partial).trim_end().to_owned());
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_long_ones_are_cut() {
        let mut words = LastWords::default();
        for n in 0..100 {
            words.push(format!("line {n}\n").as_bytes());
        }
        words.push(&[b'x'; 4096]);
        let lines = words.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[0], "line 61");
        assert_eq!(lines[LINES - 1].len(), LINE_BYTES);
    }

    #[test]
    fn bytes_that_are_no_text_are_kept_as_far_as_they_go() {
        let mut words = LastWords::default();
        words.push(b"a\xffb\r\n");
        assert_eq!(words.lines(), ["a\u{fffd}b"]);
    }
}
