//! What a stranger can do: rogue peers against real processes. Each file below has one kind of peer and lists its tests; the
//! peers themselves are programs of this crate (`src/bin/rogue-*.rs`), which speak only inside namespaces that a test made
//! and end by themselves.
//!
//! One test at a time: several look at how fast something answers.

use libtest_mimic::Arguments;

#[path = "abuse/clients.rs"]
mod clients;
#[path = "abuse/handshakes.rs"]
mod handshakes;

/// The kinds of peer, a list of tests each.
const KINDS: [fn() -> Vec<libtest_mimic::Trial>; 2] = [clients::tests, handshakes::tests];

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let tests = KINDS.iter().flat_map(|kind| kind()).collect();
    libtest_mimic::run(&arguments, tests).exit();
}
