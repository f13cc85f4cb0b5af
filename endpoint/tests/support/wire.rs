//! Two network namespaces of the test's own with a wire between them: a veth pair, or a TAP in each and threads that carry the
//! frames, later or not at all. (netem would do that too, and is in few kernels.)
#![allow(dead_code, reason = "each test uses a part")]

use std::fs::{File, OpenOptions};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use toll_protocol::child::EndpointConfig;
use tun_tap::{Iface, Mode};

use crate::support::{End, fail};

/// Name of the interface at either end.
const INTERFACE: &str = "wire";

/// An end of the wire.
#[derive(Clone, Copy)]
pub enum Side {
    Near,
    Far,
}

impl Side {
    pub const fn address(self) -> Ipv4Addr {
        match self {
            Self::Near => Ipv4Addr::new(10, 91, 0, 1),
            Self::Far => Ipv4Addr::new(10, 91, 0, 2),
        }
    }
}

/// What is wrong with a wire, each way alike.
#[derive(Clone, Copy, Default)]
pub struct Wrong {
    /// How long a frame is under way at least.
    pub delay: Duration,
    /// Every so many IPv4 packets one is lost.
    pub loses_every: Option<u64>,
}

/// Carries frames from one TAP to the other, for as long as the process runs.
fn carry(from: Arc<Iface>, to: Arc<Iface>, wrong: Wrong) {
    /// EtherType of IPv4.
    const IPV4: [u8; 2] = [8, 0];
    let (sender, frames) = channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let (mut packets, mut frame) = (0, vec![0; 65_536]);
        while let Ok(length) = from.recv(&mut frame) {
            let due = Instant::now() + wrong.delay;
            packets += u64::from(frame.get(12..14) == Some(&IPV4));
            let lost = wrong.loses_every.is_some_and(|every| packets > 0 && packets.is_multiple_of(every));
            if lost {
                packets = 0;
            } else if sender.send((due, frame[..length].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, frame) in frames {
            // A moment that is waited for by a condition which never comes about.
            let (lock, never) = (Mutex::new(()), Condvar::new());
            let mut held = lock.lock().expect("is free");
            while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                held = never.wait_timeout(held, left).expect("is free").0;
            }
            // It fails while that end is not up yet.
            let _ = to.send(&frame);
        }
    });
}

/// Both namespaces. The thread that made them is in one of them, and so is what it starts.
pub struct Wire {
    near: File,
    far: File,
}

/// Why there can be none here.
pub fn obstacle() -> Option<&'static str> {
    let refused = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_err()).join().unwrap_or(true);
    let no_tc = Command::new("tc").arg("-V").output().is_err();
    let no_tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err();
    let obstacles = [
        (refused, "no network namespace of its own"),
        (no_tc, "no tc (iproute2)"),
        (no_tap, "no usable /dev/net/tun"),
    ];
    obstacles.into_iter().find_map(|(is, what)| is.then_some(what))
}

/// Runs a command of iproute2.
fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap_or_default()).args(words).output();
    let output = output.unwrap_or_else(|error| fail(&format!("{command}: {error}")));
    assert!(output.status.success(), "{command}: {output:?}");
}

impl Wire {
    /// A veth pair, for the calling thread.
    pub fn new() -> Self {
        let wire = Self::cut();
        let path = format!("/proc/{}/fd/{}", std::process::id(), wire.far.as_raw_fd());
        wire.run(
            Side::Near,
            &format!("ip link add {INTERFACE} type veth peer name {INTERFACE} netns {path}"),
        );
        wire.up()
    }

    /// One that has something wrong with it.
    pub fn with(wrong: Wrong) -> Self {
        let wire = Self::cut();
        let tap = || Arc::new(Iface::without_packet_info(INTERFACE, Mode::Tap).expect("a TAP"));
        let [near, far] = [Side::Near, Side::Far].map(|side| wire.at(side, tap));
        carry(Arc::clone(&near), Arc::clone(&far), wrong);
        carry(far, near, wrong);
        wire.up()
    }

    /// Two namespaces.
    fn cut() -> Self {
        let namespace = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            run("ip link set lo up");
            File::open("/proc/thread-self/ns/net").expect("a file")
        };
        let far = namespace();
        let near = namespace();
        Self { near, far }
    }

    fn up(self) -> Self {
        for side in [Side::Near, Side::Far] {
            self.run(side, &format!("ip addr add {}/24 dev {INTERFACE}", side.address()));
            self.run(side, &format!("ip link set {INTERFACE} up"));
        }
        self
    }

    fn enter(&self, side: Side) {
        let namespace = match side {
            Side::Near => &self.near,
            Side::Far => &self.far,
        };
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("it is a namespace");
    }

    /// Runs a command of iproute2 at one end.
    pub fn run(&self, side: Side, command: &str) {
        self.enter(side);
        run(command);
    }

    /// Gives both ends a queueing discipline (tc(8)).
    pub fn queue(&self, discipline: &str) {
        for side in [Side::Near, Side::Far] {
            self.run(side, &format!("tc qdisc replace dev {INTERFACE} root {discipline}"));
        }
    }

    /// Does something at one end, like starting a process.
    pub fn at<T>(&self, side: Side, what: impl FnOnce() -> T) -> T {
        self.enter(side);
        what()
    }

    /// An end there.
    pub fn end(&self, side: Side, mut config: EndpointConfig) -> End {
        (config.address.address, config.address.prefix) = (side.address(), 24);
        config.interface = INTERFACE.to_owned();
        self.at(side, || End::configured(config))
    }
}
