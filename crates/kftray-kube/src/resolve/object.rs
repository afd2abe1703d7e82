//! The few fields of Kubernetes objects that resolving needs, decoded straight from the wire.
//!
//! Not `k8s-openapi`: a watch over a namespace keeps every object of it in memory, and a full `Pod` is mostly fields that
//! nobody here reads (managed fields, volumes, environment). Unknown fields are skipped while decoding. Go writes `null`
//! for an empty list without `omitempty` (an EndpointSlice without endpoints), hence [`nullable`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

/// What all objects have in common, so that one store serves every kind.
pub(crate) trait Object:
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
pub(crate) struct Meta {
    pub(crate) name: Arc<str>,
    pub(crate) uid: Arc<str>,
    /// Only for resuming a watch; emptied before the object is stored or compared.
    pub(crate) resource_version: String,
    /// Present from the moment of the deletion until the object is gone.
    pub(crate) deletion_timestamp: Option<Box<str>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) labels: Labels,
    #[serde(deserialize_with = "nullable")]
    pub(crate) owner_references: Vec<OwnerReference>,
}

impl Meta {
    /// The one owner that controls the object, if any.
    pub(crate) fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

/// The two labels that are read; the server does the selecting.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Labels {
    /// Which Service an EndpointSlice belongs to.
    #[serde(rename = "kubernetes.io/service-name")]
    pub(crate) service_name: Option<Arc<str>>,
    /// The suffix that the Deployment controller gave to a pod's ReplicaSet.
    #[serde(rename = "pod-template-hash")]
    pub(crate) pod_template_hash: Option<Arc<str>>,
}

/// One owner of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OwnerReference {
    pub(crate) kind: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) uid: Arc<str>,
    pub(crate) controller: bool,
}

/// A number or the name of a container port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum TargetPort {
    Number(u16),
    Name(Box<str>),
}

/// `v1` Service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(crate) metadata: Meta,
    pub(crate) spec: ServiceSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(crate) kind: Box<str>,
    pub(crate) external_name: Box<str>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) selector: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) publish_not_ready_addresses: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServicePort {
    /// Empty where a Service has a single, unnamed port.
    pub(crate) name: Box<str>,
    /// Empty is TCP.
    pub(crate) protocol: Box<str>,
    pub(crate) port: u16,
    /// Absent is the same number as `port`.
    pub(crate) target_port: Option<TargetPort>,
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Slice {
    pub(crate) metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub(crate) endpoints: Vec<SliceEndpoint>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<SlicePort>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SliceEndpoint {
    /// IP addresses or a host name; read only to say what is there instead of a pod.
    #[serde(deserialize_with = "nullable")]
    pub(crate) addresses: Vec<Box<str>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: SliceConditions,
    pub(crate) target_ref: Option<TargetRef>,
    pub(crate) node_name: Option<Arc<str>>,
}

/// Three-valued: absent `ready` counts as ready, absent `serving` as `ready`, absent `terminating` as no
/// (API reference of `EndpointConditions`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SliceConditions {
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
    pub(crate) terminating: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TargetRef {
    pub(crate) kind: Box<str>,
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) name: Arc<str>,
    pub(crate) uid: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SlicePort {
    /// The Service port's name; empty or absent where that has none.
    pub(crate) name: Option<Box<str>>,
    pub(crate) protocol: Option<Box<str>>,
    /// Absent means every port.
    pub(crate) port: Option<u16>,
}

/// `v1` Pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) metadata: Meta,
    pub(crate) spec: PodSpec,
    pub(crate) status: PodStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<Arc<str>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) init_containers: Vec<Container>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Container {
    /// `Always` makes an init container a sidecar, whose ports count.
    pub(crate) restart_policy: Option<Box<str>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerPort {
    pub(crate) name: Box<str>,
    pub(crate) container_port: u16,
    /// Empty is TCP.
    pub(crate) protocol: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    pub(crate) phase: Box<str>,
    /// Empty until it has one. Read by the relay's way only.
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: Box<str>,
    pub(crate) reason: Box<str>,
    pub(crate) message: Box<str>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<PodCondition>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodCondition {
    #[serde(rename = "type")]
    pub(crate) kind: Box<str>,
    pub(crate) status: Box<str>,
    pub(crate) reason: Box<str>,
    pub(crate) message: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerStatus {
    pub(crate) name: Box<str>,
    pub(crate) ready: bool,
    pub(crate) started: Option<bool>,
    pub(crate) restart_count: u32,
    #[serde(deserialize_with = "nullable")]
    pub(crate) state: ContainerState,
    #[serde(deserialize_with = "nullable")]
    pub(crate) last_state: ContainerState,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ContainerState {
    pub(crate) waiting: Option<Waiting>,
    pub(crate) running: Option<Running>,
    pub(crate) terminated: Option<Terminated>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Waiting {
    pub(crate) reason: Box<str>,
    pub(crate) message: Box<str>,
}

/// Its fields are of no interest, only that it is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Running {}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Terminated {
    pub(crate) exit_code: i32,
    pub(crate) reason: Box<str>,
}

/// Deployment, StatefulSet, DaemonSet, ReplicaSet or Job: all keep their pods' selector in the same place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Workload {
    pub(crate) metadata: Meta,
    pub(crate) spec: WorkloadSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WorkloadSpec {
    /// Absent for a DaemonSet and a Job.
    pub(crate) replicas: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) selector: LabelSelector,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LabelSelector {
    #[serde(deserialize_with = "nullable")]
    pub(crate) match_labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) match_expressions: Vec<LabelRequirement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LabelRequirement {
    pub(crate) key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`.
    pub(crate) operator: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) values: Vec<String>,
}

/// A ReplicaSet's metadata: only its owner is read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReplicaSet {
    pub(crate) metadata: Meta,
}

/// Whether a port's protocol is one that a port-forward carries.
pub(crate) fn is_tcp(protocol: &str) -> bool {
    protocol.is_empty() || protocol == "TCP"
}
