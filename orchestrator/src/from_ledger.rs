//! `toll report`: the result of a campaign again, from its ledger: the table, `result.json` and `report.html`. For a run
//! that was killed or could not write its files, or one that somebody else made.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use toll_protocol::printable::printable;
use toll_protocol::result::CampaignResult;

use crate::exit::Exit;
use crate::ledger::Ledger;
use crate::run::{self, Format};
use crate::service::kept;
use crate::service::store::{LEDGER, Lock, REPORT, StoreError, write_files};

/// Prints what the ledger at `path` has, a file or the directory of a campaign, and writes its files into `out`, or
/// beside the ledger, unless a service writes there.
///
/// # Errors
/// When there is no ledger that this version can read, or it has no result; when the files can't be written, which is
/// told after what was measured.
pub fn report(path: &Path, out: Option<PathBuf>, format: Format) -> Result<Exit> {
    let file = if path.is_dir() { path.join(LEDGER) } else { path.to_owned() };
    let ledger = Ledger::open(&file)?;
    if ledger.header().hosts.is_none() {
        bail!(
            "{} has no result: its campaign was not planned yet, or was ended before it was",
            file.display()
        );
    }
    // What was measured is shown even where this version can't judge it.
    let gates = kept::gates(&ledger);
    let result = kept::of_ledger(&ledger, gates.as_deref().unwrap_or_default(), &[])
        .with_context(|| format!("{} gives no result", file.display()))?;
    let out = out.unwrap_or_else(|| file.parent().unwrap_or(Path::new(".")).to_owned());
    let written = write(&out, &result);
    run::print(&result, written.is_ok().then(|| out.join(REPORT)).as_deref(), format)?;
    let mut exit = run::exit(&result, result.provenance.interrupted);
    if let Err(why) = gates {
        eprintln!("toll: its gates are not judged: {}", printable(&why));
        exit = Exit::Infrastructure;
    }
    written.context("what was measured is above; its files are not written")?;
    Ok(exit)
}

/// Writes the files of a result. The files of a service are its own: one that is about to begin waits meanwhile.
fn write(out: &Path, result: &CampaignResult) -> Result<PathBuf> {
    let lock = Lock::of_campaign(out).map_err(|error| match error {
        StoreError::Held { directory, by } => anyhow!(
            "{} is served by {by}, which writes them itself: choose another directory (--out)",
            directory.display()
        ),
        other => other.into(),
    });
    let _lock = lock?;
    Ok(write_files(out, result)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::store::RESULT;
    use crate::service::store::Store;
    use crate::test_support;

    const MANIFEST: &str = "\
apiVersion: toll.dev/v1alpha1
kind: Campaign
metadata: {name: c}
spec:
  hosts: {select: {}}
  arms: [{name: native, native: {}}, {name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}}]
  workloads: [{name: bulk, stream: {}}]
  gates: [{cells: {arm: virtio}, toll: {atMost: 10%}}]
";

    fn ledger(directory: &Path, manifest: &str, planned: bool) -> Ledger {
        let (mut header, _) = test_support::campaign();
        header.manifest = manifest.to_owned();
        header.hosts = planned.then(Vec::new);
        Ledger::create(&directory.join(LEDGER), &header).expect("creates")
    }

    fn written(directory: &Path) -> CampaignResult {
        let text = std::fs::read(directory.join(RESULT)).expect("is written");
        serde_json::from_slice(&text).expect("is a result")
    }

    #[test]
    fn a_ledger_gives_its_result_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (_, records) = test_support::campaign();
        let mut ledger = ledger(directory.path(), MANIFEST, true);
        for record in &records[..7] {
            ledger.record(record).expect("records");
        }
        drop(ledger);
        // Trials are missing.
        let exit = report(directory.path(), None, Format::Text).expect("is shown");
        assert_eq!(exit, Exit::Infrastructure);
        let result = written(directory.path());
        assert_eq!(kept::total(&result).measured, 7);
        assert!(!result.gates.is_empty() && directory.path().join(REPORT).exists());
        let elsewhere = directory.path().join("a/b");
        let exit = report(&directory.path().join(LEDGER), Some(elsewhere.clone()), Format::Json);
        assert_eq!(exit.expect("is shown"), Exit::Infrastructure);
        assert_eq!(written(&elsewhere), result);
    }

    #[test]
    fn what_was_measured_is_shown_even_if_nothing_can_be_written() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(ledger(directory.path(), "kind: Nothing\n", true));
        assert_eq!(report(directory.path(), None, Format::Text).expect("is shown"), Exit::Infrastructure);
        assert!(written(directory.path()).gates.is_empty());
        let file = directory.path().join("file");
        std::fs::write(&file, "").expect("writes");
        let error = report(directory.path(), Some(file), Format::Text).expect_err("can't be written");
        assert!(format!("{error:#}").starts_with("what was measured is above"), "{error:#}");
    }

    #[test]
    fn what_a_service_has_is_not_written_to() {
        let data = tempfile::tempdir().expect("a directory");
        let service = Store::fleet(data.path()).expect("a store");
        let campaign = service.directory("one");
        std::fs::create_dir(&campaign).expect("makes");
        drop(ledger(&campaign, MANIFEST, true));
        for out in [None, Some(campaign.clone()), Some(campaign.join("../one"))] {
            let error = report(&campaign, out, Format::Text).expect_err("is the service's");
            let (error, pid) = (format!("{error:#}"), std::process::id());
            assert!(error.contains(&format!("is served by process {pid} on ")), "{error}");
            assert!(error.starts_with("what was measured is above") && error.contains("(--out)"), "{error}");
        }
        assert_eq!(std::fs::read_dir(&campaign).expect("lists").count(), 1);
        let elsewhere = tempfile::tempdir().expect("a directory");
        report(&campaign, Some(elsewhere.path().to_owned()), Format::Text).expect("is shown");
        drop(service);
        report(&campaign, None, Format::Text).expect("is shown");
        assert_eq!(written(elsewhere.path()), written(&campaign));
    }

    #[test]
    fn a_ledger_without_a_plan_and_one_of_another_version_are_refused_by_name() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(ledger(directory.path(), MANIFEST, false));
        let error = report(directory.path(), None, Format::Text).expect_err("there is none");
        assert!(error.to_string().contains("not planned yet"), "{error}");
        for (version, word) in [(1, "older"), (2, "older"), (99, "newer")] {
            let file = directory.path().join(LEDGER);
            let connection = rusqlite::Connection::open(&file).expect("opens");
            connection.pragma_update(None, "user_version", version).expect("sets");
            let error = report(&file, None, Format::Text).expect_err("is another version's").to_string();
            assert!(
                error.contains(&format!("{word} Toll (schema {version}")) && error.contains(LEDGER),
                "{error}"
            );
        }
        assert!(report(&directory.path().join("nothing"), None, Format::Text).is_err());
    }
}
