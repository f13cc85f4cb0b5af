//! `toll trace`: the way of one frame of a trial, from a result on disk or of a service.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toll_protocol::file::Content;
use toll_protocol::printable::printable;
use toll_protocol::result::{CampaignResult, CellResult, Run};
use toll_protocol::trial::TrialId;

use crate::exit::{Exit, print_out};
use crate::remote::{self, Server};
use crate::report::stages;
use crate::service::store::RESULT;

/// Trials that an unknown one is answered with.
const NAMED: usize = 8;

/// Where the result is.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// A result.json, or the directory that it is in.
    Path(&'a Path),
    /// The results of `toll run` in this directory: the latest that has the trial.
    Here,
    /// A campaign of a service.
    Campaign(&'a Server, &'a str),
}

/// Prints the way of a frame of `trial`.
///
/// # Errors
/// When there is no result. A result without this trial is the user's mistake, who is told some that it has.
pub fn trace(trial: TrialId, source: Source<'_>) -> Result<Exit> {
    let (result, from) = match source {
        Source::Path(path) => (read(path)?, path.display().to_string()),
        Source::Here => find(trial, Path::new("."))?,
        Source::Campaign(server, id) => (remote::result(server, id)?, format!("campaign {id}")),
    };
    let Some((cell, run)) = run_of(&result, trial) else {
        eprintln!("toll: {}", printable(&unknown(trial, &result, &from)));
        return Ok(Exit::Usage);
    };
    print_out(&stages::trace(cell, run))?;
    Ok(Exit::Ok)
}

fn run_of(result: &CampaignResult, trial: TrialId) -> Option<(&CellResult, &Run)> {
    result.cells.iter().find_map(|cell| Some((cell, cell.runs.iter().find(|run| run.trial == trial)?)))
}

/// What to say of a trial that a result does not have.
fn unknown(trial: TrialId, result: &CampaignResult, from: &str) -> String {
    let noted = |run: &&Run| {
        let end = |end: &Option<_>| {
            end.as_ref().is_some_and(|end: &toll_protocol::report::EndReport| {
                end.transmit_stages.is_some() || end.receive_stages.is_some()
            })
        };
        end(&run.a) || end(&run.b)
    };
    let one_of_each = result.cells.iter().filter_map(|cell| Some((cell, cell.runs.iter().find(noted)?)));
    let some: Vec<String> = one_of_each
        .take(NAMED)
        .map(|(cell, run)| format!("{} ({} {})", run.trial, cell.key.arm, cell.key.direction))
        .collect();
    let some = if some.is_empty() { "none with a frame's way".to_owned() } else { some.join(", ") };
    format!("{from} has no trial {trial}; it has, among others: {some}")
}

/// The result at `path`.
fn read(path: &Path) -> Result<CampaignResult> {
    let file = if path.is_dir() { path.join(RESULT) } else { path.to_owned() };
    let text = crate::file::read(&file, Content::RESULT)?;
    CampaignResult::read(text.as_bytes())
        .with_context(|| format!("{} is no result of toll run", file.display()))
}

/// The latest result under `directory` that has the trial.
fn find(trial: TrialId, directory: &Path) -> Result<(CampaignResult, String)> {
    let entries = fs::read_dir(directory).context("this directory can't be read")?;
    let mut results: Vec<(std::time::SystemTime, PathBuf)> = entries
        .filter_map(|entry| Some(entry.ok()?.path().join(RESULT)))
        .filter_map(|file| Some((fs::metadata(&file).ok()?.modified().ok()?, file)))
        .collect();
    results.sort();
    let (mut latest, mut unread) = (None, None);
    for (_, file) in results.into_iter().rev() {
        let result = match read(&file) {
            Ok(result) => result,
            // It may be somebody else's file.
            Err(error) => {
                unread.get_or_insert(error);
                continue;
            }
        };
        let name = file.parent().unwrap_or(&file).display().to_string();
        if run_of(&result, trial).is_some() {
            return Ok((result, name));
        }
        latest.get_or_insert((result, name));
    }
    let none = || {
        format!(
            "no result of toll run is in this directory: name it with --results, or with --campaign that of a service ({trial})"
        )
    };
    match (latest, unread) {
        (Some(latest), _) => Ok(latest),
        (None, Some(unread)) => Err(unread.context(none())),
        (None, None) => bail!(none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::summarise;
    use crate::test_support;

    #[test]
    fn a_trial_is_found_in_the_latest_result_that_has_it_and_an_unknown_one_gets_names() {
        let (header, records) = test_support::campaign();
        let result = summarise(&header, &records, &[]).expect("belongs together");
        let directory = tempfile::tempdir().expect("a directory");
        assert!(find(TrialId::new(1), directory.path()).is_err());
        let old = directory.path().join("toll-old");
        fs::create_dir(&old).expect("made");
        fs::write(old.join(RESULT), r#"{"campaign": "c", "manifest": ""}"#).expect("written");
        let error = find(TrialId::new(1), directory.path()).expect_err("is of another version");
        assert!(format!("{error:#}").contains("an older Toll wrote it"), "{error:#}");
        fs::remove_dir_all(old).expect("removed");
        let (known, of) = (result.cells[0].runs[0].trial, directory.path().join("toll-a"));
        fs::create_dir(&of).expect("made");
        fs::write(of.join(RESULT), serde_json::to_string(&result).expect("written")).expect("written");
        fs::create_dir(directory.path().join("other")).expect("made");
        fs::write(directory.path().join("other").join(RESULT), "{}").expect("written");
        let (found, name) = find(known, directory.path()).expect("it is there");
        assert!(run_of(&found, known).is_some() && name.ends_with("toll-a"));
        assert_eq!(read(&of).expect("a directory will do"), found);
        let unknown_one = TrialId::new(0x7777);
        let (latest, name) = find(unknown_one, directory.path()).expect("the latest");
        let words = unknown(unknown_one, &latest, &name);
        assert!(
            words.contains("has no trial 000000007777") && words.contains("none with a frame's way"),
            "{words}"
        );
        let error = read(&directory.path().join("other")).expect_err("no result");
        assert!(format!("{error:#}").contains("is no result of toll run"));
    }
}
