//! A campaign's status as server-sent events: at once, whenever it changes, and for the last time when it is over.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use toll_protocol::service::CampaignStatus;

use super::{Api, Refused};

/// How often something is said when nothing happens, so that whoever is between doesn't cut the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Least time between two events.
const PACE: Duration = Duration::from_millis(500);

pub(super) async fn events(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Refused> {
    let first = api.handle.campaign(&id).await?;
    let changes = api.handle.changes();
    let begin = (api, id, changes, Some(first), false);
    let statuses = stream::unfold(begin, |(api, id, mut changes, first, over)| async move {
        if over {
            return None;
        }
        let status = match first {
            Some(status) => status,
            None => {
                // A status of a large campaign is long, and changes many times a second.
                tokio::time::sleep_until(tokio::time::Instant::now() + PACE).await;
                // It ends with the service.
                changes.changed().await.ok()?;
                changes.borrow_and_update();
                api.handle.campaign(&id).await.ok()?
            }
        };
        let over = status.state.is_over();
        Some((event(&status), (api, id, changes, None, over)))
    });
    Ok(Sse::new(statuses).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

fn event(status: &CampaignStatus) -> Result<Event, Infallible> {
    // A status is plain data: it can be written as JSON.
    Ok(Event::default().json_data(status).unwrap_or_default())
}
