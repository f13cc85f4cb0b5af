//! Wires that are not the agent's own: a macvtap on a NIC, or a bridge of the host. The host's addresses, routes and
//! traffic must not notice.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rtnetlink::packet_route::link::MacVtapMode;
use rtnetlink::{LinkMacVtap, LinkUnspec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use toll_protocol::facts::Wire;
use toll_protocol::message::{FromAgent, ToAgent};
use toll_protocol::trial::{
    Adapter, Direction, EndKind, EndSpec, Engine, Nic, Open, Port, QueuePairs, TrialId, VirtioNetSwitches,
};
use toll_protocol::units::{InterfaceAddress, MacAddress, Span};

use crate::Test;
use crate::host::{Fleet, OFFICE, Outcome, Pair, native};
use crate::namespace::Namespace;

pub const TESTS: &[Test] = &[
    ("wires::trials_over_macvtap_leave_the_host_alone", trials_over_macvtap_leave_the_host_alone),
    ("wires::trials_over_a_bridge_leave_the_host_alone", trials_over_a_bridge_leave_the_host_alone),
    ("wires::a_killed_vmm_leaves_no_macvtap", a_killed_vmm_leaves_no_macvtap),
    ("wires::what_a_killed_agent_left_of_macvtap_is_removed", what_a_killed_agent_left_is_removed),
    ("wires::a_macvtap_without_its_alias_is_swept", a_macvtap_without_its_alias_is_swept),
    ("wires::sigterm_in_a_macvtap_trial_cleans_the_host", sigterm_in_a_macvtap_trial_cleans_the_host),
    ("wires::what_the_wire_has_not_is_refused", what_the_wire_has_not_is_refused),
    ("wires::a_bridge_keeps_its_mtu_and_its_mac_address", a_bridge_keeps_its_mtu_and_its_mac_address),
];

const DURATION: Span = Span::from_millis(700);
const LONG: Span = Span::from_millis(5_000);
const TRIAL: TrialId = TrialId::new(0x0000_5eed_0d01);
/// For anything that must come.
const LIMIT: Duration = Duration::from_secs(10);

/// Why there can be no macvtap here.
pub fn lacking() -> Option<String> {
    // As the agent will find out: a node can be made by root of the machine only.
    let host = Namespace::new();
    let made = host.with_netlink(async |handle| {
        let pair = rtnetlink::LinkVeth::new("probe0", "probe1").build();
        handle.link().add(pair).execute().await.map_err(|error| error.to_string())?;
        let index = crate::links::index(&handle, "probe0").await.expect("the pair");
        let macvtap = LinkMacVtap::new("probe2", index, MacVtapMode::Bridge).build();
        handle.link().add(macvtap).execute().await.map_err(|error| format!("no macvtap can be made: {error}"))
    });
    let in_a_user_namespace = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]);
    made.err().or_else(|| in_a_user_namespace.then(|| "no device nodes in a user namespace".to_owned()))
}

/// A virtual end: a guest if this machine can run one, else a same-stack process, over whatever port the wire gives.
fn virtual_end(direction: Direction, open: Open, last: u8, duration: Span) -> EndSpec {
    let (adapter, port) = (Adapter::VirtioNet(Default::default()), Port::Host);
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    EndSpec {
        kind: if kvm {
            EndKind::behind(Engine::Payload, adapter, port)
        } else {
            EndKind::behind(Engine::SameStack, adapter, port)
        },
        address: InterfaceAddress { address: Ipv4Addr::new(10, 77, 0, last), prefix: 24 },
        mac: MacAddress([0x52, 0x54, 0, 0, 0, last]),
        ..native(direction, open, duration)
    }
}

/// The same end with every switch of its adapter on: frames cross the port unfinished.
fn with_offloads(end: EndSpec) -> EndSpec {
    let switches = VirtioNetSwitches {
        checksum_offload: true,
        tso: true,
        mergeable_buffers: true,
        event_index: true,
        segment_combining: true,
        io_thread: true,
        control_queue: true,
        queue_pairs: QueuePairs::new(2).expect("two"),
    };
    let adapter = Adapter::VirtioNet(switches);
    let kind = match end.kind {
        EndKind::Virtual { engine, nic } => EndKind::Virtual { engine, nic: Nic { adapter, ..nic } },
        native @ EndKind::Native { .. } => native,
    };
    EndSpec { kind, ..end }
}

/// Traffic of the host's own, which goes on while `work` runs: an office that sends and gets back what it sent. Returns
/// how many bytes came back.
fn with_traffic(host: &Namespace, office: &Namespace, work: impl FnOnce()) -> u64 {
    let over = AtomicBool::new(false);
    let (tell, port) = oneshot::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            host.run(async || {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.expect("a socket");
                tell.send(listener.local_addr().expect("an address").port()).expect("the office waits");
                let (mut stream, _) = listener.accept().await.expect("the office");
                let (mut reading, mut writing) = stream.split();
                tokio::io::copy(&mut reading, &mut writing).await.expect("all is sent back");
            });
        });
        let exchange = scope.spawn(|| {
            office.run(async || {
                let port = port.await.expect("a port");
                let mut stream =
                    TcpStream::connect((Ipv4Addr::new(10, 77, 0, 1), port)).await.expect("connected");
                let (mut count, mut back) = (0_u64, vec![0; 4096]);
                // Steady, and no load that the trials would have to compete with.
                let mut pace = tokio::time::interval(Duration::from_millis(2));
                while !over.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let sent: Vec<u8> =
                        (0..4096_u64).map(|at| (count.wrapping_mul(31) + at * 7) as u8).collect();
                    stream.write_all(&sent).await.expect("sent");
                    let answer = tokio::time::timeout(LIMIT, stream.read_exact(&mut back)).await;
                    answer.expect("the host answers in time").expect("the connection lasts");
                    assert_eq!(back, sent, "what was sent comes back");
                    count += back.len() as u64;
                }
                count
            })
        });
        let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        let count = exchange.join().expect("the office's traffic is whole");
        finished.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        count
    })
}

/// Lines of a host's state that are not of the trial's own links.
fn own(host: &Namespace) -> Vec<String> {
    let mut lines = host.state();
    lines.retain(|line| !line.contains("IfName(\"tt"));
    // A NIC that has another MAC address to listen for may do it by hearing everything.
    lines.iter().map(|line| line.split(" Promiscuity").next().unwrap_or_default().to_owned()).collect()
}

fn measured(outcomes: (Outcome, Outcome)) {
    let (a, b) = (outcomes.0.expect("a has measured"), outcomes.1.expect("b has measured"));
    assert!(a.bytes() > 0 && b.bytes() > 0, "{a:?} {b:?}");
}

/// Guest to native and guest to guest, both ways, while the host of one end talks to an office.
fn leave_the_host_alone(wire: Wire) {
    let fleet = Fleet::shared(wire);
    let office = fleet.office.as_ref().expect("a shared wire has one");
    let during_before = own(&fleet.a);
    let bytes = with_traffic(&fleet.a, office, || {
        fleet.with_both(async |pair| {
            let facts = pair.a.1.facts.take().expect("facts");
            assert_eq!(facts.wire, Some(wire));
            assert_eq!(facts.guest_addresses.expect("given").to_string(), "10.77.0.100-10.77.0.150");
            assert_eq!(pair.a.1.labels.get("rack").map(String::as_str), Some("b4"));
            let (send, receive) = (Direction::Send, Direction::Receive);
            let (listen, connect) = (Open::Listen, Open::Connect);
            let guest = |direction, open, last| virtual_end(direction, open, last, DURATION);
            let plain = |direction, open| native(direction, open, DURATION);
            let trials = [
                (guest(send, connect, 101), plain(receive, listen)),
                (guest(receive, listen, 101), plain(send, connect)),
                (guest(send, connect, 101), guest(receive, listen, 102)),
                (guest(receive, listen, 101), guest(send, connect, 102)),
                (plain(send, connect), guest(receive, listen, 102)),
                (plain(send, connect), plain(receive, listen)),
                (with_offloads(guest(send, connect, 101)), plain(receive, listen)),
                (with_offloads(guest(receive, listen, 101)), plain(send, connect)),
                (with_offloads(guest(send, connect, 101)), with_offloads(guest(receive, listen, 102))),
                // What one leaves unfinished the kernel finishes for the other.
                (with_offloads(guest(send, connect, 101)), guest(receive, listen, 102)),
            ];
            for (n, (a, b)) in trials.into_iter().enumerate() {
                measured(pair.run(TrialId::new(0x0d00 + n as u64), a, b).await);
            }
            // In the middle of one, the host looks as before.
            pair.start(TRIAL, guest(send, connect, 101), plain(receive, listen)).await;
            sampled(pair).await;
            assert_eq!(own(&fleet.a), during_before, "during a trial");
            let outcomes = (pair.a.1.outcome(TRIAL).await, pair.b.1.outcome(TRIAL).await);
            measured(outcomes);
            assert_eq!(pair.a.1.tear_down(TRIAL).await, Vec::<String>::new());
            assert_eq!(pair.b.1.tear_down(TRIAL).await, Vec::<String>::new());
        });
    });
    assert!(bytes > 0, "the host had traffic of its own");
}

/// The measured interval of this host's end has begun.
async fn sampled(pair: &mut Pair) {
    pair.a
        .1
        .hear(|message| matches!(message, FromAgent::Sample { trial, .. } if *trial == TRIAL).then_some(()))
        .await;
}

fn trials_over_macvtap_leave_the_host_alone() -> Result<(), Failed> {
    leave_the_host_alone(Wire::Macvtap);
    Ok(())
}

fn trials_over_a_bridge_leave_the_host_alone() -> Result<(), Failed> {
    leave_the_host_alone(Wire::Bridge);
    Ok(())
}

fn a_killed_vmm_leaves_no_macvtap() -> Result<(), Failed> {
    let fleet = Fleet::shared(Wire::Macvtap);
    let before = fleet.a.state();
    fleet.with_both(async |pair| {
        let sender = virtual_end(Direction::Send, Open::Connect, 101, LONG);
        pair.start(TRIAL, sender, native(Direction::Receive, Open::Listen, LONG)).await;
        sampled(pair).await;
        let children = pair.a.0.children("toll-vmm");
        let [child] = children[..] else { panic!("{children:?}") };
        kill(Pid::from_raw(child), Signal::SIGKILL).expect("the VMM is there");
        let failure = pair.a.1.outcome(TRIAL).await.expect_err("killed");
        assert_eq!(failure.reason, "toll-vmm ended before it was done (signal: 9 (SIGKILL))");
        assert_eq!(pair.a.1.tear_down(TRIAL).await, Vec::<String>::new());
        assert_eq!(fleet.a.state(), before);
        assert_eq!(pair.b.1.tear_down(TRIAL).await, Vec::<String>::new());
        // A trial that failed may have met another user of its address: the network is asked again.
        let office = fleet.office.as_ref().expect("a shared wire has one");
        office.address("eth0", Ipv4Addr::new(10, 77, 0, 101));
        pair.a.1.prepare(TRIAL, virtual_end(Direction::Send, Open::Connect, 101, LONG)).await;
        let failure = pair.a.1.ready(TRIAL).await.expect_err("the office has it");
        assert!(failure.reason.starts_with("address 10.77.0.101 is in use by "), "{}", failure.reason);
        assert_eq!(pair.a.1.tear_down(TRIAL).await, Vec::<String>::new());
        // The next one gets the number that has become free, and is measured.
        let receiver = native(Direction::Receive, Open::Listen, DURATION);
        let sender = virtual_end(Direction::Send, Open::Connect, 102, DURATION);
        measured(pair.run(TrialId::new(0x0d0f), sender, receiver).await);
    });
    Ok(())
}

fn what_a_killed_agent_left_is_removed() -> Result<(), Failed> {
    let fleet = Fleet::shared(Wire::Macvtap);
    let before = fleet.a.state();
    fleet.with_one(async |fleet, server, mut agent, mut peer| {
        peer.prepare(TRIAL, virtual_end(Direction::Receive, Open::Listen, 101, DURATION)).await;
        peer.ready(TRIAL).await.expect("ready");
        let children = agent.children("toll-vmm");
        assert_eq!(children.len(), 1);
        agent.0.kill().expect("killed");
        agent.0.wait().expect("reaped");
        crate::processes::dead(children[0].cast_unsigned()).await;
        let names: Vec<String> = fleet.a.links().into_iter().map(|(name, ..)| name).collect();
        assert!(names.contains(&format!("tt{TRIAL}")), "a macvtap outlives those who used it: {names:?}");
        let agent = fleet.start_a(server.port);
        let again = server.accept().await;
        // It dials when the host is clean.
        assert_eq!(again.held, []);
        assert_eq!(fleet.a.state(), before);
        assert!(agent.terminate().await.success());
        server.close();
    });
    Ok(())
}

fn a_macvtap_without_its_alias_is_swept() -> Result<(), Failed> {
    let fleet = Fleet::shared(Wire::Macvtap);
    let of_another = "tt0000000000ff";
    fleet.a.with_netlink(async |handle| {
        let nic = crate::links::index(&handle, crate::host::NIC).await.expect("the NIC");
        for name in ["tt0000000000aa", of_another] {
            let macvtap = LinkMacVtap::new(name, nic, MacVtapMode::Bridge).build();
            handle.link().add(macvtap).execute().await.expect("a macvtap");
        }
        let index = crate::links::index(&handle, of_another).await.expect("made");
        let named = LinkUnspec::new_with_index(index).alias("a virtual machine").build();
        handle.link().set(named).execute().await.expect("named");
    });
    fleet.control.run(async || {
        let server = crate::orchestrator::Server::listen(&fleet.authority, 0);
        let agent = fleet.start_a(server.port);
        drop(server.accept().await);
        let names: Vec<String> = fleet.a.links().into_iter().map(|(name, ..)| name).collect();
        let ours: Vec<&String> = names.iter().filter(|name| name.starts_with("tt")).collect();
        assert_eq!(ours, [of_another]);
        assert!(agent.terminate().await.success());
        server.close();
    });
    Ok(())
}

fn sigterm_in_a_macvtap_trial_cleans_the_host() -> Result<(), Failed> {
    Fleet::shared(Wire::Macvtap).with_one(async |_, server, agent, mut peer| {
        peer.prepare(TRIAL, virtual_end(Direction::Receive, Open::Listen, 101, DURATION)).await;
        peer.ready(TRIAL).await.expect("ready");
        // Within 15 s, and with a host as before, which the fleet looks at.
        assert!(agent.terminate().await.success());
        let rest = peer.rest().await;
        assert!(
            matches!(&rest[..], [FromAgent::Failed { failure, .. }, FromAgent::TornDown { leftovers, .. }]
                if failure.reason == "the agent was told to stop" && leftovers.is_empty()),
            "{rest:?}"
        );
        server.close();
    });
    Ok(())
}

fn what_the_wire_has_not_is_refused() -> Result<(), Failed> {
    Fleet::shared(Wire::Macvtap).with_one(async |fleet, server, agent, mut peer| {
        let end = virtual_end(Direction::Receive, Open::Listen, 101, DURATION);
        let (mut n, mut reasons) = (0, Vec::new());
        let tap = EndKind::behind(Engine::SameStack, Adapter::VirtioNet(Default::default()), Port::Tap);
        let at = |last| InterfaceAddress { address: Ipv4Addr::new(10, 77, 0, last), prefix: 24 };
        // The office moves to an address of the guests'.
        let office = fleet.office.as_ref().expect("a shared wire has one");
        office.address("eth0", Ipv4Addr::new(10, 77, 0, 142));
        for refused in [
            EndSpec { kind: tap, ..end.clone() },
            EndSpec { address: at(OFFICE.octets()[3]), ..end.clone() },
            EndSpec { address: at(142), ..end.clone() },
            EndSpec { mtu: 9000, ..end.clone() },
        ] {
            n += 1;
            let trial = TrialId::new(0x0e00 + n);
            peer.prepare(trial, refused).await;
            reasons.push(peer.ready(trial).await.expect_err("refused").reason);
            assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
        }
        assert!(
            reasons[0].contains("asks for the port tap") && reasons[0].contains("wire is macvtap"),
            "{reasons:?}"
        );
        assert!(
            reasons[1].contains("10.77.0.100-10.77.0.150") && reasons[1].contains("none of them"),
            "{reasons:?}"
        );
        assert!(reasons[2].starts_with("address 10.77.0.142 is in use by "), "{reasons:?}");
        assert!(reasons[3].contains("an MTU of 1500 bytes"), "{reasons:?}");
        // After which it is as good as new, and the second time needs no probe.
        for time in 0..2 {
            let (trial, began) = (TrialId::new(0x0f00 + time), std::time::Instant::now());
            peer.prepare(trial, end.clone()).await;
            peer.ready(trial).await.expect("ready");
            let took = began.elapsed();
            assert!((time == 0) == (took >= Duration::from_millis(300)), "time {time}: {took:?}");
            // Said again, it is answered again.
            peer.say(&ToAgent::Prepare { trial, end: Box::new(end.clone()) }).await;
            peer.ready(trial).await.expect("said again");
            assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
        }
        assert!(agent.terminate().await.success());
        server.close();
    });
    Ok(())
}

fn a_bridge_keeps_its_mtu_and_its_mac_address() -> Result<(), Failed> {
    let fleet = Fleet::shared(Wire::Bridge);
    // The guest's MAC address is lower than any that the kernel gives by chance to most, and the MTU of the trial
    // smaller: neither reaches the bridge.
    let (before, links) = (own(&fleet.a), fleet.a.links());
    fleet.with_one(async |fleet, server, agent, mut peer| {
        let low = EndSpec {
            mac: MacAddress([0x02, 0, 0, 0, 0, 1]),
            mtu: 1280,
            ..virtual_end(Direction::Receive, Open::Listen, 103, DURATION)
        };
        peer.prepare(TRIAL, low).await;
        peer.ready(TRIAL).await.expect("ready");
        let tap = (format!("tt{TRIAL}"), 1500, Some("br0".to_owned()));
        let during = fleet.a.links();
        assert!(during.contains(&tap), "{during:?}");
        assert_eq!(own(&fleet.a), before);
        assert_eq!(peer.tear_down(TRIAL).await, Vec::<String>::new());
        assert_eq!(fleet.a.links(), links);
        assert!(agent.terminate().await.success());
        server.close();
    });
    Ok(())
}
