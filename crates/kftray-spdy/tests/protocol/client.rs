//! The client's stream states, against a peer written with the frame encoder.

use bytes::Bytes;
use kftray_spdy::connection::{
    AfterFinish, Client, Event, FRAME_PAYLOAD, MAX_ERROR_TEXT, OpenError, PairId, SendError,
};
use kftray_spdy::frame::{DataChunk, Frame, Limits, Parser, ResetStatus, StreamId};
use proptest::prelude::*;

fn written(out: &[u8]) -> Vec<Frame> {
    let mut parser = Parser::server(Limits::default());
    let mut input = Bytes::copy_from_slice(out);
    let mut frames = Vec::new();
    while let Some(frame) = parser.next(&mut input).expect("a client writes valid frames") {
        frames.push(frame);
    }
    frames
}

fn data(stream: StreamId, payload: &[u8], fin: bool) -> Frame {
    Frame::Data(DataChunk { stream, payload: Bytes::copy_from_slice(payload), ends_frame: true, fin })
}

fn reply(stream: StreamId) -> Frame {
    Frame::SynReply { stream, fin: false, headers: None }
}

fn reset(stream: StreamId) -> Frame {
    Frame::RstStream { stream, status: ResetStatus::CANCEL }
}

/// A client with one pair, and what the frames of a test mean to it.
struct Setup {
    client: Client,
    pair: PairId,
    out: Vec<u8>,
}

impl Setup {
    fn new() -> Self {
        let (mut client, mut out) = (Client::new(), Vec::new());
        let pair = client.open(80, b"", &mut out).expect("a fresh client opens");
        out.clear();
        Self { client, pair, out }
    }

    fn on(&mut self, frame: Frame) -> Vec<Event> {
        self.client.on_frame(frame, &mut self.out).collect()
    }
}

#[test]
fn a_pair_opens_in_one_write_in_kubectls_order() {
    let (mut client, mut out) = (Client::new(), Vec::new());
    let first = vec![7; FRAME_PAYLOAD + 1];
    let pair = client.open(8080, &first, &mut out).unwrap();
    client.open(65535, b"", &mut out).unwrap();
    let syn = |stream, kind: &str, port: &str, request: &str| Frame::SynStream {
        stream: StreamId::new(stream).unwrap(),
        priority: 0,
        fin: false,
        unidirectional: false,
        headers: Some(
            [("streamtype", kind), ("port", port), ("requestid", request)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
        ),
    };
    let fives = StreamId::new(5).unwrap();
    assert_eq!(
        written(&out),
        [
            syn(1, "error", "8080", "0"),
            syn(3, "data", "8080", "0"),
            data(pair.error_stream(), b"", true),
            data(pair.data_stream(), &first[..FRAME_PAYLOAD], false),
            data(pair.data_stream(), &first[..1], false),
            syn(5, "error", "65535", "1"),
            syn(7, "data", "65535", "1"),
            data(fives, b"", true),
        ]
    );
    assert_eq!(client.open(0, b"", &mut out), Err(OpenError::PortZero));
    assert_eq!((client.live(), client.opened()), (2, 2));
}

#[test]
fn a_good_connection_from_begin_to_end() {
    let mut t = Setup::new();
    let (pair, error, stream) = (t.pair, t.pair.error_stream(), t.pair.data_stream());
    assert_eq!(t.on(reply(error)), []);
    assert_eq!(t.on(reply(stream)), [Event::Accepted { pair }]);
    assert_eq!(t.on(reply(stream)), [], "a second reply is nothing new");
    t.client.data(pair, b"ping", &mut t.out).unwrap();
    assert_eq!(&t.client.data_header(pair, 4).unwrap()[..], &t.out[..8]);
    assert_eq!(t.on(data(stream, b"pong", false)), [Event::Data { pair, payload: "pong".into() }]);
    assert_eq!(
        t.on(data(stream, b"bye", true)),
        [Event::Data { pair, payload: "bye".into() }, Event::RemoteEnd { pair, error_pending: true }]
    );
    assert_eq!(t.on(data(error, b"", true)), [Event::ErrorEnd { pair, text: None }]);
    assert!(t.client.contains(pair), "our half is still open");
    t.client.data(pair, b"half-closed, still sending", &mut t.out).unwrap();
    assert_eq!(t.client.finish(pair, &mut t.out), Ok(AfterFinish::Ended));
    assert_eq!(t.client.live(), 0);
    assert_eq!(t.client.finish(pair, &mut t.out), Err(SendError::NoSuchPair));
    assert_eq!(written(&t.out).last(), Some(&data(stream, b"", true)));
}

#[test]
fn finishing_first_ends_with_the_remote() {
    let mut t = Setup::new();
    let (pair, error, stream) = (t.pair, t.pair.error_stream(), t.pair.data_stream());
    assert_eq!(t.client.finish(pair, &mut t.out), Ok(AfterFinish::RemoteOpen));
    assert_eq!(t.client.finish(pair, &mut t.out), Err(SendError::Finished));
    assert_eq!(t.client.data(pair, b"x", &mut t.out), Err(SendError::Finished));
    assert_eq!(t.on(data(error, b"", true)), [Event::ErrorEnd { pair, text: None }]);
    assert_eq!(
        t.on(data(stream, b"answer", true)),
        [
            Event::Data { pair, payload: "answer".into() },
            Event::RemoteEnd { pair, error_pending: false },
            Event::Ended { pair }
        ]
    );
    assert_eq!(t.client.live(), 0);
}

#[test]
fn a_pair_lives_until_its_error_stream_ends() {
    for finish_first in [true, false] {
        let mut t = Setup::new();
        let (pair, error, stream) = (t.pair, t.pair.error_stream(), t.pair.data_stream());
        if finish_first {
            assert_eq!(t.client.finish(pair, &mut t.out), Ok(AfterFinish::RemoteOpen));
        }
        assert_eq!(t.on(data(stream, b"", true)), [Event::RemoteEnd { pair, error_pending: true }]);
        if !finish_first {
            assert_eq!(t.client.finish(pair, &mut t.out), Ok(AfterFinish::RemoteOpen));
        }
        assert_eq!(t.on(data(error, b"too late to matter", false)), []);
        let text = Some("too late to matter".to_owned());
        assert_eq!(t.on(data(error, b"", true)), [Event::ErrorEnd { pair, text }, Event::Ended { pair }]);
        assert_eq!(t.client.live(), 0);
    }
}

/// The runtime after a failed dial: text, RST on data, RST on error (cri-streaming `portForward`).
#[test]
fn the_runtimes_error_comes_before_the_reset() {
    let mut t = Setup::new();
    let (pair, error, stream) = (t.pair, t.pair.error_stream(), t.pair.data_stream());
    t.on(reply(stream));
    assert_eq!(t.on(data(error, b"failed to connect to ", false)), []);
    assert_eq!(t.on(data(error, b"localhost:80", false)), []);
    let text = Some("failed to connect to localhost:80".to_owned());
    assert_eq!(
        t.on(reset(stream)),
        [
            Event::ErrorEnd { pair, text },
            Event::Reset { pair, status: ResetStatus::CANCEL },
            Event::Ended { pair }
        ]
    );
    assert_eq!(written(&t.out), [reset(error)]);
    // The second RST and late data of a forgotten pair are dropped and counted.
    assert_eq!(t.on(reset(error)), []);
    assert_eq!(t.on(data(stream, b"late", true)), []);
    let counters = t.client.counters();
    assert_eq!((counters.late_control, counters.late_data, counters.late_bytes), (1, 1, 4));
    assert_eq!(t.client.live(), 0);
}

#[test]
fn a_reset_error_stream_ends_only_the_text() {
    let mut t = Setup::new();
    let (pair, error, stream) = (t.pair, t.pair.error_stream(), t.pair.data_stream());
    t.on(data(error, b"oops", false));
    assert_eq!(t.on(reset(error)), [Event::ErrorEnd { pair, text: Some("oops".into()) }]);
    assert_eq!(t.on(data(error, b"more", false)), []);
    assert_eq!(t.client.counters().late_data, 1);
    assert_eq!(
        t.on(reset(stream)),
        [Event::Reset { pair, status: ResetStatus::CANCEL }, Event::Ended { pair }]
    );
    assert_eq!(written(&t.out), [], "nothing is left to reset");
}

#[test]
fn error_text_is_bounded() {
    let mut t = Setup::new();
    let error = t.pair.error_stream();
    for _ in 0..3 {
        t.on(data(error, &vec![b'x'; MAX_ERROR_TEXT / 2], false));
    }
    let events = t.on(data(error, b"end", true));
    let [Event::ErrorEnd { text: Some(text), .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(text.len(), MAX_ERROR_TEXT);
    assert_eq!(t.client.counters().cut_error_bytes, (MAX_ERROR_TEXT / 2 + 3) as u64);
}

#[test]
fn a_local_reset_forgets_at_once() {
    let mut t = Setup::new();
    let (pair, error, stream) = (t.pair, t.pair.error_stream(), t.pair.data_stream());
    t.client.reset(pair, ResetStatus::CANCEL, &mut t.out);
    assert_eq!(written(&t.out), [reset(stream), reset(error)]);
    t.out.clear();
    t.client.reset(pair, ResetStatus::CANCEL, &mut t.out);
    assert_eq!(t.out, b"");
    assert_eq!(t.client.data(pair, b"x", &mut t.out), Err(SendError::NoSuchPair));
    for frame in [reply(stream), data(stream, b"late", true), data(error, b"", true), reset(stream)] {
        assert_eq!(t.on(frame), []);
    }
    assert_eq!(t.client.live(), 0);
}

#[test]
fn pings_are_answered_and_counted_odd() {
    let mut t = Setup::new();
    let (first, second) = (t.client.ping(&mut t.out), t.client.ping(&mut t.out));
    assert_eq!((first, second), (1, 3));
    assert_eq!(written(&t.out), [Frame::Ping { id: 1 }, Frame::Ping { id: 3 }]);
    assert_eq!(t.on(Frame::Ping { id: 1 }), [Event::Pong { id: 1 }]);
    t.out.clear();
    assert_eq!(t.on(Frame::Ping { id: 2 }), []);
    assert_eq!(written(&t.out), [Frame::Ping { id: 2 }], "the server's ping goes back as it is");
}

#[test]
fn goaway_stops_opening_only() {
    let mut t = Setup::new();
    let pair = t.pair;
    let second = t.client.open(80, b"", &mut t.out).unwrap();
    assert_eq!(t.on(Frame::GoAway { last_good: 3, status: 0 }), [Event::GoAway { last_good: 3, status: 0 }]);
    assert_eq!(t.client.open(80, b"", &mut t.out), Err(OpenError::GoingAway));
    assert!(!t.client.can_open());
    assert!(!pair.is_beyond(3) && second.is_beyond(3), "the second was never processed");
    assert_eq!(
        t.on(data(pair.data_stream(), b"still", false)),
        [Event::Data { pair, payload: "still".into() }]
    );
}

#[test]
fn what_no_peer_should_send_is_counted() {
    let mut t = Setup::new();
    let server_stream = StreamId::new(2).unwrap();
    let future = StreamId::new(9).unwrap();
    let syn = Frame::SynStream {
        stream: server_stream,
        priority: 0,
        fin: false,
        unidirectional: false,
        headers: None,
    };
    assert_eq!(t.on(syn), []);
    assert_eq!(
        written(&t.out),
        [Frame::RstStream { stream: server_stream, status: ResetStatus::REFUSED_STREAM }]
    );
    for frame in [
        data(server_stream, b"x", true),
        data(future, b"x", true),
        reply(future),
        reset(future),
        Frame::Settings { entries: 1 },
        Frame::WindowUpdate { stream: 3, delta: 1 },
        Frame::Unknown { kind: 10 },
        Frame::Headers { stream: t.pair.data_stream(), fin: false, headers: None },
    ] {
        assert_eq!(t.on(frame), []);
    }
    let counters = t.client.counters();
    assert_eq!((counters.unknown_stream, counters.refused_streams, counters.window_updates), (4, 1, 1));
    assert_eq!((counters.settings, counters.unknown_kind, counters.headers), (1, 1, 1));
}

#[test]
fn fin_counts_on_every_frame_that_may_carry_it() {
    for frame in [
        |stream| Frame::SynReply { stream, fin: true, headers: None },
        |stream| Frame::Headers { stream, fin: true, headers: None },
        |stream| data(stream, b"", true),
    ] {
        let mut t = Setup::new();
        let pair = t.pair;
        let events = t.on(frame(pair.data_stream()));
        assert_eq!(events.last(), Some(&Event::RemoteEnd { pair, error_pending: true }));
        assert!(
            !t.on(frame(pair.data_stream())).iter().any(|event| matches!(event, Event::RemoteEnd { .. }))
        );
    }
}

/// Found by fuzzing: the refusal went out for our own live stream, and data followed it.
#[test]
fn a_server_cannot_open_our_own_stream() {
    let mut t = Setup::new();
    let stream = t.pair.data_stream();
    let syn = Frame::SynStream { stream, priority: 0, fin: false, unidirectional: false, headers: None };
    assert_eq!(t.on(syn), []);
    assert_eq!(t.out, b"");
    assert_eq!(t.client.counters().unknown_stream, 1);
    assert_eq!(t.client.data(t.pair, b"unharmed", &mut t.out), Ok(()));
}

/// Ten thousand short connections leave nothing behind.
#[test]
fn short_connections_leave_no_state() {
    let (mut client, mut out) = (Client::new(), Vec::new());
    for _ in 0..10_000 {
        out.clear();
        let pair = client.open(80, b"q", &mut out).unwrap();
        for frame in [
            reply(pair.error_stream()),
            reply(pair.data_stream()),
            data(pair.error_stream(), b"", true),
            data(pair.data_stream(), b"a", true),
        ] {
            client.on_frame(frame, &mut out).for_each(drop);
        }
        assert_eq!(client.finish(pair, &mut out), Ok(AfterFinish::Ended));
    }
    assert_eq!((client.live(), client.opened()), (0, 10_000));
}

proptest! {
    /// Payload survives any portions of the application and the wire, in both directions of the frame layer.
    #[test]
    fn payload_is_framed_exactly(parts in prop::collection::vec(0_usize..100_000, 1..6)) {
        let (mut client, mut out) = (Client::new(), Vec::new());
        let pair = client.open(80, b"", &mut out).unwrap();
        let mut sent = Vec::new();
        for (index, len) in parts.into_iter().enumerate() {
            let part = vec![index as u8; len];
            client.data(pair, &part, &mut out).unwrap();
            sent.extend_from_slice(&part);
        }
        let mut received = Vec::new();
        for frame in written(&out) {
            if let Frame::Data(chunk) = frame && chunk.stream == pair.data_stream() {
                prop_assert!((1..=FRAME_PAYLOAD).contains(&chunk.payload.len()));
                received.extend_from_slice(&chunk.payload);
            }
        }
        prop_assert_eq!(received, sent);
    }
}
