//! What the test NIC is now, asked for without keeping the agent's loop: some of the questions wait for a lock of the kernel's
//! that whoever changes any interface holds (RTNL).
//!
//! ```text
//!   idle --look--> reading --> what it is
//!                    ^  `look: what is being read may be old by then
//!                    `----'
//! ```

use std::sync::Arc;

use tokio::task::JoinHandle;
use toll_protocol::facts::NicFacts;

use crate::network::NetworkError;
use crate::runner::HostResources;

/// What was read.
pub(super) type Read = Result<Option<NicFacts>, NetworkError>;

/// One reading at a time.
#[derive(Default)]
pub(super) struct Nic {
    reading: Option<JoinHandle<Read>>,
    again: bool,
}

impl Nic {
    /// Asks what it is from now on, which [`next`](Self::next) tells.
    pub(super) fn look(&mut self, host: &Arc<HostResources>) {
        self.begin(read(host));
    }

    fn begin(&mut self, read: impl Future<Output = Read> + Send + 'static) {
        if self.reading.is_some() {
            self.again = true;
        } else {
            self.reading = Some(tokio::spawn(read));
        }
    }

    /// Waits for what it is, if it is being asked for, and for ever if not.
    pub(super) async fn next(&mut self, host: &Arc<HostResources>) -> Read {
        self.end(|| read(host)).await
    }

    async fn end<F: Future<Output = Read> + Send + 'static>(&mut self, mut read: impl FnMut() -> F) -> Read {
        loop {
            let Some(reading) = self.reading.as_mut() else { return std::future::pending().await };
            let found = reading.await.unwrap_or_else(|error| {
                tracing::error!(%error, "the task that reads the test NIC's facts ended badly");
                Ok(None)
            });
            self.reading = None;
            if !std::mem::take(&mut self.again) {
                return found;
            }
            self.begin(read());
        }
    }
}

fn read(host: &Arc<HostResources>) -> impl Future<Output = Read> + Send + 'static {
    let host = Arc::clone(host);
    async move { host.network.nic_facts().await }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_told_what_was_read_after_the_last_question() {
        let (reads, may_end) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let read = || {
            let (number, may_end) = (reads.fetch_add(1, Ordering::Relaxed) + 1, Arc::clone(&may_end));
            async move {
                may_end.acquire().await.expect("open").forget();
                if number == 1 { Err(NetworkError::Timeout) } else { Ok(None) }
            }
        };
        let mut nic = Nic::default();
        // Whoever asks goes on at once, however often, and there is one reading.
        nic.begin(read());
        nic.begin(async { panic!("no second at a time") });
        nic.begin(async { panic!("nor a third") });
        may_end.add_permits(2);
        assert!(matches!(nic.end(read).await, Ok(None)), "the first was begun before the last question");
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        assert!(nic.reading.is_none() && !nic.again);
    }
}
