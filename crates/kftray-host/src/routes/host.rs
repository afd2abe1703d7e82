//! The host itself: who it is, its settings, its end.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode, header};
use kftray_commons::Code;
use kftray_commons::api::{
    DoctorReport, DoctorRequest, Error, Hello, PREFIX, PROTOCOL, Settings, SettingsPatch, Snapshot, Versions,
};

use crate::core::{Core, Ending};
use crate::doctor::{self, Patient};
use crate::handover::{self, Offer};
use crate::serve::{Answer, Body, Refusal};
use crate::settings as use_case;

/// The longest text that the framework refuses with; it quotes what it refuses.
const WORDS_MAX: usize = 64 * 1024;

/// The header in which a client may name its protocol versions, as `MIN-MAX`.
const PROTOCOL_HEADER: &str = "kftray-protocol";

/// Requests that never change: by these a client of any version finds out what to do, or replaces this host.
const TIMELESS: [&str; 3] = ["/hello", "/shutdown", "/handover"];

/// Refuses clients that say that they do not understand this host, but for what everybody understands.
pub(crate) async fn understood(request: Request, next: Next) -> Response {
    match asked_versions(request.headers()) {
        Some(theirs) if PROTOCOL.common(theirs).is_none() && !is_timeless(request.uri().path()) => {
            let ours = env!("CARGO_PKG_VERSION");
            let message = format!(
                "the host (version {ours}, pid {}) speaks protocol {PROTOCOL}, the client speaks {theirs}",
                std::process::id()
            );
            Refusal::from(Error::new(Code::VersionMismatch, message)).into_response()
        }
        Some(_) | None => in_our_words(next.run(request).await).await,
    }
}

/// What the framework refuses by itself (a path or query that is not understood) comes as plain text: it gets the form of
/// every other refusal.
async fn in_our_words(answer: Response) -> Response {
    let status = answer.status();
    let is_text = answer
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !status.is_client_error() || !is_text {
        return answer;
    }
    let text = axum::body::to_bytes(answer.into_body(), WORDS_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    Refusal::from(Error::new(Code::RequestInvalid, text.trim_end_matches('.'))).into_response()
}

fn is_timeless(path: &str) -> bool {
    path.strip_prefix(PREFIX).is_some_and(|path| TIMELESS.contains(&path))
}

fn asked_versions(headers: &HeaderMap) -> Option<Versions> {
    let (min, max) = headers.get(PROTOCOL_HEADER)?.to_str().ok()?.split_once('-')?;
    Some(Versions { min: min.trim().parse().ok()?, max: max.trim().parse().ok()? })
}

/// Who the host is.
///
/// Understood by clients of every version.
#[utoipa::path(get, path = "/hello", tag = "host", responses((status = 200, body = Hello)))]
pub(crate) async fn hello(State(core): State<Arc<Core>>) -> Json<Hello> {
    Json(core.hello())
}

/// Everything at this moment.
#[utoipa::path(get, path = "/snapshot", tag = "host", responses((status = 200, body = Snapshot)))]
pub(crate) async fn snapshot(State(core): State<Arc<Core>>) -> Json<Snapshot> {
    core.fleet().tell_traffic();
    Json(core.board().snapshot())
}

/// The settings.
#[utoipa::path(get, path = "/settings", tag = "host", responses((status = 200, body = Settings)))]
pub(crate) async fn settings(State(core): State<Arc<Core>>) -> Json<Arc<Settings>> {
    Json(core.board().settings())
}

/// Changes settings.
#[utoipa::path(patch, path = "/settings", tag = "host", request_body = SettingsPatch,
    responses((status = 200, body = Settings), (status = 400, body = Error)))]
pub(crate) async fn change_settings(
    State(core): State<Arc<Core>>,
    Body(patch): Body<SettingsPatch>,
) -> Answer<Arc<Settings>> {
    Ok(Json(use_case::change(&core, patch).await?))
}

/// Looks for what stands in the way of forwards.
#[utoipa::path(post, path = "/doctor", tag = "host", request_body = DoctorRequest,
    responses((status = 200, body = DoctorReport), (status = 400, body = Error)))]
pub(crate) async fn doctor(
    State(core): State<Arc<Core>>,
    Body(request): Body<DoctorRequest>,
) -> Answer<DoctorReport> {
    let patient = |spec: kftray_commons::ForwardSpec| {
        let addresses = core.board().forward(spec.id).map(|forward| forward.addresses.clone());
        Patient { addresses: addresses.unwrap_or_default(), spec }
    };
    let patients = core.all_specs().await?.into_iter().map(patient).collect();
    Ok(Json(doctor::collect(core.fleet().kube(), &request, patients).await))
}

/// Ends the host.
///
/// What shall run comes back with the next one.
#[utoipa::path(post, path = "/shutdown", tag = "host", responses((status = 202)))]
pub(crate) async fn shutdown(State(core): State<Arc<Core>>) -> StatusCode {
    core.end(Ending::Stop);
    StatusCode::ACCEPTED
}

/// Offers everything that runs to another host of the same user.
///
/// The answer names a socket, on which the listeners come with one message each; the new host says that it has them by
/// one byte, and this one ends. Without that byte this one goes on.
#[utoipa::path(post, path = "/handover", tag = "host",
    responses((status = 200, body = Offer), (status = 501, body = Error)))]
pub(crate) async fn hand_over(State(core): State<Arc<Core>>) -> Answer<Offer> {
    Ok(Json(handover::offer(&core).await?))
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "host", responses((status = 200, body = Object)))]
pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::document()).into_response()
}
