//! Requests and responses over a wire that is as bad as it should be.

mod support;
#[path = "support/wire.rs"]
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use support::{config, fail};
use toll_protocol::child::EndpointConfig;
use toll_protocol::report::EndReport;
use toll_protocol::traffic::request_response::{Asked, Background, Load, Protocol, RequestResponse};
use toll_protocol::traffic::stream::Stream;
use toll_protocol::traffic::{Traffic, TrafficReport};
use toll_protocol::trial::{Direction, Open};
use toll_protocol::units::{Bytes, Span};
use wire::{Side, Wire, Wrong};

fn end(open: Open, parameters: &RequestResponse) -> EndpointConfig {
    let mut config = config(Direction::Both, open, 1);
    config.job.timing.duration = Span::from_millis(1_000);
    config.job.traffic = Traffic::RequestResponse(parameters.clone());
    config
}

fn run(wire: &Wire, parameters: &RequestResponse) -> EndReport {
    let mut answering = wire.end(Side::Far, end(Open::Listen, parameters));
    let mut asking = wire.end(Side::Near, end(Open::Connect, parameters));
    let (address, nowhere) = (answering.ready(), asking.ready());
    answering.start(nowhere);
    asking.start(address);
    let (report, answered) = (asking.result().0, answering.result().0);
    let both = report.and_then(|report| answered.map(|_| report));
    both.unwrap_or_else(|failure| fail(&format!("{parameters:?}: {failure:?}")))
}

fn asked(report: &EndReport) -> &Asked {
    match &report.traffic {
        TrafficReport::RequestResponse(report) => {
            report.asked.as_ref().unwrap_or_else(|| fail("it did not ask"))
        }
        other => fail(&format!("{other:?}")),
    }
}

fn udp(load: Load) -> RequestResponse {
    let (request, response) = (Bytes(64), Bytes(64));
    RequestResponse { protocol: Protocol::Udp, request, response, load, ..RequestResponse::default() }
}

const fn open_loop(rate: u32) -> Load {
    Load::OpenLoop { rate, busy_wait: false }
}

/// 5 ms each way are 10 ms there and back, and what the machine adds.
fn latency_is_that_of_the_wire() {
    let wire = Wire::with(Wrong { delay: Duration::from_millis(5), ..Wrong::default() });
    let tcp = |load| RequestResponse { load, ..RequestResponse::default() };
    for parameters in [
        tcp(Load::ClosedLoop { depth: 1 }),
        tcp(Load::ClosedLoop { depth: 4 }),
        tcp(open_loop(200)),
        udp(Load::ClosedLoop { depth: 1 }),
        udp(open_loop(200)),
    ] {
        let report = run(&wire, &parameters);
        let percentiles = asked(&report).latencies.percentiles();
        assert!(percentiles.min >= Span::from_millis(10), "{parameters:?}: {percentiles:?}");
        assert!(percentiles.p50 < Span::from_millis(13), "{parameters:?}: {percentiles:?}");
        if let Load::ClosedLoop { depth } = parameters.load {
            // Little's law: what is open is the rate times the latency.
            let rate = percentiles.count as f64 / report.interval.seconds();
            let open = rate * percentiles.p50.seconds();
            assert!((open / f64::from(depth) - 1.0).abs() < 0.2, "{open} open of {depth}");
        }
    }
}

/// 2 % each way are 4 % of transactions.
fn what_the_wire_loses_is_counted() {
    const RATE: u32 = 1_000;
    let wire = Wire::with(Wrong { loses_every: Some(50), ..Wrong::default() });
    let timeout = Span::from_millis(100);
    let report = run(&wire, &RequestResponse { timeout, ..udp(open_loop(RATE)) });
    let asked = asked(&report);
    let all = asked.latencies.percentiles().count + asked.lost;
    assert!(all.abs_diff(u64::from(RATE)) < 100, "{all} transactions of {RATE}: none is left out");
    let loss = asked.loss().unwrap_or_else(|| fail("there were transactions"));
    // One in 50 each way, but for packets that are none of the transactions'.
    assert!((loss - 0.0396).abs() < 0.005, "{loss}");
    assert!(asked.latencies.percentiles().max < timeout, "what is lost has no latency: {asked:?}");
    // In a closed loop one that is lost holds up the next for as long as the timeout is.
    let closed = run(&wire, &RequestResponse { timeout, ..udp(Load::ClosedLoop { depth: 1 }) });
    assert!((1..=10).contains(&self::asked(&closed).lost), "{closed:?}");
}

/// A queue of 450 kB before a link of 50 Mb/s is 72 ms long when it is full.
fn a_background_fills_the_queue() {
    let wire = Wire::new();
    wire.queue("tbf rate 50mbit burst 32kb limit 450000");
    let quiet = RequestResponse { load: open_loop(200), ..RequestResponse::default() };
    let direction = Direction::Send;
    let loaded = RequestResponse {
        background: Some(Background { stream: Stream::default(), direction }),
        ..quiet.clone()
    };
    let p50 = |parameters| asked(&run(&wire, parameters)).latencies.percentiles().p50;
    let (quiet, loaded) = (p50(&quiet), p50(&loaded));
    assert!(quiet < Span::from_millis(5), "{quiet}");
    assert!(loaded > Span::from_millis(20) && loaded < Span::from_millis(120), "{loaded} beside {quiet}");
}

/// A datagram that is longer than the path carries is refused by name and not cut up.
fn a_datagram_over_the_mtu_is_refused() {
    let wire = Wire::new();
    let parameters = RequestResponse { request: Bytes(1_473), ..udp(Load::ClosedLoop { depth: 1 }) };
    let mut answering = wire.end(Side::Far, end(Open::Listen, &parameters));
    let mut asking = wire.end(Side::Near, end(Open::Connect, &parameters));
    let (address, nowhere) = (answering.ready(), asking.ready());
    answering.start(nowhere);
    asking.start(address);
    let reason = asking.failure().reason;
    assert!(reason.contains("Message too long"), "{reason}");
    drop(answering);
    let longest = RequestResponse { request: Bytes(1_472), response: Bytes(1_472), ..parameters };
    assert!(asked(&run(&wire, &longest)).latencies.percentiles().count > 0);
}

fn main() -> ExitCode {
    let tests: [(&str, fn()); 4] = [
        ("latency_is_that_of_the_wire", latency_is_that_of_the_wire),
        ("what_the_wire_loses_is_counted", what_the_wire_loses_is_counted),
        ("a_background_fills_the_queue", a_background_fills_the_queue),
        ("a_datagram_over_the_mtu_is_refused", a_datagram_over_the_mtu_is_refused),
    ];
    let obstacle = wire::obstacle();
    if let Some(obstacle) = obstacle {
        eprintln!("tests of a wire are left out: {obstacle}");
    }
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_ignored_flag(obstacle.is_some())
    };
    libtest_mimic::run(&Arguments::from_args(), tests.map(trial).into()).exit_code()
}
