//! Datagrams of 64 bytes a second over a veth pair, received: with all that the kernel offers, with sendmmsg and recvmmsg alone, with a system
//! call each, and by iperf3. All in one run, in turn, so that they have the same machine.
//!
//! ```text
//! cargo build --release -p toll-endpoint --bins --examples && target/release/examples/datagram_bench
//! ```

#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../tests/support/veth.rs"]
mod veth;

use std::process::{Command, Stdio};

use support::{End, config, fail};
use toll_protocol::traffic::Traffic;
use toll_protocol::traffic::datagram::{Datagram, SizeRun};
use toll_protocol::trial::{Direction, Open};
use toll_protocol::units::{InterfaceAddress, Span};
use veth::{NIC, Namespace};

const SIZE: u16 = 64;
const ROUNDS: usize = 5;
const SECONDS: u64 = 2;

/// Datagrams a second, sent and received.
type Rates = [f64; 2];

fn native(namespaces: &[Namespace; 2], segmentation_offload: bool, batch: u16) -> Rates {
    let sizes = vec![SizeRun { size: SIZE, count: 1 }];
    let datagram = Datagram { sizes, rate: None, search: None, segmentation_offload, batch };
    let end = |namespace: &Namespace, direction, open| {
        let mut config = config(direction, open, 1);
        config.interface = NIC.to_owned();
        config.address = InterfaceAddress { address: namespace.address, prefix: 24 };
        config.job.timing.duration = Span::from_millis(SECONDS * 1_000);
        config.job.traffic = Traffic::Datagram(datagram.clone());
        config.deadline = Span::from_millis(20_000);
        namespace.run(move || End::configured(config))
    };
    let mut listener = end(&namespaces[1], Direction::Receive, Open::Listen);
    let mut connector = end(&namespaces[0], Direction::Send, Open::Connect);
    let (address, nowhere) = (listener.ready(), connector.ready());
    listener.start(nowhere);
    connector.start(address);
    let rate = |end: End, of: fn(&toll_protocol::traffic::datagram::Report) -> u64| {
        let report = end.report();
        let datagrams = report.traffic.datagram().map(of).unwrap_or_else(|| fail("no datagrams"));
        datagrams as f64 / report.interval.seconds()
    };
    [rate(connector, |report| report.sent), rate(listener, |report| report.received)]
}

fn iperf3(namespaces: &[Namespace; 2]) -> Rates {
    let address = namespaces[1].address.to_string();
    let mut server = namespaces[1].run(|| {
        let mut iperf3 = Command::new("iperf3");
        iperf3.args(["--server", "--one-off", "--forceflush"]).stdout(Stdio::piped()).spawn().expect("iperf3")
    });
    // It says so once it listens.
    let mut stdout = std::io::BufReader::new(server.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        std::io::BufRead::read_line(&mut stdout, &mut line).expect("its words");
    }
    let output = namespaces[0].run(move || {
        let (length, time) = (SIZE.to_string(), SECONDS.to_string());
        let arguments =
            ["--client", &address, "--udp", "--bitrate", "0", "--length", &length, "--time", &time, "--json"];
        Command::new("iperf3").args(arguments).output().expect("iperf3")
    });
    std::io::copy(&mut stdout, &mut std::io::sink()).expect("its words");
    server.wait().expect("it ends");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("its report");
    let sum = &report["end"]["sum"];
    let number = |name: &str| sum[name].as_f64().unwrap_or_else(|| fail(&format!("{sum}")));
    let (packets, lost, seconds) = (number("packets"), number("lost_packets"), number("seconds"));
    [packets / seconds, (packets - lost) / seconds]
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() {
    if let Some(obstacle) = veth::obstacle() {
        fail(obstacle);
    }
    let namespaces = veth::pair();
    let names = ["GSO, GRO, batches of 64", "sendmmsg, recvmmsg of 64", "a system call each", "iperf3 --udp"];
    let mut rounds: [Vec<Rates>; 4] = Default::default();
    for _ in 0..ROUNDS {
        rounds[0].push(native(&namespaces, true, 64));
        rounds[1].push(native(&namespaces, false, 64));
        rounds[2].push(native(&namespaces, false, 1));
        rounds[3].push(iperf3(&namespaces));
    }
    println!("datagrams of {SIZE} bytes over veth, median of {ROUNDS} rounds of {SECONDS} s");
    println!("{:<26} {:>14} {:>14}", "", "sent/s", "received/s");
    let medians =
        rounds.map(|rates| [0, 1].map(|way| median(rates.iter().map(|rates| rates[way]).collect())));
    for (name, [sent, received]) in names.iter().zip(medians) {
        println!("{name:<26} {sent:>14.0} {received:>14.0}");
    }
    for (other, goal) in [(3, 2.0), (1, 1.3)] {
        let ratio = medians[0][1] / medians[other][1];
        println!("{} / {}: {ratio:.2} (goal {goal})", names[0], names[other]);
    }
}
