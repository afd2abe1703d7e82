//! From one host to the next without closing a port.
//!
//! ```text
//! new host --POST /v1/handover--> old host: what runs, and a socket
//! new host <--one byte and the listeners of each forward-- old host   (SCM_RIGHTS)
//! new host --one byte: I have them--> old host
//! old host: stops accepting, gives the lock back, lets open connections finish for a while, ends
//! new host: takes the lock, serves, accepts what waited in the backlog
//! ```
//!
//! Until the last byte nothing has happened: whatever fails before leaves the old host as it is.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
use unix as system;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
use windows as system;

mod ask;

use std::net::TcpListener;
use std::time::Duration;

use kftray_commons::ForwardId;
use kftray_commons::api::{LeaseId, Origin};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::leases::Offered as Lease;

pub(crate) use ask::dismiss;
pub(crate) use system::{offer, take};

/// How long each step may take: both sides are on this machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the connections of the old host may go on: a long download or a debugger's session should end by itself, a
/// forgotten one should not keep an old program alive for ever.
pub(crate) const DRAIN: Duration = Duration::from_secs(300);

/// What an old host offers.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Offer {
    /// Where the listeners come from.
    pub(crate) socket: String,
    /// What runs, in the order in which the listeners come.
    pub(crate) forwards: Vec<Offered>,
    /// The leases of clients; they come back with their numbers.
    #[serde(default)]
    pub(crate) leases: Vec<Lease>,
}

/// One forward that is offered.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Offered {
    /// Its number.
    #[schema(value_type = u64)]
    pub(crate) id: ForwardId,
    /// Where it comes from.
    #[schema(value_type = Object)]
    pub(crate) origin: Origin,
    /// What it is, as an entry of a file.
    #[schema(value_type = Object)]
    pub(crate) entry: Map<String, Value>,
    /// How many listeners it has.
    pub(crate) listeners: usize,
    /// The leases that want it.
    #[serde(default)]
    #[schema(value_type = Vec<u64>)]
    pub(crate) holders: Vec<LeaseId>,
}

/// What a new host has taken.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) forwards: Vec<(Offered, Vec<TcpListener>)>,
    pub(crate) leases: Vec<Lease>,
}
