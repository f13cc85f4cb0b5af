//! A small language for what a driver does to the chip, and for what it finds. One statement a line, `#` begins a comment.
//!
//! ```text
//! w16 rap 88            r16 rdp = 0x1003        one access; 8, 16 or 32 bits, the register by name or offset
//! r16 rdp -> causes                             remembers what was read
//! csr 4 := 0x0915       bcr 20 := style         two accesses, RAP and RDP or BDP, in the width of the run
//! csr 0 & 0x8600 = 0x0200                       reads, and compares under a mask
//! csr 0 := causes &~ 0x004f | 1                 from left to right
//! reset                                         reads RESET, in the width of the run
//! that causes & 0x8600 = 0x0200                 compares what was read before
//! rap -> saved          rap := saved            one access, in the width of the run
//! accesses              accesses 10             counts from here on; so many since the last such line
//!
//! init MODE RLEN TLEN [LADRF]                   the init block, in the style of the run
//! frame a 42 to own|broadcast|multicast|other   names a frame of 42 bytes
//! tx 0 holds a 0..20 own stp                    descriptor and buffer; the bytes of the frame may be left out
//! tx 0 error uflo buff                          its misc word
//! rx 0 has 1544         rx 0 withheld           gives a buffer of so many bytes; takes it back
//! rx 0 is stp enp pam                           or `tx 0 is ...`: its status
//! rx 0 length 64        rx 0 contains a 0..42   message length; the bytes in its buffer
//! rx 0 fcs a 60                                 at 60, the FCS of the frame as padded to 60 bytes
//! wire carries a        wire got a              to the chip; from the chip, `padded` to 60 bytes
//! wire got nothing      line high|low           link up|down
//! poll                                          the machine lets the chip look at its rings and its port
//! play open                                     another transcript
//! ```

use std::collections::HashMap;

use super::bench::*;
use crate::adapter::pcnet::rings::{status, transmit_error};
use crate::adapter::pcnet::*;

/// Transcripts by name.
const TRANSCRIPTS: [(&str, &str); 13] = [
    ("probe-wio", include_str!("transcripts/probe-wio.txt")),
    ("probe-dwio", include_str!("transcripts/probe-dwio.txt")),
    ("open", include_str!("transcripts/open.txt")),
    ("send", include_str!("transcripts/send.txt")),
    ("send-chained", include_str!("transcripts/send-chained.txt")),
    ("interrupt-2001", include_str!("transcripts/interrupt-2001.txt")),
    ("napi", include_str!("transcripts/napi.txt")),
    ("receive", include_str!("transcripts/receive.txt")),
    ("multicast-list", include_str!("transcripts/multicast-list.txt")),
    ("stop", include_str!("transcripts/stop.txt")),
    ("transmit-timeout", include_str!("transcripts/transmit-timeout.txt")),
    ("transmit-error", include_str!("transcripts/transmit-error.txt")),
    ("loopback-test", include_str!("transcripts/loopback-test.txt")),
];

const TX_BUFFERS: u64 = 0x8000;
const RX_BUFFERS: u64 = 0x1_0000;
const MULTICAST: [u8; 6] = [0x01, 0x00, 0x5e, 0, 0, 1];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 9];

/// One run of a transcript: the chip, and what the words of the language stand for.
struct Player {
    bench: Bench,
    /// 16 or 32 bits for `csr` and `bcr`.
    width: usize,
    /// Software style of the structures in memory: 0, 2 or 3.
    style: u16,
    names: HashMap<String, u32>,
    frames: HashMap<String, Vec<u8>>,
    accesses: u32,
}

impl Player {
    fn new(width: usize, style: u16) -> Self {
        let mut bench = Bench::new();
        if width == 32 {
            bench.chip.write(0x10, &[0; 4]).unwrap();
        }
        let names = HashMap::from([
            ("style".to_owned(), u32::from(style)),
            ("init".to_owned(), INIT as u32),
            ("rx".to_owned(), RX_RING as u32),
            ("tx".to_owned(), TX_RING as u32),
        ]);
        Self { bench, width, style, names, frames: HashMap::new(), accesses: 0 }
    }

    fn play(&mut self, name: &str) {
        let (_, text) = TRANSCRIPTS.iter().find(|(other, _)| *other == name).unwrap();
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split('#').next().unwrap_or("").split_whitespace().collect();
            let Some((verb, words)) = words.split_first() else { continue };
            let run = format!("{} bits, style {}", self.width, self.style);
            if let Err(found) = self.statement(verb, words) {
                panic!("{name}.txt:{} ({run}): `{}`: {found}", number + 1, line.trim());
            }
        }
    }

    fn statement(&mut self, verb: &str, words: &[&str]) -> Result<(), String> {
        match (verb, words) {
            ("play", [name]) => self.play(name),
            ("csr" | "bcr", [index, ":=", value @ ..]) => {
                let (index, value) = (self.value(&[index])?, self.value(value)?);
                self.access_write(self.width, "rap", index)?;
                self.access_write(self.width, port(verb), value)?;
            }
            ("csr" | "bcr", [index, expected @ ..]) => {
                let index = self.value(&[index])?;
                self.access_write(self.width, "rap", index)?;
                let found = self.access_read(self.width, port(verb))?;
                self.expect(found, expected)?;
            }
            ("r8" | "r16" | "r32", [register, expected @ ..]) => {
                let found = self.access_read(width(verb), register)?;
                self.expect(found, expected)?;
            }
            ("w8" | "w16" | "w32", [register, value @ ..]) => {
                let value = self.value(value)?;
                self.access_write(width(verb), register, value)?;
            }
            ("rap", [":=", value @ ..]) => {
                let value = self.value(value)?;
                self.access_write(self.width, "rap", value)?;
            }
            ("rap", expected) => {
                let found = self.access_read(self.width, "rap")?;
                self.expect(found, expected)?;
            }
            ("that", words) => {
                let at = words.iter().position(|word| *word == "=").ok_or("nothing to compare with")?;
                same(Hex(self.value(&words[..at])?), Hex(self.value(&words[at + 1..])?))?;
            }
            ("accesses", []) => self.accesses = 0,
            ("accesses", [count]) => same(std::mem::take(&mut self.accesses), self.value(&[count])?)?,
            ("init", [mode, receive, transmit, filter @ ..]) => {
                let filter = filter.first().map_or(Ok(0), |word| number64(word))?;
                let lengths = [self.value(&[receive])? as u8, self.value(&[transmit])? as u8];
                self.init_block(self.value(&[mode])? as u16, lengths, filter);
            }
            ("frame", [name, length, "to", who]) => {
                let destination = match *who {
                    "own" => MAC.0,
                    "broadcast" => BROADCAST,
                    "multicast" => MULTICAST,
                    "other" => OTHER,
                    _ => return Err("nobody has this address".into()),
                };
                let made = frame(destination, self.value(&[length])? as usize);
                self.frames.insert((*name).to_owned(), made);
            }
            ("tx" | "rx", [index, rest @ ..]) => {
                let index = u64::from(self.value(&[index])?);
                self.descriptor(verb == "tx", index, rest)?;
            }
            ("wire", ["carries", name]) => {
                let frame = self.frame(name)?;
                self.bench.wire.send(&[Piece::new(&frame)]).unwrap();
            }
            ("wire", ["got", "nothing"]) => same(self.bench.departed(), None)?,
            ("wire", ["got", name, padded @ ..]) => {
                let mut frame = self.frame(name)?;
                if padded == ["padded"] {
                    frame.resize(frame.len().max(60), 0);
                }
                same(self.bench.departed(), Some(frame))?;
            }
            ("line", [level]) => same(self.bench.chip.interrupt(), *level == "high")?,
            ("reset", []) => {
                self.access_read(self.width, "reset")?;
            }
            ("link", [state]) => self.bench.chip.set_link(*state == "up"),
            ("poll", []) => {
                self.bench.chip.service().map_err(|error| error.to_string())?;
            }
            _ => return Err("no such statement".into()),
        }
        Ok(())
    }

    fn access_read(&mut self, width: usize, register: &str) -> Result<u32, String> {
        self.accesses += 1;
        let mut data = [0; 4];
        let offset = offset(register, width)?;
        self.bench.chip.read(offset, &mut data[..width / 8]).map_err(|error| error.to_string())?;
        Ok(u32::from_le_bytes(data))
    }

    fn access_write(&mut self, width: usize, register: &str, value: u32) -> Result<(), String> {
        self.accesses += 1;
        let offset = offset(register, width)?;
        let data = value.to_le_bytes();
        self.bench.chip.write(offset, &data[..width / 8]).map_err(|error| error.to_string())
    }

    /// `= VALUE`, `& MASK = VALUE`, `-> NAME` or nothing.
    fn expect(&mut self, found: u32, words: &[&str]) -> Result<(), String> {
        match words {
            [] => Ok(()),
            ["->", name] => {
                self.names.insert((*name).to_owned(), found);
                Ok(())
            }
            ["=", value @ ..] => same(Hex(found), Hex(self.value(value)?)),
            ["&", mask, "=", value @ ..] => {
                let mask = self.value(&[mask])?;
                same(Hex(found & mask), Hex(self.value(value)?))
            }
            _ => Err("no such expectation".into()),
        }
    }

    fn value(&self, words: &[&str]) -> Result<u32, String> {
        let (first, mut rest) = words.split_first().ok_or("a value is missing")?;
        let term = |word: &str| match self.names.get(word) {
            Some(value) => Ok(*value),
            None => number64(word).map(|value| value as u32),
        };
        let mut value = term(first)?;
        while let [operator, word, more @ ..] = rest {
            let operand = term(word)?;
            value = match *operator {
                "&" => value & operand,
                "|" => value | operand,
                "&~" => value & !operand,
                ">>" => value >> operand,
                _ => return Err(format!("no such operator: {operator}")),
            };
            rest = more;
        }
        Ok(value)
    }

    fn frame(&self, name: &str) -> Result<Vec<u8>, String> {
        self.frames.get(name).cloned().ok_or_else(|| format!("no frame is called {name}"))
    }

    /// `FRAME` or `FRAME FROM..TO`, and the words behind.
    fn bytes<'w>(&self, words: &'w [&'w str]) -> Result<(Vec<u8>, &'w [&'w str]), String> {
        let (name, rest) = words.split_first().ok_or("a frame is missing")?;
        let frame = self.frame(name)?;
        let Some((from, to)) = rest.first().and_then(|word| word.split_once("..")) else {
            return Ok((frame, rest));
        };
        let range = number64(from)? as usize..number64(to)? as usize;
        Ok((frame[range].to_vec(), &rest[1..]))
    }

    /// See [`Pcnet`]'s `initialise`.
    fn init_block(&self, mode: u16, [receive, transmit]: [u8; 2], filter: u64) {
        let mut block = mode.to_le_bytes().to_vec();
        let rings = [(RX_RING as u32, receive), (TX_RING as u32, transmit)];
        if self.style == 0 {
            block.extend(MAC.0);
            block.extend(filter.to_le_bytes());
            for (at, bits) in rings {
                block.extend((at | u32::from(bits) << 29).to_le_bytes());
            }
        } else {
            block.extend([receive << 4, transmit << 4]);
            block.extend(MAC.0);
            block.extend([0; 2]);
            block.extend(filter.to_le_bytes());
            for (at, _) in rings {
                block.extend(at.to_le_bytes());
            }
        }
        self.bench.put(INIT, &block);
    }

    fn descriptor(&self, transmits: bool, index: u64, words: &[&str]) -> Result<(), String> {
        let (ring, buffer) = if transmits {
            (TX_RING, TX_BUFFERS + 0x800 * index)
        } else {
            (RX_RING, RX_BUFFERS + 0x1000 * index)
        };
        let at = ring + index * if self.style == 0 { 8 } else { 16 };
        match words {
            ["holds", rest @ ..] => {
                let (bytes, flags) = self.bytes(rest)?;
                self.bench.put(buffer, &bytes);
                self.put(at, buffer, bytes.len() as u16, bits(flags)?);
            }
            ["withheld"] => self.put(at, buffer, 0, 0),
            ["has", length] => self.put(at, buffer, self.value(&[length])? as u16, status::OWN),
            ["is", flags @ ..] => {
                let exists = if self.style == 0 { 0xff00 } else { 0xffff };
                same(Hex(u32::from(self.status(at))), Hex(u32::from(bits(flags)? & exists)))?;
            }
            ["error", errors @ ..] => {
                let mut misc = 0;
                for error in errors {
                    misc |= match *error {
                        "buff" => transmit_error::BUFF,
                        "uflo" => transmit_error::UFLO,
                        "lcar" => transmit_error::LCAR,
                        "rtry" => transmit_error::RTRY,
                        _ => return Err(format!("no such error: {error}")),
                    };
                }
                same(Hex(self.misc(at)), Hex(if self.style == 0 { misc >> 16 } else { misc }))?;
            }
            ["length", length] => same(self.misc(at), self.value(&[length])?)?,
            ["contains", rest @ ..] => {
                let (bytes, _) = self.bytes(rest)?;
                same(self.bench.get(buffer, bytes.len()), bytes)?;
            }
            ["fcs", name, offset] => {
                let mut frame = self.frame(name)?;
                frame.resize(frame.len().max(60), 0);
                let found = self.bench.get(buffer + u64::from(self.value(&[offset])?), 4);
                same(found, crc32fast::hash(&frame).to_le_bytes().to_vec())?;
            }
            _ => return Err("no such statement of a descriptor".into()),
        }
        Ok(())
    }

    fn put(&self, at: u64, buffer: u64, length: u16, status: u16) {
        let count = u32::from(length.wrapping_neg());
        let high = u32::from(status) << 16;
        if self.style == 0 {
            self.bench.put32(at, buffer as u32 | high & 0xff00_0000);
            self.bench.put32(at + 4, count);
        } else {
            let (base, misc) = if self.style == 2 { (0, 8) } else { (8, 0) };
            self.bench.put32(at + base, buffer as u32);
            self.bench.put32(at + misc, 0);
            self.bench.put32(at + 4, count | high);
        }
    }

    fn status(&self, at: u64) -> u16 {
        let word = self.bench.get32(if self.style == 0 { at } else { at + 4 });
        (word >> 16) as u16 & if self.style == 0 { 0xff00 } else { 0xffff }
    }

    fn misc(&self, at: u64) -> u32 {
        match self.style {
            0 => self.bench.get32(at + 4) >> 16,
            2 => self.bench.get32(at + 8),
            _ => self.bench.get32(at),
        }
    }
}

/// For messages.
#[derive(PartialEq)]
struct Hex(u32);

impl std::fmt::Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "most of what is compared is made for it")]
fn same<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("found {found:?}, not {expected:?}")) }
}

fn number64(word: &str) -> Result<u64, String> {
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.map_err(|_| format!("neither a number nor a name: {word}"))
}

fn width(verb: &str) -> usize {
    verb[1..].parse().unwrap_or(0)
}

fn port(verb: &str) -> &'static str {
    if verb == "csr" { "rdp" } else { "bdp" }
}

fn offset(register: &str, width: usize) -> Result<u64, String> {
    Ok(match (register, width) {
        ("rdp", _) => 0x10,
        ("rap", 16) => 0x12,
        ("rap", _) | ("reset", 16) => 0x14,
        ("bdp", 16) => 0x16,
        ("reset", _) => 0x18,
        ("bdp", _) => 0x1c,
        (number, _) => number64(number)?,
    })
}

fn bits(flags: &[&str]) -> Result<u16, String> {
    flags.iter().try_fold(0, |bits, flag| {
        Ok(bits
            | match *flag {
                "own" => status::OWN,
                "err" => status::ERR,
                "stp" => status::STP,
                "enp" => status::ENP,
                "buff" => status::BUFF,
                "crc" => status::CRC,
                "pam" => status::PAM,
                "lafm" => status::LAFM,
                "bam" => status::BAM,
                "-" => 0,
                _ => return Err(format!("no such flag: {flag}")),
            })
    })
}

/// Plays a transcript in both widths and with every style of structures.
fn play(name: &str) {
    for width in [16, 32] {
        for style in [0, 2, 3] {
            Player::new(width, style).play(name);
        }
    }
}

#[test]
fn probe() {
    Player::new(16, 2).play("probe-wio");
    // Another driver has left the chip in DWIO.
    Player::new(32, 2).play("probe-dwio");
}

#[test]
fn open() {
    play("open");
}

#[test]
fn send_one_and_several() {
    play("send");
}

#[test]
fn send_frames_of_several_descriptors() {
    play("send-chained");
}

#[test]
fn the_interrupt_handler_of_2001() {
    play("interrupt-2001");
}

#[test]
fn the_interrupt_handler_with_napi_and_its_poll() {
    play("napi");
}

#[test]
fn receive() {
    play("receive");
}

#[test]
fn the_multicast_list_changes_while_the_chip_is_suspended() {
    play("multicast-list");
}

#[test]
fn stop() {
    play("stop");
}

#[test]
fn recovery_from_a_transmit_timeout() {
    play("transmit-timeout");
}

#[test]
fn recovery_from_a_transmit_error() {
    play("transmit-error");
}

#[test]
fn the_loop_back_test_of_ethtool() {
    play("loopback-test");
}

#[test]
fn a_transcript_that_does_not_hold_says_where() {
    let mut player = Player::new(16, 2);
    assert_eq!(player.statement("csr", &["0", "=", "5"]), Err("found 0x0004, not 0x0005".into()));
    assert_eq!(player.statement("accesses", &["3"]), Err("found 2, not 3".into()));
    for (verb, words) in [("rx", &["0", "is", "high"][..]), ("csr", &["0", "~"]), ("wire", &["got", "x"])] {
        assert!(player.statement(verb, words).is_err(), "{verb} {words:?}");
    }
}
