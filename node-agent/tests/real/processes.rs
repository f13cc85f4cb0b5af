//! Children: how they end, and that they never outlive the agent. This program plays the children itself.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::Failed;
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use toll_node_agent::child::{Child, ChildReport, Spawner, Start};
use toll_protocol::child::ChildEvent;
use toll_protocol::report::Failure;

use crate::Test;

pub const TESTS: &[Test] = &[
    ("processes::kill_9_of_the_agent_takes_its_children", kill_9_of_the_agent_takes_its_children),
    ("processes::an_exit_without_a_last_message_is_a_failure", an_exit_without_a_last_message_is_a_failure),
    ("processes::bytes_that_are_no_message_are_a_failure", bytes_that_are_no_message_are_a_failure),
    ("processes::a_child_takes_its_own_children_along", a_child_takes_its_own_children_along),
    ("processes::a_dropped_child_is_killed", a_dropped_child_is_killed),
    ("processes::a_program_that_is_asked_gets_no_descriptor", a_program_that_is_asked_gets_no_descriptor),
    ("processes::a_program_that_does_not_answer_is_killed", a_program_that_does_not_answer_is_killed),
    ("processes::an_iperf3_that_hangs_keeps_no_agent", an_iperf3_that_hangs_keeps_no_agent),
    ("processes::a_program_that_is_not_there_is_named", a_program_that_is_not_there_is_named),
];

/// What this program plays when it is started by such a name.
const ROLES: [&str; 8] = ["agent", "deaf", "exits", "babbles", "parent", "hangs", "lists", "iperf3"];
const LIMIT: Duration = Duration::from_secs(10);

/// Plays the child, if that is what this process was started for.
pub fn play() -> Option<ExitCode> {
    let path = PathBuf::from(std::env::args_os().next()?);
    match path.file_name()?.to_str()? {
        // An agent with one child that heeds nothing.
        "agent" => {
            runtime().block_on(async {
                let spawner = Spawner::new(tokio::runtime::Handle::current()).expect("a spawner");
                let (reports, mut incoming) = mpsc::channel(8);
                let child = Child::spawn(&spawner, Start::of(&path.with_file_name("deaf")), reports)
                    .await
                    .expect("a child");
                println!("{}", child.id());
                // For ever: the child says nothing.
                drop(incoming.recv().await);
            });
        }
        // The second as a program that is asked for a fact.
        "deaf" | "iperf3" => wait_for_ever(),
        // Leaves its number for whoever looks whether it is dead.
        "hangs" => {
            let file = std::env::args_os().nth(1).expect("a file");
            std::fs::write(file, std::process::id().to_string()).expect("written");
            wait_for_ever()
        }
        "lists" => {
            let numbers = std::fs::read_dir("/proc/self/fd").expect("own descriptors");
            let open = numbers.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
            let own = format!("/proc/{}/fd", std::process::id());
            open.filter(|target| target.as_path() != std::path::Path::new(&own))
                .for_each(|target| println!("{}", target.display()));
        }
        "exits" => {
            eprintln!("cannot go on\nreason: none");
            return Some(ExitCode::from(3));
        }
        "babbles" => {
            let number = std::env::args().nth(2).and_then(|n| n.parse().ok()).expect("--control-fd N");
            eprintln!("before the noise");
            // SAFETY: the parent handed the descriptor over, and nothing else here owns it.
            let mut socket = unsafe { std::os::unix::net::UnixStream::from_raw_fd(number) };
            socket.write_all(&[0, 0, 0, 3, b'?', b'?', b'?']).expect("writes");
            wait_for_ever();
        }
        "parent" => {
            let child = Command::new(path.with_file_name("deaf")).spawn();
            eprintln!("{}", child.expect("a grandchild").id());
        }
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.try_into().expect("a process id")).expect("not 0")
}

fn is_alive(id: u32) -> bool {
    test_kill_process(pid(id)).is_ok()
}

/// Starts this program in `role` as a child and collects what it says and how it ended.
fn watch(role: &str) -> (Vec<ChildEvent>, Failure) {
    runtime().block_on(async {
        let (spawner, roles) = (spawner(), roles());
        let (reports, mut incoming) = mpsc::channel(8);
        let child =
            Child::spawn(&spawner, Start::of(&roles.path().join(role)), reports).await.expect("a child");
        let id = child.id();
        let mut said = Vec::new();
        let ended = tokio::time::timeout(LIMIT, async {
            loop {
                match incoming.recv().await.expect("an end") {
                    ChildReport::Said(event) => said.push(event),
                    ChildReport::Ended(failure) => break failure,
                }
            }
        });
        let ended = ended.await.expect("the child ends in time");
        child.reaped().await;
        assert!(!is_alive(id), "it has been reaped");
        (said, ended)
    })
}

fn spawner() -> Spawner {
    Spawner::new(tokio::runtime::Handle::current()).expect("a spawner")
}

/// This program under the names of its roles. Tests run side by side, so the role can't be in their environment.
fn roles() -> tempfile::TempDir {
    let (folder, own) =
        (tempfile::tempdir().expect("a folder"), std::env::current_exe().expect("an own path"));
    for role in ROLES {
        std::os::unix::fs::symlink(&own, folder.path().join(role)).expect("a link");
    }
    folder
}

fn kill_9_of_the_agent_takes_its_children() -> Result<(), Failed> {
    let roles = roles();
    let mut agent = Command::new(roles.path().join("agent")).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(agent.stdout.take().expect("piped")).read_line(&mut line)?;
    let child: u32 = line.trim().parse()?;
    assert!(is_alive(child));
    runtime().block_on(async {
        let descriptor = pidfd_open(pid(child), PidfdFlags::NONBLOCK).expect("the child lives");
        // SAFETY: the `AsyncFd` owns the descriptor, and nothing takes it out, closes or replaces it.
        let ended = unsafe { AsyncFd::register(descriptor) }.expect("watched");
        agent.kill().expect("killed");
        agent.wait().expect("reaped");
        drop(
            tokio::time::timeout(LIMIT, ended.readable())
                .await
                .expect("the child ends too")
                .expect("readable"),
        );
    });
    Ok(())
}

fn an_exit_without_a_last_message_is_a_failure() -> Result<(), Failed> {
    let (said, ended) = watch("exits");
    assert_eq!(said, []);
    assert_eq!(ended.reason, "exits ended before it was done (exit status: 3)");
    assert_eq!(ended.last_words, ["cannot go on", "reason: none"]);
    Ok(())
}

fn bytes_that_are_no_message_are_a_failure() -> Result<(), Failed> {
    let (said, ended) = watch("babbles");
    let [ChildEvent::Failed(failure)] = &said[..] else { panic!("{said:?}") };
    assert!(failure.reason.starts_with("babbles said what can't be understood"), "{}", failure.reason);
    assert!(ended.reason.contains("signal: 9"), "{}", ended.reason);
    assert_eq!(ended.last_words, ["before the noise"]);
    Ok(())
}

fn a_child_takes_its_own_children_along() -> Result<(), Failed> {
    let (_, ended) = watch("parent");
    let grandchild: u32 = ended.last_words[0].parse()?;
    runtime().block_on(dead(grandchild));
    Ok(())
}

/// Waits until a process that is no child of this one is dead.
pub async fn dead(process: u32) {
    // The system's init reaps it; what was killed and nobody has reaped yet is a zombie.
    let is_dead = || {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        matches!(state, None | Some('Z' | 'X'))
    };
    let mut look = tokio::time::interval(Duration::from_millis(1));
    let dies = async {
        while !is_dead() {
            look.tick().await;
        }
    };
    tokio::time::timeout(LIMIT, dies).await.expect("it dies");
}

fn a_dropped_child_is_killed() -> Result<(), Failed> {
    runtime().block_on(async {
        let (spawner, roles) = (spawner(), roles());
        let (reports, mut incoming) = mpsc::channel(8);
        let child =
            Child::spawn(&spawner, Start::of(&roles.path().join("deaf")), reports).await.expect("a child");
        let id = child.id();
        assert!(is_alive(id));
        drop(child);
        let ended = tokio::time::timeout(LIMIT, incoming.recv()).await.expect("in time");
        assert!(matches!(ended, Some(ChildReport::Ended(_))), "{ended:?}");
        assert!(!is_alive(id));
    });
    Ok(())
}

fn a_program_that_is_asked_gets_no_descriptor() -> Result<(), Failed> {
    let secret = tempfile::NamedTempFile::new()?;
    // As a lab hands the agent its key: a descriptor that an exec does not close.
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty())?;
    let output = runtime().block_on(async {
        let (spawner, roles) = (spawner(), roles());
        spawner.output(&roles.path().join("lists"), &[], LIMIT).await
    })?;
    let text = String::from_utf8(output.stdout)?;
    assert!(output.status.success());
    assert_eq!(text.lines().count(), 3, "standard streams alone: {text}");
    assert!(!text.contains(&*secret.path().to_string_lossy()), "{text}");
    Ok(())
}

fn a_program_that_does_not_answer_is_killed() -> Result<(), Failed> {
    runtime().block_on(async {
        let (spawner, roles) = (spawner(), roles());
        let file = roles.path().join("number");
        let arguments = [file.to_str().expect("UTF-8")];
        // Long enough for it to begin.
        let error = spawner.output(&roles.path().join("hangs"), &arguments, Duration::from_secs(1)).await;
        assert_eq!(error.expect_err("killed").kind(), std::io::ErrorKind::TimedOut);
        let process = std::fs::read_to_string(file).expect("it has begun");
        dead(process.parse().expect("a number")).await;
    });
    Ok(())
}

fn an_iperf3_that_hangs_keeps_no_agent() -> Result<(), Failed> {
    let roles = roles();
    let facts = runtime().block_on(async {
        let mut command = tokio::process::Command::new(crate::agents::AGENT);
        command.arg("facts").env("PATH", roles.path()).kill_on_drop(true);
        tokio::time::timeout(LIMIT, command.output()).await.expect("in time").expect("the agent runs")
    });
    let facts: toll_protocol::facts::HostFacts = serde_json::from_slice(&facts.stdout)?;
    let why = facts.iperf3.expect_err("it hangs");
    assert!(why.contains("did not end within 5 s"), "{why}");
    Ok(())
}

fn a_program_that_is_not_there_is_named() -> Result<(), Failed> {
    runtime().block_on(async {
        let (spawner, (reports, _incoming)) = (spawner(), mpsc::channel(8));
        let program = PathBuf::from("/nowhere/toll-vmm");
        let error = Child::spawn(&spawner, Start::of(&program), reports).await.expect_err("nothing to start");
        assert_eq!(error.to_string(), "/nowhere/toll-vmm could not be started");
    });
    Ok(())
}
