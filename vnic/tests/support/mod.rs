//! Real TAPs in a network namespace of the caller's own, and TCP segments to send through them.
#![allow(dead_code, reason = "each user of this module needs a part of it")]

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::thread;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use toll_vnic::piece::PieceMut;
use toll_vnic::port::tap::Tap;
use toll_vnic::port::{Framing, Port};

pub mod driver;

pub type Outcome = Result<(), Failed>;
/// A test and its name.
pub type Test = (&'static str, fn() -> Outcome);

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
pub fn set_up(name: &str) {
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

/// Bytes of `struct virtio_net_hdr_v1`.
pub const HEADER: usize = 12;
pub const NEEDS_CSUM: u8 = 1;

/// Version of IP below a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ip {
    V4,
    V6,
}

impl Ip {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// VIRTIO_NET_HDR_GSO_TCPV4 or VIRTIO_NET_HDR_GSO_TCPV6.
    pub const fn gso(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 4,
        }
    }

    /// Where the TCP header begins: Ethernet and IP headers without options.
    pub const fn tcp(self) -> usize {
        match self {
            Self::V4 => 14 + 20,
            Self::V6 => 14 + 40,
        }
    }

    /// All headers of a frame.
    pub const fn headers(self) -> usize {
        self.tcp() + 20
    }

    /// Payload of a segment at an MTU of 1500.
    pub const fn mss(self) -> usize {
        1514 - self.headers()
    }

    /// Payload of the longest frame of whole segments.
    pub const fn longest(self) -> usize {
        (65_535 - self.headers()) / self.mss() * self.mss()
    }

    /// Both addresses.
    const fn addresses(self) -> std::ops::Range<usize> {
        match self {
            Self::V4 => 26..34,
            Self::V6 => 22..54,
        }
    }
}

/// One's complement sum (RFC 1071).
pub fn sum(bytes: &[u8], start: u32) -> u32 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum = start + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// The sum of the pseudo header of a TCP segment of `length` bytes (RFC 9293, 3.1; RFC 8200, 8.1).
fn pseudo_header(frame: &[u8], ip: Ip, length: usize) -> u32 {
    sum(&frame[ip.addresses()], 6 + length as u32)
}

/// Whether the checksums of a frame are right.
pub fn sums_hold(frame: &[u8], ip: Ip) -> bool {
    let tcp = &frame[ip.tcp()..];
    let of_ip = ip == Ip::V6 || sum(&frame[14..34], 0) == 0xffff;
    of_ip && sum(tcp, pseudo_header(frame, ip, tcp.len())) == 0xffff
}

/// A TCP segment to 52:54:00:00:00:03 whose checksum is left to the port, behind its header: of a pattern, and to be cut
/// up if its `payload` is over `mss`. The sequence number is 7.
pub fn unfinished(ip: Ip, payload: usize, mss: usize) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 3, 0x52, 0x54, 0, 0, 0, 2];
    match ip {
        Ip::V4 => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend(((40 + payload) as u16).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 9, 8, 2, 10, 9, 8, 3]);
            let checksum = !sum(&frame[14..34], 0) as u16;
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        Ip::V6 => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(((20 + payload) as u16).to_be_bytes());
            // Next header, hop limit, and addresses of documentation (RFC 3849).
            frame.extend([6, 64]);
            for host in [2, 3] {
                frame.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
        }
    }
    // Ports, sequence and acknowledgement numbers, ACK, window.
    frame.extend([0xc0, 0, 0x14, 0x51, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = pseudo_header(&frame, ip, 20 + payload) as u16;
    frame[ip.tcp() + 16..ip.tcp() + 18].copy_from_slice(&pseudo.to_be_bytes());
    frame.extend((0..payload).map(|at| (at * 7 + at / 251) as u8));
    let segments = payload > mss;
    let mut header = vec![NEEDS_CSUM, if segments { ip.gso() } else { 0 }];
    for field in [ip.headers(), if segments { mss } else { 0 }, ip.tcp(), 16, 0] {
        header.extend((field as u16).to_le_bytes());
    }
    [header, frame].concat()
}

/// A bridge with these interfaces on it, all up.
pub fn bridge(name: &str, members: &[&str]) {
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
pub fn next_frame(tap: &mut Tap) -> Vec<u8> {
    next_frame_to(tap, 3)
}

/// The next frame to 52:54:00:00:00:`host`, its header included if there is one.
pub fn next_frame_to(tap: &mut Tap, host: u8) -> Vec<u8> {
    let before = if tap.framing() == Framing::Bare { 0 } else { HEADER };
    loop {
        let mut fds = [PollFd::new(tap.fd().unwrap(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(), 1, "nothing within five seconds");
        let mut bytes = vec![0; 70_000];
        let length = tap.receive(&mut [PieceMut::new(&mut bytes)]).unwrap().unwrap();
        bytes.truncate(length);
        if bytes[before..before + 6] == [0x52, 0x54, 0, 0, 0, host] {
            return bytes;
        }
    }
}

/// Runs these tests, each in a network namespace of its own, if there can be one.
pub fn run<const N: usize>(tests: [Test; N]) -> ! {
    let obstacle = obstacle();
    let trials = tests.into_iter().map(|(name, test)| match obstacle {
        None => Trial::test(name, move || isolated(test)),
        Some(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit()
}
