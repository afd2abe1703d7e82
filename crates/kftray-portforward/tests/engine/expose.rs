//! Expose: callers in memory on one side, real local programs on the other.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use kftray_commons::spec::{Expose, ExposeProtocol};
use kftray_commons::{Access, Code, Secret};
use kftray_portforward::Event;
use kftray_portforward::ports::PublicationState;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::sim::{PATIENCE, pattern, problem, until_status};
use crate::stage::{Caller, Program, Stage, expose, mirror, up};

/// The next event that is not about the status.
async fn event(events: &mut broadcast::Receiver<Event>) -> Event {
    loop {
        let event = timeout(PATIENCE, events.recv()).await.expect("in time").expect("an event");
        if !matches!(event, Event::Status(_) | Event::Published { .. }) {
            return event;
        }
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
}

#[tokio::test]
async fn requests_are_told_who_calls_and_people_what_was_asked() {
    let (stage, program) = (Stage::new(), Program::mirror().await);
    let forward = stage.ready(program.http()).await;
    let mut events = forward.events();
    assert_eq!(forward.snapshot().urls, ["http://shop.ns"]);
    let caller = stage.call();
    for path in ["/a?token=x", "/b"] {
        caller.ask(get(path)).await;
        let (head, seen) = caller.answer().await;
        assert!(head.starts_with("HTTP/1.1 200"));
        let seen = String::from_utf8(seen).expect("text");
        assert!(seen.contains("X-Forwarded-For: 10.1.2.3\r\n") && !seen.contains("6.6.6.6"), "{seen}");
        assert!(seen.starts_with(&format!("GET {path} HTTP/1.1\r\n")));
        let Event::Called(call) = event(&mut events).await else { panic!("no call") };
        let path = path.split('?').next().expect("a path").to_owned();
        assert_eq!((call.request, call.status), (Some(("GET".to_owned(), path)), Some(200)));
        assert_eq!(call.caller, "10.1.2.3:4567");
    }
    let counters = forward.counters();
    assert_eq!((counters.connections, counters.open, counters.failed), (1, 1, 0));
    caller.end();
    assert_eq!(caller.all().await, Ok(Vec::new()), "an orderly end");
    stage.until_live(0).await;
}

#[tokio::test]
async fn a_program_that_is_down_gets_a_page_and_the_next_connection_is_tried_anew() {
    let stage = Stage::new();
    let free = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = free.local_addr().expect("address");
    drop(free);
    let forward = stage.ready(expose(address, ExposeProtocol::Http)).await;
    let mut events = forward.events();
    let caller = stage.call();
    caller
        .ask("POST /x HTTP/1.1\r\nHost: shop\r\nAccept: text/html\r\nContent-Length: 100000\r\n\r\nbegin")
        .await;
    let page = String::from_utf8(caller.all().await.expect("no reset")).expect("text");
    assert!(page.starts_with("HTTP/1.1 502 ") && page.contains(&address.to_string()), "{page}");
    let Event::CallFailed { problem, .. } = event(&mut events).await else { panic!("no failure") };
    assert_eq!(problem.code, Code::LocalProgramDown);
    assert!(problem.message.contains(&address.to_string()), "{problem}");
    let listener = TcpListener::bind(address).await.expect("bind again");
    let mut program = JoinSet::new();
    program.spawn(async move { mirror(listener.accept().await.expect("accept").0).await });
    let caller = stage.call();
    caller.ask(get("/")).await;
    assert!(caller.answer().await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn answers_stream_and_nothing_is_held_back() {
    let (go_on, went_on) = watch::channel(0);
    let program = Program::start(move |mut stream| {
        let mut went_on = went_on.clone();
        async move {
            let mut head = vec![0; 1024];
            let _length = stream.read(&mut head).await.expect("read");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                .await
                .expect("write");
            for number in 1..=3 {
                went_on.wait_for(|now| *now >= number).await.expect("the test lives");
                stream.write_all(format!("data: {number}\n\n").as_bytes()).await.expect("write");
            }
        }
    })
    .await;
    let stage = Stage::new();
    let forward = stage.ready(program.http()).await;
    let mut events = forward.events();
    let caller = stage.call();
    caller.ask(get("/events")).await;
    let head = caller.piece().await.expect("no reset").expect("no end");
    assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n"));
    let Event::Called(call) = event(&mut events).await else { panic!("no call") };
    assert_eq!(call.status, Some(200), "told at its head, not at its end");
    for number in 1..=3 {
        go_on.send_replace(number);
        assert_eq!(caller.exactly(9).await, format!("data: {number}\n\n").into_bytes());
    }
    assert_eq!(caller.all().await, Ok(Vec::new()), "the program's end is the answer's");
}

#[tokio::test]
async fn after_an_upgrade_it_is_bytes_with_a_half_close() {
    let program = Program::start(|mut stream| async move {
        let mut head = vec![0; 1024];
        let length = stream.read(&mut head).await.expect("read");
        assert!(head[..length].ends_with(b"\r\n\r\n"));
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n\r\n").await.expect("write");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("read");
        stream.write_all(&all).await.expect("write");
    })
    .await;
    let stage = Stage::new();
    let _forward = stage.ready(program.http()).await;
    let caller = stage.call();
    caller.ask("GET /ws HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").await;
    let head = caller.piece().await.expect("no reset").expect("no end");
    assert!(head.starts_with(b"HTTP/1.1 101"));
    let sent = pattern(200_000);
    for chunk in sent.chunks(10_000) {
        caller.ask(Bytes::copy_from_slice(chunk)).await;
    }
    caller.end();
    assert_eq!(caller.all().await.as_deref(), Ok(&sent[..]));
}

#[tokio::test]
async fn tcp_is_bytes_from_the_first_on_and_the_server_may_begin() {
    let program = Program::start(|mut stream| async move {
        stream.write_all(b"220 hello\r\n").await.expect("write");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("read");
        stream.write_all(all.len().to_string().as_bytes()).await.expect("write");
    })
    .await;
    let stage = Stage::new();
    let forward = stage.ready(program.tcp()).await;
    let mut events = forward.events();
    let caller = stage.call();
    assert_eq!(caller.exactly(11).await, b"220 hello\r\n");
    caller.ask("GET / HTTP/1.1\r\n\r\n").await;
    caller.end();
    assert_eq!(caller.all().await.as_deref(), Ok(&b"18"[..]), "as it came");
    let Event::Called(call) = event(&mut events).await else { panic!("no call") };
    assert_eq!((call.request, call.status), (None, None));
}

#[tokio::test]
async fn a_program_that_breaks_off_resets_its_caller() {
    let program = Program::start(|mut stream| async move {
        let mut some = vec![0; 10];
        stream.read_exact(&mut some).await.expect("read");
        stream.write_all(b"part").await.expect("write");
        stream.set_zero_linger().expect("linger");
    })
    .await;
    let stage = Stage::new();
    let _forward = stage.ready(program.tcp()).await;
    let caller = stage.call();
    caller.ask("0123456789").await;
    assert_eq!(caller.all().await, Err(()));
    stage.until_live(0).await;
}

/// A program that answers a request early and closes with the rest of it unread, which resets the connection.
struct Early {
    address: std::net::SocketAddr,
    go: std::sync::mpsc::Sender<()>,
    done: std::sync::mpsc::Receiver<()>,
    /// It has the head, and more waits for it.
    asked: tokio::sync::oneshot::Receiver<()>,
}

impl Early {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let ((go, may_go), (is_done, done)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
        let (is_asked, asked) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("read");
                head.extend(byte);
            }
            stream.peek(&mut [0]).expect("the body begins");
            is_asked.send(()).expect("the test lives");
            may_go.recv().expect("the test lives");
            stream.write_all(b"HTTP/1.1 413 X\r\nContent-Length: 8\r\n\r\ntoo much").expect("write");
            drop(stream);
            is_done.send(()).expect("the test lives");
        });
        Self { address, go, done, asked }
    }
}

#[tokio::test]
async fn an_answer_to_an_upload_that_is_not_read_arrives_whole() {
    for goes_on in [false, true] {
        let program = Early::start();
        let stage = Stage::new();
        let forward = stage.ready(expose(program.address, ExposeProtocol::Http)).await;
        let caller = stage.call();
        caller.ask("POST /x HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000\r\n\r\nbegin").await;
        timeout(PATIENCE, program.asked).await.expect("in time").expect("asked");
        program.go.send(()).expect("the program lives");
        // Meanwhile nothing else runs here: answer and reset have come before the engine learns of either.
        program.done.recv_timeout(PATIENCE).expect("answered");
        if goes_on {
            // So that it first meets the reset by writing.
            caller.ask("more").await;
        }
        let (head, body) = caller.answer().await;
        assert!(head.starts_with("HTTP/1.1 413") && body == b"too much", "{goes_on}: {head}");
        caller.end();
        assert_eq!(caller.all().await, Ok(Vec::new()), "{goes_on}: an orderly end");
        stage.until_live(0).await;
        assert_eq!(forward.counters().failed, 0);
    }
}

#[tokio::test]
async fn an_answer_arrives_at_a_slow_caller_after_its_program_has_closed() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let program = Program::start(|mut stream| async move {
        let mut some = vec![0; 1024];
        let _length = stream.read(&mut some).await.expect("read");
        stream.write_all(ANSWER).await.expect("write");
    })
    .await;
    let stage = Stage::new();
    let _forward = stage.ready(program.http()).await;
    let caller = stage.call();
    caller.ask(get("/")).await;
    // It neither reads nor ends, and its place is free all the same.
    stage.until_live(0).await;
    assert_eq!(caller.all().await.as_deref(), Ok(ANSWER));
}

#[tokio::test]
async fn bytes_of_a_program_that_has_closed_arrive_at_a_caller_that_goes_on() {
    let program = Program::start(|mut stream| async move {
        stream.write_all(b"all there is").await.expect("write");
        stream.shutdown().await.expect("shutdown");
        stream.read_u8().await.expect("read");
    })
    .await;
    let stage = Stage::new();
    let _forward = stage.ready(program.tcp()).await;
    let caller = stage.call();
    caller.until_answered().await;
    for _ in 0..10 {
        caller.ask("x").await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(caller.all().await.as_deref(), Ok(&b"all there is"[..]));
    // Only then it is reset, so that one that reads nothing learns of it.
    stage.until_live(0).await;
    assert_eq!(caller.all().await, Err(()));
}

#[tokio::test(start_paused = true)]
async fn callers_without_a_request_lose_their_places() {
    let stage = Stage::new();
    let forward = stage.ready(expose("127.0.0.1:1".parse().expect("address"), ExposeProtocol::Http)).await;
    let callers: Vec<Caller> = (0..3).map(|_| stage.call()).collect();
    callers[1].ask("GET / HTTP/1.1\r\nHost:").await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    callers[2].ask("GET / HTTP/1.1\r\nHost:").await;
    assert_eq!((stage.live.load(SeqCst), forward.counters().open), (3, 3));
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!((stage.live.load(SeqCst), forward.counters().open), (0, 0));
    for caller in &callers {
        assert_eq!(caller.all().await, Err(()), "without a word");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_after_a_refusal_leaves_its_place() {
    let program = Program::start(|mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap_or(0);
        std::future::pending::<()>().await;
    })
    .await;
    let stage = Stage::new();
    let forward = stage.ready(program.http()).await;
    let mut events = forward.events();
    let caller = stage.call();
    caller.ask(format!("{}GET / HTTP/1.1\r\nA B: c\r\n\r\n", get("/slow"))).await;
    let Event::CallFailed { problem, .. } = event(&mut events).await else { panic!("no failure") };
    assert_eq!(problem.code, Code::CallerRefused);
    caller.cut();
    stage.until_live(0).await;
}

#[tokio::test]
async fn two_hundred_at_once_with_large_bodies_both_ways() {
    let (stage, program) = (Stage::new(), Program::mirror().await);
    let forward = stage.ready(program.http()).await;
    let mut callers = JoinSet::new();
    for number in 0..200_usize {
        let caller = stage.call();
        callers.spawn(async move {
            let mut body = pattern(100_000 + number);
            body[0] = (number % 256) as u8;
            let head = format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n", body.len());
            caller.ask(head).await;
            for chunk in body.chunks(16_384) {
                caller.ask(Bytes::copy_from_slice(chunk)).await;
            }
            let (_, seen) = caller.answer().await;
            assert!(seen.ends_with(&body), "{number}");
            caller.end();
            caller.all().await.expect("an orderly end");
        });
    }
    while let Some(done) = callers.join_next().await {
        done.expect("served");
    }
    stage.until_live(0).await;
    let counters = forward.counters();
    assert_eq!((counters.connections, counters.failed), (200, 0));
    assert!(counters.bytes_up > 20_000_000 && counters.bytes_down > 20_000_000);
}

#[tokio::test]
async fn a_caller_that_does_not_read_stops_its_program_and_nobody_else() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let program = Program::start(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            let chunk = pattern(100_000);
            for _ in 0..500 {
                stream.write_all(&chunk).await.expect("write");
                count.fetch_add(chunk.len(), SeqCst);
            }
        }
    })
    .await;
    let stage = Stage::new();
    let _forward = stage.ready(program.tcp()).await;
    let slow = stage.call();
    let quick = stage.call();
    assert_eq!(quick.all().await.map(|all| all.len()), Ok(50_000_000));
    let held = sent.load(SeqCst) - 50_000_000;
    assert!(held < 20_000_000, "the system's buffers, not ours: {held}");
    assert_eq!(slow.all().await.map(|all| all.len()), Ok(50_000_000));
}

#[tokio::test]
async fn https_to_a_development_server_with_a_certificate_of_its_own() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
    let key = certified.signing_key.serialize_der();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.try_into().expect("a key"))
        .expect("a server");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let program = Program::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(tls) = acceptor.accept(stream).await {
                mirror(tls).await;
            }
        }
    })
    .await;
    let stage = Stage::new();
    let expose = Expose { local_host: "localhost".to_owned(), local_tls: true, ..program.http() };
    let _forward = stage.ready(expose.clone()).await;
    let caller = stage.call();
    caller.ask(get("/")).await;
    assert!(caller.answer().await.0.starts_with("HTTP/1.1 200"));
    // Plain TCP where TLS is expected is told as what it is.
    let plain = Program::start(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("write");
    })
    .await;
    let stage = Stage::new();
    let wrong = stage.ready(Expose { local_port: plain.http().local_port, ..expose }).await;
    let mut events = wrong.events();
    let caller = stage.call();
    caller.ask(get("/")).await;
    assert!(caller.answer().await.0.starts_with("HTTP/1.1 502"));
    let Event::CallFailed { problem, .. } = event(&mut events).await else { panic!("no failure") };
    assert!(problem.message.contains("TLS failed"), "{problem}");
}

#[tokio::test]
async fn who_may_not_call_does_not_reach_the_program() {
    let connected = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connected);
    let program = Program::start(move |stream| {
        count.fetch_add(1, SeqCst);
        mirror(stream)
    })
    .await;
    let stage = Stage::new();
    let access = Access { bearer: Some(Secret::new("t0ken")), ..Access::default() };
    let forward = stage.ready(Expose { access, ..program.http() }).await;
    let mut events = forward.events();
    let caller = stage.call();
    caller.ask(get("/secret")).await;
    let page = String::from_utf8(caller.all().await.expect("a page")).expect("text");
    assert!(page.starts_with("HTTP/1.1 401 ") && page.contains("WWW-Authenticate: Bearer"), "{page}");
    let Event::CallFailed { problem, .. } = event(&mut events).await else { panic!("no failure") };
    assert_eq!(problem.code, Code::CallerRefused);
    let other = stage.call();
    other.ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(other.all().await, Err(()), "cut off");
    assert_eq!(connected.load(SeqCst), 0);
    let good = stage.call();
    good.ask("GET / HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer t0ken\r\n\r\n").await;
    let (_, seen) = good.answer().await;
    assert!(!String::from_utf8_lossy(&seen).contains("t0ken"));
}

#[tokio::test(start_paused = true)]
async fn the_status_follows_the_publication() {
    let stage = Stage::new();
    stage.state.send_replace(PublicationState::Pending(None));
    let forward = stage.start(expose("127.0.0.1:1".parse().expect("address"), ExposeProtocol::Http));
    until_status(&forward, "resolving").await;
    stage.state.send_replace(PublicationState::Pending(Some(problem(Code::RelayStarting))));
    let mut status = forward.status();
    let told = status.wait_for(|status| status.problem().is_some_and(|p| p.code == Code::RelayStarting));
    timeout(PATIENCE, told).await.expect("told").expect("alive");
    stage.state.send_replace(up());
    until_status(&forward, "ready").await;
    stage.state.send_replace(PublicationState::Pending(None));
    until_status(&forward, "recovering").await;
    assert!(forward.snapshot().urls.is_empty());
    stage.state.send_replace(PublicationState::Failed(problem(Code::NameTaken)));
    until_status(&forward, "needs_user").await;
    assert_eq!(stage.retries.load(SeqCst), 0);
    forward.retry();
    until_status(&forward, "recovering").await;
    assert_eq!(stage.retries.load(SeqCst), 1);
    let begin = Instant::now();
    stage.state.send_replace(PublicationState::Failed(problem(Code::ClusterUnreachable)));
    while stage.retries.load(SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
    stage.state.send_replace(up());
    until_status(&forward, "ready").await;
    assert_eq!((stage.published.load(SeqCst), stage.withdrawn.load(SeqCst)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn its_time_over_it_is_withdrawn_and_everybody_cut_off() {
    let program = Program::start(|mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap_or(0);
    })
    .await;
    let stage = Stage::new();
    let access = Access { expires_after: Some(300), ..Access::default() };
    let forward = stage.ready(Expose { access, ..program.tcp() }).await;
    let caller = stage.call();
    caller.ask("x").await;
    let begin = Instant::now();
    let status = until_status(&forward, "needs_user").await;
    assert_eq!(status.problem().map(|problem| problem.code), Some(Code::ExposeExpired));
    assert!((299..310).contains(&begin.elapsed().as_secs()));
    assert_eq!(caller.all().await, Err(()));
    assert_eq!((stage.withdrawn.load(SeqCst), stage.live.load(SeqCst)), (1, 0));
    forward.retry();
    until_status(&forward, "ready").await;
    assert_eq!(stage.published.load(SeqCst), 2);
}

#[tokio::test]
async fn a_stop_withdraws_and_leaves_nothing() {
    let program = Program::start(|mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap_or(0);
    })
    .await;
    let stage = Stage::new();
    let forward = stage.ready(program.tcp()).await;
    let callers: Vec<Caller> = (0..20).map(|_| stage.call()).collect();
    let limit = Instant::now() + PATIENCE;
    while forward.counters().open < 20 {
        assert!(Instant::now() < limit);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let counters = forward.stop(Duration::from_millis(50)).await;
    assert_eq!((counters.open, stage.live.load(SeqCst), stage.withdrawn.load(SeqCst)), (0, 0, 1));
    for caller in &callers {
        assert_eq!(caller.all().await, Err(()), "reset");
    }
}
