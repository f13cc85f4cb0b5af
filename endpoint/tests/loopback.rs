//! `toll-endpoint` as the agent runs it: real processes, real control sockets, real TCP on 127.0.0.1. Times are
//! short; nothing here checks a rate.

mod support;

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use support::{End, config, fail, pair};
use toll_protocol::child::{ChildCommand, ChildEvent, EndpointConfig};
use toll_protocol::report::{EndReport, Flag};
use toll_protocol::trial::{Direction, NativeProgram, Open};
use toll_protocol::units::Span;
use toll_protocol::validity;

fn check(report: &EndReport) {
    assert!(report.bytes() > 0, "{report:?}");
    assert!(
        report.interval >= Span::from_millis(400) && report.interval <= Span::from_millis(700),
        "{report:?}"
    );
    let last = report.samples.last().expect("the end is a sample");
    assert_eq!((last.at, last.bytes()), (report.interval, report.bytes()));
    assert!(report.samples.len() >= 3 && report.samples.len() <= 6, "{report:?}");
    assert!(
        report.samples.windows(2).all(|w| w[0].at < w[1].at && w[0].bytes() <= w[1].bytes()),
        "{report:?}"
    );
}

fn both_ways(write_size: u64, sender_listens: bool, pinned: bool) {
    let (listen, connect) = (Open::Listen, Open::Connect);
    let (of_sender, of_receiver) = if sender_listens { (listen, connect) } else { (connect, listen) };
    let mut sender = config(Direction::Send, of_sender, write_size);
    let mut receiver = config(Direction::Receive, of_receiver, write_size);
    if pinned {
        let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("a set of CPUs");
        let cpu = (0..1024_u32).find(|cpu| allowed.is_set(*cpu as usize).unwrap_or(false)).expect("a CPU");
        (sender.cpu, receiver.cpu) = (Some(cpu), Some(cpu));
    }
    let (sent, received) = if sender_listens {
        pair(sender, receiver)
    } else {
        let (received, sent) = pair(receiver, sender);
        (sent, received)
    };
    for report in [&sent, &received] {
        check(report);
        let host = report.cpu.host.expect("a thread has a CPU clock");
        assert!(host.0 > 0 && host <= Span(report.interval.0 + 20_000_000), "{report:?}");
        assert_eq!((report.cpu.guest, report.cpu.vmm), (None, None));
        assert_eq!(report.threads[0].name, "traffic");
        assert_eq!(report.flags.contains(&Flag::DebugBuild), cfg!(debug_assertions));
    }
}

/// A sender under test against a plain socket that takes the stream and half-closes when it has enough.
fn sender_keeps_to_the_stream_until_the_fin(write_size: usize) {
    let mut end = End::configured(config(Direction::Send, Open::Listen, write_size as u64));
    let address = end.ready();
    end.start(address);
    let mut peer = TcpStream::connect(address).expect("it listens");
    peer.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
    let begin = Instant::now();
    let (mut buffer, mut position, mut closed) = (vec![0; 1 << 16], 0_u64, false);
    loop {
        let length = peer.read(&mut buffer).expect("the stream goes on");
        if length == 0 {
            break;
        }
        for byte in &buffer[..length] {
            let offset = position % write_size as u64;
            assert_eq!(u64::from(*byte), offset % 251, "byte {position} of the stream");
            position += 1;
        }
        if !closed && begin.elapsed() > Duration::from_millis(800) {
            peer.shutdown(std::net::Shutdown::Write).expect("half-closes");
            closed = true;
        }
    }
    assert!(closed, "the sender stopped by itself");
    let report = end.report();
    check(&report);
    assert!(report.bytes() <= position);
}

/// A receiver under test against a plain socket that sends until it sees the FIN.
fn receiver_half_closes_and_drains() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let mut end = End::configured(config(Direction::Receive, Open::Connect, 4_096));
    end.ready();
    let std::net::SocketAddr::V4(address) = listener.local_addr().expect("an address") else {
        fail("not IPv4")
    };
    end.start(address);
    let (mut peer, _) = listener.accept().expect("it connects");
    let (mut sent, mut after) = (0_u64, 0);
    let fin = |peer: &TcpStream| {
        peer.set_nonblocking(true).expect("a flag");
        let fin = matches!(peer.peek(&mut [0]), Ok(0));
        peer.set_nonblocking(false).expect("a flag");
        fin
    };
    while after < 100 {
        peer.write_all(&[7; 1_000]).expect("it goes on receiving after its FIN");
        sent += 1_000;
        after += u32::from(after > 0 || fin(&peer));
    }
    drop(peer);
    let report = end.report();
    check(&report);
    assert!(report.bytes() < sent, "the interval is a part of the stream");
}

fn failure_of(mut end: End, peer: SocketAddrV4) -> String {
    end.ready();
    end.start(peer);
    end.failure().reason
}

fn nobody_connects() {
    let mut config = config(Direction::Receive, Open::Listen, 4_096);
    config.deadline = Span::from_millis(700);
    let begin = Instant::now();
    let reason = failure_of(End::configured(config), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));
    assert!(reason.contains("waited 700ms for the other end to connect to 127.0.0.1:"), "{reason}");
    assert!(begin.elapsed() < Duration::from_secs(3));
}

fn nobody_listens() {
    let config = config(Direction::Send, Open::Connect, 4_096);
    let reason = failure_of(End::configured(config), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));
    assert!(reason.contains("connect failed for 127.0.0.1:1: Connection refused"), "{reason}");
}

/// A host may have several addresses; the test NIC's is the one that the configuration names.
fn a_connection_comes_from_the_configured_address() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let mut config = config(Direction::Send, Open::Connect, 4_096);
    config.address.address = Ipv4Addr::new(127, 0, 0, 9);
    let mut end = End::configured(config);
    end.ready();
    let std::net::SocketAddr::V4(address) = listener.local_addr().expect("an address") else {
        fail("not IPv4")
    };
    end.start(address);
    let (_stream, from) = listener.accept().expect("it connects");
    assert_eq!(from.ip(), Ipv4Addr::new(127, 0, 0, 9));
}

/// Whoever else reaches the port is closed, and the other end still comes in.
/// They keep connecting until there is nobody to connect to.
fn strangers_hold_neither_the_agent_nor_the_deadline_up() {
    let begin = || {
        let mut listener = End::spawn_with(std::process::Stdio::piped());
        listener.send(&toll_protocol::child::ChildCommand::Configure(EndpointConfig {
            deadline: Span::from_millis(1_000),
            ..config(Direction::Receive, Open::Listen, 4_096)
        }));
        let address = listener.ready();
        // Nobody of this address ever comes.
        listener.start(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 9), 0));
        let strangers: Vec<_> = (0..6)
            .map(|_| std::thread::spawn(move || while TcpStream::connect(address).is_ok() {}))
            .collect();
        // The first of them has been seen.
        let mut said = BufReader::new(listener.process.stderr.take().expect("piped")).lines();
        let first = said.next().expect("a line").expect("UTF-8");
        assert!(first.contains("was closed: 127.0.0.9 is expected"), "{first}");
        let rest = std::thread::spawn(move || said.map_while(Result::ok).collect::<Vec<_>>());
        (listener, move || {
            strangers.into_iter().for_each(|stranger| stranger.join().expect("ends"));
            rest.join().expect("ends")
        })
    };
    let (listener, rest) = begin();
    let reason = listener.failure().reason;
    assert!(reason.contains("the other end to connect to"), "{reason}");
    let said = rest();
    assert!(said.len() == 1 && said[0].contains("connections from others than the peer"), "{said:?}");

    let (mut listener, rest) = begin();
    let begun = std::time::Instant::now();
    listener.socket.shutdown(std::net::Shutdown::Both).expect("open");
    assert_eq!(listener.process.wait().expect("it exits").code(), Some(3), "as the agent orders");
    assert!(begun.elapsed() < Duration::from_secs(1), "and at once: {:?}", begun.elapsed());
    rest();
}

fn a_stranger_does_not_take_the_peers_place() {
    let mut listener = End::configured(config(Direction::Receive, Open::Listen, 4_096));
    let mut own = config(Direction::Send, Open::Connect, 4_096);
    own.address.address = Ipv4Addr::new(127, 0, 0, 9);
    let mut connector = End::configured(own);
    let (address, peer) = (listener.ready(), connector.ready());
    listener.start(peer);
    let mut stranger = TcpStream::connect(address).expect("it listens");
    stranger.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
    match stranger.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => fail(&format!("a stranger is answered: {other:?}")),
    }
    connector.start(address);
    for report in [listener.report(), connector.report()] {
        check(&report);
    }
}

fn a_silent_peer_is_named() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let mut config = config(Direction::Receive, Open::Connect, 4_096);
    config.deadline = Span::from_millis(700);
    let std::net::SocketAddr::V4(address) = listener.local_addr().expect("an address") else {
        fail("not IPv4")
    };
    let reason = failure_of(End::configured(config), address);
    assert!(reason.contains("for the first payload byte on the open connection"), "{reason}");
}

/// A peer that sends a byte and then nothing, and closes when it sees the FIN.
fn an_interval_without_payload_is_no_figure() {
    let mut end = End::configured(config(Direction::Receive, Open::Listen, 4_096));
    let address = end.ready();
    end.start(address);
    let mut peer = TcpStream::connect(address).expect("it listens");
    peer.write_all(&[7]).expect("it takes a byte");
    let _ = peer.read(&mut [0]);
    drop(peer);
    let failure = validity::no_figure(Direction::Receive, &end.report()).expect("a failure");
    assert!(failure.reason.contains("no payload arrived in the measured interval"), "{}", failure.reason);
}

/// Either end of a trial keeps to the test NIC, or is none.
fn an_end_without_its_interface_is_none() {
    for open in [Open::Listen, Open::Connect] {
        let mut config = config(Direction::Receive, open, 4_096);
        config.interface = "no-such-nic".to_owned();
        // Before it says that it is ready: what a socket needs is had while the process still has its rights.
        let end = End::configured(config);
        let reason = end.failure().reason;
        assert!(reason.contains("can't be bound to the interface no-such-nic"), "{reason}");
    }
}

fn a_receiver_that_never_closes_is_named() {
    let mut config = config(Direction::Send, Open::Listen, 4_096);
    config.deadline = Span::from_millis(700);
    let mut end = End::configured(config);
    let address = end.ready();
    end.start(address);
    let mut peer = TcpStream::connect(address).expect("it listens");
    let drain = std::thread::spawn(move || std::io::copy(&mut peer, &mut std::io::sink()));
    let reason = end.failure().reason;
    assert!(reason.contains("for the receiver to close the stream"), "{reason}");
    let _ = drain.join().expect("the end's socket is gone");
}

/// A peer that half-closes, takes nothing more and holds the connection open, like one behind a link on which the
/// sender's megabytes take minutes: the sender has measured, says so, and resets the connection.
fn what_a_slow_link_holds_is_no_failure() {
    let mut end = End::configured(config(Direction::Send, Open::Listen, 16 << 20));
    let address = end.ready();
    end.start(address);
    let mut peer = TcpStream::connect(address).expect("it listens");
    while end.samples.len() < 4 {
        match end.event() {
            Some(ChildEvent::Sample(sample)) => end.samples.push(sample),
            other => fail(&format!("samples were due, and {other:?} came")),
        }
    }
    peer.shutdown(std::net::Shutdown::Write).expect("half-closes");
    let report = end.report();
    assert!(report.interval >= Span::from_millis(250), "{report:?}");
    let error = std::io::copy(&mut peer, &mut std::io::sink()).expect_err("reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// One of two ends is killed while payload flows; the other fails with its own reason.
fn peer_dies(victim_sends: bool) {
    let (direction, other) = if victim_sends {
        (Direction::Send, Direction::Receive)
    } else {
        (Direction::Receive, Direction::Send)
    };
    let mut survivor = End::configured(config(other, Open::Listen, 65_536));
    let mut victim = End::configured(config(direction, Open::Connect, 65_536));
    let address = survivor.ready();
    victim.ready();
    survivor.start(address);
    victim.start(address);
    assert!(matches!(victim.event(), Some(ChildEvent::Sample(_))), "payload flows");
    drop(victim);
    let reason = survivor.failure().reason;
    let known = ["the peer ended the stream", "Connection reset by peer", "Broken pipe"];
    assert!(known.iter().any(|known| reason.contains(known)), "{reason}");
}

fn invalid_configurations_are_answered() {
    let mut zero = config(Direction::Send, Open::Connect, 0);
    let reason = End::configured(zero.clone()).failure().reason;
    assert!(reason.contains("1B to 16MiB are possible"), "{reason}");
    zero.job = config(Direction::Send, Open::Connect, 1).job;
    zero.cpu = Some(60_000);
    let reason = End::configured(zero).failure().reason;
    assert!(reason.contains("CPU 60000"), "{reason}");
    let mut foreign = config(Direction::Send, Open::Listen, 1);
    // TEST-NET-1 (RFC 5737) is no host's address.
    foreign.address.address = Ipv4Addr::new(192, 0, 2, 1);
    let reason = End::configured(foreign).failure().reason;
    assert!(reason.contains("bind failed for 192.0.2.1:0"), "{reason}");
}

fn malformed_messages_are_answered() {
    let mut end = End::spawn();
    end.send(&"configure");
    let reason = end.failure().reason;
    assert!(reason.contains("malformed"), "{reason}");
    let mut end = End::spawn();
    end.socket.write_all(&u32::MAX.to_be_bytes()).expect("written");
    let reason = end.failure().reason;
    assert!(reason.contains("at most 4194304"), "{reason}");
    let mut end = End::configured(config(Direction::Send, Open::Listen, 1));
    end.ready();
    end.send(&ChildCommand::<EndpointConfig>::PortAttached);
    let reason = end.failure().reason;
    assert!(reason.contains("`port-attached` where `start` was expected"), "{reason}");
}

/// The agent goes at each stage of the trial; the end exits at once, whatever it is doing.
fn the_end_of_the_control_socket_ends_the_process() {
    let exits = |mut end: End| {
        let begin = Instant::now();
        end.socket.shutdown(std::net::Shutdown::Both).expect("closes");
        assert_eq!(end.process.wait().expect("it exits").code(), Some(3));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    };
    exits(End::spawn());
    let mut ready = End::configured(config(Direction::Send, Open::Listen, 1));
    let address = ready.ready();
    exits(ready);
    let mut accepting = End::configured(config(Direction::Send, Open::Listen, 1));
    accepting.ready();
    accepting.start(address);
    exits(accepting);
    // Stuck in a send that nobody takes.
    let mut stuck = End::configured(config(Direction::Send, Open::Listen, 16 << 20));
    let address = stuck.ready();
    stuck.start(address);
    let peer = TcpStream::connect(address).expect("it listens");
    assert!(matches!(stuck.event(), Some(ChildEvent::Sample(_))), "the interval has begun");
    exits(stuck);
    drop(peer);
}

fn iperf3(mut config: EndpointConfig) -> EndpointConfig {
    config.program = NativeProgram::Iperf3;
    config
}

fn iperf3_pair(sender_listens: bool) {
    let (listen, connect) = (Open::Listen, Open::Connect);
    let (of_sender, of_receiver) = if sender_listens { (listen, connect) } else { (connect, listen) };
    let sender = iperf3(config(Direction::Send, of_sender, 65_536));
    let receiver = iperf3(config(Direction::Receive, of_receiver, 65_536));
    let (one, other) = if sender_listens { pair(sender, receiver) } else { pair(receiver, sender) };
    for report in [one, other] {
        check(&report);
        assert_eq!(report.cpu.host, None, "iperf3 does not say it for an interval");
    }
}

fn iperf3_is_killed_at_the_deadline() {
    let mut config = iperf3(config(Direction::Receive, Open::Listen, 65_536));
    config.deadline = Span::from_millis(700);
    let mut end = End::configured(config);
    let address = end.ready();
    end.start(address);
    let reason = end.failure().reason;
    assert!(reason.contains("for iperf3 to finish; iperf3 was killed"), "{reason}");
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

fn iperf3_says_why_it_failed() {
    let mut end = End::configured(iperf3(config(Direction::Send, Open::Connect, 65_536)));
    end.ready();
    end.start(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));
    let reason = end.failure().reason;
    assert!(reason.contains("Connection refused"), "{reason}");
}

fn iperf3_dies_with_its_end() {
    let mut end = End::configured(iperf3(config(Direction::Send, Open::Listen, 65_536)));
    let address = end.ready();
    end.process.kill().expect("killed");
    end.process.wait().expect("gone");
    let begin = Instant::now();
    // The kernel kills iperf3 when its parent is reaped; until it has, the port still answers.
    while TcpListener::bind(address).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(5), "iperf3 outlives its end");
        std::thread::yield_now();
    }
}

fn what_is_missing_on_the_command_line_is_said() {
    for (arguments, expected) in [
        (&["--user", "61000"][..], "--control-fd is needed"),
        (&["end-user"], "end-user needs --user"),
        (&["--user", "0", "end-user"], "invalid value '0'"),
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_toll-endpoint")).args(arguments).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{arguments:?}: {said}");
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let iperf3 = Command::new("iperf3").arg("--version").stdout(Stdio::null()).status().is_ok();
    let mut tests = Vec::new();
    let mut test = |name: &str, run: fn()| {
        let needs_iperf3 = name.starts_with("iperf3_");
        let left_out = needs_iperf3 && !iperf3;
        let name =
            if left_out { format!("{name} (needs iperf3, which is not installed)") } else { name.to_owned() };
        let run = move || {
            run();
            Ok::<(), Failed>(())
        };
        tests.push(Trial::test(name, run).with_ignored_flag(left_out));
    };
    test("listening_sender_64KiB", || both_ways(65_536, true, false));
    test("listening_receiver_64KiB", || both_ways(65_536, false, false));
    test("listening_sender_1B", || both_ways(1, true, false));
    test("listening_receiver_16MiB", || both_ways(16 << 20, false, false));
    test("both_pinned_to_one_cpu", || both_ways(65_536, true, true));
    test("sender_keeps_to_the_stream_until_the_fin", || sender_keeps_to_the_stream_until_the_fin(65_536));
    test("sender_keeps_to_the_stream_odd_writes", || sender_keeps_to_the_stream_until_the_fin(12_345));
    test("receiver_half_closes_and_drains", receiver_half_closes_and_drains);
    test("nobody_connects", nobody_connects);
    test("nobody_listens", nobody_listens);
    test("a_connection_comes_from_the_configured_address", a_connection_comes_from_the_configured_address);
    test("what_is_missing_on_the_command_line_is_said", what_is_missing_on_the_command_line_is_said);
    test("a_stranger_does_not_take_the_peers_place", a_stranger_does_not_take_the_peers_place);
    test(
        "strangers_hold_neither_the_agent_nor_the_deadline_up",
        strangers_hold_neither_the_agent_nor_the_deadline_up,
    );
    test("a_silent_peer_is_named", a_silent_peer_is_named);
    test("an_interval_without_payload_is_no_figure", an_interval_without_payload_is_no_figure);
    test("an_end_without_its_interface_is_none", an_end_without_its_interface_is_none);
    test("a_receiver_that_never_closes_is_named", a_receiver_that_never_closes_is_named);
    test("what_a_slow_link_holds_is_no_failure", what_a_slow_link_holds_is_no_failure);
    test("sending_peer_dies", || peer_dies(true));
    test("receiving_peer_dies", || peer_dies(false));
    test("invalid_configurations_are_answered", invalid_configurations_are_answered);
    test("malformed_messages_are_answered", malformed_messages_are_answered);
    test("the_end_of_the_control_socket_ends_the_process", the_end_of_the_control_socket_ends_the_process);
    test("iperf3_listening_sender", || iperf3_pair(true));
    test("iperf3_listening_receiver", || iperf3_pair(false));
    test("iperf3_is_killed_at_the_deadline", iperf3_is_killed_at_the_deadline);
    test("iperf3_says_why_it_failed", iperf3_says_why_it_failed);
    test("iperf3_dies_with_its_end", iperf3_dies_with_its_end);
    libtest_mimic::run(&arguments, tests).exit_code()
}
