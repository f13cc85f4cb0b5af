//! `manifests/schema`: made from the code, and true of the campaigns that there are.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use toll_e2e::documents::{problems_of_campaign, problems_of_result};
use toll_e2e::refused::{BY_SHAPE, CASES, GOOD};
use toll_orchestrator::schema::Document;

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// The first line of a campaign: by it editors find the schema.
const MODELINE: &str = "# yaml-language-server: $schema=../schema/campaign.schema.json\n";

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).expect("YAML")
}

fn campaigns() -> Vec<(PathBuf, String)> {
    let files = fs::read_dir(format!("{MANIFESTS}/campaigns")).expect("lists");
    let files = files.map(|file| file.expect("lists").path());
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("reads");
        (path, text)
    };
    files.map(read).collect()
}

#[test]
fn the_files_are_what_the_code_says() {
    for document in Document::ALL {
        let file = format!("{MANIFESTS}/schema/{}", document.file());
        let written = fs::read_to_string(&file).unwrap_or_default();
        let name = document.file().trim_end_matches(".schema.json");
        assert!(written == document.text().expect("a schema"), "write it: toll schema {name} > {file}");
    }
}

#[test]
fn every_campaign_is_one_by_its_schema_and_names_it() {
    let campaigns = campaigns();
    assert!(campaigns.len() > 5, "{campaigns:?}");
    for (path, text) in campaigns {
        assert!(text.starts_with(MODELINE), "{} does not begin with {MODELINE}", path.display());
        let problems = problems_of_campaign(&yaml(&text)).expect("a schema");
        assert!(problems.is_empty(), "{}: {problems:#?}", path.display());
    }
}

/// What only a comparison of several values, or arithmetic, finds, by the words of the validator: no schema can.
const BEYOND: &[&str] = &[
    "names no hosts",
    "the MTU of the lab's links",
    "is below 1Mbit",
    "give each a name of its own",
    "a native arm has native peers only",
    "a same-stack end has no exits that the kernel could spare",
    "needs the checksum offload",
    "more than one need the control queue",
    "have one queue",
    "are of one queue",
    "the adapter has no thread of its own",
    "a hub joins two ends",
    "nobody can connect to an end behind",
    "address translation carries whole frames",
    "needs a delay",
    "is over 10m",
    "there is no arm",
    "there is no workload",
    "relative to itself",
    "is the baseline",
    "a toll is relative to native",
    "carries frames of at most 1500 bytes",
    "as an arm with iperf3 needs",
    "fewer blocks, arms or hosts",
];

/// Whether a limit is one of a quantity, which is a text to a schema.
fn is_of_a_quantity(words: &str) -> bool {
    let limits = words.strip_prefix("is out of range: write ");
    limits.is_some_and(|limits| limits.contains(['%', 's', 'B']) || limits.contains("bit"))
}

#[test]
fn what_a_schema_can_tell_is_refused() {
    let mut refused = 0;
    assert_eq!(problems_of_campaign(&yaml(GOOD)).expect("a schema"), [""; 0]);
    for case in CASES.iter().chain(BY_SHAPE) {
        let document = case.document();
        let problems = problems_of_campaign(&yaml(&document)).expect("a schema");
        let beyond = BEYOND.iter().any(|words| case.words.contains(words)) || is_of_a_quantity(case.words);
        assert!(beyond || !problems.is_empty(), "{}\n{document}", case.words);
        refused += usize::from(!problems.is_empty());
    }
    println!("{refused} of {} are refused by the schema", CASES.len() + BY_SHAPE.len());
    assert!(refused > 40, "{refused}");
}

#[test]
fn a_result_of_another_shape_is_refused() {
    for document in ["{}", "[]", r#"{"apiVersion": "toll.dev/v1alpha1", "kind": "Result"}"#] {
        let document = serde_json::from_str(document).expect("JSON");
        assert!(!problems_of_result(&document).expect("a schema").is_empty(), "{document}");
    }
}

/// Every schema within `schema`, with its place.
fn each<'v>(schema: &'v Value, place: &str, visit: &mut impl FnMut(&'v Value, &str)) {
    visit(schema, place);
    match schema {
        Value::Object(map) => {
            map.iter().for_each(|(name, value)| each(value, &format!("{place}/{name}"), visit));
        }
        Value::Array(list) => list.iter().for_each(|value| each(value, place, visit)),
        _ => {}
    }
}

/// A new field of any kind of traffic or end keeps to the one style.
#[test]
fn a_result_has_numbers_for_quantities_plain_kinds_and_one_style_of_names() {
    let schema = Document::Result.schema().expect("a schema");
    let mut names = 0;
    each(&schema, "", &mut |schema, place| {
        let pattern = schema["pattern"].as_str().unwrap_or_default();
        let is_text = ["(ns|", "(B|", "(bit|", "%"].iter().any(|unit| pattern.contains(unit));
        assert!(!is_text, "{place}: a quantity is a number, with its unit in the name (units::numbers)");
        for variant in schema["oneOf"].as_array().into_iter().flatten() {
            let required = variant["required"].as_array().into_iter().flatten();
            let plain =
                variant.get("properties").is_none() || required.into_iter().any(|name| name == "kind");
            assert!(plain, "{place}: a choice is told by its `kind` (serde(tag)): {variant}");
        }
        let is_field =
            |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let fields = schema["properties"].as_object().into_iter().flat_map(|fields| fields.keys());
        // Keys that name things: figures, counts of frames.
        for name in fields.filter(|_| !place.ends_with("/figures") && !place.ends_with("/Transmissions")) {
            names += 1;
            assert!(is_field(name) || name == "apiVersion", "{place}: {name}");
        }
    });
    assert!(names > 100, "{names}");
}
