//! Lists for pickers.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use kftray_commons::api::{ContextList, Error, NamespaceList, PortList, ServiceList, WorkloadList};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::core::Core;
use crate::pickers::{self, ClusterParams, ObjectParams};
use crate::serve::Answer;

/// Which kubeconfig is asked for.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct KubeconfigParams {
    /// Path list; none is the host's `KUBECONFIG`, else `~/.kube/config`.
    kubeconfig: Option<String>,
}

/// The contexts of a kubeconfig. Asks no cluster.
#[utoipa::path(get, path = "/kubeconfig/contexts", tag = "cluster", params(KubeconfigParams),
    responses((status = 200, body = ContextList), (status = 404, body = Error)))]
pub(crate) async fn contexts(
    State(core): State<Arc<Core>>,
    Query(params): Query<KubeconfigParams>,
) -> Answer<ContextList> {
    Ok(Json(pickers::contexts(&core, params.kubeconfig).await?))
}

/// The namespaces of a cluster. Needs `list namespaces`, and says what can be known without.
#[utoipa::path(get, path = "/cluster/namespaces", tag = "cluster", params(ClusterParams),
    responses((status = 200, body = NamespaceList), (status = 502, body = Error)))]
pub(crate) async fn namespaces(
    State(core): State<Arc<Core>>,
    Query(params): Query<ClusterParams>,
) -> Answer<NamespaceList> {
    Ok(Json(pickers::namespaces(&core, params).await?))
}

/// The Services of a namespace. Needs `list services` there.
#[utoipa::path(get, path = "/cluster/services", tag = "cluster", params(ClusterParams),
    responses((status = 200, body = ServiceList), (status = 403, body = Error), (status = 502, body = Error)))]
pub(crate) async fn services(
    State(core): State<Arc<Core>>,
    Query(params): Query<ClusterParams>,
) -> Answer<ServiceList> {
    Ok(Json(pickers::services(&core, params).await?))
}

/// The workloads and pods of a namespace. Needs `list` of each kind there; leaves out the others.
#[utoipa::path(get, path = "/cluster/workloads", tag = "cluster", params(ClusterParams),
    responses((status = 200, body = WorkloadList), (status = 403, body = Error), (status = 502, body = Error)))]
pub(crate) async fn workloads(
    State(core): State<Arc<Core>>,
    Query(params): Query<ClusterParams>,
) -> Answer<WorkloadList> {
    Ok(Json(pickers::workloads(&core, params).await?))
}

/// The ports of one object. Needs `get` of it.
#[utoipa::path(get, path = "/cluster/ports", tag = "cluster", params(ObjectParams),
    responses((status = 200, body = PortList), (status = 403, body = Error), (status = 404, body = Error)))]
pub(crate) async fn ports(
    State(core): State<Arc<Core>>,
    Query(params): Query<ObjectParams>,
) -> Answer<PortList> {
    Ok(Json(pickers::ports(&core, params).await?))
}
