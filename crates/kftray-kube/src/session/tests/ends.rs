//! How connections end: by the pod, by an error, by the client, with the session.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use kftray_commons::Code;
use kftray_portforward::ports::{Channel, Delivery};
use kftray_spdy::frame::{self, Frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout};

use super::peer::{Peer, pattern, recv, recv_all, recv_exact, send};
use super::{BOTH, session};
use crate::connect::{CarrierIo, Protocol};
use crate::session::limits::{AFTER_FINISH, WITHHOLD_IDLE, WITHHOLD_PRESSURE};
use crate::session::{Observer, Placement, Session};

const REFUSED: &[u8] =
    b"error forwarding port 81 to pod 1, uid : failed to connect to localhost:81 inside namespace";

async fn nothing_for(peer: &mut Peer, time: Duration) {
    if let Ok(frame) = timeout(time, peer.frame()).await {
        panic!("{frame:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_pods_end_comes_after_its_bytes() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut channel = session.open(80, Bytes::new(), None).unwrap();
    let pair = peer.accept().await;
    peer.data(pair.data, b"bye", false).await;
    peer.data(pair.error, b"", true).await;
    peer.data(pair.data, b"", true).await;
    assert_eq!(recv_all(&mut channel).await.unwrap(), b"bye");
    // Our side ends with it, so that the server forgets the stream.
    assert!(matches!(peer.frame().await, Some(Frame::Data(chunk)) if chunk.stream == pair.data && chunk.fin));
    drop(channel);
    nothing_for(&mut peer, Duration::from_secs(1)).await;
    assert_eq!(session.entries(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_port_concerns_nobody_else() {
    for protocol in BOTH {
        let (session, mut peer) = session(protocol).await;
        let mut good = session.open(80, Bytes::new(), None).unwrap();
        let good_pair = peer.accept().await;
        let mut bad = session.open(81, Bytes::from_static(b"hello"), None).unwrap();
        let bad_pair = peer.accept().await;
        peer.take(bad_pair.data, 5).await;
        peer.data(bad_pair.error, REFUSED, false).await;
        peer.rst(bad_pair.data).await;
        peer.rst(bad_pair.error).await;
        let error = recv(&mut bad).await.unwrap_err();
        assert_eq!((error.problem.code, error.delivery), (Code::RemoteRefused, Delivery::Nothing));
        drop(bad);
        peer.data(good_pair.data, b"fine", false).await;
        assert_eq!(recv_exact(&mut good, 4).await, b"fine");
        assert_eq!(session.load().placement, Placement::Free);
    }
}

#[tokio::test(start_paused = true)]
async fn text_after_the_end_of_the_data_is_waited_for_but_not_long() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut late = session.open(81, Bytes::new(), None).unwrap();
    let pair = peer.accept().await;
    peer.data(pair.data, b"", true).await;
    peer.data(pair.error, REFUSED, true).await;
    assert_eq!(recv(&mut late).await.unwrap_err().problem.code, Code::RemoteRefused);

    let mut silent = session.open(80, Bytes::new(), None).unwrap();
    assert!(matches!(peer.frame().await, Some(Frame::Data(chunk)) if chunk.fin));
    let pair = peer.accept().await;
    let start = Instant::now();
    peer.data(pair.data, b"", true).await;
    assert!(recv(&mut silent).await.unwrap().is_none());
    assert!(start.elapsed() < Duration::from_millis(300));
}

#[tokio::test(start_paused = true)]
async fn pod_gone_closes_the_session_for_new_connections_only() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut old = session.open(80, Bytes::new(), None).unwrap();
    let old_pair = peer.accept().await;
    let mut new = session.open(80, Bytes::new(), None).unwrap();
    let new_pair = peer.accept().await;
    peer.data(new_pair.error, b"network namespace for sandbox \"1\" is closed", true).await;
    peer.rst(new_pair.data).await;
    let error = recv(&mut new).await.unwrap_err();
    assert_eq!((error.problem.code, error.delivery), (Code::PodGone, Delivery::Nothing));
    assert_eq!(session.load().placement, Placement::Closed);
    assert!(session.pod_gone().is_some());
    assert!(session.open(80, Bytes::new(), None).is_none());
    peer.data(old_pair.data, b"last words", false).await;
    assert_eq!(recv_exact(&mut old, 10).await, b"last words");
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_resets_breaks_each_connection_and_no_other() {
    let (session, mut peer) = session(Protocol::WebSocketTunnel).await;
    let mut quiet = session.open(80, Bytes::new(), None).unwrap();
    let quiet_pair = peer.accept().await;
    for _ in 0..20 {
        let mut channels: Vec<_> = (0..50).map(|_| session.open(80, Bytes::new(), None).unwrap()).collect();
        let mut pairs = Vec::new();
        for _ in &channels {
            pairs.push(peer.syns().await);
        }
        peer.put(|out, _| {
            for pair in &pairs {
                frame::put_data(out, pair.data, b"partial", false);
                frame::put_rst_stream(out, pair.data, frame::ResetStatus::CANCEL);
                frame::put_rst_stream(out, pair.error, frame::ResetStatus::CANCEL);
            }
        })
        .await;
        for channel in &mut channels {
            assert_eq!(recv(channel).await.unwrap().unwrap(), "partial");
            let error = recv(channel).await.unwrap_err();
            assert_eq!((error.problem.code, error.delivery), (Code::ConnectionLost, Delivery::Unknown));
        }
        // We tell the server to forget the error streams.
        for pair in &pairs {
            assert!(
                matches!(peer.frame().await, Some(Frame::RstStream { stream, .. }) if stream == pair.error)
            );
        }
    }
    send(&mut quiet, b"ping").await.unwrap();
    assert_eq!(peer.take(quiet_pair.data, 4).await, b"ping");
    assert_eq!(session.load().placement, Placement::Free);
    assert_eq!(session.load().streams, 1);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_download_is_reset_and_its_rest_is_dropped() {
    for protocol in BOTH {
        let (session, mut peer) = session(protocol).await;
        let mut download = session.open(80, Bytes::new(), None).unwrap();
        let pair = peer.accept().await;
        let mut other = session.open(80, Bytes::new(), None).unwrap();
        let other_pair = peer.accept().await;
        peer.data(pair.data, &pattern(1, 30_000), false).await;
        recv(&mut download).await.unwrap().unwrap();
        drop(download);
        peer.reset_of(pair).await;
        // What was under way still comes, and goes nowhere.
        for _ in 0..100 {
            peer.data(pair.data, &pattern(2, 30_000), false).await;
        }
        peer.data(other_pair.data, b"mine", false).await;
        assert_eq!(recv_exact(&mut other, 4).await, b"mine");
        drop(other);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(session.entries(), 0, "{protocol}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_after_the_answer_is_passed_on_soon() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut channel = session.open(80, Bytes::from_static(b"?"), None).unwrap();
    let pair = peer.accept().await;
    peer.take(pair.data, 1).await;
    peer.data(pair.data, b"!", false).await;
    assert_eq!(recv_exact(&mut channel, 1).await, b"!");
    channel.finish();
    nothing_for(&mut peer, Duration::from_millis(200)).await;
    // Bytes that still come push it out.
    peer.data(pair.data, b"!", false).await;
    nothing_for(&mut peer, Duration::from_millis(200)).await;
    assert_eq!(recv_exact(&mut channel, 1).await, b"!");
    let end = timeout(Duration::from_millis(100), peer.frame()).await.expect("the end");
    assert!(matches!(end, Some(Frame::Data(chunk)) if chunk.stream == pair.data && chunk.fin));
    peer.data(pair.error, b"", true).await;
    peer.data(pair.data, b"", true).await;
    assert!(recv(&mut channel).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_end_before_the_answer_is_withheld_for_a_minute() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut channel = session.open(80, Bytes::from_static(b"question"), None).unwrap();
    let pair = peer.accept().await;
    peer.take(pair.data, 8).await;
    channel.finish();
    // The answer takes three seconds; kubectl loses it.
    nothing_for(&mut peer, Duration::from_secs(3)).await;
    peer.data(pair.data, b"answer", false).await;
    assert_eq!(recv_exact(&mut channel, 6).await, b"answer");
    let start = Instant::now();
    assert!(matches!(peer.frame().await, Some(Frame::Data(chunk)) if chunk.stream == pair.data && chunk.fin));
    assert!(start.elapsed() > Duration::from_secs(55) && start.elapsed() < Duration::from_secs(65));
    // A server that says nothing to that has lost the stream, and perhaps the rest of the answer with it.
    tokio::select! {
        end = recv(&mut channel) => assert!(end.is_err()),
        reset = peer.frame() => assert!(matches!(reset, Some(Frame::RstStream { .. }))),
        () = tokio::time::sleep(Duration::from_secs(60)) => panic!("no end"),
    }
    let error = recv(&mut channel).await.unwrap_err();
    assert_eq!((error.problem.code, error.delivery), (Code::ConnectionLost, Delivery::Unknown));
    drop(channel);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(session.entries(), 0);
}

/// An event stream whose reader was stopped: nobody hears it, and it would go on for ever.
#[tokio::test(start_paused = true)]
async fn a_pod_that_keeps_talking_to_a_client_that_is_gone_is_told() {
    for (answered, pause, limit) in [
        (true, Duration::from_millis(100), WITHHOLD_PRESSURE),
        (false, Duration::from_secs(5), WITHHOLD_IDLE),
    ] {
        let (session, mut peer) = session(Protocol::Spdy).await;
        let mut channel = session.open(80, Bytes::from_static(b"?"), None).unwrap();
        let pair = peer.accept().await;
        peer.take(pair.data, 1).await;
        if answered {
            peer.data(pair.data, b"!", false).await;
            assert_eq!(recv_exact(&mut channel, 1).await, b"!");
        }
        channel.finish();
        assert!(!channel.close(), "it is kept until the pod ends");
        let start = Instant::now();
        let mut talk = async || {
            loop {
                peer.data(pair.data, b"!", false).await;
                assert_eq!(recv_exact(&mut channel, 1).await, b"!");
                if let Ok(frame) = timeout(pause, peer.frame()).await {
                    return frame;
                }
                assert!(start.elapsed() < 2 * (limit + AFTER_FINISH), "never told");
            }
        };
        let end = talk().await;
        assert!(matches!(end, Some(Frame::Data(chunk)) if chunk.stream == pair.data && chunk.fin));
        // Not at once: what the client had asked for last may still be done.
        let told = start.elapsed();
        assert!(told > limit / 2 && told < limit + Duration::from_millis(50), "{told:?}");
        // A runtime closes now; a server that does not has lost the stream.
        assert!(matches!(talk().await, Some(Frame::RstStream { stream, .. }) if stream == pair.data));
        assert!(start.elapsed() < limit + AFTER_FINISH + Duration::from_millis(50), "{:?}", start.elapsed());
        assert!(recv(&mut channel).await.is_err());
        drop(channel);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(session.entries(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn queued_bytes_go_before_the_end() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut channel = session.open(80, Bytes::new(), None).unwrap();
    let pair = peer.accept().await;
    let expected = pattern(3, 200_000);
    send(&mut channel, &expected).await.unwrap();
    channel.finish();
    assert!(peer.take(pair.data, 200_000).await == expected);
    peer.data(pair.error, b"", true).await;
    peer.data(pair.data, b"ok", true).await;
    assert_eq!(recv_all(&mut channel).await.unwrap(), b"ok");
}

#[tokio::test(start_paused = true)]
async fn going_away_replays_what_was_not_processed() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut processed = session.open(80, Bytes::new(), None).unwrap();
    let pair = peer.accept().await;
    let mut beyond = session.open(80, Bytes::new(), None).unwrap();
    peer.accept().await;
    peer.put(|out, _| frame::put_goaway(out, pair.data.get(), 0)).await;
    let error = recv(&mut beyond).await.unwrap_err();
    assert_eq!((error.problem.code, error.delivery), (Code::ConnectionLost, Delivery::Nothing));
    assert!(session.open(80, Bytes::new(), None).is_none());
    peer.data(pair.data, b"go on", false).await;
    assert_eq!(recv_exact(&mut processed, 5).await, b"go on");
}

/// Servers that say 0 whatever they did are told by the openings they have answered.
#[tokio::test(start_paused = true)]
async fn going_away_at_once_replays_only_where_nothing_was_ever_answered() {
    let (fresh, mut peer) = session(Protocol::Spdy).await;
    let mut first = fresh.open(80, Bytes::from_static(b"GET"), None).unwrap();
    peer.syns().await;
    peer.put(|out, _| frame::put_goaway(out, 0, 0)).await;
    assert_eq!(recv(&mut first).await.unwrap_err().delivery, Delivery::Nothing);

    let (used, mut peer) = session(Protocol::Spdy).await;
    let _old = used.open(80, Bytes::new(), None).unwrap();
    peer.accept().await;
    let mut open = used.open(80, Bytes::from_static(b"GET"), None).unwrap();
    peer.syns().await;
    peer.put(|out, _| frame::put_goaway(out, 0, 0)).await;
    drop(peer);
    assert_eq!(recv(&mut open).await.unwrap_err().delivery, Delivery::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_lost_carrier_breaks_all_and_says_what_was_delivered() {
    for protocol in BOTH {
        let (session, mut peer) = session(protocol).await;
        let mut sent = session.open(80, Bytes::from_static(b"x"), None).unwrap();
        peer.accept().await;
        peer.take(frame::StreamId::new(3).unwrap(), 1).await;
        drop(peer);
        // The driver has not run since: this one never left.
        let mut unsent = session.open(80, Bytes::from_static(b"y"), None).unwrap();
        let error = recv(&mut unsent).await.unwrap_err();
        assert_eq!((error.problem.code, error.delivery), (Code::ConnectionLost, Delivery::Nothing));
        let error = recv(&mut sent).await.unwrap_err();
        assert_eq!((error.problem.code, error.delivery), (Code::ConnectionLost, Delivery::Unknown));
        assert!(std::future::poll_fn(|cx| sent.poll_send_ready(cx)).await.is_err());
        assert_eq!(session.lost().await.code, Code::ConnectionLost);
        drop((sent, unsent));
        assert_eq!(session.entries(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_session_with_a_problem() {
    let samples: [&[u8]; 7] = [
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        &[0; 64],
        &[0xff; 64],
        &[0x80, 0x03, 0x00, 0x06, 0x00, 0xff, 0xff, 0xff, 1, 2, 3, 4],
        &[0x82, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x81, 0x02, b'h', b'i'],
        &[0x88, 0x02, 0x03, 0xe9],
    ];
    for protocol in BOTH {
        for sample in samples {
            let (session, mut peer) = session(protocol).await;
            let mut channel = session.open(80, Bytes::new(), None).unwrap();
            peer.accept().await;
            peer.io.write_all(sample).await.unwrap();
            peer.io.shutdown().await.unwrap();
            assert_eq!(
                recv(&mut channel).await.unwrap_err().problem.code,
                Code::ConnectionLost,
                "{sample:?}"
            );
            assert_eq!(session.lost().await.code, Code::ConnectionLost);
            assert_eq!(session.load().placement, Placement::Closed);
        }
    }
}

/// A carrier whose other end has vanished without a word: reads wait, writes fail from some moment on.
struct Vanishing {
    io: Box<dyn CarrierIo>,
    gone: Arc<AtomicBool>,
}

impl AsyncRead for Vanishing {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Vanishing {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.gone.load(Ordering::SeqCst) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut *self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_shutdown(cx)
    }
}

/// What a request on a fresh connection needs to be tried again elsewhere.
#[tokio::test(start_paused = true)]
async fn an_opening_whose_write_fails_has_delivered_nothing() {
    for protocol in BOTH {
        let (mut carrier, mut peer) = Peer::carrier(protocol);
        let gone = Arc::new(AtomicBool::new(false));
        carrier.io = Box::new(Vanishing { io: carrier.io, gone: Arc::clone(&gone) });
        let observer: Weak<dyn Observer> = Weak::<super::Nobody>::new();
        let session = Session::start(carrier, 0, "ns/pod".into(), Arc::default(), observer);
        let mut old = session.open(80, Bytes::from_static(b"old"), None).unwrap();
        let pair = peer.accept().await;
        peer.take(pair.data, 3).await;
        gone.store(true, Ordering::SeqCst);
        let mut new = session.open(80, Bytes::from_static(b"new"), None).unwrap();
        let error = recv(&mut new).await.unwrap_err();
        assert_eq!((error.problem.code, error.delivery), (Code::ConnectionLost, Delivery::Nothing));
        assert_eq!(recv(&mut old).await.unwrap_err().delivery, Delivery::Unknown);
    }
}
