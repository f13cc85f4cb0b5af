//! Files that tools write, the place of every kind of fault, and the limits.

use proptest::prelude::*;

use super::*;
use crate::printable::printable;

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

fn first(text: &str) -> (usize, usize, String) {
    let problem = parse(text).expect_err(text).remove(0);
    (problem.line, problem.column, problem.message)
}

/// What replaces what in `GOOD`, the place of the fault, and how its message begins.
type Case = (&'static str, &'static str, (usize, usize), &'static str);

const CASES: &[Case] = &[
    // A field that is not there.
    ("kind: Campaign\n", "", (1, 1), "missing field `kind`"),
    ("{name: quick}", "{}", (3, 11), "metadata: missing field `name`"),
    ("count: 2, ", "", (5, 16), "spec.hosts.lab: missing field `count`"),
    ("os: payload, ", "", (9, 14), "spec.arms[1].guest: missing field `os`"),
    ("{atMost: 10%}", "{}", (14, 35), "spec.gates[0].toll: must say exactly one of `atMost: 10%`"),
    // One that nobody knows.
    ("spec:", "x: 1\nspec:", (4, 1), "unknown field `x`"),
    ("      guest:", "      gast:", (9, 7), "spec.arms[1]: unknown field `gast`"),
    ("pcnet: {}}", "rtl8139: {}}", (9, 38), "spec.arms[1].guest.adapter: unknown field `rtl8139`"),
    ("{name: quick}", "{name: quick, [a]: b}", (3, 25), "metadata: invalid type: list, expected a word"),
    // One that stands there twice, in a struct and in a map.
    ("  arms:", "  blocks: 5\n  blocks: 6\n  arms:", (7, 3), "spec: `blocks` stands here twice"),
    ("name: bulk", "name: bulk\n      name: bulk", (12, 7), "spec.workloads[0]: `name` stands here twice"),
    (
        "{name: quick}",
        "{name: quick, labels: {a: b, 'a': c}}",
        (3, 40),
        "metadata.labels: `a` stands here twice",
    ),
    ("spec:", "kind: Campaign\nspec:", (4, 1), "`kind` stands here twice"),
    // A word that is none of those that there are.
    ("os: payload", "os: linux", (9, 19), "spec.arms[1].guest.os: unknown variant `linux`"),
    (
        "[send, receive]",
        "[send, up]",
        (12, 35),
        "spec.workloads[0].stream.directions[1]: unknown variant `up`",
    ),
    ("  arms:", "  pairs: star\n  arms:", (6, 10), "spec.pairs: unknown variant `star`"),
    ("  arms:", "  peers: [nat]\n  arms:", (6, 11), "spec.peers[0]: unknown variant `nat`"),
    ("native: {}}", "native: {}, paper: best}", (7, 41), "spec.arms[0].paper: unknown variant `best`"),
    ("native: {}}", "native: {program: x}}", (7, 40), "spec.arms[0].native.program: unknown variant `x`"),
    // A value of another type.
    ("{name: quick}", "quick", (3, 11), "metadata: invalid type: string \"quick\", expected a mapping"),
    ("os: payload", "os: [a]", (9, 19), "spec.arms[1].guest.os: invalid type: list, expected a word"),
    ("os: payload", "os: {payload: 1}", (9, 19), "spec.arms[1].guest.os: invalid type: map, expected a word"),
    (
        "[send, receive]",
        "send",
        (12, 28),
        "spec.workloads[0].stream.directions: invalid type: string \"send\", expected a list",
    ),
    (
        "[send, receive]",
        "[[a]]",
        (12, 29),
        "spec.workloads[0].stream.directions[0]: invalid type: list, expected a word",
    ),
    (
        "count: 2",
        "count: two",
        (5, 24),
        "spec.hosts.lab.count: invalid type: string \"two\", expected a whole number",
    ),
    ("count: 2", "count: -2", (5, 24), "spec.hosts.lab.count: invalid value: integer `-2`"),
    ("count: 2", "count: 2.5", (5, 24), "spec.hosts.lab.count: invalid type: floating point"),
    ("count: 2", "count: ", (5, 24), "spec.hosts.lab.count: invalid type: nothing"),
    ("count: 2", "count: 99999999999", (5, 24), "spec.hosts.lab.count: invalid value: integer `99999999999`"),
    ("  arms:", "  seed: 1e3\n  arms:", (6, 9), "spec.seed: invalid type: floating point"),
    (
        "{name: native, native: {}}",
        "native",
        (7, 7),
        "spec.arms[0]: invalid type: string \"native\", expected a mapping",
    ),
    (
        "toll: {atMost: 10%}",
        "exitsPerMegabyte: {atMost: x}",
        (14, 56),
        "spec.gates[0].exitsPerMegabyte.atMost: invalid type: string \"x\", expected a number",
    ),
    // Quantities.
    ("duration: 2s", "duration: 2", (12, 88), "spec.workloads[0].stream.duration: `2` has no unit"),
    (
        "duration: 2s",
        "duration: [2]",
        (12, 88),
        "spec.workloads[0].stream.duration: invalid type: list, expected a duration",
    ),
    ("duration: 2s", "duration: 2x", (12, 88), "spec.workloads[0].stream.duration: `2x` has an unknown unit"),
    ("duration: 2s", "duration: true", (12, 88), "spec.workloads[0].stream.duration: invalid type: boolean"),
    ("duration: 2s", "duration: -2s", (12, 88), "spec.workloads[0].stream.duration: `-2s` is negative"),
    ("64KiB", "64", (12, 56), "spec.workloads[0].stream.writeSize: `64` has no unit"),
    ("10Gbit", "fast", (5, 40), "spec.hosts.lab.link.rate: `fast` is no link rate"),
    ("10%", "ten%", (14, 44), "spec.gates[0].toll.atMost: `ten%` is no percentage"),
    // Values out of their range, of the whole and of a part, and what an alias leads to.
    ("count: 2", "count: 1", (5, 24), "spec.hosts.lab.count: 1 is out of range: write 2 to 16"),
    ("name: pcnet\n", "name: native\n", (8, 13), "spec.arms[1].name: two arms are named `native`"),
    ("[send, receive]", "[]", (12, 28), "spec.workloads[0].stream.directions: is empty"),
    ("native: {}}", "native: }", (7, 7), "spec.arms[0]: arm `native` is nothing yet"),
    (
        "native: {}}\n",
        "native: &x {program: y}}\n    - {name: z, native: *x}\n",
        (7, 43),
        "spec.arms[0].native.program: unknown variant `y`",
    ),
    ("lab: {count: 2", "select: {atLeast: &x 17}, lab: {count: *x", (5, 50), "spec.hosts.lab.count"),
    // Not YAML, or not YAML that means one thing.
    ("{pcnet: {}}", "{pcnet: [}}", (9, 46), "did not find expected node content"),
    (
        "  arms:",
        "\tarms:",
        (6, 1),
        "found character that cannot start any token, while scanning for the next token: YAML is indented with spaces",
    ),
    (
        "quick",
        "\"quick",
        (15, 1),
        "found unexpected end of stream, while scanning a quoted scalar at line 3 column 18",
    ),
    ("spec:", "x: *b\nspec:", (4, 4), "there is no anchor `&b`"),
    ("spec:", "x: &b [*b]\nspec:", (4, 8), "the alias `*b` stands inside"),
    ("spec:", "x: &b 1\ny: &b 2\nspec:", (5, 4), "two values have the anchor `&b`"),
    ("payload", "!foo payload", (9, 19), "the tag `!foo` means nothing"),
    ("payload", "!payload", (9, 19), "the tag `!payload` means nothing"),
    ("  arms", "  ar\u{0}ms", (6, 5), "a NUL byte stands here"),
    ("  arms", "  ar\u{1b}ms", (6, 5), "the character U+001B is not allowed"),
    ("  arms", "  \u{feff}arms", (6, 3), "a byte order mark stands inside"),
    // Something else than one campaign.
    ("v1alpha1", "v2", (1, 13), "apiVersion: `toll.dev/v2` is not known: write toll.dev/v1alpha1"),
    ("kind: Campaign", "kind: Pod", (2, 7), "kind: `Pod` is not known: write Campaign"),
    ("  gates:", "---\napiVersion: v1\n  gates:", (14, 1), "a second document begins here"),
];

#[test]
fn the_place_of_an_error_is_the_place_of_the_fault() {
    for (from, to, place, message) in CASES {
        assert!(GOOD.contains(from), "the test's own document has no `{from}`");
        // With each way to end a line, and behind a mark: the places are the same.
        for (newline, mark) in [("\n", ""), ("\r\n", ""), ("\r", ""), ("\n", "\u{feff}")] {
            let text = format!("{mark}{}", GOOD.replacen(from, to, 1)).replace('\n', newline);
            let problems = parse(&text).expect_err(&text);
            let Problem { line, column, message: found } = &problems[0];
            assert!(
                (*line, *column) == *place && found.starts_with(message),
                "{to:?}: {line}:{column}: {found}"
            );
            // What only follows from it is not told; the gate of an arm that has another name is a fault of its own.
            let others = usize::from(*to == "name: native\n");
            assert_eq!(problems.len(), 1 + others, "{to:?}: {problems:#?}");
        }
    }
}

#[test]
fn a_file_that_a_tool_wrote_is_taken() {
    let good = parse(GOOD).expect("is good");
    let json = serde_json::to_value(serde_yaml::from_str::<serde_yaml::Value>(GOOD).expect("is YAML"))
        .expect("is JSON");
    let object = GOOD.replace(
        "metadata: {name: quick}",
        "metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {\"apiVersion\":\"toll.dev/v1alpha1\"}
  creationTimestamp: \"2026-11-27T01:16:08Z\"
  deletionGracePeriodSeconds: 0
  deletionTimestamp: null
  finalizers: [toll.dev/campaign]
  generateName: q
  generation: 1
  labels: null
  managedFields:
  - apiVersion: toll.dev/v1alpha1
    fieldsV1: {f:metadata: {f:finalizers: {.: {}, v:\"toll.dev/campaign\": {}}}}
    manager: toll
  name: quick
  namespace: default
  ownerReferences: []
  resourceVersion: \"1234\"
  selfLink: /x
  uid: 8a4c0e2e-4f8e-4a5d-9c1f-000000000000",
    ) + "status:\n  state: Finished\n  conditions: [{type: Accepted, status: \"True\"}]\n";
    for text in [
        format!("\u{feff}{GOOD}"),
        GOOD.replace('\n', "\r\n"),
        GOOD.replace('\n', "\r"),
        GOOD.trim_end().to_owned(),
        format!("# a comment\n%YAML 1.1\n---\n{GOOD}...\n"),
        format!("---\n---\n{GOOD}---\n# nothing more\n"),
        json.to_string(),
        serde_json::to_string_pretty(&json).expect("prints"),
        serde_json::to_string_pretty(&json).expect("prints").replace("  ", "\t"),
        object,
    ] {
        assert_eq!(parse(&text).as_ref(), Ok(&good), "{text}");
    }
}

#[test]
fn what_is_no_campaign_says_what_it_is() {
    let list = "apiVersion: v1\nitems:\n- apiVersion: toll.dev/v1alpha1\n  kind: Campaign\nkind: List\nmetadata: {}\n";
    for (text, place, message) in [
        ("", (1, 1), "the document is empty: write a campaign"),
        ("# nothing\n---\n---\n", (1, 1), "the document is empty"),
        ("\u{feff}", (1, 1), "the document is empty"),
        (list, (5, 7), "a `List` of 1 objects, as kubectl writes it"),
        ("hello\n", (1, 1), "invalid type: string \"hello\", expected a mapping"),
        ("- a\n", (1, 1), "invalid type: list, expected a mapping"),
        ("<html>\n<p>a: b</p>\n", (2, 5), "mapping values are not allowed"),
        ("a: b\n---\nc: d\n", (3, 1), "a second document begins here"),
    ] {
        let (line, column, found) = first(text);
        assert!((line, column) == place && found.starts_with(message), "{text:?}: {line}:{column}: {found}");
    }
}

#[test]
fn what_a_document_says_is_printable_in_its_errors() {
    for (from, to, shown) in [
        ("kind: Campaign", "kind: \"\\e[31mx\"", "kind: `\\u{1b}[31mx` is not known"),
        ("kind: Campaign", "kind: \"ok\\rtoll: c.yaml is valid\"", "`ok\\rtoll: c.yaml is valid`"),
        ("count: 2", "count: \"\\u202etwo\"", "string \"\\u{202e}two\""),
        ("name: pcnet\n", "\"\\x9bname\": pcnet\n", "unknown field `\\u{9b}name`"),
        ("name: quick", "name: \"a\\0b\"", "`a\\0b` is no name"),
        ("duration: 2s", "duration: \"2s\\n\\n\\t\\e[2J\"", "`2s\\n\\n\\t\\u{1b}[2J`"),
        ("payload", "!\u{202e}foo payload", "tag"),
        ("{}}}", "&\u{200f}a *\u{200f}b}}", "a"),
    ] {
        let (.., message) = first(&GOOD.replacen(from, to, 1));
        assert!(message.contains(shown), "{message:?} has no {shown:?}");
        assert_eq!(message, printable(&message), "{to:?}");
    }
}

#[test]
fn an_error_quotes_no_megabyte() {
    // What may be a key is at most 1024 characters long.
    let long = "\u{e4}".repeat(400_000);
    for (from, to) in
        [("name: quick", &format!("name: {long}")), ("os: payload", &format!("? {long} : payload"))]
    {
        let problems = parse(&GOOD.replacen(from, to, 1)).expect_err(from);
        assert!(problems.iter().all(|problem| problem.message.chars().count() < 1100), "{problems:?}");
        assert!(problems.iter().any(|problem| problem.message.contains("ä…")), "{to:.20}: {problems:?}");
    }
}

/// Documents that are short as written. Each is refused by what is counted, at a place that comes early.
fn bombs() -> Vec<(String, &'static str)> {
    let mut anchors = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..20 {
        let before = level - 1;
        anchors.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 10].join(", ")));
    }
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(300_000), vec!["*a"; 1000].join(", "));
    let wide = format!("a: &a [{}]\nb: [{}]\n", "1,".repeat(10_000), "*a,".repeat(100_000));
    let mut high = String::from("a0: &a0 [x]\n");
    for level in 1..100 {
        high.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    let block: String = (0..1000).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    let repeated = |piece: &str| piece.repeat(MAX_DOCUMENT / piece.len());
    let tags: String = (0..50_000).map(|number| format!("%TAG !a{number}! b\n")).collect();
    vec![
        (anchors, "values up to here, with every alias written out"),
        (long, "bytes up to here"),
        (wide, "values up to here"),
        (high, "is nested deeper than 64 levels"),
        (block, "is nested deeper than 64 levels"),
        (repeated("["), "is nested deeper than 64 levels"),
        (repeated("{"), "is nested deeper than 64 levels"),
        (repeated("[{"), "is nested deeper than 64 levels"),
        (repeated("{a: "), "is nested deeper than 64 levels"),
        (repeated("- "), "is nested deeper than 64 levels"),
        (repeated("? "), "is nested deeper than 64 levels"),
        (repeated("[? "), "is nested deeper than 64 levels"),
        (repeated("- a\n"), "values up to here"),
        (repeated("---\n"), "values up to here"),
        (repeated("&a "), "did not find"),
        (repeated("!a "), "means nothing"),
        (repeated("*a "), "there is no anchor"),
        (tags, "lines begin with `%`"),
    ]
}

#[test]
fn a_document_is_bounded_as_expanded_before_it_is_built() {
    for (text, message) in bombs() {
        assert!(text.len() <= MAX_DOCUMENT);
        let (.., found) = first(&text);
        assert!(found.contains(message), "{}: {found}", &text[..20]);
    }
}

/// Events that libyaml is asked for before a document is refused or read: what everything else is linear in.
fn events_of(text: &str) -> usize {
    let (mut events, mut count) = (events::Events::new(text), 0);
    let mut depth: usize = 0;
    while let Ok((event, _)) = events.next() {
        count += 1;
        match event {
            events::Event::Sequence(_) | events::Event::Mapping(_) => depth += 1,
            events::Event::Close => depth -= 1,
            events::Event::End => break,
            _ => {}
        }
        if depth > MAX_DEPTH || count > 4 * MAX_NODES {
            break;
        }
    }
    count
}

fn fragments() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("["),
        Just("]"),
        Just("{"),
        Just("}"),
        Just("- "),
        Just("? "),
        Just(": "),
        Just(","),
        Just("&a "),
        Just("*a"),
        Just("&b "),
        Just("*b"),
        Just("x"),
        Just("\n"),
        Just("  "),
        Just("'"),
        Just("\""),
        Just("|\n"),
        Just("!!str "),
        Just("!x "),
        Just("---\n"),
        Just("...\n"),
        Just("#"),
        Just("%"),
        Just("\t"),
        Just("\u{85}"),
        Just("ä"),
        Just("<<"),
        Just("name: y\n"),
        Just("\\"),
    ];
    (prop::collection::vec(piece, 0..40), 1_usize..400).prop_map(|(pieces, times)| {
        let piece = pieces.concat();
        let times = times.min(20_000 / piece.len().max(1));
        piece.repeat(times)
    })
}

/// Documents: each entry of a list has parts, which are texts, mappings and the entries before it once more.
fn anchored() -> impl Strategy<Value = String> {
    let part = (any::<prop::sample::Index>(), 0..4_u8);
    prop::collection::vec(prop::collection::vec(part, 0..6), 1..12).prop_map(|entries| {
        let entry = |(number, parts): (usize, &Vec<(prop::sample::Index, u8)>)| {
            let part = |(other, kind): &(prop::sample::Index, u8)| match kind {
                1 if number > 0 => format!("*a{}", other.index(number)),
                2 if number > 0 => format!("{{k: *a{}, '': ~}}", other.index(number)),
                3 => "&b {}".to_owned(),
                _ => "x".to_owned(),
            };
            format!("- &a{number} [{}]\n", parts.iter().map(part).collect::<Vec<_>>().join(", "))
        };
        entries.iter().enumerate().map(entry).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever a text is made of: its outline is within the limits, and serde_yaml builds what the outline counted.
    #[test]
    fn a_text_is_built_as_large_as_it_was_counted(text in prop_oneof![fragments(), anchored()]) {
        let outline = check_characters(&text).ok().and_then(|()| Outline::counted(&text).ok());
        if let Some((outline, counted)) = outline {
            prop_assert!(counted.document <= counted.text && counted.text <= MAX_NODES, "{counted:?}");
            // A list, a mapping and a document begin and end.
            prop_assert!(events_of(&text) <= 2 * counted.text + 1, "{} of {counted:?}", events_of(&text));
            let document = serde_yaml::Deserializer::from_str(&text).nth(outline.index).expect("is there");
            let mut built = 0;
            let whole = serde::de::DeserializeSeed::deserialize(Count { built: &mut built, depth: 0 }, document);
            prop_assert!(whole.is_ok(), "{whole:?}");
            prop_assert_eq!(built, counted.document);
        }
        let _ = parse(&text);
    }
}

/// Counts what serde_yaml hands out.
struct Count<'c> {
    built: &'c mut usize,
    depth: usize,
}

impl<'de> serde::de::DeserializeSeed<'de> for Count<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        *self.built += 1;
        assert!(self.depth <= MAX_DEPTH);
        deserializer.deserialize_any(self)
    }
}

impl<'de> serde::de::Visitor<'de> for Count<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("anything")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Count { built: self.built, depth: self.depth + 1 })?.is_some() {}
        Ok(())
    }
    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Count { built: self.built, depth: self.depth + 1 })?.is_some() {
            map.next_value_seed(Count { built: self.built, depth: self.depth + 1 })?;
        }
        Ok(())
    }
}
