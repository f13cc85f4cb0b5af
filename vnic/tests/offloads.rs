//! Offloads of virtio-net end to end: from one device through the kernel to another, over both versions of IP, every byte
//! and checksum looked at.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use support::driver::{Guest, name};
use support::{HEADER, Ip, NEEDS_CSUM, Outcome, bridge, sums_hold, unfinished};
use toll_protocol::trial::VirtioNetSwitches;
use toll_vnic::port::Framing;
use toll_vnic::port::tap::Tap;

const TSO: VirtioNetSwitches =
    VirtioNetSwitches { checksum_offload: true, tso: true, control_queue: true, ..VirtioNetSwitches::OFF };
const COMBINING: VirtioNetSwitches = VirtioNetSwitches { segment_combining: true, ..VirtioNetSwitches::OFF };

/// Two guests on a bridge.
fn pair(
    one: VirtioNetSwitches,
    other: VirtioNetSwitches,
) -> Result<(Guest, Guest), Box<dyn std::error::Error>> {
    let tap = |name: &str, switches: VirtioNetSwitches| {
        let framing = if switches.offloads() { Framing::VirtioNetHeader } else { Framing::Bare };
        Tap::create(name, framing)
    };
    let names = [name(), name()];
    let (first, second) = (tap(&names[0], one)?, tap(&names[1], other)?);
    bridge("toll-bridge", &[&names[0], &names[1]]);
    Ok((Guest::new(first, 2, one), Guest::new(second, 3, other)))
}

/// The next frame that is the flow's: neighbour discovery and the like pass by.
fn of_flow(guest: &mut Guest) -> Vec<u8> {
    loop {
        let frame = guest.receive();
        if frame[HEADER..HEADER + 6] == [0x52, 0x54, 0, 0, 0, 3] {
            return frame;
        }
    }
}

/// Takes a segment that `from` sent as it is cut up: in frames of the MTU, finished.
fn arrives_cut_up(to: &mut Guest, ip: Ip, sent: &[u8]) {
    let payload = &sent[HEADER + ip.headers()..];
    let mut received = 0;
    while received < payload.len() {
        let frame = of_flow(to);
        assert_eq!(frame[..10], [0; 10], "it asks for nothing");
        let frame = &frame[HEADER..];
        assert!(frame.len() <= 1514 && sums_hold(frame, ip), "{ip:?} at {received}");
        let tcp = ip.tcp();
        let sequence = u32::from_be_bytes(frame[tcp + 4..tcp + 8].try_into().unwrap());
        assert_eq!(sequence as usize, 7 + received);
        let bytes = &frame[ip.headers()..];
        assert_eq!(bytes, &payload[received..received + bytes.len()]);
        received += bytes.len();
    }
}

fn segments_cross_whole_between_guests_that_take_them() -> Outcome {
    let (mut from, mut to) = pair(TSO, TSO)?;
    for ip in Ip::BOTH {
        let sent = unfinished(ip, ip.longest(), ip.mss());
        from.send(&sent);
        let received = of_flow(&mut to);
        assert_eq!((received[0] & NEEDS_CSUM, received[1]), (NEEDS_CSUM, ip.gso()));
        assert_eq!(received[HEADER..], sent[HEADER..]);
    }
    Ok(())
}

fn segments_are_cut_up_for_a_guest_without_offloads() -> Outcome {
    let (mut from, mut to) = pair(TSO, VirtioNetSwitches::OFF)?;
    for ip in Ip::BOTH {
        let sent = unfinished(ip, ip.longest(), ip.mss());
        from.send(&sent);
        arrives_cut_up(&mut to, ip, &sent);
    }
    Ok(())
}

/// VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET (virtio 1.2, 5.1.6.5.8) reaches the kernel.
fn segments_are_cut_up_once_offloads_are_turned_off_and_whole_when_they_are_on_again() -> Outcome {
    let (mut from, mut to) = pair(TSO, TSO)?;
    for ip in Ip::BOTH {
        let sent = unfinished(ip, ip.longest(), ip.mss());
        to.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        from.send(&sent);
        arrives_cut_up(&mut to, ip, &sent);
        // GUEST_CSUM, GUEST_TSO4 and GUEST_TSO6.
        to.command(&[5, 0, 0x82, 1, 0, 0, 0, 0, 0, 0]);
        from.send(&sent);
        assert_eq!(of_flow(&mut to)[HEADER..], sent[HEADER..]);
    }
    Ok(())
}

/// What the kernel gives whole is cut up by the device of a guest that knows nothing of it, late.
fn segment_combining_cuts_up_what_the_kernel_has_joined() -> Outcome {
    let (mut from, mut to) = pair(TSO, COMBINING)?;
    for ip in Ip::BOTH {
        let sent = unfinished(ip, ip.longest(), ip.mss());
        from.send(&sent);
        arrives_cut_up(&mut to, ip, &sent);
    }
    Ok(())
}

fn main() {
    support::run([
        (
            "segments_cross_whole_between_guests_that_take_them",
            segments_cross_whole_between_guests_that_take_them as fn() -> Outcome,
        ),
        (
            "segments_are_cut_up_for_a_guest_without_offloads",
            segments_are_cut_up_for_a_guest_without_offloads,
        ),
        (
            "segments_are_cut_up_once_offloads_are_turned_off_and_whole_when_they_are_on_again",
            segments_are_cut_up_once_offloads_are_turned_off_and_whole_when_they_are_on_again,
        ),
        (
            "segment_combining_cuts_up_what_the_kernel_has_joined",
            segment_combining_cuts_up_what_the_kernel_has_joined,
        ),
    ]);
}
