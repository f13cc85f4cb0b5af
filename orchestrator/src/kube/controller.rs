//! Makes the service do what `Campaign` objects ask for, and tells what became of them.
//!
//! ```text
//! object       created --------------------------------------------------> deleted -------> gone
//! finalizer            set                               removed once it is over and told so, deleted or not
//! service                  submit (the id has the uid)                      cancel
//! status                   Accepted .. Scheduled .. Running .. Complete, whenever the service says a change
//! ```
//!
//! Each object is looked at when it changes, and all of them when the service has changed, at most once a second; what
//! is the same is not written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::crd::{API_VERSION, Campaign, CampaignStatus, KIND, State};
use super::status::{News, Seen, news, status};
use super::{MANAGER, words};
use crate::service::handle::{Handle, LookupError, SubmitError};

/// Keeps an object until its campaign is over.
pub(super) const FINALIZER: &str = "toll.dev/campaign";
/// Statuses are written at most so often.
const PACE: Duration = Duration::from_secs(1);
/// After a failure: the API server or the service may be back by then.
const AGAIN: Duration = Duration::from_secs(5);
/// A campaign that is not over yet is looked at again, should a change be missed.
const LOOK: Duration = Duration::from_secs(30);

/// Why an object can't be dealt with now. It is tried again.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The API server.
    #[error("the API server: {}", words(.0))]
    Api(#[from] kube::Error),
    /// The service.
    #[error("the service: {0}")]
    Submit(SubmitError),
    /// The service.
    #[error("the service: {0}")]
    Lookup(LookupError),
}

struct Context {
    client: Client,
    handle: Handle,
    recorder: Recorder,
    /// The status written last, by uid: the watch may not have brought it back yet.
    written: Mutex<HashMap<String, CampaignStatus>>,
}

/// Runs until `stop`.
pub(super) async fn control(
    client: Client,
    campaigns: Api<Campaign>,
    handle: Handle,
    identity: &str,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let reporter =
        Reporter { controller: "toll.dev/orchestrator".into(), instance: Some(identity.to_owned()) };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        written: Mutex::default(),
        handle: handle.clone(),
    });
    let controller = Controller::new(campaigns, watcher::Config::default());
    let objects = controller.store();
    let outcomes = controller.reconcile_all_on(paced(handle.changes())).graceful_shutdown_on(stop).run(
        reconcile,
        |_, _, _| Action::requeue(AGAIN),
        context.clone(),
    );
    let mut outcomes = std::pin::pin!(outcomes);
    while let Some(outcome) = outcomes.next().await {
        if let Err(error) = outcome {
            tracing::warn!("Campaign objects: {error}");
        }
        // What is gone from the cluster needs no memory.
        let mut written = context.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.len() > objects.len() {
            let known: Vec<String> = objects.state().iter().filter_map(|object| object.uid()).collect();
            written.retain(|uid, _| known.contains(uid));
        }
    }
}

/// A tick for every change, at most one each [`PACE`].
fn paced(changes: watch::Receiver<u64>) -> impl Stream<Item = ()> {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    futures_util::stream::unfold((changes, pace), |(mut changes, mut pace)| async {
        // The service has ended if this fails: no more changes come.
        changes.changed().await.ok()?;
        pace.tick().await;
        changes.mark_unchanged();
        Some(((), (changes, pace)))
    })
}

/// The campaign's id in the service: no two objects share it, not even one that is deleted and its successor.
pub(super) fn id(name: &str, uid: &str) -> String {
    let uid: String = uid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    // A name has at most 63 characters, as the schema says; the id has at most 80.
    format!(
        "{}-{}",
        name.chars().take(63).collect::<String>().trim_end_matches('-'),
        uid.to_ascii_lowercase()
    )
}

/// The document that is submitted: JSON, which is YAML, so that the service reads it with the code that reads files.
pub(super) fn document(name: &str, spec: &Value) -> String {
    let document = json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec});
    format!("{document:#}\n")
}

async fn reconcile(object: Arc<Campaign>, context: Arc<Context>) -> Result<Action, Trouble> {
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<Campaign> = Api::namespaced(context.client.clone(), &namespace);
    let campaign = id(&object.name_any(), object.uid().as_deref().unwrap_or_default());
    match next(&object, told(&object, &context).as_ref()) {
        Next::Nothing => Ok(Action::await_change()),
        Next::Keep => {
            // Before the campaign is submitted, so that no deletion is missed. The change brings us back here.
            let mut finalizers = object.finalizers().to_vec();
            finalizers.push(FINALIZER.to_owned());
            set_finalizers(&api, &object, &finalizers).await?;
            Ok(Action::await_change())
        }
        Next::Apply => apply(&api, &object, &campaign, &context).await,
        Next::LetGo => let_go(&api, &object).await,
        Next::End => end(&api, &object, &campaign, &context).await,
    }
}

/// What is to be done about an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing, until it changes.
    Nothing,
    /// See that it is not gone before its campaign is over.
    Keep,
    /// Submit its campaign, if that is not there, and tell how it is.
    Apply,
    /// Let it go: it has been told all that there is to tell.
    LetGo,
    /// Cancel its campaign.
    End,
}

/// What is to be done about `object`, which was told `status` last.
pub(super) fn next(object: &Campaign, status: Option<&CampaignStatus>) -> Next {
    let ours = object.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    let over = status.is_some_and(|status| {
        matches!(status.state, Some(State::Finished | State::Cancelled | State::Refused))
    });
    match (object.meta().deletion_timestamp.is_some(), ours) {
        // Whoever is over is not asked about: the service may have removed it, and would take it for a new one.
        (false, true) if over => Next::LetGo,
        (false, false) if over => Next::Nothing,
        (false, false) => Next::Keep,
        (false, true) => Next::Apply,
        (true, true) => Next::End,
        (true, false) => Next::Nothing,
    }
}

/// What an object was told last.
fn told(object: &Campaign, context: &Context) -> Option<CampaignStatus> {
    let written = context.written.lock().unwrap_or_else(PoisonError::into_inner);
    written.get(&object.uid().unwrap_or_default()).cloned().or_else(|| object.status.clone())
}

/// Replaces the finalizers of the very version that was looked at: another controller's are never lost.
async fn set_finalizers(
    api: &Api<Campaign>,
    object: &Campaign,
    finalizers: &[String],
) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.resource_version()}});
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch_metadata(&object.name_any(), &parameters, &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        // Gone already, or changed meanwhile: the watch brings the object again if it is there.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Submits the campaign and tells how it is.
async fn apply(
    api: &Api<Campaign>,
    object: &Campaign,
    campaign: &str,
    context: &Context,
) -> Result<Action, Trouble> {
    let known = match context.handle.campaign(campaign).await {
        Err(LookupError::Unknown { .. }) => {
            let text = document(&object.name_any(), &object.spec.0);
            match context.handle.submit(Some(campaign.to_owned()), text).await {
                Ok(_) => context.handle.campaign(campaign).await,
                Err(error) => {
                    let Some(why) = refusal(&error) else { return Err(Trouble::Submit(error)) };
                    return refuse(api, object, why, context).await;
                }
            }
        }
        known => known,
    };
    let found = match known {
        Ok(found) => found,
        Err(error) => {
            let Some(why) = never_served(&error) else { return Err(Trouble::Lookup(error)) };
            return refuse(api, object, why, context).await;
        }
    };
    write(api, object, Seen::Taken(&found), context).await?;
    if found.state.is_over() { let_go(api, object).await } else { Ok(Action::requeue(LOOK)) }
}

/// Tells an object that its campaign is not taken, or can't be served any more, and lets it go.
async fn refuse(
    api: &Api<Campaign>,
    object: &Campaign,
    (reason, message): (&'static str, String),
    context: &Context,
) -> Result<Action, Trouble> {
    write(api, object, Seen::Refused { reason, message: &message }, context).await?;
    let_go(api, object).await
}

/// Removes the finalizer: there is nothing left to end, so the object can be deleted even without this controller.
async fn let_go(api: &Api<Campaign>, object: &Campaign) -> Result<Action, Trouble> {
    // The status that was just written changed the version.
    let fresh = api.get_opt(&object.name_any()).await?;
    if let Some(fresh) = fresh.filter(|fresh| fresh.uid() == object.uid()) {
        let others: Vec<String> =
            fresh.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
        if others.len() < fresh.finalizers().len() {
            set_finalizers(api, &fresh, &others).await?;
        }
    }
    Ok(Action::await_change())
}

/// Why the service does not take an object, if trying again is of no use.
pub(super) fn refusal(error: &SubmitError) -> Option<(&'static str, String)> {
    match error {
        SubmitError::Invalid(problems) => {
            // Lines and columns are those of a document that nobody has seen; the message has the path.
            let problems: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
            Some(("Invalid", problems.join("\n")))
        }
        SubmitError::NoSelect => Some(("NoHosts", error.to_string())),
        SubmitError::Id { .. } => Some(("InvalidName", error.to_string())),
        SubmitError::Taken { .. } => Some(("AnotherCampaign", error.to_string())),
        SubmitError::LeftOut { again: false, .. } => Some(("LeftOut", error.to_string())),
        SubmitError::LeftOut { .. }
        | SubmitError::Later { .. }
        | SubmitError::Store(_)
        | SubmitError::Busy
        | SubmitError::Ending => None,
    }
}

/// Why the service will not serve a campaign that it has, if trying again is of no use.
pub(super) fn never_served(error: &LookupError) -> Option<(&'static str, String)> {
    match error {
        LookupError::LeftOut { again: false, .. } => Some(("LeftOut", error.to_string())),
        _ => None,
    }
}

/// Cancels the campaign of an object that is being deleted, and lets the object go once that is over.
async fn end(
    api: &Api<Campaign>,
    object: &Campaign,
    campaign: &str,
    context: &Context,
) -> Result<Action, Trouble> {
    match context.handle.campaign(campaign).await {
        Ok(found) if !found.state.is_over() => {
            context
                .handle
                .cancel(campaign, "its Campaign object was deleted")
                .await
                .map_err(Trouble::Lookup)?;
            let found = context.handle.campaign(campaign).await.map_err(Trouble::Lookup)?;
            write(api, object, Seen::Taken(&found), context).await?;
            if !found.state.is_over() {
                return Ok(Action::requeue(PACE));
            }
        }
        Ok(found) => write(api, object, Seen::Taken(&found), context).await?,
        // What can't be served for good runs no trial.
        Err(LookupError::Unknown { .. } | LookupError::LeftOut { again: false, .. }) => {}
        Err(error) => return Err(Trouble::Lookup(error)),
    }
    let_go(api, object).await
}

/// Writes a status if it says something new, and tells the news as events.
async fn write(
    api: &Api<Campaign>,
    object: &Campaign,
    seen: Seen<'_>,
    context: &Context,
) -> Result<(), kube::Error> {
    let uid = object.uid().unwrap_or_default();
    let old = told(object, context);
    let new = status(seen, object.meta().generation, old.as_ref(), Timestamp::now());
    if old.as_ref() == Some(&new) {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        // The object that was looked at, not a later one of the same name.
        "metadata": {"name": object.name_any(), "uid": uid},
        "status": new,
    });
    let parameters = PatchParams::apply(MANAGER).force();
    match api.patch_status(&object.name_any(), &parameters, &Patch::Apply(patch)).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
        Err(error) => return Err(error),
    }
    let news = news(old.as_ref(), &new);
    context.written.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, new);
    for news in news {
        tell(object, news, context).await;
    }
    Ok(())
}

/// Events are for people: one that can't be told is no reason to fail.
async fn tell(object: &Campaign, news: News, context: &Context) {
    let event = Event {
        type_: if news.warning { EventType::Warning } else { EventType::Normal },
        reason: news.reason.to_owned(),
        note: Some(news.note),
        action: news.action.to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &object.object_ref(&())).await {
        tracing::warn!("an event of {} can't be told: {}", object.name_any(), words(&error));
    }
}

#[cfg(test)]
mod tests;
