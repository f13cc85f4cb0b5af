//! The tasks of an agent's trials: what each leaves on the host, also one that panics.
//!
//! ```text
//!   task of a trial --ends--> Over { left }
//!        `--panics--> Panicked, and a task that releases the host --ends--> Over { left }
//!                                                `--panics--> Over: what is left is not known
//! ```
//! Nothing here waits for a host to be released: the agent hears of it when it is.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;

use tokio::task::{Id, JoinSet};
use toll_protocol::trial::TrialId;

/// Releases what a trial holds of the host, and says what is left of it.
type Release = Box<dyn Fn(TrialId) -> Pin<Box<dyn Future<Output = Vec<String>> + Send>> + Send>;

/// What became of a task.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The trial holds nothing of the host any more but what is `left`.
    Over {
        /// Names of links, and after them what the kernel said.
        left: Vec<String>,
        /// Whether this is the end of a trial whose task panicked: nobody has told the orchestrator.
        after_panic: bool,
    },
    /// The trial's task panicked. The host is being released; [`Ended::Over`] follows.
    Panicked,
}

/// The tasks.
pub(super) struct Tasks {
    set: JoinSet<Vec<String>>,
    /// Whose task is whose, also if it panics.
    trials: HashMap<Id, TrialId>,
    /// Trials whose task panicked.
    panicked: BTreeSet<TrialId>,
    release: Release,
}

impl Tasks {
    /// No tasks yet; what those hold that panic is let go by `release`.
    pub(super) fn new<F>(release: impl Fn(TrialId) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Vec<String>> + Send + 'static,
    {
        let release: Release = Box::new(move |trial| Box::pin(release(trial)));
        Self { set: JoinSet::new(), trials: HashMap::new(), panicked: BTreeSet::new(), release }
    }

    /// Starts one that ends with what is left of `trial`.
    pub(super) fn spawn(&mut self, trial: TrialId, task: impl Future<Output = Vec<String>> + Send + 'static) {
        let task = self.set.spawn(task);
        self.trials.insert(task.id(), trial);
    }

    /// Releases the host of what is left of `trial`, as a task.
    pub(super) fn release(&mut self, trial: TrialId) {
        let release = (self.release)(trial);
        self.spawn(trial, release);
    }

    /// The next that ends; `None` if there is none.
    pub(super) async fn next(&mut self) -> Option<(TrialId, Ended)> {
        loop {
            let (id, ended) = match self.set.join_next_with_id().await? {
                Ok((id, left)) => (id, Ok(left)),
                Err(error) => (error.id(), Err(error)),
            };
            let Some(trial) = self.trials.remove(&id) else { continue };
            let left = match ended {
                Ok(left) => left,
                Err(error) if self.panicked.insert(trial) => {
                    tracing::error!(%trial, %error, "the task of a trial ended badly");
                    self.release(trial);
                    return Some((trial, Ended::Panicked));
                }
                Err(error) => {
                    tracing::error!(%trial, %error, "the host could not be released of a trial");
                    vec!["what is left is not known: the agent failed while it removed the trial".to_owned()]
                }
            };
            let after_panic = self.panicked.remove(&trial);
            return Some((trial, Ended::Over { left, after_panic }));
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.set.len()
    }

    /// Ends them all, wherever they are.
    pub(super) async fn shutdown(&mut self) {
        self.set.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Poll;

    use tokio::sync::Notify;

    use super::*;

    const TRIAL: TrialId = TrialId::new(7);

    fn over(left: &[&str], after_panic: bool) -> Option<(TrialId, Ended)> {
        let left = left.iter().map(|&name| name.to_owned()).collect();
        Some((TRIAL, Ended::Over { left, after_panic }))
    }

    #[tokio::test]
    async fn a_panic_is_told_at_once_and_the_host_is_released_meanwhile() {
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (begins, goes_on) = (Arc::clone(&begun), Arc::clone(&go_on));
        let mut tasks = Tasks::new(move |trial| {
            let (begins, goes_on) = (Arc::clone(&begins), Arc::clone(&goes_on));
            async move {
                begins.notify_one();
                goes_on.notified().await;
                vec![format!("tb{trial}")]
            }
        });
        tasks.spawn(TRIAL, async { panic!("a fault of the agent") });
        assert_eq!(tasks.next().await, Some((TRIAL, Ended::Panicked)));
        begun.notified().await;
        {
            // Whoever waits for tasks is free for something else, as the agent's loop is.
            let next = tasks.next();
            tokio::pin!(next);
            std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context)))
                .await
                .is_ready()
                .then(|| panic!("nothing has ended"));
        }
        go_on.notify_one();
        assert_eq!(tasks.next().await, over(&["tb000000000007"], true));
        assert_eq!((tasks.next().await, tasks.len()), (None, 0));
        // As any other from now on.
        tasks.spawn(TRIAL, async { Vec::new() });
        assert_eq!(tasks.next().await, over(&[], false));
    }

    #[tokio::test]
    async fn a_release_that_panics_too_is_the_end() {
        let mut tasks = Tasks::new(|_| async { panic!("a fault of the agent") });
        tasks.spawn(TRIAL, async { panic!("another") });
        assert_eq!(tasks.next().await, Some((TRIAL, Ended::Panicked)));
        let Some((TRIAL, Ended::Over { left, after_panic: true })) = tasks.next().await else {
            panic!("it is over")
        };
        assert!(left[0].contains("not known"), "{left:?}");
        assert_eq!(tasks.next().await, None);
    }
}
