//! The chosen entry of a kubeconfig: context, cluster and user, with every file they name read.
//!
//! Two entries that compare equal need the same connection, so a kubeconfig that is merely rewritten disturbs nothing, and
//! a renewed certificate behind an unchanged path is noticed.

use std::path::PathBuf;

use base64::Engine as _;
use kftray_commons::{Code, ContextRef, Problem};
use kube::config::{AuthInfo, Cluster};
use secrecy::ExposeSecret as _;
use serde_json::Value;

use super::Loaded;

/// Everything needed to reach and log in to one cluster. Holds secrets: no `Debug`.
pub(crate) struct Entry {
    /// The context's name.
    pub(crate) context: String,
    /// The cluster's name in the kubeconfig.
    pub(crate) cluster_name: String,
    /// The user's name in the kubeconfig, if the context has one.
    pub(crate) user_name: Option<String>,
    /// The context's namespace, else `default`.
    pub(crate) namespace: String,
    /// The server's URL.
    pub(crate) server: String,
    /// The cluster's fields.
    pub(crate) cluster: Cluster,
    /// The user's fields.
    pub(crate) user: AuthInfo,
    /// The certificate authorities, PEM.
    pub(crate) ca: Option<Vec<u8>>,
    /// The client certificate and its key, PEM.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Files whose content counts, beside the kubeconfig itself.
    pub(crate) files: Vec<PathBuf>,
    /// Context and namespace.
    place: Value,
    /// Cluster and user, whole.
    login: Value,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place && self.same_login(other)
    }
}

impl Entry {
    /// Whether both log in to the same server as the same user, from whatever context.
    pub(crate) fn same_login(&self, other: &Self) -> bool {
        self.login == other.login && self.ca == other.ca && self.identity == other.identity
    }

    /// Chooses a context. Blocks on the disk for the files the entry names.
    ///
    /// # Errors
    /// [`Code::ContextMissing`] with what is there; [`Code::KubeconfigInvalid`] for an entry without a server or with
    /// data that is no base64 or a file that cannot be read; [`Code::ClientCertificateInvalid`] for half a pair.
    pub(crate) fn choose(loaded: &Loaded, wanted: &ContextRef) -> Result<Self, Problem> {
        let config = &loaded.config;
        let name = match wanted {
            ContextRef::Named(name) => name,
            ContextRef::Current => config.current_context.as_ref().ok_or_else(|| no_current(loaded))?,
        };
        let context = config
            .contexts
            .iter()
            .find(|named| named.name == *name)
            .ok_or_else(|| no_context(loaded, name, wanted))?
            .context
            .clone()
            .unwrap_or_default();
        let cluster = config
            .clusters
            .iter()
            .find(|named| named.name == context.cluster)
            .ok_or_else(|| dangling(loaded, name, "cluster", &context.cluster, &clusters(loaded)))?
            .cluster
            .clone()
            .unwrap_or_default();
        let user_name = context.user.clone().filter(|user| !user.is_empty());
        // No user at all is an anonymous login; a user that is named must be there.
        let user = match &user_name {
            None => AuthInfo::default(),
            Some(user) => config
                .auth_infos
                .iter()
                .find(|named| named.name == *user)
                .ok_or_else(|| dangling(loaded, name, "user", user, &users(loaded)))?
                .auth_info
                .clone()
                .unwrap_or_default(),
        };
        Self::assemble(name, &context, user_name, cluster, user, loaded)
    }

    fn assemble(
        name: &str,
        context: &kube::config::Context,
        user_name: Option<String>,
        cluster: Cluster,
        user: AuthInfo,
        loaded: &Loaded,
    ) -> Result<Self, Problem> {
        let server = cluster.server.clone().filter(|server| !server.is_empty()).ok_or_else(|| {
            Problem::new(
                Code::KubeconfigInvalid,
                format!("cluster {:?} has no server in {}", context.cluster, sources(loaded)),
            )
        })?;
        let mut files = Vec::new();
        let ca = read(
            "certificate-authority",
            cluster.certificate_authority_data.as_deref(),
            cluster.certificate_authority.as_deref(),
            &mut files,
        )
        .map_err(|text| {
            Problem::new(Code::KubeconfigInvalid, format!("cluster {:?}: {text}", context.cluster))
        })?;
        let identity = identity(&user, &mut files).map_err(|text| {
            let user = user_name.as_deref().unwrap_or_default();
            Problem::new(Code::ClientCertificateInvalid, format!("user {user:?}: {text}"))
        })?;
        let namespace =
            context.namespace.clone().filter(|it| !it.is_empty()).unwrap_or_else(|| "default".to_owned());
        let place = serde_json::json!([name, namespace]);
        let login = serde_json::json!([context.cluster, user_name, cluster, user]);
        Ok(Self {
            context: name.to_owned(),
            cluster_name: context.cluster.clone(),
            user_name,
            namespace,
            server,
            cluster,
            user,
            ca,
            identity,
            files,
            place,
            login,
        })
    }
}

type Pair = (Vec<u8>, Vec<u8>);

fn identity(user: &AuthInfo, files: &mut Vec<PathBuf>) -> Result<Option<Pair>, String> {
    let certificate = read(
        "client-certificate",
        user.client_certificate_data.as_deref(),
        user.client_certificate.as_deref(),
        files,
    )?;
    let key_data = user.client_key_data.as_ref().map(|secret| secret.expose_secret());
    let key = read("client-key", key_data, user.client_key.as_deref(), files)?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        (Some(_), None) => Err("has a client-certificate but no client-key".to_owned()),
        (None, Some(_)) => Err("has a client-key but no client-certificate".to_owned()),
    }
}

/// Inline data wins over the file, as everywhere in clientcmd.
fn read(
    what: &str,
    data: Option<&str>,
    file: Option<&str>,
    files: &mut Vec<PathBuf>,
) -> Result<Option<Vec<u8>>, String> {
    if let Some(data) = data.map(str::trim).filter(|data| !data.is_empty()) {
        let compact: String = data.split_ascii_whitespace().collect();
        return base64::engine::general_purpose::STANDARD
            .decode(compact)
            .map(Some)
            .map_err(|error| format!("{what}-data is not base64 ({error})"));
    }
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
    files.push(PathBuf::from(file));
    std::fs::read(file).map(Some).map_err(|error| format!("{what} {file} cannot be read: {error}"))
}

fn sources(loaded: &Loaded) -> String {
    loaded.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn clusters(loaded: &Loaded) -> Vec<&str> {
    loaded.config.clusters.iter().map(|named| named.name.as_str()).collect()
}

fn users(loaded: &Loaded) -> Vec<&str> {
    loaded.config.auth_infos.iter().map(|named| named.name.as_str()).collect()
}

fn contexts(loaded: &Loaded) -> Vec<&str> {
    loaded.config.contexts.iter().map(|named| named.name.as_str()).collect()
}

/// The names that are there; some people have hundreds.
fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 20;
    match names.len() {
        0 => "none".to_owned(),
        count if count > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), count - SHOWN),
        _ => names.join(", "),
    }
}

fn passed_over(loaded: &Loaded) -> String {
    loaded.ignored.first().map_or_else(String::new, |(_, reason)| format!("; passed over: {reason}"))
}

fn no_current(loaded: &Loaded) -> Problem {
    Problem::new(
        Code::ContextMissing,
        format!(
            "no current-context is set in {}; contexts: {}{}",
            sources(loaded),
            listed(&contexts(loaded)),
            passed_over(loaded)
        ),
    )
    .with_remedy("Choose one with `kubectl config use-context NAME`, or pass --context NAME.")
}

fn no_context(loaded: &Loaded, name: &str, wanted: &ContextRef) -> Problem {
    let which = match wanted {
        ContextRef::Current => "current-context",
        ContextRef::Named(_) => "context",
    };
    Problem::new(
        Code::ContextMissing,
        format!(
            "{which} {name:?} is not in {}; contexts there: {}{}",
            sources(loaded),
            listed(&contexts(loaded)),
            passed_over(loaded)
        ),
    )
}

fn dangling(loaded: &Loaded, context: &str, what: &str, name: &str, there: &[&str]) -> Problem {
    Problem::new(
        Code::ContextMissing,
        format!(
            "context {context:?} names {what} {name:?}, which is not in {}; {what}s there: {}{}",
            sources(loaded),
            listed(there),
            passed_over(loaded)
        ),
    )
    .with_remedy(format!("Add the {what} to the kubeconfig, or use another context."))
}
