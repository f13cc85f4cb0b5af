//! Datagrams over a veth pair, whose interfaces count what crosses them, and whose queue carries no more than it is told to.

mod support;
#[path = "support/veth.rs"]
mod veth;

use libtest_mimic::{Arguments, Failed, Trial};
use support::{End, config, fail};
use toll_protocol::child::{ChildEvent, EndpointConfig};
use toll_protocol::report::EndReport;
use toll_protocol::traffic::Traffic;
use toll_protocol::traffic::datagram::{Datagram, Report, Search, SizeRun};
use toll_protocol::trial::{Direction, Open};
use toll_protocol::units::{BitRate, InterfaceAddress, Span};
use veth::{HEADERS, NIC, Namespace};

fn end(namespace: &Namespace, direction: Direction, open: Open, datagram: &Datagram) -> End {
    let mut config: EndpointConfig = config(direction, open, 1);
    config.interface = NIC.to_owned();
    config.address = InterfaceAddress { address: namespace.address, prefix: 24 };
    config.job.timing.duration = Span::from_millis(1_000);
    config.job.traffic = Traffic::Datagram(datagram.clone());
    config.deadline = Span::from_millis(40_000);
    namespace.run(move || End::configured(config))
}

/// Two ends of the way from the first to the second, which listens, started.
fn started([near, far]: &[Namespace; 2], datagram: &Datagram) -> [End; 2] {
    let mut listener = end(far, Direction::Receive, Open::Listen, datagram);
    let mut connector = end(near, Direction::Send, Open::Connect, datagram);
    let (address, nowhere) = (listener.ready(), connector.ready());
    listener.start(nowhere);
    connector.start(address);
    [connector, listener]
}

fn traffic(report: &EndReport) -> &Report {
    report.traffic.datagram().unwrap_or_else(|| fail(&format!("{report:?}")))
}

/// Goodput is what the interface counted less headers, within 1 %, with offloads and without.
fn goodput_is_the_interfaces() {
    let namespaces = veth::pair();
    for (segmentation_offload, batch) in [(true, 64), (false, 8)] {
        let sizes = vec![SizeRun { size: 500, count: 1 }];
        let rate = Some(BitRate(80_000_000));
        let datagram = Datagram { sizes, rate, search: None, segmentation_offload, batch };
        let [connector, mut listener] = started(&namespaces, &datagram);
        let mut counted = Vec::new();
        while counted.len() < 10 {
            match listener.event() {
                Some(ChildEvent::Sample(sample)) => {
                    listener.samples.push(sample);
                    let [frames, bytes] = namespaces[1].received();
                    counted.push((sample, bytes - frames * HEADERS));
                }
                other => fail(&format!("samples were due, and {other:?} came")),
            }
        }
        let (report, sent) = (listener.report(), connector.report());
        let [first, last] = [counted[0], counted[counted.len() - 1]];
        let by_end = (last.0.received_bytes - first.0.received_bytes) as f64;
        let by_interface = (last.1 - first.1) as f64;
        println!(
            "offload {segmentation_offload}: {by_end} bytes by the end, {by_interface} by the interface"
        );
        assert!((by_end / by_interface - 1.0).abs() < 0.01, "{by_end} and {by_interface}: {report:?}");
        let rate = report.received_bytes as f64 * 8.0 / report.interval.seconds();
        // What a busy machine keeps the sender from for over 10 ms is not made up for.
        assert!((0.9..1.01).contains(&(rate / 80e6)), "{rate} bit/s: {report:?}");
        let delivery = traffic(&report).delivery.unwrap_or_else(|| fail(&format!("{report:?}")));
        assert_eq!((delivery.lost, delivery.reordered, delivery.duplicated), (0, 0, 0), "{delivery:?}");
        assert!(traffic(&sent).sent.abs_diff(delivery.sent) <= u64::from(batch), "{sent:?} and {delivery:?}");
    }
}

/// A queue of 50 Mb/s of frames: the search finds what of that is payload, and what is sent at it is not lost.
fn a_search_finds_what_the_queue_carries() {
    let namespaces = veth::pair();
    namespaces[0].ip("tc qdisc add dev nic0 root tbf rate 50mbit burst 16kb latency 10ms");
    let search = Search { at_most_ppm: 1_000, precision_ppm: 20_000, trial: Span::from_millis(300) };
    let datagram = Datagram {
        sizes: vec![SizeRun { size: 1_000, count: 1 }],
        rate: Some(BitRate(400_000_000)),
        search: Some(search),
        segmentation_offload: false,
        batch: 16,
    };
    let [connector, listener] = started(&namespaces, &datagram);
    let (received, sent) = (listener.report(), connector.report());
    let found = traffic(&sent).found.unwrap_or_else(|| fail(&format!("{sent:?}")));
    let carried = 50e6 * 1_000.0 / (1_000 + HEADERS) as f64;
    println!("{found:?} where {carried} bit/s of payload are carried");
    // The bucket and the queue give a trial some milliseconds more.
    assert!((0.95..1.06).contains(&(found.rate.0 as f64 / carried)), "{found:?} of {carried}");
    let delivery = traffic(&received).delivery.unwrap_or_else(|| fail(&format!("{received:?}")));
    assert!(delivery.lost * 50 <= delivery.sent, "{delivery:?} at {found:?}");
}

/// At a rate over that of the queue, what is lost is what it does not carry, and none of it the socket's buffer.
fn loss_is_what_the_queue_does_not_carry() {
    let namespaces = veth::pair();
    namespaces[0].ip("tc qdisc add dev nic0 root tbf rate 20mbit burst 16kb latency 10ms");
    let sizes = vec![SizeRun { size: 1_000, count: 1 }];
    let rate = Some(BitRate(40_000_000));
    let datagram = Datagram { sizes, rate, search: None, segmentation_offload: false, batch: 4 };
    let [connector, listener] = started(&namespaces, &datagram);
    let (received, _) = (listener.report(), connector.report());
    let delivery = traffic(&received).delivery.unwrap_or_else(|| fail(&format!("{received:?}")));
    let carried = 20e6 * 1_000.0 / (1_000 + HEADERS) as f64 / 40e6;
    let share = delivery.received as f64 / delivery.sent as f64;
    println!("{share} of {} received, {carried} carried", delivery.sent);
    assert!((share / carried - 1.0).abs() < 0.05, "{share} and {carried}: {delivery:?}");
    assert_eq!((delivery.sent, delivery.buffer_drops), (delivery.received + delivery.lost, Some(0)));
}

/// A datagram that the path can't carry is named, with the MTU, and not fragmented.
fn a_small_mtu_is_named() {
    let namespaces = veth::pair();
    for namespace in &namespaces {
        namespace.ip("ip link set nic0 mtu 1000");
    }
    let sizes = vec![SizeRun { size: 973, count: 1 }];
    let datagram = Datagram { sizes, rate: None, search: None, segmentation_offload: true, batch: 64 };
    let [connector, listener] = started(&namespaces, &datagram);
    for end in [connector, listener] {
        let reason = end.failure().reason;
        assert!(reason.contains("973 bytes with 28 of headers don't fit the path's MTU of 1000"), "{reason}");
    }
}

fn main() -> std::process::ExitCode {
    let obstacle = veth::obstacle();
    let test = |name: &str, run: fn()| {
        let name = obstacle.map_or_else(|| name.to_owned(), |obstacle| format!("{name} ({obstacle})"));
        let run = move || {
            run();
            Ok::<(), Failed>(())
        };
        Trial::test(name, run).with_ignored_flag(obstacle.is_some())
    };
    let tests = vec![
        test("goodput_is_the_interfaces", goodput_is_the_interfaces),
        test("a_search_finds_what_the_queue_carries", a_search_finds_what_the_queue_carries),
        test("loss_is_what_the_queue_does_not_carry", loss_is_what_the_queue_does_not_carry),
        test("a_small_mtu_is_named", a_small_mtu_is_named),
    ];
    // One after the other: rates are checked.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, tests).exit_code()
}
