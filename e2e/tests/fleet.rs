//! `toll serve` and `toll-agent` for real: hosts with NICs that have addresses and traffic of their own, several
//! trials at once, and what happens when something dies, stands still or is cut off.
//!
//! Some tests at a time: most of their time they wait, and none looks at how fast anything was.

use libtest_mimic::Arguments;

#[path = "fleet/connections.rs"]
mod connections;
#[path = "fleet/faults.rs"]
mod faults;
#[path = "fleet/keeping.rs"]
mod keeping;
#[path = "fleet/measuring.rs"]
mod measuring;
#[path = "fleet/paths.rs"]
mod paths;
#[path = "fleet/peers.rs"]
mod peers;
#[path = "fleet/readme.rs"]
mod readme;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(4);
    // Those that wait for long first.
    let mut tests = faults::tests();
    tests.extend(connections::tests());
    tests.extend(measuring::tests());
    tests.extend(keeping::tests());
    tests.extend(paths::tests());
    tests.extend(peers::tests());
    tests.extend(readme::tests());
    libtest_mimic::run(&arguments, tests).exit();
}
