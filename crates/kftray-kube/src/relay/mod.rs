//! The relay: a small pod of ours that does in the cluster what the Kubernetes API cannot: UDP, hosts that only the
//! cluster reaches, the way back from the cluster to this machine.
//!
//! [`deploy`] brings it there and keeps it there; [`tunnel`] talks to it. This file is the seam between the two.

pub mod deploy;
pub(crate) mod tunnel;

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use kftray_commons::{ClusterRef, Problem};
use kftray_portforward::ports::{ClusterId, Offer};
use kftray_relay_proto::token::Token;
use tokio::sync::watch;

/// Where relays come from. [`deploy::Deploy`] is this for real clusters.
pub(crate) trait Relays: Send + Sync + 'static {
    /// Follows the relay for a cluster and namespace (`None`: the context's) until every clone of the receiver is dropped.
    /// Never blocks and never fails: failures are values.
    fn follow(
        &self,
        cluster: &ClusterRef,
        namespace: Option<&str>,
        need: Need,
    ) -> watch::Receiver<RelayState>;

    /// The tunnel could not use this relay: look again, and replace it if that is the cure.
    fn doubt(&self, relay: &RelayPod, problem: &Problem);

    /// Makes the objects through which the cluster, or the world, reaches an exposed program; `relay` is one of
    /// [`Need::Expose`] for that name. When the relay was replaced, call it again for the new one (the objects move over)
    /// and only then drop the old [`Exposed`].
    fn expose(&self, relay: &RelayPod, offer: &Offer) -> BoxFuture<'static, Result<Exposed, Problem>>;
}

/// What a follower wants of the relay.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Need {
    /// One that is there, installed or running; never starts one.
    IfThere,
    /// One, wherever it is; starts one if none is there, and again if it goes away.
    Create,
    /// One of its own for the exposed program of this alias, in this very namespace, since a Service will select it.
    Expose(Arc<str>),
}

/// What is known of a relay now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RelayState {
    /// Nothing yet.
    Pending,
    /// None is there, and none is to be started.
    Absent,
    /// It is on its way; the problem says what it waits for.
    Starting(Problem),
    /// Pods that can be tunnelled to, at least one.
    Up(Arc<[RelayPod]>),
    /// It cannot be had; the problem says why, and Deploy goes on watching for a cure.
    Failed(Problem),
}

/// A relay that runs, and what a tunnel to it needs.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RelayPod {
    /// The connection to its cluster.
    pub(crate) cluster: ClusterId,
    /// Its own namespace, which may be another than that of the forwards it serves.
    pub(crate) namespace: Arc<str>,
    /// Its name.
    pub(crate) pod: Arc<str>,
    /// Its uid.
    pub(crate) uid: Arc<str>,
    /// Its node, if known.
    pub(crate) node: Option<Arc<str>>,
    /// Port of the tunnel, on the pod's loopback.
    pub(crate) port: u16,
    /// What proves to the relay that we may use it.
    pub(crate) token: Token,
    /// Installed by an administrator for all.
    pub(crate) installed: bool,
}

/// What was made for an exposed program.
pub(crate) struct Exposed {
    /// The relay is to listen there.
    pub(crate) port: u16,
    /// How the program is reached, for people.
    pub(crate) urls: Vec<String>,
    /// What else is to be known, for people.
    pub(crate) notes: Vec<String>,
    /// What keeps callers away although the tunnel is up, as far as the cluster's objects show it: it changes with them.
    pub(crate) outside: watch::Receiver<Option<Problem>>,
    /// Dropping it deletes the relay it was made for, and with it all objects that still belong to it, without waiting.
    /// The same name published again waits for that.
    #[expect(dead_code, reason = "only its drop matters")]
    pub(crate) guard: Box<dyn Send + Sync>,
}

impl fmt::Debug for RelayPod {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayPod")
            .field("cluster", &self.cluster)
            .field("namespace", &self.namespace)
            .field("pod", &self.pod)
            .field("uid", &self.uid)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}
