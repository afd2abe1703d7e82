//! What is no good request: how it is told from other protocols, and what becomes of it and of its connection.

use super::*;

/// What begins in any way that some program takes for a request is never passed on with its claims.
#[test]
fn odd_request_lines_do_not_pass_unseen() {
    let long = "a".repeat(HEAD_MAX);
    for line in [
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        "GET\u{b}/\u{b}HTTP/1.1",
        "GET / HTTP/1.1\rX-Forwarded-For: 6.6.6.6",
        "GET / http/1.1",
        "GET / HTTP/01.1",
        "FOO / HTTP/2.0",
        "FOO / HTTP/0.9",
        "FOO /\u{e9} HTTP/1.1 ",
        "F!O / HTTP/1.1 x",
        "GET /",
        "\u{1c}GET /",
        &format!("GET /{long} HTTP/1.1"),
        &format!("F!O /{long} HTTP/1.1"),
    ] {
        let head = latin(&format!("{line}\r\nHost: app\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"));
        for piece in [1, 7, head.len()] {
            let rules = rules(false, Access::default());
            let mut exchange = Exchange::new(&rules, PEER.to_owned());
            for bytes in head.chunks(piece) {
                exchange.ask(Bytes::copy_from_slice(bytes), now());
            }
            exchange.asked_all(now());
            let line: String = line.chars().take(40).collect();
            assert!(!exchange.needs_program(), "{line:?} by {piece}");
            assert!(exchange.own().expect("a page").starts_with(b"HTTP/1.1 4"), "{line:?}");
        }
    }
}

#[test]
fn a_request_that_is_not_whole_at_the_end_is_not_passed_on() {
    for begin in ["GET / HTTP/1.1", "GET / HTTP/1.1\r\nHost: app\r\n", "GET / HTTP/1.1\rX: y\r\r"] {
        let rules = rules(false, Access::default());
        let mut exchange = Exchange::new(&rules, PEER.to_owned());
        ask(&mut exchange, begin);
        exchange.asked_all(now());
        assert!(!exchange.needs_program() && exchange.has_own(), "{begin:?}");
    }
}

/// First lines that other protocols begin with, and how much of one is enough to see that it is none of a request.
#[test]
fn other_protocols_are_not_taken_for_requests() {
    for begin in [
        &b"CONNECT {\"verbose\":false}\r\n"[..],
        b"OPTIONS rtsp://x/y RTSP/1.0\r\n",
        b"AMQP\0\0\x09\x01",
        b"\x1f\x8b",
        b"n\xc3\xa9",
    ] {
        let rules = rules(false, Access::default());
        let mut exchange = Exchange::new(&rules, PEER.to_owned());
        exchange.ask(Bytes::copy_from_slice(begin), now());
        assert_eq!(taken(&mut exchange), begin);
        assert!(exchange.is_raw());
    }
}

/// In one piece and cut inside of what is wrong, the program gets the same.
#[test]
fn what_is_good_of_a_chunk_passes_whatever_the_pieces() {
    let text = b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5x";
    let passed = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let rules = rules(false, Access::default());
        let mut exchange = Exchange::new(&rules, PEER.to_owned());
        pieces.for_each(|bytes| exchange.ask(Bytes::copy_from_slice(bytes), now()));
        assert!(exchange.has_own());
        taken(&mut exchange)
    };
    assert_eq!(passed(&mut text.chunks(1)), passed(&mut text.chunks(text.len())));
}

#[test]
fn a_refusal_takes_the_place_of_the_answer_to_its_own_request() {
    let rules = rules(false, Access::default());
    let mut exchange = Exchange::new(&rules, PEER.to_owned());
    let post = "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel";
    ask(&mut exchange, &format!("GET /a HTTP/1.1\r\nHost: app\r\n\r\n{post}"));
    ask(&mut exchange, "loX");
    assert!(exchange.has_own() && !exchange.own_is_due());
    exchange.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", now());
    assert!(exchange.own_is_due(), "the program would wait for the rest for ever");
    assert!(exchange.own().expect("a page").starts_with(b"HTTP/1.1 400 "));
    // It goes on being heard, so that its end is noticed.
    assert!(exchange.takes());
    taken(&mut exchange);
    ask(&mut exchange, "more");
    assert!(taken(&mut exchange).is_empty());
}

#[test]
fn no_refusal_is_given_in_the_middle_of_an_answer_that_nobody_ends() {
    let rules = rules(false, Access::default());
    let mut exchange = Exchange::new(&rules, PEER.to_owned());
    ask(&mut exchange, "GET /a HTTP/1.1\r\nHost: app\r\n\r\nGET /b HTTP/1.1\r\nA B: c\r\n\r\n");
    exchange.answer(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", now());
    assert!(exchange.has_own() && !exchange.own_is_due());
    exchange.program_gone(None);
    assert!(!exchange.has_own(), "it would never be due");
}

#[test]
fn a_connection_is_settled_between_requests_only() {
    let rules = rules(false, Access::default());
    let mut exchange = Exchange::new(&rules, PEER.to_owned());
    assert!(exchange.is_settled());
    ask(&mut exchange, "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nbegin");
    assert!(!exchange.is_settled());
    exchange.answer(b"HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nn", now());
    assert!(!exchange.is_settled());
    exchange.answer(b"o", now());
    assert!(exchange.is_settled(), "what is still to come of the question is of no interest");
    assert!(!Exchange::raw(&rules, PEER.to_owned()).is_settled());
}
