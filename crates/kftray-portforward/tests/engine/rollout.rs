//! Pods come and go while clients keep connecting.

use std::time::Duration;

use kftray_commons::Code;
use kftray_portforward::ports::{Condition, Delivery};
use kftray_portforward::{Event, ForwardConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::sim::{App, Manner, PATIENCE, Sim, config, connect, ready, until_status};

/// One request: a connection, a byte, the name of the pod.
async fn request(address: std::net::SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"?").await?;
    let mut name = String::new();
    stream.read_to_string(&mut name).await?;
    if name.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(name) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_new_connection() {
    let sim = Sim::with(App::Name, &["v1-a", "v1-b", "v1-c"]);
    let forward = ready(&sim.engine(), config()).await;
    let address = forward.addresses()[0];
    let mut clients = JoinSet::new();
    for (old, new) in [("v1-a", "v2-a"), ("v1-b", "v2-b"), ("v1-c", "v2-c")] {
        for phase in 0..4 {
            match phase {
                0 => sim.add(new, App::Name),
                1 => sim.change(old, |pod| pod.condition = Condition::Draining),
                // The program ends first, the cluster tells a little later.
                2 => sim.change(old, |pod| pod.manner = Manner::Refuse),
                _ => sim.remove(old),
            }
            for _ in 0..25 {
                clients.spawn(request(address));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
    let mut served = 0;
    while let Some(answer) = timeout(PATIENCE, clients.join_next()).await.expect("in time") {
        answer.expect("task").expect("every connection is served");
        served += 1;
    }
    assert_eq!((served, forward.counters().failed), (300, 0));
}

#[tokio::test]
async fn the_only_pod_is_replaced_and_everybody_waits_for_it() {
    let sim = Sim::with(App::Name, &["only"]);
    let forward = ready(&sim.engine(), config()).await;
    let address = forward.addresses()[0];
    // As a deleted pod really goes: it drains, its program ends, it vanishes; the next one comes up later.
    sim.change("only", |pod| pod.condition = Condition::Draining);
    sim.change("only", |pod| pod.manner = Manner::Refuse);
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        clients.spawn(request(address));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    sim.remove("only");
    until_status(&forward, "recovering").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(clients.try_join_next().is_none(), "all wait");
    sim.add("next", App::Name);
    while let Some(answer) = timeout(PATIENCE, clients.join_next()).await.expect("in time") {
        assert_eq!(answer.expect("task").expect("served"), "next");
    }
    until_status(&forward, "ready").await;
    assert_eq!(forward.counters().failed, 0);
}

#[tokio::test]
async fn a_program_that_dies_before_the_cluster_notices_is_waited_for() {
    let sim = Sim::with(App::Name, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    sim.change("a", |pod| pod.manner = Manner::Refuse);
    let mut clients = JoinSet::new();
    for _ in 0..10 {
        clients.spawn(request(forward.addresses()[0]));
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    sim.change("a", |pod| pod.condition = Condition::NotReady);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    sim.change("a", |pod| (pod.condition, pod.manner) = (Condition::Ready, Manner::Serve));
    while let Some(answer) = timeout(PATIENCE, clients.join_next()).await.expect("in time") {
        answer.expect("task").expect("served");
    }
}

#[tokio::test]
async fn an_unreachable_cluster_holds_connections_and_serves_them_when_it_is_back() {
    let sim = Sim::with(App::Name, &["a", "b"]);
    let forward = ready(&sim.engine(), config()).await;
    let unreachable = Manner::Fail(Code::ClusterUnreachable, Delivery::Nothing);
    for pod in ["a", "b"] {
        sim.change(pod, |pod| pod.manner = unreachable.clone());
        sim.break_pod(pod);
    }
    until_status(&forward, "recovering").await;
    let before = sim.seen().dials;
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        clients.spawn(request(forward.addresses()[0]));
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let tries = sim.seen().dials - before;
    assert!(tries < 20, "a crowd does not storm the cluster: {tries}");
    for pod in ["a", "b"] {
        sim.change(pod, |pod| pod.manner = Manner::Serve);
    }
    let back = Instant::now();
    while let Some(answer) = timeout(PATIENCE, clients.join_next()).await.expect("in time") {
        answer.expect("task").expect("served");
    }
    assert!(back.elapsed() < PATIENCE);
    until_status(&forward, "ready").await;
    assert_eq!(forward.counters().failed, 0);
}

#[tokio::test]
async fn waiting_ends_with_a_reset_and_the_reason() {
    let sim = Sim::new();
    sim.publish();
    let hold = Duration::from_millis(300);
    let forward = sim.engine().start(ForwardConfig { hold, ..config() });
    until_status(&forward, "resolving").await;
    let mut client = connect(&forward).await;
    client.write_all(b"anyone?").await.expect("write");
    let ended = timeout(PATIENCE, client.read_u8()).await.expect("in time");
    assert_eq!(ended.expect_err("a reset").kind(), std::io::ErrorKind::ConnectionReset);
    let mut events = forward.events();
    let problem = loop {
        if let Event::ConnectionFailed { problem, .. } = events.recv().await.expect("events") {
            break problem;
        }
    };
    assert_eq!(problem.code, Code::HoldTimeout);
    assert!(problem.message.contains("no_ready_pods"), "{}", problem.message);
    assert_eq!((forward.counters().failed, forward.counters().open), (1, 0));
}

#[tokio::test]
async fn a_client_that_gives_up_while_it_waits_is_forgotten() {
    let sim = Sim::new();
    sim.publish();
    let forward = sim.engine().start(config());
    until_status(&forward, "resolving").await;
    let client = connect(&forward).await;
    while forward.counters().open == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.set_zero_linger().expect("linger");
    drop(client);
    let forgotten = async {
        while forward.counters().open > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, forgotten).await.expect("in time");
    sim.add("a", App::Name);
    until_status(&forward, "ready").await;
    assert_eq!((sim.seen().dials, forward.counters().failed), (0, 0));
}
