//! Frames that a port which cuts up what the kernel joined gets from it, and what it gives on: the same payload, in
//! segments that are whole, and checksums that are right.

use std::sync::Arc;

use toll_protocol::report::FrameCounters;

use super::Input;
use super::packet::{HEADERS, pattern, tcp_segment};
use super::wire::{SharedWire, WirePort, locked};
use crate::GuestMemory;
use crate::piece::{Piece, PieceMut};
use crate::port::splitting::{MOST_TAKEN, Splitting};
use crate::port::{Framing, Offloads, Port};
use crate::segment::Segment;
use crate::vnet_header::{self, CSUM_START, FLAGS, GSO_SIZE, GSO_TYPE, NEEDS_CSUM};

const HEADER: usize = vnet_header::LENGTH;
/// Frames of a flood: more than one call takes.
const FLOOD: usize = 100;
/// The longest that a kernel gives: a VLAN tag and an IP packet of 65535 bytes.
const LONGEST: usize = HEADER + 18 + 65_535;
const TO: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Frames of one input at most.
const FRAMES: usize = 64;

/// Frames from bytes: headers, kinds and lengths, some of them spoilt in one place. What was given on.
pub fn splitting(input: &[u8]) -> Option<FrameCounters> {
    let mut input = Input(input);
    let bits = input.byte()?;
    let wire = SharedWire::default();
    let port = WirePort {
        wire: Arc::clone(&wire),
        memory: GuestMemory::new(),
        framing: Framing::VirtioNetHeader,
        lengths: 0..=usize::MAX,
    };
    let mut port = Splitting::new(Box::new(port));
    let offloads = Offloads { checksum: bits & 1 != 0, tso4: bits & 3 == 3, tso6: bits & 5 == 5 };
    port.set_offloads(offloads).expect("the wire takes any");
    let (mut counters, mut room) = (FrameCounters::default(), vec![0; 1 << 17]);
    for number in 0..FRAMES {
        let Some((frame, spoilt, copies)) = frame(&mut input, number as u8) else { break };
        locked(&wire).waiting.extend(std::iter::repeat_n(frame.clone(), copies));
        let (mut payload, mut waits) = (Vec::new(), true);
        while waits {
            locked(&wire).calls = 0;
            // A cut-off end, as where a guest's buffers are short, is a receiver's matter.
            let given = port.receive(&mut [PieceMut::new(&mut room)]).expect("the wire does not fail");
            let wire = locked(&wire);
            assert!(wire.calls <= MOST_TAKEN, "{} calls of the port", wire.calls);
            waits = given.is_some() || !wire.waiting.is_empty();
            if let Some(length) = given {
                counters.receive_frames += 1;
                counters.receive_bytes += length as u64;
                payload.extend(check(&frame, &room[..length], offloads));
                assert!(payload.len() <= copies * frame.len(), "more is given on than came: {frame:x?}");
            }
        }
        // All of it, or nothing.
        let whole = is_joined(&frame) && !offloads.segments() && !spoilt;
        let expected = frame[(HEADER + HEADERS).min(frame.len())..].repeat(copies);
        assert!(!whole || payload.is_empty() || payload == expected, "{frame:x?}");
    }
    Some(counters)
}

fn is_joined(frame: &[u8]) -> bool {
    frame.get(GSO_TYPE).is_some_and(|kind| *kind != 0)
}

/// Looks at what was given on of a frame, `came`. Its payload, if it is a segment of it.
fn check(came: &[u8], given: &[u8], offloads: Offloads) -> Vec<u8> {
    if offloads.segments() {
        assert_eq!(given, came, "whoever takes segments gets what the kernel gives");
        return Vec::new();
    }
    if !is_joined(came) {
        let changed = given.iter().zip(came).skip(HEADER).filter(|(given, came)| given != came).count();
        assert!(given.len() == came.len() && changed <= 2, "a whole frame is another one: {came:x?}");
        return Vec::new();
    }
    let (header, frame) = given.split_at(HEADER);
    let size = usize::from(u16::from_le_bytes([came[GSO_SIZE], came[GSO_SIZE + 1]]));
    let head = &frame[..frame.len().min(crate::segment::LONGEST_HEADERS)];
    // Lengths and the checksum of IPv4 are looked at there.
    let segment = Segment::parse(head, frame.len()).expect("a segment is whole");
    assert!(segment.length <= size, "{} bytes in segments of {size}", segment.length);
    assert_eq!(header[GSO_TYPE], 0, "a segment is not to be cut up again");
    let payload = &frame[segment.payload..];
    if offloads.checksum {
        let start = usize::from(u16::from_le_bytes([header[CSUM_START], header[CSUM_START + 1]]));
        assert!(header[FLAGS] == NEEDS_CSUM && start == segment.transport);
    } else {
        assert!(segment.holds(head, std::iter::once(Piece::new(payload))), "its checksum: {frame:x?}");
    }
    payload.to_vec()
}

/// A frame, whether a byte of it is not what it was made of, and how often it comes.
fn frame(input: &mut Input<'_>, number: u8) -> Option<(Vec<u8>, bool, usize)> {
    let (kind, flags, length) = (input.byte()?, input.byte()?, input.word()?);
    let (size, number_or_place) = (input.word()?, input.long()?);
    let mut frame = vec![0; HEADER];
    frame[FLAGS] = flags & 3;
    frame[GSO_TYPE] = [0, 1, 1, 4][usize::from(kind & 3)];
    frame[GSO_SIZE..GSO_SIZE + 2].copy_from_slice(&size.to_le_bytes());
    // What a kernel leaves to be completed.
    frame[CSUM_START] = 34;
    frame[vnet_header::CSUM_OFFSET] = 16;
    if kind & 4 == 0 {
        frame.extend(tcp_segment(TO, number_or_place, flags, length.into(), number));
    } else {
        frame.extend(pattern(number, length.into()));
    }
    let spoilt = kind & 8 != 0;
    if spoilt {
        // One byte of headers, or the end.
        let [at, value, cut, _] = number_or_place.to_le_bytes();
        let at = usize::from(at) % (HEADER + HEADERS);
        if let Some(byte) = frame.get_mut(at) {
            *byte = value;
        }
        frame.truncate(frame.len() - usize::from(cut).min(frame.len()));
    }
    frame.truncate(LONGEST);
    // A flood of long ones would be megabytes.
    let copies = if kind & 0x70 == 0x70 && length < 2000 { FLOOD } else { 1 };
    Some((frame, spoilt, copies))
}
