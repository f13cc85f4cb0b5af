//! Streams of many flows, of both ways and with options, between two `toll-endpoint` processes on 127.0.0.1.

mod support;

use std::collections::BTreeSet;

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
