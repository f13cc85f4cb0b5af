//! Trials with a virtual end: a guest or a same-stack process over a TAP on a bridge with the test NIC.

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use toll_protocol::trial::{Adapter, Direction, EndKind, EndSpec, Open, Port, TrialId};
use toll_protocol::units::Span;

use crate::Test;
use crate::agents::beside;
use crate::host::{Fleet, native};

pub const TESTS: &[Test] = &[
    ("virtual_ends::a_same_stack_trial_against_native", a_same_stack_trial_against_native),
    ("virtual_ends::a_guest_trial_against_native", a_guest_trial_against_native),
    ("virtual_ends::what_a_killed_agent_left_is_removed", what_a_killed_agent_left_is_removed),
];

const SHORT: Span = Span::from_millis(300);

/// Why there can be no virtual end here.
pub fn lacking() -> Option<String> {
    if !beside("toll-vmm").exists() {
        return Some("toll-vmm is not built".to_owned());
    }
    let tun = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    tun.err().map(|error| format!("/dev/net/tun can't be opened: {error}"))
}

fn virtual_end(kind: EndKind, direction: Direction, open: Open) -> EndSpec {
    EndSpec { kind, ..native(direction, open, SHORT) }
}

fn a_same_stack_trial_against_native() -> Result<(), Failed> {
    both_ways(&EndKind::SameStack { adapter: Adapter::VirtioNet, port: Port::Tap })
}

fn a_guest_trial_against_native() -> Result<(), Failed> {
    both_ways(&EndKind::Guest { adapter: Adapter::VirtioNet, port: Port::Tap })
}

fn both_ways(kind: &EndKind) -> Result<(), Failed> {
    let fleet = Fleet::new();
    let without_kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err();
    fleet.with_both(async |pair| {
        for (n, direction) in [Direction::Send, Direction::Receive].into_iter().enumerate() {
            let trial = TrialId::new(0x0b00 + n as u64);
            let end = virtual_end(kind.clone(), direction, Open::Connect);
            if without_kvm && matches!(kind, EndKind::Guest { .. }) {
                pair.a.1.prepare(trial, end).await;
                let failure = pair.a.1.ready(trial).await.expect_err("there is no KVM");
                assert!(failure.reason.starts_with("this host can't run a guest"), "{}", failure.reason);
                assert_eq!(pair.a.1.tear_down(trial).await, Vec::<String>::new());
                continue;
            }
            let other = native(direction.opposite(), Open::Listen, SHORT);
            let (a, b) = pair.run(trial, end, other).await;
            let (a, b) = (a.expect("the virtual end has measured"), b.expect("the native end has measured"));
            assert!(a.bytes > 0 && b.bytes > 0, "{a:?} {b:?}");
            assert!(a.frames.is_some_and(|frames| frames.transmit_frames > 0), "{a:?}");
        }
    });
    Ok(())
}

fn what_a_killed_agent_left_is_removed() -> Result<(), Failed> {
    Fleet::new().with_one(async |fleet, server, mut agent, mut peer| {
        let kind = EndKind::SameStack { adapter: Adapter::Pcnet, port: Port::Tap };
        let trial = TrialId::new(0x0c00);
        peer.prepare(trial, virtual_end(kind, Direction::Receive, Open::Listen)).await;
        peer.ready(trial).await.expect("ready");
        let children = agent.children("toll-vmm");
        assert_eq!(children.len(), 1);
        agent.0.kill().expect("killed");
        agent.0.wait().expect("reaped");
        let agent = fleet.start_a(server.port);
        let mut again = server.accept().await;
        // It dials when the host is clean; the VMM died with the first agent, and its TAP with it.
        assert!(fleet.a.links().iter().all(|(name, ..)| !name.starts_with('t') || name == "test0"));
        assert!(kill(Pid::from_raw(children[0]), None::<Signal>).is_err());
        assert_eq!(again.tear_down(trial).await, Vec::<String>::new());
        assert!(agent.terminate().await.success());
        server.close();
    });
    Ok(())
}
