//! The legacy channel protocol.

use bytes::{Bytes, BytesMut};
use kftray_spdy::channel::{self, Error, Event, Parser};
use kftray_spdy::ws;
use proptest::prelude::*;

fn parse(role: ws::Role, ports: usize, wire: &[u8], portion: usize) -> Result<Vec<Event>, Error> {
    let mut carrier = ws::Parser::new(role, 1 << 20);
    let mut parser = Parser::new(role, ports)?;
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    for part in wire.chunks(portion) {
        input.extend_from_slice(part);
        while let Some(event) = carrier.next(&mut input).expect("valid WebSocket") {
            let ws::Event::Data { payload, ends, .. } = event else { panic!("only data is sent") };
            events.extend(parser.next(payload, ends)?);
        }
    }
    Ok(events)
}

#[test]
fn greeting_data_and_error() {
    let mut wire = Vec::new();
    channel::put_greeting(&mut wire, ws::Role::Server, 0, 0x1f90).unwrap();
    assert_eq!(
        wire, b"\x82\x03\x00\x90\x1f\x82\x03\x01\x90\x1f",
        "port 8080, little endian, on both channels"
    );
    channel::put_greeting(&mut wire, ws::Role::Server, 1, 443).unwrap();
    channel::put_data(&mut wire, ws::Role::Server, 1, b"hello").unwrap();
    channel::put_error(&mut wire, ws::Role::Server, 0, "connection refused").unwrap();
    let expected = [
        Event::Port { index: 0, port: 8080, error: false },
        Event::Port { index: 0, port: 8080, error: true },
        Event::Port { index: 1, port: 443, error: false },
        Event::Port { index: 1, port: 443, error: true },
        Event::Data { index: 1, payload: Bytes::from_static(b"hello") },
        Event::Error { index: 0, text: "connection refused".into() },
    ];
    assert_eq!(parse(ws::Role::Client, 2, &wire, wire.len()).unwrap(), expected);
    // Byte by byte, data comes byte by byte, everything else is the same.
    let events = parse(ws::Role::Client, 2, &wire, 1).unwrap();
    let data: Vec<u8> = events
        .iter()
        .filter_map(
            |event| if let Event::Data { payload, .. } = event { Some(payload.to_vec()) } else { None },
        )
        .flatten()
        .collect();
    assert_eq!(data, b"hello");
    assert_eq!(events.len(), 5 + b"hello".len());
}

#[test]
fn a_client_writes_data_at_once() {
    let mut wire = Vec::new();
    channel::put_data(&mut wire, ws::Role::Client, 2, b"GET").unwrap();
    assert_eq!(wire, b"\x82\x84\0\0\0\0\x04GET");
    let expected = [Event::Data { index: 2, payload: Bytes::from_static(b"GET") }];
    assert_eq!(parse(ws::Role::Server, 3, &wire, 100).unwrap(), expected);
}

#[test]
fn a_greeting_may_be_fragmented() {
    let mut parser = Parser::new(ws::Role::Client, 1).unwrap();
    for (bytes, ends) in [(&b"\x00"[..], false), (b"\x90", false), (b"\x1f", false)] {
        assert_eq!(parser.next(Bytes::from_static(bytes), ends), Ok(None));
    }
    let port = Event::Port { index: 0, port: 8080, error: false };
    assert_eq!(parser.next(Bytes::new(), true), Ok(Some(port)));
    assert_eq!(parser.next(Bytes::new(), true), Ok(None), "an empty message is ignored");
}

#[test]
fn violations_are_typed() {
    assert_eq!(Parser::new(ws::Role::Client, 0).err(), Some(Error::PortCount(0)));
    assert_eq!(Parser::new(ws::Role::Client, 128).err(), Some(Error::PortCount(128)));
    assert_eq!(channel::put_data(&mut Vec::new(), ws::Role::Client, 127, b""), Err(Error::NoSuchPort(127)));
    let cases: [(ws::Role, &[u8], Error); 4] = [
        (ws::Role::Client, b"\x02\x90\x1f", Error::UnknownChannel(2)),
        (ws::Role::Client, b"\x00\x90", Error::Greeting(0)),
        (ws::Role::Client, b"\x01\x90\x1f\x00", Error::Greeting(1)),
        (ws::Role::Server, b"\x01text", Error::ReadOnly(1)),
    ];
    for (role, message, error) in cases {
        let mut parser = Parser::new(role, 1).unwrap();
        assert_eq!(parser.next(Bytes::from_static(message), true), Err(error), "{message:02x?}");
    }
}

#[test]
fn error_text_is_bounded() {
    let mut parser = Parser::new(ws::Role::Client, 1).unwrap();
    parser.next(Bytes::from_static(b"\x01\x90\x1f"), true).unwrap();
    parser.next(Bytes::from_static(b"\x01"), false).unwrap();
    for _ in 0..100 {
        assert_eq!(parser.next(Bytes::from(vec![b'x'; 1024]), false), Ok(None));
    }
    let Ok(Some(Event::Error { text, .. })) = parser.next(Bytes::new(), true) else {
        panic!("the end brings it")
    };
    assert_eq!(text.len(), channel::MAX_ERROR_TEXT);
}

proptest! {
    #[test]
    fn garbage_never_panics(mut input in prop::collection::vec(any::<u8>(), 0..512), steer in any::<u8>()) {
        input.insert(0, steer);
        kftray_spdy::fuzzing::channel(&input);
    }
}
