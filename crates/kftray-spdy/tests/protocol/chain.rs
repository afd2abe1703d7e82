//! All layers in a row, as a session uses them: what one side sends is what the other gets, whatever the portions.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use kftray_spdy::connection::{Client, Event};
use kftray_spdy::frame::{self, Frame, Limits, Parser, StreamId};
use kftray_spdy::ws::{self, Opcode, Role};
use proptest::prelude::*;

/// Wraps bytes into WebSocket messages of one or two fragments, cut at `sizes`.
fn carry(role: Role, bytes: &[u8], sizes: &[usize]) -> Vec<u8> {
    let (mut wire, mut rest) = (Vec::new(), bytes);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (message, later) = rest.split_at(rest.len().min(*size));
        let (first, second) = message.split_at(message.len() / (1 + size % 3));
        rest = later;
        wire.extend_from_slice(&ws::header(role, Opcode::Binary, false, first.len()));
        wire.extend_from_slice(first);
        ws::put_ping(&mut wire, role, b"between fragments");
        wire.extend_from_slice(&ws::header(role, Opcode::Continuation, true, second.len()));
        wire.extend_from_slice(second);
    }
    wire
}

/// Feeds the wire in portions and hands every frame to `take`.
fn receive(role: Role, mut parser: Parser, wire: &[u8], portion: usize, mut take: impl FnMut(Frame)) {
    let mut carrier = ws::Parser::new(role, u64::MAX);
    let mut buffer = BytesMut::new();
    for part in wire.chunks(portion) {
        buffer.extend_from_slice(part);
        while let Some(event) = carrier.next(&mut buffer).unwrap() {
            let ws::Event::Data { mut payload, .. } = event else { continue };
            while let Some(frame) = parser.next(&mut payload).unwrap() {
                take(frame);
            }
        }
    }
    assert!(buffer.is_empty() && parser.is_between_frames());
}

fn any_sends() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
    prop::collection::vec((0_usize..4, prop::collection::vec(any::<u8>(), 1..2000)), 1..20)
}

fn per_stream(sends: &[(usize, Vec<u8>)], stream: impl Fn(usize) -> StreamId) -> BTreeMap<StreamId, Vec<u8>> {
    let mut expected: BTreeMap<StreamId, Vec<u8>> = BTreeMap::new();
    for (index, payload) in sends {
        expected.entry(stream(*index)).or_default().extend_from_slice(payload);
    }
    expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn from_the_application_to_the_client(
        sends in any_sends(),
        sizes in prop::collection::vec(1_usize..3000, 1..8),
        portion in 1_usize..3000,
    ) {
        let (mut client, mut out) = (Client::new(), Vec::new());
        let pairs: Vec<_> = (0..4).map(|_| client.open(80, b"", &mut out).unwrap()).collect();
        let mut spdy = Vec::new();
        for (index, payload) in &sends {
            frame::put_data(&mut spdy, pairs[*index].data_stream(), payload, false);
        }
        let mut received: BTreeMap<StreamId, Vec<u8>> = BTreeMap::new();
        let wire = carry(Role::Server, &spdy, &sizes);
        receive(Role::Client, Parser::client(Limits::default()), &wire, portion, |frame| {
            for event in client.on_frame(frame, &mut out) {
                let Event::Data { pair, payload } = event else { panic!("only data is sent, not {event:?}") };
                received.entry(pair.data_stream()).or_default().extend_from_slice(&payload);
            }
        });
        prop_assert_eq!(received, per_stream(&sends, |index| pairs[index].data_stream()));
    }

    #[test]
    fn from_the_client_to_the_application(
        sends in any_sends(),
        sizes in prop::collection::vec(1_usize..3000, 1..8),
        portion in 1_usize..3000,
    ) {
        let (mut client, mut spdy) = (Client::new(), Vec::new());
        let pairs: Vec<_> = (0..4).map(|_| client.open(80, b"", &mut spdy).unwrap()).collect();
        for (index, payload) in &sends {
            client.data(pairs[*index], payload, &mut spdy).unwrap();
        }
        let mut received: BTreeMap<StreamId, Vec<u8>> = BTreeMap::new();
        let mut opened = 0;
        let wire = carry(Role::Client, &spdy, &sizes);
        receive(Role::Server, Parser::server(Limits::default()), &wire, portion, |frame| {
            if let Frame::Data(chunk) = frame {
                // The empty frame that ends our half of each error stream carries nothing.
                if chunk.payload != Bytes::new() {
                    received.entry(chunk.stream).or_default().extend_from_slice(&chunk.payload);
                }
                return;
            }
            assert!(matches!(frame, Frame::SynStream { .. }), "only streams are opened, not {frame:?}");
            opened += 1;
        });
        prop_assert_eq!(opened, 8);
        prop_assert_eq!(received, per_stream(&sends, |index| pairs[index].data_stream()));
    }
}
