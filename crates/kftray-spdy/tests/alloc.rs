//! In the steady state, reading and writing DATA frames must not allocate. One test only in this file: the counters are
//! those of the whole process, and the test harness runs tests in threads.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::alloc::System;

use bytes::{Bytes, BytesMut};
use kftray_spdy::connection::{Client, Event, FRAME_PAYLOAD, PairId};
use kftray_spdy::{frame, ws};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One reader: what a session does between `read` and the local socket.
struct Reader {
    buffer: BytesMut,
    carrier: Option<ws::Parser>,
    parser: frame::Parser,
    client: Client,
    out: Vec<u8>,
    received: usize,
}

impl Reader {
    /// "Reads" the wire in portions of an odd size and takes it through all layers.
    fn run(&mut self, wire: &[u8], portion: usize) {
        for part in wire.chunks(portion) {
            self.buffer.reserve(part.len());
            self.buffer.extend_from_slice(part);
            if self.carrier.is_none() {
                let input = self.buffer.split().freeze();
                self.frames(input);
                continue;
            }
            while let Some(event) =
                self.carrier.as_mut().and_then(|carrier| carrier.next(&mut self.buffer).unwrap())
            {
                let ws::Event::Data { payload, .. } = event else { panic!("only data is sent") };
                self.frames(payload);
            }
        }
    }

    fn frames(&mut self, mut input: Bytes) {
        while let Some(frame) = self.parser.next(&mut input).unwrap() {
            for event in self.client.on_frame(frame, &mut self.out) {
                if let Event::Data { payload, .. } = event {
                    self.received += payload.len();
                }
            }
        }
    }
}

fn reader(carrier: Option<ws::Parser>) -> (Reader, PairId) {
    let mut client = Client::new();
    let mut out = Vec::new();
    let pair = client.open(8080, b"", &mut out).unwrap();
    out.clear();
    let buffer = BytesMut::with_capacity(64 * 1024);
    let parser = frame::Parser::client(frame::Limits::default());
    (Reader { buffer, carrier, parser, client, out, received: 0 }, pair)
}

/// 64 DATA frames of mixed sizes, each in one or more WebSocket messages if carried.
fn wire(pair: PairId, carried: bool) -> (Vec<u8>, usize) {
    let payload = vec![0x5a; FRAME_PAYLOAD];
    let (mut spdy, mut wire, mut total) = (Vec::new(), Vec::new(), 0);
    for index in 0..64 {
        let len = [1, 100, 4096, FRAME_PAYLOAD][index % 4];
        frame::put_data(&mut spdy, pair.data_stream(), &payload[..len], false);
        total += len;
    }
    if !carried {
        return (spdy, total);
    }
    for message in spdy.chunks(10_000) {
        ws::put_binary(&mut wire, ws::Role::Server, message);
    }
    (wire, total)
}

#[test]
fn data_frames_do_not_allocate() {
    for carrier in [None, Some(ws::Parser::new(ws::Role::Client, u64::MAX))] {
        let carried = carrier.is_some();
        let (mut reader, pair) = reader(carrier);
        let (wire, total) = wire(pair, carried);
        // Odd portions split headers at every place; the first round warms the buffers.
        for portion in [16 * 1024, 1009, 37] {
            reader.run(&wire, portion);
            let region = Region::new(ALLOCATOR);
            reader.received = 0;
            reader.run(&wire, portion);
            let change = region.change();
            assert_eq!(reader.received, total);
            assert_eq!(
                (change.allocations, change.reallocations, change.deallocations),
                (0, 0, 0),
                "reading, carried: {carried}, portions of {portion}"
            );
        }
    }

    // Writing, into a buffer that is reused: contiguous, and header only, with the carrier's header in front.
    let (mut reader, pair) = reader(None);
    let payload = vec![0x5a; 3 * FRAME_PAYLOAD];
    let mut batch = Vec::with_capacity(4 * FRAME_PAYLOAD);
    let region = Region::new(ALLOCATOR);
    for _ in 0..64 {
        batch.clear();
        batch.resize(ws::MAX_HEADER, 0);
        reader.client.data(pair, &payload, &mut batch).unwrap();
        let begin = ws::prefix_binary(&mut batch, ws::Role::Client).unwrap();
        let header = reader.client.data_header(pair, payload.len()).unwrap();
        std::hint::black_box((begin, header));
    }
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0), "writing");

    // The instrument works: one more Vec is seen.
    let region = Region::new(ALLOCATOR);
    std::hint::black_box(vec![0_u8; 64]);
    assert_eq!(region.change().allocations, 1);
}
