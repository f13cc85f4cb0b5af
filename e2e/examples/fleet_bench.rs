//! What an orchestrator costs with 200 agents: dispatch and ledger latency, time between the trials of a pair, CPU and
//! memory. The agents are simulated, all in a second process, over real QUIC on loopback: they say at once what real
//! ones say after some work, so that every figure is the orchestrator's own.
//!
//!   cargo run --release -p toll-e2e --example fleet_bench [AGENTS [BLOCKS]]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::{mpsc, oneshot};
use toll_node_agent::identity::Identity;
use toll_node_agent::link::{Link, LinkEvent};
use toll_orchestrator::pki::{DEFAULT_DAYS, files};
use toll_orchestrator::scheduler::{Phase, Policy};
use toll_orchestrator::service::store::Store;
use toll_orchestrator::service::{Observer, Options, Service, handle};
use toll_protocol::PROTOCOL_VERSION;
use toll_protocol::facts::{HostFacts, NicFacts};
use toll_protocol::message::{FromAgent, ToAgent};
use toll_protocol::report::EndReport;
use toll_protocol::trial::EndReady;
use toll_protocol::units::{InterfaceAddress, Span};

/// The shortest that a campaign may ask for.
const RUN: Duration = Duration::from_millis(100);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| -> Result<usize> {
        arguments.get(index).map_or(Ok(default), |text| text.parse().context("a number is needed"))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if arguments.first().is_some_and(|first| first == "--agents") {
        return runtime.block_on(agents(number(1, 0)?, &arguments[2], Path::new(&arguments[3])));
    }
    runtime.block_on(bench(number(0, 200)?, number(1, 20)?))
}

#[derive(Default)]
struct Times {
    dispatch: Vec<Duration>,
    ledger: Vec<Duration>,
    phases: BTreeMap<&'static str, Vec<Duration>>,
}

#[derive(Clone, Default)]
struct Watch(Arc<Mutex<Times>>);

impl Watch {
    fn note(&self, note: impl FnOnce(&mut Times)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Observer for Watch {
    fn begun(&mut self, waited: Duration) {
        self.note(|times| times.dispatch.push(waited));
    }
    fn durable(&mut self, took: Duration) {
        self.note(|times| times.ledger.push(took));
    }
    fn phase(&mut self, phase: Phase, took: Duration) {
        let name = match phase {
            Phase::Setup => "setup",
            Phase::Run => "run",
            Phase::Teardown => "teardown",
        };
        self.note(|times| times.phases.entry(name).or_default().push(took));
    }
}

async fn bench(count: usize, blocks: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let pki = directory.path().join("pki");
    files::init(&pki, DEFAULT_DAYS)?;
    let fleet = files::issue_fleet(&pki, DEFAULT_DAYS)?;
    let identity = files::read(&pki.join("orchestrator"))?;
    let (link, events) = toll_orchestrator::link::Link::bind(
        "127.0.0.1:0".parse()?,
        &identity,
        toll_orchestrator::link::AGENT_TIMEOUT,
    )?;
    let mut agents = Command::new(std::env::current_exe()?)
        .args(["--agents", &count.to_string(), &link.address().to_string()])
        .arg(&fleet)
        .stdin(Stdio::piped())
        .spawn()?;
    let watch = Watch::default();
    let (handle, questions) = handle::channel();
    let options = Options::new(
        Store::fleet(directory.path())?,
        "fleet",
        Policy {
            limit: usize::MAX,
            grace: Duration::from_secs(30),
            arrival: Duration::from_secs(30),
            settle: Duration::from_secs(1),
            cluster: false,
        },
    );
    let service = Service::new(options, link, events, questions, watch.clone())?;
    let (stop, stopped) = oneshot::channel::<()>();
    let service = tokio::spawn(service.run(async move { drop(stopped.await) }));
    let campaign = format!(
        "apiVersion: toll.dev/v1alpha1\nkind: Campaign\nmetadata: {{name: bench}}\nspec:\n  hosts: {{select: {{atLeast: {count}}}}}\n  \
         pairs: ring\n  arms: [{{name: native, native: {{}}}}]\n  workloads: [{{name: bulk, stream: {{directions: [send], \
         warmUp: 0ms, duration: 100ms}}}}]\n  blocks: {blocks}\n"
    );
    let mut changes = handle.changes();
    while handle.agents().await.len() < count {
        changes.changed().await?;
    }
    let (before, began) = (cpu()?, Instant::now());
    let id = handle.submit(None, campaign).await?.id;
    loop {
        changes.changed().await?;
        if handle.campaign(&id).await?.state.is_over() {
            break;
        }
    }
    let (took, used) = (began.elapsed(), cpu()? - before);
    let status = handle.campaign(&id).await?;
    let counts = status.counts.context("counts")?;
    ensure!(counts.measured == counts.planned, "{counts:?}");
    let mut times = std::mem::take(&mut *watch.0.lock().unwrap_or_else(PoisonError::into_inner));
    println!("{count} agents, {} trials of {RUN:?} in {took:.1?}", counts.planned);
    println!("dispatch (both hosts free -> Prepare) {}", quantiles(&mut times.dispatch));
    println!("ledger   (result known -> durable)    {}", quantiles(&mut times.ledger));
    for (name, phase) in &mut times.phases {
        println!("phase {name:9}                       {}", quantiles(phase));
    }
    println!(
        "CPU      {:.2} s, {:.2} ms a trial",
        used.as_secs_f64(),
        used.as_secs_f64() * 1e3 / f64::from(counts.planned)
    );
    println!("memory   {} MiB resident at most", peak_mebibytes()?);
    drop(stop);
    service.await??;
    drop(agents.stdin.take());
    agents.wait()?;
    Ok(())
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at =
        |share: f64| times.get(((times.len() as f64 - 1.0) * share) as usize).copied().unwrap_or_default();
    format!("p50 {:.2?}  p99 {:.2?}  max {:.2?}", at(0.5), at(0.99), at(1.0))
}

/// CPU time of this process (getrusage(2)).
fn cpu() -> Result<Duration> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(value.tv_sec() * 1_000_000 + value.tv_usec()).unwrap_or(0))
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
}

fn peak_mebibytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes >> 10)
}

/// The second process: so many agents, until its standard input ends.
async fn agents(count: usize, orchestrator: &str, pki: &Path) -> Result<()> {
    let gaps: Gaps = Gaps::default();
    for n in 0..count {
        let identity =
            Identity::read(&pki.join(files::CA), &pki.join(files::CERTIFICATE), &pki.join(files::KEY))?;
        let link = Link::new(orchestrator.parse()?, toll_orchestrator::pki::SERVER_NAME.into(), &identity)?;
        tokio::spawn(agent(n, link, gaps.clone()));
    }
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    let mut gaps = std::mem::take(&mut *gaps.lock().unwrap_or_else(PoisonError::into_inner));
    println!("lost between trials, by the agents     {}", quantiles(&mut gaps));
    Ok(())
}

/// From an agent's result to the next Prepare: recording, teardown and dispatch.
type Gaps = Arc<Mutex<Vec<Duration>>>;

async fn agent(n: usize, link: Link, gaps: Gaps) {
    let ended = Arc::new(Mutex::new(None::<Instant>));
    let (say, outgoing) = mpsc::channel(64);
    let (events, mut heard) = mpsc::channel(64);
    let (_stop, stopped) = oneshot::channel();
    tokio::spawn(link.run(outgoing, events, stopped));
    while let Some(event) = heard.recv().await {
        match event {
            LinkEvent::HelloWanted(answer) => drop(answer.send(hello(n))),
            LinkEvent::Message(ToAgent::Prepare { trial, .. }) => {
                if let Some(ended) = ended.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    gaps.lock().unwrap_or_else(PoisonError::into_inner).push(ended.elapsed());
                }
                let address = std::net::SocketAddrV4::new(address(n).address, 1);
                drop(say.send(FromAgent::Ready { trial, ready: EndReady { address } }).await);
            }
            LinkEvent::Message(ToAgent::Start { trial, .. }) => {
                let (say, ended) = (say.clone(), ended.clone());
                let end = tokio::time::Instant::now() + RUN;
                tokio::spawn(async move {
                    tokio::time::timeout_at(end, std::future::pending::<()>()).await.ok();
                    *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    drop(say.send(FromAgent::Result { trial, report: report() }).await);
                });
            }
            LinkEvent::Message(ToAgent::Teardown { trial }) => {
                drop(say.send(FromAgent::TornDown { trial, leftovers: Vec::new() }).await);
            }
            _ => {}
        }
    }
}

fn address(n: usize) -> InterfaceAddress {
    let [_, _, a, b] = u32::try_from(n + 1).unwrap_or(0).to_be_bytes();
    InterfaceAddress { address: [10, 0, a, b].into(), prefix: 16 }
}

fn hello(n: usize) -> FromAgent {
    let nic = NicFacts { address: Some(address(n)), ..NicFacts::new("eth0", 1500) };
    let facts = HostFacts {
        kernel: "simulated".into(),
        cpus: vec![0],
        nic: Some(nic),
        build_profile: "release".into(),
        ..HostFacts::default()
    };
    let (version, name, facts) = (PROTOCOL_VERSION, format!("agent-{n}"), Box::new(facts));
    let instance = toll_protocol::message::Instance(n as u64);
    FromAgent::Hello { version, name, instance, facts, labels: BTreeMap::new(), held: Vec::new() }
}

fn report() -> Box<EndReport> {
    Box::new(EndReport {
        sent_bytes: 1_000_000,
        received_bytes: 1_000_000,
        ..EndReport::new(toll_protocol::traffic::TrafficReport::Stream(Default::default()), Span::from(RUN))
    })
}
