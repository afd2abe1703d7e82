//! What a picker shows of a cluster. Each list needs the one permission it is about; where that is missing, the list says
//! so in `problem` and holds what can be known without.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// The contexts of a kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ContextList {
    /// In the order of the files.
    pub contexts: Vec<ContextInfo>,
    /// The current one, if the kubeconfig names one.
    pub current: Option<String>,
    /// The files that were read.
    pub files: Vec<String>,
}

/// One context.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ContextInfo {
    /// Its name.
    pub name: String,
    /// Its cluster's name.
    pub cluster: String,
    /// Its user's name.
    pub user: Option<String>,
    /// Its namespace, if it names one.
    pub namespace: Option<String>,
    /// Whether it is the current one.
    pub current: bool,
}

/// The namespaces of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct NamespaceList {
    /// By name. Without the permission to list: the context's and those of the configs for it.
    pub namespaces: Vec<String>,
    /// Why the list is not complete, if it is not.
    pub problem: Option<Problem>,
}

/// The Services of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ServiceList {
    /// By namespace and name.
    pub services: Vec<ServiceInfo>,
    /// Why the list is not complete, if it is not.
    pub problem: Option<Problem>,
}

/// One Service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ServiceInfo {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    pub kind: String,
    /// Its ports.
    pub ports: Vec<PortInfo>,
    /// Its annotations whose keys begin with `kftray.app/`.
    pub annotations: BTreeMap<String, String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A port of a Service or a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct PortInfo {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its number.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// A Service's target: number or name.
    pub target: Option<String>,
    /// `appProtocol`, if it says so.
    pub app_protocol: Option<String>,
}

/// The workloads of a namespace, pods included.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct WorkloadList {
    /// By kind, namespace and name.
    pub workloads: Vec<WorkloadInfo>,
    /// Why the list is not complete, one per kind that could not be listed.
    pub problems: Vec<Problem>,
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct WorkloadInfo {
    /// `deployment`, `statefulset`, `daemonset`, `replicaset`, `job` or `pod`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its containers' ports.
    pub ports: Vec<PortInfo>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How many of its pods are ready; for a pod 1 or 0.
    pub ready: u32,
    /// How many it shall have; for a pod 1.
    pub wanted: u32,
}

/// The ports of one object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct PortList {
    /// In the object's order.
    pub ports: Vec<PortInfo>,
}
