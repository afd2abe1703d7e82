//! The objects through which the cluster, or the world, reaches an exposed program: a Service and, for the public, an
//! Ingress. They belong to the relay's Job, so that deleting it removes all.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use kftray_commons::spec::{Certificate, Expose, ExposeProtocol, Exposure, IssuerKind};
use kftray_commons::{Code, Problem};
use kftray_portforward::ports::Offer;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::api::{Api, INGRESSES, JOBS, Kind, PODS, SERVICES, identity};
use super::life::TIDY;
use super::manifest::{annotation, created_by, label, own_labels, short_hash};
use super::outside::{Class, Needs, WantedCertificate};
use super::{EXPOSE_PORT, Identity, RelayPod};

/// Longest name of a Service (RFC 1035 label).
const NAME_MAX: usize = 63;
/// The port that a caller need not name.
const HTTP: u16 = 80;
/// What a Service's port is said to carry where it is HTTP/2 without TLS (KEP-3726).
const H2C: &str = "kubernetes.io/h2c";
/// Controllers that do not look at that have annotations of their own for it: Traefik on the Service, ingress-nginx on the
/// Ingress.
const H2C_TRAEFIK: (&str, &str) = ("traefik.ingress.kubernetes.io/service.serversscheme", "h2c");
const H2C_NGINX: (&str, &str) = ("nginx.ingress.kubernetes.io/backend-protocol", "GRPC");
/// Annotations that Traefik reads on the Service behind an Ingress.
const OF_SERVICES: &str = "traefik.ingress.kubernetes.io/service.";
/// How the class of an Ingress was said before it had a field.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// The Job that owns what an expose has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) name: String,
    pub(super) uid: String,
    /// What its pods are selected by.
    nonce: String,
}

/// What was made, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) urls: Vec<String>,
    pub(super) notes: Vec<String>,
    /// What a public one needs besides.
    pub(super) needs: Option<Needs>,
}

/// Deletes a Job and thereby all that belongs to it.
pub(super) async fn remove(api: &Api, owner: &Owner) {
    match timeout(TIDY, api.delete(JOBS, &owner.name, &owner.uid)).await {
        Ok(Ok(_)) => {}
        Ok(Err(problem)) => tracing::info!(%problem, job = owner.name, "an expose is left to end by itself"),
        Err(_) => tracing::info!(
            job = owner.name,
            "the cluster does not answer: an expose is left to end by itself"
        ),
    }
}

/// Makes or changes Service and Ingress so that they lead to the owner's relay, whichever they led to before.
///
/// # Errors
/// A name that cannot be ([`Code::SpecInvalid`]) or is somebody else's ([`Code::NameTaken`]); what the cluster refuses.
pub(super) async fn make(
    api: &Api,
    identity: &Identity,
    namespace: &str,
    offer: &Offer,
    owner: &Owner,
) -> Result<Made, Problem> {
    let plan = Plan::new(&offer.name, namespace, &offer.expose)?;
    let created = put(api, identity, &offer.name, SERVICES, &plan.service(identity, owner)).await?;
    match plan.ingress(identity, owner) {
        Some(ingress) => {
            if let Err(problem) = put(api, identity, &offer.name, INGRESSES, &ingress).await {
                if created {
                    withdraw(api, identity, &offer.name, SERVICES).await;
                }
                return Err(problem);
            }
        }
        None => withdraw(api, identity, &offer.name, INGRESSES).await,
    }
    Ok(Made { urls: plan.urls(), notes: plan.notes(), needs: plan.needs() })
}

/// Tells at once if the name of an expose is somebody else's.
pub(super) async fn refuse_foreign(api: &Api, identity: &Identity, alias: &str) -> Result<(), Problem> {
    let name = service_name(alias)?;
    // A public one is a host name, and has an Ingress as well.
    let kinds = if alias.contains('.') { &[SERVICES, INGRESSES][..] } else { &[SERVICES] };
    for &kind in kinds {
        match api.get(kind, &name).await? {
            Some(found) if !is_own(&found, identity, alias) => return Err(taken(kind, &found)),
            Some(_) | None => {}
        }
    }
    Ok(())
}

/// The name of the Service: the alias, or the first part of a host name.
fn service_name(alias: &str) -> Result<String, Problem> {
    let name = alias.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = name.len() <= NAME_MAX
        && name.bytes().all(letter)
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('-');
    if fits {
        return Ok(name);
    }
    let message = format!("`{name}`, from the alias `{alias}`, cannot be the name of a Service");
    Err(Problem::new(Code::SpecInvalid, message)
        .with_remedy("Use an alias that begins with a letter and has letters, digits and hyphens only."))
}

/// A wish, understood.
struct Plan<'a> {
    alias: &'a str,
    namespace: &'a str,
    expose: &'a Expose,
    name: String,
}

impl<'a> Plan<'a> {
    fn new(alias: &'a str, namespace: &'a str, expose: &'a Expose) -> Result<Self, Problem> {
        let name = service_name(alias)?;
        if expose.is_public() && !is_host(alias) {
            let message = format!("`{alias}` is no host name, which a public expose needs as its alias");
            return Err(Problem::new(Code::SpecInvalid, message)
                .with_remedy("Use a host name whose DNS leads to the cluster, such as myapp.example.com."));
        }
        if !expose.is_public() && alias.contains('.') {
            let message = format!("the alias `{alias}` has a dot, and becomes the name of a Service");
            return Err(Problem::new(Code::SpecInvalid, message).with_remedy(
                "Use a plain name such as internal-api, or \"exposure_type\": \"public\" for a host name.",
            ));
        }
        Ok(Self { alias, namespace, expose, name })
    }

    fn port(&self) -> u16 {
        self.expose.local_port.get()
    }

    fn is_http(&self) -> bool {
        self.expose.is_http()
    }

    fn is_h2c(&self) -> bool {
        self.expose.protocol() == ExposeProtocol::H2c
    }

    fn metadata(&self, identity: &Identity, owner: &Owner) -> Value {
        let mut labels = own_labels(identity, "expose");
        labels.insert(label::EXPOSE.to_owned(), json!(short_hash(self.alias)));
        let mut annotations = created_by(identity);
        annotations.insert(annotation::ALIAS.to_owned(), json!(self.alias));
        json!({
            "name": self.name,
            "namespace": self.namespace,
            "labels": labels,
            "annotations": annotations,
            // No `blockOwnerDeletion`: some clusters let only those set it who may change the owner's finalizers.
            "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "Job", "name": owner.name, "uid": owner.uid, "controller": true,
            }],
        })
    }

    fn service(&self, identity: &Identity, owner: &Owner) -> Value {
        let name = if self.is_http() { "http" } else { "tcp" };
        let port = |name: &str, number: u16| {
            let mut port =
                json!({ "name": name, "port": number, "targetPort": EXPOSE_PORT, "protocol": "TCP" });
            if self.is_h2c() {
                port["appProtocol"] = json!(H2C);
            }
            port
        };
        let mut ports = vec![port(name, self.port())];
        if self.is_http() && self.port() != HTTP {
            // So that pods of the namespace may write http://ALIAS.
            ports.push(port("http-80", HTTP));
        }
        let mut metadata = self.metadata(identity, owner);
        if let Exposure::Public { annotations, .. } = &self.expose.exposure {
            let mut applied: BTreeMap<&str, &str> =
                self.is_h2c().then_some(H2C_TRAEFIK).into_iter().collect();
            applied.extend(texts(annotations).filter(|(name, _)| name.starts_with(OF_SERVICES)));
            if !applied.is_empty() {
                apply(&mut metadata, applied);
            }
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "type": "ClusterIP",
                // This very relay: one that is being replaced must get no more callers.
                "selector": { label::NONCE: owner.nonce },
                "ports": ports,
            },
        })
    }

    fn ingress(&self, identity: &Identity, owner: &Owner) -> Option<Value> {
        let Exposure::Public { ingress_class, annotations, certificate, .. } = &self.expose.exposure else {
            return None;
        };
        let host = self.host();
        let mut applied: BTreeMap<&str, &str> = self.is_h2c().then_some(H2C_NGINX).into_iter().collect();
        applied.extend(texts(annotations));
        if let Some(Certificate { issuer, kind }) = certificate {
            applied.insert(
                match kind {
                    IssuerKind::Issuer => "cert-manager.io/issuer",
                    IssuerKind::ClusterIssuer => "cert-manager.io/cluster-issuer",
                },
                issuer,
            );
        }
        let mut metadata = self.metadata(identity, owner);
        apply(&mut metadata, applied);
        let backend = json!({ "service": { "name": self.name, "port": { "number": self.port() } } });
        let mut spec = json!({
            "rules": [{ "host": host, "http": { "paths": [{ "path": "/", "pathType": "Prefix", "backend": backend }] } }],
        });
        if let Some(class) = ingress_class {
            spec["ingressClassName"] = json!(class);
        }
        if certificate.is_some() {
            spec["tls"] = json!([{ "hosts": [host], "secretName": self.secret() }]);
        }
        Some(json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": metadata,
            "spec": spec,
        }))
    }

    fn host(&self) -> String {
        self.alias.to_ascii_lowercase()
    }

    /// Where the certificate is. The same name each time: an issuer counts how often a certificate is asked for.
    fn secret(&self) -> String {
        format!("kftray-expose-tls-{}", short_hash(self.alias))
    }

    fn needs(&self) -> Option<Needs> {
        let Exposure::Public { ingress_class, annotations, certificate, .. } = &self.expose.exposure else {
            return None;
        };
        let class = match ingress_class {
            Some(class) => Class::Named(class.clone()),
            None if annotations.contains_key(CLASS_ANNOTATION) => Class::Annotated,
            None => Class::Default,
        };
        Some(Needs {
            host: self.host(),
            namespace: self.namespace.to_owned(),
            ingress: self.name.clone(),
            class,
            certificate: certificate
                .as_ref()
                .map(|certificate| WantedCertificate { secret: self.secret(), issuer: issuer(certificate) }),
        })
    }

    fn urls(&self) -> Vec<String> {
        let (name, namespace, port) = (&self.name, self.namespace, self.port());
        match &self.expose.exposure {
            Exposure::Public { certificate, .. } => {
                let scheme = if certificate.is_some() { "https" } else { "http" };
                vec![format!("{scheme}://{}", self.host())]
            }
            Exposure::Internal { protocol: ExposeProtocol::Tcp } => {
                vec![format!("tcp://{name}.{namespace}:{port}")]
            }
            Exposure::Internal { .. } if port == HTTP => vec![format!("http://{name}.{namespace}")],
            Exposure::Internal { .. } => {
                vec![format!("http://{name}.{namespace}"), format!("http://{name}.{namespace}:{port}")]
            }
        }
    }

    fn notes(&self) -> Vec<String> {
        let Exposure::Public { ingress_class, certificate, .. } = &self.expose.exposure else {
            return vec![
                "The addresses are those of the cluster: its pods reach them, this machine does not."
                    .to_owned(),
            ];
        };
        let mut notes =
            vec![format!("The DNS of {} must lead to the cluster's Ingress controller.", self.alias)];
        if ingress_class.is_none() {
            notes.push(
                "No ingress_class is set: the cluster's default class serves it, if there is one.".to_owned(),
            );
        }
        if let Some(certificate) = certificate {
            let issuer = issuer(certificate);
            notes.push(format!("The certificate comes from cert-manager's {issuer} and may take a minute."));
        }
        notes
    }
}

/// `ClusterIssuer letsencrypt-prod`.
fn issuer(certificate: &Certificate) -> String {
    let kind = match certificate.kind {
        IssuerKind::Issuer => "Issuer",
        IssuerKind::ClusterIssuer => "ClusterIssuer",
    };
    format!("{kind} {}", certificate.issuer)
}

fn texts(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    annotations.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}

/// Writes a wish's annotations on an object, with their names, so that a later wish takes them away again.
fn apply(metadata: &mut Value, annotations: BTreeMap<&str, &str>) {
    let names: Vec<&str> = annotations.keys().copied().collect();
    metadata["annotations"][annotation::APPLIED] = json!(names.join(","));
    for (name, value) in annotations {
        // Not what ours are recognised by.
        if metadata["annotations"].get(name).is_none() {
            metadata["annotations"][name] = json!(value);
        }
    }
}

fn is_host(alias: &str) -> bool {
    let labels: Vec<&str> = alias.split('.').collect();
    let fits = |label: &&str| {
        !label.is_empty()
            && label.len() <= NAME_MAX
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    labels.len() > 1 && alias.len() <= 253 && labels.iter().all(fits)
}

/// The Job behind a relay's pod, which will own what is made.
///
/// # Errors
/// [`Code::RelayEnded`] if the pod is not there any more; what the cluster refuses.
pub(super) async fn owner(api: &Api, relay: &RelayPod) -> Result<Owner, Problem> {
    let gone = || {
        Problem::new(Code::RelayEnded, format!("the relay's pod {}/{} is gone", relay.namespace, relay.pod))
    };
    let pod = api.get(PODS, &relay.pod).await?.ok_or_else(gone)?;
    if pod["metadata"]["uid"] != *relay.uid {
        return Err(gone());
    }
    let owners = pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let job = owners.iter().find(|owner| owner["kind"] == "Job").ok_or_else(gone)?;
    let part = |field: &str| job[field].as_str().unwrap_or_default().to_owned();
    let nonce = pod["metadata"]["labels"][label::NONCE].as_str().ok_or_else(gone)?.to_owned();
    Ok(Owner { name: part("name"), uid: part("uid"), nonce })
}

/// Creates the object, which is told, or changes ours of that name.
async fn put(
    api: &Api,
    identity: &Identity,
    alias: &str,
    kind: Kind,
    wanted: &Value,
) -> Result<bool, Problem> {
    /// Somebody may create, change or delete it between our steps; not for ever.
    const ATTEMPTS: usize = 5;
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    for _ in 0..ATTEMPTS {
        let found = api.get(kind, name).await?;
        let created = found.is_none();
        let done = match found {
            Some(found) if !is_own(&found, identity, alias) => return Err(taken(kind, &found)),
            Some(found) if found["metadata"]["deletionTimestamp"].is_null() => {
                api.merge(kind, &found, &changes(&found, wanted)).await?.is_some()
            }
            // On its way out: it is gone at the next look, or held by a finalizer.
            Some(_) => false,
            None => api.create(kind, wanted).await?.is_some(),
        };
        if done {
            return Ok(created);
        }
    }
    let message = format!("{} {}/{name} keeps changing while it is being made", kind.word(), api.namespace);
    Err(Problem::new(Code::ClusterError, message))
}

/// What is wanted, and the removal of what an earlier wish had put there.
fn changes(found: &Value, wanted: &Value) -> Value {
    let mut changes = wanted.clone();
    let applied = found["metadata"]["annotations"][annotation::APPLIED].as_str().unwrap_or_default();
    for name in applied.split(',').filter(|name| !name.is_empty()) {
        if changes["metadata"]["annotations"].get(name).is_none() {
            changes["metadata"]["annotations"][name] = Value::Null;
        }
    }
    for field in ["tls", "ingressClassName"] {
        if !found["spec"][field].is_null() && changes["spec"].get(field).is_none() {
            changes["spec"][field] = Value::Null;
        }
    }
    // A selector of another making would select nothing together with ours.
    let keys = found["spec"]["selector"].as_object().map(Map::keys).into_iter().flatten();
    for key in keys {
        if changes["spec"]["selector"].get(key).is_none() {
            changes["spec"]["selector"][key] = Value::Null;
        }
    }
    changes
}

/// What a name has of ours and is not to have: an Ingress of what was public before. Who may not look has none.
async fn withdraw(api: &Api, identity: &Identity, alias: &str, kind: Kind) {
    let Ok(name) = service_name(alias) else { return };
    if let Ok(Some(found)) = api.get(kind, &name).await
        && is_own(&found, identity, alias)
    {
        let (name, uid) = self::identity(&found);
        if let Err(problem) = api.delete(kind, &name, &uid).await {
            tracing::info!(%problem, name, kind = kind.resource, "what is not wanted any more stays behind");
        }
    }
}

fn is_own(object: &Value, identity: &Identity, alias: &str) -> bool {
    let labels = &object["metadata"]["labels"];
    labels[label::MANAGED_BY] == super::manifest::MANAGER
        && labels[label::INSTALLATION] == identity.key.id()
        && labels[label::EXPOSE] == short_hash(alias).as_str()
}

/// The refusal names the owner as far as the object tells.
fn taken(kind: Kind, found: &Value) -> Problem {
    let metadata = &found["metadata"];
    let text =
        |map: &str, key: &str| metadata[map][key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let owner = metadata["ownerReferences"].as_array().and_then(|owners| owners.first());
    let by_kftray = metadata["labels"][label::MANAGED_BY] == super::manifest::MANAGER;
    let whose = text("annotations", annotation::CREATED_BY)
        .filter(|_| by_kftray)
        .map(|who| format!("to {who}, who exposes a program with kftray"))
        .or_else(|| {
            let release = text("annotations", "meta.helm.sh/release-name")?;
            Some(format!("to the Helm release {release}"))
        })
        .or_else(|| {
            let owner = owner?;
            let part = |field: &str| owner[field].as_str().unwrap_or_default().to_owned();
            Some(format!("to {} {}", part("kind").to_lowercase(), part("name")))
        })
        .or_else(|| Some(format!("to what {} manages", text("labels", label::MANAGED_BY)?)))
        .or_else(|| {
            let fields = metadata["managedFields"].as_array()?;
            let manager = fields.iter().find_map(|entry| entry["manager"].as_str())?;
            Some(format!("to somebody who made it with {manager}"))
        })
        .unwrap_or_else(|| "to somebody else".to_owned());
    let (name, _) = identity(found);
    let namespace = metadata["namespace"].as_str().unwrap_or_default();
    Problem::new(
        Code::NameTaken,
        format!("the name is taken: {} {namespace}/{name} belongs {whose}", kind.word()),
    )
}
