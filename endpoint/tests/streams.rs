//! Streams of many flows, of both ways and with options, between two `toll-endpoint` processes on 127.0.0.1.

mod support;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

use support::{End, config, pair};
use toll_protocol::child::EndpointConfig;
use toll_protocol::report::EndReport;
use toll_protocol::traffic::stream::{Report, Stream, fairness};
use toll_protocol::traffic::{Traffic, TrafficReport};
use toll_protocol::trial::{Direction, Open};
use toll_protocol::units::{Bytes, Span};

fn stream(direction: Direction, open: Open, parameters: Stream) -> EndpointConfig {
    let mut config = config(direction, open, 65_536);
    config.job.traffic = Traffic::Stream(parameters);
    config
}

/// Both ends' reports: the listener's, whose payload goes this way, and the connector's.
fn run(direction: Direction, parameters: &Stream) -> (EndReport, EndReport) {
    let of = |direction, open| stream(direction, open, parameters.clone());
    pair(of(direction, Open::Listen), of(direction.opposite(), Open::Connect))
}

fn flows(report: &EndReport) -> &Report {
    match &report.traffic {
        TrafficReport::Stream(report) => report,
        other => support::fail(&format!("{other:?}")),
    }
}

#[test]
fn flows_add_up_to_the_payload_and_each_has_a_thread() {
    let parameters = Stream { flows: 8, ..Stream::default() };
    for direction in [Direction::Send, Direction::Receive] {
        let (listener, connector) = run(direction, &parameters);
        for (report, direction) in [(&listener, direction), (&connector, direction.opposite())] {
            let flows = &flows(report).flows;
            assert_eq!(flows.len(), 8, "{report:?}");
            let (sent, received) = flows.iter().fold((0, 0), |(sent, received), flow| {
                (sent + flow.sent_bytes, received + flow.received_bytes)
            });
            assert_eq!((sent > 0, received > 0), (direction.sends(), direction.receives()));
            // The flows' counters are read some microseconds after their sum.
            let (of_flows, of_end) = (sent + received, report.bytes());
            assert!(of_flows.abs_diff(of_end) * 50 < of_end, "{of_flows} of {of_end}");
            let names: BTreeSet<_> = report.threads.iter().map(|thread| thread.name.as_str()).collect();
            assert_eq!(names.len(), 9, "eight of traffic and the control thread: {names:?}");
        }
        let receiver = if direction.receives() { &listener } else { &connector };
        let index = fairness(flows(receiver).received()).expect("eight shares");
        assert!(index > 1.0 / 8.0 && index <= 1.0, "{index}");
    }
}

#[test]
fn both_ways_at_once_are_counted_each_way() {
    for parameters in [Stream::default(), Stream { flows: 3, ..Stream::default() }] {
        let (listener, connector) = run(Direction::Both, &parameters);
        for report in [&listener, &connector] {
            assert!(report.sent_bytes > 0 && report.received_bytes > 0, "{report:?}");
            assert!(report.interval >= Span::from_millis(490), "{report:?}");
            let flows = &flows(report).flows;
            assert_eq!(flows.len(), 2 * parameters.flows as usize);
            let one_way = |flow: &&toll_protocol::traffic::stream::Flow| {
                (flow.sent_bytes > 0) != (flow.received_bytes > 0)
            };
            assert_eq!(flows.iter().filter(one_way).count(), flows.len(), "{flows:?}");
            let last = report.samples.last().expect("a sample");
            assert_eq!((last.sent_bytes, last.received_bytes), (report.sent_bytes, report.received_bytes));
        }
    }
}

#[test]
fn sends_without_a_copy_say_that_loopback_copies_them() {
    let parameters = Stream { zero_copy: true, ..Stream::default() };
    let (sender, receiver) = run(Direction::Send, &parameters);
    let done = flows(&sender).zero_copy.expect("was asked for");
    // What goes to the same host is copied (msg_zerocopy.rst, "Loopback").
    assert!(done.sends > 0 && done.copied == done.sends, "{done:?}");
    assert_eq!(flows(&receiver).zero_copy, None, "it sends nothing");
    assert!(receiver.received_bytes > 0);
}

/// The SYN of a connecting end, as the kernel of who listens has kept it: IPv4 and TCP header.
fn saved_syn(parameters: Stream) -> Vec<u8> {
    /// Of the kernel's linux/tcp.h.
    const TCP_SAVE_SYN: libc::c_int = 27;
    const TCP_SAVED_SYN: libc::c_int = 28;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `on` is `length` readable bytes.
    let set = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_SAVE_SYN,
            (&raw const on).cast(),
            length,
        )
    };
    assert_eq!(set, 0, "the kernel keeps SYNs");
    let SocketAddr::V4(address) = listener.local_addr().expect("an address") else { unreachable!("IPv4") };
    let mut end = End::configured(stream(Direction::Send, Open::Connect, parameters));
    end.ready();
    end.start(address);
    let (accepted, _) = listener.accept().expect("connects");
    let mut syn = vec![0; 256];
    let mut length = syn.len() as libc::socklen_t;
    // SAFETY: `syn` is `length` writable bytes, of which the kernel fills as many as it says.
    let got = unsafe {
        libc::getsockopt(
            accepted.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_SAVED_SYN,
            syn.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(got, 0, "a SYN was kept");
    syn.truncate(length as usize);
    syn
}

#[test]
fn options_of_sockets_are_taken_or_refused_by_name() {
    let parameters = Stream {
        congestion_control: Some("reno".into()),
        dscp: Some("af11".parse().expect("a code point")),
        max_segment_size: Some(536),
        socket_buffer: Some(Bytes(64 << 10)),
        ..Stream::default()
    };
    let (sender, receiver) = run(Direction::Send, &parameters);
    assert!(sender.sent_bytes > 0 && receiver.received_bytes > 0);
    let syn = saved_syn(parameters);
    // Fields of RFC 791, 3.1 and RFC 9293, 3.1.
    let (version_and_length, traffic_class) = (syn[0], syn[1]);
    assert_eq!((version_and_length, traffic_class), (0x45, 10 << 2), "af11: {syn:?}");
    assert!(syn[40..].starts_with(&[2, 4, 2, 24]), "the first option is a largest segment of 536: {syn:?}");
    let plain = saved_syn(Stream::default());
    assert_eq!(plain[1], 0, "{plain:?}");
    assert!(!plain[40..].starts_with(&[2, 4, 2, 24]), "{plain:?}");
    let unknown = Stream { congestion_control: Some("nosuch".into()), ..Stream::default() };
    let reason = End::configured(stream(Direction::Send, Open::Listen, unknown)).failure().reason;
    assert!(reason.contains("no congestion control nosuch can be set"), "{reason}");
}

#[test]
fn a_flow_that_nobody_opens_is_waited_for_and_named() {
    let many = stream(Direction::Receive, Open::Listen, Stream { flows: 2, ..Stream::default() });
    let mut listener = End::configured(EndpointConfig { deadline: Span::from_millis(2_000), ..many });
    let mut connector = End::configured(stream(Direction::Send, Open::Connect, Stream::default()));
    let (address, nowhere) = (listener.ready(), connector.ready());
    listener.start(nowhere);
    connector.start(address);
    let reason = listener.failure().reason;
    assert!(reason.contains("for the other end to connect"), "{reason}");
}
