//! Ports that are of no interface: two guests on a private Ethernet, and a guest behind address translation.

mod support;

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use support::{Transfer, Vmm, bring_up, check, enter_namespace, expect, failure, transfer};
use toll_protocol::child::{ChildCommand, ChildEvent, VmmPort};
use toll_protocol::decorators::{Impairments, Millionths};
use toll_protocol::engine::Engine;
use toll_protocol::report::{EndReport, Flag};
use toll_protocol::traffic::TrafficReport;
use toll_protocol::traffic::stream::Flow;
use toll_protocol::trial::{Adapter, Direction, Open, PcnetSwitches, VirtioNetSwitches};
use toll_protocol::units::{MacAddress, Span};

const PROGRAM: &str = env!("CARGO_BIN_EXE_toll-vmm");

fn case(number: u8, engine: Engine, adapter: Adapter, direction: Direction) -> Transfer {
    Transfer { engine, adapter, direction, duration: Duration::from_millis(300), ..Transfer::number(number) }
}

fn adapters() -> Vec<Adapter> {
    let off = VirtioNetSwitches::OFF;
    let offloads = VirtioNetSwitches {
        checksum_offload: true,
        tso: true,
        mergeable_buffers: true,
        event_index: true,
        ..off
    };
    let joined = VirtioNetSwitches { segment_combining: true, io_thread: true, ..off };
    let mut all = vec![Adapter::Pcnet(PcnetSwitches::OFF)];
    all.extend([off, offloads, joined].map(Adapter::VirtioNet));
    all
}

/// Every byte that the kernel gets through the translator is the guest's, and the other way round the goodput is bytes
/// that the kernel sent; a refused connection is refused to the guest.
fn translated() -> Result<(), Failed> {
    let mut number = 0;
    for engine in [Engine::Payload, Engine::SameStack] {
        for adapter in [Adapter::Pcnet(PcnetSwitches::OFF), Adapter::VirtioNet(VirtioNetSwitches::OFF)] {
            for direction in [Direction::Send, Direction::Receive] {
                number += 1;
                let case = Transfer { translated: true, ..case(number, engine, adapter.clone(), direction) };
                let done = transfer(PROGRAM, &case)
                    .map_err(|why| format!("{engine:?} {adapter} {direction}: {why}"))?;
                let report = &done.report;
                check(
                    report.bytes() > 0 && report.bytes() <= done.kernel_bytes,
                    &(report, done.kernel_bytes),
                )?;
                let frames = report.frames.ok_or("a virtual adapter counts frames")?;
                check(frames.guest_errors == 0 && frames.receive_frames > 0, &frames)?;
            }
        }
    }
    Ok(())
}

/// A wire that loses, delays and repeats frames is one of a translator's too: both stacks send again, and no byte is
/// counted twice.
fn worse() -> Result<(), Failed> {
    let share = |percent: &str| Millionths::from_percent(percent.parse().ok()?);
    let impairments = Impairments {
        delay: Span::from_millis(1),
        loss: share("0.5%").ok_or("a share")?,
        duplicate: share("1%").ok_or("a share")?,
        ..Impairments::default()
    };
    for direction in [Direction::Send, Direction::Receive] {
        let adapter = Adapter::VirtioNet(VirtioNetSwitches::OFF);
        let case = Transfer {
            translated: true,
            impairments: Some(impairments),
            duration: Duration::from_millis(800),
            ..case(98, Engine::Payload, adapter, direction)
        };
        let done = transfer(PROGRAM, &case).map_err(|why| format!("{direction}: {why}"))?;
        let report = &done.report;
        check(report.bytes() > 0 && report.bytes() <= done.kernel_bytes, &(report, done.kernel_bytes))?;
        check(report.flags.contains(&Flag::Impaired), &report.flags)?;
        // As many as there are, some were lost.
        let resent = direction == Direction::Receive || report.flags.contains(&Flag::Retransmits);
        check(resent, &(direction, report))?;
    }
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let case = case(99, Engine::Payload, Adapter::VirtioNet(VirtioNetSwitches::OFF), Direction::Send);
    let mut vmm = Vmm::spawn(PROGRAM)?;
    let mut config = case.config();
    config.port = VmmPort::Nat { outside: case.outside() };
    config.address = "10.0.2.15/24".parse()?;
    config.gateway = Some([10, 0, 2, 2].into());
    vmm.send(&ChildCommand::Configure(config))?;
    expect(&mut vmm, |event| matches!(event, ChildEvent::PortOpened).then_some(()))?;
    bring_up("lo", case.host_address(), 1500)?;
    vmm.send(&ChildCommand::PortAttached)?;
    expect(&mut vmm, |event| matches!(event, ChildEvent::Ready(_)).then_some(()))?;
    // Nobody listens there.
    let peer = std::net::SocketAddrV4::new(case.host_address(), 9);
    vmm.send(&ChildCommand::Start { peer })?;
    let failure = failure(&mut vmm)?;
    check(failure.reason.contains("refused"), &failure)
}

/// Two guests of one host, without any interface.
fn joined() -> Result<(), Failed> {
    for (number, adapter) in adapters().into_iter().enumerate() {
        // Either end is of the same kind: who sends first makes no difference to the adapter.
        for direction in
            if number == 0 { vec![Direction::Send, Direction::Receive] } else { vec![Direction::Send] }
        {
            // Below 100 adapters.
            let [near, far] = on_a_hub(&case(number as u8, Engine::Payload, adapter.clone(), direction))?;
            let (sender, receiver) = if direction == Direction::Send { (near, far) } else { (far, near) };
            check(receiver.bytes() > 0 && sender.bytes() > 0, &(&sender, &receiver))?;
            for report in [sender, receiver] {
                let frames = report.frames.ok_or("a virtual adapter counts frames")?;
                check(frames.guest_errors == 0, &frames)?;
                check(report.exits.as_ref().is_some_and(|exits| exits.total() > 0), &report.exits)?;
            }
        }
    }
    Ok(())
}

/// Parallel flows between two guests, both ways at once: each end tells what each flow carried, in the same order by ports.
fn parallel() -> Result<(), Failed> {
    for (number, adapter) in adapters().into_iter().enumerate() {
        let case = Transfer { flows: 3, ..case(number as u8, Engine::Payload, adapter, Direction::Both) };
        let reports = on_a_hub(&case)?;
        let flows = reports.each_ref().map(|report| match &report.traffic {
            TrafficReport::Stream(stream) => stream.flows.clone(),
            TrafficReport::RequestResponse(_) => Vec::new(),
        });
        for (report, flows) in reports.iter().zip(&flows) {
            let sum = |of: fn(&Flow) -> u64| flows.iter().map(of).sum::<u64>();
            check(flows.len() == 6, flows)?;
            check(sum(|flow| flow.sent_bytes) == report.sent_bytes && report.sent_bytes > 0, report)?;
            let received = sum(|flow| flow.received_bytes);
            check(received == report.received_bytes && received > 0, report)?;
        }
        let sends = |flow: &Flow| flow.sent_bytes > 0 && flow.received_bytes == 0;
        let receives = |flow: &Flow| flow.sent_bytes == 0 && flow.received_bytes > 0;
        // The listening end's first port is that of what it receives.
        let [connects, listens] = &flows;
        check(connects[..3].iter().all(sends) && connects[3..].iter().all(receives), connects)?;
        check(listens[..3].iter().all(receives) && listens[3..].iter().all(sends), listens)?;
    }
    Ok(())
}

fn on_a_hub(case: &Transfer) -> Result<[EndReport; 2], Failed> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (one, other): (OwnedFd, OwnedFd) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let mut vmms = Vec::new();
    for (socket, open) in [(one, Open::Connect), (other, Open::Listen)] {
        setsockopt(&socket, sockopt::SndBufForce, &(8 << 20))?;
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut vmm = Vmm::spawn(PROGRAM)?;
        let mut config = case.config();
        config.port = VmmPort::Hub { descriptor: socket.as_raw_fd() };
        if open == Open::Listen {
            config.job.open = open;
            config.job.direction = case.direction.opposite();
            config.address = "10.77.0.3/24".parse()?;
            config.mac = MacAddress([0x52, 0x54, 0, 0, 1, 0]);
        } else {
            config.address = "10.77.0.2/24".parse()?;
        }
        vmm.send(&ChildCommand::Configure(config))?;
        expect(&mut vmm, |event| matches!(event, ChildEvent::PortOpened).then_some(()))?;
        vmm.send(&ChildCommand::PortAttached)?;
        let ready = expect(&mut vmm, |event| match event {
            ChildEvent::Ready(ready) => Some(ready),
            _ => None,
        })?;
        vmms.push((vmm, ready));
    }
    let peers = [vmms[1].1.address, vmms[0].1.address];
    for ((vmm, _), peer) in vmms.iter_mut().zip(peers) {
        vmm.send(&ChildCommand::Start { peer })?;
    }
    let mut reports = Vec::new();
    for (mut vmm, _) in vmms {
        let report = loop {
            match vmm.event()? {
                ChildEvent::Sample(_) => {}
                ChildEvent::Done(report) => break *report,
                other => return Err(format!("{other:#?}").into()),
            }
        };
        check(vmm.wait()?, &"toll-vmm did not end well")?;
        reports.push(report);
    }
    reports.try_into().map_err(|_| "two ends have two reports".into())
}

/// A descriptor that is no such socket is refused with what to do.
fn no_hub() -> Result<(), Failed> {
    for descriptor in [-1, 0, 1_000_000] {
        let mut vmm = Vmm::spawn(PROGRAM)?;
        let mut config =
            case(1, Engine::Payload, Adapter::VirtioNet(VirtioNetSwitches::OFF), Direction::Send).config();
        config.port = VmmPort::Hub { descriptor };
        vmm.send(&ChildCommand::Configure(config))?;
        let failure = failure(&mut vmm)?;
        check(failure.reason.contains("leaves it the descriptor"), &failure)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let lacks = enter_namespace().or_else(|why| if why.contains("TUN") { Ok(()) } else { Err(why) });
    let lacks = lacks.and_then(|()| toll_vmm::kvm::probe().map_err(|error| format!("no KVM: {error}")));
    if let Err(why) = &lacks {
        eprintln!("left out: {why}");
    }
    let test = |name: &str, body: fn() -> Result<(), Failed>| {
        Trial::test(name, body).with_ignored_flag(lacks.is_err())
    };
    let tests = vec![
        test("a_guest_behind_a_translator_reaches_the_kernels_tcp_both_ways", translated),
        test("a_translator_carries_a_stream_over_a_bad_wire", worse),
        test("a_connection_that_is_refused_is_refused_to_the_guest", refused),
        test("two_guests_of_one_host_talk_without_its_network", joined),
        test("flows_in_parallel_go_both_ways_at_once", parallel),
        test("what_is_no_hub_is_refused", no_hub),
    ];
    // One namespace, one address of its loop-back at a time.
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, tests).exit_code()
}
