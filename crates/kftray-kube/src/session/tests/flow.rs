//! Slow clients: budgets, quarantine, and who has to give way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kftray_commons::Code;
use kftray_portforward::ports::Channel;
use kftray_spdy::frame::Frame;
use tokio::time::{Instant, timeout};

use super::peer::{background, pattern, recv, recv_exact, send};
use super::{BOTH, session, session_with};
use crate::connect::Protocol;
use crate::session::limits::{
    AFTER_FINISH, NEIGHBOUR_LIMIT, READ_BATCH, SESSION_BUDGET, STALL_LIMIT, STREAM_BUDGET, WITHHOLD_ANSWERED,
    WITHHOLD_IDLE,
};
use crate::session::{Budget, Placement};

const MIB: usize = 1024 * 1024;

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_stops_its_session_at_the_budget() {
    for protocol in BOTH {
        let (session, mut peer) = session(protocol).await;
        let mut slow = session.open(80, Bytes::new(), None).unwrap();
        let pair = peer.accept().await;
        let expected = pattern(1, 4 * MIB);
        let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (data, count) = (expected.clone(), Arc::clone(&sent));
        let server = background(async move {
            for piece in data.chunks(32 * 1024) {
                peer.data(pair.data, piece, false).await;
                count.fetch_add(piece.len(), std::sync::atomic::Ordering::Relaxed);
            }
            peer
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let taken = sent.load(std::sync::atomic::Ordering::Relaxed);
        assert!((STREAM_BUDGET..STREAM_BUDGET + READ_BATCH + 256 * 1024).contains(&taken), "{taken}");
        assert_eq!(session.load().placement, Placement::Quarantined);
        // Nobody suffers, so nobody is cut off, however long it takes; silence while not reading proves nothing.
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(recv_exact(&mut slow, 4 * MIB).await == expected, "{protocol}");
        assert_eq!(session.load().placement, Placement::Bulk);
        let mut peer = server.await.unwrap();
        // Alive as before.
        send(&mut slow, b"more").await.unwrap();
        assert_eq!(peer.take(pair.data, 4).await, b"more");
    }
}

/// A person who pages through a download: `echo GET | nc -N localhost 80 | less`.
#[tokio::test(start_paused = true)]
async fn while_nothing_is_read_a_half_closed_download_is_not_taken_for_silent() {
    for answered in [false, true] {
        let (session, mut peer) = session(Protocol::Spdy).await;
        let mut slow = session.open(80, Bytes::from_static(b"GET"), None).unwrap();
        let pair = peer.accept().await;
        peer.take(pair.data, 3).await;
        if answered {
            peer.data(pair.data, b"!", false).await;
            recv_exact(&mut slow, 1).await;
        }
        slow.finish();
        for _ in 0..STREAM_BUDGET / (32 * 1024) {
            peer.data(pair.data, &pattern(1, 32 * 1024), false).await;
        }
        // Not a round minute: at the next look the pod has had no time yet to go on.
        tokio::time::sleep(Duration::from_millis(594_900)).await;
        recv_exact(&mut slow, STREAM_BUDGET).await;
        let patience = if answered { WITHHOLD_ANSWERED } else { WITHHOLD_IDLE };
        if let Ok(frame) = timeout(patience * 9 / 10, peer.frame()).await {
            panic!("{frame:?}");
        }
        peer.data(pair.data, b"the rest", false).await;
        assert_eq!(recv_exact(&mut slow, 8).await, b"the rest");
        peer.data(pair.error, b"", true).await;
        peer.data(pair.data, b"", true).await;
        assert!(recv(&mut slow).await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn while_nothing_is_read_the_pod_may_have_ended() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut slow = session.open(80, Bytes::new(), None).unwrap();
    let pair = peer.accept().await;
    slow.finish();
    assert!(matches!(peer.frame().await, Some(Frame::Data(chunk)) if chunk.stream == pair.data && chunk.fin));
    let expected = pattern(1, 2 * MIB);
    let data = expected.clone();
    let server = background(async move {
        for piece in data.chunks(32 * 1024) {
            peer.data(pair.data, piece, false).await;
        }
        peer.data(pair.error, b"", true).await;
        peer.data(pair.data, b"", true).await;
        peer
    });
    tokio::time::sleep(20 * AFTER_FINISH).await;
    assert!(recv_exact(&mut slow, 2 * MIB).await == expected);
    assert!(recv(&mut slow).await.unwrap().is_none());
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn neighbours_are_served_past_the_budget_of_one_and_saved_in_the_end() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut slow = session.open(80, Bytes::new(), None).unwrap();
    let slow_pair = peer.accept().await;
    let mut mate = session.open(80, Bytes::new(), None).unwrap();
    let mate_pair = peer.accept().await;
    for round in 0..8 {
        for _ in 0..32 {
            peer.data(slow_pair.data, &pattern(round, 32 * 1024), false).await;
        }
        peer.data(mate_pair.data, &pattern(round, 100), false).await;
        assert_eq!(recv_exact(&mut mate, 100).await, pattern(round, 100));
    }
    assert_eq!(session.load().placement, Placement::Quarantined);

    // Up to the session's budget; then the neighbour's answer does not come any more.
    let server = background(async move {
        for _ in 0..2 * SESSION_BUDGET / (32 * 1024) {
            peer.data(slow_pair.data, &pattern(9, 32 * 1024), false).await;
        }
        peer.data(mate_pair.data, b"answer", false).await;
        peer
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(session.entries() < SESSION_BUDGET + READ_BATCH + 1000);
    assert!(
        timeout(2 * STALL_LIMIT, recv(&mut mate)).await.is_err(),
        "not asked for anything: nobody is cut off"
    );
    let start = Instant::now();
    send(&mut mate, b"question").await.unwrap();
    assert_eq!(recv_exact(&mut mate, 6).await, b"answer");
    assert!(start.elapsed() <= NEIGHBOUR_LIMIT + Duration::from_millis(100), "{:?}", start.elapsed());
    let error = recv(&mut slow).await.unwrap_err();
    assert_eq!(error.problem.code, Code::Overloaded);
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_that_had_asked_before_the_reading_stopped_is_saved_too() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut slow = session.open(80, Bytes::new(), None).unwrap();
    let slow_pair = peer.accept().await;
    let mut mate = session.open(80, Bytes::from_static(b"question"), None).unwrap();
    let mate_pair = peer.accept().await;
    peer.take(mate_pair.data, 8).await;
    let start = Instant::now();
    let server = background(async move {
        for _ in 0..2 * SESSION_BUDGET / (32 * 1024) {
            peer.data(slow_pair.data, &pattern(9, 32 * 1024), false).await;
        }
        peer.data(mate_pair.data, b"answer", false).await;
        peer
    });
    assert_eq!(recv_exact(&mut mate, 6).await, b"answer");
    assert!(start.elapsed() <= NEIGHBOUR_LIMIT + Duration::from_millis(100), "{:?}", start.elapsed());
    assert_eq!(recv(&mut slow).await.unwrap_err().problem.code, Code::Overloaded);
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn with_the_processs_memory_gone_the_oldest_stalled_client_goes_first() {
    let budget = Arc::new(Budget::new(2 * MIB));
    let mut stalled = Vec::new();
    let mut servers = Vec::new();
    for number in 0..2 {
        let (session, mut peer) = session_with(Protocol::Spdy, number, &budget);
        let channel = session.open(80, Bytes::new(), None).unwrap();
        let pair = peer.accept().await;
        servers.push(background(async move {
            for _ in 0..100 {
                peer.data(pair.data, &pattern(1, 32 * 1024), false).await;
            }
            while peer.frame().await.is_some() {}
        }));
        stalled.push((session, channel));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(budget.is_gone());
    tokio::time::sleep(STALL_LIMIT).await;
    let error = recv(&mut stalled[0].1).await.unwrap_err();
    assert_eq!(error.problem.code, Code::Overloaded);
    assert!(!budget.is_gone());
    tokio::time::sleep(2 * STALL_LIMIT).await;
    assert_eq!(recv_exact(&mut stalled[1].1, 100 * 32 * 1024).await.len(), 100 * 32 * 1024);
    drop(stalled);
    assert_eq!(budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_large_transfer_makes_the_session_bulk_until_it_ends() {
    let (session, mut peer) = session(Protocol::Spdy).await;
    let mut upload = session.open(80, Bytes::new(), None).unwrap();
    let pair = peer.accept().await;
    let data = pattern(1, 2 * MIB);
    let (sent, _) = tokio::join!(send(&mut upload, &data), peer.take(pair.data, 2 * MIB));
    sent.unwrap();
    assert_eq!(session.load().placement, Placement::Bulk);
    drop(upload);
    assert_eq!(session.load().placement, Placement::Free);

    let mut ended = session.open(80, Bytes::new(), None).unwrap();
    peer.reset_of(pair).await;
    let pair = peer.accept().await;
    peer.data(pair.error, b"", true).await;
    peer.data(pair.data, b"x", true).await;
    // Whoever ended keeps its bytes, and nobody waits for it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(recv(&mut ended).await.unwrap().unwrap(), "x");
    assert!(recv(&mut ended).await.unwrap().is_none());
    ended.finish();
}
