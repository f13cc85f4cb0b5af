//! What requests hold in memory: the documents that are submitted. One is bounded by itself, and all that are read at a time
//! are bounded together: each takes places for its bytes before any of them is read, and gives them back when its answer is
//! made. One that gets none in time is told when to come again. A short one takes none: connections are few enough.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use toll_protocol::campaign::MAX_DOCUMENT;

use super::{Api, Refused};

/// What all bodies that are read at a time may hold, in bytes.
pub const BUDGET: usize = 16 << 20;
/// Bytes of a body that takes no place.
const SHORT: usize = 64 << 10;
/// Bytes that are read of one. A document that is too long by one is refused by its parser, which says how long it may be.
const LONGEST: usize = MAX_DOCUMENT + 1;
/// How long a body waits for its places, and then may take to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// The places of all bodies.
#[derive(Debug, Clone)]
pub struct Bodies {
    places: Arc<Semaphore>,
    patience: Duration,
}

impl Default for Bodies {
    fn default() -> Self {
        Self::new(BUDGET, PATIENCE)
    }
}

impl Bodies {
    /// Places for `budget` bytes. Each body waits at most `patience` for its own, and comes within that.
    pub fn new(budget: usize, patience: Duration) -> Self {
        Self { places: Arc::new(Semaphore::new(budget)), patience }
    }

    /// Bytes that have no place.
    pub fn free(&self) -> usize {
        self.places.available_permits()
    }

    /// Places for a body that says its length, or for the longest one.
    async fn place(&self, length: Option<u64>) -> Result<Option<OwnedSemaphorePermit>, Refused> {
        let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(LONGEST);
        if length <= SHORT {
            return Ok(None);
        }
        let places = u32::try_from(length.min(LONGEST)).unwrap_or(u32::MAX);
        let turn = tokio::time::timeout(self.patience, self.places.clone().acquire_many_owned(places)).await;
        match turn {
            Ok(Ok(place)) => Ok(Some(place)),
            _ => {
                let why = "other documents are being sent and this one had no turn: submit it again later";
                Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, why))
            }
        }
    }

    async fn read(&self, body: Body) -> Result<Document, Refused> {
        let length = body.size_hint().exact();
        if length.is_some_and(|length| length > LONGEST as u64) {
            return Err(too_long());
        }
        let place = self.place(length).await?;
        let until = Instant::now() + self.patience;
        // What was announced has a place; what comes is believed.
        let mut text = Vec::new();
        let mut pieces = body.into_data_stream();
        loop {
            let piece = timeout_at(until, pieces.next()).await.map_err(|_| {
                let why = format!("the document did not come within {} s", self.patience.as_secs_f64());
                Refused::new(StatusCode::REQUEST_TIMEOUT, why)
            })?;
            let Some(piece) = piece else { break };
            let piece = piece.map_err(|error| {
                Refused::new(StatusCode::BAD_REQUEST, format!("the document did not come whole: {error}"))
            })?;
            if text.len() + piece.len() > LONGEST {
                return Err(too_long());
            }
            text.extend_from_slice(&piece);
        }
        Ok(Document { text: text.into(), place })
    }
}

fn too_long() -> Refused {
    let why = format!("the document is too long: a campaign has at most {MAX_DOCUMENT} bytes");
    Refused::new(StatusCode::PAYLOAD_TOO_LARGE, why)
}

/// A document that has come whole.
#[derive(Debug)]
pub(super) struct Document {
    /// As it was sent.
    pub text: Bytes,
    /// To be held for as long as anything of it is.
    pub place: Option<OwnedSemaphorePermit>,
}

impl FromRequest<Api> for Document {
    type Rejection = Refused;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Refused> {
        api.bodies.read(request.into_body()).await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn refused(read: Result<Document, Refused>) -> u16 {
        read.expect_err("is refused").0.as_u16()
    }

    /// A body of which `pieces` come, and then nothing more.
    fn endless(pieces: usize) -> Body {
        let piece = |_| Ok::<_, std::io::Error>(Bytes::from_static(b"# a\n"));
        Body::from_stream(stream::iter((0..pieces).map(piece)).chain(stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_body_waits_for_its_place_and_a_short_one_does_not() {
        let bodies = Bodies::new(2 * LONGEST, SECOND);
        let long = || Body::from(vec![b'#'; MAX_DOCUMENT]);
        let first = bodies.read(long()).await.expect("has a place");
        let second = bodies.read(long()).await.expect("has a place");
        assert_eq!((first.text.len(), bodies.free()), (MAX_DOCUMENT, 2));
        let began = Instant::now();
        assert_eq!(refused(bodies.read(long()).await), 503);
        assert_eq!(began.elapsed(), SECOND);
        let short = bodies.read(Body::from(vec![b'#'; SHORT])).await.expect("needs no place");
        assert!(short.text.len() == SHORT && short.place.is_none() && began.elapsed() == SECOND);
        drop(first);
        let third = bodies.read(long()).await.expect("has a place again");
        drop((second, third));
        assert_eq!(bodies.free(), 2 * LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_gives_its_place_back() {
        let bodies = Bodies::new(LONGEST, SECOND);
        // One that does not say its length has a place for the longest.
        let waits = bodies.read(endless(3));
        let refusal = tokio::join!(waits, async { assert_eq!(bodies.free(), 0) }).0;
        assert_eq!((refused(refusal), bodies.free()), (408, LONGEST));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_read_than_a_document_may_have() {
        let bodies = Bodies::new(BUDGET, SECOND);
        assert_eq!(refused(bodies.read(endless(LONGEST)).await), 413);
        assert_eq!(refused(bodies.read(Body::from(vec![b'#'; LONGEST + 1])).await), 413);
        assert_eq!(
            bodies.read(Body::from(vec![b'#'; LONGEST])).await.expect("is for the parser").text.len(),
            LONGEST
        );
        let broken = stream::iter([Ok(Bytes::from_static(b"a")), Err(std::io::Error::other("gone"))]);
        assert_eq!(refused(bodies.read(Body::from_stream(broken)).await), 400);
        assert_eq!(bodies.free(), BUDGET);
    }
}
