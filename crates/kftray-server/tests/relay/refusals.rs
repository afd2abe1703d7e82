//! What is refused, and with which words.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use kftray_relay_proto::handshake::HandshakeError;
use kftray_relay_proto::hello::ClientHello;
use kftray_relay_proto::open::{Family, Listen, MAX_HOST, Mode, Open, Policy, Target};
use kftray_relay_proto::reason::RefusalKind;
use kftray_relay_proto::record::Record;
use kftray_relay_proto::token::Token;
use kftray_relay_proto::version::Versions;
use kftray_server::settings::{Limits, Settings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::client::{Client, hello, named, tcp, udp};
use crate::dns::Dns;
use crate::{Running, SOON, reach, settings, silent};

async fn refused_hello(relay: &Running, hello: ClientHello) -> RefusalKind {
    match Client::with(relay.tunnel, hello).await {
        Err(HandshakeError::Refused { refusal, .. }) => refusal.kind,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("let in"),
    }
}

#[tokio::test]
async fn strangers() {
    let relay = Running::start(settings()).await;
    assert_eq!(refused_hello(&relay, hello(Token::new([1; 32]))).await, RefusalKind::Unauthorized);
    let newer = Versions { lowest: 900, highest: 901 };
    let from_the_future = ClientHello { versions: newer, ..hello(crate::token()) };
    assert_eq!(refused_hello(&relay, from_the_future).await, RefusalKind::Version);
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xFF; 4096], b"\x16\x03\x01\x02\x00", b"KFTRELAY\xFF\xFF"]
    {
        let mut socket = TcpStream::connect(relay.tunnel).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        // Closed or reset, without a word.
        timeout(SOON, socket.read_to_end(&mut answer)).await.unwrap().ok();
        assert!(answer.is_empty());
    }
    assert_eq!(relay.metric("kftray_server_hellos_refused_total{reason=\"garbage\"}").await, 4);
    assert_eq!(relay.metric("kftray_server_hellos_refused_total{reason=\"unauthorized\"}").await, 1);
    Client::new(relay.tunnel).await;
}

#[tokio::test]
async fn a_flood_of_silent_connections_has_an_end() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(relay.tunnel).await.unwrap());
    }
    let closed = async {
        for socket in &mut silent[32..] {
            assert_eq!(socket.read(&mut [0]).await.unwrap_or(0), 0);
        }
    };
    timeout(SOON, closed).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    client.opened(&tcp(listener.local_addr().unwrap())).await;
}

#[tokio::test]
async fn a_flood_of_opens_is_busy_and_disturbs_nobody() {
    let limits = Limits { streams: 8, flows: 2, carriers: 2, ..Limits::default() };
    let relay = Running::start(Settings { limits, ..settings() }).await;
    let client = Client::new(relay.tunnel).await;
    let other = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push((client.opened(&tcp(address)).await, listener.accept().await.unwrap().0));
    }
    for _ in 0..500 {
        assert_eq!(client.refused(&tcp(address)).await.kind, RefusalKind::Busy);
    }
    other.opened(&tcp(address)).await;
    for (channel, socket) in &mut held {
        channel.data(b"x").await;
        timeout(SOON, socket.read_exact(&mut [0])).await.unwrap().unwrap();
    }
    // What ends makes room.
    held.pop();
    let again = async {
        while client.open(&tcp(address), &[]).await.reply().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, again).await.unwrap();
    let echo = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let flow = udp(echo.local_addr().unwrap());
    let _two = (other.opened(&flow).await, other.opened(&flow).await);
    assert_eq!(other.refused(&flow).await.kind, RefusalKind::Busy);
    assert_eq!(refused_hello(&relay, hello(crate::token())).await, RefusalKind::Busy);
}

#[tokio::test]
async fn memory_beyond_its_limit_is_busy() {
    let limits = Limits { memory: Some(1), ..Limits::default() };
    let relay = Running::start(Settings { limits, ..settings() }).await;
    assert_eq!(refused_hello(&relay, hello(crate::token())).await, RefusalKind::Busy);
}

#[tokio::test]
async fn the_lists_are_kept() {
    let reach = reach(&["127.0.0.2", "10.96.0.0/12"], &["10.96.0.1"]);
    let relay = Running::start(Settings { reach, ..settings() }).await;
    let client = Client::new(relay.tunnel).await;
    let api = SocketAddr::from(([10, 96, 0, 1], 443));
    for (address, why) in [
        (relay.tunnel, "loopback"),
        (SocketAddr::from(([169, 254, 169, 254], 80)), "metadata"),
        (SocketAddr::from(([0, 0, 0, 0], 80)), "the relay itself"),
        (api, "KFTRAY_DENY"),
        (SocketAddr::from(([8, 8, 8, 8], 53)), "KFTRAY_ALLOW"),
        ("[::ffff:127.0.0.1]:80".parse().unwrap(), "loopback"),
        ("[fe80::1]:80".parse().unwrap(), "link-local"),
    ] {
        for open in [tcp(address), udp(address)] {
            let refusal = client.refused(&open).await;
            assert_eq!(refusal.kind, RefusalKind::Denied, "{address}");
            assert!(refusal.message.contains(why), "{}", refusal.message);
        }
    }
    assert_eq!(relay.metric("kftray_server_refusals_total{reason=\"denied\"}").await, 14);
}

#[tokio::test]
async fn the_address_that_is_dialled_is_the_one_that_was_judged() {
    let dns = Dns::start().await;
    let reach = reach(&["127.0.0.2"], &[]);
    let relay = Running::with_names(Settings { reach, ..settings() }, dns.names(&[])).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let forbidden = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    dns.set("app.example.", &["127.0.0.2"]);
    client.opened(&named("app.example", port)).await;
    // The name moves to the relay's own loopback: asked anew, judged anew.
    dns.set("app.example.", &["127.0.0.1"]);
    let refusal = client.refused(&named("app.example", port)).await;
    assert_eq!(refusal.kind, RefusalKind::Denied);
    assert!(refusal.message.starts_with("app.example leads to 127.0.0.1:"), "{}", refusal.message);
    // Of several addresses only the allowed ones are dialled.
    dns.set("app.example.", &["127.0.0.1", "127.0.0.2", "169.254.169.254"]);
    let (address, _) = client.open(&named("app.example", port), &[]).await.reply().await.unwrap();
    assert_eq!(address, "127.0.0.2");
    drop(listener);
    assert_eq!(client.refused(&named("app.example", port)).await.kind, RefusalKind::Refused);
    assert!(timeout(Duration::from_millis(50), forbidden.accept()).await.is_err(), "nobody came here");
}

#[tokio::test]
async fn names_are_completed_as_the_pod_says() {
    let dns = Dns::start().await;
    let reach = reach(&["*.prod.svc.cluster.test", "127.0.0.9"], &[]);
    let settings = Settings { reach, ..settings() };
    let names = dns.names(&["prod.svc.cluster.test.", "svc.cluster.test."]);
    let relay = Running::with_names(settings, names).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.9:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    dns.set("db.prod.svc.cluster.test.", &["127.0.0.9"]);
    dns.set("db.other.svc.cluster.test.", &["127.0.0.9"]);
    for name in ["db", "db.prod", "DB.prod.svc.cluster.test", "db.prod.svc.cluster.test.", "db.other"] {
        client.opened(&named(name, port)).await;
    }
    let unknown = client.refused(&named("nobody", port)).await;
    assert_eq!(unknown.kind, RefusalKind::NameNotFound);
    assert!(unknown.message.contains("nobody"), "{}", unknown.message);
    for nonsense in ["a..b", &"x".repeat(80), "with space"] {
        assert_eq!(
            client.refused(&named(nonsense, port)).await.kind,
            RefusalKind::NameNotFound,
            "{nonsense}"
        );
    }
    let only_v6 = Policy { family: Some(Family::V6), ..Policy::default() };
    let open = Open::Tcp { target: Target { host: "db".into(), port }, policy: only_v6 };
    assert_eq!(client.refused(&open).await.kind, RefusalKind::NameNotFound);
}

#[tokio::test]
async fn a_dns_that_is_not_there_is_told() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let refusal = client.refused(&named("db.prod", 5432)).await;
    assert!(matches!(refusal.kind, RefusalKind::Unreachable | RefusalKind::TimedOut), "{refusal}");
    assert!(refusal.message.contains("DNS"), "{}", refusal.message);
}

#[tokio::test]
async fn what_does_not_answer_times_out() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refusal = client.refused(&tcp(closed)).await;
    assert_eq!(refusal.kind, RefusalKind::Refused);
    assert!(refusal.message.contains("nothing listens"), "{}", refusal.message);
    let (full, _fillers) = silent(SocketAddr::from(([127, 0, 0, 1], 0))).await;
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let policy = Policy { connect_timeout: Some(Duration::from_millis(700)), ..Policy::default() };
    let target = Target { host: address.ip().to_string(), port: address.port() };
    let mut channel = client.open(&Open::Tcp { target, policy }, &[]).await;
    let refusal = channel.reply().await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::TimedOut);
    assert_eq!(channel.pending, 1, "the dial was slow, and that was told");
    // Who gives up meanwhile is not dialled for any more, although bytes of it wait.
    let policy = Policy { connect_timeout: Some(SOON * 2), ..Policy::default() };
    let target = Target { host: address.ip().to_string(), port: address.port() };
    let dialling = "kftray_server_streams{kind=\"tcp\"}";
    let mut waiting = client.open(&Open::Tcp { target, policy }, &[Record::Data("x".into())]).await;
    let reply = timeout(Duration::from_secs(3), waiting.reply()).await;
    assert!(reply.is_err() && waiting.pending == 1, "{reply:?}");
    drop(waiting);
    timeout(SOON, async { while relay.metric(dialling).await != 0 {} }).await.unwrap();
}

#[tokio::test]
async fn nonsense_on_a_stream_costs_that_stream_only() {
    use futures::AsyncWriteExt as _;
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut good = client.opened(&tcp(address)).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    // A record that is longer than any, behind a good open.
    let mut bad = client.opened(&tcp(address)).await;
    let (mut cut, _) = listener.accept().await.unwrap();
    bad.stream.write_all(&[0xFF, 0xF0, 1, 2, 3]).await.unwrap();
    let error = timeout(SOON, cut.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let announced =
        Open::Incoming(kftray_relay_proto::open::Incoming { name: "x".into(), port: 1, peer: String::new() });
    assert_eq!(client.refused(&announced).await.kind, RefusalKind::Invalid);
    good.data(b"x").await;
    timeout(SOON, socket.read_exact(&mut [0])).await.unwrap().unwrap();
    // yamux that is none ends the carrier.
    let mut raw = TcpStream::connect(relay.tunnel).await.unwrap();
    let mut out = BytesMut::new();
    hello(crate::token()).encode(&mut out);
    out.put_bytes(0xEE, 4096);
    raw.write_all(&out).await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, raw.read_to_end(&mut answer)).await.unwrap().ok();
    good.data(b"y").await;
    timeout(SOON, socket.read_exact(&mut [0])).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_open_that_is_too_long_is_told_so_and_costs_that_stream_only() {
    let dns = Dns::start().await;
    let relay = Running::with_names(settings(), dns.names(&[])).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut good = client.opened(&tcp(address)).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    // A body of that length: host, port, and a field of a later version that an older relay passes over.
    let of_length = |length: u16| {
        let mut bytes = BytesMut::new();
        bytes.put_u8(1);
        bytes.put_u16(length);
        for (tag, value) in [(1, &b"127.0.0.1"[..]), (2, &address.port().to_be_bytes()[..])] {
            bytes.put_u8(tag);
            bytes.put_u16(value.len() as u16);
            bytes.put_slice(value);
        }
        let rest = usize::from(length) - bytes.len();
        bytes.put_u8(100);
        bytes.put_u16(rest as u16);
        bytes.put_bytes(0, rest);
        bytes
    };
    client.open_with(&of_length(8192), false).await.reply().await.unwrap();
    let callers = vec!["x".repeat(1000); 9];
    let listen = Open::Listen(Listen { name: "shop".into(), port: 0, mode: Mode::Tcp, callers });
    let mut many_callers = BytesMut::new();
    listen.encode(&mut many_callers);
    for (bytes, length) in [
        (of_length(8193), 8193),
        (of_length(u16::MAX), usize::from(u16::MAX)),
        // What is announced is enough: nobody waits for the rest, or keeps it.
        (BytesMut::from(&[1, 0xFF, 0xFF][..]), usize::from(u16::MAX)),
        (many_callers.clone(), many_callers.len() - 3),
    ] {
        let refusal = client.open_with(&bytes, false).await.reply().await.unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::TooLarge, "{refusal}");
        assert!(refusal.message.contains(&length.to_string()), "{}", refusal.message);
        assert!(refusal.message.contains("8192"), "{}", refusal.message);
    }
    // A host that is longer than any name, in a body that is not too long.
    let longest = named(&"x.".repeat(MAX_HOST / 2), 80);
    assert_eq!(client.refused(&longest).await.kind, RefusalKind::NameNotFound);
    let refusal = client.refused(&named(&"x".repeat(MAX_HOST + 1), 80)).await;
    assert_eq!(refusal.kind, RefusalKind::TooLarge, "{refusal}");
    assert_eq!(relay.metric("kftray_server_refusals_total{reason=\"too_large\"}").await, 5);
    good.data(b"x").await;
    timeout(SOON, socket.read_exact(&mut [0])).await.unwrap().unwrap();
}
