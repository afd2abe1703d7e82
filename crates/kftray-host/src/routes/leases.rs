//! Leases.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use kftray_commons::api::{Error, Lease, LeaseId, LeaseRequest};
use tokio::time::sleep;

use super::events::{ALIVE, HEARTBEAT, answer};
use crate::core::Core;
use crate::leases::unknown;
use crate::serve::{Answer, Body, Refusal};

/// A lease by renewals.
#[utoipa::path(post, path = "/leases", tag = "leases", request_body = LeaseRequest,
    responses((status = 201, body = Lease), (status = 400, body = Error)))]
pub(crate) async fn rent(
    State(core): State<Arc<Core>>,
    Body(request): Body<LeaseRequest>,
) -> Result<(StatusCode, Json<Lease>), Refusal> {
    Ok((StatusCode::CREATED, Json(core.leases().rent(request.seconds)?)))
}

/// A lease that this connection holds.
///
/// Server-sent events: one `lease` (a `Lease`), then only signs of life. The lease ends with the connection.
#[utoipa::path(get, path = "/leases/hold", tag = "leases",
    responses((status = 200, body = Lease, content_type = "text/event-stream")))]
pub(crate) async fn hold(State(core): State<Arc<Core>>) -> Result<Response, Refusal> {
    let held = core.leases().hold()?;
    let data = serde_json::to_string(&held.lease).unwrap_or_default();
    let first = Bytes::from(format!("event: lease\ndata: {data}\n\n"));
    let events = stream::unfold((Some(first), held), |(first, held)| async move {
        let bytes = match first {
            Some(first) => first,
            None => {
                sleep(HEARTBEAT).await;
                ALIVE
            }
        };
        Some((Ok(bytes), (None, held)))
    });
    Ok(answer(events))
}

/// Renews a lease.
#[utoipa::path(post, path = "/leases/{id}", tag = "leases", params(("id" = u64, Path)),
    responses((status = 200, body = Lease), (status = 404, body = Error)))]
pub(crate) async fn renew(State(core): State<Arc<Core>>, Path(id): Path<LeaseId>) -> Answer<Lease> {
    Ok(Json(core.leases().renew(id)?))
}

/// Ends a lease, and what was started with it.
#[utoipa::path(delete, path = "/leases/{id}", tag = "leases", params(("id" = u64, Path)),
    responses((status = 204), (status = 404, body = Error)))]
pub(crate) async fn end(
    State(core): State<Arc<Core>>,
    Path(id): Path<LeaseId>,
) -> Result<StatusCode, Refusal> {
    if core.leases().end(id) { Ok(StatusCode::NO_CONTENT) } else { Err(unknown(id).into()) }
}
