//! The host's API as values: what goes over the local socket, in both directions. Faces and host share these types and
//! nothing else, so that they may be of different versions.
//!
//! Rules of the wire, HTTP/1.1 and JSON: unknown fields are ignored, fields are added and never renamed, an addition
//! that an older peer cannot ignore raises [`PROTOCOL`]. Times are milliseconds since the Unix epoch ([`Millis`]). Changes
//! are whole objects, never increments, so that applying one twice does no harm.

mod action;
mod cluster;
mod config;
mod doctor;
mod error;
mod exposed;
mod forward;
mod hello;
mod import;
mod lease;
mod place;
mod settings;
mod state;

pub use action::{Action, ActionOutcome, ActionReport, ActionRequest, ActionResult, Selection};
pub use cluster::{
    ContextInfo, ContextList, NamespaceList, PortInfo, PortList, ServiceInfo, ServiceList, WorkloadInfo,
    WorkloadList,
};
pub use config::{Config, ConfigList, ConfigPut, GroupInfo, GroupList, GroupPut, Summary};
pub use doctor::{
    ContextReport, DoctorReport, DoctorRequest, ForwardReport, Granted, Holder, LocalReport, LoginReport,
    Need, Permission, PluginReport,
};
pub use error::{Error, status_of};
pub use exposed::{Call, Calls, Exposed};
pub use forward::{
    Ended, EndedBy, EndpointInfo, ForwardList, ForwardState, History, HistoryEntry, HistoryKind, Origin,
    PodCondition, ReadyVia, Tally,
};
pub use hello::{Hello, Mode, PROTOCOL, Versions};
pub use import::{
    ExportForm, ExportReport, ExportRequest, ImportFormat, ImportReport, ImportRequest, ImportedEntry,
    RefusedEntry,
};
pub use lease::{Lease, LeaseId, LeaseRequest};
pub use place::Place;
pub use settings::{Settings, SettingsPatch};
pub use state::{Change, Delta, Snapshot};

/// Milliseconds since the Unix epoch.
pub type Millis = u64;

/// Prefix of every path.
pub const PREFIX: &str = "/v1";

/// Ids of forwards without a config begin here; those of configs stay below. Exact in a JSON reader that knows only
/// doubles (2^53).
pub const AD_HOC_IDS: u64 = 1 << 52;

#[cfg(test)]
mod tests;
