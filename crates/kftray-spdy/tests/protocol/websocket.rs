//! WebSocket frames: RFC 6455's own examples, every violation, arbitrary portions.

use bytes::{BufMut, Bytes, BytesMut};
use kftray_spdy::ws::{self, Error, Event, Opcode, Parser, Role};
use proptest::prelude::*;

fn parse(role: Role, wire: &[u8]) -> Result<Vec<Event>, Error> {
    let mut parser = Parser::new(role, 1 << 20);
    let mut input = BytesMut::from(wire);
    let mut events = Vec::new();
    while let Some(event) = parser.next(&mut input)? {
        events.push(event);
    }
    Ok(events)
}

fn data(payload: &'static [u8], begins: bool, ends: bool) -> Event {
    Event::Data { payload: Bytes::from_static(payload), begins, ends }
}

/// RFC 6455 section 5.7, with binary in place of text.
#[test]
fn examples_of_the_rfc() {
    assert_eq!(parse(Role::Client, b"\x82\x05Hello"), Ok(vec![data(b"Hello", true, true)]));
    let masked = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(parse(Role::Server, &masked), Ok(vec![data(b"Hello", true, true)]));
    assert_eq!(
        parse(Role::Client, b"\x02\x03Hel\x80\x02lo"),
        Ok(vec![data(b"Hel", true, false), data(b"lo", false, true)])
    );
    assert_eq!(parse(Role::Client, b"\x89\x05Hello"), Ok(vec![Event::Ping("Hello".into())]));
    let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(parse(Role::Server, &pong), Ok(vec![Event::Pong("Hello".into())]));
    assert_eq!(&ws::header(Role::Server, Opcode::Binary, true, 256)[..], [0x82, 0x7e, 0x01, 0x00]);
    assert_eq!(
        &ws::header(Role::Server, Opcode::Binary, true, 65536)[..],
        [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]
    );
}

#[test]
fn clients_mask_with_key_zero() {
    let mut out = Vec::new();
    ws::put_binary(&mut out, Role::Client, b"abc");
    assert_eq!(out, b"\x82\x83\0\0\0\0abc");
    assert_eq!(parse(Role::Server, &out), Ok(vec![data(b"abc", true, true)]));
}

#[test]
fn gorilla_ends_large_messages_with_an_empty_frame() {
    let mut wire = ws::header(Role::Server, Opcode::Binary, false, 3).to_vec();
    wire.extend_from_slice(b"abc");
    ws::put_ping(&mut wire, Role::Server, b"");
    wire.put_slice(&ws::header(Role::Server, Opcode::Continuation, true, 0));
    assert_eq!(
        parse(Role::Client, &wire),
        Ok(vec![data(b"abc", true, false), Event::Ping(Bytes::new()), data(b"", false, true)])
    );
}

#[test]
fn close_carries_code_and_reason() {
    let mut wire = Vec::new();
    ws::put_close(&mut wire, Role::Server, 1011, "broken");
    wire.extend_from_slice(b"\xff\xff garbage behind the end");
    assert_eq!(
        parse(Role::Client, &wire),
        Ok(vec![Event::Close { code: Some(1011), reason: "broken".into() }])
    );
    assert_eq!(
        parse(Role::Client, b"\x88\x00"),
        Ok(vec![Event::Close { code: None, reason: String::new() }])
    );
    let mut long = Vec::new();
    ws::put_close(&mut long, Role::Server, 1000, &"ü".repeat(100));
    let Ok(events) = parse(Role::Client, &long) else { panic!("a cut reason stays valid") };
    assert_eq!(events, [Event::Close { code: Some(1000), reason: "ü".repeat(61) }]);
}

#[test]
fn violations_are_typed() {
    let cases: [(Role, &[u8], Error); 15] = [
        (Role::Client, b"\xc2\x00", Error::ReservedBits(0xc2)),
        (Role::Client, b"\x83\x00", Error::UnknownOpcode(3)),
        (Role::Client, b"\x8b\x00", Error::UnknownOpcode(11)),
        (Role::Client, b"\x81\x00", Error::Text),
        (Role::Client, b"\x09\x00", Error::FragmentedControl),
        (Role::Client, b"\x89\x7e\x00\x7e", Error::OversizedControl(126)),
        (Role::Client, b"\x82\x7e\x00\x7d", Error::MalformedLength),
        (Role::Client, b"\x82\x7f\0\0\0\0\0\0\xff\xff", Error::MalformedLength),
        (Role::Client, b"\x82\x7f\x80\0\0\0\0\0\0\0", Error::MalformedLength),
        (
            Role::Client,
            b"\x82\x7f\0\0\0\0\0\x10\0\x01",
            Error::TooLong { len: (1 << 20) + 1, limit: 1 << 20 },
        ),
        (Role::Client, b"\x82\x81\0\0\0\0a", Error::Masked),
        (Role::Server, b"\x82\x01a", Error::Unmasked),
        (Role::Client, b"\x80\x00", Error::StrayContinuation),
        (Role::Client, b"\x02\x01a\x82\x01b", Error::InterruptedMessage),
        (Role::Client, b"\x88\x01\x03", Error::MalformedClose),
    ];
    for (role, wire, error) in cases {
        assert_eq!(parse(role, wire), Err(error), "{wire:02x?}");
    }
    for code in [0_u16, 999, 1004, 1005, 1006, 1015] {
        let mut wire = Vec::new();
        ws::put_close(&mut wire, Role::Server, code, "");
        assert_eq!(parse(Role::Client, &wire), Err(Error::MalformedClose), "{code}");
    }
}

#[test]
fn prefix_writes_right_before_the_batch() {
    for len in [0, 1, 125, 126, 65535, 65536] {
        for role in [Role::Client, Role::Server] {
            let mut batch = vec![0xee; ws::MAX_HEADER + len];
            let begin = ws::prefix_binary(&mut batch, role).expect("room is there");
            let mut expected = Vec::new();
            ws::put_binary(&mut expected, role, &vec![0xee; len]);
            assert_eq!(batch[begin..], expected, "{role:?} {len}");
        }
    }
    assert_eq!(ws::prefix_binary(&mut [0; ws::MAX_HEADER - 1], Role::Client), None);
}

#[test]
fn payload_is_a_slice_of_the_input() {
    let mut input = BytesMut::new();
    ws::put_binary(&mut input, Role::Server, b"abcdef");
    let place = input.as_ptr().addr() + 2;
    let mut parser = Parser::new(Role::Client, 1 << 20);
    let Ok(Some(Event::Data { payload, .. })) = parser.next(&mut input) else { panic!("a message") };
    assert_eq!(payload.as_ptr().addr(), place);
}

/// One frame to write: opcode by number, FIN, mask key, payload.
fn any_message() -> impl Strategy<Value = (Vec<Vec<u8>>, [u8; 4], Option<Vec<u8>>)> {
    (
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..4),
        any::<[u8; 4]>(),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..=125)),
    )
}

/// Writes a frame with a real mask key, as browsers and gorilla clients do.
fn put_masked(wire: &mut Vec<u8>, first: u8, key: [u8; 4], payload: &[u8]) {
    wire.push(first);
    match u16::try_from(payload.len()).unwrap() {
        short @ 0..126 => wire.push(0x80 | short as u8),
        medium => {
            wire.push(0x80 | 126);
            wire.put_u16(medium);
        }
    }
    wire.extend_from_slice(&key);
    wire.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

proptest! {
    #[test]
    fn any_messages_in_any_portions(
        messages in prop::collection::vec(any_message(), 1..6),
        portions in prop::collection::vec(1_usize..40, 1..64),
    ) {
        let (mut wire, mut payloads, mut pings) = (Vec::new(), Vec::new(), Vec::new());
        for (fragments, key, ping) in &messages {
            for (index, fragment) in fragments.iter().enumerate() {
                let fin = if index + 1 == fragments.len() { 0x80 } else { 0 };
                put_masked(&mut wire, fin | if index == 0 { 2 } else { 0 }, *key, fragment);
                if let (0, Some(ping)) = (index, ping) {
                    put_masked(&mut wire, 0x89, *key, ping);
                    pings.push(ping.clone());
                }
            }
            payloads.push(fragments.concat());
        }
        let mut parser = Parser::new(Role::Server, 1 << 20);
        let mut input = BytesMut::new();
        let (mut seen, mut seen_pings, mut current) = (Vec::new(), Vec::new(), Vec::new());
        let mut rest = &wire[..];
        for portion in portions.iter().cycle() {
            if rest.is_empty() { break; }
            let (now, later) = rest.split_at(rest.len().min(*portion));
            rest = later;
            input.extend_from_slice(now);
            while let Some(event) = parser.next(&mut input).unwrap() {
                match event {
                    Event::Data { payload, begins, ends } => {
                        prop_assert!(!begins || current.is_empty());
                        current.extend_from_slice(&payload);
                        if ends { seen.push(std::mem::take(&mut current)); }
                    }
                    Event::Ping(payload) => seen_pings.push(payload.to_vec()),
                    Event::Pong(_) | Event::Close { .. } => prop_assert!(false, "never sent"),
                }
            }
            prop_assert!(input.len() < ws::MAX_HEADER + ws::MAX_CONTROL);
        }
        prop_assert_eq!(seen, payloads);
        prop_assert_eq!(seen_pings, pings);
    }

    #[test]
    fn garbage_never_panics(mut input in prop::collection::vec(any::<u8>(), 0..512), steer in any::<u8>()) {
        input.insert(0, steer);
        kftray_spdy::fuzzing::ws_parser(&input);
    }
}
