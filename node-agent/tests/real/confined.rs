//! What the processes of a running trial may do, as /proc shows it: of every thread of every child and grandchild.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use toll_protocol::facts::{HostFacts, KvmFact};
use toll_protocol::message::FromAgent;
use toll_protocol::trial::{
    Adapter, Direction, EndKind, EndSpec, Engine, NativeProgram, Open, PcnetSwitches, Port, TrialId,
};
use toll_protocol::units::Span;

use crate::Test;
use crate::agents::{AGENT, Agent};
use crate::host::{Fleet, Pair, native};
use crate::orchestrator::Peer;

pub const TESTS: &[Test] = &[
    ("confined::native_ends_have_no_right", native_ends_have_no_right),
    ("confined::iperf3_has_no_right", iperf3_has_no_right),
];

/// Those that need a VMM.
pub const VIRTUAL: &[Test] = &[
    ("confined::virtual_ends_have_no_right", virtual_ends_have_no_right),
    ("confined::guests_of_the_probe_have_no_right", guests_of_the_probe_have_no_right),
];

/// Long enough to be looked at.
const DURATION: Span = Span::from_millis(2_000);
/// Users of children without `--child-uids`.
const USERS: std::ops::RangeInclusive<u32> = 61_000..=61_183;

fn native_ends_have_no_right() -> Result<(), Failed> {
    Fleet::new().with_both(async |pair| {
        let ends = [
            native(Direction::Receive, Open::Listen, DURATION),
            native(Direction::Send, Open::Connect, DURATION),
        ];
        let users = looked_at(pair, 0x0d01, ends, ["toll-endpoint"; 2], 2).await;
        assert!(users.len() == 2 || !maps_others(), "each host's child has its own: {users:?}");
    });
    Ok(())
}

fn iperf3_has_no_right() -> Result<(), Failed> {
    // Without it, there is nothing to look at, and an end that needs it is refused.
    let installed = std::process::Command::new("iperf3").arg("--version").output().is_ok();
    Fleet::new().with_both(async |pair| {
        let iperf3 = |direction, open| EndSpec {
            kind: EndKind::Native { program: NativeProgram::Iperf3 },
            job: toll_protocol::traffic::Job {
                timing: toll_protocol::traffic::Timing {
                    warm_up: Span::from_millis(100),
                    duration: DURATION,
                },
                ..native(direction, open, DURATION).job
            },
            ..native(direction, open, DURATION)
        };
        let trial = TrialId::new(0x0d02);
        if !installed {
            pair.a.1.prepare(trial, iperf3(Direction::Receive, Open::Listen)).await;
            assert!(pair.a.1.ready(trial).await.is_err());
            assert_eq!(pair.a.1.tear_down(trial).await, Vec::<String>::new());
            return;
        }
        let ends = (iperf3(Direction::Receive, Open::Listen), iperf3(Direction::Send, Open::Connect));
        pair.start(trial, ends.0, ends.1).await;
        // It has a process of its own from its start to its end.
        for (agent, _) in [&pair.a, &pair.b] {
            let iperf3 =
                until(|| processes(agent, "toll-endpoint").into_iter().find(|id| named(*id, "iperf3")));
            let iperf3 = iperf3.await;
            look(iperf3, &["PATH"]);
            look(parent(iperf3), &["PATH"]);
        }
        finish(pair, trial).await;
    });
    Ok(())
}

fn virtual_ends_have_no_right() -> Result<(), Failed> {
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let threads = toll_protocol::trial::VirtioNetSwitches { io_thread: true, ..Default::default() };
    // All that a guest may ask of the kernel after it has given its rights up: rings in locked memory, writes kept by KVM.
    let optimised = PcnetSwitches {
        io_in_kernel: true,
        send_combining: Some(Default::default()),
        irq_notification: true,
    };
    Fleet::new().with_both(async |pair| {
        let kind = |guest, adapter| match guest {
            true => EndKind::behind(Engine::Payload, adapter, Port::Tap),
            false => EndKind::behind(Engine::SameStack, adapter, Port::Tap),
        };
        for (n, guest, adapter, threads) in [
            (0, true, Adapter::VirtioNet(threads), 3),
            (1, true, Adapter::Pcnet(optimised), 2),
            (2, false, Adapter::VirtioNet(threads), 3),
            // A same-stack end has no exits that the kernel could spare.
            (3, false, Adapter::Pcnet(PcnetSwitches { io_in_kernel: false, ..optimised }), 2),
        ] {
            if guest && !kvm {
                continue;
            }
            let virtual_end =
                EndSpec { kind: kind(guest, adapter), ..native(Direction::Receive, Open::Listen, DURATION) };
            let ends = [virtual_end, native(Direction::Send, Open::Connect, DURATION)];
            looked_at(pair, 0x0d10 + n, ends, ["toll-vmm", "toll-endpoint"], threads).await;
        }
    });
    Ok(())
}

/// An agent that is asked for facts runs guests for a moment, and they have no more rights than those of trials.
fn guests_of_the_probe_have_no_right() -> Result<(), Failed> {
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(());
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut seen = BTreeSet::new();
    // Their moment may pass between two looks.
    while seen.is_empty() {
        assert!(Instant::now() < deadline, "no guest was seen");
        let mut asked = Command::new(AGENT);
        asked.arg("facts").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut agent = Agent(asked.spawn()?);
        while agent.0.try_wait()?.is_none() {
            for vmm in agent.children("toll-vmm") {
                seen.extend(guest(vmm));
            }
        }
        let mut said = String::new();
        agent.0.stdout.take().expect("piped").read_to_string(&mut said)?;
        let facts: HostFacts = serde_json::from_str(&said)?;
        assert!(matches!(facts.kvm, KvmFact::Usable(_)), "{:?}", facts.kvm);
    }
    for status in seen {
        without_rights(&status);
    }
    Ok(())
}

/// What the kernel says of the vCPU's thread of a process, if it has one.
fn guest(process: i32) -> Option<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let statuses = tasks.flatten().filter_map(|task| read_to_string(task.path().join("status")).ok());
    statuses.into_iter().find(|status| field(status, "Name:") == ["vcpu0"])
}

/// Runs a trial and looks at its processes while it is measured; their users. The first has so many threads at least: KVM
/// may add one of the kernel's own.
async fn looked_at(
    pair: &mut Pair,
    trial: u64,
    [a, b]: [EndSpec; 2],
    programs: [&str; 2],
    threads: usize,
) -> BTreeSet<u32> {
    let trial = TrialId::new(trial);
    pair.start(trial, a, b).await;
    sampled(&mut pair.a.1, trial).await;
    sampled(&mut pair.b.1, trial).await;
    let mut users = BTreeSet::new();
    for ((agent, _), program) in [&pair.a, &pair.b].into_iter().zip(programs) {
        let children = agent.children(program);
        assert_eq!(children.len(), 1, "{program}");
        let variables: &[&str] = if program == "toll-endpoint" { &["PATH"] } else { &[] };
        let (user, count) = look(children[0], variables);
        users.insert(user);
        assert!(count >= threads || program != programs[0], "{program} has {count} threads");
    }
    finish(pair, trial).await;
    users
}

/// The traffic runs.
async fn sampled(peer: &mut Peer, wanted: TrialId) {
    peer.hear(|message| match message {
        FromAgent::Sample { trial, .. } if *trial == wanted => Some(()),
        FromAgent::Failed { trial, failure } if *trial == wanted => panic!("{failure:?}"),
        _ => None,
    })
    .await;
}

/// What was confined has measured all the same, and nothing of it is left.
async fn finish(pair: &mut Pair, trial: TrialId) {
    for peer in [&mut pair.a.1, &mut pair.b.1] {
        let report = peer.outcome(trial).await.expect("measured");
        assert!(report.bytes() > 0);
    }
    for peer in [&mut pair.a.1, &mut pair.b.1] {
        assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
    }
}

/// Asserts that no thread of the process has a right, that the process has limits, and `variables` alone. Returns its
/// user and how many threads there are.
fn look(process: i32, variables: &[&str]) -> (u32, usize) {
    let folder = format!("/proc/{process}");
    let tasks: Vec<_> = std::fs::read_dir(format!("{folder}/task")).expect("it runs").flatten().collect();
    let mut users = BTreeSet::new();
    for task in &tasks {
        let status = read_to_string(task.path().join("status")).expect("readable");
        users.insert(without_rights(&status));
    }
    assert_eq!(users.len(), 1, "one user for all threads");
    let environment = std::fs::read(format!("{folder}/environ")).expect("readable");
    let names = environment.split(|byte| *byte == 0).filter(|variable| !variable.is_empty());
    let names: Vec<_> =
        names.map(|it| String::from_utf8_lossy(it).split('=').next().unwrap_or("").to_owned()).collect();
    assert_eq!(names, variables);
    let limits = read_to_string(format!("{folder}/limits")).expect("readable");
    let limit =
        |name: &str| field(&limits, name)[..2].iter().map(|text| text.parse::<u64>()).collect::<Vec<_>>();
    assert_eq!(limit("Max core file size"), [Ok(1), Ok(1)]);
    assert_eq!(limit("Max file size"), [Ok(1 << 20), Ok(1 << 20)]);
    assert_eq!(limit("Max open files"), [Ok(256), Ok(256)]);
    if maps_others() {
        assert_eq!(limit("Max processes"), [Ok(64), Ok(64)]);
        assert_eq!(limit("Max locked memory"), [Ok(1 << 20), Ok(1 << 20)]);
    }
    (users.into_iter().next().expect("a thread"), tasks.len())
}

/// Asserts that the thread of this status has no right. Its user.
fn without_rights(status: &str) -> u32 {
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(status, set), ["0000000000000000"], "{set} of {status}");
    }
    assert_eq!(field(status, "NoNewPrivs:"), ["1"], "{status}");
    let ids = [field(status, "Uid:"), field(status, "Gid:")].concat();
    assert!(ids.iter().all(|id| *id == ids[0]), "{status}");
    let user: u32 = ids[0].parse().expect("a number");
    if maps_others() {
        assert!(USERS.contains(&user) && field(status, "Groups:").is_empty(), "{status}");
    }
    user
}

fn field<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).split_whitespace().collect()
}

/// Whether there are other users in this user namespace.
pub fn maps_others() -> bool {
    let map = read_to_string("/proc/self/uid_map").expect("readable");
    map.split_whitespace()
        .nth(2)
        .and_then(|length| length.parse().ok())
        .is_some_and(|length: u64| length > 65_536)
}

/// Children of the agent of this name, and theirs.
fn processes(agent: &Agent, program: &str) -> Vec<i32> {
    let children = agent.children(program);
    let of = |id: &i32| read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    let theirs: Vec<i32> = children
        .iter()
        .flat_map(|id| of(id).split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect();
    [children, theirs].concat()
}

fn named(process: i32, name: &str) -> bool {
    read_to_string(format!("/proc/{process}/comm")).is_ok_and(|found| found.trim_end() == name)
}

fn parent(process: i32) -> i32 {
    let status = read_to_string(format!("/proc/{process}/status")).expect("it runs");
    field(&status, "PPid:")[0].parse().expect("a number")
}

/// Looks until there is something.
pub async fn until<T>(look: impl Fn() -> Option<T>) -> T {
    let mut again = tokio::time::interval(Duration::from_millis(1));
    let found = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            again.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.expect("in time")
}
