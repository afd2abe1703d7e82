//! Listeners for clients: who owns a port, what waits for it, and what a caller gets when nobody is there.
//!
//! A port is bound when it is first asked for and stays bound until its owner withdraws it. When the owner's carrier is
//! lost, callers are held until the owner is back, for a while; then they are turned away until it is.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::io::AsyncWriteExt as _;
use futures::stream::Stream as _;
use ipnet::IpNet;
use kftray_relay_proto::open::{Incoming, Listen, Mode, Open, Reply};
use kftray_relay_proto::reason::{EndKind, Refusal, RefusalKind};
use kftray_relay_proto::record::{Decoder, Record};
use kftray_relay_proto::token::TokenHash;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::carrier::{ToClient, Tunnel};
use crate::dial::KEEPALIVE;
use crate::kept::Kept;
use crate::limits;
use crate::metrics::Kind;
use crate::page;
use crate::relay::{Core, listen_everywhere};
use crate::stream::{refuse, reply};
use crate::tcp::{Outcome, Pump};

/// For the client to open a stream; beyond it the carrier is as good as gone.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Callers of one listener at a time. Each is a socket here and a stream on the carrier, whose own limit comes next.
const CALLERS: usize = 2048;

/// Clients that a caller is offered to at most, one after the other's death: one that dies each time must not keep callers
/// for ever.
const OFFERS: u32 = 3;

/// Rest after an accept that failed for want of files or memory.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// All listeners.
pub(crate) struct Exposures {
    allowed: Vec<RangeInclusive<u16>>,
    hold: Duration,
    ports: Mutex<HashMap<u16, Port>>,
    /// Counts new listeners, for [`Exposures::run`].
    fresh: watch::Sender<u64>,
    unserved: Mutex<Vec<Listener>>,
}

/// A listener on its way to [`Exposures::run`].
struct Listener {
    socket: TcpListener,
    lease: watch::Receiver<Lease>,
    withdrawn: CancellationToken,
    closed: CancellationToken,
}

/// A bound port.
struct Port {
    lease: watch::Sender<Lease>,
    /// Tells the listener to close; its last callers may still be served then.
    withdrawn: CancellationToken,
    /// The listener is closed, and the port can be bound again.
    closed: CancellationToken,
}

/// Who a port belongs to.
#[derive(Clone)]
struct Lease {
    /// Distinguishes the lease from the one that takes it over.
    number: u64,
    token: TokenHash,
    listen: Arc<Terms>,
    owner: Owner,
}

#[derive(Clone)]
enum Owner {
    Here(Arc<Tunnel>),
    /// The carrier was lost; callers wait until then.
    Lost {
        until: Instant,
    },
}

/// What the owner asked for.
struct Terms {
    name: String,
    port: u16,
    mode: Mode,
    callers: Vec<IpNet>,
}

impl Exposures {
    pub(crate) fn new(allowed: Vec<RangeInclusive<u16>>, hold: Duration) -> Self {
        Self {
            allowed,
            hold,
            ports: Mutex::default(),
            fresh: watch::Sender::new(0),
            unserved: Mutex::default(),
        }
    }

    /// Whether callers get an answer; true for a relay without exposures. Also when the owner is gone: a pod that is not ready
    /// leaves its Service, and callers would be refused without a word instead of being told that nobody is there.
    pub(crate) fn is_ready(&self) -> bool {
        self.allowed.is_empty() || self.ports().values().any(|port| !port.withdrawn.is_cancelled())
    }

    /// Accepts callers on all ports, for as long as it is polled.
    pub(crate) async fn run(&self, core: &Arc<Core>) {
        let mut listeners = JoinSet::new();
        let mut fresh = self.fresh.subscribe();
        loop {
            let unserved = std::mem::take(&mut *lock(&self.unserved));
            for listener in unserved {
                let core = Arc::clone(core);
                listeners.spawn(async move { accept(&core, listener).await });
            }
            tokio::select! {
                // The sender lives in `self`.
                _ = fresh.changed() => {}
                Some(_) = listeners.join_next() => {}
            }
        }
    }

    fn ports(&self) -> MutexGuard<'_, HashMap<u16, Port>> {
        lock(&self.ports)
    }

    /// Gives the port to a tunnel, or says why not. Returns the port that is listened on.
    fn claim(
        &self,
        tunnel: &Arc<Tunnel>,
        listen: Listen,
    ) -> Result<(u16, watch::Receiver<Lease>, u64), Refusal> {
        let callers = callers(&listen.callers)?;
        if !self.allowed.iter().any(|range| range.contains(&listen.port)) {
            let message = format!("the relay was not created for a listener on port {}", listen.port);
            return Err(Refusal::new(RefusalKind::Denied, message));
        }
        let mut ports = self.ports();
        if let Some(port) = ports.get(&listen.port) {
            let (receiver, number) = port.take_over(tunnel, listen, callers)?;
            let port = receiver.borrow().listen.port;
            return Ok((port, receiver, number));
        }
        let cannot = |error| {
            let message = format!("the relay cannot listen on port {}: {error}", listen.port);
            Refusal::new(RefusalKind::Internal, message)
        };
        let socket = listen_everywhere(listen.port).map_err(cannot)?;
        // Port 0 (any) is for tests; then the port is known by the one that was found.
        let port = socket.local_addr().map_err(cannot)?.port();
        let terms = Terms { name: listen.name, port, mode: listen.mode, callers };
        let lease = Lease {
            number: 0,
            token: tunnel.owner,
            listen: Arc::new(terms),
            owner: Owner::Here(Arc::clone(tunnel)),
        };
        let lease = watch::Sender::new(lease);
        let receiver = lease.subscribe();
        let (withdrawn, closed) = (CancellationToken::new(), CancellationToken::new());
        lock(&self.unserved).push(Listener {
            socket,
            lease: receiver.clone(),
            withdrawn: withdrawn.clone(),
            closed: closed.clone(),
        });
        ports.insert(port, Port { lease, withdrawn, closed });
        drop(ports);
        self.fresh.send_modify(|count| *count += 1);
        Ok((port, receiver, 0))
    }

    /// The holder of a lease is gone: for good, or perhaps to come back.
    fn leave(&self, port: u16, number: u64, tunnel: &Tunnel) {
        let ports = self.ports();
        let Some(found) = ports.get(&port).filter(|found| found.lease.borrow().number == number) else {
            return;
        };
        if tunnel.is_gone() {
            let until = Instant::now() + self.hold;
            found.lease.send_modify(|lease| lease.owner = Owner::Lost { until });
        } else {
            found.withdrawn.cancel();
        }
    }

    /// Waits until a port that was withdrawn can be bound again.
    async fn free(&self, port: u16) {
        let closed = self
            .ports()
            .get(&port)
            .filter(|found| found.withdrawn.is_cancelled())
            .map(|found| found.closed.clone());
        if let Some(closed) = closed {
            closed.cancelled().await;
            // Unless somebody else has been quicker.
            let mut ports = self.ports();
            if ports.get(&port).is_some_and(|found| found.closed.is_cancelled()) {
                ports.remove(&port);
            }
        }
    }
}

impl Port {
    fn take_over(
        &self,
        tunnel: &Arc<Tunnel>,
        listen: Listen,
        callers: Vec<IpNet>,
    ) -> Result<(watch::Receiver<Lease>, u64), Refusal> {
        let (number, token, port, is_held) = {
            let lease = self.lease.borrow();
            let is_held = match &lease.owner {
                Owner::Here(_) => true,
                Owner::Lost { until } => Instant::now() < *until,
            };
            (lease.number, lease.token, lease.listen.port, is_held)
        };
        if is_held && token != tunnel.owner {
            let message = format!("port {port} of the relay belongs to somebody else");
            return Err(Refusal::new(RefusalKind::Taken, message));
        }
        let number = number + 1;
        let terms = Terms { name: listen.name, port, mode: listen.mode, callers };
        self.lease.send_replace(Lease {
            number,
            token: tunnel.owner,
            listen: Arc::new(terms),
            owner: Owner::Here(Arc::clone(tunnel)),
        });
        Ok((self.lease.subscribe(), number))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn callers(texts: &[String]) -> Result<Vec<IpNet>, Refusal> {
    let net = |text: &String| {
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
            let message = format!("{text:?} among the allowed callers is neither an address nor a CIDR");
            Refusal::new(RefusalKind::Invalid, message)
        })
    };
    texts.iter().map(net).collect()
}

/// Serves an open of kind listen: holds the port for as long as the stream lives.
pub(crate) async fn serve(
    core: &Arc<Core>,
    tunnel: &Arc<Tunnel>,
    mut stream: yamux::Stream,
    rest: Bytes,
    listen: Listen,
) {
    let (name, mode) = (listen.name.clone(), listen.mode);
    core.exposures.free(listen.port).await;
    let (port, mut lease, number) = match core.exposures.claim(tunnel, listen) {
        Ok(claimed) => claimed,
        Err(refusal) => return refuse(core, stream, refusal).await,
    };
    // Dropped with this task, too, which is how the end of a carrier reaches it.
    let _held = Held { core, tunnel, port, number };
    info!(%name, port, ?mode, "listening");
    if !reply(&mut stream, &Reply::Opened { address: String::new(), port }).await {
        return;
    }
    let end = tokio::select! {
        () = client_ends(&mut stream, rest) => None,
        _ = lease.wait_for(|lease| lease.number != number) => {
            Some((EndKind::TakenOver, "the same user's client took the exposure over"))
        }
        () = core.draining.cancelled() => Some((EndKind::Draining, "the relay is going away")),
    };
    info!(%name, port, "listening no more");
    if let Some((kind, message)) = end {
        let mut out = BytesMut::new();
        Record::End { kind, message: message.to_owned() }.encode(&mut out);
        if stream.write_all(&out).await.is_ok() {
            stream.close().await.ok();
        }
    }
}

/// Done when the client sends an end record, or its stream ends.
async fn client_ends(stream: &mut yamux::Stream, mut chunk: Bytes) {
    let mut decoder = Decoder::stream();
    loop {
        match decoder.next(&mut chunk) {
            Ok(Some(Record::End { .. })) | Err(_) => return,
            Ok(Some(Record::Data(_) | Record::Dropped(_))) => continue,
            Ok(None) => {}
        }
        match poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await {
            Some(Ok(packet)) => chunk = Bytes::from_owner(packet),
            Some(Err(_)) | None => return,
        }
    }
}

/// Gives the port back when dropped.
struct Held<'a> {
    core: &'a Core,
    tunnel: &'a Tunnel,
    port: u16,
    number: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.core.exposures.leave(self.port, self.number, self.tunnel);
    }
}

/// Accepts callers until the port is withdrawn, then waits for those that are there.
async fn accept(core: &Arc<Core>, listener: Listener) {
    let Listener { socket: listener, lease, withdrawn, closed } = listener;
    let slots = Arc::new(Semaphore::new(CALLERS));
    let mut callers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => match limits::take(&slots, "callers") {
                    Ok(permit) => {
                        let (core, lease, withdrawn) = (Arc::clone(core), lease.clone(), withdrawn.clone());
                        callers.spawn(async move {
                            let _permit = permit;
                            caller(&core, socket, peer, lease, &withdrawn).await;
                        });
                    }
                    Err(_) => {
                        core.metrics.exposed("busy");
                        reset(&socket);
                    }
                },
                Err(error) => {
                    warn!(%error, "cannot accept a caller");
                    sleep(ACCEPT_REST).await;
                }
            },
            Some(_) = callers.join_next() => {}
            () = withdrawn.cancelled() => break,
        }
    }
    drop((listener, lease));
    closed.cancel();
    while callers.join_next().await.is_some() {}
}

/// Serves one caller.
async fn caller(
    core: &Core,
    socket: TcpStream,
    peer: SocketAddr,
    mut lease: watch::Receiver<Lease>,
    withdrawn: &CancellationToken,
) {
    // Refinements: a socket that refuses them still works.
    socket.set_nodelay(true).ok();
    SockRef::from(&socket).set_tcp_keepalive(&KEEPALIVE).ok();
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let terms = Arc::clone(&lease.borrow().listen);
    if !terms.callers.is_empty() && !terms.callers.iter().any(|net| net.contains(&peer.ip())) {
        core.metrics.exposed("denied");
        debug!(%peer, name = terms.name, "a caller is not on the list");
        return reset(&socket);
    }
    let (mut socket, mut kept) = (socket, Kept::new(terms.mode));
    for offer in 1.. {
        let owner = withdrawn.run_until_cancelled(stream_to_owner(&mut lease)).await.flatten();
        let Some((tunnel, ToClient { stream, counted: _counted }, terms)) = owner else {
            return nobody(core, socket, &terms).await;
        };
        let _live = core.metrics.stream(Kind::Incoming);
        let mut pump = Pump::new(core, stream, socket, Bytes::new()).expect_reply(kept);
        Open::Incoming(Incoming { name: terms.name.clone(), port: terms.port, peer: peer.to_string() })
            .encode(&mut pump.head);
        let is_silent = match served(&mut pump, &tunnel).await {
            Some(Outcome::Ended) => return core.metrics.exposed("served"),
            Some(Outcome::CutOff) => false,
            None => true,
            Some(Outcome::Refused(refusal)) => {
                core.metrics.exposed("refused");
                core.metrics.refusal(refusal.kind);
                return match terms.mode {
                    Mode::Http => page::refused(pump.into_socket(), &terms.name, &refusal.message).await,
                    Mode::Tcp => reset(&pump.into_socket()),
                };
            }
        };
        // Killed before it answered, or asleep: its successor gets the caller, if that does no harm.
        let Some(again) = pump.into_caller() else { return core.metrics.exposed("cut_off") };
        let has_successor = if is_silent {
            timeout(core.exposures.hold, lease.changed()).await.is_ok_and(|changed| changed.is_ok())
        } else {
            tunnel.is_going().await
        };
        if offer >= OFFERS || !has_successor {
            return if is_silent {
                nobody(core, again.0, &terms).await;
            } else {
                core.metrics.exposed("cut_off");
                reset(&again.0);
            };
        }
        (socket, kept) = again;
        core.metrics.exposed("offered_again");
    }
}

/// Serves a caller by way of a client, to its end; `None` if the client falls silent before it has taken the caller.
async fn served(pump: &mut Pump<'_>, tunnel: &Tunnel) -> Option<Outcome> {
    let silent = tunnel.is_silent();
    tokio::pin!(silent);
    poll_fn(|cx| match pump.poll_pump(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending if pump.may_move() => silent.as_mut().poll(cx).map(|()| None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Turns a caller away that there is no client for.
async fn nobody(core: &Core, socket: TcpStream, terms: &Terms) {
    core.metrics.exposed("no_tunnel");
    match terms.mode {
        Mode::Http => page::no_tunnel(socket, &terms.name).await,
        Mode::Tcp => reset(&socket),
    }
}

/// A stream to whoever owns the port now, or within the time that callers are held; `None` if nobody does.
async fn stream_to_owner(lease: &mut watch::Receiver<Lease>) -> Option<(Arc<Tunnel>, ToClient, Arc<Terms>)> {
    loop {
        let now = lease.borrow_and_update().clone();
        match now.owner {
            Owner::Here(tunnel) => {
                if let Ok(Some(stream)) = timeout(OPEN_TIMEOUT, tunnel.open()).await {
                    return Some((tunnel, stream, now.listen));
                }
                if !tunnel.is_gone() {
                    // It is there and opens nothing: no sense in asking again.
                    return None;
                }
                // The lease is about to say so.
                lease.changed().await.ok()?;
            }
            Owner::Lost { until } => {
                // An error: the hold is over, or the port was withdrawn.
                timeout_at(until, lease.changed()).await.ok()?.ok()?;
            }
        }
    }
}

/// Closes with a reset: the caller must not take nothing for an empty answer.
fn reset(socket: &TcpStream) {
    SockRef::from(socket).set_linger(Some(Duration::ZERO)).ok();
}
