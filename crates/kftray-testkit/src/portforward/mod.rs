//! Port-forward as the API server, the kubelet and the container runtime do it together, in the three protocols that
//! exist, with their vices (see [`vices`]).

mod carrier;
mod legacy;
mod runtime;
mod session;
mod spdy;
mod stream;
pub(crate) mod vices;
mod websocket;
mod worker;

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::api::kinds::Kind;
use crate::api::rest::{Attributes, Query};
use crate::api::server::{ApiStream, Body, Exchange, empty};
use crate::api::status::Status;

/// Protocols of a port-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// SPDY/3.1 inside a WebSocket (KEP-4006), `SPDY/3.1+portforward.k8s.io`.
    WebSocketTunnel,
    /// SPDY/3.1 directly, `Upgrade: SPDY/3.1`.
    Spdy,
    /// One WebSocket per connection, `v4.channel.k8s.io`.
    Legacy,
}

/// Subprotocol of the tunnel (apimachinery `pkg/util/portforward/constants.go`).
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The only subprotocol of the legacy form that is served; v5 exists for exec and attach only, and is passed over.
const CHANNEL: &str = "v4.channel.k8s.io";
/// Stream protocol of SPDY.
const STREAM_PROTOCOL: &str = "portforward.k8s.io";

/// The pod a session is for.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) uid: String,
}

impl Target {
    /// The runtime's id of the pod's sandbox: 64 hex digits, the same for the whole life of the pod.
    pub(crate) fn sandbox(&self) -> String {
        self.uid.replace('-', "").repeat(2)
    }
}

/// Answers a request for `pods/portforward`: an upgrade, or the refusal that the real chain would give.
pub(crate) async fn upgrade(
    exchange: &Exchange,
    mut request: Request<Incoming>,
    user: &str,
    asked: &Attributes,
    query: &Query,
) -> Result<Response<Body>, Status> {
    let shared = &exchange.shared;
    let offer = Offer::read(&request)?;
    // From 1.35 on a WebSocket's GET needs `create` as well.
    if offer.protocol != Protocol::Spdy && shared.websocket_needs_create {
        shared.authorize(user, "create", asked)?;
    }
    let target = find_pod(exchange, asked)?;
    let (delay, refusal) = {
        let faults = shared.faults.borrow();
        let refusal = faults.refusals.iter().find(|refusal| refusal.protocol == offer.protocol).cloned();
        (faults.upgrade_delay, refusal)
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if let Some(refusal) = refusal {
        return Err(Status::new(refusal.status, refusal.message));
    }
    let ports = if offer.protocol == Protocol::Legacy { legacy::ports(query)? } else { Vec::new() };
    let upgrading = hyper::upgrade::on(&mut request);
    let (shared, connection) = (Arc::clone(shared), Arc::clone(&exchange.connection));
    let session = async move {
        let upgraded = match upgrading.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "upgrade failed"),
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<ApiStream>>() else { return };
        let mut stream = parts.io.into_inner();
        stream.give_back(parts.read_buf);
        connection.mark_carrier(offer.protocol);
        shared.counters.count_upgrade(offer.protocol);
        let _entered = shared.counters.sessions.enter();
        match offer.protocol {
            Protocol::WebSocketTunnel => websocket::serve(&shared, target, stream).await,
            Protocol::Spdy => spdy::serve(&shared, target, stream).await,
            Protocol::Legacy => legacy::serve(&shared, target, stream, ports).await,
        }
    };
    exchange
        .session_tx
        .try_send(Box::pin(session))
        .map_err(|_| Status::bad_request("this connection has been upgraded already"))?;
    Ok(offer.accept())
}

fn find_pod(exchange: &Exchange, asked: &Attributes) -> Result<Target, Status> {
    let namespace = asked.namespace.as_deref().unwrap_or_default();
    let name = asked.name.as_deref().unwrap_or_default();
    let store = &exchange.shared.store;
    let pod = store.get(Kind::Pod, namespace, name).ok_or_else(|| Status::not_found(Kind::Pod, name))?;
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    if pod["status"]["phase"] == "Pending" && !exchange.shared.pods.is_running(&uid) {
        // The kubelet finds no sandbox to ask the runtime for.
        let message =
            format!("error upgrading connection: failed to find sandbox for pod \"{name}_{namespace}\"");
        return Err(Status::new(StatusCode::INTERNAL_SERVER_ERROR, message));
    }
    Ok(Target { uid })
}

/// What the client wants to upgrade to.
struct Offer {
    protocol: Protocol,
    /// `Sec-WebSocket-Key`
    key: String,
}

impl Offer {
    fn read(request: &Request<Incoming>) -> Result<Self, Status> {
        let text = |name: &str| {
            let values = request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
            values.collect::<Vec<_>>().join(",")
        };
        let upgrade = text("upgrade").to_ascii_lowercase();
        let is_upgrade = text("connection").to_ascii_lowercase().contains("upgrade");
        if !is_upgrade || upgrade.is_empty() {
            return Err(Status::bad_request("Upgrade request required"));
        }
        if upgrade.contains("spdy/3.1") && request.method() == Method::POST {
            let versions = text("x-stream-protocol-version");
            if versions.is_empty() {
                return Err(Status::bad_request(
                    "unable to upgrade: X-Stream-Protocol-Version header is required",
                ));
            }
            if !list(&versions).any(|version| version == STREAM_PROTOCOL) {
                let message = format!(
                    "unable to upgrade: unable to negotiate protocol: client supports [{versions}], server accepts \
                     [{STREAM_PROTOCOL}]"
                );
                return Err(Status::new(StatusCode::FORBIDDEN, message));
            }
            return Ok(Self { protocol: Protocol::Spdy, key: String::new() });
        }
        if !upgrade.contains("websocket") || request.method() != Method::GET {
            return Err(Status::bad_request(format!(
                "unable to upgrade: missing upgrade headers in request: {:?}",
                text("upgrade")
            )));
        }
        let key = text("sec-websocket-key");
        if key.is_empty() || text("sec-websocket-version") != "13" {
            return Err(Status::bad_request("websocket: bad handshake"));
        }
        let offered = text("sec-websocket-protocol");
        let protocol = list(&offered).find_map(|name| match name {
            TUNNEL => Some(Protocol::WebSocketTunnel),
            CHANNEL => Some(Protocol::Legacy),
            _ => None,
        });
        match protocol {
            Some(protocol) => Ok(Self { protocol, key }),
            None => Err(Status::new(StatusCode::FORBIDDEN, "unsupported protocol")),
        }
    }

    fn accept(&self) -> Response<Body> {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let websocket = match self.protocol {
            Protocol::Spdy => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert("x-stream-protocol-version", HeaderValue::from_static(STREAM_PROTOCOL));
                return response;
            }
            Protocol::WebSocketTunnel => TUNNEL,
            Protocol::Legacy => CHANNEL,
        };
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(websocket));
        if let Ok(accept) = HeaderValue::from_str(&websocket::accept_key(&self.key)) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        response
    }
}

fn list(header: &str) -> impl Iterator<Item = &str> {
    header.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}
