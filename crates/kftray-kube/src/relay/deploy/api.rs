//! Requests for objects as JSON: what a user's patch adds must arrive as it was written, and typed objects drop what they
//! do not know.

use std::time::Duration;

use kftray_commons::{Code, Problem};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::core::params::{GetParams, Preconditions};
use serde_json::Value;

use super::refusal::{self, Tried};

/// Longest wait for an answer; the client's own pings notice a dead connection much earlier.
const ANSWER: Duration = Duration::from_secs(30);

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// Path up to the namespace.
    path: &'static str,
    plural: &'static str,
    /// Plural with group, as Roles name it.
    pub(super) resource: &'static str,
    /// `kind` of an object.
    pub(super) name: &'static str,
}

impl Kind {
    /// For sentences.
    pub(super) fn word(&self) -> String {
        self.name.to_lowercase()
    }

    /// By `kind` of an object.
    pub(super) fn of(object: &Value) -> Option<Self> {
        ALL.into_iter().find(|kind| object["kind"] == kind.name)
    }
}

macro_rules! kinds {
    ($($constant:ident = $name:literal, $path:literal, $plural:literal, $resource:literal;)+) => {
        $(pub(super) const $constant: Kind =
            Kind { path: $path, plural: $plural, resource: $resource, name: $name };)+
        const ALL: [Kind; [$($name),+].len()] = [$($constant),+];
    };
}

kinds! {
    NAMESPACES = "Namespace", "api/v1", "namespaces", "namespaces";
    PODS = "Pod", "api/v1", "pods", "pods";
    SERVICES = "Service", "api/v1", "services", "services";
    SECRETS = "Secret", "api/v1", "secrets", "secrets";
    JOBS = "Job", "apis/batch/v1", "jobs", "jobs.batch";
    DEPLOYMENTS = "Deployment", "apis/apps/v1", "deployments", "deployments.apps";
    INGRESSES = "Ingress", "apis/networking.k8s.io/v1", "ingresses", "ingresses.networking.k8s.io";
    NETWORK_POLICIES =
        "NetworkPolicy", "apis/networking.k8s.io/v1", "networkpolicies", "networkpolicies.networking.k8s.io";
    ROLES = "Role", "apis/rbac.authorization.k8s.io/v1", "roles", "roles.rbac.authorization.k8s.io";
    ROLE_BINDINGS =
        "RoleBinding", "apis/rbac.authorization.k8s.io/v1", "rolebindings", "rolebindings.rbac.authorization.k8s.io";
}

/// A namespace of a cluster, or with an empty name the cluster itself (or, for lists, all namespaces).
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: kube::Client,
    pub(super) namespace: String,
}

impl Api {
    pub(super) fn new(client: kube::Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    /// `None`: there is none of that name.
    pub(super) async fn get(&self, kind: Kind, name: &str) -> Result<Option<Value>, Problem> {
        let tried = self.tried("get", kind, name);
        let request = self.path(kind).get(name, &GetParams::default());
        match self.send(request, &tried).await {
            Ok(object) => Ok(Some(object)),
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure.told(&tried)),
        }
    }

    pub(super) async fn list(&self, kind: Kind, selector: &str) -> Result<Vec<Value>, Problem> {
        let tried = self.tried("list", kind, "");
        let request = self.path(kind).list(&ListParams::default().labels(selector));
        let mut list = self.send(request, &tried).await.map_err(|failure| failure.told(&tried))?;
        let items = list["items"].take();
        Ok(if let Value::Array(items) = items { items } else { Vec::new() })
    }

    /// `None`: there is one of that name already.
    pub(super) async fn create(&self, kind: Kind, object: &Value) -> Result<Option<Value>, Problem> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let tried = self.tried("create", kind, name);
        let request = self.path(kind).create(&PostParams::default(), object.to_string().into_bytes());
        match self.send(request, &tried).await {
            Ok(object) => Ok(Some(object)),
            Err(Failure::Exists) => Ok(None),
            Err(failure) => Err(failure.told(&tried)),
        }
    }

    /// Merges changes into an object that is still the one that was read. `None`: it is not.
    pub(super) async fn merge(
        &self,
        kind: Kind,
        known: &Value,
        changes: &Value,
    ) -> Result<Option<Value>, Problem> {
        let name = known["metadata"]["name"].as_str().unwrap_or_default();
        let tried = self.tried("patch", kind, name);
        let mut changes = changes.clone();
        for field in ["uid", "resourceVersion"] {
            changes["metadata"][field] = known["metadata"][field].clone();
        }
        let request = self.path(kind).patch(name, &PatchParams::default(), &Patch::Merge(&changes));
        match self.send(request, &tried).await {
            Ok(object) => Ok(Some(object)),
            Err(Failure::Exists | Failure::Missing) => Ok(None),
            Err(failure) => Err(failure.told(&tried)),
        }
    }

    /// Deletes this very object and, in the background, what belongs to it. Says whether it was there.
    pub(super) async fn delete(&self, kind: Kind, name: &str, uid: &str) -> Result<bool, Problem> {
        let tried = self.tried("delete", kind, name);
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let parameters = DeleteParams::background().preconditions(preconditions);
        let request = self.path(kind).delete(name, &parameters);
        match self.send(request, &tried).await {
            Ok(_) => Ok(true),
            // Another object of that name is not ours to delete.
            Err(Failure::Missing | Failure::Exists) => Ok(false),
            Err(failure) => Err(failure.told(&tried)),
        }
    }

    fn tried<'a>(&'a self, verb: &'static str, kind: Kind, name: &'a str) -> Tried<'a> {
        Tried { verb, kind, namespace: &self.namespace, name }
    }

    fn path(&self, kind: Kind) -> Request {
        Request::new(match (self.namespace.as_str(), kind) {
            ("", _) | (_, NAMESPACES) => format!("/{}/{}", kind.path, kind.plural),
            (namespace, _) => format!("/{}/namespaces/{namespace}/{}", kind.path, kind.plural),
        })
    }

    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
        tried: &Tried<'_>,
    ) -> Result<Value, Failure> {
        let request =
            request.map_err(|error| Failure::Told(Problem::new(Code::Internal, error.to_string())))?;
        match tokio::time::timeout(ANSWER, self.client.request::<Value>(request)).await {
            Ok(Ok(object)) => Ok(object),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Failure::Exists),
            // A namespace that is missing is another matter than an object in it, unless it is what was asked for.
            Ok(Err(kube::Error::Api(status)))
                if status.code == 404
                    && !tried.name.is_empty()
                    && (tried.kind == NAMESPACES || !status.message.contains("namespaces \"")) =>
            {
                Err(Failure::Missing)
            }
            Ok(Err(error)) => Err(Failure::Other(error)),
            Err(_) => Err(Failure::Told(Problem::new(
                Code::ClusterUnreachable,
                format!("the API server has not answered for {} s", ANSWER.as_secs()),
            ))),
        }
    }
}

enum Failure {
    Missing,
    Exists,
    Other(kube::Error),
    Told(Problem),
}

impl Failure {
    fn told(self, tried: &Tried<'_>) -> Problem {
        match self {
            Self::Other(error) => refusal::of_request(&error, tried),
            Self::Told(problem) => problem,
            Self::Missing => Problem::new(Code::TargetMissing, format!("{} does not exist", tried.name)),
            Self::Exists => Problem::new(Code::ClusterError, format!("{} has changed meanwhile", tried.name)),
        }
    }
}

/// Name and UID of an object.
pub(super) fn identity(object: &Value) -> (String, String) {
    let part = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (part("name"), part("uid"))
}
