//! Throughput of the payload program as a host process: against the kernel's TCP over TAP, bridge and veth in
//! network namespaces of its own (as root), and against itself over a memory port.
//!
//! `cargo run --release -p toll-guest --example throughput [seconds]`
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed measurement ends the program")]

#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use support::{End, Outcome, PCNET, VIRTIO_NET};
use toll_guest_abi::direction;
use toll_vnic::port::Framing;
use toll_vnic::port::memory::pair;
use toll_vnic::port::tap::Tap;

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// The kernel's end: receives until the peer closes, or sends until it does.
fn kernel(listener: &TcpListener, sends: bool) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = vec![0x55; 64 << 10];
    if sends {
        // A reset ends it too: the program stops reading once it has measured.
        while stream.write(&buffer).is_ok() {
            let mut fin = [0];
            stream.set_nonblocking(true).unwrap();
            let closed = matches!(stream.read(&mut fin), Ok(0));
            stream.set_nonblocking(false).unwrap();
            if closed {
                break;
            }
        }
    } else {
        let started = Instant::now();
        while let Ok(1..) = stream.read(&mut buffer) {
            if started.elapsed() > limit() {
                break;
            }
        }
        stream.shutdown(Shutdown::Write).unwrap();
        while let Ok(1..) = stream.read(&mut buffer) {}
    }
}

fn seconds() -> Duration {
    std::env::args()
        .nth(1)
        .map_or(Duration::from_secs(2), |text| Duration::from_secs_f64(text.parse().unwrap()))
}

/// A little longer than the program measures.
fn limit() -> Duration {
    seconds() + Duration::from_millis(250)
}

fn report(what: &str, outcome: &Outcome) {
    let megabytes = outcome.bytes as f64 / 1e6;
    let frames = outcome.counters.transmit_frames + outcome.counters.receive_frames;
    println!(
        "{what:28} {:8.3} Gb/s  {:6.2} waits/MB  {:8.2} accesses/MB  {:5.2} frames/KiB  {} drops",
        outcome.bits_per_second() / 1e9,
        outcome.waits as f64 / megabytes,
        outcome.accesses.values().sum::<u64>() as f64 / megabytes,
        frames as f64 / (outcome.bytes as f64 / 1024.0),
        outcome.counters.transmit_drops + outcome.counters.receive_drops,
    );
}

/// Moves the peer to a namespace of its own behind a bridge and a veth pair, as two hosts of a lab are joined.
/// Returns once the peer listens there.
fn peer(sends: bool) -> thread::JoinHandle<()> {
    let (namespace, made) = mpsc::channel();
    let (joined, wait) = mpsc::channel();
    let (listening, ready) = mpsc::channel();
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        namespace.send(nix::unistd::gettid()).unwrap();
        wait.recv().unwrap();
        ip("addr add 10.9.0.254/24 dev peer0");
        ip("link set peer0 up");
        let listener = TcpListener::bind(("10.9.0.254", support::PORT)).unwrap();
        listening.send(()).unwrap();
        kernel(&listener, sends);
    });
    let tid = made.recv().unwrap();
    // The former pair goes with its namespace, which the kernel takes its time for.
    ip(&format!("link add near{tid} type veth peer name peer0 netns {tid}"));
    ip(&format!("link set near{tid} master bridge0"));
    ip(&format!("link set near{tid} up"));
    joined.send(()).unwrap();
    ready.recv().unwrap();
    thread
}

fn main() {
    let base = End {
        write_size: 64 << 10,
        warm_up: Duration::from_millis(200),
        duration: seconds(),
        arena: 8 << 20,
        verifies: false,
        ..End::sender(VIRTIO_NET)
    };
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link add bridge0 type bridge");
    ip("link set bridge0 up");
    for (name, adapter) in [("pcnet", PCNET), ("virtio-net", VIRTIO_NET)] {
        for sends in [true, false] {
            let tap = Tap::create("bench0", Framing::Bare).unwrap();
            ip("link set bench0 master bridge0");
            ip("link set bench0 up");
            let kernel = peer(!sends);
            let direction = if sends { direction::SEND } else { direction::RECEIVE };
            let end = End { adapter, direction, host: 1, peer: 254, listens: false, ..base };
            let (result, outcome) = end.run(Box::new(tap));
            result.unwrap();
            kernel.join().unwrap();
            report(&format!("{name} {} kernel", if sends { "->" } else { "<-" }), &outcome);
        }
    }
    for (name, adapter) in [("pcnet", PCNET), ("virtio-net", VIRTIO_NET)] {
        let (one, other) = pair(1000).unwrap();
        let outcome = thread::scope(|scope| {
            let receiver =
                End { adapter, direction: direction::RECEIVE, listens: true, host: 2, peer: 1, ..base };
            let receiving = scope.spawn(move || receiver.run(Box::new(other)));
            let (result, _) = End { adapter, ..base }.run(Box::new(one));
            result.unwrap();
            let (result, outcome) = receiving.join().unwrap();
            result.unwrap();
            outcome
        });
        report(&format!("{name} -> {name}"), &outcome);
    }
}
