//! A fleet on one machine: hosts in network namespaces of their own, whose NICs have addresses and traffic of their
//! own, agents on them, and an orchestrator at the other end of their wires.
//!
//! ```text
//!  wire namespace:  bridge wire0 10.91.0.254/24 <- toll serve, and who talks to the hosts all the time
//!      |            |            |            |
//!    eth0         eth0         eth0         eth0      10.91.0.1 ... /24, the default route too
//!    host-1       host-2       host-3       host-4    guests: 10.91.0.101 ...
//! ```
//! Namespaces have no names: they end with this value and the processes inside.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use toll_orchestrator::lab::namespace::Namespace;
use toll_protocol::result::CampaignResult;
use toll_protocol::service::{AgentStatus, CampaignPage, CampaignStatus};

use crate::bystander::Bystander;
use crate::documents;
use crate::link;
use crate::machine::{is_in, wait_for};
use crate::programs;

/// Where agents dial.
pub const ORCHESTRATOR: &str = "10.91.0.254:7447";
/// How long anything that is waited for may take.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How long an agent may be silent: shorter than by default, because tests wait for it.
const SILENCE: &str = "3s";
const GUESTS: &str = "10.91.0.101-10.91.0.150";

/// A process that is killed when it is dropped.
pub struct Process {
    /// The process.
    pub child: Child,
    /// Where it logs.
    pub log: PathBuf,
}

impl Process {
    /// Its id.
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

    /// Stops it, and returns when all its threads stand still.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        // Its end stays to be waited for: WNOWAIT.
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.id()), flags)? {
            WaitStatus::Stopped(..) => Ok(()),
            other => bail!("a process that is stopped has ended: {other:?}"),
        }
    }

    /// Lets it go on after [`Process::stop`], unless it has been killed meanwhile.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn go_on(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(_) => Ok(()),
            None => self.signal(Signal::SIGCONT),
        }
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end by itself, and gives its exit code.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn end(&mut self) -> Result<Option<i32>> {
        let status = wait_for("the end of a process", LIMIT, || Ok(self.child.try_wait()?))?;
        Ok(status.code())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host of the fleet.
pub struct Host {
    /// `host-1`.
    pub name: String,
    /// Its network.
    pub namespace: Namespace,
    /// Its agent, while it runs.
    pub agent: Option<Process>,
}

/// The fleet.
pub struct Fleet {
    /// The other end of all wires.
    pub wire: Namespace,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The orchestrator, while it runs.
    pub orchestrator: Option<Process>,
    /// Everything that it leaves.
    pub directory: tempfile::TempDir,
    starts: usize,
}

impl Fleet {
    /// Hosts joined by a wire, and certificates for all; nothing runs yet.
    ///
    /// # Errors
    /// When the machine doesn't let it be made.
    pub fn new(count: usize) -> Result<Self> {
        let fleet = Self::without_certificates(count)?;
        let pki = fleet.path("pki");
        fleet.toll(["pki", "init", "--dir"].map(OsStr::new).into_iter().chain([pki.as_os_str()]))?;
        let names = fleet.hosts.iter().map(|host| OsStr::new(&host.name));
        let issue = ["pki", "issue", "--dir"].map(OsStr::new).into_iter().chain([pki.as_os_str()]);
        fleet.toll(issue.chain(names))?;
        Ok(fleet)
    }

    /// Hosts joined by a wire.
    ///
    /// # Errors
    /// When the machine doesn't let it be made.
    pub fn without_certificates(count: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let wire = Namespace::new()?;
        let script = "ip link set lo up; sysctl -qw net.ipv6.conf.default.disable_ipv6=1; \
                      ip link add wire0 type bridge forward_delay 0 mcast_snooping 0; \
                      ip addr add 10.91.0.254/24 dev wire0; ip link set wire0 up";
        shell(&wire, script)?;
        let mut hosts = Vec::new();
        for n in 1..=count {
            let namespace = Namespace::new()?;
            let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
            shell(
                &wire,
                &format!(
                    "ip link add port{n} type veth peer name eth0 netns {path}; \
                     ip link set port{n} master wire0 up"
                ),
            )?;
            shell(
                &namespace,
                &format!(
                    "ip link set lo up; sysctl -qw net.ipv6.conf.all.disable_ipv6=1; \
                     ip addr add 10.91.0.{n}/24 dev eth0; ip link set eth0 up; \
                     ip route add default via 10.91.0.254"
                ),
            )?;
            hosts.push(Host { name: format!("host-{n}"), namespace, agent: None });
        }
        Ok(Self { wire, hosts, orchestrator: None, directory, starts: 0 })
    }

    /// A fleet whose orchestrator and agents are up.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn up(count: usize) -> Result<Self> {
        let mut fleet = Self::new(count)?;
        fleet.start_orchestrator(&[])?;
        for index in 0..count {
            fleet.start_agent(index, &[])?;
        }
        fleet.wait_for_agents(count)?;
        Ok(fleet)
    }

    /// A path below the fleet's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The orchestrator's Unix socket: fleets that run at the same time have one each.
    pub fn socket(&self) -> PathBuf {
        self.path("run/toll.sock")
    }

    /// Starts the orchestrator, with `options` after its own, and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_orchestrator(&mut self, options: &[&str]) -> Result<()> {
        let mut command = programs::program("toll")?;
        command.args(["serve", "--listen", ORCHESTRATOR, "--agent-timeout", SILENCE, "--data"]);
        command.arg(self.path("data")).arg("--pki").arg(self.path("pki/orchestrator")).args(options);
        command.env("TOLL_LOG", "info").env("TOLL_SOCKET", self.socket());
        let process = self.start(command, "orchestrator", self.wire.as_fd().as_raw_fd())?;
        self.orchestrator = Some(process);
        wait_for("the orchestrator's answer", LIMIT, || Ok(self.agents().ok().map(drop)))
    }

    /// Starts the agent of a host, with `options` after its own.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_agent(&mut self, index: usize, options: &[&str]) -> Result<()> {
        let pki = self.path("pki").join(&self.hosts[index].name);
        self.start_agent_with(index, &pki, options)
    }

    /// The same, with addresses for guests of another network than the fleet's.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_agent_in(&mut self, index: usize, guests: &str) -> Result<()> {
        let pki = self.path("pki").join(&self.hosts[index].name);
        self.start_agent_of(index, &pki, guests, &[])
    }

    /// The same, with the certificates in `pki`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_agent_with(&mut self, index: usize, pki: &Path, options: &[&str]) -> Result<()> {
        self.start_agent_of(index, pki, GUESTS, options)
    }

    fn start_agent_of(&mut self, index: usize, pki: &Path, guests: &str, options: &[&str]) -> Result<()> {
        let mut command = programs::program("toll-agent")?;
        let host = &self.hosts[index];
        command.args(["--orchestrator", ORCHESTRATOR, "--name", &host.name, "--nic", "eth0"]);
        command.args(["--guest-addresses", guests, "--pki"]).arg(pki).args(options);
        command.env("TOLL_LOG", "debug,rustls=info,quinn=info,quinn_proto=info,hyper=info");
        let (name, namespace) = (host.name.clone(), host.namespace.as_fd().as_raw_fd());
        let process = self.start(command, &name, namespace)?;
        self.hosts[index].agent = Some(process);
        Ok(())
    }

    /// Starts a command in a network namespace, with a log of its own.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&mut self, mut command: Command, name: &str, namespace: RawFd) -> Result<Process> {
        self.starts += 1;
        let log = self.path(&format!("{name}.{}.log", self.starts));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        Ok(Process { child: enter(&mut command, namespace).spawn()?, log })
    }

    /// What the agent of a host has logged.
    ///
    /// # Errors
    /// When it does not run.
    pub fn agent_log(&self, index: usize) -> Result<String> {
        let agent = self.hosts[index].agent.as_ref().context("it runs")?;
        Ok(std::fs::read_to_string(&agent.log)?)
    }

    /// Traffic of each host's own, from the wire.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn bystanders(&self) -> Result<Vec<Bystander>> {
        let hosts = self.hosts.iter().zip(1..);
        let start =
            |(host, n): (&Host, u8)| Bystander::start(&self.wire, &host.namespace, &format!("10.91.0.{n}"));
        hosts.map(start).collect()
    }

    /// Pulls the plug of a host, or puts it in again.
    ///
    /// # Errors
    /// The system's word.
    pub fn set_link(&self, index: usize, up: bool) -> Result<()> {
        let port = format!("port{}", index + 1);
        self.wire.run(|| link::set(&port, up))??;
        Ok(())
    }

    /// Waits until so many agents are connected.
    ///
    /// # Errors
    /// When they don't come.
    pub fn wait_for_agents(&self, count: usize) -> Result<()> {
        wait_for("the agents", LIMIT, || {
            let connected = |agent: &AgentStatus| agent.state != toll_protocol::service::AgentState::Away;
            Ok((self.agents()?.iter().filter(|agent| connected(agent)).count() == count).then_some(()))
        })
    }

    /// `toll` with arguments, beside the orchestrator.
    ///
    /// # Errors
    /// When it can't be run.
    pub fn run(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Output> {
        let mut command = programs::program("toll")?;
        command.args(arguments).stdin(Stdio::null());
        command.env("TOLL_SERVER", format!("unix:{}", self.socket().display()));
        Ok(enter(&mut command, self.wire.as_fd().as_raw_fd()).output()?)
    }

    /// The same, whose exit code must be 0; what it printed.
    ///
    /// # Errors
    /// When it is another.
    pub fn toll(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
        let output = self.run(arguments)?;
        programs::expect(&output, 0)?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The namespace of the wire and the orchestrator, as a file of this process.
    pub fn wire_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.wire.as_fd().as_raw_fd()).into()
    }

    /// What the orchestrator's HTTP API says.
    fn get(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:8080/api/v1/{path}");
        crate::prometheus::get(&self.wire_path(), &url, &[])
    }

    fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(serde_json::from_str(&self.get(path)?)?)
    }

    /// The agents, as the orchestrator sees them.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub fn agents(&self) -> Result<Vec<AgentStatus>> {
        self.json("agents")
    }

    /// The latest campaigns, the newest first.
    ///
    /// # Errors
    /// When the orchestrator doesn't answer.
    pub fn campaigns(&self) -> Result<Vec<CampaignStatus>> {
        Ok(self.json::<CampaignPage>("campaigns")?.items)
    }

    /// How a campaign is.
    ///
    /// # Errors
    /// When the orchestrator doesn't answer.
    pub fn status(&self, id: &str) -> Result<CampaignStatus> {
        self.json(&format!("campaigns/{id}"))
    }

    /// Submits a campaign; its id.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit(&self, campaign: &str) -> Result<String> {
        let file = self.path("campaign.yaml");
        std::fs::write(&file, campaign)?;
        Ok(self.toll([OsStr::new("submit"), file.as_os_str()])?.trim().to_owned())
    }

    /// Waits until a campaign is over; its result, and its status.
    ///
    /// # Errors
    /// When it takes too long, or its trials don't add up.
    pub fn result(&self, id: &str, limit: Duration) -> Result<(CampaignResult, CampaignStatus)> {
        let status = wait_for("the end of the campaign", limit, || {
            // It may be away for a moment.
            Ok(self.status(id).ok().filter(|status| status.state.is_over()))
        })?;
        let result = documents::result(self.get(&format!("campaigns/{id}/result"))?.as_bytes())?;
        let counts = status.counts.context("a campaign that is over has counts")?;
        ensure!(counts.over() == counts.planned, "trials don't add up: {counts:?}");
        let runs: Vec<_> = result.cells.iter().flat_map(|cell| &cell.runs).collect();
        let recorded: BTreeSet<_> = runs.iter().map(|run| run.trial.to_string()).collect();
        let once = recorded.len() == runs.len() && runs.len() == counts.planned as usize;
        ensure!(once, "{} runs of {} trials, {counts:?}", runs.len(), recorded.len());
        for run in runs {
            let has_figure = run.goodput_bytes_per_second.is_some();
            let measured = run.status == toll_protocol::result::RunStatus::Measured;
            ensure!(has_figure == measured, "a run that is {:?} has a figure", run.status);
            ensure!(measured || run.reason.is_some(), "a run is {:?} without a reason", run.status);
        }
        Ok((result, status))
    }

    /// Interfaces, addresses and routes of a host, but not their counters.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn network(&self, index: usize) -> Result<String> {
        shell(&self.hosts[index].namespace, "ip -br link; ip -br addr; ip route; ip neigh show proxy")
    }

    /// Links of a host that Toll made.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn leftovers(&self, index: usize) -> Result<Vec<String>> {
        let links = shell(&self.hosts[index].namespace, "ip -o link")?;
        Ok(links.lines().filter(|line| line.contains("toll trial")).map(str::to_owned).collect())
    }

    /// Waits until no host has anything of a trial.
    ///
    /// # Errors
    /// When something stays.
    pub fn nothing_left(&self) -> Result<()> {
        let ends = || -> Result<Vec<(i32, i32, String)>> {
            let mut all = crate::machine::processes(&programs::directory()?)?;
            let of_trials = |name: &str| name == "toll-vmm" || name == "toll-endpoint";
            let ours = |pid| self.hosts.iter().any(|host| is_in(pid, host.namespace.as_fd()));
            all.retain(|(pid, _, name)| of_trials(name) && ours(*pid));
            Ok(all)
        };
        wait_for("clean hosts", LIMIT, || {
            for index in 0..self.hosts.len() {
                if !self.leftovers(index)?.is_empty() {
                    return Ok(None);
                }
            }
            Ok(ends()?.is_empty().then_some(()))
        })
    }

    /// The logs' last lines, for a failure's message.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let Ok(files) = std::fs::read_dir(self.directory.path()) else { return text };
        let mut files: Vec<PathBuf> = files.filter_map(|file| Some(file.ok()?.path())).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension() == Some(OsStr::new("log"))) {
            let log = std::fs::read_to_string(file).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(30)..].join("\n");
            text.push_str(&format!("--- {}\n{last}\n", file.display()));
        }
        text
    }
}

/// Runs a shell script in a namespace; what it printed.
///
/// # Errors
/// When it fails.
pub fn shell(namespace: &Namespace, script: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).stdin(Stdio::null());
    let output = enter(&mut command, namespace.as_fd().as_raw_fd()).output()?;
    if !output.status.success() {
        bail!("{script}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Lets a command run in the network namespace of a descriptor, which must stay open until it is spawned.
pub fn enter(command: &mut Command, namespace: RawFd) -> &mut Command {
    // SAFETY: between fork and exec one system call is made, on a descriptor that the parent holds open.
    unsafe {
        command.pre_exec(move || {
            if libc::setns(namespace, libc::CLONE_NEWNET) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        })
    }
}

/// What a machine lacks for a fleet of namespaces.
pub fn no_fleet() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    if !["/sbin/ip", "/usr/sbin/ip", "/bin/ip"].iter().any(|path| Path::new(path).exists()) {
        return Some("iproute2");
    }
    None
}
