//! What answers hold in memory while they are sent. A reader may take its time, but not the memory of all: what is long
//! stands in one place of a bounded size, from which it is copied piece by piece, and when that is full the one gives way
//! of which a piece was taken longest ago. Whoever goes on reading is not cut off by those who only ask.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::{Api, Refused};

/// Bytes that all answers hold together, unless one alone is longer.
pub const BUDGET: usize = 64 << 20;
/// An answer, or an event of a stream, that is no longer than this counts for nothing: connections are few enough.
const SHORT: usize = 64 << 10;
/// Bytes of a long one that are handed on at a time.
const PIECE: usize = 16 << 10;
/// How often it is told that answers gave way, at most: each one may be many a second.
const TOLD: Duration = Duration::from_secs(10);

/// An answer that had to give way: its reader sees it end too early.
#[derive(Debug, thiserror::Error)]
#[error("the answer was read too slowly, and others needed its memory")]
struct GaveWay;

/// All that is held.
#[derive(Debug, Clone)]
pub struct Answers(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    budget: usize,
    /// By the turn in which a piece was taken last: the first is the slowest.
    answers: BTreeMap<u64, Bytes>,
    bytes: usize,
    turn: u64,
    /// Answers that gave way and were not told of.
    untold: u64,
    told: Option<Instant>,
}

impl Held {
    fn put(&mut self, text: Bytes) -> u64 {
        self.turn += 1;
        self.answers.insert(self.turn, text);
        self.turn
    }

    /// Takes out what has to give way to `length` bytes more.
    fn make_room(&mut self, length: usize) -> Vec<Bytes> {
        let mut gone = Vec::new();
        while self.bytes + length > self.budget
            && let Some((_, slowest)) = self.answers.pop_first()
        {
            self.bytes -= slowest.len();
            gone.push(slowest);
        }
        self.untold += gone.len() as u64;
        gone
    }

    /// How many gave way, if that is to be told now.
    fn tells(&mut self, now: Instant) -> Option<u64> {
        let due = self.told.is_none_or(|told| now.saturating_duration_since(told) >= TOLD);
        if self.untold == 0 || !due {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl Answers {
    /// None yet; all together never hold more than `budget` bytes, unless one alone does.
    pub fn new(budget: usize) -> Self {
        let (answers, bytes, turn, untold, told) = (BTreeMap::new(), 0, 0, 0, None);
        Self(Arc::new(Mutex::new(Held { budget, answers, bytes, turn, untold, told })))
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a text in; the slowest make room for it.
    fn hold(&self, text: Bytes) -> Piecewise {
        let length = text.len();
        let mut held = self.lock();
        let gone = held.make_room(length);
        held.bytes += length;
        let turn = held.put(text);
        let untold = held.tells(Instant::now());
        drop(held);
        // Nobody who wants a piece waits for megabytes to be freed, or for the log to be written.
        drop(gone);
        if let Some(answers) = untold {
            tracing::warn!(answers, "long answers gave way to others: nobody had read of them for longest");
        }
        Piecewise { answers: self.clone(), turn, at: 0, length }
    }
}

/// A text that is held, and how much of it is handed on.
struct Piecewise {
    answers: Answers,
    /// Where it is among those that are held.
    turn: u64,
    at: usize,
    length: usize,
}

impl Piecewise {
    /// A copy of the next piece: a reference would keep the whole text for as long as the piece waits to be sent.
    fn next(&mut self) -> Result<Bytes, GaveWay> {
        let mut held = self.answers.lock();
        let text = held.answers.remove(&self.turn).ok_or(GaveWay)?;
        self.turn = held.put(text.clone());
        drop(held);
        let piece = Bytes::copy_from_slice(&text[self.at..self.length.min(self.at + PIECE)]);
        self.at += piece.len();
        Ok(piece)
    }
}

impl Drop for Piecewise {
    fn drop(&mut self) {
        let mut held = self.answers.lock();
        if let Some(text) = held.answers.remove(&self.turn) {
            held.bytes -= self.length;
            drop(held);
            drop(text);
        }
    }
}

/// The body of an answer, whose long texts are held.
struct Sent {
    answers: Answers,
    long: Option<Piecewise>,
    rest: Body,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.long.is_none() {
            let Some(frame) = ready!(Pin::new(&mut self.rest).poll_frame(context)) else {
                return Poll::Ready(None);
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(text)) if text.len() > SHORT => self.long = Some(self.answers.hold(text)),
                Ok(Ok(text)) => return Poll::Ready(Some(Ok(Frame::data(text)))),
                Ok(Err(trailers)) => return Poll::Ready(Some(Ok(trailers))),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let Some(long) = &mut self.long else { return Poll::Ready(None) };
        let piece = long.next();
        if long.at == long.length {
            self.long = None;
        }
        Poll::Ready(Some(piece.map(Frame::data).map_err(axum::Error::new)))
    }

    fn is_end_stream(&self) -> bool {
        self.long.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, held) =
            (self.rest.size_hint(), self.long.as_ref().map_or(0, |long| long.length - long.at) as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}

/// Holds what an answer says, from the moment that it is made.
pub(super) async fn hold(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (head, rest) = next.run(request).await.into_parts();
    let answers = api.answers;
    // A body without a length is a stream, whose events come one by one.
    let whole = rest.size_hint().exact().is_some_and(|length| length > SHORT as u64);
    let sent = if whole {
        match axum::body::to_bytes(rest, usize::MAX).await {
            Ok(text) => Sent { long: Some(answers.hold(text)), answers, rest: Body::empty() },
            Err(error) => {
                return Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
            }
        }
    } else {
        Sent { answers, long: None, rest }
    };
    Response::from_parts(head, Body::new(sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> Bytes {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    fn sent(answers: &Answers, rest: Body) -> Body {
        Body::new(Sent { answers: answers.clone(), long: None, rest })
    }

    #[tokio::test]
    async fn a_long_answer_arrives_byte_for_byte_and_is_held_no_longer() {
        let answers = Answers::new(BUDGET);
        for length in [0, 1, SHORT, SHORT + 1, 10 * PIECE, 10 * PIECE + 7] {
            let body = sent(&answers, Body::from(text(length)));
            assert_eq!(body.size_hint().exact(), Some(length as u64));
            let arrived = axum::body::to_bytes(body, usize::MAX).await.expect("arrives");
            assert!(arrived == text(length), "{length}");
            assert_eq!(answers.bytes(), 0);
        }
    }

    #[tokio::test]
    async fn no_more_is_held_than_the_budget_unless_one_alone_is_longer() {
        let answers = Answers::new(3 * SHORT + 3);
        let mut slow: Vec<Piecewise> = (0..100).map(|_| answers.hold(text(SHORT + 1))).collect();
        assert_eq!(answers.bytes(), 3 * (SHORT + 1));
        assert!(slow[96].next().is_err() && slow[97].next().is_ok());
        let mut long = answers.hold(text(10 * SHORT));
        assert_eq!(answers.bytes(), 10 * SHORT);
        assert!(long.next().is_ok() && slow[99].next().is_err());
        drop((slow, long));
        assert_eq!(answers.bytes(), 0);
    }

    #[tokio::test]
    async fn whoever_goes_on_reading_is_not_cut_off_by_those_who_only_ask() {
        let answers = Answers::new(8 * SHORT);
        let whole = text(4 * SHORT);
        let mut reader = answers.hold(whole.clone());
        let (mut read, mut others) = (Vec::new(), Vec::new());
        while reader.at < reader.length {
            // They turn the place over with each piece, and take one themselves.
            for _ in 0..2 {
                let mut other = answers.hold(text(2 * SHORT));
                other.next().expect("is the latest");
                others.push(other);
            }
            read.extend_from_slice(&reader.next().expect("is read all the time"));
        }
        assert!(read == whole);
        let cut = others.iter_mut().filter_map(|other| other.next().err()).count();
        assert_eq!(cut, others.len() - 2);
    }

    #[test]
    fn many_that_give_way_are_told_in_one_line() {
        let answers = Answers::new(SHORT);
        let mut held = answers.lock();
        let now = Instant::now();
        assert_eq!(held.tells(now), None);
        let give_way = |held: &mut Held, count: usize| {
            for _ in 0..count {
                held.put(text(SHORT));
                held.bytes += SHORT;
                held.make_room(SHORT);
            }
        };
        give_way(&mut held, 1);
        assert_eq!(held.tells(now), Some(1), "the first at once");
        give_way(&mut held, 100);
        assert_eq!(held.tells(now + TOLD / 2), None);
        give_way(&mut held, 1);
        assert_eq!((held.tells(now + TOLD), held.tells(now + 2 * TOLD)), (Some(101), None));
    }

    #[tokio::test]
    async fn a_piece_that_waits_keeps_nothing_of_the_whole() {
        let answers = Answers::new(BUDGET);
        let whole = text(10 * PIECE);
        let mut held = answers.hold(whole.clone());
        let piece = held.next().expect("is held");
        drop(held);
        assert!(whole.is_unique() && piece == whole[..PIECE]);
    }
}
