use proptest::prelude::*;

use super::*;
use crate::trial::{Adapter, Direction, Nic, PcnetSwitches, Port, SendCombining, VirtioNetSwitches};
use crate::units::Span;

const GOOD: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: quick}
spec:
  hosts: {lab: {count: 2, link: {rate: 10Gbit, mtu: 1500}}}
  arms:
    - {name: native, native: {}}
    - name: pcnet
      guest: {os: payload, adapter: {pcnet: {}}}
  workloads:
    - name: bulk
      stream: {directions: [send, receive], writeSize: 64KiB, warmUp: 500ms, duration: 2s}
  gates:
    - {cells: {arm: pcnet}, toll: {atMost: 10%}}
";

/// The problems of GOOD with `from` replaced by `to`.
fn problems(from: &str, to: &str) -> Vec<String> {
    assert!(GOOD.contains(from), "the test's own document has no `{from}`");
    let text = GOOD.replacen(from, to, 1);
    parse(&text).expect_err(&text).iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_campaign_is_taken_with_its_defaults() {
    let campaign = parse(GOOD).expect("is good");
    assert_eq!(campaign.blocks, 5);
    assert_eq!(campaign.lab, Some(Lab { count: 2, rate: Some(BitRate(10_000_000_000)), mtu: 1500 }));
    assert_eq!(campaign.arms[1].peers, [Peer::Native]);
    assert_eq!(campaign.workloads[0].asks.timing.duration, Span::from_millis(2000));
    assert_eq!(campaign.native_arm().map(|arm| arm.name.as_str()), Some("native"));
}

#[test]
fn an_unknown_field_is_refused_with_the_known_ones() {
    assert_eq!(
        problems("writeSize", "wirteSize"),
        [
            "line 12, column 45: spec.workloads[0].stream: unknown field `wirteSize`, expected one of `congestionControl`, \
          `directions`, `dscp`, `duration`, `flows`, `maxSegmentSize`, `socketBuffer`, `warmUp`, `writeSize`, `zeroCopy`: \
          did you mean `writeSize`?"
        ]
    );
}

#[test]
fn an_adapter_that_does_not_exist_is_refused_where_it_stands() {
    assert_eq!(
        problems("pcnet: {}}", "rtl8139: {}}"),
        [
            "line 9, column 38: spec.arms[1].guest.adapter: unknown field `rtl8139`, expected `pcnet` or `virtioNet`"
        ]
    );
}

#[test]
fn the_switches_of_virtio_net_are_off_unless_set() {
    let adapter = |written: &str| {
        let text = GOOD.replace("adapter: {pcnet: {}}", &format!("adapter: {{virtioNet: {{{written}}}}}"));
        match parse(&text).expect(written).arms[1].kind.clone() {
            EndKind::Virtual { nic, .. } => nic.adapter,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(adapter(""), Adapter::VirtioNet(VirtioNetSwitches::default()));
    let all = adapter("checksumOffload: true, tso: true, mergeableBuffers: true, eventIndex: true");
    assert_eq!(all.switches(), ["checksumOffload", "tso", "mergeableBuffers", "eventIndex"]);
    assert_eq!(all.to_string(), "virtio-net", "a metric label has no switches in it");
    assert_eq!(adapter("checksumOffload: true, tso: false").switches(), ["checksumOffload"]);
    assert_eq!(adapter("controlQueue: true, queuePairs: 1").switches(), ["controlQueue"]);
    assert_eq!(adapter("controlQueue: true, queuePairs: 8").switches(), ["controlQueue", "queuePairs: 8"]);
}

#[test]
fn the_switches_of_pcnet_are_the_papers_and_off_unless_set() {
    let adapter = |written: &str| {
        let text = GOOD.replace("adapter: {pcnet: {}}", &format!("adapter: {{pcnet: {{{written}}}}}"));
        match parse(&text).expect(written).arms[1].kind.clone() {
            EndKind::Virtual { nic: Nic { adapter: Adapter::Pcnet(switches), .. }, .. } => switches,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(adapter(""), PcnetSwitches::OFF);
    let all = adapter("ioInKernel: true, sendCombining: {}, irqNotification: true");
    assert_eq!(all.send_combining, Some(SendCombining::default()));
    assert_eq!(Adapter::Pcnet(all).switches(), ["ioInKernel", "sendCombining", "irqNotification"]);
    let own = adapter("sendCombining: {threshold: 12, rate: 5000, tick: 1ms}").send_combining;
    assert_eq!(own, Some(SendCombining { threshold: 12, rate: 5000, tick: Span::from_millis(1) }));
}

#[test]
fn a_switch_out_of_its_range_is_refused_where_it_stands() {
    let combining =
        |written: &str| problems("pcnet: {}}", &format!("pcnet: {{sendCombining: {{{written}}}}}}}"));
    assert!(
        combining("threshold: 0")[0].ends_with("sendCombining.threshold: 0 is out of range: write 1 to 512")
    );
    assert!(combining("rate: 2000000")[0].ends_with("write 0 to 1000000"));
    assert!(
        combining("tick: 10us")[0].ends_with("sendCombining.tick: 10us is out of range: write 100us to 1s")
    );
    let same = problems(
        "guest: {os: payload, adapter: {pcnet: {}}}",
        "sameStack: {adapter: {pcnet: {ioInKernel: true}}}",
    );
    assert!(same[0].contains("has no exits that the kernel could spare"), "{same:?}");
}

#[test]
fn virtio_1_2_s5_1_3_1_segmentation_without_checksums_is_refused_where_it_stands() {
    assert_eq!(
        problems("pcnet: {}}", "virtioNet: {tso: true}}"),
        [
            "line 9, column 55: spec.arms[1].guest.adapter.virtioNet.tso: needs the checksum offload (virtio 1.2, \
             5.1.3.1): write `checksumOffload: true, tso: true`"
        ]
    );
    let off = problems("pcnet: {}}", "virtioNet: {tso: true, checksumOffload: false}}");
    assert!(off[0].contains("write `checksumOffload: true"), "{off:?}");
}

#[test]
fn a_negative_duration_is_refused_where_it_stands() {
    assert_eq!(
        problems("duration: 2s", "duration: -2s"),
        [
            "line 12, column 88: spec.workloads[0].stream.duration: `-2s` is negative: write a duration such as \
          `500ms` or `2s`"
        ]
    );
}

#[test]
fn a_bare_number_is_refused_for_its_unit() {
    let found = problems("duration: 2s", "duration: 2");
    assert!(found[0].contains("`2` has no unit"), "{found:?}");
}

#[test]
fn an_arm_named_twice_is_refused_at_the_second() {
    assert_eq!(
        problems("name: pcnet", "name: native"),
        [
            "line 8, column 13: spec.arms[1].name: two arms are named `native`: give each a name of its own",
            "line 14, column 21: spec.gates[0].cells.arm: there is no arm `pcnet`",
        ]
    );
}

#[test]
fn an_empty_matrix_is_refused() {
    let found = problems("directions: [send, receive]", "directions: []");
    assert_eq!(
        found,
        [
            "line 12, column 28: spec.workloads[0].stream.directions: is empty: write `[send, receive]`, one of them or `both`"
        ]
    );
    let no_arms = GOOD
        .replace("    - {name: native, native: {}}\n", "")
        .replace("    - name: pcnet\n      guest: {os: payload, adapter: {pcnet: {}}}\n", "    []\n");
    let found = parse(&no_arms).expect_err("has no arms");
    assert!(found[0].message.contains("at least one arm"), "{found:?}");
}

#[test]
fn an_arm_is_exactly_one_thing() {
    assert!(problems("native: {}}", "}")[0].contains("arm `native` is nothing yet"));
    let both = problems("native: {}}", "native: {}, guest: {os: payload, adapter: {pcnet: {}}}}");
    assert!(both[0].contains("is several things"), "{both:?}");
    assert!(problems("adapter: {pcnet: {}}", "adapter: {pcnet: }")[0].contains("exactly one adapter"));
}

#[test]
fn limits_are_named() {
    assert!(problems("count: 2", "count: 1")[0].contains("1 is out of range: write 2 to 16"));
    assert!(problems("mtu: 1500", "mtu: 9000")[0].contains("at most 1500 bytes; the trials' MTU is 9000"));
    assert!(problems("duration: 2s", "duration: 1ms")[0].contains("write 100ms to 1h"));
    assert!(problems("writeSize: 64KiB", "writeSize: 0B")[0].contains("write 1B to 1MiB"));
    assert!(problems("v1alpha1", "v2")[0].contains("write toll.dev/v1alpha1"));
    assert!(problems("name: quick", "name: Quick Run")[0].contains("is no name"));
}

#[test]
fn a_toll_of_the_baseline_itself_is_refused() {
    assert_eq!(
        problems("cells: {arm: pcnet}", "cells: {arm: native}"),
        [
            "line 14, column 21: spec.gates[0].cells.arm: `native` is the baseline that tolls are relative to: name \
             another arm"
        ]
    );
}

#[test]
fn a_plan_that_no_memory_holds_is_refused() {
    // 120 pairs, an arm to native and a native one, two directions, 1000 blocks.
    let text = GOOD.replace("count: 2", "count: 16").replace("  gates:", "  blocks: 1000\n  gates:");
    let found = parse(&text).expect_err("is too much");
    assert!(found[0].message.contains("has 480000 trials on 16 hosts; at most 100000"), "{found:?}");
}

#[test]
fn a_fleet_that_makes_it_too_large_is_told() {
    let text = GOOD.replace("lab: {count: 2, link: {rate: 10Gbit, mtu: 1500}}", "select: {}");
    let campaign =
        parse(&text.replace("  gates:", "  blocks: 1000\n  gates:")).expect("is good for two hosts");
    assert_eq!((campaign.trials(2), campaign.too_large(2)), (4000, None));
    let why = campaign.too_large(1000).expect("is too much for a thousand");
    assert!(why.starts_with("has 1998000000 trials on 1000 hosts"), "{why}");
    let found = parse(
        &text.replace("select: {}", "select: {atLeast: 400}").replace("  gates:", "  blocks: 1000\n  gates:"),
    );
    assert!(found.expect_err("it would never run")[0].message.contains("on 400 hosts"));
}

#[test]
fn a_document_with_twenty_thousand_mistakes_is_answered_at_once() {
    let many = "    - {name: A}\n".repeat(20_000);
    let found =
        parse(&GOOD.replace("  workloads:\n", &format!("{many}  workloads:\n"))).expect_err("too many");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].message.contains("has 20002 entries; at most 64 are taken"), "{found:?}");
    let some = "    - {name: A}\n".repeat(60);
    let found = parse(&GOOD.replace("  workloads:\n", &format!("{some}  workloads:\n"))).expect_err("wrong");
    assert_eq!(found.len(), 51);
    let places: Vec<_> = found.iter().map(|problem| (problem.line, problem.column)).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(found[50].message, "129 more problems are not shown");
}

#[test]
fn a_document_with_thirty_thousand_faults_of_shape_is_answered_at_once() {
    let many: String = (0..30_000).map(|number| format!("x{number}: 1\n")).collect();
    let found = parse(&format!("{GOOD}{many}")).expect_err("has unknown fields");
    assert_eq!(found.len(), 51);
    assert!(
        found[0].to_string().starts_with("line 15, column 1: unknown field `x0`, expected one of"),
        "{found:?}"
    );
    assert_eq!(found[50].to_string(), "line 65, column 1: 29950 more problems are not shown");
}

#[test]
fn what_was_meant_is_said_and_not_missed() {
    // A misspelt field is not missing too, nor is an arm of a misspelt kind nothing, nor an arm of a misspelt name unknown.
    for (from, to, place, meant) in [
        ("{name: quick}", "{nmae: quick}", (3, 12), "name"),
        ("count: 2", "cuont: 2", (5, 17), "count"),
        ("      guest:", "      geust:", (9, 7), "guest"),
        ("name: pcnet", "mame: pcnet", (8, 7), "name"),
        ("{pcnet: {}}", "{pc-net: {}}", (9, 38), "pcnet"),
        ("toll: {", "tol: {", (14, 29), "toll"),
        ("  workloads:", "  work_loads:", (10, 3), "workloads"),
        ("payload", "Payload", (9, 19), "payload"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let found = parse(&GOOD.replacen(from, to, 1)).expect_err(to);
        assert_eq!(found.len(), 1, "{to}: {found:#?}");
        assert_eq!((found[0].line, found[0].column), place, "{to}: {found:#?}");
        assert!(found[0].message.ends_with(&format!(": did you mean `{meant}`?")), "{found:#?}");
    }
}

#[test]
fn an_interval_that_iperf3_can_not_report_is_refused() {
    let text =
        GOOD.replace("native: {}}", "native: {program: iperf3}}").replace("duration: 2s", "duration: 250ms");
    let found = parse(&text).expect_err("iperf3 reports every 100 ms");
    assert!(found[0].to_string().starts_with("line 12, column 88: "), "{found:?}");
    assert!(found[0].message.contains("250ms is no multiple of 100ms"), "{found:?}");
}

#[test]
fn several_problems_are_told_at_once() {
    let text = GOOD.replace("count: 2", "count: 99").replace("duration: 2s", "duration: 5h");
    assert_eq!(parse(&text).expect_err("is bad").len(), 2);
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = level - 1;
        text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 10].join(", ")));
    }
    assert!(parse(&text).is_err());
    assert!(parse(&"[".repeat(100_000)).is_err());
    assert!(parse(&"x".repeat(MAX_DOCUMENT + 1)).is_err());
    assert!(parse("").is_err());
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_mutation_of_a_good_campaign_panics(at in 0..GOOD.len(), with in "[ -~\n]{0,3}") {
        let mut text = GOOD.to_owned();
        text.replace_range(at..at + 1, &with);
        let _ = parse(&text);
    }
}

#[test]
fn a_port_that_is_no_wires_says_what_it_can_not_carry() {
    let with = |rest: &str| problems("guest: {os: payload, adapter: {pcnet: {}}}", rest);
    let guest = "guest: {os: payload, adapter: {virtioNet: {}}, port: ";
    assert!(with(&format!("{guest}{{hub: {{}}}}}}"))[0].contains("write `peers: [same-arm]` in the arm"));
    let both = with(&format!("{guest}{{nat: {{}}}}}}\n      peers: [native, same-arm]"));
    assert!(both[0].contains("write `peers: [native]` in the arm"), "{both:?}");
    let offload =
        with("guest: {os: payload, adapter: {virtioNet: {checksumOffload: true}}, port: {nat: {}}}");
    assert!(offload[0].contains("guest.port.nat: address translation carries whole frames"), "{offload:?}");
    let two = with(&format!("{guest}{{hub: {{}}, nat: {{}}}}}}"));
    assert!(two[0].contains("must be exactly one port"), "{two:?}");
    let good = |arm: &str| {
        parse(
            &GOOD
                .replace("guest: {os: payload, adapter: {pcnet: {}}}", arm)
                .replace("  gates:", "  blocks: 1\n  gates:"),
        )
        .expect("is good")
    };
    let arm = &good(&format!("{guest}{{nat: {{}}}}}}")).arms[1];
    assert_eq!((arm.kind.port(), &arm.peers[..]), (Some(Port::Nat), &[Peer::Native][..]));
    let arm = &good(&format!("{guest}{{hub: {{}}}}}}\n      peers: [same-arm]")).arms[1];
    assert_eq!((arm.kind.port(), &arm.peers[..]), (Some(Port::Hub), &[Peer::SameArm][..]));
}

const REQUESTS: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: latency}
spec:
  hosts: {lab: {count: 2, link: {mtu: 1500}}}
  arms: [{name: native, native: {}}]
  workloads:
    - {name: bulk, stream: {flows: 3, directions: [send, receive]}}
    - name: rr
      requestResponse: {protocol: udp, rate: 1000, request: 64B, response: 1KiB, background: bulk}
";

fn of_requests(from: &str, to: &str) -> Vec<String> {
    assert!(REQUESTS.contains(from), "the test's own document has no `{from}`");
    let text = REQUESTS.replacen(from, to, 1);
    parse(&text).expect_err(&text).iter().map(ToString::to_string).collect()
}

#[test]
fn requests_and_responses_have_the_stream_beside_them_that_they_name() {
    use crate::traffic::Traffic;
    use crate::traffic::request_response::{Load, Protocol, RequestResponse};
    let campaign = parse(REQUESTS).expect("is good");
    let asks = &campaign.workloads[1].asks;
    assert_eq!(asks.directions, [Direction::Both]);
    let Traffic::RequestResponse(parameters) = &asks.traffic else { panic!("{asks:?}") };
    assert_eq!(parameters.protocol, Protocol::Udp);
    assert_eq!((parameters.request.0, parameters.response.0), (64, 1024));
    assert_eq!(parameters.load, Load::OpenLoop { rate: 1000, busy_wait: false });
    let background = parameters.background.as_ref().expect("is named");
    assert_eq!((background.stream.flows, background.direction), (3, Direction::Both));
    assert_eq!(parameters.fault(), None);

    let shortest =
        REQUESTS.replace("{protocol: udp, rate: 1000, request: 64B, response: 1KiB, background: bulk}", "{}");
    let campaign = parse(&shortest).expect("is good");
    assert_eq!(campaign.workloads[1].asks.traffic, Traffic::RequestResponse(RequestResponse::default()));
}

#[test]
fn requests_and_responses_that_can_not_be_are_refused_where_they_stand() {
    for (from, to, field, why) in [
        ("request: 64B", "request: 0B", "request", "out of range: write 1B to 1MiB"),
        ("request: 64B", "request: 2MiB", "request", "out of range: write 1B to 1MiB"),
        ("request: 64B", "request: 7B", "request", "write 8B to 1472B with UDP"),
        ("response: 1KiB", "response: 1473B", "response", "write 8B to 1472B with UDP"),
        ("response: 1KiB", "response: 1", "response", "has no unit"),
        ("rate: 1000", "rate: 0", "rate", "out of range: write 1 to 1000000"),
        ("rate: 1000", "rate: 1000, depth: 3", "depth", "leave `depth` out"),
        ("rate: 1000", "depth: 1025", "depth", "out of range: write 1 to 1024"),
        ("rate: 1000", "busyWait: true", "busyWait", "a closed loop waits for no moment"),
        ("rate: 1000", "connection: perRequest", "connection", "UDP has no connections"),
        ("protocol: udp, rate: 1000", "connection: perRequest, depth: 2", "depth", "carries one transaction"),
        ("rate: 1000", "timeout: 3s", "timeout", "out of range: write 1ms to 2s"),
        (
            "background: bulk",
            "background: rr",
            "background",
            "`rr` is no stream of this campaign: write one of `bulk`",
        ),
        ("background: bulk", "background: bluk", "background", "`bluk` is no workload of this campaign"),
        ("name: native, native: {}", "name: native, native: {program: iperf3}", "requestResponse", "iperf3"),
        (
            "{name: native, native: {}}",
            "{name: native, native: {}}, {name: v, guest: {os: payload, adapter: {pcnet: {}}}}",
            "requestResponse",
            "a virtual adapter",
        ),
    ] {
        let problems = of_requests(from, to);
        let text = REQUESTS.replacen(from, to, 1);
        let written = format!("{field}: ");
        let column = text.lines().nth(9).and_then(|line| Some(line.find(&written)? + written.len() + 1));
        let place = format!("line 10, column {}: ", column.expect("it is written there"));
        let told = problems.iter().any(|problem| problem.starts_with(&place) && problem.contains(why));
        assert!(told, "`{to}`: {place} and `{why}` are not in {problems:#?}");
    }
}
