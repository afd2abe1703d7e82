//! Opening: the bytes, one write, the order on the wire.

use std::time::Duration;

use bytes::Bytes;
use kftray_commons::Code;
use kftray_portforward::ports::{Channel, Delivery};
use kftray_spdy::frame::{self, Encoder, Frame, StreamId};
use kftray_spdy::ws;
use tokio::io::AsyncReadExt;

use super::peer::{Peer, background, pattern, recv, recv_exact, send};
use super::{BOTH, session};
use crate::connect::Protocol;

fn stream(id: u32) -> StreamId {
    StreamId::new(id).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_opening_is_one_write_of_exactly_these_bytes() {
    for protocol in BOTH {
        let (session, mut peer) = session(protocol).await;
        let _channel = session.open(8080, Bytes::from_static(b"GET /"), None).unwrap();

        let mut spdy = Vec::new();
        let mut encoder = Encoder::new();
        let headers = |kind| [("streamtype", kind), ("port", "8080"), ("requestid", "0")];
        encoder.syn_stream(&mut spdy, stream(1), &headers("error"), false);
        encoder.syn_stream(&mut spdy, stream(3), &headers("data"), false);
        frame::put_data(&mut spdy, stream(1), b"", true);
        frame::put_data(&mut spdy, stream(3), b"GET /", false);
        let mut expected = Vec::new();
        match protocol {
            Protocol::WebSocketTunnel => ws::put_binary(&mut expected, ws::Role::Client, &spdy),
            Protocol::Spdy | Protocol::Legacy => expected = spdy,
        }
        let mut read = vec![0; 4096];
        let count = peer.io.read(&mut read).await.unwrap();
        assert_eq!(read[..count], expected, "{protocol}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_at_once_is_one_message() {
    let (session, mut peer) = session(Protocol::WebSocketTunnel).await;
    let before = peer.messages;
    let mut channels = Vec::new();
    for number in 0..100 {
        let mut channel = session.open(80, Bytes::new(), None).unwrap();
        channel.send(pattern(number, 100).into());
        channels.push(channel);
    }
    let mut pairs = Vec::new();
    for _ in 0..100 {
        pairs.push(peer.syns().await);
    }
    for (number, pair) in pairs.iter().enumerate() {
        assert_eq!(peer.take(pair.data, 100).await, pattern(number, 100));
    }
    // One hundred DATA frames are more than one batch takes.
    assert!(peer.messages - before <= 2, "{} messages", peer.messages - before);
    assert!(pairs.windows(2).all(|two| two[0].data < two[1].error), "ids rise on the wire");
}

#[tokio::test(start_paused = true)]
async fn uploads_take_turns_in_slices() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let big = 200 * 1024;
    let mut one = session.open(80, Bytes::new(), None).unwrap();
    let mut two = session.open(80, Bytes::new(), None).unwrap();
    one.send(pattern(1, big).into());
    two.send(pattern(2, big).into());
    let (first, second) = (peer.accept().await, peer.accept().await);
    let (mut bytes_one, mut bytes_two) = (Vec::new(), Vec::new());
    let mut widest: usize = 0;
    while bytes_one.len() + bytes_two.len() < 2 * big {
        let Some(Frame::Data(chunk)) = peer.frame().await else { panic!("no data") };
        let bytes = if chunk.stream == first.data { &mut bytes_one } else { &mut bytes_two };
        assert!(chunk.stream == first.data || chunk.stream == second.data);
        bytes.extend_from_slice(&chunk.payload);
        widest = widest.max(bytes_one.len().abs_diff(bytes_two.len()));
    }
    assert_eq!(bytes_one, pattern(1, big));
    assert_eq!(bytes_two, pattern(2, big));
    assert!(widest <= 64 * 1024, "{widest} bytes apart");
}

#[tokio::test(start_paused = true)]
async fn bytes_arrive_exactly_however_they_are_cut() {
    for protocol in BOTH {
        for cut in [1, 3, 7, 1000, 40_000] {
            let (session, mut peer) = session(protocol).await;
            let mut channel = session.open(80, Bytes::from_static(b"x"), None).unwrap();
            let pair = peer.accept().await;
            assert_eq!(peer.take(pair.data, 1).await, b"x");
            let len = cut * 100 + 5;
            let expected = pattern(cut, len);
            let ((), received) = tokio::join!(
                async {
                    for piece in pattern(cut, len).chunks(cut) {
                        peer.data(pair.data, piece, false).await;
                    }
                },
                recv_exact(&mut channel, len)
            );
            assert_eq!(received, expected, "{protocol} in pieces of {cut}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_waits_for_room_and_everything_arrives() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut channel = session.open(80, Bytes::new(), None).unwrap();
    let pair = peer.accept().await;
    let len = 3 * 1024 * 1024;
    let blocked =
        tokio::time::timeout(Duration::from_millis(500), send(&mut channel, &pattern(1, len))).await;
    assert!(blocked.is_err(), "nobody read, and yet everything was taken");
    drop(channel);
    // What the peer did not read is one batch and the pipe; the rest was dropped with the channel.
    let mut taken = 0;
    loop {
        match peer.frame().await {
            Some(Frame::Data(chunk)) if chunk.stream == pair.data => taken += chunk.payload.len(),
            Some(Frame::RstStream { stream, .. }) if stream == pair.data => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(taken <= 512 * 1024, "{taken} bytes were still sent after the reset");
    assert!(matches!(peer.frame().await, Some(Frame::RstStream { stream, .. }) if stream == pair.error));
    assert_eq!(session.entries(), 0);

    let mut channel = session.open(80, Bytes::new(), None).unwrap();
    let pair = peer.accept().await;
    let expected = pattern(2, len);
    let (sent, received) = tokio::join!(send(&mut channel, &expected), peer.take(pair.data, len));
    sent.unwrap();
    assert!(received == expected);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_short_connections_leave_nothing_behind() {
    for protocol in BOTH {
        let (session, peer) = session(protocol).await;
        let served = peer.echo();
        for _ in 0..100 {
            let mut open = Vec::new();
            for number in 0..100 {
                open.push((number, session.open(80, Bytes::from(pattern(number, 10)), None).unwrap()));
            }
            for (number, channel) in &mut open {
                assert_eq!(recv_exact(channel, 10).await, pattern(*number, 10));
                channel.finish();
            }
        }
        // The last resets leave with the driver's next turn.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(session.entries(), 0, "{protocol}");
        drop(session);
        assert_eq!(served.await.unwrap(), 10_000);
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_every_handle_closes_the_carrier() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut channel = session.open(80, Bytes::new(), None).unwrap();
    drop(session);
    let pair = peer.accept().await;
    peer.data(pair.data, b"still here", false).await;
    assert_eq!(recv(&mut channel).await.unwrap().unwrap(), "still here");
    drop(channel);
    while peer.frame().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn the_servers_pings_are_answered() {
    let (_session, mut peer) = session(Protocol::WebSocketTunnel).await;
    peer.pongs = false;
    peer.put(|out, _| frame::put_ping(out, 2)).await;
    assert_eq!(peer.frame().await, Some(Frame::Ping { id: 2 }));

    let (_session, mut peer): (_, Peer) = session(Protocol::WebSocketTunnel).await;
    let mut ping = Vec::new();
    ws::put_ping(&mut ping, ws::Role::Server, b"are you there");
    tokio::io::AsyncWriteExt::write_all(&mut peer.io, &ping).await.unwrap();
    let mut pong = Vec::new();
    ws::put_pong(&mut pong, ws::Role::Client, b"are you there");
    let mut read = vec![0; pong.len()];
    peer.io.read_exact(&mut read).await.unwrap();
    assert_eq!(read, pong);
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_is_never_answered_ends_after_half_a_minute_and_concerns_nobody_else() {
    for protocol in BOTH {
        let (session, mut peer) = session(protocol).await;
        let mut good = session.open(80, Bytes::new(), None).unwrap();
        let good_pair = peer.accept().await;
        let mut lost = session.open(81, Bytes::new(), None).unwrap();
        let lost_pair = peer.syns().await;
        let start = tokio::time::Instant::now();
        // The session itself answers PINGs all the while.
        let (error, ()) = tokio::join!(recv(&mut lost), peer.reset_of(lost_pair));
        let error = error.unwrap_err();
        assert_eq!((error.problem.code, error.delivery), (Code::ConnectionLost, Delivery::Unknown));
        assert!(error.problem.message.contains("port 81"), "{}", error.problem.message);
        let waited = start.elapsed();
        assert!((Duration::from_secs(30)..Duration::from_secs(31)).contains(&waited), "{waited:?}");
        peer.data(good_pair.data, b"fine", false).await;
        assert_eq!(recv_exact(&mut good, 4).await, b"fine");
        drop((good, lost));
        peer.reset_of(good_pair).await;
        assert_eq!(session.entries(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_ended_does_not_wait_longer_for_the_answer_of_its_opening() {
    for first in [&b""[..], b"question"] {
        let (session, mut peer) = session(Protocol::Spdy).await;
        let mut lost = session.open(81, Bytes::from_static(first), None).unwrap();
        lost.finish();
        peer.syns().await;
        let _reading = background(async move { while peer.frame().await.is_some() {} });
        let start = tokio::time::Instant::now();
        let error = recv(&mut lost).await.unwrap_err();
        assert!(error.problem.message.contains("the opening"), "{}", error.problem.message);
        let waited = start.elapsed();
        assert!((Duration::from_secs(30)..Duration::from_secs(31)).contains(&waited), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answered_opening_withholds_the_clients_end_as_long_as_ever() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut channel = session.open(80, Bytes::from_static(b"question"), None).unwrap();
    channel.finish();
    let pair = peer.accept().await;
    assert_eq!(peer.take(pair.data, 8).await, b"question");
    let quiet = tokio::time::timeout(Duration::from_secs(59), peer.frame()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    peer.data(pair.data, b"late", false).await;
    assert_eq!(recv_exact(&mut channel, 4).await, b"late");
}
