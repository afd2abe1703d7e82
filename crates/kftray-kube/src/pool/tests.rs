//! Tests of the pool over in-memory carriers, on paused time.

mod suggestion;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use kftray_portforward::ports::{ClusterId, Condition, Route};
use kftray_spdy::frame::Frame;
use kftray_spdy::{channel, ws};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::connect::Carrier;
use crate::session::Placement;
use crate::session::tests::peer::{Peer, background, pattern, recv, recv_all, recv_exact, send};

/// Hands out in-memory carriers, whose other ends the test gets.
struct Fake {
    peers: mpsc::UnboundedSender<Peer>,
    count: AtomicUsize,
    delay: Duration,
    errors: Mutex<VecDeque<Problem>>,
}

struct Rig {
    pool: Pool,
    fake: Arc<Fake>,
    peers: mpsc::UnboundedReceiver<Peer>,
}

fn rig() -> Rig {
    rig_at(Duration::from_millis(50))
}

/// A cluster that takes so long to open a session.
fn rig_at(delay: Duration) -> Rig {
    let (sender, peers) = mpsc::unbounded_channel();
    let fake = Arc::new(Fake { peers: sender, count: AtomicUsize::new(0), delay, errors: Mutex::default() });
    Rig { pool: Pool::new(Arc::clone(&fake) as Arc<dyn Upgrade>), fake, peers }
}

impl Rig {
    fn opened(&self) -> usize {
        self.fake.count.load(Ordering::Relaxed)
    }

    async fn peer(&mut self) -> Peer {
        timeout(Duration::from_secs(10), self.peers.recv()).await.expect("an upgrade").expect("a peer")
    }

    async fn dial(&self, first: &'static [u8]) -> Box<dyn Channel> {
        self.pool.dial(&endpoint(80), Bytes::from_static(first)).await.expect("a connection")
    }

    fn placements(&self) -> Vec<Placement> {
        let pod = self.pool.inner.pod(&endpoint(80));
        pod.sessions().iter().map(|session| session.load().placement).collect()
    }
}

impl Upgrade for Fake {
    fn session(&self, _: &Endpoint) -> BoxFuture<'static, Result<Option<Carrier>, DialError>> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let (carrier, peer) = Peer::carrier(Protocol::WebSocketTunnel);
        let (peers, delay, error) = (self.peers.clone(), self.delay, self.errors.lock().unwrap().pop_front());
        async move {
            tokio::time::sleep(delay).await;
            if let Some(problem) = error {
                return Err(certain(problem));
            }
            peers.send(peer).ok();
            Ok(Some(carrier))
        }
        .boxed()
    }

    fn single(&self, _: &Endpoint) -> BoxFuture<'static, Result<Carrier, DialError>> {
        unreachable!("sessions are spoken")
    }
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint {
        cluster: ClusterId(1),
        namespace: "ns".into(),
        pod: "pod".into(),
        uid: "uid".into(),
        node: Some("node".into()),
        port,
        condition: Condition::Ready,
        route: Route::Direct,
    }
}

#[tokio::test(start_paused = true)]
async fn a_crowd_waits_for_one_session_for_all_ports_and_has_a_spare_opened() {
    let mut rig = rig();
    let dials = (0..30).map(|number| rig.pool.dial(&endpoint(8000 + number % 3), Bytes::from_static(b"hi")));
    let mut channels: Vec<_> = join_all(dials).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(rig.opened(), 2, "one for the crowd, one for whoever comes next");
    let mut peer = rig.peer().await;
    for number in 0..30 {
        let pair = peer.accept().await;
        assert_eq!(pair.port, 8000 + number % 3);
        assert_eq!(peer.take(pair.data, 2).await, b"hi");
        peer.data(pair.data, b"hi", false).await;
    }
    for channel in &mut channels {
        assert_eq!(recv_exact(&mut **channel, 2).await, b"hi");
    }
    // Another pod of the same name is another pod.
    let successor = Endpoint { uid: "other".into(), ..endpoint(80) };
    rig.pool.dial(&successor, Bytes::new()).await.unwrap();
    assert_eq!(rig.opened(), 3);
}

#[tokio::test(start_paused = true)]
async fn while_there_are_few_sessions_a_connection_finds_an_empty_one() {
    let mut rig = rig();
    let mut channels = vec![rig.dial(b"first").await];
    let mut one = rig.peer().await;
    let pair = one.accept().await;
    assert_eq!(one.take(pair.data, 5).await, b"first");
    // The second finds the only session in use, and has one opened for itself.
    channels.push(rig.dial(b"second").await);
    let mut two = rig.peer().await;
    let pair = two.accept().await;
    assert_eq!(two.take(pair.data, 6).await, b"second");
    // One after another need only one.
    drop(channels);
    let opened = rig.opened();
    for _ in 0..10 {
        drop(rig.dial(b"x").await);
    }
    assert_eq!(rig.opened(), opened);
}

#[tokio::test(start_paused = true)]
async fn far_away_a_connection_shares_rather_than_waits_long() {
    let mut rig = rig_at(Duration::from_millis(450));
    let _first = rig.dial(b"first").await;
    let mut one = rig.peer().await;
    let pair = one.accept().await;
    assert_eq!(one.take(pair.data, 5).await, b"first");
    let start = Instant::now();
    let _second = rig.dial(b"second").await;
    assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
    let pair = one.accept().await;
    assert_eq!(one.take(pair.data, 6).await, b"second");
    // The next one has the session that was opened meanwhile.
    let mut two = rig.peer().await;
    let _third = rig.dial(b"third").await;
    let pair = two.accept().await;
    assert_eq!(two.take(pair.data, 5).await, b"third");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_only_waits_for_its_end_takes_no_session_from_others() {
    let mut rig = rig();
    let mut channel = rig.dial(b"question").await;
    let mut peer = rig.peer().await;
    let pair = peer.accept().await;
    assert_eq!(peer.take(pair.data, 8).await, b"question");
    peer.data(pair.data, b"answer", false).await;
    assert_eq!(recv_exact(&mut *channel, 6).await, b"answer");
    channel.finish();
    let _next = rig.dial(b"next").await;
    let pair = peer.accept().await;
    assert_eq!(peer.take(pair.data, 4).await, b"next");
    assert_eq!(rig.opened(), 1, "one after another need one session");
}

#[tokio::test(start_paused = true)]
async fn warm_proves_and_tells_of_the_loss() {
    let mut rig = rig();
    let (warm, mut peer) = tokio::join!(rig.pool.warm(&endpoint(80)), async {
        let mut peer = rig.peers.recv().await.unwrap();
        timeout(Duration::from_millis(20), peer.frame()).await.unwrap_err();
        peer
    });
    let warm = warm.unwrap();
    assert_eq!(warm.transport, "websocket");
    // Warm is cheap when it is warm.
    let again = rig.pool.warm(&endpoint(80)).await.unwrap();
    assert_eq!(rig.opened(), 1);
    drop(again);
    // Held, it outlives any idleness.
    timeout(Duration::from_secs(1200), peer.frame()).await.unwrap_err();
    peer.pongs = false;
    let deaf = background(async move { while peer.frame().await.is_some() {} });
    let problem = timeout(Duration::from_secs(15), warm.lost).await.expect("noticed");
    assert_eq!(problem.code, Code::ConnectionLost);
    deaf.await.unwrap();
}

/// Resets come in company: of the sessions that are left each may be dead without knowing it.
#[tokio::test(start_paused = true)]
async fn after_a_loss_no_session_counts_as_proved_by_what_it_said_before() {
    let mut rig = rig();
    let mut one = rig.dial(b"one").await;
    let mut first = rig.peer().await;
    first.accept().await;
    let two = rig.dial(b"").await;
    let mut second = rig.peer().await;
    let pair = second.accept().await;
    drop(two);
    second.reset_of(pair).await;
    for peer in [&mut first, &mut second] {
        // Answers the PINGs that are due.
        while timeout(Duration::from_millis(20), peer.frame()).await.is_ok() {}
    }
    second.pongs = false;
    drop(first);
    recv(&mut *one).await.unwrap_err();
    let warm = timeout(Duration::from_millis(500), rig.pool.warm(&endpoint(80))).await;
    assert!(warm.is_err(), "ready by a session that does not answer");
    second.pongs = true;
    let _deaf = background(async move { while second.frame().await.is_some() {} });
    let warm = timeout(Duration::from_millis(500), rig.pool.warm(&endpoint(80))).await;
    assert_eq!(warm.expect("answered").unwrap().transport, "websocket");
}

#[tokio::test(start_paused = true)]
async fn unheld_sessions_close_and_the_pod_is_forgotten() {
    let mut rig = rig();
    let channel = rig.dial(b"").await;
    let mut peer = rig.peer().await;
    peer.accept().await;
    drop(channel);
    while peer.frame().await.is_some() {}
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(rig.pool.inner.lock().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn failures_are_passed_on_and_the_next_dial_tries_again() {
    let rig = rig();
    rig.fake.errors.lock().unwrap().push_back(Problem::new(Code::Forbidden, "no"));
    let errors = join_all((0..3).map(|_| rig.pool.dial(&endpoint(80), Bytes::new()))).await;
    for error in errors {
        let error = error.err().expect("refused");
        assert_eq!((error.problem.code, error.delivery), (Code::Forbidden, Delivery::Nothing));
    }
    assert_eq!(rig.opened(), 1);
    rig.dial(b"").await;
    assert_eq!(rig.opened(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_refuses_further_sessions_is_not_asked_for_each_connection() {
    let mut rig = rig();
    let mut channels = vec![rig.dial(b"first").await];
    let mut peer = rig.peer().await;
    let _lives = background(async move { while peer.frame().await.is_some() {} });
    let refused = || Problem::new(Code::ClusterError, "too many requests");
    rig.fake.errors.lock().unwrap().extend([refused(), refused()]);
    for _ in 0..50 {
        channels.push(rig.dial(b"more").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rig.opened(), 2, "all share, and one attempt was made");
    tokio::time::sleep(Duration::from_secs(5)).await;
    channels.push(rig.dial(b"later").await);
    assert_eq!(rig.opened(), 3, "refused once more");
    tokio::time::sleep(Duration::from_secs(5)).await;
    channels.push(rig.dial(b"and then").await);
    channels.push(rig.dial(b"as usual").await);
    assert_eq!(rig.opened(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_download_that_nobody_reads_is_left_alone_with_its_session() {
    let mut rig = rig();
    let mut stalled = rig.dial(b"").await;
    let mut peer = rig.peer().await;
    let pair = peer.accept().await;
    let data = pattern(1, 4 * 1024 * 1024);
    let expected = data.clone();
    let server = background(async move {
        for piece in data.chunks(32 * 1024) {
            peer.data(pair.data, piece, false).await;
        }
        while peer.frame().await.is_some() {}
    });
    // The replacement is opened before anybody asks for it.
    let echo = rig.peer().await.echo();
    let start = Instant::now();
    for round in 0..100 {
        let mut channel = rig.dial(b"quick").await;
        assert_eq!(recv_exact(&mut *channel, 5).await, b"quick", "round {round}");
    }
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert!(recv_exact(&mut *stalled, expected.len()).await == expected);
    assert_eq!(rig.opened(), 2);
    drop((server, echo));
}

#[tokio::test(start_paused = true)]
async fn crowded_by_clients_that_do_not_read_it_says_so() {
    let mut rig = rig();
    let (_held, error) = crowd(&mut rig).await;
    assert_eq!((error.problem.code, error.delivery), (Code::Overloaded, Delivery::Nothing));
    assert!(rig.opened() <= 32, "{}", rig.opened());
}

/// Dials until the pod is crowded by clients that do not read.
async fn crowd(rig: &mut Rig) -> (Vec<Box<dyn Channel>>, DialError) {
    let mut held = Vec::new();
    let data: Arc<[u8]> = pattern(1, 32 * 1024).into();
    loop {
        match rig.pool.dial(&endpoint(80), Bytes::new()).await {
            Ok(channel) => held.push(channel),
            Err(error) => return (held, error),
        }
        // Every session gets one stream that is never read.
        while let Ok(mut peer) = rig.peers.try_recv() {
            let data = Arc::clone(&data);
            held.push(Box::new(Background(background(async move {
                let pair = peer.accept().await;
                for _ in 0..64 {
                    peer.data(pair.data, &data, false).await;
                }
                while peer.frame().await.is_some() {}
            }))));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(held.len() < 200);
    }
}

/// Keeps a task in a list of channels.
struct Background(#[expect(dead_code, reason = "held for its drop")] tokio_util::task::AbortOnDropHandle<()>);

impl Channel for Background {
    fn poll_recv(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<Option<Bytes>, kftray_portforward::ports::ChannelError>> {
        std::task::Poll::Pending
    }

    fn poll_send_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), kftray_portforward::ports::ChannelError>> {
        std::task::Poll::Pending
    }

    fn send(&mut self, _: Bytes) {}

    fn finish(&mut self) {}

    fn half_close(&self) -> kftray_portforward::ports::HalfClose {
        kftray_portforward::ports::HalfClose::Withheld
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_a_session_that_died_in_silence_moves_within_three_seconds() {
    let mut rig = rig();
    // Nobody is on it, or the new connection would have a session of its own at once.
    drop(rig.dial(b"old").await);
    let mut peer = rig.peer().await;
    let pair = peer.accept().await;
    assert_eq!(peer.take(pair.data, 3).await, b"old");
    while timeout(Duration::from_secs(3), peer.frame()).await.is_ok() {}
    // From here on the path is dead: nothing is read, nothing answered.
    peer.pongs = false;
    let start = Instant::now();
    let mut new = rig.dial(b"new").await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let _echo = rig.peer().await.echo();
    assert_eq!(recv_exact(&mut *new, 3).await, b"new");
    // What was said stayed on the new session.
    let mut seen = Vec::new();
    while let Ok(Some(frame)) = timeout(Duration::from_millis(10), peer.frame()).await {
        if let Frame::Data(chunk) = frame {
            seen.extend_from_slice(&chunk.payload);
        }
    }
    assert!(seen.is_empty(), "{seen:?}");
    // The dead session goes soon, too.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.placements(), [Placement::Free]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_keeps_the_connection_where_it_is() {
    let mut rig = rig();
    drop(rig.dial(b"").await);
    let mut peer = rig.peer().await;
    let pair = peer.accept().await;
    peer.reset_of(pair).await;
    timeout(Duration::from_secs(3), peer.frame()).await.unwrap_err();
    peer.pongs = false;
    let (mut channel, ()) = tokio::join!(rig.dial(b"hello"), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        peer.pongs = true;
        let pair = peer.accept().await;
        assert_eq!(peer.take(pair.data, 5).await, b"hello");
        peer.data(pair.data, b"yes", false).await;
    });
    // A replacement was dialled meanwhile; it was not needed.
    assert_eq!(rig.opened(), 2);
    assert_eq!(recv_exact(&mut *channel, 3).await, b"yes");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_is_dropped_at_once() {
    let mut rig = rig();
    let (warm, mut peer) = tokio::join!(rig.pool.warm(&endpoint(80)), async {
        let mut peer = rig.peers.recv().await.unwrap();
        timeout(Duration::from_millis(20), peer.frame()).await.unwrap_err();
        peer
    });
    let mut channel = rig.dial(b"").await;
    let pair = peer.accept().await;
    peer.data(pair.error, b"failed to find sandbox \"1\" in store: not found", true).await;
    peer.rst(pair.data).await;
    assert_eq!(recv(&mut *channel).await.unwrap_err().problem.code, Code::PodGone);
    let problem = timeout(Duration::from_millis(10), warm.unwrap().lost).await.expect("at once");
    assert_eq!(problem.code, Code::PodGone);
    assert_eq!(rig.pool.inner.lock().len(), 0);
    rig.dial(b"").await;
    assert_eq!(rig.opened(), 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_network_change_what_is_being_dialled_is_dialled_anew() {
    let mut rig = rig();
    let pool = rig.pool.clone();
    let (channel, ()) = tokio::join!(rig.pool.dial(&endpoint(80), Bytes::from_static(b"x")), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        pool.network_changed();
    });
    assert_eq!(rig.opened(), 2);
    let mut channel = channel.unwrap();
    let mut peer = rig.peer().await;
    let pair = peer.accept().await;
    assert_eq!(peer.take(pair.data, 1).await, b"x");
    // And a session that does not answer after one is lost in two seconds.
    peer.pongs = false;
    tokio::time::sleep(Duration::from_millis(1)).await;
    peer.data(pair.data, b"y", false).await;
    assert_eq!(recv_exact(&mut *channel, 1).await, b"y");
    pool.network_changed();
    let start = Instant::now();
    recv(&mut *channel).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_pool_leaves_connections_alone_and_closes_the_rest() {
    let mut rig = rig();
    let mut channel = rig.dial(b"").await;
    let mut peer = rig.peer().await;
    let pair = peer.accept().await;
    drop(rig.pool);
    peer.data(pair.data, b"still", false).await;
    assert_eq!(recv_exact(&mut *channel, 5).await, b"still");
    drop(channel);
    while timeout(Duration::from_secs(1), peer.frame()).await.expect("closed").is_some() {}
}

/// A cluster that speaks only the channel protocol.
struct Old(mpsc::UnboundedSender<tokio::io::DuplexStream>);

impl Upgrade for Old {
    fn session(&self, _: &Endpoint) -> BoxFuture<'static, Result<Option<Carrier>, DialError>> {
        async { Ok(None) }.boxed()
    }

    fn single(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Carrier, DialError>> {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let (sender, port) = (self.0.clone(), endpoint.port);
        async move {
            let mut greeting = Vec::new();
            channel::put_greeting(&mut greeting, ws::Role::Server, 0, port).unwrap();
            far.write_all(&greeting).await.unwrap();
            sender.send(far).unwrap();
            Ok(Carrier { io: Box::new(near), protocol: Protocol::Legacy })
        }
        .boxed()
    }
}

/// The data of one message of the client.
async fn legacy_message(far: &mut tokio::io::DuplexStream, input: &mut bytes::BytesMut) -> Bytes {
    let mut parser = ws::Parser::new(ws::Role::Server, u64::MAX);
    loop {
        match parser.next(input).unwrap() {
            Some(ws::Event::Data { payload, .. }) if payload.len() > 1 => return payload.slice(1..),
            Some(_) => {}
            None => assert!(far.read_buf(input).await.unwrap() > 0, "closed"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn legacy_connections_have_a_carrier_each() {
    let (sender, mut fars) = mpsc::unbounded_channel();
    let pool = Pool::new(Arc::new(Old(sender)));
    let warm = pool.warm(&endpoint(80)).await.unwrap();
    assert_eq!(warm.transport, "legacy");
    assert!(fars.try_recv().is_err(), "warm does not touch the application");

    let mut channel = pool.dial(&endpoint(80), Bytes::from_static(b"hello")).await.unwrap();
    let mut far = fars.recv().await.unwrap();
    let mut input = bytes::BytesMut::new();
    // Written by the first poll.
    assert!(timeout(Duration::from_millis(1), recv(&mut *channel)).await.is_err());
    assert_eq!(legacy_message(&mut far, &mut input).await, "hello");
    let mut answer = Vec::new();
    let data = pattern(1, 20_000);
    channel::put_data(&mut answer, ws::Role::Server, 0, &data).unwrap();
    far.write_all(&answer).await.unwrap();
    assert!(recv_exact(&mut *channel, data.len()).await == data);
    send(&mut *channel, b"more").await.unwrap();
    assert!(timeout(Duration::from_millis(1), recv(&mut *channel)).await.is_err());
    assert_eq!(legacy_message(&mut far, &mut input).await, "more");
    drop(far);
    assert_eq!(recv_all(&mut *channel).await.unwrap(), b"");

    let mut refused = pool.dial(&endpoint(81), Bytes::new()).await.unwrap();
    let mut far = fars.recv().await.unwrap();
    let mut text = Vec::new();
    channel::put_error(&mut text, ws::Role::Server, 0, "failed to connect to localhost:81 inside namespace")
        .unwrap();
    far.write_all(&text).await.unwrap();
    let error = recv(&mut *refused).await.unwrap_err();
    assert_eq!((error.problem.code, error.delivery), (Code::RemoteRefused, Delivery::Nothing));

    // A carrier that falls silent is noticed.
    let mut silent = pool.dial(&endpoint(80), Bytes::new()).await.unwrap();
    let start = Instant::now();
    let error = recv(&mut *silent).await.unwrap_err();
    assert_eq!(error.problem.code, Code::ConnectionLost);
    assert!(start.elapsed() < Duration::from_secs(15));

    // The client's end closes the carrier when the pod has been silent for long enough.
    let mut ended = pool.dial(&endpoint(80), Bytes::from_static(b"?")).await.unwrap();
    ended.finish();
    let mut far = fars.recv().await.unwrap();
    while let Ok(next) = fars.try_recv() {
        far = next;
    }
    let pong = background(async move {
        let mut buffer = [0; 1024];
        while far.read(&mut buffer).await.unwrap_or(0) > 0 {
            let mut pong = Vec::new();
            ws::put_pong(&mut pong, ws::Role::Server, b"");
            far.write_all(&pong).await.ok();
        }
    });
    assert!(timeout(Duration::from_secs(70), recv(&mut *ended)).await.unwrap().unwrap().is_none());
    drop(pong);
}
