//! The objects of a relay, as pure functions of what is wanted.

use kftray_relay_proto::token::Token;
use ring::digest;
use serde_json::{Map, Value, json};

use super::key::hex;
use super::merge::merge;
use super::settings::RelaySpec;
use super::{EXPOSE_PORT, HEALTH_PORT, Identity, TUNNEL_PORT};

/// Value of `app.kubernetes.io/managed-by` on everything that is ours.
pub(super) const MANAGER: &str = "kftray";
/// Value of `app.kubernetes.io/name`, and name of the container.
pub(super) const PROGRAM: &str = "kftray-server";

/// Labels of ours.
pub(super) mod label {
    /// What the program is.
    pub(crate) const NAME: &str = "app.kubernetes.io/name";
    /// `relay` or `expose`.
    pub(crate) const COMPONENT: &str = "app.kubernetes.io/component";
    /// The program that made it.
    pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// Version of the program.
    pub(crate) const VERSION: &str = "app.kubernetes.io/version";
    /// Public id of the installation that made it.
    pub(crate) const INSTALLATION: &str = "kftray.app/installation";
    /// Name of the person, as far as a label can hold it.
    pub(crate) const OWNER: &str = "kftray.app/owner";
    /// What the manifest was made of, hashed: another one is another relay.
    pub(crate) const FINGERPRINT: &str = "kftray.app/fingerprint";
    /// Tells one relay from every other; its token is derived from it.
    pub(crate) const NONCE: &str = "kftray.app/nonce";
    /// Which expose it belongs to, hashed.
    pub(crate) const EXPOSE: &str = "kftray.app/expose";
    /// On the pods of a relay that an administrator installed.
    pub(crate) const INSTALLED: &str = "kftray.app/installed";
}

/// Annotations of ours.
pub(super) mod annotation {
    /// Who made it, for people.
    pub(crate) const CREATED_BY: &str = "kftray.app/created-by";
    /// Alias of the expose, for people.
    pub(crate) const ALIAS: &str = "kftray.app/alias";
    /// Name of the Secret with the token of an installed relay.
    pub(crate) const TOKEN_SECRET: &str = "kftray.app/token-secret";
    /// The SHA-256 of that token, which changes the pods when the token does.
    pub(crate) const TOKEN_HASH: &str = "kftray.app/token-sha256";
    /// Names of the annotations that a user's settings gave an Ingress, so that they can be taken away again.
    pub(crate) const APPLIED: &str = "kftray.app/applied-annotations";
}

/// Environment of the program that Deploy sets.
pub(super) mod env {
    /// SHA-256 of the token, hexadecimal.
    pub(crate) const TOKEN_SHA256: &str = "KFTRAY_TOKEN_SHA256";
    /// What may be reached.
    pub(crate) const ALLOW: &str = "KFTRAY_ALLOW";
    /// What may not.
    pub(crate) const DENY: &str = "KFTRAY_DENY";
    /// Port for tunnels.
    pub(crate) const TUNNEL_PORT: &str = "KFTRAY_TUNNEL_PORT";
    /// Port for health and metrics.
    pub(crate) const HEALTH_PORT: &str = "KFTRAY_HEALTH_PORT";
    /// Ports that an expose may listen on.
    pub(crate) const EXPOSE_PORTS: &str = "KFTRAY_EXPOSE_PORTS";
    /// Seconds without a tunnel after which it ends; 0 is never.
    pub(crate) const IDLE_EXIT: &str = "KFTRAY_IDLE_EXIT";
}

/// Seconds that a finished Job stays, for whoever wants to know why. Nothing shall be left 150 s after the client is gone, of
/// which the idle exit takes 120; with 20 s the rest (a dead tunnel is kept for a second, the controllers take three) was too
/// close.
const TTL: u32 = 10;
/// Requested and most memory: a relay with 1,000 streams takes some 16 MiB; eight times that is a leak.
const MEMORY: (&str, &str) = ("16Mi", "128Mi");
/// Requested CPU. There is no limit: the throttling of a limited relay is felt as latency by everybody behind it.
const CPU: &str = "5m";
/// Seconds of grace: what is under way may end (SIGTERM drains).
const GRACE: u32 = 30;
/// Longest part of a person's name in an object's name.
const USER: usize = 16;
/// Hexadecimal digits of the nonce in an object's name: only for telling apart at sight.
const NAME_DIGITS: usize = 8;
/// Hexadecimal digits of a hash in a label: two of one namespace never meet by chance.
const HASH_DIGITS: usize = 16;

/// What a relay is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Use {
    /// Forwards of a namespace.
    Forwards,
    /// An expose: its alias.
    Expose(String),
}

impl Use {
    pub(super) fn component(&self) -> &'static str {
        match self {
            Self::Forwards => "relay",
            Self::Expose(_) => "expose",
        }
    }
}

/// A relay that is wanted.
pub(super) struct Wanted<'a> {
    pub(super) spec: &'a RelaySpec,
    pub(super) identity: &'a Identity,
    /// URL of the API server: the token is bound to it, and the relay shall not reach it.
    pub(super) server: &'a str,
    pub(super) namespace: &'a str,
    pub(super) purpose: &'a Use,
}

impl Wanted<'_> {
    /// The Job of a relay with that nonce.
    pub(super) fn job(&self, nonce: &str) -> Value {
        let token = self.token(nonce);
        let mut job = self.bare(&token.hash().to_string());
        let name: String = nonce.chars().take(NAME_DIGITS).collect();
        let user = user_part(&self.identity.owner);
        job["metadata"]["name"] = json!(format!("kftray-{}-{user}{name}", self.purpose.component()));
        job["metadata"]["namespace"] = json!(self.namespace);
        let labels = self.labels(&self.fingerprint(), nonce);
        for metadata in ["/metadata", "/spec/template/metadata"] {
            let Some(metadata) = job.pointer_mut(metadata) else { continue };
            // After the patch, which must not take away what the relay is found by.
            merge(metadata, &json!({ "labels": labels }));
        }
        job
    }

    /// The token of the relay with that nonce.
    pub(super) fn token(&self, nonce: &str) -> Token {
        self.identity.key.token(self.server, self.namespace, nonce)
    }

    /// Hash of everything but nonce and token, and who made it: the name of a laptop changes with its network.
    pub(super) fn fingerprint(&self) -> String {
        let mut job = self.bare("-");
        for annotations in ["/metadata/annotations", "/spec/template/metadata/annotations"] {
            if let Some(Value::Object(annotations)) = job.pointer_mut(annotations) {
                annotations.remove(annotation::CREATED_BY);
            }
        }
        short_hash(&job.to_string())
    }

    /// Whether an existing Job is this relay: same making, and the token is ours.
    pub(super) fn fits(&self, job: &Value) -> bool {
        let labels = &job["metadata"]["labels"];
        let Some(nonce) = labels[label::NONCE].as_str() else { return false };
        labels[label::FINGERPRINT] == self.fingerprint().as_str()
            && env_of(job, env::TOKEN_SHA256) == Some(self.token(nonce).hash().to_string().as_str())
    }

    /// Selects every relay of this installation for this purpose, whatever it was made of.
    pub(super) fn selector(&self) -> String {
        let mut selector = format!(
            "{}={MANAGER},{}={},{}={}",
            label::MANAGED_BY,
            label::INSTALLATION,
            self.identity.key.id(),
            label::COMPONENT,
            self.purpose.component()
        );
        if let Use::Expose(alias) = self.purpose {
            selector.push_str(&format!(",{}={}", label::EXPOSE, short_hash(alias)));
        }
        selector
    }

    /// Without name, namespace, and the labels by which it is found; with the user's changes.
    fn bare(&self, token_hash: &str) -> Value {
        let settings = self.spec.settings();
        let mut annotations = created_by(self.identity);
        if let Use::Expose(alias) = self.purpose {
            annotations.insert(annotation::ALIAS.to_owned(), json!(alias));
        }
        annotations.extend(settings.annotations.iter().map(|(name, value)| (name.clone(), json!(value))));
        let mut job = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": { "annotations": annotations },
            "spec": {
                "backoffLimit": 0,
                "ttlSecondsAfterFinished": TTL,
                "template": {
                    "metadata": { "annotations": annotations },
                    "spec": self.pod(token_hash),
                },
            },
        });
        if let Some(seconds) = settings.active_deadline {
            job["spec"]["activeDeadlineSeconds"] = json!(seconds);
        }
        if let Some(patch) = &settings.patch {
            merge(&mut job, patch);
        }
        job
    }

    fn pod(&self, token_hash: &str) -> Value {
        let settings = self.spec.settings();
        let idle = settings.idle_exit.unwrap_or(super::RelaySettings::IDLE_EXIT);
        let exposes = matches!(self.purpose, Use::Expose(_));
        let variables = [
            (env::TOKEN_SHA256, token_hash.to_owned()),
            (env::IDLE_EXIT, idle.to_string()),
            (env::ALLOW, settings.allow.join(",")),
            (env::DENY, denied(settings.deny.clone(), self.server).join(",")),
            (env::EXPOSE_PORTS, if exposes { EXPOSE_PORT.to_string() } else { String::new() }),
        ];
        let mut pod = pod(self.spec, &variables, exposes);
        pod["restartPolicy"] = json!("Never");
        pod
    }

    fn labels(&self, fingerprint: &str, nonce: &str) -> Map<String, Value> {
        let mut labels = own_labels(self.identity, self.purpose.component());
        labels.insert(label::FINGERPRINT.to_owned(), json!(fingerprint));
        labels.insert(label::NONCE.to_owned(), json!(nonce));
        if let Use::Expose(alias) = self.purpose {
            labels.insert(label::EXPOSE.to_owned(), json!(short_hash(alias)));
        }
        labels
    }
}

/// What everything of ours is labelled with.
pub(super) fn own_labels(identity: &Identity, component: &str) -> Map<String, Value> {
    let owner = user_part(&identity.owner);
    let mut labels = Map::new();
    for (name, value) in [
        (label::NAME, PROGRAM),
        (label::COMPONENT, component),
        (label::MANAGED_BY, MANAGER),
        (label::VERSION, env!("CARGO_PKG_VERSION")),
        (label::INSTALLATION, identity.key.id()),
        (label::OWNER, owner.trim_end_matches('-')),
    ] {
        labels.insert(name.to_owned(), json!(value));
    }
    labels
}

/// What tells people who made it.
pub(super) fn created_by(identity: &Identity) -> Map<String, Value> {
    Map::from_iter([(annotation::CREATED_BY.to_owned(), json!(identity.created_by))])
}

/// The pod of any relay, on demand or installed: fits the profile "restricted" of Pod Security. No `runAsUser`: the image
/// names its user (65532), and clusters that assign one of their own (OpenShift) refuse a pod that names another.
pub(super) fn pod(spec: &RelaySpec, variables: &[(&str, String)], exposes: bool) -> Value {
    let settings = spec.settings();
    let told = variables.iter().filter(|(_, value)| !value.is_empty());
    let mut variables: Vec<(String, String)> =
        told.map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    variables.push((env::TUNNEL_PORT.to_owned(), TUNNEL_PORT.to_string()));
    variables.push((env::HEALTH_PORT.to_owned(), HEALTH_PORT.to_string()));
    // What is set by hand wins, but for what the relay's safety hangs on.
    let by_hand = settings.env.iter().filter(|(name, _)| name.as_str() != env::TOKEN_SHA256);
    for (name, value) in by_hand {
        variables.retain(|(known, _)| known != name);
        variables.push((name.clone(), value.clone()));
    }
    let variables: Vec<Value> =
        variables.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    // The tunnel's port is left out: it is on the loopback, where no other pod can use it.
    let mut ports = vec![json!({ "name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP" })];
    if exposes {
        ports.push(json!({ "name": "expose", "containerPort": EXPOSE_PORT, "protocol": "TCP" }));
    }
    let resources = settings.resources.clone().unwrap_or_else(
        || json!({ "requests": { "cpu": CPU, "memory": MEMORY.0 }, "limits": { "memory": MEMORY.1 } }),
    );
    let mut container = json!({
        "name": PROGRAM,
        "image": spec.image(),
        "env": variables,
        "ports": ports,
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        // Startup: from then on tunnels may come. Twice a second would be finer, but seconds are the API's unit.
        "startupProbe": { "httpGet": { "path": "/healthz", "port": "health" }, "periodSeconds": 1, "failureThreshold": 60 },
        "readinessProbe": { "httpGet": { "path": "/readyz", "port": "health" }, "periodSeconds": 5 },
    });
    if let Some(policy) = settings.pull_policy {
        container["imagePullPolicy"] = json!(policy.to_string());
    }
    let mut pod = json!({
        "containers": [container],
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE,
        "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
    });
    if !settings.pull_secrets.is_empty() {
        let secrets: Vec<Value> = settings.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        pod["imagePullSecrets"] = json!(secrets);
    }
    if !settings.tolerations.is_empty() {
        pod["tolerations"] = json!(settings.tolerations);
    }
    if !settings.node_selector.is_empty() {
        pod["nodeSelector"] = json!(settings.node_selector);
    }
    if let Some(class) = &settings.priority_class {
        pod["priorityClassName"] = json!(class);
    }
    pod
}

/// What is denied by setting, and the API server as this machine names it. How pods name it the relay knows from its
/// environment.
pub(super) fn denied(mut list: Vec<String>, server: &str) -> Vec<String> {
    let host = url::Url::parse(server).ok().and_then(|url| {
        let host = url.host_str()?.to_owned();
        let port = url.port_or_known_default()?;
        Some(format!("{host}:{port}"))
    });
    list.extend(host);
    list
}

/// The value of a variable of the first container that has it.
pub(super) fn env_of<'a>(workload: &'a Value, name: &str) -> Option<&'a str> {
    let containers = workload["spec"]["template"]["spec"]["containers"].as_array()?;
    containers
        .iter()
        .filter_map(|container| container["env"].as_array())
        .flatten()
        .find(|variable| variable["name"] == name)
        .and_then(|variable| variable["value"].as_str())
}

/// A person's name as objects and labels can have it, with a hyphen at its end; empty if nothing is left of it.
fn user_part(name: &str) -> String {
    let part: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|letter| letter.to_ascii_lowercase())
        .take(USER)
        .collect();
    if part.is_empty() { part } else { format!("{part}-") }
}

/// Sixteen hexadecimal digits of a text's SHA-256.
pub(super) fn short_hash(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    hex(digest.as_ref()).chars().take(HASH_DIGITS).collect()
}
