//! The kinds of objects the cluster knows, and how the API spells them.

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1 Namespace`
    Namespace,
    /// `v1 Node`
    Node,
    /// `v1 Pod`
    Pod,
    /// `v1 Service`
    Service,
    /// `discovery.k8s.io/v1 EndpointSlice`
    EndpointSlice,
    /// `apps/v1 Deployment`
    Deployment,
    /// `apps/v1 ReplicaSet`
    ReplicaSet,
    /// `apps/v1 StatefulSet`
    StatefulSet,
    /// `apps/v1 DaemonSet`
    DaemonSet,
    /// `batch/v1 Job`
    Job,
    /// `v1 Event`; none are made by the cluster itself
    Event,
    /// `v1 Secret`
    Secret,
    /// `networking.k8s.io/v1 Ingress`; nothing serves it
    Ingress,
    /// `networking.k8s.io/v1 IngressClass`
    IngressClass,
    /// `networking.k8s.io/v1 NetworkPolicy`; nothing enforces it
    NetworkPolicy,
    /// `rbac.authorization.k8s.io/v1 Role`; rights are given by [`Rule`](crate::Rule)s
    Role,
    /// `rbac.authorization.k8s.io/v1 RoleBinding`; likewise
    RoleBinding,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::Deployment,
        Self::ReplicaSet,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::Job,
        Self::Event,
        Self::Secret,
        Self::Ingress,
        Self::IngressClass,
        Self::NetworkPolicy,
        Self::Role,
        Self::RoleBinding,
    ];

    /// The API group; empty for the core group.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::Event | Self::Secret => "",
            Self::Ingress | Self::IngressClass | Self::NetworkPolicy => "networking.k8s.io",
            Self::Role | Self::RoleBinding => "rbac.authorization.k8s.io",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::Deployment | Self::ReplicaSet | Self::StatefulSet | Self::DaemonSet => "apps",
            Self::Job => "batch",
        }
    }

    /// `apiVersion` of an object.
    #[must_use]
    pub fn api_version(self) -> String {
        if self.group().is_empty() { "v1".to_owned() } else { format!("{}/v1", self.group()) }
    }

    /// The name in URLs and in RBAC rules.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Deployment => "deployments",
            Self::ReplicaSet => "replicasets",
            Self::StatefulSet => "statefulsets",
            Self::DaemonSet => "daemonsets",
            Self::Job => "jobs",
            Self::Event => "events",
            Self::Secret => "secrets",
            Self::Ingress => "ingresses",
            Self::IngressClass => "ingressclasses",
            Self::NetworkPolicy => "networkpolicies",
            Self::Role => "roles",
            Self::RoleBinding => "rolebindings",
        }
    }

    /// `kind` of an object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::Job => "Job",
            Self::Event => "Event",
            Self::Secret => "Secret",
            Self::Ingress => "Ingress",
            Self::IngressClass => "IngressClass",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Role => "Role",
            Self::RoleBinding => "RoleBinding",
        }
    }

    /// What kubectl accepts besides.
    #[must_use]
    pub const fn short_names(self) -> &'static [&'static str] {
        match self {
            Self::Namespace => &["ns"],
            Self::Node => &["no"],
            Self::Pod => &["po"],
            Self::Service => &["svc"],
            Self::Deployment => &["deploy"],
            Self::ReplicaSet => &["rs"],
            Self::StatefulSet => &["sts"],
            Self::DaemonSet => &["ds"],
            Self::Event => &["ev"],
            Self::Ingress => &["ing"],
            Self::NetworkPolicy => &["netpol"],
            Self::EndpointSlice
            | Self::Job
            | Self::Secret
            | Self::IngressClass
            | Self::Role
            | Self::RoleBinding => &[],
        }
    }

    /// Lives in a namespace.
    #[must_use]
    pub const fn namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::IngressClass)
    }

    /// By group and plural name, as in a URL.
    #[must_use]
    pub fn find(group: &str, plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.group() == group && kind.plural() == plural)
    }

    /// By `kind` of an object.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}
