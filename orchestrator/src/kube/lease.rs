//! Who leads: a candidate for a Lease (coordination.k8s.io/v1) as a pure state machine. Every write names the version
//! of the Lease that it replaces, so of two candidates one is refused.
//!
//! ```text
//!            absent, released or expired: write            accepted
//! Candidate ------------------------------------> writing ----------> Leader --renewed in time--> Leader
//!     ^  ^--- held by another: look again later     |                   |--held by another------> Lost
//!     +---------- refused: look again --------------+                   '--not renewed in time--> Lost
//! ```
//!
//! Clocks of different machines are never compared: a Lease has expired when *this* candidate has seen no change of it
//! for the time that its holder asked for. A leader counts from the moment it *began* its last good write, and gives up
//! a third of that time earlier than others may take over.

use std::time::{Duration, Instant};

/// The times of an election.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Others wait so long after the last change that they saw.
    pub duration: Duration,
    /// A leader acts so long after the beginning of its last good write; shorter than `duration`.
    pub renew_within: Duration,
    /// Between two looks.
    pub look_every: Duration,
}

impl Timing {
    /// What Kubernetes' own controllers use: 15 s, 10 s and 2 s.
    pub(super) const KUBERNETES: Self = Self {
        duration: Duration::from_secs(15),
        renew_within: Duration::from_secs(10),
        look_every: Duration::from_secs(2),
    };
}

/// A Lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Changes with every write (`metadata.resourceVersion`).
    pub version: String,
    /// Who holds it; `None` if it was released.
    pub holder: Option<String>,
    /// How long its holder wants others to wait; `None` if it does not say.
    pub duration: Option<Duration>,
    /// How often it has changed hands.
    pub transitions: u32,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Look again after [`Timing::look_every`].
    Wait,
    /// Write the Lease with oneself as its holder.
    Write {
        /// The version that is replaced; `None` creates it.
        replaces: Option<String>,
        /// Whether it changes hands.
        taken: bool,
        /// How often it has then changed hands.
        transitions: u32,
    },
    /// It leads no more. Nothing follows.
    Lost(String),
}

/// A candidate, or the leader. Its identity must be no other living process's: it is believed to be one's own.
#[derive(Debug)]
pub(super) struct Election {
    identity: String,
    timing: Timing,
    /// The version seen last, and since when.
    seen: Option<(String, Instant)>,
    /// When the last good write began; `None` for a candidate.
    leading_since: Option<Instant>,
}

impl Election {
    /// A candidate that has seen nothing.
    pub(super) fn new(identity: String, timing: Timing) -> Self {
        Self { identity, timing, seen: None, leading_since: None }
    }

    /// The Lease was read: there is `record`, or none.
    pub(super) fn read(&mut self, now: Instant, record: Option<&Record>) -> Step {
        if let Some(lost) = self.overdue(now) {
            return lost;
        }
        let Some(record) = record else {
            return match self.leading_since {
                None => Step::Write { replaces: None, taken: true, transitions: 0 },
                Some(_) => self.lost("the Lease was deleted".to_owned()),
            };
        };
        let replaces = Some(record.version.clone());
        let mine = record.holder.as_deref() == Some(self.identity.as_str());
        match (&record.holder, self.leading_since) {
            (_, Some(_)) if mine => Step::Write { replaces, taken: false, transitions: record.transitions },
            (holder, Some(_)) => {
                let holder = holder.as_deref().unwrap_or("nobody");
                self.lost(format!("the Lease is held by {holder}"))
            }
            (None, None) => self.take(record),
            // An earlier life of this very process: a container that was killed and started again in its pod.
            (Some(_), None) if mine => self.take(record),
            (Some(_), None) => {
                let since = match &self.seen {
                    Some((version, since)) if *version == record.version => *since,
                    _ => {
                        self.seen = Some((record.version.clone(), now));
                        now
                    }
                };
                let expires = since + record.duration.unwrap_or(self.timing.duration);
                if now >= expires { self.take(record) } else { Step::Wait }
            }
        }
    }

    fn take(&self, record: &Record) -> Step {
        let transitions = record.transitions.saturating_add(1);
        Step::Write { replaces: Some(record.version.clone()), taken: true, transitions }
    }

    /// The write that began at `began` was accepted.
    pub(super) fn written(&mut self, began: Instant, now: Instant) -> Step {
        self.leading_since = Some(began);
        self.overdue(now).unwrap_or(Step::Wait)
    }

    /// A read or write failed or was refused: nothing is known.
    pub(super) fn failed(&mut self, now: Instant) -> Step {
        self.overdue(now).unwrap_or(Step::Wait)
    }

    /// Until when it leads.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        self.leading_since.map(|since| since + self.timing.renew_within)
    }

    fn overdue(&mut self, now: Instant) -> Option<Step> {
        let until = self.leads_until()?;
        (now >= until).then(|| {
            self.lost(format!(
                "the Lease could not be renewed within {} s",
                self.timing.renew_within.as_secs()
            ))
        })
    }

    fn lost(&mut self, why: String) -> Step {
        self.leading_since = None;
        Step::Lost(why)
    }
}

#[cfg(test)]
mod tests;
