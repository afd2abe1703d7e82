//! `/healthz`, `/readyz` and `/metrics` on a port of their own, which tells nothing else and takes nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::relay::Core;

/// Probes and scrapers come one at a time; anybody in the cluster may come, so there is an end. The oldest gives way, else
/// somebody could keep the kubelet out.
const CONNECTIONS: usize = 64;

/// A request head takes no longer, and no connection lives longer than [`LIFETIME`].
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const LIFETIME: Duration = Duration::from_secs(300);

/// Smallest that hyper takes; a probe has a few hundred bytes.
const HEAD_BUFFER: usize = 8 * 1024;

/// Rest after an accept that failed for want of files or memory.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Serves for as long as it is polled.
pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut by_age = VecDeque::<AbortHandle>::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    by_age.retain(|connection| !connection.is_finished());
                    if by_age.len() >= CONNECTIONS
                        && let Some(oldest) = by_age.pop_front()
                    {
                        oldest.abort();
                    }
                    let core = Arc::clone(&core);
                    by_age.push_back(connections.spawn(async move { connection(&core, socket).await }));
                }
                Err(_) => sleep(ACCEPT_REST).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(core: &Core, socket: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(core, request.method(), request.uri().path());
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BUFFER)
        .serve_connection(TokioIo::new(socket), service);
    // A broken connection is the other side's business.
    timeout(LIFETIME, connection).await.ok();
}

fn answer(core: &Core, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
    }
    match path {
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" if core.draining.is_cancelled() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "going away\n".into())
        }
        "/readyz" if !core.exposures.is_ready() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "no tunnel: nobody answers callers\n".into())
        }
        "/readyz" => text(StatusCode::OK, "ok\n".into()),
        "/metrics" => {
            let mut response = text(StatusCode::OK, core.metrics.text());
            let kind = header::HeaderValue::from_static(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            );
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        _ => text(StatusCode::NOT_FOUND, "kftray-server: /healthz, /readyz, /metrics\n".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
