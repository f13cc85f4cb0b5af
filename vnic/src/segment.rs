//! TCP segments as a frame carries them (RFC 9293, 3.1, over RFC 791 or RFC 8200): where their parts are, which one
//! follows which, and the fields that differ between a long segment and the short ones that it stands for.
//!
//! ```text
//!  Ethernet | IPv4 without options, or IPv6 without extension headers | TCP with options | payload
//!  0          14                                                        transport          payload
//! ```
//! Plain segments (payload, an acknowledgement, and of the flags nothing but PSH beside it) may be joined. Whatever is more
//! than that travels alone.

use crate::piece::Piece;
use etherparse::checksum::Sum16BitWords;
use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice, ip_number};

/// Ethernet header: destination, source, EtherType.
const IP: usize = 14;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// Ethernet, IPv6 and TCP with all options that fit.
pub(crate) const LONGEST_HEADERS: usize = IP + IPV6_HEADER + 60;

/// Places in a TCP header.
const SEQUENCE: usize = 4;
const FLAGS: usize = 13;
pub(crate) const CHECKSUM: usize = 16;
const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// Places in IP headers.
const V4_TOTAL_LENGTH: usize = IP + 2;
const V4_IDENTIFICATION: usize = IP + 4;
const V4_CHECKSUM: usize = IP + 10;
const V4_SOURCE: usize = IP + 12;
const V6_PAYLOAD_LENGTH: usize = IP + 4;
const V6_SOURCE: usize = IP + 8;

/// Version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V4,
    V6,
}

/// Where the parts of a segment are, and what is in the fields that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) version: Version,
    /// Where the TCP header begins, in bytes of the frame.
    pub(crate) transport: usize,
    /// Where the payload begins.
    pub(crate) payload: usize,
    /// Bytes of payload.
    pub(crate) length: usize,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    plain: bool,
    identification: u16,
    dont_fragment: bool,
}

impl Segment {
    /// The segment with payload in a frame of `length` bytes that begins with `head`: all of its headers, at least.
    pub(crate) fn parse(head: &[u8], length: usize) -> Option<Self> {
        let ethertype = u16::from_be_bytes([*head.get(12)?, *head.get(13)?]);
        let packet = head.get(IP..)?;
        let (version, transport, total, identification, dont_fragment) = match ethertype {
            0x0800 => {
                let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
                let plain = ip.slice().len() == IPV4_HEADER
                    && ip.protocol() == ip_number::TCP
                    && !ip.is_fragmenting_payload();
                // A header that is damaged must reach somebody who finds that out.
                let whole = Sum16BitWords::new().add_slice(ip.slice()).ones_complement() == 0;
                let total = usize::from(ip.total_len());
                (plain && whole).then_some((
                    Version::V4,
                    IP + IPV4_HEADER,
                    total,
                    ip.identification(),
                    ip.dont_fragment(),
                ))?
            }
            0x86dd => {
                let ip = Ipv6HeaderSlice::from_slice(packet).ok()?;
                let total = IPV6_HEADER + usize::from(ip.payload_length());
                (ip.next_header() == ip_number::TCP).then_some((
                    Version::V6,
                    IP + IPV6_HEADER,
                    total,
                    0,
                    true,
                ))?
            }
            _ => return None,
        };
        // Frames that were padded to Ethernet's 60 bytes are no payload.
        let tcp = TcpHeaderSlice::from_slice(head.get(transport..)?).ok()?;
        let payload = transport + tcp.slice().len();
        let (flags, upper) = (tcp.slice()[FLAGS], tcp.slice()[FLAGS - 1]);
        (IP + total == length && length > payload).then(|| Self {
            version,
            transport,
            payload,
            length: length - payload,
            sequence: tcp.sequence_number(),
            flags,
            plain: flags & !PSH == ACK && upper & 0x0f == 0 && tcp.urgent_pointer() == 0,
            identification,
            dont_fragment,
        })
    }

    /// Whether it may be joined with others.
    pub(crate) const fn is_plain(&self) -> bool {
        self.plain
    }

    /// Whether nothing may follow it as part of the same.
    pub(crate) const fn pushes(&self) -> bool {
        self.flags & PSH != 0
    }

    /// Whether `next`, in a frame that begins with `next_head`, may be sent as the part of this segment that follows on
    /// `count` others of the same length: the same headers, but for what cutting up makes anew (length, identification,
    /// sequence, checksums, PSH).
    pub(crate) fn is_followed_by(&self, head: &[u8], count: usize, next: &Self, next_head: &[u8]) -> bool {
        let distance = u32::try_from(count * self.length).unwrap_or(u32::MAX);
        // RFC 6864, 4.1: of a datagram that is not fragmented and must not be, it means nothing.
        let identified = self.dont_fragment
            || next.identification
                == self.identification.wrapping_add(u16::try_from(count).unwrap_or(u16::MAX));
        let fits = next.plain
            && (self.version, self.transport, self.payload, self.dont_fragment)
                == (next.version, next.transport, next.payload, next.dont_fragment)
            && next.length <= self.length
            && next.sequence == self.sequence.wrapping_add(distance)
            && identified;
        let same = |fields: std::ops::Range<usize>| head.get(fields.clone()) == next_head.get(fields);
        let same_network = match self.version {
            // All but total length, identification and checksum.
            Version::V4 => {
                same(0..V4_TOTAL_LENGTH)
                    && same(V4_IDENTIFICATION + 2..V4_CHECKSUM)
                    && same(V4_SOURCE..self.transport)
            }
            Version::V6 => same(0..V6_PAYLOAD_LENGTH) && same(V6_PAYLOAD_LENGTH + 2..self.transport),
        };
        let tcp = self.transport;
        fits && same_network
            // Ports; acknowledgement and data offset; window; urgent pointer and options.
            && same(tcp..tcp + SEQUENCE)
            && same(tcp + SEQUENCE + 4..tcp + FLAGS)
            && same(tcp + FLAGS + 1..tcp + CHECKSUM)
            && same(tcp + CHECKSUM + 2..self.payload)
    }

    /// Sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1) for so many bytes of TCP header and payload.
    fn pseudo_header(&self, head: &[u8], bytes: usize) -> Sum16BitWords {
        let addresses = match self.version {
            Version::V4 => &head[V4_SOURCE..V4_SOURCE + 8],
            Version::V6 => &head[V6_SOURCE..V6_SOURCE + 32],
        };
        // A frame is below 2^16 bytes long.
        let length = u16::try_from(bytes).unwrap_or(u16::MAX);
        Sum16BitWords::new()
            .add_slice(addresses)
            .add_2bytes([0, ip_number::TCP.0])
            .add_2bytes(length.to_be_bytes())
    }

    /// Whether the checksum of the segment is right, as far as can be told: not if a piece of its payload but the last is
    /// an odd number of bytes long, as the sum is one of 16-bit words.
    pub(crate) fn holds<'m>(&self, head: &[u8], payload: impl Iterator<Item = Piece<'m>>) -> bool {
        let bytes = self.payload - self.transport + self.length;
        let mut sum = self.pseudo_header(head, bytes).add_slice(&head[self.transport..self.payload]);
        let mut odd = false;
        for piece in payload {
            if odd {
                return false;
            }
            odd = !piece.len().is_multiple_of(2);
            piece.for_each_chunk(|chunk| sum = sum.clone().add_slice(chunk));
        }
        sum.ones_complement() == 0
    }

    /// Flags of a part of this segment: what ends it stands on the last, what answers congestion on the first (RFC 3168,
    /// 6.1.2).
    pub(crate) const fn flags_of_part(&self, first: bool, last: bool) -> u8 {
        let flags = if last { self.flags } else { self.flags & !(FIN | PSH) };
        if first { flags } else { flags & !CWR }
    }

    /// Makes `head` the headers of `length` bytes of payload that begin `offset` bytes after this segment's own, as part
    /// number `index` of it. The checksum field gets the sum of the pseudo header: what who completes it starts from.
    pub(crate) fn rewrite(&self, head: &mut [u8], index: usize, offset: usize, length: usize, flags: u8) {
        let bytes = self.payload - self.transport + length;
        let put = |head: &mut [u8], at: usize, field: [u8; 2]| head[at..at + 2].copy_from_slice(&field);
        let short = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        match self.version {
            Version::V4 => {
                let identification = self.identification.wrapping_add(index as u16);
                put(head, V4_TOTAL_LENGTH, short(IPV4_HEADER + bytes).to_be_bytes());
                put(head, V4_IDENTIFICATION, identification.to_be_bytes());
                put(head, V4_CHECKSUM, [0, 0]);
                let sum = Sum16BitWords::new().add_slice(&head[IP..IP + IPV4_HEADER]).ones_complement();
                put(head, V4_CHECKSUM, sum.to_ne_bytes());
            }
            Version::V6 => put(head, V6_PAYLOAD_LENGTH, short(bytes).to_be_bytes()),
        }
        let tcp = self.transport;
        let sequence = self.sequence.wrapping_add(u32::try_from(offset).unwrap_or(u32::MAX));
        head[tcp + SEQUENCE..tcp + SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
        head[tcp + FLAGS] = flags;
        let partial = !self.pseudo_header(head, bytes).ones_complement();
        put(head, tcp + CHECKSUM, partial.to_ne_bytes());
    }

    /// Completes the checksum in headers that [`rewrite`](Self::rewrite) made, for this payload.
    pub(crate) fn complete(&self, head: &mut [u8], payload: &[u8]) {
        // A TCP header is a number of 32-bit words.
        let sum = Sum16BitWords::new().add_slice(&head[self.transport..self.payload]).add_slice(payload);
        let at = self.transport + CHECKSUM;
        head[at..at + 2].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    }
}

/// Completes the checksum of a whole frame whose field at `at` holds the sum to start from, over all from `start` on.
/// Nothing if they lie outside of it.
pub(crate) fn complete_frame(frame: &mut [u8], start: usize, at: usize) {
    if at.checked_add(2).is_some_and(|end| end <= frame.len()) && start < frame.len() {
        // Of a UDP datagram 0 would say that it has none (RFC 768).
        let sum = Sum16BitWords::new().add_slice(&frame[start..]).to_ones_complement_with_no_zero();
        frame[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
    }
}
