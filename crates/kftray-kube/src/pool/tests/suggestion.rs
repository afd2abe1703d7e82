//! When a forward by the pool suggests the relay, with the engine in front of it.

use kftray_commons::{ClusterRef, RemotePort, Target, TargetObject};
use kftray_portforward::ports::{Resolution, Resolve, Wanted};
use kftray_portforward::{Engine, Event, Forward, ForwardConfig, Limits, LocalAddress};
use tokio::sync::watch;

use super::*;

/// The rig's pod is ready.
struct OnePod;

impl Resolve for OnePod {
    fn follow(&self, _: &Wanted) -> watch::Receiver<Resolution> {
        let known = Resolution::Endpoints { endpoints: Arc::from([endpoint(80)]), why_none: None };
        let mut receiver = watch::Sender::new(known).subscribe();
        receiver.mark_changed();
        receiver
    }
}

/// A forward by the rig's pool.
fn start(rig: &Rig, hold: Duration) -> Forward {
    let object = TargetObject::Pod("pod".to_owned());
    let target = Target { cluster: ClusterRef::default(), namespace: None, object };
    let port = RemotePort::Number(80.try_into().unwrap());
    let addresses = vec![LocalAddress::Ip("127.0.0.1".parse().unwrap())];
    let config = ForwardConfig { addresses, hold, ..ForwardConfig::new("web", target, port) };
    let limits = Limits { held: 100, connections: 100, flows: 1 };
    Engine::new(Arc::new(OnePod), Arc::new(rig.pool.clone()), limits).start(config)
}

async fn connect(forward: &Forward) -> tokio::net::TcpStream {
    let mut status = forward.status();
    drop(status.wait_for(|_| !forward.addresses().is_empty()).await);
    tokio::net::TcpStream::connect(forward.addresses()[0]).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_relay_is_suggested_once_when_the_governor_holds_connections_back_for_a_second() {
    let mut rig = rig();
    let node = governor::node_of(&endpoint(80));
    let mut others = Vec::new();
    for _ in 0..governor::MAX_THREADS {
        others.push(rig.pool.inner.governor.admit(&node).await.unwrap());
    }
    let forward = start(&rig, Duration::from_secs(60));
    let mut events = forward.events();
    let mut peers = std::mem::replace(&mut rig.peers, mpsc::unbounded_channel().1);
    let _serving = background(async move {
        let mut serving = Vec::new();
        while let Some(peer) = peers.recv().await {
            serving.push(peer.echo());
        }
    });
    forward.status().wait_for(|status| status.name() == "ready").await.unwrap();
    let begin = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(connect(&forward).await);
    }
    let note = loop {
        if let Event::Note(problem) = timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap()
        {
            break problem;
        }
    };
    assert_eq!(note.code, Code::SuggestRelay);
    let after = begin.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(2)).contains(&after), "{after:?}");
    // Nobody is served out of turn, and all are told of only once.
    tokio::time::sleep(Duration::from_secs(3)).await;
    clients.push(connect(&forward).await);
    tokio::time::sleep(Duration::from_secs(3)).await;
    others.clear();
    for client in &mut clients {
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    }
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, Event::Note(_)), "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_that_the_governor_flattens_is_no_reason_to_suggest_anything() {
    let rig = rig();
    let node = governor::node_of(&endpoint(80));
    let held_back = rig.pool.held_back(&endpoint(80));
    let burst = join_all((0..governor::MAX_THREADS).map(|_| rig.pool.inner.governor.admit(&node)));
    tokio::select! {
        biased;
        () = held_back => panic!("nobody waits for long"),
        admitted = burst => assert!(admitted.iter().all(Result::is_ok)),
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_suggested_where_no_node_has_to_be_protected() {
    let mut rig = rig();
    let (_held, _error) = crowd(&mut rig).await;
    let forward = start(&rig, Duration::from_secs(5));
    let mut events = forward.events();
    let _client = connect(&forward).await;
    let problem = loop {
        let event = timeout(Duration::from_secs(20), events.recv()).await.expect("told").expect("events");
        assert!(!matches!(event, Event::Note(_)), "{event:?}");
        if let Event::ConnectionFailed { problem, .. } = event {
            break problem;
        }
    };
    assert!(problem.message.contains("downloads"), "{problem}");
}
