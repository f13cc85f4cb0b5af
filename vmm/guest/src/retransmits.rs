//! Segments that the TCP stack sends again, counted where they leave: smoltcp keeps no such count.
//!
//! A segment of payload that begins below the highest sequence number sent so far is a retransmission (RFC 9293,
//! 3.4; modulo 2^32). A zero-window probe (RFC 9293, 3.8.6.1) is one byte, which may leave again as part of a segment
//! when the window opens, without a loss: segments of one byte are left out.

use smoltcp::wire::TcpSeqNumber;
use toll_guest_abi::MAX_FLOWS;

/// The count of all connections of a program. Those of one program differ by their ports alone.
#[derive(Debug)]
pub(crate) struct Retransmits {
    count: u32,
    connections: [Connection; 2 * MAX_FLOWS],
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    /// Source and destination port as they lie in the segment: 0 of a place that is free.
    ports: [u8; 4],
    /// The sequence number after the highest byte sent.
    next: TcpSeqNumber,
}

impl Default for Retransmits {
    fn default() -> Self {
        let free = Connection { ports: [0; 4], next: TcpSeqNumber(0) };
        Self { count: 0, connections: [free; 2 * MAX_FLOWS] }
    }
}

impl Retransmits {
    /// Segments sent again so far; stays at the greatest number that it can hold.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Looks at an Ethernet frame that the stack sends. A SYN begins a connection, or begins it anew; segments of those that
    /// there is no place for are left out.
    pub(crate) fn sent(&mut self, frame: &[u8]) {
        let Some(Segment { syn, ports, first, length }) = Segment::of(frame) else { return };
        if !syn && length <= 1 {
            return;
        }
        let known =
            |connection: &&mut Connection| connection.ports == ports || (syn && connection.ports == [0; 4]);
        let Some(connection) = self.connections.iter_mut().find(known) else { return };
        if syn {
            *connection = Connection { ports, next: first + 1 };
        } else {
            if first < connection.next {
                self.count = self.count.saturating_add(1);
            }
            connection.next = connection.next.max(first + length);
        }
    }
}

/// What matters of a TCP segment.
struct Segment {
    syn: bool,
    ports: [u8; 4],
    first: TcpSeqNumber,
    /// Bytes of payload.
    length: usize,
}

impl Segment {
    /// The segment in an Ethernet frame, if there is one. Read at the fixed places of headers without IP options, which
    /// this stack sends: smoltcp's own checked packets, made for every frame, cost a sender on a wire in memory 6 % of
    /// its throughput, and this costs nothing that can be measured.
    fn of(frame: &[u8]) -> Option<Self> {
        /// EtherType, IPv4 (RFC 791, 3.1) and TCP (RFC 9293, 3.1) headers from the frame's first byte on.
        const ETHERTYPE: usize = 12;
        const IP: usize = 14;
        const TCP: usize = IP + 20;
        const IPV4: [u8; 2] = [0x08, 0x00];
        const VERSION_4_OF_5_WORDS: u8 = 0x45;
        const PROTOCOL_TCP: u8 = 6;
        const SYN: u8 = 0x02;
        let (headers, _) = frame.split_first_chunk::<{ TCP + 20 }>()?;
        if headers[ETHERTYPE..IP] != IPV4
            || headers[IP] != VERSION_4_OF_5_WORDS
            || headers[IP + 9] != PROTOCOL_TCP
        {
            return None;
        }
        let total = usize::from(u16::from_be_bytes([headers[IP + 2], headers[IP + 3]]));
        if frame.len() < IP + total {
            return None;
        }
        let first = [headers[TCP + 4], headers[TCP + 5], headers[TCP + 6], headers[TCP + 7]];
        let data_offset = usize::from(headers[TCP + 12] >> 4) * 4;
        Some(Self {
            syn: headers[TCP + 13] & SYN != 0,
            ports: [headers[TCP], headers[TCP + 1], headers[TCP + 2], headers[TCP + 3]],
            first: TcpSeqNumber(i32::from_be_bytes(first)),
            length: total.checked_sub(TCP - IP + data_offset)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket};

    use super::*;

    /// An Ethernet frame with a TCP segment of `length` bytes of payload from sequence number `first` on.
    fn frame(syn: bool, first: u32, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; 14 + 20 + 20 + length];
        let mut ethernet = EthernetFrame::new_unchecked(&mut bytes[..]);
        ethernet.set_ethertype(EthernetProtocol::Ipv4);
        let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        packet.set_version(4);
        packet.set_header_len(20);
        packet.set_total_len((40 + length) as u16);
        packet.set_next_header(IpProtocol::Tcp);
        let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
        segment.set_header_len(20);
        segment.set_src_port(49152);
        segment.set_seq_number(TcpSeqNumber(first as i32));
        segment.set_syn(syn);
        bytes
    }

    fn count(segments: &[(bool, u32, usize)]) -> u32 {
        let mut retransmits = Retransmits::default();
        for (syn, first, length) in segments {
            retransmits.sent(&frame(*syn, *first, *length));
        }
        retransmits.count()
    }

    #[test]
    fn rfc_9293_s3_4_a_segment_below_the_highest_one_sent_is_a_retransmission() {
        let start = u32::MAX - 1_500;
        let new = [(true, start, 0), (false, start + 1, 1_000), (false, start + 1_001, 1_000)];
        assert_eq!(count(&new), 0, "sequence numbers wrap");
        let again = |first: u32, length| count(&[&new[..], &[(false, first, length)]].concat());
        assert_eq!(again(start + 1, 1_000), 1);
        assert_eq!(again(start.wrapping_add(1_001), 1_000), 1);
        assert_eq!(again(start.wrapping_add(1_500), 1_000), 1, "old and new bytes");
        assert_eq!(again(start.wrapping_add(2_001), 1_000), 0);
    }

    #[test]
    fn rfc_9293_s3_8_6_1_a_probe_is_none() {
        assert_eq!(
            count(&[
                (true, u32::MAX, 0),
                (false, 0, 100),
                (false, 100, 1),
                (false, 100, 1),
                (false, 100, 100)
            ]),
            0
        );
    }

    #[test]
    fn acknowledgements_and_a_new_connection_are_none() {
        assert_eq!(
            count(&[(true, 499, 0), (false, 500, 100), (false, 500, 0), (true, 10, 0), (false, 11, 100)]),
            0
        );
    }

    #[test]
    fn what_is_no_segment_is_passed_over() {
        let whole = frame(true, 0, 4);
        let mut retransmits = Retransmits::default();
        for end in 0..whole.len() {
            retransmits.sent(&whole[..end]);
        }
        assert_eq!((retransmits.count(), retransmits.connections[0].ports), (0, [0; 4]));
    }
}
