//! What a `Campaign` object's status says of a campaign, and which events a change of it is. Pure.
//!
//! ```text
//! service      Pending       Running                      Finished    Cancelled     Refused        does not take it
//! Accepted     True          True                         True        True          True           False (why)
//! Scheduled    False (why)   True                         True        as it was     False (why)    -
//! Running      False         True from the first trial    False       False         False          -
//! Complete     False         False                        True        True          True (why)     -
//! ```

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use toll_protocol::result::{RunCounts, Verdict};
use toll_protocol::service::{self, CampaignState};

use super::crd::{CampaignStatus, Cell, Counts, State};
use crate::format;

/// Hosts that a status lists.
const MAX_HOSTS: usize = 64;
/// Cells that a status lists.
const MAX_CELLS: usize = 256;
/// A condition's message may have 32768 characters; an event's note 1024 bytes.
const MAX_MESSAGE: usize = 4096;
const MAX_NOTE: usize = 1000;

/// What the service makes of an object.
#[derive(Debug, Clone, Copy)]
pub(super) enum Seen<'s> {
    /// It does not take it.
    Refused {
        /// In CamelCase.
        reason: &'static str,
        /// What is wrong.
        message: &'s str,
    },
    /// It has it.
    Taken(&'s service::CampaignStatus),
}

/// The status of an object of `generation` at `now`; `old` is what it said before.
pub(super) fn status(
    seen: Seen<'_>,
    generation: Option<i64>,
    old: Option<&CampaignStatus>,
    now: Timestamp,
) -> CampaignStatus {
    let mut status = match seen {
        Seen::Refused { .. } => CampaignStatus { state: Some(State::Refused), ..CampaignStatus::default() },
        Seen::Taken(campaign) => of_campaign(campaign),
    };
    status.observed_generation = generation;
    let before =
        |name: &str| old.and_then(|old| old.conditions.iter().find(|condition| condition.type_ == name));
    status.conditions = conditions(seen)
        .into_iter()
        .map(|(name, state, reason, message)| {
            let state = match state {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            // The time is that of the last change of the state, not of the message.
            let since = before(name).filter(|before| before.status == state);
            Condition {
                type_: name.to_owned(),
                status: state.to_owned(),
                reason: reason.to_owned(),
                message: shortened(&message, MAX_MESSAGE),
                observed_generation: generation,
                last_transition_time: since
                    .map_or_else(|| whole_second(now), |b| b.last_transition_time.clone()),
            }
        })
        .collect();
    status
}

fn of_campaign(campaign: &service::CampaignStatus) -> CampaignStatus {
    let cells = campaign.cells.iter().take(MAX_CELLS).map(|cell| Cell {
        name: cell.name.clone(),
        trials: trials(&cell.counts),
        goodput: cell.goodput_bytes_per_second.map(format::rate),
        of_native: cell.ratio_to_native.as_ref().map(format::ratio),
    });
    CampaignStatus {
        observed_generation: None,
        campaign_id: Some(campaign.id.clone()),
        state: Some(match campaign.state {
            CampaignState::Pending => State::Pending,
            CampaignState::Running => State::Running,
            CampaignState::Finished => State::Finished,
            CampaignState::Cancelled => State::Cancelled,
            CampaignState::Refused => State::Refused,
        }),
        conditions: Vec::new(),
        trials: campaign.counts.as_ref().map(trials),
        counts: campaign.counts.map(|counts| Counts {
            planned: counts.planned,
            measured: counts.measured,
            failed: counts.failed,
            skipped: counts.skipped,
            lost: counts.lost,
        }),
        verdict: campaign.verdict.map(|verdict| {
            let word = match verdict {
                Verdict::Pass => "pass",
                Verdict::Fail => "fail",
                Verdict::Inconclusive => "inconclusive",
            };
            word.to_owned()
        }),
        hosts: campaign.hosts.iter().take(MAX_HOSTS).cloned().collect(),
        submitted_at: moment(campaign.submitted_unix_ms),
        started_at: campaign.started_unix_ms.and_then(moment),
        ended_at: campaign.ended_unix_ms.and_then(moment),
        cells: cells.collect(),
        cells_left_out: campaign
            .cells
            .len()
            .checked_sub(MAX_CELLS)
            .filter(|left| *left > 0)
            .map(|left| u32::try_from(left).unwrap_or(u32::MAX)),
    }
}

fn recorded(counts: &RunCounts) -> u32 {
    counts.measured + counts.failed + counts.skipped + counts.lost
}

fn trials(counts: &RunCounts) -> String {
    format!("{}/{}", recorded(counts), counts.planned)
}

type Wanted = (&'static str, Option<bool>, &'static str, String);

/// Type, state, reason and message of each condition.
fn conditions(seen: Seen<'_>) -> Vec<Wanted> {
    let campaign = match seen {
        Seen::Refused { reason, message } => {
            return vec![("Accepted", Some(false), reason, message.to_owned())];
        }
        Seen::Taken(campaign) => campaign,
    };
    let hosts = format!("on {} hosts", campaign.hosts.len());
    let why = |otherwise: &str| campaign.reason.clone().unwrap_or_else(|| otherwise.to_owned());
    let refused = || why("its hosts can't do what it asks for");
    let scheduled = match campaign.counts {
        None if campaign.state == CampaignState::Refused => ("Scheduled", Some(false), "Refused", refused()),
        Some(counts) => ("Scheduled", Some(true), "Planned", format!("{} trials {hosts}", counts.planned)),
        None if campaign.state.is_over() => {
            ("Scheduled", Some(false), "Cancelled", why("it was cancelled before it had hosts"))
        }
        None => ("Scheduled", Some(false), "WaitingForHosts", why("it waits for hosts")),
    };
    let running = match (campaign.state, campaign.started_unix_ms) {
        (CampaignState::Running, Some(_)) => {
            ("Running", Some(true), "TrialsRun", why("trials run or wait for their hosts"))
        }
        (CampaignState::Pending | CampaignState::Running, _) => {
            ("Running", Some(false), "NotStarted", why("no trial has begun"))
        }
        (CampaignState::Finished | CampaignState::Cancelled, _) => {
            ("Running", Some(false), "Over", "every trial is recorded".to_owned())
        }
        (CampaignState::Refused, _) => ("Running", Some(false), "Refused", "no trial was planned".to_owned()),
    };
    let complete = match campaign.state {
        CampaignState::Finished => ("Complete", Some(true), "Finished", outcome(campaign)),
        CampaignState::Cancelled => ("Complete", Some(true), "Cancelled", why("it was cancelled")),
        CampaignState::Refused => ("Complete", Some(true), "Refused", refused()),
        CampaignState::Pending | CampaignState::Running => {
            ("Complete", Some(false), "InProgress", "trials are to come".to_owned())
        }
    };
    let accepted = ("Accepted", Some(true), "Valid", format!("it is campaign {}", campaign.id));
    vec![accepted, scheduled, running, complete]
}

/// `50 of 50 trials measured`, `48 of 50 trials measured, 2 failed`.
fn outcome(campaign: &service::CampaignStatus) -> String {
    let Some(counts) = campaign.counts else { return "no trials were planned".to_owned() };
    let mut text = format!("{} of {} trials measured", counts.measured, counts.planned);
    for (count, word) in [(counts.failed, "failed"), (counts.skipped, "skipped"), (counts.lost, "lost")] {
        if count > 0 {
            text.push_str(&format!(", {count} {word}"));
        }
    }
    text
}

/// Milliseconds since the Unix epoch, in the whole seconds that Kubernetes writes: what is read back is the same.
fn moment(unix_ms: u64) -> Option<Time> {
    let seconds = i64::try_from(unix_ms / 1000).ok()?;
    Timestamp::from_second(seconds).ok().map(Time)
}

fn whole_second(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// `text`, at most `limit` bytes of it.
fn shortened(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit - 3).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// Something to tell as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    /// Whether somebody should look.
    pub warning: bool,
    /// In CamelCase.
    pub reason: &'static str,
    /// What was done: in CamelCase.
    pub action: &'static str,
    /// One sentence.
    pub note: String,
}

/// What is new in `new`.
pub(super) fn news(old: Option<&CampaignStatus>, new: &CampaignStatus) -> Vec<News> {
    let at = |status: Option<&CampaignStatus>, name: &str| {
        let found = status?.conditions.iter().find(|condition| condition.type_ == name);
        found.map(|condition| (condition.status.clone(), condition.message.clone()))
    };
    let became = |name: &str, state: &str| {
        let (now, message) = at(Some(new), name)?;
        let before = at(old, name).map(|(before, _)| before);
        (now == state && before.as_deref() != Some(state)).then(|| shortened(&message, MAX_NOTE))
    };
    let mut news = Vec::new();
    let mut tell = |warning, reason, action, note| news.push(News { warning, reason, action, note });
    if let Some(note) = became("Accepted", "True") {
        tell(false, "Accepted", "Submit", note);
    }
    if let Some(note) = became("Accepted", "False") {
        tell(true, "Refused", "Submit", note);
    }
    let started = |status: &CampaignStatus| status.started_at.is_some();
    if started(new) && !old.is_some_and(started) {
        tell(false, "FirstTrial", "Run", "the first trial has begun".to_owned());
    }
    if let Some(note) = became("Complete", "True") {
        if new.state == Some(State::Cancelled) {
            tell(false, "Cancelled", "Cancel", note);
        } else if new.state == Some(State::Refused) {
            tell(true, "Refused", "Plan", note);
        } else {
            let bad = new.verdict.as_deref().is_some_and(|verdict| verdict != "pass")
                || new.counts.is_some_and(|counts| counts.measured < counts.planned);
            let verdict =
                new.verdict.as_ref().map(|verdict| format!("; gates: {verdict}")).unwrap_or_default();
            tell(bad, "Finished", "Run", format!("{note}{verdict}"));
        }
    }
    news
}

#[cfg(test)]
mod tests;
