//! Dashboards and rules, against a real Prometheus that scrapes a real fleet.

use libtest_mimic::Arguments;

#[path = "dashboards/live.rs"]
mod live;
#[path = "dashboards/questions.rs"]
mod questions;
#[path = "dashboards/structure.rs"]
mod structure;

fn main() {
    let mut arguments = Arguments::from_args();
    // Trials of two fleets would compete for the machine's cores.
    arguments.test_threads = Some(1);
    let mut tests = structure::tests();
    tests.extend(live::tests());
    libtest_mimic::run(&arguments, tests).exit();
}
