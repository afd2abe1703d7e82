//! Leases.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use kftray_commons::api::{Error, Lease, LeaseId, LeaseRequest};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::sleep;
use utoipa::IntoParams;

use super::events::{ALIVE, HEARTBEAT, answer};
use crate::core::{Core, Ending};
use crate::leases::{Held, unknown};
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

/// Which lease is meant.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct HoldParams {
    /// One that the host before this one gave, and that was handed over; a new one unless said.
    #[param(value_type = Option<u64>)]
    lease: Option<LeaseId>,
}

/// A lease that this connection holds.
///
/// Server-sent events: one `lease` (a `Lease`), then only signs of life. The lease ends with the connection. Where the host
/// ends before, `ending` tells whether there is another one that goes on with the lease for whoever asks for it.
#[utoipa::path(get, path = "/leases/hold", tag = "leases", params(HoldParams),
    responses((status = 200, body = Lease, content_type = "text/event-stream"), (status = 404, body = Error)))]
pub(crate) async fn hold(
    State(core): State<Arc<Core>>,
    Query(params): Query<HoldParams>,
) -> Result<Response, Refusal> {
    let held = match params.lease {
        Some(id) => core.leases().claim(id)?,
        None => core.leases().hold()?,
    };
    let data = serde_json::to_string(&held.lease).unwrap_or_default();
    let first = Bytes::from(format!("event: lease\ndata: {data}\n\n"));
    let place = Place { first: Some(first), ending: core.ending(), said: false, _held: held };
    Ok(answer(stream::unfold(place, |mut place| async move { Some((Ok(place.next().await?), place)) })))
}

/// A holder's place in its stream.
struct Place {
    first: Option<Bytes>,
    ending: watch::Receiver<Option<Ending>>,
    /// The end has been told.
    said: bool,
    _held: Held,
}

impl Place {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if self.said {
            return None;
        }
        tokio::select! {
            () = sleep(HEARTBEAT) => Some(ALIVE),
            Ok(how) = self.ending.wait_for(Option::is_some) => {
                self.said = true;
                let successor = *how == Some(Ending::HandOver);
                Some(Bytes::from(format!("event: ending\ndata: {{\"successor\":{successor}}}\n\n")))
            }
            else => None,
        }
    }
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
