//! The payload program against the kernel's TCP over a TAP, in this process, so that what the program receives can
//! be looked at: a guest discards it. Every combination of virtio-net's switches, both ways.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, clippy::unwrap_used, reason = "shared with the tests of the program, which fail by it")]
#[path = "../guest/tests/support/mod.rs"]
mod program;
mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use program::{End, PORT, VIRTIO_NET};
use support::{PATIENCE, bring_up, enter_namespace};
use toll_guest::pattern;
use toll_protocol::trial::{QueuePairs, VirtioNetSwitches};
use toll_vmm::io_thread::Remote;
use toll_vnic::port::tap::Tap;
use toll_vnic::port::{Framing, Port};

/// The TAP.
const NAME: &str = "toll-peer";
/// Of each write, and so the period of the stream.
const WRITE_SIZE: usize = 50_000;

/// What `stream` is sent, until the program closes its end.
fn send(mut stream: TcpStream) -> std::io::Result<u64> {
    let buffer: Vec<u8> = (0..WRITE_SIZE).map(pattern).collect();
    let mut watched = stream.try_clone()?;
    let closed = thread::spawn(move || watched.read(&mut [0]));
    let mut sent = 0;
    while !closed.is_finished() {
        stream.write_all(&buffer)?;
        sent += buffer.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

/// Bytes that came, each looked at, until the program closes its end, which it does after `time`.
fn receive(mut stream: TcpStream, time: Duration) -> std::io::Result<u64> {
    let period: Vec<u8> = (0..WRITE_SIZE).map(pattern).collect();
    let mut buffer = vec![0; WRITE_SIZE];
    let (began, mut closed, mut received) = (std::time::Instant::now(), false, 0);
    loop {
        let at = received % WRITE_SIZE;
        let count = stream.read(&mut buffer[..WRITE_SIZE - at])?;
        if count == 0 {
            return Ok(received as u64);
        }
        if buffer[..count] != period[at..at + count] {
            return Err(std::io::Error::other(format!("other bytes than the pattern's after {received}")));
        }
        received += count;
        if !closed && began.elapsed() > time {
            closed = true;
            stream.shutdown(Shutdown::Write)?;
        }
    }
}

fn transfer(switches: VirtioNetSwitches, program_sends: bool) -> Result<(), Failed> {
    let base = if program_sends { End::sender(VIRTIO_NET) } else { End::receiver(VIRTIO_NET) };
    let duration = Duration::from_millis(80);
    let end =
        End { switches, arena: 16 << 20, write_size: WRITE_SIZE as u32, listens: true, duration, ..base };
    let framing = if switches.offloads() { Framing::VirtioNetHeader } else { Framing::Bare };
    let taps = match switches.queue_pairs.count() {
        1 => vec![Tap::create(NAME, framing)?],
        pairs => Tap::create_queues(NAME, framing, pairs)?,
    };
    bring_up(NAME, Ipv4Addr::new(10, 9, 0, end.peer), end.mtu as u16)?;
    let address = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, end.host), PORT);
    let kernel = thread::spawn(move || {
        let stream = TcpStream::connect_timeout(&address.into(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        if program_sends { receive(stream, duration * 2) } else { send(stream) }
    });
    let ports = taps.into_iter().map(|tap| -> Box<dyn Port> { Box::new(tap) }).collect();
    let (result, outcome) = end.run_behind(ports, |adapter| {
        if switches.io_thread { Box::new(Remote::start(adapter, None).unwrap()) } else { adapter }
    });
    result?;
    let at_kernel = kernel.join().map_err(|_| "the kernel's end panicked")??;
    let verified = if program_sends { at_kernel } else { outcome.verified };
    if (outcome.bytes, verified) != (at_kernel, at_kernel) || at_kernel < 100_000 {
        return Err(format!("{at_kernel} at the kernel: {outcome:?}").into());
    }
    Ok(())
}

/// Those of the driver in all combinations; a thread of its own, the control queue and several pairs with none of the
/// others and with all of them.
fn combinations() -> Vec<VirtioNetSwitches> {
    let pairs = |count| QueuePairs::new(count).expect("in range");
    let mut all = Vec::new();
    for bits in 0..32 {
        let switches = VirtioNetSwitches {
            checksum_offload: bits & 1 != 0,
            tso: bits & 2 != 0,
            mergeable_buffers: bits & 4 != 0,
            event_index: bits & 8 != 0,
            segment_combining: bits & 16 != 0,
            ..VirtioNetSwitches::OFF
        };
        if switches.tso && !switches.checksum_offload {
            continue;
        }
        all.push(switches);
        if matches!(bits, 0 | 31) {
            let commanded = VirtioNetSwitches { control_queue: true, ..switches };
            let several = [2, 4].map(|count| VirtioNetSwitches { queue_pairs: pairs(count), ..commanded });
            let synchronous = [commanded, several[0], several[1]];
            let threaded = [switches, commanded, several[0]]
                .map(|switches| VirtioNetSwitches { io_thread: true, ..switches });
            all.extend(synchronous.into_iter().chain(threaded));
        }
    }
    all
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One TAP and one network.
    arguments.test_threads = Some(1);
    let obstacle = if arguments.list { Ok(()) } else { enter_namespace() };
    let mut trials = Vec::new();
    for switches in combinations() {
        let on = toll_protocol::trial::Adapter::VirtioNet(switches).switches().join("_").replace(": ", "_");
        for (verb, program_sends) in [("sends", true), ("receives", false)] {
            let name = format!("the_program_{verb}_with_{}", if on.is_empty() { "nothing" } else { &on });
            trials.push(match &obstacle {
                Ok(()) => Trial::test(name, move || transfer(switches, program_sends)),
                Err(why) => {
                    Trial::test(format!("{name} (left out: {why})"), || Ok(())).with_ignored_flag(true)
                }
            });
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
