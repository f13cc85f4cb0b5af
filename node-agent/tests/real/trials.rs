//! The agent process end to end: native trials, failures, lost connections, stops.

use std::net::Ipv4Addr;
use std::process::Command;

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quinn::{ConnectionError, VarInt};
use rtnetlink::LinkUnspec;
use toll_protocol::facts::HostFacts;
use toll_protocol::message::{FromAgent, ToAgent};
use toll_protocol::trial::{Direction, EndSpec, Open, TrialId};
use toll_protocol::units::Span;

use crate::Test;
use crate::agents::AGENT;
use crate::host::{Fleet, NIC, native};
use crate::orchestrator::Server;

pub const TESTS: &[Test] = &[
    ("trials::facts_are_json", facts_are_json),
    ("trials::a_native_trial_between_two_hosts", a_native_trial_between_two_hosts),
    ("trials::a_killed_endpoint_fails_its_trial", a_killed_endpoint_fails_its_trial),
    ("trials::an_unacknowledged_outcome_survives_lost_connections", an_unacknowledged_outcome_survives),
    ("trials::a_running_trial_survives_a_lost_connection", a_running_trial_survives_a_lost_connection),
    ("trials::messages_out_of_order_are_answered", messages_out_of_order_are_answered),
    ("trials::an_end_talks_to_its_peer_alone", an_end_talks_to_its_peer_alone),
    ("trials::a_change_of_the_nic_is_told", a_change_of_the_nic_is_told),
    ("trials::a_signal_ends_the_trial_and_cleans_the_host", a_signal_ends_the_trial_and_cleans_the_host),
    ("trials::the_farewell_is_said_though_the_kernel_hangs", the_farewell_is_said_though_the_kernel_hangs),
    ("trials::what_is_left_is_told_until_it_is_removed", what_is_left_is_told_until_it_is_removed),
    ("trials::an_orchestrator_that_reads_nothing_keeps_no_agent", an_orchestrator_that_reads_nothing),
    ("trials::the_agent_waits_for_its_orchestrator", the_agent_waits_for_its_orchestrator),
];

const TRIAL: TrialId = TrialId::new(0x0000_5eed_0002);
const SHORT: Span = Span::from_millis(300);
const LONG: Span = Span::from_millis(5_000);

fn facts_are_json() -> Result<(), Failed> {
    let output = Command::new(AGENT).arg("facts").output()?;
    assert!(output.status.success());
    let facts: HostFacts = serde_json::from_slice(&output.stdout)?;
    assert!(!facts.kernel.is_empty());
    let output = Command::new(AGENT).args(["facts", "--nic", "no-such-nic"]).output()?;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(4), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no network interface no-such-nic"));
    Ok(())
}

fn a_native_trial_between_two_hosts() -> Result<(), Failed> {
    Fleet::new().with_both(async |pair| {
        let facts = pair.a.1.facts.take().expect("facts");
        assert_eq!(facts.nic.expect("the test NIC").name, NIC);
        let sender = native(Direction::Send, Open::Connect, SHORT);
        let receiver = native(Direction::Receive, Open::Listen, SHORT);
        for (n, (a, b)) in [(sender.clone(), receiver.clone()), (receiver, sender)].into_iter().enumerate() {
            let trial = TrialId::new(0x0a00 + n as u64);
            let (a, b) = pair.run(trial, a, b).await;
            for report in [a.expect("a has measured"), b.expect("b has measured")] {
                assert!(report.bytes() > 0 && !report.samples.is_empty(), "{report:?}");
            }
        }
        // Samples came while it ran.
        pair.a.1.hear(|message| matches!(message, FromAgent::Sample { .. }).then_some(())).await;
    });
    Ok(())
}

fn a_killed_endpoint_fails_its_trial() -> Result<(), Failed> {
    Fleet::new().with_both(async |pair| {
        let sender = native(Direction::Send, Open::Connect, LONG);
        pair.start(TRIAL, sender, native(Direction::Receive, Open::Listen, LONG)).await;
        // The measured interval has begun.
        pair.a.1.hear(|message| matches!(message, FromAgent::Sample { .. }).then_some(())).await;
        let children = pair.a.0.children("toll-endpoint");
        let [child] = children[..] else { panic!("{children:?}") };
        kill(Pid::from_raw(child), Signal::SIGKILL).expect("the endpoint is there");
        let failure = pair.a.1.outcome(TRIAL).await.expect_err("killed");
        assert_eq!(failure.reason, "toll-endpoint ended before it was done (signal: 9 (SIGKILL))");
        assert_eq!(pair.a.1.tear_down(TRIAL).await, Vec::<String>::new());
        // The other end is ended early by the orchestrator.
        assert_eq!(pair.b.1.tear_down(TRIAL).await, Vec::<String>::new());
        assert!(pair.b.0.children("toll-endpoint").is_empty());
    });
    Ok(())
}

fn an_unacknowledged_outcome_survives() -> Result<(), Failed> {
    Fleet::new().with_both(async |pair| {
        let sender = native(Direction::Send, Open::Connect, SHORT);
        pair.start(TRIAL, sender, native(Direction::Receive, Open::Listen, SHORT)).await;
        let report = pair.a.1.outcome(TRIAL).await.expect("measured");
        for _ in 0..2 {
            pair.a.1.connection.close(VarInt::from_u32(7), b"lost");
            pair.a.1 = pair.server.accept().await;
            assert_eq!(pair.a.1.held, [TRIAL]);
            assert_eq!(pair.a.1.outcome(TRIAL).await.expect("said again"), report);
        }
        // Torn down and not acknowledged, it is still held, and neither prepared nor started again.
        pair.a.1.say(&ToAgent::Teardown { trial: TRIAL }).await;
        assert_eq!(pair.a.1.torn_down(TRIAL).await, Vec::<String>::new());
        pair.a.1.prepare(TRIAL, native(Direction::Send, Open::Connect, SHORT)).await;
        assert_eq!(pair.a.1.outcome(TRIAL).await.expect("the same"), report);
        let nobody = "10.77.0.2:1".parse().expect("an address");
        pair.a.1.say(&ToAgent::Start { trial: TRIAL, peer: nobody }).await;
        assert_eq!(pair.a.1.outcome(TRIAL).await.expect("the same"), report);
        assert!(pair.a.0.children("toll-endpoint").is_empty());
        assert_eq!(pair.a.1.tear_down(TRIAL).await, Vec::<String>::new());
        assert_eq!(pair.b.1.tear_down(TRIAL).await, Vec::<String>::new());
        pair.a.1.connection.close(VarInt::from_u32(7), b"lost");
        pair.a.1 = pair.server.accept().await;
        assert_eq!(pair.a.1.held, []);
        // Nothing but the answer to this question comes over the new connection.
        let unknown = TrialId::new(0xdead);
        pair.a.1.say(&ToAgent::Teardown { trial: unknown }).await;
        let first = pair.a.1.hear(|message| Some(message.clone())).await;
        assert_eq!(first, FromAgent::TornDown { trial: unknown, leftovers: Vec::new() });
    });
    Ok(())
}

fn a_running_trial_survives_a_lost_connection() -> Result<(), Failed> {
    Fleet::new().with_both(async |pair| {
        let duration = Span::from_millis(1_000);
        let sender = native(Direction::Send, Open::Connect, duration);
        pair.start(TRIAL, sender, native(Direction::Receive, Open::Listen, duration)).await;
        pair.a.1.hear(|message| matches!(message, FromAgent::Sample { .. }).then_some(())).await;
        pair.a.1.connection.close(VarInt::from_u32(7), b"lost");
        pair.a.1 = pair.server.accept().await;
        assert_eq!(pair.a.1.held, [TRIAL]);
        // All that an orchestrator may say again, which does not know how far it had come.
        pair.a.1.prepare(TRIAL, native(Direction::Send, Open::Connect, duration)).await;
        let nobody = "10.77.0.2:1".parse().expect("an address");
        pair.a.1.say(&ToAgent::Start { trial: TRIAL, peer: nobody }).await;
        assert!(pair.a.1.outcome(TRIAL).await.expect("measured all the same").bytes() > 0);
        assert!(pair.b.1.outcome(TRIAL).await.is_ok());
        assert_eq!(pair.a.1.tear_down(TRIAL).await, Vec::<String>::new());
        assert_eq!(pair.b.1.tear_down(TRIAL).await, Vec::<String>::new());
    });
    Ok(())
}

fn messages_out_of_order_are_answered() -> Result<(), Failed> {
    Fleet::new().with_one(async |_, server, agent, mut peer| {
        let (first, second) = (TrialId::new(1), TrialId::new(2));
        let end = native(Direction::Receive, Open::Listen, SHORT);
        let nobody = "10.77.0.2:1".parse().expect("an address");
        peer.say(&ToAgent::Start { trial: first, peer: nobody }).await;
        let failure = peer.outcome(first).await.expect_err("unknown");
        assert!(failure.reason.contains("does not know the trial"), "{}", failure.reason);
        peer.say(&ToAgent::Acknowledged { trial: first }).await;

        peer.prepare(first, end.clone()).await;
        let at = peer.ready(first).await.expect("ready");
        peer.prepare(first, end.clone()).await;
        assert_eq!(peer.ready(first).await.expect("said again"), at);
        peer.prepare(second, end.clone()).await;
        let failure = peer.outcome(second).await.expect_err("refused");
        assert_eq!(failure.reason, format!("this host is busy with trial {first}"));
        assert_eq!(peer.tear_down(second).await, Vec::<String>::new());
        assert_eq!(peer.tear_down(first).await, Vec::<String>::new());
        // Now there is room, and another MTU than the NIC's is refused.
        peer.prepare(second, EndSpec { mtu: 9000, ..end.clone() }).await;
        let failure = peer.ready(second).await.expect_err("an MTU that the NIC has not");
        assert!(failure.reason.contains("MTU of 1500"), "{}", failure.reason);
        assert_eq!(peer.tear_down(second).await, Vec::<String>::new());
        // Start before Ready.
        peer.prepare(first, end).await;
        peer.say(&ToAgent::Start { trial: first, peer: nobody }).await;
        let failure = peer.outcome(first).await.expect_err("too early");
        assert!(failure.reason.contains("before the end was ready"), "{}", failure.reason);
        assert_eq!(peer.tear_down(first).await, Vec::<String>::new());
        assert!(agent.terminate().await.success());
        server.close();
    });
    Ok(())
}

/// An orchestrator that sends an end to this host's own services, to nobody, or to another host than it said first.
fn an_end_talks_to_its_peer_alone() -> Result<(), Failed> {
    Fleet::new().with_one(async |_, server, agent, mut peer| {
        let end = native(Direction::Send, Open::Connect, SHORT);
        // Of the host's two networks, the second is that of the orchestrator.
        let own = ["127.0.0.1", "10.77.0.1", "10.99.1.2"].map(Some);
        let others = ["169.254.169.254", "224.0.0.1", "0.0.0.0", "10.77.0.255", "255.255.255.255"].map(Some);
        for told in own.into_iter().chain(others).chain([None]) {
            let told = told.map(|address| address.parse().expect("an address"));
            peer.prepare(TRIAL, EndSpec { peer: told, ..end.clone() }).await;
            let failure = peer.ready(TRIAL).await.expect_err("no peer");
            assert!(failure.reason.starts_with("the peer's address can't be used: "), "{}", failure.reason);
            assert_eq!(peer.tear_down(TRIAL).await, Vec::<String>::new());
        }
        for stranger in ["127.0.0.1:9999", "10.99.1.1:9999"] {
            peer.prepare(TRIAL, end.clone()).await;
            peer.ready(TRIAL).await.expect("ready");
            let stranger = stranger.parse().expect("an address");
            peer.say(&ToAgent::Start { trial: TRIAL, peer: stranger }).await;
            let failure = peer.outcome(TRIAL).await.expect_err("a stranger").reason;
            assert!(failure.ends_with("its peer is 10.77.0.2: it talks to nobody else"), "{failure}");
            assert_eq!(peer.tear_down(TRIAL).await, Vec::<String>::new());
        }
        assert!(agent.terminate().await.success());
        server.close();
    });
    Ok(())
}

fn a_change_of_the_nic_is_told() -> Result<(), Failed> {
    Fleet::new().with_one(async |fleet, server, agent, mut peer| {
        for mtu in [1400, 1500] {
            fleet.a.with_netlink(async move |handle| {
                let index = crate::links::index(&handle, NIC).await.expect("the NIC");
                let changed = LinkUnspec::new_with_index(index).mtu(mtu).build();
                handle.link().set(changed).execute().await.expect("an MTU");
            });
            let told = |message: &FromAgent| match message {
                FromAgent::Nic { nic } => nic.as_ref().map(|nic| nic.mtu),
                _ => None,
            };
            assert_eq!(peer.hear(told).await, mtu);
            peer.prepare(TRIAL, native(Direction::Send, Open::Connect, SHORT)).await;
            assert_eq!(peer.ready(TRIAL).await.is_ok(), mtu == 1500);
            assert_eq!(peer.tear_down(TRIAL).await, Vec::<String>::new());
        }
        assert!(agent.terminate().await.success());
        server.close();
    });
    Ok(())
}

fn a_signal_ends_the_trial_and_cleans_the_host() -> Result<(), Failed> {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        Fleet::new().with_one(async |_, server, agent, mut peer| {
            peer.prepare(TRIAL, native(Direction::Receive, Open::Listen, SHORT)).await;
            peer.ready(TRIAL).await.expect("ready");
            assert!(agent.end_by(signal).await.success(), "{signal}");
            let rest = peer.rest().await;
            assert!(
                matches!(&rest[..], [FromAgent::Failed { failure, .. }, FromAgent::TornDown { leftovers, .. }]
                    if failure.reason == "the agent was told to stop" && leftovers.is_empty()),
                "{signal}: {rest:?}"
            );
            server.close();
        });
    }
    Ok(())
}

fn the_farewell_is_said_though_the_kernel_hangs() -> Result<(), Failed> {
    Fleet::new().with_one(async |_, server, agent, mut peer| {
        peer.prepare(TRIAL, native(Direction::Receive, Open::Listen, SHORT)).await;
        peer.ready(TRIAL).await.expect("ready");
        let _muted = agent.mute_netlink();
        // The links can't be listed: that is told at the end, and not in place of the last messages.
        assert_eq!(agent.terminate().await.code(), Some(4));
        let rest = peer.rest().await;
        assert!(
            matches!(&rest[..], [FromAgent::Failed { .. }, FromAgent::TornDown { leftovers, .. }]
                if leftovers[0].contains("the kernel did not answer")),
            "{rest:?}"
        );
        let closed = peer.connection.close_reason();
        assert!(matches!(closed, Some(ConnectionError::ApplicationClosed(_))), "{closed:?}");
        server.close();
    });
    Ok(())
}

fn what_is_left_is_told_until_it_is_removed() -> Result<(), Failed> {
    Fleet::new().with_one(async |_, server, agent, mut peer| {
        peer.prepare(TRIAL, native(Direction::Receive, Open::Listen, SHORT)).await;
        peer.ready(TRIAL).await.expect("ready");
        let muted = agent.mute_netlink();
        let left = peer.tear_down(TRIAL).await;
        assert!(left.iter().any(|why| why.contains("the kernel did not answer")), "{left:?}");
        // Whoever hears of the host for the first time hears that it is not clean.
        peer.connection.close(VarInt::from_u32(7), b"restarted");
        let mut peer = server.accept().await;
        assert_eq!(peer.held, [TRIAL]);
        // Asked twice at once, it tries and answers once.
        peer.say(&ToAgent::Teardown { trial: TRIAL }).await;
        let left = peer.tear_down(TRIAL).await;
        assert!(!left.is_empty());
        drop(muted);
        // The kernel may say once that it is still busy with a list that nobody took.
        let mut attempts = 0;
        while !peer.tear_down(TRIAL).await.is_empty() {
            attempts += 1;
            assert!(attempts < 3, "what hindered it is gone");
        }
        peer.connection.close(VarInt::from_u32(7), b"restarted");
        let mut peer = server.accept().await;
        assert_eq!(peer.held, []);
        // Forgotten: as good as any that never was.
        assert_eq!(peer.tear_down(TRIAL).await, Vec::<String>::new());
        assert!(agent.terminate().await.success());
        let of_trial = |message: &FromAgent| matches!(message, FromAgent::TornDown { .. });
        assert_eq!(peer.rest().await.iter().filter(|message| of_trial(message)).count(), 0);
        server.close();
    });
    Ok(())
}

fn an_orchestrator_that_reads_nothing() -> Result<(), Failed> {
    Fleet::new().with_one(async |_, server, agent, mut peer| {
        // The answers, of about 60 bytes each, are more than the stream's window and the agent's queue take.
        for n in 0..10_000 {
            peer.say(&ToAgent::Teardown { trial: TrialId::new(n) }).await;
        }
        // The next message that the agent says waits for room: nothing more comes.
        let (mut before, mut look) = (0, tokio::time::interval(std::time::Duration::from_millis(300)));
        loop {
            look.tick().await;
            let come = peer.connection.stats().frame_rx.stream;
            if come > 0 && come == before {
                break;
            }
            before = come;
        }
        assert!(agent.terminate().await.success());
        drop(peer);
        server.close();
    });
    Ok(())
}

fn the_agent_waits_for_its_orchestrator() -> Result<(), Failed> {
    let fleet = Fleet::new();
    fleet.control.run(async || {
        // Somebody who takes its first packet and says nothing.
        let silent = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.expect("a socket");
        let port = silent.local_addr().expect("an address").port();
        let agent = fleet.start_a(port);
        silent.recv_from(&mut [0; 2048]).await.expect("it dials");
        drop(silent);
        // An orchestrator of another version: the agent dials again, until it is one of its own.
        let server = Server::listen(&fleet.authority, port);
        drop(server.accept_with(99).await);
        drop(server.accept().await);
        assert!(agent.terminate().await.success());
    });
    Ok(())
}
