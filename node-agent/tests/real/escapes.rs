//! Children that somebody has taken over: they start a process that leaves their process group and heeds nothing. The
//! agent's `toll-endpoint` is a script here that does that, and then goes on as the real one. Whose numbers their users have.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use libtest_mimic::Failed;
use toll_protocol::process::Process;
use toll_protocol::trial::{Direction, Open, TrialId};
use toll_protocol::units::Span;

use crate::Test;
use crate::agents::{AGENT, Agent, beside};
use crate::confined::{maps_others, until};
use crate::host::{Fleet, native};
use crate::orchestrator::{Peer, Server};

pub const TESTS: &[Test] = &[
    (
        "escapes::a_namespace_that_keeps_its_groups_has_no_users",
        a_namespace_that_keeps_its_groups_has_no_users,
    ),
    ("escapes::a_number_that_is_somebodys_is_left_out", a_number_that_is_somebodys_is_left_out),
    ("escapes::what_left_its_group_ends_with_its_trial", what_left_its_group_ends_with_its_trial),
    ("escapes::what_left_its_group_ends_with_the_agent", what_left_its_group_ends_with_the_agent),
    ("escapes::what_a_killed_agent_left_running_the_next_one_ends", what_a_killed_agent_left_running),
    ("escapes::a_persons_processes_are_left_alone", a_persons_processes_are_left_alone),
];

/// Why there is nobody to become.
pub fn lacking() -> Option<String> {
    (!maps_others()).then(|| "needs other users".to_owned())
}

/// Long enough for whatever the tests do.
const DURATION: Span = Span::from_millis(5_000);

/// A folder with an agent and its programs.
fn programs() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let agent = folder.path().join("toll-agent");
    std::fs::hard_link(AGENT, &agent).expect("on one file system");
    let endpoint = folder.path().join("toll-endpoint");
    let real = beside("toll-endpoint");
    // As a child is that has given its rights up: `--control-fd N --user UID`. Should nobody end them, they end in a
    // minute.
    let script = format!(
        "#!/bin/sh
         if [ \"$1\" = --control-fd ]; then
             setpriv --reuid $4 --regid $4 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs \\
                 setsid sh -c 'for n in 1 2 3 4 5 6; do setsid sleep 60 & done; exec sleep 60' >/dev/null 2>&1 &
         fi
         exec '{}' \"$@\"\n",
        real.display()
    );
    std::fs::write(&endpoint, script).expect("written");
    std::fs::set_permissions(&endpoint, std::fs::Permissions::from_mode(0o755)).expect("set");
    (folder, agent)
}

/// What of `user` runs.
fn running(user: u32) -> Vec<Process> {
    let ids = std::fs::read_dir("/proc").expect("is there").flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let read = |id: u32| Process::parse(id, &std::fs::read_to_string(format!("/proc/{id}/status")).ok()?);
    ids.filter_map(read).filter(|process| process.is_alive && process.is_of(user)).collect()
}

/// Prepares a trial on `agent`, and waits until its child is ready and some of its offspring have got away. Returns the
/// user of all of them.
async fn escaped(agent: &Agent, peer: &mut Peer, trial: TrialId) -> u32 {
    peer.prepare(trial, native(Direction::Receive, Open::Listen, DURATION)).await;
    peer.ready(trial).await.expect("ready");
    let child = agent.children("toll-endpoint")[0];
    let status = std::fs::read_to_string(format!("/proc/{child}/status")).expect("it runs");
    let user = Process::parse(child.cast_unsigned(), &status).expect("a status").users[0];
    let away = |process: &Process| process.name == "sleep" && process.is_confined;
    until(|| (running(user).into_iter().filter(away).count() > 3).then_some(())).await;
    user
}

/// Runs `test` as the orchestrator, with the agent of host a at its program.
fn with_agent(test: impl AsyncFnOnce(&Fleet, &PathBuf, Server, Agent, Peer) + Send) {
    let (fleet, (_folder, program)) = (Fleet::new(), programs());
    fleet.control.run(async || {
        let server = Server::listen(&fleet.authority, 0);
        let agent = fleet.start_a_of(&program, server.port);
        let peer = server.accept().await;
        test(&fleet, &program, server, agent, peer).await;
    });
}

fn a_number_that_is_somebodys_is_left_out() -> Result<(), Failed> {
    let passwd = tempfile::NamedTempFile::new()?;
    std::fs::write(&passwd, "root:x:0:0::/root:/bin/sh\nqueue:x:61005:61005::/:/bin/false\n")?;
    let run = |arguments: &str| {
        let line =
            format!("mount --bind {} /etc/passwd && exec {AGENT} {arguments}", passwd.path().display());
        Command::new("unshare").args(["--mount", "sh", "-c", &line]).output()
    };
    // Its facts need a user of the range for iperf3, and nobody could have told it of another range.
    let facts = run("facts")?;
    assert!(facts.status.success(), "{}", String::from_utf8_lossy(&facts.stderr));
    let authority = crate::orchestrator::Authority::new();
    let pki = authority.files("a");
    let asked = run(&format!(
        "--orchestrator 127.0.0.1:1 --name a --pki {} --child-uids 61000-61183",
        pki.display()
    ))?;
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(said.contains("61005 belongs to `queue`") && said.contains("--child-uids"), "{said}");
    assert_eq!(asked.status.code(), Some(4));
    Ok(())
}

/// Users and groups are all there, and groups can't be given up.
fn a_namespace_that_keeps_its_groups_has_no_users() -> Result<(), Failed> {
    let mut command = Command::new("unshare");
    // It goes on once its namespace has been made ready.
    command.args(["--user", "sh", "-c", "read go; exec \"$0\" facts", AGENT]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let file = |name: &str| format!("/proc/{}/{name}", child.id());
    let own = std::fs::read_link("/proc/self/ns/user")?;
    while std::fs::read_link(file("ns/user"))? == own {
        std::thread::yield_now();
    }
    for (name, text) in [("setgroups", "deny"), ("uid_map", "0 0 100000"), ("gid_map", "0 0 100000")] {
        std::fs::write(file(name), text)?;
    }
    child.stdin.take().expect("piped").write_all(b"go\n")?;
    let facts = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&facts.stderr);
    assert!(facts.status.success(), "{said}");
    assert!(
        said.contains("children keep the agent's user") && said.contains("/proc/self/setgroups"),
        "{said}"
    );
    Ok(())
}

fn what_left_its_group_ends_with_its_trial() -> Result<(), Failed> {
    with_agent(async |_, _, _, agent, mut peer| {
        let trial = TrialId::new(0x0e01);
        let user = escaped(&agent, &mut peer, trial).await;
        assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
        assert_eq!(running(user), []);
        assert!(agent.terminate().await.success());
    });
    Ok(())
}

fn what_left_its_group_ends_with_the_agent() -> Result<(), Failed> {
    with_agent(async |_, _, _, agent, mut peer| {
        let user = escaped(&agent, &mut peer, TrialId::new(0x0e02)).await;
        assert!(agent.terminate().await.success());
        assert_eq!(running(user), []);
    });
    Ok(())
}

fn what_a_killed_agent_left_running() -> Result<(), Failed> {
    with_agent(async |fleet, program, server, mut agent, mut peer| {
        let user = escaped(&agent, &mut peer, TrialId::new(0x0e03)).await;
        agent.0.kill().expect("killed");
        agent.0.wait().expect("reaped");
        assert_ne!(running(user), [], "they have outlived it");
        let next = fleet.start_a_of(program, server.port);
        drop(server.accept().await);
        assert_eq!(running(user), []);
        assert!(next.terminate().await.success());
    });
    Ok(())
}

/// Somebody's whom /etc/passwd does not know, such as a user of LDAP.
fn a_persons_processes_are_left_alone() -> Result<(), Failed> {
    with_agent(async |_, _, _, agent, mut peer| {
        let trial = TrialId::new(0x0e04);
        let user = escaped(&agent, &mut peer, trial).await;
        let mut person = as_person(user);
        until(|| running(user).into_iter().find(|process| process.id == person.id())).await;
        assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
        let left: Vec<u32> = running(user).iter().map(|process| process.id).collect();
        assert_eq!(left, [person.id()]);
        person.kill().expect("killed");
        person.wait().expect("reaped");
        assert!(agent.terminate().await.success());
    });
    Ok(())
}

fn as_person(user: u32) -> Child {
    let user = user.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "sleep", "60"]);
    command.stdin(Stdio::null()).spawn().expect("setpriv runs")
}
