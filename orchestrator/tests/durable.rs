//! What is told to be kept is there after a power cut, and what is told to have failed is not. A power cut can't be made
//! here, but the kernel's calls can be watched and made to fail (strace): when a step of a process is done, every name that
//! it made has been synced with its directory, and every file before it got its name; and whichever call of a submission
//! fails, its answer is true.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use toll_orchestrator::ledger::{Ledger, LedgerHeader};
use toll_orchestrator::service::kept;
use toll_orchestrator::service::store::{LEDGER, Over, Store, StoreError, write_files};
use toll_protocol::result::Provenance;
use toll_protocol::service::{CampaignState, CampaignStatus};

/// The variables that make this program one that is watched, which makes every step or one submission; their value is a
/// directory that is there.
const STEPS: &str = "TOLL_TEST_STEPS";
const SUBMISSION: &str = "TOLL_TEST_SUBMISSION";
const CALLS: &str = "trace=mkdir,mkdirat,open,openat,rename,renameat,renameat2,fsync,fdatasync,write";
/// Says that a step is done.
const DONE: &str = "is done";
const COUNT: usize = 5;
/// Calls that fail, and how.
const FAULTS: [(&str, &str); 6] = [
    ("openat", "EMFILE"),
    ("fsync", "EIO"),
    ("fdatasync", "EIO"),
    ("rename", "ENOSPC"),
    ("mkdir", "ENOSPC"),
    ("pwrite64", "ENOSPC"),
];

fn main() -> ExitCode {
    for (variable, part) in [(STEPS, steps as fn(&Path) -> Result<()>), (SUBMISSION, submission)] {
        let Some(directory) = std::env::var_os(variable) else { continue };
        return match part(Path::new(&directory)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    // It may be there, and not be allowed to watch anybody.
    let watches = Command::new("strace").args(["-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    let test = |name: &str, run: fn() -> Result<()>| match &watches {
        Ok(status) if status.success() => {
            Trial::test(name, move || run().map_err(|error| Failed::from(format!("{error:#}"))))
        }
        _ => Trial::test(format!("{name} (left out: no strace)"), || Ok(())).with_ignored_flag(true),
    };
    let tests = vec![
        test("every_name_is_synced_before_it_is_told", watched),
        test("whichever_call_of_a_submission_fails_its_answer_is_true", answered),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn header() -> LedgerHeader {
    LedgerHeader { hosts: Some(Vec::new()), ..LedgerHeader::new("c", "", 1, Provenance::new("fleet", 0)) }
}

/// What the service and `toll report` keep, step by step.
fn steps(directory: &Path) -> Result<()> {
    let store = Store::fleet(&directory.join("var/data"))?;
    println!("a data directory {DONE}");
    let ledger: Ledger = store.create("c", &header())?;
    println!("a submission {DONE}");
    let result = kept::of_ledger(&ledger, &[], &[])?;
    store.write_result("c", &result)?;
    let status = CampaignStatus {
        ended_unix_ms: Some(1),
        ..CampaignStatus::new("c", "c", CampaignState::Finished, 0)
    };
    store.write_status(&Over::new(status, String::new()))?;
    println!("the end of a campaign {DONE}");
    write_files(&directory.join("results/of/c"), &result)?;
    println!("a result elsewhere {DONE}");
    store.remove("c")?;
    println!("a removal {DONE}");
    Ok(())
}

/// Begins a service's store, submits, and says what becomes of it.
fn submission(directory: &Path) -> Result<()> {
    let store = Store::fleet(directory)?;
    println!("a data directory {DONE}");
    let answer = match store.create("c", &header()) {
        Ok(_) => "kept",
        Err(StoreError::There { .. }) => "there",
        Err(_) => "refused",
    };
    println!("{answer}");
    Ok(())
}

/// Runs this program under strace.
fn trace(variable: &str, directory: &Path, options: &[&str], calls: &Path) -> Result<Output> {
    let mut strace = Command::new("strace");
    strace.args(["--decode-fds=path", "--string-limit=4096"]).args(options).arg("-o").arg(calls);
    Ok(strace.arg(std::env::current_exe()?).env(variable, directory).output()?)
}

/// Every call of a kind that a submission makes fails once, in a process of its own.
fn answered() -> Result<()> {
    let mut answers = BTreeMap::new();
    for (call, error) in FAULTS {
        let of_it = format!("trace={call},write");
        let directory = tempfile::tempdir()?;
        let calls = directory.path().join("calls");
        let whole = trace(SUBMISSION, &directory.path().join("data"), &["-e", &of_it], &calls)?;
        ensure!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
        let calls = fs::read_to_string(calls)?;
        let begin = calls.find(DONE).context("a data directory")?;
        let count = |text: &str| text.lines().filter(|line| line.starts_with(&format!("{call}("))).count();
        for at in count(&calls[..begin]) + 1..=count(&calls) {
            let answer = answer(call, error, at).with_context(|| format!("{error} of {call} {at}"))?;
            *answers.entry(answer).or_insert(0) += 1;
        }
    }
    // There are steps of each kind: before the campaign has its name, after it, and those that are not needed.
    ensure!(answers.keys().eq(["kept", "refused", "there"]), "{answers:?}");
    Ok(())
}

/// The answer to a submission of which a call fails, if it is true.
fn answer(call: &str, error: &str, at: usize) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let inject = format!("inject={call}:error={error}:when={at}");
    let output = trace(SUBMISSION, &data, &["-e", &inject], &directory.path().join("calls"))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer = String::from_utf8(output.stdout)?.lines().last().context("an answer")?.to_owned();
    // As the next process finds it.
    let store = Store::fleet(&data)?;
    let found =
        Ledger::open(&store.directory("c").join(LEDGER)).map(|ledger| ledger.header().campaign.clone());
    if answer == "refused" {
        ensure!(!store.directory("c").exists(), "it is there: {found:?}");
        store.create("c", &header())?;
    } else {
        ensure!(found? == "c", "another campaign");
    }
    Ok(answer)
}

fn watched() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (root, calls) = (directory.path().join("root"), directory.path().join("calls"));
    fs::create_dir(&root)?;
    let output = trace(STEPS, &root, &["-e", CALLS], &calls)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut seen = Seen { root, names: BTreeSet::new(), bytes: BTreeSet::new() };
    let mut done = 0;
    for call in fs::read_to_string(calls)?.lines() {
        if call.starts_with("write(1<") && call.contains(DONE) {
            done += 1;
            ensure!(seen.names.is_empty(), "{call}: names in {:?} are not synced", seen.names);
        } else {
            seen.call(call).with_context(|| call.to_owned())?;
        }
    }
    ensure!(done == COUNT, "{done} steps were seen");
    Ok(())
}

/// What a power cut would take.
struct Seen {
    root: PathBuf,
    /// Directories with a name in them that is not synced.
    names: BTreeSet<PathBuf>,
    /// Files whose bytes are not synced.
    bytes: BTreeSet<PathBuf>,
}

impl Seen {
    /// Hears of a call that was made.
    fn call(&mut self, call: &str) -> Result<()> {
        let (name, rest) = call.split_once('(').unwrap_or((call, ""));
        if rest.contains(") = -1 ") {
            return Ok(());
        }
        let quoted: Vec<PathBuf> = rest.split('"').skip(1).step_by(2).map(PathBuf::from).collect();
        let path = |at: usize| quoted.get(at).filter(|path| path.starts_with(&self.root)).cloned();
        // Of an open descriptor: `5</its/path>`.
        let open = || rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| path);
        match name {
            "mkdir" | "mkdirat" => {
                if let Some(made) = path(0) {
                    self.named(&made)?;
                }
            }
            "open" | "openat" if rest.contains("O_CREAT") => {
                // What the lock's file says is for people: nobody misses it.
                if let Some(made) = path(0).filter(|made| !made.ends_with("lock")) {
                    self.named(&made)?;
                    self.bytes.insert(made);
                }
            }
            "write" => {
                let written = open().map(PathBuf::from).filter(|path| path.starts_with(&self.root));
                self.bytes.extend(written.filter(|path| !path.ends_with("lock")));
            }
            "rename" | "renameat" | "renameat2" => {
                let Some((from, to)) = path(0).zip(path(1)) else { return Ok(()) };
                let unsynced = self.names.contains(&from) || self.bytes.contains(&from);
                ensure!(!unsynced, "it is named before it is synced");
                self.named(&to)?;
            }
            "fsync" | "fdatasync" => {
                let synced = PathBuf::from(open().context("a descriptor")?);
                self.names.remove(&synced);
                self.bytes.remove(&synced);
            }
            _ => {}
        }
        Ok(())
    }

    fn named(&mut self, path: &Path) -> Result<()> {
        self.names.insert(path.parent().context("it is in a directory")?.to_owned());
        Ok(())
    }
}
