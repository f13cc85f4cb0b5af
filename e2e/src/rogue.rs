//! What rogue peers share.

use std::fs;

use anyhow::{Context, Result, ensure};

/// Refuses to go on in the network of the process that started this one: what a rogue peer sends stays in a namespace that a
/// test has made for it.
///
/// # Errors
/// In the parent's network namespace, or where that can't be known.
pub fn ensure_apart() -> Result<()> {
    let network = |process: &str| {
        let link = format!("/proc/{process}/ns/net");
        fs::read_link(&link).with_context(|| format!("{link} can't be read"))
    };
    let parent = std::os::unix::process::parent_id().to_string();
    ensure!(
        network("self")? != network(&parent)?,
        "a rogue peer runs in a network namespace that a test has made for it, not in that of its parent"
    );
    Ok(())
}
