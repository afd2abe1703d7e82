//! Start, stop, restart: of one forward, a group, a tag, all; and forwards that are written down nowhere.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::LeaseId;
use crate::problem::Problem;
use crate::spec::ForwardId;

/// Which forwards are meant: those that any of the fields names. Nothing said means nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Selection {
    /// By number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<ForwardId>,
    /// By alias or label; every one that has it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// By group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// By tag, `key` or `key=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Every one. For `start` every config, for `stop` and `restart` every one that runs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// What shall be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Start; what runs already is left alone, unless it waits: then it tries again now.
    Start,
    /// Stop.
    Stop,
    /// Stop and start.
    Restart,
}

/// `POST /v1/forwards/start|stop|restart`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ActionRequest {
    /// Which.
    #[serde(flatten)]
    pub selection: Selection,
    /// Start only: forwards that are written down nowhere, as entries of a file.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ad_hoc: Vec<Map<String, Value>>,
    /// Start only: the lease the started ones end with. Without it they stay until somebody stops them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
}

/// What came of it, one result per forward: some may fail while others do not.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ActionReport {
    /// In the order of the ids.
    pub results: Vec<ActionResult>,
    /// What of the selection names nothing, as written.
    #[serde(default)]
    pub unmatched: Vec<String>,
}

/// What came of it for one forward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ActionResult {
    /// Which.
    pub id: ForwardId,
    /// What people call it.
    pub label: String,
    /// What came of it.
    pub outcome: ActionOutcome,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// What came of an action for one forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ActionOutcome {
    /// It is being started; how that goes is told by its state.
    Started,
    /// It ran already.
    AlreadyRunning,
    /// It has ended.
    Stopped,
    /// It did not run.
    NotRunning,
    /// It has ended and is being started.
    Restarted,
    /// Nothing was done; the problem says why.
    Failed,
    /// An outcome that this build does not know.
    #[serde(other)]
    Other,
}

impl Selection {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// These.
    #[must_use]
    pub fn ids(ids: impl IntoIterator<Item = ForwardId>) -> Self {
        Self { ids: ids.into_iter().collect(), ..Self::default() }
    }

    /// Whether it names nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Action {
    /// The last part of its path.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}
