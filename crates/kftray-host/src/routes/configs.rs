//! Configs and their groups.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use kftray_commons::ForwardId;
use kftray_commons::api::{
    Config, ConfigList, ConfigPut, Error, ExportReport, ExportRequest, GroupList, GroupPut, ImportReport,
    ImportRequest,
};

use super::whole;
use crate::configs as use_case;
use crate::core::Core;
use crate::serve::{Answer, Body, ImportBody, Refusal};

/// All configs.
#[utoipa::path(get, path = "/configs", tag = "configs", responses((status = 200, body = ConfigList)))]
pub(crate) async fn list(State(core): State<Arc<Core>>) -> Json<ConfigList> {
    Json(ConfigList { configs: core.board().configs() })
}

/// A new config. It is written down, not started.
#[utoipa::path(post, path = "/configs", tag = "configs", request_body = ConfigPut,
    responses((status = 201, body = Config), (status = 400, body = Error)))]
pub(crate) async fn add(
    State(core): State<Arc<Core>>,
    Body(put): Body<ConfigPut>,
) -> Result<(StatusCode, Json<Arc<Config>>), Refusal> {
    let config = use_case::add(&core, put).await?;
    Ok((StatusCode::CREATED, Json(config)))
}

/// One config.
#[utoipa::path(get, path = "/configs/{id}", tag = "configs", params(("id" = u64, Path)),
    responses((status = 200, body = Config), (status = 404, body = Error)))]
pub(crate) async fn one(State(core): State<Arc<Core>>, Path(id): Path<ForwardId>) -> Answer<Arc<Config>> {
    Ok(Json(core.board().config(id).ok_or_else(|| use_case::no_config(id))?))
}

/// Changes a config.
///
/// If it runs and the change concerns how, it is started anew.
#[utoipa::path(put, path = "/configs/{id}", tag = "configs", params(("id" = u64, Path)), request_body = ConfigPut,
    responses((status = 200, body = Config), (status = 400, body = Error), (status = 404, body = Error),
        (status = 409, body = Error, description = "Somebody else has changed it; the present one is in the details")))]
pub(crate) async fn update(
    State(core): State<Arc<Core>>,
    Path(id): Path<ForwardId>,
    Body(put): Body<ConfigPut>,
) -> Answer<Arc<Config>> {
    whole(&core, |core| async move { use_case::update(&core, id, put).await.map_err(Refusal::from) }).await
}

/// Removes a config and ends its forward. Answers what was removed.
#[utoipa::path(delete, path = "/configs/{id}", tag = "configs", params(("id" = u64, Path)),
    responses((status = 200, body = Config), (status = 404, body = Error)))]
pub(crate) async fn remove(State(core): State<Arc<Core>>, Path(id): Path<ForwardId>) -> Answer<Arc<Config>> {
    whole(&core, |core| async move { use_case::remove(&core, id).await.map_err(Refusal::from) }).await
}

/// Imports configs, or says what an import would do.
///
/// One bad entry does not lose the others; it is told in `faults`.
#[utoipa::path(post, path = "/configs/import", tag = "configs", request_body = ImportRequest,
    responses((status = 200, body = ImportReport), (status = 400, body = Error), (status = 413, body = Error)))]
pub(crate) async fn import(
    State(core): State<Arc<Core>>,
    ImportBody(request): ImportBody<ImportRequest>,
) -> Answer<ImportReport> {
    whole(&core, |core| async move { use_case::import(&core, request).await.map_err(Refusal::from) }).await
}

/// Configs as a text.
#[utoipa::path(post, path = "/configs/export", tag = "configs", request_body = ExportRequest,
    responses((status = 200, body = ExportReport), (status = 404, body = Error)))]
pub(crate) async fn export(
    State(core): State<Arc<Core>>,
    Body(request): Body<ExportRequest>,
) -> Answer<ExportReport> {
    Ok(Json(use_case::export(&core, request).await?))
}

/// All groups.
#[utoipa::path(get, path = "/groups", tag = "configs", responses((status = 200, body = GroupList)))]
pub(crate) async fn groups(State(core): State<Arc<Core>>) -> Json<GroupList> {
    Json(use_case::groups(&core))
}

/// Puts configs into a group and takes others out.
#[utoipa::path(put, path = "/groups/{name}", tag = "configs", params(("name" = String, Path)),
    request_body = GroupPut,
    responses((status = 200, body = GroupList), (status = 400, body = Error), (status = 404, body = Error)))]
pub(crate) async fn put_group(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
    Body(change): Body<GroupPut>,
) -> Answer<GroupList> {
    Ok(Json(use_case::put_group(&core, name, change).await?))
}

/// Removes a group; its configs stay.
#[utoipa::path(delete, path = "/groups/{name}", tag = "configs", params(("name" = String, Path)),
    responses((status = 200, body = GroupList), (status = 404, body = Error)))]
pub(crate) async fn remove_group(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
) -> Answer<GroupList> {
    Ok(Json(use_case::remove_group(&core, name).await?))
}
