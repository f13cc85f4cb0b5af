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
use toll_vnic::port::{Port, PortError, Sent};

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
    let mut tap = Tap::create("toll-test0")?;
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
    let mut tap = Tap::create("toll-test1")?;
    // Down, it has nothing to read and drops what is sent.
    assert_eq!(tap.send(&[IoSlice::new(&arp_request())])?, Sent::Dropped);
    assert_eq!(read_frame(&mut tap), None);
    Ok(())
}

fn the_interface_is_gone_with_the_port() -> Outcome {
    let tap = Tap::create("toll-test2")?;
    assert!(if_nametoindex("toll-test2").is_ok());
    drop(tap);
    assert!(if_nametoindex("toll-test2").is_err());
    Tap::create("toll-test2")?;
    Ok(())
}

fn names_that_can_not_be_are_refused_with_advice() -> Outcome {
    let _taken = Tap::create("toll-test3")?;
    for (name, expected) in [
        ("", "1 to 15 bytes"),
        ("sixteen-letters-", "1 to 15 bytes"),
        ("tap%d", "letters, digits"),
        ("a/b", "letters, digits"),
        ("a b", "letters, digits"),
        ("..", "letters, digits"),
        ("toll-test3", "exists"),
    ] {
        match Tap::create(name) {
            Err(error @ PortError::Open { .. }) => {
                assert!(error.to_string().contains(expected), "{name}: {error}");
            }
            other => return Err(format!("{name}: {other:?}").into()),
        }
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
    ];
    let trials = trials.into_iter().map(|(name, test)| match obstacle {
        None => Trial::test(name, move || isolated(test)),
        Some(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
