//! TCP through the relay.

use std::time::Duration;

use bytes::Bytes;
use kftray_relay_proto::hello::ClientHello;
use kftray_relay_proto::reason::EndKind;
use kftray_relay_proto::record::Record;
use kftray_relay_proto::version::{SUPPORTED, Versions};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::client::{Client, hello, tcp};
use crate::{Running, SOON, settings};

fn finished() -> Option<Record> {
    Some(Record::finished())
}

#[tokio::test]
async fn first_bytes_travel_with_the_open() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut channel = client.open(&tcp(address), &[Record::Data(Bytes::from_static(b"hello"))]).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut buffer = [0; 5];
    socket.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"hello");
    assert_eq!(channel.reply().await, Ok(("127.0.0.1".to_owned(), address.port())));
    socket.write_all(b"world").await.unwrap();
    assert_eq!(channel.read(5).await, b"world");
    assert_eq!(client.hello.max_streams, 4096);
    assert_eq!(relay.metric("kftray_server_bytes_to_cluster_total").await, 5);
    assert_eq!(relay.metric("kftray_server_streams{kind=\"tcp\"}").await, 1);
}

#[tokio::test]
async fn an_ipv6_address_is_dialled_like_any_other() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut channel = client.open(&tcp(address), &[Record::Data(Bytes::from_static(b"first, "))]).await;
    assert_eq!(channel.reply().await, Ok(("::1".to_owned(), address.port())));
    let (mut socket, peer) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    assert!(peer.ip().is_ipv6());
    channel.data(b"and then").await;
    channel.send(&Record::finished()).await;
    let mut request = String::new();
    timeout(SOON, socket.read_to_string(&mut request)).await.unwrap().unwrap();
    assert_eq!(request, "first, and then");
    let answer = vec![42; 1_000_000];
    let (written, (read, end)) = tokio::join!(
        async {
            socket.write_all(&answer).await.unwrap();
            socket.shutdown().await.unwrap();
            socket
        },
        channel.rest()
    );
    assert!(read == answer, "{} bytes", read.len());
    assert_eq!(end, finished());
    drop(written);
    relay.settles("kftray_server_streams{kind=\"tcp\"}", 0).await;
}

/// The first bump of the protocol: a client that speaks the next version too meets a relay that does not.
#[tokio::test]
async fn a_newer_client_is_served_in_the_relays_version() {
    let relay = Running::start(settings()).await;
    let versions = Versions { lowest: SUPPORTED.lowest, highest: SUPPORTED.highest + 1 };
    let newer = ClientHello { versions, ..hello(crate::token()) };
    let client = Client::with(relay.tunnel, newer).await.unwrap();
    assert_eq!(client.hello.version, SUPPORTED.highest);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut channel = client.opened(&tcp(listener.local_addr().unwrap())).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.write_all(b"served").await.unwrap();
    assert_eq!(channel.read(6).await, b"served");
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut channel = client.opened(&tcp(listener.local_addr().unwrap())).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    // The client finishes first; the answer takes its time and is whole.
    channel.data(b"request").await;
    channel.send(&Record::finished()).await;
    let mut request = Vec::new();
    timeout(SOON, socket.read_to_end(&mut request)).await.unwrap().unwrap();
    assert_eq!(request, b"request");
    let answer = vec![42; 3_000_000];
    let (written, (read, end)) = tokio::join!(
        async {
            socket.write_all(&answer).await.unwrap();
            socket.shutdown().await.unwrap();
            socket
        },
        channel.rest()
    );
    assert_eq!((read.len(), end), (answer.len(), finished()));
    drop(written);
    // The target finishes first; the client goes on.
    let mut channel = client.opened(&tcp(listener.local_addr().unwrap())).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.shutdown().await.unwrap();
    assert_eq!(channel.next().await, finished());
    channel.data(b"still here").await;
    channel.send(&Record::finished()).await;
    let mut rest = String::new();
    timeout(SOON, socket.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, "still here");
}

#[tokio::test]
async fn a_reset_is_no_end() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for half_closed in [false, true] {
        let mut channel = client.opened(&tcp(listener.local_addr().unwrap())).await;
        let (mut socket, _) = listener.accept().await.unwrap();
        if half_closed {
            channel.send(&Record::finished()).await;
            assert_eq!(timeout(SOON, socket.read(&mut [0])).await.unwrap().unwrap(), 0);
        }
        socket.write_all(b"half an ans").await.unwrap();
        assert_eq!(channel.read(11).await, b"half an ans");
        SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        drop(socket);
        let end = channel.next().await;
        assert!(matches!(end, Some(Record::End { kind: EndKind::Reset, .. })), "{end:?}");
        assert_eq!(channel.next().await, None);
    }
}

/// The kernel tells it once: to the write that fails, and the read behind it sees an orderly end.
#[tokio::test]
async fn a_reset_during_an_upload_is_no_end_either() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut channel = client.opened(&tcp(listener.local_addr().unwrap())).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.write_all(b"half an ans").await.unwrap();
    let upload = async {
        // Until the target's buffers and the window are full, and somewhat beyond.
        while timeout(Duration::from_millis(300), channel.data(&[1; 32_000])).await.is_ok() {}
    };
    timeout(SOON, upload).await.unwrap();
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    let (bytes, end) = channel.rest().await;
    assert_eq!(bytes, b"half an ans");
    assert!(matches!(end, Some(Record::End { kind: EndKind::Reset, .. })), "{end:?}");
}

#[tokio::test]
async fn a_client_that_cuts_off_resets_the_target() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut channel = client.opened(&tcp(listener.local_addr().unwrap())).await;
    channel.data(b"half a req").await;
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut buffer = [0; 64];
    assert_eq!(timeout(SOON, socket.read(&mut buffer)).await.unwrap().unwrap(), 10);
    drop(channel);
    let error = timeout(SOON, socket.read(&mut buffer)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // The same when the whole carrier goes.
    let other = Client::new(relay.tunnel).await;
    let mut channel = other.opened(&tcp(listener.local_addr().unwrap())).await;
    channel.data(b"half an upload").await;
    let (mut socket, _) = listener.accept().await.unwrap();
    assert_eq!(timeout(SOON, socket.read(&mut buffer)).await.unwrap().unwrap(), 14);
    drop(other);
    let error = timeout(SOON, socket.read(&mut buffer)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // And nothing of either is left.
    relay.settles("kftray_server_streams{kind=\"tcp\"}", 0).await;
    relay.settles("kftray_server_tunnels{purpose=\"tcp\"}", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_holds_up_no_other() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut stuck = client.opened(&tcp(address)).await;
    let (mut source, _) = listener.accept().await.unwrap();
    let pour =
        tokio_util::task::AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(async move {
            let block = vec![1; 65_536];
            for _ in 0..160 {
                source.write_all(&block).await.unwrap();
            }
        }));
    for round in 0..50u8 {
        let mut channel = client.opened(&tcp(address)).await;
        let (mut socket, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        channel.data(&[round]).await;
        let mut byte = [0];
        timeout(SOON, socket.read_exact(&mut byte)).await.unwrap().unwrap();
        socket.write_all(&byte).await.unwrap();
        assert_eq!(channel.read(1).await, [round]);
    }
    let (bytes, end) = stuck.rest().await;
    assert_eq!((bytes.len(), end), (160 * 65_536, finished()));
    pour.await.unwrap();
}

#[tokio::test]
async fn many_connections_at_once() {
    let relay = Running::start(settings()).await;
    let client = Client::new(relay.tunnel).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Beyond yamux' limit of unacknowledged streams.
    let mut sockets = Vec::new();
    let mut channels = Vec::new();
    for _ in 0..600 {
        channels.push(client.open(&tcp(address), &[Record::Data(Bytes::from_static(b"x"))]).await);
        sockets.push(timeout(SOON, listener.accept()).await.unwrap().unwrap().0);
    }
    for socket in &mut sockets {
        let mut byte = [0];
        timeout(SOON, socket.read_exact(&mut byte)).await.unwrap().unwrap();
        socket.write_all(b"y").await.unwrap();
    }
    for channel in &mut channels {
        channel.reply().await.unwrap();
        assert_eq!(channel.read(1).await, b"y");
    }
}
