//! The agent on a real host: real links in network namespaces of the tests' own, real processes, real QUIC.
//! Needs root or a user namespace; where there is neither, every test is listed as left out, with the reason.

#![allow(
    clippy::panic,
    reason = "a test that fails panics; without the standard harness clippy can't see that this is one"
)]

mod agents;
mod captures;
mod confined;
mod connections;
mod escapes;
mod host;
mod links;
mod namespace;
mod options;
mod orchestrator;
mod processes;
mod trials;
mod virtual_ends;
mod wires;

use libtest_mimic::{Arguments, Failed, Trial};

type Test = (&'static str, fn() -> Result<(), Failed>);

fn main() -> std::process::ExitCode {
    // The same program plays the children of the process tests.
    if let Some(code) = processes::play() {
        return code;
    }
    let arguments = Arguments::from_args();
    let lacking = namespace::become_root().err();
    let virtual_lacking = lacking.clone().or_else(virtual_ends::lacking);
    let wires_lacking = virtual_lacking.clone().or_else(wires::lacking);
    let tests = listed(processes::TESTS, lacking.as_deref())
        .chain(listed(links::TESTS, lacking.as_deref()))
        .chain(listed(trials::TESTS, lacking.as_deref()))
        .chain(listed(captures::TESTS, lacking.clone().or_else(captures::lacking).as_deref()))
        .chain(listed(connections::TESTS, None))
        .chain(listed(options::TESTS, lacking.as_deref()))
        .chain(listed(confined::TESTS, lacking.as_deref()))
        .chain(listed(escapes::TESTS, lacking.clone().or_else(escapes::lacking).as_deref()))
        .chain(listed(confined::VIRTUAL, virtual_lacking.as_deref()))
        .chain(listed(virtual_ends::WITHOUT_VMM, lacking.as_deref()))
        .chain(listed(virtual_ends::TESTS, virtual_lacking.as_deref()))
        .chain(listed(wires::TESTS, wires_lacking.as_deref()))
        .collect();
    libtest_mimic::run(&arguments, tests).exit_code()
}

fn listed(tests: &[Test], lacking: Option<&str>) -> impl Iterator<Item = Trial> {
    tests.iter().map(move |(name, test)| match lacking {
        None => Trial::test(*name, *test),
        Some(why) => Trial::test(format!("{name} (left out: {why})"), *test).with_ignored_flag(true),
    })
}
