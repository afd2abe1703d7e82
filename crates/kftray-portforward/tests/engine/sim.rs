//! A cluster in memory: pods that serve, refuse, hang or die on demand, behind the engine's own traits.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use kftray_commons::{ClusterRef, Code, Problem, RemotePort, Status, Target, TargetObject};
use kftray_portforward::ports::{
    Channel, ChannelError, ClusterId, Condition, Delivery, Dial, DialError, Endpoint, HalfClose, Resolution,
    Resolve, Route, Wanted, Warm,
};
use kftray_portforward::{Engine, Forward, ForwardConfig, Limits, LocalAddress};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How long anything that should be quick may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What runs in a pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum App {
    /// Sends back what comes, ends when the client has ended.
    Echo,
    /// Reads one chunk, answers with the pod's name, ends.
    Name,
    /// Greets first with the pod's name, then echoes.
    Greet,
    /// Reads everything, then answers with the number of bytes.
    Count,
    /// Sends this many bytes of [`pattern`], then ends.
    Send(usize),
    /// Reads and says nothing until the client has ended.
    Silent,
    /// Sends a byte and then fails.
    Break,
    /// The task that moves the bytes panics.
    Panic,
}

/// How a pod treats new connections and transports.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Manner {
    Serve,
    /// Nothing listens on the port; the refusal comes out of the channel, as in a real cluster.
    Refuse,
    /// Opening takes so long.
    Slow(Duration),
    /// Nothing answers.
    Hang,
    /// Opening fails.
    Fail(Code, Delivery),
    /// The adapter itself panics.
    Panic,
    /// The channel opens and then fails before any answer.
    FailLater(Delivery),
}

#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) app: App,
    pub(crate) manner: Manner,
    pub(crate) condition: Condition,
    pub(crate) half_close: HalfClose,
    /// Its transport takes a channel over whose client is gone.
    pub(crate) takes_over: bool,
    /// Bumped to break every transport and channel of the pod.
    breaks: watch::Sender<u64>,
    uid: u64,
}

/// What has been seen of all pods.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) dials: usize,
    pub(crate) by_pod: BTreeMap<String, usize>,
    pub(crate) warms: usize,
    pub(crate) resets: usize,
    pub(crate) closes: usize,
    pub(crate) live: usize,
    pub(crate) network_changes: usize,
    /// Everything the apps have read, per connection in order of opening.
    pub(crate) received: Vec<BytesMut>,
}

pub(crate) struct Sim {
    pods: Mutex<BTreeMap<String, Pod>>,
    pub(crate) resolution: watch::Sender<Resolution>,
    seen: Mutex<Seen>,
    changed: Notify,
    apps: Mutex<JoinSet<()>>,
    next_uid: Mutex<u64>,
}

/// Byte `index` of every pattern.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

pub(crate) fn problem(code: Code) -> Problem {
    Problem::new(code, code.as_str())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no panic holds it")
}

impl Sim {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            pods: Mutex::default(),
            resolution: watch::Sender::new(Resolution::Pending),
            seen: Mutex::default(),
            changed: Notify::new(),
            apps: Mutex::default(),
            next_uid: Mutex::new(0),
        })
    }

    /// A cluster whose pods are ready and run the same app.
    pub(crate) fn with(app: App, pods: &[&str]) -> Arc<Self> {
        let sim = Self::new();
        for pod in pods {
            sim.add(pod, app.clone());
        }
        sim
    }

    pub(crate) fn add(&self, name: &str, app: App) {
        let uid = {
            let mut next = self.next_uid.lock().expect("lock");
            *next += 1;
            *next
        };
        let pod = Pod {
            app,
            manner: Manner::Serve,
            condition: Condition::Ready,
            half_close: HalfClose::Withheld,
            takes_over: true,
            breaks: watch::Sender::new(0),
            uid,
        };
        self.pods.lock().expect("lock").insert(name.to_owned(), pod);
        self.publish();
    }

    /// Changes a pod and tells the resolver.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Pod)) {
        if let Some(pod) = self.pods.lock().expect("lock").get_mut(name) {
            change(pod);
        }
        self.publish();
    }

    /// Breaks every transport and channel of a pod.
    pub(crate) fn break_pod(&self, name: &str) {
        if let Some(pod) = self.pods.lock().expect("lock").get(name) {
            pod.breaks.send_modify(|breaks| *breaks += 1);
        }
    }

    pub(crate) fn remove(&self, name: &str) {
        self.break_pod(name);
        self.pods.lock().expect("lock").remove(name);
        self.publish();
    }

    pub(crate) fn publish(&self) {
        let pods = self.pods.lock().expect("lock");
        let endpoints: Arc<[Endpoint]> = pods
            .iter()
            .map(|(name, pod)| Endpoint {
                cluster: ClusterId(1),
                namespace: "ns".into(),
                pod: name.as_str().into(),
                uid: pod.uid.to_string().into(),
                node: None,
                port: 80,
                condition: pod.condition,
                route: Route::Direct,
            })
            .collect();
        let ready = endpoints.iter().any(|endpoint| endpoint.condition == Condition::Ready);
        let why_none = (!ready).then(|| problem(Code::NoReadyPods));
        self.resolution.send_replace(Resolution::Endpoints { endpoints, why_none });
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().expect("lock").clone()
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut self.seen.lock().expect("lock"));
        self.changed.notify_waiters();
    }

    /// Waits until what has been seen fits.
    pub(crate) async fn until(&self, what: &str, fits: impl Fn(&Seen) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if fits(&self.seen()) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("{what} did not happen: {:?}", self.seen());
        }
    }

    fn pod(&self, endpoint: &Endpoint) -> Result<Pod, DialError> {
        let pods = lock(&self.pods);
        let found = pods.get(&*endpoint.pod).filter(|pod| pod.uid.to_string() == *endpoint.uid);
        found.cloned().ok_or(DialError { problem: problem(Code::PodGone), delivery: Delivery::Nothing })
    }

    pub(crate) fn engine(self: &Arc<Self>) -> Engine {
        self.engine_with(Limits { held: 2_000, connections: 4_000, flows: 4_000 })
    }

    pub(crate) fn engine_with(self: &Arc<Self>, limits: Limits) -> Engine {
        Engine::new(Arc::new(SimPorts(Arc::clone(self))), Arc::new(SimPorts(Arc::clone(self))), limits)
    }
}

/// A forward on 127.0.0.1 with a random port.
pub(crate) fn config() -> ForwardConfig {
    let target = Target {
        cluster: ClusterRef::default(),
        namespace: None,
        object: TargetObject::Service("web".to_owned()),
    };
    let port = RemotePort::Number(80.try_into().expect("port"));
    let address = LocalAddress::Ip("127.0.0.1".parse().expect("ip"));
    ForwardConfig { addresses: vec![address], ..ForwardConfig::new("web", target, port) }
}

/// Waits for a status.
pub(crate) async fn until_status(forward: &Forward, name: &str) -> Status {
    let mut status = forward.status();
    let found = tokio::time::timeout(PATIENCE * 30, status.wait_for(|status| status.name() == name)).await;
    let now = forward.status().borrow().clone();
    match found {
        Ok(Ok(found)) => found.clone(),
        Ok(Err(_)) | Err(_) => panic!("never {name}, but {now:?}"),
    }
}

/// Starts a forward and waits until it is ready.
pub(crate) async fn ready(engine: &Engine, config: ForwardConfig) -> Forward {
    let forward = engine.start(config);
    until_status(&forward, "ready").await;
    forward
}

pub(crate) async fn connect(forward: &Forward) -> tokio::net::TcpStream {
    let address = forward.addresses()[0];
    tokio::net::TcpStream::connect(address).await.expect("the listener is bound")
}

struct SimPorts(Arc<Sim>);

impl Resolve for SimPorts {
    fn follow(&self, _wanted: &Wanted) -> watch::Receiver<Resolution> {
        let mut receiver = self.0.resolution.subscribe();
        receiver.mark_changed();
        receiver
    }
}

impl Dial for SimPorts {
    fn warm(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Warm, DialError>> {
        self.0.note(|seen| seen.warms += 1);
        let pod = self.0.pod(endpoint);
        Box::pin(async move {
            let pod = pod?;
            match pod.manner {
                Manner::Hang => std::future::pending().await,
                Manner::Panic => panic!("the adapter was told to"),
                Manner::Fail(code, delivery) => Err(DialError { problem: problem(code), delivery }),
                Manner::Serve | Manner::Slow(_) | Manner::Refuse | Manner::FailLater(_) => {
                    let mut breaks = pod.breaks.subscribe();
                    let lost = Box::pin(async move {
                        drop(breaks.changed().await);
                        problem(Code::ConnectionLost)
                    });
                    Ok(Warm { transport: "sim", rtt: Duration::from_millis(1), lost })
                }
            }
        })
    }

    fn dial(
        &self,
        endpoint: &Endpoint,
        first: Bytes,
    ) -> BoxFuture<'static, Result<Box<dyn Channel>, DialError>> {
        let name = endpoint.pod.to_string();
        self.0.note(|seen| {
            seen.dials += 1;
            *seen.by_pod.entry(name.clone()).or_default() += 1;
        });
        let pod = self.0.pod(endpoint);
        let sim = Arc::clone(&self.0);
        Box::pin(async move {
            let pod = pod?;
            let pipes = Arc::new(Pipes::default());
            let early = match &pod.manner {
                Manner::Hang => std::future::pending().await,
                Manner::Panic => panic!("the adapter was told to"),
                Manner::Fail(code, delivery) => {
                    return Err(DialError { problem: problem(*code), delivery: *delivery });
                }
                Manner::Refuse => Some((Code::RemoteRefused, Delivery::Nothing)),
                Manner::FailLater(delivery) => Some((Code::ConnectionLost, *delivery)),
                Manner::Serve => None,
                Manner::Slow(pause) => {
                    tokio::time::sleep(*pause).await;
                    None
                }
            };
            if !first.is_empty() {
                pipes.lock().up.push_back(first);
            }
            let task = serve(Arc::clone(&sim), name, pod.clone(), Arc::clone(&pipes), early);
            sim.apps.lock().expect("lock").spawn(task);
            sim.note(|seen| seen.live += 1);
            let channel: Box<dyn Channel> =
                Box::new(SimChannel { pipes, pod, sim, finished: false, ended: false });
            Ok(channel)
        })
    }

    fn network_changed(&self) {
        self.0.note(|seen| seen.network_changes += 1);
    }
}

/// The pod's end of a connection.
async fn serve(sim: Arc<Sim>, name: String, pod: Pod, pipes: Arc<Pipes>, early: Option<(Code, Delivery)>) {
    if let Some((code, delivery)) = early {
        tokio::task::yield_now().await;
        pipes.fail(ChannelError { problem: problem(code), delivery });
        return;
    }
    let slot = {
        let mut seen = sim.seen.lock().expect("lock");
        seen.received.push(BytesMut::new());
        seen.received.len() - 1
    };
    let mut breaks = pod.breaks.subscribe();
    tokio::select! {
        biased;
        _ = breaks.changed() => {
            let delivery = Delivery::Unknown;
            pipes.fail(ChannelError { problem: problem(Code::ConnectionLost), delivery });
        }
        () = run_app(&sim, &name, &pod.app, &pipes, slot) => {}
        () = pipes.gone() => {}
    }
}

async fn run_app(sim: &Sim, name: &str, app: &App, pipes: &Pipes, slot: usize) {
    let read = async || {
        let chunk = pipes.read().await;
        if let Some(chunk) = &chunk {
            sim.note(|seen| seen.received[slot].extend_from_slice(chunk));
        }
        chunk
    };
    match app {
        App::Echo | App::Greet => {
            if *app == App::Greet {
                pipes.write(Bytes::copy_from_slice(name.as_bytes())).await;
            }
            while let Some(chunk) = read().await {
                pipes.write(chunk).await;
            }
        }
        App::Name => {
            read().await;
            pipes.write(Bytes::copy_from_slice(name.as_bytes())).await;
        }
        App::Count => {
            let mut count = 0;
            while let Some(chunk) = read().await {
                count += chunk.len();
            }
            pipes.write(count.to_string().into()).await;
        }
        App::Send(length) => {
            for chunk in pattern(*length).chunks(7_919) {
                pipes.write(Bytes::copy_from_slice(chunk)).await;
            }
        }
        App::Silent => while read().await.is_some() {},
        App::Break => {
            pipes.write(Bytes::from_static(b"x")).await;
            let delivery = Delivery::Unknown;
            pipes.fail(ChannelError { problem: problem(Code::ConnectionLost), delivery });
            return;
        }
        App::Panic => {
            pipes.lock().panics = true;
            pipes.wake();
            return;
        }
    }
    pipes.lock().down_ended = true;
    pipes.wake();
}

/// Both directions of one connection, bounded like a real one.
#[derive(Default)]
struct Pipes {
    state: Mutex<PipesState>,
}

#[derive(Default)]
struct PipesState {
    up: VecDeque<Bytes>,
    up_ended: bool,
    down: VecDeque<Bytes>,
    down_bytes: usize,
    down_ended: bool,
    failed: Option<ChannelError>,
    panics: bool,
    /// The engine has dropped its end.
    gone: bool,
    wakers: Vec<Waker>,
}

/// Bytes that wait in one direction before the other side has to read: small, so that back-pressure is felt in tests.
const PIPE_LIMIT: usize = 64 * 1024;

impl Pipes {
    fn lock(&self) -> std::sync::MutexGuard<'_, PipesState> {
        self.state.lock().expect("lock")
    }

    fn wake(&self) {
        let wakers = std::mem::take(&mut self.lock().wakers);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn fail(&self, error: ChannelError) {
        self.lock().failed = Some(error);
        self.wake();
    }

    /// Polls for something under the lock; registers otherwise.
    fn poll<T>(&self, cx: &Context<'_>, take: impl FnOnce(&mut PipesState) -> Option<T>) -> Poll<T> {
        let mut state = self.lock();
        match take(&mut state) {
            Some(taken) => {
                drop(state);
                self.wake();
                Poll::Ready(taken)
            }
            None => {
                if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    state.wakers.push(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    async fn read(&self) -> Option<Bytes> {
        poll_fn(|cx| {
            self.poll(cx, |state| match state.up.pop_front() {
                Some(chunk) => Some(Some(chunk)),
                None => state.up_ended.then_some(None),
            })
        })
        .await
    }

    async fn write(&self, chunk: Bytes) {
        poll_fn(|cx| self.poll(cx, |state| (state.down_bytes < PIPE_LIMIT).then_some(()))).await;
        {
            let mut state = self.lock();
            state.down_bytes += chunk.len();
            state.down.push_back(chunk);
        }
        self.wake();
    }

    async fn gone(&self) {
        poll_fn(|cx| self.poll(cx, |state| state.gone.then_some(()))).await;
    }
}

struct SimChannel {
    pipes: Arc<Pipes>,
    pod: Pod,
    sim: Arc<Sim>,
    finished: bool,
    ended: bool,
}

impl Channel for SimChannel {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
        assert!(!self.ended, "polled after the end");
        let panics = self.pipes.lock().panics;
        assert!(!panics, "the app asked for a panic");
        let polled = self.pipes.poll(cx, |state| {
            if let Some(chunk) = state.down.pop_front() {
                state.down_bytes -= chunk.len();
                return Some(Ok(Some(chunk)));
            }
            state.failed.clone().map(Err).or_else(|| state.down_ended.then_some(Ok(None)))
        });
        self.ended = matches!(polled, Poll::Ready(Ok(None) | Err(_)));
        polled
    }

    fn poll_send_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        self.pipes.poll(cx, |state| {
            let queued: usize = state.up.iter().map(Bytes::len).sum();
            // Errors come out of the receiving side, as in a session.
            (queued < PIPE_LIMIT).then_some(Ok(()))
        })
    }

    fn send(&mut self, data: Bytes) {
        self.pipes.lock().up.push_back(data);
        self.pipes.wake();
    }

    fn finish(&mut self) {
        self.finished = true;
        if self.pod.half_close == HalfClose::Passed {
            self.pipes.lock().up_ended = true;
            self.pipes.wake();
        }
    }

    fn half_close(&self) -> HalfClose {
        self.pod.half_close
    }

    fn close(&mut self) -> bool {
        assert!(self.finished, "the end of the client comes first");
        if !self.pod.takes_over {
            return false;
        }
        self.ended = true;
        self.pipes.lock().up_ended = true;
        self.sim.note(|seen| seen.closes += 1);
        true
    }
}

impl Drop for SimChannel {
    fn drop(&mut self) {
        let orderly = self.ended && self.finished;
        let closed = self.pipes.lock().up_ended;
        if !closed {
            self.pipes.lock().gone = true;
        }
        self.pipes.wake();
        self.sim.note(|seen| {
            seen.live -= 1;
            seen.resets += usize::from(!orderly);
        });
    }
}
