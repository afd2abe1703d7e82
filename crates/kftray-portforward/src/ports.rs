//! What the engine needs from the outside, as traits: find pods ([`Resolve`]), reach a port of one ([`Dial`]).
//!
//! The engine decides; adapters do. `kftray-kube` implements both for a real cluster, tests implement them in memory, and
//! the relay will be a second [`Dial`].

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use kftray_commons::{Problem, RemotePort, Target};
use tokio::sync::watch;

/// Finds the pods behind a target and keeps finding them.
pub trait Resolve: Send + Sync + 'static {
    /// Follows a target until every clone of the returned receiver is dropped. Never blocks and never fails: failures
    /// are values of the stream. All followers of one (cluster, namespace, kind) share one watch.
    fn follow(&self, target: &Target, port: &RemotePort) -> watch::Receiver<Resolution>;
}

/// What is known about a target now.
#[derive(Debug, Clone)]
pub enum Resolution {
    /// Nothing yet: the first answer of the cluster is still out. If it comes again later, the cluster itself has changed
    /// (context switched): what was known before is void, no new connection goes there.
    Pending,
    /// The pods, in a stable order (by pod name). May be empty or have none ready; `why_none` then says why.
    Endpoints {
        /// Every endpoint, ready or not.
        endpoints: Arc<[Endpoint]>,
        /// Why no endpoint is ready, if none is.
        why_none: Option<Problem>,
    },
    /// It cannot be looked up; the problem's code says whether the adapter keeps retrying by itself ([`Cure::Retry`],
    /// [`Cure::Wait`]) or needs a person ([`Cure::User`]). In every case the adapter goes on watching for a cure
    /// (kubeconfig edited, object created) and publishes the next value. What was known before is void: after a switch of
    /// context nothing may go to the old cluster. An adapter that has merely lost its watch therefore does not say this,
    /// but leaves the endpoints last known standing.
    ///
    /// [`Cure::Retry`]: kftray_commons::Cure::Retry
    /// [`Cure::Wait`]: kftray_commons::Cure::Wait
    /// [`Cure::User`]: kftray_commons::Cure::User
    Failed(Problem),
}

/// One port of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The adapter's number for the cluster connection it belongs to; a new one after the kubeconfig's entry changed.
    pub cluster: ClusterId,
    /// Namespace of the pod.
    pub namespace: Arc<str>,
    /// Name of the pod.
    pub pod: Arc<str>,
    /// UID of the pod: a StatefulSet's successor has the same name and another UID. Empty where only the name is known.
    pub uid: Arc<str>,
    /// Node it runs on, if known; the governor counts by node.
    pub node: Option<Arc<str>>,
    /// Container port, after Service port and named ports have been mapped.
    pub port: u16,
    /// May new connections go there.
    pub condition: Condition,
}

/// Whether new connections may go to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Ready and not terminating.
    Ready,
    /// Terminating but still serving: only when nothing else is there.
    Draining,
    /// Neither.
    NotReady,
}

/// The adapter's number for one cluster connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub u64);

/// Reaches a port of a pod.
pub trait Dial: Send + Sync + 'static {
    /// Makes sure that a transport to the endpoint's pod is up and has answered a PING, without touching the application
    /// in the pod. Cheap when it already is.
    fn warm(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Warm, DialError>>;

    /// Opens one connection. `first` is what the client has already sent (may be empty); it goes out in the same write
    /// as the opening where the transport allows. Resolves as soon as the connection can carry data, which may be before
    /// the pod has answered; a refusal then comes out of the channel.
    fn dial(
        &self,
        endpoint: &Endpoint,
        first: Bytes,
    ) -> BoxFuture<'static, Result<Box<dyn Channel>, DialError>>;

    /// The machine woke up or changed network: every transport must prove itself now or be replaced.
    fn network_changed(&self);
}

/// A transport that is up. Holding it keeps the transport from being closed for idleness.
pub struct Warm {
    /// What carries it, for people: `websocket`, `spdy`, `legacy`.
    pub transport: &'static str,
    /// Round trip of the PING that proved it.
    pub rtt: Duration,
    /// Resolves when the transport is lost, with the reason. Dropping it gives the interest up.
    pub lost: BoxFuture<'static, Problem>,
}

/// A failure to open a connection or a transport.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{problem}")]
pub struct DialError {
    /// What went wrong, for people.
    pub problem: Problem,
    /// Whether the application can have seen the connection or its bytes.
    pub delivery: Delivery,
}

/// One open connection to a port of a pod. Polled from one task, both directions.
pub trait Channel: Send + 'static {
    /// The next bytes from the pod; `None` is the orderly end. After an error or the end it must not be polled again.
    ///
    /// # Errors
    /// [`ChannelError`] ends the connection.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>>;

    /// Ready to take more bytes for the pod: the transport's queue has room. The same `cx` is woken when it has.
    ///
    /// # Errors
    /// [`ChannelError`] ends the connection.
    fn poll_send_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>>;

    /// Queues bytes for the pod, after [`Self::poll_send_ready`] was ready. Does not wait.
    fn send(&mut self, data: Bytes);

    /// The client will send no more. Passed on only where the transport has a true half-close; a port-forward has none
    /// (the runtime would cut the answer off after one second), so there it is withheld until the remote ends. Saying it
    /// again changes nothing.
    fn finish(&mut self);

    /// Whether [`Self::finish`] reaches the application.
    fn half_close(&self) -> HalfClose;

    /// The client has closed both directions: what was queued must still arrive, followed by the end; what comes back is
    /// of no interest. Returns whether the transport takes that over, and gives up by itself after a while: then the
    /// channel is dropped at once, and the drop must not reset its streams. If not, the channel is kept until it ends.
    /// Comes after [`Self::finish`]. Does not wait.
    fn close(&mut self) -> bool {
        false
    }
}

/// What a transport does with a half-close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfClose {
    /// Passes it on.
    Passed,
    /// Withholds it until the remote ends.
    Withheld,
}

/// The end of one connection that was not orderly. Other connections are not concerned.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{problem}")]
pub struct ChannelError {
    /// What went wrong, for people.
    pub problem: Problem,
    /// Whether the application can have seen the connection or its bytes.
    pub delivery: Delivery,
}

/// Whether the application in the pod can have seen a connection's bytes. Only what certainly did not arrive may be
/// replayed on another pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Certainly nothing reached the application.
    Nothing,
    /// It cannot be known.
    Unknown,
}

/// Names for tests and logs.
impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.pod, self.port)
    }
}
