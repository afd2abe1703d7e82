//! The few fields of Kubernetes objects that resolving needs, decoded straight from the wire.
//!
//! Not `k8s-openapi`: a watch over a namespace keeps every object of it in memory, and a full `Pod` is mostly fields that
//! nobody here reads (managed fields, volumes, environment). Unknown fields are skipped while decoding. Go writes `null`
//! for an empty list without `omitempty` (an EndpointSlice without endpoints), hence [`nullable`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

/// What all objects have in common, so that one store serves every kind.
pub(super) trait Object:
    serde::de::DeserializeOwned + Clone + PartialEq + Send + Sync + 'static
{
    /// Name, uid, version.
    fn meta(&self) -> &Meta;
    /// To take the resource version out, which changes without anything else changing.
    fn meta_mut(&mut self) -> &mut Meta;
    /// Who is interested in it: the name of the Service for what belongs to one.
    fn group(&self) -> &str {
        &self.meta().name
    }
}

macro_rules! object {
    ($($kind:ty),+) => {
        $(impl Object for $kind {
            fn meta(&self) -> &Meta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut Meta {
                &mut self.metadata
            }
        })+
    };
}

object!(Service, Pod, Workload, ReplicaSet);

impl Object for Slice {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.metadata
    }
    fn group(&self) -> &str {
        self.metadata.labels.service_name.as_deref().unwrap_or_default()
    }
}

/// `null` and an absent field are both the default.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Object metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) name: Arc<str>,
    pub(super) uid: Arc<str>,
    /// Only for resuming a watch; emptied before the object is stored or compared.
    pub(super) resource_version: String,
    /// Present from the moment of the deletion until the object is gone.
    pub(super) deletion_timestamp: Option<Box<str>>,
    #[serde(deserialize_with = "nullable")]
    pub(super) labels: Labels,
    #[serde(deserialize_with = "nullable")]
    pub(super) owner_references: Vec<OwnerReference>,
}

impl Meta {
    /// The one owner that controls the object, if any.
    pub(super) fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

/// The two labels that are read; the server does the selecting.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Labels {
    /// Which Service an EndpointSlice belongs to.
    #[serde(rename = "kubernetes.io/service-name")]
    pub(super) service_name: Option<Arc<str>>,
    /// The suffix that the Deployment controller gave to a pod's ReplicaSet.
    #[serde(rename = "pod-template-hash")]
    pub(super) pod_template_hash: Option<Arc<str>>,
}

/// One owner of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct OwnerReference {
    pub(super) kind: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) uid: Arc<str>,
    pub(super) controller: bool,
}

/// A number or the name of a container port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum TargetPort {
    Number(u16),
    Name(Box<str>),
}

/// `v1` Service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    pub(super) metadata: Meta,
    pub(super) spec: ServiceSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(super) kind: Box<str>,
    pub(super) external_name: Box<str>,
    #[serde(deserialize_with = "nullable")]
    pub(super) selector: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) ports: Vec<ServicePort>,
    pub(super) publish_not_ready_addresses: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServicePort {
    /// Empty where a Service has a single, unnamed port.
    pub(super) name: Box<str>,
    /// Empty is TCP.
    pub(super) protocol: Box<str>,
    pub(super) port: u16,
    /// Absent is the same number as `port`.
    pub(super) target_port: Option<TargetPort>,
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Slice {
    pub(super) metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub(super) endpoints: Vec<SliceEndpoint>,
    #[serde(deserialize_with = "nullable")]
    pub(super) ports: Vec<SlicePort>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SliceEndpoint {
    /// IP addresses or a host name; read only to say what is there instead of a pod.
    #[serde(deserialize_with = "nullable")]
    pub(super) addresses: Vec<Box<str>>,
    #[serde(deserialize_with = "nullable")]
    pub(super) conditions: SliceConditions,
    pub(super) target_ref: Option<TargetRef>,
    pub(super) node_name: Option<Arc<str>>,
}

/// Three-valued: absent `ready` counts as ready, absent `serving` as `ready`, absent `terminating` as no
/// (API reference of `EndpointConditions`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct SliceConditions {
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct TargetRef {
    pub(super) kind: Box<str>,
    pub(super) namespace: Option<Arc<str>>,
    pub(super) name: Arc<str>,
    pub(super) uid: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct SlicePort {
    /// The Service port's name; empty or absent where that has none.
    pub(super) name: Option<Box<str>>,
    pub(super) protocol: Option<Box<str>>,
    /// Absent means every port.
    pub(super) port: Option<u16>,
}

/// `v1` Pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) metadata: Meta,
    pub(super) spec: PodSpec,
    pub(super) status: PodStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub(super) node_name: Option<Arc<str>>,
    #[serde(deserialize_with = "nullable")]
    pub(super) containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub(super) init_containers: Vec<Container>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    /// `Always` makes an init container a sidecar, whose ports count.
    pub(super) restart_policy: Option<Box<str>>,
    #[serde(deserialize_with = "nullable")]
    pub(super) ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ContainerPort {
    pub(super) name: Box<str>,
    pub(super) container_port: u16,
    /// Empty is TCP.
    pub(super) protocol: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus {
    pub(super) phase: Box<str>,
    pub(super) reason: Box<str>,
    pub(super) message: Box<str>,
    #[serde(deserialize_with = "nullable")]
    pub(super) conditions: Vec<PodCondition>,
    #[serde(deserialize_with = "nullable")]
    pub(super) container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "nullable")]
    pub(super) init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodCondition {
    #[serde(rename = "type")]
    pub(super) kind: Box<str>,
    pub(super) status: Box<str>,
    pub(super) reason: Box<str>,
    pub(super) message: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ContainerStatus {
    pub(super) name: Box<str>,
    pub(super) ready: bool,
    pub(super) started: Option<bool>,
    pub(super) restart_count: u32,
    #[serde(deserialize_with = "nullable")]
    pub(super) state: ContainerState,
    #[serde(deserialize_with = "nullable")]
    pub(super) last_state: ContainerState,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerState {
    pub(super) waiting: Option<Waiting>,
    pub(super) running: Option<Running>,
    pub(super) terminated: Option<Terminated>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Waiting {
    pub(super) reason: Box<str>,
    pub(super) message: Box<str>,
}

/// Its fields are of no interest, only that it is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(super) struct Running {}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Terminated {
    pub(super) exit_code: i32,
    pub(super) reason: Box<str>,
}

/// Deployment, StatefulSet, DaemonSet, ReplicaSet or Job: all keep their pods' selector in the same place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Workload {
    pub(super) metadata: Meta,
    pub(super) spec: WorkloadSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct WorkloadSpec {
    /// Absent for a DaemonSet and a Job.
    pub(super) replicas: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub(super) selector: LabelSelector,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LabelSelector {
    #[serde(deserialize_with = "nullable")]
    pub(super) match_labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) match_expressions: Vec<LabelRequirement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct LabelRequirement {
    pub(super) key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`.
    pub(super) operator: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) values: Vec<String>,
}

/// A ReplicaSet's metadata: only its owner is read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReplicaSet {
    pub(super) metadata: Meta,
}

/// Whether a port's protocol is one that a port-forward carries.
pub(super) fn is_tcp(protocol: &str) -> bool {
    protocol.is_empty() || protocol == "TCP"
}
