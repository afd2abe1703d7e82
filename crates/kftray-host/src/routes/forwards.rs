//! Forwards: what runs, what happened to it, and what shall be done.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use kftray_commons::api::{Action, ActionReport, ActionRequest, Error, ForwardList, ForwardState, History};
use kftray_commons::{Code, ForwardId, Problem};
use serde::Deserialize;
use utoipa::IntoParams;

use super::whole;
use crate::actions::act;
use crate::core::Core;
use crate::serve::{Answer, Body, Refusal};

/// Entries of a history unless asked otherwise: a screenful.
const HISTORY: usize = 50;

/// Entries of a history at most: what is kept of one forward.
const HISTORY_MAX: usize = 500;

/// How much of a history is wanted.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct HistoryParams {
    /// At most so many entries, 1 to 500; 50 unless said otherwise.
    limit: Option<usize>,
}

/// What runs, or has run since the host started.
#[utoipa::path(get, path = "/forwards", tag = "forwards", responses((status = 200, body = ForwardList)))]
pub(crate) async fn list(State(core): State<Arc<Core>>) -> Json<ForwardList> {
    core.fleet().tell_traffic();
    Json(ForwardList { forwards: core.board().forwards() })
}

/// One forward.
#[utoipa::path(get, path = "/forwards/{id}", tag = "forwards", params(("id" = u64, Path)),
    responses((status = 200, body = ForwardState), (status = 404, body = Error)))]
pub(crate) async fn one(
    State(core): State<Arc<Core>>,
    Path(id): Path<ForwardId>,
) -> Answer<Arc<ForwardState>> {
    core.fleet().tell_traffic();
    let unknown =
        || Problem::new(Code::NotFound, format!("forward {} has not run since the host started", id.0));
    Ok(Json(core.board().forward(id).ok_or_else(unknown)?))
}

/// What happened to a forward, newest first.
#[utoipa::path(get, path = "/forwards/{id}/history", tag = "forwards",
    params(("id" = u64, Path), HistoryParams), responses((status = 200, body = History)))]
pub(crate) async fn history(
    State(core): State<Arc<Core>>,
    Path(id): Path<ForwardId>,
    Query(params): Query<HistoryParams>,
) -> Answer<History> {
    let limit = params.limit.unwrap_or(HISTORY).clamp(1, HISTORY_MAX);
    Ok(Json(core.chronicle().read(id, limit).await?))
}

/// Starts forwards: configs by selection, and entries that are written down nowhere.
///
/// Answers as soon as they are starting; how that goes is told by their state. What runs and waits tries again now.
#[utoipa::path(post, path = "/forwards/start", tag = "forwards", request_body = ActionRequest,
    responses((status = 200, body = ActionReport), (status = 400, body = Error), (status = 404, body = Error)))]
pub(crate) async fn start(
    State(core): State<Arc<Core>>,
    Body(request): Body<ActionRequest>,
) -> Answer<ActionReport> {
    perform(&core, Action::Start, request).await
}

/// Stops forwards. They have ended when the answer comes, within a second.
#[utoipa::path(post, path = "/forwards/stop", tag = "forwards", request_body = ActionRequest,
    responses((status = 200, body = ActionReport), (status = 400, body = Error)))]
pub(crate) async fn stop(
    State(core): State<Arc<Core>>,
    Body(request): Body<ActionRequest>,
) -> Answer<ActionReport> {
    perform(&core, Action::Stop, request).await
}

/// Stops forwards and starts them anew.
#[utoipa::path(post, path = "/forwards/restart", tag = "forwards", request_body = ActionRequest,
    responses((status = 200, body = ActionReport), (status = 400, body = Error)))]
pub(crate) async fn restart(
    State(core): State<Arc<Core>>,
    Body(request): Body<ActionRequest>,
) -> Answer<ActionReport> {
    perform(&core, Action::Restart, request).await
}

async fn perform(core: &Arc<Core>, action: Action, request: ActionRequest) -> Answer<ActionReport> {
    whole(core, |core| async move { act(&core, action, request).await.map_err(Refusal::from) }).await
}
