//! `toll serve` and `toll-agent` for real: hosts with NICs that have addresses and traffic of their own, several
//! trials at once, and what happens when something dies, stands still or is cut off.
//!
//! One test at a time: trials of two fleets would compete for the machine's cores.

use libtest_mimic::{Arguments, Failed, Trial};

#[path = "fleet/connections.rs"]
mod connections;
#[path = "fleet/faults.rs"]
mod faults;
#[path = "fleet/measuring.rs"]
mod measuring;

type Body = fn() -> anyhow::Result<()>;

/// A test that is listed as ignored, with the reason in its name, where the machine can't run it.
fn test(name: &str, lacks: &[Option<&'static str>], body: Body) -> Trial {
    let lacking: Vec<&str> = lacks.iter().flatten().copied().collect();
    let run = move || body().map_err(|error| Failed::from(format!("{error:#}")));
    if lacking.is_empty() {
        Trial::test(name, run)
    } else {
        Trial::test(format!("{name} (left out: {})", lacking.join(", ")), run).with_ignored_flag(true)
    }
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut tests = measuring::tests();
    tests.extend(connections::tests());
    tests.extend(faults::tests());
    libtest_mimic::run(&arguments, tests).exit();
}
