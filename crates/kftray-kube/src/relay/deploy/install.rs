//! The relay that an administrator installs once for many: a Deployment behind a Service, in a namespace of its own.
//!
//! Its guard is its position: the tunnel port is on the pods' loopback, so whoever may port-forward to these pods may use
//! it, and nobody else; with [`Access::Secret`] a token comes on top (docs/decisions/0009-relay-tokens.md).

use kftray_commons::{Code, Problem};
use kftray_relay_proto::token::Token;
use serde_json::{Value, json};

use super::api::{Api, Kind, NAMESPACES, SECRETS, identity};
use super::installed::{SECRET_HASH, SECRET_TOKEN};
use super::manifest::{MANAGER, PROGRAM, annotation, created_by, denied, env, label, own_labels, pod};
use super::roles::{Sheet, SubjectKind, rules};
use super::settings::{RelaySettings, RelaySpec};
use super::{HEALTH_PORT, Identity, key, merge, yaml};
use crate::Cluster;

/// The Service's port for health and metrics, as the networking document prints it.
const SERVICE_PORT: u16 = 8080;
/// Pods of the Deployment: one may be on a node that is drained.
const REPLICAS: u32 = 2;
/// Most pods one may ask for: a relay carries thousands of connections.
const REPLICAS_MAX: u32 = 20;
/// Name of the Role for users of the relay.
const ROLE: &str = "kftray-relay-user";

/// Who may use an installed relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Whoever may port-forward to its pods.
    #[default]
    Position,
    /// Whoever may in addition read the Secret `kftray-server` in its namespace.
    Secret,
}

/// An installation as an administrator wants it.
#[derive(Debug, Clone)]
pub struct Installation {
    /// Image, resources, reach and the like; also the namespace.
    pub settings: RelaySettings,
    /// Number of pods, 1 to 20.
    pub replicas: u32,
    /// Who may use it.
    pub access: Access,
    /// Who gets the rights to use it; nobody if empty.
    pub subjects: Vec<(SubjectKind, String)>,
    /// Whether objects may be changed or removed that another installation of kftray has made.
    pub takeover: bool,
}

impl Default for Installation {
    fn default() -> Self {
        Self {
            settings: RelaySettings::default(),
            replicas: REPLICAS,
            access: Access::Position,
            subjects: Vec::new(),
            takeover: false,
        }
    }
}

/// What happened to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// `Deployment kftray-system/kftray-server` and the like.
    pub object: String,
    /// `created`, `changed`, `deleted`, `left as it is`, `was not there`.
    pub what: &'static str,
}

impl Installation {
    /// Every object, in the order in which they are made. With [`Access::Secret`] the token is a new one.
    ///
    /// # Errors
    /// [`Code::SpecInvalid`] for settings that cannot be.
    pub(crate) fn objects(&self, by: &Identity, server: Option<&str>) -> Result<Vec<Value>, Problem> {
        if !(1..=REPLICAS_MAX).contains(&self.replicas) {
            let message = format!("{} replicas cannot be: 1 to {REPLICAS_MAX}", self.replicas);
            return Err(Problem::new(Code::SpecInvalid, message));
        }
        let spec = self.settings.resolve()?;
        let mut objects = vec![self.namespace(by)];
        if self.access == Access::Secret {
            objects.push(self.secret(by, &key::random_token()));
        }
        objects.extend([
            self.network_policy(by),
            self.deployment(by, &spec, server),
            self.service(by),
            self.role(by),
        ]);
        if !self.subjects.is_empty() {
            objects.push(self.role_binding(by));
        }
        Ok(objects)
    }

    /// The objects as YAML, for `kubectl apply -f -`.
    ///
    /// # Errors
    /// [`Code::SpecInvalid`] for settings that cannot be.
    pub fn manifest(&self, created_by: &str) -> Result<String, Problem> {
        let by = Identity {
            key: super::InstallationKey::ephemeral(),
            owner: String::new(),
            created_by: created_by.to_owned(),
        };
        let mut objects = self.objects(&by, None)?;
        // Applied a second time the token is another one, and the pods must follow.
        let hash =
            objects.iter().find_map(|object| object["stringData"][SECRET_HASH].as_str().map(str::to_owned));
        if let Some(deployment) = objects.iter_mut().find(|object| object["kind"] == "Deployment")
            && let Some(hash) = hash
        {
            deployment["spec"]["template"]["metadata"]["annotations"][annotation::TOKEN_HASH] = json!(hash);
        }
        for object in &mut objects {
            // Applied by hand it is no installation's own.
            for metadata in ["/metadata/labels", "/spec/template/metadata/labels"] {
                if let Some(labels) = object.pointer_mut(metadata).and_then(Value::as_object_mut) {
                    labels.shift_remove(label::INSTALLATION);
                    labels.shift_remove(label::OWNER);
                }
            }
        }
        Ok(objects.iter().map(yaml::to_yaml).collect::<Vec<_>>().join("---\n"))
    }

    fn metadata(&self, by: &Identity, name: &str) -> Value {
        json!({
            "name": name,
            "namespace": self.settings.system_namespace(),
            "labels": own_labels(by, "installed"),
            "annotations": created_by(by),
        })
    }

    fn namespace(&self, by: &Identity) -> Value {
        let mut labels = own_labels(by, "installed");
        // Nothing but relays lives there, and they fit.
        labels.insert("pod-security.kubernetes.io/enforce".to_owned(), json!("restricted"));
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": self.settings.system_namespace(), "labels": labels, "annotations": created_by(by),
            },
        })
    }

    fn secret(&self, by: &Identity, token: &Token) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": self.metadata(by, PROGRAM),
            "type": "Opaque",
            "stringData": { SECRET_TOKEN: token.to_secret_text(), SECRET_HASH: token.hash().to_string() },
        })
    }

    /// Nobody in the cluster has a reason to connect to it: tunnels and `kubectl port-forward` come through the node.
    fn network_policy(&self, by: &Identity) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": self.metadata(by, PROGRAM),
            "spec": { "podSelector": { "matchLabels": self.selector() }, "policyTypes": ["Ingress"], "ingress": [] },
        })
    }

    fn selector(&self) -> Value {
        json!({ label::NAME: PROGRAM, label::INSTALLED: "true" })
    }

    fn deployment(&self, by: &Identity, spec: &RelaySpec, server: Option<&str>) -> Value {
        let settings = spec.settings();
        let deny = match server {
            Some(server) => denied(settings.deny.clone(), server),
            None => settings.deny.clone(),
        };
        let hash = if self.access == Access::Secret { String::new() } else { "any".to_owned() };
        let variables = [
            (env::TOKEN_SHA256, hash),
            // It stays: that is what it was installed for.
            (env::IDLE_EXIT, "0".to_owned()),
            (env::ALLOW, settings.allow.join(",")),
            (env::DENY, deny.join(",")),
        ];
        let mut labels = own_labels(by, "installed");
        labels.insert(label::INSTALLED.to_owned(), json!("true"));
        let mut annotations = created_by(by);
        annotations.extend(settings.annotations.iter().map(|(name, value)| (name.clone(), json!(value))));
        let mut pod = pod(spec, &variables, false);
        if self.access == Access::Secret {
            annotations.insert(annotation::TOKEN_SECRET.to_owned(), json!(PROGRAM));
            let from = json!({ "secretKeyRef": { "name": PROGRAM, "key": SECRET_HASH } });
            let variable = json!({ "name": env::TOKEN_SHA256, "valueFrom": from });
            if let Some(variables) = pod["containers"][0]["env"].as_array_mut() {
                variables.insert(0, variable);
            }
        }
        pod["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": self.selector() },
        }]);
        let mut deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.metadata(by, PROGRAM),
            "spec": {
                "replicas": self.replicas,
                "selector": { "matchLabels": self.selector() },
                // A pod goes only when its successor takes tunnels.
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
                "template": { "metadata": { "labels": labels, "annotations": annotations }, "spec": pod },
            },
        });
        if let Some(patch) = &settings.patch {
            merge::merge(&mut deployment, patch);
        }
        deployment
    }

    fn service(&self, by: &Identity) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.metadata(by, PROGRAM),
            "spec": {
                "type": "ClusterIP",
                "selector": self.selector(),
                "ports": [{ "name": "health", "port": SERVICE_PORT, "targetPort": HEALTH_PORT, "protocol": "TCP" }],
            },
        })
    }

    fn role(&self, by: &Identity) -> Value {
        let mut rules = rules(Sheet::Installed);
        if self.access == Access::Secret
            && let Some(rules) = rules.as_array_mut()
        {
            rules.push(json!({
                "apiGroups": [""], "resources": ["secrets"], "resourceNames": [PROGRAM], "verbs": ["get"],
            }));
        }
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": self.metadata(by, ROLE),
            "rules": rules,
        })
    }

    fn role_binding(&self, by: &Identity) -> Value {
        let namespace = self.settings.system_namespace();
        let subjects: Vec<Value> =
            self.subjects.iter().map(|(kind, name)| kind.object(name, namespace)).collect();
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": self.metadata(by, ROLE),
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ROLE },
            "subjects": subjects,
        })
    }
}

/// Makes or changes everything. An object of that name that is not ours stops it before anything is changed; a namespace
/// that is there is used as it is.
pub(super) async fn install(
    cluster: &Cluster,
    by: &Identity,
    wanted: &Installation,
) -> Result<Vec<Installed>, Problem> {
    let api = Api::new(cluster.client(), wanted.settings.system_namespace());
    let mut steps: Vec<(Kind, Value, Option<Value>)> = Vec::new();
    for object in wanted.objects(by, Some(&cluster.server()))? {
        let Some(kind) = Kind::of(&object) else { continue };
        let found = api.get(kind, &identity(&object).0).await?;
        if let Some(found) = found.as_ref().filter(|_| kind != NAMESPACES)
            && let Some(whose) = whose(found, by, wanted.takeover)
        {
            return Err(whose.told(kind, &api.namespace, found));
        }
        steps.push((kind, object, found));
    }
    let mut done = Vec::new();
    for (kind, object, found) in steps {
        let what = put(&api, by, wanted, kind, &object, found).await?;
        done.push(told(kind, &api.namespace, &identity(&object).0, what));
    }
    Ok(done)
}

/// Creates or changes one object. A controller writes its status at any moment, so what was read is read again if it is old.
async fn put(
    api: &Api,
    by: &Identity,
    wanted: &Installation,
    kind: Kind,
    object: &Value,
    mut found: Option<Value>,
) -> Result<&'static str, Problem> {
    /// More than a controller needs for a rollout's first steps.
    const ATTEMPTS: usize = 10;
    let (name, _) = identity(object);
    for _ in 0..ATTEMPTS {
        let done = match &found {
            None => api.create(kind, object).await?.map(|_| "created"),
            // A namespace may be somebody's, and a token that changes would lock out whoever runs.
            Some(_) if kind == NAMESPACES || kind == SECRETS => Some("left as it is"),
            Some(found) => api.merge(kind, found, &changes(found, object)).await?.map(|_| "changed"),
        };
        if let Some(done) = done {
            return Ok(done);
        }
        found = api.get(kind, &name).await?;
        if let Some(found) = &found
            && kind != NAMESPACES
            && let Some(whose) = whose(found, by, wanted.takeover)
        {
            return Err(whose.told(kind, &api.namespace, found));
        }
    }
    let message = format!("{} {name} keeps changing while it is being made", kind.word());
    Err(Problem::new(Code::ClusterError, message).with_remedy("Try again."))
}

/// What is wanted, and the removal of what an earlier installation with other settings had put there: a merge patch (RFC 7386)
/// would keep it.
fn changes(found: &Value, wanted: &Value) -> Value {
    const POD: &str = "/spec/template/spec";
    const OF_POD: [&str; 4] = ["nodeSelector", "priorityClassName", "tolerations", "imagePullSecrets"];
    const MAPS: [&str; 2] = ["/spec/template/metadata/annotations", "/spec/template/spec/nodeSelector"];
    /// What kubectl itself notes, such as a restart.
    const KUBECTL: &str = "kubectl.kubernetes.io/";
    let names = |place: &str| {
        let there = found.pointer(place).and_then(Value::as_object);
        there.into_iter().flat_map(|map| map.keys().map(String::as_str))
    };
    let mut changes = wanted.clone();
    let mut remove = |place: &str, name: &str| {
        if let Some(map) = changes.pointer_mut(place).and_then(Value::as_object_mut)
            && !map.contains_key(name)
        {
            map.insert(name.to_owned(), Value::Null);
        }
    };
    for place in MAPS {
        names(place).filter(|name| !name.starts_with(KUBECTL)).for_each(|name| remove(place, name));
    }
    names(POD).filter(|name| OF_POD.contains(name)).for_each(|name| remove(POD, name));
    changes
}

/// Deletes what [`install`] has made, and only that: by label and UID. The namespace stays unless it is asked for and ours.
pub(super) async fn uninstall(
    cluster: &Cluster,
    by: &Identity,
    wanted: &Installation,
    namespace_too: bool,
) -> Result<Vec<Installed>, Problem> {
    let api = Api::new(cluster.client(), wanted.settings.system_namespace());
    let everything = Installation {
        access: Access::Secret,
        subjects: vec![(SubjectKind::User, String::new())],
        ..Installation {
            settings: RelaySettings {
                system_namespace: wanted.settings.system_namespace.clone(),
                ..RelaySettings::default()
            },
            ..wanted.clone()
        }
    };
    let mut done = Vec::new();
    let mut objects = everything.objects(by, None)?;
    objects.reverse();
    for object in objects {
        let Some(kind) = Kind::of(&object) else { continue };
        let (name, _) = identity(&object);
        let Some(found) = api.get(kind, &name).await? else { continue };
        let what = match whose(&found, by, wanted.takeover) {
            // Nothing has been removed yet: the Deployment is among the first that are looked at.
            Some(whose @ Whose::Others) if kind != NAMESPACES => {
                return Err(whose.told(kind, &api.namespace, &found));
            }
            Some(_) => "left as it is",
            None if kind == NAMESPACES && !namespace_too => "left as it is",
            None => {
                let (_, uid) = identity(&found);
                if api.delete(kind, &name, &uid).await? { "deleted" } else { "was not there" }
            }
        };
        done.push(told(kind, &api.namespace, &name, what));
    }
    Ok(done)
}

/// Whose an object is that is not ours.
enum Whose {
    /// Made by another installation of kftray.
    Others,
    /// Not kftray's at all.
    Foreign,
}

/// `None`: it is ours to change. What was applied by hand from our manifest is anybody's.
fn whose(object: &Value, by: &Identity, takeover: bool) -> Option<Whose> {
    let labels = &object["metadata"]["labels"];
    if labels[label::MANAGED_BY] != MANAGER || labels[label::COMPONENT] != "installed" {
        return Some(Whose::Foreign);
    }
    let installation = labels[label::INSTALLATION].as_str();
    let others = installation.is_some_and(|id| id != by.key.id());
    (others && !takeover).then_some(Whose::Others)
}

impl Whose {
    fn told(&self, kind: Kind, namespace: &str, found: &Value) -> Problem {
        let (name, _) = identity(found);
        let object = format!("{} {namespace}/{name}", kind.word());
        match self {
            Self::Others => {
                let who = found["metadata"]["annotations"][annotation::CREATED_BY]
                    .as_str()
                    .unwrap_or("somebody else");
                Problem::new(Code::NameTaken, format!("{object} was installed by {who}"))
                    .with_remedy("Ask them, or take it over with --takeover.")
            }
            Self::Foreign => {
                Problem::new(Code::NameTaken, format!("the name is taken: {object} is not kftray's"))
                    .with_remedy("Remove or rename it, or install the relay in another namespace.")
            }
        }
    }
}

fn told(kind: Kind, namespace: &str, name: &str, what: &'static str) -> Installed {
    let object = if kind == NAMESPACES {
        format!("{} {name}", kind.name)
    } else {
        format!("{} {namespace}/{name}", kind.name)
    };
    Installed { object, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest() {
        let wanted = Installation {
            subjects: vec![(SubjectKind::Group, "developers".to_owned())],
            settings: RelaySettings {
                image: Some("r.example/kftray-server:1".to_owned()),
                allow: vec!["*.svc.cluster.local".to_owned()],
                ..RelaySettings::default()
            },
            ..Installation::default()
        };
        let manifest = wanted.manifest("jane@laptop").unwrap();
        insta::assert_snapshot!(manifest.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    }

    #[test]
    fn with_a_secret_the_hash_comes_from_it_and_the_role_may_read_it() {
        let wanted = Installation { access: Access::Secret, ..Installation::default() };
        let objects = wanted
            .objects(
                &Identity {
                    key: super::super::InstallationKey::of_test(),
                    owner: "jane".to_owned(),
                    created_by: "jane@laptop".to_owned(),
                },
                None,
            )
            .unwrap();
        let find = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
        let text = find("Secret")["stringData"]["token"].as_str().unwrap();
        let token: Token = text.parse().unwrap();
        assert_eq!(find("Secret")["stringData"]["sha256"], token.hash().to_string());
        let template = &find("Deployment")["spec"]["template"];
        assert_eq!(template["metadata"]["annotations"][annotation::TOKEN_SECRET], PROGRAM);
        let variables = template["spec"]["containers"][0]["env"].as_array().unwrap();
        let of_hash: Vec<&Value> = variables.iter().filter(|one| one["name"] == env::TOKEN_SHA256).collect();
        assert_eq!(of_hash.len(), 1);
        assert_eq!(of_hash[0]["valueFrom"]["secretKeyRef"]["key"], "sha256");
        assert!(!find("Deployment").to_string().contains(text), "the token is in no specification");
        let last = find("Role")["rules"].as_array().unwrap().last().unwrap();
        assert_eq!(last["resourceNames"], json!([PROGRAM]));
    }

    #[test]
    fn pods_follow_the_token_of_a_manifest() {
        let wanted = Installation { access: Access::Secret, ..Installation::default() };
        let manifests = [(), ()].map(|()| wanted.manifest("jane@laptop").unwrap());
        for manifest in &manifests {
            let (_, hash) = manifest.split_once("sha256: ").unwrap();
            let hash = hash.lines().next().unwrap().trim_matches('"');
            assert_eq!(hash.len(), 64);
            assert_eq!(manifest.matches(hash).count(), 2, "{manifest}");
        }
        assert_ne!(manifests[0], manifests[1]);
    }

    #[test]
    fn what_is_not_wanted_any_more_is_removed() {
        let deployment = |annotations: Value, pod: Value| json!({"spec": {"template": {"metadata": {"annotations": annotations}, "spec": pod}}});
        let found = deployment(
            json!({"a": "1", annotation::TOKEN_SECRET: PROGRAM, "kubectl.kubernetes.io/restartedAt": "now"}),
            json!({"nodeSelector": {"pool": "a", "zone": "b"}, "tolerations": [{}], "dnsPolicy": "ClusterFirst"}),
        );
        let wanted = deployment(json!({"a": "2"}), json!({"nodeSelector": {"pool": "c"}}));
        let expected = deployment(
            json!({"a": "2", annotation::TOKEN_SECRET: null}),
            json!({"nodeSelector": {"pool": "c", "zone": null}, "tolerations": null}),
        );
        assert_eq!(changes(&found, &wanted), expected);
        let bare = deployment(json!({}), json!({}));
        assert_eq!(
            changes(&found, &bare)["spec"]["template"]["spec"],
            json!({"nodeSelector": null, "tolerations": null})
        );
        assert_eq!(changes(&bare, &wanted), wanted);
    }

    #[test]
    fn replicas_have_bounds() {
        for replicas in [0, 21] {
            let wanted = Installation { replicas, ..Installation::default() };
            assert_eq!(wanted.manifest("x").unwrap_err().code, Code::SpecInvalid);
        }
    }
}
