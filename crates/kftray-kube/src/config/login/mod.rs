//! Logging in: who we are to the cluster, fetched once for everybody who uses it.
//!
//! kube-rs runs an exec plugin three times for each client it builds, does not notice a rejected token, and never renews
//! certificates that a plugin issued. Here one run serves all callers, a rejected login is fetched anew once, and whatever has
//! an expiry is renewed before it.

mod exec;
mod identity;
mod provider;
mod redact;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use http::HeaderValue;
use jiff::Timestamp;
use kftray_commons::api::LoginReport;
use kftray_commons::{Code, Problem};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;

pub(crate) use exec::ExecPlugin;
pub(crate) use identity::{ClientCertificate, der};
use provider::Provider;
pub(crate) use redact::redact;

use super::{Entry, Environment};

/// A login is renewed this long before it expires: the API server's clock may be ahead, and a request takes time.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a token file's content is trusted; kubelets rotate projected tokens, client-go reads each minute too.
const TOKEN_FILE: Duration = Duration::from_secs(60);
/// How long kube-rs's own answer is used; it keeps the token itself and renews it when needed.
const PROVIDER: Duration = Duration::from_secs(10);
/// A failure is answered from memory for this long, so that a thousand waiting forwards do not run a failing plugin a
/// thousand times.
const FAILURE: Duration = Duration::from_secs(5);

/// What proves who we are on one connection or request.
pub(crate) struct Login {
    /// Rises with each fetch.
    pub(crate) generation: u64,
    /// The `Authorization` header, marked sensitive.
    pub(crate) authorization: Option<HeaderValue>,
    /// The TLS client certificate.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
}

type Fetching = BoxFuture<'static, Result<Arc<Login>, Problem>>;
type Fetch = Shared<Fetching>;

/// The source of logins for one cluster.
pub(crate) struct Credentials {
    source: Arc<Source>,
    /// From the kubeconfig itself; one issued by a plugin goes before it.
    certificate: Option<Arc<ClientCertificate>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    generation: u64,
    kept: Option<Kept>,
    /// The next login is fetched because the one before was rejected.
    rejected: bool,
    failed: Option<(Instant, Problem)>,
    /// Weak: when every caller has gone, the fetch is dropped, and with it the plugin's process.
    under_way: Option<WeakShared<Fetching>>,
}

struct Kept {
    login: Arc<Login>,
    until: Until,
    /// If it replaced a rejected one: when.
    renewed: Option<Instant>,
    /// How long its source took.
    took: Duration,
    /// What it says of its end itself.
    expiry: Option<Timestamp>,
}

/// When a login must be renewed.
#[derive(Clone, Copy)]
enum Until {
    Forever,
    /// Both clocks: the monotonic one stands still while a laptop sleeps, the wall clock may be set back.
    Times(Instant, Timestamp),
}

impl Until {
    fn after(span: Duration) -> Self {
        let wall = Timestamp::now().checked_add(span).unwrap_or(Timestamp::MAX);
        Self::Times(Instant::now() + span, wall)
    }

    /// The margin before an expiry; a login that is issued for less is used for half of its time.
    fn before(expiry: Timestamp) -> Self {
        let left = Duration::try_from(expiry.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
        Self::after(left.checked_sub(MARGIN).unwrap_or(left / 2))
    }

    fn reached(self) -> bool {
        match self {
            Self::Forever => false,
            Self::Times(monotonic, wall) => Instant::now() >= monotonic || Timestamp::now() >= wall,
        }
    }
}

enum Source {
    /// Nothing, or what the kubeconfig says literally.
    Fixed(Option<HeaderValue>),
    TokenFile {
        path: PathBuf,
        /// Used when the file cannot be read: some systems hand it over at start and remove it then
        /// (kubernetes/kubernetes#68164).
        last: Mutex<Option<SecretString>>,
    },
    Exec(Box<ExecPlugin>),
    Provider(Provider),
}

/// What a source yields.
struct Fetched {
    authorization: Option<HeaderValue>,
    certificate: Option<Arc<ClientCertificate>>,
    until: Until,
    expiry: Option<Timestamp>,
}

impl Credentials {
    /// Chooses the source; client-go's order where a user has several.
    ///
    /// # Errors
    /// [`Code::ClientCertificateInvalid`], [`Code::KubeconfigInvalid`] for values that cannot be sent.
    pub(crate) fn new(entry: &Entry, environment: &Environment) -> Result<Self, Problem> {
        let user = &entry.user;
        let certificate = match &entry.identity {
            Some((certificate, key)) => {
                Some(Arc::new(ClientCertificate::from_pem(certificate, key).map_err(|text| {
                    let user = entry.user_name.as_deref().unwrap_or_default();
                    Problem::new(Code::ClientCertificateInvalid, format!("user {user:?}: {text}"))
                })?))
            }
            None => None,
        };
        let source = if let Some(provider) = &user.auth_provider {
            Source::Provider(Provider::new(provider.clone()))
        } else if let Some(path) = user.token_file.as_deref().filter(|path| !path.is_empty()) {
            Source::TokenFile { path: PathBuf::from(path), last: Mutex::new(user.token.clone()) }
        } else if let Some(token) = user.token.as_ref().filter(|token| !token.expose_secret().is_empty()) {
            Source::Fixed(Some(bearer(token)?))
        } else if let (Some(name), Some(password)) = (&user.username, &user.password) {
            Source::Fixed(Some(basic(name, password)?))
        } else if let Some(exec) = &user.exec {
            Source::Exec(Box::new(ExecPlugin::new(exec.clone(), entry, environment)?))
        } else {
            Source::Fixed(None)
        };
        Ok(Self { source: Arc::new(source), certificate, state: Arc::default() })
    }

    /// The login to use now. However many ask, the source is asked once.
    ///
    /// # Errors
    /// [`Code::PluginMissing`], [`Code::PluginFailed`], [`Code::Unauthorized`] for an unreadable token file.
    pub(crate) async fn current(&self) -> Result<Arc<Login>, Problem> {
        let fetch = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(kept) = &state.kept
                && !kept.until.reached()
            {
                return Ok(Arc::clone(&kept.login));
            }
            if let Some((until, problem)) = &state.failed
                && Instant::now() < *until
            {
                return Err(problem.clone());
            }
            self.join(&mut state)
        };
        fetch.await
    }

    /// A login newer than the one the cluster has just rejected, or `None` if there is none to be had: the kubeconfig says
    /// it literally, or the rejected one had itself replaced a rejected one a moment ago. However many were rejected at
    /// once, the source is asked once.
    ///
    /// # Errors
    /// As [`Self::current`].
    pub(crate) async fn renew(&self, rejected: u64) -> Result<Option<Arc<Login>>, Problem> {
        if matches!(*self.source, Source::Fixed(_)) {
            return Ok(None);
        }
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(kept) = &state.kept
                && kept.login.generation == rejected
            {
                if kept.renewed.is_some_and(|at| at.elapsed() < FAILURE) {
                    return Ok(None);
                }
                state.kept = None;
                state.rejected = true;
            }
        }
        let login = self.current().await?;
        Ok((login.generation != rejected).then_some(login))
    }

    /// Forgets a remembered failure: something has changed, try again now.
    pub(crate) fn forget_failure(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failed = None;
    }

    /// For messages: what the login comes from.
    pub(crate) fn describe(&self) -> String {
        match &*self.source {
            Source::Exec(plugin) => format!("credential plugin {}", plugin.command()),
            Source::TokenFile { path, .. } => format!("token file {}", path.display()),
            Source::Provider(provider) => format!("auth-provider {}", provider.name()),
            Source::Fixed(Some(value)) if value.as_bytes().starts_with(b"Basic") => {
                "user name and password".to_owned()
            }
            Source::Fixed(Some(_)) => "token of the kubeconfig".to_owned(),
            Source::Fixed(None) => match &self.certificate {
                Some(certificate) => certificate.describe(Timestamp::now()),
                None => "no credentials at all".to_owned(),
            },
        }
    }

    /// For a doctor: what is known without asking the source, and nothing secret.
    pub(crate) fn report(&self) -> LoginReport {
        let (took, expiry) = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = state.kept.as_ref();
            (kept.map(|kept| kept.took), kept.and_then(|kept| kept.expiry))
        };
        let plugin = match &*self.source {
            Source::Exec(plugin) => Some(plugin.report(took)),
            Source::Fixed(_) | Source::TokenFile { .. } | Source::Provider(_) => None,
        };
        let end =
            expiry.or_else(|| self.certificate.as_ref().and_then(|certificate| certificate.not_after()));
        let expires_at = end.and_then(|end| u64::try_from(end.as_millisecond()).ok());
        LoginReport { kind: self.describe(), plugin, expires_at }
    }

    /// The fetch under way, or a new one.
    fn join(&self, state: &mut State) -> Fetch {
        if let Some(fetch) = state.under_way.as_ref().and_then(WeakShared::upgrade) {
            return fetch;
        }
        state.generation += 1;
        let generation = state.generation;
        let (source, shared, fallback) =
            (Arc::clone(&self.source), Arc::clone(&self.state), self.certificate.clone());
        let fetch: Fetch = async move {
            let begun = Instant::now();
            let fetched = source.fetch().await;
            let took = begun.elapsed();
            let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
            state.under_way = None;
            match fetched {
                Ok(fetched) => {
                    let login = Arc::new(Login {
                        generation,
                        authorization: fetched.authorization,
                        certificate: fetched.certificate.or(fallback),
                    });
                    state.failed = None;
                    let renewed = std::mem::take(&mut state.rejected).then(Instant::now);
                    let (until, expiry) = (fetched.until, fetched.expiry);
                    state.kept = Some(Kept { login: Arc::clone(&login), until, renewed, took, expiry });
                    Ok(login)
                }
                Err(problem) => {
                    state.failed = Some((Instant::now() + FAILURE, problem.clone()));
                    Err(problem)
                }
            }
        }
        .boxed()
        .shared();
        state.under_way = fetch.downgrade();
        fetch
    }
}

impl Source {
    async fn fetch(&self) -> Result<Fetched, Problem> {
        match self {
            Self::Fixed(value) => Ok(Fetched {
                authorization: value.clone(),
                certificate: None,
                until: Until::Forever,
                expiry: None,
            }),
            Self::TokenFile { path, last } => {
                let read = tokio::fs::read_to_string(path).await;
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                match read {
                    Ok(token) if !token.trim().is_empty() => {
                        *last = Some(SecretString::from(token.trim().to_owned()));
                    }
                    Ok(_) => {
                        tracing::warn!(path = %path.display(), "token file is empty, the last token is used");
                    }
                    Err(error) if last.is_none() => {
                        return Err(Problem::new(
                            Code::Unauthorized,
                            format!("token file {} cannot be read: {error}", path.display()),
                        )
                        .with_remedy("Log in again, or correct tokenFile in the kubeconfig."));
                    }
                    Err(error) => tracing::warn!(path = %path.display(), %error, "the last token is used"),
                }
                let token = last.as_ref().map(bearer).transpose()?;
                Ok(Fetched {
                    authorization: token,
                    certificate: None,
                    until: Until::after(TOKEN_FILE),
                    expiry: None,
                })
            }
            Self::Exec(plugin) => {
                let issued = plugin.run().await?;
                Ok(Fetched {
                    authorization: issued.token.as_ref().map(bearer).transpose()?,
                    certificate: issued.certificate.map(Arc::new),
                    until: issued.expiry.map_or(Until::Forever, Until::before),
                    expiry: issued.expiry,
                })
            }
            Self::Provider(provider) => Ok(Fetched {
                authorization: Some(provider.header().await?),
                certificate: None,
                until: Until::after(PROVIDER),
                expiry: None,
            }),
        }
    }
}

fn bearer(token: &SecretString) -> Result<HeaderValue, Problem> {
    sensitive(format!("Bearer {}", token.expose_secret().trim()))
}

fn basic(name: &str, password: &SecretString) -> Result<HeaderValue, Problem> {
    let pair = format!("{name}:{}", password.expose_secret());
    sensitive(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
}

fn sensitive(text: String) -> Result<HeaderValue, Problem> {
    let mut value = HeaderValue::try_from(text).map_err(|_| {
        Problem::new(Code::Unauthorized, "the token holds characters that cannot be sent (a line break?)")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use kftray_commons::ContextRef;
    use kube::config::Kubeconfig;

    use super::*;
    use crate::config::Loaded;

    fn credentials(user: &serde_json::Value) -> Credentials {
        let text = serde_json::json!({
            "current-context": "x",
            "clusters": [{ "name": "c", "cluster": { "server": "https://c.test" } }],
            "users": [{ "name": "u", "user": user }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        });
        let config = Kubeconfig::from_yaml(&text.to_string()).unwrap();
        let entry = Entry::choose(&Loaded { config, ..Loaded::default() }, &ContextRef::Current).unwrap();
        Credentials::new(&entry, &Environment::new([("PATH", "/usr/bin:/bin")], "/")).unwrap()
    }

    async fn shown(credentials: &Credentials) -> String {
        let login = credentials.current().await.unwrap();
        login.authorization.as_ref().map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_file_is_read_each_minute_and_its_loss_survived() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let credentials = credentials(&serde_json::json!({ "tokenFile": path }));
        assert_eq!(credentials.current().await.err().unwrap().code, Code::Unauthorized);
        std::fs::write(&path, "one\n").unwrap();
        tokio::time::advance(FAILURE).await;
        assert_eq!(shown(&credentials).await, "Bearer one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(shown(&credentials).await, "Bearer one");
        tokio::time::advance(TOKEN_FILE).await;
        assert_eq!(shown(&credentials).await, "Bearer two");
        std::fs::remove_file(&path).unwrap();
        tokio::time::advance(TOKEN_FILE).await;
        assert_eq!(shown(&credentials).await, "Bearer two");
    }

    #[tokio::test]
    async fn what_the_kubeconfig_says_literally_is_not_renewed() {
        let credentials = credentials(&serde_json::json!({ "token": "t", "username": "u", "password": "p" }));
        assert_eq!(shown(&credentials).await, "Bearer t");
        let generation = credentials.current().await.unwrap().generation;
        assert!(credentials.renew(generation).await.unwrap().is_none());
    }

    #[test]
    fn the_margin_before_an_expiry() {
        let until =
            |seconds: i64| match Until::before(Timestamp::now() + jiff::SignedDuration::from_secs(seconds)) {
                Until::Times(_, wall) => wall.duration_since(Timestamp::now()).as_secs_f64(),
                Until::Forever => f64::INFINITY,
            };
        assert!((3530.0..=3540.5).contains(&until(3600)), "a minute before");
        assert!((10.0..=20.5).contains(&until(40)), "half of a short one");
        assert!(until(-10) <= 0.5, "an expired one at once");
    }
}
