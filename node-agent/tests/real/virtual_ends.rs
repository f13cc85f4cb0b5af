//! Trials with a virtual end: a guest or a same-stack process over a TAP on a bridge with the test NIC.

use libtest_mimic::Failed;
use toll_protocol::trial::{Adapter, Direction, EndKind, EndSpec, Engine, Open, Port, TrialId};
use toll_protocol::units::Span;

use crate::Test;
use crate::agents::beside;
use crate::host::{Fleet, Pair, native};
use crate::orchestrator::{Peer, Server};

pub const TESTS: &[Test] = &[
    ("virtual_ends::a_same_stack_trial_against_native", a_same_stack_trial_against_native),
    ("virtual_ends::a_guest_trial_against_native", a_guest_trial_against_native),
    ("virtual_ends::what_a_killed_agent_left_is_removed", what_a_killed_agent_left_is_removed),
];

const DURATION: Span = Span::from_millis(1_000);

/// Those that need no VMM.
pub const WITHOUT_VMM: &[Test] =
    &[("virtual_ends::a_guest_is_refused_without_kvm", a_guest_is_refused_without_kvm)];

/// Why there can be no virtual end here.
pub fn lacking() -> Option<String> {
    if !beside("toll-vmm").exists() {
        return Some("toll-vmm is not built".to_owned());
    }
    let tun = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    tun.err().map(|error| format!("/dev/net/tun can't be opened: {error}"))
}

fn virtual_end(kind: EndKind) -> EndSpec {
    EndSpec { kind, ..native(Direction::Receive, Open::Listen, DURATION) }
}

fn a_same_stack_trial_against_native() -> Result<(), Failed> {
    Fleet::new().with_both(async |pair| {
        let kind = EndKind::behind(Engine::SameStack, Adapter::VirtioNet(Default::default()), Port::Tap);
        measure(pair, TrialId::new(0x0b01), kind).await;
    });
    Ok(())
}

fn a_guest_trial_against_native() -> Result<(), Failed> {
    let without_kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err();
    Fleet::new().with_both(async |pair| {
        for adapter in [Adapter::Pcnet(Default::default()), Adapter::VirtioNet(Default::default())] {
            let trial = TrialId::new(0x0b02);
            let kind = EndKind::behind(Engine::Payload, adapter, Port::Tap);
            if without_kvm {
                refuse(&mut pair.a.1, trial, kind).await;
            } else {
                measure(pair, trial, kind).await;
            }
        }
    });
    Ok(())
}

async fn measure(pair: &mut Pair, trial: TrialId, kind: EndKind) {
    let sender = native(Direction::Send, Open::Connect, DURATION);
    let (a, b) = pair.run(trial, virtual_end(kind), sender).await;
    let (a, b) = (a.expect("the virtual end has measured"), b.expect("the native end has measured"));
    assert!(a.bytes() > 0 && b.bytes() > 0, "{a:?} {b:?}");
    assert!(a.frames.is_some_and(|frames| frames.receive_frames > 0), "{a:?}");
}

/// A guest end is answered at once where there is no KVM, and the native ends of the same host go on.
async fn refuse(peer: &mut Peer, trial: TrialId, kind: EndKind) {
    peer.prepare(trial, virtual_end(kind)).await;
    let failure = peer.ready(trial).await.expect_err("there is no KVM");
    assert!(
        failure.reason.starts_with("this host can't run the end: no guest can run: "),
        "{}",
        failure.reason
    );
    assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
    peer.prepare(trial, native(Direction::Receive, Open::Listen, DURATION)).await;
    peer.ready(trial).await.expect("ready");
    assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
}

fn a_guest_is_refused_without_kvm() -> Result<(), Failed> {
    let fleet = Fleet::new();
    fleet.control.run(async || {
        let server = Server::listen(&fleet.authority, 0);
        let agent = fleet.start_a_without_kvm(server.port);
        let mut peer = server.accept().await;
        let kind = EndKind::behind(Engine::Payload, Adapter::Pcnet(Default::default()), Port::Tap);
        refuse(&mut peer, TrialId::new(0x0b03), kind).await;
        assert!(agent.terminate().await.success());
        server.close();
    });
    Ok(())
}

fn what_a_killed_agent_left_is_removed() -> Result<(), Failed> {
    Fleet::new().with_one(async |fleet, server, mut agent, mut peer| {
        let kind = EndKind::behind(Engine::SameStack, Adapter::Pcnet(Default::default()), Port::Tap);
        let trial = TrialId::new(0x0c00);
        peer.prepare(trial, virtual_end(kind)).await;
        peer.ready(trial).await.expect("ready");
        let children = agent.children("toll-vmm");
        assert_eq!(children.len(), 1);
        agent.0.kill().expect("killed");
        agent.0.wait().expect("reaped");
        let agent = fleet.start_a(server.port);
        let mut again = server.accept().await;
        // It dials when the host is clean; the VMM died with the first agent, and its TAP with it.
        assert!(fleet.a.links().iter().all(|(name, ..)| !name.starts_with('t') || name == "test0"));
        crate::processes::dead(children[0].cast_unsigned()).await;
        assert_eq!(again.tear_down(trial).await, Vec::<String>::new());
        assert!(agent.terminate().await.success());
        server.close();
    });
    Ok(())
}
