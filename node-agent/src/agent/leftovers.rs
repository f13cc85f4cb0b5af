//! Trials of which something is left on the host. They are over, and still the orchestrator is to hear of them on
//! every connection: one that was restarted, or has lost the connection meanwhile, would take the host for clean. Named
//! in `Hello`, they are asked for by `Teardown`, which is another attempt.

use std::collections::{BTreeSet, VecDeque};

use toll_protocol::trial::TrialId;

/// Trials that are remembered; the oldest is forgotten first. A host with leftovers gets no trials, so there are few.
const MOST: usize = 64;

/// The trials, and which of them is being removed.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    oldest_first: VecDeque<TrialId>,
    removing: BTreeSet<TrialId>,
}

impl Leftovers {
    /// An attempt to remove a trial is over, and this is left. Returns whether it was one of [`begin`](Self::begin),
    /// whose answer the orchestrator waits for.
    pub(super) fn found(&mut self, trial: TrialId, left: &[String]) -> bool {
        let wanted = self.removing.remove(&trial);
        self.oldest_first.retain(|known| *known != trial);
        if left.is_empty() {
            return wanted;
        }
        if self.oldest_first.len() >= MOST
            && let Some(forgotten) = self.oldest_first.pop_front()
        {
            tracing::error!(trial = %forgotten, "too many trials have left something: this one is forgotten");
        }
        self.oldest_first.push_back(trial);
        wanted
    }

    /// Whether something of a trial is left.
    pub(super) fn contains(&self, trial: TrialId) -> bool {
        self.oldest_first.contains(&trial)
    }

    /// A new attempt is wanted. Returns whether it is to be made: one is enough at a time.
    pub(super) fn begin(&mut self, trial: TrialId) -> bool {
        self.contains(trial) && self.removing.insert(trial)
    }

    /// All of them.
    pub(super) fn trials(&self) -> impl Iterator<Item = TrialId> {
        self.oldest_first.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left() -> Vec<String> {
        vec!["tb000000000001".to_owned()]
    }

    #[test]
    fn a_trial_is_remembered_until_nothing_of_it_is_left() {
        let (mut leftovers, trial) = (Leftovers::default(), TrialId::new(1));
        assert!(!leftovers.found(trial, &[]));
        assert!(!leftovers.contains(trial) && !leftovers.begin(trial));
        assert!(!leftovers.found(trial, &left()), "told by the trial itself");
        assert!(leftovers.begin(trial));
        assert!(!leftovers.begin(trial), "one attempt at a time");
        assert!(leftovers.found(trial, &left()));
        assert_eq!(leftovers.trials().collect::<Vec<_>>(), [trial]);
        assert!(leftovers.begin(trial), "and then another");
        assert!(leftovers.found(trial, &[]));
        assert_eq!(leftovers.trials().count(), 0);
        assert!(!leftovers.begin(trial));
    }

    #[test]
    fn no_more_than_a_bound_is_remembered() {
        let mut leftovers = Leftovers::default();
        for n in 0..3 * MOST as u64 {
            leftovers.found(TrialId::new(n), &left());
        }
        assert_eq!(leftovers.trials().count(), MOST);
        assert!(
            leftovers.contains(TrialId::new(3 * MOST as u64 - 1)) && !leftovers.contains(TrialId::new(0))
        );
    }
}
