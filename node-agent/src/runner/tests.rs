//! What an end is refused for.

use toll_protocol::facts::{KvmKind, Wire};
use toll_protocol::traffic::stream::Stream;
use toll_protocol::traffic::{Job, Timing, Traffic};
use toll_protocol::trial::{Direction, Open};
use toll_protocol::units::{MacAddress, Span};

use super::*;

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
    let guest = EndKind::Guest { adapter: Adapter::Pcnet(Default::default()), port: Port::Tap };
    let same_stack = EndKind::SameStack { adapter: Adapter::Pcnet(Default::default()), port: Port::Tap };
    let native = EndKind::Native { program: NativeProgram::Endpoint };
    let iperf3 = EndKind::Native { program: NativeProgram::Iperf3 };
    let why = |facts: &HostFacts, kind: &EndKind| {
        refusal(facts, &end(kind.clone())).map(|failure| failure.reason).unwrap_or_default()
    };
    let without_kvm =
        facts(KvmFact::Unusable { reason: "not there".to_owned(), last_words: Vec::new() }, Ok(()));
    assert_eq!(why(&without_kvm, &guest), "this host can't run a guest: not there");
    assert_eq!(why(&without_kvm, &same_stack), "");
    assert_eq!(why(&without_kvm, &native), "");
    assert_eq!(why(&without_kvm, &iperf3), "this host can't run iperf3: net.ipv4 forbids it");
    let without_tun = facts(KvmFact::Usable(KvmKind::Vmx), Err("no device".to_owned()));
    assert_eq!(why(&without_tun, &guest), "this host can't create a TAP: no device");
    assert_eq!(why(&without_tun, &same_stack), "this host can't create a TAP: no device");
    assert_eq!(why(&without_tun, &native), "");
}

#[test]
fn a_port_is_given_where_the_wire_has_it_and_refused_with_the_reason_elsewhere() {
    let why = |wire, tun, port| {
        let facts = HostFacts { wire, ..facts(KvmFact::Usable(KvmKind::Vmx), tun) };
        let kind = EndKind::Guest { adapter: Adapter::Pcnet(Default::default()), port };
        refusal(&facts, &end(kind)).map(|failure| failure.reason).unwrap_or_default()
    };
    assert_eq!(why(Some(Wire::Macvtap), Err("no device".to_owned()), Port::Host), "");
    assert_eq!(why(Some(Wire::Macvtap), Ok(()), Port::Macvtap), "");
    assert_eq!(why(Some(Wire::Bridge), Ok(()), Port::Host), "");
    let refused = why(Some(Wire::Macvtap), Ok(()), Port::Tap);
    assert!(refused.contains("no port `tap`") && refused.contains("by macvtap"), "{refused}");
    let refused = why(Some(Wire::Exclusive), Ok(()), Port::Macvtap);
    assert!(refused.contains("no port `macvtap`") && refused.contains("by exclusive"), "{refused}");
    assert_eq!(why(None, Ok(()), Port::Host), "this host has no test NIC");
}
