//! The API's routes, by resource. A handler takes the request apart, calls its use case and puts the answer together.
//!
//! The document comes from the same declarations as the router, so that neither can have what the other lacks.

mod cluster;
mod configs;
mod events;
mod forwards;
mod host;
mod leases;

use std::sync::Arc;

use axum::{Json, Router};
use kftray_commons::api::{Change, Delta, Error, PREFIX};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::core::Core;
use crate::serve::{Answer, Refusal, method_unknown, path_unknown};

/// What is said about the API as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "kftray host",
        version = "1",
        description = "The local API of the process that owns all forwards of a user. HTTP/1.1 over a Unix socket: \
            `curl --unix-socket ~/.kftray/host.sock http://kftray/v1/hello`. Every answer that is not a success has \
            the body `Error`; `docs/errors.md` lists its codes with cause and cure. Times are milliseconds since the \
            Unix epoch. Unknown fields are ignored on both sides.",
        license(name = "MIT OR Apache-2.0")
    ),
    components(schemas(Error, Delta, Change))
)]
struct About;

/// The router and the document of what it serves.
pub(crate) fn routes() -> (Router<Arc<Core>>, Document) {
    let api = OpenApiRouter::new()
        .routes(routes!(host::hello))
        .routes(routes!(host::snapshot))
        .routes(routes!(events::events))
        .routes(routes!(configs::list, configs::add))
        .routes(routes!(configs::import))
        .routes(routes!(configs::export))
        .routes(routes!(configs::one, configs::update, configs::remove))
        .routes(routes!(configs::groups))
        .routes(routes!(configs::put_group, configs::remove_group))
        .routes(routes!(forwards::list))
        .routes(routes!(forwards::start))
        .routes(routes!(forwards::stop))
        .routes(routes!(forwards::restart))
        .routes(routes!(forwards::one))
        .routes(routes!(forwards::history))
        .routes(routes!(leases::rent))
        .routes(routes!(leases::hold))
        .routes(routes!(leases::renew, leases::end))
        .routes(routes!(cluster::contexts))
        .routes(routes!(cluster::namespaces))
        .routes(routes!(cluster::services))
        .routes(routes!(cluster::workloads))
        .routes(routes!(cluster::ports))
        .routes(routes!(host::settings, host::change_settings))
        .routes(routes!(host::doctor))
        .routes(routes!(host::shutdown))
        .routes(routes!(host::hand_over))
        .routes(routes!(host::openapi));
    OpenApiRouter::with_openapi(About::openapi()).nest(PREFIX, api).split_for_parts()
}

/// What is served on the socket.
pub(crate) fn app(core: Arc<Core>) -> Router {
    let (router, _) = routes();
    router
        .fallback(path_unknown)
        .method_not_allowed_fallback(method_unknown)
        .layer(axum::middleware::from_fn(host::understood))
        .with_state(core)
}

/// Does the work to its end even if the client goes away meanwhile.
async fn whole<T, F>(core: &Arc<Core>, work: impl FnOnce(Arc<Core>) -> F) -> Answer<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Refusal>> + Send + 'static,
{
    core.tasks().run(work(Arc::clone(core))).await?.map(Json)
}

/// The document of the API, OpenAPI 3.1, as it is committed.
#[must_use]
pub fn document() -> String {
    let (_, document) = routes();
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}
