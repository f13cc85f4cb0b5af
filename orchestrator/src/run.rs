//! `toll run FILE` without a server: a lab on this machine, the campaign on it, and what came of it.
//!
//! ```text
//! load -> check -> enter the lab's namespace -> lab, agents -> service, campaign -> summary, pages -> exit code
//! ```

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use toll_protocol::campaign::{self, Campaign};
use toll_protocol::printable::{self, printable};
use toll_protocol::result::{CampaignResult, Outcome, TrialRecord, Verdict};
use toll_protocol::service::{CampaignState, CampaignStatus};

use crate::exit::{Exit, print_out};
use crate::lab::{self, AgentProcess, Lab};
use crate::ledger::LedgerError;
use crate::link::{AGENT_TIMEOUT, Link};
use crate::pki::{Authority, DEFAULT_DAYS, SERVER_NAME};
use crate::progress::Progress;
use crate::scheduler::{self, Policy};
use crate::service::handle::{self, Handle};
use crate::service::store::{LEDGER, REPORT, Store, make_directories};
use crate::service::{LabHosts, Observer, Options, Service};
use crate::{binaries, plan, report};

/// How long an agent may take to clean its host when it is asked to end.
const STOP: Duration = Duration::from_secs(5);

/// The hosts of a lab share one machine: trials at the same time would disturb each other. All of them are there from
/// the start, and an agent that is away is close to dead.
const POLICY: Policy = Policy {
    limit: 1,
    grace: Duration::from_secs(10),
    // An agent gives the guests that it tries a minute, and iperf3 5 s.
    arrival: Duration::from_secs(75),
    settle: Duration::ZERO,
    cluster: false,
};

/// Folder of captures among the results.
const CAPTURES: &str = "captures";
/// Why a campaign ended that its user interrupted.
const INTERRUPTED: &str = "the campaign was interrupted";

/// What `toll run` prints on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for people.
    Text,
    /// `result.json` alone.
    Json,
}

/// Runs `campaign`, whose text is `manifest`, and leaves its results in `out`.
///
/// Call it before any thread is started: it moves the process into the lab's namespace.
///
/// # Errors
/// What keeps the campaign from being run or its results from being kept; failed trials are results.
pub fn run(manifest: &str, campaign: &Campaign, out: Option<PathBuf>, format: Format) -> Result<Exit> {
    let spec = campaign.lab.context("the campaign names no lab: write `lab: {count: 2}` under spec.hosts")?;
    let agent = binaries::beside("toll-agent")?;
    for program in ["toll-vmm", "toll-endpoint"] {
        binaries::beside(program)?;
    }
    if campaign.arms.iter().any(|arm| !arm.kind.is_native()) {
        File::options().read(true).write(true).open("/dev/net/tun").context(
            "no TAP device can be made, and the campaign has virtual arms: /dev/net/tun can't be opened \
             (load the module tun; make the file readable and writable for this user)",
        )?;
    }
    let out = out.unwrap_or_else(|| PathBuf::from(default_directory(&campaign.name)));
    // Before anything in the directory is touched: the logs beside it would be gone when the ledger refuses.
    let ledger = out.join(LEDGER);
    if ledger.exists() {
        return Err(LedgerError::Exists { path: ledger }.into());
    }
    lab::enter()?;
    make_directories(&out)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime can be started")?;
    let captures =
        campaign.arms.iter().any(|arm| arm.kind.decorators().capture.is_some()).then(|| out.join(CAPTURES));
    if let Some(folder) = &captures {
        fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    }
    let ended = runtime.block_on(in_lab(manifest, &spec, &agent, &out, captures.as_deref()));
    runtime.shutdown_timeout(Duration::from_secs(1));
    let (result, fault, interrupted) = match ended? {
        Ended::Measured { result, fault, interrupted } => (result, fault, interrupted),
        Ended::Refused(why) => {
            eprintln!("toll: the campaign was refused: {}", printable(&why));
            return Ok(Exit::Refused);
        }
    };
    let page = fault.is_none().then(|| out.join(REPORT));
    print(&result, page.as_deref(), format)?;
    if let (Format::Text, Some(folder)) = (format, &captures) {
        print_out(&format!("Captures: {}\n", printable(&folder.display().to_string())))?;
    }
    let Some(fault) = fault else { return Ok(exit(&result, interrupted)) };
    eprintln!("toll: {}", printable(&fault));
    eprintln!(
        "toll: what was measured is above. Once that is mended, `toll report {}` writes report.html and result.json \
         from what the ledger has",
        printable(&out.display().to_string())
    );
    Ok(Exit::Infrastructure)
}

/// How a campaign in a lab ended.
enum Ended {
    /// It was begun.
    Measured {
        /// What it found.
        result: Box<CampaignResult>,
        /// What kept it from being measured or written whole.
        fault: Option<String>,
        /// Whether its user ended it.
        interrupted: bool,
    },
    /// The lab's hosts can't do what it asks for, and why.
    Refused(String),
}

/// Prints a result on stdout, whichever command asks for one; `page` is where its `report.html` is.
///
/// # Errors
/// When stdout can't be written.
pub fn print(result: &CampaignResult, page: Option<&Path>, format: Format) -> Result<()> {
    match format {
        Format::Json => {
            let json = serde_json::to_string_pretty(result)?;
            print_out(&format!("{}\n", printable::as_json(&json)))?;
        }
        Format::Text => {
            let options = report::terminal::TerminalOptions::of_stdout();
            print_out(&report::terminal::render(result, page, options))?;
        }
    }
    Ok(())
}

/// `toll-quickstart-20261123-161500`, in UTC.
fn default_directory(name: &str) -> String {
    format!("toll-{name}-{}", jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S"))
}

/// What the result means for a script.
pub fn exit(result: &CampaignResult, interrupted: bool) -> Exit {
    let incomplete = result.cells.iter().any(|cell| cell.counts.measured < cell.counts.planned);
    if interrupted {
        Exit::Interrupted
    } else if incomplete {
        Exit::Infrastructure
    } else if result.gates.iter().any(|gate| gate.verdict != Verdict::Pass) {
        Exit::GateMissed
    } else {
        Exit::Ok
    }
}

async fn in_lab(
    manifest: &str,
    spec: &campaign::Lab,
    agent: &Path,
    out: &Path,
    captures: Option<&Path>,
) -> Result<Ended> {
    let mut cancel = Cancel::on_signals()?;
    let lab = Lab::new(spec).await?;
    let authority = Authority::new(DEFAULT_DAYS)?;
    let identity = authority.issue(SERVER_NAME, DEFAULT_DAYS)?;
    let (link, events) = Link::bind(SocketAddr::from((lab::ORCHESTRATOR, 0)), &identity, AGENT_TIMEOUT)?;
    let mut agents = Vec::new();
    for host in &lab.hosts {
        let log = out.join(format!("{}.log", host.name));
        let log = File::create(&log).with_context(|| format!("{} can't be made", log.display()))?;
        // This is the main thread, which outlives the lab: the agents die with it.
        let identity = authority.issue(&host.name, DEFAULT_DAYS)?;
        agents.push(AgentProcess::start(agent, host, link.address(), &identity, captures, log)?);
    }
    let options = Options {
        lab: Some(hosts_of(&lab, spec)),
        interim: false,
        ..Options::new(Store::One(out.to_owned()), "lab", POLICY)
    };
    let (handle, questions) = handle::channel();
    let agents = Arc::new(Mutex::new(agents));
    let observer = LabObserver { progress: Progress::new(), agents: agents.clone(), told: Vec::new() };
    let service = Service::new(options, link, events, questions, observer)?;
    let (over, is_over) = oneshot::channel::<()>();
    let service = tokio::spawn(service.run(async move {
        // Dropped, it says the same.
        let _ = is_over.await;
    }));
    let ended = follow(&handle, manifest, &mut cancel.first).await;
    let result = match &ended {
        Ok(status) if status.state == CampaignState::Refused => None,
        Ok(status) => Some(handle.result(&status.id).await),
        Err(_) => None,
    };
    // The agents first: to them a closed connection is a fault to recover from.
    let agents = std::mem::take(&mut *agents.lock().unwrap_or_else(PoisonError::into_inner));
    end(agents).await;
    drop(over);
    let served = service.await.context("the service failed")?;
    served?.progress.finish();
    let CampaignStatus { fault, reason, .. } = ended?;
    match result.transpose()? {
        Some(result) => Ok(Ended::Measured { result, fault, interrupted: cancel.was_given() }),
        None => Ok(Ended::Refused(reason.unwrap_or_default())),
    }
}

/// Submits the campaign and waits until it is over, however it ends; how it is then. A message on `cancel` ends it
/// early.
async fn follow(handle: &Handle, manifest: &str, cancel: &mut mpsc::Receiver<()>) -> Result<CampaignStatus> {
    let id = handle.submit(None, manifest.to_owned()).await?.id;
    let mut changes = handle.changes();
    loop {
        let status = handle.campaign(&id).await?;
        if status.state.is_over() {
            return Ok(status);
        }
        tokio::select! {
            changed = changes.changed() => changed.context("the service ended before the campaign")?,
            Some(()) = cancel.recv() => handle.cancel(&id, INTERRUPTED).await?,
        }
    }
}

/// The hosts of a lab, as a plan needs them.
fn hosts_of(lab: &Lab, spec: &campaign::Lab) -> LabHosts {
    let host = |host: &lab::Host| plan::Host {
        name: host.name.clone(),
        virtual_address: Some(host.virtual_end),
        mtu: spec.mtu,
        rate: spec.rate,
    };
    LabHosts { hosts: lab.hosts.iter().map(host).collect(), rate: spec.rate, mtu: spec.mtu }
}

/// The user's wish to end early: the first signal ends the campaign in order, the second at once.
struct Cancel {
    first: mpsc::Receiver<()>,
    given: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Cancel {
    fn on_signals() -> Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be caught")?;
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be caught")?;
        let (sender, first) = mpsc::channel(1);
        let given = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = given.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                if flag.swap(true, std::sync::atomic::Ordering::Relaxed) {
                    eprintln!("interrupted again: ending at once");
                    // Agents and their children die with this process; the lab's namespaces with them.
                    nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).ok();
                }
                eprintln!("interrupted: the lab is cleaned up, what was measured is kept");
                // Full means that it was told already.
                let _ = sender.try_send(());
            }
        });
        Ok(Self { first, given })
    }

    fn was_given(&self) -> bool {
        self.given.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Shows progress, and watches the agents' processes.
struct LabObserver {
    progress: Progress,
    agents: Arc<Mutex<Vec<AgentProcess>>>,
    /// Hosts whose end was told.
    told: Vec<String>,
}

/// Ends the agents. All are asked before one is waited for: those that don't answer cost one limit, not one each.
async fn end(agents: Vec<AgentProcess>) {
    agents.iter().for_each(AgentProcess::ask_to_end);
    let deadline = Instant::now() + STOP;
    for agent in agents {
        agent.ended_by(deadline).await;
    }
}

impl Observer for LabObserver {
    fn progress(&mut self, _id: &str, progress: &scheduler::Progress) {
        self.progress.show(progress);
    }

    fn recorded(&mut self, record: &TrialRecord) {
        if let Outcome::Failed { failure, .. } = &record.outcome {
            tracing::debug!(trial = %record.trial, ?failure, "a trial failed");
        }
        self.progress.recorded(record);
    }

    fn dead_hosts(&mut self) -> Vec<(String, String)> {
        let mut dead = Vec::new();
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        for agent in agents.iter_mut() {
            if self.told.iter().any(|told| told == agent.host()) {
                continue;
            }
            if let Some(status) = agent.ended() {
                let host = agent.host().to_owned();
                self.told.push(host.clone());
                let reason = format!("the agent of {host} ended ({status}): see {host}.log");
                dead.push((host, reason));
            }
        }
        dead
    }
}
