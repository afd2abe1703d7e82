//! The engine's two traits over a real cluster, directly and by way of the relay: the one type a face builds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kftray_commons::{Code, Problem, RemotePort, Target, Via};
use kftray_portforward::ports::{
    Channel, DatagramChannel, Delivery, Dial, DialError, Endpoint, Offer, Publication, Resolution, Resolve,
    Route, Wanted, Warm,
};
use tokio::sync::watch;

use crate::config::Environment;
use crate::connect::{Carrier, TransportChoice, TransportMemory};
use crate::deploy::{Deploy, RelayOptions};
use crate::pool::{Pool, Upgrade};
use crate::relay::Relays;
use crate::relay::tunnel::{self, Routes, Tunnels};
use crate::{Cluster, Clusters, Resolver};

/// How long the end of a program waits for objects of exposes to be deleted: a few round trips. What is left then ends by
/// itself.
const WITHDRAWAL: Duration = Duration::from_secs(5);

/// What a face decides.
#[derive(Debug)]
pub struct KubeOptions {
    /// Environment of kubeconfig look-up, credential plugins and proxies.
    pub environment: Environment,
    /// The port-forward protocol.
    pub transport: TransportChoice,
    /// What earlier processes learned about transports; empty if nothing was stored.
    pub memory: TransportMemory,
    /// Who we are to relays, and what relays are to be like.
    pub relay: RelayOptions,
}

impl KubeOptions {
    /// This process's environment, transport chosen automatically, nothing learned yet, relays of this process alone.
    #[must_use]
    pub fn from_process() -> Self {
        Self {
            environment: Environment::from_process(),
            transport: TransportChoice::Auto,
            memory: TransportMemory::default(),
            relay: RelayOptions::ephemeral(),
        }
    }
}

/// [`Resolve`] and [`Dial`] for every cluster of the user's kubeconfigs. Cheap to clone.
#[derive(Clone)]
pub struct KubePorts {
    clusters: Clusters,
    resolver: Arc<Resolver>,
    pool: Pool,
    relays: Deploy,
    tunnels: Tunnels,
    routes: Arc<Routes>,
}

impl KubePorts {
    /// Connects to nothing yet. Must be called within a tokio runtime, on which all watches and sessions run.
    #[must_use]
    pub fn new(options: KubeOptions) -> Self {
        let clusters = Clusters::new(options.environment, options.transport, options.memory);
        let resolver = Arc::new(Resolver::new(clusters.clone()));
        let pool = Pool::new(Arc::new(clusters.clone()));
        let client = format!("kftray/{} {}", env!("CARGO_PKG_VERSION"), options.relay.created_by);
        let relays = Deploy::new(clusters.clone(), options.relay);
        let shared: Arc<dyn Relays> = Arc::new(relays.clone());
        let tunnels = Tunnels::new(Arc::new(pool.clone()), Arc::clone(&shared), client);
        let routes = Routes::new(clusters.clone(), Arc::clone(&resolver), shared, tunnels.clone());
        Self { clusters, resolver, pool, relays, tunnels, routes: Arc::new(routes) }
    }

    /// A person asks for another try of what waits: what clusters have denied or refused is asked for at once.
    pub fn try_again(&self) {
        self.resolver.try_again();
        self.relays.try_again();
    }

    /// The relays, for settings and for what people do with them by hand.
    #[must_use]
    pub fn relays(&self) -> &Deploy {
        &self.relays
    }

    /// Waits, for a moment, until nothing of what was exposed is left in the clusters: for the end of a program, after all
    /// forwards have been stopped.
    pub async fn finish(&self) {
        if tokio::time::timeout(WITHDRAWAL, self.relays.withdrawn()).await.is_err() {
            tracing::warn!("objects of exposes may be left in the cluster; `kftui relay sweep` removes them");
        }
    }

    /// The clusters, for names, namespaces, transports and requests of one's own.
    #[must_use]
    pub fn clusters(&self) -> &Clusters {
        &self.clusters
    }

    /// How a target is looked up where the best way is not permitted, one sentence per denial.
    #[must_use]
    pub fn notes(&self, target: &Target, port: &RemotePort) -> Vec<String> {
        self.resolver.notes(target, port)
    }
}

impl std::fmt::Debug for KubePorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubePorts").field("clusters", &self.clusters).field("pool", &self.pool).finish()
    }
}

impl Resolve for KubePorts {
    fn follow(&self, wanted: &Wanted) -> watch::Receiver<Resolution> {
        match wanted.via {
            _ if wanted.needs_relay() => self.routes.follow(wanted),
            Via::Auto => self.routes.follow(wanted),
            Via::Direct | Via::Relay => self.resolver.follow(&wanted.target, &wanted.port),
        }
    }
}

impl Dial for KubePorts {
    fn warm(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Warm, DialError>> {
        if let Route::Relay { .. } = &endpoint.route {
            return self.tunnels.warm(endpoint);
        }
        let (warm, resolver, endpoint) =
            (self.pool.warm(endpoint), Arc::clone(&self.resolver), endpoint.clone());
        async move {
            let Warm { transport, rtt, lost } = warm.await.inspect_err(|_| resolver.refresh(&endpoint))?;
            // Where no watch is permitted, the loss of the session is the only news of a pod's end.
            let lost = lost.inspect(move |_| resolver.refresh(&endpoint)).boxed();
            Ok(Warm { transport, rtt, lost })
        }
        .boxed()
    }

    fn dial(
        &self,
        endpoint: &Endpoint,
        first: Bytes,
    ) -> BoxFuture<'static, Result<Box<dyn Channel>, DialError>> {
        if let Route::Relay { host } = &endpoint.route {
            return self.tunnels.dial(endpoint, host, first);
        }
        let (dial, resolver, endpoint) =
            (self.pool.dial(endpoint, first), Arc::clone(&self.resolver), endpoint.clone());
        async move { dial.await.inspect_err(|_| resolver.refresh(&endpoint)) }.boxed()
    }

    fn held_back(&self, endpoint: &Endpoint) -> BoxFuture<'static, ()> {
        match endpoint.route {
            Route::Direct => self.pool.held_back(endpoint),
            Route::Relay { .. } => std::future::pending().boxed(),
        }
    }

    fn dial_udp(
        &self,
        endpoint: &Endpoint,
    ) -> BoxFuture<'static, Result<Box<dyn DatagramChannel>, DialError>> {
        match &endpoint.route {
            Route::Relay { host } => self.tunnels.dial_udp(endpoint, host),
            Route::Direct => {
                let message = format!("a port-forward to {endpoint} carries no UDP");
                let problem = Problem::new(Code::Unsupported, message);
                async move { Err(DialError { problem, delivery: Delivery::Nothing }) }.boxed()
            }
        }
    }

    fn publish(&self, offer: &Offer) -> Box<dyn Publication> {
        tunnel::publish(Arc::new(self.relays.clone()), &self.tunnels, offer)
    }

    fn network_changed(&self) {
        // Connections first: watches that are kicked before would be re-established on a dead one.
        self.clusters.network_changed();
        self.resolver.network_changed();
        self.pool.network_changed();
        self.relays.try_again();
    }
}

impl Upgrade for Clusters {
    fn session(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Option<Carrier>, DialError>> {
        let (cluster, endpoint) = (self.behind(endpoint), endpoint.clone());
        async move { cluster?.session(&endpoint.namespace, &endpoint.pod).await }.boxed()
    }

    fn single(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Carrier, DialError>> {
        let (cluster, endpoint) = (self.behind(endpoint), endpoint.clone());
        async move { cluster?.single(&endpoint.namespace, &endpoint.pod, endpoint.port).await }.boxed()
    }
}

impl Clusters {
    fn behind(&self, endpoint: &Endpoint) -> Result<Arc<Cluster>, DialError> {
        self.get(endpoint.cluster).ok_or_else(|| DialError {
            problem: Problem::new(
                Code::ConnectionLost,
                format!(
                    "the kubeconfig entry behind pod {}/{} has changed",
                    endpoint.namespace, endpoint.pod
                ),
            ),
            delivery: Delivery::Nothing,
        })
    }
}
