//! Rights given up by a real process, as the kernel shows it in /proc. This program plays the child itself.

#![allow(
    clippy::panic,
    reason = "a test that fails panics; without the standard harness clippy can't see that this is one"
)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{DumpableBehavior, Signal, dumpable_behavior, parent_process_death_signal};
use toll_child::confinement::{
    Confinement, DESCRIPTORS, FILE_BYTES, LOCKED_BYTES, PROCESSES, end_processes_of,
};

const ROLE: &str = "--play";
const CAPTURE: u64 = 5 << 20;
const USER: u32 = 61_007;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip_while(|argument| argument != ROLE).skip(1);
    if let Some(role) = arguments.next() {
        return play(&role);
    }
    let root = rustix::process::geteuid().is_root();
    let test = |name: &str, needs_root: bool, test: fn() -> Result<(), Failed>| {
        let left_out = needs_root && !root;
        let name = if left_out { format!("{name} (left out: needs root)") } else { name.to_owned() };
        Trial::test(name, test).with_ignored_flag(left_out)
    };
    let tests = vec![
        test("a_process_with_a_user_of_its_own_has_no_right_left", true, with_a_user),
        test("a_process_that_keeps_its_user_has_no_capability_left", false, without_a_user),
        test("rights_can_not_be_given_up_by_one_of_several_threads", false, with_threads),
        test("a_limit_on_dumps_that_can_not_be_raised_stays", false, without_dumps),
        test("a_user_that_can_not_be_had_is_refused", true, without_capabilities),
        test("where_nobody_else_is_there_is_nobody_to_end", true, alone),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// Enters, starts a thread, says how it is, and waits for the end of standard input.
fn play(role: &str) -> ExitCode {
    if role == "ender" {
        return match end_processes_of(USER) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{error}: {:?}", std::error::Error::source(&error));
                ExitCode::FAILURE
            }
        };
    }
    let user = (role == "user" || role == "bare").then_some(USER);
    if role == "bare" {
        Confinement { user: None }.enter(0).expect("capabilities can be given up");
    }
    if role == "undumped" {
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Core, none).expect("a limit is lowered");
        // The right to raise it again goes first.
        Confinement { user: None }.enter(0).expect("capabilities can be given up");
        rustix::process::setrlimit(rustix::process::Resource::Core, none).expect("a limit is lowered");
    }
    if role == "threads" {
        std::thread::spawn(std::thread::park);
    }
    if let Err(error) = (Confinement { user }).enter(CAPTURE) {
        println!("{error}");
        return ExitCode::FAILURE;
    }
    std::thread::spawn(std::thread::park);
    let dumpable = dumpable_behavior().expect("prctl");
    println!(
        "{:?} {}",
        parent_process_death_signal().expect("prctl"),
        dumpable == DumpableBehavior::NotDumpable
    );
    let end = std::io::stdin().read_to_end(&mut Vec::new());
    if end.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Starts this program in `role`; what it says first.
fn start(role: &str) -> (Child, String) {
    let mut command = Command::new(std::env::current_exe().expect("an own path"));
    command.args([ROLE, role]).stdin(Stdio::piped()).stdout(Stdio::piped());
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let mut child = command.spawn().expect("this program starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it speaks");
    (child, line.trim_end().to_owned())
}

fn field<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).split_whitespace().collect()
}

/// What every thread of `child` may do, and what the process has.
fn look(child: &Child, user: Option<u32>) {
    let process = format!("/proc/{}", child.id());
    let tasks: Vec<_> = std::fs::read_dir(format!("{process}/task")).expect("it runs").flatten().collect();
    assert_eq!(tasks.len(), 2);
    for task in tasks {
        let status = std::fs::read_to_string(task.path().join("status")).expect("readable");
        if let Some(user) = user {
            let user = user.to_string();
            assert_eq!(field(&status, "Uid:"), [&*user; 4]);
            assert_eq!(field(&status, "Gid:"), [&*user; 4]);
            assert!(field(&status, "Groups:").is_empty(), "{status}");
        }
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(&status, set), ["0000000000000000"], "{set}");
        }
        if rustix::process::geteuid().is_root() {
            assert_eq!(field(&status, "CapBnd:"), ["0000000000000000"]);
        }
        assert_eq!(field(&status, "NoNewPrivs:"), ["1"]);
    }
    let limits = std::fs::read_to_string(format!("{process}/limits")).expect("readable");
    let file = FILE_BYTES + CAPTURE;
    let mut expected = vec![
        ("Max core file size", 1),
        ("Max file size", file),
        ("Max open files", DESCRIPTORS),
        ("Max msgqueue size", 0),
        ("Max realtime priority", 0),
    ];
    if user.is_some() {
        expected.extend([("Max processes", PROCESSES), ("Max locked memory", LOCKED_BYTES)]);
    }
    for (name, limit) in expected {
        let limit = limit.to_string();
        assert_eq!(field(&limits, name)[..2], [&*limit; 2], "{name}");
    }
}

fn ends(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}

fn with_a_user() -> Result<(), Failed> {
    let (child, said) = start("user");
    assert_eq!(said, format!("{:?} true", Some(Signal::KILL)), "it dies with its parent, and leaves no core");
    look(&child, Some(USER));
    ends(child);
    Ok(())
}

fn without_a_user() -> Result<(), Failed> {
    let (child, said) = start("keeps");
    assert_eq!(said, format!("{:?} true", Some(Signal::KILL)));
    look(&child, None);
    ends(child);
    Ok(())
}

fn with_threads() -> Result<(), Failed> {
    let (mut child, said) = start("threads");
    assert!(said.contains("2 threads") && !child.wait()?.success(), "{said}");
    Ok(())
}

/// Who may raise no limit had none on dumps.
fn without_dumps() -> Result<(), Failed> {
    let (child, said) = start("undumped");
    assert!(said.ends_with("true"), "{said}");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id()))?;
    assert_eq!(field(&limits, "Max core file size")[..2], ["0"; 2]);
    ends(child);
    Ok(())
}

/// As in a pod, where all that an agent has started has ended.
fn alone() -> Result<(), Failed> {
    let own = std::env::current_exe()?;
    let ended = Command::new("unshare").args(["--pid", "--fork"]).arg(own).args([ROLE, "ender"]).output()?;
    assert!(ended.status.success(), "{ended:?}");
    Ok(())
}

fn without_capabilities() -> Result<(), Failed> {
    let (mut child, said) = start("bare");
    assert!(said.contains("the agent needs CAP_SETUID") && !child.wait()?.success(), "{said}");
    Ok(())
}
