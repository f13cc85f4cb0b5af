//! `toll run` for real: a lab, agents, guests, and what happens when something dies or is missing.
//!
//! One test at a time: trials of two labs would compete for the machine's cores.

use libtest_mimic::Arguments;

#[path = "lab/bad_input.rs"]
mod bad_input;
#[path = "lab/datagrams.rs"]
mod datagrams;
#[path = "lab/faults.rs"]
mod faults;
#[path = "lab/full_disk.rs"]
mod full_disk;
#[path = "lab/lacking.rs"]
mod lacking;
#[path = "lab/latency.rs"]
mod latency;
#[path = "lab/measuring.rs"]
mod measuring;
#[path = "lab/pandas.rs"]
mod pandas;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut tests = bad_input::tests();
    tests.extend(measuring::tests());
    tests.extend(datagrams::tests());
    tests.extend(latency::tests());
    tests.extend(faults::tests());
    tests.extend(lacking::tests());
    tests.extend(full_disk::tests());
    tests.extend(pandas::tests());
    libtest_mimic::run(&arguments, tests).exit();
}
