//! What a forward points at in a cluster, before anything has been looked up.
//!
//! Four workload kinds of the reference become data per variant here, so that a pod selector cannot sit beside a proxy
//! address. Resolution (Service port to container port, owner to pods) is an adapter's business.

use std::fmt;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

/// Which cluster, by way of a kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ClusterRef {
    /// Path list of kubeconfig files, in the platform's `PATH` syntax; `None` follows `KUBECONFIG`, then `~/.kube/config`.
    pub kubeconfig: Option<String>,
    /// Which context of it.
    pub context: ContextRef,
}

/// A context of a kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContextRef {
    /// Whatever `current-context` says, followed when it changes.
    #[default]
    Current,
    /// This one, pinned: a switch of the current context never moves it.
    Named(String),
}

/// What is looked up in the cluster to find pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The cluster it lives in.
    pub cluster: ClusterRef,
    /// Namespace; `None` is the context's namespace, else `default`.
    pub namespace: Option<String>,
    /// Which object.
    pub object: TargetObject,
}

/// The object whose pods are meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetObject {
    /// A Service, through its EndpointSlices.
    Service(String),
    /// One pod by name.
    Pod(String),
    /// Pods by label selector, in `kubectl -l` syntax.
    Labels(String),
    /// Pods owned by a workload.
    Workload {
        /// Its kind.
        kind: WorkloadKind,
        /// Its name.
        name: String,
    },
    /// A host name or IP address as the cluster sees it, without brackets; reached by way of the relay. The target's
    /// namespace then says where the relay is.
    Host(String),
}

/// Kinds whose pods can be forwarded to by the owner's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `apps/v1` ReplicaSet.
    ReplicaSet,
    /// `batch/v1` Job.
    Job,
}

/// The remote port as a person writes it. For a Service it is the Service's port first, the container's port if the
/// Service has no such port (`docs/decisions`, design section 5).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RemotePort {
    /// A number, 1-65535.
    Number(NonZeroU16),
    /// A port name of the Service or of the container.
    Name(String),
}

impl WorkloadKind {
    /// The lower-case singular that `kubectl` prints.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
            Self::DaemonSet => "daemonset",
            Self::ReplicaSet => "replicaset",
            Self::Job => "job",
        }
    }

    /// The short form that `kubectl` accepts, as shown in labels.
    #[must_use]
    pub fn short(self) -> &'static str {
        match self {
            Self::Deployment => "deploy",
            Self::StatefulSet => "sts",
            Self::DaemonSet => "ds",
            Self::ReplicaSet => "rs",
            Self::Job => "job",
        }
    }

    /// The kind from any form that `kubectl` accepts in `KIND/NAME`: singular, plural or short, any case, with or
    /// without the API group (`deployment.apps`, `jobs.v1.batch`).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (kind, group) = text.split_once('.').unwrap_or((&text, ""));
        let (kind, home) = match kind {
            "deployment" | "deployments" | "deploy" => (Self::Deployment, "apps"),
            "statefulset" | "statefulsets" | "sts" => (Self::StatefulSet, "apps"),
            "daemonset" | "daemonsets" | "ds" => (Self::DaemonSet, "apps"),
            "replicaset" | "replicasets" | "rs" => (Self::ReplicaSet, "apps"),
            "job" | "jobs" => (Self::Job, "batch"),
            _ => return None,
        };
        let group = group.strip_prefix("v1.").unwrap_or(group);
        (group.is_empty() || group == home).then_some(kind)
    }
}

impl TargetObject {
    /// The object's name, the selector, or the host.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Service(name)
            | Self::Pod(name)
            | Self::Labels(name)
            | Self::Workload { name, .. }
            | Self::Host(name) => name,
        }
    }
}

impl fmt::Display for TargetObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service/{name}"),
            Self::Pod(name) => write!(f, "pod/{name}"),
            Self::Labels(selector) => f.write_str(selector),
            Self::Workload { kind, name } => write!(f, "{}/{name}", kind.as_str()),
            Self::Host(host) => write!(f, "host/{host}"),
        }
    }
}

impl fmt::Display for RemotePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}
