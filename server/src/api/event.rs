//! Events as they happen, over server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse as _, Response,
        sse::{Event as SseEvent, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast::error::RecvError;

use super::error::{ApiError, Problem};
use crate::{app::App, events::Emitted};

/// The most recorded events that a listener who was away gets at once; beyond that it is told to look anew.
const REPLAY: u32 = 500;

/// Listen to events
///
/// Each has an id, a name and JSON data. `Last-Event-ID` brings what was recorded since; an event named `reset` says that some
/// were missed: load anew what you show.
#[utoipa::path(get, path = "/api/v1/events", tag = "events",
    params(("Last-Event-ID" = Option<u64>, Header)),
    responses((status = 200, description = "A stream that does not end", content_type = "text/event-stream"),
    (status = 400, body = Problem)))]
pub(crate) async fn listen(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let last = match headers.get("last-event-id") {
        None => None,
        Some(value) => Some(
            value.to_str().ok().and_then(|text| text.parse::<u64>().ok()).ok_or_else(|| {
                ApiError::bad_request(
                    "bad_event_id",
                    "Last-Event-ID is the number of an event that this server sent",
                )
            })?,
        ),
    };
    // Listen first, then look back: nothing falls in between.
    let live = app.events.listen();
    let mut missed = Vec::new();
    let mut replayed = last.unwrap_or(0);
    if let Some(last) = last {
        let rows = app.db.events_after(last, REPLAY + 1).await?;
        if rows.len() > REPLAY as usize {
            missed.push(reset());
        } else {
            for row in rows {
                replayed = row.id;
                missed.push(sse(&Emitted { id: row.id, kind: row.kind, payload: row.payload }));
            }
        }
    }
    let stop = app.stop.clone().cancelled_owned();
    let events = stream::iter(missed)
        .chain(follow(live, replayed))
        .map(Ok::<_, Infallible>)
        .take_until(stop);
    let alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(events).keep_alive(alive).into_response())
}

fn follow(
    live: tokio::sync::broadcast::Receiver<Arc<Emitted>>,
    after: u64,
) -> impl Stream<Item = SseEvent> {
    stream::unfold(live, move |mut live| async move {
        loop {
            match live.recv().await {
                Ok(event) if event.id <= after => {}
                Ok(event) => return Some((sse(&event), live)),
                Err(RecvError::Lagged(_)) => return Some((reset(), live)),
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

fn sse(event: &Emitted) -> SseEvent {
    SseEvent::default().id(event.id.to_string()).event(&event.kind).data(&event.payload)
}

fn reset() -> SseEvent {
    SseEvent::default().event("reset").data("{}")
}
