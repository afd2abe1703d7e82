//! One carrier: a port-forward connection to the relay, the hello, and yamux on it, driven by a task of its own.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use kftray_commons::{Code, Problem};
use kftray_portforward::ports::Channel;
use kftray_relay_proto::hello::{Purpose, ServerHello};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};
use tokio_util::task::AbortOnDropHandle;

use super::lane::{self, Lane};
use super::wire::{self, Wire, WireHandle};

/// Streams that yamux lets be open at once. Beyond it yamux ends the whole connection, so the limit that rules
/// ([`Carrier::is_full`]) must lie far below: streams that ended here are counted until the driver has seen it.
const YAMUX_STREAMS: usize = 8 * 1024;
/// Most streams on a carrier, whatever the relay allows: each may hold a window of 256 KiB of bytes that its client does
/// not take.
const MOST_STREAMS: usize = 2_000;
/// What the windows of all streams of a carrier may grow by, beyond 256 KiB each, on fast or long paths.
const WINDOW_GROWTH: usize = 64 * 1024 * 1024;
/// Largest body of a frame that is sent: nearly two of the session's own.
const FRAME: usize = 60 * 1024;
/// Opens that wait for the driver; it takes all of them at once, so this matters only while yamux waits for the relay.
const OPENS: usize = 64;
/// Accepted connections that wait for whoever serves them; the relay holds back more by itself.
const INBOUND: usize = 256;

/// How often the driver lets yamux ask whether the relay lives (it does so at most every 10 s) and looks at the answer.
const TICK: Duration = Duration::from_secs(5);
/// A carrier that has heard nothing for this long is lost: two questions without an answer. Faults of the network are
/// noticed far earlier, by the session below; this is for a relay that hangs.
const SILENCE: Duration = Duration::from_secs(30);
/// A tick this late fired because the process did not run (stopped, suspended): the relay gets its time again.
const OVERSLEPT: Duration = Duration::from_secs(1);
/// On a carrier that has heard nothing for this long a new connection withholds the client's bytes until the relay has
/// answered, as on a session (`session/limits.rs`).
const DOUBT_AFTER: Duration = Duration::from_secs(2);
/// A carrier that nobody uses is closed after this long; the relay itself leaves 120 s after its last carrier.
const IDLE: Duration = Duration::from_secs(60);

/// A yamux connection to a relay. Dropping it ends all its streams.
pub(super) struct Carrier {
    shared: Arc<Shared>,
    opens: mpsc::Sender<Opening>,
    /// What the relay has said of itself.
    pub(super) hello: ServerHello,
    /// The relay pod's uid.
    pub(super) relay: Arc<str>,
    /// Round trip of the hello.
    pub(super) rtt: Duration,
    _driver: AbortOnDropHandle<()>,
}

/// What the carrier's handle, its streams and its driver share.
pub(super) struct Shared {
    live: AtomicUsize,
    /// How many keep it from closing although they have no stream.
    kept: AtomicUsize,
    given: Mutex<Vec<Work>>,
    driver: AtomicWaker,
    lost: watch::Sender<Option<Problem>>,
    /// When the relay was last heard.
    heard: Mutex<Instant>,
    /// It did not answer where it should have: no new streams.
    suspect: AtomicBool,
}

type Work = BoxFuture<'static, ()>;

/// Counts one stream as long as it lives.
pub(super) struct Live(Arc<Shared>);

/// Keeps a carrier from closing for idleness.
pub(super) struct Kept(Arc<Shared>);

struct Opening {
    first: BytesMut,
    reply: oneshot::Sender<Arc<lane::Shared>>,
}

/// The carrier takes no streams any more. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed;

/// Streams that the relay opens.
pub(super) type Inbound = mpsc::Receiver<Arc<lane::Shared>>;

/// What [`Carrier::start`] is told.
pub(super) struct Start {
    pub(super) channel: Box<dyn Channel>,
    /// What was read behind the hello.
    pub(super) left: Bytes,
    pub(super) hello: ServerHello,
    pub(super) relay: Arc<str>,
    /// `namespace/name` of the relay, for people.
    pub(super) name: String,
    pub(super) purpose: Purpose,
    pub(super) rtt: Duration,
}

impl Carrier {
    /// A carrier for streams that this side opens.
    pub(super) fn start(start: Start) -> Arc<Self> {
        Self::run(start, None)
    }

    /// A carrier on which the relay opens streams, too. Never closes for idleness.
    pub(super) fn accepting(start: Start) -> (Arc<Self>, Inbound) {
        let (sender, receiver) = mpsc::channel(INBOUND);
        (Self::run(start, Some(sender)), receiver)
    }

    fn run(start: Start, inbound: Option<mpsc::Sender<Arc<lane::Shared>>>) -> Arc<Self> {
        let shared = Arc::new(Shared {
            live: AtomicUsize::new(0),
            kept: AtomicUsize::new(0),
            given: Mutex::default(),
            driver: AtomicWaker::new(),
            lost: watch::Sender::new(None),
            heard: Mutex::new(Instant::now()),
            suspect: AtomicBool::new(false),
        });
        let mut config = yamux::Config::default();
        // The window limit first: the setters compare one with the other.
        config.set_max_connection_receive_window(None);
        config.set_max_num_streams(YAMUX_STREAMS);
        let default_windows = YAMUX_STREAMS.saturating_mul(yamux::DEFAULT_CREDIT as usize);
        config.set_max_connection_receive_window(Some(default_windows.saturating_add(WINDOW_GROWTH)));
        config.set_split_send_size(FRAME);
        let (wire, handle) = wire::pipe(start.channel, start.left, start.purpose);
        let (opens, requests) = mpsc::channel(OPENS);
        let now = Instant::now();
        let driver = Driver {
            connection: yamux::Connection::new(wire, config, yamux::Mode::Client),
            wire: handle,
            requests,
            waiting: VecDeque::new(),
            work: FuturesUnordered::new(),
            inbound,
            shared: Arc::clone(&shared),
            name: start.name,
            tick: Box::pin(tokio::time::sleep(TICK)),
            gathering: false,
            alive: now,
            used: now,
        };
        let driver = AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(driver));
        Arc::new(Self {
            shared,
            opens,
            hello: start.hello,
            relay: start.relay,
            rtt: start.rtt,
            _driver: driver,
        })
    }

    /// Opens a stream that begins with `first`, which is on its way when this returns.
    ///
    /// # Errors
    /// The carrier is lost, and nothing was written.
    pub(super) async fn open(self: &Arc<Self>, first: BytesMut) -> Result<Lane, Closed> {
        let (reply, answer) = oneshot::channel();
        self.opens.send(Opening { first, reply }).await.map_err(|_| Closed)?;
        let shared = answer.await.map_err(|_| Closed)?;
        Ok(Lane::new(shared, Arc::clone(self)))
    }

    /// Streams that are open.
    pub(super) fn streams(&self) -> usize {
        self.shared.live.load(Ordering::Relaxed)
    }

    /// Whether it should get no more streams.
    pub(super) fn is_full(&self) -> bool {
        let limit = usize::try_from(self.hello.max_streams).unwrap_or(MOST_STREAMS).min(MOST_STREAMS);
        self.streams() >= limit || self.shared.suspect.load(Ordering::Relaxed)
    }

    /// Whether nothing was heard for so long that the way may be dead: NAT entries and VPNs die in silence.
    pub(super) fn is_doubtful(&self) -> bool {
        let heard = *self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.elapsed() > DOUBT_AFTER
    }

    /// Silence where an answer was due: new streams go elsewhere, those that are open may still be answered.
    pub(super) fn suspect(&self) {
        self.shared.suspect.store(true, Ordering::Relaxed);
    }

    /// Why it is lost, if it is.
    pub(super) fn problem(&self) -> Option<Problem> {
        self.shared.lost.borrow().clone()
    }

    /// Whether it can still be used.
    pub(super) fn is_up(&self) -> bool {
        self.shared.lost.borrow().is_none()
    }

    /// Resolves when it is lost.
    pub(super) fn lost(&self) -> impl Future<Output = Problem> + Send + use<> {
        let mut lost = self.shared.lost.subscribe();
        async move {
            match lost.wait_for(Option::is_some).await.map(|problem| problem.clone()) {
                Ok(Some(problem)) => problem,
                // Its holders are gone.
                Ok(None) | Err(_) => std::future::pending().await,
            }
        }
    }

    /// Keeps it from closing for idleness.
    pub(super) fn keep(&self) -> Kept {
        self.shared.kept.fetch_add(1, Ordering::Relaxed);
        Kept(Arc::clone(&self.shared))
    }
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carrier").field("streams", &self.streams()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Work for the driver.
    pub(super) fn give(&self, work: Work) {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).push(work);
        self.driver.wake();
    }

    pub(super) fn live(self: &Arc<Self>) -> Live {
        self.live.fetch_add(1, Ordering::Relaxed);
        Live(Arc::clone(self))
    }

    fn take(&self) -> Vec<Work> {
        std::mem::take(&mut *self.given.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.kept.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Does everything that happens on a carrier; ends with it.
struct Driver {
    connection: yamux::Connection<Wire>,
    wire: WireHandle,
    requests: mpsc::Receiver<Opening>,
    /// Opens that yamux does not take yet.
    waiting: VecDeque<Opening>,
    work: FuturesUnordered<Work>,
    inbound: Option<mpsc::Sender<Arc<lane::Shared>>>,
    shared: Arc<Shared>,
    name: String,
    tick: Pin<Box<Sleep>>,
    /// There is something to flush, and the tasks that are ready get their turn before: what they add goes with it. Four
    /// processes copy each write of the session below, so one for all is worth a microsecond's wait.
    gathering: bool,
    /// When the relay was heard, or has got its time again.
    alive: Instant,
    /// When somebody used the carrier.
    used: Instant,
}

impl Driver {
    /// Everything that can be done now; the reason once the carrier is lost.
    fn poll_round(&mut self, cx: &mut Context<'_>) -> Poll<Problem> {
        self.shared.driver.register(cx.waker());
        loop {
            let mut busy = false;
            match self.connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    self.accept(stream);
                    busy = true;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(self.why(&error)),
                Poll::Ready(None) => return Poll::Ready(self.why(&yamux::ConnectionError::Closed)),
                Poll::Pending => {}
            }
            match self.open(cx) {
                Ok(opened) => busy |= opened,
                Err(error) => return Poll::Ready(self.why(&error)),
            }
            self.work.extend(self.shared.take());
            while let Poll::Ready(Some(())) = self.work.poll_next_unpin(cx) {
                busy = true;
            }
            if !busy {
                break;
            }
        }
        *self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner) = self.wire.heard();
        if self.wire.is_dirty() {
            ready!(self.wire.poll_turn(self.shared.live.load(Ordering::Relaxed), cx));
            if !std::mem::replace(&mut self.gathering, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        self.gathering = false;
        if let Poll::Ready(Err(error)) = self.wire.poll_flush(cx) {
            return Poll::Ready(self.why(&yamux::ConnectionError::Io(error)));
        }
        Poll::Pending
    }

    /// Opens streams that were asked for, as far as yamux allows. Returns whether it did.
    fn open(&mut self, cx: &mut Context<'_>) -> Result<bool, yamux::ConnectionError> {
        let mut opened = false;
        loop {
            while self.waiting.len() < OPENS
                && let Poll::Ready(Some(opening)) = self.requests.poll_recv(cx)
            {
                self.waiting.push_back(opening);
            }
            // Who has given up waiting shall not be dialled for.
            self.waiting.retain(|opening| !opening.reply.is_closed());
            if self.waiting.is_empty() {
                return Ok(opened);
            }
            let Poll::Ready(stream) = self.connection.poll_new_outbound(cx) else { return Ok(opened) };
            let stream = stream?;
            if let Some(opening) = self.waiting.pop_front() {
                let lane = lane::Shared::new(stream, opening.first, &self.shared);
                // If nobody waits any more the stream is reset by this.
                drop(opening.reply.send(lane));
                opened = true;
            }
        }
    }

    fn accept(&self, stream: yamux::Stream) {
        let Some(inbound) = &self.inbound else {
            tracing::debug!(relay = self.name, "a stream that nobody asked for");
            return;
        };
        if inbound.try_send(lane::Shared::new(stream, BytesMut::new(), &self.shared)).is_err() {
            tracing::debug!(relay = self.name, "too many connections at once for the exposed program");
        }
    }

    /// Looks after the time. Returns why the carrier ends.
    fn on_tick(&mut self, due: Instant) -> Option<Problem> {
        let now = Instant::now();
        if now > due + OVERSLEPT {
            self.alive = now;
        }
        self.alive = self.alive.max(self.wire.heard());
        if now > self.alive + SILENCE {
            let message = format!("relay {} has not answered for {SILENCE:?}", self.name);
            return Some(Problem::new(Code::ConnectionLost, message));
        }
        let users = self.shared.live.load(Ordering::Relaxed) + self.shared.kept.load(Ordering::Relaxed);
        if users > 0 || self.inbound.is_some() {
            self.used = now;
        }
        (now > self.used + IDLE)
            .then(|| Problem::new(Code::ConnectionLost, "the connection to the relay was not used any more"))
    }

    fn why(&self, error: &yamux::ConnectionError) -> Problem {
        self.wire.problem().map_or_else(
            || {
                let message = format!("the connection to relay {} has ended: {error}", self.name);
                Problem::new(Code::ConnectionLost, message)
            },
            |below| {
                let message = format!("the connection to relay {} was lost: {}", self.name, below.message);
                Problem::new(Code::ConnectionLost, message)
            },
        )
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            if let Poll::Ready(problem) = this.poll_round(cx) {
                this.shared.lost.send_replace(Some(problem));
                return Poll::Ready(());
            }
            let due = this.tick.deadline();
            if this.tick.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if let Some(problem) = this.on_tick(due) {
                this.shared.lost.send_replace(Some(problem));
                return Poll::Ready(());
            }
            this.tick.as_mut().reset(Instant::now() + TICK);
        }
    }
}
