//! The three port-forward protocols and their vices, seen by a raw client.

#![allow(clippy::allow_attributes, reason = "an expectation cannot hold for every file")]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test's way to say what it needs")]

mod common;

use std::time::Duration;

use common::{End, Session, dial, soon, upgrade};
use http::StatusCode;
use kftray_spdy::connection::Event;
use kftray_spdy::{channel, frame, ws};
use kftray_testkit::{
    ADMIN, DialFailure, Ending, FakeCluster, Handler, Pings, Protocol, Rule, Timings, User, Which, handlers,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

const SPDY: [Protocol; 2] = [Protocol::WebSocketTunnel, Protocol::Spdy];

async fn cluster(timings: Timings, ports: &[(u16, Handler)]) -> FakeCluster {
    let cluster = FakeCluster::builder().timings(timings).start().await.unwrap();
    let mut pod = cluster.pod("app");
    for (port, handler) in ports {
        pod = pod.port(&format!("p{port}"), *port, handler.clone());
    }
    pod.create().unwrap();
    cluster.wait_ready("default", "app", 1).await.unwrap();
    cluster
}

fn quick() -> Timings {
    Timings { linger: Duration::from_millis(100), ..Timings::default() }
}

#[tokio::test]
async fn a_pipelined_open_is_echoed_over_both_carriers() {
    let cluster = cluster(quick(), &[(7, handlers::echo())]).await;
    for protocol in SPDY {
        soon(async {
            let mut session = Session::open(&cluster, protocol, "app").await;
            let pairs = [session.connect(7, b"one").await, session.connect(7, b"two").await];
            assert_eq!(session.read(pairs[0], 3).await, b"one");
            assert_eq!(session.read(pairs[1], 3).await, b"two");
            assert_eq!(cluster.counters().upgrades(protocol), 1);
            assert_eq!(cluster.counters().streams.now(), 4);
            session.finish(pairs[0]).await;
            assert_eq!(session.drain(pairs[0]).await.2, End::Finished);
        })
        .await;
        cluster.wait_for("the session to go", |_| true).await.unwrap();
        gone(&cluster).await;
    }
}

/// All sessions and their streams have ended.
async fn gone(cluster: &FakeCluster) {
    soon(async {
        while cluster.counters().sessions.now() + cluster.counters().streams.now() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn ten_megabytes_arrive_byte_exact_in_both_directions() {
    let bytes = 10 << 20;
    let cluster = cluster(quick(), &[(19, handlers::chargen(Some(bytes))), (9, handlers::count())]).await;
    for protocol in SPDY {
        soon(async {
            let mut session = Session::open(&cluster, protocol, "app").await;
            let down = session.connect(19, b"").await;
            let (data, text, end) = session.drain(down).await;
            assert_eq!((text, end), (None, End::Finished));
            assert!(data == handlers::pattern(0, 10 << 20), "the download differs");
            let before = cluster.counters().bytes_in.get();
            let up = session.connect(9, b"").await;
            for _ in 0..320 {
                session.write(up, &[7; 32 * 1024]).await.unwrap();
            }
            // The end of input is not passed on, so the program never answers: the bytes are counted where they arrive.
            while cluster.counters().bytes_in.get() < before + bytes {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn half_close_loses_the_answer_after_the_linger() {
    let answer = handlers::answer_after_eof(Duration::ZERO);
    let cluster = cluster(Timings::default(), &[(80, answer)]).await;
    for protocol in SPDY {
        soon(async {
            let mut session = Session::open(&cluster, protocol, "app").await;
            let pair = session.connect(80, b"question").await;
            let start = Instant::now();
            session.finish(pair).await;
            let (data, _, end) = session.drain(pair).await;
            assert_eq!((data.as_slice(), end), (&b""[..], End::Finished));
            assert!(start.elapsed() >= Duration::from_millis(990), "{:?}", start.elapsed());
        })
        .await;
    }
}

#[tokio::test]
async fn a_close_by_the_server_is_seen_after_the_linger() {
    let cluster = cluster(Timings::default(), &[(80, handlers::close())]).await;
    soon(async {
        let mut session = Session::open(&cluster, Protocol::Spdy, "app").await;
        let start = Instant::now();
        let pair = session.connect(80, b"").await;
        assert_eq!(session.drain(pair).await.2, End::Finished);
        assert!(start.elapsed() >= Duration::from_millis(990), "{:?}", start.elapsed());
        assert_eq!(cluster.counters().pod_connections.peak(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_closed_port_gives_the_runtimes_text_and_resets_both_streams() {
    let cluster = cluster(quick(), &[(80, handlers::echo())]).await;
    for protocol in SPDY {
        soon(async {
            let mut session = Session::open(&cluster, protocol, "app").await;
            let pair = session.connect(81, b"").await;
            let (_, text, end) = session.drain(pair).await;
            let text = text.expect("an error text");
            assert!(text.starts_with("error forwarding port 81 to pod "), "{text}");
            assert!(text.contains("failed to connect to localhost:81 inside namespace"), "{text}");
            assert_eq!(end, End::Reset);
            // The session does not mind.
            let pair = session.connect(80, b"still").await;
            assert_eq!(session.read(pair, 5).await, b"still");
        })
        .await;
    }
}

#[tokio::test]
async fn a_reset_by_the_program_is_an_error_and_a_gone_sandbox_another() {
    let cluster = cluster(quick(), &[(80, handlers::reset(1)), (81, handlers::echo())]).await;
    soon(async {
        let mut session = Session::open(&cluster, Protocol::Spdy, "app").await;
        let pair = session.connect(80, b"x").await;
        let (_, text, end) = session.drain(pair).await;
        assert!(text.expect("a text").ends_with("connection reset by peer"));
        assert_eq!(end, End::Reset);

        let open = session.connect(81, b"x").await;
        assert_eq!(session.read(open, 1).await, b"x");
        assert!(cluster.kill_pod("default", "app"));
        // The open connection ends with its program, the session stays, new connections find no namespace.
        assert_eq!(session.drain(open).await.2, End::Finished);
        let pair = session.connect(81, b"").await;
        let text = session.drain(pair).await.1.expect("a text");
        assert!(text.contains("network namespace for sandbox") && text.ends_with("is closed"), "{text}");
        cluster.faults().dial_failure(Some(DialFailure::SandboxNotFound));
        let pair = session.connect(81, b"").await;
        assert!(session.drain(pair).await.1.expect("a text").contains("failed to find sandbox"));
    })
    .await;
}

#[tokio::test]
async fn streams_pair_by_request_id_in_any_order_and_bad_headers_are_reset() {
    let cluster = cluster(quick(), &[(7, handlers::echo())]).await;
    soon(async {
        let mut session = Session::open(&cluster, Protocol::Spdy, "app").await;
        let mut encoder = frame::Encoder::new();
        let id = |id| frame::StreamId::new(id).unwrap();
        let mut out = Vec::new();
        let headers = |kind, request| [("streamtype", kind), ("port", "7"), ("requestid", request)];
        encoder.syn_stream(&mut out, id(1), &headers("data", "a"), false);
        encoder.syn_stream(&mut out, id(3), &headers("data", "b"), false);
        frame::put_data(&mut out, id(1), b"A", false);
        frame::put_data(&mut out, id(3), b"B", false);
        encoder.syn_stream(&mut out, id(5), &headers("error", "b"), true);
        encoder.syn_stream(&mut out, id(7), &headers("error", "a"), true);
        encoder.syn_stream(&mut out, id(9), &[("streamtype", "data"), ("port", "0")], false);
        encoder.syn_stream(&mut out, id(11), &[("streamtype", "stdin"), ("port", "7")], false);
        // Ids must rise.
        encoder.syn_stream(&mut out, id(5), &headers("data", "c"), false);
        session.io.write_all(&out).await.unwrap();
        session.io.flush().await.unwrap();
        let frames = read_frames(&mut session.io, |frames| frames.len() >= 9).await;
        for (stream, byte) in [(1, b"A"), (3, b"B")] {
            assert!(frames.iter().any(|frame| matches!(
                frame,
                frame::Frame::Data(chunk) if chunk.stream.get() == stream && chunk.payload == byte[..]
            )));
        }
        for stream in [9, 11, 5] {
            assert!(frames.iter().any(|frame| matches!(
                frame,
                frame::Frame::RstStream { stream: of, .. } if of.get() == stream
            )));
        }
    })
    .await;
}

async fn read_frames(
    io: &mut Box<dyn common::Io>,
    enough: impl Fn(&[frame::Frame]) -> bool,
) -> Vec<frame::Frame> {
    let mut parser = frame::Parser::client(frame::Limits::default());
    let mut frames = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while !enough(&frames) {
        let count = io.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the connection ended after {frames:?}");
        let mut bytes = bytes::Bytes::copy_from_slice(&buffer[..count]);
        while let Some(frame) = parser.next(&mut bytes).unwrap() {
            frames.push(frame);
        }
    }
    frames
}

#[tokio::test]
async fn a_lonely_stream_times_out_with_a_text() {
    let timings = Timings { stream_creation: Duration::from_millis(100), ..quick() };
    let cluster = cluster(timings, &[(7, handlers::echo())]).await;
    soon(async {
        let mut session = Session::open(&cluster, Protocol::Spdy, "app").await;
        let mut out = Vec::new();
        let headers = [("streamtype", "error"), ("port", "7"), ("requestid", "a")];
        frame::Encoder::new().syn_stream(&mut out, frame::StreamId::new(1).unwrap(), &headers, true);
        session.io.write_all(&out).await.unwrap();
        session.io.flush().await.unwrap();
        let frames = read_frames(&mut session.io, |frames| frames.len() >= 3).await;
        assert!(frames.iter().any(|frame| matches!(
            frame,
            frame::Frame::Data(chunk) if chunk.payload.ends_with(b"timed out waiting for streams")
        )));
        assert!(matches!(frames.last(), Some(frame::Frame::RstStream { .. })));
    })
    .await;
}

#[tokio::test]
async fn one_stalled_upload_stops_the_pings_of_the_session() {
    let cluster = cluster(quick(), &[(9, handlers::never_read()), (7, handlers::echo())]).await;
    for protocol in SPDY {
        soon(async {
            let mut session = Session::open(&cluster, protocol, "app").await;
            session.ping().await;
            assert!(matches!(session.next().await, Some(Event::Pong { .. })));
            let stalled = session.connect(9, b"").await;
            // 256 KiB of the pod's socket buffer, 50 frames of the worker's queue, and what the carrier holds.
            let upload = async {
                for _ in 0..1000 {
                    if session.write(stalled, &[1; 32 * 1024]).await.is_err() {
                        return;
                    }
                }
            };
            let stuck = tokio::time::timeout(Duration::from_secs(2), upload).await.is_err();
            assert!(stuck, "the session took everything: {}", cluster.counters().bytes_in.get());
            assert!(cluster.counters().bytes_in.get() < 4 << 20);
        })
        .await;
        // The client is gone, but nobody reads its FIN behind all that data.
        cluster.faults().drop_connections(Which::Carriers, Ending::Reset);
        gone(&cluster).await;
    }
}

#[tokio::test]
async fn the_queue_of_a_stalled_stream_holds_fifty_frames() {
    let cluster = cluster(quick(), &[(9, handlers::never_read()), (7, handlers::echo())]).await;
    soon(async {
        let mut session = Session::open(&cluster, Protocol::Spdy, "app").await;
        let stalled = session.connect(9, b"").await;
        // Fill the pod's socket (256 KiB) and the hand-over, but only part of the queue of worker 3 (stream 3).
        for _ in 0..30 {
            session.write(stalled, &[1; 32 * 1024]).await.unwrap();
        }
        // A stream of another worker (7 % 5 = 2) still works, five PINGs in a row do not: one waits behind the stall.
        let other = session.connect(7, b"alive").await;
        assert_eq!(session.read(other, 5).await, b"alive");
        for _ in 0..5 {
            session.ping().await;
        }
        for _ in 0..4 {
            assert!(matches!(session.next().await, Some(Event::Pong { .. })));
        }
        assert!(tokio::time::timeout(Duration::from_millis(300), session.next()).await.is_err());
        // Giving the stalled stream up does not help either: the RST waits in the same queue.
    })
    .await;
}

#[tokio::test]
async fn hundreds_of_parallel_connections_leave_nothing_behind() {
    let cluster = cluster(quick(), &[(7, handlers::echo())]).await;
    for protocol in SPDY {
        soon(async {
            let mut session = Session::open(&cluster, protocol, "app").await;
            let mut waiting = std::collections::HashMap::new();
            for index in 0..300_u32 {
                let text = index.to_be_bytes();
                waiting.insert(session.connect(7, &text).await, text.to_vec());
            }
            while !waiting.is_empty() {
                if let Event::Data { pair, payload } = session.next().await.expect("the session lives") {
                    let left = waiting.get_mut(&pair).expect("one echo");
                    assert!(left.starts_with(&payload));
                    left.drain(..payload.len());
                    if left.is_empty() {
                        waiting.remove(&pair);
                        session.finish(pair).await;
                    }
                }
            }
            assert_eq!(cluster.counters().pod_connections.peak(), 300);
            while cluster.counters().streams.now() > 0 || cluster.counters().pod_connections.now() > 0 {
                tokio::time::timeout(Duration::from_millis(20), session.next()).await.ok();
            }
            assert_eq!(session.client.live(), 0);
        })
        .await;
    }
}

#[tokio::test]
async fn one_unread_download_stops_all_streams() {
    let cluster = cluster(quick(), &[(19, handlers::chargen(None)), (7, handlers::echo())]).await;
    soon(async {
        let mut session = Session::open(&cluster, Protocol::Spdy, "app").await;
        session.connect(19, b"").await;
        // Until every buffer on the way is full.
        let mut last = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = cluster.counters().bytes_out.get();
            if now == last && now > 0 {
                break;
            }
            last = now;
        }
        session.connect(7, b"hello").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(cluster.counters().bytes_in.get(), 0, "the second stream got through");
    })
    .await;
}

#[tokio::test]
async fn the_tunnel_fragments_like_gorilla() {
    let cluster =
        cluster(quick(), &[(19, handlers::chargen(Some(32 * 1024))), (20, handlers::chargen(Some(6000)))])
            .await;
    soon(async {
        cluster.add_token(ADMIN, "raw", None);
        let mut io = dial(&cluster).await.unwrap();
        assert_eq!(upgrade(&mut io, Protocol::WebSocketTunnel, "app", "", b"").await.unwrap().status, 101);
        let mut session = Session::on(io, Protocol::WebSocketTunnel);
        let pair = session.connect(19, b"").await;
        session.drain(pair).await;
        let whole: Vec<_> = session.fragments.drain(..).collect();
        // A DATA frame is three messages: 4 bytes, 4 bytes, payload; a large payload ends with an empty final frame.
        assert!(whole.windows(2).any(|pair| pair == [(4, true, true), (4, true, true)]), "{whole:?}");
        assert!(whole.contains(&(0, false, true)), "{whole:?}");
        let pair = session.connect(20, b"").await;
        session.drain(pair).await;
        assert!(session.fragments.contains(&(4082, true, false)), "{:?}", session.fragments);
        assert!(session.fragments.contains(&(6000 - 4082, false, true)), "{:?}", session.fragments);
    })
    .await;
}

#[tokio::test]
async fn bytes_before_the_101_are_lost() {
    let cluster = cluster(quick(), &[(7, handlers::echo())]).await;
    cluster.add_token(ADMIN, "raw", None);
    soon(async {
        let mut io = dial(&cluster).await.unwrap();
        let mut early = Vec::new();
        frame::put_ping(&mut early, 1);
        let answer = upgrade(&mut io, Protocol::Spdy, "app", "", &early).await.unwrap();
        assert_eq!(answer.status, 101);
        let mut session = Session::on(io, Protocol::Spdy);
        let mut late = Vec::new();
        frame::put_ping(&mut late, 3);
        session.send(&late).await.unwrap();
        let frames = read_frames(&mut session.io, |frames| !frames.is_empty()).await;
        assert_eq!(frames, [frame::Frame::Ping { id: 3 }]);
        assert_eq!(cluster.counters().pings.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn pings_can_be_late_or_never() {
    let cluster = cluster(quick(), &[(7, handlers::echo())]).await;
    soon(async {
        let mut session = Session::open(&cluster, Protocol::WebSocketTunnel, "app").await;
        cluster.faults().pings(Pings::Late(Duration::from_millis(200)));
        let start = Instant::now();
        session.ping().await;
        assert!(matches!(session.next().await, Some(Event::Pong { .. })));
        assert!(start.elapsed() >= Duration::from_millis(195));
        cluster.faults().pings(Pings::Ignore);
        session.ping().await;
        let pair = session.connect(7, b"alive").await;
        assert_eq!(session.read(pair, 5).await, b"alive");
        assert!(tokio::time::timeout(Duration::from_millis(200), session.next()).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn goaway_lets_old_streams_live_and_takes_no_new_ones() {
    let cluster = cluster(quick(), &[(7, handlers::echo())]).await;
    soon(async {
        let mut session = Session::open(&cluster, Protocol::Spdy, "app").await;
        let pair = session.connect(7, b"a").await;
        session.read(pair, 1).await;
        cluster.faults().goaway();
        loop {
            if let Event::GoAway { last_good, status } = session.next().await.unwrap() {
                assert_eq!((last_good, status), (3, 0));
                break;
            }
        }
        session.write(pair, b"b").await.unwrap();
        assert_eq!(session.read(pair, 1).await, b"b");
        session.finish(pair).await;
        while session.next().await.is_some() {}
    })
    .await;
    gone(&cluster).await;
}

#[tokio::test]
async fn carriers_can_be_split_cut_and_corrupted() {
    let cluster = cluster(quick(), &[(19, handlers::chargen(Some(100_000)))]).await;
    for protocol in SPDY {
        soon(async {
            cluster.faults().split_writes(Some(7));
            let mut session = Session::open(&cluster, protocol, "app").await;
            let pair = session.connect(19, b"").await;
            assert!(session.drain(pair).await.0 == handlers::pattern(0, 100_000));
            cluster.faults().split_writes(None);
            cluster.faults().close_carrier_after(Some(50_000));
            let mut session = Session::open(&cluster, protocol, "app").await;
            let pair = session.connect(19, b"").await;
            let (data, _, end) = session.drain(pair).await;
            assert_eq!(end, End::ConnectionLost);
            assert!(data.len() < 50_000 && data.len() > 10_000, "{}", data.len());
            cluster.faults().close_carrier_after(None);
        })
        .await;
    }
    let mut session = Session::open(&cluster, Protocol::Spdy, "app").await;
    cluster.faults().corrupt_frame();
    let mut parser = frame::Parser::client(frame::Limits::default());
    let mut buffer = [0; 64];
    let count = soon(session.io.read(&mut buffer)).await.unwrap();
    assert!(parser.next(&mut bytes::Bytes::copy_from_slice(&buffer[..count])).is_err());
}

#[tokio::test]
async fn an_idle_session_is_closed() {
    let timings = Timings { session_idle: Duration::from_millis(200), ..quick() };
    let cluster = cluster(timings, &[(7, handlers::echo())]).await;
    soon(async {
        let mut session = Session::open(&cluster, Protocol::WebSocketTunnel, "app").await;
        session.ping().await;
        while session.next().await.is_some() {}
    })
    .await;
    gone(&cluster).await;
}

#[tokio::test]
async fn legacy_dials_at_the_handshake_and_greets_each_channel() {
    let cluster = cluster(quick(), &[(7, handlers::echo()), (25, handlers::greet("220 hi\r\n"))]).await;
    cluster.add_token(ADMIN, "raw", None);
    soon(async {
        let mut io = dial(&cluster).await.unwrap();
        let answer = upgrade(&mut io, Protocol::Legacy, "app", "7,25,99", b"").await.unwrap();
        assert_eq!(answer.status, 101, "{}", answer.body);
        assert!(answer.head.to_lowercase().contains("sec-websocket-protocol: v4.channel.k8s.io"));
        let mut out = Vec::new();
        channel::put_data(&mut out, ws::Role::Client, 0, b"ping").unwrap();
        io.write_all(&out).await.unwrap();
        io.flush().await.unwrap();
        let mut frames = ws::Parser::new(ws::Role::Client, u64::MAX);
        let mut channels = channel::Parser::new(ws::Role::Client, 3).unwrap();
        let mut buffer = bytes::BytesMut::new();
        let mut events = Vec::new();
        while events.len() < 9 {
            assert!(io.read_buf(&mut buffer).await.unwrap() > 0, "ended after {events:?}");
            while let Some(event) = frames.next(&mut buffer).unwrap() {
                if let ws::Event::Data { payload, ends, .. } = event {
                    events.extend(channels.next(payload, ends).unwrap());
                }
            }
        }
        let ports = events.iter().filter(|event| matches!(event, channel::Event::Port { .. })).count();
        assert_eq!(ports, 6);
        let data = |index, bytes: &[u8]| channel::Event::Data { index, payload: bytes.to_vec().into() };
        assert!(events.contains(&data(0, b"ping")), "{events:?}");
        assert!(events.contains(&data(1, b"220 hi\r\n")), "{events:?}");
        assert!(events.iter().any(|event| matches!(
            event,
            channel::Event::Error { index: 2, text } if text.contains("failed to connect to localhost:99")
        )));
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_has_not_started_has_no_sandbox() {
    let cluster = FakeCluster::start().await.unwrap();
    cluster.add_token(ADMIN, "raw", None);
    let hour = Duration::from_secs(3600);
    cluster.pod("slow").port("p", 7, handlers::echo()).pod_times(hour, hour, hour).create().unwrap();
    let mut io = dial(&cluster).await.unwrap();
    let answer = soon(upgrade(&mut io, Protocol::Spdy, "slow", "", b"")).await.unwrap();
    assert_eq!(answer.status, 500);
    assert!(answer.body.contains("failed to find sandbox"), "{}", answer.body);
}

#[tokio::test]
async fn upgrades_are_refused_as_the_real_chain_does() {
    let user = User::new("creator").may(Rule::new(&["create"], &["pods/portforward"]));
    let cluster = FakeCluster::builder().user(user).start().await.unwrap();
    cluster.pod("app").port("p", 7, handlers::echo()).create().unwrap();
    cluster.wait_ready("default", "app", 1).await.unwrap();
    let status = async |protocol, pod: &str| {
        let mut io = dial(&cluster).await.unwrap();
        let answer = soon(upgrade(&mut io, protocol, pod, "7", b"")).await.unwrap();
        (answer.status, answer.body)
    };
    assert_eq!(status(Protocol::Spdy, "app").await.0, 401);
    cluster.add_token("creator", "raw", None);
    let (code, body) = status(Protocol::WebSocketTunnel, "app").await;
    assert_eq!(code, 403);
    assert!(body.contains("cannot get resource \\\"pods/portforward\\\""), "{body}");
    assert_eq!(status(Protocol::Spdy, "app").await.0, 101);
    cluster.set_rules("creator", vec![Rule::new(&["get"], &["pods/portforward"])]);
    assert!(status(Protocol::Legacy, "app").await.1.contains("cannot create resource"));
    cluster.set_rules("creator", vec![Rule::anything()]);
    let (code, body) = status(Protocol::Spdy, "missing").await;
    assert_eq!(code, 404);
    assert!(body.contains("pods \\\"missing\\\" not found"), "{body}");
    for protocol in [Protocol::WebSocketTunnel, Protocol::Spdy, Protocol::Legacy] {
        cluster.faults().refuse_upgrade(protocol, StatusCode::BAD_REQUEST, "no such gate");
        assert_eq!(status(protocol, "app").await.0, 400);
        cluster.faults().allow_upgrade(protocol);
        assert_eq!(status(protocol, "app").await.0, 101);
    }
    assert_eq!(cluster.counters().upgrades(Protocol::Legacy), 1);
}
