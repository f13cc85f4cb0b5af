//! `toll run FILE` without a server: a lab on this machine, the campaign on it, and what came of it.
//!
//! ```text
//! load -> check -> enter the lab's namespace -> lab, agents -> plan, ledger -> drive -> summary, pages -> exit code
//! ```

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use toll_protocol::campaign::{self, Campaign};
use toll_protocol::result::{
    ArmSummary, CampaignResult, HostProvenance, Outcome, Provenance, TrialRecord, Verdict,
};
use toll_protocol::trial::EndKind;

use crate::driver::{Driver, Observer, unix_ms};
use crate::exit::{Exit, print_out};
use crate::lab::{self, AgentProcess, Lab};
use crate::ledger::{Ledger, LedgerError, LedgerHeader, PlannedTrial};
use crate::link::Link;
use crate::pki::{Authority, SERVER_NAME};
use crate::plan::{self, Plan};
use crate::progress::Progress;
use crate::scheduler::{self, Scheduler};
use crate::{binaries, report, summary};

/// The ledger's name in the directory of results.
const LEDGER: &str = "ledger.sqlite";

/// How long an agent may take to clean its host when it is asked to end.
const STOP: Duration = Duration::from_secs(5);

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
    if campaign.arms.iter().any(|arm| !matches!(arm.kind, EndKind::Native { .. })) {
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
    fs::create_dir_all(&out).with_context(|| format!("{} can't be made", out.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime can be started")?;
    let ended = runtime.block_on(in_lab(manifest, campaign, &spec, &agent, &out));
    runtime.shutdown_timeout(Duration::from_secs(1));
    let (result, interrupted) = ended?;
    let page = write_results(&result, &out)?;
    match format {
        Format::Json => print_out(&format!("{}\n", serde_json::to_string_pretty(&result)?))?,
        Format::Text => {
            let options = report::terminal::TerminalOptions::of_stdout();
            print_out(&report::terminal::render(&result, Some(&page), options))?;
        }
    }
    Ok(exit(&result, interrupted))
}

/// `toll-quickstart-20261123-161500`, in UTC.
fn default_directory(name: &str) -> String {
    format!("toll-{name}-{}", jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S"))
}

/// What the result means for a script.
fn exit(result: &CampaignResult, interrupted: bool) -> Exit {
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

/// Writes `result.json` and `report.html`; the path of the latter.
fn write_results(result: &CampaignResult, out: &Path) -> Result<PathBuf> {
    let page = out.join("report.html");
    replace(&out.join("result.json"), serde_json::to_string_pretty(result)?.as_bytes())?;
    replace(&page, report::html::render(result).as_bytes())?;
    Ok(page)
}

/// Writes a file as a whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, bytes)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("{} can't be written", path.display()))
}

async fn in_lab(
    manifest: &str,
    campaign: &Campaign,
    spec: &campaign::Lab,
    agent: &Path,
    out: &Path,
) -> Result<(CampaignResult, bool)> {
    let mut cancel = Cancel::on_signals()?;
    let lab = Lab::new(spec).await?;
    let authority = Authority::new()?;
    let (link, events) =
        Link::bind(SocketAddr::from((lab::ORCHESTRATOR, 0)), &authority.issue(SERVER_NAME)?)?;
    let mut agents = Vec::new();
    for host in &lab.hosts {
        let log = out.join(format!("{}.log", host.name));
        let log = File::create(&log).with_context(|| format!("{} can't be made", log.display()))?;
        // This is the main thread, which outlives the lab: the agents die with it.
        agents.push(AgentProcess::start(agent, host, link.address(), &authority.issue(&host.name)?, log)?);
    }
    let plan = plan_for(campaign, spec, &lab);
    let (header, ledger) = create_ledger(manifest, campaign, spec, &plan, out)?;
    let progress = Progress::new(plan.trials.len());
    // The hosts of a lab share one machine: trials at the same time would disturb each other.
    let scheduler = Scheduler::new(plan, 1);
    let mut driver = Driver { scheduler, link, events, began: Instant::now() };
    let mut observer = LabObserver { progress, agents, told: Vec::new() };
    let driven = driver.drive(ledger, &mut cancel.first, &mut observer).await;
    observer.progress.finish();
    // The agents first: to them a closed connection is a fault to recover from.
    // All are asked before one is waited for: those that don't answer cost one limit, not one each.
    observer.agents.iter().for_each(AgentProcess::ask_to_end);
    let deadline = Instant::now() + STOP;
    for agent in observer.agents {
        agent.ended_by(deadline).await;
    }
    driver.link.close().await;
    let mut ledger = driven?;
    let interrupted = cancel.was_given();
    let mut provenance = header.provenance;
    provenance.ended_unix_ms = Some(unix_ms());
    provenance.interrupted = interrupted;
    let facts = driver.scheduler.facts();
    provenance.hosts =
        facts.map(|(name, facts)| HostProvenance { name: name.into(), facts: facts.clone() }).collect();
    ledger.set_provenance(&provenance)?;
    let result = summary::summarise(ledger.header(), &ledger.records()?, &campaign.gates)?;
    Ok((result, interrupted))
}

/// The plan of `campaign` on the hosts of a lab.
fn plan_for(campaign: &Campaign, spec: &campaign::Lab, lab: &Lab) -> Plan {
    let host = |host: &lab::Host| plan::Host {
        name: host.name.clone(),
        virtual_address: host.virtual_end,
        mtu: spec.mtu,
        rate: spec.rate,
    };
    let hosts: Vec<plan::Host> = lab.hosts.iter().map(host).collect();
    // A seed that was not asked for is short enough to be typed again.
    let seed = campaign.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    Plan::new(campaign, &hosts, seed, &mut rand::rng())
}

fn create_ledger(
    manifest: &str,
    campaign: &Campaign,
    spec: &campaign::Lab,
    plan: &Plan,
    out: &Path,
) -> Result<(LedgerHeader, Ledger)> {
    let planned = |(position, trial): (usize, &plan::Trial)| PlannedTrial {
        trial: trial.id,
        cell: plan.cells[trial.cell].key.clone(),
        block: trial.block,
        position: u32::try_from(position).unwrap_or(u32::MAX),
    };
    let native = campaign.native_arm().map(|arm| arm.name.as_str());
    let arm = |arm: &campaign::Arm| ArmSummary {
        name: arm.name.clone(),
        kind: arm.kind.clone(),
        baseline: native == Some(arm.name.as_str()),
    };
    let header = LedgerHeader {
        campaign: campaign.name.clone(),
        manifest: manifest.to_owned(),
        seed: plan.seed,
        arms: campaign.arms.iter().map(arm).collect(),
        planned: plan.trials.iter().enumerate().map(planned).collect(),
        provenance: Provenance {
            toll_version: env!("CARGO_PKG_VERSION").into(),
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
            engine: "lab".into(),
            link_rate: spec.rate,
            mtu: Some(spec.mtu),
            started_unix_ms: unix_ms(),
            ended_unix_ms: None,
            hosts: Vec::new(),
            interrupted: false,
        },
    };
    let ledger = Ledger::create(&out.join(LEDGER), &header)?;
    Ok((header, ledger))
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
    agents: Vec<AgentProcess>,
    /// Hosts whose end was told.
    told: Vec<String>,
}

impl Observer for LabObserver {
    fn progress(&mut self, progress: &scheduler::Progress) {
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
        for agent in &mut self.agents {
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
