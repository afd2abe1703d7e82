//! Configs: forwards as they are written down.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::spec::ForwardId;

/// A forward that is written down.
///
/// `spec` is the truth; `summary` is what the host read from it, so that a face need not read it itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Config {
    /// Its number; never used again after the config is gone.
    pub id: ForwardId,
    /// Grows with every change of this config; sent back with an edit, so that two editors do not overwrite each other.
    pub revision: u64,
    /// Whether it shall run.
    pub desired: bool,
    /// The entry as in a file (the reference's config object), with the fields that this version does not know. The
    /// fields `idle_minutes` and `ttl_minutes` are ours: see [`Summary`].
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub spec: Map<String, Value>,
    /// What it means.
    pub summary: Summary,
}

/// What an entry means, in words for people and for sorting.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Summary {
    /// The alias, else target and port as in `svc/web:80`. Not unique.
    pub label: String,
    /// The alias, if it has one.
    pub alias: Option<String>,
    /// `service`, `pod`, `deployment`, `statefulset`, `daemonset`, `replicaset`, `job`, `proxy` or `expose`.
    pub kind: String,
    /// What it goes to, as in `svc/web:80`, `proxy/host:443`.
    pub target: String,
    /// The port at the other end, a number or a name; the local program's port for an expose.
    pub remote: String,
    /// Namespace; none is the context's.
    pub namespace: Option<String>,
    /// Context; none follows the kubeconfig's current one.
    pub context: Option<String>,
    /// Kubeconfig path list; none is `KUBECONFIG`, else `~/.kube/config`.
    pub kubeconfig: Option<String>,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// An expose that callers from outside the cluster reach.
    pub public: bool,
    /// Where this machine listens: addresses or host names.
    pub local_hosts: Vec<String>,
    /// The local port; 0 is any free one.
    pub local_port: u16,
    /// Marks.
    pub tags: BTreeMap<String, String>,
    /// The group it belongs to, if any.
    pub group: Option<String>,
    /// Ends after so many minutes without traffic; none or 0: never.
    pub idle_minutes: Option<u32>,
    /// Ends so many minutes after its start; none or 0: never.
    pub ttl_minutes: Option<u32>,
    /// Why it cannot run in this build, in a sentence, if so.
    pub unsupported: Option<String>,
}

/// All configs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConfigList {
    /// In order of their ids.
    pub configs: Vec<Arc<Config>>,
}

/// A config as a client wants it: `POST /v1/configs` for a new one, `PUT /v1/configs/{id}` for a change.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConfigPut {
    /// The entry, read as leniently as a file's.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub spec: Map<String, Value>,
    /// The revision that was edited; with another one in the store the answer is `conflict` and the present config in
    /// its details. None: whatever is there is replaced. Without meaning for a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The group it shall belong to; none leaves it as it is, an empty text takes it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// Its configs.
    pub configs: Vec<ForwardId>,
    /// How many of them shall run.
    pub desired: u32,
}

/// All groups.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupList {
    /// By name.
    pub groups: Vec<GroupInfo>,
}

/// A change of one group: `PUT /v1/groups/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct GroupPut {
    /// Configs to put into it; a config is in one group at most.
    pub add: Vec<ForwardId>,
    /// Configs to take out of it.
    pub remove: Vec<ForwardId>,
}
