//! The commands that README.md and manifests/deploy/README.md tell a user: tests run them as they stand there.

use std::path::Path;

use anyhow::{Context, Result, ensure};

const README: &str = include_str!("../../README.md");
const DEPLOY: &str = include_str!("../../manifests/deploy/README.md");

/// The commands of the first code block below a heading (`## Heading`) of README.md, a line each, without comments.
///
/// # Errors
/// When there is no such block.
pub fn commands(heading: &str) -> Result<Vec<String>> {
    let section = section(README, heading)?;
    let block = section.split("```").nth(1).with_context(|| format!("{heading} has no code block"))?;
    lines(block).with_context(|| heading.to_owned())
}

/// The commands of all code blocks below a heading of manifests/deploy/README.md.
///
/// # Errors
/// When there is none.
pub fn deploy_commands(heading: &str) -> Result<Vec<String>> {
    let blocks = section(DEPLOY, heading)?.split("```").skip(1).step_by(2);
    lines(&blocks.collect::<String>()).with_context(|| heading.to_owned())
}

fn section(document: &'static str, heading: &str) -> Result<&'static str> {
    let section = document.split("\n## ").find(|section| section.starts_with(&format!("{heading}\n")));
    section.with_context(|| format!("there is no heading {heading}"))
}

fn lines(block: &str) -> Result<Vec<String>> {
    let bare = |line: &str| line.split(" # ").next().unwrap_or_default().trim().to_owned();
    let commands: Vec<String> = block.lines().map(bare).filter(|line| !line.is_empty()).collect();
    ensure!(!commands.is_empty(), "there are no commands");
    Ok(commands)
}

/// `PATH` with `first` before what it is.
pub fn path_with(first: &Path) -> String {
    format!("{}:{}", first.display(), std::env::var("PATH").unwrap_or_default())
}
