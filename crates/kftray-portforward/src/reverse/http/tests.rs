//! An exchange under any split of what comes, against what a reader of the messages would expect.

mod odd;

use std::time::{Duration, Instant};

use kftray_commons::spec::{Certificate, Expose, ExposeProtocol, Exposure, IssuerKind};
use kftray_commons::{Access, ClusterRef, Secret};
use proptest::prelude::*;

use super::*;
use crate::ports::Offer;

fn offer(public: bool, access: Access) -> Offer {
    let exposure = match public {
        true => Exposure::Public {
            protocol: ExposeProtocol::Http,
            ingress_class: None,
            annotations: std::collections::BTreeMap::new(),
            certificate: Some(Certificate { issuer: "x".into(), kind: IssuerKind::Issuer }),
        },
        false => Exposure::Internal { protocol: ExposeProtocol::Http },
    };
    let expose = Expose {
        local_host: "localhost".into(),
        local_port: 3000.try_into().expect("port"),
        local_tls: false,
        exposure,
        access,
    };
    Offer { cluster: ClusterRef::default(), namespace: None, name: "shop".into(), expose }
}

fn rules(public: bool, access: Access) -> Rules {
    Rules::of(&offer(public, access))
}

const PEER: &str = "10.1.2.3:4567";

/// Our lines for a caller without claims at an internal expose.
const OURS: &str = "X-Forwarded-For: 10.1.2.3\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: app\r\n\
    Forwarded: for=10.1.2.3;host=\"app\";proto=http\r\n";

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Everything that waits for the program.
fn taken(exchange: &mut Exchange<'_>) -> Vec<u8> {
    exchange.outbox().drain(..).flatten().collect()
}

fn calls(exchange: &mut Exchange<'_>) -> Vec<(String, Option<u16>)> {
    let called = exchange.told().filter_map(|told| match told {
        Told::Called(call) => {
            let (method, path) = call.request.expect("HTTP");
            Some((format!("{method} {path}"), call.status))
        }
        Told::Failed { .. } => None,
    });
    called.collect()
}

fn refusals(exchange: &mut Exchange<'_>) -> Vec<Problem> {
    let failed = exchange.told().filter_map(|told| match told {
        Told::Failed { problem, .. } => Some(problem),
        Told::Called(_) => None,
    });
    failed.collect()
}

/// One generated message of the caller and what the program should get of it.
#[derive(Debug, Clone)]
struct Message {
    sent: Vec<u8>,
    expected: Vec<u8>,
    head_only: bool,
}

#[derive(Debug, Clone)]
enum Content {
    None,
    Length(Vec<u8>),
    Chunks(Vec<Vec<u8>>, bool),
}

fn chunked(chunks: &[Vec<u8>], trailer: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
        bytes.extend(format!("{:x}{}\r\n", chunk.len(), if trailer { ";name=value" } else { "" }).bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(if trailer { &b"0\r\nX-Sum: 1\r\n\r\n"[..] } else { b"0\r\n\r\n" });
    bytes
}

/// Bytes that look like what surrounds them now and then.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        Just(b"\r\n\r\nGET /inner HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        Just(b"0\r\n\r\n".to_vec()),
    ]
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        Just(Content::None),
        bytes().prop_map(Content::Length),
        (prop::collection::vec(bytes(), 0..4), any::<bool>())
            .prop_map(|(chunks, tail)| Content::Chunks(chunks, tail)),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let claims = prop::collection::vec(
        prop::sample::select(vec![
            "X-Forwarded-For: 6.6.6.6",
            "x-forwarded-proto: gopher",
            "Forwarded: for=6.6.6.6",
            "X-Real-Ip: 6.6.6.6",
            "X_Forwarded_For: 6.6.6.6",
        ]),
        0..3,
    );
    let fields =
        prop::collection::vec(prop::sample::select(vec!["Accept: */*", "X-A:b", "Cookie: \u{e9}=1"]), 0..3);
    let method = prop::sample::select(vec!["GET", "POST", "HEAD", "OPTIONS", "PURGE"]);
    (method, claims, fields, content()).prop_map(|(method, claims, fields, content)| {
        let (field, body) = match &content {
            Content::None => (String::new(), Vec::new()),
            Content::Length(body) => (format!("Content-Length: {}\r\n", body.len()), body.clone()),
            Content::Chunks(chunks, tail) => {
                ("Transfer-Encoding: chunked\r\n".into(), chunked(chunks, *tail))
            }
        };
        let lines = |claims: &[&str]| {
            let lines: String = claims.iter().chain(&fields).map(|line| format!("{line}\r\n")).collect();
            format!("{method} /p?q=1 HTTP/1.1\r\nHost: app\r\n{lines}{field}")
        };
        let mut sent = format!("{}\r\n", lines(&claims)).into_bytes();
        sent.extend(&body);
        let mut expected = format!("{}{OURS}\r\n", lines(&[])).into_bytes();
        expected.extend(&body);
        Message { sent, expected, head_only: method == "HEAD" }
    })
}

/// A generated answer; whether it has a body depends on the request.
fn response() -> impl Strategy<Value = (u16, Content, bool)> {
    let status = prop::sample::select(vec![200, 201, 204, 304, 404, 500]);
    (status, content(), any::<bool>())
}

fn answer_bytes(status: u16, content: &Content, hint: bool, head_only: bool) -> Vec<u8> {
    let none = head_only || matches!(status, 204 | 304);
    let (field, body) = match content {
        Content::None => ("Content-Length: 0\r\n".to_owned(), Vec::new()),
        Content::Length(body) => (format!("Content-Length: {}\r\n", body.len()), body.clone()),
        Content::Chunks(chunks, tail) => ("Transfer-Encoding: chunked\r\n".into(), chunked(chunks, *tail)),
    };
    let early = if hint { "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" } else { "" };
    let mut bytes = format!("{early}HTTP/1.1 {status} X\r\n{field}\r\n").into_bytes();
    if !none {
        bytes.extend(body);
    }
    bytes
}

/// Cuts bytes into pieces; the last length is repeated.
fn pieces<'a>(bytes: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = bytes;
    let mut next = 0;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = lengths[next.min(lengths.len() - 1)].clamp(1, rest.len());
        next += 1;
        let (piece, behind) = rest.split_at(length);
        rest = behind;
        Some(piece)
    })
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..400, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Heads are rewritten, claims dropped, bodies kept byte by byte, however the bytes come in.
    #[test]
    fn bodies_are_exact_and_heads_rewritten_under_any_split(
        messages in prop::collection::vec(message(), 1..6),
        cuts in lengths(),
    ) {
        let rules = rules(false, Access::default());
        let mut exchange = Exchange::new(&rules, PEER.to_owned());
        let sent: Vec<u8> = messages.iter().flat_map(|message| message.sent.clone()).collect();
        let expected: Vec<u8> = messages.iter().flat_map(|message| message.expected.clone()).collect();
        let mut found = Vec::new();
        for piece in pieces(&sent, &cuts) {
            prop_assert!(exchange.takes());
            exchange.ask(Bytes::copy_from_slice(piece), now());
            found.extend(taken(&mut exchange));
        }
        prop_assert_eq!(
            String::from_utf8_lossy(&found).into_owned(),
            String::from_utf8_lossy(&expected).into_owned()
        );
        prop_assert_eq!(found, expected);
        prop_assert_eq!(exchange.open.len(), messages.len());
    }

    /// Every answer is told once, with the status of its own request, however the bytes come in.
    #[test]
    fn answers_find_their_requests_under_any_split(
        both in prop::collection::vec((message(), response()), 1..6),
        cuts in lengths(),
    ) {
        let rules = rules(false, Access::default());
        let mut exchange = Exchange::new(&rules, PEER.to_owned());
        let mut answers = Vec::new();
        let mut statuses = Vec::new();
        for (message, (status, content, hint)) in &both {
            exchange.ask(Bytes::copy_from_slice(&message.sent), now());
            answers.extend(answer_bytes(*status, content, *hint, message.head_only));
            statuses.push(Some(*status));
        }
        for piece in pieces(&answers, &cuts) {
            exchange.answer(piece, now());
        }
        let told: Vec<Option<u16>> = calls(&mut exchange).into_iter().map(|(_, status)| status).collect();
        prop_assert_eq!(told, statuses);
        prop_assert!(exchange.open.is_empty() && !exchange.is_raw());
    }

    /// Nothing panics, and what is no HTTP from the first piece on goes through as it came.
    #[test]
    fn other_protocols_go_through_untouched(
        begin in prop::sample::select(vec![
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"\x16\x03\x01", b"SSH-2.0-x\r\n", b"\0\0", b"HELO x\r\n",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..500),
        cuts in lengths(),
    ) {
        let rules = rules(false, Access::default());
        let mut exchange = Exchange::new(&rules, PEER.to_owned());
        let mut found = Vec::new();
        let whole = [begin, &rest].concat();
        for piece in [begin].into_iter().chain(pieces(&rest, &cuts)) {
            exchange.ask(Bytes::copy_from_slice(piece), now());
            found.extend(taken(&mut exchange));
        }
        exchange.asked_all(now());
        prop_assert!(exchange.is_raw());
        prop_assert_eq!(found, whole);
    }

    /// Whatever comes, the portions in which it comes make no difference.
    #[test]
    fn portions_make_no_difference(
        parts in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..20),
            prop::sample::select(vec![
                "GET / HTTP/1.1\r\n", "GET / x HTTP/1.1\r\n", "POST /a HTTP/1.0\n", "PRI * HTTP/2.0\r\n", "HELO x\r\n",
                "GET /\u{ff} ", "FOO\u{b}", "GET", "HTTP/1.1", "AMQP", "\u{a0}", "\t", "\r", "5x",
                "Host: app\r\n", "A B: c\r\n", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n", "X:\n",
                "Upgrade: x\r\nConnection: upgrade\r\n", "\r\n", "\n", "3\r\nabc\r\n", "0\r\n\r\n", "abc", "\0", " ",
            ]).prop_map(latin),
        ], 0..25),
        cuts in lengths(),
        small in any::<bool>(),
    ) {
        let whole = parts.concat();
        let cuts: Vec<usize> = cuts.into_iter().map(|cut| if small { 1 + cut % 5 } else { cut }).collect();
        let rules = rules(false, Access::default());
        let outcome = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut exchange = Exchange::new(&rules, PEER.to_owned());
            for piece in pieces {
                exchange.ask(Bytes::copy_from_slice(piece), now());
            }
            exchange.asked_all(now());
            let requests: Vec<String> = exchange.open.iter().map(|one| one.path.clone()).collect();
            let taken = taken(&mut exchange);
            (String::from_utf8_lossy(&taken).into_owned(), taken, exchange.is_raw(), exchange.own.take(), requests)
        };
        prop_assert_eq!(outcome(&mut pieces(&whole, &cuts)), outcome(&mut std::iter::once(&whole[..])));
    }

    #[test]
    fn no_bytes_panic(
        steps in prop::collection::vec((any::<bool>(), prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60),
            prop::sample::select(vec![
                b"GET / HTTP/1.1\r\n".to_vec(), b"Upgrade: x\r\nConnection: upgrade\r\n".to_vec(), b"\r\n".to_vec(),
                b"HTTP/1.1 101 X\r\n\r\n".to_vec(), b"HTTP/1.1 200 X\r\nContent-Length: 3\r\n\r\n".to_vec(),
                b"Transfer-Encoding: chunked\r\n".to_vec(), b"5\r\nhello\r\n".to_vec(), b"0\r\n\r\n".to_vec(),
            ]),
        ]), 0..30),
        public in any::<bool>(),
        guarded in any::<bool>(),
    ) {
        let basic = guarded.then(|| Secret::new("a:b"));
        let rules = rules(public, Access { basic, ..Access::default() });
        let mut exchange = Exchange::new(&rules, PEER.to_owned());
        for (ask, bytes) in steps {
            if ask && exchange.takes() {
                exchange.ask(bytes.into(), now());
            } else {
                exchange.answer(&bytes, now());
            }
            if guarded {
                prop_assert!(taken(&mut exchange).is_empty(), "nothing passes without credentials");
            }
        }
        exchange.asked_all(now());
        exchange.program_gone(None);
    }
}

fn ask(exchange: &mut Exchange<'_>, text: &str) {
    exchange.ask(Bytes::copy_from_slice(text.as_bytes()), now());
}

/// A byte for each character, so that those above ASCII are no UTF-8.
fn latin(text: &str) -> Vec<u8> {
    text.chars().map(|one| u8::try_from(u32::from(one)).expect("latin")).collect()
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn an_upgrade_makes_it_raw_and_loses_no_byte() {
    let rules = rules(false, Access::default());
    let mut exchange = Exchange::new(&rules, PEER.to_owned());
    // Frames that come before the answer do not have to be HTTP, and are not taken for it.
    ask(&mut exchange, &format!("{UPGRADE}GET / HTTP/1.1\r\n\r\n"));
    let head = taken(&mut exchange);
    assert!(head.ends_with(format!("Upgrade: websocket\r\n{OURS}\r\n").as_bytes()));
    assert!(!exchange.takes() && !exchange.is_raw());
    exchange.answer(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x01x", now());
    assert!(exchange.is_raw());
    assert_eq!(taken(&mut exchange), b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(calls(&mut exchange), [("GET /ws".to_owned(), Some(101))]);
    ask(&mut exchange, "\u{1}\u{2}");
    assert_eq!(taken(&mut exchange), b"\x01\x02");
}

#[test]
fn an_upgrade_that_is_declined_stays_http() {
    let rules = rules(false, Access::default());
    let mut exchange = Exchange::new(&rules, PEER.to_owned());
    ask(&mut exchange, &format!("{UPGRADE}GET /next HTTP/1.1\r\nHost: app\r\n\r\n"));
    taken(&mut exchange);
    exchange.answer(b"HTTP/1.1 426 X\r\nContent-Length: 2\r\n\r\nno", now());
    assert!(!exchange.is_raw() && exchange.takes());
    assert!(
        taken(&mut exchange).starts_with(b"GET /next HTTP/1.1\r\nHost: app\r\nX-Forwarded-For: 10.1.2.3\r\n")
    );
    exchange.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", now());
    let told = [("GET /ws".to_owned(), Some(426)), ("GET /next".to_owned(), Some(200))];
    assert_eq!(calls(&mut exchange), told);
}

#[test]
fn credentials_are_checked_before_the_program_sees_anything_and_go_no_further() {
    let access = Access {
        basic: Some(Secret::new("ann:secret")),
        bearer: Some(Secret::new("t0ken")),
        ..Access::default()
    };
    let rules = rules(true, access);
    let request = |credentials: &str| format!("GET / HTTP/1.1\r\nHost: app\r\n{credentials}\r\n");
    let good = ["Authorization: Basic YW5uOnNlY3JldA==\r\n", "authorization: bearer t0ken\r\n"];
    for credentials in good {
        let mut exchange = Exchange::new(&rules, PEER.to_owned());
        ask(&mut exchange, &request(credentials));
        let head = String::from_utf8(taken(&mut exchange)).expect("text");
        assert!(head.starts_with("GET /") && !head.to_lowercase().contains("authorization"), "{head}");
    }
    let bad = [
        "",
        "Authorization: Basic YW5uOndyb25n\r\n",
        "Authorization: Basic !\r\n",
        "Authorization: Bearer other\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Basic YW5uOnNlY3JldA==\r\nAuthorization: Bearer t0ken\r\n",
    ];
    for credentials in bad {
        let mut exchange = Exchange::new(&rules, PEER.to_owned());
        ask(&mut exchange, &request(credentials));
        assert!(!exchange.needs_program(), "{credentials}");
        let page = exchange.own_is_due().then(|| exchange.own()).flatten().expect("a page");
        assert!(page.starts_with(b"HTTP/1.1 401 "), "{credentials}");
        assert_eq!(refusals(&mut exchange)[0].code, Code::CallerRefused);
    }
    // HTTP/2 with prior knowledge cannot be looked into.
    let mut exchange = Exchange::new(&rules, PEER.to_owned());
    ask(&mut exchange, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert!(!exchange.needs_program());
    assert_eq!(exchange.own().as_deref(), Some(&b""[..]));
}

#[test]
fn addresses_are_those_that_the_ingress_controller_tells() {
    let access = || Access { allow: vec!["203.0.113.0/24".parse().expect("network")], ..Access::default() };
    let passes = |rules: &Rules, forwarded: &str| {
        let mut exchange = Exchange::new(rules, PEER.to_owned());
        exchange.ask(latin(&format!("GET / HTTP/1.1\r\nHost: app\r\n{forwarded}\r\n")).into(), now());
        exchange.needs_program()
    };
    let public = rules(true, access());
    assert!(passes(&public, "X-Forwarded-For: 203.0.113.9\r\n"));
    // Only the last is the controller's; what stands before came from outside.
    assert!(!passes(&public, "X-Forwarded-For: 203.0.113.9, 198.51.100.1\r\n"));
    assert!(!passes(&public, "X-Forwarded-For: nonsense\r\n"));
    assert!(!passes(&public, ""));
    // Where the controller's word cannot be read, or there is none, its own address says nothing about the caller.
    let near = || Access { allow: vec!["10.0.0.0/8".parse().expect("network")], ..Access::default() };
    let closed = rules(true, near());
    assert!(passes(&closed, "X-Forwarded-For: 198.51.100.1, 10.9.9.9\r\n"));
    assert!(!passes(&closed, "X-Forwarded-For: \u{e9}, 198.51.100.1\r\n"));
    assert!(passes(&closed, "X-Forwarded-For: \u{e9}, 10.9.9.9\r\n"));
    for unknown in
        ["", "X-Forwarded-For:\r\n", "X-Forwarded-For: 10.9.9.9,\r\n", "X-Forwarded-For: 10.9.9.9 \u{e9}\r\n"]
    {
        assert!(!passes(&closed, unknown), "{unknown:?}");
    }
    let internal = rules(false, access());
    assert!(!passes(&internal, "X-Forwarded-For: 203.0.113.9\r\n"));
    let near = rules(false, near());
    assert!(passes(&near, "X-Forwarded-For: 198.51.100.1\r\n"));
    assert!(near.allow_unseen("10.1.1.1".parse().ok()) && !public.allow_unseen("203.0.113.9".parse().ok()));
}

#[test]
fn a_refusal_waits_for_the_answers_before_it() {
    let rules = rules(false, Access::default());
    let mut exchange = Exchange::new(&rules, PEER.to_owned());
    ask(&mut exchange, "GET /a HTTP/1.1\r\nHost: app\r\n\r\nGET /b HTTP/1.1\r\nA B: c\r\n\r\n");
    assert!(exchange.has_own() && !exchange.own_is_due());
    exchange.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", now());
    assert!(!exchange.own_is_due(), "in the middle of a body");
    exchange.answer(b"k", now());
    assert!(exchange.own_is_due());
    assert!(exchange.own().expect("a page").starts_with(b"HTTP/1.1 400 "));
}

#[test]
fn what_could_be_read_in_two_ways_is_not_passed_on() {
    for framing in
        ["Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "Content-Length: 1\r\nContent-Length: 2\r\n"]
    {
        let rules = rules(false, Access::default());
        let mut exchange = Exchange::new(&rules, PEER.to_owned());
        ask(&mut exchange, &format!("POST / HTTP/1.1\r\nHost: app\r\n{framing}\r\n0\r\n\r\n"));
        assert!(!exchange.needs_program(), "{framing}");
        assert!(exchange.own().expect("a page").starts_with(b"HTTP/1.1 400 "));
    }
}

#[test]
fn a_program_that_ends_without_answering_gets_a_page_in_its_place_and_one_in_the_middle_does_not() {
    let rules = rules(false, Access::default());
    let mut exchange = Exchange::new(&rules, PEER.to_owned());
    ask(&mut exchange, "GET /a?secret=1 HTTP/1.1\r\nHost: app\r\nAccept: text/html\r\n\r\n");
    exchange.program_gone(None);
    let problem = refusals(&mut exchange).remove(0);
    assert_eq!(problem.code, Code::LocalProgramDown);
    assert!(problem.message.contains("localhost:3000") && !problem.message.contains("secret"));
    let page = exchange.own().expect("a page");
    assert!(page.starts_with(b"HTTP/1.1 502 ") && page.ends_with(b"</html>\n"));

    let mut exchange = Exchange::new(&rules, PEER.to_owned());
    ask(&mut exchange, "GET /a HTTP/1.1\r\nHost: app\r\n\r\n");
    exchange.answer(b"HTTP/1.1 200 OK\r\nContent-Len", now());
    exchange.program_gone(None);
    assert!(!exchange.has_own());
}

#[test]
fn unasked_answers_are_passed_on_and_belong_to_nobody() {
    let rules = rules(false, Access::default());
    let mut exchange = Exchange::new(&rules, PEER.to_owned());
    ask(&mut exchange, "GET /a HTTP/1.1\r\nHost: app\r\n\r\n");
    let since = now();
    exchange.answer(
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 408 X\r\n\r\n",
        since + Duration::from_secs(2),
    );
    let told: Vec<Told> = exchange.told().collect();
    let [Told::Called(call)] = &told[..] else { panic!("{told:?}") };
    assert!(call.took >= Duration::from_secs(1));
    assert!(matches!(exchange.answering, Answering::Blind));
}
