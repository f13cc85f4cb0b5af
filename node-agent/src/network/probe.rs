//! Whether an address is free on a NIC's network: an ARP probe (RFC 5227, 2.1.1), sent and heard by packet(7), so that
//! the kernel's own ARP is not involved.
//!
//! A probe asks who has the address, from no address, so that no cache takes anything from it. The RFC waits
//! seconds for hosts that come up; here a host that is up has [`PATIENCE`] to answer, because every prepared trial
//! would have to wait. What is found free is not asked for again for a while ([`super::free`]).

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacketSlice};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use toll_protocol::units::MacAddress;

/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_millis(300);
/// Time between two probes.
const EVERY: Duration = Duration::from_millis(100);

/// The MAC address of a host that uses `address` on the network of the link of this index, or `None` if nobody says
/// that they do.
///
/// # Errors
/// The system's word on packet(7): CAP_NET_RAW is needed.
pub(super) async fn user_of(link: u32, address: Ipv4Addr) -> io::Result<Option<MacAddress>> {
    let (socket, own) = open(link)?;
    let question = request(own, address).to_bytes();
    let (began, mut tick) = (Instant::now(), tokio::time::interval(EVERY));
    let deadline = began + PATIENCE;
    let mut buffer = [0; 128];
    loop {
        tokio::select! {
            _ = tick.tick(), if Instant::now() + EVERY / 2 < deadline => broadcast(socket.get_ref(), link, &question)?,
            readable = socket.readable() => {
                let mut readable = readable?;
                let Ok(length) = readable.try_io(|socket| receive(socket.get_ref(), &mut buffer)) else { continue };
                if let Some(user) = conflict(&buffer[..length?], own, address) {
                    return Ok(Some(user));
                }
            }
            () = tokio::time::sleep_until(deadline) => return Ok(None),
        }
    }
}

/// An ARP probe for `address`: from no address, so that no cache takes anything from it.
fn request(own: MacAddress, address: Ipv4Addr) -> ArpEthIpv4Packet {
    ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: own.0,
        sender_ipv4: [0; 4],
        target_mac: [0; 6],
        target_ipv4: address.octets(),
    }
}

/// Who uses `address`, or is about to, as far as an ARP packet says so.
fn conflict(packet: &[u8], own: MacAddress, address: Ipv4Addr) -> Option<MacAddress> {
    let packet = ArpPacketSlice::from_slice(packet).ok()?.to_packet().try_eth_ipv4().ok()?;
    let (operation, sender) = (packet.operation, MacAddress(packet.sender_mac));
    if !matches!(operation, ArpOperation::REQUEST | ArpOperation::REPLY) {
        return None;
    }
    let uses = packet.sender_ipv4_addr() == address;
    let probes = operation == ArpOperation::REQUEST
        && packet.sender_ipv4_addr().is_unspecified()
        && packet.target_ipv4_addr() == address
        && sender != own;
    (uses || probes).then_some(sender)
}

/// A socket for ARP on a link, and the link's MAC address.
fn open(link: u32) -> io::Result<(AsyncFd<OwnedFd>, MacAddress)> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // No protocol yet: nothing of other links is to be heard.
    // SAFETY: socket(2) takes no pointers.
    let descriptor = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let here = destination(link);
    // SAFETY: bind(2) reads a sockaddr_ll of the length that is given.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const here).cast(), length_of_address()) })?;
    let (mut bound, mut length) = (MaybeUninit::<libc::sockaddr_ll>::zeroed(), length_of_address());
    // SAFETY: getsockname(2) writes at most `length` bytes, which is what `bound` has.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), bound.as_mut_ptr().cast(), &raw mut length) })?;
    // SAFETY: a sockaddr_ll is numbers alone, and was zeroed before it was written.
    let bound = unsafe { bound.assume_init() };
    if bound.sll_hatype != libc::ARPHRD_ETHER {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the interface is no Ethernet"));
    }
    let mut own = MacAddress([0; 6]);
    own.0.copy_from_slice(&bound.sll_addr[..6]);
    // SAFETY: the `AsyncFd` owns the descriptor, and nothing takes it out, closes or replaces it.
    Ok((unsafe { AsyncFd::register(socket) }?, own))
}

/// Everybody on a link.
fn destination(link: u32) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ARP as u16).to_be(),
        // Indexes of links are positive.
        sll_ifindex: link.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    }
}

const fn length_of_address() -> libc::socklen_t {
    size_of::<libc::sockaddr_ll>() as libc::socklen_t
}

fn broadcast(socket: &OwnedFd, link: u32, packet: &[u8]) -> io::Result<()> {
    let everybody = destination(link);
    // SAFETY: sendto(2) reads `packet` and a sockaddr_ll, each of the length that is given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const everybody).cast(),
            length_of_address(),
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: recv(2) writes at most the buffer's length into it.
    let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
    const ASKED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);

    fn probe(from: MacAddress, address: Ipv4Addr) -> [u8; 28] {
        request(from, address).to_bytes()
    }

    fn reply(from: Ipv4Addr) -> [u8; 28] {
        let mut packet = probe(OTHER, Ipv4Addr::UNSPECIFIED);
        packet[7] = 2;
        packet[14..18].copy_from_slice(&from.octets());
        packet
    }

    #[test]
    fn rfc_5227_2_1_1_who_uses_the_address_or_probes_for_it_is_in_conflict() {
        assert_eq!(conflict(&reply(ASKED), OWN, ASKED), Some(OTHER));
        // A request from the address: its user asks for somebody.
        let mut asks = reply(ASKED);
        asks[7] = 1;
        assert_eq!(conflict(&asks, OWN, ASKED), Some(OTHER));
        assert_eq!(conflict(&probe(OTHER, ASKED), OWN, ASKED), Some(OTHER));
        // Our own probe, which a switch may send back; others' business.
        assert_eq!(conflict(&probe(OWN, ASKED), OWN, ASKED), None);
        assert_eq!(conflict(&reply(Ipv4Addr::new(10, 77, 0, 1)), OWN, ASKED), None);
        assert_eq!(conflict(&probe(OTHER, Ipv4Addr::new(10, 77, 0, 102)), OWN, ASKED), None);
    }

    #[test]
    fn what_is_no_arp_for_ethernet_is_no_conflict() {
        let good = reply(ASKED);
        for length in 0..good.len() {
            assert_eq!(conflict(&good[..length], OWN, ASKED), None);
        }
        for at in 0..8 {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert_eq!(conflict(&bad, OWN, ASKED), None);
        }
        // Ethernet pads it to 46 bytes.
        assert_eq!(conflict(&[&good[..], &[0; 18]].concat(), OWN, ASKED), Some(OTHER));
    }
}
