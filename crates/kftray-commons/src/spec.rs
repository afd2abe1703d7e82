//! What a forward is, once it has been understood: one enum with the data of each workload kind, so that a pod selector
//! cannot sit beside a proxy address.
//!
//! Leniency belongs to [`crate::border`]; what is in a [`ForwardSpec`] is meant as it stands. [`ForwardSpec::check`]
//! says what would not work. The field names in its answers are those of the reference's JSON, since that is what people
//! write.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::tags::Tags;
use crate::target::{ClusterRef, RemotePort, Target, TargetObject, WorkloadKind};

/// Number of a forward among those that one owner keeps. Not an identity across machines or files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct ForwardId(pub u64);

/// One forward as somebody wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardSpec {
    /// Number given by whoever keeps the forward.
    pub id: ForwardId,
    /// What people call it; with `domain_enabled` also a host name, and for an expose the name in the cluster.
    pub alias: Option<String>,
    /// The cluster.
    pub cluster: ClusterRef,
    /// Namespace; `None` is the context's namespace, else `default`.
    pub namespace: Option<String>,
    /// What is forwarded.
    pub workload: Workload,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Which way TCP takes to a pod. UDP and proxies always go by way of the relay.
    #[serde(default)]
    pub via: Via,
    /// Where this machine listens. Means nothing for an expose, whose direction is the other.
    pub listen: Listen,
    /// Marks for grouping and filtering.
    pub tags: Tags,
    /// Whether the alias shall become a host name on this machine.
    pub domain_enabled: bool,
    /// Whether and how HTTP requests are recorded.
    pub http_logs: HttpLogs,
}

/// What is at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Workload {
    /// The pods behind a Service.
    Service {
        /// The Service's name.
        name: String,
        /// Its port, or a container's.
        port: RemotePort,
    },
    /// A pod, or pods by label.
    Pod {
        /// Which.
        pods: Pods,
        /// The container's port.
        port: RemotePort,
    },
    /// The pods of a Deployment or the like.
    Owner {
        /// Kind of the owner.
        owner: WorkloadKind,
        /// Its name.
        name: String,
        /// The container's port.
        port: RemotePort,
    },
    /// A host that the cluster reaches, by way of the relay.
    Proxy {
        /// Host name or IP address as the cluster sees it, without brackets.
        host: String,
        /// Its port.
        port: NonZeroU16,
    },
    /// The other direction: a program on this machine, made reachable in the cluster.
    Expose(Expose),
}

/// Which way the connections of a forward go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Direction<'a> {
    /// From this machine to an object in the cluster, or a host that it reaches, and its port.
    ToCluster(TargetObject, RemotePort),
    /// From the cluster to a program on this machine.
    FromCluster(&'a Expose),
}

/// How pods are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pods {
    /// By name.
    Name(String),
    /// By label selector, in `kubectl -l` syntax.
    Selector(String),
}

/// Transport protocol of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP, by way of the relay.
    Udp,
}

/// Which way TCP connections take to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// A port-forward to the pod itself.
    #[default]
    Direct,
    /// A port-forward to the relay, which connects to the pod: no thread of the container runtime per connection, true
    /// half-close. Starts a relay if none is there.
    Relay,
    /// The relay if one is there, else direct.
    Auto,
}

/// Where this machine listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// IP addresses or host names; `localhost` is both 127.0.0.1 and ::1. Never empty.
    pub hosts: Vec<String>,
    /// The port.
    pub port: LocalPort,
    /// Whether a loopback address of its own is wanted instead of `hosts`.
    pub auto_loopback: bool,
}

/// A local port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalPort {
    /// Whichever is free when it starts.
    Random,
    /// This one, never silently another.
    Fixed(NonZeroU16),
}

/// A local program made reachable in the cluster or beyond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expose {
    /// Host on which the local program listens.
    pub local_host: String,
    /// Its port; also the port of the Service in the cluster.
    pub local_port: NonZeroU16,
    /// The local program speaks TLS (`local_address` begins with `https://`).
    #[serde(default)]
    pub local_tls: bool,
    /// Who may reach it.
    pub exposure: Exposure,
    /// What callers must bring along, and for how long it is open to them.
    #[serde(default)]
    pub access: Access,
}

/// Who may reach an exposed program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum Exposure {
    /// The cluster, through a Service.
    Internal {
        /// What the Service carries.
        protocol: ExposeProtocol,
    },
    /// The internet, through an Ingress (HTTP only).
    Public {
        /// What the Ingress controller is to speak to the program; never [`ExposeProtocol::Tcp`].
        #[serde(default)]
        protocol: ExposeProtocol,
        /// `ingressClassName`; `None` is the cluster's default class.
        ingress_class: Option<String>,
        /// Annotations for the Ingress.
        annotations: BTreeMap<String, String>,
        /// TLS from cert-manager, if wanted.
        certificate: Option<Certificate>,
    },
}

/// What the Service of an expose carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExposeProtocol {
    /// HTTP.
    #[default]
    Http,
    /// HTTP/2 from the first byte, without TLS: what gRPC programs speak.
    H2c,
    /// Anything over TCP.
    Tcp,
}

/// Who issues the certificate of a public expose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Name of the cert-manager issuer.
    pub issuer: String,
    /// Its kind.
    pub kind: IssuerKind,
}

/// Kind of a cert-manager issuer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum IssuerKind {
    /// In the same namespace.
    Issuer,
    /// For the whole cluster.
    #[default]
    ClusterIssuer,
}

/// Recording of HTTP requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpLogs {
    /// Whether requests are recorded.
    pub enabled: bool,
    /// Largest log file, in bytes, 1 to [`HttpLogs::FILE_SIZE_MAX`].
    pub max_file_size: u64,
    /// Days after which a log file is removed, 1 to [`HttpLogs::RETENTION_MAX`].
    pub retention_days: u16,
    /// Whether old files are removed at all.
    pub auto_cleanup: bool,
}

impl HttpLogs {
    /// 100 MiB, the reference's limit.
    pub const FILE_SIZE_MAX: u64 = 100 * 1024 * 1024;
    /// A year, the reference's limit.
    pub const RETENTION_MAX: u16 = 365;
}

impl Default for HttpLogs {
    /// The reference's defaults: off; 10 MiB, a week, cleaned.
    fn default() -> Self {
        Self { enabled: false, max_file_size: 10 * 1024 * 1024, retention_days: 7, auto_cleanup: true }
    }
}

impl Listen {
    /// The host that is listened on when nothing is said.
    pub const DEFAULT_HOST: &'static str = "localhost";
}

impl Default for Listen {
    fn default() -> Self {
        Self { hosts: vec![Self::DEFAULT_HOST.to_owned()], port: LocalPort::Random, auto_loopback: false }
    }
}

impl LocalPort {
    /// The number to bind: 0 lets the system choose.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Random => 0,
            Self::Fixed(port) => port.get(),
        }
    }
}

impl From<u16> for LocalPort {
    fn from(number: u16) -> Self {
        NonZeroU16::new(number).map_or(Self::Random, Self::Fixed)
    }
}

impl Workload {
    /// The same kind of thing for a target. `None` for a host with a named port: hosts have no port names.
    #[must_use]
    pub fn of(object: TargetObject, port: RemotePort) -> Option<Self> {
        Some(match object {
            TargetObject::Service(name) => Self::Service { name, port },
            TargetObject::Pod(name) => Self::Pod { pods: Pods::Name(name), port },
            TargetObject::Labels(selector) => Self::Pod { pods: Pods::Selector(selector), port },
            TargetObject::Workload { kind, name } => Self::Owner { owner: kind, name, port },
            TargetObject::Host(host) => match port {
                RemotePort::Number(port) => Self::Proxy { host, port },
                RemotePort::Name(_) => return None,
            },
        })
    }

    /// Which way connections go.
    #[must_use]
    pub fn direction(&self) -> Direction<'_> {
        let (object, port) = match self {
            Self::Service { name, port } => (TargetObject::Service(name.clone()), port.clone()),
            Self::Pod { pods: Pods::Name(name), port } => (TargetObject::Pod(name.clone()), port.clone()),
            Self::Pod { pods: Pods::Selector(selector), port } => {
                (TargetObject::Labels(selector.clone()), port.clone())
            }
            Self::Owner { owner, name, port } => {
                (TargetObject::Workload { kind: *owner, name: name.clone() }, port.clone())
            }
            Self::Proxy { host, port } => (TargetObject::Host(host.clone()), RemotePort::Number(*port)),
            Self::Expose(expose) => return Direction::FromCluster(expose),
        };
        Direction::ToCluster(object, port)
    }

    /// What is connected to and its port, where something is: not for an expose.
    #[must_use]
    pub fn object(&self) -> Option<(TargetObject, RemotePort)> {
        match self.direction() {
            Direction::ToCluster(object, port) => Some((object, port)),
            Direction::FromCluster(_) => None,
        }
    }

    /// The kind in one word, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Service { .. } => "service",
            Self::Pod { .. } => "pod",
            Self::Owner { owner, .. } => owner.as_str(),
            Self::Proxy { .. } => "proxy",
            Self::Expose(_) => "expose",
        }
    }
}

impl ForwardSpec {
    /// A TCP forward with nothing but the given.
    #[must_use]
    pub fn new(id: ForwardId, workload: Workload) -> Self {
        Self {
            id,
            alias: None,
            cluster: ClusterRef::default(),
            namespace: None,
            workload,
            protocol: Protocol::Tcp,
            via: Via::Direct,
            listen: Listen::default(),
            tags: Tags::new(),
            domain_enabled: false,
            http_logs: HttpLogs::default(),
        }
    }

    /// What has to be resolved in the cluster, where the forward goes there: not for an expose.
    #[must_use]
    pub fn target(&self) -> Option<(Target, RemotePort)> {
        let (object, port) = self.workload.object()?;
        let target = Target { cluster: self.cluster.clone(), namespace: self.namespace.clone(), object };
        Some((target, port))
    }

    /// What people see: the alias, else target and remote port with kubectl's short kinds (`svc/web:80`).
    #[must_use]
    pub fn label(&self) -> String {
        self.alias.clone().unwrap_or_else(|| self.workload.to_string())
    }
}

impl fmt::Display for Workload {
    /// `svc/web:80`, `pod/x:80`, `app=web:80`, `deploy/y:http`, `proxy/host:443`, `expose/localhost:3000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { name, port } => write!(f, "svc/{name}:{port}"),
            Self::Pod { pods: Pods::Name(name), port } => write!(f, "pod/{name}:{port}"),
            Self::Pod { pods: Pods::Selector(selector), port } => write!(f, "{selector}:{port}"),
            Self::Owner { owner, name, port } => write!(f, "{}/{name}:{port}", owner.short()),
            Self::Proxy { host, port } => write!(f, "proxy/{host}:{port}"),
            Self::Expose(expose) => write!(f, "expose/{}:{}", expose.local_host, expose.local_port),
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Auto => "auto",
        })
    }
}

impl Expose {
    /// What its Service carries.
    #[must_use]
    pub fn protocol(&self) -> ExposeProtocol {
        match self.exposure {
            Exposure::Internal { protocol } | Exposure::Public { protocol, .. } => protocol,
        }
    }

    /// Whether HTTP is carried. Requests of HTTP/1 are looked at.
    #[must_use]
    pub fn is_http(&self) -> bool {
        self.protocol() != ExposeProtocol::Tcp
    }

    /// Whether it is open to the internet.
    #[must_use]
    pub fn is_public(&self) -> bool {
        matches!(self.exposure, Exposure::Public { .. })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}
