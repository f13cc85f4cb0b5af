//! Documents with faults at some of many places: each is told, where it stands, and nothing else is.

use proptest::prelude::*;

use super::*;

const LARGE: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata:
  name: planted
  labels: {team: a}
spec:
  hosts:
    select: {atLeast: 2}
    lab: {count: 2, link: {rate: 10Gbit, mtu: 1500}}
  pairs: all
  blocks: 5
  seed: 7
  peers: [native]
  arms:
    - {name: native, native: {program: endpoint, pin: {traffic: 0}}}
    - {name: iperf3, native: {program: iperf3}}
    - name: pcnet
      paper: optimised
      guest:
        os: payload
        pin: {vcpu: 1}
        adapter: {pcnet: {sendCombining: {threshold: 3, tick: 10ms}}}
        impairments: {delay: 5ms, loss: 1%}
        capture: {limit: 64MiB}
    - name: virtio
      sameStack:
        pin: {vcpu: 0}
        adapter: {virtioNet: {checksumOffload: true, tso: true}}
        port: {tap: {}}
    - {name: hub, guest: {os: payload, adapter: {virtioNet: {}}, port: {hub: {}}}, peers: [same-arm]}
  workloads:
    - name: bulk
      stream:
        directions: [send, receive]
        writeSize: 64KiB
        warmUp: 500ms
        duration: 2s
  gates:
    - {cells: {arm: pcnet}, toll: {atMost: 10%}}
    - {cells: {arm: virtio}, goodput: {atLeast: 1Gbit}}
    - {cells: {arm: hub}, ratio: {to: pcnet, within: 2%}}
    - {cells: {workload: bulk, arm: pcnet}, firstFrame: {atMost: 5ms}}
";

/// What stands in a line of its own, the fault that is planted there, where in it the fault is, and words for it.
type Fault = (&'static str, &'static str, &'static str, &'static str);

const FAULTS: &[Fault] = &[
    ("  name: planted", "  name: Planted", "Planted", "`Planted` is no name"),
    ("labels: {team: a}", "labels: {team: [a]}", "[a]", "invalid type: list, expected a string"),
    ("select: {atLeast: 2}", "select: {atLeast: two}", "two", "invalid type: string \"two\""),
    ("lab: {count: 2", "lab: {count: 17", "17", "2 to 16"),
    ("  pairs: all", "  pairs: al", "al\n", "did you mean `all`?"),
    ("  blocks: 5", "  blocks: 0", "0", "0 is out of range"),
    ("  seed: 7", "  seed: -7", "-7", "invalid value: integer `-7`"),
    ("  peers: [native]", "  peers: [native, native]", "native]", "`native` is listed twice"),
    ("pin: {traffic: 0}", "pin: {}", "{}", "missing field `traffic`"),
    ("program: iperf3", "program: netperf", "netperf", "unknown variant `netperf`"),
    ("      paper: optimised", "      papr: optimised", "papr", "did you mean `paper`?"),
    ("        os: payload", "        os: linux", "linux", "unknown variant `linux`"),
    ("pin: {vcpu: 1}", "pin: {vcpu: x}", "x}", "whole number"),
    ("threshold: 3, tick: 10ms", "threshold: 0, tick: 10ms", "0, tick", "0 is out of range"),
    ("{delay: 5ms, loss: 1%}", "{delay: 5ms, loss: 101%}", "101%", "101% is out of range"),
    ("{limit: 64MiB}", "{limit: 64}", "64}", "`64` has no unit"),
    ("{vcpu: 0}", "{vcpu: 0, vcpu: 1}", "vcpu: 1", "twice"),
    ("checksumOffload: true, tso", "checksumOffload: false, tso", "true}}", "needs the checksum offload"),
    ("port: {tap: {}}", "port: {tap: {}, nat: {}}", "{tap", "exactly one port"),
    ("peers: [same-arm]", "peers: [native] ", "{name: hub", "a hub joins two ends"),
    ("[send, receive]", "[send, up]", "up]", "unknown variant `up`"),
    ("writeSize: 64KiB", "writeSize: 2MiB", "2MiB", "2MiB is out of range"),
    ("warmUp: 500ms", "warmUp: soon", "soon", "`soon` is no duration"),
    ("duration: 2s", "duration: true", "true", "invalid type: boolean"),
    ("toll: {atMost: 10%}", "toll: {atMost: 10}", "10}", "`10` has no unit"),
    ("{arm: virtio}", "{arm: virtual}", "virtual", "there is no arm `virtual`"),
    ("within: 2%", "within: 51%", "51%", "51% is out of range"),
    ("{workload: bulk", "{workload: bulky", "bulky", "there is no workload `bulky`"),
];

/// `LARGE` with some faults in it, and what is to be told of them.
fn planted(faults: &[&Fault]) -> (String, Vec<(usize, usize, &'static str)>) {
    let text = faults.iter().fold(LARGE.to_owned(), |text, (from, to, ..)| {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text.replace(from, to)
    });
    let mut told: Vec<_> = faults
        .iter()
        .map(|(_, to, at, words)| {
            let start = text.find(to).expect("was planted");
            // What is wrong may begin before what was changed, and end after it.
            let line = text[..start].rfind('\n').map_or(0, |end| end + 1);
            let from = if to.contains(at.trim_end()) { start } else { line };
            let place = from + text[from..].find(at).expect(at);
            let before = &text[..place];
            let column = before.len() - before.rfind('\n').map_or(0, |end| end + 1) + 1;
            (before.matches('\n').count() + 1, column, *words)
        })
        .collect();
    told.sort_unstable();
    (text, told)
}

fn check(faults: &[&Fault]) {
    let (text, told) = planted(faults);
    let found = parse(&text).err().unwrap_or_default();
    assert_eq!(found.len(), told.len(), "{told:#?}\n{found:#?}\n{text}");
    for (problem, (line, column, words)) in found.iter().zip(&told) {
        let place = (problem.line, problem.column);
        assert!(place == (*line, *column) && problem.message.contains(words), "{words}: {problem}\n{text}");
    }
}

#[test]
fn each_fault_is_told_alone_and_all_of_them_together() {
    check(&[]);
    for fault in FAULTS {
        check(&[fault]);
    }
    check(&FAULTS.iter().collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn as_many_problems_are_told_as_faults_are_planted(
        faults in prop::sample::subsequence(FAULTS.iter().collect::<Vec<_>>(), 0..=FAULTS.len()),
    ) {
        check(&faults);
    }

    /// Whatever stands where something else should: what is refused is refused with a place in the text.
    #[test]
    fn no_value_in_place_of_another_panics(
        values in prop::collection::vec((0..LARGE.len(), prop::sample::select(VALUES)), 1..6),
    ) {
        let mut text = LARGE.to_owned();
        for (at, value) in values {
            let ends = [": ", "[", ", ", "- "];
            let Some((start, _)) = ends.iter().filter_map(|end| text[..at.min(text.len())].rfind(end).map(|start| (start + end.len(), end))).max() else {
                continue;
            };
            let length = text[start..].find([',', '}', ']', '\n']).unwrap_or(0);
            text.replace_range(start..start + length, value);
        }
        for problem in parse(&text).err().unwrap_or_default() {
            prop_assert!(problem.line <= lines(&text).count(), "{problem}");
            prop_assert!((problem.line, problem.column) != (1, 1), "the schema let through: {problem}");
        }
    }
}

const VALUES: &[&str] = &[
    "",
    "~",
    "null",
    "true",
    "-1",
    "0",
    "99999999999",
    "340282366920938463463374607431768211456",
    "1.5",
    ".inf",
    ".nan",
    "1e400",
    "x",
    "\"\"",
    "'2s'",
    "10%",
    "2s",
    "1GiB",
    "[]",
    "{}",
    "[[]]",
    "{a: {b: c}}",
    "[native, native]",
    "!!str 5",
    "{name: x}",
    "{to: native}",
    "{pcnet: {}}",
];
