//! The engine's two traits over a real cluster: the one type a face builds.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kftray_commons::{Code, Problem, RemotePort, Target};
use kftray_portforward::ports::{
    Channel, Delivery, Dial, DialError, Endpoint, Resolution, Resolve, Wanted, Warm,
};
use tokio::sync::watch;

use crate::config::Environment;
use crate::connect::{Carrier, TransportChoice, TransportMemory};
use crate::pool::{Pool, Upgrade};
use crate::{Cluster, Clusters, Resolver};

/// What a face decides.
#[derive(Debug)]
pub struct KubeOptions {
    /// Environment of kubeconfig look-up, credential plugins and proxies.
    pub environment: Environment,
    /// The port-forward protocol.
    pub transport: TransportChoice,
    /// What earlier processes learned about transports; empty if nothing was stored.
    pub memory: TransportMemory,
}

impl KubeOptions {
    /// This process's environment, transport chosen automatically, nothing learned yet.
    #[must_use]
    pub fn from_process() -> Self {
        Self {
            environment: Environment::from_process(),
            transport: TransportChoice::Auto,
            memory: TransportMemory::default(),
        }
    }
}

/// [`Resolve`] and [`Dial`] for every cluster of the user's kubeconfigs. Cheap to clone.
#[derive(Clone)]
pub struct KubePorts {
    clusters: Clusters,
    resolver: Arc<Resolver>,
    pool: Pool,
}

impl KubePorts {
    /// Connects to nothing yet. Must be called within a tokio runtime, on which all watches and sessions run.
    #[must_use]
    pub fn new(options: KubeOptions) -> Self {
        let clusters = Clusters::new(options.environment, options.transport, options.memory);
        let resolver = Arc::new(Resolver::new(clusters.clone()));
        let pool = Pool::new(Arc::new(clusters.clone()));
        Self { clusters, resolver, pool }
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
        if wanted.needs_relay() {
            let message =
                format!("{} needs the relay, which this build does not have yet", wanted.target.object);
            return watch::Sender::new(Resolution::Failed(Problem::new(Code::Unsupported, message)))
                .subscribe();
        }
        self.resolver.follow(&wanted.target, &wanted.port)
    }
}

impl Dial for KubePorts {
    fn warm(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Warm, DialError>> {
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
        let (dial, resolver, endpoint) =
            (self.pool.dial(endpoint, first), Arc::clone(&self.resolver), endpoint.clone());
        async move { dial.await.inspect_err(|_| resolver.refresh(&endpoint)) }.boxed()
    }

    fn network_changed(&self) {
        // Connections first: watches that are kicked before would be re-established on a dead one.
        self.clusters.network_changed();
        self.resolver.network_changed();
        self.pool.network_changed();
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
