//! The stream of the state: as bytes, since every client gets the same ones.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, Stream};
use http::{HeaderMap, header};
use kftray_commons::api::Snapshot;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use crate::board::{Board, Subscription};
use crate::core::Core;

/// How often a silent stream says that it lives: often enough for a client to notice within a minute that the host hangs.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);

/// The comment by which it does.
pub(super) const ALIVE: Bytes = Bytes::from_static(b": alive\n\n");

/// The state as it changes.
///
/// Server-sent events: `snapshot` (a `Snapshot`), then `delta`s (a `Delta` each). The id of an event is `INSTANCE.SEQ`;
/// with it in `Last-Event-ID` the stream begins with `resumed` and the changes since, if they are still known. A client
/// that reads too slowly gets a new `snapshot` in between; one that does not read at all is dropped.
#[utoipa::path(get, path = "/events", tag = "host",
    params(("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen")),
    responses((status = 200, body = Snapshot, content_type = "text/event-stream")))]
pub(crate) async fn events(State(core): State<Arc<Core>>, headers: HeaderMap) -> Response {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let subscription = core.board().subscribe(last);
    answer(follow(Arc::clone(core.board()), subscription))
}

/// A stream of events as an answer.
pub(super) fn answer(events: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, axum::body::Body::from_stream(events)).into_response()
}

struct Place {
    board: Arc<Board>,
    subscription: Subscription,
    /// What of the first events has been sent.
    sent: usize,
    ended: bool,
}

fn follow(board: Arc<Board>, subscription: Subscription) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let place = Place { board, subscription, sent: 0, ended: false };
    stream::unfold(place, |mut place| async move {
        if place.ended {
            return None;
        }
        if let Some(first) = place.subscription.first.get(place.sent) {
            let first = first.clone();
            place.sent += 1;
            return Some((Ok(first), place));
        }
        let bytes = match timeout(HEARTBEAT, place.subscription.frames.recv()).await {
            Ok(Ok(frame)) => {
                place.ended = frame.last;
                frame.event
            }
            Ok(Err(RecvError::Lagged(missed))) => {
                tracing::debug!(missed, "a slow client gets a snapshot");
                let (snapshot, frames) = place.board.resync();
                place.subscription.frames = frames;
                snapshot
            }
            Ok(Err(RecvError::Closed)) => return None,
            Err(_) => ALIVE,
        };
        Some((Ok(bytes), place))
    })
}
