//! The TAP port on real TAPs, in a network namespace that this process makes for itself.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use std::os::fd::{AsFd, AsRawFd};

use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use support::{
    HEADER, Ip, NEEDS_CSUM, Outcome, bridge, next_frame, next_frame_to, set_up, sums_hold, unfinished,
};
use toll_vnic::piece::{Piece, PieceMut};
use toll_vnic::port::tap::Tap;
use toll_vnic::port::{Framing, Offloads, Port, PortError, Sent};

fn read_frame(tap: &mut Tap) -> Option<Vec<u8>> {
    let (mut head, mut tail) = ([0; 14], vec![0; 2000]);
    let mut parts = [PieceMut::new(&mut head), PieceMut::new(&mut tail)];
    let length = tap.receive(&mut parts).unwrap()?;
    Some([&head[..], &tail].concat()[..length].to_vec())
}

/// An ARP request (RFC 826) for 10.9.8.1 from 10.9.8.2.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x52, 0x54, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0, 0, 2, 10, 9, 8, 2]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 9, 8, 1]);
    frame
}

/// Gives an interface the address 10.9.8.1/8, so that the kernel answers ARP.
fn set_address(name: &str) {
    nix::ioctl_write_ptr_bad!(set_addr, libc::SIOCSIFADDR, libc::ifreq);
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).unwrap();
    let mut data = [0; 14];
    data[2..6].copy_from_slice(&[10, 9, 8, 1]);
    let address = libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data: data };
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_addr: address },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request is a valid `ifreq` that outlives the call.
    unsafe { set_addr(control.as_raw_fd(), &raw const request) }.unwrap();
}

fn the_kernel_answers_an_arp_request() -> Outcome {
    let mut tap = Tap::create("toll-test0", Framing::Bare)?;
    assert_eq!(tap.name(), "toll-test0");
    set_address("toll-test0");
    set_up("toll-test0");
    let request = arp_request();
    let (head, tail) = request.split_at(20);
    assert_eq!(tap.send(&[Piece::new(head), Piece::new(tail)])?, Sent::Taken);
    // The kernel sends frames of its own too (IPv6 neighbour discovery).
    loop {
        let fd = tap.fd().ok_or("a TAP has a descriptor")?;
        let ready = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5000_u16))?;
        assert_eq!(ready, 1, "no answer within five seconds");
        let frame = read_frame(&mut tap).ok_or("readable, and nothing to read")?;
        if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
            assert_eq!(frame[..6], [0x52, 0x54, 0, 0, 0, 2]);
            assert_eq!(frame[28..32], [10, 9, 8, 1]);
            return Ok(());
        }
    }
}

fn an_idle_tap_does_not_block() -> Outcome {
    let mut tap = Tap::create("toll-test1", Framing::Bare)?;
    // Down, it has nothing to read and drops what is sent.
    assert_eq!(tap.send(&[Piece::new(&arp_request())])?, Sent::Dropped);
    assert_eq!(read_frame(&mut tap), None);
    Ok(())
}

fn the_interface_is_gone_with_the_port() -> Outcome {
    let tap = Tap::create("toll-test2", Framing::Bare)?;
    assert!(if_nametoindex("toll-test2").is_ok());
    drop(tap);
    assert!(if_nametoindex("toll-test2").is_err());
    Tap::create("toll-test2", Framing::Bare)?;
    Ok(())
}

fn names_that_can_not_be_are_refused_with_advice() -> Outcome {
    let _taken = Tap::create("toll-test3", Framing::Bare)?;
    for (name, expected) in [
        ("", "1 to 15 bytes"),
        ("sixteen-letters-", "1 to 15 bytes"),
        ("tap%d", "letters, digits"),
        ("a/b", "letters, digits"),
        ("a b", "letters, digits"),
        ("..", "letters, digits"),
        ("toll-test3", "exists"),
    ] {
        match Tap::create(name, Framing::Bare) {
            Err(error @ PortError::Open { .. }) => {
                assert!(error.to_string().contains(expected), "{name}: {error}");
            }
            other => return Err(format!("{name}: {other:?}").into()),
        }
    }
    Ok(())
}

/// A port without headers gets what one with headers left unfinished: segmented, with checksums that are right.
fn the_kernel_finishes_frames_for_who_does_not_take_them_unfinished() -> Outcome {
    let mut from = Tap::create("toll-test4", Framing::VirtioNetHeader)?;
    let mut bare = Tap::create("toll-test5", Framing::Bare)?;
    let mut whole = Tap::create("toll-test6", Framing::VirtioNetHeader)?;
    bridge("toll-bridge0", &["toll-test4", "toll-test5", "toll-test6"]);
    for ip in Ip::BOTH {
        let (payload, mss) = (ip.longest(), ip.mss());
        let sent = unfinished(ip, payload, mss);
        let (head, tail) = sent.split_at(7);
        for offloads in [Offloads::default(), Offloads { checksum: true, ..Offloads::default() }] {
            whole.set_offloads(offloads)?;
            assert_eq!(from.send(&[Piece::new(head), Piece::new(tail)])?, Sent::Taken);
            let mut received = Vec::new();
            while received.len() < payload {
                let frame = next_frame(&mut bare);
                assert_eq!(frame.len(), ip.headers() + mss);
                assert!(sums_hold(&frame, ip), "its checksums");
                received.extend_from_slice(&frame[ip.headers()..]);
                let other = next_frame(&mut whole);
                assert_eq!(other.len(), HEADER + frame.len());
                let flags = if offloads.checksum { NEEDS_CSUM } else { 0 };
                assert_eq!((other[0] & NEEDS_CSUM, other[1]), (flags, 0));
                if !offloads.checksum {
                    assert_eq!(other[HEADER..], frame);
                }
            }
            assert_eq!(received, sent[HEADER + ip.headers()..]);
        }
    }
    Ok(())
}

fn a_segment_to_be_cut_up_crosses_as_one_frame() -> Outcome {
    let mut from = Tap::create("toll-test7", Framing::VirtioNetHeader)?;
    let mut to = Tap::create("toll-test8", Framing::VirtioNetHeader)?;
    bridge("toll-bridge1", &["toll-test7", "toll-test8"]);
    to.set_offloads(Offloads { checksum: true, tso4: true, tso6: true })?;
    for ip in Ip::BOTH {
        let sent = unfinished(ip, ip.longest(), ip.mss());
        assert_eq!(from.send(&[Piece::new(&sent)])?, Sent::Taken);
        let received = next_frame(&mut to);
        assert_eq!(received[HEADER..], sent[HEADER..]);
        assert_eq!((received[0], received[1]), (NEEDS_CSUM, ip.gso()));
        assert_eq!(received[4..10], sent[4..10], "gso_size, csum_start, csum_offset");
    }
    Ok(())
}

/// What the far end of a flow sends comes by the queue that the flow's frames went by, and by none that is detached.
fn a_flow_comes_back_to_the_queue_that_it_left_by() -> Outcome {
    let mut queues = Tap::create_queues("toll-test10", Framing::Bare, 3)?;
    let mut far = Tap::create("toll-test11", Framing::Bare)?;
    bridge("toll-bridge2", &["toll-test10", "toll-test11"]);
    let there = unfinished(Ip::V4, 100, 1460)[HEADER..].to_vec();
    let back = swapped(&there);
    for at in [1, 2, 0, 1] {
        assert_eq!(queues[at].send(&[Piece::new(&there)])?, Sent::Taken);
        assert_eq!(next_frame(&mut far), there);
        assert_eq!(far.send(&[Piece::new(&back)])?, Sent::Taken);
        assert_eq!(next_frame_to(&mut queues[at], 2), back, "queue {at}");
    }
    // Detached, it gets nothing, and what it gave up comes by another.
    queues[1].set_attached(false)?;
    queues[1].set_attached(false)?;
    assert_eq!(far.send(&[Piece::new(&back)])?, Sent::Taken);
    let mut fds = [0, 2].map(|at: usize| PollFd::new(queues[at].fd().unwrap(), PollFlags::POLLIN));
    assert!(poll(&mut fds, PollTimeout::from(5000_u16))? > 0);
    while let Some(frame) = read_frame(&mut queues[1]) {
        assert_ne!(frame, back);
    }
    queues[1].set_attached(true)?;
    assert_eq!(queues[1].send(&[Piece::new(&there)])?, Sent::Taken);
    assert_eq!(next_frame(&mut far), there);
    assert_eq!(far.send(&[Piece::new(&back)])?, Sent::Taken);
    assert_eq!(next_frame_to(&mut queues[1], 2), back);
    // The interface goes with its last queue.
    queues.truncate(1);
    assert!(if_nametoindex("toll-test10").is_ok());
    drop(queues);
    assert!(if_nametoindex("toll-test10").is_err());
    Ok(())
}

/// A frame of [`unfinished`] over IPv4 on its way back: addresses and ports are those of the other end.
fn swapped(frame: &[u8]) -> Vec<u8> {
    [
        &frame[6..12],
        &frame[..6],
        &frame[12..26],
        &frame[30..34],
        &frame[26..30],
        &frame[36..38],
        &frame[34..36],
        &frame[38..],
    ]
    .concat()
}

fn a_header_that_does_not_fit_its_frame_is_refused() -> Outcome {
    let mut tap = Tap::create("toll-test9", Framing::VirtioNetHeader)?;
    set_up("toll-test9");
    let good = unfinished(Ip::V4, 3000, 1460);
    assert_eq!(tap.send(&[Piece::new(&good)])?, Sent::Taken);
    // csum_start behind the frame; segments of no size; another protocol than the frame's.
    for (at, bytes) in [(6, [0xff, 0xff]), (4, [0, 0]), (1, [4, 54])] {
        let mut bad = good.clone();
        bad[at..at + 2].copy_from_slice(&bytes);
        let refused = tap.send(&[Piece::new(&bad)]);
        assert!(matches!(refused, Err(PortError::Refused { .. })), "{at}: {refused:?}");
    }
    Ok(())
}

fn main() {
    support::run([
        ("the_kernel_answers_an_arp_request", the_kernel_answers_an_arp_request as fn() -> Outcome),
        ("an_idle_tap_does_not_block", an_idle_tap_does_not_block),
        ("the_interface_is_gone_with_the_port", the_interface_is_gone_with_the_port),
        ("names_that_can_not_be_are_refused_with_advice", names_that_can_not_be_are_refused_with_advice),
        (
            "the_kernel_finishes_frames_for_who_does_not_take_them_unfinished",
            the_kernel_finishes_frames_for_who_does_not_take_them_unfinished,
        ),
        ("a_segment_to_be_cut_up_crosses_as_one_frame", a_segment_to_be_cut_up_crosses_as_one_frame),
        ("a_header_that_does_not_fit_its_frame_is_refused", a_header_that_does_not_fit_its_frame_is_refused),
        ("a_flow_comes_back_to_the_queue_that_it_left_by", a_flow_comes_back_to_the_queue_that_it_left_by),
    ]);
}
