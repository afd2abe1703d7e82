//! One carrier from its first byte to its last: hello, then yamux until either side ends it.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use kftray_relay_proto::handshake::Verdict;
use kftray_relay_proto::hello::ClientHello;
use kftray_relay_proto::reason::{Refusal, RefusalKind};
use kftray_relay_proto::token::TokenHash;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument as _, debug, info, info_span};
use yamux::Mode;

use crate::limits::{self, Permit};
use crate::mux::Carrier;
use crate::relay::Core;
use crate::stream;

/// A hello takes a round trip at most; a stranger that says nothing is shown the door after this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// yamux pings at most every 10 s, and only when it is polled: this is what polls a silent carrier.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A carrier that has been silent this long is dead: three heartbeats, each with a ping that was not answered. Without
/// it a laptop that vanished would keep the relay alive until the kubelet's 4 hours are over.
const SILENCE: Duration = Duration::from_secs(50);

/// A client that lives is heard with each heartbeat at least: one that has not been heard for longer may be asleep.
const QUIET: Duration = Duration::from_secs(20);

/// And is given so long to say something that it was asked for.
const ASKED: Duration = Duration::from_secs(5);

/// For the last words of a carrier that is closed.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// From the end of a carrier's streams to the word that it is gone: one poll of its task, on a busy machine.
const GOING: Duration = Duration::from_millis(100);

/// Requests for streams to the client that may wait for the carrier's task.
const REQUESTS: usize = 64;

/// What the streams of a carrier know of it.
pub(crate) struct Tunnel {
    /// Whose it is: listeners belong to it.
    pub(crate) owner: TokenHash,
    opener: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    /// Becomes true when the carrier is gone.
    gone: watch::Receiver<bool>,
    /// Bounds the streams of both sides together.
    permits: Arc<Semaphore>,
    /// Streams to the client, which a drain waits for.
    incoming: TaskTracker,
    /// When the client was last heard.
    heard: Mutex<Instant>,
}

/// A stream to the client; it counts as long as this lives.
pub(crate) struct ToClient {
    pub(crate) stream: yamux::Stream,
    pub(crate) counted: (Permit, TaskTrackerToken),
}

impl Tunnel {
    /// A stream to the client; `None` when the carrier is gone or has as many streams as it may.
    pub(crate) async fn open(&self) -> Option<ToClient> {
        let counted = (limits::take(&self.permits, "streams on this tunnel").ok()?, self.incoming.token());
        let (sender, receiver) = oneshot::channel();
        self.opener.send(sender).await.ok()?;
        Some(ToClient { stream: receiver.await.ok()?, counted })
    }

    pub(crate) fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    fn hear(&self, at: Instant) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Ends if the client answers nothing for [`ASKED`] from now, and says nothing else for [`QUIET`]: then it sleeps, or the way
    /// to it is dead. One that lives may well let callers wait.
    pub(crate) async fn is_silent(&self) {
        let asked = Instant::now() + ASKED;
        loop {
            let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let due = asked.max(heard + QUIET);
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }

    /// Whether the carrier is gone or about to be: on several threads its streams may see its end before it is said.
    pub(crate) async fn is_going(&self) -> bool {
        timeout(GOING, self.gone.clone().wait_for(|gone| *gone)).await.is_ok_and(|gone| gone.is_ok())
    }
}

/// Serves one connection to the tunnel port.
pub(crate) async fn serve(core: Arc<Core>, mut socket: TcpStream, peer: SocketAddr, stranger: Permit) {
    socket.set_nodelay(true).ok();
    let mut input = BytesMut::new();
    let Some(hello) = hello(&core, &mut socket, &mut input).await else { return };
    let Ok(_permit) = limits::take(&core.bounds.carriers, "tunnels") else { return };
    drop(stranger);
    let span = info_span!("tunnel", client = %hello.client, purpose = hello.purpose.as_str());
    async {
        info!(%peer, "up");
        let _live = core.metrics.carrier(hello.purpose);
        let _counted = Counted::new(&core.tunnels);
        let carrier = Carrier::new(socket, &input, Mode::Server, hello.purpose, Instant::now());
        let why = Driver::new(&core, hello.token.hash(), carrier).run().await;
        info!(why, "down");
    }
    .instrument(span)
    .await;
}

/// Counts a tunnel as long as it lives.
struct Counted<'a>(&'a watch::Sender<usize>);

impl<'a> Counted<'a> {
    fn new(tunnels: &'a watch::Sender<usize>) -> Self {
        tunnels.send_modify(|count| *count += 1);
        Self(tunnels)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The relay's end of the hello; `None` if the other side is turned away.
async fn hello(core: &Core, socket: &mut TcpStream, input: &mut BytesMut) -> Option<ClientHello> {
    let mut out = BytesMut::new();
    let outcome = timeout(HELLO_TIMEOUT, async {
        loop {
            match core.admission.advance(input, &mut out) {
                Ok(Some(verdict)) => return Ok(verdict),
                Ok(None) => {}
                Err(error) => {
                    debug!(%error, "a stranger at the tunnel port");
                    return Err("garbage");
                }
            }
            if socket.read_buf(input).await.unwrap_or(0) == 0 {
                return Err("left");
            }
        }
    });
    let verdict = match outcome.await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(reason)) => {
            core.metrics.stranger(reason);
            return None;
        }
        Err(_) => {
            core.metrics.stranger("silent");
            return None;
        }
    };
    let verdict = match verdict {
        Verdict::Accepted { hello, .. } => match overload(core) {
            None => Ok(hello),
            Some(refusal) => {
                out.clear();
                core.admission.refuse(refusal.clone(), &mut out);
                Err(refusal)
            }
        },
        Verdict::Refused(refusal) => Err(refusal),
    };
    let sent = timeout(HELLO_TIMEOUT, socket.write_all(&out)).await;
    match verdict {
        Ok(hello) => matches!(sent, Ok(Ok(()))).then_some(hello),
        Err(refusal) => {
            info!(%refusal, "a hello is refused");
            core.metrics.stranger(refusal.kind.as_str());
            socket.shutdown().await.ok();
            None
        }
    }
}

/// Why a client with a good hello is turned away all the same.
fn overload(core: &Core) -> Option<Refusal> {
    if core.draining.is_cancelled() {
        return Some(Refusal::new(RefusalKind::Draining, "the relay is going away"));
    }
    if core.bounds.carriers.available_permits() == 0 {
        return Some(Refusal::new(RefusalKind::Busy, "the relay has as many tunnels as it takes"));
    }
    core.bounds.check_memory(Instant::now()).err()
}

/// yamux and the streams on it.
struct Driver<'a> {
    core: &'a Arc<Core>,
    carrier: Carrier,
    tunnel: Arc<Tunnel>,
    gone: watch::Sender<bool>,
    requests: mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
    /// A request that yamux could not serve yet.
    waiting: Option<oneshot::Sender<yamux::Stream>>,
    streams: JoinSet<()>,
}

/// What a poll of yamux brought.
enum Event {
    Stream(yamux::Stream),
    Ended(&'static str),
}

impl<'a> Driver<'a> {
    fn new(core: &'a Arc<Core>, owner: TokenHash, carrier: Carrier) -> Self {
        let (opener, requests) = mpsc::channel(REQUESTS);
        let gone = watch::Sender::new(false);
        let tunnel = Arc::new(Tunnel {
            owner,
            opener,
            gone: gone.subscribe(),
            permits: Arc::new(Semaphore::new(core.bounds.streams_per_carrier)),
            incoming: TaskTracker::new(),
            heard: Mutex::new(carrier.heard()),
        });
        Self { carrier, tunnel, gone, requests, waiting: None, streams: JoinSet::new(), core }
    }

    /// Until the end, which it names.
    async fn run(mut self) -> &'static str {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (why, lost) = loop {
            let draining = self.core.draining.is_cancelled();
            if draining {
                // From now on its wait ends when the last of them has.
                self.tunnel.incoming.close();
            }
            let Self { core, carrier, requests, waiting, streams, tunnel, .. } = &mut self;
            let opened_by_client = streams.len();
            tokio::select! {
                event = poll_fn(|cx| {
                    core.bounds.relieve(Instant::now());
                    carrier.has_streams(opened_by_client + tunnel.incoming.len());
                    let event = poll(carrier, requests, waiting, cx);
                    tunnel.hear(carrier.heard());
                    event
                }) => match event {
                    Event::Stream(stream) => self.take(stream),
                    Event::Ended(why) => break (why, true),
                },
                Some(_) = streams.join_next() => {}
                _ = heartbeat.tick() => {
                    if carrier.heard().elapsed() > SILENCE {
                        break ("silent for too long", true);
                    }
                }
                () = core.draining.cancelled(), if !draining => {}
                () = tunnel.incoming.wait(), if draining && streams.is_empty() => break ("the relay stops", false),
                () = core.closing.cancelled() => break ("the relay stops, and cuts off what is open", false),
            }
        };
        self.gone.send_replace(true);
        self.streams.shutdown().await;
        // Else its drop ends the streams that callers hold; after a goodbye they would never hear of it.
        if !lost {
            let core = self.core;
            // A client on a slow way still gets what its connections ended with, as long as there is time for that.
            let cut_off = async {
                core.closing.cancelled().await;
                sleep(CLOSE_TIMEOUT).await;
            };
            tokio::select! {
                _ = poll_fn(|cx| self.carrier.poll_close(cx)) => {}
                () = cut_off => {}
            }
        }
        why
    }

    fn take(&mut self, stream: yamux::Stream) {
        let permit = limits::take(&self.tunnel.permits, "streams on this tunnel");
        let core = Arc::clone(self.core);
        let tunnel = Arc::clone(&self.tunnel);
        self.streams.spawn(stream::serve(core, tunnel, stream, permit).in_current_span());
    }
}

/// Serves requests for streams to the client, then waits for the client's next stream.
fn poll(
    carrier: &mut Carrier,
    requests: &mut mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
    waiting: &mut Option<oneshot::Sender<yamux::Stream>>,
    cx: &mut Context<'_>,
) -> Poll<Event> {
    loop {
        if waiting.is_none() {
            let Poll::Ready(Some(request)) = requests.poll_recv(cx) else { break };
            *waiting = Some(request);
        }
        match carrier.poll_outbound(cx) {
            Poll::Ready(Ok(stream)) => {
                // A caller that left meanwhile drops its stream, which resets it.
                waiting.take().map(|request| request.send(stream));
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Event::Ended("broken")),
            Poll::Pending => break,
        }
    }
    carrier.poll_inbound(cx).map(|inbound| match inbound {
        Some(Ok(stream)) => Event::Stream(stream),
        Some(Err(error)) => {
            debug!(%error, "the carrier broke");
            Event::Ended("broken")
        }
        None => Event::Ended("closed by the client"),
    })
}
