//! `struct virtio_net_hdr` as a driver with offloads writes and reads it (virtio 1.2, 5.1.6).

use core::num::NonZeroU16;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CSUM: u32 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID.
const DATA_VALID: u32 = 2;
/// VIRTIO_NET_HDR_GSO_TCPV4, in the second byte.
const GSO_TCPV4: u32 = 1 << 8;

/// Where IPv4 (RFC 791, 3.1) and TCP (RFC 9293, 3.1) headers begin in a frame of this stack, which sends no IP options.
const ETHERTYPE: usize = 12;
const IP: usize = 14;
const TCP: usize = IP + 20;
/// Where the checksum stands in a TCP header.
const CHECKSUM: usize = 16;
const IPV4: [u8; 2] = [0x08, 0x00];
const VERSION_4_OF_5_WORDS: u8 = 0x45;
const PROTOCOL_TCP: u8 = 6;

/// The header's three words, little-endian, for a frame that is whole.
pub(super) const NOTHING: [u32; 3] = [0; 3];

/// Leaves the checksum of a TCP segment over IPv4 to the device (5.1.6.2.1), its field being the sum of the pseudo
/// header; with `segment`, also the work of cutting it up. The header's words.
pub(super) fn leave_to_device(frame: &mut [u8], segment: Option<NonZeroU16>) -> [u32; 3] {
    let total = frame.len();
    let Some((headers, _)) = frame.split_first_chunk_mut::<{ TCP + 20 }>() else { return NOTHING };
    if headers[ETHERTYPE..IP] != IPV4
        || headers[IP] != VERSION_4_OF_5_WORDS
        || headers[IP + 9] != PROTOCOL_TCP
    {
        return NOTHING;
    }
    let length = total - TCP;
    let addresses = headers[IP + 12..TCP].chunks_exact(2);
    let words = addresses.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    // Six words of 16 bits, below 2^19.
    let sum = words.sum::<u32>() + u32::from(PROTOCOL_TCP) + length as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let folded = (sum & 0xffff) + (sum >> 16);
    headers[TCP + CHECKSUM..TCP + CHECKSUM + 2].copy_from_slice(&(folded as u16).to_be_bytes());
    let header_length = TCP as u32 + u32::from(headers[TCP + 12] >> 4) * 4;
    let (gso_type, gso_size) = segment.map_or((0, 0), |size| (GSO_TCPV4, u32::from(size.get())));
    // flags, gso_type, hdr_len; gso_size, csum_start; csum_offset, num_buffers.
    [NEEDS_CSUM | gso_type | header_length << 16, gso_size | (TCP as u32) << 16, CHECKSUM as u32]
}

/// Whether a received frame's checksum needs no look, by the first word of its header (5.1.6.4.2).
pub(super) const fn vouched(word: u32) -> bool {
    word & (NEEDS_CSUM | DATA_VALID) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_1_2_s5_1_6_2_1_a_segment_says_where_its_checksum_goes() {
        let mut frame = vec![0; 54 + 3000];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[23] = 6;
        frame[26..34].copy_from_slice(&[255, 255, 255, 254, 255, 255, 255, 253]);
        frame[46] = 0x50;
        assert_eq!(leave_to_device(&mut frame, None), [1 | 54 << 16, 34 << 16, 16]);
        // ffff + fffe + ffff + fffd + 6 + 3020, folded.
        let sum = 0xffff_u32 + 0xfffe + 0xffff + 0xfffd + 6 + 3020;
        let folded = (sum & 0xffff) + (sum >> 16);
        assert_eq!(frame[50..52], (folded as u16).to_be_bytes());
        assert_eq!(
            leave_to_device(&mut frame, NonZeroU16::new(1460)),
            [1 | 1 << 8 | 54 << 16, 1460 | 34 << 16, 16]
        );
    }

    #[test]
    fn what_is_no_segment_is_left_as_it_is() {
        let mut arp = vec![0x55; 60];
        assert_eq!(leave_to_device(&mut arp, None), NOTHING);
        assert_eq!(arp, [0x55; 60]);
        assert_eq!(leave_to_device(&mut [0; 20], None), NOTHING);
    }
}
