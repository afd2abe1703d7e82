//! What a forward tells about itself: events as they happen, and a snapshot at any time.

use std::net::SocketAddr;
use std::time::Duration;

use kftray_commons::{Counters, Problem, Status};

use crate::ports::Endpoint;

/// Something that happened to a forward, in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// The local listeners are open.
    Listening {
        /// Every address, with its real port.
        addresses: Vec<SocketAddr>,
        /// What a person may want to know about them (for example that this machine has no `::1`).
        notes: Vec<String>,
    },
    /// The status changed.
    Status(Status),
    /// A transport to a ready pod is up. Comes with every return to readiness and with every move to another pod.
    Ready(ReadyVia),
    /// A local connection could not be served, or was cut off.
    ConnectionFailed {
        /// The local program's address.
        peer: SocketAddr,
        /// Why.
        problem: Problem,
    },
    /// Expose: callers reach the local program now. Comes with every return to readiness.
    Published {
        /// Under which URLs, the best one first.
        urls: Vec<String>,
        /// What a person may want to know about them.
        notes: Vec<String>,
    },
    /// Expose: a caller's request has been answered, or its connection has ended.
    Called(Call),
    /// Expose: a caller could not be served: the local program is down, the caller may not call, the tunnel broke.
    CallFailed {
        /// The caller's address, as far as it is known.
        caller: String,
        /// Why.
        problem: Problem,
    },
    /// Something a person may want to know or change while all goes on.
    Note(Problem),
    /// The last event, in place of a change of status to `stopped`: everything is closed.
    Stopped {
        /// The final counters.
        counters: Counters,
    },
}

/// One request of a caller, or one connection that is not HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The caller's address: of public callers the one that the Ingress controller tells, else the one the relay saw.
    pub caller: String,
    /// Method and path without its query, which may hold secrets; `None` for what is not HTTP/1.
    pub request: Option<(String, String)>,
    /// Status of the answer; `None` if there was none, or if it is not HTTP/1.
    pub status: Option<u16>,
    /// From the request's head to the head of its answer; of a connection that is not HTTP, from its begin to its end.
    pub took: Duration,
}

/// By what a forward is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyVia {
    /// The pod and port that the warm transport leads to. Connections spread over every ready endpoint.
    pub endpoint: Endpoint,
    /// `websocket`, `spdy` or `legacy`.
    pub transport: &'static str,
    /// Round trip of the PING that proved it.
    pub rtt: Duration,
}

/// Everything known about a forward at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub status: Status,
    /// Where it listens; empty until bound.
    pub addresses: Vec<SocketAddr>,
    /// By what it is ready, while it is.
    pub ready: Option<ReadyVia>,
    /// Expose: under which URLs callers reach it, while they do.
    pub urls: Vec<String>,
    /// Its counters.
    pub counters: Counters,
}
