//! Transactions of `toll-endpoint` beside those of sockperf's ping-pong (Debian package sockperf), on one veth pair, in turns: a
//! closed loop of one transaction at a time, 64 B each way. Prints the median and the rate of both, and their ratios by rounds.
//!
//! ```sh
//! cargo build --release -p toll-endpoint --bins && cargo run --release -p toll-endpoint --example request_response
//! ```

#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../tests/support/wire.rs"]
mod wire;

use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use support::config;
use toll_protocol::child::EndpointConfig;
use toll_protocol::traffic::request_response::{Protocol, RequestResponse};
use toll_protocol::traffic::{Traffic, TrafficReport};
use toll_protocol::trial::{Direction, Open};
use toll_protocol::units::{Bytes, Span};
use wire::{Side, Wire};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 7;
const SECONDS: u64 = 2;
const SIZE: u64 = 64;

/// Median of the latency in microseconds, and transactions a second.
#[derive(Clone, Copy)]
struct Figures {
    p50: f64,
    rate: f64,
}

fn toll(wire: &Wire, protocol: Protocol) -> Result<Figures> {
    let end = |open| -> EndpointConfig {
        let mut config = config(Direction::Both, open, 1);
        config.job.timing.duration = Span::from_millis(SECONDS * 1_000);
        config.job.traffic = Traffic::RequestResponse(RequestResponse {
            protocol,
            request: Bytes(SIZE),
            response: Bytes(SIZE),
            ..RequestResponse::default()
        });
        config
    };
    let mut answering = wire.end(Side::Far, end(Open::Listen));
    let mut asking = wire.end(Side::Near, end(Open::Connect));
    let (address, nowhere) = (answering.ready(), asking.ready());
    answering.start(nowhere);
    asking.start(address);
    let report = asking.report();
    answering.report();
    let TrafficReport::RequestResponse(of) = &report.traffic else { return Err("another traffic".into()) };
    let percentiles = of.asked.as_ref().ok_or("nobody asked")?.latencies.percentiles();
    let rate = (report.received_bytes / SIZE) as f64 / report.interval.seconds();
    Ok(Figures { p50: percentiles.p50.0 as f64 / 1e3, rate })
}

fn sockperf(wire: &Wire, protocol: Protocol) -> Result<Figures> {
    let command = |what: &str| {
        let mut command = Command::new("sockperf");
        command.args([what, "-i", &Side::Far.address().to_string(), "-p", "11111"]);
        if protocol == Protocol::Tcp {
            command.arg("--tcp");
        }
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    };
    let mut server = wire.at(Side::Far, || command("server").stdout(Stdio::piped()).spawn())?;
    let said = BufReader::new(server.stdout.take().ok_or("no output")?);
    let listens =
        |line: &std::io::Result<String>| line.as_ref().is_ok_and(|line| line.contains("to block on socket"));
    said.lines().find(listens).ok_or("the server does not listen")??;
    let client = wire.at(Side::Near, || {
        let (size, seconds) = (SIZE.to_string(), SECONDS.to_string());
        command("ping-pong").args(["-m", &size, "-t", &seconds, "--full-rtt"]).output()
    });
    server.kill()?;
    server.wait()?;
    let text = String::from_utf8(client?.stdout)?;
    let after = |line: &str, word: &str| {
        let line = text.lines().find(|other| other.contains(line))?;
        let rest = line.split_once(word)?.1.trim_start_matches([' ', '=']);
        rest.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?.parse::<f64>().ok()
    };
    let p50 = after("percentile 50.000", "50.000").ok_or_else(|| text.clone())?;
    let messages = after("[Valid Duration]", "ReceivedMessages").ok_or_else(|| text.clone())?;
    let time = after("[Valid Duration]", "RunTime").ok_or_else(|| text.clone())?;
    Ok(Figures { p50, rate: messages / time })
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<()> {
    if let Some(obstacle) = wire::obstacle() {
        return Err(obstacle.into());
    }
    if cfg!(debug_assertions) {
        eprintln!("a debug build: its figures are not the product's");
    }
    let wire = Wire::new();
    println!(
        "{SIZE} B each way, one at a time, {ROUNDS} rounds of {SECONDS} s; medians, and [least-most] of the ratios"
    );
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            // In turns, so that what drifts is no advantage.
            let (toll, other) = if round % 2 == 0 {
                let toll = toll(&wire, protocol)?;
                (toll, sockperf(&wire, protocol)?)
            } else {
                let other = sockperf(&wire, protocol)?;
                (self::toll(&wire, protocol)?, other)
            };
            rounds.push((toll, other));
        }
        for (what, of, goal) in [
            ("p50 in us", (|figures: &Figures| figures.p50) as fn(&Figures) -> f64, "<= 1.0"),
            ("transactions/s", |figures: &Figures| figures.rate, ">= 1.0"),
        ] {
            let ratios: Vec<f64> = rounds.iter().map(|(toll, other)| of(toll) / of(other)).collect();
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let most = ratios.iter().copied().fold(0.0, f64::max);
            println!(
                "{protocol:?} {what:<14}  toll {:>9.2}  sockperf {:>9.2}  ratio {:.3} [{least:.3}-{most:.3}] goal {goal}",
                median(rounds.iter().map(|(toll, _)| of(toll)).collect()),
                median(rounds.iter().map(|(_, other)| of(other)).collect()),
                median(ratios),
            );
        }
    }
    Ok(())
}
