//! The carriers to the relays in use: which one a connection gets, when another is opened.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kftray_commons::spec::Protocol;
use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{Channel, ClusterId, DatagramChannel, Dial, DialError, Endpoint, Warm};
use kftray_relay_proto::hello::Purpose;
use kftray_relay_proto::open::{Open, Policy, Target};
use kftray_relay_proto::record::{Decoder, Record};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::carrier::{Carrier, Start};
use super::channel::{Records, RelayChannel};
use super::connect::{connect, nothing};
use super::flow::Flow;
use super::lane::Lane;
use crate::relay::{RelayPod, RelayState, Relays};

/// Carriers for TCP: two, so that one that is held up does not hold up everything (research/datapath.md 6).
const TCP_CARRIERS: usize = 2;
/// Carriers for UDP: one of its own, apart from bulk TCP.
const UDP_CARRIERS: usize = 1;
/// Carriers of a kind when all are full.
const MOST_CARRIERS: usize = 4;
/// Streams on the emptiest carrier at which another is opened: below it nobody gains anything.
const SPREAD: usize = 4;
/// Carriers tried for one connection before it fails: one that was about to end, its replacement, and one more.
const ATTEMPTS: usize = 4;
/// How long a relay that was silent may take for its first word on a new stream, which it says within 100 ms whatever the
/// target does; four round trips if that is more, but not more than the last.
const DOUBT_LIMIT: Duration = Duration::from_secs(1);
const DOUBT_MOST: Duration = Duration::from_secs(5);
/// What carries a forward by way of the relay, for people.
const TRANSPORT: &str = "relay";

/// All tunnels of the process. Clones share them.
#[derive(Clone)]
pub(crate) struct Tunnels {
    inner: Arc<Inner>,
}

struct Inner {
    dial: Arc<dyn Dial>,
    relays: Arc<dyn Relays>,
    client: String,
    tunnels: Mutex<HashMap<TunnelKey, Weak<Tunnel>>>,
}

/// Whose relay: the cluster, and the namespace of the forwards (the relay's own may be another).
type TunnelKey = (ClusterId, Arc<str>);

/// The carriers to one relay, which may be several pods. Lives as long as somebody follows the relay; dropping it closes
/// carriers without streams.
pub(crate) struct Tunnel {
    me: Weak<Tunnel>,
    inner: Arc<Inner>,
    relay: watch::Receiver<RelayState>,
    state: Mutex<State>,
    /// Counts openings, so that they go round the relay's pods.
    turn: AtomicUsize,
    /// A forward of TCP goes by it; until one does, it is kept warm for UDP only.
    carries_tcp: AtomicBool,
}

#[derive(Default)]
struct State {
    tcp: Group,
    udp: Group,
}

#[derive(Default)]
struct Group {
    carriers: Vec<Arc<Carrier>>,
    opening: Option<Opening>,
}

/// A carrier being opened, once for all who wait.
struct Opening {
    result: watch::Receiver<Option<Result<(), DialError>>>,
    _task: AbortOnDropHandle<()>,
}

/// What a carrier is for; those for expose are not shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
}

impl Tunnels {
    /// Tunnels over port-forwards of `dial`. `client` names this program in the relay's log.
    pub(crate) fn new(dial: Arc<dyn Dial>, relays: Arc<dyn Relays>, client: String) -> Self {
        Self { inner: Arc::new(Inner { dial, relays, client, tunnels: Mutex::default() }) }
    }

    /// The tunnel for forwards of that namespace by way of that relay, shared by all who ask while one of them holds it.
    pub(crate) fn attach(
        &self,
        cluster: ClusterId,
        namespace: &str,
        relay: &watch::Receiver<RelayState>,
        protocol: Protocol,
    ) -> Arc<Tunnel> {
        let mut tunnels = lock(&self.inner.tunnels);
        let key = (cluster, Arc::from(namespace));
        let known = tunnels.get(&key).and_then(Weak::upgrade);
        let tunnel = known.unwrap_or_else(|| {
            tunnels.retain(|_, tunnel| tunnel.strong_count() > 0);
            let tunnel = Arc::new_cyclic(|me| Tunnel {
                me: Weak::clone(me),
                inner: Arc::clone(&self.inner),
                relay: relay.clone(),
                state: Mutex::default(),
                turn: AtomicUsize::new(0),
                carries_tcp: AtomicBool::new(false),
            });
            tunnels.insert(key, Arc::downgrade(&tunnel));
            tunnel
        });
        if protocol == Protocol::Tcp {
            tunnel.carries_tcp.store(true, Ordering::Relaxed);
        }
        tunnel
    }

    /// A carrier's port-forward and hello.
    ///
    /// # Errors
    /// See [`connect`].
    pub(super) async fn connect(&self, relay: &RelayPod, purpose: Purpose) -> Result<Start, DialError> {
        self.inner.connect(relay, purpose).await
    }

    fn tunnel(&self, endpoint: &Endpoint) -> Result<Arc<Tunnel>, DialError> {
        let key = (endpoint.cluster, Arc::clone(&endpoint.namespace));
        let found = lock(&self.inner.tunnels).get(&key).and_then(Weak::upgrade);
        found.ok_or_else(|| {
            let message = format!("nobody keeps a relay for namespace {} up any more", endpoint.namespace);
            nothing(Problem::new(Code::ConnectionLost, message))
        })
    }

    /// [`Dial::warm`] by way of the relay.
    pub(crate) fn warm(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Warm, DialError>> {
        let tunnel = self.tunnel(endpoint);
        async move {
            let carrier = tunnel?.any().await?;
            let (kept, lost) = (carrier.keep(), carrier.lost());
            let rtt = carrier.rtt;
            let lost = async move {
                let _held = (kept, carrier);
                lost.await
            };
            Ok(Warm { transport: TRANSPORT, rtt, lost: lost.boxed() })
        }
        .boxed()
    }

    /// [`Dial::dial`] by way of the relay, which connects to `host` and the endpoint's port.
    pub(crate) fn dial(
        &self,
        endpoint: &Endpoint,
        host: &str,
        first: Bytes,
    ) -> BoxFuture<'static, Result<Box<dyn Channel>, DialError>> {
        let (tunnel, target) = (self.tunnel(endpoint), target(host, endpoint.port));
        async move {
            let name: Arc<str> = name(&target).into();
            let mut opening = BytesMut::new();
            Open::Tcp { target, policy: Policy::default() }.encode(&mut opening);
            let (lane, records) = tunnel?.connect(opening, first).await?;
            Ok(Box::new(RelayChannel::new(lane, records, name)) as Box<dyn Channel>)
        }
        .boxed()
    }

    /// [`Dial::dial_udp`]: a flow to `host` and the endpoint's port.
    pub(crate) fn dial_udp(
        &self,
        endpoint: &Endpoint,
        host: &str,
    ) -> BoxFuture<'static, Result<Box<dyn DatagramChannel>, DialError>> {
        let (tunnel, target) = (self.tunnel(endpoint), target(host, endpoint.port));
        async move {
            let name: Arc<str> = name(&target).into();
            let mut opening = BytesMut::new();
            Open::Udp { target, policy: Policy::default() }.encode(&mut opening);
            let lane = tunnel?.open(Kind::Udp, &opening).await?;
            Ok(Box::new(Flow::new(lane, name)) as Box<dyn DatagramChannel>)
        }
        .boxed()
    }
}

impl Inner {
    async fn connect(&self, relay: &RelayPod, purpose: Purpose) -> Result<Start, DialError> {
        connect(&*self.dial, relay, purpose, &self.client).await.inspect_err(|error| {
            // Where nothing answers as a relay would, it may not be the one that Deploy believes it to be.
            if matches!(error.problem.code, Code::RelayRefused | Code::PodGone) {
                self.relays.doubt(relay, &error.problem);
            }
        })
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").field("tunnels", &lock(&self.inner.tunnels).len()).finish_non_exhaustive()
    }
}

fn target(host: &str, port: u16) -> Target {
    Target { host: host.to_owned(), port }
}

/// `host:port`, with brackets where they belong.
fn name(target: &Target) -> String {
    let Target { host, port } = target;
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl Tunnel {
    /// A TCP stream that begins with `opening` and the client's `first` bytes. Where the relay has been silent these are
    /// withheld until it is heard, and it must be heard soon: else another carrier gets the connection, of which nothing was
    /// delivered yet.
    async fn connect(&self, opening: BytesMut, first: Bytes) -> Result<(Lane, Records), DialError> {
        let mut whole = opening.clone();
        if !first.is_empty() {
            Record::Data(first.clone()).encode(&mut whole);
        }
        for _ in 0..ATTEMPTS {
            let carrier = self.carrier(Kind::Tcp).await?;
            let doubtful = carrier.is_doubtful();
            let Ok(lane) = carrier.open(if doubtful { opening.clone() } else { whole.clone() }).await else {
                continue;
            };
            let mut records = Records::after_reply(Decoder::stream());
            if !doubtful {
                return Ok((lane, records));
            }
            let patience = DOUBT_LIMIT.max(carrier.rtt.saturating_mul(4)).min(DOUBT_MOST);
            match timeout(patience, records.heard(&lane)).await {
                Ok(true) => {
                    if !first.is_empty() {
                        lane.write(|out| Record::Data(first).encode(out));
                    }
                    return Ok((lane, records));
                }
                Ok(false) => {}
                Err(_) => carrier.suspect(),
            }
        }
        Err(nothing(Problem::new(Code::ConnectionLost, "no connection to the relay stays up")))
    }

    /// A stream that begins with `opening`.
    async fn open(&self, kind: Kind, opening: &BytesMut) -> Result<Lane, DialError> {
        for _ in 0..ATTEMPTS {
            let carrier = self.carrier(kind).await?;
            if let Ok(lane) = carrier.open(opening.clone()).await {
                return Ok(lane);
            }
        }
        Err(nothing(Problem::new(Code::ConnectionLost, "no connection to the relay stays up")))
    }

    /// A carrier of whichever kind; opens one of a kind that is wanted if there is none.
    async fn any(&self) -> Result<Arc<Carrier>, DialError> {
        let known = {
            let pods = self.pods()?;
            let mut state = lock(&self.state);
            state.tcp.emptiest(&pods).or_else(|| state.udp.emptiest(&pods))
        };
        match known {
            Some(carrier) => Ok(carrier),
            None if self.carries_tcp.load(Ordering::Relaxed) => self.carrier(Kind::Tcp).await,
            None => self.carrier(Kind::Udp).await,
        }
    }

    /// The carrier for a new stream; opens one if need be, and another beside it where that spreads the load.
    async fn carrier(&self, kind: Kind) -> Result<Arc<Carrier>, DialError> {
        for _ in 0..ATTEMPTS {
            let mut result = {
                let pods = self.pods()?;
                let mut state = lock(&self.state);
                let group = state.group(kind);
                let found = group.emptiest(&pods);
                let streams = found.as_ref().map_or(usize::MAX, |carrier| carrier.streams());
                let most = match kind {
                    _ if found.is_none() => MOST_CARRIERS,
                    Kind::Tcp => TCP_CARRIERS,
                    Kind::Udp => UDP_CARRIERS,
                };
                if group.opening.is_none() && streams >= SPREAD && group.carriers.len() < most {
                    group.opening = Some(self.open_carrier(kind, &pods));
                }
                match (found, &group.opening) {
                    (Some(carrier), _) => return Ok(carrier),
                    (None, Some(opening)) => opening.result.clone(),
                    (None, None) => {
                        let message = "the relay has as many connections as it takes";
                        return Err(nothing(Problem::new(Code::Overloaded, message)));
                    }
                }
            };
            // An error here means that the opening was abandoned: choose again.
            let Ok(opened) = result.wait_for(Option::is_some).await.map(|opened| opened.clone()) else {
                continue;
            };
            if let Some(Err(error)) = opened {
                return Err(error);
            }
        }
        Err(nothing(Problem::new(Code::ConnectionLost, "no connection to the relay stays up")))
    }

    /// The pods of the relay.
    fn pods(&self) -> Result<Arc<[RelayPod]>, DialError> {
        match &*self.relay.borrow() {
            RelayState::Up(pods) => Ok(Arc::clone(pods)),
            RelayState::Starting(problem) | RelayState::Failed(problem) => Err(nothing(problem.clone())),
            RelayState::Pending | RelayState::Absent => {
                Err(nothing(Problem::new(Code::RelayStarting, "the relay is not up yet")))
            }
        }
    }

    fn open_carrier(&self, kind: Kind, pods: &Arc<[RelayPod]>) -> Opening {
        let (sender, result) = watch::channel(None);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let pod = pods.get(turn.checked_rem(pods.len()).unwrap_or_default()).cloned();
        let (me, inner) = (Weak::clone(&self.me), Arc::clone(&self.inner));
        let task = async move {
            let opened = match &pod {
                Some(pod) => inner.connect(pod, kind.purpose()).await,
                None => Err(nothing(Problem::new(Code::RelayStarting, "the relay has no pod"))),
            };
            let Some(me) = me.upgrade() else { return };
            let mut state = lock(&me.state);
            let group = state.group(kind);
            let done = opened.map(|start| group.carriers.push(Carrier::start(start)));
            // The entry holds this very task: it may go only after everything is said.
            let entry = group.opening.take();
            drop(state);
            sender.send_replace(Some(done));
            drop(entry);
        };
        let task = AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(task));
        Opening { result, _task: task }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("relay", &*self.relay.borrow()).finish_non_exhaustive()
    }
}

impl Kind {
    fn purpose(self) -> Purpose {
        match self {
            Self::Tcp => Purpose::Tcp,
            Self::Udp => Purpose::Udp,
        }
    }
}

impl State {
    fn group(&mut self, kind: Kind) -> &mut Group {
        match kind {
            Kind::Tcp => &mut self.tcp,
            Kind::Udp => &mut self.udp,
        }
    }
}

impl Group {
    /// The carrier with the fewest streams to one of these pods. Those to other pods are kept only for what runs on them.
    fn emptiest(&mut self, pods: &[RelayPod]) -> Option<Arc<Carrier>> {
        let is_current = |carrier: &Carrier| pods.iter().any(|pod| pod.uid == carrier.relay);
        self.carriers.retain(|carrier| carrier.is_up() && (is_current(carrier) || carrier.streams() > 0));
        let usable = self.carriers.iter().filter(|carrier| is_current(carrier) && !carrier.is_full());
        usable.min_by_key(|carrier| carrier.streams()).cloned()
    }
}

/// No change under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
