//! The edges of ARCHITECTURE.md, held: which crate may know which, and which file may know a library.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Crates of the workspace that each may link. Absent: any test may use what it needs.
const ALLOWED: [(&str, &[&str]); 9] = [
    ("toll-protocol", &[]),
    ("toll-guest-abi", &[]),
    ("toll-vnic", &["toll-protocol"]),
    ("toll-guest", &["toll-guest-abi"]),
    ("toll-child", &["toll-protocol"]),
    ("toll-vmm", &["toll-protocol", "toll-child", "toll-vnic", "toll-guest", "toll-guest-abi"]),
    ("toll-endpoint", &["toll-protocol", "toll-child"]),
    ("toll-node-agent", &["toll-protocol"]),
    ("toll-orchestrator", &["toll-protocol"]),
];

/// Libraries that only these crates may link.
const RESERVED: [(&str, &[&str]); 13] = [
    ("axum", &["toll-node-agent", "toll-orchestrator"]),
    ("kube", &["toll-orchestrator"]),
    ("k8s-openapi", &["toll-orchestrator"]),
    ("kvm-ioctls", &["toll-vmm"]),
    ("kvm-bindings", &["toll-vmm"]),
    ("prometheus", &["toll-node-agent", "toll-orchestrator"]),
    ("quinn", &["toll-node-agent", "toll-orchestrator"]),
    ("reqwest", &["toll-orchestrator"]),
    ("rusqlite", &["toll-orchestrator"]),
    ("serde_yaml", &["toll-protocol"]),
    ("tun-tap", &["toll-vnic"]),
    ("unsafe-libyaml", &["toll-protocol"]),
    ("tokio", &["toll-node-agent", "toll-orchestrator"]),
];

/// What only these files or folders may name in source.
const FILES: [(&str, &[&str]); 9] = [
    ("use kube::", &["orchestrator/src/kube/", "orchestrator/src/kube.rs"]),
    ("k8s_openapi::", &["orchestrator/src/kube/", "orchestrator/src/kube.rs"]),
    ("kvm_ioctls::", &["vmm/src/kvm/"]),
    ("kvm_bindings::", &["vmm/src/kvm/"]),
    ("serde_yaml::", &["protocol/src/campaign/parse.rs", "e2e/tests/schemas.rs"]),
    ("unsafe_libyaml", &["protocol/src/campaign/parse/events.rs"]),
    ("quinn::", &["node-agent/src/link.rs", "orchestrator/src/link.rs", "orchestrator/src/link/"]),
    // A guest writes to its memory whenever it likes: no reference to its bytes is made (vnic/src/piece.rs). The one there is is
    // to a structure of the VMM's own; neither libyaml nor HTTP has anything of a guest's memory.
    ("slice::from_raw_parts", &["vmm/src/memory.rs", "protocol/src/campaign/parse/events.rs"]),
    ("IoSlice", &["orchestrator/src/http/patience.rs"]),
];

/// How a file or pipe is read to its end. Only these files may do so, each for a reason why that end comes soon.
const WHOLE: [&str; 3] = ["fs::read(", "read_to_string(", "read_to_end("];
const READERS: [(&str, &str); 10] = [
    ("protocol/src/file.rs", "the one bounded reader of files"),
    ("orchestrator/src/manifest.rs", "no more than a document may have"),
    ("orchestrator/src/service/store/lock.rs", "the host's name in /proc; a line of the lock's file"),
    ("node-agent/src/facts.rs", "the kernel's own files in /proc and /sys"),
    ("node-agent/src/stop.rs", "this process's status in /proc"),
    ("node-agent/src/users.rs", "maps in /proc; a bounded part of the lists of users and groups"),
    ("node-agent/src/users/remains.rs", "status of processes in /proc"),
    ("node-agent/src/child/spawner.rs", "a bounded part of what a program answers"),
    ("endpoint/src/iperf3/process.rs", "a bounded part of what iperf3 says of its version"),
    ("vmm/src/footprint.rs", "this process's own mappings in /proc"),
];

/// Files whose words on standard error need not be made printable where they are written, and why.
const WRITERS: [(&str, &str); 5] = [
    ("endpoint/src/socket.rs", "addresses alone"),
    ("node-agent/src/main.rs", "made printable a line above"),
    ("orchestrator/src/main.rs", "made printable a line above"),
    ("orchestrator/src/cli.rs", "problems of a document are made printable when they are found"),
    ("orchestrator/src/progress.rs", "names that were checked, and a reason that was made printable above"),
];

/// Files longer than this are two things in one.
const LONGEST: usize = 520;

/// Normal and build dependencies of each package of the workspace.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(ROOT)
        .output()
        .expect("cargo metadata runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let of = |package: &Value| {
        let list = package["dependencies"].as_array().expect("dependencies");
        let linked = list.iter().filter(|dependency| dependency["kind"] != "dev");
        linked.map(|dependency| text(&dependency["name"])).collect()
    };
    packages.iter().map(|package| (text(&package["name"]), of(package))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

#[test]
fn crates_know_only_what_the_architecture_allows() {
    let dependencies = dependencies();
    for (package, allowed) in ALLOWED {
        for other in &dependencies[package] {
            let ours = dependencies.contains_key(other);
            assert!(!ours || allowed.contains(&other.as_str()), "{package} must not depend on {other}");
        }
    }
}

#[test]
fn libraries_stay_in_their_crates() {
    for (package, linked) in dependencies() {
        if package == "toll-e2e" {
            continue;
        }
        for (library, users) in RESERVED {
            assert!(
                !linked.contains(library) || users.contains(&package.as_str()),
                "{package} must not link {library}"
            );
        }
    }
}

/// Rust sources of the project.
fn sources() -> Vec<PathBuf> {
    files("*.rs")
}

/// Files of the project: not those of a library that it has a copy of.
fn files(pattern: &str) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard", pattern])
        .current_dir(ROOT)
        .output();
    let output = output.expect("git lists files");
    let list = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let files: Vec<PathBuf> =
        list.lines().map(PathBuf::from).filter(|path| Path::new(ROOT).join(path).exists()).collect();
    let files: Vec<PathBuf> = files.into_iter().filter(|path| !path.starts_with("third-party")).collect();
    assert!(files.len() > 20, "git listed {} files only", files.len());
    files
}

/// A string that goes on in the next line has a `\` before it; one that was joined without has the indentation in it.
#[test]
fn no_message_has_the_indentation_of_its_source_in_it() {
    const INDENTATION: &str = "    ";
    let of_a_sentence = |character: char| character.is_alphanumeric() || "`(){},;:.".contains(character);
    for path in sources() {
        let name = path.to_str().expect("UTF-8");
        if name.starts_with("e2e/") || name.contains("/tests") || name.contains("/examples/") {
            continue;
        }
        let source = std::fs::read_to_string(Path::new(ROOT).join(&path)).expect("readable");
        let code = source.split("\nmod tests {").next().unwrap_or_default();
        for (number, line) in code.lines().map(str::trim).enumerate() {
            let Some((before, after)) = line.split_once(INDENTATION).filter(|_| !line.starts_with("//"))
            else {
                continue;
            };
            let joined = before.contains('"')
                && before.ends_with(of_a_sentence)
                && after.trim_start().starts_with(char::is_alphanumeric);
            assert!(!joined, "{name}:{}: write `\\` and the rest in a line of its own: {line}", number + 1);
        }
    }
}

/// What a document names as a file or folder of the project: whatever ends as a source or a document does, and what stands
/// in backticks with a slash in it. Not what begins at the machine's root, is made (`target/`), or has a word in capitals for
/// what a user chooses.
fn named_paths(text: &str) -> BTreeSet<&str> {
    let is_path = |c: char| c.is_ascii_alphanumeric() || "_./-*".contains(c);
    let words = text.split(|c: char| !is_path(c)).map(|word| word.trim_end_matches(['.', '-']));
    let sources = words.filter(|word| word.ends_with(".rs") || word.contains('/') && word.ends_with(".md"));
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let quoted = quoted.filter(|word| word.contains('/') && word.chars().all(is_path));
    let chosen = |part: &str| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase());
    let ours = |word: &&str| {
        !word.starts_with(['/', '.']) && !word.starts_with("target/") && !word.split('/').any(chosen)
    };
    sources.chain(quoted).filter(ours).map(|word| word.trim_end_matches('/')).collect()
}

#[test]
fn paths_that_documents_name_are_there() {
    // Every file and folder, by each of its ends: documents leave out what the reader knows, and `.rs`.
    let mut ends = BTreeSet::new();
    for file in files("*") {
        for path in file.ancestors() {
            let path = path.to_str().expect("UTF-8");
            let begins = std::iter::once(0).chain(path.match_indices('/').map(|(at, _)| at + 1));
            ends.extend(begins.map(|at| path[at..].trim_end_matches(".rs").to_owned()));
        }
    }
    let known = |path: &str| match path.split_once('*') {
        None => ends.contains(path.trim_end_matches(".rs")),
        Some((begin, _)) => ends.iter().any(|end| end.starts_with(begin)),
    };
    let documents = files("*.md").into_iter().filter(|path| {
        path.starts_with("docs/adr")
            || ["SPECIFICATION.md", "ARCHITECTURE.md", "README.md"].iter().any(|name| path == Path::new(name))
    });
    let mut wrong = Vec::new();
    let mut count = 0;
    for document in documents {
        let text = std::fs::read_to_string(Path::new(ROOT).join(&document)).expect("readable");
        let paths = named_paths(&text);
        count += paths.len();
        let missing = paths.into_iter().filter(|path| !known(path));
        wrong.extend(missing.map(|path| format!("{} names {path}", document.display())));
    }
    assert!(count > 100, "{count} paths were found only");
    assert!(wrong.is_empty(), "there is no such file or folder:\n{}", wrong.join("\n"));
}

#[test]
fn libraries_stay_in_their_files() {
    for path in sources() {
        let name = path.to_str().expect("UTF-8");
        if name.starts_with("e2e/") || name.contains("/tests") {
            continue;
        }
        let source = std::fs::read_to_string(Path::new(ROOT).join(&path)).expect("readable");
        for (library, places) in FILES {
            let allowed = places.iter().any(|place| name.starts_with(place));
            assert!(allowed || !source.contains(library), "{name} must not name {library}");
        }
    }
}

#[test]
fn nothing_is_read_to_its_end_that_may_have_none() {
    let mut readers: BTreeMap<&str, &str> = READERS.into();
    for path in sources() {
        let name = path.to_str().expect("UTF-8");
        if ["e2e/", "vnic/fuzz/"].iter().any(|tests| name.starts_with(tests)) || name.contains("tests") {
            continue;
        }
        let source = std::fs::read_to_string(Path::new(ROOT).join(&path)).expect("readable");
        let code = source.split("\nmod tests {").next().unwrap_or_default();
        let reads = WHOLE.iter().any(|call| code.contains(call));
        let reason = readers.remove(name);
        assert!(
            !reads || reason.is_some(),
            "{name} reads something whole: use file::read, or say why it may"
        );
        assert!(reads || reason.is_none(), "{name} reads nothing whole any more");
    }
    assert!(readers.is_empty(), "there are no such files: {readers:?}");
}

#[test]
fn what_is_said_on_standard_error_is_printable() {
    for path in sources() {
        let name = path.to_str().expect("UTF-8");
        let excused = WRITERS.iter().any(|(writer, _)| *writer == name);
        if excused
            || name.starts_with("e2e/")
            || ["/tests", "/examples/", "/fuzz"].iter().any(|it| name.contains(it))
        {
            continue;
        }
        let source = std::fs::read_to_string(Path::new(ROOT).join(&path)).expect("readable");
        for said in source.split("eprintln!(").skip(1) {
            let said = said.split_once(");").map_or(said, |(said, _)| said);
            assert!(!said.contains('{') || said.contains("printable("), "{name}: {said}");
        }
    }
}

#[test]
fn tests_of_virtio_are_those_of_the_table() {
    let read = |path: &Path| std::fs::read_to_string(Path::new(ROOT).join(path)).expect("readable");
    let functions: BTreeSet<String> = sources()
        .iter()
        .flat_map(|path| {
            let source = read(path);
            let names = source.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
            names.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())).collect::<Vec<_>>()
        })
        .collect();
    let table = read(Path::new("docs/virtio-conformance.md"));
    // The last column of each row.
    let rows = table.lines().filter_map(|line| line.strip_suffix('|')?.rsplit_once('|'));
    let named: BTreeSet<&str> = rows.flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 50, "the table names {} tests only", named.len());
    for test in &named {
        assert!(functions.contains(*test), "docs/virtio-conformance.md names `{test}`, which there is not");
    }
    for test in functions.iter().filter(|name| name.starts_with("virtio_1_2_")) {
        assert!(named.contains(test.as_str()), "docs/virtio-conformance.md lacks `{test}`");
    }
}

/// Names of functions; of the tests of suites, which are strings, some with parts put in; and of files, which are modules.
fn names() -> BTreeSet<String> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_{}".contains(&byte);
    let mut names = BTreeSet::new();
    for path in sources() {
        let source = std::fs::read_to_string(Path::new(ROOT).join(&path)).expect("readable");
        let functions = source.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
        let strings = source.split('"').filter(|text| text.bytes().all(is_part));
        let file = path.file_stem().and_then(|stem| stem.to_str());
        names.extend(functions.chain(strings).chain(file).map(str::to_owned));
    }
    names
}

#[test]
fn tests_that_the_specification_names_are_there() {
    let specification = std::fs::read_to_string(Path::new(ROOT).join("SPECIFICATION.md")).expect("readable");
    let names = names();
    // The last column of each row. What is of several words and no path is a test; `…` stands for anything.
    let rows = specification.lines().filter_map(|line| line.strip_suffix('|')?.rsplit_once('|'));
    let quoted = rows.flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2));
    let named: BTreeSet<&str> =
        quoted.filter(|text| text.contains('_') && !text.contains(['/', '.', ':'])).collect();
    assert!(named.len() > 80, "the specification names {} tests only", named.len());
    for test in named {
        let is_there = match test.split_once('…') {
            Some((start, end)) => names.iter().any(|name| name.starts_with(start) && name.ends_with(end)),
            None => names.contains(test),
        };
        assert!(is_there, "SPECIFICATION.md names `{test}`, which there is not");
    }
}

#[test]
fn a_file_is_one_thing() {
    for path in sources() {
        let lines = std::fs::read_to_string(Path::new(ROOT).join(&path)).expect("readable").lines().count();
        assert!(
            lines <= LONGEST,
            "{} has {lines} lines; over {LONGEST} it is two things in one",
            path.display()
        );
    }
}
