//! What the orchestrator still has to be told. Outcomes are kept until they are acknowledged, over any number of
//! lost connections; the rest is said once.

use std::collections::VecDeque;

use toll_protocol::message::FromAgent;
use toll_protocol::trial::TrialId;

/// Outcomes that are kept without being acknowledged. An orchestrator that never acknowledges gets no more memory
/// of the host than this; the oldest outcome goes first.
const MOST_OUTCOMES: usize = 256;
/// Messages other than outcomes that may wait for the connection; then samples are left out, and the orchestrator
/// has to ask again for `Ready` (by a new connection) and `TornDown`.
const MOST_WAITING: usize = 1024;

/// Messages for the orchestrator.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Without acknowledgement, oldest first.
    outcomes: VecDeque<(TrialId, FromAgent)>,
    waiting: VecDeque<FromAgent>,
    connected: bool,
}

impl Outbox {
    /// Takes a message. One that is only worth something now is dropped if it can't be said now.
    pub(crate) fn push(&mut self, message: FromAgent) {
        match &message {
            FromAgent::Result { trial, .. } | FromAgent::Failed { trial, .. } => {
                if self.outcomes.len() == MOST_OUTCOMES
                    && let Some((forgotten, _)) = self.outcomes.pop_front()
                {
                    tracing::error!(trial = %forgotten, "outcome dropped: never acknowledged");
                    // One of an orchestrator that takes nothing would otherwise wait for ever.
                    if let Some(at) =
                        self.waiting.iter().position(|waiting| is_outcome_of(waiting, forgotten))
                    {
                        self.waiting.remove(at);
                    }
                }
                self.outcomes.push_back((*trial, message.clone()));
                // Said with all others on the next connection.
                if self.connected {
                    self.waiting.push_back(message);
                }
            }
            _ if self.waiting.len() >= MOST_WAITING => {
                tracing::warn!("message dropped: the orchestrator takes none");
            }
            FromAgent::TornDown { .. } => self.waiting.push_back(message),
            FromAgent::Hello { .. }
            | FromAgent::Nic { .. }
            | FromAgent::Ready { .. }
            | FromAgent::Sample { .. } => {
                if self.connected {
                    self.waiting.push_back(message);
                }
            }
        }
    }

    /// The next message to say, if there is a connection and anything to say.
    pub(crate) fn pop(&mut self) -> Option<FromAgent> {
        if self.connected { self.waiting.pop_front() } else { None }
    }

    /// Whether the orchestrator hears what is said.
    pub(crate) const fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether [`pop`](Self::pop) has something.
    pub(crate) fn is_ready(&self) -> bool {
        self.connected && !self.waiting.is_empty()
    }

    /// A connection is there: every outcome that has not been acknowledged is said (again), before anything else.
    pub(crate) fn connected(&mut self) {
        self.connected = true;
        for (_, outcome) in self.outcomes.iter().rev() {
            self.waiting.push_front(outcome.clone());
        }
    }

    /// The connection is lost, and with it what is only worth something now.
    pub(crate) fn lost(&mut self) {
        self.connected = false;
        self.waiting.retain(|message| matches!(message, FromAgent::TornDown { .. }));
    }

    /// The orchestrator has the outcome. Returns whether there was one.
    pub(crate) fn acknowledged(&mut self, trial: TrialId) -> bool {
        let before = self.outcomes.len();
        self.outcomes.retain(|(kept, _)| *kept != trial);
        self.outcomes.len() < before
    }

    /// Says the outcome of a trial again, if there is one that has not been acknowledged. Returns whether there is.
    pub(crate) fn repeat(&mut self, trial: TrialId) -> bool {
        let Some((_, outcome)) = self.outcomes.iter().find(|(kept, _)| *kept == trial) else { return false };
        // One that has not been said yet is about to be; without a connection all are said on the next.
        if self.connected && !self.waiting.iter().any(|waiting| is_outcome_of(waiting, trial)) {
            self.waiting.push_back(outcome.clone());
        }
        true
    }

    /// The trials whose outcome waits to be acknowledged.
    pub(crate) fn trials(&self) -> impl Iterator<Item = TrialId> {
        self.outcomes.iter().map(|(trial, _)| *trial)
    }

    /// How many outcomes wait to be acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.outcomes.len()
    }
}

/// Whether `message` is the outcome of `of`.
fn is_outcome_of(message: &FromAgent, of: TrialId) -> bool {
    matches!(message, FromAgent::Result { trial, .. } | FromAgent::Failed { trial, .. } if *trial == of)
}

#[cfg(test)]
mod tests {
    use toll_protocol::report::{Failure, Sample};
    use toll_protocol::trial::EndReady;
    use toll_protocol::units::Span;

    use super::*;

    fn failed(n: u64) -> FromAgent {
        FromAgent::Failed { trial: TrialId::new(n), failure: Failure::new("model") }
    }

    fn torn_down(n: u64) -> FromAgent {
        FromAgent::TornDown { trial: TrialId::new(n), leftovers: Vec::new() }
    }

    fn said(outbox: &mut Outbox) -> Vec<FromAgent> {
        std::iter::from_fn(|| outbox.pop()).collect()
    }

    #[test]
    fn an_outcome_is_said_on_every_connection_until_it_is_acknowledged() {
        let mut outbox = Outbox::default();
        outbox.push(failed(1));
        assert_eq!(said(&mut outbox), []);
        outbox.connected();
        outbox.push(failed(2));
        assert_eq!(said(&mut outbox), [failed(1), failed(2)]);
        outbox.lost();
        outbox.push(torn_down(1));
        outbox.connected();
        assert_eq!(said(&mut outbox), [failed(1), failed(2), torn_down(1)]);
        assert!(outbox.acknowledged(TrialId::new(1)));
        assert!(!outbox.acknowledged(TrialId::new(1)));
        outbox.lost();
        outbox.connected();
        assert_eq!(said(&mut outbox), [failed(2)]);
    }

    #[test]
    fn an_outcome_is_repeated_when_asked_for_and_once() {
        let mut outbox = Outbox::default();
        outbox.connected();
        assert!(!outbox.repeat(TrialId::new(1)));
        outbox.push(failed(1));
        assert!(outbox.repeat(TrialId::new(1)) && outbox.repeat(TrialId::new(1)));
        assert_eq!(said(&mut outbox), [failed(1)]);
        assert!(outbox.repeat(TrialId::new(1)) && outbox.repeat(TrialId::new(1)));
        assert_eq!(said(&mut outbox), [failed(1)]);
        assert_eq!(outbox.trials().collect::<Vec<_>>(), [TrialId::new(1)]);
        outbox.acknowledged(TrialId::new(1));
        assert!(!outbox.repeat(TrialId::new(1)));
    }

    #[test]
    fn samples_are_not_kept_over_a_loss_and_memory_is_bounded() {
        let mut outbox = Outbox::default();
        outbox.connected();
        let trial = TrialId::new(7);
        for _ in 0..2 * MOST_WAITING {
            outbox.push(FromAgent::Sample {
                trial,
                sample: Sample { at: Span(0), sent_bytes: 0, received_bytes: 0 },
            });
        }
        assert_eq!(outbox.waiting.len(), MOST_WAITING);
        outbox.lost();
        assert!(outbox.waiting.is_empty());
        for n in 0..2 * MOST_OUTCOMES as u64 {
            outbox.push(failed(n));
        }
        assert_eq!(outbox.outcomes.len(), MOST_OUTCOMES);
        assert!(!outbox.acknowledged(TrialId::new(0)));
    }

    #[test]
    fn an_orchestrator_that_takes_nothing_gets_a_bound_of_memory() {
        let mut outbox = Outbox::default();
        outbox.connected();
        for n in 0..20 * MOST_OUTCOMES as u64 {
            outbox.push(failed(n % 1_000));
            let (trial, ready) =
                (TrialId::new(n), EndReady { address: "10.0.0.1:1".parse().expect("an address") });
            outbox.push(FromAgent::Ready { trial, ready });
        }
        assert!(outbox.waiting.len() <= MOST_WAITING + MOST_OUTCOMES, "{}", outbox.waiting.len());
        let said = said(&mut outbox);
        assert_eq!(
            said.iter().filter(|message| matches!(message, FromAgent::Failed { .. })).count(),
            MOST_OUTCOMES
        );
    }
}
