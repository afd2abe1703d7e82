//! UDP forwards: flows against a relay in memory, over real local sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use kftray_commons::spec::Protocol;
use kftray_commons::{Code, Counters, Problem};
use kftray_portforward::ports::{
    Channel, ChannelError, ClusterId, Condition, DatagramChannel, Delivery, Dial, DialError, Endpoint,
    Resolution, Resolve, Route, Wanted, Warm,
};
use kftray_portforward::{Engine, Event, Forward, ForwardConfig, Limits, LocalAddress};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, timeout};

use crate::sim::{PATIENCE, config, problem, until_status};

/// What the target behind the relay does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum App {
    Echo,
    Silent,
    /// Answers the first datagram of a flow with this many.
    Push(usize),
    /// The relay says why not: nobody listens (ICMP), it is too busy.
    Fails(Code),
}

/// A relay in memory.
struct Relay {
    state: Mutex<State>,
    resolution: watch::Sender<Resolution>,
    changed: Notify,
}

struct State {
    app: App,
    /// What opening a flow comes to.
    dial: Option<Code>,
    port: u16,
    /// Flows that are open, by number.
    live: BTreeMap<usize, Vec<Waker>>,
    lost: Vec<usize>,
    opened: usize,
    /// What has been sent, by flow in order.
    delivered: Vec<(usize, Bytes)>,
    /// Every so manieth datagram is dropped by the channel.
    drops_every: usize,
}

impl Relay {
    fn new(app: App) -> Arc<Self> {
        let state = State {
            app,
            dial: None,
            port: 9_999,
            live: BTreeMap::new(),
            lost: Vec::new(),
            opened: 0,
            delivered: Vec::new(),
            drops_every: usize::MAX,
        };
        let relay = Self {
            state: Mutex::new(state),
            resolution: watch::Sender::new(Resolution::Pending),
            changed: Notify::new(),
        };
        relay.ready(true);
        Arc::new(relay)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds it")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let wakers: Vec<Waker> = state.live.values_mut().flat_map(std::mem::take).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        self.changed.notify_waiters();
    }

    fn ready(&self, ready: bool) {
        let endpoint = Endpoint {
            cluster: ClusterId(1),
            namespace: "ns".into(),
            pod: "a".into(),
            uid: "1".into(),
            node: None,
            port: self.state().port,
            condition: if ready { Condition::Ready } else { Condition::NotReady },
            route: Route::Relay { host: "10.0.0.1".into() },
        };
        let why_none = (!ready).then(|| problem(Code::RelayStarting));
        self.resolution.send_replace(Resolution::Endpoints { endpoints: [endpoint].into(), why_none });
    }

    /// The carrier is lost: every flow fails.
    fn break_all(&self) {
        self.change(|state| state.lost = state.live.keys().copied().collect());
    }

    async fn until(&self, what: &str, fits: impl Fn(&State) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if fits(&self.state()) {
                    return;
                }
                changed.await;
            }
        };
        // The clock is paused: this much passes only when nothing else happens.
        if timeout(PATIENCE * 100, wait).await.is_err() {
            let state = self.state();
            panic!(
                "{what} did not happen: {} delivered, {:?} live",
                state.delivered.len(),
                state.live.keys()
            );
        }
    }

    fn delivered(&self) -> usize {
        self.state().delivered.len()
    }

    fn live(&self) -> usize {
        self.state().live.len()
    }
}

struct Ports(Arc<Relay>);

impl Resolve for Ports {
    fn follow(&self, wanted: &Wanted) -> watch::Receiver<Resolution> {
        assert!(wanted.needs_relay(), "{wanted:?}");
        let mut receiver = self.0.resolution.subscribe();
        receiver.mark_changed();
        receiver
    }
}

impl Dial for Ports {
    fn warm(&self, _: &Endpoint) -> BoxFuture<'static, Result<Warm, DialError>> {
        let lost = Box::pin(std::future::pending());
        Box::pin(async { Ok(Warm { transport: "sim", rtt: Duration::from_millis(1), lost }) })
    }

    fn dial(&self, _: &Endpoint, _: Bytes) -> BoxFuture<'static, Result<Box<dyn Channel>, DialError>> {
        unreachable!("this is UDP")
    }

    fn dial_udp(&self, _: &Endpoint) -> BoxFuture<'static, Result<Box<dyn DatagramChannel>, DialError>> {
        let relay = Arc::clone(&self.0);
        Box::pin(async move {
            if let Some(code) = relay.state().dial {
                return Err(DialError { problem: problem(code), delivery: Delivery::Nothing });
            }
            let mut number = 0;
            relay.change(|state| {
                state.opened += 1;
                number = state.opened;
                state.live.insert(number, Vec::new());
            });
            let flow: Box<dyn DatagramChannel> =
                Box::new(Flow { relay, number, answers: Vec::new(), sent: 0, dropped: 0, waker: None });
            Ok(flow)
        })
    }

    fn network_changed(&self) {}
}

struct Flow {
    relay: Arc<Relay>,
    number: usize,
    answers: Vec<Bytes>,
    sent: usize,
    dropped: u64,
    waker: Option<Waker>,
}

impl DatagramChannel for Flow {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChannelError>> {
        let mut state = self.relay.state();
        let failed = |code| {
            let problem = Problem::new(code, "the flow failed");
            Poll::Ready(Err(ChannelError { problem, delivery: Delivery::Unknown }))
        };
        if state.lost.contains(&self.number) {
            return failed(Code::ConnectionLost);
        }
        if let (App::Fails(code), true) = (state.app, self.sent > 0) {
            return failed(code);
        }
        if !self.answers.is_empty() {
            return Poll::Ready(Ok(Some(self.answers.remove(0))));
        }
        self.waker = Some(cx.waker().clone());
        if let Some(wakers) = state.live.get_mut(&self.number) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn send(&mut self, datagram: Bytes) {
        self.sent += 1;
        let (app, drops_every) = {
            let state = self.relay.state();
            (state.app, state.drops_every)
        };
        if self.sent.is_multiple_of(drops_every) {
            self.dropped += 1;
        } else {
            match app {
                App::Echo => self.answers.push(datagram.clone()),
                App::Push(count) if self.sent == 1 => {
                    self.answers.extend((0..count).map(|_| datagram.clone()));
                }
                App::Push(_) | App::Silent | App::Fails(_) => {}
            }
            let number = self.number;
            self.relay.change(|state| state.delivered.push((number, datagram)));
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let number = self.number;
        self.relay.change(|state| {
            state.live.remove(&number);
        });
    }
}

fn udp() -> ForwardConfig {
    ForwardConfig { protocol: Protocol::Udp, ..config() }
}

fn engine(relay: &Arc<Relay>, flows: usize) -> Engine {
    let limits = Limits { held: 1, connections: 1, flows };
    Engine::new(Arc::new(Ports(Arc::clone(relay))), Arc::new(Ports(Arc::clone(relay))), limits)
}

async fn start(relay: &Arc<Relay>) -> Forward {
    let forward = engine(relay, 10_000).start(udp());
    until_status(&forward, "ready").await;
    forward
}

async fn peer(forward: &Forward) -> UdpSocket {
    peer_of(forward.addresses()[0]).await
}

async fn peer_of(address: SocketAddr) -> UdpSocket {
    let any = SocketAddr::new(address.ip(), 0);
    let socket = UdpSocket::bind(any).await.expect("bind");
    socket.connect(address).await.expect("connect");
    socket
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE * 100, socket.recv(&mut buffer)).await.expect("in time").expect("receive");
    buffer.truncate(length);
    buffer
}

async fn until_counters(forward: &Forward, what: &str, fits: impl Fn(&Counters) -> bool) {
    let limit = Instant::now() + PATIENCE * 100;
    while !fits(&forward.counters()) {
        assert!(Instant::now() < limit, "{what} did not happen: {:?}", forward.counters());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn datagrams_of_every_size_go_there_and_back_on_every_address() {
    let relay = Relay::new(App::Echo);
    let config = ForwardConfig { addresses: vec![LocalAddress::Localhost], ..udp() };
    let forward = engine(&relay, 100).start(config);
    until_status(&forward, "ready").await;
    for address in forward.addresses() {
        let socket = peer_of(address).await;
        for size in [0, 1, 512, 1_472, 9_000, 65_507] {
            let sent: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            socket.send(&sent).await.expect("send");
            assert_eq!(receive(&socket).await, sent, "{size}");
        }
    }
    let addresses = forward.addresses().len() as u64;
    let counters = forward.stop(Duration::ZERO).await;
    assert_eq!((counters.datagrams_up, counters.datagrams_down), (6 * addresses, 6 * addresses));
    assert_eq!((counters.connections, counters.datagrams_dropped, counters.open), (addresses, 0, 0));
    assert_eq!(relay.live(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_way_traffic_and_pushes_of_the_server_need_no_rhythm() {
    let relay = Relay::new(App::Silent);
    let forward = start(&relay).await;
    let socket = peer(&forward).await;
    for number in 0..100_u8 {
        socket.send(&[number]).await.expect("send");
    }
    relay.until("one way", |state| state.delivered.len() == 100).await;
    let order: Vec<u8> = relay.state().delivered.iter().map(|(_, datagram)| datagram[0]).collect();
    assert_eq!(order, (0..100).collect::<Vec<u8>>());
    assert_eq!(relay.state().opened, 1);
    relay.change(|state| state.app = App::Push(50));
    let other = peer(&forward).await;
    other.send(b"subscribe").await.expect("send");
    for _ in 0..50 {
        assert_eq!(receive(&other).await, b"subscribe");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_target_is_told_and_its_peer_left_alone_for_a_moment() {
    told_and_left_alone(Code::RemoteRefused).await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_relay_is_told_and_not_asked_again_at_once() {
    told_and_left_alone(Code::Overloaded).await;
}

#[tokio::test(start_paused = true)]
async fn where_only_a_person_can_help_the_look_up_it_is_told_soon() {
    let relay = Relay::new(App::Echo);
    let forward = start(&relay).await;
    let mut events = forward.events();
    relay.resolution.send_replace(Resolution::Failed(problem(Code::Forbidden)));
    until_status(&forward, "needs_user").await;
    let socket = peer(&forward).await;
    let begin = Instant::now();
    socket.send(b"one").await.expect("send");
    assert_eq!(next_failure(&mut events).await.1, Code::Forbidden);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Whoever has just mended it sends before that is noticed.
    socket.send(b"two").await.expect("send");
    tokio::time::sleep(Duration::from_secs(1)).await;
    relay.ready(true);
    assert_eq!(receive(&socket).await, b"two");
}

async fn next_failure(events: &mut broadcast::Receiver<Event>) -> (SocketAddr, Code) {
    let told = async {
        loop {
            if let Event::ConnectionFailed { peer, problem } = events.recv().await.expect("the forward lives")
            {
                return (peer, problem.code);
            }
        }
    };
    timeout(PATIENCE, told).await.expect("told")
}

async fn told_and_left_alone(code: Code) {
    let relay = Relay::new(App::Fails(code));
    let forward = start(&relay).await;
    let mut events = forward.events();
    let socket = peer(&forward).await;
    let begin = Instant::now();
    socket.send(b"one").await.expect("send");
    let (who, told) = next_failure(&mut events).await;
    assert_eq!((who, told), (socket.local_addr().expect("address"), code));
    // Into the pause.
    socket.send(b"two").await.expect("send");
    until_counters(&forward, "the flow's end", |counters| counters.open == 0).await;
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert_eq!(forward.counters().datagrams_dropped, 1);
    relay.change(|state| state.app = App::Echo);
    socket.send(b"three").await.expect("send");
    assert_eq!(receive(&socket).await, b"three");
    assert_eq!(relay.state().opened, 2);
}

#[tokio::test(start_paused = true)]
async fn datagrams_wait_for_the_relay_but_not_for_long() {
    let relay = Relay::new(App::Echo);
    relay.ready(false);
    let forward = engine(&relay, 10).start(udp());
    let waiting = until_status(&forward, "resolving").await;
    assert_eq!(waiting.problem().map(|problem| problem.code), Some(Code::RelayStarting));
    until_counters(&forward, "the listener", |_| !forward.addresses().is_empty()).await;
    let socket = peer(&forward).await;
    socket.send(b"too early").await.expect("send");
    until_counters(&forward, "the flow", |counters| counters.open == 1).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    socket.send(b"early").await.expect("send");
    tokio::time::sleep(Duration::from_secs(4)).await;
    relay.ready(true);
    assert_eq!(receive(&socket).await, b"early");
    assert_eq!(forward.counters().datagrams_dropped, 1);
    // What waits is bounded, and the oldest go.
    relay.ready(false);
    relay.break_all();
    relay.until("the flow's loss", |state| state.live.is_empty()).await;
    for number in 0..100_u8 {
        socket.send(&[number; 10_000]).await.expect("send");
        // The system's own buffer may be smaller than ours.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Not echoed: the peer's own buffer does not hold as much.
    relay.change(|state| state.app = App::Silent);
    relay.ready(true);
    let last = |state: &State| state.delivered.last().is_some_and(|(_, datagram)| datagram[0] == 99);
    relay.until("what waited", last).await;
    let numbers: Vec<u8> = relay.state().delivered.iter().skip(1).map(|(_, datagram)| datagram[0]).collect();
    let first = numbers[0];
    assert!((70..80).contains(&first), "256 KiB of 10,000 bytes each: {first}");
    assert_eq!(numbers, (first..100).collect::<Vec<u8>>());
    assert_eq!(forward.counters().datagrams_dropped, 1 + u64::from(first));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_flow_after_two_minutes_and_answered_questions_sooner() {
    for (port, seconds) in [(9_999, 120), (53, 15)] {
        let relay = Relay::new(App::Echo);
        relay.change(|state| state.port = port);
        relay.ready(true);
        let forward = start(&relay).await;
        let socket = peer(&forward).await;
        socket.send(b"?").await.expect("send");
        receive(&socket).await;
        let begin = Instant::now();
        relay.until("the end", |state| state.live.is_empty()).await;
        let after = begin.elapsed().as_secs();
        assert!((seconds - 1..=seconds + 1).contains(&after), "port {port}: {after}");
        // Without an answer it takes as long for both.
        relay.change(|state| state.app = App::Silent);
        socket.send(b"?").await.expect("send");
        relay.until("the second flow", |state| state.opened == 2).await;
        let begin = Instant::now();
        relay.until("the end", |state| state.live.is_empty()).await;
        let after = begin.elapsed().as_secs();
        assert!((119..=121).contains(&after), "port {port}: {after}");
    }
}

#[tokio::test(start_paused = true)]
async fn more_flows_than_allowed_are_refused_and_counted() {
    let relay = Relay::new(App::Echo);
    let forward = engine(&relay, 2).start(udp());
    until_status(&forward, "ready").await;
    let peers = [peer(&forward).await, peer(&forward).await, peer(&forward).await];
    for socket in &peers[..2] {
        socket.send(b"x").await.expect("send");
        receive(socket).await;
    }
    peers[2].send(b"x").await.expect("send");
    until_counters(&forward, "the refusal", |counters| counters.flows_refused == 1).await;
    assert_eq!(forward.counters().datagrams_dropped, 1);
    relay.until("a free place", |state| state.live.is_empty()).await;
    peers[2].send(b"y").await.expect("send");
    assert_eq!(receive(&peers[2]).await, b"y");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_needs_a_person_is_told_and_a_lost_carrier_is_not() {
    let relay = Relay::new(App::Echo);
    let forward = start(&relay).await;
    let mut events = forward.events();
    let socket = peer(&forward).await;
    for _ in 0..3 {
        socket.send(b"x").await.expect("send");
        assert_eq!(receive(&socket).await, b"x");
        relay.break_all();
        relay.until("the loss", |state| state.live.is_empty()).await;
    }
    assert_eq!(forward.counters().connections, 1, "one flow, whatever carries it");
    relay.change(|state| state.dial = Some(Code::RelayDenied));
    socket.send(b"x").await.expect("send");
    until_counters(&forward, "the refusal", |counters| counters.failed == 1).await;
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::ConnectionFailed { problem, .. } = event {
            told.push(problem.code);
        }
    }
    assert_eq!(told, [Code::RelayDenied]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_quick_and_leaves_nothing() {
    let relay = Relay::new(App::Echo);
    let forward = start(&relay).await;
    let mut peers = Vec::new();
    for _ in 0..50 {
        let socket = peer(&forward).await;
        socket.send(b"x").await.expect("send");
        receive(&socket).await;
        peers.push(socket);
    }
    assert_eq!(relay.live(), 50);
    let address = forward.addresses()[0];
    let begin = Instant::now();
    let counters = forward.stop(Duration::from_millis(800)).await;
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert_eq!((relay.live(), counters.open, counters.datagrams_dropped), (0, 0, 0));
    UdpSocket::bind(address).await.expect("the port is free again");
}

/// Fifty peers send more than the system's buffer holds: what arrives is theirs, and what does not is counted, the system's
/// own losses included.
#[tokio::test(start_paused = true)]
#[cfg(target_os = "linux")]
async fn a_storm_of_fifty_peers_is_accounted_for_to_the_last_datagram() {
    const SIZES: [usize; 6] = [5, 64, 512, 1_200, 1_472, 65_507];
    let relay = Relay::new(App::Silent);
    let forward = start(&relay).await;
    let mut peers = Vec::new();
    for _ in 0..50 {
        peers.push(peer(&forward).await);
    }
    let mut sent = 0;
    for round in 0..100_u32 {
        for (index, socket) in peers.iter().enumerate() {
            let mut datagram = vec![index as u8; SIZES[(round as usize + index) % SIZES.len()]];
            datagram[1..5].copy_from_slice(&round.to_le_bytes());
            sent += u64::from(socket.try_send(&datagram).is_ok());
        }
        if round % 25 == 24 {
            tokio::task::yield_now().await;
        }
    }
    until_counters(&forward, &format!("{sent} of them accounted for"), |counters| {
        relay.delivered() as u64 + counters.datagrams_dropped == sent
    })
    .await;
    let before = forward.counters();
    let after = forward.stop(Duration::ZERO).await;
    assert_eq!(
        (before.datagrams_up, before.datagrams_dropped),
        (after.datagrams_up, after.datagrams_dropped)
    );
    assert!(after.datagrams_dropped > 0, "25 rounds of 50 are more than a buffer of 4 MiB holds");
    let mut owners = BTreeMap::new();
    let mut last = BTreeMap::new();
    for (flow, datagram) in &relay.state().delivered {
        assert!(datagram[5..].iter().all(|byte| *byte == datagram[0]), "torn");
        assert_eq!(*owners.entry(*flow).or_insert(datagram[0]), datagram[0], "a flow of two peers");
        let round = u32::from_le_bytes(datagram[1..5].try_into().expect("four bytes"));
        assert!(last.insert(datagram[0], round).is_none_or(|before| before < round), "out of order");
    }
}

/// Random faults against a small model: what each peer sends either arrives, whole, once, in order, in a flow of nobody
/// else's, or is counted as dropped; answers reach who asked.
#[tokio::test(start_paused = true)]
async fn nothing_is_lost_uncounted_or_mixed_up_under_any_script() {
    for seed in 0..40 {
        script(seed).await;
    }
}

async fn script(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let relay = Relay::new(App::Echo);
    relay.change(|state| state.drops_every = random.random_range(5..50));
    let forward = engine(&relay, random.random_range(4..12)).start(udp());
    until_status(&forward, "ready").await;
    let mut peers = Vec::new();
    for _ in 0..8 {
        peers.push((peer(&forward).await, 0_u32));
    }
    let mut sent = 0_u64;
    for _ in 0..60 {
        match random.random_range(0..10) {
            0 => relay.ready(random.random()),
            1 => relay.break_all(),
            2 => relay.change(|state| {
                state.app = if state.app == App::Echo { App::Fails(Code::RemoteRefused) } else { App::Echo };
            }),
            3 => relay.change(|state| {
                state.dial = match state.dial {
                    None => {
                        Some([Code::ConnectionLost, Code::RelayDenied, Code::Overloaded][seed as usize % 3])
                    }
                    Some(_) => None,
                };
            }),
            4 => tokio::time::sleep(Duration::from_millis(random.random_range(1..7_000))).await,
            5 if random.random_bool(0.1) => tokio::time::sleep(Duration::from_secs(130)).await,
            _ => {
                let index = random.random_range(0..peers.len());
                let (socket, next) = &mut peers[index];
                for _ in 0..random.random_range(1..20) {
                    let mut datagram = vec![index as u8; random.random_range(5..3_000)];
                    datagram[1..5].copy_from_slice(&next.to_le_bytes());
                    *next += 1;
                    socket.send(&datagram).await.expect("send");
                    sent += 1;
                }
                tokio::task::yield_now().await;
            }
        }
    }
    relay.change(|state| (state.app, state.dial) = (App::Echo, None));
    relay.ready(true);
    until_counters(&forward, &format!("seed {seed}: {sent} of them accounted for"), |counters| {
        relay.delivered() as u64 + counters.datagrams_dropped == sent
    })
    .await;
    let counters = forward.stop(Duration::ZERO).await;
    assert_eq!(relay.live(), 0, "seed {seed}");
    assert_eq!(relay.delivered() as u64 + counters.datagrams_dropped, sent, "seed {seed}");

    let mut owner = BTreeMap::new();
    let mut last = BTreeMap::new();
    for (flow, datagram) in &relay.state().delivered {
        let (peer, body) = (datagram[0], &datagram[5..]);
        let number = u32::from_le_bytes(datagram[1..5].try_into().expect("four bytes"));
        assert_eq!(*owner.entry(*flow).or_insert(peer), peer, "seed {seed}: a flow of two peers");
        assert!(body.iter().all(|byte| *byte == peer), "seed {seed}: torn");
        let before = last.insert(peer, number);
        assert!(before.is_none_or(|before| before < number), "seed {seed}: out of order");
    }
    let mut answered = 0;
    for (index, (socket, _)) in peers.iter().enumerate() {
        let mut buffer = vec![0; 65_535];
        while let Ok(length) = socket.try_recv(&mut buffer) {
            assert_eq!(buffer[0], index as u8, "seed {seed}: another's answer");
            assert!(length >= 5);
            answered += 1;
        }
    }
    assert!(answered <= counters.datagrams_down, "seed {seed}");
}
