//! The link's faults and the proxies, seen by a raw client.

#![allow(clippy::allow_attributes, reason = "an expectation cannot hold for every file")]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test's way to say what it needs")]

mod common;

use std::io::ErrorKind;
use std::time::Duration;

use common::{Session, dial, soon, upgrade};
use kftray_spdy::connection::Event;
use kftray_testkit::proxy::{self, Proxy};
use kftray_testkit::{ADMIN, Ending, FakeCluster, Protocol, Timings, Which, handlers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

async fn cluster() -> FakeCluster {
    let timings = Timings { linger: Duration::from_millis(100), ..Timings::default() };
    let cluster = FakeCluster::builder().timings(timings).start().await.unwrap();
    let pod = cluster.pod("app").port("echo", 7, handlers::echo());
    pod.port("bulk", 19, handlers::chargen(Some(2 << 20))).create().unwrap();
    cluster.wait_ready("default", "app", 1).await.unwrap();
    cluster
}

async fn pong(session: &mut Session, limit: Duration) -> bool {
    session.ping().await;
    tokio::time::timeout(limit, session.next())
        .await
        .is_ok_and(|event| matches!(event, Some(Event::Pong { .. })))
}

#[tokio::test]
async fn latency_is_added_to_each_direction() {
    let cluster = cluster().await;
    let mut session = soon(Session::open(&cluster, Protocol::Spdy, "app")).await;
    cluster.faults().latency(Duration::from_millis(150), Duration::from_millis(50));
    let start = Instant::now();
    assert!(pong(&mut session, common::PATIENCE).await);
    assert!(start.elapsed() >= Duration::from_millis(195), "{:?}", start.elapsed());
}

#[tokio::test]
async fn bandwidth_is_capped() {
    let cluster = cluster().await;
    let mut session = soon(Session::open(&cluster, Protocol::WebSocketTunnel, "app")).await;
    cluster.faults().bandwidth(Some(4 << 20));
    let start = Instant::now();
    let pair = session.connect(19, b"").await;
    assert_eq!(soon(session.drain(pair)).await.0.len(), 2 << 20);
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_frozen_connection_is_silent_and_thaws() {
    let cluster = cluster().await;
    let mut old = soon(Session::open(&cluster, Protocol::Spdy, "app")).await;
    cluster.faults().freeze_existing();
    assert!(!pong(&mut old, Duration::from_millis(300)).await);
    let mut new = soon(Session::open(&cluster, Protocol::Spdy, "app")).await;
    assert!(pong(&mut new, common::PATIENCE).await);
    cluster.faults().freeze_all();
    assert!(!pong(&mut new, Duration::from_millis(300)).await);
    // TCP connects, TLS does not.
    assert!(tokio::time::timeout(Duration::from_millis(300), dial(&cluster)).await.is_err());
    cluster.faults().thaw();
    for session in [&mut old, &mut new] {
        assert!(matches!(soon(session.next()).await, Some(Event::Pong { .. })));
    }
    assert!(soon(dial(&cluster)).await.is_ok());
}

#[tokio::test]
async fn connections_are_dropped_by_kind_and_manner() {
    let cluster = cluster().await;
    let mut session = soon(Session::open(&cluster, Protocol::Spdy, "app")).await;
    let mut idle = TcpStream::connect(cluster.address()).await.unwrap();
    soon(async {
        while cluster.counters().connections.now() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    cluster.faults().drop_connections(Which::Carriers, Ending::Close);
    assert!(soon(session.next()).await.is_none());
    assert_eq!(cluster.counters().connections.now(), 1);
    cluster.faults().drop_connections(Which::Rest, Ending::Reset);
    let error = soon(idle.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_api_server_restarts_on_its_port() {
    let cluster = cluster().await;
    let mut session = soon(Session::open(&cluster, Protocol::Spdy, "app")).await;
    cluster.faults().refuse_tcp().await;
    let error = TcpStream::connect(cluster.address()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    // What exists lives on.
    assert!(pong(&mut session, common::PATIENCE).await);
    cluster.faults().restart_api_server(Duration::from_millis(100)).await;
    assert!(soon(session.next()).await.is_none());
    let mut session = soon(Session::open(&cluster, Protocol::WebSocketTunnel, "app")).await;
    let pair = session.connect(7, b"back").await;
    assert_eq!(soon(session.read(pair, 4)).await, b"back");
}

#[tokio::test]
async fn an_http_proxy_tunnels_and_wants_its_password() {
    let cluster = FakeCluster::builder().plain().start().await.unwrap();
    cluster.pod("app").port("echo", 7, handlers::echo()).create().unwrap();
    cluster.wait_ready("default", "app", 1).await.unwrap();
    cluster.add_token(ADMIN, "raw", None);
    let proxy = Proxy::with_login(proxy::Kind::Http, "me", "secret").await.unwrap();
    assert!(proxy.url().starts_with("http://me:secret@127.0.0.1:"));
    let target = cluster.address();
    for (login, expected) in [("", "407"), ("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n", "200")] {
        let mut tcp = TcpStream::connect(proxy.address()).await.unwrap();
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(tcp.read_u8()).await.unwrap());
        }
        assert!(String::from_utf8(head).unwrap().contains(expected));
        if expected == "200" {
            let mut io: Box<dyn common::Io> = Box::new(tcp);
            assert_eq!(soon(upgrade(&mut io, Protocol::Spdy, "app", "", b"")).await.unwrap().status, 101);
            let mut session = Session::on(io, Protocol::Spdy);
            assert!(pong(&mut session, common::PATIENCE).await);
        }
    }
    assert_eq!((proxy.refused(), proxy.tunnels().total()), (1, 1));
    assert_eq!(proxy.targets(), [target.to_string()]);
}

#[tokio::test]
async fn a_socks_proxy_resolves_names() {
    let cluster = FakeCluster::builder().plain().start().await.unwrap();
    let proxy = Proxy::with_login(proxy::Kind::Socks5, "me", "secret").await.unwrap();
    for (password, good) in [("wrong", false), ("secret", true)] {
        let mut tcp = TcpStream::connect(proxy.address()).await.unwrap();
        tcp.write_all(&[5, 1, 2]).await.unwrap();
        assert_eq!([tcp.read_u8().await.unwrap(), tcp.read_u8().await.unwrap()], [5, 2]);
        let mut login = vec![1, 2];
        login.extend_from_slice(b"me");
        login.push(u8::try_from(password.len()).unwrap());
        login.extend_from_slice(password.as_bytes());
        tcp.write_all(&login).await.unwrap();
        assert_eq!(tcp.read_u8().await.unwrap(), 1);
        assert_eq!(tcp.read_u8().await.unwrap() == 0, good);
        if !good {
            continue;
        }
        let mut request = vec![5, 1, 0, 3, 9];
        request.extend_from_slice(b"127.0.0.1");
        request.extend_from_slice(&cluster.address().port().to_be_bytes());
        tcp.write_all(&request).await.unwrap();
        let mut answer = [0; 10];
        soon(tcp.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer[..2], [5, 0]);
        tcp.write_all(b"GET /version HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        soon(tcp.read_to_string(&mut text)).await.unwrap();
        assert!(text.starts_with("HTTP/1.0 401"), "{text}");
    }
    assert_eq!((proxy.refused(), proxy.tunnels().total()), (1, 1));
}
