//! Liveness on a whole session: black holes, blocked servers, doubt after silence, idleness.

use std::time::Duration;

use bytes::Bytes;
use kftray_commons::Code;
use kftray_spdy::frame::{self, Frame};
use tokio::time::{Instant, timeout};

use super::peer::{Peer, pattern, recv, recv_exact, send};
use super::{BOTH, session};
use crate::connect::Protocol;
use crate::session::Placement;
use crate::session::limits::{CONGESTED_LIMIT, IDLE_CLOSE};

/// Reads and drops everything, answering nothing.
async fn swallow(peer: &mut Peer) -> ! {
    peer.pongs = false;
    loop {
        if peer.frame().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_noticed_within_fifteen_seconds() {
    for protocol in BOTH {
        let (session, mut peer) = session(protocol).await;
        let mut channel = session.open(80, Bytes::new(), None).unwrap();
        peer.accept().await;
        let start = Instant::now();
        let problem = tokio::select! {
            problem = session.lost() => problem,
            _ = swallow(&mut peer) => unreachable!(),
        };
        assert_eq!(problem.code, Code::ConnectionLost);
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        assert!(recv(&mut channel).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_request_notices_it_sooner() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let _channel = session.open(80, Bytes::from_static(b"hello?"), None).unwrap();
    let start = Instant::now();
    tokio::select! {
        _ = session.lost() => {}
        _ = swallow(&mut peer) => unreachable!(),
    }
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn after_a_network_change_two_seconds_are_enough() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let start = Instant::now();
    session.challenge();
    tokio::select! {
        _ = session.lost() => {}
        _ = swallow(&mut peer) => unreachable!(),
    }
    assert!(start.elapsed() < Duration::from_millis(2100), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_blocked_by_an_upload_is_not_dead() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut upload = session.open(80, Bytes::new(), None).unwrap();
    let pair = peer.accept().await;
    let data = pattern(1, 1024 * 1024);
    // The pod does not read: the whole session stands still, PINGs included.
    assert!(timeout(Duration::from_secs(60), send(&mut upload, &data)).await.is_err());
    assert_eq!(session.load().placement, Placement::Quarantined);
    // It reads again.
    let started = peer.take(pair.data, 64 * 1024).await;
    assert!(started == data[..64 * 1024]);
    peer.data(pair.data, b"!", false).await;
    assert_eq!(recv_exact(&mut upload, 1).await, b"!");
    assert_eq!(session.load().placement, Placement::Free);

    // Not for ever, though.
    assert!(timeout(Duration::from_secs(60), send(&mut upload, &data)).await.is_err());
    let lost = timeout(CONGESTED_LIMIT, session.lost()).await.expect("given up");
    assert_eq!(lost.code, Code::ConnectionLost);
}

#[tokio::test(start_paused = true)]
async fn after_silence_the_clients_bytes_wait_for_a_sign_of_life() {
    for protocol in BOTH {
        let (session, mut peer) = session(protocol).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        peer.pongs = false;
        let channel = session.open(80, Bytes::from_static(b"secret"), None).unwrap();
        let pair = peer.syns().await;
        let Some(Frame::Ping { id }) = peer.frame().await else { panic!("no PING") };
        assert!(
            timeout(Duration::from_millis(500), peer.frame()).await.is_err(),
            "bytes before a sign of life"
        );
        assert!(timeout(Duration::from_millis(1), channel.heard()).await.is_err());
        peer.put(|out, _| frame::put_ping(out, id)).await;
        assert!(channel.heard().await);
        assert_eq!(peer.take(pair.data, 6).await, b"secret");
        // Now it is known to live: the next goes out at once.
        let next = session.open(80, Bytes::from_static(b"next"), None).unwrap();
        assert!(next.heard().await);
        let pair = peer.syns().await;
        assert_eq!(peer.take(pair.data, 4).await, b"next");
    }
}

#[tokio::test(start_paused = true)]
async fn a_withheld_connection_on_a_dead_session_was_never_heard() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let channel = session.open(80, Bytes::from_static(b"secret"), None).unwrap();
    session.suspect();
    assert_eq!(session.load().placement, Placement::Quarantined);
    tokio::select! {
        heard = channel.heard() => assert!(!heard),
        _ = swallow(&mut peer) => unreachable!(),
    }
    assert_eq!(session.load().placement, Placement::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_slept_asks_before_it_judges() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let _channel = session.open(80, Bytes::new(), None).unwrap();
    peer.accept().await;
    // The PING goes out, then the process does not run for an hour.
    tokio::time::sleep(Duration::from_millis(9500)).await;
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert!(timeout(Duration::from_secs(20), peer.frame()).await.is_err());
    assert_eq!(session.load().placement, Placement::Free);
}

#[tokio::test(start_paused = true)]
async fn an_unused_session_closes_after_a_while_and_not_before() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let start = Instant::now();
    let channel = session.open(80, Bytes::new(), None).unwrap();
    tokio::time::timeout(2 * IDLE_CLOSE, async { while peer.frame().await.is_some() {} }).await.unwrap_err();
    assert_eq!(session.load().placement, Placement::Free);
    drop(channel);
    while peer.frame().await.is_some() {}
    assert!(start.elapsed() >= 3 * IDLE_CLOSE && start.elapsed() < 4 * IDLE_CLOSE, "{:?}", start.elapsed());
    assert_eq!(session.load().placement, Placement::Closed);
}
