//! Holds a Lease for as long as this process leads. What decides is in [`super::lease`].

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::lease::{Election, Record, Step, Timing};
use super::{KubeError, KubeOptions, words};

/// The name of the Lease.
const LEASE: &str = "toll-orchestrator";
/// A question to the API server is given up after this, well within the time that a leader has.
const PATIENCE: Duration = Duration::from_secs(4);

/// That this process leads. Dropped, the Lease runs out by itself.
#[derive(Debug)]
pub struct Leadership {
    lost: watch::Receiver<Option<String>>,
    release: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Leadership {
    /// Ends when this process leads no more, with the reason: whoever acts as leader must then stop at once.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "the renewal of the Lease has ended".to_owned(),
        }
    }

    /// Gives the Lease up, so that another leads at once. To be called after the last act as leader.
    pub async fn release(mut self) {
        if let Some(release) = self.release.take() {
            // A task that has ended has nothing to release.
            let _ = release.send(());
        }
        if let Err(error) = (&mut self.task).await {
            tracing::warn!("the Lease was not released: {error}");
        }
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits until this process leads.
///
/// # Errors
/// When there is no cluster to ask, or it refuses Leases altogether. What passes is tried again.
pub async fn lead(options: &KubeOptions) -> Result<Leadership, KubeError> {
    let client = super::client().await?;
    elect(client, options, Timing::KUBERNETES).await
}

async fn elect(client: Client, options: &KubeOptions, timing: Timing) -> Result<Leadership, KubeError> {
    let mut candidate = Candidate {
        leases: Api::namespaced(client, &options.namespace),
        identity: options.identity.clone(),
        election: Election::new(options.identity.clone(), timing),
        timing,
        ticks: interval(timing.look_every),
    };
    candidate.ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while candidate.election.leads_until().is_none() {
        candidate.ticks.tick().await;
        match candidate.round().await {
            Err(error) if refused(&error) => return Err(KubeError::Lease { why: words(&error) }),
            Err(error) => tracing::warn!("the Lease can't be asked for: {}", words(&error)),
            Ok(step) => tracing::debug!("candidate for the Lease: {step:?}"),
        }
    }
    tracing::info!("{} leads", options.identity);
    let (told, lost) = watch::channel(None);
    let (release, released) = oneshot::channel();
    let task = tokio::spawn(async move {
        tokio::select! {
            why = candidate.renew() => {
                tracing::warn!("{} leads no more: {why}", candidate.identity);
                told.send_replace(Some(why));
            }
            wish = released => if wish.is_ok() {
                candidate.release().await;
            },
        }
    });
    Ok(Leadership { lost, release: Some(release), task })
}

/// Whether trying again is of no use: the API server knows no such object, or does not let us.
fn refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404))
}

struct Candidate {
    leases: Api<Lease>,
    identity: String,
    election: Election,
    timing: Timing,
    ticks: Interval,
}

impl Candidate {
    /// Reads the Lease, and writes it if the election says so.
    async fn round(&mut self) -> Result<Step, kube::Error> {
        let Ok(read) = timeout(PATIENCE, self.leases.get_opt(LEASE)).await else {
            return Ok(self.election.failed(Instant::now()));
        };
        let lease = match read {
            Ok(lease) => lease,
            Err(error) => {
                return match self.election.failed(Instant::now()) {
                    lost @ Step::Lost(_) => Ok(lost),
                    _ => Err(error),
                };
            }
        };
        let step = self.election.read(Instant::now(), lease.as_ref().map(record).as_ref());
        let Step::Write { replaces, taken, transitions } = step else { return Ok(step) };
        let mut spec = self.spec(transitions);
        let old = lease.and_then(|lease| lease.spec);
        spec.acquire_time = match old {
            Some(old) if !taken => old.acquire_time,
            _ => spec.renew_time.clone(),
        };
        let began = Instant::now();
        let written = timeout(PATIENCE, self.write(replaces, spec)).await;
        match written {
            Ok(Ok(())) => Ok(self.election.written(began, Instant::now())),
            // Somebody else was faster: that is what versions are for.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                Ok(self.election.failed(Instant::now()))
            }
            Ok(Err(error)) => match self.election.failed(Instant::now()) {
                lost @ Step::Lost(_) => Ok(lost),
                _ => Err(error),
            },
            Err(_) => Ok(self.election.failed(Instant::now())),
        }
    }

    fn spec(&self, transitions: u32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.duration.as_secs()).ok(),
            lease_transitions: i32::try_from(transitions).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }
    }

    async fn write(&self, replaces: Option<String>, spec: LeaseSpec) -> Result<(), kube::Error> {
        let create = replaces.is_none();
        let metadata =
            ObjectMeta { name: Some(LEASE.to_owned()), resource_version: replaces, ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(spec) };
        let parameters =
            PostParams { field_manager: Some(super::MANAGER.to_owned()), ..PostParams::default() };
        if create {
            self.leases.create(&parameters, &lease).await?;
        } else {
            self.leases.replace(LEASE, &parameters, &lease).await?;
        }
        Ok(())
    }

    /// Renews until that fails for too long, and says why.
    async fn renew(&mut self) -> String {
        loop {
            let Some(until) = self.election.leads_until() else { return "it leads no more".to_owned() };
            let round = async {
                self.ticks.tick().await;
                self.round().await
            };
            // A question that hangs must not keep a leader that others no longer believe in.
            match tokio::time::timeout_at(until.into(), round).await {
                Ok(Ok(Step::Lost(why))) => return why,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!("the Lease can't be renewed: {}", words(&error)),
                Err(_) => return "the Lease could not be renewed in time".to_owned(),
            }
        }
    }

    async fn release(&mut self) {
        let lease = match timeout(PATIENCE, self.leases.get_opt(LEASE)).await {
            Ok(Ok(Some(lease))) if record(&lease).holder.as_deref() == Some(self.identity.as_str()) => lease,
            // Another holds it, or it can't be read: it runs out by itself.
            _ => return,
        };
        let record = record(&lease);
        let spec = LeaseSpec { holder_identity: Some(String::new()), ..self.spec(record.transitions) };
        match timeout(PATIENCE, self.write(Some(record.version), spec)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the Lease was not released: {}", words(&error)),
            Err(_) => tracing::warn!("the Lease was not released in time"),
        }
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: seconds.map(Duration::from_secs),
        transitions: spec.lease_transitions.and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
    }
}
