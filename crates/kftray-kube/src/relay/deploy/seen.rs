//! What Deploy reads of the cluster's objects while it watches them, in the manner of [`crate::resolve::object`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use crate::resolve::object::{ContainerStatus, Meta, Object, PodStatus};

macro_rules! object {
    ($($kind:ty),+) => {
        $(impl Object for $kind {
            fn meta(&self) -> &Meta {
                &self.metadata.meta
            }
            fn meta_mut(&mut self) -> &mut Meta {
                &mut self.metadata.meta
            }
        })+
    };
}

object!(Pod, Job, Event, Ingress, Certificate, Named);

impl Object for IngressClass {
    fn meta(&self) -> &Meta {
        &self.metadata.meta
    }
    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.metadata.meta
    }
    /// All of them concern everybody.
    fn group(&self) -> &str {
        ""
    }
}

/// Metadata with everything that is written on the object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    #[serde(flatten)]
    pub(super) meta: Meta,
    #[serde(deserialize_with = "nullable")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) creation_timestamp: String,
}

/// A relay's pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    pub(super) spec: PodSpec,
    pub(super) status: PodStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub(super) node_name: Option<Arc<str>>,
    #[serde(deserialize_with = "nullable")]
    pub(super) containers: Vec<Container>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
}

/// A relay's Job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Job {
    pub(super) metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    pub(super) status: JobStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct JobStatus {
    #[serde(deserialize_with = "nullable")]
    pub(super) conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

/// `v1` Event.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Event {
    pub(super) metadata: Metadata,
    pub(super) reason: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) message: String,
    #[serde(deserialize_with = "nullable")]
    last_timestamp: String,
    #[serde(deserialize_with = "nullable")]
    event_time: String,
}

impl Event {
    /// When it happened last, as text that sorts; only to the second, since the fields differ in what follows.
    pub(super) fn when(&self) -> &str {
        let times = [&self.last_timestamp, &self.event_time, &self.metadata.creation_timestamp];
        let time = times.into_iter().find(|time| !time.is_empty()).map_or("", String::as_str);
        time.get(.."2026-01-01T00:00:00".len()).unwrap_or(time)
    }
}

/// `networking.k8s.io/v1` Ingress: where its controller serves it, once one does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ingress {
    pub(super) metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    pub(super) status: IngressStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct IngressStatus {
    #[serde(deserialize_with = "nullable")]
    pub(super) load_balancer: LoadBalancer,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct LoadBalancer {
    #[serde(deserialize_with = "nullable")]
    pub(super) ingress: Vec<IngressAddress>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct IngressAddress {
    pub(super) ip: String,
    pub(super) hostname: String,
}

/// `networking.k8s.io/v1` IngressClass.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct IngressClass {
    pub(super) metadata: Metadata,
}

/// `cert-manager.io/v1` Certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Certificate {
    pub(super) metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    pub(super) status: CertificateStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct CertificateStatus {
    #[serde(deserialize_with = "nullable")]
    pub(super) conditions: Vec<Condition>,
}

/// An object of which only its being there counts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    pub(super) metadata: Metadata,
}

impl IngressClass {
    /// Serves Ingresses that name no class.
    pub(super) fn is_default(&self) -> bool {
        let marked = self.metadata.annotations.get("ingressclass.kubernetes.io/is-default-class");
        marked.is_some_and(|value| value == "true")
    }
}

impl Certificate {
    /// Whether it is issued, and what cert-manager says about it.
    pub(super) fn ready(&self) -> (bool, &str) {
        let condition = self.status.conditions.iter().find(|condition| condition.kind == "Ready");
        condition.map_or((false, ""), |condition| (condition.status == "True", &condition.message))
    }
}

impl Job {
    /// Why it does nothing any more: its failure's reason and message, empty if it ended well. `None` while it lives.
    pub(super) fn end(&self) -> Option<(&str, &str)> {
        let ended = self.status.conditions.iter().find(|condition| {
            condition.status == "True"
                && matches!(
                    condition.kind.as_str(),
                    "Complete" | "SuccessCriteriaMet" | "Failed" | "FailureTarget"
                )
        })?;
        let failed = ended.kind.starts_with("Fail");
        Some(if failed { (&ended.reason, &ended.message) } else { ("", "") })
    }

    pub(super) fn is_being_deleted(&self) -> bool {
        self.metadata.meta.deletion_timestamp.is_some()
    }
}

impl Pod {
    /// The status of the relay's container; meshes add others.
    pub(super) fn container(&self) -> Option<&ContainerStatus> {
        let statuses = &self.status.container_statuses;
        statuses.iter().find(|status| &*status.name == super::manifest::PROGRAM).or_else(|| statuses.first())
    }

    pub(super) fn image(&self) -> &str {
        let containers = &self.spec.containers;
        let own = containers.iter().find(|container| container.name == super::manifest::PROGRAM);
        own.or_else(|| containers.first()).map_or("", |container| &container.image)
    }

    /// Whether a condition has that status.
    pub(super) fn condition(&self, kind: &str, status: &str) -> Option<&str> {
        let mut conditions = self.status.conditions.iter();
        conditions.find(|one| &*one.kind == kind && &*one.status == status).map(|one| &*one.message)
    }

    pub(super) fn is_being_deleted(&self) -> bool {
        self.metadata.meta.deletion_timestamp.is_some()
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(&*self.status.phase, "Succeeded" | "Failed")
    }

    /// Takes tunnels: the program runs and its startup probe has passed. Not the Ready condition, which also says whether
    /// callers of an expose find somebody at the other end.
    pub(super) fn is_up(&self) -> bool {
        let started = self.container().is_some_and(|container| {
            container.state.running.is_some() && container.started.unwrap_or(container.ready)
        });
        started && !self.is_over() && !self.is_being_deleted()
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
