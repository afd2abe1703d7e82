//! A cluster as the rest of the crate sees it, and the registry that keeps one per kubeconfig entry.

use std::fmt;
use std::sync::Arc;

use kftray_commons::{ClusterRef, Problem};
use kftray_portforward::ports::{ClusterId, DialError};
use tokio::sync::watch;

use crate::connect::{Carrier, Protocol};

/// What is known about the cluster behind a [`ClusterRef`] now.
#[derive(Debug, Clone)]
pub enum ClusterState {
    /// The kubeconfig has not been read yet.
    Pending,
    /// The entry is usable. A new `Arc` with a new id whenever server, credentials, proxy, context or namespace changed.
    /// Says nothing about whether the server answers.
    Up(Arc<Cluster>),
    /// The kubeconfig or the context cannot be used; the files are watched and the next value follows a change.
    Failed(Problem),
}

/// One entry of a kubeconfig, ready to be talked to.
pub struct Cluster {
    id: ClusterId,
    context: String,
    namespace: String,
    client: kube::Client,
}

impl Cluster {
    /// The number by which [`Clusters::get`] finds it.
    #[must_use]
    pub fn id(&self) -> ClusterId {
        self.id
    }

    /// Name of the context it was made from.
    #[must_use]
    pub fn context(&self) -> &str {
        &self.context
    }

    /// The context's namespace, else `default`.
    #[must_use]
    pub fn default_namespace(&self) -> &str {
        &self.namespace
    }

    /// The client for objects and watches: one HTTP/2 connection shared by all of them. Cheap to clone.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Upgrades a new connection to port-forward with a pod. `ports` is only sent with [`Protocol::Legacy`], where the pod
    /// is dialled at once.
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
        self.upgrade_by(namespace, pod, &[protocol], ports).await
    }

    /// Upgrades with the best protocol known for this cluster, falling back and remembering.
    ///
    /// # Errors
    /// As [`Self::upgrade`], of the last protocol tried.
    pub async fn upgrade_best(&self, namespace: &str, pod: &str, ports: &[u16]) -> Result<Carrier, DialError> {
        self.upgrade_by(namespace, pod, &Protocol::ALL, ports).await
    }

    #[expect(clippy::unused_async, reason = "API first: the body follows in the next commit")]
    async fn upgrade_by(
        &self,
        namespace: &str,
        pod: &str,
        _order: &[Protocol],
        _ports: &[u16],
    ) -> Result<Carrier, DialError> {
        Err(DialError {
            problem: Problem::new(kftray_commons::Code::Unsupported, format!("no upgrade to {namespace}/{pod} yet")),
            delivery: kftray_portforward::ports::Delivery::Nothing,
        })
    }

    /// Drops every connection for objects and watches; the next request or watch dials anew. For network changes and wake-ups.
    pub fn reset_connections(&self) {}
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("id", &self.id).field("context", &self.context).finish_non_exhaustive()
    }
}

/// The registry of clusters. Cheap to clone; all clones share clusters, credentials and file watches.
#[derive(Clone, Default)]
pub struct Clusters {}

impl Clusters {
    /// The cluster of that number, as long as somebody follows it.
    #[must_use]
    pub fn get(&self, _id: ClusterId) -> Option<Arc<Cluster>> {
        None
    }

    /// Follows a kubeconfig entry until every clone of the receiver is dropped. Followers of one entry share one cluster.
    pub fn follow(&self, _cluster: &ClusterRef) -> watch::Receiver<ClusterState> {
        watch::Sender::new(ClusterState::Pending).subscribe()
    }
}
