//! Leases: forwards that end with the client that wanted them.
//!
//! A lease is held by an open connection (`GET /v1/leases/hold` answers with an event stream whose first event is the
//! [`Lease`]; its end ends the lease), or by renewals (`POST /v1/leases` with a time, then `POST /v1/leases/{id}` before it
//! is over). `DELETE /v1/leases/{id}` ends either.
//!
//! A host that hands over to another one hands over its leases, too, with their numbers: `GET /v1/leases/hold?lease=ID` goes
//! on with one that a connection held, within half a minute.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Millis;

/// Number of a lease, within the life of one host and of those that take over from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct LeaseId(pub u64);

/// A lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Lease {
    /// Its number, to be named when a forward is started.
    pub id: LeaseId,
    /// When it ends unless it is renewed; none where a connection holds it.
    #[serde(default)]
    pub expires_at: Option<Millis>,
}

/// A wish for a lease by renewals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeaseRequest {
    /// Seconds from now, 1 to 86,400; a renewal adds the same again.
    pub seconds: u32,
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
