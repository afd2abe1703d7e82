//! Kubeconfig files: one context for every way to log in, and whatever a test wants to be wrong.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::store::uid;
use crate::cluster::{ADMIN, ClusterError, FakeCluster, Shared};
use crate::pki::{Identity, PkiError, SERVER_NAME};

/// How a context's user logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// `client-certificate-data` and key.
    Certificate,
    /// A client certificate that has expired: 401.
    ExpiredCertificate,
    /// `token`.
    Token,
    /// `tokenFile`.
    TokenFile,
    /// `exec`: the user's [`ExecPlugin`].
    Exec,
    /// `username` and `password`.
    Basic,
    /// Nothing: 401.
    Nothing,
}

/// How a context trusts the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// `certificate-authority-data`.
    Authority,
    /// `certificate-authority-data` and `tls-server-name`: [`SERVER_NAME`].
    ServerName,
    /// `insecure-skip-tls-verify`.
    Insecure,
    /// An authority that has not signed the server's certificate.
    WrongAuthority,
}

/// One context of a kubeconfig.
#[derive(Clone, Debug)]
pub struct Context {
    name: String,
    user: String,
    login: Login,
    trust: Trust,
    namespace: Option<String>,
    server: Option<String>,
    proxy_url: Option<String>,
}

impl Context {
    /// A context for a user of the cluster, with a client certificate.
    #[must_use]
    pub fn new(name: &str, user: &str) -> Self {
        Self {
            name: name.to_owned(),
            user: user.to_owned(),
            login: Login::Certificate,
            trust: Trust::Authority,
            namespace: None,
            server: None,
            proxy_url: None,
        }
    }

    /// Logs in another way.
    #[must_use]
    pub fn login(mut self, login: Login) -> Self {
        self.login = login;
        self
    }

    /// Trusts another way.
    #[must_use]
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// The context's namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Another URL than the cluster's own.
    #[must_use]
    pub fn server(mut self, url: &str) -> Self {
        self.server = Some(url.to_owned());
        self
    }

    /// `proxy-url`.
    #[must_use]
    pub fn proxy_url(mut self, url: &str) -> Self {
        self.proxy_url = Some(url.to_owned());
        self
    }
}

/// A kubeconfig to be written. The file is JSON, which is YAML.
#[derive(Clone, Debug, Default)]
pub struct Kubeconfig {
    contexts: Vec<Context>,
    current: Option<String>,
}

impl Kubeconfig {
    /// Adds a context; the first one is the current one unless [`Kubeconfig::current`] says otherwise.
    #[must_use]
    pub fn context(mut self, context: Context) -> Self {
        self.contexts.push(context);
        self
    }

    /// The current context.
    #[must_use]
    pub fn current(mut self, name: &str) -> Self {
        self.current = Some(name.to_owned());
        self
    }

    /// For each user `USER` (certificate), `USER-token`, `USER-token-file`, `USER-exec`, `USER-basic`, `USER-insecure`
    /// (certificate, server not verified) and `USER-server-name` (certificate, `tls-server-name`).
    #[must_use]
    pub fn of_all_users(cluster: &FakeCluster) -> Self {
        let mut config = Self::default().current(ADMIN);
        for Credentials { user, .. } in &cluster.credentials {
            let with = |suffix: &str| Context::new(&format!("{user}-{suffix}"), user);
            config.contexts.extend([
                Context::new(user, user),
                with("token").login(Login::Token),
                with("token-file").login(Login::TokenFile),
                with("exec").login(Login::Exec),
                with("basic").login(Login::Basic),
                with("insecure").trust(Trust::Insecure),
                with("server-name").trust(Trust::ServerName),
            ]);
        }
        config
    }

    /// Writes the file, atomically as editors do.
    ///
    /// # Errors
    /// The file cannot be written; a context names a user that the cluster does not have.
    pub fn write(&self, cluster: &FakeCluster, path: &Path) -> Result<(), ClusterError> {
        let mut clusters = Vec::new();
        let mut users = Vec::new();
        let mut contexts = Vec::new();
        for context in &self.contexts {
            let credentials = cluster.credentials.iter().find(|credentials| credentials.user == context.user);
            let credentials = credentials.ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("no user {}", context.user))
            })?;
            clusters.push(json!({ "name": context.name, "cluster": server(context, cluster)? }));
            users.push(json!({ "name": context.name, "user": credentials.login(context.login) }));
            let mut entry = json!({ "cluster": context.name, "user": context.name });
            if let Some(namespace) = &context.namespace {
                entry["namespace"] = json!(namespace);
            }
            contexts.push(json!({ "name": context.name, "context": entry }));
        }
        let current =
            self.current.clone().or_else(|| self.contexts.first().map(|context| context.name.clone()));
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": current.unwrap_or_default(),
            "clusters": clusters,
            "users": users,
            "contexts": contexts,
        });
        replace(path, &format!("{config:#}\n"))?;
        Ok(())
    }
}

fn server(context: &Context, cluster: &FakeCluster) -> Result<Value, ClusterError> {
    let mut entry = json!({ "server": context.server.clone().unwrap_or_else(|| cluster.url()) });
    if let Some(proxy_url) = &context.proxy_url {
        entry["proxy-url"] = json!(proxy_url);
    }
    let authority = STANDARD.encode(cluster.authority());
    if cluster.shared.pki.is_some() {
        match context.trust {
            Trust::Authority => entry["certificate-authority-data"] = json!(authority),
            Trust::ServerName => {
                entry["certificate-authority-data"] = json!(authority);
                entry["tls-server-name"] = json!(SERVER_NAME);
            }
            Trust::Insecure => entry["insecure-skip-tls-verify"] = json!(true),
            Trust::WrongAuthority => {
                let other = crate::pki::foreign_authority().map_err(PkiError::from)?;
                entry["certificate-authority-data"] = json!(STANDARD.encode(other));
            }
        }
    }
    Ok(entry)
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension(format!("new-{}", uid()));
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

/// Everything a user can log in with.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    /// `None` without TLS.
    identity: Option<Identity>,
    expired: Option<Identity>,
    token: String,
    token_file: PathBuf,
    password: String,
    pub(crate) plugin: ExecPlugin,
}

impl Credentials {
    pub(crate) fn issue(shared: &Arc<Shared>, directory: &Path, user: &str) -> Result<Self, ClusterError> {
        let issue = |expired: bool| -> Result<Option<Identity>, PkiError> {
            let Some(pki) = &shared.pki else { return Ok(None) };
            let identity = pki.client(user, expired)?;
            shared.auth.add_certificate(user, &identity.der, !expired);
            Ok(Some(identity))
        };
        let (identity, expired) = (issue(false)?, issue(true)?);
        let (token, password) = (format!("{user}-token-{}", uid()), uid());
        shared.auth.add_token(user, &token, None);
        shared.auth.add_password(user, &password);
        let token_file = directory.join(format!("{user}.token"));
        std::fs::write(&token_file, &token)?;
        let plugin = ExecPlugin::install(shared, directory, user, identity.as_ref())?;
        Ok(Self { user: user.to_owned(), identity, expired, token, token_file, password, plugin })
    }

    fn login(&self, login: Login) -> Value {
        let certificate = |identity: &Option<Identity>| {
            identity.as_ref().map_or_else(
                || json!({ "token": self.token }),
                |identity| {
                    json!({
                        "client-certificate-data": STANDARD.encode(&identity.certificate),
                        "client-key-data": STANDARD.encode(&identity.key),
                    })
                },
            )
        };
        match login {
            Login::Certificate => certificate(&self.identity),
            Login::ExpiredCertificate => certificate(&self.expired),
            Login::Token => json!({ "token": self.token }),
            Login::TokenFile => json!({ "tokenFile": self.token_file }),
            Login::Exec => json!({ "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": self.plugin.command(),
                "interactiveMode": "Never",
            } }),
            Login::Basic => json!({ "username": self.user, "password": self.password }),
            Login::Nothing => json!({}),
        }
    }
}

/// What an exec plugin does when it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginAnswer {
    /// Prints an ExecCredential with a token that never expires.
    Token,
    /// Prints an ExecCredential with a token that the API server stops taking after this time; the credential says so.
    TokenFor(Duration),
    /// Prints an ExecCredential with a client certificate.
    Certificate,
    /// Prints something that is no JSON.
    Junk,
    /// Prints an ExecCredential without a credential.
    Empty,
    /// Prints `login expired: run "fake-cloud login"` to stderr and fails with exit code 1.
    Fail,
    /// Never ends by itself.
    Hang,
}

/// A user's exec plugin: a shell script that counts its runs. Unix only; elsewhere it exists but cannot be run.
#[derive(Debug)]
pub struct ExecPlugin {
    directory: PathBuf,
    user: String,
    shared: Weak<Shared>,
    certificate: Option<(String, String)>,
}

/// `runs` grows by a line with each run; `answer` names what to do; `credential` is what to print.
const SCRIPT: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo run >> "$here/runs"
case $(cat "$here/answer") in
print) cat "$here/credential" ;;
fail)
    echo 'login expired: run "fake-cloud login"' >&2
    exit 1
    ;;
hang) exec sleep 86400 ;;
esac
"#;

impl ExecPlugin {
    fn install(
        shared: &Arc<Shared>,
        directory: &Path,
        user: &str,
        identity: Option<&Identity>,
    ) -> Result<Self, ClusterError> {
        let directory = directory.join(format!("{user}-plugin"));
        std::fs::create_dir(&directory)?;
        let certificate = identity.map(|identity| (identity.certificate.clone(), identity.key.clone()));
        let shared = Arc::downgrade(shared);
        let plugin = Self { directory, user: user.to_owned(), shared, certificate };
        plugin.restore()?;
        std::fs::write(plugin.directory.join("runs"), "")?;
        plugin.answer(PluginAnswer::Token)?;
        Ok(plugin)
    }

    /// The script.
    #[must_use]
    pub fn command(&self) -> PathBuf {
        self.directory.join("fake-cloud-login")
    }

    /// How often it has been run.
    #[must_use]
    pub fn runs(&self) -> usize {
        std::fs::read_to_string(self.directory.join("runs"))
            .map(|runs| runs.lines().count())
            .unwrap_or_default()
    }

    /// Takes the script away, as if the plugin were not installed.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(self.command())
    }

    /// Puts the script (back) where kubeconfigs say it is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn restore(&self) -> io::Result<()> {
        // Written under another name first: a script that is open for writing cannot be run ("text file busy").
        replace(&self.command(), SCRIPT)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(self.command(), std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// What it does from now on. A new token is made each time; older ones stay good (see
    /// [`FakeCluster::revoke_tokens`]).
    ///
    /// # Errors
    /// Its files cannot be written.
    pub fn answer(&self, answer: PluginAnswer) -> io::Result<()> {
        let credential = |status: Value| {
            json!({
                "apiVersion": "client.authentication.k8s.io/v1",
                "kind": "ExecCredential",
                "status": status,
            })
            .to_string()
        };
        let (mode, text) = match answer {
            PluginAnswer::Token => ("print", credential(json!({ "token": self.token(None) }))),
            PluginAnswer::TokenFor(life) => {
                let end = jiff::Timestamp::now() + jiff::SignedDuration::try_from(life).unwrap_or_default();
                let token = self.token(Some(life));
                ("print", credential(json!({ "token": token, "expirationTimestamp": end.to_string() })))
            }
            PluginAnswer::Certificate => {
                let (certificate, key) = self.certificate.clone().unwrap_or_default();
                let status = json!({ "clientCertificateData": certificate, "clientKeyData": key });
                ("print", credential(status))
            }
            PluginAnswer::Junk => ("print", "Welcome to the fake cloud!\n".to_owned()),
            PluginAnswer::Empty => ("print", credential(json!({}))),
            PluginAnswer::Fail => ("fail", String::new()),
            PluginAnswer::Hang => ("hang", String::new()),
        };
        replace(&self.directory.join("credential"), &text)?;
        replace(&self.directory.join("answer"), mode)
    }

    fn token(&self, life: Option<Duration>) -> String {
        let token = format!("{}-exec-{}", self.user, uid());
        if let Some(shared) = self.shared.upgrade() {
            shared.auth.add_token(&self.user, &token, life.map(|life| Instant::now() + life));
        }
        token
    }
}
