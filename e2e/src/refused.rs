//! Campaigns that are refused: for each CEL rule of the `Campaign` object at least one, which `toll validate` refuses
//! too, in the same words.

/// A campaign that a cluster takes.
pub const GOOD: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: refused}
spec:
  hosts: {select: {}}
  blocks: 1
  arms:
    - {name: native, native: {}}
    - {name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}}
  workloads:
    - {name: bulk, stream: {warmUp: 100ms, duration: 1.1s}}
";

/// A campaign that is refused: [`GOOD`] with a fault.
pub struct Refused {
    /// What stands in `GOOD`.
    from: &'static str,
    /// The fault that replaces it.
    to: &'static str,
    /// What both the validator and the API server say.
    pub words: &'static str,
    /// A part of the rule's message without the values that it may name; nothing if the shape alone refuses.
    pub rule: &'static str,
}

impl Refused {
    /// The whole document.
    pub fn document(&self) -> String {
        GOOD.replacen(self.from, self.to, 1)
    }
}

/// A fault, and the words for it.
const fn one(from: &'static str, to: &'static str, words: &'static str) -> Refused {
    Refused { from, to, words, rule: words }
}

/// A fault whose words name a value.
const fn naming(from: &'static str, to: &'static str, words: &'static str, rule: &'static str) -> Refused {
    Refused { from, to, words, rule }
}

const SELECT: &str = "{select: {}}";
const NATIVE: &str = "native: {}}";
const VIRTIO: &str = "adapter: {virtioNet: {}}";
const NAME: &str = "name: virtio, ";
const STREAM: &str = "stream: {warmUp: 100ms, duration: 1.1s}";
const BLOCKS: &str = "blocks: 1";
const NO_NAME: &str = "is no name: write 1 to 63 of a-z, 0-9 and -, not - at an end";
const NO_RATE: &str =
    "is no link rate in bits per second: write a number and its unit, such as `100Mbit` or `10Gbit`";
const NO_SPAN: &str = "is no duration: write a number and its unit, such as `500ms` or `2s`";
const NO_SIZE: &str = "is no size: write a number and its unit, such as `64KiB` or `1500B`";
const RATES: &str = "is out of range: write 64kbit to 1000Gbit";
const NO_SHARE: &str = "is no percentage: write a number and its unit, such as `10%`";
const IPERF3: &str = "100ms, as an arm with iperf3 needs";
const ADAPTER: &str = "must be exactly one adapter: `{pcnet: {}}` or `{virtioNet: {}}`";
const HUB: &str = "a hub joins two ends of the arm and no native one: write `peers: [same-arm]` in the arm";
const NAT: &str =
    "nobody can connect to an end behind address translation: write `peers: [native]` in the arm";
const WHOLE: &str = "address translation carries whole frames with their checksums: leave `checksumOffload`, `tso` and \
                     `segmentCombining` off";
const ONE_QUEUE: &str =
    "a hub and address translation have one queue: write `queuePairs: 1`, or another port";
const ONE_ORDER: &str = "impairments and a capture are of one queue, in whose order frames go: write `queuePairs: 1`, or leave \
                         them out";
const CONDITION: &str =
    "must be exactly one condition: `toll: {atMost: 10%}`, `ratio: {to: ARM, atLeast: 10%}`";
const RELATIONS: &str = "must say exactly one of `atMost: 10%`, `atLeast: 10%`";
const WITHIN: &str = "is out of range: write more than 0% and at most 50%";
const PORT: &str = "must be exactly one port: `{tap: {}}`, `{macvtap: {}}`, `{hub: {}}` or `{nat: {}}`; leave it out for what the host's \
     agent offers";

/// All of them, in the order of the rules.
pub const CASES: &[Refused] = &[
    naming(
        "name: refused",
        "name: re.fused",
        "metadata.name: `re.fused` is no name: write 1 to 63 of a-z, 0-9 and -, not - at an end",
        "metadata.name: write 1 to 63 of",
    ),
    naming(SELECT, "{}", "names no hosts", "names no hosts of a fleet"),
    one(SELECT, "{select: {atLeast: 1}}", "is out of range: write 2 to 1000"),
    one(SELECT, "{select: {}, lab: {count: 17}}", "is out of range: write 2 to 16"),
    one(SELECT, "{select: {}, lab: {count: 2, link: {mtu: 100}}}", "is out of range: write 576 to 9000"),
    one(SELECT, "{select: {}, mtu: 575}", "is out of range: write 576 to 9000"),
    one(
        SELECT,
        "{select: {}, lab: {count: 2}, mtu: 9000}",
        "the MTU of the lab's links: write less, or a larger `lab.link.mtu`",
    ),
    one(SELECT, "{select: {}, lab: {count: 2, link: {rate: fast}}}", NO_RATE),
    one(BLOCKS, "gates: [{cells: {arm: virtio}, goodput: {atLeast: much}}]", NO_RATE),
    one(
        SELECT,
        "{select: {}, lab: {count: 2, link: {rate: 999kbit}}}",
        "is out of range: write 1Mbit to 1000Gbit",
    ),
    one(
        "\n    - {name: native, native: {}}\n    - {name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}}",
        " []",
        "is empty: a campaign needs at least one arm",
    ),
    naming(
        NAME,
        "name: native, ",
        "give each a name of its own",
        "two arms have one name: give each a name of its own",
    ),
    one(
        "\n    - {name: bulk, stream: {warmUp: 100ms, duration: 1.1s}}",
        " []",
        "is empty: a campaign needs at least one workload",
    ),
    naming(
        "{name: bulk, ",
        "{name: bulk, stream: {}}\n    - {name: bulk, ",
        "give each a name of its own",
        "two workloads have one name: give each a name of its own",
    ),
    one(NAME, "name: Virtio, ", NO_NAME),
    one("name: bulk", "name: bulk-", NO_NAME),
    naming(
        "{name: virtio, guest",
        "{name: none}\n    - {name: virtio, guest",
        "arm `none` is nothing yet: write `native: {}`, `sameStack: {adapter: {virtioNet: {}}}` or `guest: {os: \
         payload, adapter: {virtioNet: {}}}`",
        "an arm is nothing yet: write `native: {}`",
    ),
    naming(
        NAME,
        "name: virtio, native: {}, ",
        "arm `virtio` is several things: keep one of native, sameStack, guest",
        "an arm is several things: keep one of native, sameStack, guest",
    ),
    one(NATIVE, "native: {}, peers: [native]}", "a native arm has native peers only: leave `peers` out"),
    one(VIRTIO, "adapter: {}", ADAPTER),
    one(VIRTIO, "adapter: {pcnet: {}, virtioNet: {}}", ADAPTER),
    one("guest: {os: payload, adapter: {virtioNet: {}}}", "sameStack: {adapter: {}}", ADAPTER),
    one(
        "guest: {os: payload, adapter: {virtioNet: {}}}",
        "sameStack: {adapter: {pcnet: {ioInKernel: true}}}",
        "a same-stack end has no exits that the kernel could spare: leave it out",
    ),
    one(VIRTIO, "adapter: {pcnet: {sendCombining: {threshold: 0}}}", "is out of range: write 1 to 512"),
    one(VIRTIO, "adapter: {pcnet: {sendCombining: {rate: 1000001}}}", "is out of range: write 0 to 1000000"),
    one(VIRTIO, "adapter: {pcnet: {sendCombining: {tick: 2s}}}", "is out of range: write 100us to 1s"),
    one(
        VIRTIO,
        "adapter: {virtioNet: {tso: true}}",
        "needs the checksum offload (virtio 1.2, 5.1.3.1): write `checksumOffload: true, tso: true`",
    ),
    one(VIRTIO, "adapter: {virtioNet: {controlQueue: true, queuePairs: 9}}", "is out of range: write 1 to 8"),
    one(VIRTIO, "adapter: {virtioNet: {queuePairs: 0}}", "is out of range: write 1 to 8"),
    one(
        VIRTIO,
        "adapter: {virtioNet: {queuePairs: 2}}",
        "more than one need the control queue (virtio 1.2, 5.1.3.1): write `controlQueue: true` too",
    ),
    one(VIRTIO, "adapter: {virtioNet: {controlQueue: true, queuePairs: 2}}, port: {nat: {}}", ONE_QUEUE),
    one(VIRTIO, "adapter: {virtioNet: {controlQueue: true, queuePairs: 2}}, capture: {}", ONE_ORDER),
    one(
        VIRTIO,
        "adapter: {virtioNet: {controlQueue: true, queuePairs: 2}}, impairments: {loss: 1%}",
        ONE_ORDER,
    ),
    one(
        VIRTIO,
        "pin: {vcpu: 0, io: 1}, adapter: {virtioNet: {}}",
        "the adapter has no thread of its own: write `ioThread: true` in it, or leave `io` out",
    ),
    one(VIRTIO, "adapter: {virtioNet: {}}, port: {}", PORT),
    one(VIRTIO, "adapter: {virtioNet: {}}, port: {tap: {}, macvtap: {}}", PORT),
    one(VIRTIO, "adapter: {virtioNet: {}}, port: {hub: {}}", HUB),
    one(
        "guest: {os: payload, adapter: {virtioNet: {}}}",
        "sameStack: {adapter: {pcnet: {}}, port: {hub: {}}}, peers: [native]",
        HUB,
    ),
    one(
        "guest: {os: payload, adapter: {virtioNet: {}}}",
        "guest: {os: payload, adapter: {virtioNet: {}}, port: {nat: {}}}, peers: [native, same-arm]",
        NAT,
    ),
    one(
        "guest: {os: payload, adapter: {virtioNet: {}}}",
        "sameStack: {adapter: {pcnet: {}}, port: {nat: {}}}, peers: [same-arm]",
        NAT,
    ),
    one(VIRTIO, "adapter: {virtioNet: {checksumOffload: true}}, port: {nat: {}}", WHOLE),
    one(VIRTIO, "adapter: {virtioNet: {segmentCombining: true}}, port: {nat: {}}", WHOLE),
    one(
        VIRTIO,
        "adapter: {virtioNet: {}}, impairments: {}",
        "changes nothing: write `rate`, `delay`, `loss`, `duplicate` or `reorder`, or leave it out",
    ),
    one(
        VIRTIO,
        "adapter: {virtioNet: {}}, impairments: {reorder: 1%}",
        "needs a delay: a frame overtakes others by not being delayed",
    ),
    one(VIRTIO, "adapter: {virtioNet: {}}, impairments: {loss: 100.5%}", "is out of range: write 0% to 100%"),
    one(
        VIRTIO,
        "adapter: {virtioNet: {}}, impairments: {duplicate: -1%}",
        "is out of range: write 0% to 100%",
    ),
    one(VIRTIO, "adapter: {virtioNet: {}}, impairments: {loss: x%}", NO_SHARE),
    one(VIRTIO, "adapter: {virtioNet: {}}, impairments: {rate: 63kbit}", RATES),
    one(VIRTIO, "adapter: {virtioNet: {}}, impairments: {rate: Mbit}", NO_RATE),
    one(VIRTIO, "adapter: {virtioNet: {}}, impairments: {delay: 1.5s}", "is out of range: write 0s to 1s"),
    one(VIRTIO, "adapter: {virtioNet: {}}, impairments: {delay: ms}", NO_SPAN),
    one(VIRTIO, "adapter: {virtioNet: {}}, capture: {limit: 1B}", "is out of range: write 64KiB to 1GiB"),
    one(VIRTIO, "adapter: {virtioNet: {}}, capture: {limit: KiB}", NO_SIZE),
    one(BLOCKS, "peers: []", "is empty: write `[native]`, `[same-arm]` or both"),
    naming(BLOCKS, "peers: [same-arm, same-arm]", "`same-arm` is listed twice", "a peer is listed twice"),
    naming(
        "{name: bulk, ",
        "{name: none}\n    - {name: bulk, ",
        "workload `none` is nothing yet: write `stream: {}`, `datagram: {size: 512B}`",
        "a workload is nothing yet: write `stream: {}`, `datagram: {size: 512B}`",
    ),
    naming(
        STREAM,
        "stream: {}, datagram: {size: 64B}",
        "is several things: keep one",
        "a workload is several things",
    ),
    one(STREAM, "datagram: {size: 64B}", "datagrams are sent by native ends only: leave the other arms out"),
    one(
        "native: {}}\n    - {name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}}\n  workloads:\n    - {name: bulk, stream: \
         {warmUp: 100ms, duration: 1.1s}}",
        "native: {program: iperf3}}\n  workloads:\n    - {name: bulk, datagram: {size: 64B}}",
        "iperf3 tells no loss of an interval within its run",
    ),
    one(STREAM, "datagram: {}", "must have exactly one size: `size: 512B` (UDP payload)"),
    one(STREAM, "datagram: {size: 15B}", "is out of range: write 16B to 8972B"),
    one(STREAM, "datagram: {frameSize: 61B}", "is out of range: write 62B to 9018B"),
    one(STREAM, "datagram: {sizes: []}", "is empty: write `[{size: 64B, share: 60%}"),
    one(STREAM, "datagram: {sizes: [{size: 64B, share: 101%}]}", "is out of range: write 1% to 100%"),
    one(STREAM, "datagram: {size: 64B, rate: 1bit}", "is out of range: write 1kbit to 1000Gbit"),
    one(STREAM, "datagram: {size: 64B, lossSearch: {atMost: 51%}}", "is out of range: write 0% to 50%"),
    one(STREAM, "datagram: {size: 64B, lossSearch: {precision: 0%}}", "is out of range: write 0.1% to 50%"),
    one(STREAM, "datagram: {size: 64B, lossSearch: {trial: 2m}}", "is out of range: write 100ms to 1m"),
    one(STREAM, "datagram: {size: 64B, batch: 0}", "is out of range: write 1 to 1024"),
    one(
        STREAM,
        "datagram: {size: 64B, lossSearch: {}, directions: [both]}",
        "searches of both ways at once would find each other's load: write `[send, receive]`",
    ),
    one(STREAM, "requestResponse: {rate: 0}", "is out of range: write 1 to 1000000"),
    one(STREAM, "requestResponse: {protocol: udp, timeout: 3s}", "is out of range: write 1ms to 2s"),
    one(STREAM, "datagram: {size: small}", NO_SIZE),
    one(STREAM, "datagram: {size: 64B, duration: soon}", NO_SPAN),
    one(STREAM, "datagram: {size: 64B, lossSearch: {atMost: x%}}", NO_SHARE),
    one(STREAM, "datagram: {size: 64B, rate: fast}", NO_RATE),
    one(STREAM, "stream: {directions: []}", "is empty: write `[send, receive]`, one of them or `both`"),
    one(STREAM, "stream: {flows: 129}", "is out of range: write 1 to 128"),
    one(STREAM, "stream: {maxSegmentSize: 87}", "is out of range: write 88 to 32767"),
    one(STREAM, "stream: {socketBuffer: 65MiB}", "is out of range: write 4KiB to 64MiB"),
    one(STREAM, "stream: {socketBuffer: large}", NO_SIZE),
    naming(
        STREAM,
        "stream: {directions: [send, send]}",
        "`send` is listed twice",
        "a direction is listed twice",
    ),
    one(STREAM, "stream: {writeSize: big}", NO_SIZE),
    one(STREAM, "stream: {writeSize: 2MiB}", "is out of range: write 1B to 1MiB"),
    one(STREAM, "stream: {writeSize: 0B}", "is out of range: write 1B to 1MiB"),
    one(STREAM, "stream: {duration: soon}", NO_SPAN),
    one(STREAM, "stream: {warmUp: long}", NO_SPAN),
    one(STREAM, "stream: {warmUp: 11m}", "is out of range: write 0s to 10m"),
    one(STREAM, "stream: {duration: 2h}", "is out of range: write 100ms to 1h"),
    one(STREAM, "stream: {duration: 99ms}", "is out of range: write 100ms to 1h"),
    one(BLOCKS, "blocks: 0", "is out of range: write 1 to 1000"),
    one(BLOCKS, "gates: [{toll: {atMost: much%}}]", NO_SHARE),
    // Beyond what a figure can be.
    one(BLOCKS, "gates: [{toll: {atMost: 1e999%}}]", NO_SHARE),
    one(BLOCKS, "gates: [{toll: {atMost: 10%}, goodput: {atLeast: 1Gbit}}]", CONDITION),
    one(BLOCKS, "gates: [{cells: {arm: virtio}}]", CONDITION),
    one(BLOCKS, "gates: [{firstFrame: {atMost: 5ms}, memory: {atMost: 2MiB}}]", CONDITION),
    one(BLOCKS, "gates: [{ratio: {to: native}}]", RELATIONS),
    one(BLOCKS, "gates: [{ratio: {to: native, atLeast: 95%, within: 2%}}]", RELATIONS),
    one(BLOCKS, "gates: [{ratio: {of: cpu, to: native, atMost: much%}}]", NO_SHARE),
    one(BLOCKS, "gates: [{toll: {}}]", "must say exactly one of `atMost: 10%` and `atLeast: 10%`"),
    one(
        BLOCKS,
        "gates: [{idle: {atMost: 10%, atLeast: 1%}}]",
        "must say exactly one of `atMost: 10%` and `atLeast: 10%`",
    ),
    one(BLOCKS, "gates: [{goodput: {}}]", "must say exactly one of `atMost: 100Mbit` and `atLeast: 100Mbit`"),
    one(BLOCKS, "gates: [{cpu: {}}]", "must say exactly one of `atMost: 500ms` and `atLeast: 500ms`"),
    one(BLOCKS, "gates: [{memory: {}}]", "must say exactly one of `atMost: 64KiB` and `atLeast: 64KiB`"),
    one(BLOCKS, "gates: [{exitsPerFrame: {}}]", "must say exactly one of `atMost: 1` and `atLeast: 1`"),
    one(BLOCKS, "gates: [{cpuHost: {atMost: long}}]", NO_SPAN),
    one(BLOCKS, "gates: [{ratio: {to: native, within: 51%}}]", WITHIN),
    one(BLOCKS, "gates: [{ratio: {to: native, within: 0%}}]", WITHIN),
    one(BLOCKS, "gates: [{ratio: {to: native, within: much%}}]", NO_SHARE),
    one(BLOCKS, "gates: [{exitsPerMegabyte: {atMost: -1}}]", "is out of range: write 0 or more"),
    naming(
        BLOCKS,
        "gates: [{ratio: {to: other, atLeast: 95%}}]",
        "there is no arm",
        "there is no arm that a ratio is to",
    ),
    one(
        BLOCKS,
        "gates: [{cells: {arm: virtio}, ratio: {to: virtio, atLeast: 95%}}]",
        "relative to itself is 100%: name another arm",
    ),
    one(BLOCKS, "gates: [{firstFrame: {atMost: soon}}]", NO_SPAN),
    one(BLOCKS, "gates: [{memory: {atMost: little}}]", NO_SIZE),
    naming(
        BLOCKS,
        "gates: [{cells: {arm: other}, toll: {atMost: 10%}}]",
        "there is no arm",
        "there is no arm that a gate names",
    ),
    naming(
        BLOCKS,
        "gates: [{cells: {workload: other}, toll: {atMost: 10%}}]",
        "there is no workload",
        "there is no workload that a gate names",
    ),
    naming(
        BLOCKS,
        "gates: [{cells: {arm: native}, toll: {atMost: 10%}}]",
        "is the baseline that tolls are relative to: name another arm",
        "is the baseline that tolls are relative to: name another arm",
    ),
    one(
        "{name: native, native: {}}\n    - {name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}}\n  workloads:",
        "{name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}}\n  gates: [{toll: {atMost: 10%}}]\n  workloads:",
        "a toll is relative to native: add an arm `native: {}`",
    ),
    naming(
        "{select: {}}\n  blocks: 1\n  arms:\n",
        "{select: {}, lab: {count: 2, link: {mtu: 9000}}}\n  arms:\n    - {name: pcnet, guest: {os: payload, \
         adapter: {pcnet: {}}}}\n",
        "carries frames of at most 1500 bytes; the trials' MTU is",
        "pcnet carries frames of at most 1500 bytes",
    ),
    one(
        "native: {}}\n    - {name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}}\n  workloads:\n    - \
         {name: bulk, stream: {warmUp: 100ms, duration: 1.1s}}",
        "native: {program: iperf3}}\n  workloads:\n    - {name: bulk, stream: {duration: 250ms}}",
        IPERF3,
    ),
    one(
        "native: {}}\n    - {name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}}\n  workloads:\n    - \
         {name: bulk, stream: {warmUp: 100ms, duration: 1.1s}}",
        "native: {program: iperf3}}\n  workloads:\n    - {name: bulk, stream: {warmUp: 100.5ms}}",
        IPERF3,
    ),
    one(
        "{select: {}}\n  blocks: 1",
        "{select: {}, lab: {count: 16}}\n  blocks: 1000",
        "fewer blocks, arms or hosts",
    ),
];

/// What the shape refuses without a rule, in words of its own for each of the two: the fault alone is common.
pub const BY_SHAPE: &[Refused] = &[
    naming(VIRTIO, "adapter: {rtl8139: {}}", "rtl8139", ""),
    naming(VIRTIO, "adapter: {virtioNet: {}}, pin: {vcpu: 5000000000}", "5000000000", ""),
    naming(VIRTIO, "adapter: {virtioNet: {}}, pin: {vcpu: -1}", "-1", ""),
    naming("os: payload", "os: linux", "linux", ""),
    naming(BLOCKS, "pairs: none", "none", ""),
    naming(BLOCKS, "peers: [other]", "other", ""),
    naming(STREAM, "stream: {duration: 200}", "duration", ""),
    naming(BLOCKS, "gates: [{memory: {within: 2%}}]", "within", ""),
    naming(BLOCKS, "gates: [{ratio: {of: memory, to: native, atMost: 90%}}]", "memory", ""),
];

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use toll_protocol::campaign::parse;

    use super::*;

    #[test]
    fn the_validator_refuses_every_case_in_its_words_and_nothing_else() {
        parse(GOOD).expect("is good");
        for case in CASES.iter().chain(BY_SHAPE) {
            let document = case.document();
            assert_ne!(document, GOOD, "the document has no {:?}", case.from);
            let found = parse(&document).expect_err(&document);
            let told = found.iter().any(|problem| problem.message.contains(case.words));
            assert!(told, "`{}` is not in {found:#?}\n{document}", case.words);
        }
    }

    /// Messages of all rules below a schema, without those that compare an object with what it was.
    fn messages(schema: &Value, found: &mut Vec<String>) {
        let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
        let here = rules.filter(|rule| rule["rule"].as_str().is_some_and(|text| !text.contains("oldSelf")));
        found.extend(here.filter_map(|rule| Some(rule["message"].as_str()?.to_owned())));
        let children = schema.as_object().into_iter().flat_map(|fields| fields.values());
        let lists = schema.as_array().into_iter().flatten();
        children.chain(lists).for_each(|child| messages(child, found));
    }

    /// Whether a rule's message has a case's words, and not the beginning of a longer number.
    fn is_of(message: &str, words: &str) -> bool {
        let rest = message.split_once(words).map(|(_, rest)| rest);
        rest.is_some_and(|rest| !rest.starts_with(|character: char| character.is_ascii_digit()))
    }

    #[test]
    fn every_rule_of_the_object_has_a_case() {
        let definition = toll_orchestrator::kube::crd::definition().expect("a definition");
        let mut rules = Vec::new();
        messages(&serde_json::to_value(&definition).expect("is JSON"), &mut rules);
        assert!(rules.len() > 40, "{rules:#?}");
        for message in &rules {
            let cases = CASES.iter().filter(|case| is_of(message, case.rule)).count();
            assert!(cases > 0, "no case for: {message}");
        }
        for case in CASES {
            let mut named: Vec<&String> = rules.iter().filter(|message| is_of(message, case.rule)).collect();
            named.sort();
            named.dedup();
            assert_eq!(named.len(), 1, "{}", case.rule);
        }
    }
}
