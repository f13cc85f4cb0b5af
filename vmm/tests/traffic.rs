//! `toll-vmm` as an agent runs it: whole TCP transfers over a TAP in a network namespace of the test's own, and
//! what becomes of bad configurations, messages out of turn, deadlines and an agent that goes away.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{
    PATIENCE, Transfer, Vmm, bring_up, check, disturbed_transfer, enter_namespace, expect, failure, transfer,
};
use toll_protocol::child::{ChildCommand, ChildEvent, VmmPort};
use toll_protocol::engine::Engine;
use toll_protocol::report::{EndReport, Flag, Stage};
use toll_protocol::traffic::Traffic;
use toll_protocol::traffic::stream::Stream;
use toll_protocol::trial::{
    Adapter, Direction, Open, PcnetSwitches, QueuePairs, SendCombining, VirtioNetSwitches,
};
use toll_protocol::units::{Bytes, Span};
use toll_protocol::validity;

const PROGRAM: &str = env!("CARGO_BIN_EXE_toll-vmm");

fn case(number: u8) -> Transfer {
    Transfer::number(number)
}

/// A transfer whose report must be whole and agree with the kernel's own count.
fn transfers(case: &Transfer) -> Result<(), Failed> {
    let done = transfer(PROGRAM, case)?;
    let report = &done.report;
    check(report.bytes() > 0 && report.bytes() <= done.kernel_bytes, &(report.bytes(), done.kernel_bytes))?;
    // A program looks at its clock between turns, and a turn of pcnet sends a whole window, exit by exit.
    check(
        report.interval.duration().saturating_sub(case.duration) < Duration::from_millis(200),
        &report.interval,
    )?;
    check(report.interval.duration() + Duration::from_millis(5) >= case.duration, &report.interval)?;
    check(done.samples.len() >= 3 && report.samples == done.samples, &done.samples)?;
    check(done.samples.is_sorted_by_key(|sample| (sample.at, sample.bytes())), &done.samples)?;
    let frames = report.frames.ok_or("a virtual adapter counts frames")?;
    check(frames.guest_errors == 0, &frames)?;
    let carried =
        if case.direction == Direction::Send { frames.transmit_bytes } else { frames.receive_bytes };
    check(carried.saturating_add(case.memory) > report.bytes(), &frames)?;
    check(report.start_to_first_frame.is_some(), report)?;
    // The guest has written more than that of its own by then: a megabyte of its arena is there from the start.
    check(report.overhead.is_some_and(|beside| (1..1 << 20).contains(&beside.0)), &report.overhead)?;
    let guest = case.engine == Engine::Payload;
    check(report.exits.is_some() == guest, &report.exits)?;
    if let Some(exits) = &report.exits {
        check(exits.total() > 0 && exits.kvm_userspace == Some(exits.total()), exits)?;
        check(!report.flags.contains(&Flag::ExitCountMismatch), &report.flags)?;
        if matches!(case.adapter, Adapter::Pcnet(_)) {
            handlers_account_for_every_access(report)?;
        }
    }
    parts_add_up(report, case.engine, false)?;
    frames_were_noted(report, case.direction)?;
    let name = if guest { "vcpu0" } else { "payload" };
    let thread = report.threads.iter().find(|thread| thread.name == name).ok_or("the thread is reported")?;
    let parts = [report.cpu.guest, report.cpu.vmm, report.cpu.host].into_iter().flatten().map(|span| span.0);
    check(parts.sum::<u64>() == thread.total.0 && thread.total.0 > 0, report)
}

/// Each thread's parts add up to the interval, within 1 %, and each thread is there.
fn parts_add_up(report: &EndReport, engine: Engine, io_thread: bool) -> Result<(), Failed> {
    let name = if engine == Engine::Payload { "vcpu0" } else { "payload" };
    let names: Vec<&str> = report.times.iter().map(|thread| thread.name.as_str()).collect();
    let expected = if io_thread { vec![name, "io0"] } else { vec![name] };
    check(names == expected, &names)?;
    for thread in &report.times {
        check((0.99..=1.01).contains(&thread.share()), &(thread.share(), thread))?;
        // A thread that is the limit never sleeps.
        check(thread.parts.values().filter(|part| part.0 > 0).count() > 1, thread)?;
    }
    Ok(())
}

/// The ways of some frames were noted, in the direction of the payload, and their stages are parts of the interval.
fn frames_were_noted(report: &EndReport, direction: Direction) -> Result<(), Failed> {
    let frames = report.frames.ok_or("a virtual adapter counts frames")?;
    let stages = if direction.sends() { &report.transmit_stages } else { &report.receive_stages };
    let (noted, frames) = (stages, frames.of_payload(direction));
    // One of 128 is noted for sure, if the calls of the port are as many as the frames.
    let Some(noted) = noted else { return check(frames < 10_000, &(frames, "none was noted")) };
    check(noted.noted > 0 && noted.noted <= frames, &(noted, frames))?;
    for stage in [Stage::Turn, Stage::Adapter, Stage::Port, Stage::Back, Stage::Resume] {
        check(noted.stages.get(&stage).is_some_and(|time| time.0 > 0), &(stage, noted))?;
    }
    let own: u64 = noted.stages.iter().filter(|(stage, _)| stage.is_its_own()).map(|(_, time)| time.0).sum();
    // Each stage is whole nanoseconds, so that two frames which took the same may differ by as many as there are stages.
    let rounding = Stage::ALL.len() as u64;
    check(own < report.interval.0 && noted.usual.total().0 <= noted.slowest.total().0 + rounding, noted)
}

/// Interrupts of the traffic program come through the gate, each to one run of the driver's handler: what the handler
/// and the sender access adds up. With S frames sent, H runs and A acknowledgements: RDP is written S+A+H and read A+H
/// times, RAP is read H times and written S+2A+3H.
fn handlers_account_for_every_access(report: &EndReport) -> Result<(), Failed> {
    let exits = report.exits.as_ref().ok_or("a guest has exits")?;
    let frames = report.frames.ok_or("a virtual adapter counts frames")?;
    let count = |cause: &str| exits.by_cause.get(cause).map_or(0, |stat| stat.count);
    let (rap_writes, runs) = (count("pio-write rap"), count("pio-read rap"));
    let (rdp_writes, rdp_reads) = (count("pio-write rdp"), count("pio-read rdp"));
    let sent = frames.transmit_frames + frames.transmit_drops;
    check(rdp_writes - rdp_reads == sent, &(exits, frames))?;
    let acknowledged = rdp_reads - runs;
    check(rap_writes == sent + 2 * acknowledged + 3 * runs, &(exits, frames))?;
    // One may be on its way at either end of the interval.
    check(runs.abs_diff(frames.interrupts) <= 1 && runs > 0, &(exits, frames))
}

/// The paper's optimisations one by one and together: the stream is the same, and the counters say what each spared.
fn optimisations(engine: Engine, direction: Direction, number: u8) -> Result<(), Failed> {
    let combining = SendCombining { tick: Span::from_millis(1), ..SendCombining::default() };
    let off = PcnetSwitches::OFF;
    let all = PcnetSwitches {
        io_in_kernel: engine.traits().guest,
        send_combining: Some(combining),
        irq_notification: true,
    };
    for switches in [
        PcnetSwitches { io_in_kernel: all.io_in_kernel, ..off },
        PcnetSwitches { send_combining: all.send_combining, ..off },
        PcnetSwitches { irq_notification: true, ..off },
        all,
    ] {
        let case = Transfer { engine, adapter: Adapter::Pcnet(switches), direction, ..case(number) };
        if switches == off {
            continue;
        }
        let done = transfer(PROGRAM, &case)?;
        let report = &done.report;
        check(report.bytes() > 0 && report.bytes() <= done.kernel_bytes, report)?;
        parts_add_up(report, engine, false)?;
        let spared = report.spared.ok_or("what was spared is reported")?;
        let frames = report.frames.ok_or("a virtual adapter counts frames")?;
        check(frames.guest_errors == 0, &frames)?;
        if let Some(exits) = &report.exits {
            check(exits.kvm_userspace == Some(exits.total()), exits)?;
            let by = |cause: &str| exits.by_cause.get(cause).map_or(0, |stat| stat.count);
            if switches.io_in_kernel {
                check(by("pio-write rap") == 0 && spared.exits > by("pio-write rdp"), &(exits, spared))?;
            } else {
                check(by("pio-write rap") > by("pio-write rdp") && spared.exits == 0, &(exits, spared))?;
            }
        }
        let transmissions: u64 = spared.combined.iter().sum();
        let together: u64 = spared.combined[1..].iter().sum();
        if switches.send_combining.is_none() {
            check(transmissions == 0, &spared)?;
        } else if direction == Direction::Send {
            check(together > 0 && transmissions < frames.transmit_frames, &(spared, frames))?;
            if let Some(noted) = &report.transmit_stages {
                check(noted.stages.contains_key(&Stage::Held), noted)?;
            }
        }
        // A receiver's port is hardly ever empty when it looks.
        let looked = spared.looks > 0 || direction == Direction::Receive;
        check(if switches.irq_notification { looked } else { spared.looks == 0 }, &(switches, spared))?;
    }
    Ok(())
}

/// Combinations of switches that virtio 1.2, 5.1.3.1 allows, but for none.
fn combinations() -> impl Iterator<Item = VirtioNetSwitches> {
    let all = (1..64).map(|bits| VirtioNetSwitches {
        checksum_offload: bits & 1 != 0,
        tso: bits & 2 != 0,
        mergeable_buffers: bits & 4 != 0,
        event_index: bits & 8 != 0,
        segment_combining: bits & 16 != 0,
        io_thread: bits & 32 != 0,
        ..VirtioNetSwitches::OFF
    });
    // Those of the driver in all combinations; what the device does of its own accord with none of them and with all.
    let ours = |switches: &VirtioNetSwitches| switches.segment_combining || switches.io_thread;
    let others = |switches: &VirtioNetSwitches| {
        let VirtioNetSwitches { checksum_offload, tso, mergeable_buffers, event_index, .. } = *switches;
        [checksum_offload, tso, mergeable_buffers, event_index]
    };
    all.filter(|switches| switches.checksum_offload || !switches.tso).filter(move |switches| {
        !ours(switches) || matches!(others(switches), [true, true, true, true] | [false, false, false, false])
    })
}

/// Several queue pairs, and so the control queue, with nothing else and with all else.
fn commanded() -> impl Iterator<Item = VirtioNetSwitches> {
    let off = VirtioNetSwitches { control_queue: true, ..VirtioNetSwitches::OFF };
    let all = VirtioNetSwitches {
        checksum_offload: true,
        tso: true,
        mergeable_buffers: true,
        event_index: true,
        ..off
    };
    let threaded = VirtioNetSwitches { io_thread: true, ..all };
    [(off, 2), (all, 2), (all, 8), (threaded, 2)].into_iter().filter_map(|(switches, count)| {
        Some(VirtioNetSwitches { queue_pairs: QueuePairs::new(count)?, ..switches })
    })
}

/// A transfer of which the kernel looks at every byte that it receives.
fn offloads(case: &Transfer, switches: VirtioNetSwitches) -> Result<(), Failed> {
    let report = transfer(PROGRAM, case)?.report;
    parts_add_up(&report, case.engine, switches.io_thread)?;
    frames_were_noted(&report, case.direction)?;
    let frames = report.frames.ok_or("a virtual adapter counts frames")?;
    check(
        frames.guest_errors == 0
            && (frames.interrupts == 0 || switches.io_thread)
            && report.bytes() > 100_000,
        &report,
    )?;
    let bytes = if case.direction.sends() { frames.transmit_bytes } else { frames.receive_bytes };
    let count = frames.of_payload(case.direction);
    // With segmentation frames are longer than the path's, without it they are not.
    check((bytes / count.max(1) > 1514) == switches.tso, &frames)
}

fn a_bad_configuration_is_refused() -> Result<(), Failed> {
    let mut config = case(101).config();
    config.job.traffic = Traffic::Stream(Stream { write_size: Bytes(0), ..Stream::default() });
    let mut vmm = Vmm::spawn(PROGRAM)?;
    vmm.send(&ChildCommand::Configure(config))?;
    let failure = failure(&mut vmm)?;
    check(failure.reason.contains("the write size is 0B: from 1B to 1MiB is possible"), &failure)?;
    check(!vmm.wait()?, &"it ends with an error")
}

fn a_cpu_that_there_is_not_is_named() -> Result<(), Failed> {
    let mut config = case(105).config();
    (config.engine, config.cpu) = (Engine::SameStack, Some(4000));
    let mut vmm = Vmm::spawn(PROGRAM)?;
    vmm.send(&ChildCommand::Configure(config))?;
    expect(&mut vmm, |event| matches!(event, ChildEvent::PortOpened).then_some(()))?;
    vmm.send(&ChildCommand::PortAttached)?;
    let failure = failure(&mut vmm)?;
    check(failure.reason.contains("the thread payload could not be pinned to CPU 4000"), &failure)?;
    let switches = VirtioNetSwitches { io_thread: true, ..VirtioNetSwitches::OFF };
    let mut config = case(109).config();
    (config.engine, config.io_cpu) = (Engine::SameStack, Some(4001));
    config.adapter = Adapter::VirtioNet(switches);
    let mut vmm = Vmm::spawn(PROGRAM)?;
    vmm.send(&ChildCommand::Configure(config))?;
    expect(&mut vmm, |event| matches!(event, ChildEvent::PortOpened).then_some(()))?;
    vmm.send(&ChildCommand::PortAttached)?;
    let words = self::failure(&mut vmm)?;
    check(words.reason.contains("the thread io0 could not be pinned to CPU 4001"), &words)
}

fn messages_out_of_turn_and_garbage_are_refused() -> Result<(), Failed> {
    let mut vmm = Vmm::spawn(PROGRAM)?;
    vmm.send(&ChildCommand::PortAttached)?;
    let words = failure(&mut vmm)?;
    check(words.reason.contains("PortAttached where Configure was due"), &words)?;
    let mut vmm = Vmm::spawn(PROGRAM)?;
    vmm.send_bytes(&[0, 0, 0, 2, b'{', b'{'])?;
    let words = failure(&mut vmm)?;
    check(words.reason.contains("no message"), &words)?;
    let mut vmm = Vmm::spawn(PROGRAM)?;
    vmm.send_bytes(&[0xff; 4])?;
    let words = failure(&mut vmm)?;
    check(words.reason.contains("no message"), &words)
}

fn a_tap_name_that_is_taken_is_refused() -> Result<(), Failed> {
    let mut config = case(102).config();
    config.port = VmmPort::Tap { name: "lo".into() };
    let mut vmm = Vmm::spawn(PROGRAM)?;
    vmm.send(&ChildCommand::Configure(config))?;
    let failure = failure(&mut vmm)?;
    check(failure.reason.contains("no port") && failure.reason.contains("`lo`"), &failure)
}

fn nobody_connects_before_the_deadline(engine: Engine) -> Result<(), Failed> {
    let mut config = case(103).config();
    (config.engine, config.job.open, config.deadline) = (engine, Open::Listen, Span::from_millis(700));
    let mut vmm = Vmm::spawn(PROGRAM)?;
    vmm.send(&ChildCommand::Configure(config))?;
    expect(&mut vmm, |event| matches!(event, ChildEvent::PortOpened).then_some(()))?;
    vmm.send(&ChildCommand::PortAttached)?;
    expect(&mut vmm, |event| matches!(event, ChildEvent::Ready(_)).then_some(()))?;
    vmm.send(&ChildCommand::Start { peer: "10.77.103.1:1".parse()? })?;
    let failure = failure(&mut vmm)?;
    check(failure.reason.starts_with("the end was not done 700ms after Start"), &failure)?;
    check(
        engine == Engine::SameStack || failure.last_words.iter().any(|line| line.contains("wait")),
        &failure,
    )?;
    check(!vmm.wait()?, &"it ends with an error")
}

/// A peer that opens the connection, sends a byte and then nothing.
fn an_interval_without_payload_is_no_figure() -> Result<(), Failed> {
    let case = Transfer { engine: Engine::SameStack, ..case(106) };
    let mut config = case.config();
    (config.job.open, config.job.direction) = (Open::Listen, Direction::Receive);
    let mut vmm = Vmm::spawn(PROGRAM)?;
    vmm.send(&ChildCommand::Configure(config.clone()))?;
    expect(&mut vmm, |event| matches!(event, ChildEvent::PortOpened).then_some(()))?;
    bring_up(config.port.interface().ok_or("a TAP")?, case.host_address(), case.mtu)?;
    vmm.send(&ChildCommand::PortAttached)?;
    let address = expect(&mut vmm, |event| match event {
        ChildEvent::Ready(ready) => Some(ready.address),
        _ => None,
    })?;
    vmm.send(&ChildCommand::Start { peer: "10.77.106.1:1".parse()? })?;
    let mut stream = TcpStream::connect_timeout(&address.into(), PATIENCE)?;
    stream.write_all(b"!")?;
    // The program half-closes when its interval is over.
    std::io::copy(&mut stream, &mut std::io::sink())?;
    drop(stream);
    let report = loop {
        match vmm.event()? {
            ChildEvent::Sample(_) => {}
            ChildEvent::Done(report) => break report,
            other => return Err(format!("{other:?}").into()),
        }
    };
    let failure = validity::no_figure(Direction::Receive, &report).ok_or("a failure")?;
    check(failure.reason.starts_with("no payload arrived in the measured interval of 40"), &failure)
}

/// A guest whose VMM is stopped by SIGSTOP for 400 ms of its interval, as a receiver and as a sender.
fn a_guest_stopped_for_a_while_is_flagged_at_the_receiver(direction: Direction) -> Result<(), Failed> {
    let number = if direction == Direction::Send { 107 } else { 108 };
    let case = Transfer { direction, duration: Duration::from_millis(1_000), ..case(number) };
    let done = disturbed_transfer(PROGRAM, &case, |vmm, samples| {
        if samples == 2 {
            let process = Pid::from_raw(vmm.pid());
            kill(process, Signal::SIGSTOP)?;
            let quiet = vmm.is_quiet_for(Duration::from_millis(400));
            kill(process, Signal::SIGCONT)?;
            if !quiet? {
                return Err(std::io::Error::other("a stopped process spoke"));
            }
        }
        Ok(())
    })?;
    // A sender's standstill is its peer's to tell.
    check(done.report.flags.contains(&Flag::Stalled) == (direction == Direction::Receive), &done.report)
}

fn an_agent_that_goes_away_ends_the_process() -> Result<(), Failed> {
    let vmm = Vmm::spawn(PROGRAM)?;
    let (took, well) = vmm.hang_up()?;
    check(!well && took < Duration::from_secs(2), &took)?;
    // A running guest is no reason to stay.
    let mut vmm = Vmm::spawn(PROGRAM)?;
    vmm.send(&ChildCommand::Configure(case(104).config()))?;
    expect(&mut vmm, |event| matches!(event, ChildEvent::PortOpened).then_some(()))?;
    vmm.send(&ChildCommand::PortAttached)?;
    expect(&mut vmm, |event| matches!(event, ChildEvent::Ready(_)).then_some(()))?;
    let (took, well) = vmm.hang_up()?;
    check(!well && took < Duration::from_secs(2), &took)
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Transfers are CPU-bound: two at once would only measure each other.
    arguments.test_threads.get_or_insert(1);
    let listing = arguments.list;
    let tun = if listing { Ok(()) } else { enter_namespace() };
    let kvm = toll_vmm::kvm::probe().map_err(|error| error.to_string());
    let both = tun.clone().and(kvm);
    let mut tests = Vec::new();
    let mut test = |needs: &Result<(), String>,
                    name: String,
                    run: Box<dyn FnOnce() -> Result<(), Failed> + Send>| {
        tests.push(match needs {
            Ok(()) => Trial::test(name, run),
            Err(reason) => Trial::test(format!("{name} (left out: {reason})"), run).with_ignored_flag(true),
        });
    };
    let mut number = 0_u8;
    for (engine, needs) in [(Engine::Payload, &both), (Engine::SameStack, &tun)] {
        for adapter in [Adapter::Pcnet(Default::default()), Adapter::VirtioNet(Default::default())] {
            for direction in [Direction::Send, Direction::Receive] {
                for open in [Open::Connect, Open::Listen] {
                    number += 1;
                    let case = Transfer { engine, adapter: adapter.clone(), direction, open, ..case(number) };
                    let kind = if engine == Engine::Payload { "guest" } else { "same_stack" };
                    let verb = if open == Open::Connect { "connects" } else { "listens" };
                    let name = format!("{kind}_{adapter}_{verb}_and_{direction}s");
                    test(needs, name, Box::new(move || transfers(&case)));
                }
            }
        }
        for direction in [Direction::Send, Direction::Receive] {
            number += 1;
            let kind = if engine == Engine::Payload { "guest" } else { "same_stack" };
            let name = format!("{kind}_pcnet_{direction}s_with_each_optimisation");
            test(needs, name, Box::new(move || optimisations(engine, direction, number)));
        }
        let kind = if engine == Engine::Payload { "guest" } else { "same_stack" };
        for switches in combinations().chain(commanded()) {
            for direction in [Direction::Send, Direction::Receive] {
                number += 1;
                let adapter = Adapter::VirtioNet(switches);
                let on = adapter.switches().join("_").replace(": ", "_");
                let (warm_up, duration) = (Duration::from_millis(30), Duration::from_millis(100));
                // Each pair has receive buffers of its own.
                let memory = (12 + 4 * switches.queue_pairs.count() as u64) << 20;
                let case = Transfer { engine, adapter, direction, warm_up, duration, memory, ..case(number) };
                let name = format!("{kind}_{direction}s_with_{on}");
                test(needs, name, Box::new(move || offloads(&case, switches)));
            }
        }
        let name = format!("nobody_connects_to_a_{kind}_before_the_deadline");
        test(needs, name, Box::new(move || nobody_connects_before_the_deadline(engine)));
    }
    test(&tun, "a_bad_configuration_is_refused".into(), Box::new(a_bad_configuration_is_refused));
    test(&tun, "a_cpu_that_there_is_not_is_named".into(), Box::new(a_cpu_that_there_is_not_is_named));
    test(
        &tun,
        "messages_out_of_turn_and_garbage_are_refused".into(),
        Box::new(messages_out_of_turn_and_garbage_are_refused),
    );
    test(&tun, "a_tap_name_that_is_taken_is_refused".into(), Box::new(a_tap_name_that_is_taken_is_refused));
    test(
        &tun,
        "an_interval_without_payload_is_no_figure".into(),
        Box::new(an_interval_without_payload_is_no_figure),
    );
    for direction in [Direction::Send, Direction::Receive] {
        test(
            &both,
            format!("a_guest_stopped_while_it_{direction}s_is_flagged_at_the_receiver"),
            Box::new(move || a_guest_stopped_for_a_while_is_flagged_at_the_receiver(direction)),
        );
    }
    test(
        &both,
        "an_agent_that_goes_away_ends_the_process".into(),
        Box::new(an_agent_that_goes_away_ends_the_process),
    );
    libtest_mimic::run(&arguments, tests).exit_code()
}
