use std::net::Ipv4Addr;

use super::*;
use crate::facts::KvmKind;
use crate::traffic::stream::Stream;
use crate::traffic::{Job, Timing, Traffic};
use crate::trial::{Adapter, Direction, Engine, Open};
use crate::units::{Bytes, MacAddress, Span};

fn facts(kvm: KvmFact, tun: Result<(), String>) -> HostFacts {
    HostFacts {
        cpus: vec![0],
        kvm,
        tun,
        wire: Some(Wire::Exclusive),
        iperf3: Err("net.ipv4 forbids it".into()),
        ..HostFacts::default()
    }
}

fn end(kind: EndKind) -> EndSpec {
    let job = Job {
        open: Open::Connect,
        direction: Direction::Send,
        timing: Timing { warm_up: Span(0), duration: Span(1) },
        traffic: Traffic::Stream(Stream { write_size: Bytes(1), ..Stream::default() }),
    };
    EndSpec {
        peer: Some(Ipv4Addr::new(10, 77, 0, 1)),
        ..EndSpec::new(
            kind,
            job,
            "10.77.0.101/24".parse().expect("an address"),
            MacAddress([2; 6]),
            1500,
            Span(1),
        )
    }
}

#[test]
fn an_end_is_refused_for_what_it_needs_and_for_nothing_else() {
    let guest = EndKind::behind(Engine::Payload, Adapter::Pcnet(Default::default()), Port::Tap);
    let same_stack = EndKind::behind(Engine::SameStack, Adapter::Pcnet(Default::default()), Port::Tap);
    let native = EndKind::Native { program: NativeProgram::Endpoint };
    let iperf3 = EndKind::Native { program: NativeProgram::Iperf3 };
    let why = |facts: &HostFacts, kind: &EndKind| {
        lack(&end(kind.clone()), facts).map(|lack| lack.to_string()).unwrap_or_default()
    };
    let without_kvm =
        facts(KvmFact::Unusable { reason: "not there".to_owned(), last_words: Vec::new() }, Ok(()));
    assert_eq!(why(&without_kvm, &guest), "no guest can run: not there");
    assert_eq!(why(&without_kvm, &same_stack), "");
    assert_eq!(why(&without_kvm, &native), "");
    assert_eq!(why(&without_kvm, &iperf3), "iperf3 can't run: net.ipv4 forbids it");
    let without_tun = facts(KvmFact::Usable(KvmKind::Vmx), Err("no device".to_owned()));
    assert_eq!(why(&without_tun, &guest), "no TAP device can be made: no device");
    assert_eq!(why(&without_tun, &same_stack), "no TAP device can be made: no device");
    assert_eq!(why(&without_tun, &native), "");
}

#[test]
fn a_port_is_given_where_the_wire_has_it_and_refused_with_the_reason_elsewhere() {
    let why = |wire, tun, port| {
        let facts = HostFacts { wire, ..facts(KvmFact::Usable(KvmKind::Vmx), tun) };
        let kind = EndKind::behind(Engine::Payload, Adapter::Pcnet(Default::default()), port);
        lack(&end(kind), &facts).map(|lack| lack.to_string()).unwrap_or_default()
    };
    assert_eq!(why(Some(Wire::Macvtap), Err("no device".to_owned()), Port::Host), "");
    assert_eq!(why(Some(Wire::Macvtap), Ok(()), Port::Macvtap), "");
    assert_eq!(why(Some(Wire::Bridge), Ok(()), Port::Host), "");
    let refused = why(Some(Wire::Macvtap), Ok(()), Port::Tap);
    assert!(refused.contains("the port tap") && refused.contains("wire is macvtap"), "{refused}");
    let refused = why(Some(Wire::Exclusive), Ok(()), Port::Macvtap);
    assert!(refused.contains("the port macvtap") && refused.contains("wire is exclusive"), "{refused}");
    assert_eq!(why(None, Ok(()), Port::Host), "the host has no test NIC: start the agent with --nic");
}

#[test]
fn an_adapter_is_not_given_a_path_that_it_can_not_fill() {
    let facts = facts(KvmFact::Usable(KvmKind::Vmx), Ok(()));
    let kind = EndKind::behind(Engine::SameStack, Adapter::Pcnet(Default::default()), Port::Nat);
    let jumbo = EndSpec { mtu: 9000, ..end(kind) };
    let why = lack(&jumbo, &facts).map(|lack| lack.to_string());
    assert_eq!(why.as_deref(), Some("pcnet carries packets of at most 1500 bytes; the path's MTU is 9000"));
    let adapter = Adapter::VirtioNet(Default::default());
    let jumbo = EndSpec { kind: EndKind::behind(Engine::SameStack, adapter, Port::Nat), ..jumbo };
    assert_eq!(lack(&jumbo, &facts), None);
}
