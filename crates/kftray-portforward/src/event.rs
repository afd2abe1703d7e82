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
    /// The last event, in place of a change of status to `stopped`: everything is closed.
    Stopped {
        /// The final counters.
        counters: Counters,
    },
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
    /// Its counters.
    pub counters: Counters,
}
