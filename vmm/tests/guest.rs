//! Guests on the real KVM: boot, doorbells, exits, interrupts, hangs and faults, each by a case of the self-test
//! program (guest/payload/src/bin/self_test.rs).

use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use toll_guest_abi::phase;
use toll_protocol::child::{VmmConfig, VmmPort};
use toll_protocol::engine::Engine;
use toll_protocol::report::{EndReport, Failure, Flag};
use toll_protocol::traffic::stream::Stream;
use toll_protocol::traffic::{Job, Timing, Traffic};
use toll_protocol::trial::{Adapter, Direction, Open, TrialId};
use toll_protocol::units::{Bytes, MacAddress, Span};
use toll_vmm::boot::Program;
use toll_vmm::channel::Event;
use toll_vmm::config::EndConfig;
use toll_vmm::layout;
use toll_vmm::probe::Probe;
use toll_vmm::recording::Recording;
use toll_vmm::runner::{Devices, Runner, start};
use toll_vnic::port::memory;
use vm_memory::{Bytes as _, GuestAddress};

/// More than any of these guests needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

type Ended = Result<Box<Recording>, Failure>;

fn config(adapter: Adapter) -> EndConfig {
    let config = VmmConfig {
        trial: TrialId::new(1),
        engine: Engine::Payload,
        adapter,
        port: VmmPort::Tap { name: "unused".into() },
        impairments: None,
        capture: None,
        mac: MacAddress([0x52, 0x54, 0, 0, 0, 1]),
        address: "10.77.0.2/24".parse().expect("an address"),
        gateway: None,
        mtu: 1500,
        memory: Bytes(4 << 20),
        job: Job {
            open: Open::Connect,
            direction: Direction::Send,
            timing: Timing { warm_up: Span(0), duration: Span::from_millis(1) },
            traffic: Traffic::Stream(Stream { write_size: Bytes(4096), ..Stream::default() }),
        },
        cpu: None,
        io_cpu: None,
        deadline: Span::from_millis(1000),
    };
    EndConfig::try_from(config).expect("a good configuration")
}

/// Boots the self-test program with a port that nobody else holds.
fn boot(adapter: Adapter, case: u64) -> Runner {
    let (port, _other) = memory::pair(64).expect("ports");
    let config = config(adapter);
    let devices = Devices::open(&config, vec![Box::new(port)]).expect("KVM opens");
    start(&config, Program::SelfTest(case), devices).expect("starts")
}

fn ended(runner: &Runner) -> Ended {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match runner.next_event(deadline).expect("the guest ends in time") {
            Event::Phase(..) => {}
            Event::Ended(result) => return result,
        }
    }
}

fn report(adapter: Adapter, case: u64) -> Result<(EndReport, u64), Failed> {
    let runner = boot(adapter, case);
    let recording = ended(&runner).map_err(|failure| format!("{failure:#?}"))?;
    let bytes = runner.pages().status().now.received.load(std::sync::atomic::Ordering::Acquire);
    Ok((recording.report(&receiving(), Vec::new())?, bytes))
}

/// What a program that carries nothing is said to do.
fn receiving() -> Job {
    Job { direction: Direction::Receive, ..config(Adapter::Pcnet(Default::default())).job }
}

fn failure(case: u64) -> Failure {
    ended(&boot(Adapter::Pcnet(Default::default()), case)).expect_err("the guest fails")
}

fn check(condition: bool, what: &dyn std::fmt::Debug) -> Result<(), Failed> {
    if condition { Ok(()) } else { Err(format!("{what:#?}").into()) }
}

fn a_guest_boots_to_ready() -> Result<(), Failed> {
    let began = Instant::now();
    let runner = boot(Adapter::VirtioNet(Default::default()), 10);
    let event = runner.next_event(began + PATIENCE);
    check(matches!(event, Some(Event::Phase(phase::READY, _))), &event)?;
    // It waits for Command::start without a timeout: only the kick can wake it.
    runner.start_traffic("10.77.0.9:7".parse()?);
    let failure = ended(&runner).expect_err("it ends without having measured");
    check(failure.reason.contains("before it had measured"), &failure)?;
    let peer = runner.pages().status().now.received.load(std::sync::atomic::Ordering::Acquire) as u32;
    check(peer.to_ne_bytes() == [10, 77, 0, 9], &peer)
}

fn every_exit_is_counted_and_kvm_agrees() -> Result<(), Failed> {
    let (report, _) = report(Adapter::Pcnet(Default::default()), 1)?;
    let exits = report.exits.as_ref().ok_or("a guest has exits")?;
    // The exit of MEASURE itself is counted before its snapshot, that of MEASURED too.
    check(
        exits.by_cause["wait"].count == 100 && exits.by_cause["phase"].count == 1 && exits.total() == 101,
        exits,
    )?;
    check(exits.kvm_userspace == Some(exits.total()), exits)?;
    check(exits.kvm_all >= exits.kvm_userspace, exits)?;
    check(exits.by_cause["wait"].handling.0 > 0, exits)?;
    check(!report.flags.contains(&Flag::ExitCountMismatch), &report.flags)?;
    let parts = [report.cpu.guest, report.cpu.vmm, report.cpu.host].into_iter().flatten().map(|span| span.0);
    let total = report.threads.iter().find(|thread| thread.name == "vcpu0").ok_or("the vCPU has CPU time")?;
    check(parts.sum::<u64>() == total.total.0, &report)
}

fn register_accesses_exit_one_by_one(adapter: Adapter, cause: &str) -> Result<(), Failed> {
    let (report, _) = report(adapter, 11)?;
    let exits = report.exits.as_ref().ok_or("a guest has exits")?;
    check(exits.by_cause.get(cause).is_some_and(|stat| stat.count == 2000), exits)?;
    check(exits.kvm_userspace == Some(exits.total()), exits)
}

fn interrupts_come_through_the_gate() -> Result<(), Failed> {
    // The program itself checks that each INIT's IDON interrupt has been handled before its next instruction.
    let (report, handled) = report(Adapter::Pcnet(Default::default()), 2)?;
    check(handled == 1000, &handled)?;
    let exits = report.exits.as_ref().ok_or("a guest has exits")?;
    check(exits.kvm_userspace == Some(exits.total()), exits)?;
    check(report.frames.is_some_and(|frames| frames.interrupts >= 1000), &report.frames)
}

fn a_frame_of_the_pcnet_driver_costs_12_exits_and_one_interrupt() -> Result<(), Failed> {
    // The driver of a trial, its handler behind the gate. The program checks that each frame's TINT has been handled
    // before its next instruction.
    let (report, handled) = report(Adapter::Pcnet(Default::default()), 15)?;
    check(handled == 1000, &handled)?;
    let exits = report.exits.as_ref().ok_or("a guest has exits")?;
    let count = |cause: &str| exits.by_cause.get(cause).map_or(0, |stat| stat.count);
    check(count("pio-write rap") + count("pio-read rap") == 7 * 1000, exits)?;
    check(count("pio-write rdp") + count("pio-read rdp") == 5 * 1000, exits)?;
    // The exit of MEASURE itself is one more.
    check(exits.total() == 12 * 1000 + 1, exits)?;
    check(exits.kvm_userspace == Some(exits.total()), exits)?;
    check(report.frames.is_some_and(|frames| frames.interrupts == 1000), &report.frames)
}

fn a_guest_that_hangs_is_stopped() -> Result<(), Failed> {
    let runner = boot(Adapter::Pcnet(Default::default()), 3);
    let event = runner.next_event(Instant::now() + PATIENCE);
    check(matches!(event, Some(Event::Phase(phase::READY, _))), &event)?;
    let asked = Instant::now();
    let failure = runner.stop(PATIENCE).ok_or("it was not stopped")?.expect_err("it failed");
    check(asked.elapsed() < Duration::from_secs(1), &asked.elapsed())?;
    check(failure.reason.contains("stopped"), &failure)?;
    check(failure.last_words.iter().any(|line| line.starts_with("rip 0x00000000001")), &failure)
}

fn a_guest_asleep_is_stopped() -> Result<(), Failed> {
    let runner = boot(Adapter::Pcnet(Default::default()), 10);
    let event = runner.next_event(Instant::now() + PATIENCE);
    check(matches!(event, Some(Event::Phase(phase::READY, _))), &event)?;
    let failure = runner.stop(PATIENCE).ok_or("it was not stopped")?.expect_err("it failed");
    check(failure.reason.contains("stopped"), &failure)
}

/// What RAX holds when a case of the self-test program faults.
const MARK: u64 = 0x5eed_0123_4567_89ab;

/// The last words of a guest that has executed one instruction too much: all of what it was, and what came before.
fn faults(case: u64, fault: &str, length: u64) -> Result<(), Failed> {
    let runner = boot(Adapter::Pcnet(Default::default()), case);
    let failure = ended(&runner).expect_err("the guest fails");
    // The program has told where the instruction is. Where it is a trap and no fault, the CPU is behind it already.
    let rip = runner.pages().status().now.received.load(std::sync::atomic::Ordering::Acquire) + length;
    let fault = fault.replace("RIP", &format!("{rip:#x}"));
    check(failure.reason == format!("the guest faulted at rip {rip:#x}: {fault}"), &failure)?;
    let words = |line: &str| check(failure.last_words.iter().any(|word| word.starts_with(line)), &failure);
    words(&format!("fault: {fault}"))?;
    words(&format!("rip {rip:#018x} cs 0x0033 rflags 0x"))?;
    words("exit 0: phase at 0xf04, value 0x1,")?;
    words("exit 1: fault at 0x")?;
    if case != EXECUTE_DATA {
        words(&format!("rax {MARK:#018x} "))?;
    }
    // Of the program, whose stack begins below this address, not of what tells of the fault.
    let rsp = failure.last_words.iter().find_map(|line| line.split_once(" rsp 0x000000000005"));
    check(rsp.is_some(), &failure)
}

const EXECUTE_DATA: u64 = 5;

fn a_stack_that_overflows() -> Result<(), Failed> {
    let failure = failure(14);
    let (rip, fault) = failure
        .reason
        .strip_prefix("the guest faulted at rip 0x10")
        .and_then(|rest| rest.split_once(": "))
        .ok_or_else(|| format!("{failure:#?}"))?;
    check(rip.len() == 4 && fault.starts_with("page fault at 0x1f"), &failure)?;
    check(fault.ends_with(" (vector 14, error code 0x6)"), &failure)
}

/// A program that writes where faults are told has not faulted.
fn a_forged_fault() -> Result<(), Failed> {
    let failure = failure(21);
    check(failure.reason == "the guest accessed Pio address 0xee, 1 bytes: no device is there", &failure)
}

/// Without its gates a fault shuts the guest down. What is told then is the guest's own, or that it is lost.
fn without_gates() -> Result<(), Failed> {
    let runner = boot(Adapter::Pcnet(Default::default()), 22);
    let event = runner.next_event(Instant::now() + PATIENCE);
    check(matches!(event, Some(Event::Phase(phase::READY, _))), &event)?;
    // As a device would that the program has told to write there.
    let (pages, gates) = (runner.pages(), [0; 0x1000]);
    pages.memory().write_slice(&gates, GuestAddress(layout::IDT))?;
    runner.start_traffic("10.77.0.9:7".parse()?);
    let failure = ended(&runner).expect_err("the guest fails");
    let rip = pages.status().now.received.load(std::sync::atomic::Ordering::Acquire);
    let lost =
        failure.reason.starts_with("the guest stopped at an instruction that KVM does not tell: KVM_EXIT_");
    let words = |line: &str| failure.last_words.iter().any(|word| word.starts_with(line));
    if lost {
        check(words("registers are lost") && !words("rip ") && !words("rax "), &failure)
    } else {
        let reason = format!("the guest stopped at rip {rip:#x}: KVM_EXIT_SHUTDOWN");
        check(failure.reason.starts_with(&reason), &failure)?;
        check(words(&format!("rip {rip:#018x} ")) && words(&format!("rax {MARK:#018x} ")), &failure)
    }
}

/// What the probe says is so because guests have run: one that dies is told with its last words.
fn the_probe() -> Result<(), Failed> {
    Probe::open()?.run([Program::Traffic; 2])?;
    let fails = |programs| Probe::open().map(|probe| probe.run(programs).expect_err("a guest does not run"));
    // A guest whose peer has died stands still, and is not the one to blame.
    let error = fails([Program::Traffic, Program::SelfTest(22)])?;
    check(error.to_string().starts_with("a guest with virtio-net does not run: the guest faulted"), &error)?;
    let error = fails([Program::SelfTest(4), Program::Traffic])?;
    let said = error.to_string();
    check(said.starts_with("a guest with pcnet does not run: the guest faulted at rip 0x10"), &error)?;
    check(said.ends_with("page fault at 0x18 (vector 14, error code 0x6)"), &error)?;
    check(error.last_words().iter().any(|line| line.starts_with("exit 1: fault at ")), &error)
}

fn a_panic_leaves_its_words() -> Result<(), Failed> {
    let failure = failure(7);
    check(failure.reason.contains("the case that panics, 1500"), &failure)
}

fn hostile_counters_are_not_believed() -> Result<(), Failed> {
    let recording =
        ended(&boot(Adapter::Pcnet(Default::default()), 8)).map_err(|failure| format!("{failure:#?}"))?;
    let error = recording.report(&receiving(), Vec::new()).expect_err("refused");
    check(error.to_string().contains("bytes of data"), &error)
}

fn hostile_phases_and_messages_fail_the_guest_alone() -> Result<(), Failed> {
    let phase = failure(12);
    check(phase.reason.contains("phase 4294967295 after phase 0"), &phase)?;
    let message = failure(13);
    check(message.reason.contains("the program failed"), &message)?;
    check(message.reason.len() < 4096, &message)
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = toll_vmm::kvm::probe().err();
    let test = |name: &str, run: fn() -> Result<(), Failed>| match &missing {
        None => Trial::test(name, run),
        Some(error) => Trial::test(format!("{name} (left out: {error})"), run).with_ignored_flag(true),
    };
    let tests = vec![
        test("a_guest_boots_to_ready_and_is_kicked", a_guest_boots_to_ready),
        test("every_exit_is_counted_and_kvm_agrees", every_exit_is_counted_and_kvm_agrees),
        test("pcnet_register_reads_exit", || {
            register_accesses_exit_one_by_one(Adapter::Pcnet(Default::default()), "pio-read rap")
        }),
        test("virtio_register_reads_exit", || {
            register_accesses_exit_one_by_one(Adapter::VirtioNet(Default::default()), "mmio-read magic-value")
        }),
        test("interrupts_come_through_the_gate", interrupts_come_through_the_gate),
        test(
            "a_frame_of_the_pcnet_driver_costs_12_exits_and_one_interrupt",
            a_frame_of_the_pcnet_driver_costs_12_exits_and_one_interrupt,
        ),
        test("a_guest_that_hangs_is_stopped", a_guest_that_hangs_is_stopped),
        test("a_guest_asleep_is_stopped", a_guest_asleep_is_stopped),
        test("a_null_pointer_faults_with_rip_address_and_last_exits", || {
            faults(4, "page fault at 0x18 (vector 14, error code 0x6)", 0)
        }),
        test("data_is_not_executable", || {
            faults(EXECUTE_DATA, "page fault at RIP (vector 14, error code 0x15)", 0)
        }),
        test("code_is_not_writable", || faults(6, "page fault at RIP (vector 14, error code 0x7)", 0)),
        test("a_stack_that_overflows_faults_below_it", a_stack_that_overflows),
        test("a_port_that_is_not_its_own_faults", || {
            faults(9, "general protection (vector 13, error code 0x0)", 0)
        }),
        test("an_address_that_is_none_faults", || {
            faults(19, "general protection (vector 13, error code 0x0)", 0)
        }),
        test("a_privileged_instruction_faults", || {
            faults(20, "general protection (vector 13, error code 0x0)", 0)
        }),
        test("an_invalid_instruction_faults", || faults(16, "invalid opcode (vector 6)", 0)),
        test("a_division_by_zero_faults", || faults(17, "divide error (vector 0)", 0)),
        test("a_breakpoint_is_told_as_a_fault", || faults(18, "breakpoint (vector 3)", 1)),
        test("a_forged_fault_is_none", a_forged_fault),
        test("a_guest_without_gates_shuts_down_and_lost_registers_are_not_made_up", without_gates),
        test("the_probe_says_what_guests_have_shown", the_probe),
        test("a_panic_leaves_its_words", a_panic_leaves_its_words),
        test("hostile_counters_are_not_believed", hostile_counters_are_not_believed),
        test(
            "hostile_phases_and_messages_fail_the_guest_alone",
            hostile_phases_and_messages_fail_the_guest_alone,
        ),
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}
