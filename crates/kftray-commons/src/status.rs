//! The state of one forward as every face shows it.

use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// Where a forward stands (design section 4).
///
/// `Stopped -> Binding -> Resolving -> Ready <-> Recovering -> Stopping -> Stopped`, and `NeedsUser` for what retrying
/// cannot cure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Status {
    /// Not running.
    Stopped,
    /// Opening the local listeners.
    Binding,
    /// Looking for pods and opening a transport; `waiting_for` says what is missing, if something is.
    Resolving {
        /// Why it is not ready yet (no pod ready, object missing), if known.
        waiting_for: Option<Problem>,
    },
    /// A transport to a ready pod is up and has answered a PING.
    Ready,
    /// Was ready, is not; the listeners stay bound and new connections wait.
    Recovering {
        /// How many attempts have failed since it was last ready, from 1.
        attempt: u32,
        /// Milliseconds from the moment of this status to the next try; `None` while one is under way or while it waits
        /// for the cluster to change.
        retry_in_ms: Option<u64>,
        /// What went wrong.
        cause: Problem,
    },
    /// Retrying cannot cure it; listeners stay bound where they are.
    NeedsUser {
        /// What a person has to do something about.
        cause: Problem,
    },
    /// Closing listeners and connections.
    Stopping,
}

impl Status {
    /// Short lower-case name, stable, as in the JSON form.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Binding => "binding",
            Self::Resolving { .. } => "resolving",
            Self::Ready => "ready",
            Self::Recovering { .. } => "recovering",
            Self::NeedsUser { .. } => "needs_user",
            Self::Stopping => "stopping",
        }
    }

    /// The problem behind it, if there is one.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Resolving { waiting_for } => waiting_for.as_ref(),
            Self::Recovering { cause, .. } | Self::NeedsUser { cause } => Some(cause),
            Self::Stopped | Self::Binding | Self::Ready | Self::Stopping => None,
        }
    }
}

/// Counters of one forward since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Counters {
    /// Bytes from local programs to the pod.
    pub bytes_up: u64,
    /// Bytes from the pod to local programs.
    pub bytes_down: u64,
    /// Connections accepted; a UDP flow counts as one.
    pub connections: u64,
    /// Connections open now.
    pub open: u64,
    /// Connections that were closed because no pod could serve them.
    pub failed: u64,
    /// Median time from accept to the stream being open, over the last connections, in microseconds; 0 before the first.
    pub open_p50_us: u64,
    /// 99th percentile of the same.
    pub open_p99_us: u64,
    /// Milliseconds since the last byte in either direction; `None` before the first.
    pub idle_ms: Option<u64>,
    /// UDP: datagrams from local programs that were passed on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub datagrams_up: u64,
    /// UDP: datagrams given to local programs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub datagrams_down: u64,
    /// UDP: datagrams of either direction that were dropped on this machine because they were too many, too late, or had
    /// nowhere to go.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub datagrams_dropped: u64,
    /// UDP: peers that got no flow because there were too many; each of their datagrams is dropped, too.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flows_refused: u64,
}

/// Counters that only UDP has are left out of what TCP forwards tell.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}
