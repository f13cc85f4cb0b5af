//! `toll run` for real: a lab, agents, guests, and what happens when something dies or is missing.
//!
//! One test at a time: trials of two labs would compete for the machine's cores.

use libtest_mimic::{Arguments, Failed, Trial};

#[path = "lab/bad_input.rs"]
mod bad_input;
#[path = "lab/faults.rs"]
mod faults;
#[path = "lab/lacking.rs"]
mod lacking;
#[path = "lab/measuring.rs"]
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
    let mut tests = bad_input::tests();
    tests.extend(measuring::tests());
    tests.extend(faults::tests());
    tests.extend(lacking::tests());
    libtest_mimic::run(&arguments, tests).exit();
}
