//! Forwards: what runs, ran, or wants to run.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Exposed, LeaseId, Millis};
use crate::problem::Problem;
use crate::spec::ForwardId;
use crate::status::{Counters, Status};

/// One forward at one moment. One of a config stays after its end, so that the reason can be seen; one without a config
/// goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForwardState {
    /// The config's id, or one of [`super::AD_HOC_IDS`] and above.
    pub id: ForwardId,
    /// What people call it.
    pub label: String,
    /// What it goes to, as in `svc/web:80`.
    pub target: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Where it stands.
    pub status: Status,
    /// Since when.
    pub since: Millis,
    /// Every `address:port` it listens on, IPv6 in brackets; empty until bound. Of an expose the URLs under which callers
    /// reach it.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// By what it is ready, while it is.
    #[serde(default)]
    pub ready_via: Option<ReadyVia>,
    /// Every pod port behind it, by pod name.
    #[serde(default)]
    pub endpoints: Vec<EndpointInfo>,
    /// Of an expose: who may call, and who does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed: Option<Exposed>,
    /// What it has carried since its start.
    #[serde(default)]
    pub counters: Counters,
    /// What a person may want to know (a step down for want of a permission, an address this machine lacks).
    #[serde(default)]
    pub notes: Vec<String>,
    /// When it was started last.
    pub started_at: Millis,
    /// When it ends whatever happens; none: never.
    #[serde(default)]
    pub expires_at: Option<Millis>,
    /// When it ends if there is no traffic until then; none: never.
    #[serde(default)]
    pub idle_limit_at: Option<Millis>,
    /// The last thing that went wrong since its start, even if it is cured.
    #[serde(default)]
    pub last_problem: Option<Problem>,
    /// Why it does not run any more, once it has ended.
    #[serde(default)]
    pub ended: Option<Ended>,
}

/// Where a forward comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Origin {
    /// A config.
    Config {
        /// It ends with this lease; none: it stays until somebody stops it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease: Option<LeaseId>,
    },
    /// A request; written down nowhere.
    AdHoc {
        /// As above.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease: Option<LeaseId>,
    },
}

/// By what a forward is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReadyVia {
    /// The pod and container port of the warm transport, as in `namespace/pod:8080`.
    pub pod: String,
    /// `websocket`, `spdy`, `legacy` or `relay`.
    pub transport: String,
    /// Round trip to the pod's node and back, in microseconds.
    pub rtt_us: u64,
}

/// One port of one pod behind a forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndpointInfo {
    /// The pod.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// The container port.
    pub port: u16,
    /// The node, if known.
    #[serde(default)]
    pub node: Option<String>,
    /// Whether new connections go there.
    pub condition: PodCondition,
}

/// Whether new connections go to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PodCondition {
    /// Yes.
    Ready,
    /// Terminating but serving: only when nothing else is there.
    Draining,
    /// No.
    NotReady,
    /// A condition that this build does not know.
    #[serde(other)]
    Unknown,
}

/// The end of a forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ended {
    /// When.
    pub at: Millis,
    /// By what.
    pub by: EndedBy,
}

/// What ended a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// Somebody stopped it.
    Request,
    /// Its time to live was over.
    Ttl,
    /// There was no traffic for its idle limit.
    Idle,
    /// The client it was leased to went away.
    Lease,
    /// Its config was removed.
    Removed,
    /// A cause that this build does not know.
    #[serde(other)]
    Other,
}

/// The counters of one forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Tally {
    /// Which.
    pub id: ForwardId,
    /// What it has carried since its start.
    pub counters: Counters,
    /// As in [`ForwardState`]; traffic moves it.
    #[serde(default)]
    pub idle_limit_at: Option<Millis>,
}

/// All forwards that the host knows of.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForwardList {
    /// In order of their ids.
    pub forwards: Vec<Arc<ForwardState>>,
}

/// What happened to a forward, newest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct History {
    /// The entries; the store keeps a bounded number of each config.
    pub entries: Vec<HistoryEntry>,
}

/// One thing that happened to a forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HistoryEntry {
    /// When.
    pub at: Millis,
    /// What.
    pub kind: HistoryKind,
    /// One sentence about it.
    pub message: String,
    /// The problem behind it, if there is one.
    #[serde(default)]
    pub problem: Option<Problem>,
}

/// Kinds of history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HistoryKind {
    /// It was started.
    Started,
    /// A transport to a ready pod came up.
    Ready,
    /// It was lost, or could not be had.
    Recovering,
    /// It needs a person.
    NeedsUser,
    /// A connection could not be served.
    ConnectionFailed,
    /// It ended.
    Ended,
    /// Its config was changed.
    Edited,
    /// A kind that this build does not know.
    #[serde(other)]
    Other,
}

impl ForwardState {
    /// Whether it runs or tries to.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.ended.is_none()
    }
}

impl Origin {
    /// The lease it ends with, if any.
    #[must_use]
    pub fn lease(self) -> Option<LeaseId> {
        match self {
            Self::Config { lease } | Self::AdHoc { lease } => lease,
        }
    }

    /// The same with another lease, or without one.
    #[must_use]
    pub fn with_lease(self, lease: Option<LeaseId>) -> Self {
        match self {
            Self::Config { .. } => Self::Config { lease },
            Self::AdHoc { .. } => Self::AdHoc { lease },
        }
    }
}
