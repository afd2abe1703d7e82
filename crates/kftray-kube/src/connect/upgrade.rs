//! The upgrade request itself, for each of the three protocols (research: datapath 1.2-1.4).
//!
//! By hand rather than through an HTTP library: nothing may be sent before the `101` (the API server's proxy throws it away),
//! and what comes behind the `101` in the same packet already belongs to the session.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use http::HeaderMap;
use kftray_commons::{Code, Problem};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::AsyncWriteExt as _;

use super::answer::{self, Asked, StatusText};
use super::carrier::{CarrierIo, Prefixed, Protocol};
use super::dial::Dialer;
use super::head::Head;
use super::tls::Alpn;
use super::{USER_AGENT, tcp};
use crate::config::login::Login;

/// The kubelet and the runtime are asked before the `101`; a node under load takes seconds. Longer than that it is of no use
/// to a waiting client.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// An error's body follows its head at once or is not worth waiting for.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// Path segments: everything but unreserved characters (RFC 3986, section 2.3) is escaped.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `kubernetes/apimachinery: pkg/util/portforward/constants.go`.
const TUNNEL_SUBPROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// `kubernetes/apimachinery: pkg/util/httpstream`, the only version there is.
const STREAM_VERSION: &str = "portforward.k8s.io";
/// `kubernetes/cri-streaming: pkg/streaming/portforward/websocket.go`; binary, no base64.
const CHANNEL_SUBPROTOCOL: &str = "v4.channel.k8s.io";
/// RFC 6455, section 1.3.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What to upgrade to.
pub(crate) struct Wish<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) protocol: Protocol,
    /// Only [`Protocol::Legacy`] sends them.
    pub(crate) ports: &'a [u16],
    /// The context's name, for messages.
    pub(crate) context: &'a str,
}

/// Why there is no upgrade.
pub(crate) struct Refusal {
    pub(crate) problem: Problem,
    pub(crate) kind: RefusalKind,
}

/// What a refusal says about the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusalKind {
    /// 401: the login.
    Login,
    /// 403: perhaps only this protocol's verb.
    Permission,
    /// The server, or something before it, does not want this protocol.
    Protocol,
    /// As likely the weather as the protocol: 5xx, or the connection closed instead of an answer.
    Maybe,
    /// Nothing to do with the protocol: no connection, pod gone, throttled.
    Other,
}

impl Refusal {
    fn new(kind: RefusalKind, problem: Problem) -> Self {
        Self { problem, kind }
    }
}

/// Dials and upgrades.
pub(crate) async fn upgrade(
    dialer: &Dialer,
    login: &Login,
    extra: &HeaderMap,
    wish: &Wish<'_>,
) -> Result<Box<dyn CarrierIo>, Refusal> {
    let dialled = dialer
        .dial(login, Alpn::Upgrade, tcp::CARRIER_STALL)
        .await
        .map_err(|problem| Refusal::new(RefusalKind::Other, problem))?;
    let mut io = dialled.io;
    let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
    let request = request(dialer, login, extra, wish, &key);
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, async {
        io.write_all(&request).await?;
        io.flush().await?;
        Head::read(&mut io).await
    });
    let head = match answer.await {
        Ok(Ok(head)) => head,
        Ok(Err(error)) => return Err(no_answer(dialer, &error)),
        Err(_) => {
            let why = format!("no answer to the upgrade within {} s", ANSWER_TIMEOUT.as_secs());
            return Err(Refusal::new(RefusalKind::Maybe, dialer.unreachable(&why)));
        }
    };
    if head.status == 101 {
        check(&head, wish.protocol, &key)?;
        let rest = head.rest.freeze();
        return Ok(if rest.is_empty() { io } else { Box::new(Prefixed::new(rest, io)) });
    }
    let (status, location) = (head.status, head.header("location").map(str::to_owned));
    let mut kept = head;
    let reason = std::mem::take(&mut kept.reason);
    let body = tokio::time::timeout(BODY_TIMEOUT, kept.body(&mut io)).await.unwrap_or_default();
    let mut text = StatusText::of(&body);
    if text.message.is_empty() {
        text.message = reason;
    }
    Err(refusal(status, &text, location.as_deref(), wish))
}

fn request(dialer: &Dialer, login: &Login, extra: &HeaderMap, wish: &Wish<'_>, key: &str) -> Vec<u8> {
    let prefix = &dialer.origin.prefix;
    let namespace = utf8_percent_encode(wish.namespace, SEGMENT);
    let pod = utf8_percent_encode(wish.pod, SEGMENT);
    let path = format!("{prefix}/api/v1/namespaces/{namespace}/pods/{pod}/portforward");
    let authority = dialer.origin.authority();
    let websocket = |subprotocol: &str| {
        format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
             Sec-WebSocket-Protocol: {subprotocol}\r\n"
        )
    };
    let (method, query, protocol) = match wish.protocol {
        Protocol::WebSocketTunnel => ("GET", String::new(), websocket(TUNNEL_SUBPROTOCOL)),
        Protocol::Spdy => (
            "POST",
            String::new(),
            format!(
                "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {STREAM_VERSION}\r\n\
                 Content-Length: 0\r\n"
            ),
        ),
        Protocol::Legacy => {
            let ports = wish.ports.iter().map(|port| format!("ports={port}")).collect::<Vec<_>>().join("&");
            ("GET", format!("?{ports}"), websocket(CHANNEL_SUBPROTOCOL))
        }
    };
    let mut request = format!(
        "{method} {path}{query} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: {USER_AGENT}\r\n{protocol}"
    )
    .into_bytes();
    let authorization = login.authorization.as_ref().map(|value| ("authorization", value));
    for (name, value) in
        authorization.into_iter().chain(extra.iter().map(|(name, value)| (name.as_str(), value)))
    {
        request.extend_from_slice(name.as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request
}

/// A `101` must be one to what was asked.
fn check(head: &Head, protocol: Protocol, key: &str) -> Result<(), Refusal> {
    let refuse = |why: String| {
        let problem = Problem::new(
            Code::TransportRefused,
            format!("the answer to the {protocol} upgrade is wrong: {why}"),
        );
        Err(Refusal::new(RefusalKind::Protocol, problem))
    };
    let expected = match protocol {
        Protocol::WebSocketTunnel => Some(TUNNEL_SUBPROTOCOL),
        Protocol::Legacy => Some(CHANNEL_SUBPROTOCOL),
        Protocol::Spdy => None,
    };
    let Some(expected) = expected else {
        return if head.has_token("upgrade", "SPDY/3.1") {
            Ok(())
        } else {
            refuse("it is no SPDY/3.1".to_owned())
        };
    };
    if !head.has_token("upgrade", "websocket")
        || head.header("sec-websocket-accept") != Some(accept(key).as_str())
    {
        return refuse("it is no WebSocket of ours".to_owned());
    }
    match head.header("sec-websocket-protocol") {
        Some(chosen) if chosen == expected => Ok(()),
        Some(other) => refuse(format!("it speaks {other}")),
        None => refuse("it names no subprotocol".to_owned()),
    }
}

/// RFC 6455, section 4.2.2: proves that the peer is a WebSocket server, nothing more, so SHA-1 does.
fn accept(key: &str) -> String {
    let digest = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}{WEBSOCKET_GUID}").as_bytes(),
    );
    base64::engine::general_purpose::STANDARD.encode(digest)
}

fn no_answer(dialer: &Dialer, error: &io::Error) -> Refusal {
    let server = dialer.origin.target();
    // TLS 1.3 servers judge the client's certificate after the handshake, so their verdict arrives here.
    if let Some(problem) = dialer.tls.as_ref().and_then(|tls| tls.explain(error, &server)) {
        return Refusal::new(RefusalKind::Other, problem);
    }
    if error.kind() == io::ErrorKind::InvalidData {
        let problem =
            Problem::new(Code::TransportRefused, format!("{server} does not answer with HTTP: {error}"));
        return Refusal::new(RefusalKind::Protocol, problem);
    }
    Refusal::new(RefusalKind::Maybe, dialer.unreachable(&error.to_string()))
}

fn refusal(status: u16, text: &StatusText, location: Option<&str>, wish: &Wish<'_>) -> Refusal {
    let Wish { namespace, pod, protocol, context, .. } = *wish;
    let verb = if protocol == Protocol::Spdy { "create" } else { "get" };
    let asked = Asked { verb, resource: "pods/portforward", group: "", namespace: Some(namespace) };
    let said = if text.message.is_empty() { String::new() } else { format!(": {}", text.message) };
    if answer::says_pod_gone(&text.message) || (status == 404 && text.is_kubernetes()) {
        let problem =
            Problem::new(Code::PodGone, format!("pod {namespace}/{pod} cannot be forwarded to{said}"));
        return Refusal::new(RefusalKind::Other, problem);
    }
    let transport =
        |text: String| Refusal::new(RefusalKind::Protocol, Problem::new(Code::TransportRefused, text));
    match status {
        401 => Refusal::new(RefusalKind::Login, answer::unauthorized(context, "credentials")),
        403 if text.is_kubernetes() => {
            Refusal::new(RefusalKind::Permission, answer::forbidden(text, asked, context))
        }
        429 => {
            let problem = Problem::new(
                Code::ClusterError,
                format!("context {context}: the API server is overloaded (429){said}"),
            );
            Refusal::new(RefusalKind::Other, problem)
        }
        300..=399 => transport(format!(
            "the {protocol} upgrade is redirected to {}, which is not followed",
            location.unwrap_or("an unknown place")
        )),
        500..=599 => {
            let problem = Problem::new(
                Code::ClusterError,
                format!("the {protocol} upgrade was answered with {status}{said}"),
            );
            Refusal::new(RefusalKind::Maybe, problem)
        }
        200..=299 => transport(format!(
            "the {protocol} upgrade was answered with {status} instead of 101: something on the way strips upgrades"
        )),
        _ => transport(format!("the {protocol} upgrade was refused with {status}{said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_that_of_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn refusals_are_told_apart() {
        let kubernetes = |message: &str| {
            StatusText::of(serde_json::json!({"kind": "Status", "message": message}).to_string().as_bytes())
        };
        let plain = |message: &str| StatusText::of(message.as_bytes());
        let table = [
            (401, kubernetes("Unauthorized"), RefusalKind::Login, Code::Unauthorized),
            (403, kubernetes("forbidden: x"), RefusalKind::Permission, Code::Forbidden),
            // A gateway's 403 says nothing about Kubernetes' roles.
            (403, plain("Blocked by policy"), RefusalKind::Protocol, Code::TransportRefused),
            (404, kubernetes("pods \"web-0\" not found"), RefusalKind::Other, Code::PodGone),
            (404, plain("404 page not found"), RefusalKind::Protocol, Code::TransportRefused),
            (400, kubernetes("Upgrade request required"), RefusalKind::Protocol, Code::TransportRefused),
            (429, kubernetes("too many requests"), RefusalKind::Other, Code::ClusterError),
            (
                500,
                kubernetes("unable to upgrade connection: pod not found (\"x\")"),
                RefusalKind::Other,
                Code::PodGone,
            ),
            (500, kubernetes("unable to upgrade: error"), RefusalKind::Maybe, Code::ClusterError),
            (503, plain("no backend"), RefusalKind::Maybe, Code::ClusterError),
            (302, plain(""), RefusalKind::Protocol, Code::TransportRefused),
            (200, plain("ok"), RefusalKind::Protocol, Code::TransportRefused),
        ];
        let wish = Wish {
            namespace: "shop",
            pod: "web-0",
            protocol: Protocol::WebSocketTunnel,
            ports: &[],
            context: "c",
        };
        for (status, text, kind, code) in table {
            let refusal = refusal(status, &text, None, &wish);
            assert_eq!((refusal.kind, refusal.problem.code), (kind, code), "{status} {text:?}");
        }
    }
}
