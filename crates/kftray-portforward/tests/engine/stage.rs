//! A stage for exposes: publications and callers in memory, local programs that are real.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use kftray_commons::spec::{Expose, ExposeProtocol, Exposure};
use kftray_commons::{Access, ClusterRef, Code};
use kftray_portforward::ports::{
    Channel, ChannelError, Delivery, Dial, DialError, Endpoint, HalfClose, Inbound, Offer, Publication,
    PublicationState, Resolution, Resolve, Wanted, Warm,
};
use kftray_portforward::{Engine, ExposeConfig, Forward, Limits};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::sim::{PATIENCE, problem, until_status};

/// What waits for a caller before the program's side is stopped.
const WINDOW: usize = 64 * 1024;

/// A relay's publications in memory.
pub(crate) struct Stage {
    pub(crate) state: watch::Sender<PublicationState>,
    callers: mpsc::UnboundedSender<Inbound>,
    inbound: Arc<Mutex<mpsc::UnboundedReceiver<Inbound>>>,
    pub(crate) published: AtomicUsize,
    pub(crate) withdrawn: AtomicUsize,
    pub(crate) retries: AtomicUsize,
    /// Channels that the engine holds.
    pub(crate) live: Arc<AtomicUsize>,
}

impl Stage {
    pub(crate) fn new() -> Arc<Self> {
        let (callers, inbound) = mpsc::unbounded_channel();
        Arc::new(Self {
            state: watch::Sender::new(up()),
            callers,
            inbound: Arc::new(Mutex::new(inbound)),
            published: AtomicUsize::new(0),
            withdrawn: AtomicUsize::new(0),
            retries: AtomicUsize::new(0),
            live: Arc::default(),
        })
    }

    /// A caller arrives.
    pub(crate) fn call(&self) -> Caller {
        let wire = Arc::new(Mutex::new(Wire::default()));
        self.live.fetch_add(1, SeqCst);
        let channel = WireChannel { wire: Arc::clone(&wire), live: Arc::clone(&self.live) };
        let inbound = Inbound { channel: Box::new(channel), peer: "10.1.2.3:4567".to_owned() };
        assert!(self.callers.send(inbound).is_ok());
        Caller { wire }
    }

    pub(crate) fn start(self: &Arc<Self>, expose: Expose) -> Forward {
        let offer =
            Offer { cluster: ClusterRef::default(), namespace: None, name: "shop".to_owned(), expose };
        let limits = Limits { held: 1, connections: 2_000, flows: 1 };
        let ports = || Arc::new(Ports(Arc::clone(self)));
        Engine::new(ports(), ports(), limits).start(ExposeConfig { name: "shop".to_owned(), offer })
    }

    pub(crate) async fn ready(self: &Arc<Self>, expose: Expose) -> Forward {
        let forward = self.start(expose);
        until_status(&forward, "ready").await;
        forward
    }

    pub(crate) async fn until_live(&self, count: usize) {
        let limit = Instant::now() + PATIENCE;
        while self.live.load(SeqCst) != count {
            assert!(Instant::now() < limit, "{} live, not {count}", self.live.load(SeqCst));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub(crate) fn up() -> PublicationState {
    PublicationState::Up { urls: vec!["http://shop.ns".to_owned()], notes: Vec::new() }
}

struct Ports(Arc<Stage>);

impl Resolve for Ports {
    fn follow(&self, _: &Wanted) -> watch::Receiver<Resolution> {
        unreachable!("nothing is resolved")
    }
}

impl Dial for Ports {
    fn warm(&self, _: &Endpoint) -> BoxFuture<'static, Result<Warm, DialError>> {
        unreachable!("nothing is dialled")
    }

    fn dial(&self, _: &Endpoint, _: Bytes) -> BoxFuture<'static, Result<Box<dyn Channel>, DialError>> {
        unreachable!("nothing is dialled")
    }

    fn publish(&self, offer: &Offer) -> Box<dyn Publication> {
        assert_eq!(offer.name, "shop");
        self.0.published.fetch_add(1, SeqCst);
        Box::new(Published(Arc::clone(&self.0)))
    }

    fn network_changed(&self) {}
}

struct Published(Arc<Stage>);

impl Publication for Published {
    fn state(&self) -> watch::Receiver<PublicationState> {
        self.0.state.subscribe()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Inbound> {
        let mut inbound = self.0.inbound.lock().expect("lock");
        inbound.poll_recv(cx).map(|inbound| inbound.expect("the stage lives"))
    }

    fn retry(&mut self) {
        self.0.retries.fetch_add(1, SeqCst);
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.0.withdrawn.fetch_add(1, SeqCst);
    }
}

/// Both directions between a caller and the engine.
#[derive(Default)]
struct Wire {
    asked: VecDeque<Bytes>,
    asked_all: bool,
    /// The caller has broken off.
    cut: bool,
    answers: VecDeque<Bytes>,
    answered_all: bool,
    /// The engine has seen the caller's end.
    heard_all: bool,
    /// The engine has left the rest to the transport.
    left: bool,
    /// The engine dropped its end before both directions had ended; what was on its way is lost.
    reset: bool,
    wakers: Vec<Waker>,
}

impl Wire {
    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

struct WireChannel {
    wire: Arc<Mutex<Wire>>,
    live: Arc<AtomicUsize>,
}

impl Channel for WireChannel {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
        let mut wire = self.wire.lock().expect("lock");
        if let Some(bytes) = wire.asked.pop_front() {
            wire.wake();
            return Poll::Ready(Ok(Some(bytes)));
        }
        if wire.cut {
            let problem = problem(Code::ClusterUnreachable);
            return Poll::Ready(Err(ChannelError { problem, delivery: Delivery::Unknown }));
        }
        if wire.asked_all {
            wire.heard_all = true;
            return Poll::Ready(Ok(None));
        }
        wire.wakers.push(cx.waker().clone());
        Poll::Pending
    }

    fn poll_send_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        let mut wire = self.wire.lock().expect("lock");
        if wire.answers.iter().map(Bytes::len).sum::<usize>() < WINDOW {
            return Poll::Ready(Ok(()));
        }
        wire.wakers.push(cx.waker().clone());
        Poll::Pending
    }

    fn send(&mut self, data: Bytes) {
        let mut wire = self.wire.lock().expect("lock");
        assert!(!wire.answered_all, "nothing after the end");
        wire.answers.push_back(data);
        wire.wake();
    }

    fn finish(&mut self) {
        let mut wire = self.wire.lock().expect("lock");
        wire.answered_all = true;
        wire.wake();
    }

    fn half_close(&self) -> HalfClose {
        HalfClose::Passed
    }

    fn close(&mut self) -> bool {
        let mut wire = self.wire.lock().expect("lock");
        assert!(wire.answered_all, "it comes after the end");
        wire.left = true;
        true
    }
}

impl Drop for WireChannel {
    fn drop(&mut self) {
        let mut wire = self.wire.lock().expect("lock");
        if !(wire.left || wire.answered_all && wire.heard_all) {
            wire.reset = true;
            wire.answers.clear();
        }
        wire.wake();
        self.live.fetch_sub(1, SeqCst);
    }
}

/// The caller's end.
pub(crate) struct Caller {
    wire: Arc<Mutex<Wire>>,
}

impl Caller {
    async fn poll<T>(&self, mut take: impl FnMut(&mut Wire) -> Option<T>) -> T {
        let taken = std::future::poll_fn(|cx| {
            let mut wire = self.wire.lock().expect("lock");
            match take(&mut wire) {
                Some(taken) => {
                    wire.wake();
                    Poll::Ready(taken)
                }
                None => {
                    wire.wakers.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        });
        timeout(PATIENCE, taken).await.expect("in time")
    }

    pub(crate) async fn ask(&self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.poll(|wire| {
            let room = wire.reset || wire.asked.iter().map(Bytes::len).sum::<usize>() < WINDOW;
            room.then(|| wire.asked.push_back(bytes.clone()))
        })
        .await;
    }

    pub(crate) fn end(&self) {
        let mut wire = self.wire.lock().expect("lock");
        wire.asked_all = true;
        wire.wake();
    }

    /// The caller resets its connection.
    pub(crate) fn cut(&self) {
        let mut wire = self.wire.lock().expect("lock");
        wire.cut = true;
        wire.wake();
    }

    /// The whole answer has come; it is not read yet.
    pub(crate) async fn until_answered(&self) {
        self.poll(|wire| wire.answered_all.then_some(())).await;
    }

    /// The next piece; `None` at the end, an error at a reset.
    pub(crate) async fn piece(&self) -> Result<Option<Bytes>, ()> {
        self.poll(|wire| match wire.answers.pop_front() {
            Some(bytes) => Some(Ok(Some(bytes))),
            None if wire.reset => Some(Err(())),
            None => wire.answered_all.then_some(Ok(None)),
        })
        .await
    }

    pub(crate) async fn exactly(&self, length: usize) -> Vec<u8> {
        let mut found = Vec::new();
        while found.len() < length {
            found.extend(self.piece().await.expect("no reset").expect("no end"));
        }
        assert_eq!(found.len(), length, "{}", String::from_utf8_lossy(&found));
        found
    }

    pub(crate) async fn all(&self) -> Result<Vec<u8>, ()> {
        let mut found = Vec::new();
        while let Some(bytes) = self.piece().await? {
            found.extend(bytes);
        }
        Ok(found)
    }

    /// One answer with `Content-Length`: head and body.
    pub(crate) async fn answer(&self) -> (String, Vec<u8>) {
        let mut found = Vec::new();
        loop {
            found.extend(self.piece().await.expect("no reset").expect("no end"));
            let Some(end) = found.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = String::from_utf8(found[..end].to_vec()).expect("text");
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let length: usize = length.expect("a length").parse().expect("a number");
            let body = end + 4..end + 4 + length;
            if found.len() >= body.end {
                return (head, found[body].to_vec());
            }
        }
    }
}

/// A local program: what it does with each connection.
pub(crate) struct Program {
    address: SocketAddr,
    /// Ends with it.
    _tasks: JoinSet<()>,
}

impl Program {
    pub(crate) async fn start<F>(serve: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                connections.spawn(serve(stream));
            }
        });
        Self { address, _tasks: tasks }
    }

    /// Answers each request with what it got: head and body.
    pub(crate) async fn mirror() -> Self {
        Self::start(mirror).await
    }

    pub(crate) fn http(&self) -> Expose {
        expose(self.address, ExposeProtocol::Http)
    }

    pub(crate) fn tcp(&self) -> Expose {
        expose(self.address, ExposeProtocol::Tcp)
    }
}

pub(crate) fn expose(address: SocketAddr, protocol: ExposeProtocol) -> Expose {
    Expose {
        local_host: address.ip().to_string(),
        local_port: address.port().try_into().expect("port"),
        local_tls: false,
        exposure: Exposure::Internal { protocol },
        access: Access::default(),
    }
}

pub(crate) async fn mirror(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut seen = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8_lossy(&seen[..end]).into_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.map_or(0, |length| length.parse().expect("a number"));
        while seen.len() < end + length {
            if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", end + length).into_bytes();
        answer.extend(seen.drain(..end + length));
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}
