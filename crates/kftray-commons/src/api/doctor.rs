//! What a doctor finds: everything that a forward needs, looked at one by one. Written for tickets, so nothing in it may be
//! secret: names of variables without their values, what a login comes from without the login.

use serde::{Deserialize, Serialize};

use super::{EndpointInfo, Millis};
use crate::problem::Problem;
use crate::spec::ForwardId;

/// What shall be looked at. `POST /v1/doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct DoctorRequest {
    /// Only these contexts, and forwards of them; empty: those of the configs, and the current one.
    pub contexts: Vec<String>,
    /// Kubeconfig path list for `contexts`; none is `KUBECONFIG`, else `~/.kube/config`.
    pub kubeconfig: Option<String>,
    /// Only these forwards, by alias or label; empty: all.
    pub labels: Vec<String>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct DoctorReport {
    /// When.
    pub at: Millis,
    /// Version of the program that looked.
    pub version: String,
    /// Operating system and architecture.
    pub system: String,
    /// Each context once.
    pub contexts: Vec<ContextReport>,
    /// Each forward.
    pub forwards: Vec<ForwardReport>,
}

/// One context of a kubeconfig.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ContextReport {
    /// As asked for; none: the current one.
    pub asked: Option<String>,
    /// Its name, where the kubeconfig could be read.
    pub name: Option<String>,
    /// The path list that was asked for, if one was.
    pub kubeconfig: Option<String>,
    /// The files that are looked for, in order.
    pub paths: Vec<String>,
    /// The cluster's name in the kubeconfig.
    pub cluster: Option<String>,
    /// The user's name in the kubeconfig.
    pub user: Option<String>,
    /// The context's namespace.
    pub namespace: Option<String>,
    /// The server's URL.
    pub server: Option<String>,
    /// Where the login comes from.
    pub login: Option<LoginReport>,
    /// `direct`, or the proxy and where it was configured, without its password.
    pub route: Option<String>,
    /// The protocol that the next connection begins with.
    pub transport: Option<String>,
    /// Why that one.
    pub transport_reason: Option<String>,
    /// What the server says of itself, where it answered.
    pub server_version: Option<String>,
    /// How long its answer took, login and connection included.
    pub answered_ms: Option<u64>,
    /// How far its clock is ahead of ours, in seconds; negative: behind.
    pub clock_skew_seconds: Option<i64>,
    /// What is wrong, worst first; empty: all is well.
    pub problems: Vec<Problem>,
}

/// A login, without the login.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct LoginReport {
    /// Of what kind, in words.
    pub kind: String,
    /// The credential plugin, where there is one.
    pub plugin: Option<PluginReport>,
    /// When the login ends, where that is known.
    pub expires_at: Option<Millis>,
}

/// A credential plugin.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct PluginReport {
    /// As the kubeconfig writes it, without arguments.
    pub command: String,
    /// The program that is run; none: it is not there.
    pub path: Option<String>,
    /// Names of the variables that the kubeconfig sets for it.
    pub variables: Vec<String>,
    /// How long its last run took.
    pub took_ms: Option<u64>,
}

/// One forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForwardReport {
    /// Which.
    pub id: ForwardId,
    /// What people call it.
    pub label: String,
    /// What it goes to.
    pub target: String,
    /// The context as it asks for it; none: the current one.
    #[serde(default)]
    pub context: Option<String>,
    /// The namespace that counts.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Its local addresses.
    #[serde(default)]
    pub local: Vec<LocalReport>,
    /// What it needs permission for.
    #[serde(default)]
    pub permissions: Vec<Permission>,
    /// The pods behind it.
    #[serde(default)]
    pub endpoints: Vec<EndpointInfo>,
    /// What is wrong, worst first; empty: all is well.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// One local address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LocalReport {
    /// `address:port`.
    pub address: String,
    /// Who has it.
    pub holder: Holder,
    /// The program that has it, where it is another and can be found out.
    #[serde(default)]
    pub owner: Option<String>,
}

/// Who has a local address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// The forward itself, which runs.
    Ours,
    /// Nobody.
    Free,
    /// Another program.
    Taken,
    /// It cannot be bound at all.
    Unavailable,
    /// A holder that this build does not know.
    #[serde(other)]
    Unknown,
}

/// Whether something is permitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Permission {
    /// `get`, `list`, `watch`, `create`.
    pub verb: String,
    /// Plural with subresource, and group: `pods/portforward`, `endpointslices.discovery.k8s.io`.
    pub resource: String,
    /// Whether it is.
    pub granted: Granted,
    /// What the forward does without it: nothing at all, or something less.
    pub need: Need,
}

/// An answer about a permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Granted {
    /// Yes.
    Yes,
    /// No.
    No,
    /// The cluster does not tell.
    Unknown,
}

/// How much a forward needs a permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// It does not work without.
    Must,
    /// It works without, with less: changes are noticed later, reasons are not told.
    Better,
    /// A need that this build does not know.
    #[serde(other)]
    Other,
}

impl DoctorReport {
    /// Whether nothing stands in the way of any forward.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.contexts.iter().all(|context| context.problems.is_empty())
            && self.forwards.iter().all(|forward| forward.problems.is_empty())
    }
}
