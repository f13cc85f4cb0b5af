//! `toll serve`: the service for agents on hosts that it does not own.
//!
//! ```text
//! certificates -> QUIC socket, campaigns of former processes -> HTTP -> serve until SIGTERM or SIGINT
//! ```

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use prometheus::TextEncoder;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use toll_protocol::result::{CampaignResult, TrialRecord};
use toll_protocol::units::{Span, UnitError};

use crate::allocator;
use crate::exit::Exit;
use crate::http::bodies::Bodies;
use crate::http::client::read_token;
use crate::http::guard::Names;
use crate::http::held::{Answers, BUDGET};
use crate::http::socket::{self, Socket};
use crate::http::{self, Api, Pulse};
use crate::kube::{self, KubeOptions};
use crate::link::{AGENT_TIMEOUTS, Link};
use crate::metrics::Metrics;
use crate::pki::files;
use crate::scheduler::{Phase, Policy};
use crate::service::store::{Store, StoreError};
use crate::service::{Observer, Options, Service, View, handle};

/// How long no new agent must have come before a campaign is planned on those that are there: agents that the service
/// has just lost come back within their back-off, which is 5 s at most and mostly shorter.
const SETTLE: Duration = Duration::from_secs(2);

/// How long the data directory may be another's after this process has come to lead: the other one writes its last
/// records, or its node has to be found dead.
const HANDOVER: Duration = Duration::from_secs(60);
/// How long a campaign that is over stays in a cluster, whatever `--keep` says: its object has to be told first, and the
/// API server may be away. One that was removed before would be taken for a new one.
const UNTIL_TOLD: Duration = Duration::from_secs(600);
/// How often the directory is tried meanwhile: its lock tells nobody when it is free.
const LOOK: Duration = Duration::from_millis(200);

/// What `toll serve` is told.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Where agents dial (QUIC, UDP)
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7447")]
    pub listen: SocketAddr,
    /// Where the HTTP API, metrics and health are; changes take the token there
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    pub http: SocketAddr,
    /// A name that the HTTP API is asked by, beside its addresses, localhost and the machine's own name; may be repeated
    #[arg(long = "http-name", value_name = "NAME")]
    pub http_names: Vec<String>,
    /// Unix socket of the HTTP API, at which its owner and root submit and cancel without a token
    /// [default: /run/toll/toll.sock for root, else $XDG_RUNTIME_DIR/toll/toll.sock]
    #[arg(long, value_name = "PATH", env = "TOLL_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Where campaigns, their ledgers and results are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/toll")]
    pub data: PathBuf,
    /// The orchestrator's certificates (toll pki init): ca.pem, certificate.pem, key.pem
    #[arg(long, value_name = "DIR", default_value = "/etc/toll/pki")]
    pub pki: PathBuf,
    /// File of the token that whoever submits or cancels over TCP must show; without one nobody does
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How long an agent may be silent before its connection is taken for lost, 2s to 60s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = agent_timeout)]
    pub agent_timeout: Span,
    /// How long an agent that is away is waited for
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub agent_grace: Span,
    /// Most trials at once, on hosts that share none [default: as many as there are pairs]
    #[arg(long, value_name = "N")]
    pub max_trials: Option<usize>,
    /// Remove campaigns that are over, with their ledgers and results, but for the latest N to end; with --kube none in the
    /// first ten minutes [default: keep all]
    #[arg(long, value_name = "N")]
    pub keep: Option<NonZeroUsize>,
    /// Be the orchestrator of a Kubernetes cluster: take Campaign objects, leave cordoned and NotReady nodes out, and
    /// serve only while holding a Lease
    #[arg(long)]
    pub kube: bool,
    /// Who this process is in the cluster
    #[command(flatten, next_help_heading = "With --kube")]
    pub cluster: KubeOptions,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the service from being started, or ended it.
pub fn serve(arguments: &ServeArguments) -> Result<Exit> {
    allocator::give_back_what_is_long();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime can be started")?;
    let served = runtime.block_on(run(arguments));
    // A summary that is being made is made again by the next process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served?;
    Ok(Exit::Ok)
}

async fn run(arguments: &ServeArguments) -> Result<()> {
    let stop = on_signals()?;
    // Only one process at a time may open the ledgers.
    let leadership = if arguments.kube {
        tokio::select! {
            leads = kube::lead(&arguments.cluster) => Some(leads?),
            () = told(stop.clone()) => return Ok(()),
        }
    } else {
        None
    };
    let served = match &leadership {
        None => lead(arguments, stop).await,
        Some(leadership) => tokio::select! {
            served = lead(arguments, stop) => served,
            why = leadership.lost() => Err(anyhow::anyhow!("this orchestrator leads no more: {why}")),
        },
    };
    if let Some(leadership) = leadership {
        leadership.release().await;
    }
    served
}

/// Reads `--agent-timeout`.
fn agent_timeout(text: &str) -> Result<Span, String> {
    let time: Span = text.parse().map_err(|error: UnitError| error.to_string())?;
    if AGENT_TIMEOUTS.contains(&time.duration()) {
        return Ok(time);
    }
    let (least, most) = (Span::from(*AGENT_TIMEOUTS.start()), Span::from(*AGENT_TIMEOUTS.end()));
    Err(format!("an agent says once a second that it is there: give a time between {least} and {most}"))
}

/// Serves as the one orchestrator.
async fn lead(arguments: &ServeArguments, stop: watch::Receiver<bool>) -> Result<()> {
    let identity = files::read(&arguments.pki).context("the orchestrator has no certificates")?;
    let token = arguments.token_file.as_deref().map(read_token).transpose()?;
    let metrics = Metrics::new().context("the metrics can't be registered")?;
    let (link, events) = Link::bind(arguments.listen, &identity, arguments.agent_timeout.duration())?;
    let Some(store) = store(arguments, &stop).await? else { return Ok(()) };
    let listener = TcpListener::bind(arguments.http)
        .await
        .with_context(|| format!("the HTTP API can't listen on {}", arguments.http))?;
    let socket = Socket::bind(&arguments.socket.clone().unwrap_or_else(socket::own_path))?;
    let policy = Policy {
        limit: arguments.max_trials.unwrap_or(usize::MAX),
        grace: arguments.agent_grace.duration(),
        arrival: arguments.agent_grace.duration(),
        settle: SETTLE,
        cluster: arguments.kube,
    };
    let options = Options {
        keep: arguments.keep.map(NonZeroUsize::get),
        keep_for: if arguments.kube { UNTIL_TOLD } else { Duration::ZERO },
        ..Options::new(store, if arguments.kube { "kubernetes" } else { "fleet" }, policy)
    };
    let (handle, questions) = handle::channel();
    let agents = link.address();
    let service = Service::new(options, link, events, questions, Watched(metrics.clone()))?;
    let api = Api {
        handle: handle.clone(),
        token: token.map(Arc::from),
        names: Names::new(&arguments.http_names),
        pulse: Pulse::new(service.heartbeat()),
        metrics: Arc::new(move || exposition(&metrics)),
        results: Arc::new(Semaphore::new(http::RESULTS)),
        bodies: Bodies::default(),
        answers: Answers::new(BUDGET),
    };
    let api_address = listener.local_addr().context("the HTTP API has no address")?;
    // On stdout, for whoever asked for a port of the system's choice.
    let path = socket.path().display().to_string();
    crate::exit::print_out(&format!("agents: {agents}\nhttp: http://{api_address}\nsocket: unix:{path}\n"))?;
    tracing::info!(%agents, http = %api_address, socket = path, "serving");
    let pages = tokio::spawn(http::serve(listener, socket, api, told(stop.clone())));
    let cluster = async {
        if arguments.kube {
            kube::run(handle, &arguments.cluster, told(stop.clone())).await?;
        }
        told(stop.clone()).await;
        Ok::<_, anyhow::Error>(())
    };
    let service = service.run(told(stop.clone()));
    // A service that is dropped in the middle is one that was killed: the next process goes on from its ledgers.
    let served = tokio::try_join!(async { anyhow::Ok(service.await?) }, cluster);
    pages.abort();
    // The socket's file goes with it. The task has ended, or was just aborted: neither is a fault.
    let _ = pages.await;
    served?;
    Ok(())
}

/// The data directory, locked; `None` if this process is told to stop before it has it. In a cluster the one who led
/// before may still be ending.
async fn store(arguments: &ServeArguments, stop: &watch::Receiver<bool>) -> Result<Option<Store>> {
    let patience = if arguments.kube { HANDOVER } else { Duration::ZERO };
    let deadline = Instant::now() + patience;
    let mut look = tokio::time::interval(LOOK);
    loop {
        match Store::fleet(&arguments.data) {
            Err(StoreError::Held { .. }) if Instant::now() < deadline => {}
            other => return Ok(Some(other?)),
        }
        tokio::select! {
            _ = look.tick() => {}
            () = told(stop.clone()) => return Ok(None),
        }
    }
}

fn exposition(metrics: &Metrics) -> String {
    let families = metrics.registry().gather();
    // A family that can't be written is a fault of the code that named it: the others are of use all the same.
    TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| format!("# {error}\n"))
}

/// Becomes true with the first SIGTERM or SIGINT.
fn on_signals() -> Result<watch::Receiver<bool>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be caught")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be caught")?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        tracing::info!("told to stop: trials under way go on, and the next process has their results");
        sender.send_replace(true);
        // Whoever waits learns of it; the value stays.
        sender.closed().await;
    });
    Ok(receiver)
}

async fn told(mut stop: watch::Receiver<bool>) {
    // A sender that is gone would be a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Carries what happens to the metrics.
struct Watched(Metrics);

impl Observer for Watched {
    fn recorded(&mut self, record: &TrialRecord) {
        self.0.recorded(&record.outcome);
    }

    fn begun(&mut self, waited: Duration) {
        self.0.dispatched(waited);
    }

    fn phase(&mut self, phase: Phase, took: Duration) {
        self.0.phase(phase, took);
    }

    fn durable(&mut self, took: Duration) {
        self.0.ledger_written(took);
    }

    fn summarised(&mut self, id: &str, result: &CampaignResult) {
        self.0.observe_campaign(id, result);
    }

    fn removed(&mut self, id: &str) {
        self.0.forget_campaign(id);
    }

    fn changed(&mut self, view: &View) {
        self.0.agents(view.agents.iter().map(|(state, count)| (*state, *count)));
        self.0.campaigns(view.campaigns.iter().map(|(state, count)| (*state, *count)));
        self.0.trials(view.waiting, view.in_flight);
        self.0.left_out(view.left_out);
    }
}
