//! UDP through the relay.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use kftray_relay_proto::open::{Open, Policy};
use kftray_relay_proto::reason::EndKind;
use kftray_relay_proto::record::{MAX_PAYLOAD, Record};
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::client::{Channel, Client, target, udp};
use crate::{Running, SOON, settings};

async fn socket() -> (UdpSocket, SocketAddr) {
    socket_at("127.0.0.1:0").await
}

async fn socket_at(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Sends back what comes.
async fn echo() -> (AbortOnDropHandle<()>, SocketAddr) {
    echo_at("127.0.0.1:0").await
}

async fn echo_at(address: &str) -> (AbortOnDropHandle<()>, SocketAddr) {
    let (socket, address) = socket_at(address).await;
    let task = tokio::runtime::Handle::current().spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..length], peer).await.unwrap();
        }
    });
    (AbortOnDropHandle::new(task), address)
}

async fn datagram(channel: &mut Channel) -> Bytes {
    match channel.next().await {
        Some(Record::Data(datagram)) => datagram,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_size_survives() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let (_echo, address) = echo().await;
    let first = Record::Data(Bytes::from_static(b"first"));
    let mut channel = client.open(&udp(address), &[first]).await;
    assert_eq!(channel.reply().await, Ok(("127.0.0.1".to_owned(), address.port())));
    assert_eq!(datagram(&mut channel).await, "first");
    for size in
        (0..=1500).step_by(125).chain([1, 511, 512, 8192, 16_382, 16_383, 16_384, 60_000, MAX_PAYLOAD])
    {
        let payload: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        channel.data(&payload).await;
        assert_eq!(datagram(&mut channel).await, payload, "{size} bytes");
    }
}

#[tokio::test]
async fn a_flow_to_an_ipv6_address_is_like_any_other() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let (_echo, address) = echo_at("[::1]:0").await;
    let first = Record::Data(Bytes::from_static(b"first"));
    let mut channel = client.open(&udp(address), &[first]).await;
    assert_eq!(channel.reply().await, Ok(("::1".to_owned(), address.port())));
    assert_eq!(datagram(&mut channel).await, "first");
    for size in [0, 1, 1232, 1452, 8192, MAX_PAYLOAD] {
        let payload: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        channel.data(&payload).await;
        assert_eq!(datagram(&mut channel).await, payload, "{size} bytes");
    }
    channel.send(&Record::finished()).await;
    relay.settles("kftray_server_streams{kind=\"udp\"}", 0).await;
    // Its ICMPv6 errors come back, too.
    let (gone, address) = socket_at("[::1]:0").await;
    drop(gone);
    let mut channel = client.open(&udp(address), &[Record::Data(Bytes::from_static(b"anybody?"))]).await;
    channel.reply().await.unwrap();
    let (_, end) = channel.rest().await;
    assert!(matches!(end, Some(Record::End { kind: EndKind::Refused, .. })), "{end:?}");
}

#[tokio::test]
async fn flows_are_apart_and_the_target_may_speak_first() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let (server, address) = socket().await;
    let mut peers = Vec::new();
    let mut channels = Vec::new();
    let mut buffer = [0; 64];
    for number in 0..20u8 {
        let mut channel = client.open(&udp(address), &[Record::Data(vec![number].into())]).await;
        channel.reply().await.unwrap();
        let (length, peer) = timeout(SOON, server.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(buffer[..length], [number]);
        peers.push(peer);
        channels.push(channel);
    }
    // One way, many without an answer; then pushes without a question.
    for channel in &mut channels {
        for _ in 0..10 {
            channel.data(b"statsd").await;
        }
    }
    for _ in 0..200 {
        timeout(SOON, server.recv_from(&mut buffer)).await.unwrap().unwrap();
    }
    for (number, peer) in peers.iter().enumerate() {
        for _ in 0..3 {
            server.send_to(&[number as u8], peer).await.unwrap();
        }
    }
    for (number, channel) in channels.iter_mut().enumerate() {
        for _ in 0..3 {
            assert_eq!(datagram(channel).await, [number as u8].as_slice());
        }
    }
    // Only the target's datagrams come in.
    let (stranger, _) = socket().await;
    stranger.send_to(b"spoof", peers[0]).await.unwrap();
    server.send_to(b"real", peers[0]).await.unwrap();
    assert_eq!(datagram(&mut channels[0]).await, "real");
}

#[tokio::test]
async fn an_unreachable_port_is_told_at_once() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let (gone, address) = socket().await;
    drop(gone);
    let mut channel = client.open(&udp(address), &[Record::Data(Bytes::from_static(b"anybody?"))]).await;
    channel.reply().await.unwrap();
    let (_, end) = channel.rest().await;
    let Some(Record::End { kind: EndKind::Refused, message }) = end else { panic!("{end:?}") };
    assert!(message.contains("nothing listens on UDP port"), "{message}");
}

#[tokio::test]
async fn a_silent_flow_ends() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let (_echo, address) = echo().await;
    let policy = Policy { idle: Some(Duration::from_secs(3)), ..Policy::default() };
    let mut channel = client.opened(&Open::Udp { target: target(address), policy }).await;
    let begin = tokio::time::Instant::now();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(1000)).await;
        channel.data(b"x").await;
        assert_eq!(datagram(&mut channel).await, "x");
    }
    let end = channel.next().await;
    assert!(matches!(end, Some(Record::End { kind: EndKind::Idle, .. })), "{end:?}");
    assert!(begin.elapsed() >= Duration::from_secs(7), "traffic keeps it alive");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_are_dropped_and_counted() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let (server, address) = socket().await;
    let mut channel = client.open(&udp(address), &[Record::Data(Bytes::from_static(b"go"))]).await;
    channel.reply().await.unwrap();
    let mut buffer = [0; 8];
    let (_, peer) = timeout(SOON, server.recv_from(&mut buffer)).await.unwrap().unwrap();
    // Far more than a window and a queue, while nobody reads.
    let sent = 2000u32;
    for number in 0..sent {
        let mut payload = vec![0; 1200];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        server.send_to(&payload, peer).await.unwrap();
        if number % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    // Until the flow has taken what the kernel holds.
    let mut taken = 0;
    while taken != relay.metric("kftray_server_datagrams_to_client_total").await || taken == 0 {
        taken = relay.metric("kftray_server_datagrams_to_client_total").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (mut received, mut dropped, mut last) = (0, 0, None);
    while received + dropped < taken {
        match timeout(SOON, channel.next()).await.unwrap() {
            Some(Record::Data(datagram)) => {
                let number = u32::from_be_bytes(datagram[..4].try_into().unwrap());
                assert!(last < Some(number), "in order");
                last = Some(number);
                received += 1;
            }
            Some(Record::Dropped(total)) => dropped = total,
            other => panic!("{other:?}"),
        }
    }
    assert!(dropped > 0 && received + dropped == taken, "{received} + {dropped} of {taken}");
    assert_eq!(relay.metric("kftray_server_datagrams_dropped_total").await, dropped);
}

#[tokio::test]
async fn the_client_ends_a_flow() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let (_echo, address) = echo().await;
    let mut channel = client.opened(&udp(address)).await;
    assert_eq!(relay.metric("kftray_server_streams{kind=\"udp\"}").await, 1);
    channel.send(&Record::finished()).await;
    let gone = async { while relay.metric("kftray_server_streams{kind=\"udp\"}").await != 0 {} };
    timeout(SOON, gone).await.unwrap();
}
