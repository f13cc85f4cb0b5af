//! Tests that a machine may lack something for.

use anyhow::Result;
use libtest_mimic::{Failed, Trial};

/// A test that is listed as ignored, with the reason in its name, where the machine can't run it.
pub fn test(name: &str, lacks: &[Option<&'static str>], body: fn() -> Result<()>) -> Trial {
    let lacking: Vec<&str> = lacks.iter().flatten().copied().collect();
    conditional(name, &lacking, body)
}

/// The same, for a body that holds something.
pub fn conditional(
    name: &str,
    lacking: &[&str],
    body: impl FnOnce() -> Result<()> + Send + 'static,
) -> Trial {
    let run = move || body().map_err(|error| Failed::from(format!("{error:#}")));
    if lacking.is_empty() {
        Trial::test(name, run)
    } else {
        Trial::test(format!("{name} (left out: {})", lacking.join(", ")), run).with_ignored_flag(true)
    }
}
