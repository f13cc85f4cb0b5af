//! A fleet of two hosts on this machine: `toll serve` and an agent on each host, all with their HTTP listeners, in
//! network namespaces of their own.
//!
//! ```text
//!  namespace of the orchestrator, 10.78.0.254: toll serve, Prometheus
//!      |  control network                      test network
//!      +-- host-1, 10.78.0.1: toll-agent -- eth0 ---+
//!      +-- host-2, 10.78.0.2: toll-agent -- eth0 ---+
//! ```

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use toll_e2e::machine::wait_for;
use toll_e2e::programs;
use toll_e2e::prometheus::{enter_on_exec, get};
use toll_orchestrator::lab::namespace::Namespace;
use toll_orchestrator::lab::{Lab, ORCHESTRATOR};
use toll_protocol::campaign;
use toll_protocol::result::CampaignResult;
use toll_protocol::service::CampaignStatus;

/// The fleet. Its processes end with it, in the order of its fields; the namespaces end with the last process inside.
pub struct Fleet {
    agents: Vec<Process>,
    serve: Option<Process>,
    lab: Lab,
    namespace: Namespace,
    directory: PathBuf,
}

/// A process that is told to end and waited for.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        // An agent cleans its host first. What has ended takes no signal.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let ended = wait_for("the end", Duration::from_secs(15), || Ok(self.0.try_wait()?));
        if ended.is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn file(namespace: &Namespace) -> PathBuf {
    format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd()).into()
}

fn succeed(mut command: Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{text}\n{error}", output.status);
    Ok(text)
}

impl Fleet {
    /// Starts everything; what it keeps and logs is in `directory`.
    ///
    /// # Errors
    /// When something can't be started.
    pub fn start(directory: &Path) -> Result<Self> {
        let namespace = Namespace::new()?;
        let spec = campaign::Lab { count: 2, rate: None, mtu: 1500 };
        let lab = namespace.run(|| -> Result<Lab> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(Lab::new(&spec))?)
        })??;
        let pki = directory.join("pki");
        let mut init = programs::program("toll")?;
        init.args(["pki", "init", "--dir"]).arg(&pki);
        succeed(init)?;
        let mut issue = programs::program("toll")?;
        issue.args(["pki", "issue", "--dir"]).arg(&pki).args(lab.hosts.iter().map(|host| &host.name));
        succeed(issue)?;
        std::fs::write(directory.join("token"), "a token of the test, long enough to be one\n")?;
        let mut fleet =
            Self { agents: Vec::new(), serve: None, lab, namespace, directory: directory.to_owned() };
        let mut serve = programs::program("toll")?;
        serve
            .arg("serve")
            .args(["--listen", &format!("{ORCHESTRATOR}:7447"), "--http", &fleet.http()])
            .arg("--data")
            .arg(directory.join("data"))
            .arg("--pki")
            .arg(pki.join("orchestrator"))
            .arg("--token-file")
            .arg(directory.join("token"));
        fleet.serve = Some(fleet.spawn(serve, &file(&fleet.namespace), "serve")?);
        for index in 0..fleet.lab.hosts.len() {
            let host = &fleet.lab.hosts[index];
            let address = host.virtual_end.address;
            let mut agent = programs::program("toll-agent")?;
            agent
                .args(["--orchestrator", &format!("{ORCHESTRATOR}:7447"), "--name", &host.name])
                .args(["--nic", "eth0", "--wire", "exclusive"])
                .args(["--guest-addresses", &format!("{address}-{address}")])
                .args(["--http", &fleet.agents_http()[index].1])
                .arg("--pki")
                .arg(pki.join(&host.name));
            let process = fleet.spawn(agent, &file(&host.namespace), &host.name)?;
            fleet.agents.push(process);
        }
        Ok(fleet)
    }

    fn spawn(&self, mut command: Command, namespace: &Path, log: &str) -> Result<Process> {
        let log = File::create(self.directory.join(format!("{log}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        enter_on_exec(&mut command, namespace)?;
        Ok(Process(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    /// Where `toll serve` answers HTTP.
    pub fn http(&self) -> String {
        format!("{ORCHESTRATOR}:8080")
    }

    /// Hosts, and where the agent of each answers HTTP.
    pub fn agents_http(&self) -> Vec<(String, String)> {
        let [a, b, c, _] = ORCHESTRATOR.octets();
        let address = |host: &toll_orchestrator::lab::Host| {
            let [.., own] = host.native.address.octets();
            (host.name.clone(), format!("{a}.{b}.{c}.{own}:8081"))
        };
        self.lab.hosts.iter().map(address).collect()
    }

    /// The namespace from which everything above can be reached.
    pub fn namespace(&self) -> PathBuf {
        file(&self.namespace)
    }

    /// Runs a client of the service, and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn toll(&self, arguments: &[&str]) -> Result<String> {
        let mut command = programs::program("toll")?;
        command.args(arguments).arg("--server").arg(format!("http://{}", self.http()));
        command.arg("--token-file").arg(self.directory.join("token"));
        enter_on_exec(&mut command, &self.namespace())?;
        succeed(command)
    }

    /// How a campaign is.
    ///
    /// # Errors
    /// When the service doesn't know it.
    pub fn status(&self, id: &str) -> Result<CampaignStatus> {
        let url = format!("http://{}/api/v1/campaigns/{id}", self.http());
        Ok(serde_json::from_str(&get(&self.namespace(), &url, &[])?)?)
    }

    /// The result of a campaign.
    ///
    /// # Errors
    /// When there is none.
    pub fn result(&self, id: &str) -> Result<CampaignResult> {
        let url = format!("http://{}/api/v1/campaigns/{id}/result", self.http());
        Ok(serde_json::from_str(&get(&self.namespace(), &url, &[])?)?)
    }

    /// What every process has logged.
    pub fn logs(&self) -> String {
        let names = ["serve", "host-1", "host-2"];
        let log = |name: &str| {
            let text =
                std::fs::read_to_string(self.directory.join(format!("{name}.log"))).unwrap_or_default();
            format!("--- {name}\n{text}")
        };
        names.map(log).join("\n")
    }
}
