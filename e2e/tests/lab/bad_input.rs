//! Campaigns and command lines that are wrong: told where and what would be right, before anything starts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Output;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use toll_e2e::campaigns::{NATIVE, PCNET, campaign};
use toll_e2e::machine::no_kvm;
use toll_e2e::programs::{expect, program};
use toll_e2e::suite::test;

pub fn tests() -> Vec<Trial> {
    vec![
        test("an_invalid_campaign_is_refused_with_line_and_column", &[], invalid),
        test("a_wrong_command_line_is_usage", &[], usage),
        test("validate_and_plan_tell_what_would_be_run", &[], validate_and_plan),
        test("doctor_says_what_the_machine_offers", &[], doctor),
        test("a_closed_pipe_is_no_fault", &[], closed_pipe),
        test("results_are_never_written_over", &[], never_over),
    ]
}

fn toll(command: &str, text: &str) -> Result<Output> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("c.yaml");
    std::fs::write(&file, text)?;
    Ok(program("toll")?.arg(command).arg(&file).current_dir(directory.path()).output()?)
}

fn invalid() -> Result<()> {
    let good = campaign(&[NATIVE, PCNET], 1, "300ms", "");
    let cases = [
        (
            "pcnet: {}}",
            "rtl8139: {}}",
            "c.yaml:8:",
            "unknown field `rtl8139`, expected `pcnet` or `virtioNet`",
        ),
        ("duration: 300ms", "duration: -300ms", "c.yaml:10:", "is negative"),
        ("duration: 300ms", "duration: 300", "c.yaml:10:", "has no unit"),
        ("name: pcnet", "name: native", "c.yaml:8:", "two arms are named `native`"),
        ("blocks: 1", "blox: 1", "c.yaml:11:", "unknown field `blox`"),
        ("{warmUp", "{directions: [], warmUp", "c.yaml:10:", "is empty"),
        (
            "kind: Campaign",
            "kind: \"ok\\rtoll: c.yaml is \\e[32mvalid\"",
            "c.yaml:2:7:",
            "`ok\\rtoll: c.yaml is \\u{1b}[32mvalid`",
        ),
        ("blocks: 1", "blocks: 1\n  blocks: 2", "c.yaml:12:3:", "`blocks` stands here twice"),
    ];
    // Of shape and of values, in one list.
    let faults =
        [("blocks: 1", "blox: 1"), ("pcnet: {}}", "rtl8139: {}}"), ("duration: 300ms", "duration: 1ms")];
    let text = faults.iter().fold(good.clone(), |text, (from, to)| text.replacen(from, to, 1));
    for command in ["run", "validate", "plan"] {
        let output = toll(command, &text)?;
        expect(&output, 3)?;
        let told = String::from_utf8(output.stderr)?;
        let places = ["c.yaml:8:", "c.yaml:10:", "c.yaml:11:"].map(|place| told.find(place));
        ensure!(places.is_sorted() && places[0].is_some(), "{command}: {told}");
        ensure!(told.matches("c.yaml:").count() == 3, "{command}: {told}");
    }
    for (from, to, place, message) in cases {
        ensure!(good.contains(from), "the test's campaign has no `{from}`");
        for command in ["run", "validate", "plan"] {
            let output = toll(command, &good.replacen(from, to, 1))?;
            expect(&output, 3)?;
            let text = String::from_utf8(output.stderr)?;
            ensure!(text.contains(place) && text.contains(message), "{command} {to}: {text}");
            ensure!(!text.contains(['\r', '\u{1b}']), "{text:?}");
            ensure!(output.stdout.is_empty());
        }
    }
    Ok(())
}

fn usage() -> Result<()> {
    for arguments in
        [&["run"][..], &["run", "/no/such/file.yaml"], &["fly"], &["run", "x", "--format", "xml"]]
    {
        expect(&program("toll")?.args(arguments).output()?, 2)?;
    }
    Ok(())
}

fn validate_and_plan() -> Result<()> {
    let text = campaign(&[NATIVE, PCNET], 4, "300ms", "");
    let valid = toll("validate", &text)?;
    expect(&valid, 0)?;
    // As Windows' editors write it.
    expect(&toll("validate", &format!("\u{feff}{}", text.replace('\n', "\r\n")))?, 0)?;
    let plan = toll("plan", &text)?;
    expect(&plan, 0)?;
    let text = String::from_utf8(plan.stdout)?;
    ensure!(text.contains("4 cells, 16 trials in 4 blocks; order by seed: 7; about 9s"), "{text}");
    Ok(())
}

fn doctor() -> Result<()> {
    let output = program("toll")?.arg("doctor").output()?;
    let text = String::from_utf8(output.stdout)?;
    for what in ["KVM", "TUN/TAP", "namespaces", "kernel", "CPUs", "memory", "clock"] {
        ensure!(text.contains(what), "{what} is missing:\n{text}");
    }
    // It has seen guests run where it says that they do.
    let guests = text.lines().any(|line| line.starts_with("ok    KVM") && line.contains("ran for a moment"));
    ensure!(guests == no_kvm().is_none(), "{text}");
    let lacks = text.lines().any(|line| line.starts_with("LACK"));
    ensure!(output.status.code() == Some(if lacks { 4 } else { 0 }), "{}:\n{text}", output.status);
    ensure!(!lacks || text.contains("->"), "something is lacking and nothing is advised:\n{text}");
    Ok(())
}

/// Names and bytes of a directory's files.
fn contents(directory: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let files = std::fs::read_dir(directory)?.map(|entry| {
        let entry = entry?;
        Ok((entry.file_name(), std::fs::read(entry.path())?))
    });
    files.collect()
}

/// A reader of stdout that wants no more, such as `head`, is no fault.
fn closed_pipe() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("c.yaml");
    std::fs::write(&file, campaign(&[NATIVE, PCNET], 1, "300ms", ""))?;
    for arguments in [&["plan"][..], &["validate"], &["doctor"]] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = program("toll")?;
        command.args(arguments).stdout(writer);
        if arguments != ["doctor"] {
            command.arg(&file);
        }
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code().is_some() && !text.contains("panicked"), "{arguments:?}: {text}");
        ensure!(output.status.success() || arguments == ["doctor"], "{arguments:?}: {}", output.status);
    }
    Ok(())
}

fn never_over() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let text = campaign(&[NATIVE], 1, "100ms", "");
    let limit = std::time::Duration::from_secs(30);
    let first = toll_e2e::programs::start(&text, directory.path(), |_| {})?.end(limit)?.0;
    expect(&first, 0)?;
    let before = contents(&directory.path().join("out"))?;
    let second = toll_e2e::programs::start(&text, directory.path(), |_| {})?.end(limit)?.0;
    expect(&second, 4)?;
    let text = String::from_utf8(second.stderr)?;
    ensure!(text.contains("exists already"), "{text}");
    ensure!(before.len() >= 5, "ledger, result, page and two logs: {:?}", before.keys());
    ensure!(before == contents(&directory.path().join("out"))?, "a file of the first run was changed");
    Ok(())
}
