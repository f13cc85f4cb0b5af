//! The ways of single frames through an adapter, by stage: of a cell in the manner of the 2001 paper's breakdown, and of one
//! trial for `toll trace`.

use std::fmt::Write;

use toll_protocol::report::{EndReport, FrameStages, FrameWay, Stage};
use toll_protocol::result::{CampaignResult, CellResult, PaperArm, Run};
use toll_protocol::trial::Direction;

use super::{arm_of, path};
use crate::format;

/// Columns of the longest bar of a trace.
const BAR: f64 = 40.0;

/// A stage of the frames of a cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Which.
    pub stage: Stage,
    /// Mean of the frames that were noted.
    pub microseconds: f64,
    /// All frames' time in it as a share of the measured intervals; `None` where frames share it.
    pub share: Option<f64>,
    /// What the paper says of its own, for the arm that stands for it.
    pub paper: Option<&'static str>,
}

/// The frames that the arm's end of a cell sent, or those that it received.
#[derive(Debug, Clone, PartialEq)]
pub struct CellStages<'a> {
    /// The cell.
    pub cell: &'a CellResult,
    /// Which frames.
    pub way: Way,
    /// Frames that were noted in all runs.
    pub noted: u64,
    /// Their stages in the order of time.
    pub rows: Vec<Row>,
}

/// The way of frames through an adapter, seen from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Those that it sent.
    Sent,
    /// Those that it received.
    Received,
}

impl Way {
    const ALL: [Self; 2] = [Self::Sent, Self::Received];

    /// What became of them.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

/// A stage in words.
pub const fn describe(stage: Stage) -> &'static str {
    match stage {
        Stage::Held => "held back in the guest's ring: send combining",
        Stage::Turn => "exit, dispatch, and the frames before it",
        Stage::Adapter => "adapter: rings and descriptors",
        Stage::Port => "port: the host's kernel",
        Stage::Back => "adapter: the ring given back",
        Stage::Resume => "the frames behind it, until the guest goes on",
    }
}

/// Its name, as in result.json.
const fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Held => "held",
        Stage::Turn => "turn",
        Stage::Adapter => "adapter",
        Stage::Port => "port",
        Stage::Back => "back",
        Stage::Resume => "resume",
    }
}

/// The paper's text on its optimised virtual machine, which sends (USENIX 2001, section 4).
const fn paper(way: Way, stage: Stage) -> Option<&'static str> {
    match (way, stage) {
        (Way::Sent, Stage::Port) => Some("VMNet transmit: 17.9 %, 22.7 µs each"),
        (Way::Sent, Stage::Adapter) => Some("Lance transmit emulation: 1.8 %, 3.0 µs each"),
        (Way::Received, Stage::Port) => Some("VMNet receive: 2.5 %"),
        _ => None,
    }
}

fn of_end(end: &EndReport, way: Way) -> Option<(&FrameStages, u64)> {
    let frames = end.frames?;
    match way {
        Way::Sent => Some((end.transmit_stages.as_ref()?, frames.transmit_frames)),
        Way::Received => Some((end.receive_stages.as_ref()?, frames.receive_frames)),
    }
}

/// The stages of all cells in which frames were noted, those that were sent first.
pub fn of_campaign(result: &CampaignResult) -> Vec<CellStages<'_>> {
    result
        .cells
        .iter()
        .flat_map(|cell| Way::ALL.into_iter().filter_map(|way| of_cell(result, cell, way)))
        .collect()
}

fn of_cell<'a>(result: &CampaignResult, cell: &'a CellResult, way: Way) -> Option<CellStages<'a>> {
    let optimised = arm_of(result, cell).is_some_and(|arm| arm.paper == Some(PaperArm::Optimised))
        && cell.key.direction == Direction::Send;
    let (mut noted, mut interval) = (0, 0.0);
    let (mut times, mut of_all) = ([0.0; Stage::ALL.len()], [0.0; Stage::ALL.len()]);
    for end in cell.runs.iter().filter_map(|run| run.a.as_ref()) {
        let Some((stages, frames)) = of_end(end, way).filter(|(stages, _)| stages.noted > 0) else {
            continue;
        };
        noted += stages.noted;
        interval += end.interval.seconds();
        for (stage, time) in &stages.stages {
            times[*stage as usize] += time.seconds();
            of_all[*stage as usize] += time.seconds() / stages.noted as f64 * frames as f64;
        }
    }
    if noted == 0 || interval <= 0.0 {
        return None;
    }
    let row = |stage: Stage| Row {
        stage,
        microseconds: times[stage as usize] / noted as f64 * 1e6,
        share: stage.is_its_own().then(|| of_all[stage as usize] / interval),
        paper: paper(way, stage).filter(|_| optimised),
    };
    let rows = Stage::ALL.into_iter().filter(|stage| times[*stage as usize] > 0.0).map(row).collect();
    Some(CellStages { cell, way, noted, rows })
}

/// What `toll trace` prints of a trial: the way of a usual frame and of the slowest, both ways.
pub fn trace(cell: &CellResult, run: &Run) -> String {
    let key = &cell.key;
    let mut text = String::new();
    let goodput = run.goodput_bytes_per_second.map_or_else(|| format::ABSENT.to_owned(), format::rate);
    let _ = writeln!(
        text,
        "trial {}: {} {}, {}, block {}; {} ⇄ {}; {goodput}",
        run.trial,
        key.arm,
        path(cell),
        key.workload,
        run.block,
        key.pair.a,
        key.pair.b,
    );
    let mut any = false;
    for (host, end) in [(&key.pair.a, &run.a), (&key.pair.b, &run.b)] {
        for way in Way::ALL {
            let verb = way.verb();
            let Some((stages, _)) = end.as_ref().and_then(|end| of_end(end, way)) else { continue };
            any = true;
            for (which, frame) in [("a usual frame", &stages.usual), ("the slowest", &stages.slowest)] {
                let _ = writeln!(
                    text,
                    "\n{which} of {} noted that the end on {host} {verb}: number {}, {} bytes, {}",
                    format::count(stages.noted),
                    format::count(frame.frame),
                    format::count(frame.bytes),
                    format::seconds(frame.total().seconds()),
                );
                way_of(&mut text, frame);
            }
        }
    }
    if !any {
        let why = run.reason.as_deref().unwrap_or("its ends have no adapter of ours, or sent too few frames");
        let _ = writeln!(text, "\nno frame's way was noted: {why}");
    }
    text
}

/// The stages of a frame, each with when it began, how long it took, and a bar where it stands.
fn way_of(text: &mut String, frame: &FrameWay) {
    let total = frame.total().seconds().max(1e-12);
    let column = |seconds: f64| (seconds / total * BAR).round() as usize;
    let mut began = 0.0;
    for (stage, time) in &frame.stages {
        let seconds = time.seconds();
        let (from, to) = (column(began), column(began + seconds));
        let bar = "█".repeat(to - from);
        let bar = if bar.is_empty() { "▏".to_owned() } else { bar };
        let _ = writeln!(
            text,
            "  {:>9}  {:<8} {:>9}  {:<46} {}{bar}",
            format::seconds(began),
            name(*stage),
            format::seconds(seconds),
            describe(*stage),
            " ".repeat(from),
        );
        began += seconds;
    }
}

#[cfg(test)]
mod tests {
    use toll_protocol::units::Span;

    use super::*;
    use crate::summary::summarise;
    use crate::test_support;

    fn stages(noted: u64, port: u64) -> FrameStages {
        let way = |factor| FrameWay {
            frame: 1234,
            bytes: 1514,
            stages: [(Stage::Turn, 4_u64), (Stage::Port, 16), (Stage::Back, 0)]
                .map(|(stage, time)| (stage, Span(time * 1000 * factor)))
                .into(),
        };
        let stages = [(Stage::Turn, Span(noted * 4_000)), (Stage::Port, Span(noted * port))].into();
        FrameStages { noted, stages, usual: way(1), slowest: way(9) }
    }

    #[test]
    fn stages_of_a_cell_are_means_of_frames_and_shares_of_the_interval() {
        let (header, records) = test_support::campaign();
        let mut result = summarise(&header, &records, &[]).expect("belongs together");
        assert_eq!(of_campaign(&result), [], "nothing was noted");
        let cell = result
            .cells
            .iter_mut()
            .find(|cell| cell.key.arm == "virtio" && cell.key.direction == Direction::Send)
            .expect("a cell");
        let (mut share, mut runs) = (0.0, 0.0);
        for (index, run) in cell.runs.iter_mut().enumerate() {
            let Some(end) = &mut run.a else { continue };
            let port = if index == 0 { 10_000 } else { 20_000 };
            end.transmit_stages = Some(stages(if index == 0 { 300 } else { 100 }, port));
            let frames = end.frames.expect("virtual").transmit_frames;
            share += port as f64 / 1e9 * frames as f64 / end.interval.seconds();
            runs += 1.0;
        }
        let [found] = &of_campaign(&result)[..] else { panic!("one cell has stages") };
        assert_eq!((found.way, found.noted), (Way::Sent, 300 + 100 * (runs as u64 - 1)));
        let [turn, port] = &found.rows[..] else { panic!("{:?}", found.rows) };
        assert!((turn.microseconds - 4.0).abs() < 1e-9 && turn.share.is_none());
        let mean = (300.0 * 10.0 + 100.0 * 20.0 * (runs - 1.0)) / found.noted as f64;
        assert!((port.microseconds - mean).abs() < 1e-9, "{port:?} {mean}");
        assert!(port.share.is_some_and(|found| (found - share / runs).abs() < 1e-9));
        assert_eq!(port.paper, None, "the arm stands for none of the paper's");
        let html = crate::report::html::render(&result);
        assert!(html.contains("A frame's way") && html.contains(describe(Stage::Port)));
    }

    #[test]
    fn a_trace_shows_when_each_stage_began_and_what_it_took() {
        let (header, records) = test_support::campaign();
        let mut result = summarise(&header, &records, &[]).expect("belongs together");
        let cell = result.cells.iter_mut().find(|cell| cell.key.arm == "virtio").expect("a cell");
        let nothing = trace(cell, &cell.runs[0].clone());
        assert!(nothing.contains("no frame's way was noted"), "{nothing}");
        let run = {
            let run = cell.runs.iter_mut().find(|run| run.a.is_some()).expect("a run");
            run.a.as_mut().expect("measured").transmit_stages = Some(stages(50, 16_000));
            run.clone()
        };
        let text = trace(cell, &run);
        assert!(text.starts_with(&format!("trial {}: virtio", run.trial)), "{text}");
        let usual = text.find("a usual frame of 50 noted").expect("it is shown");
        let slowest = text.find("the slowest of 50 noted").expect("it is shown");
        assert!(usual < slowest);
        assert!(text.contains("number 1\u{202f}234, 1\u{202f}514 bytes, 20.0 µs"), "{text}");
        let port = text.lines().find(|line| line.contains(" port ")).expect("a line");
        assert!(port.contains("4.00 µs  port") && port.contains("16.0 µs"), "{port}");
        assert!(port.ends_with(&format!("{}{}", " ".repeat(8), "█".repeat(32))), "{port}");
        let back = text.lines().find(|line| line.contains(" back ")).expect("a line");
        assert!(back.ends_with('▏'), "{back}");
    }
}
