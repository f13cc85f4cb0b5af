//! The commands that README.md tells a user: tests run them as they stand there.

use std::path::Path;

use anyhow::{Context, Result, ensure};

const README: &str = include_str!("../../README.md");

/// The commands of the first code block below a heading (`## Heading`), a line each, without comments.
///
/// # Errors
/// When there is no such block.
pub fn commands(heading: &str) -> Result<Vec<String>> {
    let section = README.split("\n## ").find(|section| section.starts_with(&format!("{heading}\n")));
    let section = section.with_context(|| format!("README.md has no heading {heading}"))?;
    let block = section.split("```").nth(1).with_context(|| format!("{heading} has no code block"))?;
    let bare = |line: &str| line.split(" # ").next().unwrap_or_default().trim().to_owned();
    let commands: Vec<String> = block.lines().map(bare).filter(|line| !line.is_empty()).collect();
    ensure!(!commands.is_empty(), "the code block of {heading} is empty");
    Ok(commands)
}

/// `PATH` with `first` before what it is.
pub fn path_with(first: &Path) -> String {
    format!("{}:{}", first.display(), std::env::var("PATH").unwrap_or_default())
}
