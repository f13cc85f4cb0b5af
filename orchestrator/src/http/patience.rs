//! How slow a reader may be. Time that a writer waits for its reader is taken from a store of patience, and each byte that
//! is taken puts some back: a reader slower than [`LEAST_RATE`] is left within [`MOST_PATIENCE`] and some, one that reads
//! nothing within that, and one that has nothing to read is waited for.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

/// How long a reader may take nothing.
pub(super) const MOST_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes a second that a reader takes in the long run.
const LEAST_RATE: u32 = 64 << 10;

/// What is left of the patience with one reader.
#[derive(Debug)]
struct Patience {
    left: Duration,
    waiting_since: Option<Instant>,
}

impl Patience {
    /// Nothing could be written at `now`. Returns when patience ends.
    fn waits(&mut self, now: Instant) -> Instant {
        *self.waiting_since.get_or_insert(now) + self.left
    }

    /// So many bytes were taken at `now`.
    fn took(&mut self, bytes: usize, now: Instant) {
        if let Some(since) = self.waiting_since.take() {
            self.left = self.left.saturating_sub(now.saturating_duration_since(since));
        }
        let earned = Duration::from_secs(1) / LEAST_RATE * u32::try_from(bytes).unwrap_or(u32::MAX);
        self.left = (self.left + earned).min(MOST_PATIENCE);
    }
}

/// A stream whose reader must not be too slow.
pub(super) struct Patient<S> {
    stream: S,
    patience: Patience,
    end: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// The same stream, written to with patience.
    pub(super) fn new(stream: S) -> Self {
        Self { stream, patience: Patience { left: MOST_PATIENCE, waiting_since: None }, end: None }
    }

    /// What a write that did `written` comes to.
    fn judge(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let now = tokio::time::Instant::now();
        if let Poll::Ready(result) = written {
            self.end = None;
            self.patience.took(result.as_ref().map_or(0, |bytes| *bytes), now.into_std());
            return Poll::Ready(result);
        }
        let end = self.patience.waits(now.into_std());
        let end = self.end.get_or_insert_with(|| Box::pin(sleep_until(end.into())));
        ready!(end.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader is too slow")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Writes to a reader that takes `step` bytes a second; how long that goes well, at most `limit`.
    async fn lasts(step: usize, limit: Duration) -> Duration {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let mut writer = Patient::new(ours);
        let begin = tokio::time::Instant::now();
        let reading = tokio::spawn(async move {
            let mut second = tokio::time::interval(Duration::from_secs(1));
            let mut bytes = vec![0; step];
            loop {
                second.tick().await;
                if step > 0 && theirs.read_exact(&mut bytes).await.is_err() {
                    return;
                }
            }
        });
        let chunk = vec![0; 16 << 10];
        while begin.elapsed() < limit {
            if let Err(error) = writer.write_all(&chunk).await {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                break;
            }
        }
        reading.abort();
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_left_soon_and_a_slow_one_later() {
        let limit = Duration::from_secs(600);
        let nothing = lasts(0, limit).await;
        // The first bytes fit into the buffer, and none is earned beyond the most.
        assert!(nothing >= MOST_PATIENCE && nothing < MOST_PATIENCE + Duration::from_secs(1), "{nothing:?}");
        // A byte now and then, which a limit on silence alone would take for life.
        assert!(lasts(1, limit).await < 2 * MOST_PATIENCE);
        let slow = lasts(LEAST_RATE as usize / 2, limit).await;
        assert!(slow > MOST_PATIENCE && slow < 3 * MOST_PATIENCE, "{slow:?}");
        assert!(
            lasts(2 * LEAST_RATE as usize, limit).await >= limit,
            "a reader that is fast enough was left"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_nothing_to_read_is_waited_for() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut writer = Patient::new(ours);
        for _ in 0..10 {
            tokio::time::advance(3 * MOST_PATIENCE).await;
            writer.write_all(b"event").await.expect("is taken");
            theirs.read_exact(&mut [0; 5]).await.expect("comes");
        }
    }
}
