//! The TAP port on real TAPs, in a network namespace that this process makes for itself.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs::OpenOptions;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use toll_vnic::port::tap::Tap;
use toll_vnic::port::{Framing, Offloads, Port, PortError, Sent};

type Outcome = Result<(), Failed>;

/// Why TAPs can't be tested here.
fn obstacle() -> Option<&'static str> {
    if OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() {
        return Some("no usable /dev/net/tun");
    }
    let refused = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_err()).join().unwrap_or(true);
    refused.then_some("no network namespace of its own")
}

/// Runs `test` on a thread in a fresh network namespace.
fn isolated(test: fn() -> Outcome) -> Outcome {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        test()
    });
    thread.join().unwrap_or_else(|_| Err("the test panicked".into()))
}

/// Sets an interface up.
fn set_up(name: &str) {
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).unwrap();
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_UP | libc::IFF_RUNNING) as i16 },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request is a valid `ifreq` that outlives the call.
    unsafe { set_flags(control.as_raw_fd(), &raw const request) }.unwrap();
}

fn read_frame(tap: &mut Tap) -> Option<Vec<u8>> {
    let (mut head, mut tail) = ([0; 14], vec![0; 2000]);
    let mut parts = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut tail)];
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
    assert_eq!(tap.send(&[IoSlice::new(head), IoSlice::new(tail)])?, Sent::Taken);
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
    assert_eq!(tap.send(&[IoSlice::new(&arp_request())])?, Sent::Dropped);
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

/// Bytes of `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
/// Ethernet, IPv4 and TCP headers without options.
const HEADERS: usize = 14 + 20 + 20;

/// One's complement sum (RFC 1071).
fn sum(bytes: &[u8], start: u32) -> u32 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum = start + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// The sum of the pseudo header of a TCP segment of `length` bytes (RFC 9293, 3.1).
fn pseudo_header(frame: &[u8], length: usize) -> u32 {
    sum(&frame[26..34], 6 + length as u32)
}

/// A TCP segment from 10.9.8.2 to 10.9.8.3 whose checksum is left to the port, behind its header.
fn unfinished(payload: usize, mss: u16) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 3, 0x52, 0x54, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend(((40 + payload) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 9, 8, 2, 10, 9, 8, 3]);
    let checksum = !sum(&frame[14..34], 0) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    // Ports, sequence and acknowledgement numbers, ACK, window.
    frame.extend([0xc0, 0, 0x14, 0x51, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = pseudo_header(&frame, 20 + payload) as u16;
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    frame.extend((0..payload).map(|at| (at * 7 + at / 251) as u8));
    let gso = if payload > usize::from(mss) { GSO_TCPV4 } else { 0 };
    let mut header = vec![NEEDS_CSUM, gso];
    for field in [HEADERS as u16, if gso == 0 { 0 } else { mss }, 34, 16, 0] {
        header.extend(field.to_le_bytes());
    }
    [header, frame].concat()
}

/// A bridge with these interfaces on it, all up.
fn bridge(name: &str, members: &[&str]) {
    nix::ioctl_write_ptr_bad!(add_bridge, 0x89a0, [u8; 16]);
    nix::ioctl_write_ptr_bad!(add_member, 0x89a2, libc::ifreq);
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).unwrap();
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: SIOCBRADDBR reads a name.
    unsafe { add_bridge(control.as_raw_fd(), &raw const bytes) }.unwrap();
    for member in members {
        let index = if_nametoindex(*member).unwrap() as i32;
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_ifindex: index },
        };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the request is a valid `ifreq` that outlives the call.
        unsafe { add_member(control.as_raw_fd(), &raw const request) }.unwrap();
        set_up(member);
    }
    set_up(name);
}

/// The next frame to 52:54:00:00:00:03, its header included if there is one.
fn next_frame(tap: &mut Tap) -> Vec<u8> {
    let before = if tap.framing() == Framing::Bare { 0 } else { HEADER };
    loop {
        let mut fds = [PollFd::new(tap.fd().unwrap(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(), 1, "nothing within five seconds");
        let mut bytes = vec![0; 70_000];
        let length = tap.receive(&mut [IoSliceMut::new(&mut bytes)]).unwrap().unwrap();
        bytes.truncate(length);
        if bytes[before..before + 6] == [0x52, 0x54, 0, 0, 0, 3] {
            return bytes;
        }
    }
}

/// A port without headers gets what one with headers left unfinished: segmented, with checksums that are right.
fn the_kernel_finishes_frames_for_who_does_not_take_them_unfinished() -> Outcome {
    let mut from = Tap::create("toll-test4", Framing::VirtioNetHeader)?;
    let mut bare = Tap::create("toll-test5", Framing::Bare)?;
    let mut whole = Tap::create("toll-test6", Framing::VirtioNetHeader)?;
    bridge("toll-bridge0", &["toll-test4", "toll-test5", "toll-test6"]);
    let (payload, mss) = (64_240, 1460);
    let sent = unfinished(payload, mss);
    let (head, tail) = sent.split_at(7);
    for offloads in [Offloads::default(), Offloads { checksum: true, ..Offloads::default() }] {
        whole.set_offloads(offloads)?;
        assert_eq!(from.send(&[IoSlice::new(head), IoSlice::new(tail)])?, Sent::Taken);
        let mut received = Vec::new();
        while received.len() < payload {
            let frame = next_frame(&mut bare);
            assert_eq!(frame.len(), HEADERS + usize::from(mss));
            assert_eq!(
                sum(&frame[34..], pseudo_header(&frame, 20 + usize::from(mss))),
                0xffff,
                "its checksum"
            );
            assert_eq!(sum(&frame[14..34], 0), 0xffff, "that of IPv4");
            received.extend_from_slice(&frame[HEADERS..]);
            let other = next_frame(&mut whole);
            assert_eq!(other.len(), HEADER + frame.len());
            let flags = if offloads.checksum { NEEDS_CSUM } else { 0 };
            assert_eq!((other[0] & NEEDS_CSUM, other[1]), (flags, 0));
            if !offloads.checksum {
                assert_eq!(other[HEADER..], frame);
            }
        }
        assert_eq!(received, sent[HEADER + HEADERS..]);
    }
    Ok(())
}

fn a_segment_to_be_cut_up_crosses_as_one_frame() -> Outcome {
    let mut from = Tap::create("toll-test7", Framing::VirtioNetHeader)?;
    let mut to = Tap::create("toll-test8", Framing::VirtioNetHeader)?;
    bridge("toll-bridge1", &["toll-test7", "toll-test8"]);
    to.set_offloads(Offloads { checksum: true, tso4: true, tso6: true })?;
    let sent = unfinished(64_240, 1460);
    assert_eq!(from.send(&[IoSlice::new(&sent)])?, Sent::Taken);
    let received = next_frame(&mut to);
    assert_eq!(received[HEADER..], sent[HEADER..]);
    assert_eq!((received[0], received[1]), (NEEDS_CSUM, GSO_TCPV4));
    assert_eq!(received[4..10], sent[4..10], "gso_size, csum_start, csum_offset");
    Ok(())
}

fn a_header_that_does_not_fit_its_frame_is_refused() -> Outcome {
    let mut tap = Tap::create("toll-test9", Framing::VirtioNetHeader)?;
    set_up("toll-test9");
    let good = unfinished(3000, 1460);
    assert_eq!(tap.send(&[IoSlice::new(&good)])?, Sent::Taken);
    // csum_start behind the frame; segments of no size; another protocol than the frame's.
    for (at, bytes) in [(6, [0xff, 0xff]), (4, [0, 0]), (1, [4, 54])] {
        let mut bad = good.clone();
        bad[at..at + 2].copy_from_slice(&bytes);
        let refused = tap.send(&[IoSlice::new(&bad)]);
        assert!(matches!(refused, Err(PortError::Refused { .. })), "{at}: {refused:?}");
    }
    Ok(())
}

fn main() {
    let obstacle = obstacle();
    let trials = [
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
    ];
    let trials = trials.into_iter().map(|(name, test)| match obstacle {
        None => Trial::test(name, move || isolated(test)),
        Some(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
