//! Quick figures of one virtual end against the kernel's TCP over a TAP, in a network namespace of its own:
//! `cargo run --release -p toll-vmm --example bench [SECONDS [ONLY [PROGRAM]]]`, `toll-vmm` built before.
//! ONLY is part of the names of those that run.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use support::{Transfer, enter_namespace, transfer};
use toll_protocol::engine::Engine;
use toll_protocol::trial::{Adapter, Direction, PcnetSwitches, SendCombining, VirtioNetSwitches};

/// pcnet in the order of the paper, then with a larger threshold, and virtio-net with one switch more each time.
fn adapters(engine: Engine) -> Vec<Adapter> {
    let combining = |threshold| Some(SendCombining { threshold, ..SendCombining::default() });
    let plain = PcnetSwitches::OFF;
    let in_kernel = PcnetSwitches { io_in_kernel: engine.traits().guest, ..plain };
    let combined = PcnetSwitches { send_combining: combining(3), ..in_kernel };
    let notified = PcnetSwitches { irq_notification: true, ..combined };
    let longer = PcnetSwitches { send_combining: combining(12), ..notified };
    let off = VirtioNetSwitches::default();
    let checksum = VirtioNetSwitches { checksum_offload: true, ..off };
    let tso = VirtioNetSwitches { tso: true, ..checksum };
    let mergeable = VirtioNetSwitches { mergeable_buffers: true, ..tso };
    let events = VirtioNetSwitches { event_index: true, ..mergeable };
    let joined = VirtioNetSwitches { segment_combining: true, ..off };
    let joined_checksum = VirtioNetSwitches { segment_combining: true, ..checksum };
    let thread = VirtioNetSwitches { io_thread: true, ..mergeable };
    let all = VirtioNetSwitches { segment_combining: true, event_index: true, ..thread };
    let joined_thread = VirtioNetSwitches { io_thread: true, ..joined_checksum };
    let virtio = [thread, all, joined_thread, off, joined, checksum, joined_checksum, tso, mergeable, events]
        .map(Adapter::VirtioNet);
    [plain, in_kernel, combined, notified, longer].map(Adapter::Pcnet).into_iter().chain(virtio).collect()
}

fn described(adapter: &Adapter) -> String {
    match &adapter.switches()[..] {
        [] => adapter.to_string(),
        [only] => format!("{adapter} {only}"),
        [first, .., last] => format!("{adapter} {first}..{last}"),
    }
}

fn main() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let seconds: f64 =
        arguments.next().map_or(Ok(1.0), |text| text.parse()).map_err(|error| format!("{error}"))?;
    let only = arguments.next().unwrap_or_default();
    let beside = std::env::current_exe().map_err(|error| error.to_string())?;
    let beside =
        beside.parent().and_then(|examples| examples.parent()).map(|profile| profile.join("toll-vmm"));
    let program = arguments.next().map(Into::into).or(beside).ok_or("where is toll-vmm?")?;
    enter_namespace()?;
    println!(
        "{:<46} {:>7} {:>9} {:>9} {:>8} {:>22} {:>8}",
        "end", "Gb/s", "exits/fr", "frames/s", "us/exit", "CPU s/GB guest/vmm/host", "first ms"
    );
    let mut number = 0;
    for engine in [Engine::Payload, Engine::SameStack] {
        for adapter in adapters(engine) {
            for direction in [Direction::Send, Direction::Receive] {
                number += 1;
                let name = format!("{engine:?} {} {direction}s", described(&adapter));
                if !name.contains(&only) {
                    continue;
                }
                let case = Transfer {
                    engine,
                    adapter: adapter.clone(),
                    direction,
                    warm_up: Duration::from_millis(200),
                    duration: Duration::from_secs_f64(seconds),
                    cpu: Some(0),
                    memory: 64 << 20,
                    ..Transfer::number(number)
                };
                let report = transfer(&program.to_string_lossy(), &case)?.report;
                let interval = report.interval.seconds();
                let gigabytes = report.bytes() as f64 / 1e9;
                let frames = report.frames.unwrap_or_default();
                let carried = frames.transmit_frames.max(frames.receive_frames).max(1) as f64;
                let exits = report.exits.as_ref();
                let per_exit = |total: u64| {
                    report.cpu.guest.map_or(0.0, |guest| guest.seconds() * 1e6 / total.max(1) as f64)
                };
                let cpu = [report.cpu.guest, report.cpu.vmm, report.cpu.host]
                    .map(|part| part.map_or("-".into(), |part| format!("{:.2}", part.seconds() / gigabytes)));
                println!(
                    "{:<46} {:>7.3} {:>9.2} {:>9.0} {:>8.1} {:>22} {:>8.2}  {:?}",
                    name,
                    gigabytes * 8.0 / interval,
                    exits.map_or(0.0, |exits| exits.total() as f64 / carried),
                    carried / interval,
                    exits.map_or(0.0, |exits| per_exit(exits.total())),
                    cpu.join("/"),
                    report.start_to_first_frame.map_or(0.0, |span| span.seconds() * 1e3),
                    report.flags,
                );
                if std::env::var_os("TOLL_BENCH_EXITS").is_some() {
                    for (cause, stat) in exits.into_iter().flat_map(|exits| &exits.by_cause) {
                        let each = stat.handling.seconds() * 1e6 / stat.count as f64;
                        println!("    {cause:<28} {:>9} {each:>8.2} us", stat.count);
                    }
                    println!("    {frames:?} {:?}", report.spared);
                }
            }
        }
    }
    Ok(())
}
