//! Dashboards and rules, against a real Prometheus that scrapes a real fleet.

use libtest_mimic::{Arguments, Failed, Trial};

#[path = "dashboards/structure.rs"]
mod structure;

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
    // Trials of two fleets would compete for the machine's cores.
    arguments.test_threads = Some(1);
    let tests = structure::tests();
    libtest_mimic::run(&arguments, tests).exit();
}
