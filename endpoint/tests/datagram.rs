//! Datagrams between two `toll-endpoint` processes: over 127.0.0.1, through a relay that makes the path worse and notes what it did,
//! and over a veth pair whose counters know what crossed it.

#[path = "support/relay.rs"]
mod relay;
mod support;

use std::time::Duration;

use relay::{Fate, Relay};
use support::{DURATION, End, WARM_UP, config, fail};
use toll_protocol::child::EndpointConfig;
use toll_protocol::report::{EndReport, Flag};
use toll_protocol::traffic::datagram::{Datagram, Delivery, Report, Search, SizeRun};
use toll_protocol::traffic::{Timing, Traffic};
use toll_protocol::trial::{Direction, NativeProgram, Open};
use toll_protocol::units::{BitRate, Span};
use toll_protocol::validity;

/// 1000 datagrams of 1000 bytes a second.
const RATE: BitRate = BitRate(8_000_000);

fn datagrams(size: u16, rate: Option<BitRate>) -> Datagram {
    let sizes = vec![SizeRun { size, count: 1 }];
    Datagram { sizes, rate, search: None, segmentation_offload: true, batch: 64 }
}

fn job(direction: Direction, open: Open, datagram: &Datagram) -> EndpointConfig {
    let mut config = config(direction, open, 1);
    config.job.traffic = Traffic::Datagram(datagram.clone());
    config
}

/// The report of the listening end, which does the opposite, and that of the connecting one; with a path between them if it has a fate.
fn run(direction: Direction, datagram: &Datagram, fate: Option<Fate>) -> (EndReport, EndReport, relay::Done) {
    let mut listener = End::configured(job(direction.opposite(), Open::Listen, datagram));
    let mut connector = End::configured(job(direction, Open::Connect, datagram));
    let (address, nowhere) = (listener.ready(), connector.ready());
    assert_eq!(nowhere.port(), 0, "a connecting end listens nowhere");
    let relay = fate.map(|fate| Relay::start(address, fate));
    listener.start(nowhere);
    connector.start(relay.as_ref().map_or(address, |relay| relay.address));
    let reports = (listener.report(), connector.report());
    let done = relay.map(Relay::done).unwrap_or_default();
    (reports.0, reports.1, done)
}

fn traffic(report: &EndReport) -> &Report {
    report.traffic.datagram().unwrap_or_else(|| fail(&format!("{report:?}")))
}

fn delivery(report: &EndReport) -> Delivery {
    let delivery = traffic(report).delivery.unwrap_or_else(|| fail(&format!("{report:?}")));
    assert_eq!(delivery.sent, delivery.received + delivery.lost, "{delivery:?}");
    delivery
}

/// What is sent at a rate comes, all of it, whichever end sends, with each of the switches.
#[test]
fn a_rate_is_kept_both_ways_and_nothing_is_lost() {
    for (offload, batch, direction) in
        [(true, 64, Direction::Send), (false, 1, Direction::Receive), (false, 16, Direction::Both)]
    {
        let datagram = Datagram { segmentation_offload: offload, batch, ..datagrams(1_000, Some(RATE)) };
        let (listener, connector, _) = run(direction, &datagram, None);
        let seconds = listener.interval.seconds();
        for (report, direction) in [(&listener, direction.opposite()), (&connector, direction)] {
            let what = format!("{offload} {batch} {direction}: {report:?}");
            if direction.receives() {
                let delivery = delivery(report);
                assert_eq!((delivery.lost, delivery.duplicated, delivery.reordered), (0, 0, 0), "{what}");
                assert_eq!(delivery.buffer_drops, Some(0), "{what}");
                // The two are counted at one moment and read one after the other.
                let of_datagrams = traffic(report).received * 1_000;
                assert!(report.received_bytes.abs_diff(of_datagrams) <= 20_000, "{what}");
                let rate = report.received_bytes as f64 * 8.0 / seconds;
                // What a busy machine keeps the sender from for over 10 ms is not made up for.
                assert!((0.9..1.02).contains(&(rate / RATE.0 as f64)), "{rate} bit/s: {what}");
            } else {
                assert_eq!((report.received_bytes, traffic(report).delivery), (0, None), "{what}");
            }
            assert_eq!(report.sent_bytes > 0, direction.sends(), "{what}");
            assert_eq!(validity::no_figure(direction, report), None, "{what}");
        }
    }
}

/// A path that loses, doubles, reorders and delays: the receiver's counters are the relay's, to a datagram.
#[test]
fn the_counters_are_those_of_the_path() {
    let fate =
        Fate { lose: 10, double: 15, hold: 20, delay: Duration::from_millis(5), greetings: 3, cut: false };
    let datagram = Datagram { segmentation_offload: false, ..datagrams(200, Some(RATE)) };
    let (listener, connector, done) = run(Direction::Send, &datagram, Some(fate));
    let delivery = delivery(&listener);
    assert_eq!(
        (delivery.sent, delivery.lost, delivery.duplicated, delivery.reordered, delivery.late),
        (done.marked, done.lost, done.doubled, done.held, 0),
        "{delivery:?} and {done:?}"
    );
    // A tenth within five standard deviations.
    let share = delivery.lost as f64 / delivery.sent as f64;
    let deviation = (0.1 * 0.9 / delivery.sent as f64).sqrt();
    assert!((share - 0.1).abs() < 5.0 * deviation, "{share} of {} lost", delivery.sent);
    let sent = traffic(&connector).sent;
    assert!(sent.abs_diff(delivery.sent) <= 64, "{sent} by the counter, {} marked", delivery.sent);
    assert!(delivery.jitter > Span(0), "{delivery:?}");
}

/// As fast as it goes, a mix of sizes and both offloads: what the receiver did not get, its kernel dropped.
#[test]
fn as_fast_as_it_goes_what_is_lost_is_the_buffers() {
    let sizes = [(18, 7), (548, 4), (1_472, 1)].map(|(size, count)| SizeRun { size, count });
    let datagram = Datagram { sizes: sizes.to_vec(), ..datagrams(1_000, None) };
    let (listener, _, _) = run(Direction::Send, &datagram, None);
    let delivery = delivery(&listener);
    assert!(delivery.received > 10_000 && delivery.reordered == 0, "{delivery:?}");
    let drops = delivery.buffer_drops.is_some_and(|drops| drops > 0);
    assert_eq!(listener.flags.contains(&Flag::Drops), drops, "{listener:?}");
    if delivery.lost > 0 {
        assert!(delivery.buffer_drops.is_some_and(|drops| drops > 0), "{delivery:?}");
    }
}

/// A path that carries all that is asked for: the highest rate that may be tried is found, whichever end sends.
#[test]
fn a_search_finds_a_rate_and_measures_at_it() {
    let search = Search { at_most_ppm: 1_000, precision_ppm: 50_000, trial: Span::from_millis(100) };
    let datagram = Datagram { search: Some(search), ..datagrams(1_000, Some(RATE)) };
    for direction in [Direction::Send, Direction::Receive] {
        let (listener, connector, _) = run(direction, &datagram, None);
        let (sender, receiver) =
            if direction.sends() { (&connector, &listener) } else { (&listener, &connector) };
        let found = traffic(sender).found.unwrap_or_else(|| fail(&format!("{sender:?}")));
        assert!((0.9..1.02).contains(&(found.rate.0 as f64 / RATE.0 as f64)), "{found:?}");
        assert_eq!(delivery(receiver).lost, 0);
        let rate = receiver.received_bytes as f64 * 8.0 / receiver.interval.seconds();
        assert!((0.9..1.02).contains(&(rate / found.rate.0 as f64)), "{rate} and {found:?}");
    }
}

/// A receiver that got nothing has failed, and so has its sender's search.
#[test]
fn a_path_that_carries_nothing_is_a_failure() {
    let cut = Fate { cut: true, ..Fate::default() };
    let search = Search { at_most_ppm: 0, precision_ppm: 500_000, trial: Span::from_millis(100) };
    let datagram = Datagram { search: Some(search), ..datagrams(1_000, Some(BitRate(400_000))) };
    let (mut listener, mut connector) = (
        End::configured(job(Direction::Receive, Open::Listen, &datagrams(1_000, Some(RATE)))),
        End::configured(job(Direction::Send, Open::Connect, &datagram)),
    );
    let (address, nowhere) = (listener.ready(), connector.ready());
    let relay = Relay::start(address, cut);
    listener.start(nowhere);
    connector.start(relay.address);
    let reason = connector.failure().reason;
    assert!(reason.contains("no rate loses as little as is allowed"), "{reason}");
    let reason = listener.failure().reason;
    assert!(reason.contains("the first payload byte"), "{reason}");
    assert_eq!(relay.done(), relay::Done::default());
}

/// The receiver is gone before it has told: the sender has what it measured and ends.
#[test]
fn a_sender_ends_when_nobody_listens_any_more() {
    let datagram = datagrams(1_000, Some(RATE));
    let mut listener = End::configured(job(Direction::Receive, Open::Listen, &datagram));
    let mut connector = End::configured(job(Direction::Send, Open::Connect, &datagram));
    let (address, nowhere) = (listener.ready(), connector.ready());
    let relay = Relay::start(address, Fate::default());
    listener.start(nowhere);
    connector.start(relay.address);
    while listener.samples.len() < 3 {
        match listener.event() {
            Some(toll_protocol::child::ChildEvent::Sample(sample)) => listener.samples.push(sample),
            other => fail(&format!("samples were due, and {other:?} came")),
        }
    }
    drop(listener);
    let report = connector.report();
    assert!(traffic(&report).sent > 100 && report.received_bytes == 0, "{report:?}");
    relay.done();
}

#[test]
fn what_can_not_be_sent_is_refused() {
    let refused = |change: &dyn Fn(&mut EndpointConfig)| {
        let mut config = job(Direction::Send, Open::Connect, &datagrams(1_000, None));
        change(&mut config);
        End::configured(config).failure().reason
    };
    let small = refused(&|config| config.job.traffic = Traffic::Datagram(datagrams(15, None)));
    assert!(small.contains("16 to 8972 bytes"), "{small}");
    let iperf3 = refused(&|config| config.program = NativeProgram::Iperf3);
    assert!(iperf3.contains("iperf3 can't be run for `datagram`"), "{iperf3}");
}

/// The interval of a receiver is as long as it is asked to be.
#[test]
fn the_interval_is_the_receivers_own() {
    let mut timing = Timing { warm_up: WARM_UP, duration: DURATION };
    timing.duration = Span::from_millis(300);
    let datagram = datagrams(500, Some(RATE));
    let mut configs = [(Direction::Receive, Open::Listen), (Direction::Send, Open::Connect)]
        .map(|(direction, open)| job(direction, open, &datagram));
    configs.iter_mut().for_each(|config| config.job.timing = timing);
    let [listener, connector] = configs;
    let (received, sent) = support::pair(listener, connector);
    for report in [received, sent] {
        assert!((300..400).contains(&(report.interval.0 / 1_000_000)), "{report:?}");
        assert_eq!(report.threads[0].name, "traffic");
    }
}
