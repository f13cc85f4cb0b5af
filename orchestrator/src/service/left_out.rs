//! What lies in the data directory and can't be served: it is named, left as it is, and, if what is wrong with it may
//! pass, looked at again.
//!
//! ```text
//! start, a look --left out--> entry --looked at again--> campaign: it goes on
//!                               |                        gone: forgotten
//!   an agent comes that holds a trial which nobody knows --> waits, until its trials are known, or no entry is looked at
//!                                                            any more
//! ```
//! Its trials may be of those campaigns: the agent would otherwise be told that nobody waits for its result. Known is what is
//! planned by a campaign that goes on. Whoever holds a trial in flight holds no other result: a host gets a trial only after
//! the record of its last one is stored.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use toll_protocol::message::FromAgent;
use toll_protocol::service::{AgentState, AgentStatus, LeftOut, LeftOutEntry};
use toll_protocol::trial::TrialId;

use super::ending::Made;
use super::past::Past;
use super::store::{Found, Look, Seen};
use super::{Observer, Service, ServiceError};
use crate::transport::TransportEvent;

/// Entries that are named; the others are counted.
const NAMED: usize = 1000;
/// How often those that may get better are looked at.
const PACE: Duration = Duration::from_secs(5);
/// Messages of an agent that waits: what became of its trials, which wait for their start, and what its NIC is.
const HEARD: usize = 16;

/// Trials that are remembered to be of no campaign that is left out: more than the largest campaign has.
const REMEMBERED: usize = 1 << 18;

/// Entries that are left out, and agents that wait for them.
#[derive(Debug, Default)]
pub(super) struct Entries {
    named: BTreeMap<String, LeftOutEntry>,
    unnamed: usize,
    looking: bool,
    next: Option<Instant>,
    agents: BTreeMap<String, Waiting>,
    /// Trials of campaigns that go on, or did: no entry that is left out has them. The oldest are forgotten.
    known: BTreeSet<TrialId>,
    in_order: VecDeque<TrialId>,
}

/// An agent that waits: its connection, then what it said.
#[derive(Debug)]
struct Waiting {
    connected: TransportEvent,
    said: Vec<TransportEvent>,
}

impl Waiting {
    /// Whether its connection has this number. An agent may have an older one that has not ended yet.
    fn is_of(&self, number: u64) -> bool {
        self.number() == number
    }

    fn number(&self) -> u64 {
        match self.connected {
            TransportEvent::Connected { session, .. } => session.number,
            _ => 0,
        }
    }

    /// Trials that it holds.
    fn held(&self) -> &[TrialId] {
        match &self.connected {
            TransportEvent::Connected { held, .. } => held,
            _ => &[],
        }
    }
}

impl Entries {
    /// Names an entry. Returns whether that is news.
    pub fn name(&mut self, entry: LeftOutEntry) -> bool {
        let (known, full) = (self.named.get(&entry.name), self.named.len() >= NAMED);
        if known == Some(&entry) {
            return false;
        }
        if known.is_none() && full {
            self.unnamed += 1;
            // Whatever else lies there, what may pass is looked at again.
            if !(entry.tried_again && self.unname()) {
                return true;
            }
        }
        self.named.insert(entry.name.clone(), entry);
        true
    }

    /// Takes the name of an entry off that is wrong for good, if there is one.
    fn unname(&mut self) -> bool {
        let mut last_first = self.named.values().rev();
        let name = last_first.find(|entry| !entry.tried_again).map(|entry| entry.name.clone());
        name.and_then(|name| self.named.remove(&name)).is_some()
    }

    pub fn get(&self, name: &str) -> Option<&LeftOutEntry> {
        self.named.get(name)
    }

    /// How many there are: of those that are looked at again, and of the others.
    pub fn counts(&self) -> [usize; 2] {
        let again = self.named.values().filter(|entry| entry.tried_again).count();
        [again, self.named.len() - again + self.unnamed]
    }

    pub fn count(&self) -> usize {
        self.named.len() + self.unnamed
    }

    /// All of them, for people.
    pub fn told(&self) -> LeftOut {
        LeftOut { count: self.count(), entries: self.named.values().cloned().collect() }
    }

    /// Whether a campaign may still come of one.
    fn may_come(&self) -> bool {
        self.named.values().any(|entry| entry.tried_again)
    }

    /// A campaign that is not left out has these trials: whoever holds one need not wait for another.
    pub fn know(&mut self, trials: impl IntoIterator<Item = TrialId>) {
        if !self.may_come() {
            return;
        }
        for trial in trials.into_iter().map(TrialId::near) {
            if self.known.insert(trial) {
                self.in_order.push_back(trial);
            }
            if self.in_order.len() > REMEMBERED
                && let Some(oldest) = self.in_order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    /// Whether an agent that holds these trials may hold the result of a campaign that is yet to come.
    fn keeps_waiting(&self, held: &[TrialId], flies: impl Fn(&TrialId) -> bool) -> bool {
        let unknown = |trial: &TrialId| !self.known.contains(&trial.near());
        self.may_come() && held.iter().any(unknown) && !held.iter().any(flies)
    }

    /// Agents that have to wait no more.
    fn released(&mut self, flies: impl Fn(&TrialId) -> bool) -> Vec<Waiting> {
        let (stay, go) = std::mem::take(&mut self.agents)
            .into_iter()
            .partition(|(_, waiting)| self.keeps_waiting(waiting.held(), &flies));
        self.agents = stay;
        BTreeMap::into_values(go).collect()
    }

    /// What becomes of an event of an agent now: it is given back, or kept until its agent has to wait no more. `flies`
    /// says whether a trial that an agent holds is in flight.
    fn hear(&mut self, event: TransportEvent, flies: impl Fn(&TrialId) -> bool) -> Option<TransportEvent> {
        match &event {
            TransportEvent::Connected { host, session, held, .. } => {
                if self.agents.get(host).is_some_and(|waiting| waiting.number() > session.number) {
                    // Two connections of one agent may be heard of in the wrong order.
                    return None;
                }
                self.agents.remove(host);
                if !self.keeps_waiting(held, flies) {
                    return Some(event);
                }
                tracing::warn!(
                    host,
                    "gets no trials yet: it holds results that a campaign left out may wait for"
                );
                self.agents.insert(host.clone(), Waiting { connected: event, said: Vec::new() });
                None
            }
            // Whoever is not known as connected is not lost.
            TransportEvent::Lost { host, session } => match self.agents.get(host) {
                Some(waiting) if waiting.is_of(*session) => {
                    self.agents.remove(host);
                    None
                }
                _ => Some(event),
            },
            TransportEvent::Message { host, session, message, .. } => match self.agents.get_mut(host) {
                Some(waiting) if waiting.is_of(*session) => {
                    // What is said once on a connection, and asked for by nobody. Samples are not missed.
                    let is_nic = |message: &FromAgent| matches!(message, FromAgent::Nic { .. });
                    let kept = match message {
                        FromAgent::Ready { .. } | FromAgent::Result { .. } | FromAgent::Failed { .. } => true,
                        message if is_nic(message) => {
                            // The latest is what the NIC is.
                            waiting.said.retain(
                                |said| !matches!(said, TransportEvent::Message { message, .. } if is_nic(message)),
                            );
                            true
                        }
                        _ => false,
                    };
                    if kept && waiting.said.len() < HEARD {
                        waiting.said.push(event);
                    }
                    None
                }
                _ => Some(event),
            },
            TransportEvent::Refused { .. } => Some(event),
        }
    }

    /// Agents that wait, for people.
    pub fn waiting_agents(&self) -> Vec<AgentStatus> {
        let status = |waiting: &Waiting| match &waiting.connected {
            TransportEvent::Connected { host, facts, labels, .. } => Some(AgentStatus {
                name: host.clone(),
                state: AgentState::Barred,
                reason: Some("it holds results that a campaign which is left out may wait for".to_owned()),
                trial: None,
                labels: labels.clone(),
                facts: facts.as_ref().clone(),
            }),
            _ => None,
        };
        self.agents.values().filter_map(status).collect()
    }
}

impl<O: Observer> Service<O> {
    /// An event of an agent, unless it has to wait.
    pub(super) fn heard_now(&mut self, event: TransportEvent) -> Option<TransportEvent> {
        let scheduler = &self.scheduler;
        if let TransportEvent::Connected { host, session, .. } = &event
            && !scheduler.is_newer(host, session.number)
        {
            return None;
        }
        let heard = self.left_out.hear(event, |trial| scheduler.flies(*trial));
        self.changed |= heard.is_none();
        heard
    }

    /// Names an entry in log and API.
    pub(super) fn leave_out(&mut self, name: &str, reason: String, tried_again: bool) {
        let entry = LeftOutEntry { name: name.to_owned(), reason, tried_again };
        let reason = entry.reason.clone();
        if self.left_out.name(entry) {
            tracing::error!(entry = name, tried_again, "is left out: {reason}");
            self.changed = true;
        }
    }

    /// Looks at entries again, beside the task.
    pub(super) fn look_again(&mut self) {
        let now = Instant::now();
        let due = *self.left_out.next.get_or_insert(now + PACE) <= now;
        if !due || self.left_out.looking || self.left_out.count() == 0 {
            return;
        }
        (self.left_out.looking, self.left_out.next) = (true, Some(now + PACE));
        let entries: Vec<LeftOutEntry> = self.left_out.named.values().cloned().collect();
        let (store, made) = (self.options.store.clone(), self.made.0.clone());
        tokio::task::spawn_blocking(move || {
            let looked = entries.into_iter().filter_map(|LeftOutEntry { name, tried_again, .. }| {
                // Of what is wrong for good it matters alone whether it is there.
                let look = if tried_again { Some(store.look(&name)) } else { store.gone(&name) };
                Some((name, look?))
            });
            // The service may have ended.
            let _ = made.blocking_send(Made::Looked(looked.collect()));
        });
    }

    /// Entries were looked at again.
    pub(super) fn looked(&mut self, seen: Vec<Seen>) -> Result<(), ServiceError> {
        self.left_out.looking = false;
        for (name, look) in seen {
            match look {
                Look::LeftOut { reason, again } => self.leave_out(&name, reason, again),
                Look::Gone => {
                    self.left_out.named.remove(&name);
                    self.changed = true;
                }
                Look::Found(found) => {
                    match found {
                        Found::Over(over) => self.take_over(&name, &over),
                        Found::Live(live) => self.resume(&name, *live)?,
                    }
                    if self.kept.contains_key(&name) || self.past.get(&name).is_some() {
                        tracing::info!(campaign = name, "is left out no more");
                        self.left_out.named.remove(&name);
                        self.changed = true;
                    }
                }
            }
        }
        let scheduler = &self.scheduler;
        for waiting in self.left_out.released(|trial| scheduler.flies(*trial)) {
            self.heard(waiting.connected)?;
            for said in waiting.said {
                self.heard(said)?;
            }
        }
        Ok(())
    }

    /// Takes a campaign that is over into the list.
    pub(super) fn take_over(&mut self, name: &str, over: &Past) {
        if over.id == name {
            self.past.insert(over.clone());
        } else {
            let why = format!("it is a copy of campaign {}: name it so, or move it elsewhere", over.id);
            self.leave_out(name, why, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use toll_protocol::message::Instance;
    use toll_protocol::report::Failure;
    use toll_protocol::trial::EndReady;

    use super::*;
    use crate::test_support;
    use crate::transport::Session;

    const SESSION: u64 = 2;

    fn entry(name: &str, tried_again: bool) -> LeftOutEntry {
        LeftOutEntry { name: name.to_owned(), reason: "broken".to_owned(), tried_again }
    }

    fn connected(held: &[u64]) -> TransportEvent {
        connected_as(SESSION, held)
    }

    fn connected_as(number: u64, held: &[u64]) -> TransportEvent {
        let facts = Box::new(test_support::provenance().hosts.remove(0).facts);
        let held = held.iter().map(|trial| TrialId::new(*trial)).collect();
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        let session = Session { number, instance: Instance(1), address };
        TransportEvent::Connected { host: "a".to_owned(), session, facts, labels: BTreeMap::new(), held }
    }

    fn lost(session: u64) -> TransportEvent {
        TransportEvent::Lost { host: "a".to_owned(), session }
    }

    fn failed(trial: u64) -> TransportEvent {
        let failure = Failure { reason: "it broke".to_owned(), last_words: Vec::new() };
        said(FromAgent::Failed { trial: TrialId::new(trial), failure })
    }

    fn said(message: FromAgent) -> TransportEvent {
        TransportEvent::Message { host: "a".to_owned(), session: SESSION, message, at: Instant::now() }
    }

    fn ready(trial: u64) -> TransportEvent {
        let ready = EndReady { address: "10.0.0.1:7".parse().expect("an address") };
        said(FromAgent::Ready { trial: TrialId::new(trial), ready })
    }

    #[test]
    fn an_agent_with_a_trial_that_nobody_knows_waits_while_a_campaign_may_come() {
        let mut entries = Entries::default();
        let known = |trial: &TrialId| *trial == TrialId::new(1);
        assert!(entries.hear(connected(&[7]), known).is_some(), "nothing is left out");
        entries.name(entry("gone", false));
        assert!(entries.hear(connected(&[7]), known).is_some(), "nothing may come");
        entries.name(entry("held", true));
        assert!(entries.hear(connected(&[1]), known).is_some(), "its trial is known");
        assert!(entries.hear(connected(&[7, 1]), known).is_some(), "it waits for no other one");
        assert!(entries.hear(connected(&[]), known).is_some(), "it holds nothing");
        assert!(entries.hear(connected(&[7]), known).is_none());
        assert_eq!(entries.waiting_agents()[0].state, AgentState::Barred);
        assert!(entries.hear(ready(1), known).is_none());
        for _ in 0..3 {
            assert!(entries.hear(said(FromAgent::Nic { nic: None }), known).is_none());
        }
        let of = |index: usize| match &entries.agents["a"].said[index] {
            TransportEvent::Message { message, .. } => message.clone(),
            other => panic!("{other:?}"),
        };
        assert!(matches!(of(0), FromAgent::Ready { .. }), "a trial that waits for its start is begun later");
        assert_eq!((of(1), entries.agents["a"].said.len()), (FromAgent::Nic { nic: None }, 2));
        for _ in 0..100 {
            assert!(entries.hear(failed(7), known).is_none());
        }
        assert_eq!(entries.agents["a"].said.len(), HEARD, "an agent may say what it likes");
        assert!(entries.hear(lost(SESSION - 1), known).is_some(), "an older connection ended");
        assert_eq!(entries.waiting_agents().len(), 1);
        assert!(entries.hear(lost(SESSION), known).is_none());
        assert!(entries.waiting_agents().is_empty());
        assert!(entries.hear(failed(7), known).is_some());
    }

    /// One campaign came; another entry is looked at for good.
    #[test]
    fn an_agent_whose_campaign_came_waits_for_no_other_entry() {
        let mut entries = Entries::default();
        entries.name(entry("nowhere", true));
        assert!(entries.hear(connected(&[7]), |_| false).is_none());
        assert!(entries.hear(failed(7), |_| false).is_none());
        assert!(entries.released(|_| false).is_empty());
        let released = entries.released(|trial| *trial == TrialId::new(7));
        assert!(matches!(&released[..], [Waiting { said, .. }] if said.len() == 1), "{released:?}");
        assert!(entries.waiting_agents().is_empty());
        // Nor does one wait when nothing may come any more.
        assert!(entries.hear(connected(&[8]), |_| false).is_none());
        entries.name(entry("nowhere", false));
        assert_eq!(entries.released(|_| false).len(), 1);
    }

    /// Its outcome is recorded, or it never began: nobody told the agent.
    #[test]
    fn an_agent_with_a_trial_of_a_campaign_that_went_on_does_not_wait() {
        let mut entries = Entries::default();
        entries.know([TrialId::new(7)]);
        assert!(entries.known.is_empty(), "nothing may come");
        entries.name(entry("nowhere", true));
        assert!(entries.hear(connected(&[7]), |_| false).is_none());
        entries.know([TrialId::new(7)]);
        assert_eq!(entries.released(|_| false).len(), 1);
        for (held, waits) in
            [(vec![TrialId::new(7).far()], false), (vec![TrialId::new(7), TrialId::new(8)], true)]
        {
            assert_eq!(entries.keeps_waiting(&held, |_| false), waits, "{held:?}");
        }
        entries.know((0..REMEMBERED as u64).map(|number| TrialId::new(100 + number)));
        assert_eq!((entries.known.len(), entries.in_order.len()), (REMEMBERED, REMEMBERED));
        assert!(entries.keeps_waiting(&[TrialId::new(7)], |_| false), "it is forgotten");
    }

    /// Two connections of one agent are heard of in any order.
    #[test]
    fn an_older_connection_takes_no_place_of_an_agent_that_waits() {
        let mut entries = Entries::default();
        entries.name(entry("held", true));
        for number in [5, 4] {
            assert!(entries.hear(connected_as(number, &[7]), |_| false).is_none());
        }
        entries.hear(lost(4), |_| false);
        assert!(entries.agents["a"].is_of(5), "it is there");
        assert!(entries.hear(connected_as(6, &[7]), |_| false).is_none());
        assert!(entries.agents["a"].is_of(6));
    }

    #[test]
    fn a_directory_full_of_other_things_is_counted() {
        let mut entries = Entries::default();
        for number in 0..NAMED + 5 {
            assert!(entries.name(entry(&format!("file-{number}"), number % 2 == 0)));
        }
        assert!(!entries.name(entry("file-0", true)), "it is known");
        assert_eq!((entries.count(), entries.told().entries.len()), (NAMED + 5, NAMED));
        // The last ones were two that may pass.
        assert_eq!(entries.counts(), [NAMED / 2 + 3, NAMED / 2 + 2]);
    }

    #[test]
    fn what_may_pass_is_looked_at_again_whatever_else_lies_there() {
        let mut entries = Entries::default();
        for number in 0..NAMED {
            entries.name(entry(&format!("file-{number}"), false));
        }
        assert!(entries.name(entry("held", true)));
        assert!(entries.get("held").is_some() && entries.may_come());
        assert_eq!((entries.count(), entries.counts()), (NAMED + 1, [1, NAMED]));
        for number in 0..NAMED + 5 {
            entries.name(entry(&format!("held-{number}"), true));
        }
        assert_eq!((entries.named.len(), entries.counts()), (NAMED, [NAMED, NAMED + 6]));
    }
}
