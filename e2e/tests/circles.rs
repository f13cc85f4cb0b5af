//! No circle among the files of a crate: each can be read with those that it uses, and none of these leads back to it.
//!
//! A file uses what its `use crate::` lines and its paths `crate::...` name. What it has of its own folder by `super::` or
//! `self::` is no edge: a folder is one thing, and its file says what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

const CRATES: [&str; 11] = [
    "protocol",
    "vnic",
    "vmm",
    "vmm/guest",
    "vmm/guest/payload",
    "vmm/guest-abi",
    "endpoint",
    "child",
    "node-agent",
    "orchestrator",
    "e2e",
];

/// Files that use each other, and why they may: crate, one of them, the other, the reason.
const EXCEPTIONS: [(&str, &str, &str, &str); 3] = [
    (
        "protocol",
        "figure",
        "result",
        "a figure is a function of a run, and a cell of the result is keyed by figures",
    ),
    (
        "vnic",
        "fuzzing",
        "adapter::pcnet::fuzz",
        "what is done to a chip is beside it, as is what it is done with in tests",
    ),
    ("vnic", "fuzzing", "adapter::virtio_net::fuzz", "as for pcnet"),
];

/// Edges of a crate: which module names which. A module is a file, by its path with `::`.
type Edges = BTreeMap<String, BTreeSet<String>>;

/// Rust files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// The module that the file `path`, relative to the crate's `src`, is; `None` for roots of crates and for tests.
fn module(path: &Path) -> Option<String> {
    let path = path.with_extension("");
    let mut parts: Vec<&str> = path.iter().map(|part| part.to_str().expect("UTF-8")).collect();
    parts.pop_if(|last| *last == "mod");
    let left_out = ["tests", "test_support", "bin", "lib", "main"];
    (!parts.iter().any(|part| left_out.contains(part))).then(|| parts.join("::"))
}

/// Paths of a `use` tree, without the `use`: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<String> {
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.trim().to_owned()];
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut branches) = (0, vec![String::new()]);
    for character in inner.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branches.push(String::new());
                continue;
            }
            _ => {}
        }
        branches.last_mut().expect("there is one").push(character);
    }
    let branches = branches.iter().map(|branch| branch.trim()).filter(|branch| !branch.is_empty());
    branches.flat_map(paths).map(|path| format!("{}{path}", prefix.trim())).collect()
}

/// What `source` names of its own crate: comments and the tests at its end are left out.
fn named(source: &str) -> Vec<String> {
    let code = source.split("\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    let code = lines.collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let (before, after) = (code[..at].trim_end(), &code[at + "crate::".len()..]);
        if before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && before.len() == at {
            // `$crate::` and the like end otherwise; this is the end of another word.
            continue;
        }
        if before.ends_with("use") {
            found.extend(paths(after.split(';').next().unwrap_or_default()));
        } else {
            let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            found.push(after.split(|c| !is_path(c)).next().unwrap_or_default().to_owned());
        }
    }
    found
}

/// The edges of a crate whose modules have these sources.
fn edges(sources: &BTreeMap<String, String>) -> Edges {
    let deepest = |path: &str| {
        let ends = path.match_indices("::").map(|(at, _)| at).chain([path.len()]).collect::<Vec<_>>();
        ends.into_iter().rev().map(|end| path[..end].to_owned()).find(|path| sources.contains_key(path))
    };
    let of = |module: &String, source: &String| {
        named(source).iter().filter_map(|path| deepest(path)).filter(|other| other != module).collect()
    };
    sources.iter().map(|(module, source)| (module.clone(), of(module, source))).collect()
}

/// The shortest way from `from` back to it, if there is one.
fn circle(edges: &Edges, from: &str) -> Option<Vec<String>> {
    let mut ways = vec![vec![from.to_owned()]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in edges.get(way.last()?).into_iter().flatten() {
                if next == from {
                    return Some(way);
                }
                if seen.insert(next.clone()) {
                    longer.push(way.iter().cloned().chain([next.clone()]).collect::<Vec<_>>());
                }
            }
        }
        ways = longer;
    }
    None
}

#[test]
fn no_circle_is_among_the_files_of_a_crate() {
    let mut unused: BTreeSet<_> =
        EXCEPTIONS.iter().map(|(name, one, other, _)| (*name, *one, *other)).collect();
    let mut wrong = Vec::new();
    for name in CRATES {
        let root = Path::new(ROOT).join(name).join("src");
        let sources: BTreeMap<String, String> = files(&root)
            .into_iter()
            .filter_map(|path| {
                let module = module(path.strip_prefix(&root).expect("below it"))?;
                Some((module, std::fs::read_to_string(&path).expect("readable")))
            })
            .collect();
        let mut edges = edges(&sources);
        for (_, one, other, _) in EXCEPTIONS.iter().filter(|exception| exception.0 == name) {
            let mut cut = |from: &str, to: &str| edges.get_mut(from).is_some_and(|edges| edges.remove(to));
            // Both edges, so that the two count as one file would.
            if cut(one, other) & cut(other, one) {
                unused.remove(&(name, *one, *other));
            }
        }
        let circles = edges.keys().filter_map(|module| circle(&edges, module));
        wrong.extend(circles.map(|way| format!("{name}/src: {} -> {}", way.join(" -> "), way[0])));
    }
    assert!(wrong.is_empty(), "move what they share into a file that uses neither:\n{}", wrong.join("\n"));
    assert!(unused.is_empty(), "these use each other no more, and need no exception: {unused:?}");
}

#[test]
fn a_circle_is_found_whatever_way_a_module_is_named() {
    let source = |module: &str, text: &str| (module.to_owned(), text.to_owned());
    let sources = BTreeMap::from([
        source("a", "use crate::{b::{self, c::Thing}, other};\n// crate::nothing"),
        source("b", ""),
        source("b::c", "fn f() -> crate::d::E {}\n"),
        source("d", "use crate::a;\n"),
        source("e", "use crate::a;\n#[cfg(test)]\nmod tests {\n    use crate::e;\n}"),
    ]);
    let edges = edges(&sources);
    assert_eq!(circle(&edges, "a").expect("there is one"), ["a", "b::c", "d"]);
    assert_eq!((circle(&edges, "b"), circle(&edges, "e")), (None, None));
}
