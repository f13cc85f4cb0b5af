//! A real Prometheus, in a network namespace of the test's, and what it answers.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::machine::wait_for;

/// Where it listens in its namespace, which has no other Prometheus.
const ADDRESS: &str = "127.0.0.1:9090";

/// Why there is no Prometheus on this machine, if there is none.
pub fn lacking() -> Option<&'static str> {
    let there = |program: &str| {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    (!there("prometheus") || !there("promtool"))
        .then_some("no prometheus (Debian: apt-get install prometheus)")
}

/// Runs `promtool` and returns what it printed.
///
/// # Errors
/// When it finds something wrong, with all that it printed.
pub fn promtool(directory: &Path, arguments: &[&str], input: &str) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), input)?;
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(directory)
        .stdin(File::open(file.path())?)
        .output()
        .context("starting promtool")?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    // `check metrics` tells of bad style and exits with 3.
    anyhow::ensure!(output.status.success(), "promtool {arguments:?}: {}\n{printed}", output.status);
    Ok(printed)
}

/// A configuration with what `targets` gives for a job in place of the discovery of Kubernetes, which Debian's
/// Prometheus is built without: one line, such as `static_configs: []`.
pub fn with_targets(config: &str, targets: impl Fn(&str) -> String) -> String {
    let (mut out, mut job, mut inside) = (String::new(), "", false);
    for line in config.lines() {
        job = line.trim().strip_prefix("- job_name: ").unwrap_or(job);
        let begins = line.trim() == "kubernetes_sd_configs:";
        // What is deeper than the key belongs to it.
        inside = begins || inside && line.starts_with("      ");
        if begins {
            out.push_str(&format!("    {}\n", targets(job)));
        } else if !inside {
            out.push_str(&format!("{line}\n"));
        }
    }
    out
}

/// The answer to a GET from inside a network namespace, named by its file (`/proc/PID/ns/net`).
///
/// # Errors
/// When there is none, or it is no success.
pub fn get(namespace: &Path, url: &str, parameters: &[(&str, &str)]) -> Result<String> {
    // A namespace is an attribute of a thread: this one ends with the answer.
    let ask = || -> Result<String> {
        setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build();
        let request = ureq::Agent::new_with_config(config).get(url).query_pairs(parameters.iter().copied());
        let mut answer = request.call().with_context(|| url.to_owned())?;
        let text = answer.body_mut().read_to_string()?;
        anyhow::ensure!(answer.status().is_success(), "{url}: {}\n{text}", answer.status());
        Ok(text)
    };
    std::thread::scope(|scope| match scope.spawn(ask).join() {
        Ok(answer) => answer,
        Err(_) => bail!("asking {url} panicked"),
    })
}

/// Makes a command run in a network namespace, and die with the thread that starts it.
///
/// # Errors
/// When the namespace can't be opened.
pub fn enter_on_exec(command: &mut Command, namespace: &Path) -> Result<()> {
    let inside = File::open(namespace).context("opening the namespace")?;
    let enter = move || {
        // SAFETY: prctl with these arguments touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open in the parent, which has not been able to close it since the fork.
        if unsafe { libc::setns(inside.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe system calls are made, on a descriptor opened before.
    unsafe {
        command.pre_exec(enter);
    }
    Ok(())
}

/// A running Prometheus. It ends with this value, or with the test.
pub struct Prometheus {
    child: Child,
    namespace: PathBuf,
}

impl Prometheus {
    /// Starts it in `namespace` on the `prometheus.yml` of `directory`, where its data and its log go too.
    ///
    /// # Errors
    /// When it does not get ready, with its log.
    pub fn start(directory: &Path, namespace: &Path) -> Result<Self> {
        let log = directory.join("prometheus.log");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        enter_on_exec(&mut command, namespace)?;
        let child = command.spawn().context("starting prometheus")?;
        let mut started = Self { child, namespace: namespace.to_owned() };
        let ready = wait_for("Prometheus", Duration::from_secs(30), || {
            anyhow::ensure!(started.child.try_wait()?.is_none(), "it ended");
            Ok(get(namespace, &format!("http://{ADDRESS}/-/ready"), &[]).ok())
        });
        ready.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        Ok(started)
    }

    /// `data` of an answer of its API, version 1.
    ///
    /// # Errors
    /// When it refuses.
    pub fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let text = get(&self.namespace, &format!("http://{ADDRESS}/api/v1/{path}"), parameters)?;
        let mut answer: Value = serde_json::from_str(&text)?;
        anyhow::ensure!(answer["status"] == "success", "{path} {parameters:?}: {text}");
        Ok(answer["data"].take())
    }

    /// Series of an expression now, with their values.
    ///
    /// # Errors
    /// When it refuses.
    pub fn instant(&self, expr: &str) -> Result<Vec<(Value, f64)>> {
        let data = self.api("query", &[("query", expr)])?;
        if data["resultType"] == "scalar" {
            return Ok(vec![(Value::Null, number(&data["result"][1]))]);
        }
        let series = data["result"].as_array().context("a result")?;
        Ok(series.iter().map(|one| (one["metric"].clone(), number(&one["value"][1]))).collect())
    }

    /// Every value of every series of an expression from `start` to `end` (Unix seconds), one a second.
    ///
    /// # Errors
    /// When it refuses.
    pub fn range(&self, expr: &str, start: f64, end: f64) -> Result<Vec<f64>> {
        let (start, end) = (start.to_string(), end.to_string());
        let parameters = [("query", expr), ("start", &start), ("end", &end), ("step", "1")];
        let data = self.api("query_range", &parameters)?;
        let series = data["result"].as_array().context("a result")?;
        let values = series.iter().filter_map(|one| one["values"].as_array()).flatten();
        Ok(values.map(|value| number(&value[1])).collect())
    }

    /// Values of a label of the series that `selector` selects.
    ///
    /// # Errors
    /// When it refuses.
    pub fn label_values(&self, label: &str, selector: &str) -> Result<Vec<String>> {
        let data = self.api(&format!("label/{label}/values"), &[("match[]", selector)])?;
        let values = data.as_array().context("values")?.iter().filter_map(Value::as_str);
        Ok(values.map(str::to_owned).collect())
    }
}

/// A sample's value; Prometheus writes it as text.
fn number(value: &Value) -> f64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
