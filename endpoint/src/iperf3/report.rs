//! iperf3's JSON (`--json`, iperf 3.x, iperf_api.c `iperf_print_intermediate`): its reports every 100 ms are cut to
//! the measured interval.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Deserialize;
use toll_protocol::report::{EndReport, Flag, Sample};
use toll_protocol::traffic::{TrafficReport, stream};
use toll_protocol::trial::Direction;
use toll_protocol::units::Span;
use toll_protocol::validity;

use crate::clock::rounded;

/// Share of the interval, in percent, that the reports must cover.
const ENOUGH: u32 = 95;

/// Why a report gives no figure.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It is no JSON of iperf3's.
    #[error("it is malformed")]
    Malformed(#[from] serde_json::Error),
    /// A time in it is none.
    #[error("it has an interval from {start} s to {end} s")]
    Time {
        /// Where it starts.
        start: f64,
        /// Where it ends.
        end: f64,
    },
    /// It counts the other end's bytes.
    #[error("it counts bytes that were {}, and this end's part is to {expected}", if *.sender { "sent" } else { "received" })]
    Direction {
        /// Whether it says that it sends.
        sender: bool,
        /// This end's part.
        expected: Direction,
    },
    /// It ends too early.
    #[error("its intervals cover {covered} of the {duration} to measure")]
    Short {
        /// What they cover.
        covered: Span,
        /// The job's interval.
        duration: Span,
    },
}

#[derive(Debug, Deserialize)]
struct Report {
    #[serde(default)]
    intervals: Vec<Interval>,
}

#[derive(Debug, Deserialize)]
struct Interval {
    sum: Sum,
}

#[derive(Debug, Deserialize)]
struct Sum {
    /// Seconds since the start of the run.
    start: f64,
    end: f64,
    bytes: u64,
    retransmits: Option<u64>,
    sender: bool,
}

#[derive(Debug, Deserialize)]
struct Connections {
    #[serde(default)]
    start: Start,
}

#[derive(Debug, Default, Deserialize)]
struct Start {
    #[serde(default)]
    connected: Vec<Connected>,
}

#[derive(Debug, Deserialize)]
struct Connected {
    remote_host: String,
}

/// Who was at the other end of its connections, if that was not `peer` alone: iperf3 takes whoever comes first.
pub fn stranger(json: &[u8], peer: Ipv4Addr) -> Option<String> {
    let Connections { start } = serde_json::from_slice(json).ok()?;
    let others = start.connected.into_iter().map(|connected| connected.remote_host);
    others.into_iter().find(|host| host.parse() != Ok(peer)).map(|host| shortened(&host))
}

/// Characters that are kept of a line of iperf3's: a peer may have put words into it.
const LONGEST_LINE: usize = 256;

/// A line, or its beginning.
pub fn shortened(line: &str) -> String {
    match line.char_indices().nth(LONGEST_LINE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[derive(Debug, Deserialize)]
struct ErrorReport {
    error: Option<String>,
}

/// The error that a report tells of, if it does.
pub fn error(json: &[u8]) -> Option<String> {
    serde_json::from_slice::<ErrorReport>(json).ok()?.error.map(|said| shortened(&said))
}

/// Bytes that were sent, and received, by an end whose payload goes one way.
const fn ways(direction: Direction, bytes: u64) -> (u64, u64) {
    if direction.sends() { (bytes, 0) } else { (0, bytes) }
}

/// The figures of the interval that begins `warm_up` after the start of the run.
///
/// # Errors
/// [`ReportError`].
pub fn parse(
    json: &[u8],
    direction: Direction,
    warm_up: Duration,
    duration: Duration,
) -> Result<EndReport, ReportError> {
    let report: Report = serde_json::from_slice(json)?;
    let (mut bytes, mut retransmits) = (0_u64, Some(0_u64));
    let (mut begin, mut covered) = (None, Duration::ZERO);
    let mut samples: Vec<Sample> = Vec::new();
    for Interval { sum } in &report.intervals {
        let time = |seconds| Duration::try_from_secs_f64(seconds).ok();
        let Some((start, end)) = time(sum.start).zip(time(sum.end)).filter(|(start, end)| start <= end)
        else {
            return Err(ReportError::Time { start: sum.start, end: sum.end });
        };
        // A report belongs to the interval if its middle lies in it, however short it is: after a late one, iperf3's
        // timer (timer.c) fires early, and the bytes of that short step count as any others.
        let middle = start + (end - start) / 2;
        if middle < warm_up || middle >= warm_up + duration {
            continue;
        }
        if sum.sender != (direction == Direction::Send) {
            return Err(ReportError::Direction { sender: sum.sender, expected: direction });
        }
        bytes = bytes.saturating_add(sum.bytes);
        retransmits = retransmits.zip(sum.retransmits).map(|(sum, more)| sum.saturating_add(more));
        covered = end.saturating_sub(*begin.get_or_insert(start));
        let (sent_bytes, received_bytes) = ways(direction, bytes);
        let sample = Sample { at: covered.into(), sent_bytes, received_bytes };
        match samples.last_mut() {
            // A report of no length is more of the moment before it.
            Some(last) if last.at >= sample.at => *last = sample,
            _ => samples.push(sample),
        }
    }
    if covered < duration / 100 * ENOUGH {
        return Err(ReportError::Short { covered: rounded(covered), duration: duration.into() });
    }
    let mut flags = Vec::new();
    if retransmits.is_some_and(|count| count > 0) {
        flags.push(Flag::Retransmits);
    }
    if direction == Direction::Receive && validity::stands_still(&samples, covered.into(), bytes) {
        flags.push(Flag::Stalled);
    }
    let (sent_bytes, received_bytes) = ways(direction, bytes);
    Ok(EndReport {
        sent_bytes,
        received_bytes,
        samples,
        flags,
        ..EndReport::new(TrafficReport::Stream(stream::Report::default()), covered.into())
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// As iperf 3.12 writes it, with its jitter, without the fields that are not read.
    fn json(steps: u32, sender: bool, retransmits_in: Option<u32>) -> String {
        let mut text = String::from(r#"{"start": {"version": "iperf 3.12"}, "intervals": ["#);
        for step in 0..steps {
            let start = f64::from(step) * 0.1 + if step > 0 { 0.000_017 } else { 0.0 };
            let end = f64::from(step + 1) * 0.1 + 0.000_017;
            let comma = if step > 0 { "," } else { "" };
            let bytes = 1_000 + u64::from(step);
            let retransmits = match (sender, retransmits_in) {
                (false, _) => String::new(),
                (true, at) => format!(r#""retransmits": {},"#, u8::from(at == Some(step))),
            };
            let sum = format!(
                r#""start": {start}, "end": {end}, "seconds": 0.1, "bytes": {bytes}, {retransmits} "omitted": false, "sender": {sender}"#
            );
            write!(text, r#"{comma}{{"streams": [], "sum": {{{sum}}}}}"#).expect("written");
        }
        text + r#"], "end": {"sum_sent": {}, "sum_received": {}}}"#
    }

    const WARM_UP: Duration = Duration::from_millis(500);
    const DURATION: Duration = Duration::from_millis(2_000);

    #[test]
    fn the_interval_is_cut_out_of_the_run() {
        let report =
            parse(json(30, false, None).as_bytes(), Direction::Receive, WARM_UP, DURATION).expect("parses");
        assert_eq!(report.samples.len(), 20);
        assert_eq!(report.bytes(), (5..25).map(|step| 1_000 + step).sum::<u64>());
        assert_eq!(report.interval, Span::from_millis(2_000));
        assert_eq!(report.cpu.host, None);
        assert_eq!(report.flags, []);
    }

    #[test]
    fn a_short_step_after_a_late_one_is_not_lost() {
        let step = |start: f64, end: f64, bytes: u64| {
            format!(r#"{{"sum": {{"start": {start}, "end": {end}, "bytes": {bytes}, "sender": false}}}}"#)
        };
        let steps = [step(0.0, 0.1, 100), step(0.1, 0.27, 170), step(0.27, 0.3, 30), step(0.3, 0.3, 5)];
        let json = format!(r#"{{"intervals": [{}]}}"#, steps.join(", "));
        let whole = Duration::from_millis(400);
        assert!(parse(json.as_bytes(), Direction::Receive, Duration::ZERO, whole).is_err(), "covers 300 ms");
        let whole = Duration::from_millis(301);
        let report = parse(json.as_bytes(), Direction::Receive, Duration::ZERO, whole).expect("parses");
        assert_eq!((report.bytes(), report.interval), (305, Span::from_millis(300)));
        let at: Vec<_> = report.samples.iter().map(|sample| (sample.at, sample.bytes())).collect();
        let ms = Span::from_millis;
        assert_eq!(at, [(ms(100), 100), (ms(270), 270), (ms(300), 305)]);
    }

    #[test]
    fn retransmissions_count_inside_the_interval_only() {
        let flags = |step| {
            let json = json(30, true, Some(step));
            parse(json.as_bytes(), Direction::Send, WARM_UP, DURATION).expect("parses").flags
        };
        assert_eq!(flags(10), [Flag::Retransmits]);
        assert_eq!(flags(4), []);
        assert_eq!(flags(25), []);
    }

    #[test]
    fn a_receiver_whose_steps_bring_nothing_stood_still() {
        let flags = |silent: std::ops::Range<u32>| {
            let mut json = json(30, false, None);
            for step in silent {
                json = json.replace(&format!(r#""bytes": {}"#, 1_000 + step), r#""bytes": 0"#);
            }
            parse(json.as_bytes(), Direction::Receive, WARM_UP, DURATION).expect("parses").flags
        };
        assert_eq!(flags(10..11), []);
        assert_eq!(flags(10..12), [Flag::Stalled]);
        assert_eq!(flags(2..6), [], "in the warm-up but for one step");
    }

    #[test]
    fn a_report_that_is_short_or_of_the_other_end_is_no_figure() {
        let short = parse(json(20, false, None).as_bytes(), Direction::Receive, WARM_UP, DURATION);
        assert!(matches!(short, Err(ReportError::Short { .. })), "{short:?}");
        let other = parse(json(30, true, None).as_bytes(), Direction::Receive, WARM_UP, DURATION);
        let said = other.expect_err("the other end's").to_string();
        assert_eq!(said, "it counts bytes that were sent, and this end's part is to receive");
        assert!(matches!(parse(b"", Direction::Send, WARM_UP, DURATION), Err(ReportError::Malformed(_))));
        let time = br#"{"intervals": [{"sum": {"start": -1, "end": 0, "bytes": 1, "sender": true}}]}"#;
        assert!(matches!(parse(time, Direction::Send, WARM_UP, DURATION), Err(ReportError::Time { .. })));
    }

    #[test]
    fn a_stranger_at_the_other_end_is_found() {
        let json = |hosts: &[&str]| {
            let connected = |host: &&str| {
                format!(r#"{{"socket": 5, "local_host": "10.0.0.1", "remote_host": "{host}"}}"#)
            };
            let connected: Vec<String> = hosts.iter().map(connected).collect();
            format!(r#"{{"start": {{"connected": [{}]}}, "intervals": []}}"#, connected.join(", "))
        };
        let peer = Ipv4Addr::new(10, 0, 0, 2);
        assert_eq!(stranger(json(&["10.0.0.2"]).as_bytes(), peer), None);
        assert_eq!(stranger(json(&[]).as_bytes(), peer), None);
        assert_eq!(stranger(json(&["10.0.0.2", "10.0.0.3"]).as_bytes(), peer).as_deref(), Some("10.0.0.3"));
        assert_eq!(stranger(json(&["\\u001b[31m"]).as_bytes(), peer).as_deref(), Some("\u{1b}[31m"));
    }

    #[test]
    fn an_error_is_found_in_the_report() {
        let json = br#"{"start": {}, "intervals": [], "end": {}, "error": "unable to connect to server: Connection refused"}"#;
        assert_eq!(error(json).as_deref(), Some("unable to connect to server: Connection refused"));
        assert_eq!(error(br#"{"start": {}}"#), None);
        assert_eq!(error(b"nonsense"), None);
        let long = format!(r#"{{"error": "{}"}}"#, "é".repeat(10_000));
        let said = error(long.as_bytes()).expect("is told");
        assert_eq!(said, format!("{}…", "é".repeat(LONGEST_LINE)));
    }
}
