//! How the relay comes to its end, and what it says of itself meanwhile.

use std::time::Duration;

use kftray_relay_proto::handshake::HandshakeError;
use kftray_relay_proto::reason::{EndKind, RefusalKind};
use kftray_relay_proto::record::Record;
use kftray_server::relay::Ended;
use kftray_server::settings::Settings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Client, hello, tcp, udp};
use crate::program::Program;
use crate::{Running, SOON, health, settings};

#[tokio::test]
async fn the_tunnel_port_is_on_the_loopback_only() {
    let relay = Running::start(settings()).await;
    assert!(relay.tunnel.ip().is_loopback(), "{}", relay.tunnel);
    Client::new(relay.tunnel).await;
    // Not even at the loopback's other addresses, as it would be if it listened on all.
    assert!(TcpStream::connect(("127.0.0.2", relay.tunnel.port())).await.is_err());
}

#[tokio::test]
async fn draining_lets_connections_finish() {
    let mut relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut channel = client.opened(&tcp(address)).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    let flow_target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut flow = client.opened(&udp(flow_target.local_addr().unwrap())).await;
    relay.stop();
    // A flow has no end of its own: it moves elsewhere at once.
    let end = flow.next().await;
    assert!(matches!(end, Some(Record::End { kind: EndKind::Draining, .. })), "{end:?}");
    assert_eq!(client.refused(&tcp(address)).await.kind, RefusalKind::Draining);
    assert!(relay.health("/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(relay.health("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(TcpStream::connect(relay.tunnel).await.is_err(), "no new tunnels");
    channel.data(b"last words").await;
    channel.send(&Record::finished()).await;
    let mut words = String::new();
    timeout(SOON, socket.read_to_string(&mut words)).await.unwrap().unwrap();
    socket.write_all(b"good bye").await.unwrap();
    drop(socket);
    assert_eq!(channel.rest().await, (b"good bye".to_vec(), Some(Record::finished())));
    assert_eq!(relay.ended().await, Ended::Drained);
}

#[tokio::test]
async fn what_does_not_finish_is_cut_off() {
    let mut relay = Running::start(Settings { drain: Duration::from_millis(200), ..settings() }).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut channel = client.opened(&tcp(listener.local_addr().unwrap())).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    relay.stop();
    assert_eq!(channel.next().await, None, "cut off, not finished");
    let error = timeout(SOON, socket.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(relay.ended().await, Ended::Cut);
}

#[tokio::test]
async fn without_anything_open_a_stop_is_at_once() {
    let mut relay = Running::start(settings()).await;
    let _client = Client::new(relay.tunnel).await;
    relay.stop();
    assert_eq!(relay.ended().await, Ended::Drained);
}

#[tokio::test]
async fn nobody_needs_it_any_more() {
    let idle = Some(Duration::from_secs(2));
    let relay = Running::start(Settings { idle_exit: idle, ..settings() }).await;
    let client = Client::new(relay.tunnel).await;
    // A tunnel without any stream keeps it; a refused hello does not.
    sleep(Duration::from_secs(3)).await;
    client.opened(&tcp(TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap())).await;
    let stranger = hello(kftray_relay_proto::token::Token::new([0; 32]));
    assert!(matches!(Client::with(relay.tunnel, stranger).await, Err(HandshakeError::Refused { .. })));
    let begin = Instant::now();
    drop(client);
    assert_eq!(relay.ended().await, Ended::Idle);
    assert!(begin.elapsed() >= Duration::from_secs(2));
    let never_used = Running::start(Settings { idle_exit: idle, ..settings() }).await;
    assert_eq!(never_used.ended().await, Ended::Idle);
}

#[tokio::test]
async fn health_and_metrics() {
    let relay = Running::start(Settings { expose_ports: Vec::new(), ..settings() }).await;
    let _client = Client::new(relay.tunnel).await;
    assert!(relay.health("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(relay.health("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(relay.health("/else").await.starts_with("HTTP/1.1 404"));
    assert_eq!(relay.metric("kftray_server_tunnels{purpose=\"tcp\"}").await, 1);
    assert!(relay.metric("kftray_server_resident_memory_bytes").await > 1 << 20);
    assert!(relay.health("/metrics").await.contains("application/openmetrics-text"));
    for garbage in
        [&b"\x00\x01\x02\x03\r\n\r\n"[..], b"POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
    {
        let mut socket = TcpStream::connect(relay.health).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        let mut answer = String::new();
        timeout(SOON, socket.read_to_string(&mut answer)).await.unwrap().ok();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert!(relay.health("/healthz").await.starts_with("HTTP/1.1 200"));
}

/// The kubelet's probe is one among whatever comes from the cluster.
#[tokio::test]
async fn nobody_keeps_the_probe_out() {
    let relay = Running::start(settings()).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(relay.health).await.unwrap());
        // Each is accepted before the next comes.
        assert!(relay.health("/healthz").await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn sigterm_lets_connections_finish_and_the_program_leaves_when_they_have() {
    let drain = Duration::from_secs(120);
    let mut relay = Program::start(&[("KFTRAY_DRAIN", &drain.as_secs().to_string())]).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut channel = client.opened(&tcp(address)).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    channel.data(b"request, ").await;
    let mut request = vec![0; 9];
    timeout(SOON, socket.read_exact(&mut request)).await.unwrap().unwrap();
    let begin = Instant::now();
    relay.terminate();
    // The signal takes its time to be noticed.
    let noticed = async {
        while !health(relay.health, "/readyz").await.contains("going away") {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, noticed).await.unwrap();
    assert_eq!(client.refused(&tcp(address)).await.kind, RefusalKind::Draining);
    assert!(TcpStream::connect(relay.tunnel).await.is_err(), "no new tunnels");
    channel.data(b"whole").await;
    channel.send(&Record::finished()).await;
    timeout(SOON, socket.read_to_end(&mut request)).await.unwrap().unwrap();
    assert_eq!(request, b"request, whole");
    socket.write_all(b"answer").await.unwrap();
    drop(socket);
    assert_eq!(channel.rest().await, (b"answer".to_vec(), Some(Record::finished())));
    assert_eq!(relay.left().await.code(), Some(0));
    assert!(begin.elapsed() < drain / 4, "{:?}", begin.elapsed());
}
