//! Two network namespaces of the caller's own, joined by a veth pair. They end with the threads that hold them.

#![allow(dead_code, reason = "each user of this module needs a part of it")]

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

type Task = Box<dyn FnOnce() + Send>;

/// Name of the interface in either.
pub const NIC: &str = "nic0";
/// Bytes of Ethernet, IPv4 and UDP headers before the payload of a frame, as interfaces count them: without FCS.
pub const HEADERS: u64 = 14 + 20 + 8;

/// A thread in a network namespace.
pub struct Namespace {
    pub address: Ipv4Addr,
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
    tid: i32,
}

impl Namespace {
    fn new(address: Ipv4Addr) -> Self {
        let (tasks, to_do): (Sender<Task>, Receiver<Task>) = channel();
        let (ready, tid) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ready.send(gettid().as_raw()).expect("somebody waits");
            to_do.into_iter().for_each(|task| task());
        });
        let tid = tid.recv().expect("the thread has a namespace");
        Self { address, tasks: Some(tasks), thread: Some(thread), tid }
    }

    /// Runs `task` there; processes that it starts are there too.
    pub fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let task = move || {
            // Nobody waits for the result of a task that panicked.
            let _ = done.send(task());
        };
        self.tasks.as_ref().expect("it runs").send(Box::new(task)).expect("it runs");
        result.recv().expect("the task ended")
    }

    /// Runs a command of iproute2 there.
    pub fn ip(&self, line: &'static str) {
        self.command(line.to_owned());
    }

    fn command(&self, line: String) {
        let ran = self.run(move || {
            let mut words = line.split(' ');
            let output =
                Command::new(words.next().expect("a program")).args(words).output().expect("iproute2");
            (output.status.success(), format!("{line}: {}", String::from_utf8_lossy(&output.stderr)))
        });
        assert!(ran.0, "{}", ran.1);
    }

    /// Frames and bytes that the interface has received.
    pub fn received(&self) -> [u64; 2] {
        let table =
            self.run(|| fs::read_to_string("/proc/thread-self/net/dev").expect("a table of interfaces"));
        let line = table.lines().find_map(|line| line.trim().strip_prefix("nic0:")).expect("the interface");
        let numbers: Vec<u64> =
            line.split_whitespace().map(|number| number.parse().expect("a number")).collect();
        [numbers[1], numbers[0]]
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.tasks = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Why there can be none here.
pub fn obstacle() -> Option<&'static str> {
    let refused = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_err()).join().unwrap_or(true);
    if refused {
        return Some("no network namespace of its own");
    }
    let there = |program| Command::new(program).arg("-V").output().is_ok();
    (!(there("ip") && there("tc"))).then_some("no iproute2")
}

/// Two of them.
pub fn pair() -> [Namespace; 2] {
    let both = [1, 2].map(|host| Namespace::new(Ipv4Addr::new(10, 9, 9, host)));
    let peer = both[1].tid;
    both[0].command(format!("ip link add {NIC} type veth peer name {NIC} netns {peer}"));
    for namespace in &both {
        let address = namespace.address;
        namespace.command(format!("ip address add {address}/24 dev {NIC}"));
        namespace.ip("ip link set lo up");
        namespace.command(format!("ip link set {NIC} up"));
    }
    both
}
