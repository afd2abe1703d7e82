//! Names with several addresses, and names that move.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use kftray_relay_proto::record::Record;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::client::{Channel, Client, named};
use crate::dns::Dns;
use crate::{Running, SOON, settings, silent};

/// A word there and a word back.
async fn exchange(channel: &mut Channel, socket: &mut TcpStream) {
    channel.data(b"there").await;
    let mut word = [0; 5];
    timeout(SOON, socket.read_exact(&mut word)).await.unwrap().unwrap();
    assert_eq!(&word, b"there");
    socket.write_all(b"back").await.unwrap();
    assert_eq!(channel.read(4).await, b"back");
}

async fn accepted(listener: &TcpListener) -> TcpStream {
    timeout(SOON, listener.accept()).await.unwrap().unwrap().0
}

#[tokio::test]
async fn an_address_that_does_not_answer_holds_up_the_next_one_for_a_moment_only() {
    let dns = Dns::start().await;
    let relay = Running::with_names(settings(), dns.names(&[])).await;
    let client = Client::new(relay.tunnel).await;
    for dead in ["127.0.0.2", "::1"] {
        let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let _silent = silent(SocketAddr::new(dead.parse().unwrap(), port)).await;
        dns.set("app.example.", &[dead, "127.0.0.3"]);
        let begin = Instant::now();
        let first = Record::Data(Bytes::from_static(b"first"));
        let mut channel = client.open(&named("app.example", port), &[first]).await;
        assert_eq!(channel.reply().await, Ok(("127.0.0.3".to_owned(), port)));
        let took = begin.elapsed();
        // The dial itself would be given up after 10 s.
        assert!(took < Duration::from_secs(8), "{dead}: {took:?}");
        // Else the silent one was not asked first, and nothing is shown.
        assert!(took >= Duration::from_millis(250) && channel.pending == 1, "{dead}: {took:?}");
        let mut socket = accepted(&listener).await;
        let mut word = [0; 5];
        timeout(SOON, socket.read_exact(&mut word)).await.unwrap().unwrap();
        assert_eq!(&word, b"first");
        exchange(&mut channel, &mut socket).await;
    }
}

#[tokio::test]
async fn a_name_that_moves_is_followed_by_the_next_connection_and_the_old_one_goes_on() {
    let dns = Dns::start().await;
    let relay = Running::with_names(settings(), dns.names(&[])).await;
    let client = Client::new(relay.tunnel).await;
    let before = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = before.local_addr().unwrap().port();
    let after = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
    let open = named("app.example", port);
    dns.set("app.example.", &["127.0.0.2"]);
    let mut old = client.open(&open, &[]).await;
    assert_eq!(old.reply().await, Ok(("127.0.0.2".to_owned(), port)));
    let mut old_socket = accepted(&before).await;
    exchange(&mut old, &mut old_socket).await;
    // The answer may be kept for 60 s; nobody keeps it.
    dns.set("app.example.", &["127.0.0.3"]);
    let mut new = client.open(&open, &[]).await;
    assert_eq!(new.reply().await, Ok(("127.0.0.3".to_owned(), port)));
    let mut new_socket = accepted(&after).await;
    for _ in 0..3 {
        exchange(&mut old, &mut old_socket).await;
        exchange(&mut new, &mut new_socket).await;
    }
    assert!(timeout(Duration::from_millis(50), before.accept()).await.is_err(), "only one came here");
    new.send(&Record::finished()).await;
    assert_eq!(timeout(SOON, new_socket.read(&mut [0])).await.unwrap().unwrap(), 0);
    exchange(&mut old, &mut old_socket).await;
}
