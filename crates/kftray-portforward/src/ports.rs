//! What the engine needs from the outside, as traits: find what a forward goes to ([`Resolve`]), reach it by TCP or UDP,
//! and make a local program reachable in the cluster ([`Dial`]).
//!
//! The engine decides; adapters do. `kftray-kube` implements both for a real cluster, directly to pods and by way of the
//! relay; tests implement them in memory.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use kftray_commons::spec::{Expose, Protocol};
use kftray_commons::{ClusterRef, Code, Problem, RemotePort, Target, TargetObject, Via};
use tokio::sync::watch;

/// What a forward wants to reach, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The object in the cluster, or a host that the cluster reaches.
    pub target: Target,
    /// Its port. A name only where the target is an object of the cluster.
    pub port: RemotePort,
    /// TCP or UDP; a Service's port is looked for among those of this protocol.
    pub protocol: Protocol,
    /// Which way TCP takes.
    pub via: Via,
}

impl Wanted {
    /// TCP by a port-forward to the pod itself.
    #[must_use]
    pub fn direct(target: Target, port: RemotePort) -> Self {
        Self { target, port, protocol: Protocol::Tcp, via: Via::Direct }
    }

    /// Whether only the relay can do it: UDP, a host, or TCP of which somebody said so. [`Via::Auto`] needs none.
    #[must_use]
    pub fn needs_relay(&self) -> bool {
        self.protocol == Protocol::Udp
            || matches!(self.target.object, TargetObject::Host(_))
            || self.via == Via::Relay
    }
}

/// Finds the endpoints of what is wanted and keeps finding them.
pub trait Resolve: Send + Sync + 'static {
    /// Follows a target until every clone of the returned receiver is dropped. Never blocks and never fails: failures
    /// are values of the stream. All followers of one (cluster, namespace, kind) share one watch. Where the relay is
    /// needed ([`Wanted::needs_relay`]), following it also keeps the relay up, and the endpoints have
    /// [`Route::Relay`]; while it starts there are none, and `why_none` tells how far it is
    /// ([`Code::RelayStarting`]).
    fn follow(&self, wanted: &Wanted) -> watch::Receiver<Resolution>;
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
    /// [`Cure::Wait`]) or needs a person ([`Cure::User`]; connections then wait for two seconds only). In every case the
    /// adapter goes on watching for a cure (kubeconfig edited, object created) and publishes the next value. What was known
    /// before is void: after a switch of context nothing may go to the old cluster. An adapter that has merely lost its
    /// watch therefore does not say this, but leaves the endpoints last known standing.
    ///
    /// [`Cure::Retry`]: kftray_commons::Cure::Retry
    /// [`Cure::Wait`]: kftray_commons::Cure::Wait
    /// [`Cure::User`]: kftray_commons::Cure::User
    Failed(Problem),
}

/// One port of one pod, or of a host that the cluster reaches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The adapter's number for the cluster connection it belongs to; a new one after the kubeconfig's entry changed.
    pub cluster: ClusterId,
    /// Namespace of the pod; for a host, the one whose relay connects to it.
    pub namespace: Arc<str>,
    /// Name of the pod; empty for a host.
    pub pod: Arc<str>,
    /// UID of the pod: a StatefulSet's successor has the same name and another UID. Empty where only the name is known.
    pub uid: Arc<str>,
    /// Node it runs on, if known; the governor counts by node.
    pub node: Option<Arc<str>>,
    /// Container port, after Service port and named ports have been mapped; by way of the relay, the port it dials.
    pub port: u16,
    /// May new connections go there.
    pub condition: Condition,
    /// How it is reached.
    pub route: Route,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Route {
    /// By a port-forward to the pod itself.
    #[default]
    Direct,
    /// By the relay of the endpoint's cluster and namespace; the governor of the pod's node does not count it.
    Relay {
        /// What the relay connects to: the pod's IP address, or the host.
        host: Arc<str>,
    },
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

    /// Resolves when connections to what runs this endpoint are held back for so long, to protect it, that a person would
    /// notice: a second. What merely takes long (a login, a slow network, a stuck transport) does not count.
    fn held_back(&self, endpoint: &Endpoint) -> BoxFuture<'static, ()> {
        let _ = endpoint;
        Box::pin(std::future::pending())
    }

    /// Opens one UDP flow to an endpoint with [`Route::Relay`]. Resolves as soon as datagrams can be queued, before the
    /// relay has answered, so that the first ones go out in the same write as the opening; a refusal then comes out of
    /// the channel.
    fn dial_udp(
        &self,
        endpoint: &Endpoint,
    ) -> BoxFuture<'static, Result<Box<dyn DatagramChannel>, DialError>> {
        let problem = Problem::new(Code::Unsupported, format!("{endpoint} cannot be reached by UDP here"));
        Box::pin(async move { Err(DialError { problem, delivery: Delivery::Nothing }) })
    }

    /// Makes a local program reachable: the relay, its objects in the cluster, the tunnel. Returns at once; what becomes
    /// of it is told by the publication.
    fn publish(&self, offer: &Offer) -> Box<dyn Publication> {
        let message = format!("{} cannot be exposed here", offer.name);
        Box::new(Unpublished(watch::Sender::new(PublicationState::Failed(Problem::new(
            Code::Unsupported,
            message,
        )))))
    }

    /// The machine woke up or changed network: every transport must prove itself now or be replaced.
    fn network_changed(&self);
}

/// One UDP flow: datagrams between one local peer and one endpoint. Polled from one task, both directions.
pub trait DatagramChannel: Send + 'static {
    /// The next datagram from the endpoint, as it was sent, an empty one included; `None` when the relay has closed the
    /// flow for its own reasons (idle, draining). After an error or `None` it must not be polled again.
    ///
    /// # Errors
    /// [`ChannelError`] ends the flow: the endpoint is unreachable ([`Code::RemoteRefused`] is ICMP's "port
    /// unreachable"), the open was refused, the carrier is lost.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>>;

    /// Queues a datagram of 0 to 65,507 bytes for the endpoint. Never waits: beyond 256 KiB or 50 ms in the queue the
    /// oldest ones are dropped, since a reliable carrier must not become a delay line.
    fn send(&mut self, datagram: Bytes);

    /// Datagrams of either direction that this flow has dropped so far, on this machine or, as far as it has said so, at the
    /// relay.
    fn dropped(&self) -> u64;
}

/// A local program to be made reachable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The cluster.
    pub cluster: ClusterRef,
    /// Namespace; `None` is the context's namespace, else `default`.
    pub namespace: Option<String>,
    /// The alias: name of the Service, or public host name.
    pub name: String,
    /// What is exposed and to whom.
    pub expose: Expose,
}

/// A local program that is being made reachable, or is. Dropping it withdraws: callers are refused at once, objects in
/// the cluster are deleted as far as possible; publishing the same name again waits for that.
pub trait Publication: Send + 'static {
    /// How far it is. Everything that mends itself (tunnel lost, relay evicted, watch broken) is mended by the
    /// publication, which says `Pending` meanwhile.
    fn state(&self) -> watch::Receiver<PublicationState>;

    /// The next connection from the cluster. As long as it is not polled, callers wait at the relay.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Inbound>;

    /// Try again now: after [`PublicationState::Failed`] a person asks for it, the network has changed, or the engine's
    /// backoff is over. Without effect in other states.
    fn retry(&mut self);
}

/// How far a publication is.
#[derive(Debug, Clone, PartialEq)]
pub enum PublicationState {
    /// On its way, for the first time or again; for what it waits, if known.
    Pending(Option<Problem>),
    /// Callers reach this machine.
    Up {
        /// Under which URLs, the best one first: `http://myapp.dev`, `https://myapp.example.com`, `tcp://myapp.dev:5432`.
        urls: Vec<String>,
        /// What a person may want to know (certificate not issued yet, address of the Ingress).
        notes: Vec<String>,
    },
    /// It rests until [`Publication::retry`], which the engine calls by the cure of the problem's code; it may also come
    /// back by itself when the cluster changes.
    Failed(Problem),
}

/// One connection from the cluster to the exposed program.
pub struct Inbound {
    /// Its bytes; received ones are the caller's.
    pub channel: Box<dyn Channel>,
    /// The caller's address as the relay saw it, `ip:port`; for public callers that is the Ingress controller's.
    pub peer: String,
}

/// A publication that cannot be.
struct Unpublished(watch::Sender<PublicationState>);

impl Publication for Unpublished {
    fn state(&self) -> watch::Receiver<PublicationState> {
        self.0.subscribe()
    }

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<Inbound> {
        Poll::Pending
    }

    fn retry(&mut self) {}
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

/// `namespace/pod:port`, or `host:port by relay`.
impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.route {
            Route::Direct => write!(f, "{}/{}:{}", self.namespace, self.pod, self.port),
            Route::Relay { .. } if !self.pod.is_empty() => {
                write!(f, "{}/{}:{} by relay", self.namespace, self.pod, self.port)
            }
            Route::Relay { host } if host.contains(':') => write!(f, "[{host}]:{} by relay", self.port),
            Route::Relay { host } => write!(f, "{host}:{} by relay", self.port),
        }
    }
}
