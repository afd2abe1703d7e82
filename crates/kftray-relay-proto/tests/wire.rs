//! The properties of the codec and the handshake between versions.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::{Bytes, BytesMut};
use kftray_relay_proto::WireError;
use kftray_relay_proto::fuzzing;
use kftray_relay_proto::handshake::{Admission, ClientHandshake, HandshakeError, Verdict};
use kftray_relay_proto::hello::{ClientHello, Purpose};
use kftray_relay_proto::open::{Family, Incoming, Listen, Mode, Open, Policy, Reply, Target};
use kftray_relay_proto::reason::{EndKind, Refusal, RefusalKind};
use kftray_relay_proto::record::{Decoder, MAX_PAYLOAD, Record};
use kftray_relay_proto::token::{Token, TokenHash};
use kftray_relay_proto::version::Versions;
use proptest::prelude::*;

fn hello(lowest: u16, highest: u16) -> ClientHello {
    ClientHello {
        versions: Versions { lowest, highest },
        token: Token::new([1; 32]),
        client: "test".into(),
        purpose: Purpose::Tcp,
    }
}

fn relay(lowest: u16, highest: u16) -> Admission {
    Admission {
        versions: Versions { lowest, highest },
        tokens: Some(vec![Token::new([9; 32]).hash(), Token::new([1; 32]).hash()]),
        software: "relay".into(),
        instance: [7; 8],
        max_streams: 16,
    }
}

/// Both ends of a hello; bytes travel one at a time.
fn shake(hello: &ClientHello, relay: &Admission) -> (Result<u16, HandshakeError>, Verdict) {
    let mut up = BytesMut::new();
    let client = ClientHandshake::new(hello, &mut up);
    let (mut arrived, mut down) = (BytesMut::new(), BytesMut::new());
    let mut verdict = None;
    for byte in up {
        assert_eq!(verdict, None, "the verdict comes with the last byte");
        arrived.extend_from_slice(&[byte]);
        verdict = relay.advance(&mut arrived, &mut down).unwrap();
    }
    let mut answer = BytesMut::new();
    let mut outcome = Ok(None);
    for byte in down {
        assert_eq!(outcome, Ok(None));
        answer.extend_from_slice(&[byte]);
        outcome = client.advance(&mut answer);
    }
    assert!(answer.is_empty());
    (outcome.map(|hello| hello.expect("an answer").version), verdict.expect("a verdict"))
}

#[test]
fn old_and_new_agree_on_the_highest_common_version() {
    for (client, server, common) in [
        ((1, 1), (1, 1), 1),
        ((1, 1), (1, 3), 1),
        ((1, 3), (1, 1), 1),
        // The first bump: a new client and an old relay, and the reverse.
        ((1, 2), (1, 1), 1),
        ((1, 1), (1, 2), 1),
        ((1, 2), (1, 2), 2),
        ((2, 5), (1, 3), 3),
        ((1, 3), (2, 5), 3),
        ((3, 3), (1, 9), 3),
    ] {
        let (outcome, verdict) = shake(&hello(client.0, client.1), &relay(server.0, server.1));
        assert_eq!(outcome, Ok(common));
        assert!(matches!(verdict, Verdict::Accepted { version, .. } if version == common));
    }
}

#[test]
fn disjoint_ranges_are_refused_with_the_relays_range() {
    for (client, server) in
        [((1, 1), (2, 2)), ((2, 2), (1, 1)), ((1, 1), (2, 3)), ((4, 6), (2, 3)), ((3, 2), (1, 9))]
    {
        let (outcome, verdict) = shake(&hello(client.0, client.1), &relay(server.0, server.1));
        let Err(HandshakeError::Refused { refusal, versions }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(refusal.kind, RefusalKind::Version);
        assert_eq!(versions, Versions { lowest: server.0, highest: server.1 });
        assert!(refusal.message.contains(&versions.to_string()), "{}", refusal.message);
        assert_eq!(verdict, Verdict::Refused(refusal));
    }
}

#[test]
fn only_known_tokens_are_let_in() {
    let stranger = ClientHello { token: Token::new([2; 32]), ..hello(1, 1) };
    let (outcome, _) = shake(&stranger, &relay(1, 1));
    let Err(HandshakeError::Refused { refusal, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(refusal.kind, RefusalKind::Unauthorized);
    let open = Admission { tokens: None, ..relay(1, 1) };
    assert_eq!(shake(&stranger, &open).0, Ok(1));
    let closed = Admission { tokens: Some(Vec::new()), ..relay(1, 1) };
    assert!(shake(&hello(1, 1), &closed).0.is_err());
}

#[test]
fn a_relay_that_chooses_what_was_not_offered_is_left() {
    let mut bytes = BytesMut::new();
    let client = ClientHandshake::new(&hello(2, 3), &mut bytes);
    let mut down = BytesMut::new();
    relay(1, 1)
        .advance(
            &mut {
                let mut own = BytesMut::new();
                hello(1, 1).encode(&mut own);
                own
            },
            &mut down,
        )
        .unwrap();
    assert_eq!(client.advance(&mut down), Err(HandshakeError::NotOffered(1)));
}

#[test]
fn strangers_are_known_by_their_first_wrong_byte() {
    for garbage in ["GET / HTTP/1.1\r\n", "\u{16}\u{3}\u{1}", "KFTRELAX"] {
        let mut input = BytesMut::from(garbage);
        assert_eq!(
            relay(1, 1).advance(&mut input, &mut BytesMut::new()),
            Err(WireError::Magic),
            "{garbage:?}"
        );
    }
    assert_eq!(relay(1, 1).advance(&mut BytesMut::from("KFTRE"), &mut BytesMut::new()), Ok(None));
}

#[test]
fn what_follows_the_hello_is_left_for_yamux() {
    let mut input = BytesMut::new();
    hello(1, 1).encode(&mut input);
    input.extend_from_slice(b"yamux");
    let mut out = BytesMut::new();
    assert!(relay(1, 1).advance(&mut input, &mut out).unwrap().is_some());
    assert_eq!(input, "yamux");
}

#[test]
fn a_field_that_must_be_known_is_refused() {
    // Kind tcp, host "a", port 1, and field 0x80.
    let mut input = BytesMut::from(&b"\x01\x00\x0c\x01\x00\x01a\x02\x00\x02\x00\x01\x80\x00\x00"[..]);
    let error = Open::decode(&mut input).unwrap_err();
    assert_eq!(error, WireError::Unsupported { what: "field", code: 0x80 });
    assert_eq!(error.refusal().kind, RefusalKind::Unsupported);
}

#[test]
fn unusable_opens_are_refused() {
    let refused = |bytes: &[u8]| Open::decode(&mut BytesMut::from(bytes)).unwrap_err().refusal().kind;
    assert_eq!(refused(b"\x09"), RefusalKind::Unsupported, "an unknown kind");
    assert_eq!(refused(b"\x01\xff\xff"), RefusalKind::TooLarge, "a body longer than any");
    assert_eq!(refused(b"\x01\x00\x00"), RefusalKind::Invalid, "no host");
    assert_eq!(refused(b"\x01\x00\x09\x01\x00\x01a\x02\x00\x02\x00\x00"), RefusalKind::Invalid, "port 0");
    assert_eq!(
        refused(b"\x01\x00\x08\x01\x00\x00\x02\x00\x02\x00\x01"),
        RefusalKind::Invalid,
        "an empty host"
    );
    assert_eq!(refused(b"\x01\x00\x04\x01\x00\x01\xff"), RefusalKind::Invalid, "a host that is no text");
    assert_eq!(refused(b"\x01\x00\x04\x01\x00\x09a"), RefusalKind::Invalid, "a field beyond the body");
}

#[test]
fn token_texts() {
    let token = Token::new([0xFE; 32]);
    assert_eq!(token.to_secret_text().parse::<Token>(), Ok(token.clone()));
    assert_eq!(format!("{token:?}"), "Token(..)");
    let hash = token.hash();
    assert_eq!(hash.to_string().parse::<TokenHash>(), Ok(hash));
    assert_eq!(hash.to_string().to_uppercase().parse::<TokenHash>(), Ok(hash));
    assert!(hash.matches(&token) && !hash.matches(&Token::new([0; 32])));
    assert!("abc".parse::<TokenHash>().is_err() && "+1".repeat(32).parse::<TokenHash>().is_err());
    // FIPS 180-4's function over 32 zero bytes, from another implementation.
    let zero = "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925";
    assert_eq!(Token::new([0; 32]).hash().to_string(), zero);
}

#[test]
fn reasons_have_distinct_codes() {
    for (index, kind) in RefusalKind::ALL.iter().enumerate() {
        assert_eq!(usize::from(kind.code()), index + 1);
        assert_eq!(RefusalKind::from_code(kind.code()), *kind);
    }
    for (index, kind) in EndKind::ALL.iter().enumerate() {
        assert_eq!(usize::from(kind.code()), index + 1);
        assert_eq!(EndKind::from_code(kind.code()), *kind);
    }
    assert_eq!(RefusalKind::from_code(200), RefusalKind::Unknown(200));
}

#[test]
fn payload_is_not_copied_when_it_comes_whole() {
    let mut encoded = BytesMut::new();
    Record::Data(Bytes::from_static(b"datagram")).encode(&mut encoded);
    let mut chunk = encoded.freeze();
    let begin = chunk.as_ptr();
    for mut decoder in [Decoder::stream(), Decoder::datagrams()] {
        let Ok(Some(Record::Data(payload))) = decoder.next(&mut chunk.clone()) else { panic!("a record") };
        assert_eq!(payload.as_ptr(), begin.wrapping_add(2));
    }
    chunk.clear();
}

#[test]
fn the_largest_datagram_fits() {
    let payload = Bytes::from(vec![7; MAX_PAYLOAD]);
    let mut encoded = BytesMut::new();
    Record::Data(payload.clone()).encode(&mut encoded);
    let mut decoder = Decoder::datagrams();
    let mut second = encoded.split_off(40_000).freeze();
    assert_eq!(decoder.next(&mut encoded.freeze()), Ok(None));
    assert!(!decoder.is_between_records());
    assert_eq!(decoder.next(&mut second), Ok(Some(Record::Data(payload))));
    let mut beyond = Bytes::from_static(&[0xFF, 0xE4]);
    assert!(matches!(Decoder::stream().next(&mut beyond), Err(WireError::TooLong { length: 65_508, .. })));
}

fn host() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9.-]{1,254}", any::<std::net::IpAddr>().prop_map(|address| address.to_string())]
}

fn policy() -> impl Strategy<Value = Policy> {
    let family = proptest::option::of(prop_oneof![Just(Family::V4), Just(Family::V6)]);
    (proptest::option::of(any::<u32>()), family, proptest::option::of(any::<u32>())).prop_map(
        |(connect, family, idle)| Policy {
            connect_timeout: connect.map(|millis| std::time::Duration::from_millis(millis.into())),
            family,
            idle: idle.map(|seconds| std::time::Duration::from_secs(seconds.into())),
        },
    )
}

fn open() -> impl Strategy<Value = Open> {
    let target = || (host(), 1..=u16::MAX).prop_map(|(host, port)| Target { host, port });
    let mode = prop_oneof![Just(Mode::Tcp), Just(Mode::Http)];
    prop_oneof![
        (target(), policy()).prop_map(|(target, policy)| Open::Tcp { target, policy }),
        (target(), policy()).prop_map(|(target, policy)| Open::Udp { target, policy }),
        (".{0,100}", any::<u16>(), mode, proptest::collection::vec("[0-9./]{1,18}", 0..8))
            .prop_map(|(name, port, mode, callers)| Open::Listen(Listen { name, port, mode, callers })),
        (".{0,100}", any::<u16>(), ".{0,60}").prop_map(|(name, port, peer)| Open::Incoming(Incoming {
            name,
            port,
            peer
        })),
    ]
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..3000).prop_map(|bytes| Record::Data(bytes.into())),
        1 => (any::<u8>(), ".{0,200}")
            .prop_map(|(code, message)| Record::End { kind: EndKind::from_code(code), message }),
        1 => any::<u64>().prop_map(Record::Dropped),
    ]
}

proptest! {
    #[test]
    fn opens_survive_the_wire_in_any_pieces(open in open(), cut in 0usize..64) {
        let mut encoded = BytesMut::new();
        open.encode(&mut encoded);
        encoded.extend_from_slice(b"rest");
        let mut input = BytesMut::from(&encoded[..cut.min(encoded.len() - 5)]);
        prop_assert_eq!(Open::decode(&mut input), Ok(None));
        input.extend_from_slice(&encoded[input.len()..]);
        prop_assert_eq!(Open::decode(&mut input), Ok(Some(open)));
        prop_assert_eq!(&input[..], b"rest");
    }

    #[test]
    fn refusals_survive_the_wire(code in any::<u8>(), message in ".{0,300}") {
        let reply = Reply::Refused(Refusal::new(RefusalKind::from_code(code), message));
        let mut encoded = BytesMut::new();
        reply.encode(&mut encoded);
        prop_assert_eq!(Reply::decode(&mut encoded), Ok(Some(reply)));
    }

    #[test]
    fn long_messages_are_cut_at_a_character(message in "[aé€🦀]{200,600}") {
        let mut encoded = BytesMut::new();
        Reply::Refused(Refusal::new(RefusalKind::Busy, message.clone())).encode(&mut encoded);
        let Ok(Some(Reply::Refused(refusal))) = Reply::decode(&mut encoded) else { panic!("a refusal") };
        prop_assert!(message.starts_with(&refusal.message));
        prop_assert!(refusal.message.len() <= 1024 && refusal.message.len() >= message.len().min(1021));
    }

    #[test]
    fn datagrams_survive_the_wire_in_any_pieces(
        records in proptest::collection::vec(record(), 0..12), cuts in proptest::collection::vec(1usize..5000, 1..30)
    ) {
        let mut encoded = BytesMut::new();
        records.iter().for_each(|record| record.encode(&mut encoded));
        let mut input = encoded.freeze();
        let mut decoder = Decoder::datagrams();
        let mut found = Vec::new();
        let mut cuts = cuts.into_iter().cycle();
        while !input.is_empty() {
            let mut chunk = input.split_to(cuts.next().unwrap().min(input.len()));
            while let Some(record) = decoder.next(&mut chunk).unwrap() {
                found.push(record);
            }
        }
        prop_assert!(decoder.is_between_records());
        prop_assert_eq!(found, records);
    }

    #[test]
    fn any_bytes_are_taken_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzzing::relay_hello(&bytes);
        fuzzing::relay_open(&bytes);
        fuzzing::relay_record(&bytes);
    }
}
