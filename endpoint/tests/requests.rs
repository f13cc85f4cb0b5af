//! Requests and responses between two `toll-endpoint` processes on 127.0.0.1.

mod support;

use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use support::{DURATION, End, config, fail, pair};
use toll_protocol::child::{ChildEvent, EndpointConfig};
use toll_protocol::report::EndReport;
use toll_protocol::traffic::request_response::{
    Asked, Background, Connection, Load, Protocol, Report, RequestResponse,
};
use toll_protocol::traffic::stream::Stream;
use toll_protocol::traffic::{Traffic, TrafficReport};
use toll_protocol::trial::{Direction, Open};
use toll_protocol::units::{Bytes, Span};
use toll_protocol::validity;

fn end(open: Open, parameters: &RequestResponse) -> EndpointConfig {
    let mut config = config(Direction::Both, open, 1);
    config.job.traffic = Traffic::RequestResponse(parameters.clone());
    config
}

/// The reports of the answering end and of the asking end.
fn run(parameters: &RequestResponse) -> (EndReport, EndReport) {
    pair(end(Open::Listen, parameters), end(Open::Connect, parameters))
}

fn of(report: &EndReport) -> &Report {
    match &report.traffic {
        TrafficReport::RequestResponse(report) => report,
        other => fail(&format!("{other:?}")),
    }
}

fn asked(report: &EndReport) -> &Asked {
    of(report).asked.as_ref().unwrap_or_else(|| fail("it did not ask"))
}

fn udp(load: Load) -> RequestResponse {
    let (request, response) = (Bytes(64), Bytes(1024));
    RequestResponse { protocol: Protocol::Udp, request, response, load, ..RequestResponse::default() }
}

const fn open_loop(rate: u32) -> Load {
    Load::OpenLoop { rate, busy_wait: false }
}

/// What holds of every run on a path that loses nothing.
fn check(parameters: &RequestResponse, answered: &EndReport, asking: &EndReport) {
    assert_eq!(of(answered).asked, None);
    let asked = asked(asking);
    let percentiles = asked.latencies.percentiles();
    assert!(percentiles.count > 0 && asked.lost == 0 && asked.late == 0, "{asked:?}");
    assert!(percentiles.min.0 > 1_000, "no transaction takes a microsecond: {percentiles:?}");
    assert!(percentiles.p50 <= percentiles.p99 && percentiles.p99 <= percentiles.max, "{percentiles:?}");
    // What the control thread reads and what the asking one counts are of moments that lie some microseconds apart, or a
    // time slice where the machine is busy.
    let transactions = asking.received_bytes / parameters.response.0;
    let open = match parameters.load {
        Load::ClosedLoop { depth } => u64::from(depth),
        Load::OpenLoop { .. } => 0,
    };
    assert!(
        transactions.abs_diff(percentiles.count) <= open + transactions / 10 + 5,
        "{transactions} by bytes, {} by latencies",
        percentiles.count
    );
    for report in [answered, asking] {
        // As many requests as responses, but for those that are under way.
        let (request, response) = (parameters.request.0, parameters.response.0);
        let (requests, responses) = if report == asking {
            (report.sent_bytes, report.received_bytes)
        } else {
            (report.received_bytes, report.sent_bytes)
        };
        let (requests, responses) = (requests / request, responses / response);
        assert!(requests.abs_diff(responses) <= open + responses / 10 + 5, "{requests} and {responses}");
        assert_eq!(validity::no_figure(Direction::Both, report), None);
        let last = report.samples.last().unwrap_or_else(|| fail("the end is a sample"));
        assert_eq!((last.at, last.bytes()), (report.interval, report.bytes()));
        assert!(report.interval >= Span(DURATION.0 / 2), "{report:?}");
        assert_eq!(report.threads[0].name, "traffic");
    }
}

#[test]
fn a_closed_loop_asks_and_is_answered() {
    let sizes = |request, response| RequestResponse {
        request: Bytes(request),
        response: Bytes(response),
        ..RequestResponse::default()
    };
    let deep = |parameters: RequestResponse, depth| RequestResponse {
        load: Load::ClosedLoop { depth },
        ..parameters
    };
    for parameters in [
        sizes(1, 1),
        sizes(1, 100_000),
        sizes(1 << 20, 3),
        deep(sizes(1, 1), 16),
        deep(sizes(70_000, 1 << 20), 64),
        udp(Load::ClosedLoop { depth: 1 }),
        udp(Load::ClosedLoop { depth: 7 }),
    ] {
        let (answered, asking) = run(&parameters);
        check(&parameters, &answered, &asking);
    }
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let tcp = RequestResponse { load: open_loop(2_000), ..RequestResponse::default() };
    let busy = RequestResponse {
        load: Load::OpenLoop { rate: 2_000, busy_wait: true },
        connection: Connection::Persistent,
        ..RequestResponse::default()
    };
    for parameters in [tcp, busy, udp(open_loop(2_000))] {
        let (answered, asking) = run(&parameters);
        check(&parameters, &answered, &asking);
        let asked = asked(&asking);
        // 2000 a second in the time between the marks, which is that of the interval and what the machine adds.
        let rate = asked.latencies.percentiles().count as f64 / asking.interval.seconds();
        assert!((1_900.0..2_300.0).contains(&rate), "{rate} a second");
        assert!(asked.latest_send.0 > 0, "no timer is exact");
        assert_eq!(asked.busy_wait, matches!(parameters.load, Load::OpenLoop { busy_wait: true, .. }));
    }
}

#[test]
fn each_transaction_has_a_connection_of_its_own() {
    for load in [Load::ClosedLoop { depth: 1 }, open_loop(300)] {
        let connection = Connection::PerRequest;
        let parameters =
            RequestResponse { load, connection, response: Bytes(5_000), ..RequestResponse::default() };
        let (answered, asking) = run(&parameters);
        check(&parameters, &answered, &asking);
    }
}

#[test]
fn a_background_runs_beside_it_each_way_that_it_names() {
    for direction in Direction::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let stream = Stream { flows: 2, ..Stream::default() };
            let parameters = RequestResponse {
                background: Some(Background { stream, direction }),
                protocol,
                request: Bytes(8),
                response: Bytes(8),
                ..RequestResponse::default()
            };
            let (answered, asking) = run(&parameters);
            check(&parameters, &answered, &asking);
            for (report, direction) in [(&asking, direction), (&answered, direction.opposite())] {
                let flows = &of(report).background;
                let ways = usize::from(direction.sends()) + usize::from(direction.receives());
                assert_eq!(flows.len(), 2 * ways);
                let sent: u64 = flows.iter().map(|flow| flow.sent_bytes).sum();
                let received: u64 = flows.iter().map(|flow| flow.received_bytes).sum();
                assert_eq!((sent > 0, received > 0), (direction.sends(), direction.receives()), "{flows:?}");
                assert_eq!(report.threads.len(), 2 + 2 * ways, "with those of transactions and control");
            }
        }
    }
}

/// The answering end is stopped, by SIGSTOP, for a while. An open loop counts each transaction that was to begin in it, and
/// each for as long as it waited: coordinated omission would show one.
fn slow_ones(parameters: &RequestResponse) -> (f64, f64, u64) {
    let with_time = |open| {
        let mut config = end(open, parameters);
        config.job.timing.duration = Span::from_millis(1_500);
        config
    };
    let (mut answering, mut asking) =
        (End::configured(with_time(Open::Listen)), End::configured(with_time(Open::Connect)));
    let (address, nowhere) = (answering.ready(), asking.ready());
    answering.start(nowhere);
    asking.start(address);
    samples_until(&mut asking, 2);
    let process = Pid::from_raw(i32::try_from(answering.process.id()).expect("a process id"));
    kill(process, Signal::SIGSTOP).expect("stopped");
    // Its threads stop when one of them has had a CPU.
    let stopped = waitpid(process, Some(WaitPidFlag::WUNTRACED)).expect("a child");
    assert_eq!(stopped, WaitStatus::Stopped(process, Signal::SIGSTOP));
    let begin = std::time::Instant::now();
    // By the asking end's own clock.
    samples_until(&mut asking, 5);
    kill(process, Signal::SIGCONT).expect("continued");
    let stall = begin.elapsed();
    let report = asking.report();
    let asked = asked(&report);
    let percentiles = asked.latencies.percentiles();
    // Shares of transactions at most so long, from the histogram itself.
    let steps = asked.latencies.distribution(50).expect("was read");
    let slow_from = stall / 2;
    let fast = steps.iter().take_while(|(_, latency)| latency.duration() < slow_from).last();
    let share = 1.0 - fast.map_or(0.0, |(share, _)| *share);
    // Of datagrams some may find no room at an end that is stopped: they are not left out either.
    let slow = share * percentiles.count as f64 + asked.lost as f64;
    (stall.as_secs_f64(), slow, percentiles.max.0)
}

#[test]
fn a_stall_is_told_by_every_transaction_that_an_open_loop_meant_to_begin_in_it() {
    const RATE: u32 = 1_000;
    for parameters in
        [RequestResponse { load: open_loop(RATE), ..RequestResponse::default() }, udp(open_loop(RATE))]
    {
        let (stall, slow, longest) = slow_ones(&parameters);
        // Half of those that were to begin in the stall waited for half of it or longer.
        let expected = stall / 2.0 * f64::from(RATE);
        assert!((slow / expected - 1.0).abs() < 0.3, "{slow} slow ones in {stall} s, not {expected}");
        assert!(longest as f64 / 1e9 > stall * 0.8, "{longest} ns");
    }
    // The same by a closed loop: one transaction is slow, which is what an open loop is there for.
    let (stall, slow, longest) = slow_ones(&RequestResponse::default());
    assert!(slow < stall / 2.0 * f64::from(RATE) * 0.05, "{slow} slow ones in {stall} s");
    assert!(longest as f64 / 1e9 > stall * 0.8, "{longest} ns");
}

fn samples_until(end: &mut End, count: usize) {
    while end.samples.len() < count {
        match end.event() {
            Some(ChildEvent::Sample(sample)) => end.samples.push(sample),
            other => fail(&format!("samples were due, and {other:?} came")),
        }
    }
}

/// Nobody answers: what was asked is lost, and no figure.
#[test]
fn a_peer_that_does_not_answer_is_no_figure() {
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let std::net::SocketAddr::V4(address) = silent.local_addr().expect("an address") else {
        fail("not IPv4")
    };
    for load in [Load::ClosedLoop { depth: 1 }, Load::ClosedLoop { depth: 3 }, open_loop(100)] {
        let parameters = RequestResponse { timeout: Span::from_millis(100), ..udp(load) };
        let mut asking = End::configured(end(Open::Connect, &parameters));
        asking.ready();
        asking.start(address);
        let report = asking.report();
        let asked = asked(&report);
        assert!(asked.lost >= 3 && asked.latencies.percentiles().count == 0, "{asked:?}");
        assert!(validity::no_figure(Direction::Both, &report).is_some());
    }
}

#[test]
fn a_peer_that_goes_is_named() {
    // What the peer had taken is never answered, and the request after that is refused.
    let udp = RequestResponse { timeout: Span::from_millis(50), ..udp(Load::ClosedLoop { depth: 1 }) };
    for parameters in [RequestResponse::default(), udp] {
        let mut answering = End::configured(end(Open::Listen, &parameters));
        let mut asking = End::configured(end(Open::Connect, &parameters));
        let (address, nowhere) = (answering.ready(), asking.ready());
        answering.start(nowhere);
        asking.start(address);
        samples_until(&mut asking, 1);
        drop(answering);
        let reason = asking.failure().reason;
        let known =
            ["Connection reset by peer", "Connection refused", "failed to fill whole buffer", "Broken pipe"];
        assert!(known.iter().any(|known| reason.contains(known)), "{reason}");
    }
}

/// A peer that takes the last request and never answers it: what was measured is measured, and that one is lost.
#[test]
fn a_last_transaction_that_is_never_answered_is_lost() {
    use std::io::{Read as _, Write as _};
    for load in [Load::ClosedLoop { depth: 1 }, Load::ClosedLoop { depth: 2 }] {
        let timeout = Span::from_millis(100);
        let parameters = RequestResponse { load, timeout, ..RequestResponse::default() };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let std::net::SocketAddr::V4(address) = listener.local_addr().expect("an address") else {
            fail("not IPv4")
        };
        let mut asking = End::configured(end(Open::Connect, &parameters));
        asking.ready();
        asking.start(address);
        let (mut peer, _) = listener.accept().expect("it connects");
        let begin = std::time::Instant::now();
        let mut request = [0];
        while begin.elapsed() < Duration::from_millis(400) {
            peer.read_exact(&mut request).expect("a request");
            peer.write_all(&request).expect("it reads");
        }
        let report = asking.report();
        let asked = asked(&report);
        assert!(asked.latencies.percentiles().count > 0 && asked.lost >= 1, "{asked:?}");
    }
}

#[test]
fn what_no_end_can_do_is_refused_with_its_configuration() {
    let refused =
        |parameters: RequestResponse| End::configured(end(Open::Listen, &parameters)).failure().reason;
    let standard = RequestResponse::default;
    for (parameters, what) in [
        (RequestResponse { request: Bytes(0), ..standard() }, "its request"),
        (RequestResponse { response: Bytes(u64::MAX), ..standard() }, "its response"),
        (RequestResponse { protocol: Protocol::Udp, ..standard() }, "its request"),
        (RequestResponse { load: Load::ClosedLoop { depth: 0 }, ..standard() }, "its rate or depth"),
        (RequestResponse { load: open_loop(u32::MAX), ..standard() }, "its rate or depth"),
        (RequestResponse { timeout: Span(0), ..standard() }, "its timeout"),
    ] {
        let reason = refused(parameters);
        assert!(reason.contains(what), "{reason}");
    }
}
