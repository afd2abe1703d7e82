//! Listeners: callers of the relay reach the client.

use std::time::Duration;

use bytes::Bytes;
use kftray_relay_proto::open::{Listen, Mode, Open, Reply};
use kftray_relay_proto::reason::{EndKind, Refusal, RefusalKind};
use kftray_relay_proto::record::Record;
use kftray_relay_proto::token::Token;
use kftray_server::relay::Ended;
use kftray_server::settings::Settings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::{Channel, Client, hello, named};
use crate::{Running, SOON, settings};

fn listen(port: u16, mode: Mode, callers: &[&str]) -> Open {
    let callers = callers.iter().map(|&caller| caller.to_owned()).collect();
    Open::Listen(Listen { name: "shop".into(), port, mode, callers })
}

/// A client that listens at a free port.
async fn listening(relay: &Running, mode: Mode) -> (Client, Channel, u16) {
    let client = Client::new(relay.tunnel).await;
    let mut control = client.open(&listen(0, mode, &[]), &[]).await;
    let (_, port) = control.reply().await.unwrap();
    (client, control, port)
}

async fn call(port: u16) -> TcpStream {
    timeout(SOON, TcpStream::connect(("127.0.0.1", port))).await.unwrap().unwrap()
}

fn opened() -> Reply {
    Reply::Opened { address: String::new(), port: 0 }
}

async fn read_all(mut socket: TcpStream) -> std::io::Result<String> {
    let mut answer = String::new();
    timeout(SOON, socket.read_to_string(&mut answer)).await.unwrap()?;
    Ok(answer)
}

#[tokio::test]
async fn callers_reach_the_client() {
    let relay = Running::start(settings()).await;
    assert!(relay.health("/readyz").await.starts_with("HTTP/1.1 503"), "nobody answers callers yet");
    let (mut client, _control, port) = listening(&relay, Mode::Tcp).await;
    assert!(relay.health("/readyz").await.starts_with("HTTP/1.1 200"));
    let mut caller = call(port).await;
    caller.write_all(b"request").await.unwrap();
    caller.shutdown().await.unwrap();
    let (mut channel, incoming) = client.incoming().await;
    assert_eq!((incoming.name.as_str(), incoming.port), ("shop", port));
    assert_eq!(incoming.peer, caller.local_addr().unwrap().to_string());
    assert_eq!(
        channel.rest().await,
        (b"request".to_vec(), Some(Record::finished())),
        "before the reply, too"
    );
    channel.send_reply(&opened()).await;
    channel.data(b"answer").await;
    channel.send(&Record::finished()).await;
    assert_eq!(read_all(caller).await.unwrap(), "answer");
    let counted = async {
        while relay.metric("kftray_server_expose_connections_total{result=\"served\"}").await != 1 {}
    };
    timeout(SOON, counted).await.unwrap();
}

#[tokio::test]
async fn two_hundred_callers_at_once() {
    let relay = Running::start(settings()).await;
    let (mut client, _control, port) = listening(&relay, Mode::Tcp).await;
    let mut callers = Vec::new();
    for number in 0..200u8 {
        let mut caller = call(port).await;
        caller.write_all(&[number]).await.unwrap();
        callers.push(caller);
    }
    let mut channels = Vec::new();
    for _ in 0..200 {
        let (mut channel, _) = client.incoming().await;
        channel.send_reply(&opened()).await;
        channels.push(channel);
    }
    for channel in channels.iter_mut().rev() {
        let number = channel.read(1).await;
        channel.data(&number).await;
        channel.send(&Record::finished()).await;
    }
    for (number, mut caller) in callers.into_iter().enumerate() {
        let mut answer = [0];
        timeout(SOON, caller.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(usize::from(answer[0]), number);
    }
}

#[tokio::test]
async fn one_owner_at_a_time() {
    let relay = Running::start(settings()).await;
    let (mut first, mut control, port) = listening(&relay, Mode::Tcp).await;
    let stranger = Client::with(relay.tunnel, hello(Token::new([8; 32]))).await.unwrap();
    let refusal = stranger.refused(&listen(port, Mode::Tcp, &[])).await;
    assert_eq!(refusal.kind, RefusalKind::Taken);
    // The first still serves; then the same user's second client takes over, and what the first serves goes on.
    let mut caller = call(port).await;
    caller.write_all(b"x").await.unwrap();
    let (mut channel, _) = first.incoming().await;
    channel.send_reply(&opened()).await;
    let mut second = Client::new(relay.tunnel).await;
    let _control = second.opened(&listen(port, Mode::Tcp, &[])).await;
    let end = control.next().await;
    assert!(matches!(end, Some(Record::End { kind: EndKind::TakenOver, .. })), "{end:?}");
    drop(control);
    assert_eq!(channel.read(1).await, b"x");
    channel.data(b"y").await;
    timeout(SOON, caller.read_exact(&mut [0])).await.unwrap().unwrap();
    let _another = call(port).await;
    second.incoming().await;
}

#[tokio::test]
async fn callers_wait_for_a_client_that_comes_back() {
    let relay = Running::start(settings()).await;
    let (client, control, port) = listening(&relay, Mode::Http).await;
    // The carrier is lost; the stream with it.
    drop(client);
    drop(control);
    let mut caller = call(port).await;
    caller.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let stranger = Client::with(relay.tunnel, hello(Token::new([8; 32]))).await.unwrap();
    let taken = async {
        // Until the relay has noticed the loss the port is the first client's all the same.
        assert_eq!(stranger.refused(&listen(port, Mode::Http, &[])).await.kind, RefusalKind::Taken);
    };
    taken.await;
    let mut back = Client::new(relay.tunnel).await;
    let _control = back.opened(&listen(port, Mode::Http, &[])).await;
    let (mut channel, _) = back.incoming().await;
    channel.send_reply(&opened()).await;
    assert_eq!(channel.read(18).await, b"GET / HTTP/1.1\r\n\r\n");
    channel.data(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    channel.send(&Record::finished()).await;
    caller.shutdown().await.unwrap();
    assert!(read_all(caller).await.unwrap().starts_with("HTTP/1.1 204"));
}

/// A tunnel that is dead takes connections for a second more; its successor gets those that may be given twice.
#[tokio::test]
async fn a_caller_of_a_client_that_dies_is_offered_to_the_next() {
    let relay = Running::start(settings()).await;
    let (mut client, control, port) = listening(&relay, Mode::Http).await;
    let send = async |text: &str| {
        let mut caller = call(port).await;
        caller.write_all(text.as_bytes()).await.unwrap();
        caller
    };
    let get = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody";
    // One that has got the request and not answered, one that has begun to answer, and two that have said nothing yet.
    let taken = send(get).await;
    let (mut channel, _) = client.incoming().await;
    channel.send_reply(&opened()).await;
    assert_eq!(channel.read(get.len()).await, get.as_bytes());
    let mut begun = send(get).await;
    let (mut answering, _) = client.incoming().await;
    answering.send_reply(&opened()).await;
    answering.data(b"HTTP/1.1 200 OK\r\n").await;
    timeout(SOON, begun.read_exact(&mut [0; 17])).await.unwrap().unwrap();
    let posted = send(post).await;
    let (unsent, _) = client.incoming().await;
    let mut accepted = send(post).await;
    let (mut executed, _) = client.incoming().await;
    executed.send_reply(&opened()).await;
    assert_eq!(executed.read(post.len()).await, post.as_bytes());

    drop((client, control, channel, answering, unsent, executed));
    assert!(read_all(begun).await.is_err(), "its answer had begun");
    assert!(timeout(SOON, accepted.read(&mut [0; 1])).await.unwrap().is_err(), "it may have been executed");
    let mut back = Client::new(relay.tunnel).await;
    let _control = back.opened(&listen(port, Mode::Http, &[])).await;
    for _ in 0..2 {
        let (mut channel, incoming) = back.incoming().await;
        channel.send_reply(&opened()).await;
        let request = if incoming.peer == taken.local_addr().unwrap().to_string() { get } else { post };
        assert_eq!(channel.read(request.len()).await, request.as_bytes(), "once, and whole");
        channel.data(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        channel.send(&Record::finished()).await;
    }
    for mut caller in [taken, posted] {
        caller.shutdown().await.unwrap();
        assert!(read_all(caller).await.unwrap().starts_with("HTTP/1.1 204"));
    }
    let again = "kftray_server_expose_connections_total{result=\"offered_again\"}";
    assert_eq!(relay.metric(again).await, 2);
}

/// Its connection stays open, and only its silence tells. Nobody but the relay can then wake the callers.
#[tokio::test]
async fn a_caller_of_a_client_that_falls_silent_is_offered_to_the_next() {
    let relay = Running::start(settings()).await;
    let (mut client, _control, port) = listening(&relay, Mode::Http).await;
    let requests = [
        "GET / HTTP/1.1\r\nHost: shop\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n",
    ];
    let mut callers = Vec::new();
    let mut unanswered = Vec::new();
    for request in requests {
        let mut caller = call(port).await;
        caller.write_all(request.as_bytes()).await.unwrap();
        callers.push(caller);
        unanswered.push(client.incoming().await);
    }
    client.freeze();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(70)).await;
    tokio::time::resume();
    let noticed = async { while relay.metric("kftray_server_tunnels{purpose=\"tcp\"}").await != 0 {} };
    timeout(SOON, noticed).await.unwrap();

    let mut back = Client::new(relay.tunnel).await;
    let _control = back.opened(&listen(port, Mode::Http, &[])).await;
    for _ in requests {
        let (mut channel, incoming) = back.incoming().await;
        channel.send_reply(&opened()).await;
        let is_first = incoming.peer == callers[0].local_addr().unwrap().to_string();
        let request = if is_first { requests[0] } else { requests[1] };
        assert_eq!(channel.read(request.len()).await, request.as_bytes());
        channel.data(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        channel.send(&Record::finished()).await;
    }
    for mut caller in callers {
        caller.shutdown().await.unwrap();
        assert!(read_all(caller).await.unwrap().starts_with("HTTP/1.1 204"));
    }
}

/// A machine that fell asleep keeps its carrier for a while; callers need not wait for its end.
#[tokio::test]
async fn a_caller_does_not_wait_for_a_client_that_sleeps() {
    for comes_back in [true, false] {
        let short = Settings { expose_hold: Duration::from_secs(2), ..settings() };
        let relay = Running::start(short).await;
        let (mut client, _control, port) = listening(&relay, Mode::Http).await;
        let mut caller = call(port).await;
        caller.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
        let _unanswered = client.incoming().await;
        client.freeze();
        tokio::time::pause();
        // Less than its carrier is given.
        tokio::time::advance(Duration::from_secs(30)).await;
        tokio::time::resume();
        if comes_back {
            let mut back = Client::new(relay.tunnel).await;
            let _control = back.opened(&listen(port, Mode::Http, &[])).await;
            let (mut channel, _) = back.incoming().await;
            channel.send_reply(&opened()).await;
            channel.data(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            channel.send(&Record::finished()).await;
            caller.shutdown().await.unwrap();
            assert!(read_all(caller).await.unwrap().starts_with("HTTP/1.1 204"));
        } else {
            assert!(read_all(caller).await.unwrap().starts_with("HTTP/1.1 503"));
        }
    }
}

/// Who lives and takes its time loses nobody.
#[tokio::test]
async fn a_client_that_answers_may_let_callers_wait() {
    let relay = Running::start(settings()).await;
    let (mut client, _control, port) = listening(&relay, Mode::Http).await;
    let mut caller = call(port).await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    let (mut channel, _) = client.incoming().await;
    for _ in 0..4 {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(15)).await;
        tokio::time::resume();
        // A round trip on its carrier.
        client.refused(&named("no.such", 1)).await;
    }
    channel.send_reply(&opened()).await;
    channel.data(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    channel.send(&Record::finished()).await;
    caller.shutdown().await.unwrap();
    assert!(read_all(caller).await.unwrap().starts_with("HTTP/1.1 204"));
}

/// A caller keeps its connection although the client's program has said its last word, and then the client is gone.
#[tokio::test]
async fn a_caller_hears_of_the_end_after_the_client_has_finished() {
    let relay = Running::start(settings()).await;
    let (mut client, control, port) = listening(&relay, Mode::Tcp).await;
    let mut caller = call(port).await;
    caller.write_all(b"x").await.unwrap();
    let (mut channel, _) = client.incoming().await;
    channel.send_reply(&opened()).await;
    channel.data(b"y").await;
    channel.send(&Record::finished()).await;
    timeout(SOON, caller.read_exact(&mut [0])).await.unwrap().unwrap();
    assert_eq!(timeout(SOON, caller.read(&mut [0])).await.unwrap().unwrap(), 0, "finished");
    drop((client, control, channel));
    let reset = async {
        while caller.take_error().unwrap().is_none() {
            caller.ready(tokio::io::Interest::ERROR).await.unwrap();
        }
    };
    timeout(SOON, reset).await.unwrap();
}

#[tokio::test]
async fn without_a_client_callers_are_told() {
    let short = Settings { expose_hold: Duration::from_millis(300), ..settings() };
    let relay = Running::start(short).await;
    for mode in [Mode::Http, Mode::Tcp] {
        let (client, _control, port) = listening(&relay, mode).await;
        drop(client);
        for _ in 0..2 {
            let mut caller = call(port).await;
            caller.write_all(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n123456789").await.unwrap();
            let answer = read_all(caller).await;
            match mode {
                Mode::Http => {
                    let answer = answer.unwrap();
                    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
                    assert!(answer.contains("Retry-After: ") && answer.contains("shop"), "{answer}");
                }
                Mode::Tcp => assert!(answer.is_err(), "reset, not an empty answer"),
            }
        }
    }
    // The port is free for somebody else now.
    let (client, _control, port) = listening(&relay, Mode::Http).await;
    drop(client);
    let stranger = Client::with(relay.tunnel, hello(Token::new([8; 32]))).await.unwrap();
    let taken_over = async {
        while stranger.open(&listen(port, Mode::Http, &[]), &[]).await.reply().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, taken_over).await.unwrap();
}

#[tokio::test]
async fn a_client_that_refuses() {
    let relay = Running::start(settings()).await;
    for mode in [Mode::Http, Mode::Tcp] {
        let (mut client, _control, port) = listening(&relay, mode).await;
        let mut caller = call(port).await;
        caller.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let (mut channel, _) = client.incoming().await;
        let refusal = Refusal::new(RefusalKind::Refused, "nothing listens on localhost:3000");
        channel.send_reply(&Reply::Refused(refusal)).await;
        let answer = read_all(caller).await;
        match mode {
            Mode::Http => {
                let answer = answer.unwrap();
                assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("localhost:3000"), "{answer}");
            }
            Mode::Tcp => assert!(answer.is_err()),
        }
    }
}

#[tokio::test]
async fn what_is_withdrawn_is_closed() {
    let relay = Running::start(settings()).await;
    let (_client, mut control, port) = listening(&relay, Mode::Tcp).await;
    control.send(&Record::finished()).await;
    let closed = async { while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {} };
    timeout(SOON, closed).await.unwrap();
    assert!(relay.health("/readyz").await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn what_is_withdrawn_may_come_again_at_once() {
    let relay = Running::start(settings()).await;
    let (mut client, mut control, port) = listening(&relay, Mode::Tcp).await;
    for _ in 0..50 {
        control.send(&Record::finished()).await;
        // The end record and the new open go different ways: until the relay has seen the one, the other takes over.
        control = client.opened(&listen(port, Mode::Tcp, &[])).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _caller = call(port).await;
    client.incoming().await;
}

#[tokio::test]
async fn only_callers_on_the_list() {
    let relay = Running::start(settings()).await;
    let mut client = Client::new(relay.tunnel).await;
    let mut control = client.open(&listen(0, Mode::Tcp, &["10.0.0.0/8", "127.0.0.3"]), &[]).await;
    let (_, port) = control.reply().await.unwrap();
    assert!(read_all(call(port).await).await.is_err(), "127.0.0.1 is not on it");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.3:0".parse().unwrap()).unwrap();
    let _caller = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    let (_, incoming) = client.incoming().await;
    assert!(incoming.peer.starts_with("127.0.0.3:"), "{}", incoming.peer);
    let refusal = client.refused(&listen(0, Mode::Tcp, &["10.0.0.0/99"])).await;
    assert_eq!(refusal.kind, RefusalKind::Invalid);
}

#[tokio::test]
async fn only_ports_it_was_created_with() {
    let relay = Running::start(Settings { expose_ports: vec![8080..=8080], ..settings() }).await;
    let client = Client::new(relay.tunnel).await;
    assert_eq!(client.refused(&listen(8081, Mode::Tcp, &[])).await.kind, RefusalKind::Denied);
}

#[tokio::test]
async fn a_stop_waits_for_callers_that_are_served() {
    let mut relay = Running::start(settings()).await;
    let (mut client, mut control, port) = listening(&relay, Mode::Tcp).await;
    let mut caller = call(port).await;
    let (mut channel, _) = client.incoming().await;
    channel.send_reply(&opened()).await;
    relay.stop();
    let end = control.next().await;
    assert!(matches!(end, Some(Record::End { kind: EndKind::Draining, .. })), "{end:?}");
    channel.send(&Record::Data(Bytes::from_static(b"late answer"))).await;
    channel.send(&Record::finished()).await;
    caller.shutdown().await.unwrap();
    assert_eq!(read_all(caller).await.unwrap(), "late answer");
    assert_eq!(relay.ended().await, Ended::Drained);
}
