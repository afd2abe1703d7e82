//! The one-target relay of other clients' manifests.

use kftray_server::legacy::{Contract, OneTarget};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::{SOON, dns};

fn start(udp: bool, host: &str, port: u16) -> (u16, oneshot::Sender<()>, AbortOnDropHandle<()>) {
    let contract = Contract { udp, host: host.to_owned(), port, local_port: 0 };
    let relay = OneTarget::bind(contract, dns::no_names()).unwrap();
    let port = relay.port().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::runtime::Handle::current().spawn(relay.run(async {
        stopped.await.ok();
    }));
    (port, stop, AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn tcp_bytes_as_they_are() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, stop, task) = start(false, "127.0.0.1", listener.local_addr().unwrap().port());
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    let mut request = String::new();
    timeout(SOON, server.read_to_string(&mut request)).await.unwrap().unwrap();
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = String::new();
    timeout(SOON, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!((request.as_str(), answer.as_str()), ("request", "answer"));
    stop.send(()).unwrap();
    timeout(SOON, task).await.unwrap().unwrap();
}

async fn frame(socket: &mut TcpStream) -> Vec<u8> {
    let length = timeout(SOON, socket.read_u32()).await.unwrap().unwrap() as usize;
    let mut payload = vec![0; length];
    socket.read_exact(&mut payload).await.unwrap();
    payload
}

async fn send(socket: &mut TcpStream, payload: &[u8]) {
    socket.write_u32(payload.len() as u32).await.unwrap();
    socket.write_all(payload).await.unwrap();
}

#[tokio::test]
async fn udp_in_frames_each_direction_by_itself() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (port, _stop, _task) = start(true, "127.0.0.1", server.local_addr().unwrap().port());
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    // Several questions before the first answer, and a keepalive between them.
    send(&mut client, b"one").await;
    send(&mut client, b"").await;
    send(&mut client, b"two").await;
    send(&mut client, &[9; 65_507]).await;
    let mut buffer = vec![0; 65_536];
    let mut peer = None;
    for expected in [3, 3, 65_507] {
        let (length, from) = timeout(SOON, server.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(length, expected);
        peer = Some(from);
    }
    for answer in [&b"three"[..], b"four", &[8; 65_507]] {
        server.send_to(answer, peer.unwrap()).await.unwrap();
        assert_eq!(frame(&mut client).await, answer);
    }
    // No answer: a frame of length 0 after 5 s, for clients that wait for one.
    send(&mut client, b"unanswered").await;
    assert!(frame(&mut client).await.is_empty());
    // A frame that no datagram can be ends the flow.
    client.write_u32(70_000).await.unwrap();
    assert_eq!(timeout(SOON, client.read(&mut buffer)).await.unwrap().unwrap_or(0), 0);
}
