//! A port with headers on a wire without: what the kernel does behind a TAP. Segments are cut up and checksums filled
//! in on the way out; what comes in is vouched for by nobody.

use std::os::fd::BorrowedFd;

use toll_vnic::piece::{Piece, PieceMut};
use toll_vnic::port::{Framing, Port, PortError, Sent};

const HEADER: usize = 12;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
/// Where TCP begins behind Ethernet and IPv4 without options.
const TCP: usize = 14 + 20;
const PUSH_AND_FIN: u8 = 0x09;

pub struct Finishing<P> {
    pub port: P,
}

/// One's complement sum (RFC 1071).
fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum = start + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn field(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

impl<P: Port> Finishing<P> {
    /// The frames that the network sees.
    fn finished(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (header, frame) = bytes.split_at(HEADER);
        if header[0] == 0 {
            assert_eq!(header, [0; HEADER]);
            return vec![frame.to_vec()];
        }
        assert_eq!((header[0], field(header, 6), field(header, 8)), (NEEDS_CSUM, 34, 16));
        let before = TCP + usize::from(frame[46] >> 4) * 4;
        assert_eq!(field(header, 2), before, "hdr_len");
        let pseudo = sum(&frame[26..34], 6 + (frame.len() - 34) as u32);
        assert_eq!(frame[50..52], pseudo.to_be_bytes(), "the sum of the pseudo header");
        let size = match header[1] {
            0 => frame.len(),
            gso_type => {
                assert_eq!(gso_type, GSO_TCPV4);
                assert!(bytes.len() - HEADER < 65_536 && frame.len() > before + field(header, 4));
                field(header, 4)
            }
        };
        let (headers, payload) = frame.split_at(before);
        let pieces: Vec<&[u8]> =
            if payload.is_empty() { vec![payload] } else { payload.chunks(size).collect() };
        let last = pieces.len() - 1;
        let finish = |(index, piece): (usize, &&[u8])| {
            let mut frame = [headers, piece].concat();
            let length = (frame.len() - 14) as u16;
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            frame[24..26].copy_from_slice(&[0, 0]);
            let checksum = !sum(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
            let first = u32::from_be_bytes(frame[38..42].try_into().unwrap());
            let first = first.wrapping_add((index * size) as u32);
            frame[38..42].copy_from_slice(&first.to_be_bytes());
            if index < last {
                frame[47] &= !PUSH_AND_FIN;
            }
            frame[50..52].copy_from_slice(&[0, 0]);
            let checksum = !sum(&frame[34..], sum(&frame[26..34], 6 + (frame.len() - 34) as u32).into());
            frame[50..52].copy_from_slice(&checksum.to_be_bytes());
            frame
        };
        pieces.iter().enumerate().map(finish).collect()
    }
}

impl<P: Port> Port for Finishing<P> {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        let bytes = toll_vnic::piece::collect(parts);
        for frame in Self::finished(&bytes) {
            self.port.send(&[Piece::new(&frame)])?;
        }
        Ok(Sent::Taken)
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        let mut frame = vec![0; 10_000];
        let Some(length) = self.port.receive(&mut [PieceMut::new(&mut frame)])? else { return Ok(None) };
        let bytes = [&[0; HEADER][..], &frame[..length]].concat();
        let mut rest = &bytes[..];
        for part in parts {
            rest = &rest[part.write(0, rest)..];
        }
        Ok(Some(bytes.len() - rest.len()))
    }

    fn framing(&self) -> Framing {
        Framing::VirtioNetHeader
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.fd()
    }
}
