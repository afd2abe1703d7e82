//! A cluster as the rest of the crate sees it, and the registry that keeps one per kubeconfig entry.

mod impersonation;
mod registry;

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use kftray_commons::api::LoginReport;
use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{ClusterId, Delivery, DialError};
use kube::client::ClientBuilder;
use tokio::time::Instant;

use crate::config::login::Credentials;
use crate::config::{Entry, Environment};
use crate::connect::{
    Carrier, Dialer, Origin, Protocol, ProxyKind, Refusal, RefusalKind, Rest, Route, Tls, Transport,
    TransportChoice, TransportMemory, Trust, Wish, session_order, unauthorized, upgrade,
};

pub use registry::{ClusterState, Clusters};

/// One entry of a kubeconfig, ready to be talked to.
pub struct Cluster {
    id: ClusterId,
    entry: Entry,
    dialer: Arc<Dialer>,
    credentials: Arc<Credentials>,
    impersonation: HeaderMap,
    rest: Rest,
    client: kube::Client,
    choice: TransportChoice,
    memory: Arc<TransportMemory>,
    /// Server and proxy: what [`TransportMemory`] knows it by.
    key: String,
}

impl Cluster {
    /// Makes one. Blocks on the disk for the system's authorities; must run on a tokio runtime's thread.
    fn new(
        id: ClusterId,
        entry: Entry,
        credentials: Arc<Credentials>,
        environment: &Environment,
        choice: TransportChoice,
        memory: Arc<TransportMemory>,
    ) -> Result<Self, Problem> {
        let cluster = &entry.cluster;
        let insecure = cluster.insecure_skip_tls_verify == Some(true);
        let origin =
            Origin::parse(&entry.server, insecure || entry.ca.is_some() || entry.identity.is_some())?;
        let route = Route::choose(&origin, cluster.proxy_url.as_deref(), environment)?;
        let trust = match &entry.ca {
            _ if insecure => Trust::Anybody,
            Some(pem) => Trust::Authorities(pem),
            None => Trust::System,
        };
        let name = cluster.tls_server_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(&origin.host);
        let tls = if origin.tls { Some(Tls::new(name, &trust)?) } else { None };
        let proxy_tls = match &route {
            Route::Proxy(proxy) if matches!(proxy.kind, ProxyKind::Http { tls: true, .. }) => {
                Some(Tls::for_proxy(&proxy.host, &trust)?)
            }
            Route::Proxy(_) | Route::Direct => None,
        };
        let key = format!("{} {}", origin.url(), route.describe());
        let impersonation = impersonation::headers(&entry)?;
        let dialer = Arc::new(Dialer { origin, route, tls, proxy_tls });
        let rest = Rest::new(
            Arc::clone(&dialer),
            Arc::clone(&credentials),
            impersonation.clone(),
            entry.context.clone(),
        );
        let client = ClientBuilder::new(rest.clone(), entry.namespace.clone()).build();
        Ok(Self { id, entry, dialer, credentials, impersonation, rest, client, choice, memory, key })
    }

    /// The number by which [`Clusters::get`] finds it.
    #[must_use]
    pub fn id(&self) -> ClusterId {
        self.id
    }

    /// Name of the context it was made from.
    #[must_use]
    pub fn context(&self) -> &str {
        &self.entry.context
    }

    /// Name of the cluster in the kubeconfig.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.entry.cluster_name
    }

    /// Name of the user in the kubeconfig, if the context has one.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.entry.user_name.as_deref()
    }

    /// The server's URL.
    #[must_use]
    pub fn server(&self) -> String {
        self.dialer.origin.url()
    }

    /// How the server is reached: `direct`, or the proxy and where it was configured.
    #[must_use]
    pub fn route(&self) -> String {
        self.dialer.route.describe()
    }

    /// What the login comes from, without secrets.
    #[must_use]
    pub fn login(&self) -> String {
        self.credentials.describe()
    }

    /// The same in parts, with what the last fetch of it told.
    pub(crate) fn login_report(&self) -> LoginReport {
        self.credentials.report()
    }

    /// The context's namespace, else `default`.
    #[must_use]
    pub fn default_namespace(&self) -> &str {
        &self.entry.namespace
    }

    /// The client for objects and watches: HTTP/2 connections shared by all of them. Cheap to clone.
    ///
    /// Its errors carry a [`Problem`] where dialling or logging in failed; [`crate::request_problem`] reads any of them.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The port-forward protocol that the next session begins with, and why.
    #[must_use]
    pub fn transport(&self) -> Transport {
        match self.choice {
            TransportChoice::Only(protocol) => Transport { protocol, reason: "asked for".to_owned() },
            TransportChoice::Auto => self
                .memory
                .get(&self.key)
                .unwrap_or(Transport { protocol: Protocol::WebSocketTunnel, reason: "default".to_owned() }),
        }
    }

    /// Upgrades a new connection to port-forward with a pod, by exactly this protocol. `ports` is only sent with
    /// [`Protocol::Legacy`], where the pod is dialled at once.
    ///
    /// # Errors
    /// [`DialError`] with a code for login, permission, pod gone, transport refused, certificate, proxy or network.
    pub async fn upgrade(
        &self,
        namespace: &str,
        pod: &str,
        protocol: Protocol,
        ports: &[u16],
    ) -> Result<Carrier, DialError> {
        self.attempt(namespace, pod, protocol, ports).await.map_err(|refusal| error(refusal.problem))
    }

    /// A carrier for many streams by the best protocol known for this cluster, falling back and remembering. `None`: the
    /// cluster speaks neither, only [`Self::single`] is left.
    ///
    /// # Errors
    /// As [`Self::upgrade`].
    pub async fn session(&self, namespace: &str, pod: &str) -> Result<Option<Carrier>, DialError> {
        let learned = self.memory.for_session(&self.key, Instant::now());
        let order = session_order(self.choice, learned);
        let mut refused: Vec<(Protocol, Refusal)> = Vec::new();
        for protocol in order {
            match self.attempt(namespace, pod, protocol, &[]).await {
                Ok(carrier) => {
                    self.learn(protocol, &refused);
                    return Ok(Some(carrier));
                }
                Err(refusal) if matches!(refusal.kind, RefusalKind::Login | RefusalKind::Other) => {
                    return Err(error(refusal.problem));
                }
                Err(refusal) => refused.push((protocol, refusal)),
            }
        }
        self.all_refused(refused)
    }

    /// A carrier for one connection to one port, by the legacy protocol.
    ///
    /// # Errors
    /// As [`Self::upgrade`].
    pub async fn single(&self, namespace: &str, pod: &str, port: u16) -> Result<Carrier, DialError> {
        let result = self.attempt(namespace, pod, Protocol::Legacy, &[port]).await;
        if result.as_ref().is_err_and(|refusal| refusal.kind == RefusalKind::Protocol) {
            // What left only this one may have changed.
            self.memory.forget(&self.key);
        }
        result.map_err(|refusal| error(refusal.problem))
    }

    /// [`Self::session`], and [`Self::single`] to the first of `ports` where there is none.
    ///
    /// # Errors
    /// As [`Self::upgrade`].
    pub async fn upgrade_best(
        &self,
        namespace: &str,
        pod: &str,
        ports: &[u16],
    ) -> Result<Carrier, DialError> {
        match (self.session(namespace, pod).await?, ports.first()) {
            (Some(carrier), _) => Ok(carrier),
            (None, Some(port)) => self.single(namespace, pod, *port).await,
            (None, None) => {
                let text = "only the legacy protocol is left, which needs a port".to_owned();
                Err(error(Problem::new(Code::TransportRefused, text)))
            }
        }
    }

    /// Drops every connection for objects and watches; running watches fail at once, the next request dials anew. For network
    /// changes and wake-ups.
    pub fn reset_connections(&self) {
        self.rest.reset();
        self.credentials.forget_failure();
    }

    /// One protocol, with one fresh login if the first is rejected.
    async fn attempt(
        &self,
        namespace: &str,
        pod: &str,
        protocol: Protocol,
        ports: &[u16],
    ) -> Result<Carrier, Refusal> {
        let wish = Wish { namespace, pod, protocol, ports, context: &self.entry.context };
        let failed = |problem| Refusal { problem, kind: RefusalKind::Other };
        let login = self.credentials.current().await.map_err(failed)?;
        let mut result = upgrade(&self.dialer, &login, &self.impersonation, &wish).await;
        if result.as_ref().is_err_and(|refusal| refusal.kind == RefusalKind::Login)
            && let Some(login) = self.credentials.renew(login.generation).await.map_err(failed)?
        {
            result = upgrade(&self.dialer, &login, &self.impersonation, &wish).await;
        }
        match result {
            Ok(io) => Ok(Carrier { io, protocol }),
            Err(refusal) if refusal.kind == RefusalKind::Login => Err(Refusal {
                problem: unauthorized(&self.entry.context, &self.credentials.describe()),
                kind: RefusalKind::Login,
            }),
            Err(refusal) => Err(refusal),
        }
    }

    /// `protocol` works, after these did not.
    fn learn(&self, protocol: Protocol, refused: &[(Protocol, Refusal)]) {
        if self.choice != TransportChoice::Auto {
            return;
        }
        self.memory.trust(&self.key, protocol);
        let mut firm = true;
        for (other, refusal) in refused {
            firm &= refusal.kind != RefusalKind::Maybe || self.memory.doubt(&self.key, *other);
        }
        if firm {
            let reason = reasons(refused).unwrap_or_else(|| "works".to_owned());
            self.memory.learn(&self.key, Transport { protocol, reason });
        }
    }

    /// Neither protocol for sessions works: a missing permission, a protocol nobody speaks, or a bad moment?
    fn all_refused(&self, refused: Vec<(Protocol, Refusal)>) -> Result<Option<Carrier>, DialError> {
        let reason = reasons(&refused).unwrap_or_default();
        let firm = refused.iter().all(|(_, refusal)| refusal.kind == RefusalKind::Protocol);
        // A permission is what a person can act on; else the latest word.
        let told = refused
            .into_iter()
            .map(|(_, refusal)| refusal)
            .max_by_key(|refusal| refusal.kind == RefusalKind::Permission)
            .map(|refusal| refusal.problem);
        match (told, self.choice) {
            (Some(_), TransportChoice::Auto) if firm => {
                self.memory.learn_legacy(&self.key, reason, Instant::now());
                Ok(None)
            }
            (Some(problem), _) => Err(error(problem)),
            (None, _) => Ok(None),
        }
    }
}

fn reasons(refused: &[(Protocol, Refusal)]) -> Option<String> {
    let texts: Vec<String> =
        refused.iter().map(|(protocol, refusal)| format!("{protocol}: {}", refusal.problem)).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Nothing of a client's bytes is sent before an upgrade is done.
fn error(problem: Problem) -> DialError {
    DialError { problem, delivery: Delivery::Nothing }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.id)
            .field("context", &self.entry.context)
            .field("server", &self.server())
            .finish_non_exhaustive()
    }
}
