//! Throughput of the payload program as a host process: against the kernel's TCP over a TAP in a network
//! namespace of its own (as root), and against itself over a memory port.
//!
//! `cargo run --release -p toll-guest --example throughput [seconds]`
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed measurement ends the program")]

#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use support::{End, Outcome, PCNET, VIRTIO_NET};
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
        let mut left = std::env::var("BYTES").map_or(u64::MAX, |bytes| bytes.parse().unwrap());
        let started = std::time::Instant::now();
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            left = left.saturating_sub(count as u64);
            if left == 0 || started.elapsed() > limit() {
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

fn main() {
    let base = End {
        write_size: 64 << 10,
        warm_up: Duration::from_millis(200),
        duration: seconds(),
        arena: 8 << 20,
        ..End::sender(VIRTIO_NET)
    };
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up");
    for (name, adapter) in [("pcnet", PCNET), ("virtio-net", VIRTIO_NET)] {
        for sends in [true, false] {
            // As a bridge port would have it: no offload, a queue of 1000 frames.
            let tap = Tap::create("bench0").unwrap();
            ip("addr add 10.9.0.254/24 dev bench0");
            ip("link set bench0 up");
            let listener = TcpListener::bind(("10.9.0.254", support::PORT)).unwrap();
            let end = End { adapter, sends, host: 1, peer: 254, listens: false, ..base };
            let outcome = thread::scope(|scope| {
                scope.spawn(|| kernel(&listener, !sends));
                let (result, outcome) = end.run(Box::new(tap));
                result.unwrap();
                outcome
            });
            report(&format!("{name} {} kernel", if sends { "->" } else { "<-" }), &outcome);
        }
    }
    for (name, adapter) in [("pcnet", PCNET), ("virtio-net", VIRTIO_NET)] {
        let (one, other) = pair(1000).unwrap();
        let outcome = thread::scope(|scope| {
            let receiver = End { adapter, sends: false, listens: true, host: 2, peer: 1, ..base };
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
