//! Toll's programs, built as the tests are, and runs of them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use toll_protocol::result::CampaignResult;

use crate::documents;

/// The directory of the programs; they are built when first asked for.
///
/// # Errors
/// When they can't be built.
pub fn directory() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    // target/PROFILE/deps/TEST: the programs of the same profile are two directories up.
    let test = std::env::current_exe()?;
    let directory = test.ancestors().nth(2).context("the test stands in no target directory")?;
    let target = directory.parent().context("the test stands in no target directory")?;
    let mut cargo = Command::new(env!("CARGO"));
    // What `cargo test` says of the test's package is not of the programs: build scripts that look at it would run again, and
    // all that depends on their crates would be built again.
    let of_the_test = |name: &str| name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_the_test)) {
        cargo.env_remove(name);
    }
    cargo.args(["build", "--workspace", "--bins", "--quiet", "--target-dir"]).arg(target);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let status =
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).status().context("starting cargo")?;
    anyhow::ensure!(status.success(), "Toll's programs can't be built ({status})");
    Ok(directory.to_owned())
}

/// One of Toll's programs.
///
/// # Errors
/// When they can't be built.
pub fn program(name: &str) -> Result<Command> {
    Ok(Command::new(directory()?.join(name)))
}

/// A run of `toll run`.
pub struct Run {
    /// The process.
    pub child: Child,
    /// Its results.
    pub out: PathBuf,
}

/// Starts `toll run` on a campaign in `directory`; `prepare` may change the command.
///
/// # Errors
/// When it can't be started.
pub fn start(campaign: &str, directory: &Path, prepare: impl FnOnce(&mut Command)) -> Result<Run> {
    let file = directory.join("campaign.yaml");
    std::fs::write(&file, campaign)?;
    let out = directory.join("out");
    let mut command = program("toll")?;
    command.arg("run").arg(&file).arg("--out").arg(&out);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    prepare(&mut command);
    Ok(Run { child: command.spawn().context("starting toll")?, out })
}

impl Run {
    /// Process id.
    pub fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.id(), signal)?)
    }

    /// Waits for the end, at most `limit`.
    ///
    /// # Errors
    /// When it takes longer; it is then killed.
    pub fn end(mut self, limit: Duration) -> Result<(Output, PathBuf)> {
        let deadline = Instant::now() + limit;
        let pid = self.id();
        // Its output is read while it runs, so that a full pipe doesn't hold it up.
        let (sender, receiver) = std::sync::mpsc::channel();
        let out = self.out.clone();
        std::thread::spawn(move || {
            let stdout = self.child.stdout.take();
            let reader = std::thread::spawn(move || read(stdout));
            let stderr = read(self.child.stderr.take());
            let status = self.child.wait();
            // The receiver may have given up.
            let _ = sender.send((status, reader.join().unwrap_or_default(), stderr));
        });
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok((status, stdout, stderr)) => Ok((Output { status: status?, stdout, stderr }, out)),
            Err(_) => {
                kill(pid, Signal::SIGKILL).ok();
                bail!("toll did not end within {limit:?}")
            }
        }
    }
}

fn read(from: Option<impl std::io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        // What can't be read is missing in the test's message only.
        let _ = from.read_to_end(&mut bytes);
    }
    bytes
}

/// The result that a run left.
///
/// # Errors
/// When there is none, or it is not as its schema says.
pub fn result(out: &Path) -> Result<CampaignResult> {
    let path = out.join("result.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    documents::result(&text)
}

/// Asserts an exit code, and shows the output if it is another.
///
/// # Errors
/// When it is another.
pub fn expect(output: &Output, code: i32) -> Result<()> {
    let ExitStatus { .. } = output.status;
    if output.status.code() != Some(code) {
        bail!(
            "expected exit code {code}, got {}\n--- stdout\n{}\n--- stderr\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
