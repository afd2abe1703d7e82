//! Bytes through real sockets: exactness, ends in every order, slow and vanishing clients.

use std::time::Duration;

use kftray_commons::Code;
use kftray_portforward::ports::{Delivery, HalfClose, Resolution};
use kftray_portforward::{Event, Forward, Limits};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::sim::{App, Manner, PATIENCE, Sim, config, connect, pattern, problem, ready, until_status};

/// Reads to the end; an error is a reset.
async fn read_all(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("an end in time")?;
    Ok(all)
}

async fn next_failure(forward: &Forward) -> Code {
    let mut events = forward.events();
    let failure = async {
        loop {
            if let Event::ConnectionFailed { problem, .. } = events.recv().await.expect("events") {
                return problem.code;
            }
        }
    };
    timeout(PATIENCE, failure).await.expect("a failure is told")
}

/// Echoes `bytes` in pieces of the given sizes and checks them.
async fn echo_exactly(stream: TcpStream, bytes: Vec<u8>, pieces: Vec<usize>) {
    let (mut reader, mut writer) = stream.into_split();
    let sent = bytes.clone();
    let write = async move {
        let mut rest = &sent[..];
        for piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            writer.write_all(now).await.expect("write");
            rest = later;
        }
        writer
    };
    let mut got = vec![0; bytes.len()];
    let both = async { tokio::join!(write, reader.read_exact(&mut got)) };
    let (_writer, read) = timeout(PATIENCE * 3, both).await.expect("in time");
    read.expect("read");
    assert!(got == bytes, "the bytes differ");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn bytes_arrive_exactly(length in 1usize..600_000, pieces in prop::collection::vec(1usize..90_000, 1..8)) {
        // Pieces of a few bytes for megabytes would only measure patience.
        let pieces: Vec<usize> = pieces.into_iter().map(|piece| piece.max(length / 200)).collect();
        runtime().block_on(async {
            let sim = Sim::with(App::Echo, &["a"]);
            let forward = ready(&sim.engine(), config()).await;
            echo_exactly(connect(&forward).await, pattern(length), pieces).await;
            // The last write is counted just after it was made.
            let counted = async {
                while forward.counters().bytes_down < length as u64 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(PATIENCE, counted).await.expect("in time");
            let counters = forward.counters();
            assert_eq!((counters.bytes_up, counters.bytes_down), (length as u64, length as u64));
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_at_once() {
    let sim = Sim::with(App::Echo, &["a", "b", "c"]);
    let engine = sim.engine();
    let forward = ready(&engine, config()).await;
    let mut clients = JoinSet::new();
    for index in 0..1_000 {
        let address = forward.addresses()[0];
        clients.spawn(async move {
            let stream = TcpStream::connect(address).await.expect("connect");
            echo_exactly(stream, pattern(1_000 + index), vec![700]).await;
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("every client is served");
    }
    sim.until("the end of all", |seen| seen.live == 0).await;
    let by_pod = sim.seen().by_pod;
    assert!(by_pod.values().all(|&count| (333..=334).contains(&count)), "{by_pod:?}");
    let counters = forward.counters();
    assert_eq!((counters.connections, counters.failed), (1_000, 0));
    assert!(counters.open_p50_us > 0 && counters.open_p99_us >= counters.open_p50_us);
}

#[tokio::test]
async fn the_server_may_speak_first() {
    let sim = Sim::with(App::Greet, &["db-0"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    let mut greeting = [0; 4];
    timeout(PATIENCE, client.read_exact(&mut greeting)).await.expect("in time").expect("read");
    assert_eq!(&greeting, b"db-0");
}

#[tokio::test]
async fn the_pods_end_is_the_clients_end() {
    let sim = Sim::with(App::Send(3_000_000), &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    assert!(read_all(&mut client).await.expect("a clean end") == pattern(3_000_000));
    drop(client);
    sim.until("the end", |seen| seen.live == 0).await;
    assert_eq!(sim.seen().resets, 0, "both directions had ended");
}

#[tokio::test]
async fn a_half_close_passes_where_the_transport_can() {
    let sim = Sim::with(App::Count, &["a"]);
    sim.change("a", |pod| pod.half_close = HalfClose::Passed);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    client.write_all(&pattern(200_000)).await.expect("write");
    client.shutdown().await.expect("shutdown");
    assert_eq!(read_all(&mut client).await.expect("a clean end"), b"200000");
    sim.until("the end", |seen| seen.live == 0).await;
    assert_eq!(sim.seen().resets, 0);
}

#[tokio::test(start_paused = true)]
async fn the_relay_is_not_suggested_where_merely_transports_are_crowded() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut events = forward.events();
    sim.change("a", |pod| pod.manner = Manner::Fail(Code::Overloaded, Delivery::Nothing));
    let mut clients = [connect(&forward).await, connect(&forward).await];
    sim.until("two tries each", |seen| seen.dials >= 4).await;
    sim.change("a", |pod| pod.manner = Manner::Serve);
    for client in &mut clients {
        client.write_all(b"x").await.expect("write");
        assert_eq!(client.read_u8().await.expect("served after all"), b'x');
    }
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, Event::Note(_)), "{event:?}");
    }
}

/// Clients that speak first get no byte before they have spoken, and many do not at once.
#[tokio::test(start_paused = true)]
async fn after_one_failure_new_connections_do_not_wait_for_a_first_byte() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    sim.change("a", |pod| pod.manner = Manner::FailLater(Delivery::Nothing));
    let mut clients = vec![connect(&forward).await];
    sim.until("a failure and the try after it", |seen| seen.dials == 2).await;
    sim.change("a", |pod| pod.manner = Manner::Serve);
    let begin = Instant::now();
    for _ in 0..20 {
        clients.push(connect(&forward).await);
    }
    sim.until("all are open", |seen| seen.live == 21).await;
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    for client in &mut clients {
        client.write_all(b"x").await.expect("write");
        assert_eq!(client.read_u8().await.expect("echoed"), b'x');
    }
}

/// Its connections open and fail a little later, which is less than a trial takes.
#[tokio::test(start_paused = true)]
async fn a_pod_that_goes_on_failing_is_tried_by_one_connection_per_second() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    sim.change("a", |pod| pod.manner = Manner::FailLater(Delivery::Nothing));
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(connect(&forward).await);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(sim.seen().dials <= 12, "{} dials", sim.seen().dials);
}

#[tokio::test(start_paused = true)]
async fn where_only_a_person_can_help_the_look_up_nobody_waits_long() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut events = forward.events();
    sim.resolution.send_replace(Resolution::Failed(problem(Code::KubeconfigInvalid)));
    until_status(&forward, "needs_user").await;
    let begin = Instant::now();
    let mut client = connect(&forward).await;
    assert!(read_all(&mut client).await.is_err(), "reset");
    assert!((1..=3).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    let told = async {
        loop {
            if let Event::ConnectionFailed { problem, .. } = events.recv().await.expect("events") {
                return problem.code;
            }
        }
    };
    assert_eq!(timeout(PATIENCE, told).await.expect("told"), Code::KubeconfigInvalid, "the cause itself");
    // Whoever has just mended it connects before that is noticed.
    let client = connect(&forward).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    sim.resolution.send_replace(Resolution::Pending);
    tokio::time::sleep(Duration::from_secs(3)).await;
    sim.publish();
    echo_exactly(client, pattern(100), vec![100]).await;
}

#[tokio::test(start_paused = true)]
async fn what_may_come_by_itself_is_waited_for() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    sim.resolution.send_replace(Resolution::Failed(problem(Code::TargetMissing)));
    until_status(&forward, "recovering").await;
    let client = connect(&forward).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    sim.publish();
    echo_exactly(client, pattern(100), vec![100]).await;
}

#[tokio::test]
async fn upload_goes_on_after_the_pods_end_where_the_transport_can() {
    let sim = Sim::with(App::Send(10), &["a"]);
    sim.change("a", |pod| pod.half_close = HalfClose::Passed);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    assert_eq!(read_all(&mut client).await.expect("a clean end"), pattern(10));
    client.write_all(b"still here").await.expect("write");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(sim.seen().live, 1, "open until the client ends too");
    client.shutdown().await.expect("shutdown");
    sim.until("the end", |seen| seen.live == 0).await;
    assert_eq!((sim.seen().resets, forward.counters().bytes_up), (0, 10));
}

#[tokio::test]
async fn a_half_closed_client_still_gets_its_answer_where_it_is_withheld() {
    let sim = Sim::with(App::Greet, &["pod"]);
    sim.change("pod", |pod| pod.condition = kftray_portforward::ports::Condition::NotReady);
    let engine = sim.engine();
    let forward = engine.start(config());
    until_status(&forward, "resolving").await;
    // It half-closes while nothing is there yet, and is answered when a pod is.
    let mut client = connect(&forward).await;
    client.write_all(b"hello").await.expect("write");
    client.shutdown().await.expect("shutdown");
    tokio::time::sleep(Duration::from_millis(100)).await;
    sim.change("pod", |pod| pod.condition = kftray_portforward::ports::Condition::Ready);
    let mut answer = [0; 8];
    timeout(PATIENCE, client.read_exact(&mut answer)).await.expect("in time").expect("read");
    assert_eq!(&answer, b"podhello");
    if cfg!(target_os = "linux") {
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(sim.seen().live, 1, "a half-close is no close");
        drop(client);
        sim.until("the close", |seen| seen.live == 0 && seen.closes == 1).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_client_sent_before_it_closed_still_arrives() {
    let sim = Sim::with(App::Silent, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    client.write_all(&pattern(40_000)).await.expect("write");
    drop(client);
    sim.until("the close", |seen| seen.closes == 1 && seen.live == 0).await;
    sim.until("the bytes", |seen| seen.received.iter().any(|bytes| bytes[..] == pattern(40_000))).await;
    assert_eq!(sim.seen().resets, 0);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_channel_that_cannot_be_left_to_its_transport_is_kept_until_it_ends() {
    let sim = Sim::with(App::Echo, &["a"]);
    sim.change("a", |pod| pod.takes_over = false);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    client.write_all(b"bye").await.expect("write");
    drop(client);
    sim.until("the bytes", |seen| seen.received.iter().any(|bytes| &bytes[..] == b"bye")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((sim.seen().live, sim.seen().closes), (1, 0));
    sim.break_pod("a");
    sim.until("the end", |seen| seen.live == 0).await;
    assert_eq!(forward.counters().failed, 0, "nobody is left to be failed");
}

#[tokio::test]
async fn a_reset_by_the_client_resets_the_channel() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    client.write_all(b"x").await.expect("write");
    client.read_u8().await.expect("echo");
    client.set_zero_linger().expect("linger");
    drop(client);
    sim.until("the reset", |seen| seen.live == 0 && seen.resets == 1).await;
    assert_eq!(forward.counters().failed, 0, "the client's own wish");
}

#[tokio::test]
async fn a_failure_after_the_first_byte_resets_the_client() {
    let sim = Sim::with(App::Break, &["a", "b"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    let error = read_all(&mut client).await.expect_err("never a clean end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(next_failure(&forward).await, Code::ConnectionLost);
    assert_eq!((sim.seen().dials, forward.counters().failed), (1, 1));
}

/// A server that refuses an upload answers and closes with the rest unread: answer and error come together. Other systems
/// may throw away at a reset what the client has not read.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_came_before_a_failure_is_given_to_the_client() {
    let sim = Sim::with(App::Break, &["a", "b"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("an end in time");
    assert_eq!(read.expect_err("never a clean end").kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(answer, b"x");
    assert_eq!(next_failure(&forward).await, Code::ConnectionLost);
    assert_eq!((sim.seen().dials, forward.counters().bytes_down), (1, 1), "given once, by one pod");
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_pod_and_nobody_else() {
    let sim = Sim::with(App::Send(64_000_000), &["a"]);
    let engine = sim.engine();
    let forward = ready(&engine, config()).await;
    let lazy = connect(&forward).await;
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = forward.counters().bytes_down;
        if now == last && now > 0 {
            break;
        }
        last = now;
    }
    // The local socket's buffers, at most 6 MB each by default, and the engine's own.
    assert!(last < 20_000_000, "{last}");
    let mut diligent = connect(&forward).await;
    let mut begin = vec![0; 1_000_000];
    timeout(PATIENCE, diligent.read_exact(&mut begin)).await.expect("in time").expect("read");
    assert!(begin == pattern(1_000_000));
    drop(lazy);
}

#[tokio::test]
async fn a_panic_ends_one_connection_only() {
    let sim = Sim::with(App::Panic, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    assert!(read_all(&mut client).await.is_err(), "a reset, not an end");
    sim.change("a", |pod| pod.app = App::Greet);
    let mut client = connect(&forward).await;
    assert_eq!(timeout(PATIENCE, client.read_u8()).await.expect("in time").expect("read"), b'a');
    assert_eq!(forward.counters().failed, 1);
}

#[tokio::test]
async fn what_certainly_was_not_seen_is_replayed_on_another_pod() {
    let sim = Sim::with(App::Echo, &["a", "b"]);
    sim.change("a", |pod| pod.manner = Manner::FailLater(Delivery::Nothing));
    let forward = ready(&sim.engine(), config()).await;
    for _ in 0..4 {
        echo_exactly(connect(&forward).await, pattern(30_000), vec![10_000]).await;
    }
    assert!(sim.seen().by_pod.contains_key("a"), "the bad pod had its turn");
    assert_eq!(forward.counters().failed, 0);
}

#[tokio::test]
async fn what_may_have_been_seen_is_never_replayed() {
    let sim = Sim::with(App::Echo, &["a", "b"]);
    for pod in ["a", "b"] {
        sim.change(pod, |pod| pod.manner = Manner::FailLater(Delivery::Unknown));
    }
    let forward = ready(&sim.engine(), config()).await;
    let mut client = connect(&forward).await;
    client.write_all(b"POST").await.expect("write");
    assert!(read_all(&mut client).await.is_err());
    let dials = sim.seen().dials;
    assert!(
        (1..=2).contains(&dials),
        "a second try only if the first was made before the client had sent: {dials}"
    );
}

#[tokio::test]
async fn a_silent_client_is_moved_even_after_an_unclear_failure() {
    let sim = Sim::with(App::Greet, &["a", "b"]);
    sim.change("a", |pod| pod.manner = Manner::FailLater(Delivery::Unknown));
    let forward = ready(&sim.engine(), config()).await;
    for _ in 0..2 {
        let mut client = connect(&forward).await;
        assert_eq!(timeout(PATIENCE, client.read_u8()).await.expect("in time").expect("read"), b'b');
    }
}

#[tokio::test]
async fn a_refused_port_is_refused_soon_and_others_are_tried_first() {
    let sim = Sim::with(App::Greet, &["a", "b"]);
    sim.change("a", |pod| pod.manner = Manner::Refuse);
    let forward = ready(&sim.engine(), config()).await;
    for _ in 0..4 {
        let mut client = connect(&forward).await;
        assert_eq!(timeout(PATIENCE, client.read_u8()).await.expect("in time").expect("read"), b'b');
    }
    sim.change("b", |pod| pod.manner = Manner::Refuse);
    let mut client = connect(&forward).await;
    assert!(read_all(&mut client).await.is_err(), "refused by every pod");
    assert_eq!(next_failure(&forward).await, Code::RemoteRefused);
}

#[tokio::test]
async fn more_waiting_connections_than_allowed_are_refused() {
    let sim = Sim::new();
    sim.publish();
    let forward = sim.engine_with(Limits { held: 2, connections: 10, flows: 10 }).start(config());
    until_status(&forward, "resolving").await;
    let mut waiting = vec![connect(&forward).await, connect(&forward).await];
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut third = connect(&forward).await;
    assert!(read_all(&mut third).await.is_err());
    assert_eq!(next_failure(&forward).await, Code::Overloaded);
    sim.add("a", App::Greet);
    for client in &mut waiting {
        assert_eq!(timeout(PATIENCE, client.read_u8()).await.expect("in time").expect("read"), b'a');
    }
}

#[tokio::test]
async fn beyond_the_limit_of_open_connections_clients_wait_for_a_place() {
    let sim = Sim::with(App::Greet, &["a"]);
    let forward = ready(&sim.engine_with(Limits { held: 1, connections: 1, flows: 1 }), config()).await;
    let mut first = connect(&forward).await;
    first.read_u8().await.expect("greeting");
    let mut second = connect(&forward).await;
    assert!(timeout(Duration::from_millis(200), second.read_u8()).await.is_err(), "no place yet");
    first.set_zero_linger().expect("linger");
    drop(first);
    assert_eq!(timeout(PATIENCE, second.read_u8()).await.expect("in time").expect("read"), b'a');
}

/// A login that has expired: whoever connects hears so at once, also in a crowd, and the cluster is not stormed.
#[tokio::test(start_paused = true)]
async fn where_only_a_person_can_help_a_crowd_is_told_at_once() {
    let sim = Sim::with(App::Echo, &["a", "b"]);
    let forward = ready(&sim.engine(), config()).await;
    for pod in ["a", "b"] {
        sim.change(pod, |pod| pod.manner = Manner::Fail(Code::Unauthorized, Delivery::Nothing));
        sim.break_pod(pod);
    }
    until_status(&forward, "needs_user").await;
    let mut events = forward.events();
    let (begin, before) = (Instant::now(), sim.seen().dials);
    let mut clients = Vec::new();
    for _ in 0..40 {
        // Refused so soon that connecting itself may say so.
        clients.extend(TcpStream::connect(forward.addresses()[0]).await);
    }
    for client in &mut clients {
        assert!(read_all(client).await.is_err(), "reset");
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(sim.seen().dials - before <= 6, "{} dials", sim.seen().dials - before);
    let mut told = 0;
    while told < 40 {
        let event = timeout(PATIENCE, events.recv()).await.expect("in time").expect("events");
        if let Event::ConnectionFailed { problem, .. } = event {
            assert_eq!(problem.code, Code::Unauthorized);
            told += 1;
        }
    }
    for pod in ["a", "b"] {
        sim.change(pod, |pod| pod.manner = Manner::Serve);
    }
    // Each pod is asked again within a second of the last refusal.
    tokio::time::sleep(Duration::from_secs(1)).await;
    echo_exactly(connect(&forward).await, pattern(100), vec![100]).await;
    until_status(&forward, "ready").await;
}

/// Another process listens from now on; a connection that was accepted before has nobody else.
#[tokio::test(start_paused = true)]
async fn a_forward_that_retires_finishes_what_is_being_opened() {
    let sim = Sim::with(App::Echo, &["a"]);
    let forward = ready(&sim.engine(), config()).await;
    sim.change("a", |pod| pod.manner = Manner::Slow(Duration::from_secs(2)));
    let mut client = connect(&forward).await;
    client.write_all(b"x").await.expect("write");
    let dialled = async {
        while sim.seen().dials == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, dialled).await.expect("dialled");
    let served = async {
        let mut answer = [0];
        client.read_exact(&mut answer).await.expect("served");
        drop(client);
    };
    let both = async { tokio::join!(forward.retire(PATIENCE), served) };
    timeout(PATIENCE * 2, both).await.expect("in time");
}
