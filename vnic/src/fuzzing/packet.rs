//! Frames that mean something to who joins and cuts up TCP segments.

use etherparse::checksum::Sum16BitWords;

/// Ethernet, IPv4 and TCP without options.
pub(crate) const HEADERS: usize = 14 + 20 + 20;
/// Where the IPv4 header begins, and where its checksum stands.
const IP: usize = 14;
const IP_CHECKSUM: usize = IP + 10;

/// A TCP segment over IPv4 to `destination`, with `payload` bytes of `seed` and what follows it. Its TCP checksum is left out.
pub(crate) fn tcp_segment(
    destination: [u8; 6],
    sequence: u32,
    flags: u8,
    payload: usize,
    seed: u8,
) -> Vec<u8> {
    let mut frame = vec![0; HEADERS];
    frame[..6].copy_from_slice(&destination);
    frame[6..14].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 9, 0x08, 0x00]);
    // Whoever asks for more than IPv4 carries gets a length that is wrong.
    let total = u16::try_from(HEADERS - IP + payload).unwrap_or(u16::MAX);
    frame[IP..IP + 2].copy_from_slice(&[0x45, 0]);
    frame[IP + 2..IP + 4].copy_from_slice(&total.to_be_bytes());
    // Don't fragment; 64 hops; TCP.
    frame[IP + 6..IP + 10].copy_from_slice(&[0x40, 0, 64, 6]);
    frame[IP + 12..IP + 20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    let sum = Sum16BitWords::new().add_slice(&frame[IP..IP + 20]).ones_complement();
    frame[IP_CHECKSUM..IP_CHECKSUM + 2].copy_from_slice(&sum.to_ne_bytes());
    let tcp = IP + 20;
    frame[tcp..tcp + 4].copy_from_slice(&[0x04, 0x00, 0x13, 0x88]);
    frame[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
    // Five words of header; a window.
    frame[tcp + 12..tcp + 16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    frame.extend(pattern(seed, payload));
    frame
}

/// `length` bytes that begin with `seed`; others begin otherwise, and go on otherwise.
pub(crate) fn pattern(seed: u8, length: usize) -> impl Iterator<Item = u8> {
    (0..length).map(move |at| seed.wrapping_add((at * 7 + at / 256) as u8))
}
